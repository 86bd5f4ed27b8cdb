//! Entries that the machine has in hand, and its answers.

use crate::attestation::Deed;
use crate::group::Group;
use crate::id::{LogIndex, NodeId, ReplicaId, RequestId, Term};
use crate::input::Stopped;
use crate::outcome::{ChangeKind, EntryContext, GuestFault, Outcome};
use crate::pending::AskerId;
use crate::proposal::{ChangeRefusal, ProposalError, Response};
use crate::sessions::Forgotten;
use crate::status::Health;
use crate::suspects::{Answered, Source};

/// An entry the machine has work from, or that waits behind one.
#[derive(Debug)]
pub(crate) struct Applying {
    pub(crate) index: LogIndex,
    pub(crate) term: Term,
    pub(crate) weight: u64,
    /// The tick at which it was handed to the machine.
    pub(crate) since: u64,
    /// The machine will answer for it.
    pub(crate) works: bool,
    pub(crate) what: What,
}

#[derive(Debug)]
pub(crate) enum What {
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
pub(crate) struct Changed {
    pub(crate) kind: ChangeKind,
    pub(crate) replica: ReplicaId,
    pub(crate) node: NodeId,
    pub(crate) promote: bool,
}

#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) asker: Option<AskerId>,
    /// Where it comes from, if this replica can tell.
    pub(crate) source: Option<Source>,
    pub(crate) request: RequestId,
    /// Bytes of the command.
    pub(crate) bytes: u64,
    pub(crate) fate: Fate,
}

/// What becomes of one command of an entry.
#[derive(Debug)]
pub(crate) enum Fate {
    /// The machine answers, at this place of its list.
    Machine(usize),
    /// It was given to the machine before; what is kept of its answer is known when this entry's turn comes.
    Repeated,
    /// Known already.
    Known(Result<Response, ProposalError>),
    /// No member's machine could run it, and none is given it.
    Failed,
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
    pub(crate) fn machine_applied(&mut self, index: LogIndex, outcomes: Vec<Outcome>, deed: Deed) {
        if index <= self.superseded_through || self.is_faulted() {
            return;
        }
        self.complete_idle();
        let is_entry = |front: &Applying| {
            let what = &front.what;
            let is_entry = matches!(
                what,
                What::Commands { .. } | What::Change { .. } | What::Control
            );
            front.works && is_entry
        };
        let Some(front) = self.take_answered(("entry", index), is_entry) else {
            return;
        };
        if self.leads() {
            self.judge_sources(&Answered {
                index,
                since: front.since,
                from: front.sources(),
                outcomes: &outcomes,
                others_wait: !self.applying.is_empty(),
            });
        }
        for outcome in &outcomes {
            if matches!(outcome, Outcome::Fault(_)) {
                self.faults_in_a_row = self.faults_in_a_row.saturating_add(1);
            } else {
                self.faults_in_a_row = 0;
            }
        }
        self.attestations.chain.extend(index, deed);
        self.complete(front, outcomes);
        self.complete_idle();
    }

    /// Takes what the machine has answered for: what it has had in hand for longest, or the replica cannot go on.
    pub(crate) fn take_answered(
        &mut self,
        (what, index): (&str, LogIndex),
        is_it: impl Fn(&Applying) -> bool,
    ) -> Option<Applying> {
        let is_it = |front: &mut Applying| front.index == index && is_it(front);
        let answered = self.applying.pop_front_if(is_it);
        if answered.is_none() {
            self.halt(format!(
                "the machine answered for {what} {index} out of order"
            ));
        }
        answered
    }

    pub(crate) fn machine_restored(&mut self, index: LogIndex, memory: Option<u64>) {
        let is_it =
            |front: &mut Applying| front.index == index && matches!(front.what, What::Restore);
        if self.applying.pop_front_if(is_it).is_some() {
            self.applied = index;
            self.sizes.memory = memory;
            self.beginning = None;
            if matches!(self.health, Health::Damaged { .. }) {
                self.health = Health::Healthy;
            }
            self.complete_idle();
        }
    }

    /// Whether the machine is to begin with the snapshot at this index.
    pub(crate) fn is_restoring(&self, index: LogIndex) -> bool {
        let front = self.applying.front();
        front.is_some_and(|front| front.index == index && matches!(front.what, What::Restore))
    }

    /// The machine has done what was decided on an activation.
    pub(crate) fn complete_activation(&mut self, index: LogIndex, outcome: Outcome) {
        let is_activation = |front: &Applying| matches!(front.what, What::Activate { .. });
        if let Some(front) = self.take_answered(("activation", index), is_activation) {
            self.complete(front, vec![outcome]);
            self.complete_idle();
        }
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
        while let Some(front) = self.applying.pop_front_if(|front| !front.works) {
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
                let outcome = outcomes.into_iter().next().unwrap_or_default();
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
        let not_a_member = ProposalError::ChangeRefused(ChangeRefusal::NotMember);
        let Some(changed) = applied else {
            self.refuse_all(asker.as_slice(), &not_a_member);
            return;
        };
        let outcome = outcomes.into_iter().next().unwrap_or_default();
        let response = Response {
            request: RequestId::ANONYMOUS,
            index,
            term,
            outcome,
        };
        if changed.kind == ChangeKind::AddLearner && changed.promote {
            if let Some(asker) = asker {
                let joins = self.proposals.joins.entry(changed.replica);
                joins.or_default().push(asker);
            }
            return;
        }
        if changed.kind == ChangeKind::Remove {
            self.removed(changed.replica, changed.node, asker, response.clone());
        } else if let Some(asker) = asker {
            self.reply(asker, Ok(response.clone()));
        }
        let joined = self.proposals.joins.remove(&changed.replica);
        for asker in joined.unwrap_or_default() {
            let result = match changed.kind {
                ChangeKind::Remove => Err(not_a_member.clone()),
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
        if let Some(imaging) = self.imaging.take() {
            self.refuse_all(&imaging.askers, &ProposalError::Unknown);
        }
    }
}
