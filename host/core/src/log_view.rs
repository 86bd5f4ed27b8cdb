//! The log as Raft reads it: everything since the last compaction, in memory.
//!
//! The bytes of entries are shared with the messages and with the machine's journal. What bounds them is the barrier
//! rule (`Limits::barrier_log_bytes_max`), not this file.

use std::cell::Cell;
use std::collections::VecDeque;

use raft::eraftpb::{ConfState, Entry, HardState, Snapshot, SnapshotMetadata};
use raft::{GetEntriesContext, RaftState, Storage, StorageError};

use crate::id::{LogIndex, Term};
use crate::message::SnapshotName;
use crate::planted::{self, Defect};

/// Fixed cost of an entry that the byte bounds count beside its data.
const ENTRY_OVERHEAD: u64 = 64;

/// The newest snapshot that is durable on this node.
#[derive(Clone, Debug)]
pub(crate) struct Snapshotted {
    pub(crate) name: SnapshotName,
    /// The configuration *at its index*, never a later one.
    pub(crate) conf_state: ConfState,
}

/// What Raft reads.
#[derive(Debug)]
pub(crate) struct LogView {
    entries: VecDeque<Entry>,
    bytes: u64,
    truncated: (LogIndex, Term),
    snapshot: Option<Snapshotted>,
    start: RaftState,
    /// A follower needs a newer snapshot than there is.
    wanted: Cell<bool>,
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
        let bytes = entries.iter().map(weight).sum();
        Self {
            entries: entries.into(),
            bytes,
            truncated,
            snapshot,
            start: RaftState {
                hard_state,
                conf_state,
            },
            wanted: Cell::new(false),
        }
    }

    pub(crate) fn last(&self) -> LogIndex {
        LogIndex(self.truncated.0.0 + self.entries.len() as u64)
    }

    pub(crate) fn first(&self) -> LogIndex {
        LogIndex(self.truncated.0.0 + 1)
    }

    /// What stands before the first entry.
    pub(crate) fn truncated(&self) -> (LogIndex, Term) {
        self.truncated
    }

    pub(crate) fn all_entries(&self) -> Vec<Entry> {
        self.entries.iter().cloned().collect()
    }

    pub(crate) fn snapshot(&self) -> Option<&Snapshotted> {
        self.snapshot.as_ref()
    }

    pub(crate) fn take_wanted(&self) -> bool {
        self.wanted.take()
    }

    /// Appends, replacing what stands from the first new index on.
    pub(crate) fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        let keep = first.index.saturating_sub(self.truncated.0.0 + 1) as usize;
        let behind: Vec<_> = match planted::has(Defect::ConflictingSuffixKept) {
            true => (self.entries.iter().skip(keep + entries.len()).cloned()).collect(),
            false => Vec::new(),
        };
        while self.entries.len() > keep {
            self.bytes -= self.entries.pop_back().as_ref().map_or(0, weight);
        }
        self.bytes += entries.iter().chain(&behind).map(weight).sum::<u64>();
        self.entries.extend(entries.iter().cloned().chain(behind));
    }

    /// Forgets entries up to `index` and answers what stands before the first one now. Never above the snapshot.
    pub(crate) fn truncate(&mut self, index: LogIndex) -> (LogIndex, Term) {
        while self.truncated.0 < index {
            let Some(entry) = self.entries.pop_front() else {
                break;
            };
            self.bytes -= weight(&entry);
            self.truncated = (LogIndex(entry.index), Term(entry.term));
        }
        self.truncated
    }

    /// Replaces everything by a snapshot.
    pub(crate) fn reset(&mut self, snapshot: Snapshotted) {
        self.entries.clear();
        self.bytes = 0;
        self.truncated = (snapshot.name.index, snapshot.name.term);
        self.snapshot = Some(snapshot);
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
        let newest = snapshot.0.saturating_sub(self.truncated.0.0) as usize;
        let mut kept = 0;
        let mut bytes = 0;
        for entry in self.entries.iter().take(newest).rev() {
            bytes += weight(entry);
            if kept >= keep_entries || bytes > keep_bytes {
                break;
            }
            kept += 1;
        }
        LogIndex(snapshot.0.saturating_sub(kept)).max(self.truncated.0)
    }

    fn entry(&self, index: u64) -> Option<&Entry> {
        let place = index.checked_sub(self.truncated.0.0 + 1)?;
        self.entries.get(usize::try_from(place).ok()?)
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
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low <= self.truncated.0.0 {
            return Err(StorageError::Compacted.into());
        }
        if high > self.last().0 + 1 {
            return Err(StorageError::Unavailable.into());
        }
        let limit = max_size.into().unwrap_or(u64::MAX);
        let start = (low - self.truncated.0.0 - 1) as usize;
        let mut bytes = 0;
        let mut entries = Vec::new();
        for entry in self.entries.range(start..start + (high - low) as usize) {
            bytes += weight(entry);
            if bytes > limit && !entries.is_empty() {
                break;
            }
            entries.push(entry.clone());
        }
        Ok(entries)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index == self.truncated.0.0 {
            return Ok(self.truncated.1.0);
        }
        if index < self.truncated.0.0 {
            return Err(StorageError::Compacted.into());
        }
        self.entry(index)
            .map(|entry| entry.term)
            .ok_or_else(|| StorageError::Unavailable.into())
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.first().0)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last().0)
    }

    fn snapshot(&self, request_index: u64, to: u64) -> raft::Result<Snapshot> {
        let fits = |snapshot: &&Snapshotted| {
            let conf = &snapshot.conf_state;
            // A follower that the snapshot's configuration does not know would refuse it.
            snapshot.name.index.0 >= request_index
                && (conf.voters.contains(&to) || conf.learners.contains(&to))
        };
        let Some(snapshot) = self.snapshot.as_ref().filter(fits) else {
            self.wanted.set(true);
            return Err(StorageError::SnapshotTemporarilyUnavailable.into());
        };
        let metadata = SnapshotMetadata {
            conf_state: Some(snapshot.conf_state.clone()).into(),
            index: snapshot.name.index.0,
            term: snapshot.name.term.0,
            ..SnapshotMetadata::default()
        };
        Ok(Snapshot {
            metadata: Some(metadata).into(),
            ..Snapshot::default()
        })
    }
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
        assert_eq!(view.bytes, view.entries.iter().map(weight).sum::<u64>());
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
        assert_eq!(view.truncate(LogIndex(8)), (LogIndex(8), Term(2)));
        assert_eq!((view.first(), view.last()), (LogIndex(9), LogIndex(10)));
        assert!(Storage::snapshot(&view, 0, 1).is_err());
        assert!(view.take_wanted() && !view.take_wanted());
    }
}
