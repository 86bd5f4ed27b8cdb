//! Sources of commands on which the machine failed lately, and what they may cost the others.
//!
//! A command that fails costs the machine a rebuild, which is thousands of times what it takes to apply a good one, and costs
//! whoever sent it nothing. So a leader sets the commands of such a source aside: they go into entries of their own, one of
//! which is on its way at a time, and after one that failed again they wait for three times as long as it took. Whatever they
//! do, at least three quarters of the time is left to the others, while there are any. Nothing of this is replicated: it decides only what is
//! proposed when.

use std::collections::{BTreeMap, VecDeque};

use crate::config::Limits;
use crate::fullness::Fullness;
use crate::id::{LogIndex, ReplicaId, SessionId};
use crate::outcome::{GuestFault, Outcome};
use crate::payload::Item;
use crate::pending::{AskerId, Who};
use crate::proposal::{Command, Proposal, ProposalError};
use crate::proposals::Queued;

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

/// A command of a suspect.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) asker: AskerId,
    pub(crate) source: Source,
    pub(crate) command: Command,
}

/// What the machine did with the commands of an entry.
#[derive(Debug)]
pub(crate) struct Answered<'a, I> {
    pub(crate) index: LogIndex,
    /// The tick at which it was handed to the machine.
    pub(crate) since: u64,
    /// Where each command came from, and its bytes.
    pub(crate) from: I,
    pub(crate) outcomes: &'a [Outcome],
    /// Whether other entries wait behind it.
    pub(crate) others_wait: bool,
}

/// What is to be done about it.
#[derive(Debug, Default)]
pub(crate) struct Judged {
    /// There is a new suspect, who may have commands in the queue of all.
    pub(crate) is_new: bool,
    /// These would find no memory, either.
    pub(crate) hopeless: Vec<AskerId>,
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

/// Who is suspected, and of what.
impl Suspects {
    /// Whether a command of this source is set aside. `source` is only looked for where there is a suspect.
    pub(crate) fn suspect(
        &self,
        source: impl FnOnce() -> Option<Source>,
        ticks: u64,
    ) -> Option<Source> {
        if self.sources.is_empty() {
            return None;
        }
        let source = source()?;
        let until = self.sources.get(&source)?;
        (self.on_its_way.is_some() || *until > ticks).then_some(source)
    }

    /// The machine has answered for commands. Those that failed make suspects.
    pub(crate) fn judge<I>(&mut self, answered: &Answered<I>, ticks: u64, limits: &Limits) -> Judged
    where
        I: Iterator<Item = (Option<Source>, u64)> + Clone,
    {
        let &Answered {
            index,
            since,
            ref from,
            outcomes,
            others_wait,
        } = answered;
        let failed = |outcome: &Outcome| matches!(outcome, Outcome::Fault(_));
        let fails = outcomes.iter().any(failed);
        // The tick it began in and the one it ended in count as whole ones, so it took no longer than that.
        let took = ticks - since + 1;
        for ((_, bytes), outcome) in from.clone().zip(outcomes) {
            match outcome {
                Outcome::Fault(GuestFault::OutOfMemory) => {
                    self.fullness.note_failure(bytes, ticks, took);
                }
                Outcome::Fault(_) => {}
                _ => self.fullness.note_success(bytes),
            }
        }
        if fails {
            self.wait_until = self.wait_until.max(ticks + 1 + WAIT_FACTOR * took);
        }
        let is_theirs = self.on_its_way.take_if(|theirs| *theirs <= index).is_some();
        if !is_theirs || others_wait {
            // Somebody else was answered, or waits behind this entry.
            self.others_at = ticks;
        }
        if is_theirs {
            self.commands = match fails {
                true => (self.commands / 2).max(1),
                false => (self.commands * 2).min(limits.entry_commands),
            };
        }
        let mut judged = Judged::default();
        for ((source, _), outcome) in from.clone().zip(outcomes).filter(|_| fails) {
            if failed(outcome)
                && let Some(source) = source
            {
                judged.is_new |= self.hold_against(source, ticks, limits);
            }
        }
        if outcomes.contains(&Outcome::Fault(GuestFault::OutOfMemory)) {
            let hopeless =
                |waiting: &&Waiting| self.fullness.is_hopeless(waiting.command.data.len() as u64);
            let hopeless = self.queue.iter().filter(hopeless);
            judged.hopeless = hopeless.map(|waiting| waiting.asker).collect();
        }
        judged
    }

