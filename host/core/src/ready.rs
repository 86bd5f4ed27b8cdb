//! From Raft's `Ready` to records, messages and committed entries: the order in which things become visible.

use std::collections::VecDeque;

use raft::eraftpb::{self, HardState, MessageType};

use crate::applying::Applying;
use crate::barrier::Sizes;
use crate::effect::{Effect, Persist};
use crate::group::Group;
use crate::healing::Beginning;
use crate::id::{LogIndex, ReplicaId, Term};
use crate::log_view::Snapshotted;
use crate::message::{Body, SnapshotName};
use crate::outcome::EntryContext;
use crate::planted::{self, Defect};
use crate::state::HostState;
use crate::status::Health;

/// What is on its way to the log, and what waits for it.
#[derive(Debug, Default)]
pub(crate) struct Persistence {
    pub(crate) hard_state: HardState,
    /// The newest snapshot that a record names.
    pub(crate) marked: Option<SnapshotName>,
    /// Number of the last record pushed.
    issued: u64,
    /// Number of the last record that is durable.
    durable: u64,
    /// The last record that changed term or vote. A leader's messages wait for it: with one voter raft-rs hands them out
    /// before the hard state of their own term is durable, and a crash would give two logs in one term.
    gate: u64,
    /// Records on their way, each with the newest `Ready` that is complete with it.
    on_the_way: VecDeque<(u64, u64)>,
    /// Messages, each with the record it waits for; in the order they were made.
    outbox: VecDeque<(u64, eraftpb::Message)>,
    /// A snapshot is being made durable by this record; no `Ready` is taken before.
    installing: Option<(u64, LogIndex)>,
}

impl Persistence {
    /// Records that are not durable yet.
    pub(crate) fn on_the_way(&self) -> usize {
        self.on_the_way.len()
    }

    /// Number of the last record that is durable.
    pub(crate) fn durable(&self) -> u64 {
        self.durable
    }

    pub(crate) fn is_installing(&self) -> bool {
        self.installing.is_some()
    }
}

impl Group {
    /// Makes everything that is possible now happen.
    pub(crate) fn advance(&mut self) {
        loop {
            self.pack();
            self.ask_reads();
            let mut moved = self.take_ready();
            moved |= self.process_committed();
            moved |= self.begin_first_election();
            moved |= self.propose_decision_if_due();
            moved |= self.propose_on_impasse_if_due();
            moved |= self.propose_barrier_if_due();
            moved |= self.propose_pause_if_due();
            if !moved {
                break;
            }
        }
        self.flush_outbox();
        self.read_back();
        self.serve_reads();
        self.flush_answers();
    }

    /// Pushes a record that is not one of Raft's `Ready`s, before which no message may leave.
    pub(crate) fn persist_urgently(&mut self, record: Persist) {
        let number = self.persist(record, 0);
        self.storage.gate = number;
    }

    pub(crate) fn persist(&mut self, record: Persist, ready: u64) -> u64 {
        if record.snapshot.is_some() {
            self.storage.marked = record.snapshot.clone();
        }
        self.storage.issued += 1;
        let number = self.storage.issued;
        self.storage.on_the_way.push_back((number, ready));
        let mut hard_state = self.storage.hard_state.clone();
        if planted::has(Defect::VoteNotPersisted) {
            hard_state.vote = 0;
        }
        self.out.push(Effect::Persist(Persist {
            number,
            replica: self.replica,
            hard_state: Some(hard_state),
            ..record
        }));
        number
    }

    pub(crate) fn persisted(&mut self, number: u64) {
        let storage = &mut self.storage;
        if number <= storage.durable || number > storage.issued {
            return;
        }
        storage.durable = number;
        let mut ready = 0;
        while let Some((record, complete)) = storage
            .on_the_way
            .front()
            .copied()
            .filter(|(record, _)| *record <= number)
        {
            debug_assert!(record <= number);
            ready = complete.max(ready);
            storage.on_the_way.pop_front();
        }
        if ready != 0 {
            self.raft.persisted(ready);
        }
        if let Some((record, index)) = storage.installing
            && record <= number
        {
            storage.installing = None;
            self.raft.processed(index);
        }
        self.announce_removals();
    }

