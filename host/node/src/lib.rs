//! The library: a WebAssembly-pluggable replicated state machine host, many Raft groups in one process.
//!
//! [`MultiNode`] is a node that hosts replicas of many groups. A command goes
//!
//! ```text
//! MultiNode → mailbox → shard (core::Group) → log writer ‖ outbox → transport → peer
//!                          ↑        ↓ committed
//!                          └── worker (StateMachine) → reply
//! ```
//!
//! * [`multinode`]: the public surface; [`node_config`], [`group_config`], [`status`], [`trouble`], [`error`]: its words.
//!   `node`: its inside, start and stop; `session`: proposals that are applied once.
//! * `shards`: threads that own replicas, and what they are told; which shard has which group.
//! * [`disk`]: a data directory in use, and room on it.
//! * [`machines`]: machines, and readers beside them; [`pool`]: the threads they run on.
//! * [`transport`]: messages to other nodes, and from them.
//! * [`supervisor`]: tasks that do not die silently.
//! * [`ticker`], [`clock`]: time; [`memory`]: memory given back to the system.

pub mod clock;
pub mod disk;
pub mod error;
pub mod group_config;
pub mod machines;
pub mod memory;
pub mod multinode;
mod node;
pub mod node_config;
pub mod pool;
mod session;
mod shards;
pub mod supervisor;
pub mod ticker;
pub mod transport;

pub use error::Error;
pub use group_config::{GroupConfig, GroupNode, Peer};
pub use multinode::MultiNode;
pub use node_config::Config;
pub use shards::router::NodeFault;
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
