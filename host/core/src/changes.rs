//! Changes of membership: one in flight, learner first, never below a living quorum, leadership handed over before the
//! leader is removed.

use prost::Message;
use raft::eraftpb::{ConfChange as RaftChange, ConfChangeType, Entry, EntryType};

use crate::config::{MEMBERS_MAX, VOTERS_MAX};
use crate::entry::may_stop;
use crate::group::Group;
use crate::id::{NodeId, ReplicaId};
use crate::outcome::ChangeKind;
use crate::payload::ChangeRecord;
use crate::pending::AskerId;
use crate::planted::{self, Defect};
use crate::proposal::{Change, ChangeRefusal, Proposal, ProposalError};
use crate::raft_node::NotProposed;
use crate::state::Role;

/// Entries a learner may lack when it is promoted: little enough that it does not delay commits as a voter.
pub(crate) const PROMOTION_LAG: u64 = 64;

impl Group {
    /// Proposes a change, or says why not.
    pub(crate) fn propose_change(&mut self, asker: AskerId, change: Change) {
        let checked = self.check_change(&change);
        let record = match checked {
            Ok(record) => record,
            Err(ProposalError::NotLeader { .. }) => {
                // This replica is to be removed and leads: once another one does, the change is forwarded there.
                if self.transfer_to_best_follower() {
                    self.requeue(asker, Proposal::Change(change));
                } else {
                    self.reply(
                        asker,
                        Err(ProposalError::ChangeRefused(ChangeRefusal::QuorumAtRisk)),
                    );
                }
                return;
            }
            Err(ProposalError::ChangeRefused(ChangeRefusal::QuorumAtRisk))
                if self.leads_since_recently() =>
            {
                // A new leader has not heard from everybody yet.
                self.defer(asker, Proposal::Change(change));
                return;
            }
            Err(error) => {
                self.reply(asker, Err(error));
                return;
            }
        };
        if self.changes_must_wait() {
            self.defer(asker, Proposal::Change(change));
            return;
        }
        if self.propose_record(record, &[asker]).is_err() {
            self.reply(asker, Err(ProposalError::ChangeInProgress));
        }
    }

    /// `NotLeader` stands for "this replica must stop leading first".
    fn check_change(&self, change: &Change) -> Result<ChangeRecord, ProposalError> {
        let refuse = |refusal| Err(ProposalError::ChangeRefused(refusal));
        let membership = &self.state.membership;
        let (kind, node, data, promote) = match change {
            Change::Add { node, data } => (ChangeKind::AddLearner, *node, data, true),
            Change::AddLearner { node, data } => (ChangeKind::AddLearner, *node, data, false),
            Change::Remove { node, data } => (ChangeKind::Remove, *node, data, false),
            Change::Promote { node } => return self.check_role(*node, Role::Voter),
            Change::Demote { node } => return self.check_role(*node, Role::Learner),
        };
        if node == NodeId(0) {
            return refuse(ChangeRefusal::ZeroId);
        }
        if self.change_in_flight() {
            return Err(ProposalError::ChangeInProgress);
        }
        let present = membership.replica_on(node);
        let replica = match (kind, present) {
            (ChangeKind::Remove, None) => return refuse(ChangeRefusal::NotMember),
            (ChangeKind::Remove, Some(replica)) => {
                self.check_removal(replica)?;
                replica
            }
            (_, Some(_)) => return refuse(ChangeRefusal::AlreadyMember),
            (_, None) => {
                // A joiner that says nothing, as on a node that is down, holds up nobody else.
                let joining = membership.members().iter().any(|(replica, member)| {
                    member.role == Role::Joining && self.is_awaited(*replica)
                });
                if joining {
                    return Err(ProposalError::ChangeInProgress);
                }
                if membership.members().len() >= MEMBERS_MAX {
                    return refuse(ChangeRefusal::TooManyMembers);
                }
                membership.next_replica()
            }
        };
        let data = data.clone();
        Ok(ChangeRecord {
            kind: kind as u32,
            node: node.0,
            replica: replica.0,
            data,
            promote,
            ..ChangeRecord::default()
        })
    }

    /// Whether a member may become a voter, or a learner.
    fn check_role(&self, node: NodeId, role: Role) -> Result<ChangeRecord, ProposalError> {
        let refuse = |refusal| Err(ProposalError::ChangeRefused(refusal));
        if self.change_in_flight() {
            return Err(ProposalError::ChangeInProgress);
        }
        let membership = &self.state.membership;
        let replica = membership.replica_on(node);
        let Some((replica, member)) =
            replica.and_then(|replica| Some((replica, membership.member(replica)?)))
        else {
            return refuse(ChangeRefusal::NotMember);
        };
        if (member.role == Role::Voter) == (role == Role::Voter) {
            return refuse(ChangeRefusal::SameRole);
        }
        let kind = match role {
            Role::Voter => {
                self.check_promotion(replica)?;
                ChangeKind::Promote
            }
            _ => {
                self.check_removal(replica)?;
                ChangeKind::AddLearner
            }
        };
        Ok(ChangeRecord {
            kind: kind as u32,
            node: node.0,
            replica: replica.0,
            data: member.data.clone(),
            ..ChangeRecord::default()
        })
    }

