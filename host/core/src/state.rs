//! The replicated state the host keeps beside the machine's: who is a member, which sessions are open, who led last.
//! It changes only by committed entries and is the host's section of every snapshot file.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message;
use raft::eraftpb::ConfState;
pub use skep_types::status::Role;

use crate::config::{MEMBERS_MAX, VOTERS_MAX};
use crate::deployment::{DEPLOYMENT_BYTES_MAX, Deployment, DeploymentRecord};
use crate::entry::{Unreadable, whole};
use crate::form::Form;
use crate::id::{LogIndex, NodeId, ReplicaId, Term};
use crate::outcome::{ChangeKind, EntryContext};
use crate::planted::{self, Defect};
use crate::sessions::{ENCODED_BYTES_MAX, Sessions, SessionsRecord};

/// Bytes of a member's data. More is refused before it is proposed, and by every replica where it is applied.
pub const MEMBER_DATA_BYTES_MAX: usize = 64 << 10;

/// Bytes of one member in a snapshot, at the most.
const MEMBER_BYTES_MAX: u64 = MEMBER_DATA_BYTES_MAX as u64 + 64;

/// Bytes of the host's section of a snapshot, at the most. Each part has its own bound, and keeps it by what is replicated,
/// so that no group can outgrow what a snapshot file may hold.
pub const BYTES_MAX: u64 =
    ENCODED_BYTES_MAX + MEMBER_BYTES_MAX * MEMBERS_MAX as u64 + DEPLOYMENT_BYTES_MAX as u64 + 128;

/// Most that the index, the term and the last replica of a snapshot may be. They go up one by one, so none ever comes
/// near; and what Raft adds to them has room.
const COUNTER_MAX: u64 = u64::MAX >> 1;

/// One member of a group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MemberState {
    /// Its node.
    pub node: NodeId,
    /// How it takes part.
    pub role: Role,
    /// The application's bytes given when it was added.
    pub data: Bytes,
    /// Where the log last said that its state is wrong; 0 for never. What it says of barriers up to there is void, since by
    /// then it cannot have gone on from another state.
    pub contradicted: LogIndex,
}

/// The members of a group at one index.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Membership {
    members: BTreeMap<ReplicaId, MemberState>,
    /// The highest replica id ever given; ids up to it that are not members were removed for ever.
    last_replica: u64,
}

impl Membership {
    /// The members by their replica ids.
    pub fn members(&self) -> &BTreeMap<ReplicaId, MemberState> {
        &self.members
    }

    /// A member.
    pub fn member(&self, replica: ReplicaId) -> Option<&MemberState> {
        self.members.get(&replica)
    }

    /// The replica on a node.
    pub fn replica_on(&self, node: NodeId) -> Option<ReplicaId> {
        self.members
            .iter()
            .find(|(_, member)| member.node == node)
            .map(|(replica, _)| *replica)
    }

    /// The id for the next replica that is added.
    pub fn next_replica(&self) -> ReplicaId {
        ReplicaId(self.last_replica + 1)
    }

    /// Whether a replica of this id was a member and is no more, which is final.
    pub fn was_removed(&self, replica: ReplicaId) -> bool {
        replica.0 != 0 && replica.0 <= self.last_replica && !self.members.contains_key(&replica)
    }

    /// The voters.
    pub fn voters(&self) -> impl Iterator<Item = ReplicaId> {
        self.members
            .iter()
            .filter(|(_, member)| member.role == Role::Voter)
            .map(|(replica, _)| *replica)
    }

    /// The configuration as Raft knows it.
    pub fn conf_state(&self) -> ConfState {
        let (voters, learners): (Vec<_>, Vec<_>) = self
            .members
            .iter()
            .partition(|(_, member)| member.role == Role::Voter);
        let ids = |members: Vec<(&ReplicaId, &MemberState)>| {
            members.into_iter().map(|(id, _)| id.0).collect()
        };
        ConfState {
            voters: ids(voters),
            learners: ids(learners),
            ..ConfState::default()
        }
    }

    /// The log says at `at` that a member's state is wrong.
    pub(crate) fn contradict(&mut self, replica: ReplicaId, at: LogIndex) {
        if let Some(member) = self.members.get_mut(&replica) {
            member.contradicted = at;
        }
    }

