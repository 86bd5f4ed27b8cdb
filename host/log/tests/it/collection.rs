//! Collection and recycling.

use std::path::PathBuf;
use std::sync::Arc;

use skep_log::sim::Crash;
use skep_log::{DiskVfs, GroupKey, HardState, Log, LogOptions, Record, SimVfs};

use crate::model::{State, Workload, compaction, entries, entry, key, open, open_with, run, small};

/// Writes `rounds` entries of 100 bytes to a group that compacts itself every ten, collecting as the writer does.
fn churn(log: &mut Log, state: &mut State, group: u64, rounds: u64) -> Vec<GroupKey> {
    let start = state.groups.get(&key(group)).map_or(0, |group| {
        group
            .entries
            .last()
            .map_or(group.truncated.index, |entry| entry.index)
    });
    let mut heavy = Vec::new();
    for index in start + 1..=start + rounds {
        let mut records = vec![entries(group, index..=index, 100)];
        if index % 10 == 0 {
            records.push(compaction(group, index));
        }
        for record in records {
            log.append(&record).expect("append");
            state.apply(&record);
        }
        log.sync().expect("sync");
        if log.wants_collect() {
            heavy.extend(log.collect(1 << 20).expect("collect").heavy);
        }
    }
    heavy
}

fn recovered(vfs: &SimVfs) -> State {
    State::of(&open(vfs).expect("it recovers").1)
}

// P-68
#[test]
fn an_idle_group_and_tombstones_outlive_every_segment_they_were_written_to() {
    let vfs = SimVfs::new(1);
    let (mut log, _) = open(&vfs).expect("a new log");
    let mut state = State::default();
    let hard_state = Some(HardState {
        term: 3,
        vote: 2,
        commit: 2,
    });
    let idle = Record {
        replica: 5,
        hard_state,
        ..entries(1, 1..=3, 50)
    };
    for record in [
        idle,
        compaction(2, 0),
        Record {
            truncated: None,
            ..Record::new(key(3))
        },
        Record::tombstone(key(3)),
        Record::replica_removed(key(7), 4),
        Record::replica_removed(key(8), 2),
        Record {
            replica: 3,
            ..entries(8, 1..=2, 50)
        },
    ] {
        log.append(&record).expect("append");
        state.apply(&record);
    }
    let heavy = churn(&mut log, &mut state, 4, 1000);
    assert_eq!(heavy, []);
    let stats = log.stats();
    assert!(stats.freed_segments > 20, "{stats:?}");
    assert!(stats.segments < 10, "{stats:?}");
    assert!(
        stats.copied_bytes > 0 && stats.copied_bytes < stats.appended_bytes,
        "{stats:?}"
    );
    log.sync().expect("sync");
    assert_eq!(recovered(&vfs), state);
    // Once more from the recovered log, so that copies are copied.
    let (mut log, _) = open(&vfs).expect("it recovers");
    churn(&mut log, &mut state, 4, 1000);
    assert_eq!(recovered(&vfs), state);
}

#[test]
fn a_heavy_group_is_asked_to_snapshot_and_copied_if_it_never_does() {
    let vfs = SimVfs::new(1);
    let (mut log, _) = open(&vfs).expect("a new log");
    let mut state = State::default();
    for index in 1..=30 {
        let record = entries(1, index..=index, 100);
        log.append(&record).expect("append");
        state.apply(&record);
    }
    let mut heavy = Vec::new();
    while log.stats().copied_bytes == 0 {
        heavy.extend(churn(&mut log, &mut state, 4, 10));
    }
    assert_eq!(
        heavy,
        [key(1); 2],
        "it is asked as often as the options say before it is copied"
    );
    churn(&mut log, &mut state, 4, 600);
    assert!(log.stats().segments < 12, "{:?}", log.stats());
    assert_eq!(recovered(&vfs), state);
}

#[test]
fn a_heavy_group_that_snapshots_is_not_asked_again() {
    let vfs = SimVfs::new(1);
    let (mut log, _) = open(&vfs).expect("a new log");
    let mut state = State::default();
    for index in 1..=30 {
        let record = entries(1, index..=index, 100);
        log.append(&record).expect("append");
        state.apply(&record);
    }
    let mut heavy = Vec::new();
    while heavy.is_empty() {
        heavy = churn(&mut log, &mut state, 4, 10);
    }
    let record = compaction(1, 30);
    log.append(&record).expect("append");
    state.apply(&record);
    assert_eq!(churn(&mut log, &mut state, 4, 600), []);
    assert_eq!(recovered(&vfs), state);
}