    /// Whose command nobody waits for any more, because it is late, has not shown that it is any better.
    pub(crate) fn blame_late(
        &mut self,
        waits: impl Fn(AskerId) -> bool,
        ticks: u64,
        limits: &Limits,
    ) {
        let late = self.queue.iter().filter(|waiting| !waits(waiting.asker));
        let sources: Vec<_> = late.map(|waiting| waiting.source).collect();
        for source in sources {
            self.hold_against(source, ticks, limits);
        }
    }

    /// `true` if the source was none of the suspects.
    fn hold_against(&mut self, source: Source, ticks: u64, limits: &Limits) -> bool {
        let lapse = LAPSE_DEADLINES * u64::from(limits.request_ticks);
        let until = self.wait_until.max(ticks) + lapse;
        self.note(source, ticks, until)
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

    /// Somebody who is no suspect has something to propose.
    pub(crate) fn note_others(&mut self, ticks: u64) {
        self.others_at = ticks;
    }

    /// The machine was exchanged, or may have more memory now.
    pub(crate) fn forget_fullness(&mut self) {
        self.fullness = Fullness::default();
    }
}

/// Their commands.
impl Suspects {
    pub(crate) fn len(&self) -> usize {
        self.queue.len()
    }

    /// Lets a command wait for its turn, or says why not. `bytes_max` bounds the queue of all others.
    pub(crate) fn set_aside(
        &mut self,
        waiting: Waiting,
        bytes_max: u64,
        ticks: u64,
        limits: &Limits,
    ) -> Result<(), ProposalError> {
        let lapse = u64::from(limits.request_ticks);
        let length = waiting.command.data.len() as u64;
        if self.fullness.refuses(length, ticks, lapse) {
            return Err(ProposalError::OutOfMemory);
        }
        let bytes = self.queued_bytes + waiting.command.size() as u64;
        let commands_max = limits.queued_proposals as u64 / QUEUE_SHARE;
        if self.queue.len() as u64 >= commands_max || bytes > bytes_max / QUEUE_SHARE {
            return Err(ProposalError::Busy);
        }
        self.queued_bytes = bytes;
        self.queue.push_back(waiting);
        Ok(())
    }

    /// The commands of their next entry, if it is their turn.
    pub(crate) fn next_entry(
        &mut self,
        applied: LogIndex,
        ticks: u64,
        limits: &Limits,
    ) -> (Vec<Item>, Vec<AskerId>) {
        let (mut items, mut askers, mut bytes) = (Vec::new(), Vec::new(), 0);
        let is_tried = self.on_its_way.is_some_and(|index| index > applied);
        let waits = ticks < self.wait_until.min(self.others_at + QUIET_TICKS);
        if is_tried || waits {
            return (items, askers);
        }
        while let Some(Waiting { asker, command, .. }) = self.queue.pop_front_if(|front| {
            let bytes = bytes + front.command.size() as u64;
            items.is_empty() || (items.len() < self.commands && bytes <= limits.entry_bytes)
        }) {
            let size = command.size() as u64;
            bytes += size;
            self.queued_bytes -= size;
            items.push(Item::from(command));
            askers.push(asker);
        }
        (items, askers)
    }

    /// Their entry is in the log, at this place.
    pub(crate) fn note_entry(&mut self, index: LogIndex) {
        self.on_its_way = Some(index);
    }

    /// Keeps what somebody waits for.
    pub(crate) fn retain(&mut self, waits: impl Fn(AskerId) -> bool) {
        self.queue.retain(|waiting| waits(waiting.asker));
        let sizes = self.queue.iter();
        self.queued_bytes = sizes.map(|waiting| waiting.command.size() as u64).sum();
    }

