//! Proposals from their arrival to their answer: queueing, deadlines, and who waits for an entry in the log.

use std::collections::{BTreeMap, VecDeque};

use crate::deployment::PROFILE_BYTES_MAX;
use crate::group::Group;
use crate::id::{LogIndex, ReplicaId, Term};
use crate::input::Waiter;
use crate::message::Body;
use crate::pending::{Asker, AskerId, Who};
use crate::planted::{self, Defect};
use crate::proposal::{Proposal, ProposalError, Response};
use crate::state::MEMBER_DATA_BYTES_MAX;
use crate::suspects::{Answered, Source, Suspects, Waiting};

/// Bytes of a change: of the data of a member.
const CHANGE_BYTES_MAX: u64 = MEMBER_DATA_BYTES_MAX as u64;

/// A membership change may include a snapshot transfer; it is given this many times the deadline of a command, while somebody
/// leads.
const CHANGE_DEADLINES: u64 = 12;

#[derive(Debug)]
pub(crate) struct Queued {
    pub(crate) asker: AskerId,
    pub(crate) proposal: Proposal,
}

#[derive(Debug)]
pub(crate) struct Forwarded {
    pub(crate) asker: AskerId,
    pub(crate) proposal: Proposal,
    pub(crate) to: ReplicaId,
    /// The tick at which that one was seen not to lead any more. It may answer yet.
    pub(crate) lost_at: Option<u64>,
}

#[derive(Debug)]
struct Proposed {
    term: Term,
    askers: Vec<AskerId>,
}

/// Everything that is proposed and not answered.
#[derive(Debug, Default)]
pub(crate) struct Proposals {
    pub(crate) queue: VecDeque<Queued>,
    queued_bytes: u64,
    /// In the log of this leader, by index.
    proposed: BTreeMap<LogIndex, Proposed>,
    /// Sent to the leader, by token.
    pub(crate) forwarded: BTreeMap<u64, Forwarded>,
    /// Forwards sent in this life.
    pub(crate) forwards: u64,
    /// Waiting for a learner to be promoted.
    pub(crate) joins: BTreeMap<ReplicaId, Vec<AskerId>>,
    /// Changes to be looked at again with the next tick.
    deferred: Vec<Queued>,
    /// This replica has become leader and has not yet said so in the log.
    pub(crate) elected: bool,
    /// Commands that a leader lets wait for the sake of others.
    pub(crate) suspects: Suspects,
    /// The tick at which one was last refused because too many wait.
    pub(crate) full_at: Option<u64>,
}

impl Proposals {
    pub(crate) fn len(&self) -> usize {
        self.queue.len() + self.suspects.len()
    }

    /// Keeps what somebody waits for.
    fn retain(&mut self, waits: impl Fn(AskerId) -> bool + Copy) {
        let waits_for_it = |queued: &Queued| waits(queued.asker);
        self.queue.retain(waits_for_it);
        self.queued_bytes = sum_of_sizes(&self.queue);
        self.deferred.retain(waits_for_it);
        self.suspects.retain(waits);
        self.forwarded.retain(|_, forwarded| waits(forwarded.asker));
        // The place of an asker in an entry says which command is meant, so an entry keeps all of them or none.
        self.proposed
            .retain(|_, proposed| proposed.askers.iter().any(|asker| waits(*asker)));
        self.joins
            .retain(|_, askers| askers.iter().any(|asker| waits(*asker)));
    }
}

impl Group {
    pub(crate) fn propose(&mut self, waiter: Waiter, proposal: Proposal) {
        let deadline = self.deadline(&proposal);
        let asker = self.pending.admit(Who::Local(waiter), self.ticks, deadline);
        self.enqueue(asker, proposal);
    }

    pub(crate) fn deadline(&self, proposal: &Proposal) -> u64 {
        let ticks = u64::from(self.config.limits.request_ticks);
        self.ticks
            + match proposal {
                Proposal::Change(_) => ticks * CHANGE_DEADLINES,
                Proposal::Activate(_) => ticks + u64::from(self.config.limits.activation_ticks),
                _ => ticks,
            }
    }

