//! Messages and snapshots from other replicas: what is for this replica, and what raft-rs can take.

use raft::StateRole;
use raft::eraftpb;

use crate::effect::Persist;
use crate::entry::Unreadable;
use crate::group::Group;
use crate::id::{LogIndex, NodeId, ReplicaId};
use crate::log_view::{LogView, Snapshotted};
use crate::message::{ArrivedSnapshot, Body, PeerMessage, SnapshotName};
use crate::planted::{self, Defect};
use crate::standing::Distrust;
use crate::state::{HostState, StateError};

impl Group {
    pub(crate) fn message(&mut self, from: NodeId, message: PeerMessage) {
        if message.group != self.config.group || !self.is_of_this_life(&message) {
            return;
        }
        if message.from.0 == 0 || message.from == message.to || self.has_ended() {
            return;
        }
        if self.is_misplaced(message.from, from) {
            self.distrust(from, Distrust::Placement);
            return;
        }
        if self.replica.0 == 0 {
            self.contacted(from, message);
            return;
        }
        if !self.is_for_us(from, &message) {
            return;
        }
        let removed = self.state.membership.was_removed(message.from);
        self.addresses.note(message.from, from);
        match message.body {
            Body::Raft(raft) => {
                if removed {
                    if self.may_announce() {
                        self.send(message.from, from, Body::Gone);
                    }
                    return;
                }
                self.step(raft, message.from, from);
            }
            Body::Forward(forwards) => self.forwarded(message.from, from, forwards),
            Body::Answer(answers) => self.answered(message.from, from, answers),
            Body::AskAttestations { after, nonce } => {
                self.asked_for_attestations(message.from, from, after, nonce);
            }
            Body::Attestations { nonce, said } => {
                if self.is_proved(message.from, from, nonce) {
                    self.attested(message.from, said);
                }
            }
            Body::AskSnapshot { after } => self.asked_for_snapshot(message.from, from, after),
            Body::Readiness { index, readiness } => {
                self.readiness_reported(message.from, index, readiness);
            }
            Body::AskStanding { nonce } => {
                self.asked_for_standing(message.from, from, nonce);
                self.stand_again();
            }
            Body::Standing(standing) => self.stands(message.from, from, standing),
            Body::Gone => self.hinted(message.from, from),
        }
    }

    fn is_of_this_life(&self, message: &PeerMessage) -> bool {
        message.incarnation == self.config.incarnation
            || planted::has(Defect::StaleIncarnationAccepted)
    }

    /// Whether a message is for this replica.
    fn is_for_us(&mut self, from: NodeId, message: &PeerMessage) -> bool {
        // A node has one member of a group at most, so its former one was removed. Whoever knows no members, because it knows
        // nothing yet or has lost its snapshot, knows nobody else to ask.
        let knows_nobody = self.is_blank() || self.lost.is_some();
        if message.is_from_a_leader() && message.to > self.replica && knows_nobody {
            self.hinted(message.from, from);
        }
        message.to == self.replica
    }

    /// Takes a name, and a part in its group. See [`Self::contacted`].
    pub(crate) fn take_name(&mut self, replica: ReplicaId) {
        self.replica = replica;
        match self.start_raft(LogView::empty(), LogIndex(0)) {
            Ok(()) => self.persist_urgently(Persist::default()),
            Err(error) => self.halt(error.to_string()),
        }
    }

    /// Steps a message that raft-rs can take; what would make it panic is refused here.
    fn step(&mut self, message: eraftpb::Message, from: ReplicaId, at: NodeId) {
        use eraftpb::MessageType as Type;
        let limits = &self.config.limits;
        // Whoever stopped at a command waits for what its leader can have put behind it at the most.
        let room = match self.impasse {
            Some(_) => limits.unapplied_bytes + limits.uncommitted_bytes,
            None => limits.unapplied_bytes,
        };
        let backlog = self.unapplied_bytes > room;
        let applies_nothing = self.is_faulted() || self.lacks_what_was_decided();
        // What waits for something in the log takes the log.
        let goes_on = self.serves() && !self.is_undecided() && !self.waits_at_impasse();
        let kind = message.msg_type;
        if kind == Type::MsgTimeoutNow && !self.may_campaign() {
            return;
        }
        let Some(role) = self.raft.role() else {
            return;
        };
        // Followers never propose through Raft: a forwarded proposal could not be answered.
        if matches!(kind, Type::MsgPropose | Type::MsgSnapshot) {
            return;
        }
        if message.from != from.0 || message.to != self.replica.0 {
            return;
        }
        // raft-rs takes the context of a read from the first entry without looking whether there is one.
        if kind == Type::MsgReadIndex && message.entries.len() != 1 {
            return;
        }
        // A leader that was removed only tells what is committed, by its heartbeats, until somebody else leads.
        let term = self.term().0;
        if self.raft.leads_without_progress() && message.term <= term {
            return;
        }
        // Nobody waits for this replica to store what is committed already; it is sent again when this one has applied more.
        let is_history = |append: &eraftpb::Message| {
            let last = append.entries.last();
            goes_on && last.is_some_and(|last| last.index <= append.commit)
        };
        if kind == Type::MsgAppend && backlog && (applies_nothing || is_history(&message)) {
            return;
        }
        let last = self.raft.last().0;
        let leads = role == StateRole::Leader;
        let distrusted = match kind {
            // A leader says what both have. If this replica has lost something, the leader can prove it.
            Type::MsgHeartbeat if message.term >= term && message.commit > last => {
                Some(Distrust::Commit)
            }
            // raft-rs would look for an entry of so low a term below the start of the log, and panic. A late append of a former
            // leader may say so in good faith; Raft does not look at its entries.
            Type::MsgAppend
                if message.term >= term
                    && message.index >= self.raft.committed().0
                    && message.log_term < self.raft.committed_term().0 =>
            {
                Some(Distrust::Term)
            }
            _ => None,
        };
        if let Some(why) = distrusted {
            self.distrust(at, why);
            if why == Distrust::Commit {
                self.hinted(from, at);
            }
            return;
        }
        let senseless = match kind {
            // A leader that believed it would look for entries that nobody has.
            Type::MsgAppendResponse => {
                leads
                    && message.term == term
                    && (message.index > last || message.reject_hint > last)
            }
            // A follower would pass it on under the term it came with, which raft-rs does not send.
            Type::MsgTransferLeader => !leads && message.term == term,
            _ => false,
        };
        if senseless {
            return;
        }
        self.raft.step(message);
        self.heard_of(from);
    }