    fn check_promotion(&self, replica: ReplicaId) -> Result<(), ProposalError> {
        let refuse = |refusal| Err(ProposalError::ChangeRefused(refusal));
        let voters: Vec<_> = self.state.membership.voters().collect();
        if voters.len() >= VOTERS_MAX {
            return refuse(ChangeRefusal::TooManyVoters);
        }
        if !self.has_caught_up(replica) {
            return refuse(ChangeRefusal::NotCaughtUp);
        }
        let alive = 1 + voters
            .iter()
            .filter(|voter| self.is_active(**voter))
            .count();
        if alive < voters.len().div_ceil(2) + 1 {
            return refuse(ChangeRefusal::QuorumAtRisk);
        }
        Ok(())
    }

    /// Whether a learner answers and has nearly all of the log.
    fn has_caught_up(&self, replica: ReplicaId) -> bool {
        let last = self.raft.last().0;
        let is_near = |matched: u64| matched > 0 && matched + PROMOTION_LAG >= last;
        let progress = self.raft.progress(replica);
        if planted::has(Defect::JoinerVotesAtOnce) {
            return true;
        }
        self.is_active(replica) && progress.is_some_and(|progress| is_near(progress.matched))
    }

    fn check_removal(&self, replica: ReplicaId) -> Result<(), ProposalError> {
        let membership = &self.state.membership;
        if membership
            .member(replica)
            .is_some_and(|member| member.role != Role::Voter)
        {
            return Ok(());
        }
        let left: Vec<_> = membership
            .voters()
            .filter(|voter| *voter != replica)
            .collect();
        if left.is_empty() {
            return Err(ProposalError::ChangeRefused(ChangeRefusal::LastVoter));
        }
        let alive = left.iter().filter(|voter| self.is_active(**voter)).count();
        if alive < left.len() / 2 + 1 {
            return Err(ProposalError::ChangeRefused(ChangeRefusal::QuorumAtRisk));
        }
        if replica == self.replica && !planted::has(Defect::RemovedLeaderServes) {
            return Err(ProposalError::NotLeader { leader: None });
        }
        Ok(())
    }

    /// Whether a change is in the log and not applied.
    fn change_in_flight(&self) -> bool {
        self.in_flight(|entry| entry.entry_type != EntryType::EntryNormal)
    }

    /// Whether such an entry is in the log and not applied.
    pub(crate) fn in_flight(&self, such: impl Fn(&Entry) -> bool) -> bool {
        self.raft.has_after(self.processed, such)
    }

    /// Whether a change has to wait although none is in flight. Raft puts it aside while a new leader has not applied the whole
    /// of its log. And behind an entry at which the group may stop, a verdict, an activation or an impasse, none may stand: who has a
    /// committed change before it that it does not apply may not campaign, and without a leader nobody could decide.
    fn changes_must_wait(&self) -> bool {
        self.raft.has_pending_change()
            || !self.serves()
            || self.awaits_decision()
            || self.has_an_open_impasse()
            || self.in_flight(may_stop)
    }

    fn propose_record(
        &mut self,
        mut record: ChangeRecord,
        askers: &[AskerId],
    ) -> Result<(), NotProposed> {
        let kind = record.change_kind().ok_or(NotProposed)?;
        record.now = self.now;
        record.entropy = self.entropy();
        let change = raft_change(kind, ReplicaId(record.replica));
        self.raft.propose_change(record.encode_to_vec(), change)?;
        self.note_proposed(askers);
        Ok(())
    }

    /// Promotes a learner that has nearly all of the log.
    pub(crate) fn promote_who_has_caught_up(&mut self) {
        if !self.may_propose() {
            return;
        }
        let mut members = self.state.membership.members().iter();
        let ready = members.find(|(replica, member)| {
            member.role == Role::Joining && self.has_caught_up(**replica)
        });
        if let Some((replica, member)) = ready
            && !self.changes_must_wait()
        {
            let record = ChangeRecord {
                kind: ChangeKind::Promote as u32,
                node: member.node.0,
                replica: replica.0,
                data: member.data.clone(),
                ..ChangeRecord::default()
            };
            // Refused while something is in the way; asked again with the next tick.
            let _later = self.propose_record(record, &[]);
        }
    }
}

/// A change as Raft takes it. The nameless replica 0 changes nothing, which is how a refused change is applied.
pub(crate) fn raft_change(kind: ChangeKind, replica: ReplicaId) -> RaftChange {
    let change_type = match kind {
        ChangeKind::AddVoter | ChangeKind::Promote => ConfChangeType::AddNode,
        ChangeKind::AddLearner => ConfChangeType::AddLearnerNode,
        ChangeKind::Remove => ConfChangeType::RemoveNode,
    };
    RaftChange {
        change_type,
        node_id: replica.0,
        ..RaftChange::default()
    }
}
