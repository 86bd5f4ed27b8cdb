//! Sources of commands on which the machine failed lately, and what they may cost the others.
//!
//! A command that fails costs the machine a rebuild, which is thousands of times what it takes to apply a good one, and costs
//! whoever sent it nothing. So a leader sets the commands of such a source aside: they go into entries of their own, one of
//! which is on its way at a time, and after one that failed again they wait for three times as long as it took. Whatever they
//! do, at least three quarters of the time is left to the others, while there are any. Nothing of this is replicated: it decides only what is
//! proposed when.

use std::collections::{BTreeMap, VecDeque};

use crate::fullness::Fullness;
use crate::group::Group;
use crate::id::{LogIndex, ReplicaId, SessionId};
use crate::outcome::{GuestFault, Outcome};
use crate::payload::{Commands, Item, Kind};
use crate::pending::{AskerId, Who};
use crate::proposal::{Command, Proposal, ProposalError};
use crate::proposals::Queued;
use crate::raft_node::NotProposed;

/// After so many times the deadline of a command without a failure, a source is like any other. Within one deadline each of
/// its commands has failed, was refused for its lateness, or was good, so one that fails in a loop stays.
const LAPSE_DEADLINES: u64 = 2;

/// Times that suspects wait, of what their failing entry took: a quarter of all time is theirs at the most.
const WAIT_FACTOR: u64 = 3;

/// Ticks without a command of anybody else after which suspects need not wait: nobody is there to be protected. More than a
/// client takes from an answer to its next command.
const QUIET_TICKS: u64 = 10;

/// Sources that are remembered: as many as a group keeps sessions. Each has cost a rebuild.
const SUSPECTS_MAX: usize = 4096;

/// The part of the limits of the queue that suspects may fill, beside the queue of all others.
const QUEUE_SHARE: u64 = 4;

/// Where a command comes from, as far as a leader can tell.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Source {
    Session(SessionId),
    /// All clients without a session of one replica.
    Anonymous(ReplicaId),
}

impl Source {
    /// Where a command comes from, if the replica to which it came can tell.
    pub(crate) fn of(session: SessionId, who: Option<Who>, here: ReplicaId) -> Option<Self> {
        if session.0 != 0 {
            return Some(Self::Session(session));
        }
        Some(Self::Anonymous(match who? {
            Who::Local(_) | Who::Reader(_) => here,
            Who::Remote { replica, .. } => replica,
        }))
    }
}

#[derive(Debug)]
struct Waiting {
    asker: AskerId,
    source: Source,
    command: Command,
}

/// What a leader holds against its clients.
#[derive(Debug)]
pub(crate) struct Suspects {
    /// With the tick at which it is forgotten.
    sources: BTreeMap<Source, u64>,
    queue: VecDeque<Waiting>,
    queued_bytes: u64,
    /// Their entry that the machine has not answered for.
    on_its_way: Option<LogIndex>,
    /// They wait until this tick.
    wait_until: u64,
    /// The tick at which somebody else had a command.
    others_at: u64,
    /// Whether the machine had room lately for what they send.
    fullness: Fullness,
    /// Commands that go into their next entry: halved when one fails, since each that fails costs a rebuild, and doubled when
    /// none does.
    commands: usize,
}

impl Default for Suspects {
    fn default() -> Self {
        Self {
            sources: BTreeMap::new(),
            queue: VecDeque::new(),
            queued_bytes: 0,
            on_its_way: None,
            wait_until: 0,
            others_at: 0,
            fullness: Fullness::default(),
            commands: 1,
        }
    }
}

impl Suspects {
    pub(crate) fn len(&self) -> usize {
        self.queue.len()
    }

    fn push(&mut self, waiting: Waiting) {
        self.queued_bytes += waiting.command.size() as u64;
        self.queue.push_back(waiting);
    }

    fn pop(&mut self) -> Option<Waiting> {
        let waiting = self.queue.pop_front()?;
        self.queued_bytes -= waiting.command.size() as u64;
        Some(waiting)
    }

