//! Proposals from their arrival to the log: queueing, packing many into one entry, forwarding to the leader, deadlines.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use prost::Message;
use sha2::{Digest, Sha256};

use crate::deployment::{DeploymentRecord, PROFILE_BYTES_MAX};
use crate::group::Group;
use crate::id::{LogIndex, ReplicaId, Term};
use crate::input::Waiter;
use crate::message::Body;
use crate::payload::{Barrier, Commands, Elected, Item, Kind, Pause, Payload};
use crate::pending::{Asker, AskerId, Who};
use crate::planted::{self, Defect};
use crate::proposal::{Proposal, ProposalError, Response};
use crate::raft_node::NotProposed;
use crate::spacing::Spacing;
use crate::state::MEMBER_DATA_BYTES_MAX;
use crate::suspects::Suspects;

/// Records on their way above which a leader packs no further entry. One is being synced while the next is filled;
/// more would make entries smaller, not sooner durable.
const RECORDS_ON_THE_WAY: usize = 2;

/// Bytes of a change: of the data of a member.
const CHANGE_BYTES_MAX: u64 = MEMBER_DATA_BYTES_MAX as u64;

/// A membership change may include a snapshot transfer; it is given this many times the deadline of a command.
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
    /// The tick this replica last became leader at.
    pub(crate) leader_since: u64,
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
        let asker = self.pending.admit(Who::Local(waiter), deadline);
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
        let aborts_now = is_abort && self.can_propose() && !self.proposals.elected;
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

    pub(crate) fn enqueue_last(&mut self, asker: AskerId, proposal: Proposal) {
        self.proposals.queued_bytes += proposal.size() as u64;
        self.proposals.queue.push_back(Queued { asker, proposal });
    }

    /// Moves the queue into the log, or to the leader.
    pub(crate) fn pack(&mut self) {
        if self.leads() {
            self.pack_entries();
        } else {
            self.forget_suspects();
            self.forward_queue();
        }
    }

    fn pack_entries(&mut self) {
        if !self.can_propose() {
            return;
        }
        if self.proposals.elected {
            let init = if self.state.initialized {
                Bytes::new()
            } else {
                self.config.init.clone()
            };
            let kind = Kind::Elected(Elected {
                node: self.config.node.0,
                init,
            });
            if self.propose_entry(kind, &[]).is_err() {
                return;
            }
            self.proposals.elected = false;
        }
        if self.has_room_for_commands() && !self.pack_suspects() {
            return;
        }
        while let Some(front) = self.proposals.queue.front() {
            let has_room = match front.proposal {
                Proposal::Command(_) | Proposal::OpenSession => self.has_room_for_commands(),
                Proposal::AbortActivation => self.has_room_for_entry(),
                _ => !self.awaits_decision() && self.has_room_for_entry(),
            };
            if !has_room || !self.pack_one() {
                break;
            }
        }
    }

    /// Nothing behind an activation is applied before it is decided. What waits in the queue meanwhile can be refused for
    /// certain when it is late; what is in the log cannot.
    fn has_room_for_commands(&self) -> bool {
        !self.awaits_decision()
            && !self.allowance.owes_bytes(self.rates())
            && !self.catch_up.throttle.holds_back()
            && self.has_room_for_entry()
    }

    fn has_room_for_entry(&self) -> bool {
        self.storage.on_the_way() < RECORDS_ON_THE_WAY
            && self.unapplied_bytes < self.config.limits.unapplied_bytes
            && self.can_propose()
    }

    /// Packs one entry, or takes one proposal that is no command. `false` if Raft takes none now.
    fn pack_one(&mut self) -> bool {
        let limits = self.config.limits;
        let mut items = Vec::new();
        let mut askers = Vec::new();
        let mut bytes = 0;
        while let Some(front) = self.proposals.queue.front() {
            let size = front.proposal.size() as u64;
            let fits = items.is_empty()
                || (bytes + size <= limits.entry_bytes && items.len() < limits.entry_commands);
            if !fits || !matches!(front.proposal, Proposal::Command(_) | Proposal::OpenSession) {
                break;
            }
            bytes += size;
            let Some(Queued { asker, proposal }) = self.dequeue() else {
                break;
            };
            items.push(match proposal {
                Proposal::Command(command) => Item::from(command),
                _ => Item {
                    open: true,
                    ..Item::default()
                },
            });
            askers.push(asker);
        }
        if !items.is_empty() {
            return match self.propose_entry(Kind::Commands(Commands { items }), &askers) {
                Ok(()) => true,
                Err(NotProposed) => {
                    // Raft holds as much uncommitted as it may.
                    self.refuse_all(&askers, &ProposalError::Busy);
                    false
                }
            };
        }
        let Some(Queued { asker, proposal }) = self.dequeue() else {
            return false;
        };
        match proposal {
            Proposal::Change(change) => self.propose_change(asker, change),
            Proposal::Activate(deployment) => {
                let kind = Kind::Activate(DeploymentRecord::from(&deployment));
                self.propose_order(kind, asker);
            }
            Proposal::AbortActivation => self.propose_abort(asker),
            Proposal::Resume => self.propose_order(Kind::Pause(Pause { on: false }), asker),
            Proposal::Trust { node } => self.propose_trust(asker, node),
            _ => self.propose_barrier(Some(asker)),
        }
        true
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

    pub(crate) fn propose_entry(
        &mut self,
        kind: Kind,
        askers: &[AskerId],
    ) -> Result<(), NotProposed> {
        let payload = Payload {
            now: self.now,
            entropy: self.entropy(),
            kind: Some(kind),
        };
        let data = payload.encode_to_vec();
        self.raft.propose(data)?;
        if let Some(Kind::Commands(Commands { items })) = &payload.kind {
            let rates = self.rates();
            for item in items {
                self.allowance.take_bytes(rates, item.data.len());
                self.catch_up.throttle.take(item.data.len() as u64);
            }
        }
        self.note_proposed(askers);
        Ok(())
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

    /// Where the entry stands that this leader proposed last.
    pub(crate) fn last_proposed(&self) -> Option<LogIndex> {
        self.raft.role().map(|_| self.raft.last())
    }

    /// 16 bytes that nobody can know before the entry is in the log.
    pub(crate) fn entropy(&mut self) -> Bytes {
        self.proposed += 1;
        let mut hash = Sha256::new();
        for word in [
            self.config.seed,
            self.config.group.0,
            self.replica.0,
            self.term().0,
            self.proposed,
            self.now,
        ] {
            hash.update(word.to_le_bytes());
        }
        Bytes::copy_from_slice(&hash.finalize()[..16])
    }

    fn propose_order(&mut self, kind: Kind, asker: AskerId) {
        if self.propose_entry(kind, &[asker]).is_err() {
            self.reply(asker, Err(ProposalError::Busy));
        }
    }

    /// A group whose machine fails on every command costs a rebuild for each: its leader stops it.
    pub(crate) fn propose_pause_if_due(&mut self) -> bool {
        let limit = self.config.limits.pause_faults;
        if limit == 0
            || self.faults_in_a_row < limit
            || self.state.paused
            || self.awaits_decision()
            || !self.can_propose()
            || self.proposals.elected
        {
            return false;
        }
        self.faults_in_a_row = 0;
        self.propose_entry(Kind::Pause(Pause { on: true }), &[])
            .is_ok()
    }

    pub(crate) fn propose_barrier(&mut self, asker: Option<AskerId>) {
        match self.propose_entry(Kind::Barrier(Barrier {}), asker.as_slice()) {
            Ok(()) => {
                self.since_barrier.proposed = true;
                self.since_barrier.wanted = false;
            }
            Err(NotProposed) => self.refuse_all(asker.as_slice(), &ProposalError::Busy),
        }
    }

    /// `true` if there was something to propose: its entry is in the next `Ready`.
    pub(crate) fn propose_barrier_if_due(&mut self) -> bool {
        let wanted = self.raft.log().take_wanted();
        self.since_barrier.wanted |= wanted;
        if !self.leads()
            || self.since_barrier.proposed
            || self.awaits_decision()
            || !self.serves()
            || !self.can_propose()
            || self.proposals.elected
        {
            return false;
        }
        let limits = &self.config.limits;
        let since = &self.since_barrier;
        let due = (since.wanted && self.may_take_another_snapshot())
            || self.log_is_long()
            || since.fuel >= limits.barrier_fuel
            || since.faults >= limits.barrier_faults;
        if due {
            self.propose_barrier(None);
        }
        due && self.since_barrier.proposed
    }

    /// Whether so much was logged since the last barrier that another one is worth what it costs.
    fn log_is_long(&self) -> bool {
        let size = self.snapshot_name().map_or(0, |name| name.size);
        let spacing = Spacing::of(&self.config.limits, self.config.snapshot_entries, size);
        spacing.is_reached(&self.since_barrier, self.ticks)
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
        let late = self.pending.late(self.ticks);
        if late.is_empty() {
            return;
        }
        let not_done = match self.leader_node() {
            Some(_) => ProposalError::Busy,
            None => ProposalError::NoLeader,
        };
        self.blame_late_suspects();
        self.give_up(late, &not_done);
    }

    /// The client of a waiter is gone.
    pub(crate) fn forget(&mut self, waiter: Waiter) {
        if self.pending.forget(waiter) {
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
