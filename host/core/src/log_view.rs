//! The log as Raft reads it: the newest entries are in memory, older ones in the files only.
//!
//! An entry leaves memory when it has been processed and more than [`Limits::log_memory_bytes`](crate::Limits) stand
//! behind it. Who still needs it makes Raft ask for it here; then it is read back from the files of the log, in the
//! background. The bytes of entries are shared with the messages and with the machine's journal.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, VecDeque};

use raft::eraftpb::{ConfState, Entry, HardState, Snapshot, SnapshotMetadata};
use raft::{GetEntriesContext, RaftState, Storage, StorageError};

use crate::id::{LogIndex, Term};
use crate::impasse::Impasses;
use crate::message::SnapshotName;
use crate::planted::{self, Defect};
use crate::read_back::ReadBack;

/// Fixed cost of an entry that the byte bounds count beside its data.
const ENTRY_OVERHEAD: u64 = 64;

/// Of entries that are not in memory, sums of bytes are known to within this.
const MARK_BYTES: u64 = 256 << 10;

/// The newest snapshot that is durable on this node.
#[derive(Clone, Debug)]
pub(crate) struct Snapshotted {
    pub(crate) name: SnapshotName,
    /// The configuration *at its index*, never a later one.
    pub(crate) conf_state: ConfState,
}

impl Snapshotted {
    /// As Raft knows it, without its bytes.
    pub(crate) fn to_raft(&self) -> Snapshot {
        let metadata = SnapshotMetadata {
            conf_state: Some(self.conf_state.clone()).into(),
            index: self.name.index.0,
            term: self.name.term.0,
            ..SnapshotMetadata::default()
        };
        Snapshot {
            metadata: Some(metadata).into(),
            ..Snapshot::default()
        }
    }
}

/// An entry in memory.
#[derive(Debug)]
struct Resident {
    entry: Entry,
    /// Bytes of the log through it.
    sum: u64,
}

/// What Raft reads.
#[derive(Debug)]
pub(crate) struct LogView {
    truncated: (LogIndex, Term),
    /// The newest entries, all that follow the last mark.
    entries: VecDeque<Resident>,
    /// Places in the log, each with the bytes of the log through it: one before the log or at its start, some among the
    /// entries that are not in memory, and the one right before those that are.
    marks: VecDeque<(u64, u64)>,
    /// The first index of each term in the log.
    terms: VecDeque<(u64, u64)>,
    snapshot: Option<Snapshotted>,
    start: RaftState,
    /// A follower needs a newer snapshot than there is.
    wanted: Cell<bool>,
    impasses: Impasses,
    /// Members that are offered no snapshot now.
    barred: BTreeSet<u64>,
    read_back: RefCell<ReadBack>,
}

impl LogView {
    pub(crate) fn new(
        hard_state: HardState,
        entries: Vec<Entry>,
        truncated: (LogIndex, Term),
        snapshot: Option<Snapshotted>,
    ) -> Self {
        let conf_state = snapshot
            .as_ref()
            .map(|snapshot| snapshot.conf_state.clone())
            .unwrap_or_default();
        let mut view = Self {
            truncated,
            entries: VecDeque::with_capacity(entries.len()),
            marks: VecDeque::from([(truncated.0.0, 0)]),
            terms: VecDeque::new(),
            snapshot,
            start: RaftState {
                hard_state,
                conf_state,
            },
            wanted: Cell::new(false),
            impasses: Impasses::default(),
            barred: BTreeSet::new(),
            read_back: RefCell::default(),
        };
        view.impasses.append(&entries);
        view.push(entries);
        view
    }

    /// A log that holds nothing, and never held anything.
    pub(crate) fn empty() -> Self {
        let start = (LogIndex(0), Term(0));
        Self::new(HardState::default(), Vec::new(), start, None)
    }

    pub(crate) fn last(&self) -> LogIndex {
        LogIndex(self.evicted() + self.entries.len() as u64)
    }

    pub(crate) fn first(&self) -> LogIndex {
        LogIndex(self.truncated.0.0 + 1)
    }

    /// The entries in memory, and what stands before them.
    pub(crate) fn resident(&self) -> ((LogIndex, Term), Vec<Entry>) {
        let before = LogIndex(self.evicted());
        let entries = self.entries.iter().map(|resident| resident.entry.clone());
        ((before, self.term_at(before.0)), entries.collect())
    }

