//! Committed entries on their way through the machine.

use bytes::Bytes;
use raft::eraftpb::{Entry, EntryType};

use crate::applying::{Applying, Changed, Fate, Plan, What};
use crate::changes::raft_change;
use crate::effect::{Call, Effect, Work};
use crate::entry::{self, Order, Stamp};
use crate::group::Group;
use crate::id::{LogIndex, NodeId, ReplicaId, RequestId, SessionId, Term};
use crate::log_view::weight;
use crate::outcome::{ChangeKind, ConfChange, EntryContext, LeaderChanged, Outcome};
use crate::payload::{ChangeRecord, Item};
use crate::pending::AskerId;
use crate::proposal::{ProposalError, Response};
use crate::sessions::Admission;
use crate::status::Health;
use crate::suspects::Source;

impl Group {
    /// Plans committed entries and hands their work to the machine. `true` if anything moved.
    pub(crate) fn process_committed(&mut self) -> bool {
        let mut moved = self.take_cure();
        self.look_for_verdict();
        moved |= self.pass_over_changes();
        self.look_for_decision();
        // What follows an activation depends on what is decided.
        while self.serves() && !self.awaits_decision() && !self.begins_with_image() {
            let Some(entry) = self.committed.front() else {
                break;
            };
            let order = match entry::read(entry) {
                Ok(order) => order,
                Err(error) => {
                    self.halt(format!(
                        "entry {} is committed but cannot be read: {error}",
                        entry.index
                    ));
                    return true;
                }
            };
            let is_barrier = matches!(order, Some((_, Order::Barrier(..))));
            if self.waits_at(LogIndex(entry.index)) {
                break;
            }
            // The host's section of the snapshot must hold every answer up to the barrier, and no later one.
            if is_barrier && (!self.applying.is_empty() || self.imaging.is_some()) {
                break;
            }
            let Some(entry) = self.committed.pop_front() else {
                break;
            };
            self.process(entry, order);
            moved = true;
        }
        if moved {
            self.raft.processed(self.processed);
        }
        self.complete_idle();
        moved
    }

    fn process(&mut self, entry: Entry, order: Option<(Stamp, Order)>) {
        let (index, term) = (LogIndex(entry.index), Term(entry.term));
        let askers = self.take_proposed(index, term);
        let weight = weight(&entry);
        self.processed = index;
        self.since_barrier.entries += 1;
        self.since_barrier.bytes += weight;
        let mut applying = Applying {
            index,
            term,
            weight,
            since: self.ticks,
            works: false,
            what: What::Control,
        };
        match order {
            None => {
                // Raft's own entry of a new term; or, with somebody waiting, a change that Raft put aside because
                // another one was not applied yet.
                self.refuse_all(&askers, &ProposalError::ChangeInProgress);
            }
            Some((stamp, order)) => {
                let context = self.context(&applying, stamp);
                let bytes = match &order {
                    Order::Change(..) => entry.context,
                    _ => entry.data,
                };
                self.process_order(context, order, bytes, askers, &mut applying);
            }
        }
        self.applying.push_back(applying);
    }

    /// A quarantined replica applies nothing, and waits for a snapshot. But it learns who the members are: Raft lets nobody
    /// campaign who has a committed change before it, and the group may have nobody else that can be elected.
    fn pass_over_changes(&mut self) -> bool {
        if !matches!(self.health, Health::Quarantined { .. }) {
            return false;
        }
        let is_change = |entry: &Entry| entry.entry_type != EntryType::EntryNormal;
        let Some(last) = self.committed.iter().rposition(is_change) else {
            return false;
        };
        let through: Vec<_> = self.committed.drain(..=last).collect();
        for entry in through {
            self.pass_over(entry);
        }
        true
    }

