//! Crashes and failures at every call to the file system.

use std::io::ErrorKind;

use skep_log::sim::Crash;
use skep_log::{HardState, LogError, Record, SimVfs};

use crate::model::{Progress, State, Workload, entries, key, open, run};

const OPS: usize = 500;

/// The number of records after which the model equals what was recovered, which must lie between those acknowledged
/// and those begun. The latest one, as some records change nothing.
fn prefix(workload: &Workload, progress: &Progress, state: &State, at: &str) -> usize {
    let candidates = progress.acknowledged..=progress.appended;
    let found = candidates
        .rev()
        .find(|count| &workload.states[*count] == state);
    found.unwrap_or_else(|| {
        let expected = &workload.states[progress.acknowledged];
        panic!("{at}: recovered no state between {progress:?}\nrecovered {state:#?}\nacknowledged {expected:#?}")
    })
}

/// Opens, and checks that what was recovered is durable and can be written on to.
fn check_recovery(vfs: &SimVfs, workload: &Workload, progress: &Progress, at: &str) {
    let (log, recovered) = open(vfs).unwrap_or_else(|error| panic!("{at}: {error}"));
    let state = State::of(&recovered);
    prefix(workload, progress, &state, at);
    drop(log);

    vfs.crash(Crash::LoseAll);
    let (mut log, again) = open(vfs).unwrap_or_else(|error| panic!("{at}, again: {error}"));
    assert_eq!(
        State::of(&again),
        state,
        "{at}: the second recovery differs"
    );
    let mut state = state;
    let record = entries(99, 1..=2, 10);
    log.append(&record).expect("the log goes on");
    log.sync().expect("the log goes on");
    log.collect(u64::MAX).expect("the log goes on");
    state.apply(&record);
    drop(log);

    vfs.crash(Crash::LoseAll);
    let (_, last) = open(vfs).unwrap_or_else(|error| panic!("{at}, at last: {error}"));
    assert_eq!(
        State::of(&last),
        state,
        "{at}: a record after recovery is missing"
    );
}

/// Runs the workload on a new disk until `prepare_disk`'s trouble strikes.
fn run_until(workload: &Workload, prepare_disk: impl FnOnce(&SimVfs)) -> (SimVfs, Progress) {
    let vfs = SimVfs::new(1);
    prepare_disk(&vfs);
    let progress = match open(&vfs) {
        Ok((mut log, _)) => run(&mut log, &workload.ops),
        Err(error) => Progress {
            error: Some(error.to_string()),
            ..Progress::default()
        },
    };
    (vfs, progress)
}

/// The calls of an undisturbed run, which must be one that frees, copies and recycles.
fn calls_of(workload: &Workload) -> u64 {
    let vfs = SimVfs::new(1);
    let (mut log, _) = open(&vfs).expect("a new log");
    let progress = run(&mut log, &workload.ops);
    assert_eq!(progress.error, None);
    assert_eq!(progress.acknowledged + 1, workload.states.len());
    let stats = log.stats();
    assert!(
        stats.freed_segments > 5 && stats.copied_bytes > 0,
        "{stats:?}"
    );
    vfs.calls()
}

// P-54
#[test]
fn no_crash_loses_what_was_synced_or_leaves_half_a_record() {
    let workload = Workload::random(11, OPS);
    let calls = calls_of(&workload);
    for call in 0..calls {
        let (vfs, progress) = run_until(&workload, |vfs| vfs.cut_power_after(call));
        assert!(progress.error.is_some());
        let modes = [
            Crash::LoseAll,
            Crash::ProcessOnly,
            Crash::TearLast(call),
            Crash::Subset(call),
            Crash::Subset(!call),
        ];
        for crash in modes {
            let disk = vfs.fork();
            disk.crash(crash);
            check_recovery(
                &disk,
                &workload,
                &progress,
                &format!("power cut after call {call}, {crash:?}"),
            );
        }
    }
}

// P-56
#[test]
fn a_failed_call_poisons_the_log_and_loses_nothing_acknowledged() {
    let workload = Workload::random(12, OPS);
    let calls = calls_of(&workload);
    for call in 1..=calls {
        let kind = if call % 2 == 0 {
            ErrorKind::Other
        } else {
            ErrorKind::StorageFull
        };
        let vfs = SimVfs::new(call);
        vfs.fail_call(call, kind);
        let progress = match open(&vfs) {
            Err(error) => Progress {
                error: Some(error.to_string()),
                ..Progress::default()
            },
            Ok((mut log, _)) => {
                let progress = run(&mut log, &workload.ops);
                assert!(
                    progress.error.is_some(),
                    "call {call} failed, but the log did not"
                );
                let record = Record {
                    hard_state: Some(HardState::default()),
                    ..Record::new(key(77))
                };
                assert!(
                    matches!(log.append(&record), Err(LogError::Poisoned { .. })),
                    "call {call}"
                );
                assert!(
                    matches!(log.sync(), Err(LogError::Poisoned { .. })),
                    "call {call}"
                );
                assert!(
                    matches!(log.collect(1), Err(LogError::Poisoned { .. })),
                    "call {call}"
                );
                progress
            }
        };
        // A failed sync leaves pages that look clean and are not durable; recovery must not be taken in by them.
        for crash in [Crash::ProcessOnly, Crash::LoseAll, Crash::Subset(call)] {
            let disk = vfs.fork();
            disk.crash(crash);
            check_recovery(
                &disk,
                &workload,
                &progress,
                &format!("call {call} failed, {crash:?}"),
            );
        }
    }
}

