//! Damaged, missing and foreign files; records that make no sense.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use skep_log::{DiskVfs, HardState, Log, LogError, LogOptions, LogPosition, Record, SimVfs, Vfs};

use crate::model::{DIR, State, entries, key, mark, open, open_with, small};

/// A log in one segment, with the state after each record and where its records end.
fn written(close: bool) -> (SimVfs, Vec<State>, PathBuf) {
    let vfs = SimVfs::new(1);
    let (mut log, _) = open(&vfs).expect("a new log");
    let mut states = vec![State::default()];
    for step in 1..=6u64 {
        let group = 1 + step % 2;
        let index = step.div_ceil(2);
        let record = Record {
            hard_state: Some(HardState {
                term: step,
                vote: 1,
                commit: index,
            }),
            ..entries(group, index..=index, 20)
        };
        log.append(&record).expect("append");
        log.sync().expect("sync");
        let mut state = states[states.len() - 1].clone();
        state.apply(&record);
        states.push(state);
    }
    if close {
        log.close().expect("close");
    }
    let path = vfs.files().pop().expect("a segment");
    (vfs, states, path)
}

/// Flips every bit of the segment's used part, one at a time, and shows each outcome.
fn flip_all(vfs: &SimVfs, path: &Path, mut check: impl FnMut(usize, Result<State, LogError>)) {
    let content = vfs.content(path).expect("the segment");
    let used = content
        .iter()
        .rposition(|byte| *byte != 0)
        .expect("something was written")
        + 16;
    for at in 0..used {
        for bit in 0..8 {
            let disk = vfs.fork();
            let mut damaged = content.clone();
            damaged[at] ^= 1 << bit;
            disk.plant(path, damaged);
            check(at, open(&disk).map(|(_, recovered)| State::of(&recovered)));
        }
    }
}

// P-55
#[test]
fn after_a_clean_close_every_flipped_bit_is_reported_or_harmless() {
    let (vfs, states, path) = written(true);
    let full = &states[states.len() - 1];
    let mut reported = 0;
    flip_all(&vfs, &path, |at, outcome| match outcome {
        Ok(state) => assert_eq!(&state, full, "byte {at}: wrong data"),
        Err(LogError::Corrupt { file, offset, .. }) => {
            assert_eq!(file, path);
            assert!(offset as usize <= at, "byte {at} was reported as {offset}");
            reported += 1;
        }
        Err(error) => assert!(at < 12, "byte {at}: {error}"),
    });
    // 6 frames of at least 40 + 30 bytes that matter.
    assert!(reported > 6 * 70 * 8, "{reported} flips reported");
}

#[test]
fn after_a_crash_a_flipped_bit_cuts_at_most_the_last_frame() {
    let (vfs, states, path) = written(false);
    let (full, but_last) = (&states[states.len() - 1], &states[states.len() - 2]);
    flip_all(&vfs, &path, |at, outcome| match outcome {
        Ok(state) => assert!(&state == full || &state == but_last, "byte {at}: {state:?}"),
        Err(error) => assert!(
            error.code().name() == "log-corrupt" || at < 12,
            "byte {at}: {error}"
        ),
    });
}

// P-55
#[test]
fn damage_in_a_full_segment_is_corruption() {
    let vfs = SimVfs::new(1);
    let (mut log, _) = open(&vfs).expect("a new log");
    for index in 1..=60 {
        log.append(&entries(1, index..=index, 100)).expect("append");
    }
    log.sync().expect("sync");
    assert!(log.stats().segments >= 3);
    drop(log);
    let path = vfs.files().remove(0);
    let mut content = vfs.content(&path).expect("the segment");
    let last = content.iter().rposition(|byte| *byte != 0).expect("data");
    content[last] ^= 1;
    vfs.plant(&path, content);
    let error = open(&vfs).expect_err("the damage was acknowledged data");
    assert!(
        matches!(&error, LogError::Corrupt { file, .. } if *file == path),
        "{error}"
    );
    assert!(
        error.to_string().contains(&*path.to_string_lossy()),
        "{error}"
    );
}