    /// Takes every `Ready` that may be taken. `true` if there was one.
    fn take_ready(&mut self) -> bool {
        let mut taken = false;
        // A replica that was halted with a `Ready` in its hands would be given the same one for ever.
        while !self.has_ended() {
            let snapshot_waits = self.raft.accepted_snapshot().is_some();
            if self.storage.is_installing() || (snapshot_waits && self.storage.on_the_way() > 0) {
                break;
            }
            let Some(ready) = self.raft.ready() else {
                break;
            };
            self.carry_out(ready);
            self.note_leader();
            taken = true;
        }
        taken
    }

    fn carry_out(&mut self, mut ready: raft::Ready) {
        let number = ready.number();
        let mut urgent = false;
        if let Some(hard_state) = ready.hs() {
            let before = &self.storage.hard_state;
            urgent = hard_state.term != before.term || hard_state.vote != before.vote;
            self.storage.hard_state = hard_state.clone();
        }
        let mut record = Persist {
            entries: ready.take_entries(),
            ..Persist::default()
        };
        let snapshot = ready.snapshot().clone();
        let installs = !snapshot.is_empty();
        if installs && !self.install(&snapshot, &mut record) {
            return;
        }
        self.raft.log_mut().append(&record.entries);
        // A commit index that moved alone needs no record: it is learned again.
        let writes = ready.must_sync();
        let waits_for = if writes {
            let record = self.persist(record, number);
            if urgent && !planted::has(Defect::TermGateOff) {
                self.storage.gate = record;
            }
            if installs {
                self.storage.installing = Some((record, self.processed));
            }
            record
        } else {
            if let Some(last) = self.storage.on_the_way.back_mut() {
                last.1 = number;
            }
            self.storage.on_the_way.back().map_or(0, |last| last.0)
        };
        let gate = self.storage.gate;
        let urgent_messages = ready
            .take_messages()
            .into_iter()
            .map(|message| (gate, message));
        self.storage.outbox.extend(urgent_messages);
        let messages = ready
            .take_persisted_messages()
            .into_iter()
            .map(|message| (waits_for, message));
        self.storage.outbox.extend(messages);
        for state in ready.take_read_states() {
            self.read_index(&state.request_ctx, LogIndex(state.index));
        }
        for entry in ready.take_committed_entries() {
            self.unapplied_bytes += crate::log_view::weight(&entry);
            self.committed.push_back(entry);
        }
        let nothing_on_the_way = self.storage.on_the_way.is_empty();
        self.raft.taken(ready);
        if nothing_on_the_way || planted::has(Defect::AckBeforeSync) {
            self.raft.persisted(number);
        }
    }

    /// Replaces log and state by an arrived snapshot. `false` if the replica had to be halted.
    fn install(&mut self, snapshot: &eraftpb::Snapshot, record: &mut Persist) -> bool {
        let index = LogIndex(snapshot.get_metadata().index);
        let arrived = self
            .arrived
            .take()
            .filter(|arrived| arrived.name.index == index);
        let decoded = HostState::decode(snapshot.data.clone());
        let (Some(arrived), Ok((state, context))) = (arrived, decoded) else {
            self.halt(format!(
                "Raft accepted a snapshot at {index} that did not arrive whole"
            ));
            return false;
        };
        let conf_state = state.membership.conf_state();
        self.committed.clear();
        self.unapplied_bytes = 0;
        let last = self.applying.back().map_or(self.processed, Applying::index);
        self.superseded_through = self
            .superseded_through
            .max(last)
            .min(LogIndex(index.0.saturating_sub(1)));
        self.abandon_applying();
        self.abandon_proposed_through(index);
        self.processed = index;
        record.snapshot = Some(arrived.name.clone());
        record.truncated = Some((arrived.name.index, arrived.name.term));
        record.reset = true;
        self.raft.log_mut().reset(Snapshotted {
            name: arrived.name.clone(),
            conf_state,
        });
        self.go_on_from(arrived.name, state, context);
        true
    }

