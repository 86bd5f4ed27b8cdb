//! Between the words of the core and those of the log, by moving: entry data is never copied.

use raft::eraftpb;
use skep_core::Recovered;
use skep_core::effect::Persist;
use skep_core::healing::Parked;
use skep_core::id::{GroupId, Incarnation, LogIndex, ReplicaId, Term};
use skep_core::input::LogRead;
use skep_core::message::SnapshotName;
use skep_log::{
    Entry, GroupKey, HardState, LogError, LogPosition, Record, RecoveredGroup, SnapshotMark,
};

use bytes::Bytes;

/// The key of one life of a group.
pub fn key(group: GroupId, incarnation: Incarnation) -> GroupKey {
    GroupKey {
        group: group.0,
        incarnation: incarnation.0,
    }
}

/// The record that makes `persist` durable.
pub fn record(key: GroupKey, persist: Persist) -> Record {
    Record {
        key,
        replica: persist.replica.0,
        hard_state: persist.hard_state.map(|state| HardState {
            term: state.term,
            vote: state.vote,
            commit: state.commit,
        }),
        entries: persist.entries.into_iter().map(entry_to_log).collect(),
        snapshot: persist.snapshot.as_ref().map(mark),
        truncated: persist.truncated.map(|(index, term)| LogPosition {
            index: index.0,
            term: term.0,
        }),
        reset: persist.reset,
        removed: false,
    }
}

/// What the log recovered, for the core. `state` is the host's section of the snapshot file.
///
/// # Errors
/// [`LogError::InvalidRecord`] if an entry is of a kind that this version does not know.
pub fn recovered(group: RecoveredGroup, state: Option<Bytes>) -> Result<Recovered, LogError> {
    let key = group.key;
    let HardState { term, vote, commit } = group.hard_state;
    let hard_state = eraftpb::HardState {
        term,
        vote,
        commit,
        ..Default::default()
    };
    Ok(Recovered {
        replica: ReplicaId(group.replica),
        hard_state,
        entries: entries(key, group.entries)?,
        truncated: (LogIndex(group.truncated.index), Term(group.truncated.term)),
        snapshot: group.snapshot.as_ref().map(name).zip(state),
    })
}

/// Entries of the log, for the core.
///
/// # Errors
/// As [`recovered`].
pub fn entries(key: GroupKey, entries: Vec<Entry>) -> Result<Vec<eraftpb::Entry>, LogError> {
    let entries = entries.into_iter();
    entries.map(|entry| entry_to_raft(key, entry)).collect()
}

/// What the log would recover of a replica that is given up. `older` are the entries that are in no memory.
pub fn parked(key: GroupKey, parked: Parked, older: Vec<Entry>) -> RecoveredGroup {
    let Parked {
        replica,
        hard_state,
        entries,
        before: _,
        untried_from: _,
        start: (index, term),
        snapshot,
    } = parked;
    RecoveredGroup {
        key,
        replica: replica.0,
        hard_state: HardState {
            term: hard_state.term,
            vote: hard_state.vote,
            commit: hard_state.commit.max(index.0),
        },
        snapshot: snapshot.as_ref().map(mark),
        truncated: LogPosition {
            index: index.0,
            term: term.0,
        },
        entries: older
            .into_iter()
            .chain(entries.into_iter().map(entry_to_log))
            .collect(),
    }
}

/// What became of reading entries back from the log.
pub fn log_read(key: GroupKey, read: Result<Option<Vec<Entry>>, LogError>) -> LogRead {
    match read.and_then(|found| {
        let to_raft = |entry| entry_to_raft(key, entry);
        found
            .map(|found| found.into_iter().map(to_raft).collect())
            .transpose()
    }) {
        Ok(Some(entries)) => LogRead::Entries(entries),
        Ok(None) => LogRead::Gone,
        Err(LogError::Io { .. }) => LogRead::Failed,
        // What is damaged, or of a kind that nobody knows, stays so.
        Err(_) => LogRead::Gone,
    }
}

/// The log's name of a snapshot.
pub fn mark(name: &SnapshotName) -> SnapshotMark {
    SnapshotMark {
        position: LogPosition {
            index: name.index.0,
            term: name.term.0,
        },
        digest: name.digest,
        size: name.size,
    }
}

/// The core's name of a snapshot.
pub fn name(mark: &SnapshotMark) -> SnapshotName {
    SnapshotName {
        index: LogIndex(mark.position.index),
        term: Term(mark.position.term),
        digest: mark.digest,
        size: mark.size,
    }
}

fn entry_to_log(entry: eraftpb::Entry) -> Entry {
    Entry {
        index: entry.index,
        term: entry.term,
        kind: match entry.entry_type {
            eraftpb::EntryType::EntryNormal => NORMAL,
            eraftpb::EntryType::EntryConfChange => CONF_CHANGE,
            eraftpb::EntryType::EntryConfChangeV2 => CONF_CHANGE_V2,
        },
        data: entry.data,
        context: entry.context,
    }
}

fn entry_to_raft(key: GroupKey, entry: Entry) -> Result<eraftpb::Entry, LogError> {
    let entry_type = match entry.kind {
        NORMAL => eraftpb::EntryType::EntryNormal,
        CONF_CHANGE => eraftpb::EntryType::EntryConfChange,
        CONF_CHANGE_V2 => eraftpb::EntryType::EntryConfChangeV2,
        kind => {
            let reason = format!(
                "entry {} has kind {kind}, which this version does not know",
                entry.index
            );
            return Err(LogError::InvalidRecord { key, reason });
        }
    };
    let Entry {
        index,
        term,
        data,
        context,
        ..
    } = entry;
    Ok(eraftpb::Entry {
        entry_type,
        index,
        term,
        data,
        context,
        ..Default::default()
    })
}

const NORMAL: u8 = 0;
const CONF_CHANGE: u8 = 1;
const CONF_CHANGE_V2: u8 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_survive_the_log_without_a_copy() {
        let key = GroupKey {
            group: 1,
            incarnation: 1,
        };
        for kind in [NORMAL, CONF_CHANGE, CONF_CHANGE_V2] {
            let data = Bytes::from(vec![7; 100]);
            let entry = Entry {
                index: 5,
                term: 2,
                kind,
                data: data.clone(),
                context: Bytes::from_static(b"c"),
            };
            let raft = entry_to_raft(key, entry.clone()).expect("the kind is known");
            assert_eq!(raft.data.as_ptr(), data.as_ptr());
            assert_eq!(entry_to_log(raft), entry);
        }
        let strange = Entry {
            kind: 9,
            ..Entry::default()
        };
        assert_eq!(
            entry_to_raft(key, strange).map_err(|error| error.code().name()),
            Err("log-invalid-record")
        );
    }

    #[test]
    fn snapshot_names_survive() {
        let snapshot = SnapshotName {
            index: LogIndex(3),
            term: Term(2),
            digest: [1; 32],
            size: 9,
        };
        assert_eq!(name(&mark(&snapshot)), snapshot);
    }
}