    /// Term of an entry of the log, or of what stands before it.
    pub(crate) fn known_term(&self, index: LogIndex) -> Term {
        self.term_at(index.0)
    }

    /// The last entry that is not in memory.
    pub(crate) fn evicted(&self) -> u64 {
        self.marks.back().map_or(self.truncated.0.0, |mark| mark.0)
    }

    pub(crate) fn snapshot(&self) -> Option<&Snapshotted> {
        self.snapshot.as_ref()
    }

    pub(crate) fn impasses(&self) -> &Impasses {
        &self.impasses
    }

    /// Takes what these say of impasses for said, although they are not in the log.
    pub(crate) fn foresee(&mut self, later: &[Entry]) {
        self.impasses.foresee(later);
    }

    pub(crate) fn take_wanted(&self) -> bool {
        self.wanted.take()
    }

    pub(crate) fn read_back(&mut self) -> &mut ReadBack {
        self.read_back.get_mut()
    }

    /// Members that are offered no snapshot from now on.
    pub(crate) fn bar(&mut self, members: BTreeSet<u64>) {
        self.barred = members;
    }

    /// Bytes of the entries after `index`; of some more, if it is not in memory.
    pub(crate) fn bytes_after(&self, index: LogIndex) -> u64 {
        self.sum_through(self.last().0) - self.sum_through(index.0)
    }

    /// Bytes of the entries that are kept although the snapshot holds what they did.
    pub(crate) fn bytes_behind_snapshot(&self) -> u64 {
        self.bytes_behind_snapshot_after(self.truncated.0)
    }

    /// As many of these as stand after `index`.
    pub(crate) fn bytes_behind_snapshot_after(&self, index: LogIndex) -> u64 {
        let snapshot = self.snapshot.as_ref().map(|snapshot| snapshot.name.index.0);
        let sum = snapshot.map_or(0, |snapshot| self.sum_through(snapshot));
        sum.saturating_sub(self.sum_through(index.0))
    }

