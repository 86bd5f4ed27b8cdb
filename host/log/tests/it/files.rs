//! Snapshot files, the data directory's identity, and pinned peers.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use skep_log::sim::Crash;
use skep_log::{
    DiskVfs, LogError, LogPosition, PeerPins, Pin, SimVfs, SnapshotFile, SnapshotMeta,
    SnapshotName, SnapshotStore, Store, StoreId, Vfs,
};
use skep_types::form::Form;

use crate::model::{key, small};

const SNAP: &str = "/data/snap";

fn snapshots(vfs: &SimVfs) -> SnapshotStore {
    SnapshotStore::open_dir(Arc::new(vfs.clone()), Path::new(SNAP)).expect("a directory")
}

fn meta(index: u64) -> SnapshotMeta {
    let position = LogPosition { index, term: 2 };
    SnapshotMeta {
        key: key(1),
        position,
        state: Bytes::from_static(b"members"),
        form: Form::Saved,
        schema: 3,
        component: [9; 32],
    }
}

fn save(store: &SnapshotStore, index: u64, guest: &[u8]) -> Result<SnapshotFile, LogError> {
    store
        .seal(meta(index), Bytes::copy_from_slice(guest))?
        .place()
}

fn sample(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 % 251) as u8).collect()
}

#[test]
fn a_snapshot_is_read_back_whole_on_a_real_disk() {
    let dir = tempfile::tempdir().expect("a directory");
    let store =
        SnapshotStore::open_dir(Arc::new(DiskVfs), &dir.path().join("snap")).expect("a directory");
    for len in [0, 1, 3_000_000] {
        let guest = sample(len);
        let written = save(&store, len as u64 + 1, &guest).expect("it is written");
        let at_once = store.read(key(1), written.mark()).expect("it is read");
        assert_eq!(at_once, (meta(len as u64 + 1), guest.clone().into()));
        let read = store.open(key(1), written.mark()).expect("it is read");
        for file in [&written, &read] {
            assert_eq!(file.meta(), &meta(len as u64 + 1));
            assert_eq!(file.guest().expect("it can be read"), guest);
            assert_eq!(
                file.size(),
                std::fs::metadata(file.path()).expect("a file").len()
            );
        }
        // What is open outlives its name.
        store
            .remove(key(1), written.mark().position)
            .expect("it is removed");
        assert_eq!(read.guest().expect("it can be read"), guest);
    }
    assert_eq!(store.list().expect("a list"), []);
}

#[test]
fn the_header_says_what_the_guests_bytes_are() {
    let vfs = SimVfs::new(1);
    let store = snapshots(&vfs);
    for (index, form, version) in [(7, Form::Saved, 1), (8, Form::Image, 2)] {
        let meta = SnapshotMeta {
            form,
            ..meta(index)
        };
        let guest = Bytes::from(sample(60));
        let sealed = store.seal(meta.clone(), guest.clone()).expect("in memory");
        let file = sealed.place().expect("it is written");
        let content = vfs.content(file.path()).expect("the file");
        assert_eq!(content[8..12], u32::to_le_bytes(version));
        let read = store.read(key(1), file.mark()).expect("it is read");
        assert_eq!(read, (meta, guest));
    }
}

// P-58
#[test]
fn a_finished_snapshot_survives_any_crash_and_an_unfinished_one_leaves_nothing() {
    let guest = sample(5000);
    let clean = SimVfs::new(1);
    save(&snapshots(&clean), 7, &guest).expect("it is written");
    for call in 0..=clean.calls() {
        let vfs = SimVfs::new(1);
        vfs.cut_power_after(call);
        let store = SnapshotStore::open_dir(Arc::new(vfs.clone()), Path::new(SNAP));
        let outcome = store.and_then(|store| save(&store, 7, &guest));
        for crash in [
            Crash::LoseAll,
            Crash::Subset(call),
            Crash::TearLast(call),
            Crash::ProcessOnly,
        ] {
            let disk = vfs.fork();
            disk.crash(crash);
            let store = snapshots(&disk);
            let found = store.list().expect("a list");
            match &outcome {
                Ok(file) => assert_eq!(
                    store
                        .open(key(1), file.mark())
                        .expect("it is durable")
                        .guest()
                        .expect("it can be read"),
                    guest
                ),
                Err(_) => {
                    for name in found {
                        // Its name appears only after its content.
                        let file = store
                            .verify(&store.path(name.key, name.position))
                            .expect("a named snapshot is whole");
                        assert_eq!(file.guest().expect("it can be read"), guest);
                    }
                }
            }
            assert!(
                disk.files()
                    .iter()
                    .all(|path| !path.to_string_lossy().ends_with(".tmp")),
                "{:?}",
                disk.files()
            );
        }
    }
}