    /// Takes an entry for done whose effect a snapshot holds, but for what Raft must know of it.
    pub(crate) fn pass_over(&mut self, entry: Entry) {
        let (index, term) = (LogIndex(entry.index), Term(entry.term));
        self.unapplied_bytes = self.unapplied_bytes.saturating_sub(weight(&entry));
        let askers = self.take_proposed(index, term);
        self.refuse_all(&askers, &ProposalError::Unknown);
        self.processed = index;
        // A replica without its snapshot takes the members as they are at the end.
        if self.lost.is_some() {
            return;
        }
        match entry::read(&entry) {
            Ok(Some((_, Order::Change(kind, record)))) => {
                self.change_members(index, kind, &record);
            }
            // Whatever else it says, the snapshot holds what it did.
            Err(error) if entry.entry_type != EntryType::EntryNormal => {
                self.halt(format!(
                    "entry {index} is committed but cannot be read: {error}"
                ));
            }
            _ => {}
        }
    }

    fn process_order(
        &mut self,
        context: EntryContext,
        order: Order,
        entry: Bytes,
        askers: Vec<AskerId>,
        applying: &mut Applying,
    ) {
        match order {
            Order::Commands(items) => {
                let (what, calls) = self.plan(items, askers, &context, applying);
                applying.what = what;
                if !calls.is_empty() {
                    self.work(applying, context, entry, vec![Call::Commands(calls)]);
                }
            }
            Order::Elected(elected) => {
                let new = NodeId(elected.node);
                let old = std::mem::replace(&mut self.state.leader, new);
                let changed = LeaderChanged {
                    old,
                    new,
                    term: applying.term,
                };
                let mut calls = vec![Call::StatusChange(changed)];
                if !std::mem::replace(&mut self.state.initialized, true) {
                    calls.insert(0, Call::Init(elected.init));
                }
                self.work(applying, context, entry, calls);
            }
            Order::Barrier(form, saved_bytes) => {
                self.process_barrier(context, (form, saved_bytes), askers, applying);
            }
            Order::Verdict(verdict) => {
                self.process_verdict(&verdict, applying.index);
                self.acknowledge(&askers, applying.index, applying.term);
            }
            Order::Pause(on) => {
                self.state.paused = on;
                self.faults_in_a_row = 0;
                self.acknowledge(&askers, applying.index, applying.term);
            }
            Order::Activate(deployment) => {
                applying.works = true;
                applying.what = What::Activate { askers };
                self.begin_activation(context, deployment, entry);
            }
            // What it says counts from where it stands in the log, not from where it is processed.
            Order::Impasse(_) => {}
            Order::Decide(of, decision) => {
                let at = (applying.index, applying.term);
                self.process_decision(of, decision, &askers, at);
            }
            Order::Change(kind, record) => {
                self.process_change(context, kind, record, entry, askers, applying);
            }
        }
    }

    /// Answers whoever asked for an entry that only the host looks at.
    pub(crate) fn acknowledge(&mut self, askers: &[AskerId], index: LogIndex, term: Term) {
        self.answer(askers, (index, term), Outcome::default());
    }

    /// Answers whoever asked for the entry at this place.
    pub(crate) fn answer(
        &mut self,
        askers: &[AskerId],
        (index, term): (LogIndex, Term),
        outcome: Outcome,
    ) {
        let response = Response {
            request: RequestId::ANONYMOUS,
            index,
            term,
            outcome,
        };
        for asker in askers {
            self.reply(*asker, Ok(response.clone()));
        }
    }