    /// Appends, replacing what stands from the first new index on.
    pub(crate) fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        self.impasses.append(entries);
        let keep = first.index.saturating_sub(self.evicted() + 1) as usize;
        let behind: Vec<_> = match planted::has(Defect::ConflictingSuffixKept) {
            true => (self.entries.iter().skip(keep + entries.len()))
                .map(|resident| resident.entry.clone())
                .collect(),
            false => Vec::new(),
        };
        self.entries.truncate(keep);
        let last = self.last().0;
        while self.terms.pop_back_if(|(first, _)| *first > last).is_some() {}
        self.push(entries.iter().cloned().chain(behind));
    }

    fn push(&mut self, entries: impl IntoIterator<Item = Entry>) {
        let mut sum = self.sum_through(self.last().0);
        for entry in entries {
            sum += weight(&entry);
            if self
                .terms
                .back()
                .is_none_or(|(_, term)| *term != entry.term)
            {
                self.terms.push_back((entry.index, entry.term));
            }
            self.entries.push_back(Resident { entry, sum });
        }
    }

    /// Lets entries up to `through` leave memory while more than `bytes` stand in it.
    pub(crate) fn evict(&mut self, through: LogIndex, bytes: u64) {
        let sum = self.sum_through(self.last().0);
        let least = sum.saturating_sub(bytes);
        while let Some(resident) = self
            .entries
            .pop_front_if(|resident| resident.entry.index <= through.0 && resident.sum <= least)
        {
            // The last mark moves along, unless it is far enough from the one before to stay.
            let place = self.marks.len().saturating_sub(2);
            let far = self.marks.len() < 2
                || self
                    .marks
                    .get(place)
                    .is_some_and(|before| resident.sum - before.1 > MARK_BYTES);
            if !far {
                self.marks.pop_back();
            }
            self.marks.push_back((resident.entry.index, resident.sum));
        }
    }

    /// Forgets entries up to `index` and answers what stands before the first one now. Never above the snapshot.
    pub(crate) fn truncate(&mut self, index: LogIndex) -> (LogIndex, Term) {
        let index = index.min(self.last());
        if index <= self.truncated.0 {
            return self.truncated;
        }
        self.truncated = (index, self.term_at(index.0));
        self.impasses.truncate(index);
        while let Some(resident) = self
            .entries
            .pop_front_if(|resident| resident.entry.index <= index.0)
        {
            self.marks.clear();
            self.marks.push_back((resident.entry.index, resident.sum));
        }
        while self.marks.get(1).is_some_and(|mark| mark.0 <= index.0) {
            self.marks.pop_front();
        }
        while self.terms.get(1).is_some_and(|next| next.0 <= index.0 + 1) {
            self.terms.pop_front();
        }
        if self.last() == index {
            self.terms.clear();
        }
        self.truncated
    }

    /// Replaces everything by a snapshot.
    pub(crate) fn reset(&mut self, snapshot: Snapshotted) {
        self.entries.clear();
        self.impasses = Impasses::default();
        self.terms.clear();
        self.truncated = (snapshot.name.index, snapshot.name.term);
        self.marks = VecDeque::from([(snapshot.name.index.0, 0)]);
        self.snapshot = Some(snapshot);
        self.read_back = RefCell::default();
    }

    /// The snapshot is wrong: it is offered to nobody.
    pub(crate) fn distrust_snapshot(&mut self) {
        self.snapshot = None;
    }

    pub(crate) fn set_snapshot(&mut self, snapshot: Snapshotted) {
        self.snapshot = Some(snapshot);
    }

    /// The last index that may go when everything up to `snapshot` could, but about `keep_entries` and at most
    /// `keep_bytes` are to stay for followers that are a little behind.
    pub(crate) fn compaction(
        &self,
        snapshot: LogIndex,
        keep_entries: u64,
        keep_bytes: u64,
    ) -> LogIndex {
        let least = self.sum_through(snapshot.0).saturating_sub(keep_bytes);
        let by_bytes = self.first_place_with(least).min(snapshot.0);
        LogIndex(snapshot.0.saturating_sub(keep_entries).max(by_bytes)).max(self.truncated.0)
    }

    /// Bytes of the log through an index; of entries that are not in memory, those through the mark before it.
    fn sum_through(&self, index: u64) -> u64 {
        let evicted = self.evicted();
        if index > evicted {
            let place = (index - evicted) as usize - 1;
            let resident = self.entries.get(place).or(self.entries.back());
            return resident.map_or_else(|| self.marked(evicted), |resident| resident.sum);
        }
        self.marked(index)
    }

    fn marked(&self, index: u64) -> u64 {
        let after = self.marks.partition_point(|mark| mark.0 <= index);
        let mark = self.marks.get(after.saturating_sub(1));
        mark.map_or(0, |mark| mark.1)
    }

    /// The first place at or behind which the log has so many bytes through it.
    fn first_place_with(&self, sum: u64) -> u64 {
        let marked = self.marks.partition_point(|mark| mark.1 < sum);
        if let Some(mark) = self.marks.get(marked) {
            return mark.0;
        }
        let resident = self.entries.partition_point(|resident| resident.sum < sum);
        self.evicted() + 1 + resident as u64
    }

    /// Term of an entry that the log holds.
    fn term_at(&self, index: u64) -> Term {
        let after = self.terms.partition_point(|(first, _)| *first <= index);
        let run = self.terms.get(after.wrapping_sub(1));
        run.map_or(self.truncated.1, |(_, term)| Term(*term))
    }

    /// Takes in what was read back from the files from `from` on. `false` if it is not what the log holds there.
    pub(crate) fn take_read(&mut self, from: u64, entries: Vec<Entry>) -> bool {
        let known = from > self.truncated.0.0 && from <= self.last().0;
        let fits = |(entry, index): (&Entry, u64)| {
            entry.index == index && index <= self.last().0 && entry.term == self.term_at(index).0
        };
        let right = known && !entries.is_empty() && entries.iter().zip(from..).all(fits);
        if right {
            self.read_back.get_mut().keep(entries);
        }
        right
    }
}

/// Bytes an entry is counted with.
pub(crate) fn weight(entry: &Entry) -> u64 {
    ENTRY_OVERHEAD + (entry.data.len() + entry.context.len()) as u64
}

