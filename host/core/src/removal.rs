//! The end of a removed replica: not before those who stay know of the removal, and cannot forget it.
//!
//! That an entry is committed is learned again after a crash, from a majority. With the removed replica gone, the others may
//! be no majority of the members they remember: of two, one would wait for ever for the vote of the other. So a removal is
//! announced only by a voter, when its commit is on disk; and a removed replica goes on, as what it was, until then.

use raft::eraftpb::{self, MessageType};

use crate::effect::Persist;
use crate::group::Group;
use crate::id::{LogIndex, NodeId, ReplicaId};
use crate::message::Body;
use crate::pending::AskerId;
use crate::planted::{self, Defect};
use crate::proposal::Response;
use crate::state::{MemberState, Role};

/// Removals this replica has applied and not announced, and its own.
#[derive(Debug, Default)]
pub(crate) struct Removals {
    /// The record that holds the commit of the last one.
    record: u64,
    /// Applied, and not durable yet.
    unannounced: Vec<Removed>,
    /// This replica was removed, and nobody has told it.
    own: Option<Removed>,
}

#[derive(Debug)]
struct Removed {
    record: u64,
    replica: ReplicaId,
    node: NodeId,
    asker: Option<AskerId>,
    response: Response,
}

impl Group {
    /// Puts the commit of a removal on disk.
    pub(crate) fn record_removal(&mut self, index: LogIndex) {
        let commit = &mut self.storage.hard_state.commit;
        *commit = index.0.max(*commit);
        self.removals.record = self.persist(Persist::default(), 0);
    }

    /// Whether this replica may tell others of the removals that it knows of: it can never forget them, and it can be
    /// elected with what it knows. A learner's knowledge elects nobody.
    pub(crate) fn may_announce(&self) -> bool {
        let voter = |member: &MemberState| member.role == Role::Voter;
        self.removals.record <= self.storage.durable()
            && !self.storage.is_installing()
            && self
                .state
                .membership
                .member(self.replica)
                .is_some_and(voter)
    }

    /// The machine has heard of a removal.
    pub(crate) fn removed(
        &mut self,
        replica: ReplicaId,
        node: NodeId,
        asker: Option<AskerId>,
        response: Response,
    ) {
        let removed = Removed {
            record: self.removals.record,
            replica,
            node,
            asker,
            response,
        };
        if replica == self.replica {
            self.removals.own = Some(removed);
            self.ask_whether_removed();
        } else {
            self.removals.unannounced.push(removed);
            self.announce_removals();
        }
    }

    /// Tells of the removals that are durable.
    pub(crate) fn announce_removals(&mut self) {
        let durable = self.storage.durable();
        let ready = |removed: &mut Removed| removed.record <= durable;
        for removed in self
            .removals
            .unannounced
            .extract_if(.., ready)
            .collect::<Vec<_>>()
        {
            if let Some(asker) = removed.asker {
                self.reply(asker, Ok(removed.response));
            }
            if self.leads() {
                // It may never see the commit of its own removal, because nobody sends it entries any more. Behind the
                // answer, which it may have to hand on.
                self.flush_answers();
                self.send(removed.replica, removed.node, Body::Gone);
            }
        }
    }

    /// Asks the members whether this replica was removed; each member that knows answers. A leader's heartbeats and a candidate's
    /// request for votes ask too, but neither a learner nor a replica that applied its removal campaigns.
    pub(crate) fn ask_if_nobody_else_does(&mut self) {
        let asks = self.is_leaving() || self.is_forsaken();
        let due = self
            .ticks
            .is_multiple_of(u64::from(self.config.election_ticks));
        if asks && due {
            self.ask_whether_removed();
        }
    }

    fn ask_whether_removed(&mut self) {
        // The question speaks for the term of this replica, which must be durable first.
        if self.storage.on_the_way() > 0 || planted::has(Defect::RemovedLeaderServes) {
            return;
        }
        let members = self.state.membership.members();
        let mut members: Vec<_> = members
            .iter()
            .map(|(id, member)| (*id, member.node))
            .collect();
        if members.is_empty() {
            // It was never told who they are; whoever spoke to it may know.
            members = self.addresses.iter().collect();
        }
        for (replica, node) in members {
            // Raft's own question speaks for a term, and it may never have heard of one.
            if self.storage.hard_state.term == 0 {
                self.ask_standing(replica, node);
                continue;
            }
            let question = eraftpb::Message {
                msg_type: MessageType::MsgHeartbeatResponse,
                from: self.replica.0,
                to: replica.0,
                term: self.storage.hard_state.term,
                ..Default::default()
            };
            self.send(replica, node, Body::Raft(question));
        }
    }

    /// A member says that this replica was removed.
    pub(crate) fn gone(&mut self) {
        if let Some(own) = self.removals.own.take() {
            if let Some(asker) = own.asker {
                self.reply(asker, Ok(own.response.clone()));
            }
            self.removal_is_answered(&own.response);
        }
        self.remove_self();
    }

    /// Whether this replica knows that it was removed.
    fn is_leaving(&self) -> bool {
        self.removals.own.is_some()
    }

    /// Whether it has nothing of its group: no entry, no snapshot.
    pub(crate) fn is_blank(&self) -> bool {
        self.state.membership.members().is_empty()
            && self.raft.role().is_some()
            && self.raft.last() == LogIndex(0)
    }

    /// Whether this replica cannot campaign, and no leader has spoken to it for an election timeout. That it takes
    /// somebody for the leader says nothing: raft-rs forgets its leader only to campaign.
    fn is_forsaken(&self) -> bool {
        let timeout = self.config.election_ticks as usize;
        let raft = &self.raft;
        raft.role().is_some() && !raft.is_promotable() && raft.election_elapsed() >= timeout
    }
}