    /// Whether raft-rs may campaign without a panic.
    ///
    /// While a snapshot takes the log's place it would look for the entries that are replaced. And whoever is the only voter
    /// wins at once, for which its log must be durable: the change that made it so may be applied before what follows it in
    /// the log is on the disk.
    pub(crate) fn may_campaign(&self) -> bool {
        let raft = &self.raft;
        let is_replacing_log = self.storage.is_installing() || raft.accepted_snapshot().is_some();
        let would_win_too_soon =
            !raft.leads() && raft.has_one_voter() && raft.durable() < raft.last();
        raft.role().is_some() && !is_replacing_log && !would_win_too_soon
    }

    /// Lets Raft acknowledge what a snapshot holds that need not arrive. Without this answer the leader offers it for ever.
    pub(crate) fn snapshot_outdated(
        &mut self,
        from: NodeId,
        message: PeerMessage,
        name: &SnapshotName,
    ) {
        if message.group != self.config.group
            || !self.is_of_this_life(&message)
            || message.to != self.replica
            || self.state.membership.was_removed(message.from)
            || self.is_misplaced(message.from, from)
        {
            return;
        }
        let Body::Raft(mut raft) = message.body else {
            return;
        };
        let is_known = self.raft.role().is_some() && name.index <= self.raft.committed();
        if was_asked_for(&raft)
            || !is_known
            || raft.from != message.from.0
            || raft.to != self.replica.0
        {
            return;
        }
        self.addresses.note(message.from, from);
        let metadata = eraftpb::SnapshotMetadata {
            index: name.index.0,
            term: name.term.0,
            ..Default::default()
        };
        let snapshot = eraftpb::Snapshot {
            metadata: Some(metadata).into(),
            ..Default::default()
        };
        raft.snapshot = Some(snapshot).into();
        self.raft.step(raft);
    }

    pub(crate) fn snapshot_arrived(&mut self, from: NodeId, snapshot: ArrivedSnapshot) {
        let ArrivedSnapshot {
            message,
            name,
            state,
        } = &snapshot;
        if message.group != self.config.group
            || !self.is_of_this_life(message)
            || message.to != self.replica
        {
            return;
        }
        let Body::Raft(raft_message) = &message.body else {
            return;
        };
        if self.is_misplaced(message.from, from) {
            self.distrust(from, Distrust::Placement);
            return;
        }
        // What the file says counts, not what the header of the transfer said.
        let (decoded, context) = match HostState::decode(state.clone()) {
            Ok(decoded) => decoded,
            // Offered again and again otherwise, and nobody would know why it is not taken.
            Err(error @ StateError::Unreadable(Unreadable::Unknown(_))) => {
                self.halt(format!("snapshot {} is not taken: {error}", name.index));
                return;
            }
            Err(_) => return,
        };
        if context.index != name.index || context.term != name.term {
            return;
        }
        if raft_message.from != message.from.0 || raft_message.to != self.replica.0 {
            return;
        }
        self.addresses.note(message.from, from);
        let mut raft_message = raft_message.clone();
        let conf_state = match planted::has(Defect::SnapshotWithoutConfState) {
            true => self.state.membership.conf_state(),
            false => decoded.membership.conf_state(),
        };
        let name = name.clone();
        let index = name.index;
        let mut data = Snapshotted { name, conf_state }.to_raft();
        data.data = state.clone();
        raft_message.snapshot = Some(data).into();
        if self.raft.role().is_none() {
            return;
        }
        if !was_asked_for(&raft_message) {
            self.raft.step(raft_message);
        }
        // One that Raft does not want must not take the place of the one that Raft has accepted and not installed yet.
        if self.raft.accepted_snapshot() == Some(index) {
            self.arrived = Some(snapshot);
        } else if self
            .needs_snapshot_after()
            .is_some_and(|after| index > after)
        {
            self.cures.arrived = Some(snapshot);
        }
    }
}

/// Whether a snapshot comes from a member that does not lead, and was asked for one. Raft would take it for the leader.
fn was_asked_for(message: &eraftpb::Message) -> bool {
    message.request_snapshot != 0
}
