//! A second, naive implementation of what records mean, and workloads for it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use skep_log::{
    EVERY_REPLICA, Entry, GroupKey, HardState, Log, LogError, LogOptions, LogPosition, Record,
    Recovered, RecoveredGroup, SimVfs, SnapshotMark,
};

pub const DIR: &str = "/data/wal";

/// Sizes at which a few dozen records fill segments, and collection has work.
pub fn small() -> LogOptions {
    LogOptions {
        store: [7; 16],
        segment_bytes: 4096,
        fill_step: 1024,
        spare_segments: 2,
        max_record_bytes: 1 << 20,
        garbage_bytes: 4096,
        light_group_bytes: 1500,
        heavy_asks: 2,
        recovered_behind_bytes: u64::MAX,
    }
}

pub fn open(vfs: &SimVfs) -> Result<(Log, Recovered), LogError> {
    open_with(vfs, small())
}

pub fn open_with(vfs: &SimVfs, options: LogOptions) -> Result<(Log, Recovered), LogError> {
    Log::open(Arc::new(vfs.clone()), Path::new(DIR), options)
}

pub fn key(group: u64) -> GroupKey {
    GroupKey {
        group,
        incarnation: 1,
    }
}

pub fn entry(index: u64, term: u64, data: impl Into<Bytes>) -> Entry {
    Entry {
        index,
        term,
        kind: 0,
        data: data.into(),
        context: Bytes::new(),
    }
}

pub fn entries(group: u64, indices: std::ops::RangeInclusive<u64>, size: usize) -> Record {
    let entries = indices
        .map(|index| entry(index, 1, vec![index as u8; size]))
        .collect();
    Record {
        entries,
        ..Record::new(key(group))
    }
}

pub fn mark(index: u64, term: u64) -> SnapshotMark {
    SnapshotMark {
        position: LogPosition { index, term },
        digest: [index as u8; 32],
        size: index,
    }
}

/// A snapshot at `index` and the truncation it allows.
pub fn compaction(group: u64, index: u64) -> Record {
    let truncated = Some(LogPosition { index, term: 1 });
    Record {
        snapshot: Some(mark(index, 1)),
        truncated,
        ..Record::new(key(group))
    }
}

/// What a log holds, as recovery reports it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct State {
    pub groups: BTreeMap<GroupKey, RecoveredGroup>,
    pub tombstones: BTreeSet<GroupKey>,
    pub removed_replicas: BTreeMap<GroupKey, u64>,
}

impl State {
    pub fn of(recovered: &Recovered) -> State {
        State {
            groups: recovered
                .groups
                .iter()
                .map(|group| (group.key, group.clone()))
                .collect(),
            tombstones: recovered.tombstones.iter().copied().collect(),
            removed_replicas: recovered.removed_replicas.iter().copied().collect(),
        }
    }

    pub fn apply(&mut self, record: &Record) {
        let key = record.key;
        if record.removed {
            self.groups.remove(&key);
            self.removed_replicas.remove(&key);
            if record.replica == EVERY_REPLICA {
                self.tombstones.insert(key);
            } else {
                self.removed_replicas.insert(key, record.replica);
            }
            return;
        }
        self.removed_replicas.remove(&key);
        let group = self.groups.entry(key).or_insert_with(|| RecoveredGroup {
            key,
            replica: 0,
            hard_state: HardState::default(),
            snapshot: None,
            truncated: LogPosition::default(),
            entries: Vec::new(),
        });
        if record.reset {
            group.entries.clear();
            group.truncated = record.truncated.expect("a reset has a position");
        }
        if let Some(first) = record.entries.first() {
            group.entries.retain(|entry| entry.index < first.index);
            group.entries.extend(record.entries.iter().cloned());
        }
        if let Some(position) = record.truncated
            && position.index > group.truncated.index
        {
            group.truncated = position;
            group.entries.retain(|entry| entry.index > position.index);
        }
        if let Some(mark) = &record.snapshot {
            group.snapshot = Some(mark.clone());
        }
        if let Some(state) = record.hard_state {
            group.hard_state = state;
        }
        group.hard_state.commit = group.hard_state.commit.max(group.truncated.index);
        if record.replica != 0 {
            group.replica = record.replica;
        }
    }

    fn last(&self, key: GroupKey) -> u64 {
        self.groups.get(&key).map_or(0, |group| {
            group
                .entries
                .last()
                .map_or(group.truncated.index, |entry| entry.index)
        })
    }

    fn term_at(&self, key: GroupKey, index: u64) -> u64 {
        let group = &self.groups[&key];
        group
            .entries
            .iter()
            .find(|entry| entry.index == index)
            .map_or(group.truncated.term, |entry| entry.term)
    }
}

#[derive(Clone, Debug)]
pub enum Op {
    Append(Record),
    Sync,
    Prepare,
    Collect,
}