#[test]
fn a_missing_segment_is_noticed_whichever_it_is() {
    let vfs = SimVfs::new(1);
    let (mut log, _) = open(&vfs).expect("a new log");
    for index in 1..=90 {
        log.append(&entries(1, index..=index, 100)).expect("append");
    }
    log.sync().expect("sync");
    drop(log);
    let files = vfs.files();
    assert!(files.len() >= 3);
    for path in &files[..files.len() - 1] {
        let disk = vfs.fork();
        disk.remove(path).expect("remove");
        let error = open(&disk).expect_err("a segment is missing");
        assert!(
            matches!(&error, LogError::MissingSegment { file } if file == path),
            "{error}"
        );
    }
}

#[test]
fn foreign_newer_and_shortened_segments_are_refused_by_name() {
    let (vfs, _, path) = written(false);
    let error = open_with(
        &vfs,
        LogOptions {
            store: [8; 16],
            ..small()
        },
    )
    .expect_err("another store");
    assert_eq!(error.code().name(), "log-wrong-store");

    let content = vfs.content(&path).expect("the segment");
    let mut newer = content.clone();
    newer[8] = 9;
    let crc = crc32c::crc32c(&newer[..60]).to_le_bytes();
    newer[60..64].copy_from_slice(&crc);
    vfs.plant(&path, newer);
    let error = open(&vfs).expect_err("another version");
    assert!(
        matches!(
            error,
            LogError::UnsupportedFormat {
                found: 9,
                supported: 1,
                ..
            }
        ),
        "{error}"
    );

    for len in 0..64 {
        vfs.plant(&path, content[..len].to_vec());
        assert_eq!(
            open(&vfs).expect_err("too short").code().name(),
            "log-corrupt"
        );
    }
    for len in 64..content.len().min(700) {
        vfs.plant(&path, content[..len].to_vec());
        // Cut files lose the frames behind the cut, and never more.
        assert!(open(&vfs.fork()).is_ok(), "cut at {len}");
    }
}

#[test]
fn other_files_in_the_directory_are_left_alone() {
    let (vfs, states, _) = written(false);
    for name in [
        "notes.txt",
        "0000000000000001.wal.bak",
        "1.wal",
        "+000000000000002.wal",
        "ffffffffffffffff.wal",
    ] {
        vfs.plant(&Path::new(DIR).join(name), vec![1]);
    }
    let (_, recovered) = open(&vfs).expect("it recovers");
    assert_eq!(State::of(&recovered), states[states.len() - 1]);
    assert!(vfs.content(&Path::new(DIR).join("notes.txt")).is_some());
}

#[test]
fn a_senseless_record_is_refused_and_changes_nothing() {
    let vfs = SimVfs::new(1);
    let (mut log, _) = open(&vfs).expect("a new log");
    let mut state = State::default();
    let position = |index| Some(LogPosition { index, term: 1 });
    let commit = |commit| {
        Some(HardState {
            term: 1,
            vote: 0,
            commit,
        })
    };
    for record in [
        Record {
            hard_state: commit(8),
            ..entries(1, 1..=10, 5)
        },
        Record {
            snapshot: Some(mark(5, 1)),
            truncated: position(4),
            ..Record::new(key(1))
        },
        Record::tombstone(key(2)),
    ] {
        log.append(&record).expect("sound");
        state.apply(&record);
    }
    let mut broken = entries(1, 11..=13, 5);
    broken.entries.remove(1);
    let senseless = [
        ("a gap before", entries(1, 12..=12, 5)),
        ("a gap inside", broken),
        ("truncated entries", entries(1, 4..=12, 5)),
        ("committed entries", entries(1, 6..=6, 5)),
        (
            "commit beyond the log",
            Record {
                hard_state: commit(11),
                ..Record::new(key(1))
            },
        ),
        (
            "truncation beyond the log",
            Record {
                truncated: position(11),
                snapshot: Some(mark(11, 1)),
                ..Record::new(key(1))
            },
        ),
        (
            "truncation beyond the snapshot",
            Record {
                truncated: position(6),
                ..Record::new(key(1))
            },
        ),
        (
            "a reset without position",
            Record {
                reset: true,
                ..Record::new(key(1))
            },
        ),
        (
            "a reset without snapshot",
            Record {
                reset: true,
                truncated: position(20),
                ..Record::new(key(1))
            },
        ),
        ("a new group with a gap", entries(3, 2..=2, 5)),
        (
            "a tombstone with entries",
            Record {
                removed: true,
                ..entries(1, 11..=11, 5)
            },
        ),
    ];
    for (what, record) in senseless {
        let error = log.append(&record).expect_err(what);
        assert_eq!(error.code().name(), "log-invalid-record", "{what}: {error}");
        assert!(error.is_record_error());
    }
    let error = log.append(&entries(2, 1..=1, 5)).expect_err("removed");
    assert_eq!(error.code().name(), "group-removed");
    let error = log
        .append(&entries(1, 11..=11, 2 << 20))
        .expect_err("too large");
    assert_eq!(error.code().name(), "log-record-too-large");
    log.sync().expect("the log goes on");
    let (_, recovered) = open(&vfs).expect("it recovers");
    assert_eq!(State::of(&recovered), state);
}

