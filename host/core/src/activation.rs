//! Another machine for a group, in two steps of the log.
//!
//! An `Activate` entry changes nothing. Each replica saves its machine there, restores another one from the bytes, keeps both,
//! and applies nothing behind the entry. It tells the leader how that went. The leader puts the decision into the log: a
//! `Confirm` when a majority of the voters has the new machine, an `Abort` when no majority can have it, at a deadline, or when
//! an operator asks. The first decision in the log counts, whoever proposed it; a waiting replica looks ahead for it. Then all go on from
//! the same bytes: with the new machine, or with a fresh one of the old.
//!
//! So an activation that nobody can do costs the group the time until the deadline, and one that few cannot do costs only those
//! few: they wait until they can, or take a snapshot of a later point.

use std::collections::BTreeMap;

use bytes::Bytes;
use raft::eraftpb::Entry;
pub use skep_types::activation::{AbortReason, Overdue, Readiness, Refusal};

use crate::attestation::Deed;
use crate::deployment::Deployment;
use crate::effect::{Effect, Work};
use crate::entry::{self, Order};
use crate::group::Group;
use crate::id::{LogIndex, NodeId, ReplicaId, Term};
use crate::message::Body;
use crate::outcome::{EntryContext, Outcome};
use crate::payload::{Abort, Confirm, Kind};
use crate::pending::AskerId;
use crate::planted::{self, Defect};
use crate::proposal::ProposalError;
use crate::raft_node::NotProposed;
use crate::status::AwaitedDecision;

/// Code of the rejection that answers for an activation that was given up.
pub const NOT_ACTIVATED: u32 = 422;
/// Code of the rejection of an abort that came too late.
pub const CONFIRMED_BEFORE: u32 = 409;

/// What the log says of an activation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decision {
    /// The group goes on with the new machine.
    Confirmed,
    /// It goes on with what it ran.
    Aborted(AbortReason),
}

impl Decision {
    /// What whoever asked is told.
    pub fn outcome(self) -> Outcome {
        match self {
            Self::Confirmed => Outcome::default(),
            Self::Aborted(reason) => Outcome::Refused {
                code: NOT_ACTIVATED,
                message: reason.to_string(),
            },
        }
    }

    /// What replicas compare: no sentences.
    fn deed(self, entry: &[u8]) -> Deed {
        let outcome = match self {
            Self::Confirmed => Outcome::default(),
            Self::Aborted(reason) => Outcome::Refused {
                code: reason.code(),
                message: String::new(),
            },
        };
        Deed::of(entry, &[outcome], 0)
    }
}

/// An activation that is not done.
#[derive(Debug)]
pub(crate) struct Activation {
    context: EntryContext,
    deployment: Deployment,
    /// Its bytes in the log.
    entry: Bytes,
    /// The tick at which it was met here.
    since: u64,
    /// The tick from which this leader counts to the deadline.
    counted_from: u64,
    /// Answers that the machine owes.
    asked: u32,
    /// How far this replica is; none before its machine has answered.
    own: Option<Readiness>,
    /// What the others told this leader.
    reports: BTreeMap<ReplicaId, Readiness>,
    /// The term in which this leader has put a decision into the log.
    proposed: Option<Term>,
    decision: Option<Decision>,
    /// Entries up to here hold no decision on it.
    looked_through: LogIndex,
}

impl Group {
    /// The log holds an activation.
    pub(crate) fn begin_activation(
        &mut self,
        context: EntryContext,
        deployment: Deployment,
        entry: Bytes,
    ) {
        self.activation = Some(Activation {
            context,
            deployment,
            entry,
            since: self.ticks,
            counted_from: self.ticks,
            asked: 0,
            own: None,
            reports: BTreeMap::new(),
            proposed: None,
            decision: None,
            looked_through: context.index,
        });
        self.ask_machine();
    }

    /// Asks the machine to prepare what is undecided, or to do what is decided.
    fn ask_machine(&mut self) {
        let Some(activation) = &mut self.activation else {
            return;
        };
        activation.asked += 1;
        let context = activation.context;
        self.out.machine(match activation.decision {
            None => Work::Prepare {
                context,
                deployment: activation.deployment.clone(),
            },
            Some(decision) => Work::Decide { context, decision },
        });
    }