#[test]
fn a_copy_in_several_parts_counts_whole_and_survives_the_loss_of_its_first_segments() {
    // Parts hold half a segment, so eight entries of 1000 bytes make at least four parts in two segments.
    let options = LogOptions {
        heavy_asks: 0,
        ..small()
    };
    let vfs = SimVfs::new(1);
    let (mut log, _) = open_with(&vfs, options.clone()).expect("a new log");
    let mut state = State::default();
    let write = |log: &mut Log, state: &mut State, record: Record| {
        log.append(&record).expect("append");
        log.sync().expect("sync");
        state.apply(&record);
    };
    let hard_state = Some(HardState {
        term: 1,
        vote: 2,
        commit: 8,
    });
    for index in 1..=8 {
        write(&mut log, &mut state, entries(1, index..=index, 1000));
    }
    write(
        &mut log,
        &mut state,
        Record {
            replica: 3,
            hard_state,
            ..Record::new(key(1))
        },
    );
    for index in 1..=30 {
        write(&mut log, &mut state, entries(2, index..=index, 1000));
        write(&mut log, &mut state, compaction(2, index));
    }
    drop(log);

    // Nothing changes for recovery, wherever the copying is cut.
    let reference = vfs.fork();
    reference.crash(Crash::ProcessOnly);
    let (mut log, _) = open_with(&reference, options.clone()).expect("it recovers");
    let before = reference.calls();
    let collected = log.collect(u64::MAX).expect("collect");
    assert!(
        collected.copied_bytes > 8000 && collected.freed_segments > 2,
        "{collected:?}"
    );
    for call in before..reference.calls() {
        for crash in [
            Crash::LoseAll,
            Crash::ProcessOnly,
            Crash::Subset(call),
            Crash::Subset(!call),
        ] {
            let disk = vfs.fork();
            disk.crash(Crash::ProcessOnly);
            let (mut log, _) = open_with(&disk, options.clone()).expect("it recovers");
            disk.cut_power_after(call);
            assert!(log.collect(u64::MAX).is_err());
            disk.crash(crash);
            assert_eq!(recovered(&disk), state, "call {call}, {crash:?}");
        }
    }

    // The entries of the first parts go, and with them their segments; the rest of the copy still counts.
    let copied = log.stats().copied_bytes;
    write(&mut log, &mut state, compaction(1, 6));
    let mut freed = 0;
    for index in 31..=60 {
        write(&mut log, &mut state, entries(2, index..=index, 1000));
        write(&mut log, &mut state, compaction(2, index));
        freed += log.collect(0).expect("collect").freed_segments;
        assert_eq!(recovered(&reference.fork()), state, "entry {index}");
    }
    assert!(freed > 0 && log.stats().copied_bytes >= copied);
}

#[test]
fn a_recycled_segment_brings_nothing_back() {
    let vfs = SimVfs::new(1);
    let (mut log, _) = open(&vfs).expect("a new log");
    let mut state = State::default();
    // Frames as long as those that will overwrite them, so that old ones start where new ones end.
    for index in 200..=240 {
        let group = index;
        let old = Record {
            entries: vec![entry(1, 1, vec![OLD; 100])],
            ..Record::new(key(group))
        };
        for record in [old, Record::tombstone(key(group))] {
            log.append(&record).expect("append");
            state.apply(&record);
        }
    }
    let first = holders(&vfs);
    let mut checked = 0;
    while checked < 30 {
        churn(&mut log, &mut state, 4, 1);
        let reused = |path: &PathBuf| {
            path.extension().is_some_and(|end| end == "wal") && !first.contains(path)
        };
        if holders(&vfs).iter().any(reused) {
            assert_eq!(recovered(&vfs.fork()), state);
            checked += 1;
        }
        assert!(log.stats().freed_segments < 50, "no file was recycled");
    }
}

const OLD: u8 = 251;

/// The files in which an old entry can still be seen.
fn holders(vfs: &SimVfs) -> Vec<PathBuf> {
    let seen = |path: &PathBuf| {
        vfs.content(path)
            .is_some_and(|content| content.windows(100).any(|window| window == [OLD; 100]))
    };
    vfs.files().into_iter().filter(seen).collect()
}

#[test]
fn a_small_log_is_left_alone() {
    let vfs = SimVfs::new(1);
    let (mut log, _) = open(&vfs).expect("a new log");
    for index in 1..=5 {
        log.append(&entries(1, index..=index, 100)).expect("append");
    }
    let collected = log.collect(u64::MAX).expect("collect");
    assert_eq!(collected, Default::default());
}

#[test]
fn a_real_disk_gives_the_same_as_the_model() {
    let dir = tempfile::tempdir().expect("a directory");
    let workload = Workload::random(21, 300);
    let open = || Log::open(Arc::new(DiskVfs), dir.path(), small()).expect("it opens");
    let (mut log, _) = open();
    let progress = run(&mut log, &workload.ops);
    assert_eq!(progress.error, None);
    assert!(log.stats().freed_segments > 0);
    drop(log);
    let (log, recovered) = open();
    assert_eq!(Some(&State::of(&recovered)), workload.states.last());
    log.close().expect("close");
    let (_, recovered) = open();
    assert_eq!(Some(&State::of(&recovered)), workload.states.last());
}

#[test]
fn collection_waits_while_there_is_no_descriptor() {
    let vfs = SimVfs::new(1);
    let (mut log, _) = open(&vfs).expect("a new log");
    let mut state = State::default();
    let mut write = |log: &mut Log, record: Record| {
        log.append(&record).expect("append");
        log.sync().expect("sync");
        state.apply(&record);
    };
    write(&mut log, entries(1, 1..=3, 50));
    for index in 1..=100 {
        write(&mut log, entries(4, index..=index, 100));
        write(&mut log, compaction(4, index));
    }
    let before = log.stats().waits;
    vfs.lack_descriptors(3);
    let collected = log.collect(1 << 20).expect("the log goes on");
    assert!(collected.copied_bytes > 0, "{collected:?}");
    assert!(log.stats().waits > before);
    write(&mut log, entries(1, 4..=4, 50));
    drop(log);
    assert_eq!(recovered(&vfs), state);
}

#[test]
fn a_new_segment_waits_while_there_is_no_descriptor() {
    let vfs = SimVfs::new(1);
    let (mut log, _) = open(&vfs).expect("a new log");
    let mut state = State::default();
    let before = log.stats();
    vfs.lack_descriptors(3);
    let mut index = 0;
    while log.stats().segments == before.segments {
        index += 1;
        let record = entries(1, index..=index, 100);
        log.append(&record).expect("the log goes on");
        log.sync().expect("sync");
        state.apply(&record);
    }
    assert!(log.stats().waits > before.waits);
    drop(log);
    assert_eq!(recovered(&vfs), state);
}
