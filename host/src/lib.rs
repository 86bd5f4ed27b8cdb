//! A WebAssembly-pluggable replicated state machine host: many Raft groups in one process.
//!
//! [`MultiNode`] is the library: a node that hosts replicas of many groups. A command goes
//!
//! ```text
//! MultiNode → mailbox → shard (core::Group) → log writer ‖ outbox → transport → peer
//!                          ↑        ↓ committed
//!                          └── worker (StateMachine) → reply
//! ```
//!
//! * [`multinode`]: the public surface; [`node_config`], [`group_config`], [`exchange`], [`status`], [`trouble`], [`error`]: its words.
//!   `node`: its inside, start and stop; `retry`, `session`: proposals that are applied once.
//! * `router`, `route`: which shard has which group; where peers, the log and the machines post to.
//! * `mailbox`, `shard`, `replica`: threads that own replicas, and what they are told.
//! * `outbox`, [`transport`]: messages of a round, merged and sent.
//! * `store`: a data directory in use; [`room`]: room on its disk.
//! * `worker`, `queries`: machines, and readers beside them; `pool`, `run_queue`, `priority`: the threads they run on.
//! * [`host`], [`host_error`], [`catalog`], `peers`: one node of a cluster; what the cluster knows; asking other nodes.
//! * [`components`], `machines`, [`compiler`]: components on the disk, and machines from them.
//! * [`api`]: HTTP and the client protocol; [`config`]: `skep.toml`.
//! * [`replay`]: the past of a stopped node.
//! * [`door`], `pot`, [`descriptors`]: places, memory and descriptors that strangers may take.
//! * [`supervisor`]: tasks that do not die silently; [`budget`]: the table of bounds.
//! * [`metrics`], `gauge`, [`log_lines`]: what is counted and logged; `memory`: memory given back to the system.
//! * [`ticker`], [`clock`]: time.

pub mod api;
pub mod budget;
pub mod catalog;
pub mod clock;
pub mod compiler;
pub mod components;
pub mod config;
pub mod descriptors;
pub mod door;
pub mod error;
pub mod exchange;
mod gauge;
pub mod group_config;
pub mod host;
pub mod host_error;
pub mod log_lines;
mod machines;
mod mailbox;
mod memory;
pub mod metrics;
pub mod multinode;
mod node;
pub mod node_config;
mod outbox;
mod peers;
mod pool;
mod pot;
mod priority;
mod queries;
pub mod replay;
mod replica;
mod retry;
pub mod room;
mod route;
mod router;
mod run_queue;
mod session;
mod shard;
mod store;
pub mod supervisor;
pub mod ticker;
pub mod transport;
mod worker;

pub use error::Error;
pub use group_config::{GroupConfig, GroupNode, Peer};
pub use multinode::MultiNode;
pub use node_config::Config;
pub use router::NodeFault;
pub use status::{Consistency, GroupStatus, NodeStatus, QueryAnswer, Rehearsal, Verdict};
pub use ticker::Ticker;
pub use transport::{Inbound, Reporter, SnapshotStatus, Transport};

pub use skep_types::{node_status as status, trouble};

pub use skep_core::config::Limits;
pub use skep_core::id::{
    ComponentId, GroupId, Incarnation, LogIndex, NodeId, ReplicaId, RequestId, SessionId, Term,
};
pub use skep_core::message::{Batch, Priority};
pub use skep_core::outcome::{ConfChange, EntryContext, LeaderChanged, Outcome};
pub use skep_core::proposal::{Command, Proposal, ProposalError, Response};
pub use skep_log::{DiskStorage, LogStats, open_storage};
pub use skep_machine::state_machine::{MachineError, StateMachine};
pub use skep_wire::codec::{Decoder, Encoder};