    /// Applies a committed change. `false` if it makes no sense here, which it does on every replica alike.
    pub fn apply(
        &mut self,
        kind: ChangeKind,
        replica: ReplicaId,
        node: NodeId,
        data: &Bytes,
        promote: bool,
    ) -> bool {
        let may_vote = self.voters().count() < VOTERS_MAX;
        let is_last_voter = self.voters().eq([replica]);
        match kind {
            // A member that is added as a learner once more votes no longer, or not before it has caught up.
            ChangeKind::AddLearner if self.members.contains_key(&replica) => {
                match self.members.get_mut(&replica) {
                    Some(member)
                        if member.role == Role::Voter && member.node == node && !is_last_voter =>
                    {
                        member.role = match promote {
                            true => Role::Joining,
                            false => Role::Learner,
                        };
                    }
                    _ => return false,
                }
            }
            ChangeKind::AddVoter | ChangeKind::AddLearner => {
                let too_much =
                    self.members.len() >= MEMBERS_MAX || data.len() > MEMBER_DATA_BYTES_MAX;
                if replica.0 <= self.last_replica
                    || self.replica_on(node).is_some()
                    || node.0 == 0
                    || too_much
                    || (kind == ChangeKind::AddVoter && !may_vote)
                {
                    return false;
                }
                let role = match (kind, promote) {
                    (ChangeKind::AddVoter, _) => Role::Voter,
                    (_, true) => Role::Joining,
                    (_, false) => Role::Learner,
                };
                self.last_replica = replica.0;
                self.members.insert(
                    replica,
                    MemberState {
                        node,
                        role,
                        data: data.clone(),
                        contradicted: LogIndex(0),
                    },
                );
            }
            ChangeKind::Promote => match self.members.get_mut(&replica) {
                Some(member) if member.role != Role::Voter && may_vote => {
                    member.role = Role::Voter;
                }
                _ => return false,
            },
            ChangeKind::Remove => {
                if is_last_voter || self.members.remove(&replica).is_none() {
                    return false;
                }
                if planted::has(Defect::ReplicaIdsRepeat) {
                    let highest = self.members.last_key_value();
                    self.last_replica = highest.map_or(0, |(replica, _)| replica.0);
                }
            }
        }
        true
    }
}

/// The host's replicated state of a group at one index.
#[derive(Debug, Default)]
pub struct HostState {
    /// Who is a member.
    pub membership: Membership,
    /// Open sessions.
    pub sessions: Sessions,
    /// The leader of the last term that has an entry; 0 before the first.
    pub leader: NodeId,
    /// The stamp of the last entry; stamps never decrease.
    pub now: u64,
    /// The machine's `init` was called.
    pub initialized: bool,
    /// Commands are refused.
    pub paused: bool,
    /// What the group runs, if it is not what it was created with.
    pub deployment: Option<Deployment>,
    /// The newest barrier that a verdict has decided: replicas that restart must draw the same conclusions from the log.
    pub settled: LogIndex,
    /// The form of the newest barrier, and so of the snapshot that this stands in.
    pub form: Form,
    /// Bytes of the last snapshot of the saved form before the newest barrier, as its leader knew them; 0 if it knew none.
    pub saved_bytes: u64,
}

impl HostState {
    /// The host's section of a snapshot taken at the barrier entry of this context.
    pub fn encode(&self, context: &EntryContext) -> Bytes {
        HostStateRecord {
            index: context.index.0,
            term: context.term.0,
            now: self.now,
            entropy: context.entropy.to_vec(),
            leader: self.leader.0,
            initialized: self.initialized,
            last_replica: self.membership.last_replica,
            members: self
                .membership
                .members
                .iter()
                .map(|(replica, member)| MemberRecord {
                    replica: replica.0,
                    node: member.node.0,
                    role: match member.role {
                        Role::Voter => 0,
                        Role::Joining => 1,
                        Role::Learner => 2,
                    },
                    data: member.data.clone(),
                    contradicted: member.contradicted.0,
                })
                .collect(),
            sessions: (!planted::has(Defect::SessionsMissingFromSnapshot))
                .then(|| self.sessions.encode()),
            paused: self.paused,
            deployment: self.deployment.as_ref().map(DeploymentRecord::from),
            settled: self.settled.0,
            form: self.form.code(),
            saved_bytes: self.saved_bytes,
        }
        .encode_to_vec()
        .into()
    }