/// A workload, and the state after each number of its records.
pub struct Workload {
    pub ops: Vec<Op>,
    pub states: Vec<State>,
}

impl Workload {
    pub fn random(seed: u64, count: usize) -> Workload {
        let mut random = Random(seed);
        let mut ops = Vec::new();
        let mut states = vec![State::default()];
        let mut incarnations = BTreeMap::new();
        while ops.len() < count {
            let state = states.last().expect("there is a first state");
            match random.below(20) {
                0..=5 => ops.push(Op::Sync),
                6 => ops.push(Op::Collect),
                7 => ops.push(Op::Prepare),
                _ => {
                    let record = random.record(state, &mut incarnations, ops.len());
                    let mut next = state.clone();
                    next.apply(&record);
                    states.push(next);
                    ops.push(Op::Append(record));
                }
            }
        }
        ops.push(Op::Sync);
        Workload { ops, states }
    }
}

/// How far a run of a workload came.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// Records whose append was called.
    pub appended: usize,
    /// Records that were durable when the last successful call returned.
    pub acknowledged: usize,
    pub error: Option<String>,
}

pub fn run(log: &mut Log, ops: &[Op]) -> Progress {
    let mut progress = Progress::default();
    for op in ops {
        let outcome = match op {
            Op::Append(record) => {
                progress.appended += 1;
                log.append(record)
            }
            Op::Sync => log.sync(),
            Op::Prepare => log.prepare(),
            Op::Collect => log.collect(2000).map(|_| ()),
        };
        match outcome {
            Ok(()) if matches!(op, Op::Sync | Op::Collect) => {
                progress.acknowledged = progress.appended
            }
            Ok(()) => {}
            Err(error) => {
                assert!(!error.is_record_error(), "the workload is valid: {error}");
                progress.error = Some(error.to_string());
                break;
            }
        }
    }
    progress
}

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }

    /// A record that may follow what `state` holds. A mark in it names a position; its file is the caller's to make.
    pub fn record(
        &mut self,
        state: &State,
        incarnations: &mut BTreeMap<u64, u64>,
        now: usize,
    ) -> Record {
        // Groups 4 and 5 are written early only, so that collection finds idle ones.
        let group = if now < 40 {
            self.below(6)
        } else {
            self.below(4)
        };
        let incarnation = *incarnations.entry(group).or_insert(1);
        let key = GroupKey { group, incarnation };
        let mut record = Record::new(key);
        record.replica = if self.below(4) == 0 { group + 10 } else { 0 };
        if let Some(removed) = state.removed_replicas.get(&key) {
            record.replica = removed + 1;
        }
        let last = state.last(key);
        let old = state
            .groups
            .get(&key)
            .map_or(HardState::default(), |group| group.hard_state);
        let truncated = state
            .groups
            .get(&key)
            .map_or(0, |group| group.truncated.index);
        match self.below(20) {
            0 if record.replica != 0 && state.groups.contains_key(&key) => {
                return Record::replica_removed(key, record.replica);
            }
            0 if incarnation < 4 => {
                incarnations.insert(group, incarnation + 1);
                return Record::tombstone(key);
            }
            1 => {
                let position = LogPosition {
                    index: last + 1 + self.below(9),
                    term: old.term + 1,
                };
                record.reset = true;
                record.truncated = Some(position);
                record.snapshot = Some(mark(position.index, position.term));
                record.hard_state = Some(HardState {
                    term: position.term,
                    vote: 0,
                    commit: position.index,
                });
            }
            2..=4 if old.commit > truncated => {
                let term = state.term_at(key, old.commit);
                record.snapshot = Some(mark(old.commit, term));
                let index = truncated + 1 + self.below(old.commit - truncated);
                record.truncated = Some(LogPosition {
                    index,
                    term: state.term_at(key, index),
                });
            }
            5..=6 => {
                let commit = old.commit + self.below(last - old.commit + 1);
                record.hard_state = Some(HardState {
                    term: old.term + 1,
                    vote: self.below(3),
                    commit,
                });
            }
            _ => {
                let first = if self.below(6) == 0 {
                    old.commit.max(truncated) + 1
                } else {
                    last + 1
                };
                let count = self.below(5);
                for index in first..=first + count {
                    let limit = if self.below(30) == 0 { 5000 } else { 150 };
                    let size = self.below(limit) as usize;
                    let data = vec![self.below(256) as u8; size];
                    let context = vec![1; self.below(3) as usize].into();
                    record.entries.push(Entry {
                        context,
                        kind: self.below(3) as u8,
                        ..entry(index, old.term, data)
                    });
                }
                if self.below(2) == 0 {
                    let commit = old.commit.max(first - 1) + self.below(count + 1);
                    record.hard_state = Some(HardState { commit, ..old });
                }
            }
        }
        record
    }
}