    /// A waiting replica looks for the decision among the entries that it does not process.
    pub(crate) fn look_for_decision(&mut self) {
        let Some(activation) = &mut self.activation else {
            return;
        };
        if activation.decision.is_some() {
            return;
        }
        let looked = activation.looked_through.0;
        let from = self
            .committed
            .partition_point(|entry| entry.index <= looked);
        let decides = |entry| {
            let (index, decision) = entry::decision(entry)?;
            (index == activation.context.index).then_some(decision)
        };
        let mut unseen = self.committed.range(from..);
        activation.decision = if planted::has(Defect::LastDecisionCounts) {
            unseen.rev().find_map(decides)
        } else {
            unseen.find_map(decides)
        };
        if let Some(last) = self.committed.back() {
            activation.looked_through = LogIndex(last.index);
        }
        if activation.decision.is_some() {
            self.ask_machine();
        }
    }

    /// The machine says how far it is.
    pub(crate) fn machine_prepared(&mut self, index: LogIndex, readiness: Readiness) {
        if index <= self.superseded_through || self.is_faulted() {
            return;
        }
        let Some(activation) = self.activation_at(index) else {
            return;
        };
        activation.asked = activation.asked.saturating_sub(1);
        activation.own = Some(readiness);
        let is_confirmed = activation.decision == Some(Decision::Confirmed);
        let is_last_word = activation.asked == 0;
        match readiness {
            // The machines of a majority took the state that this one does not.
            Readiness::Refused(_) if is_confirmed && is_last_word => {
                self.out.push(Effect::Diverged {
                    index,
                    decided: true,
                    here: true,
                });
                self.activation = None;
                self.quarantine(index);
            }
            _ => self.report_readiness(),
        }
    }

    /// The machine has done what was decided.
    pub(crate) fn machine_exchanged(&mut self, index: LogIndex) {
        if index <= self.superseded_through || self.is_faulted() {
            return;
        }
        self.complete_idle();
        let activation = self.activation.take_if(|it| it.context.index == index);
        let decided = activation.and_then(|activation| {
            let decision = activation.decision?;
            Some((activation, decision))
        });
        let Some((activation, decision)) = decided else {
            self.halt(format!(
                "the machine answered for activation {index} out of order"
            ));
            return;
        };
        let deed = decision.deed(&activation.entry);
        self.attestations.chain.extend(index, deed);
        self.decided = Some((index, decision));
        if decision == Decision::Confirmed {
            self.state.deployment = Some(activation.deployment);
            self.state.paused = false;
            self.faults_in_a_row = 0;
            self.proposals.suspects.forget_fullness();
            // Of the other machine nothing is known yet.
            self.sizes.memory = None;
            // So that no replica needs the former code for long.
            self.since_barrier.wanted = true;
        }
        self.complete_activation(index, decision.outcome());
    }

    fn activation_at(&mut self, index: LogIndex) -> Option<&mut Activation> {
        let activation = self.activation.as_mut();
        activation.filter(|activation| activation.context.index == index)
    }

    /// Tells the leader how far this replica is.
    fn report_readiness(&mut self) {
        let Some(activation) = self.activation.as_ref().filter(|it| it.decision.is_none()) else {
            return;
        };
        let (index, own) = (activation.context.index, activation.own);
        if let Some(readiness) = own
            && let Some(leader) = self.leader_replica()
            && leader != self.replica
            && let Some(node) = self.node_of(leader)
        {
            self.send(leader, node, Body::Readiness { index, readiness });
        }
    }

    /// A member says how far it is.
    pub(crate) fn readiness_reported(
        &mut self,
        from: ReplicaId,
        index: LogIndex,
        readiness: Readiness,
    ) {
        if !self.leads() || self.state.membership.member(from).is_none() {
            return;
        }
        match self.activation_at(index) {
            Some(activation) => drop(activation.reports.insert(from, readiness)),
            None => self.give_up_unprocessed(index),
        }
    }

