//! What a caller writes: the record of one group's one step, and the plain types in it.

use bytes::Bytes;

/// A group's life on this node: `incarnation` differs for each (re-)creation of the same group id.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct GroupKey {
    /// The group's id, unique in the cluster.
    pub group: u64,
    /// Which creation of that id this is.
    pub incarnation: u64,
}

/// A raft log entry. The log stores `kind`, `data` and `context` without looking into them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Entry {
    /// Position in the group's log, counted from 1.
    pub index: u64,
    /// The term of the leader that created the entry.
    pub term: u64,
    /// The raft entry type (normal, configuration change).
    pub kind: u8,
    /// The payload.
    pub data: Bytes,
    /// The payload's companion in raft's own entry type.
    pub context: Bytes,
}

/// What a raft replica must never forget beside its entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct HardState {
    /// The newest term seen.
    pub term: u64,
    /// The replica voted for in `term`, 0 for none.
    pub vote: u64,
    /// The highest index known to be committed.
    pub commit: u64,
}

/// An index and the term of the entry there.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LogPosition {
    /// Position in the group's log; 0 is before the first entry.
    pub index: u64,
    /// The term of the entry at `index`.
    pub term: u64,
}

/// Names one durable snapshot file of a group, and proves its content.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SnapshotMark {
    /// The last entry the snapshot contains.
    pub position: LogPosition,
    /// The SHA-256 at the end of the file, which covers every byte before it.
    pub digest: [u8; 32],
    /// The whole file's size in bytes.
    pub size: u64,
}

/// One atomic record: what one step (one raft `Ready`) of one group must make durable.
///
/// After a crash the record is there whole or not at all. Its parts take effect in this order: `reset`, `entries`,
/// `truncated`, `snapshot`, `hard_state`. [`Log::append`](crate::Log::append) lists what it refuses.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// Whose record this is.
    pub key: GroupKey,
    /// The raft id of this replica of the group on this node; 0 leaves the known one as it is.
    pub replica: u64,
    /// The new hard state, if it changed.
    pub hard_state: Option<HardState>,
    /// Contiguous entries. Entries of the group with an index at or above the first of these are replaced.
    pub entries: Vec<Entry>,
    /// The newest durable snapshot of the group from here on. Its file must be durable already.
    pub snapshot: Option<SnapshotMark>,
    /// Entries at or below this index are gone. With `reset` the whole log is replaced by this position.
    pub truncated: Option<LogPosition>,
    /// A snapshot was installed: all earlier entries of the group are dropped and its log starts after `truncated`.
    pub reset: bool,
    /// Tombstone: the replicas of this incarnation up to `replica` are gone from this node for ever. A record of a
    /// later replica begins anew; [`EVERY_REPLICA`] leaves no later one, so the incarnation itself is gone.
    pub removed: bool,
}

/// In a tombstone: no replica of the incarnation will ever be on this node again.
pub const EVERY_REPLICA: u64 = u64::MAX;

impl Record {
    /// A record of `key` that changes nothing yet.
    pub fn new(key: GroupKey) -> Record {
        Record {
            key,
            replica: 0,
            hard_state: None,
            entries: Vec::new(),
            snapshot: None,
            truncated: None,
            reset: false,
            removed: false,
        }
    }

    /// The tombstone of `key`: the group is no more, or is no longer wanted on this node in this life.
    pub fn tombstone(key: GroupKey) -> Record {
        Record::replica_removed(key, EVERY_REPLICA)
    }

    /// The tombstone of the replicas of `key` up to `replica`. The node may host a later replica of the same group.
    pub fn replica_removed(key: GroupKey, replica: u64) -> Record {
        Record {
            replica,
            removed: true,
            ..Record::new(key)
        }
    }
}

impl std::fmt::Display for GroupKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "group {} (incarnation {})", self.group, self.incarnation)
    }
}