    fn plan(
        &mut self,
        items: Vec<Item>,
        askers: Vec<AskerId>,
        context: &EntryContext,
        applying: &Applying,
    ) -> (What, Vec<Bytes>) {
        let mut askers = if askers.len() == items.len() {
            askers
        } else {
            Vec::new()
        }
        .into_iter();
        let mut calls = Vec::with_capacity(items.len());
        let mut plans = Vec::with_capacity(items.len());
        let mut forgotten = Vec::new();
        let failed = self.failed_commands(applying.index);
        if !failed.is_empty() {
            self.out.push(Effect::GivenUp {
                index: applying.index,
                commands: failed.len(),
            });
        }
        let (group, incarnation) = (self.config.group, self.config.incarnation);
        let sessions = &mut self.state.sessions;
        for item in items {
            let bytes = item.data.len() as u64;
            // Whether it has a name was looked at when the entry was read.
            let mut request = item.request().unwrap_or(RequestId::ANONYMOUS);
            let fate = if item.open {
                let place = plans.len();
                let session = SessionId::opened(group, incarnation, context, place);
                sessions.open(session, applying.index, &mut forgotten);
                request = RequestId {
                    session,
                    sequence: 0,
                };
                Fate::Known(Ok(Response {
                    request,
                    index: applying.index,
                    term: applying.term,
                    outcome: Outcome::default(),
                }))
            } else if self.state.paused {
                Fate::Known(Err(ProposalError::Paused))
            } else {
                match sessions.admit(request, item.acknowledged, applying.index, &mut forgotten) {
                    Admission::Apply if failed.contains(&plans.len()) => Fate::Failed,
                    Admission::Apply => {
                        calls.push(item.data);
                        Fate::Machine(calls.len() - 1)
                    }
                    Admission::Repeated => Fate::Repeated,
                    Admission::Refuse(error) => Fate::Known(Err(error)),
                }
            };
            let asker = askers.next();
            let who = asker.and_then(|asker| self.pending.who(asker));
            plans.push(Plan {
                asker,
                source: Source::of(request.session, who, self.replica),
                request,
                bytes,
                fate,
            });
        }
        (What::Commands { plans, forgotten }, calls)
    }

    fn process_change(
        &mut self,
        context: EntryContext,
        kind: ChangeKind,
        record: ChangeRecord,
        entry: Bytes,
        askers: Vec<AskerId>,
        applying: &mut Applying,
    ) {
        let applied = self.change_members(applying.index, kind, &record);
        if self.has_ended() {
            return;
        }
        if let Some(changed) = &applied {
            if changed.kind == ChangeKind::AddLearner {
                self.note_newcomer(changed.replica);
            }
            let change = ConfChange {
                kind: changed.kind,
                node: changed.node,
                data: record.data,
            };
            self.work(applying, context, entry, vec![Call::ConfChange(change)]);
        }
        applying.what = What::Change {
            asker: askers.into_iter().next(),
            applied,
        };
    }

    /// Changes the members, here and in Raft. Nothing if the change makes no sense, which it does on every replica alike.
    fn change_members(
        &mut self,
        index: LogIndex,
        kind: ChangeKind,
        record: &ChangeRecord,
    ) -> Option<Changed> {
        let (replica, node) = (ReplicaId(record.replica), NodeId(record.node));
        let valid = self
            .state
            .membership
            .apply(kind, replica, node, &record.data, record.promote);
        let change = if valid {
            raft_change(kind, replica)
        } else {
            raft_change(ChangeKind::AddVoter, ReplicaId(0))
        };
        let expected = self.state.membership.conf_state();
        match self.raft.change(&change)? {
            Ok(mut conf_state) => {
                conf_state.voters.sort_unstable();
                conf_state.learners.sort_unstable();
                if (conf_state.voters, conf_state.learners) != (expected.voters, expected.learners)
                {
                    self.halt(format!(
                        "at entry {index} Raft's members and the host's differ"
                    ));
                    return None;
                }
            }
            Err(error) => {
                self.halt(format!(
                    "Raft refused the committed change at entry {index}: {error}"
                ));
                return None;
            }
        }
        if valid && kind == ChangeKind::AddLearner && replica == self.replica && self.leads() {
            // It led only after this was proposed. Raft lets it lead on without a vote.
            self.transfer_to_best_follower();
        }
        if kind == ChangeKind::Remove && valid {
            self.addresses.note(replica, node);
            self.record_removal(index);
        }
        valid.then_some(Changed {
            kind,
            replica,
            node,
            promote: record.promote,
        })
    }

    fn context(&mut self, applying: &Applying, stamp: Stamp) -> EntryContext {
        self.state.now = self.state.now.max(stamp.now);
        EntryContext {
            index: applying.index,
            term: applying.term,
            now: self.state.now,
            entropy: stamp.entropy,
        }
    }

    fn work(
        &mut self,
        applying: &mut Applying,
        context: EntryContext,
        entry: Bytes,
        calls: Vec<Call>,
    ) {
        applying.works = true;
        self.out.machine(Work::Apply {
            context,
            entry,
            calls,
        });
    }
}
