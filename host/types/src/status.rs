//! What a replica says of itself (`Status` of the seed package, typed).

use crate::activation::Readiness;
use crate::deployment::Quota;
pub use crate::held_back::HeldBack;
use crate::id::{ComponentId, GroupId, Incarnation, LogIndex, NodeId, ReplicaId, Term};

/// The part a replica plays in its group now.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// Waits to be contacted by a leader for the first time.
    Uninitialized,
    /// Follows.
    Follower,
    /// Asks whether it could win an election.
    PreCandidate,
    /// Stands for election.
    Candidate,
    /// Leads.
    Leader,
    /// Was halted or removed, and takes no part any more.
    Stopped,
}

/// How the machine of a replica is.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum Health {
    /// All is well.
    Healthy,
    /// There is no file of the snapshot at the last barrier; the machine goes on, but its log cannot be compacted.
    Degraded {
        /// The barrier.
        index: LogIndex,
        /// What is in the way.
        reason: String,
    },
    /// The replica's snapshot cannot be read, or is an image that its machine cannot go on from, and its log does not reach back
    /// to before it. It stores and votes, answers nothing, and fetches the snapshot, or a newer one.
    Damaged {
        /// The snapshot.
        index: LogIndex,
    },
    /// A majority of the replicas contradicts this one. It answers nothing and fetches their state.
    Quarantined {
        /// The barrier at which they disagree.
        index: LogIndex,
    },
    /// The replicas disagree, and no majority of them says the same: the group has stopped at this point.
    Suspended {
        /// The barrier at which they disagree.
        index: LogIndex,
    },
    /// The machine can no longer be run on this node, or the replica was halted.
    Faulted {
        /// What broke.
        reason: String,
    },
}

/// A snapshot of one replica's state.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct Status {
    /// The group.
    pub group: GroupId,
    /// Its life.
    pub incarnation: Incarnation,
    /// The node of this replica.
    pub node: NodeId,
    /// This replica; 0 while it is not known.
    pub replica: ReplicaId,
    /// Its part.
    pub part: Part,
    /// Its term.
    pub term: Term,
    /// The leader's node, if one is known.
    pub leader: Option<NodeId>,
    /// Last index known to be committed.
    pub commit: LogIndex,
    /// Last index the machine has applied.
    pub applied: LogIndex,
    /// First index in the log.
    pub first: LogIndex,
    /// Last index in the log.
    pub last: LogIndex,
    /// Index of the newest durable snapshot; 0 if there is none.
    pub snapshot: LogIndex,
    /// The members, as applied here.
    pub members: Vec<MemberStatus>,
    /// The machine.
    pub health: Health,
    /// The newest barrier at which a majority is known to have done the same; only the leader knows.
    pub verified: LogIndex,
    /// Commands are refused because the machine failed on many in a row, until somebody resumes the group.
    pub paused: bool,
    /// The component that the log says the group runs; none if its machine is never exchanged.
    pub deployed: Option<ComponentId>,
    /// The activation that the group waits for a decision on; none if there is none. Nothing behind it is applied.
    pub activation: Option<AwaitedDecision>,
    /// Open client sessions.
    pub sessions: usize,
    /// Bytes of answers that are kept for them.
    pub session_bytes: u64,
    /// Proposals that wait to be packed.
    pub queued: usize,
    /// What the group takes of its clients.
    pub quota: Quota,
    /// Ticks that began with commands waiting here because the group had used its bytes up, in this life of the replica.
    pub quota_waits: u64,
    /// What this leader does for members that are behind.
    #[serde(default)]
    pub catch_up: CatchUpStatus,
    /// What holds back here what clients ask, at this moment.
    #[serde(default)]
    pub held_back: Vec<HeldBack>,
}

/// An activation that is not done on this replica.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct AwaitedDecision {
    /// Its entry.
    pub index: LogIndex,
    /// The component that the group is to run.
    pub component: ComponentId,
    /// Ticks since this replica met it.
    pub ticks: u64,
    /// What was decided; none while nothing is. This replica has yet to do it.
    pub is_confirmed: Option<bool>,
    /// How far this replica is; none while its machine is at it.
    pub here: Option<Readiness>,
    /// Members that have not said that they are prepared; only the leader knows.
    pub waits_for: Vec<NodeId>,
}

/// How a member takes part.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Votes and counts for commits.
    Voter,
    /// Only follows; becomes a voter once it has caught up.
    Joining,
    /// Only follows.
    Learner,
}

/// One member of the group.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct MemberStatus {
    /// Its node.
    pub node: NodeId,
    /// Its replica.
    pub replica: ReplicaId,
    /// How it takes part.
    pub role: Role,
    /// The last index known to be stored there; only the leader knows.
    pub matched: Option<LogIndex>,
    /// Whether it answered within the last election timeout; only the leader knows, and not of everybody when it is new.
    pub active: Option<bool>,
    /// How it is catching up, if it is behind; only the leader knows.
    #[serde(default)]
    pub catching_up: Option<CatchingUp>,
}

/// How a member that is behind is catching up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
#[serde(tag = "by", rename_all = "kebab-case")]
pub enum CatchingUp {
    /// A snapshot is on its way to it.
    Snapshot,
    /// It is served from the log.
    Log {
        /// Bytes of log that it lacks.
        lacks: u64,
    },
    /// It did not come nearer for too long: nothing is done for it for a while, or until less is written.
    LeftBehind,
}

/// What a leader does for members that are behind.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct CatchUpStatus {
    /// Percent of what is usual that is taken of clients, so that members can catch up; 100 if nothing is held back.
    pub share_percent: u8,
    /// Ticks that began with commands waiting for that reason, in this life of the replica.
    pub waits: u64,
    /// Members that were left behind, in this life of the replica.
    pub left_behind: u64,
}

impl Default for CatchUpStatus {
    fn default() -> Self {
        Self {
            share_percent: 100,
            waits: 0,
            left_behind: 0,
        }
    }
}