    /// All that waits.
    pub(crate) fn into_queued(self) -> impl Iterator<Item = Queued> {
        self.queue.into_iter().map(|waiting| Queued {
            asker: waiting.asker,
            proposal: Proposal::Command(waiting.command),
        })
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::id::RequestId;
    use crate::pending::Pending;

    const SOURCE: Source = Source::Anonymous(ReplicaId(1));

    type One = std::iter::Once<(Option<Source>, u64)>;

    fn answered(index: u64, outcomes: &[Outcome]) -> Answered<'_, One> {
        Answered {
            index: LogIndex(index),
            since: 10,
            from: std::iter::once((Some(SOURCE), 8)),
            outcomes,
            others_wait: false,
        }
    }

    fn set_aside(suspects: &mut Suspects, pending: &mut Pending, tick: u64) -> AskerId {
        let asker = pending.admit(Who::Local(0), 0, 100);
        let source = suspects.suspect(|| Some(SOURCE), tick).expect("suspected");
        let command = Command {
            request: RequestId::ANONYMOUS,
            acknowledged: 0,
            data: Bytes::from_static(b"command"),
        };
        let waiting = Waiting {
            asker,
            source,
            command,
        };
        let set = suspects.set_aside(waiting, 1 << 20, tick, &Limits::default());
        set.expect("there is room");
        asker
    }

    #[test]
    fn whose_command_failed_waits_three_times_as_long_as_it_took_and_longer_batches_come_with_success()
     {
        let (mut suspects, mut pending) = (Suspects::default(), Pending::default());
        let limits = Limits::default();
        let failed = [Outcome::Fault(GuestFault::Unreachable)];
        assert_eq!(suspects.suspect(|| Some(SOURCE), 11), None);
        // It took two ticks, those at both ends counted: nothing of it goes into the log before tick 18.
        let judged = suspects.judge(&answered(1, &failed), 11, &limits);
        assert!(judged.is_new && judged.hopeless.is_empty());
        let waiting: Vec<_> = (0..3)
            .map(|_| set_aside(&mut suspects, &mut pending, 12))
            .collect();
        suspects.note_others(17);
        assert!(suspects.next_entry(LogIndex(1), 17, &limits).1.is_empty());
        let (items, askers) = suspects.next_entry(LogIndex(1), 18, &limits);
        assert_eq!((items.len(), &askers[..]), (1, &waiting[..1]));
        // One entry is on its way at a time.
        suspects.note_entry(LogIndex(2));
        assert!(suspects.next_entry(LogIndex(1), 30, &limits).1.is_empty());
        let good = [Outcome::Reply(Bytes::new())];
        suspects.judge(&answered(2, &good), 30, &limits);
        let (_, askers) = suspects.next_entry(LogIndex(2), 30, &limits);
        assert_eq!(askers, waiting[1..]);
    }

    #[test]
    fn what_is_late_is_held_against_its_source() {
        let (mut suspects, mut pending) = (Suspects::default(), Pending::default());
        let limits = Limits::default();
        let failed = [Outcome::Fault(GuestFault::OutOfMemory)];
        suspects.judge(&answered(1, &failed), 10, &limits);
        let lapse = LAPSE_DEADLINES * u64::from(limits.request_ticks);
        let last = 10 + 1 + WAIT_FACTOR + lapse - 1;
        let late = set_aside(&mut suspects, &mut pending, last);
        assert_eq!(suspects.suspect(|| Some(SOURCE), last + 1), None);
        pending.take(late);
        suspects.blame_late(|asker| pending.waits(asker), last, &limits);
        assert_eq!(suspects.suspect(|| Some(SOURCE), last + 1), Some(SOURCE));
        suspects.retain(|asker| pending.waits(asker));
        assert_eq!((suspects.len(), suspects.queued_bytes), (0, 0));
    }
}