#[test]
fn recovery_itself_may_be_interrupted_anywhere() {
    let workload = Workload::random(13, OPS);
    let (vfs, progress) = run_until(&workload, |vfs| {
        vfs.cut_power_after(calls_of(&workload) - 3)
    });
    vfs.crash(Crash::Subset(5));
    let before = vfs.calls();
    let reference = vfs.fork();
    let expected = State::of(&open(&reference).expect("it recovers").1);
    prefix(&workload, &progress, &expected, "uninterrupted");
    for call in before + 1..=reference.calls() {
        let failing = vfs.fork();
        failing.fail_call(call, ErrorKind::Other);
        assert!(open(&failing).is_err(), "call {call} failed unnoticed");
        let cut = vfs.fork();
        cut.cut_power_after(call - 1);
        assert!(open(&cut).is_err());
        for (disk, crash) in [
            (failing, Crash::ProcessOnly),
            (cut.fork(), Crash::LoseAll),
            (cut, Crash::Subset(call)),
        ] {
            disk.crash(crash);
            let (_, recovered) =
                open(&disk).unwrap_or_else(|error| panic!("after call {call}, {crash:?}: {error}"));
            assert_eq!(
                State::of(&recovered),
                expected,
                "after call {call}, {crash:?}"
            );
        }
    }
}

#[test]
fn a_torn_tail_does_not_come_back_when_a_frame_of_its_length_is_written() {
    let vfs = SimVfs::new(1);
    let (mut log, _) = open(&vfs).expect("a new log");
    log.append(&entries(1, 1..=1, 100)).expect("append");
    log.sync().expect("sync");
    let before = vfs.files();
    log.append(&entries(1, 2..=2, 100)).expect("append");
    log.append(&entries(2, 1..=1, 100)).expect("append");
    vfs.cut_power_after(vfs.calls() + 1);
    assert!(log.sync().is_err(), "written, but not synced");
    vfs.crash(Crash::ProcessOnly);
    // Only the first of the two unsynced frames is lost.
    let path = before.last().expect("a segment").clone();
    let mut content = vfs.content(&path).expect("the segment");
    let second = content
        .windows(100)
        .position(|window| window == [2; 100])
        .expect("the entry is there");
    content[second] ^= 1;
    vfs.plant(&path, content);

    let (mut log, recovered) = open(&vfs).expect("a torn tail is no corruption");
    assert_eq!(recovered.groups.len(), 1);
    assert!(
        recovered.torn_bytes > 200,
        "both frames are reported: {}",
        recovered.torn_bytes
    );
    log.append(&entries(1, 2..=2, 100)).expect("append");
    log.sync().expect("sync");
    vfs.crash(Crash::LoseAll);
    let (_, recovered) = open(&vfs).expect("it recovers");
    assert_eq!(
        recovered.groups.len(),
        1,
        "group 2 was never acknowledged and was dropped before"
    );
    assert_eq!(recovered.groups[0].entries.len(), 2);
}

#[test]
fn a_full_disk_has_its_own_code_and_loses_nothing() {
    let vfs = SimVfs::new(1);
    let (mut log, _) = open(&vfs).expect("a new log");
    vfs.limit_capacity(Some(6000));
    let mut acknowledged = 0;
    let error = loop {
        let next = entries(1, acknowledged + 1..=acknowledged + 1, 200);
        match log.append(&next).and_then(|()| log.sync()) {
            Ok(()) => acknowledged += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(error.code().name(), "disk-full");
    assert!(error.to_string().contains("Free some space"), "{error}");
    assert_eq!(
        log.sync().expect_err("poisoned").code().name(),
        "log-poisoned"
    );
    vfs.crash(Crash::LoseAll);
    vfs.limit_capacity(None);
    let (_, recovered) = open(&vfs).expect("with space again it recovers");
    let found = recovered.groups[0].entries.len() as u64;
    assert!(found >= acknowledged, "{found} entries of {acknowledged}");
}