#[test]
fn a_failed_call_leaves_no_snapshot_and_no_rubbish() {
    let clean = SimVfs::new(1);
    save(&snapshots(&clean), 7, &sample(100)).expect("it is written");
    for call in 2..=clean.calls() {
        let vfs = SimVfs::new(1);
        let store = snapshots(&vfs);
        vfs.fail_call(call, ErrorKind::StorageFull);
        if let Err(error) = save(&store, 7, &sample(100)) {
            assert_eq!(error.code().name(), "disk-full", "call {call}");
        }
        assert!(
            vfs.files()
                .iter()
                .all(|path| !path.to_string_lossy().ends_with(".tmp")),
            "call {call}: {:?}",
            vfs.files()
        );
    }
}

// P-58
#[test]
fn every_flipped_bit_and_every_cut_of_a_snapshot_is_noticed() {
    let vfs = SimVfs::new(1);
    let store = snapshots(&vfs);
    let file = save(&store, 7, &sample(60)).expect("it is written");
    let content = vfs.content(file.path()).expect("the file");
    for at in 0..content.len() * 8 {
        let mut damaged = content.clone();
        damaged[at / 8] ^= 1 << (at % 8);
        vfs.plant(file.path(), damaged);
        for error in [
            store.verify(file.path()).expect_err("damaged"),
            store.read(key(1), file.mark()).expect_err("damaged"),
        ] {
            assert_eq!(error.code().name(), "snapshot-corrupt", "bit {at}");
        }
    }
    for len in 0..content.len() {
        vfs.plant(file.path(), content[..len].to_vec());
        for error in [
            store.open(key(1), file.mark()).expect_err("cut"),
            store.read(key(1), file.mark()).expect_err("cut"),
        ] {
            assert_eq!(error.code().name(), "snapshot-corrupt", "length {len}");
        }
    }
}

#[test]
fn an_unfinished_snapshot_is_removed_when_dropped() {
    let vfs = SimVfs::new(1);
    let store = snapshots(&vfs);
    let sealed = store
        .seal(meta(1), vec![1; 5000].into())
        .expect("in memory");
    assert_eq!(vfs.files().len(), 0);
    // A disk that cannot take it leaves nothing behind, and may be asked again.
    vfs.limit_capacity(Some(1000));
    assert_eq!(sealed.place().expect_err("full").code().name(), "disk-full");
    assert_eq!(vfs.files().len(), 0);
    vfs.limit_capacity(None);
    sealed.place().expect("there is room again");
    assert_eq!(vfs.files().len(), 1);
    // Nor does one that is received and given up.
    let other = store
        .seal(meta(2), vec![1; 5000].into())
        .expect("in memory");
    let mut receiver = store
        .receive(key(1), other.mark().clone(), 1 << 20)
        .expect("it begins");
    receiver.write_chunk(0, &[1; 500]).expect("written");
    assert_eq!(vfs.files().len(), 2);
    drop(receiver);
    assert_eq!(vfs.files().len(), 1);
}

#[test]
fn a_received_snapshot_equals_the_sent_one() {
    let (from, to) = (SimVfs::new(1), SimVfs::new(2));
    let sent = save(&snapshots(&from), 7, &sample(10_000)).expect("it is written");
    let store = snapshots(&to);
    let mut receiver = store
        .receive(key(1), sent.mark().clone(), 1 << 20)
        .expect("it begins");
    let mut offset = 0;
    loop {
        let chunk = sent.read_chunk(offset, 999).expect("it can be read");
        if chunk.is_empty() {
            break;
        }
        assert!(receiver.received() < sent.size());
        receiver.write_chunk(offset, &chunk).expect("in order");
        receiver
            .write_chunk(offset, &chunk)
            .expect("a repetition is ignored");
        let error = receiver
            .write_chunk(offset + 1500, &[1])
            .expect_err("a gap or beyond the end");
        assert!(
            ["snapshot-chunk", "snapshot-too-large"].contains(&error.code().name()),
            "{error}"
        );
        offset += chunk.len() as u64;
        assert_eq!(receiver.received(), offset);
    }
    assert_eq!(receiver.received(), sent.size());
    let file = receiver.finish().expect("it is whole");
    let received = file.guest().expect("it can be read");
    to.crash(Crash::LoseAll);
    let store = snapshots(&to);
    let again = store.open(key(1), sent.mark()).expect("it is durable");
    assert_eq!(
        (
            received,
            again.guest().expect("it can be read"),
            again.meta()
        ),
        (
            sent.guest().expect("it can be read"),
            sent.guest().expect("it can be read"),
            sent.meta()
        )
    );
}