    /// Reads the host's section of a snapshot file, and the barrier entry it was taken at.
    pub fn decode(bytes: Bytes) -> Result<(Self, EntryContext), StateError> {
        let record: HostStateRecord = whole(bytes)?;
        let wrong = |what: &str| StateError::Wrong(what.to_owned());
        if record.index.max(record.term).max(record.last_replica) > COUNTER_MAX {
            return Err(wrong(
                "its index, its term or its last replica is past all counting",
            ));
        }
        let mut membership = Membership {
            members: BTreeMap::new(),
            last_replica: record.last_replica,
        };
        for member in record.members {
            let role = match member.role {
                0 => Role::Voter,
                1 => Role::Joining,
                2 => Role::Learner,
                _ => return Err(wrong("a member has an unknown role")),
            };
            if member.replica == 0 || member.replica > record.last_replica || member.node == 0 {
                return Err(wrong("a member has an impossible id"));
            }
            let state = MemberState {
                node: NodeId(member.node),
                role,
                // Not a piece of the file, which would be held for it.
                data: Bytes::copy_from_slice(&member.data),
                contradicted: LogIndex(member.contradicted),
            };
            membership.members.insert(ReplicaId(member.replica), state);
        }
        if membership.voters().next().is_none() || record.index == 0 || record.term == 0 {
            return Err(wrong("it has no voters, or no position"));
        }
        let context = EntryContext {
            index: LogIndex(record.index),
            term: Term(record.term),
            now: record.now,
            entropy: record
                .entropy
                .try_into()
                .map_err(|_| wrong("its entropy is not 16 bytes"))?,
        };
        let sessions = Sessions::decode(record.sessions.unwrap_or_default())
            .ok_or_else(|| wrong("a session makes no sense"))?;
        let deployment = record
            .deployment
            .map(|record| {
                record
                    .read()
                    .ok_or_else(|| wrong("what the group runs makes no sense"))
            })
            .transpose()?;
        let state = Self {
            paused: record.paused,
            deployment,
            membership,
            sessions,
            leader: NodeId(record.leader),
            now: record.now,
            initialized: record.initialized,
            settled: LogIndex(record.settled),
            form: Form::from_code(record.form)
                .ok_or_else(|| Unreadable::Unknown(format!("a barrier of form {}", record.form)))?,
            saved_bytes: record.saved_bytes,
        };
        Ok((state, context))
    }
}

/// The host's section of a snapshot makes no sense although its checksum is right.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StateError {
    /// It is damaged, or a newer release wrote it.
    #[error("the host's section of the snapshot is not read: {0}")]
    Unreadable(#[from] Unreadable),
    /// It says what cannot be.
    #[error("the host's section of the snapshot cannot be: {0}")]
    Wrong(String),
}

#[derive(Clone, PartialEq, Message)]
struct HostStateRecord {
    #[prost(uint64, tag = "1")]
    index: u64,
    #[prost(uint64, tag = "2")]
    term: u64,
    #[prost(fixed64, tag = "3")]
    now: u64,
    #[prost(bytes = "vec", tag = "4")]
    entropy: Vec<u8>,
    #[prost(uint64, tag = "5")]
    leader: u64,
    #[prost(bool, tag = "6")]
    initialized: bool,
    #[prost(uint64, tag = "7")]
    last_replica: u64,
    #[prost(message, repeated, tag = "8")]
    members: Vec<MemberRecord>,
    #[prost(message, optional, tag = "9")]
    sessions: Option<SessionsRecord>,
    #[prost(bool, tag = "10")]
    paused: bool,
    #[prost(message, optional, tag = "11")]
    deployment: Option<DeploymentRecord>,
    #[prost(uint64, tag = "12")]
    settled: u64,
    #[prost(uint32, tag = "13")]
    form: u32,
    #[prost(uint64, tag = "14")]
    saved_bytes: u64,
}

#[derive(Clone, PartialEq, Message)]
struct MemberRecord {
    #[prost(uint64, tag = "1")]
    replica: u64,
    #[prost(uint64, tag = "2")]
    node: u64,
    #[prost(uint32, tag = "3")]
    role: u32,
    #[prost(bytes = "bytes", tag = "4")]
    data: Bytes,
    #[prost(uint64, tag = "5")]
    contradicted: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deployment::PROFILE_BYTES_MAX;
    use crate::form::Barriers;

    #[test]
    fn replica_ids_are_never_used_again_and_the_last_voter_stays() {
        let mut membership = Membership::default();
        let data = Bytes::new();
        assert!(membership.apply(ChangeKind::AddVoter, ReplicaId(1), NodeId(1), &data, false));
        assert!(!membership.apply(ChangeKind::Remove, ReplicaId(1), NodeId(1), &data, false));
        assert!(membership.apply(ChangeKind::AddLearner, ReplicaId(2), NodeId(2), &data, true));
        assert!(!membership.apply(ChangeKind::AddLearner, ReplicaId(3), NodeId(2), &data, true));
        assert!(membership.apply(ChangeKind::Promote, ReplicaId(2), NodeId(2), &data, false));
        assert!(membership.apply(ChangeKind::Remove, ReplicaId(2), NodeId(2), &data, false));
        assert!(membership.was_removed(ReplicaId(2)));
        assert!(!membership.was_removed(ReplicaId(3)));
        assert_eq!(membership.next_replica(), ReplicaId(3));
        assert!(!membership.apply(ChangeKind::AddLearner, ReplicaId(2), NodeId(2), &data, true));
    }

