//! Entries read back from the files of a log that goes on.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use skep_log::sim::Crash;
use skep_log::{Entry, GroupKey, LogError, LogOptions, LogPosition, LogReader, Record, SimVfs};

use crate::model::{
    DIR, Op, State, Workload, compaction, entries, key, mark, open, open_with, small,
};

/// All entries of a group that a reader gives, in pieces of so many bytes.
fn all(reader: &LogReader, key: GroupKey, first: u64, last: u64, bytes: u64) -> Vec<Entry> {
    let mut read: Vec<Entry> = Vec::new();
    while first + (read.len() as u64) <= last {
        let next = first + read.len() as u64;
        let more = reader.entries(key, next, last, bytes).expect("readable");
        let more = more.unwrap_or_else(|| panic!("{key}: {next} of {first}..={last} is gone"));
        assert!(!more.is_empty());
        read.extend(more);
    }
    read
}

fn check(reader: &LogReader, state: &State, at: &str) {
    for (key, group) in &state.groups {
        let truncated = group.truncated.index;
        for bytes in [1, 500] {
            let (first, last) = (truncated + 1, truncated + group.entries.len() as u64);
            assert_eq!(all(reader, *key, first, last, bytes), group.entries, "{at}");
        }
        let gone = reader
            .entries(*key, truncated, truncated, 1)
            .expect("no error");
        assert_eq!(gone, None, "{at}: what is truncated is not given out");
    }
}

#[test]
fn whatever_is_durable_can_be_read_back() {
    for seed in 30..36 {
        let workload = Workload::random(seed, 400);
        let vfs = SimVfs::new(seed);
        let (mut log, _) = open(&vfs).expect("a new log");
        let reader = log.reader();
        let mut appended = 0;
        for (at, op) in workload.ops.iter().enumerate() {
            match op {
                Op::Append(record) => {
                    appended += 1;
                    log.append(record).expect("append");
                }
                Op::Sync => log.sync().expect("sync"),
                Op::Prepare => log.prepare().expect("prepare"),
                Op::Collect => drop(log.collect(2000).expect("collect")),
            }
            if matches!(op, Op::Sync | Op::Collect) {
                check(
                    &reader,
                    &workload.states[appended],
                    &format!("seed {seed}, op {at}"),
                );
            }
        }
        let stats = log.stats();
        assert!(
            stats.freed_segments > 3 && stats.copied_bytes > 0,
            "{stats:?}"
        );
        drop(log);
        for crash in [Crash::LoseAll, Crash::ProcessOnly, Crash::Subset(seed)] {
            let disk = vfs.fork();
            disk.crash(crash);
            let (log, recovered) = open(&disk).expect("it recovers");
            check(&log.reader(), &State::of(&recovered), &format!("{crash:?}"));
        }
    }
}

/// While one thread writes, truncates, collects and uses freed files again, another reads.
#[test]
fn a_reader_beside_the_writer_gets_what_was_written_or_nothing() {
    let vfs = SimVfs::new(9);
    let (mut log, _) = open(&vfs).expect("a new log");
    log.append(&entries(1, 1..=40, 100)).expect("append");
    log.sync().expect("sync");
    let reader = log.reader();
    // Nobody may ask for more: what is not durable may be on its way to the file.
    let durable = AtomicU64::new(40);
    let durable = &durable;
    std::thread::scope(|scope| {
        let writer = scope.spawn(move || {
            for index in (41..3000).step_by(10) {
                log.append(&entries(1, index..=index + 9, 100))
                    .expect("append");
                log.append(&entries(2, index - 40..=index - 31, 10))
                    .expect("append");
                log.append(&compaction(1, index - 20)).expect("append");
                log.sync().expect("sync");
                durable.store(index + 9, Ordering::Release);
                if log.wants_collect() {
                    log.collect(1 << 20).expect("collect");
                }
            }
            log.stats()
        });
        let mut found = 0;
        let mut ended = false;
        while !ended {
            // Once more after the end, however late this thread got to run.
            ended = writer.is_finished();
            let last = durable.load(Ordering::Acquire);
            for first in (1..=last).step_by(37) {
                let read = reader
                    .entries(key(1), first, last.min(first + 30), 2000)
                    .expect("no error");
                for (entry, index) in read.into_iter().flatten().zip(first..) {
                    assert_eq!((entry.index, entry.data[0]), (index, index as u8));
                    found += 1;
                }
            }
        }
        let stats = writer.join().expect("the writer ends");
        assert!(stats.freed_segments > 20 && found > 0, "{stats:?}, {found}");
    });
}

