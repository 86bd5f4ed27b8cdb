//! What one node's disk holds of a replica.

use std::collections::BTreeMap;

use bytes::Bytes;
use raft::eraftpb::{Entry, HardState};
use skep_core::effect::Persist;
use skep_core::id::{LogIndex, ReplicaId, Term};
use skep_core::input::LogRead;
use skep_core::message::SnapshotName;

/// A snapshot file: the host's section, and the machine's bytes.
pub type File = (SnapshotName, Bytes, Bytes);

/// What one node's disk holds of the replica once synced.
#[derive(Default, Clone)]
pub struct Disk {
    pub replica: ReplicaId,
    pub hard_state: HardState,
    pub entries: Vec<Entry>,
    pub truncated: (LogIndex, Term),
    pub snapshot: Option<SnapshotName>,
    /// Snapshot files.
    pub files: BTreeMap<LogIndex, File>,
    pub any: bool,
}

impl Disk {
    pub fn write(&mut self, record: Persist) {
        self.any = true;
        self.replica = record.replica;
        if let Some(hard_state) = record.hard_state {
            self.hard_state = hard_state;
        }
        if record.reset {
            self.entries.clear();
        }
        if let Some(truncated) = record.truncated {
            self.truncated = truncated;
            self.entries.retain(|entry| entry.index > truncated.0.0);
        }
        if let Some(snapshot) = record.snapshot {
            self.snapshot = Some(snapshot);
        }
        if let Some(first) = record.entries.first().map(|entry| entry.index) {
            self.entries.retain(|entry| entry.index < first);
            self.entries.extend(record.entries);
        }
    }

    /// Entries of the log, of so many bytes.
    pub fn read(&self, from: LogIndex, through: LogIndex, bytes: u64) -> LogRead {
        let mut read = 0;
        let wanted = |entry: &&Entry| (from.0..=through.0).contains(&entry.index);
        let fits = |entry: &&Entry| {
            let first = read == 0;
            read += entry.data.len() as u64 + 64;
            first || read <= bytes
        };
        let entries = self.entries.iter().filter(wanted).take_while(fits);
        match entries.cloned().collect::<Vec<_>>() {
            entries if entries.first().is_some_and(|first| first.index == from.0) => {
                LogRead::Entries(entries)
            }
            _ => LogRead::Gone,
        }
    }
}