    /// A member waits for the decision on an activation that this leader has not come to. If its machine is of no use, and no
    /// majority of the voters can come to it, it is given up: else nobody would get to the snapshot behind it that they need.
    fn give_up_unprocessed(&mut self, index: LogIndex) {
        if self.needs_snapshot_after().is_none() || !self.may_propose() {
            return;
        }
        let voters: Vec<_> = self.state.membership.voters().collect();
        let can = |voter: &&ReplicaId| **voter != self.replica && !self.is_ailing(**voter);
        if voters.iter().filter(can).count() > voters.len() / 2 {
            return;
        }
        let activates = |entry: &Entry| {
            let order = entry::read(entry);
            entry.index == index.0 && matches!(order, Ok(Some((_, Order::Activate(_)))))
        };
        let decides = |entry: &Entry| entry::decision(entry).is_some_and(|(of, _)| of == index);
        if self.in_flight(activates) && !self.in_flight(decides) {
            // Tried again with the next report.
            let _refused = self.propose_entry(abort(index, AbortReason::Deadline), &[]);
        }
    }

    /// Another replica leads, or another term has begun: a new leader knows nothing, and counts anew.
    pub(crate) fn leader_changed_for_activation(&mut self) {
        let ticks = self.ticks;
        if let Some(activation) = &mut self.activation {
            activation.reports.clear();
            activation.proposed = None;
            activation.counted_from = ticks;
        }
        self.report_readiness();
    }

    /// With every election timeout: reports may be lost, and what was not to be had may be there now.
    pub(crate) fn tend_activation(&mut self) {
        let is_due = self
            .ticks
            .is_multiple_of(u64::from(self.config.election_ticks));
        let Some(activation) = self.activation.as_ref().filter(|_| is_due) else {
            return;
        };
        let lacks = activation.own == Some(Readiness::NotYet) && activation.asked == 0;
        if lacks && !self.is_faulted() {
            self.ask_machine();
        }
        self.report_readiness();
    }

    /// The activation that this replica has waited for longer than an election timeout.
    pub fn overdue(&self) -> Option<Overdue> {
        let activation = self.activation.as_ref()?;
        let patience = u64::from(self.config.election_ticks);
        (self.ticks > activation.since + patience).then_some(Overdue {
            index: activation.context.index,
            is_decided: activation.decision.is_some(),
        })
    }

    /// Whether an activation is not done.
    pub(crate) fn awaits_decision(&self) -> bool {
        self.activation.is_some()
    }

    /// Whether the log that this replica has says nothing of an activation that it has met.
    pub(crate) fn is_undecided(&self) -> bool {
        let activation = self.activation.as_ref();
        activation.is_some_and(|activation| activation.decision.is_none())
    }

    /// The machine has failed, and the one that it had prepared is gone with it.
    pub(crate) fn forget_readiness(&mut self) {
        if let Some(activation) = &mut self.activation {
            activation.own = Some(Readiness::NotYet);
        }
    }

    /// Everything up to here is in the state of the machine when it has done its work. An activation is in it when it is done,
    /// and not when it is met: until then the former machine answers.
    pub(crate) fn settled_through(&self) -> LogIndex {
        match &self.activation {
            Some(activation) => LogIndex(activation.context.index.0.saturating_sub(1)),
            None => self.processed,
        }
    }

    /// Whether it is this that is not done.
    pub(crate) fn awaits(&self, deployment: &Deployment) -> bool {
        let activation = self.activation.as_ref();
        activation.is_some_and(|activation| activation.deployment == *deployment)
    }

    /// Whether this replica cannot do what was decided, and is left behind.
    pub(crate) fn lacks_what_was_decided(&self) -> bool {
        self.activation.as_ref().is_some_and(|activation| {
            activation.decision.is_some() && activation.own == Some(Readiness::NotYet)
        })
    }

    /// A leader decides as soon as it can tell. `true` if there was something to propose.
    pub(crate) fn propose_decision_if_due(&mut self) -> bool {
        if !self.may_propose() {
            return false;
        }
        let (term, index) = (
            self.term(),
            self.activation.as_ref().map(|it| it.context.index),
        );
        let (Some(index), Some(decision)) = (index, self.due_decision(term)) else {
            return false;
        };
        let kind = match decision {
            Decision::Confirmed => Kind::Confirm(Confirm { index: index.0 }),
            Decision::Aborted(reason) => abort(index, reason),
        };
        self.put_decision(kind, &[]).is_ok()
    }

