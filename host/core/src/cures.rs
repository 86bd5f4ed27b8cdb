//! Snapshots for replicas that need one of somebody else: what they have is wrong, or gone.

use std::collections::BTreeMap;

use raft::eraftpb::{self, Entry, MessageType};

use crate::effect::Effect;
use crate::entry::{self, Order};
use crate::form::Form;
use crate::group::Group;
use crate::id::{LogIndex, NodeId, ReplicaId};
use crate::log_view::Snapshotted;
use crate::message::{ArrivedSnapshot, Body};
use crate::state::HostState;

/// Snapshots that are asked for, on their way, and here.
#[derive(Debug, Default)]
pub(crate) struct Cures {
    /// One of the majority, for this replica.
    pub(crate) arrived: Option<ArrivedSnapshot>,
    /// Nodes that one is on its way to, and since when.
    sent: BTreeMap<NodeId, u64>,
    /// When each member last asked this replica for one, and behind which point.
    asked: BTreeMap<ReplicaId, (u64, LogIndex)>,
}

impl Cures {
    /// A replica that begins to lead does not know who needs one.
    pub(crate) fn forget_who_asked(&mut self) {
        self.asked.clear();
    }
}

impl Group {
    /// Asks the leader for a snapshot of a point that this replica has not reached. Raft's own request for one will not do:
    /// it takes no entries meanwhile, and of two voters none could then commit the barrier that is needed.
    ///
    /// A leader asks a member that is well. That is a learner where no voter is well that could lead instead.
    pub(crate) fn ask_for_snapshot(&mut self) {
        let Some(after) = self.needs_snapshot_after() else {
            return;
        };
        if self.cures.arrived.is_some() {
            return;
        }
        let giver = match self.leads() {
            true => self.a_well_member(),
            false => self.leader_replica(),
        };
        if let Some(giver) = giver
            && giver != self.replica
            && let Some(node) = self.node_of(giver)
        {
            self.send(giver, node, Body::AskSnapshot { after });
            self.have_others_take_a_snapshot();
        }
    }

    /// A leader that needs a snapshot has the others take one, unless a barrier that they have to pass is in the log already.
    fn have_others_take_a_snapshot(&mut self) {
        let is_barrier =
            |entry: &Entry| matches!(entry::read(entry), Ok(Some((_, Order::Barrier(..)))));
        if self.may_propose() && !self.in_flight(is_barrier) {
            self.propose_barrier(Form::Saved, None);
        }
    }

    /// A replica that is quarantined, or has lost its own, wants a snapshot of a point behind `after`. A leader has no other
    /// leader to ask, so any member serves it.
    pub(crate) fn asked_for_snapshot(&mut self, to: ReplicaId, node: NodeId, after: LogIndex) {
        let is_member = self.state.membership.member(to).is_some();
        let serves_it = self.leads() || self.leader_replica() == Some(to);
        if !is_member || !serves_it {
            return;
        }
        self.cures.asked.insert(to, (self.ticks, after));
        if self.is_faulted() {
            return;
        }
        let newest = (self.raft.log().snapshot()).filter(|newest| newest.name.index > after);
        let Some(newest) = newest.cloned() else {
            self.since_barrier.wanted = true;
            return;
        };
        let patience = 10 * u64::from(self.config.election_ticks);
        let sent = self.cures.sent.get(&node);
        if sent.is_some_and(|sent| self.ticks < sent + patience) {
            return;
        }
        self.cures.sent.insert(node, self.ticks);
        let header = eraftpb::Message {
            msg_type: MessageType::MsgSnapshot,
            from: self.replica.0,
            to: to.0,
            term: self.term().0,
            // Raft takes whoever sends a snapshot for the leader. So one of somebody else says that it was asked for.
            request_snapshot: match self.leads() {
                true => 0,
                false => newest.name.index.0,
            },
            // As Raft's own: whoever carries or takes a snapshot refuses one that does not say what it is of.
            snapshot: Some(newest.to_raft()).into(),
            ..Default::default()
        };
        self.out.push(Effect::SendSnapshot {
            to: node,
            message: self.message_to(to, Body::Raft(header)),
            snapshot: newest.name,
        });
    }

    /// Whether a member's machine is known to be of no use: it asks for snapshots with every election timeout.
    pub(crate) fn is_ailing(&self, replica: ReplicaId) -> bool {
        let patience = 2 * u64::from(self.config.election_ticks);
        let asked = self.cures.asked.get(&replica);
        asked.is_some_and(|(at, _)| self.ticks < at + patience)
    }

    /// Whether a member's machine is of no use before there is a snapshot of a later point than this leader has.
    pub(crate) fn waits_for_a_later_snapshot(&self, replica: ReplicaId) -> bool {
        let newest = self.snapshot_name().map(|name| name.index);
        let asked = self.cures.asked.get(&replica);
        self.is_ailing(replica) && asked.is_some_and(|(_, after)| newest <= Some(*after))
    }

    /// A transfer to a node has ended.
    pub(crate) fn cure_sent(&mut self, node: NodeId) {
        self.cures.sent.remove(&node);
    }

    /// Goes on from a snapshot of the majority, once its barrier is committed here too. The log is right, only the machine was
    /// not, or its file; so nothing of the log is replaced. `true` if it was done.
    pub(crate) fn take_cure(&mut self) -> bool {
        let Some(ArrivedSnapshot { name, state, .. }) = self.cures.arrived.clone() else {
            return false;
        };
        let handed_out = self.committed.back().map_or(0, |entry| entry.index);
        if handed_out < name.index.0 && self.processed < name.index {
            return false;
        }
        self.cures.arrived = None;
        let barrier = self
            .committed
            .iter()
            .find(|entry| entry.index == name.index.0);
        let term = match &self.lost {
            Some(lost) if lost.index == name.index => Some(lost.term.0),
            _ => barrier.map(|entry| entry.term),
        };
        let is_of_this_log = term == Some(name.term.0);
        let (true, Ok((state, context))) = (is_of_this_log, HostState::decode(state)) else {
            return false;
        };
        self.superseded_through = self.superseded_through.max(self.processed);
        // Its machine may be about to try once more to go on from an image.
        self.abandon_applying();
        while let Some(entry) = self
            .committed
            .pop_front_if(|entry| entry.index <= name.index.0)
        {
            self.pass_over(entry);
        }
        if self.has_ended() {
            return true;
        }
        self.raft.processed(name.index);
        let conf_state = state.membership.conf_state();
        if self.lost.is_some() {
            self.adopt_members(&conf_state);
        }
        if self.has_ended() {
            return true;
        }
        self.go_on_from(name.clone(), state, context);
        self.compact(Snapshotted { name, conf_state });
        true
    }
}