    /// The host's state and the machine go on from a snapshot of others; what was wrong with this replica's own is over.
    pub(crate) fn go_on_from(
        &mut self,
        snapshot: SnapshotName,
        state: HostState,
        context: EntryContext,
    ) {
        self.state = state;
        self.activation = None;
        self.since_barrier = Default::default();
        self.sizes = Sizes::of(&snapshot, &self.state);
        (self.unwritten, self.lost) = (None, None);
        self.attest_restored(snapshot.index, snapshot.digest);
        if matches!(
            self.health,
            Health::Quarantined { .. } | Health::Suspended { .. } | Health::Damaged { .. }
        ) {
            self.health = Health::Healthy;
        }
        self.restore(Beginning::at(context, snapshot));
    }

    /// Records a snapshot of this replica's own, and forgets the log below it.
    pub(crate) fn compact(&mut self, snapshotted: Snapshotted) {
        let name = snapshotted.name.clone();
        self.raft.log_mut().set_snapshot(snapshotted);
        self.note_needs();
        let mut last = self.unneeded_through(name.index);
        if planted::has(Defect::TruncatesAboveSnapshot) {
            last = LogIndex(name.index.0 + 1);
        }
        let truncated = self.raft.log_mut().truncate(last);
        // The commit index of the record must not be below the snapshot it names.
        let commit = self.raft.committed().0;
        self.storage.hard_state.commit = self
            .storage
            .hard_state
            .commit
            .max(commit.min(self.processed.0));
        let record = Persist {
            snapshot: Some(name),
            truncated: Some(truncated),
            ..Persist::default()
        };
        self.persist(record, 0);
    }

    fn flush_outbox(&mut self) {
        while let Some((waits_for, _)) = self.storage.outbox.front() {
            if *waits_for > self.storage.durable && !planted::has(Defect::SendBeforeSync) {
                break;
            }
            let Some((_, message)) = self.storage.outbox.pop_front() else {
                break;
            };
            self.dispatch(message);
        }
    }

    fn dispatch(&mut self, message: eraftpb::Message) {
        let to = ReplicaId(message.to);
        let is_snapshot = message.msg_type == MessageType::MsgSnapshot;
        let Some(node) = self.node_of(to) else {
            if is_snapshot {
                self.snapshot_not_sent(to);
            }
            return;
        };
        let index = LogIndex(message.get_snapshot().get_metadata().index);
        let header = self.message_to(to, Body::Raft(message));
        if !is_snapshot {
            self.out.push(Effect::Send {
                to: node,
                message: header,
            });
            return;
        }
        match self
            .snapshot_name()
            .filter(|name| name.index == index)
            .cloned()
        {
            Some(snapshot) => self.out.push(Effect::SendSnapshot {
                to: node,
                message: header,
                snapshot,
            }),
            // A newer one has replaced it while the message waited; Raft asks again.
            None => self.snapshot_not_sent(to),
        }
    }

    fn snapshot_not_sent(&mut self, to: ReplicaId) {
        self.raft.report_snapshot(to, false);
    }

    pub(crate) fn term(&self) -> Term {
        self.raft.term()
    }

    /// Whether Raft takes proposals here now.
    pub(crate) fn can_propose(&self) -> bool {
        self.raft.can_propose()
    }

    /// Whether this leader may propose by itself: what it has to say of its election stands in the log before.
    pub(crate) fn may_propose(&self) -> bool {
        self.can_propose() && !self.proposals.elected
    }
}