    fn put_decision(&mut self, kind: Kind, askers: &[AskerId]) -> Result<(), NotProposed> {
        self.propose_entry(kind, askers)?;
        let term = self.term();
        if let Some(activation) = &mut self.activation {
            activation.proposed = Some(term);
        }
        Ok(())
    }

    fn due_decision(&self, term: Term) -> Option<Decision> {
        let activation = self.activation.as_ref()?;
        if activation.decision.is_some() || activation.proposed == Some(term) {
            return None;
        }
        let voters: Vec<_> = self.state.membership.voters().collect();
        let majority = voters.len() / 2 + 1;
        let said = |voter: &ReplicaId| match *voter == self.replica {
            true => activation.own,
            false => activation.reports.get(voter).copied(),
        };
        let said: Vec<_> = voters.iter().filter_map(said).collect();
        let prepared = said.iter().filter(|said| **said == Readiness::Prepared);
        if prepared.count() >= majority {
            return Some(Decision::Confirmed);
        }
        let mut refusals = BTreeMap::<_, usize>::new();
        for said in &said {
            if let Readiness::Refused(refusal) = said {
                *refusals.entry(*refusal).or_default() += 1;
            }
        }
        let left = voters.len() - refusals.values().sum::<usize>();
        if left < majority {
            let most = refusals.into_iter().max_by_key(|(_, count)| *count);
            return most.map(|(refusal, _)| Decision::Aborted(AbortReason::Refused(refusal)));
        }
        // Who needs a snapshot that can only be taken behind this has no state to prepare, however long the others wait.
        let waits = |voter: &&ReplicaId| self.waits_for_a_later_snapshot(**voter);
        if left.saturating_sub(voters.iter().filter(waits).count()) < majority {
            return Some(Decision::Aborted(AbortReason::Deadline));
        }
        let deadline = activation.counted_from + u64::from(self.config.limits.activation_ticks);
        (self.ticks >= deadline).then_some(Decision::Aborted(AbortReason::Deadline))
    }

    /// An operator gives an activation up.
    pub(crate) fn propose_abort(&mut self, asker: AskerId) {
        let undecided = self.activation.as_ref().filter(|it| it.decision.is_none());
        let Some(index) = undecided.map(|activation| activation.context.index) else {
            self.reply(asker, Err(ProposalError::NotNeeded));
            return;
        };
        let abort = abort(index, AbortReason::Operator);
        if self.put_decision(abort, &[asker]).is_err() {
            self.reply(asker, Err(ProposalError::Busy));
        }
    }

    /// The log holds a decision, which was looked for before: whoever asked for it learns which one came first.
    pub(crate) fn process_decision(
        &mut self,
        of: LogIndex,
        wanted: Decision,
        askers: &[AskerId],
        at: (LogIndex, Term),
    ) {
        let first = self.decided.filter(|(index, _)| *index == of);
        let outcome = match (first, wanted) {
            (Some((_, Decision::Confirmed)), Decision::Aborted(_)) => Outcome::Refused {
                code: CONFIRMED_BEFORE,
                message: "the group goes on with the new machine: that was decided before".into(),
            },
            (Some(_), _) => Outcome::default(),
            (None, _) => {
                self.refuse_all(askers, &ProposalError::NotNeeded);
                return;
            }
        };
        self.answer(askers, at, outcome);
    }

    /// For the status.
    pub(crate) fn awaited_decision(&self) -> Option<AwaitedDecision> {
        let activation = self.activation.as_ref()?;
        let members = self.state.membership.members().iter();
        let lacks = |replica: &ReplicaId| match *replica == self.replica {
            true => activation.own != Some(Readiness::Prepared),
            false => activation.reports.get(replica) != Some(&Readiness::Prepared),
        };
        let waits_for: Vec<NodeId> = members
            .filter(|(replica, _)| self.leads() && lacks(replica))
            .map(|(_, member)| member.node)
            .collect();
        Some(AwaitedDecision {
            index: activation.context.index,
            component: activation.deployment.component,
            ticks: self.ticks - activation.since,
            is_confirmed: activation
                .decision
                .map(|decision| decision == Decision::Confirmed),
            here: activation.own,
            waits_for,
        })
    }
}

pub(crate) fn abort(index: LogIndex, reason: AbortReason) -> Kind {
    Kind::Abort(Abort {
        index: index.0,
        code: reason.code(),
    })
}
