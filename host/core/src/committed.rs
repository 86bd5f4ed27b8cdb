//! Committed entries on their way through the machine.

use bytes::Bytes;
use raft::eraftpb::{Entry, EntryType};

use crate::attestation::Deed;
use crate::effect::{Call, Effect, Work};
use crate::entry::{self, Order, Stamp};
use crate::group::{Group, SinceBarrier, raft_change};
use crate::id::{LogIndex, NodeId, ReplicaId, RequestId, SessionId, Term};
use crate::input::Stopped;
use crate::log_view::{Snapshotted, weight};
use crate::message::SnapshotName;
use crate::outcome::{ChangeKind, ConfChange, EntryContext, GuestFault, LeaderChanged, Outcome};
use crate::payload::{ChangeRecord, Item};
use crate::pending::AskerId;
use crate::proposal::{ChangeRefusal, ProposalError, Response};
use crate::sessions::{Admission, Forgotten};
use crate::status::Health;
use crate::suspects::Source;

/// An entry the machine has work from, or that waits behind one.
#[derive(Debug)]
pub(crate) struct Applying {
    index: LogIndex,
    term: Term,
    weight: u64,
    /// The tick at which it was handed to the machine.
    since: u64,
    /// The machine will answer for it.
    works: bool,
    what: What,
}

#[derive(Debug)]
enum What {
    Commands {
        plans: Vec<Plan>,
        /// What its commands made the sessions forget.
        forgotten: Vec<Forgotten>,
    },
    Change {
        asker: Option<AskerId>,
        applied: Option<Changed>,
    },
    Control,
    Barrier {
        askers: Vec<AskerId>,
        conf_state: raft::eraftpb::ConfState,
    },
    Restore,
    Activate {
        askers: Vec<AskerId>,
    },
}

#[derive(Debug)]
struct Changed {
    kind: ChangeKind,
    replica: ReplicaId,
    node: NodeId,
    promote: bool,
}

#[derive(Debug)]
struct Plan {
    asker: Option<AskerId>,
    /// Where it comes from, if this replica can tell.
    source: Option<Source>,
    request: RequestId,
    /// Bytes of the command.
    bytes: u64,
    fate: Fate,
}

/// What becomes of one command of an entry.
#[derive(Debug)]
enum Fate {
    /// The machine answers, at this place of its list.
    Machine(usize),
    /// It was given to the machine before; what is kept of its answer is known when this entry's turn comes.
    Repeated,
    /// Known already.
    Known(Result<Response, ProposalError>),
    /// No member's machine could run it, and none is given it.
    Failed,
}

/// What became of the snapshot of a barrier.
#[derive(Debug)]
pub(crate) enum Saved {
    /// There is a file.
    Durable(SnapshotName),
    /// There is none yet, for this reason.
    Unwritten(SnapshotName, String),
    /// The machine failed to save itself, or to read that, on every replica alike.
    Not,
}

impl Saved {
    fn name(&self) -> Option<&SnapshotName> {
        match self {
            Self::Durable(name) | Self::Unwritten(name, _) => Some(name),
            Self::Not => None,
        }
    }
}

impl Applying {
    /// The machine is rebuilt from a snapshot at this barrier.
    pub(crate) fn restore(context: EntryContext) -> Self {
        Self {
            index: context.index,
            term: context.term,
            weight: 0,
            since: 0,
            works: true,
            what: What::Restore,
        }
    }

    pub(crate) fn index(&self) -> LogIndex {
        self.index
    }

    /// Where the commands that the machine answers came from, in the order of its answers, and how large they are.
    fn sources(&self) -> impl Iterator<Item = (Option<Source>, u64)> + Clone {
        let plans = match &self.what {
            What::Commands { plans, .. } => &plans[..],
            _ => &[],
        };
        plans
            .iter()
            .filter(|plan| matches!(plan.fate, Fate::Machine(_)))
            .map(|plan| (plan.source, plan.bytes))
    }

    /// Which command of the entry it is that the machine was given at a place of this one.
    pub(crate) fn item_of(&self, stopped: Stopped) -> Option<u32> {
        let What::Commands { plans, .. } = &self.what else {
            return None;
        };
        let is_it = |plan: &Plan| matches!(plan.fate, Fate::Machine(at) if at == stopped.place);
        let item = plans.iter().position(is_it);
        let item = item.filter(|_| self.index == stopped.index)?;
        u32::try_from(item).ok()
    }

    fn askers(self) -> Vec<AskerId> {
        match self.what {
            What::Commands { plans, .. } => plans.iter().filter_map(|plan| plan.asker).collect(),
            What::Change { asker, .. } => asker.into_iter().collect(),
            What::Barrier { askers, .. } | What::Activate { askers } => askers,
            What::Control | What::Restore => Vec::new(),
        }
    }
}

