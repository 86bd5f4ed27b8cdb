//! The words that nodes, clients and the command line of Skep share: what can be asked, and what is answered.
//!
//! * [`id`]: names of things; [`founding`]: what tells a cluster from others; [`past`]: what tells a store from its copies;
//!   [`priority`]: how urgent messages are.
//! * [`proposal`], [`outcome`]: what can be put into a group's log, and what becomes of it.
//! * [`retry`]: how whoever sends commands names them and waits; [`shared`]: what threads share.
//! * [`deployment`], [`profile`], [`machine`], [`activation`]: what a group runs, within which limits, and how it comes to
//!   run something else.
//! * [`form`]: how a snapshot holds a machine.
//! * [`status`], [`node_status`], [`held_back`], [`trouble`]: what a replica and a node say of themselves.
//! * [`admin`], [`record`]: requests of administration and their answers.
//! * [`code`]: every way to say no, and what follows from it.
//!
//! Nothing here decides for a group, and nothing knows Raft, a runtime or a sandbox, so a program that only talks to nodes compiles
//! none of these.

pub mod activation;
pub mod admin;
pub mod code;
pub mod deployment;
pub mod form;
pub mod founding;
pub mod held_back;
pub mod id;
pub mod machine;
pub mod node_status;
pub mod outcome;
pub mod past;
pub mod priority;
pub mod profile;
pub mod proposal;
pub mod record;
pub mod retry;
pub mod shared;
pub mod status;
pub mod trouble;