/// What is behind the snapshot was kept for others. A restart does not take it up; the log goes on as if it did.
#[test]
fn recovery_passes_over_what_the_snapshot_covers() {
    let options = LogOptions {
        recovered_behind_bytes: 300,
        ..small()
    };
    let vfs = SimVfs::new(3);
    let (mut log, _) = open(&vfs).expect("a new log");
    log.append(&entries(1, 1..=50, 100)).expect("append");
    let snapshot = Record {
        snapshot: Some(mark(40, 1)),
        truncated: Some(LogPosition { index: 5, term: 1 }),
        ..Record::new(key(1))
    };
    log.append(&snapshot).expect("append");
    log.append(&entries(1, 51..=60, 100)).expect("append");
    log.close().expect("closed");

    let (mut log, recovered) = open_with(&vfs, options.clone()).expect("it recovers");
    let group = &recovered.groups[0];
    let indices: Vec<_> = group.entries.iter().map(|entry| entry.index).collect();
    assert_eq!(indices, (39..=60).collect::<Vec<_>>());
    assert_eq!(group.truncated, LogPosition { index: 38, term: 1 });
    let read = all(&log.reader(), key(1), 6, 60, 1000);
    assert_eq!(read.len(), 55, "the files hold it");
    // Collection copies all of it, and it may still be truncated anywhere.
    for index in 61..200 {
        log.append(&entries(1, index..=index, 100)).expect("append");
        log.append(&entries(2, index - 60..=index - 60, 400))
            .expect("append");
        log.append(&compaction(2, index - 60)).expect("append");
        log.sync().expect("sync");
        if log.wants_collect() {
            log.collect(u64::MAX).expect("collect");
        }
    }
    assert!(log.stats().copied_bytes > 0);
    assert_eq!(all(&log.reader(), key(1), 6, 60, 1000), read);
    log.append(&compaction(1, 20)).expect("append");
    log.close().expect("closed");
    let (log, recovered) = open_with(&vfs, options).expect("it recovers");
    let group = recovered.groups.iter().find(|group| group.key == key(1));
    assert_eq!(group.expect("there").truncated.index, 38);
    assert_eq!(all(&log.reader(), key(1), 21, 60, 1000), read[15..]);
}

#[test]
fn damage_and_a_failing_disk_are_errors_and_nothing_else() {
    let vfs = SimVfs::new(4);
    let (mut log, _) = open(&vfs).expect("a new log");
    for index in 1..=9 {
        log.append(&entries(1, index..=index, 100)).expect("append");
    }
    log.sync().expect("sync");
    let reader = log.reader();
    vfs.fail_call(vfs.calls() + 1, ErrorKind::Other);
    let failed = reader.entries(key(1), 2, 9, 1 << 20);
    assert!(matches!(failed, Err(LogError::Io { .. })), "{failed:?}");
    let path = Path::new(DIR).join(format!("{:016x}.wal", 1));
    let sound = vfs.content(&path).expect("there");
    let mut content = sound.clone();
    let place = content.windows(50).position(|bytes| bytes == [5; 50]);
    content[place.expect("entry 5 is there")] ^= 1;
    vfs.plant(&path, content);
    let before = reader.entries(key(1), 2, 9, 1 << 20).expect("readable");
    assert_eq!(before.expect("there").len(), 3, "up to the damage");
    let damaged = reader.entries(key(1), 5, 9, 1 << 20);
    assert!(
        matches!(damaged, Err(LogError::Corrupt { .. })),
        "{damaged:?}"
    );
    assert_eq!(all(&reader, key(1), 6, 9, 1).len(), 4);
}