impl Group {
    /// Plans committed entries and hands their work to the machine. `true` if anything moved.
    pub(crate) fn process_committed(&mut self) -> bool {
        let mut moved = self.take_cure();
        self.look_for_verdict();
        moved |= self.pass_over_changes();
        self.look_for_decision();
        // What follows an activation depends on what is decided.
        while self.serves() && !self.awaits_decision() {
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
            let is_barrier = matches!(order, Some((_, Order::Barrier)));
            if self.waits_at(LogIndex(entry.index)) {
                break;
            }
            // The host's section of the snapshot must hold every answer up to the barrier, and no later one.
            if is_barrier && !self.applying.is_empty() {
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
            Order::Barrier => {
                self.since_barrier = SinceBarrier {
                    began: self.ticks,
                    took: self.since_barrier.took,
                    ..SinceBarrier::default()
                };
                applying.works = true;
                let conf_state = self.state.membership.conf_state();
                applying.what = What::Barrier { askers, conf_state };
                let state = self.state.encode(&context);
                self.out.machine(Work::Barrier { context, state });
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
        self.answer(askers, (index, term), Outcome::Reply(Bytes::new()));
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
                let outcome = Outcome::Reply(Bytes::new());
                Fate::Known(Ok(Response {
                    request,
                    index: applying.index,
                    term: applying.term,
                    outcome,
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

    pub(crate) fn machine_applied(
        &mut self,
        index: LogIndex,
        outcomes: Vec<Outcome>,
        fuel: u64,
        deed: Deed,
    ) {
        if index <= self.superseded_through || self.is_faulted() {
            return;
        }
        self.complete_idle();
        let expected = self.applying.front().is_some_and(|front| {
            front.index == index
                && front.works
                && matches!(
                    front.what,
                    What::Commands { .. } | What::Change { .. } | What::Control
                )
        });
        let Some(front) = self.applying.pop_front().filter(|_| expected) else {
            self.halt(format!(
                "the machine answered for entry {index} out of order"
            ));
            return;
        };
        self.judge_sources(index, front.since, front.sources(), &outcomes);
        self.since_barrier.fuel = self.since_barrier.fuel.saturating_add(fuel);
        for outcome in &outcomes {
            if matches!(outcome, Outcome::Fault(_)) {
                self.since_barrier.faults = self.since_barrier.faults.saturating_add(1);
                self.faults_in_a_row = self.faults_in_a_row.saturating_add(1);
            } else {
                self.faults_in_a_row = 0;
            }
        }
        self.attestations.chain.extend(index, deed);
        self.complete(front, outcomes);
        self.complete_idle();
    }

    /// The machine has passed a barrier.
    pub(crate) fn machine_passed(&mut self, index: LogIndex, saved: Saved) {
        if index <= self.superseded_through || self.is_faulted() {
            return;
        }
        let expected = self.applying.front().is_some_and(|front| {
            front.index == index && matches!(front.what, What::Barrier { .. })
        });
        let Some(front) = self.applying.pop_front().filter(|_| expected) else {
            self.halt(format!(
                "the machine answered for barrier {index} out of order"
            ));
            return;
        };
        let What::Barrier { askers, conf_state } = front.what else {
            return;
        };
        self.unapplied_bytes = self.unapplied_bytes.saturating_sub(front.weight);
        self.applied = index;
        self.since_barrier.took = self.ticks - front.since;
        self.attest(index, saved.name());
        self.unwritten = None;
        match saved {
            Saved::Durable(name) => {
                self.compact(Snapshotted { name, conf_state });
                if self.serves() {
                    self.health = Health::Healthy;
                }
            }
            Saved::Unwritten(name, reason) => {
                self.snapshot_unwritten(Snapshotted { name, conf_state }, reason);
            }
            Saved::Not => {
                if self.serves() {
                    let reason = "the machine failed in save or restore".to_owned();
                    self.health = Health::Degraded { index, reason };
                }
                self.snapshot_came_to_nothing();
            }
        }
        self.acknowledge(&askers, index, front.term);
        self.complete_idle();
    }

    pub(crate) fn machine_restored(&mut self, index: LogIndex) {
        let expected = self
            .applying
            .front()
            .is_some_and(|front| front.index == index && matches!(front.what, What::Restore));
        if expected {
            self.applying.pop_front();
            self.applied = index;
            self.complete_idle();
        }
    }

    /// The machine has done what was decided on an activation.
    pub(crate) fn complete_activation(&mut self, index: LogIndex, outcome: Outcome) {
        let expected = self.applying.front().is_some_and(|front| {
            front.index == index && matches!(front.what, What::Activate { .. })
        });
        let Some(front) = self.applying.pop_front().filter(|_| expected) else {
            self.halt(format!(
                "the machine answered for activation {index} out of order"
            ));
            return;
        };
        self.complete(front, vec![outcome]);
        self.complete_idle();
    }

    /// Somebody waits for the decision on the activation that is not done. `false` if there is none.
    pub(crate) fn wait_for_activation(&mut self, asker: AskerId) -> bool {
        // Nothing behind it is applied.
        match self.applying.back_mut().map(|last| &mut last.what) {
            Some(What::Activate { askers }) => {
                askers.push(asker);
                true
            }
            _ => false,
        }
    }

    pub(crate) fn machine_failed(&mut self, reason: String, at: Option<Stopped>) {
        self.impasse = at.and_then(|stopped| self.impasse_of(stopped));
        self.impasse_at = self.committed_through();
        self.health = Health::Faulted { reason };
        self.forget_readiness();
        self.abandon_applying();
        self.refuse_reads(&ProposalError::Faulted);
    }

    /// Finishes entries at the front that the machine has nothing to do for.
    pub(crate) fn complete_idle(&mut self) {
        while self.applying.front().is_some_and(|front| !front.works) {
            let Some(front) = self.applying.pop_front() else {
                break;
            };
            self.complete(front, Vec::new());
        }
    }

    fn complete(&mut self, applying: Applying, outcomes: Vec<Outcome>) {
        let Applying {
            index,
            term,
            weight,
            what,
            ..
        } = applying;
        self.unapplied_bytes = self.unapplied_bytes.saturating_sub(weight);
        self.applied = index;
        match what {
            What::Commands { plans, forgotten } => {
                let mut outcomes: Vec<_> = outcomes.into_iter().map(Some).collect();
                for Plan {
                    asker,
                    request,
                    fate,
                    ..
                } in plans
                {
                    let result = match fate {
                        Fate::Known(result) => result,
                        Fate::Repeated => self.state.sessions.answered(request),
                        Fate::Failed => {
                            let outcome = Outcome::Fault(GuestFault::Unrunnable);
                            Ok(self.keep_answer(request, (index, term), outcome))
                        }
                        Fate::Machine(place) => {
                            let Some(outcome) = outcomes.get_mut(place).and_then(Option::take)
                            else {
                                self.halt(format!(
                                    "the machine did not answer every command of entry {index}"
                                ));
                                return;
                            };
                            Ok(self.keep_answer(request, (index, term), outcome))
                        }
                    };
                    if let Some(asker) = asker.filter(|asker| self.pending.waits(*asker)) {
                        if let Ok(response) = &result {
                            let length = response.outcome.size();
                            self.allowance.take_bytes(self.rates(), length);
                        }
                        self.reply(asker, result);
                    }
                }
                self.state.sessions.forget(forgotten);
            }
            What::Change { asker, applied } => {
                self.complete_change(index, term, asker, applied, outcomes)
            }
            What::Activate { askers } => {
                let outcome = outcomes
                    .into_iter()
                    .next()
                    .unwrap_or_else(|| Outcome::Reply(Bytes::new()));
                self.answer(&askers, (index, term), outcome);
            }
            What::Control | What::Barrier { .. } | What::Restore => {}
        }
    }

    fn keep_answer(
        &mut self,
        request: RequestId,
        (index, term): (LogIndex, Term),
        outcome: Outcome,
    ) -> Response {
        let response = Response {
            request,
            index,
            term,
            outcome,
        };
        self.state.sessions.answer(&response);
        response
    }

    fn complete_change(
        &mut self,
        index: LogIndex,
        term: Term,
        asker: Option<AskerId>,
        applied: Option<Changed>,
        outcomes: Vec<Outcome>,
    ) {
        let Some(changed) = applied else {
            if let Some(asker) = asker {
                self.reply(
                    asker,
                    Err(ProposalError::ChangeRefused(ChangeRefusal::NotMember)),
                );
            }
            return;
        };
        let outcome = outcomes
            .into_iter()
            .next()
            .unwrap_or_else(|| Outcome::Reply(Bytes::new()));
        let response = Response {
            request: RequestId::ANONYMOUS,
            index,
            term,
            outcome,
        };
        if changed.kind == ChangeKind::AddLearner && changed.promote {
            if let Some(asker) = asker {
                self.proposals
                    .joins
                    .entry(changed.replica)
                    .or_default()
                    .push(asker);
            }
            return;
        }
        if changed.kind == ChangeKind::Remove {
            self.removed(changed.replica, changed.node, asker, response.clone());
        } else if let Some(asker) = asker {
            self.reply(asker, Ok(response.clone()));
        }
        let joined = self
            .proposals
            .joins
            .remove(&changed.replica)
            .unwrap_or_default();
        for asker in joined {
            let result = match changed.kind {
                ChangeKind::Remove => Err(ProposalError::ChangeRefused(ChangeRefusal::NotMember)),
                _ => Ok(response.clone()),
            };
            self.reply(asker, result);
        }
    }

    /// Gives up waiting for what the machine has in hand; the entries are committed.
    pub(crate) fn abandon_applying(&mut self) {
        for applying in std::mem::take(&mut self.applying) {
            self.refuse_all(&applying.askers(), &ProposalError::Unknown);
        }
    }
}
