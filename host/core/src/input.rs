//! All that can happen to a replica.

use bytes::Bytes;
use raft::eraftpb;

use crate::activation::Readiness;
use crate::attestation::Deed;
use crate::id::{LogIndex, NodeId};
use crate::message::{ArrivedSnapshot, PeerMessage, SnapshotName};
use crate::outcome::Outcome;
use crate::proposal::Proposal;

/// Chosen by the host; names who waits for an answer. Comes back exactly once in an effect.
pub type Waiter = u64;

/// One thing that happened.
#[derive(Debug)]
pub enum Input {
    /// One tick of the node's ticker. `now` is the wall clock in nanoseconds since the Unix epoch, used only as the
    /// stamp of entries.
    Tick {
        /// Wall clock.
        now: u64,
    },
    /// A message arrived. Messages for another incarnation or replica are dropped in here.
    Message {
        /// The node it came from.
        from: NodeId,
        /// The message; never a `MsgSnapshot` (see [`Input::SnapshotArrived`]).
        message: PeerMessage,
    },
    /// A whole snapshot arrived and is durable as a file.
    SnapshotArrived {
        /// The node it came from.
        from: NodeId,
        /// What arrived.
        snapshot: ArrivedSnapshot,
    },
    /// A snapshot was offered and is not taken, because this replica has one as new already. The sender does not know: the
    /// acknowledgement of what is in it was lost, and its log does not reach back so far.
    SnapshotOutdated {
        /// The node that offered it.
        from: NodeId,
        /// The header of the transfer.
        message: PeerMessage,
        /// What was offered.
        name: SnapshotName,
    },
    /// A client's proposal; answered by one `Effect::Reply`.
    Propose {
        /// Who waits.
        waiter: Waiter,
        /// What for.
        proposal: Proposal,
    },
    /// A read-only request; answered by one `Effect::Query` (to be run) or one `Effect::QueryFailed`.
    Query {
        /// Who waits.
        waiter: Waiter,
        /// The bytes for the machine.
        request: Bytes,
        /// Whether the answer must reflect every command acknowledged before; otherwise this replica's state will do.
        linearizable: bool,
    },
    /// Nobody waits any more; whatever was proposed may still be applied.
    Forget {
        /// Who has left.
        waiter: Waiter,
    },
    /// Become a candidate now.
    Campaign,
    /// Hand leadership to another member.
    Transfer {
        /// To whom.
        to: NodeId,
    },
    /// Hand leadership to the member that is best fit for it, if this replica leads.
    HandOver,
    /// The record of this number, and so all before it, is on stable storage.
    Persisted {
        /// Number of the `Effect::Persist`.
        number: u64,
    },
    /// The files of the log hold too much for the sake of this group: what it keeps behind its snapshot for other members goes, and
    /// a leader takes a newer snapshot.
    LogCrowded,
    /// An `Effect::ReadLog` has ended.
    LogRead {
        /// The first entry that was wanted.
        from: LogIndex,
        /// What came of it.
        read: LogRead,
    },
    /// The machine has applied the entry.
    Applied {
        /// Index of the entry.
        index: LogIndex,
        /// One outcome for each command, as the machine gave them.
        outcomes: Vec<Outcome>,
        /// Fuel used.
        fuel: u64,
        /// How often the machine was built again for it on this node.
        rebuilds: u64,
        /// Fuel that it takes whenever the machine is built again from before it.
        replay_fuel: u64,
        /// A hash over what is the same on every replica.
        deed: Deed,
    },
    /// The machine has passed the barrier, and the file is durable.
    ///
    /// Of a barrier of the saved form it comes before the results of later entries. Of an image it may come after them, but
    /// before the work of the next barrier is begun: the machine goes on while its image is written.
    Snapshotted {
        /// Index of the barrier.
        index: LogIndex,
        /// The file; `None` if the machine failed to save, on every replica alike, and goes on without.
        snapshot: Option<SnapshotName>,
        /// Bytes of the memory that an image of the machine would be of; none if it can have no image, now or ever.
        memory: Option<u64>,
    },
    /// As `Snapshotted`, but this node could take no image of the machine, which goes on as it is. Others may have one.
    NoImage {
        /// Index of the barrier.
        index: LogIndex,
        /// Why, for the operator.
        reason: String,
    },
    /// What has become of another machine that was to be prepared.
    Prepared {
        /// Index of the activation.
        index: LogIndex,
        /// How far it is.
        readiness: Readiness,
    },
    /// The machine goes on as it was decided.
    Exchanged {
        /// Index of the activation.
        index: LogIndex,
    },
    /// As `Snapshotted`, but there is no file yet. The bytes are kept; `Written` follows when there is one, unless a later
    /// barrier comes first.
    Unwritten {
        /// Index of the barrier.
        index: LogIndex,
        /// What the file is to be.
        snapshot: SnapshotName,
        /// As in `Snapshotted`.
        memory: Option<u64>,
        /// What is in the way, for the operator.
        reason: String,
    },
    /// The file of a barrier that was `Unwritten` is durable.
    Written {
        /// Index of the barrier.
        index: LogIndex,
    },
    /// The file of this replica's newest snapshot was to be read, and is damaged or gone.
    SnapshotUnreadable {
        /// Index of the snapshot.
        index: LogIndex,
        /// What is wrong with it, for the operator.
        reason: String,
    },
    /// The machine was rebuilt from an arrived snapshot, or from the newest one at start.
    Restored {
        /// Index of the snapshot.
        index: LogIndex,
        /// As in `Snapshotted`.
        memory: Option<u64>,
    },
    /// The snapshot holds an image, and this node's machine cannot go on from that. It does nothing before it has another; this is
    /// also the answer to whatever else it is given.
    NotResumed {
        /// Index of the snapshot.
        index: LogIndex,
    },
    /// The machine of this replica can no longer be run.
    MachineFailed {
        /// For the operator.
        reason: String,
        /// The command that it could not run, if it was one.
        at: Option<Stopped>,
    },
    /// The last message to the replica's node did not arrive.
    Unreachable {
        /// The node.
        node: NodeId,
    },
    /// The process of a node has ended: its system closed the connections that it had, and refuses new ones. It may be started
    /// again.
    NodeGone {
        /// The node.
        node: NodeId,
    },
    /// A snapshot transfer ended; every `Effect::SendSnapshot` is followed by exactly one of these.
    SnapshotSent {
        /// The receiving node.
        node: NodeId,
        /// Whether it arrived.
        arrived: bool,
    },
}

/// The command that a machine could not run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stopped {
    /// Its entry.
    pub index: LogIndex,
    /// Its place among the commands that the machine was given of the entry.
    pub place: usize,
    /// What kind of trouble it was: a number of the machine's, which replicas compare.
    pub code: u8,
}

/// What came of reading entries back from the files of the log.
#[derive(Debug)]
pub enum LogRead {
    /// These, without a gap, from the first that was wanted on.
    Entries(Vec<eraftpb::Entry>),
    /// The files do not hold them any more, or they are damaged.
    Gone,
    /// They could not be read now.
    Failed,
}