impl Storage for LogView {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(self.start.clone())
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low <= self.truncated.0.0 {
            return Err(StorageError::Compacted.into());
        }
        if high > self.last().0 + 1 {
            return Err(StorageError::Unavailable.into());
        }
        // Whoever gets the log in pieces would come to a command before it knows that it was given up.
        if context.can_async() && low <= self.impasses.given_up_through().0 {
            return Err(StorageError::Compacted.into());
        }
        let limit = max_size.into().unwrap_or(u64::MAX);
        let evicted = self.evicted();
        if low <= evicted {
            let mut read_back = self.read_back.borrow_mut();
            if low <= read_back.lost() {
                return Err(StorageError::Compacted.into());
            }
            if let Some(entries) = read_back.kept(low, high) {
                return Ok(within(entries, limit));
            }
            // Only what is sent to others may wait; whatever else Raft reads was not processed yet, so it is in memory.
            if context.can_async() {
                read_back.ask(low);
            }
            return Err(StorageError::LogTemporarilyUnavailable.into());
        }
        let start = (low - evicted - 1) as usize;
        let range = self.entries.range(start..start + (high - low) as usize);
        Ok(within(range.map(|resident| &resident.entry), limit))
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index == self.truncated.0.0 {
            return Ok(self.truncated.1.0);
        }
        if index < self.truncated.0.0 {
            return Err(StorageError::Compacted.into());
        }
        if index > self.last().0 {
            return Err(StorageError::Unavailable.into());
        }
        Ok(self.term_at(index).0)
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.first().0)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last().0)
    }

    fn snapshot(&self, request_index: u64, to: u64) -> raft::Result<Snapshot> {
        if self.barred.contains(&to) {
            return Err(StorageError::SnapshotTemporarilyUnavailable.into());
        }
        let lost = self.read_back.borrow().lost();
        let lost = lost.max(self.impasses.given_up_through().0);
        let fits = |snapshot: &&Snapshotted| {
            let conf = &snapshot.conf_state;
            // A follower that the snapshot's configuration does not know would refuse it; and what follows the snapshot must be
            // there to be sent.
            snapshot.name.index.0 >= request_index.max(lost)
                && (conf.voters.contains(&to) || conf.learners.contains(&to))
        };
        let Some(snapshot) = self.snapshot.as_ref().filter(fits) else {
            self.wanted.set(true);
            return Err(StorageError::SnapshotTemporarilyUnavailable.into());
        };
        Ok(snapshot.to_raft())
    }
}

