//! Entries that are read back from the files of the log, for members that lack them.
//!
//! Raft asks for entries while it makes messages, and must not wait. What is not in memory is asked of the node by an
//! [`Effect::ReadLog`]; when it is there, Raft is told to send to whoever waits for it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use raft::eraftpb::Entry;

use crate::effect::Effect;
use crate::group::Group;
use crate::id::LogIndex;
use crate::input::LogRead;
use crate::log_view::weight;

/// Bytes read at once: some messages' worth, and little enough that it is there within milliseconds.
const READ_BYTES: u64 = 4 << 20;

/// Reads of a group on their way at once. Each serves one member; Raft asks again for others.
const READS_MAX: usize = 4;

/// Bytes read back that are kept, beside the newest read: members that are equally far read them once.
const KEPT_BYTES: u64 = 8 << 20;

/// Messages in flight to a member that is served from the files: it is not to be sent more than it takes in some moments,
/// for all of it would be read again if it dropped one.
const IN_FLIGHT: usize = 16;

/// What was read back, and what is to be.
#[derive(Debug, Default)]
pub(crate) struct ReadBack {
    /// Runs of entries, the newest last.
    runs: VecDeque<Vec<Entry>>,
    /// Where somebody lacks entries from.
    asked: BTreeSet<u64>,
    /// Where reads on their way begin, each with the tick it was begun at.
    reading: BTreeMap<u64, u64>,
    /// Entries up to here cannot be read any more.
    lost: u64,
}

impl ReadBack {
    pub(crate) fn lost(&self) -> u64 {
        self.lost
    }

    /// Entries up to `index` cannot be read any more.
    pub(crate) fn lose(&mut self, index: u64) {
        self.lost = self.lost.max(index);
    }

    /// Somebody lacks entries from `low` on.
    pub(crate) fn ask(&mut self, low: u64) {
        self.asked.insert(low);
    }

    /// What is to be read now.
    pub(crate) fn take_asked(&mut self, ticks: u64) -> Vec<u64> {
        let mut begun = Vec::new();
        for low in std::mem::take(&mut self.asked) {
            if self.reading.len() < READS_MAX && !self.reading.contains_key(&low) {
                self.reading.insert(low, ticks);
                begun.push(low);
            }
        }
        begun
    }

    /// A read has ended. `false` if nobody waits for it.
    fn ended(&mut self, from: u64) -> bool {
        self.reading.remove(&from).is_some()
    }

    /// Entries from `low` on and before `high`, as many as were read.
    pub(crate) fn kept(&self, low: u64, high: u64) -> Option<impl Iterator<Item = &Entry>> {
        let holds = |run: &&Vec<Entry>| {
            run.first().is_some_and(|first| first.index <= low)
                && run.last().is_some_and(|last| last.index >= low)
        };
        let run = self.runs.iter().rev().find(holds)?;
        let from = (low - run.first()?.index) as usize;
        let count = (run.len() - from).min((high - low) as usize);
        Some(run[from..from + count].iter())
    }

    pub(crate) fn keep(&mut self, run: Vec<Entry>) {
        self.runs.push_back(run);
        let bytes = |run: &Vec<Entry>| run.iter().map(weight).sum::<u64>();
        let mut sum: u64 = self.runs.iter().map(bytes).sum();
        while sum > KEPT_BYTES
            && self.runs.len() > 1
            && let Some(run) = self.runs.pop_front()
        {
            sum -= bytes(&run);
        }
    }

    /// Forgets what was read, and reads that nobody has answered since `tick`.
    fn tidy(&mut self, used: bool, tick: u64) {
        self.reading.retain(|_, begun| *begun >= tick);
        if !used {
            self.runs.clear();
        }
    }
}

impl Group {
    /// Lets entries leave memory, and has those read that members lack.
    pub(crate) fn read_back(&mut self) {
        let (processed, ticks) = (self.processed, self.ticks);
        let memory = self.config.limits.log_memory_bytes;
        let view = self.raft.log_mut();
        view.evict(processed, memory);
        let through = LogIndex(view.evicted());
        for from in view.read_back().take_asked(ticks) {
            self.out.push(Effect::ReadLog {
                from: LogIndex(from),
                through,
                bytes: READ_BYTES,
            });
        }
    }

    /// Entries were read back, or cannot be.
    pub(crate) fn log_read(&mut self, from: LogIndex, read: LogRead) {
        let view = self.raft.log_mut();
        if !view.read_back().ended(from.0) || from <= LogIndex(view.first().0 - 1) {
            return;
        }
        let gone = match read {
            LogRead::Entries(entries) => !view.take_read(from.0, entries),
            LogRead::Gone => true,
            // Raft asks again with the member's next heartbeat.
            LogRead::Failed => return,
        };
        if gone {
            // Whoever lacks them is sent a snapshot.
            let evicted = view.evicted();
            view.read_back().lose(evicted);
        }
        self.send_what_was_read();
    }

    /// Lets Raft send to the members that waited, as much as was read.
    fn send_what_was_read(&mut self) {
        if !self.leads() {
            return;
        }
        let evicted = self.raft.log().evicted();
        let others: Vec<_> = (self.raft.others())
            .filter(|(_, progress)| progress.next_idx <= evicted)
            .map(|(replica, _)| replica)
            .collect();
        for replica in others {
            self.raft.send_to(replica);
        }
    }

    /// Bounds what is in flight to members that are served from the files, and forgets what nobody waits for.
    pub(crate) fn tidy_read_back(&mut self) {
        let most = self.config.max_in_flight;
        let since = (self.ticks).saturating_sub(u64::from(self.config.limits.request_ticks));
        let evicted = self.raft.log().evicted();
        let mut used = false;
        if self.leads() {
            let members: Vec<_> = (self.raft.others())
                .map(|(replica, progress)| (replica, progress.next_idx <= evicted))
                .collect();
            for (replica, from_files) in members {
                used |= from_files;
                let in_flight = if from_files {
                    most.min(IN_FLIGHT)
                } else {
                    most
                };
                self.raft.bound_in_flight(replica, in_flight);
            }
        }
        self.raft.log_mut().read_back().tidy(used, since);
    }
}
