//! The storage of a single group.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use skep_log::sim::Crash;
use skep_log::{
    HardState, LogError, LogPosition, OpenedStorage, SimVfs, SnapshotMeta, open_storage,
    open_storage_with,
};
use skep_types::form::Form;

use crate::model::{entry, key, small};

const HARD_STATE: HardState = HardState {
    term: 2,
    vote: 1,
    commit: 2,
};

fn open(vfs: &SimVfs) -> Result<OpenedStorage, LogError> {
    open_storage_with(Arc::new(vfs.clone()), 1, 7, Path::new("/group"), small())
}

fn snapshot(index: u64) -> SnapshotMeta {
    let position = LogPosition { index, term: 2 };
    SnapshotMeta {
        key: key(0),
        position,
        state: Bytes::new(),
        form: Form::Saved,
        schema: 1,
        component: [0; 32],
    }
}

#[test]
fn saved_state_and_entries_are_there_after_a_power_cut() {
    let vfs = SimVfs::new(1);
    let opened = open(&vfs).expect("new");
    assert!(!opened.existed);
    assert_eq!(
        (opened.last_snapshot_index, opened.last_entry_index),
        (0, 0)
    );
    let mut storage = opened.storage;
    let entries = [entry(1, 1, "a"), entry(2, 2, "b"), entry(3, 2, "c")];
    storage.save(&HARD_STATE, &entries).expect("saved");
    vfs.crash(Crash::LoseAll);
    let opened = open(&vfs).expect("reopened");
    assert!(opened.existed);
    assert_eq!(opened.recovered.hard_state, HARD_STATE);
    assert_eq!(opened.recovered.entries, entries);
    assert_eq!(
        (opened.last_snapshot_index, opened.last_entry_index),
        (0, 3)
    );
}

#[test]
fn a_save_is_one_atomic_record_wherever_it_is_cut() {
    let clean = SimVfs::new(1);
    drop(open(&clean).expect("new"));
    let start = clean.calls();
    let newer = HardState {
        term: 3,
        vote: 3,
        commit: 2,
    };
    let save = |vfs: &SimVfs| {
        let mut storage = open(vfs)?.storage;
        storage.save(&newer, &[entry(1, 3, vec![5; 2000]), entry(2, 3, "b")])
    };
    let run = clean.fork();
    run.crash(Crash::ProcessOnly);
    save(&run).expect("saved");
    for call in start..=run.calls() {
        let vfs = clean.fork();
        vfs.crash(Crash::ProcessOnly);
        vfs.cut_power_after(call);
        let done = save(&vfs).is_ok();
        for seed in 0..6 {
            let disk = vfs.fork();
            disk.crash(Crash::Subset(seed));
            let found = open(&disk).expect("it recovers").recovered;
            let whole = found.hard_state == newer && found.entries.len() == 2;
            let nothing = found.hard_state == HardState::default() && found.entries.is_empty();
            assert!(
                whole || (nothing && !done),
                "call {call}, seed {seed}: {found:?}"
            );
        }
    }
}

#[test]
fn snapshots_replace_one_another_and_allow_compaction() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut storage = open_storage(1, 7, dir.path()).expect("new").storage;
    let entries: Vec<_> = (1..=9).map(|index| entry(index, 2, "x")).collect();
    storage
        .save(
            &HardState {
                commit: 9,
                ..HARD_STATE
            },
            &entries,
        )
        .expect("saved");
    let early = storage
        .compact(LogPosition { index: 4, term: 2 })
        .expect_err("no snapshot covers it");
    assert_eq!(early.code().name(), "log-invalid-record");
    storage.save_snapshot(snapshot(4), b"four").expect("saved");
    storage.save_snapshot(snapshot(6), b"six").expect("saved");
    assert_eq!(
        storage
            .save_snapshot(snapshot(5), b"five")
            .expect_err("older")
            .code()
            .name(),
        "log-invalid-record"
    );
    storage
        .compact(LogPosition { index: 5, term: 2 })
        .expect("compacted");
    storage.close().expect("closed");

    let opened = open_storage(1, 7, dir.path()).expect("reopened");
    assert_eq!(
        (opened.last_snapshot_index, opened.last_entry_index),
        (6, 9)
    );
    assert_eq!(
        opened
            .snapshot
            .expect("a snapshot")
            .guest()
            .expect("it can be read"),
        "six"
    );
    assert_eq!(opened.recovered.entries, entries[5..]);
    assert_eq!(
        std::fs::read_dir(dir.path().join("snap"))
            .expect("a list")
            .count(),
        1
    );

    let mut storage = opened.storage;
    storage
        .install_snapshot(snapshot(20), b"twenty")
        .expect("installed");
    storage
        .save(
            &HardState {
                commit: 20,
                ..HARD_STATE
            },
            &[entry(21, 2, "y")],
        )
        .expect("saved");
    storage.close().expect("closed");
    let opened = open_storage(1, 7, dir.path()).expect("reopened");
    assert_eq!(
        (opened.last_snapshot_index, opened.last_entry_index),
        (20, 21)
    );
    assert_eq!(opened.recovered.truncated.index, 20);
}

#[test]
fn another_group_node_or_process_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let opened = open_storage(1, 7, dir.path()).expect("new");
    assert_eq!(
        open_storage(1, 7, dir.path())
            .expect_err("in use")
            .code()
            .name(),
        "store-locked"
    );
    drop(opened);
    let error = open_storage(1, 8, dir.path()).expect_err("another group");
    assert!(
        matches!(
            error,
            LogError::WrongGroup {
                expected: 8,
                found: 7,
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(
        open_storage(2, 7, dir.path())
            .expect_err("another node")
            .code()
            .name(),
        "store-wrong-node"
    );
}

#[test]
fn a_failed_save_is_reported_and_nothing_follows_it() {
    let vfs = SimVfs::new(1);
    let mut storage = open(&vfs).expect("new").storage;
    vfs.fail_call(vfs.calls() + 2, std::io::ErrorKind::Other);
    assert_eq!(
        storage
            .save(&HARD_STATE, &[entry(1, 1, "a"), entry(2, 2, "b")])
            .expect_err("the sync failed")
            .code()
            .name(),
        "log-io"
    );
    assert_eq!(
        storage
            .save(&HARD_STATE, &[])
            .expect_err("poisoned")
            .code()
            .name(),
        "log-poisoned"
    );
    assert_eq!(
        storage.sync().expect_err("poisoned").code().name(),
        "log-poisoned"
    );
}
