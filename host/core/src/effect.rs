//! All that a replica wants done. Effects are carried out in the order they were pushed.

use bytes::Bytes;
use raft::eraftpb;

use crate::activation::Decision;
use crate::deployment::Deployment;
use crate::form::Form;
use crate::id::{LogIndex, NodeId, ReplicaId, Term};
use crate::input::Waiter;
use crate::message::{PeerMessage, SnapshotName};
use crate::outcome::{ConfChange, EntryContext, LeaderChanged};
use crate::proposal::{ProposalError, Response};
use crate::standing::Distrust;

/// One thing to do.
#[derive(Debug)]
pub enum Effect {
    /// Make this durable, as one atomic record, in the order of `number`; then `Input::Persisted`.
    Persist(Persist),
    /// Send a message. May be lost, never reordered within (node, group, priority).
    Send {
        /// The receiving node.
        to: NodeId,
        /// The message; its lane is `message.body.priority()`.
        message: PeerMessage,
    },
    /// Stream a snapshot file to a replica; then exactly one `Input::SnapshotSent`.
    SendSnapshot {
        /// The receiving node.
        to: NodeId,
        /// The `MsgSnapshot`, without data.
        message: PeerMessage,
        /// The file.
        snapshot: SnapshotName,
    },
    /// Read entries back from the files of the log, beside everything else; then `Input::LogRead`. They are durable, and
    /// nothing replaces them.
    ReadLog {
        /// The first.
        from: LogIndex,
        /// The last, if so many have no more bytes than that.
        through: LogIndex,
        /// About so many bytes are enough; one entry is always wanted.
        bytes: u64,
    },
    /// Work for the machine; strictly in order, one at a time, never on the thread of the replica.
    Machine(Work),
    /// Answer a proposal.
    Reply {
        /// Who waits.
        waiter: Waiter,
        /// What became of it.
        result: Result<Response, ProposalError>,
    },
    /// A query cannot be answered.
    QueryFailed {
        /// Who waits.
        waiter: Waiter,
        /// Why.
        error: ProposalError,
    },
    /// Commands of an entry were given up, because no member could run them; for the operator.
    GivenUp {
        /// The entry.
        index: LogIndex,
        /// How many of its commands.
        commands: usize,
    },
    /// Replicas disagree on a barrier; for the operator.
    Diverged {
        /// The barrier.
        index: LogIndex,
        /// A majority says the same. Otherwise the group is suspended.
        decided: bool,
        /// This replica is not of the majority, or there is none.
        here: bool,
    },
    /// A message from a node was not believed, and dropped; for the operator.
    Distrusted {
        /// The node it came from.
        from: NodeId,
        /// Why.
        why: Distrust,
    },
    /// Who leads has changed, as this node sees it at once and before the machine does; for metrics and watchers.
    Leader(LeaderChanged),
    /// This replica was removed from its group: stop it and delete what it stored.
    Removed,
    /// This replica cannot go on: keep its files, answer `Faulted`, tell the operator. Other groups are not concerned.
    Halt {
        /// What broke.
        reason: String,
    },
}

/// What one record makes durable. All parts are atomic together.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Persist {
    /// Counts the records of this replica from 1.
    pub number: u64,
    /// The raft id of this replica, which a joiner learns from its first leader.
    pub replica: ReplicaId,
    /// Hard state, where it changed.
    pub hard_state: Option<eraftpb::HardState>,
    /// Entries to append; those stored from the first one's index on are replaced.
    pub entries: Vec<eraftpb::Entry>,
    /// The newest snapshot, where it changed. Its file is durable already.
    pub snapshot: Option<SnapshotName>,
    /// Entries up to here are no longer needed.
    pub truncated: Option<(LogIndex, Term)>,
    /// The whole log is replaced by the snapshot at `truncated`.
    pub reset: bool,
}

/// One piece of work for the machine.
#[derive(Clone, PartialEq, Debug)]
pub enum Work {
    /// Apply an entry; then `Input::Applied`.
    Apply {
        /// The entry.
        context: EntryContext,
        /// Its bytes in the log, for the [`Deed`](crate::attestation::Deed) that the answer brings.
        entry: Bytes,
        /// The calls it makes, in order. All but [`Call::Init`] and [`Call::StatusChange`] yield outcomes.
        calls: Vec<Call>,
    },
    /// Write the machine down, and make the file durable; then `Input::Snapshotted`.
    ///
    /// [`Form::Saved`]: save the state and rebuild the machine from the bytes. [`Form::Image`]: take its memory as it is, and
    /// go on with it; `Input::NoImage` if that cannot be done here and now.
    Barrier {
        /// The barrier entry.
        context: EntryContext,
        /// The host's section of the snapshot file.
        state: Bytes,
        /// How the machine is written down.
        form: Form,
    },
    /// Rebuild the machine from a snapshot file; then `Input::Restored`.
    Restore {
        /// The barrier entry the snapshot was taken at.
        context: EntryContext,
        /// The file.
        snapshot: SnapshotName,
        /// What the group runs there, if it is not what it was created with.
        deployment: Option<Deployment>,
    },
    /// Save the state, make another machine, and restore it from the bytes; keep it, the bytes and the machine that runs. Then
    /// `Input::Prepared`. Asked again where it was not to be had.
    Prepare {
        /// The entry that activates it.
        context: EntryContext,
        /// What the other machine runs.
        deployment: Deployment,
    },
    /// Go on with the other machine, or let it go and rebuild the one that ran from the bytes. Then `Input::Exchanged`; or
    /// `Input::Prepared` where that cannot be done yet, or never.
    Decide {
        /// The entry that activates it.
        context: EntryContext,
        /// Which machine runs from here on.
        decision: Decision,
    },
    /// Ask the machine; the answer goes to the waiter directly.
    Query {
        /// Who waits.
        waiter: Waiter,
        /// The bytes for the machine.
        request: Bytes,
        /// Everything up to here is in the state that answers.
        index: LogIndex,
        /// Term of the replica when it was asked.
        term: Term,
    },
}

/// One call into the machine.
#[derive(Clone, PartialEq, Debug)]
pub enum Call {
    /// `init`, once in the life of a group.
    Init(Bytes),
    /// `apply`, for each.
    Commands(Vec<Bytes>),
    /// `apply-conf-change`.
    ConfChange(ConfChange),
    /// `process-status-change`.
    StatusChange(LeaderChanged),
}
