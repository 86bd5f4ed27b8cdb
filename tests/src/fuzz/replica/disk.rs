//! A disk that refuses records which break a promise.

use raft::eraftpb::{self, HardState};
use skep_core::effect::Persist;
use skep_core::id::{LogIndex, ReplicaId, Term};
use skep_core::message::SnapshotName;

/// What records have made of a disk.
#[derive(Clone, Default)]
pub(super) struct Disk {
    pub(super) replica: ReplicaId,
    pub(super) hard_state: HardState,
    pub(super) entries: Vec<eraftpb::Entry>,
    pub(super) truncated: (LogIndex, Term),
    pub(super) snapshot: Option<SnapshotName>,
}

impl Disk {
    pub(super) fn last(&self) -> u64 {
        self.truncated.0.0 + self.entries.len() as u64
    }

    /// Takes a record in, as the log would; what the log would refuse is a broken promise.
    pub(super) fn write(&mut self, record: &Persist) {
        let before = self.hard_state.clone();
        self.replica = record.replica;
        if record.reset {
            let (index, _) = record.truncated.expect("a reset says where the log starts");
            assert!(
                index.0 >= before.commit,
                "a snapshot took committed entries back"
            );
            self.entries.clear();
            self.truncated = record.truncated.unwrap_or_default();
        }
        if let Some(first) = record.entries.first() {
            assert!(
                first.index > before.commit.max(self.truncated.0.0)
                    && first.index <= self.last() + 1,
                "entries from {} on, committed are {}, the log covers {}..={}",
                first.index,
                before.commit,
                self.truncated.0.0 + 1,
                self.last()
            );
            self.entries
                .truncate((first.index - self.truncated.0.0 - 1) as usize);
            for entry in &record.entries {
                assert_eq!(entry.index, self.last() + 1, "entries with a gap");
                self.entries.push(entry.clone());
            }
        }
        if let Some(snapshot) = &record.snapshot {
            self.snapshot = Some(snapshot.clone());
        }
        if let Some((index, term)) = record.truncated {
            assert!(index.0 <= self.last() && index >= self.truncated.0);
            let covered = self
                .snapshot
                .as_ref()
                .map_or(0, |snapshot| snapshot.index.0);
            assert!(index.0 <= covered, "truncated above the snapshot");
            self.entries.retain(|entry| entry.index > index.0);
            self.truncated = (index, term);
        }
        if let Some(hard_state) = &record.hard_state {
            assert!(hard_state.term >= before.term, "the term went back");
            assert!(
                hard_state.term > before.term || before.vote == 0 || hard_state.vote == before.vote,
                "a second vote in term {}",
                hard_state.term
            );
            assert!(
                hard_state.commit >= before.commit,
                "the commit index went back"
            );
            assert!(hard_state.commit <= self.last(), "committed beyond the log");
            self.hard_state = hard_state.clone();
        }
    }
}