    pub(crate) fn enqueue(&mut self, asker: AskerId, proposal: Proposal) {
        let rates = self.rates();
        let bytes_max = self.queued_bytes_max();
        let limits = &self.config.limits;
        let size = proposal.size() as u64;
        // Not behind the commands that wait for the decision, nor refused because they are many.
        let is_abort = matches!(proposal, Proposal::AbortActivation);
        let aborts_now = is_abort && self.may_propose();
        let error = match &proposal {
            Proposal::Command(_) | Proposal::OpenSession if !self.serves() => {
                Some(ProposalError::Faulted)
            }
            _ if self.is_faulted() => Some(ProposalError::Faulted),
            Proposal::Command(_) if self.state.paused => Some(ProposalError::Paused),
            Proposal::Command(command) if command.data.len() as u64 > limits.command_bytes => {
                Some(ProposalError::TooLarge {
                    size: command.data.len() as u64,
                    limit: limits.command_bytes,
                })
            }
            Proposal::Change(_) if size > limits.command_bytes.min(CHANGE_BYTES_MAX) => {
                Some(ProposalError::TooLarge {
                    size,
                    limit: limits.command_bytes.min(CHANGE_BYTES_MAX),
                })
            }
            Proposal::Activate(deployment) if deployment.profile.len() > PROFILE_BYTES_MAX => {
                Some(ProposalError::TooLarge {
                    size: deployment.profile.len() as u64,
                    limit: PROFILE_BYTES_MAX as u64,
                })
            }
            _ if !aborts_now
                && (self.proposals.queue.len() >= limits.queued_proposals
                    || self.proposals.queued_bytes + size > bytes_max) =>
            {
                self.proposals.full_at = Some(self.ticks);
                Some(ProposalError::Busy)
            }
            // The last look: only what is taken is counted.
            Proposal::Command(_) if self.leads() && !self.allowance.take_command(rates) => {
                Some(ProposalError::Busy)
            }
            Proposal::OpenSession if self.leads() && !self.allowance.take_session() => {
                Some(ProposalError::TooManySessions)
            }
            _ => None,
        };
        match error {
            Some(error) => self.reply(asker, Err(error)),
            None if aborts_now => self.propose_abort(asker),
            None if is_abort => self.requeue(asker, proposal),
            None => self.enqueue_by_source(asker, proposal),
        }
    }

    /// Bytes of proposals that may wait here.
    pub(crate) fn queued_bytes_max(&self) -> u64 {
        let limit = self.config.limits.queued_bytes;
        match self.quota().in_flight_bytes {
            0 => limit,
            bytes => bytes.min(limit),
        }
    }

    /// Queues a proposal that is taken: with those of suspects, or with all others.
    pub(crate) fn enqueue_by_source(&mut self, asker: AskerId, proposal: Proposal) {
        let command = match proposal {
            Proposal::Command(command) if self.leads() => command,
            proposal => return self.enqueue_with_all(asker, proposal),
        };
        let session = command.request.session;
        let source = || Source::of(session, self.pending.who(asker), self.replica);
        let Some(source) = self.proposals.suspects.suspect(source, self.ticks) else {
            return self.enqueue_with_all(asker, Proposal::Command(command));
        };
        let waiting = Waiting {
            asker,
            source,
            command,
        };
        let (bytes_max, ticks) = (self.queued_bytes_max(), self.ticks);
        let (suspects, limits) = (&mut self.proposals.suspects, &self.config.limits);
        if let Err(error) = suspects.set_aside(waiting, bytes_max, ticks, limits) {
            self.reply(asker, Err(error));
        }
    }

    fn enqueue_with_all(&mut self, asker: AskerId, proposal: Proposal) {
        self.proposals.suspects.note_others(self.ticks);
        self.enqueue_last(asker, proposal);
    }

    /// The machine has answered this leader for commands of clients.
    pub(crate) fn judge_sources<I>(&mut self, answered: &Answered<I>)
    where
        I: Iterator<Item = (Option<Source>, u64)> + Clone,
    {
        let (suspects, limits) = (&mut self.proposals.suspects, &self.config.limits);
        let judged = suspects.judge(answered, self.ticks, limits);
        self.refuse_all(&judged.hopeless, &ProposalError::OutOfMemory);
        if !judged.hopeless.is_empty() {
            self.drop_what_nobody_waits_for();
        }
        if judged.is_new {
            self.set_queued_aside();
        }
    }

    /// What a new suspect has in the queue of all.
    fn set_queued_aside(&mut self) {
        for _ in 0..self.proposals.queue.len() {
            if let Some(Queued { asker, proposal }) = self.dequeue() {
                self.enqueue_by_source(asker, proposal);
            }
        }
    }

    /// A replica that begins to lead, or does no longer, holds nothing against anybody.
    pub(crate) fn forget_suspects(&mut self) {
        let suspects = std::mem::take(&mut self.proposals.suspects);
        for Queued { asker, proposal } in suspects.into_queued() {
            self.enqueue_last(asker, proposal);
        }
    }

    pub(crate) fn enqueue_last(&mut self, asker: AskerId, proposal: Proposal) {
        self.proposals.queued_bytes += proposal.size() as u64;
        self.proposals.queue.push_back(Queued { asker, proposal });
    }

    pub(crate) fn dequeue(&mut self) -> Option<Queued> {
        let queued = self.proposals.queue.pop_front()?;
        self.proposals.queued_bytes -= queued.proposal.size() as u64;
        Some(queued)
    }

    /// Puts a proposal back to where it is packed or forwarded from.
    pub(crate) fn requeue(&mut self, asker: AskerId, proposal: Proposal) {
        self.pending.note(asker, false);
        self.proposals.queued_bytes += proposal.size() as u64;
        self.proposals.queue.push_front(Queued { asker, proposal });
    }

    /// Puts a proposal aside until the next tick.
    pub(crate) fn defer(&mut self, asker: AskerId, proposal: Proposal) {
        self.pending.note(asker, false);
        self.proposals.deferred.push(Queued { asker, proposal });
    }