#[test]
fn a_wrong_incomplete_or_oversized_transfer_is_refused() {
    let vfs = SimVfs::new(1);
    let sent = save(&snapshots(&SimVfs::new(2)), 7, &sample(100)).expect("it is written");
    let all = sent.read_chunk(0, usize::MAX).expect("it can be read");
    let store = snapshots(&vfs);
    let limit = sent.size() - 1;
    assert_eq!(
        store
            .receive(key(1), sent.mark().clone(), limit)
            .expect_err("too large")
            .code()
            .name(),
        "snapshot-too-large"
    );

    let mut receiver = store
        .receive(key(1), sent.mark().clone(), u64::MAX)
        .expect("it begins");
    receiver.write_chunk(0, &all[..200]).expect("stored");
    assert_eq!(
        receiver.finish().expect_err("incomplete").code().name(),
        "snapshot-corrupt"
    );

    let mut flipped = all.to_vec();
    flipped[50] ^= 1;
    let mut other_digest = sent.mark().clone();
    other_digest.digest[0] ^= 1;
    let cases = [
        (key(1), sent.mark().clone(), flipped),
        (key(2), sent.mark().clone(), all.to_vec()),
        (key(1), other_digest, all.to_vec()),
    ];
    for (key, mark, bytes) in cases {
        let mut receiver = store.receive(key, mark, u64::MAX).expect("it begins");
        receiver.write_chunk(0, &bytes).expect("stored");
        assert_eq!(
            receiver
                .finish()
                .expect_err("not what was announced")
                .code()
                .name(),
            "snapshot-corrupt"
        );
    }
    assert_eq!(vfs.files().len(), 0, "nothing is left");
}

#[test]
fn orphans_are_swept_and_the_kept_stay() {
    let vfs = SimVfs::new(1);
    let store = snapshots(&vfs);
    for index in [3, 5, 8] {
        save(&store, index, b"x").expect("it is written");
    }
    vfs.plant(&Path::new(SNAP).join("README"), vec![]);
    let name = |index| SnapshotName {
        key: key(1),
        position: LogPosition { index, term: 2 },
    };
    assert_eq!(store.sweep_orphans(&[name(5), name(9)]).expect("swept"), 2);
    assert_eq!(store.list().expect("a list"), [name(5)]);
    assert_eq!(
        vfs.files().len(),
        2,
        "a file that is no snapshot is left alone"
    );
}

pub(crate) const DATA: &str = "/data";

pub(crate) fn store(vfs: &SimVfs, cluster: &str, node: u64, id: u8) -> Result<Store, LogError> {
    let vfs: Arc<dyn Vfs> = Arc::new(vfs.clone());
    Store::open_with(&vfs, Path::new(DATA), cluster, node, || {
        Ok(StoreId([id; 16]))
    })
}

#[test]
fn a_store_keeps_its_id_and_refuses_others() {
    let vfs = SimVfs::new(1);
    let first = store(&vfs, "bees", 1, 4).expect("a new store");
    assert!(first.created());
    assert_eq!(
        store(&vfs, "bees", 1, 5).expect_err("in use").code().name(),
        "store-locked"
    );
    drop(first);
    let again = store(&vfs, "bees", 1, 5).expect("the same store");
    assert!(!again.created());
    assert_eq!(again.identity().store, StoreId([4; 16]));
    drop(again);
    let error = store(&vfs, "wasps", 1, 5).expect_err("another cluster");
    assert!(
        matches!(&error, LogError::WrongCluster { expected, found, .. } if expected == "wasps" && found == "bees"),
        "{error}"
    );
    let error = store(&vfs, "bees", 2, 5).expect_err("another node");
    assert!(
        matches!(
            error,
            LogError::WrongNode {
                expected: 2,
                found: 1,
                ..
            }
        ),
        "{error}"
    );
    for (cluster, node) in [
        ("", 1),
        ("two words", 1),
        ("line\nbreak", 1),
        (&*"x".repeat(256), 1),
        ("bees", 0),
    ] {
        assert_eq!(
            store(&vfs, cluster, node, 5)
                .expect_err("invalid")
                .code()
                .name(),
            "store-invalid-identity"
        );
    }
}

