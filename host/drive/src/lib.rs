//! What the work of a log does to a state machine: the contract of machines, and the one driver of them.
//!
//! The core decides what an entry asks of a machine, from the entry and the replicated state of its group, and says so as
//! [`Work`](skep_core::effect::Work). [`Driver::drive`] does the work to a machine and answers what the core is to be told.
//! Nobody else interprets work. What an entry does to a machine is changed here, and is changed for all callers:
//!
//! | caller | runs the driver for | where other machines and snapshots come from |
//! |---|---|---|
//! | `skep`, the worker of a group | production: one driver on the thread of the group's actor | the node's factory and its disk; it waits for what the node lacks |
//! | `skep replay` | the past of a stopped node: the same work again, shown to a visitor | the data directory, which is only read |
//! | the dry run of an upgrade | another machine on the state of a group: [`Driver::restore`], [`Driver::apply`], [`Driver::pass_barrier`] | nowhere: the machine is given |
//! | `skep test` | the replicas of its checks: [`Driver::apply`], [`Driver::pass_barrier`] | nowhere |
//! | the simulator and the tests of the core | machines that are models, under faults of disks and nodes | what the model draws |
//!
//! - [`state_machine`]: the contract, [`StateMachine`] and [`Reader`].
//! - `driver`: [`Driver`], and what it is asked for; `calls`: the calls of an entry.
//! - `barrier`: a machine goes on from the bytes that it saved, or leaves an image of its memory; `activation`: another machine takes its place.
//! - `source`, `listener`: what a driver needs, and who watches it; `failed`: the end of a machine.
//! - `to_end`: runs a call to its end, for who has a thread to themselves.
//!
//! # What stays with the caller
//!
//! - *Threads, queues and time.* The driver has none. A piece of work is a future that the caller polls, on any thread; it is
//!   pending where a guest has run for some while and others may run, or where an entry and a query of one machine wait for each other.
//! - *Files.* A [`CanonicalPoint`] is in memory. The caller writes it, now or later or again and again, and tells the core.
//! - *The end.* After [`Failed`] the machine is not to be trusted. The caller drops the driver and tells the core
//!   [`Failed::input`], with the command that the machine stopped at: the group may come to give that command up. A
//!   command that was given up never reaches a driver; the core answers for it.
//! - *Panics.* A caller whose thread is shared catches them. The driver is then to be dropped as after [`Failed`].
//! - *Rebuilding after a fault.* A command that fails on every replica alike is an outcome; a machine leaves no trace of it
//!   by its own means (for a guest: its journal).
//!
//! Who watches gives a [`Listener`]: metrics, log lines, tests and the visitor of a replay are listeners, not copies.
//!
//! # Why a crate of its own
//!
//! It needs the words of the core and nothing else, so it is below everything that runs Wasm, and a machine that is a model
//! or plain Rust compiles no Wasm. It is not part of the core, so that the core cannot call a machine: a replica stays a
//! value that takes inputs and gives effects.

mod activation;
mod barrier;
mod calls;
mod driver;
mod failed;
mod listener;
mod source;
pub mod state_machine;
mod to_end;

pub use activation::Lack;
pub use barrier::{CanonicalPoint, Imaging, no_image};
pub use driver::{Done, Driver};
pub use failed::Failed;
pub use listener::Listener;
pub use source::{Source, Stored};
pub use state_machine::{
    Answer, Applied, Costs, Descriptor, ImageTaken, LocalCode, MachineError, Memory, ReadImage,
    Reader, Running, SLICE, StateMachine,
};
pub use to_end::ToEnd;
