//! Messages and snapshots from other replicas: what is for this replica, and what raft-rs can take.

use raft::StateRole;
use raft::eraftpb::{self, HardState};

use crate::effect::Persist;
use crate::entry::Unreadable;
use crate::group::{Group, Raft};
use crate::id::{LogIndex, NodeId, ReplicaId, Term};
use crate::log_view::LogView;
use crate::message::{ArrivedSnapshot, Body, PeerMessage, SnapshotName};
use crate::planted::{self, Defect};
use crate::state::{HostState, StateError};
use crate::status::Health;

impl Group {
    pub(crate) fn message(&mut self, from: NodeId, message: PeerMessage) {
        if message.group != self.config.group || !self.is_of_this_life(&message) {
            return;
        }
        if message.from.0 == 0 || message.from == message.to || !self.is_for_us(&message) {
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
                self.step(raft, message.from);
            }
            Body::Forward(forwards) => self.forwarded(message.from, from, forwards),
            Body::Answer(answers) => self.answered(answers),
            Body::AskAttestations { after } => {
                self.asked_for_attestations(message.from, from, after);
            }
            Body::Attestations(said) => self.attested(message.from, said),
            Body::AskSnapshot { after } => self.asked_for_snapshot(message.from, from, after),
            Body::Gone if planted::has(Defect::RemovedLeaderServes) => {}
            Body::Gone => self.gone(),
        }
    }

    fn is_of_this_life(&self, message: &PeerMessage) -> bool {
        message.incarnation == self.config.incarnation
            || planted::has(Defect::StaleIncarnationAccepted)
    }

    /// Whether a message is for this replica. A joiner that nobody has contacted yet takes the id that a leader
    /// addresses it by: ids are never given twice, so it cannot be meant for somebody else.
    fn is_for_us(&mut self, message: &PeerMessage) -> bool {
        use eraftpb::MessageType as Type;
        let from_a_leader = matches!(
            &message.body,
            Body::Raft(raft) if matches!(raft.msg_type, Type::MsgAppend | Type::MsgHeartbeat | Type::MsgSnapshot)
        );
        if self.replica.0 != 0 {
            // A node has one member of a group at most. Whoever knows nothing yet never had a vote, so nobody needs it.
            if from_a_leader && message.to > self.replica && self.is_blank() {
                self.gone();
            }
            return message.to == self.replica && !self.has_ended();
        }
        if !from_a_leader || message.to <= self.config.removed_through {
            return false;
        }
        self.replica = message.to;
        let view = LogView::new(
            HardState::default(),
            Vec::new(),
            (LogIndex(0), Term(0)),
            None,
        );
        match self.start_raft(view, LogIndex(0)) {
            Ok(()) => self.persist_urgently(Persist::default()),
            Err(error) => self.halt(error.to_string()),
        }
        !self.has_ended()
    }

    /// Steps a message that raft-rs can take; what would make it panic is refused here.
    fn step(&mut self, message: eraftpb::Message, from: ReplicaId) {
        use eraftpb::MessageType as Type;
        let backlog = self.unapplied_bytes > self.config.limits.unapplied_bytes;
        let faulted = self.is_faulted();
        let kind = message.msg_type;
        if kind == Type::MsgTimeoutNow && !self.may_campaign() {
            return;
        }
        let Some(Raft(node)) = &mut self.raft else {
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
        if Self::leads_without_progress(node) && message.term <= node.raft.term {
            return;
        }
        // Nobody waits for this replica to store what is committed already; it is sent again.
        let is_history = |append: &eraftpb::Message| {
            let last = append.entries.last();
            last.is_some_and(|last| last.index <= append.commit)
        };
        if kind == Type::MsgAppend && backlog && (faulted || is_history(&message)) {
            return;
        }
        if kind == Type::MsgHeartbeat
            && message.term >= node.raft.term
            && message.commit > node.raft.raft_log.last_index()
        {
            let last = node.raft.raft_log.last_index();
            let reason = format!(
                "the leader knows that entry {} is stored here, but the log ends at {last}: acknowledged data was lost; \
                 remove this member and add it anew",
                message.commit
            );
            self.halt(reason);
            return;
        }
        let last = node.raft.raft_log.last_index();
        let leads = node.raft.state == StateRole::Leader;
        let senseless = match kind {
            // A leader that believed it would look for entries that nobody has.
            Type::MsgAppendResponse => {
                leads
                    && message.term == node.raft.term
                    && (message.index > last || message.reject_hint > last)
            }
            // A follower would pass it on under the term it came with, which raft-rs does not send.
            Type::MsgTransferLeader => !leads && message.term == node.raft.term,
            _ => false,
        };
        if senseless {
            return;
        }
        // An error says that the sender is no peer, or that the type is local; either is dropped.
        let _dropped = node.step(message);
        self.heard_of(from);
    }

    /// Whether raft-rs may campaign without a panic.
    ///
    /// While a snapshot takes the log's place it would look for the entries that are replaced. And whoever is the only voter
    /// wins at once, for which its log must be durable: the change that made it so may be applied before what follows it in
    /// the log is on the disk.
    pub(crate) fn may_campaign(&self) -> bool {
        let Some(Raft(node)) = &self.raft else {
            return false;
        };
        let is_replacing_log = self.storage.is_installing()
            || node.snap().is_some_and(|snapshot| !snapshot.is_empty());
        let (raft, log) = (&node.raft, &node.raft.raft_log);
        let would_win_too_soon = raft.state != StateRole::Leader
            && raft.prs().is_singleton()
            && log.persisted < log.last_index();
        !is_replacing_log && !would_win_too_soon
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
        {
            return;
        }
        let (Some(Raft(node)), Body::Raft(mut raft)) = (&mut self.raft, message.body) else {
            return;
        };
        let is_known = name.index.0 <= node.raft.raft_log.committed;
        if !is_known || raft.from != message.from.0 || raft.to != self.replica.0 {
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
        let _dropped = node.step(raft);
    }

    pub(crate) fn snapshot_arrived(&mut self, from: NodeId, snapshot: ArrivedSnapshot) {
        let ArrivedSnapshot {
            message,
            name,
            state,
        } = &snapshot;
        if message.group != self.config.group
            || !self.is_of_this_life(message)
            || !self.is_for_us(message)
        {
            return;
        }
        let Body::Raft(raft_message) = &message.body else {
            return;
        };
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
        let metadata = eraftpb::SnapshotMetadata {
            conf_state: Some(conf_state).into(),
            index: name.index.0,
            term: name.term.0,
            ..Default::default()
        };
        let data = eraftpb::Snapshot {
            data: state.clone(),
            metadata: Some(metadata).into(),
            ..Default::default()
        };
        raft_message.snapshot = Some(data).into();
        let index = name.index;
        let Some(Raft(node)) = &mut self.raft else {
            return;
        };
        let _dropped = node.step(raft_message);
        // One that Raft does not want must not take the place of the one that Raft has accepted and not installed yet.
        let wanted = node
            .snap()
            .is_some_and(|wanted| wanted.get_metadata().index == index.0);
        if wanted {
            self.arrived = Some(snapshot);
        } else if matches!(self.health, Health::Quarantined { .. }) && index > self.processed {
            self.attestations.cure = Some(snapshot);
        }
    }
}