    #[test]
    fn the_section_survives_its_bytes_and_garbage_is_refused() {
        let mut state = HostState {
            leader: NodeId(3),
            now: 77,
            initialized: true,
            ..HostState::default()
        };
        let data = Bytes::from_static(b"address");
        assert!(state.membership.apply(
            ChangeKind::AddVoter,
            ReplicaId(1),
            NodeId(3),
            &data,
            false
        ));
        let session = crate::id::SessionId(9);
        state.sessions.open(session, LogIndex(4), &mut Vec::new());
        let context = EntryContext {
            index: LogIndex(9),
            term: Term(2),
            now: 77,
            entropy: [7; 16],
        };
        let bytes = state.encode(&context);
        let (restored, at) = HostState::decode(bytes.clone()).expect("own bytes");
        assert_eq!(at, context);
        assert_eq!(restored.encode(&at), bytes);
        for end in 0..bytes.len() {
            // A cut section must give an error or another state, never a panic.
            let _ = HostState::decode(bytes.slice(..end));
        }
        assert!(HostState::decode(Bytes::new()).is_err());
    }

    // P-5
    #[test]
    fn the_fullest_section_there_can_be_keeps_its_bound() {
        let mut state = HostState {
            now: u64::MAX,
            leader: NodeId(u64::MAX),
            initialized: true,
            paused: true,
            settled: LogIndex(u64::MAX),
            form: Form::Image,
            saved_bytes: u64::MAX,
            deployment: Some(Deployment {
                component: crate::id::ComponentId([255; 32]),
                profile: vec![255; PROFILE_BYTES_MAX].into(),
                quota: crate::deployment::Quota {
                    commands_per_second: u32::MAX,
                    in_flight_bytes: u64::MAX,
                    bytes_per_second: u64::MAX,
                },
                barriers: Barriers::Image,
            }),
            ..HostState::default()
        };
        let membership = &mut state.membership;
        let data: Bytes = vec![255; MEMBER_DATA_BYTES_MAX].into();
        let first = u64::MAX - MEMBERS_MAX as u64;
        for id in first..u64::MAX {
            let (replica, node) = (ReplicaId(id), NodeId(id));
            let is_voter = membership.voters().count() < VOTERS_MAX;
            assert_eq!(
                membership.apply(ChangeKind::AddVoter, replica, node, &data, false),
                is_voter
            );
            if !is_voter {
                assert!(membership.apply(ChangeKind::AddLearner, replica, node, &data, false));
                let promoted = membership.apply(ChangeKind::Promote, replica, node, &data, false);
                assert!(!promoted, "there are as many voters as there may be");
            }
            membership.contradict(replica, LogIndex(u64::MAX));
        }
        let (replica, node) = (ReplicaId(u64::MAX), NodeId(u64::MAX));
        let one_more = membership.apply(ChangeKind::AddVoter, replica, node, &Bytes::new(), false);
        assert!(!one_more, "there are as many as there may be");
        let mut smaller = Membership::default();
        let longer: Bytes = vec![0; MEMBER_DATA_BYTES_MAX + 1].into();
        assert!(!smaller.apply(ChangeKind::AddVoter, replica, node, &longer, false));
        state.sessions = crate::sessions::fullest();
        let context = EntryContext {
            index: LogIndex(u64::MAX),
            term: Term(u64::MAX),
            now: u64::MAX,
            entropy: [255; 16],
        };
        let length = state.encode(&context).len() as u64;
        assert!(length <= BYTES_MAX, "{length} of {BYTES_MAX}");
        // The bound is not one that nothing comes near.
        assert!(length > BYTES_MAX / 2, "{length} of {BYTES_MAX}");
    }

    #[test]
    fn counters_that_cannot_go_on_are_refused() {
        let record = |index, term, last_replica| {
            let member = MemberRecord {
                replica: 1,
                node: 1,
                ..MemberRecord::default()
            };
            HostStateRecord {
                index,
                term,
                last_replica,
                entropy: vec![0; 16],
                members: vec![member],
                ..HostStateRecord::default()
            }
        };
        let decode = |record: HostStateRecord| HostState::decode(record.encode_to_vec().into());
        let most = COUNTER_MAX;
        assert!(decode(record(most, most, most)).is_ok());
        for strange in [
            record(most + 1, 1, 1),
            record(u64::MAX, 1, 1),
            record(1, u64::MAX, 1),
            record(1, 1, u64::MAX),
        ] {
            assert!(decode(strange.clone()).is_err(), "{strange:?}");
        }
    }
}