#[test]
fn a_real_store_is_locked_and_its_id_random() {
    let dir = tempfile::tempdir().expect("a directory");
    let vfs: Arc<dyn Vfs> = Arc::new(DiskVfs);
    let one = Store::open(&vfs, &dir.path().join("one"), "bees", 1).expect("a new store");
    let two = Store::open(&vfs, &dir.path().join("two"), "bees", 1).expect("a new store");
    assert_ne!(one.identity().store, two.identity().store);
    let error = Store::open(&vfs, &dir.path().join("one"), "bees", 1).expect_err("in use");
    assert_eq!(error.code().name(), "store-locked");
    let id = one.identity().store;
    drop(one);
    assert_eq!(
        Store::open(&vfs, &dir.path().join("one"), "bees", 1)
            .expect("it is free")
            .identity()
            .store,
        id
    );
}

#[test]
fn a_damaged_identity_is_an_error_and_never_a_new_one() {
    let vfs = SimVfs::new(1);
    drop(store(&vfs, "bees", 1, 4).expect("a new store"));
    let path = Path::new(DATA).join("identity");
    let content = vfs.content(&path).expect("the file");
    for len in 0..content.len() {
        vfs.plant(&path, content[..len].to_vec());
        assert_eq!(
            store(&vfs, "bees", 1, 5).expect_err("cut").code().name(),
            "store-bad-identity",
            "length {len}"
        );
    }
    for bit in 0..content.len() * 8 {
        let mut damaged = content.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        vfs.plant(&path, damaged);
        assert_eq!(
            store(&vfs, "bees", 1, 5)
                .expect_err("flipped")
                .code()
                .name(),
            "store-bad-identity",
            "bit {bit}"
        );
    }
    vfs.plant(&path, vec![b'x'; 10_000]);
    assert_eq!(
        store(&vfs, "bees", 1, 5)
            .expect_err("too long")
            .code()
            .name(),
        "store-bad-identity"
    );
    vfs.remove(&path).expect("removed");
    vfs.plant(Path::new("/data/wal/0000000000000001.wal"), vec![1]);
    vfs.create_dir_all(Path::new("/data/wal"))
        .expect("a directory");
    assert_eq!(
        store(&vfs, "bees", 1, 5)
            .expect_err("a log without identity")
            .code()
            .name(),
        "store-bad-identity"
    );
}

#[test]
fn the_first_start_may_be_interrupted_anywhere() {
    let clean = SimVfs::new(1);
    drop(store(&clean, "bees", 1, 4).expect("a new store"));
    for call in 0..=clean.calls() {
        let vfs = SimVfs::new(1);
        vfs.cut_power_after(call);
        let done = store(&vfs, "bees", 1, 4).map(drop).is_ok();
        for crash in [
            Crash::LoseAll,
            Crash::Subset(call),
            Crash::TearLast(call),
            Crash::ProcessOnly,
        ] {
            let disk = vfs.fork();
            disk.crash(crash);
            let again = store(&disk, "bees", 1, 5).expect("it starts");
            assert!(
                !done || again.identity().store == StoreId([4; 16]),
                "call {call}, {crash:?}"
            );
        }
    }
}