#[test]
fn options_out_of_range_are_refused() {
    for options in [
        LogOptions {
            segment_bytes: 100,
            ..small()
        },
        LogOptions {
            fill_step: 0,
            ..small()
        },
        LogOptions {
            max_record_bytes: u64::MAX,
            ..small()
        },
    ] {
        assert_eq!(
            open_with(&SimVfs::new(1), options)
                .expect_err("out of range")
                .code()
                .name(),
            "log-options"
        );
    }
}

#[test]
fn a_real_directory_works_and_an_unreadable_one_is_an_error() {
    let dir = tempfile::tempdir().expect("a directory");
    let wal = dir.path().join("deep/wal");
    let vfs: Arc<dyn Vfs> = Arc::new(DiskVfs);
    let options = LogOptions {
        store: [1; 16],
        ..LogOptions::default()
    };
    let (mut log, recovered) =
        Log::open(Arc::clone(&vfs), &wal, options.clone()).expect("a new log");
    assert!(recovered.created);
    log.append(&entries(1, 1..=5, 1000)).expect("append");
    log.sync().expect("sync");
    log.close().expect("close");
    let bytes: u64 = std::fs::read_dir(&wal)
        .expect("list")
        .map(|file| file.expect("file").metadata().expect("size").len())
        .sum();
    assert_eq!(bytes, options.fill_step, "a new node writes little ahead");
    let (_, recovered) = Log::open(Arc::clone(&vfs), &wal, options.clone()).expect("it recovers");
    assert_eq!(recovered.groups[0].entries, entries(1, 1..=5, 1000).entries);
    assert!(!recovered.created);

    let file = dir.path().join("file");
    std::fs::write(&file, "not a directory").expect("write");
    let error = Log::open(vfs, &file.join("wal"), options).expect_err("a file is in the way");
    assert_eq!(error.code().name(), "log-io");
    assert!(error.to_string().contains("file"), "{error}");
}

#[test]
fn a_removed_replica_is_gone_and_a_later_one_may_begin() {
    let vfs = SimVfs::new(1);
    let (mut log, _) = open(&vfs).expect("a new log");
    let of = |replica| Record {
        replica,
        ..Record::new(key(1))
    };
    log.append(&of(2)).expect("append");
    log.append(&Record::replica_removed(key(1), 2))
        .expect("append");
    for gone in [0, 1, 2] {
        let refused = log.append(&of(gone)).expect_err("gone for ever");
        assert_eq!(refused.code().name(), "group-removed");
    }
    log.append(&of(3)).expect("a later replica begins anew");
    log.append(&of(0)).expect("and goes on");
    log.append(&Record::tombstone(key(1))).expect("append");
    let refused = log.append(&of(4)).expect_err("the life is over");
    assert_eq!(refused.code().name(), "group-removed");
}
