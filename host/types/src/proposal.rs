//! What can be put into a group's log, and what becomes of it.

use bytes::Bytes;

use crate::code::Code;
use crate::deployment::Deployment;
use crate::id::{LogIndex, NodeId, RequestId, SessionId, Term};
use crate::outcome::Outcome;

/// What a proposal takes beside the bytes that it carries, so that empty ones are not free.
const PROPOSAL_BYTES: usize = 32;

/// Sessions that a group opens in a second: many more than a group has clients that come anew, and too few to displace the
/// sessions of others before these are used again.
pub const SESSIONS_PER_SECOND: u64 = 128;

/// Sessions that a group opens at once, after it has opened few for as long as that takes.
pub const SESSIONS_AT_ONCE: u64 = 1024;

/// One command of a client (`Request` of the seed package).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Command {
    /// Its name; the same for every retry.
    pub request: RequestId,
    /// The client has the answers of all its commands up to this sequence, so they need not be kept.
    pub acknowledged: u64,
    /// The bytes for the machine.
    pub data: Bytes,
}

impl Command {
    /// Bytes the command counts for; what queues and entries are bounded by.
    pub fn size(&self) -> usize {
        PROPOSAL_BYTES + self.data.len()
    }
}

/// Something to put into the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Proposal {
    /// A client's command.
    Command(Command),
    /// Opens a session; the response carries its id in `request.session`.
    OpenSession,
    /// Changes the membership.
    Change(Change),
    /// Asks for a barrier, that is, a snapshot at one index on every replica.
    Barrier,
    /// Asks to go on with another deployment; answered when that is decided.
    Activate(Deployment),
    /// Asks to give up the activation that the group waits for.
    AbortActivation,
    /// Asks a paused group to take commands again.
    Resume,
    /// Decides for a suspended group whose state is right.
    Trust {
        /// The node whose replica is right.
        node: NodeId,
    },
}

/// A change of membership that is asked for (`AddNodeToGroup`, `RemoveNodeFromGroup`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// Adds a node as a learner and promotes it once it has caught up. Answered after the promotion.
    Add {
        /// The node to add.
        node: NodeId,
        /// Application bytes for `apply-conf-change`.
        data: Bytes,
    },
    /// Adds a node that only follows and never votes.
    AddLearner {
        /// The node to add.
        node: NodeId,
        /// Application bytes for `apply-conf-change`.
        data: Bytes,
    },
    /// Removes a node; if it leads, leadership is transferred first.
    Remove {
        /// The node to remove.
        node: NodeId,
        /// Application bytes for `apply-conf-change`.
        data: Bytes,
    },
    /// Makes a voter of a learner that has caught up.
    Promote {
        /// The node.
        node: NodeId,
    },
    /// Makes a learner of a voter; if it leads, leadership is transferred first.
    Demote {
        /// The node.
        node: NodeId,
    },
}

impl Proposal {
    /// Whether it does no harm to propose it a second time although the first may have been committed: a named command is
    /// applied once, a change that was made is refused, a second barrier is a second snapshot, a session that
    /// nobody uses is forgotten, and what is decided is decided again. A second activation would undo that an operator gave up
    /// the first, and a second abort may hit the activation after it.
    pub fn is_repeatable(&self) -> bool {
        match self {
            Self::Command(command) => !command.request.is_anonymous(),
            Self::OpenSession
            | Self::Change(_)
            | Self::Barrier
            | Self::Resume
            | Self::Trust { .. } => true,
            Self::Activate(_) | Self::AbortActivation => false,
        }
    }

    /// Bytes the proposal carries; what queues and entries are bounded by.
    pub fn size(&self) -> usize {
        PROPOSAL_BYTES
            + match self {
                Self::Command(command) => command.data.len(),
                Self::OpenSession
                | Self::Barrier
                | Self::AbortActivation
                | Self::Resume
                | Self::Trust { .. }
                | Self::Change(Change::Promote { .. } | Change::Demote { .. }) => 0,
                Self::Activate(deployment) => deployment.size(),
                Self::Change(
                    Change::Add { data, .. }
                    | Change::AddLearner { data, .. }
                    | Change::Remove { data, .. },
                ) => data.len(),
            }
    }
}

/// The answer to a proposal that was applied (`Response` of the seed package).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Response {
    /// The id of the request; of an opened session its id and sequence 0.
    pub request: RequestId,
    /// Where it stands in the log. For a command that a retry found already applied: where it was applied first.
    pub index: LogIndex,
    /// Term of that entry.
    pub term: Term,
    /// What the machine answered.
    pub outcome: Outcome,
}

impl Response {
    /// The session that [`Proposal::OpenSession`] opened.
    pub fn session(&self) -> SessionId {
        self.request.session
    }
}

