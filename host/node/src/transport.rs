//! How batches and snapshots get from node to node.
//!
//! [`Transport`] is what a node sends through, [`Inbound`] what a transport delivers to, [`Reporter`] how it says what
//! did not arrive. [`TcpTransport`] is the one the binary uses; an embedder or a simulator may bring its own.

mod accept;
mod connection;
mod founding;
mod handshake;
mod hearsay;
mod lane;
mod requests;
mod snapshot;
mod stats;
mod tcp;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use skep_core::id::{GroupId, NodeId};
use skep_core::message::{Batch, PeerMessage, SnapshotName};
use skep_log::{SnapshotFile, SnapshotReceiver};

pub use accept::INTRODUCTIONS;
pub use connection::{Connection, FrameReader, FrameWriter};
pub use founding::{FoundingConfig, found, is_alive, look_around};
pub use handshake::{HandshakeError, PeerCheck, PeerRefused};
pub use hearsay::REMEMBERED_WITHIN;
pub use requests::RequestHandler;
pub use requests::{fitting, size as size_of_request};
pub use stats::{LaneStats, TransportStats};
pub use tcp::{TcpConfig, TcpLimits, TcpTransport, TransportError};

use crate::error::Error;

/// Sends what a node has to say to other nodes (`SendFunc` of the seed package).
///
/// *Concurrency*: called from any thread, never blocks, and never waits for the network. *Order*: what is sent to one
/// node with one priority arrives in order or not at all; a higher priority never waits behind a lower one. *Failure*:
/// anything may be lost. A loss that is noticed is reported; the report may be made from within the call.
pub trait Transport: Send + Sync + 'static {
    /// Sends a batch of high or normal priority to the node `batch.to`. A batch of which it is known that it will not arrive is
    /// reported once for each of its groups.
    fn send(&self, batch: Batch, reporter: &Arc<dyn Reporter>);

    /// Streams a snapshot file to a replica, introduced by its `MsgSnapshot`: what has low priority. Exactly one
    /// [`Reporter::report_snapshot`] follows, whatever happens, also when the transport is stopped.
    fn send_snapshot(
        &self,
        to: NodeId,
        message: PeerMessage,
        file: Arc<SnapshotFile>,
        reporter: &Arc<dyn Reporter>,
    );
}

/// Takes the reports of a transport (`Reporter` of the seed package).
///
/// *Concurrency*: called from any thread, possibly within [`Transport::send`]; must neither block nor call back into
/// the transport. *Failure*: an error means only that the report was of no use, for instance because the group was
/// removed meanwhile; the transport goes on.
pub trait Reporter: Send + Sync + 'static {
    /// A message of the group to the node did not arrive.
    ///
    /// # Errors
    /// If the group is not on this node or the node has stopped.
    fn report_unreachable(&self, group: GroupId, node: NodeId) -> Result<(), Error>;

    /// The snapshot of the group that was last sent to the node has arrived, or will not.
    ///
    /// # Errors
    /// If the group is not on this node or the node has stopped.
    fn report_snapshot(
        &self,
        group: GroupId,
        node: NodeId,
        status: SnapshotStatus,
    ) -> Result<(), Error>;
}

/// How a snapshot transfer ended (`SnapshotStatus` of the seed package).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SnapshotStatus {
    /// The whole file is on stable storage of the receiver.
    Finish,
    /// It was refused or lost on the way, or nobody knows.
    Failure,
}

/// Takes what arrives from other nodes.
///
/// *Concurrency*: called from any thread; batches of one (node, priority) one at a time and in order.
/// [`Inbound::step_batch`] is called on a thread that serves many connections and must return soon; the others may
/// block on the disk. *Failure*: anything may be dropped; the sender learns of a refused snapshot only.
pub trait Inbound: Send + Sync + 'static {
    /// A batch arrived. Its `from` is the node that the connection belongs to, its `to` is this node.
    fn step_batch(&self, batch: Batch);

    /// The process of a node has ended: its system closed the connections to it, and refused a new one. Only what proves that may
    /// be reported; a node that is silent, or that closes connections and takes others, lives.
    fn node_gone(&self, node: NodeId) {
        let _ = node;
    }

    /// A node offers a snapshot. `Ok` is a promise to take the whole file: it holds a place among the few incoming
    /// transfers until the receiver is dropped.
    ///
    /// # Errors
    /// [`SnapshotRefusal`]; nothing is sent then.
    fn offer_snapshot(
        &self,
        from: NodeId,
        message: &PeerMessage,
        name: &SnapshotName,
    ) -> Result<SnapshotReceiver, SnapshotRefusal>;

    /// The offered snapshot is complete, verified, and on stable storage.
    fn snapshot_arrived(&self, from: NodeId, message: PeerMessage, file: SnapshotFile);
}

/// Why an offered snapshot is not taken.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotRefusal {
    /// The group, or this life of it, is not on this node.
    #[error("group {0} is not on this node")]
    NoSuchGroup(GroupId),
    /// As many snapshots as allowed are arriving already.
    #[error("too many snapshots are arriving already")]
    Busy,
    /// This replica has what the snapshot would bring.
    #[error("the replica is past the snapshot already")]
    Outdated,
    /// The file is larger than a snapshot of the group may be.
    #[error("the snapshot has {size} bytes, the limit is {limit}")]
    TooLarge {
        /// Bytes of the file.
        size: u64,
        /// The limit.
        limit: u64,
    },
    /// The file cannot be written here.
    #[error("the snapshot cannot be stored: {0}")]
    Storage(String),
    /// The node is stopping.
    #[error("the node is stopping")]
    Stopped,
}