    /// All that waits.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = Queued> + use<> {
        self.queued_bytes = 0;
        let waiting = std::mem::take(&mut self.queue);
        waiting.into_iter().map(|waiting| Queued {
            asker: waiting.asker,
            proposal: Proposal::Command(waiting.command),
        })
    }

    /// Keeps what somebody waits for.
    pub(crate) fn retain(&mut self, waits: impl Fn(AskerId) -> bool) {
        self.queue.retain(|waiting| waits(waiting.asker));
        let sizes = self
            .queue
            .iter()
            .map(|waiting| waiting.command.size() as u64);
        self.queued_bytes = sizes.sum();
    }

    /// Holds something against a source until some tick. `true` if there was nothing before.
    fn note(&mut self, source: Source, ticks: u64, until: u64) -> bool {
        if self.sources.len() >= SUSPECTS_MAX {
            self.sources.retain(|_, until| *until > ticks);
        }
        if self.sources.len() >= SUSPECTS_MAX
            && let Some(oldest) = self.sources.iter().min_by_key(|(_, until)| **until)
        {
            let oldest = *oldest.0;
            self.sources.remove(&oldest);
        }
        let former = self.sources.insert(source, until);
        former.is_none_or(|until| until <= ticks)
    }
}

impl Group {
    /// Queues a proposal that is taken: with those of suspects, or with all others.
    pub(crate) fn enqueue_by_source(&mut self, asker: AskerId, proposal: Proposal) {
        match proposal {
            Proposal::Command(command)
                if self.leads()
                    && let Some(source) = self.suspected(asker, &command) =>
            {
                let lapse = u64::from(self.config.limits.request_ticks);
                let (bytes, ticks) = (command.data.len() as u64, self.ticks);
                if self
                    .proposals
                    .suspects
                    .fullness
                    .refuses(bytes, ticks, lapse)
                {
                    self.reply(asker, Err(ProposalError::OutOfMemory));
                } else {
                    self.set_aside(Waiting {
                        asker,
                        source,
                        command,
                    });
                }
            }
            proposal => {
                self.proposals.suspects.others_at = self.ticks;
                self.enqueue_last(asker, proposal);
            }
        }
    }

    /// Where a command comes from, if that is a suspect.
    fn suspected(&self, asker: AskerId, command: &Command) -> Option<Source> {
        let suspects = &self.proposals.suspects.sources;
        if suspects.is_empty() {
            return None;
        }
        let is_tried = self.proposals.suspects.on_its_way.is_some();
        let source = Source::of(
            command.request.session,
            self.pending.who(asker),
            self.replica,
        )?;
        let until = suspects.get(&source)?;
        (is_tried || *until > self.ticks).then_some(source)
    }

    fn set_aside(&mut self, waiting: Waiting) {
        let bytes_max = self.queued_bytes_max() / QUEUE_SHARE;
        let commands_max = self.config.limits.queued_proposals as u64 / QUEUE_SHARE;
        let suspects = &mut self.proposals.suspects;
        let bytes = suspects.queued_bytes + waiting.command.size() as u64;
        if suspects.queue.len() as u64 >= commands_max || bytes > bytes_max {
            self.reply(waiting.asker, Err(ProposalError::Busy));
        } else {
            suspects.push(waiting);
        }
    }

    /// The machine has answered for commands; `from` says where each came from. Those that failed make suspects.
    pub(crate) fn judge_sources(
        &mut self,
        index: LogIndex,
        since: u64,
        from: impl Iterator<Item = (Option<Source>, u64)> + Clone,
        outcomes: &[Outcome],
    ) {
        if !self.leads() {
            return;
        }
        let failed = |outcome: &Outcome| matches!(outcome, Outcome::Fault(_));
        let (ticks, entry_commands) = (self.ticks, self.config.limits.entry_commands);
        let fails = outcomes.iter().any(failed);
        let suspects = &mut self.proposals.suspects;
        for ((_, bytes), outcome) in from.clone().zip(outcomes) {
            match outcome {
                Outcome::Fault(GuestFault::OutOfMemory) => {
                    suspects
                        .fullness
                        .note_failure(bytes, ticks, ticks - since + 1);
                }
                Outcome::Fault(_) => {}
                _ => suspects.fullness.note_success(bytes),
            }
        }
        if fails {
            // The tick it began in and the one it ended in count as whole ones, so it took no longer than that.
            let took = ticks - since + 1;
            suspects.wait_until = suspects.wait_until.max(ticks + 1 + WAIT_FACTOR * took);
        }
        let is_theirs = suspects.on_its_way.take_if(|theirs| *theirs <= index);
        if is_theirs.is_none() || !self.applying.is_empty() {
            // Somebody else was answered, or waits behind this entry.
            suspects.others_at = ticks;
        }
        if is_theirs.is_some() {
            suspects.commands = if fails {
                (suspects.commands / 2).max(1)
            } else {
                (suspects.commands * 2).min(entry_commands)
            };
        }
        if !fails {
            return;
        }
        let mut is_new = false;
        for ((source, _), outcome) in from.zip(outcomes) {
            if failed(outcome)
                && let Some(source) = source
            {
                is_new |= self.hold_against(source);
            }
        }
        if is_new {
            self.set_queued_aside();
        }
        if outcomes.contains(&Outcome::Fault(GuestFault::OutOfMemory)) {
            self.refuse_hopeless();
        }
    }

