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
//! A node alone, with one group and a machine in plain Rust; `examples/embed` has three nodes and two groups.
//!
//! ```
//! use std::io::{self, Write};
//! use std::sync::{Arc, Mutex};
//! use std::time::Duration;
//!
//! use bytes::Bytes;
//! use skep::transport::{TcpConfig, TcpTransport};
//! use skep::{Config, Consistency, Descriptor, DiskVfs, EntryContext, GroupConfig, GroupId, MultiNode};
//! use skep::{Native, NativeMachine, NodeId, Outcome, Peer, PeerPins, Rejection, Store, Vfs};
//!
//! struct Counter(u64);
//!
//! impl NativeMachine for Counter {
//!     fn describe(&self) -> Descriptor {
//!         Descriptor { name: "counter".into(), version: "1".into(), schema: 1, oldest_schema: 1 }
//!     }
//!     fn apply(&mut self, _: &EntryContext, _: &Bytes) -> Result<Bytes, Rejection> {
//!         self.0 += 1;
//!         Ok(self.0.to_string().into())
//!     }
//!     fn query(&self, _: &EntryContext, _: &Bytes) -> Result<Bytes, Rejection> {
//!         Ok(self.0.to_string().into())
//!     }
//!     fn save(&self, to: &mut dyn Write) -> io::Result<()> {
//!         to.write_all(&self.0.to_le_bytes())
//!     }
//!     fn restore(&self, _: u32, from: &Bytes) -> Result<Self, Rejection> {
//!         let bytes = from[..].try_into().map_err(|_| Rejection::new(1, "not eight bytes"))?;
//!         Ok(Self(u64::from_le_bytes(bytes)))
//!     }
//! }
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # let dir = dir.path();
//! let (node, group) = (NodeId(1), GroupId(1));
//! let vfs: Arc<dyn Vfs> = Arc::new(DiskVfs);
//! let store = Store::open(&vfs, dir, "a-cluster", node.0)?;
//! let pins = PeerPins::open(vfs, dir)?;
//! let tcp = TcpConfig::new(&store, vec![/* (NodeId(2), "host:port") */], Arc::new(Mutex::new(pins)));
//! let listener = TcpTransport::bind("127.0.0.1:0", false).await?;
//! let mut config = Config::new(node, "a-node", "a-cluster", dir);
//! config.store = Some(store);
//! let multi = MultiNode::start(config, |inbound| Ok(TcpTransport::start(tcp, listener, inbound)?)).await?;
//!
//! let machine = Box::new(Native::new(Counter(0)));
//! multi.create_group(GroupConfig::new(group, "visits", machine, vec![Peer::new(node)])).await?;
//! let added = multi.propose_retry(group, "one more".into(), Duration::from_secs(5), Some(10)).await?;
//! let asked = multi.query(group, Bytes::new(), Consistency::Linearizable).await?;
//! assert_eq!(added.outcome, Outcome::Reply("1".into()));
//! assert_eq!(asked.outcome, added.outcome);
//! multi.stop().await;
//! # Ok(())
//! # }
//! ```
//!
//! # Where to begin
//!
//! [`MultiNode`] has every method, [`Config`] and [`GroupConfig`] set up a node and a group. A machine is a [`NativeMachine`]
//! in [`Native`], or any [`StateMachine`]. `examples/embed` is a program of that.
//!
//! | for | there is |
//! |---|---|
//! | what is asked and answered | [`Command`], [`Response`], [`Outcome`], [`Consistency`], [`QueryAnswer`] |
//! | what failed | [`Error`], [`ProposalError`], [`NodeFault`], [`Code`] |
//! | what is so | [`GroupStatus`], [`NodeStatus`], [`trouble`], [`LogStats`], [`LeaderChanged`] |
//! | another network | [`Transport`], [`Inbound`], [`Reporter`]; the one that is here: [`transport`] |
//! | another disk, other time | [`Vfs`], [`Ticker`] |
//! | another machine for a group that runs | [`Exchange`], [`MachineFactory`], [`Rehearsable`] |
//! | what a server builds on | [`Supervisor`], [`DiskRoom`], [`clock`], [`memory`] |
//!
//! # Inside
//!
//! * `multinode`: the public surface; `node_config`, `group_config`, `error`: its words. `node`: its inside, start and stop;
//!   `session`: proposals that are applied once.
//! * `shards`: threads that own replicas, and what they are told; which shard has which group.
//! * `disk`: a data directory in use, and room on it.
//! * `machines`: machines, and readers beside them; `pool`: the threads they run on.
//! * [`transport`]: messages to other nodes, and from them.
//! * `supervisor`: tasks that do not die silently; `panics`: what a panic said.
//! * `ticker`, [`clock`]: time; [`memory`]: memory given back to the system.

pub mod clock;
mod disk;
mod error;
mod group_config;
mod machines;
pub mod memory;
mod multinode;
mod node;
mod node_config;
mod panics;
mod pool;
mod session;
mod shards;
mod supervisor;
mod ticker;
pub mod transport;

pub use disk::room::{DiskRoom, NoRoom};
pub use error::Error;
pub use group_config::{GroupConfig, GroupNode, NAME_BYTES_MAX, Peer};
pub use machines::exchange::{Exchange, MachineFactory};
pub use machines::worker::{Extent, Rehearsable};
pub use multinode::MultiNode;
pub use node_config::{Config, SHARDS_MAX};
pub use shards::router::NodeFault;
pub use supervisor::{Supervisor, Tasks};
pub use ticker::Ticker;
pub use transport::{Inbound, Reporter, SnapshotStatus, Transport};

pub use skep_types::code::Code;
pub use skep_types::node_status::{
    Consistency, GroupStatus, NodeStatus, QueryAnswer, Rehearsal, Verdict,
};
pub use skep_types::{node_status as status, past, trouble};

pub use skep_core::config::Limits;
pub use skep_core::id::{
    ComponentId, GroupId, Incarnation, LogIndex, NodeId, ReplicaId, RequestId, SessionId, Term,
};
pub use skep_core::message::{Batch, Priority};
pub use skep_core::outcome::{ConfChange, EntryContext, LeaderChanged, Outcome};
pub use skep_core::proposal::{Command, Proposal, ProposalError, Response};
pub use skep_log::{
    Account, DiskStorage, DiskVfs, Heard, LogError, LogStats, PeerPins, Store, Vfs, open_storage,
};
pub use skep_machine::native::{Native, NativeMachine, Rejection};
pub use skep_machine::state_machine::{Applied, Descriptor, MachineError, Running, StateMachine};
pub use skep_wire::codec::{Decoder, Encoder};