/// Why a proposal has no response. Three-valued with [`Response`]: done; rejected (certainly never applied by this
/// attempt); unknown.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ProposalError {
    /// No leader was known before the deadline; nothing was proposed.
    #[error("the group has no leader now; nothing was applied, try again")]
    NoLeader,
    /// This replica does not lead; nothing was proposed.
    #[error("this replica does not lead the group{}; nothing was applied", leader.map(|node| format!(" (node {node} does)")).unwrap_or_default())]
    NotLeader {
        /// The leader's node, where known.
        leader: Option<NodeId>,
    },
    /// A queue of the group is full; nothing was proposed.
    #[error("the group has too much in flight; nothing was applied, slow down and try again")]
    Busy,
    /// The command is larger than the group's limit; nothing was proposed.
    #[error("the command has {size} bytes, the limit is {limit}; nothing was applied")]
    TooLarge {
        /// Bytes of the command.
        size: u64,
        /// The limit.
        limit: u64,
    },
    /// Another entry was committed in its place; it was never applied.
    #[error("another leader's entry took its place in the log; it was not applied, try again")]
    Superseded,
    /// The session is not known (any more). This attempt applied nothing; whether an earlier attempt of the same request
    /// did can no longer be told.
    #[error(
        "the group does not know the session, or has forgotten it; this attempt was not applied, an earlier one may have been: open another session"
    )]
    SessionExpired,
    /// Too many sessions were opened lately; this one was not.
    #[error(
        "the group opens {SESSIONS_PER_SECOND} sessions in a second at the most, after {SESSIONS_AT_ONCE} at once, and opened as many lately; nothing was opened: go on in one that is open, or try again"
    )]
    TooManySessions,
    /// The command was applied by an earlier attempt, and its answer is not kept (any more): it was too long, or others
    /// needed the room. This attempt applied nothing.
    #[error(
        "an earlier attempt of the command was applied, and its answer is no longer kept; this attempt was not applied"
    )]
    AnswerExpired,
    /// The session takes no command of this number any more: its client has acknowledged it or a later one, or has sent too
    /// many later ones. This attempt applied nothing; an earlier one may have been applied.
    #[error(
        "the session's commands up to this number are closed: they were acknowledged, or too many came later; this attempt was not applied, an earlier one may have been"
    )]
    SequenceClosed,
    /// Another change of membership is in flight.
    #[error("another membership change of the group is in flight; try again when it is done")]
    ChangeInProgress,
    /// The change makes no sense or would endanger the group.
    #[error("the membership change was refused: {0}")]
    ChangeRefused(ChangeRefusal),
    /// The group takes no commands, because its machine failed on many in a row.
    #[error(
        "the group is paused because its machine failed on every command lately; nothing was applied: see `skep group resume`, or upgrade it"
    )]
    Paused,
    /// The machine had no room lately for a command of this size; nothing was proposed.
    #[error(
        "the group's machine is at its limit of memory, and has no room for a command of this size; nothing was applied: make room, or raise `memory-bytes` in its profile"
    )]
    OutOfMemory,
    /// There is nothing to decide.
    #[error(
        "there is nothing to decide: nothing was changed. Either this replica's group waits for no upgrade and is not suspended, or the replica of the named node has not said what it did up to the contested barrier: see `skep group status`"
    )]
    NotNeeded,
    /// The group's machine has failed on this replica, or the replica was halted.
    #[error("this replica of the group has failed; ask another one, and see `skep group status`")]
    Faulted,
    /// The replica was stopped or removed.
    #[error("the node or this replica has stopped")]
    Stopped,
    /// It may or may not have been applied, or may yet be. A retry under the same request id is safe.
    #[error("the outcome is unknown: it may have been applied; retry with the same request id")]
    Unknown,
}

/// Why a change of membership was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[repr(u8)]
pub enum ChangeRefusal {
    /// The node is a member already.
    #[error("the node is a member already")]
    AlreadyMember = 1,
    /// The node is not a member.
    #[error("the node is not a member")]
    NotMember = 2,
    /// The last voter cannot be removed.
    #[error("the last voter cannot be removed; remove the group instead")]
    LastVoter = 3,
    /// The voters left would have no majority alive.
    #[error("the voters left would have no majority alive")]
    QuorumAtRisk = 4,
    /// Node 0 names nothing.
    #[error("node id 0 names no node")]
    ZeroId = 5,
    /// The group has as many members as it may have.
    #[error("the group has as many members as it may have")]
    TooManyMembers = 6,
    /// The group has as many voters as it may have.
    #[error("the group has as many voters as it may have")]
    TooManyVoters = 7,
    /// The member does so already.
    #[error("the member votes already, or does not vote anyway")]
    SameRole = 8,
    /// The learner lacks too much of the log, or is silent.
    #[error("the learner has not caught up, or is silent")]
    NotCaughtUp = 9,
}

impl ChangeRefusal {
    /// The refusal of a number, as on the wire.
    pub fn from_code(code: u8) -> Option<Self> {
        [
            Self::AlreadyMember,
            Self::NotMember,
            Self::LastVoter,
            Self::QuorumAtRisk,
            Self::ZeroId,
            Self::TooManyMembers,
            Self::TooManyVoters,
            Self::SameRole,
            Self::NotCaughtUp,
        ]
        .into_iter()
        .find(|refusal| *refusal as u8 == code)
    }
}

impl ProposalError {
    /// The stable code, as in logs and answers.
    pub fn code(&self) -> Code {
        match self {
            Self::NoLeader => Code::NoLeader,
            Self::NotLeader { .. } => Code::NotLeader,
            Self::Busy => Code::Busy,
            Self::TooLarge { .. } => Code::TooLarge,
            Self::Superseded => Code::Superseded,
            Self::SessionExpired => Code::SessionExpired,
            Self::TooManySessions => Code::TooManySessions,
            Self::AnswerExpired => Code::AnswerExpired,
            Self::SequenceClosed => Code::SequenceClosed,
            Self::ChangeInProgress => Code::ChangeInProgress,
            Self::ChangeRefused(_) => Code::ChangeRefused,
            Self::Paused => Code::GroupPaused,
            Self::OutOfMemory => Code::OutOfMemory,
            Self::NotNeeded => Code::NotNeeded,
            Self::Faulted => Code::GroupFaulted,
            Self::Stopped => Code::Stopped,
            Self::Unknown => Code::OutcomeUnknown,
        }
    }

    /// Whether this attempt may have been applied, or may yet be.
    pub fn is_unknown(&self) -> bool {
        self.code().is_unknown()
    }

    /// Whether the same request may succeed if it is sent again (under the same request id).
    pub fn is_retryable(&self) -> bool {
        self.code().is_retryable()
    }
}