#[test]
fn what_is_read_after_a_kill_is_still_there_after_a_power_cut() {
    let pin = |vfs: &SimVfs| -> Result<(), LogError> {
        let mut pins = PeerPins::open(Arc::new(vfs.clone()), Path::new(DATA))?;
        pins.check(2, StoreId([2; 16])).map(drop)
    };
    let first_start = |vfs: &SimVfs| store(vfs, "bees", 1, 4).map(drop).and_then(|()| pin(vfs));
    let clean = SimVfs::new(1);
    first_start(&clean).expect("a new store");
    for call in 0..clean.calls() {
        let vfs = SimVfs::new(1);
        vfs.cut_power_after(call);
        assert!(first_start(&vfs).is_err());
        // A killed process leaves a new name in the page cache, where the next one finds it and relies on it.
        vfs.crash(Crash::ProcessOnly);
        let identity = |vfs: &SimVfs, id| {
            let store = store(vfs, "bees", 1, id).expect("it starts");
            store.identity().store
        };
        let pinned = |vfs: &SimVfs| {
            let pins = PeerPins::open(Arc::new(vfs.clone()), Path::new(DATA)).expect("pins");
            pins.pinned(2)
        };
        let (one, other) = (vfs.fork(), vfs);
        let before = (identity(&one, 5), pinned(&other));
        one.crash(Crash::LoseAll);
        other.crash(Crash::LoseAll);
        let after = (identity(&one, 6), pinned(&other));
        assert_eq!(after, before, "killed after call {call}");
    }
}

// P-60
#[test]
fn a_lost_log_is_not_taken_for_a_new_one_and_a_first_start_may_be_cut_anywhere() {
    let start = |disk: &SimVfs| {
        let vfs: Arc<dyn Vfs> = Arc::new(disk.clone());
        let store = store(disk, "bees", 1, 4)?;
        store
            .open_log(&vfs, small())
            .map(|(_, recovered)| recovered)
    };
    let clean = SimVfs::new(1);
    start(&clean).expect("a new store");
    for call in 0..=clean.calls() {
        let vfs = SimVfs::new(1);
        vfs.cut_power_after(call);
        let _ = start(&vfs);
        for crash in [
            Crash::LoseAll,
            Crash::Subset(call),
            Crash::Subset(!call),
            Crash::TearLast(call),
            Crash::ProcessOnly,
        ] {
            let disk = vfs.fork();
            disk.crash(crash);
            start(&disk).unwrap_or_else(|error| panic!("call {call}, {crash:?}: {error}"));
        }
    }
    clean.crash(Crash::LoseAll);
    for path in clean
        .files()
        .iter()
        .filter(|path| path.extension().is_some_and(|end| end == "wal"))
    {
        clean.remove(path).expect("removed");
    }
    assert_eq!(
        start(&clean).expect_err("the log is gone").code().name(),
        "log-missing-segment"
    );
}

// P-59
#[test]
fn a_peer_with_another_disk_is_refused_until_it_is_forgotten() {
    let vfs = SimVfs::new(1);
    vfs.create_dir_all(Path::new(DATA)).expect("a directory");
    let open = || PeerPins::open(Arc::new(vfs.clone()), Path::new(DATA)).expect("pins");
    let mut pins = open();
    assert_eq!(pins.check(2, StoreId([2; 16])).expect("new"), Pin::New);
    assert_eq!(pins.check(3, StoreId([3; 16])).expect("new"), Pin::New);
    assert_eq!(pins.check(2, StoreId([2; 16])).expect("known"), Pin::Known);
    vfs.crash(Crash::LoseAll);
    let mut pins = open();
    assert_eq!(pins.pinned(3), Some(StoreId([3; 16])));
    let error = pins.check(2, StoreId([9; 16])).expect_err("wiped");
    assert_eq!(error.code().name(), "peer-store-changed");
    assert!(error.to_string().contains("node 2"), "{error}");
    assert!(pins.forget(2).expect("forgotten"));
    assert!(!pins.forget(2).expect("not known"));
    let mut pins = open();
    assert_eq!(pins.check(2, StoreId([9; 16])).expect("new"), Pin::New);

    vfs.fail_call(vfs.calls() + 2, ErrorKind::Other);
    assert!(pins.check(4, StoreId([4; 16])).is_err());
    assert_eq!(pins.pinned(4), None, "not durable, so not pinned");
    let path = Path::new(DATA).join("peers");
    let content = vfs.content(&path).expect("the file");
    for len in 0..content.len() {
        vfs.plant(&path, content[..len].to_vec());
        let outcome = PeerPins::open(Arc::new(vfs.clone()), Path::new(DATA));
        assert_eq!(
            outcome.expect_err("cut").code().name(),
            "store-bad-identity",
            "length {len}"
        );
    }
}