    /// Remembers who waits for the entry Raft has just appended.
    pub(crate) fn note_proposed(&mut self, askers: &[AskerId]) {
        if askers.is_empty() {
            return;
        }
        for asker in askers {
            self.pending.note(*asker, true);
        }
        let index = self.raft.last();
        let proposed = Proposed {
            term: self.term(),
            askers: askers.to_vec(),
        };
        if let Some(former) = self.proposals.proposed.insert(index, proposed) {
            // An entry of a former term at this place was overwritten by a term this replica leads again.
            self.refuse_all(&former.askers, &ProposalError::Superseded);
        }
    }

    /// Who waits for a committed entry. If another entry was committed in its place, they are told.
    pub(crate) fn take_proposed(&mut self, index: LogIndex, term: Term) -> Vec<AskerId> {
        match self.proposals.proposed.remove(&index) {
            Some(proposed) if proposed.term == term || planted::has(Defect::SupersededIsDone) => {
                proposed.askers
            }
            Some(proposed) => {
                self.refuse_all(&proposed.askers, &ProposalError::Superseded);
                Vec::new()
            }
            None => Vec::new(),
        }
    }

    /// A snapshot hides what became of entries up to here.
    pub(crate) fn abandon_proposed_through(&mut self, index: LogIndex) {
        let later = self.proposals.proposed.split_off(&LogIndex(index.0 + 1));
        let hidden = std::mem::replace(&mut self.proposals.proposed, later);
        for proposed in hidden.into_values() {
            self.refuse_all(&proposed.askers, &ProposalError::Unknown);
        }
    }

    /// Looks again at what was put aside, and answers those whose deadline has passed.
    pub(crate) fn expire(&mut self) {
        for Queued { asker, proposal } in std::mem::take(&mut self.proposals.deferred) {
            self.requeue(asker, proposal);
        }
        self.give_up_lost_forwards();
        let request_ticks = u64::from(self.config.limits.request_ticks);
        let patience = self.is_leaderless().then_some(request_ticks);
        let late = self.pending.late(self.ticks, patience);
        if late.is_empty() {
            return;
        }
        let not_done = match self.leader_node() {
            Some(_) => ProposalError::Busy,
            None => ProposalError::NoLeader,
        };
        let pending = &self.pending;
        let (suspects, limits) = (&mut self.proposals.suspects, &self.config.limits);
        suspects.blame_late(|asker| pending.waits(asker), self.ticks, limits);
        self.give_up(late, &not_done);
    }

    /// Whether nobody has led for longer than an election takes: then nothing that takes long goes on.
    fn is_leaderless(&self) -> bool {
        self.ticks >= self.led_at + 2 * u64::from(self.config.election_ticks)
    }

    /// Drops proposals whose clients are gone, before any gets into a log.
    pub(crate) fn drop_forgotten(&mut self) {
        if self.pending.drop_forgotten() {
            self.drop_what_nobody_waits_for();
        }
    }

    /// This replica ends; nobody waits for it any more.
    pub(crate) fn answer_everybody(&mut self, error: &ProposalError) {
        let everybody = self.pending.extract(|_| true);
        self.give_up(everybody, error);
    }

    /// Whoever asked a query here has to ask somebody else.
    pub(crate) fn refuse_reads(&mut self, error: &ProposalError) {
        let readers = self.pending.take_readers();
        self.give_up(readers, error);
    }

    /// Answers with an error. What may be applied all the same has an unknown outcome.
    fn give_up(&mut self, askers: Vec<Asker>, not_done: &ProposalError) {
        for asker in askers {
            let error = match asker.may_apply {
                true => ProposalError::Unknown,
                false => not_done.clone(),
            };
            self.out.answer(asker.who, Err(error));
        }
        self.drop_what_nobody_waits_for();
    }

    /// What is not in a log yet must not get there when its asker was told so.
    fn drop_what_nobody_waits_for(&mut self) {
        let pending = &self.pending;
        let waits = |asker| pending.waits(asker);
        self.proposals.retain(waits);
        self.reads.retain(waits);
    }

    pub(crate) fn refuse_all(&mut self, askers: &[AskerId], error: &ProposalError) {
        for asker in askers {
            self.reply(*asker, Err(error.clone()));
        }
    }

    /// Answers whoever waits still.
    pub(crate) fn reply(&mut self, asker: AskerId, result: Result<Response, ProposalError>) {
        if let Some(asker) = self.pending.take(asker) {
            self.out.answer(asker.who, result);
        }
    }

    /// Sends the answers to forwarded proposals, one message for each replica.
    pub(crate) fn flush_answers(&mut self) {
        for (replica, (node, answers)) in self.out.take_answers() {
            self.send(replica, node, Body::Answer(answers));
        }
    }
}

fn sum_of_sizes(queue: &VecDeque<Queued>) -> u64 {
    let sizes = queue.iter().map(|queued| queued.proposal.size() as u64);
    sizes.sum()
}