    /// What waits and would fail for want of memory as another just did is told so at once.
    fn refuse_hopeless(&mut self) {
        for waiting in std::mem::take(&mut self.proposals.suspects.queue) {
            let suspects = &mut self.proposals.suspects;
            if !suspects
                .fullness
                .is_hopeless(waiting.command.data.len() as u64)
            {
                suspects.queue.push_back(waiting);
                continue;
            }
            suspects.queued_bytes -= waiting.command.size() as u64;
            self.reply(waiting.asker, Err(ProposalError::OutOfMemory));
        }
    }

    /// `true` if the source was none of the suspects.
    fn hold_against(&mut self, source: Source) -> bool {
        let lapse = LAPSE_DEADLINES * u64::from(self.config.limits.request_ticks);
        let (ticks, suspects) = (self.ticks, &mut self.proposals.suspects);
        let until = suspects.wait_until.max(ticks) + lapse;
        suspects.note(source, ticks, until)
    }

    /// Whose command has waited too long has not shown that it is any better.
    pub(crate) fn blame_late_suspects(&mut self) {
        let queue = self.proposals.suspects.queue.iter();
        let late = queue.filter(|waiting| !self.pending.waits(waiting.asker));
        let sources: Vec<_> = late.map(|waiting| waiting.source).collect();
        for source in sources {
            self.hold_against(source);
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

    /// The machine was exchanged, or may have more memory now.
    pub(crate) fn forget_fullness(&mut self) {
        self.proposals.suspects.fullness = Fullness::default();
    }

    /// A replica that begins to lead, or does no longer, holds nothing against anybody.
    pub(crate) fn forget_suspects(&mut self) {
        for Queued { asker, proposal } in std::mem::take(&mut self.proposals.suspects).drain() {
            self.enqueue_last(asker, proposal);
        }
    }

    /// Packs an entry of suspects, if it is their turn. `false` if Raft takes none now.
    pub(crate) fn pack_suspects(&mut self) -> bool {
        let limits = self.config.limits;
        let (ticks, applied) = (self.ticks, self.applied);
        let suspects = &mut self.proposals.suspects;
        let is_tried = suspects.on_its_way.is_some_and(|index| index > applied);
        let waits = ticks < suspects.wait_until.min(suspects.others_at + QUIET_TICKS);
        if suspects.queue.is_empty() || is_tried || waits {
            return true;
        }
        let (mut items, mut askers, mut bytes) = (Vec::new(), Vec::new(), 0);
        while let Some(front) = suspects.queue.front() {
            bytes += front.command.size() as u64;
            let is_full = items.len() >= suspects.commands || bytes > limits.entry_bytes;
            if is_full && !items.is_empty() {
                break;
            }
            let Some(Waiting { asker, command, .. }) = suspects.pop() else {
                break;
            };
            items.push(Item::from(command));
            askers.push(asker);
        }
        match self.propose_entry(Kind::Commands(Commands { items }), &askers) {
            Ok(()) => {
                self.proposals.suspects.on_its_way = self.last_proposed();
                true
            }
            Err(NotProposed) => {
                self.refuse_all(&askers, &ProposalError::Busy);
                false
            }
        }
    }
}