/// The first of these entries: one, and more while they have no more than so many bytes together.
fn within<'a>(entries: impl Iterator<Item = &'a Entry>, limit: u64) -> Vec<Entry> {
    let mut bytes = 0;
    let fits = |entry: &&Entry| {
        let first = bytes == 0;
        bytes += weight(entry);
        first || bytes <= limit
    };
    entries.take_while(fits).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(index: u64, term: u64) -> Entry {
        Entry {
            index,
            term,
            data: vec![0; 10].into(),
            ..Entry::default()
        }
    }

    fn view() -> LogView {
        let entries = (6..=10).map(|index| entry(index, 2)).collect();
        LogView::new(HardState::default(), entries, (LogIndex(5), Term(1)), None)
    }

    #[test]
    fn appending_replaces_a_conflicting_suffix() {
        let mut view = view();
        view.append(&[entry(9, 3)]);
        assert_eq!(view.last(), LogIndex(9));
        assert_eq!(view.term(9).expect("there"), 3);
        assert_eq!(view.term(8).expect("there"), 2);
        assert_eq!(view.bytes_after(LogIndex(5)), 4 * 74);
        view.append(&[entry(8, 4), entry(9, 4), entry(10, 5)]);
        let terms: Vec<_> = (5..=10)
            .map(|index| view.term(index).expect("there"))
            .collect();
        assert_eq!(terms, [1, 2, 2, 4, 4, 5]);
    }

    #[test]
    fn the_storage_contract_of_raft() {
        let mut view = view();
        assert_eq!(
            view.term(5).expect("the truncated entry's term is known"),
            1
        );
        assert!(matches!(
            view.term(4),
            Err(raft::Error::Store(StorageError::Compacted))
        ));
        assert!(matches!(
            view.term(11),
            Err(raft::Error::Store(StorageError::Unavailable))
        ));
        let context = || GetEntriesContext::empty(false);
        assert_eq!(
            view.entries(6, 11, 1, context())
                .expect("at least one")
                .len(),
            1
        );
        assert_eq!(view.entries(6, 11, None, context()).expect("all").len(), 5);
        assert!(view.entries(5, 7, None, context()).is_err());
        assert!(view.entries(6, 12, None, context()).is_err());
        assert_eq!(view.compaction(LogIndex(10), 2, 1 << 20), LogIndex(8));
        assert_eq!(view.compaction(LogIndex(10), 9, 80), LogIndex(9));
        assert_eq!(view.compaction(LogIndex(10), 9, 1 << 20), LogIndex(5));
        assert_eq!(view.truncate(LogIndex(8)), (LogIndex(8), Term(2)));
        assert_eq!((view.first(), view.last()), (LogIndex(9), LogIndex(10)));
        assert!(Storage::snapshot(&view, 0, 1).is_err());
        assert!(view.take_wanted() && !view.take_wanted());
    }

    /// Whatever was evicted, terms and sums stay those of the whole log, and only what was read back is given out.
    #[test]
    fn entries_that_left_memory_are_read_back() {
        let context = || GetEntriesContext::empty(true);
        let later = |result| {
            matches!(
                result,
                Err(raft::Error::Store(StorageError::LogTemporarilyUnavailable))
            )
        };
        let mut view = view();
        view.append(&[entry(11, 3), entry(12, 4)]);
        view.evict(LogIndex(11), 74);
        assert_eq!(
            (view.first(), view.evicted(), view.last().0),
            (LogIndex(6), 11, 12)
        );
        let terms: Vec<_> = (5..=12)
            .map(|index| view.term(index).expect("known"))
            .collect();
        assert_eq!(terms, [1, 2, 2, 2, 2, 2, 3, 4]);
        assert_eq!(view.bytes_after(LogIndex(11)), 74);
        assert_eq!(view.bytes_after(LogIndex(5)), 7 * 74);
        assert!(later(view.entries(7, 13, None, context())));
        assert_eq!(view.read_back().take_asked(3), [7]);
        // Of another term than the log says: something else is in the file.
        assert!(!view.take_read(7, vec![entry(7, 2), entry(8, 3)]));
        assert!(view.take_read(7, vec![entry(7, 2), entry(8, 2), entry(9, 2)]));
        let read = view.entries(7, 13, None, context()).expect("read back");
        assert_eq!(
            read.iter().map(|entry| entry.index).collect::<Vec<_>>(),
            [7, 8, 9]
        );
        assert_eq!(view.entries(8, 13, 80, context()).expect("one").len(), 1);
        assert!(later(view.entries(6, 13, None, context())));
        assert_eq!(
            view.entries(12, 13, None, context())
                .expect("in memory")
                .len(),
            1
        );
        // Nothing that was not processed leaves memory, however much there is.
        view.append(&[entry(13, 4), entry(14, 4)]);
        view.evict(LogIndex(12), 0);
        assert_eq!(view.evicted(), 12);
        assert_eq!(view.truncate(LogIndex(10)), (LogIndex(10), Term(2)));
        assert_eq!((view.term(11).expect("known"), view.evicted()), (3, 12));
        assert_eq!(view.truncate(LogIndex(13)), (LogIndex(13), Term(4)));
        assert_eq!(
            (view.evicted(), view.last().0, view.term(14).expect("known")),
            (13, 14, 4)
        );
    }

    #[test]
    fn what_is_lost_is_in_no_append_and_behind_no_snapshot() {
        let mut view = view();
        view.evict(LogIndex(9), 0);
        view.read_back().lose(9);
        let context = GetEntriesContext::empty(true);
        assert!(matches!(
            view.entries(7, 11, None, context),
            Err(raft::Error::Store(StorageError::Compacted))
        ));
        let conf_state = ConfState::from((vec![1, 2], vec![]));
        let name = SnapshotName {
            index: LogIndex(8),
            term: Term(2),
            digest: [0; 32],
            size: 1,
        };
        view.set_snapshot(Snapshotted {
            name: name.clone(),
            conf_state: conf_state.clone(),
        });
        assert!(Storage::snapshot(&view, 0, 2).is_err() && view.take_wanted());
        let index = LogIndex(9);
        view.set_snapshot(Snapshotted {
            name: SnapshotName { index, ..name },
            conf_state,
        });
        assert!(Storage::snapshot(&view, 0, 2).is_ok());
        view.bar(BTreeSet::from([2]));
        assert!(Storage::snapshot(&view, 0, 2).is_err() && !view.take_wanted());
    }
}
