//! The cluster that a data directory belongs to.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use skep_log::sim::Crash;
use skep_log::{Identity, LogError, LogOptions, SimVfs, Store, StoreId, Vfs};
use skep_types::founding::Founding;
use skep_types::id::NodeId;

const DATA: &str = "/data";

fn open(disk: &SimVfs) -> Result<Store, LogError> {
    let vfs: Arc<dyn Vfs> = Arc::new(disk.clone());
    Store::open_with(&vfs, Path::new(DATA), "bees", 1, || Ok(StoreId([1; 16])))
}

fn found(disk: &SimVfs, founding: &Founding) -> Result<Store, LogError> {
    let vfs: Arc<dyn Vfs> = Arc::new(disk.clone());
    let mut store = open(disk)?;
    store.found(&vfs, founding).map(|()| store)
}

fn founding(founders: u8) -> Founding {
    let founders = (1..=founders).map(|node| (NodeId(node.into()), [node; 16]));
    Founding::new("bees", founders.collect())
}

#[test]
fn a_directory_belongs_to_one_cluster_for_ever() {
    let disk = SimVfs::new(1);
    let three = founding(3);
    assert_eq!(open(&disk).expect("new").identity().founding, None);
    drop(found(&disk, &three).expect("it may be founded"));
    let store = open(&disk).expect("the same");
    assert_eq!(store.identity().founding.as_ref(), Some(&three));
    assert_eq!(store.identity().store, StoreId([1; 16]));
    drop(store);
    drop(found(&disk, &three).expect("the same again"));
    let mut recovered = three.clone();
    recovered.incarnation = 2;
    for other in [founding(2), recovered] {
        let refused = found(&disk, &other).expect_err("it belongs to a cluster");
        assert_eq!(refused.code().name(), "store-founded");
    }
    let read = Identity::read(&disk, Path::new(DATA)).expect("it can be looked at");
    assert_eq!(read.founding, Some(three));
}

#[test]
fn only_a_founding_of_the_directorys_cluster_is_noted() {
    let disk = SimVfs::new(1);
    let wasps = Founding::new("wasps", BTreeMap::from([(NodeId(1), [1; 16])]));
    for wrong in [wasps, founding(65)] {
        let refused = found(&disk, &wrong).expect_err("not this");
        assert_eq!(refused.code().name(), "store-invalid-identity");
    }
    drop(found(&disk, &founding(64)).expect("as many as may be"));
    assert!(open(&disk).is_ok());
}

/// Killed or without power at each step, it belongs to the cluster or to none; and once it was said that it does, it does.
// P-74
#[test]
fn a_founding_is_noted_whole_or_not_at_all() {
    let fresh = SimVfs::new(1);
    drop(open(&fresh).expect("new"));
    let clean = fresh.fork();
    drop(found(&clean, &founding(3)).expect("it may be founded"));
    let mut outcomes = [0, 0];
    for call in fresh.calls()..=clean.calls() {
        let disk = fresh.fork();
        disk.cut_power_after(call);
        let said = found(&disk, &founding(3)).is_ok();
        for crash in [
            Crash::LoseAll,
            Crash::Subset(call),
            Crash::TearLast(call),
            Crash::ProcessOnly,
        ] {
            let disk = disk.fork();
            disk.crash(crash);
            let seen = open(&disk).expect("it starts").identity().founding.clone();
            assert!(seen.is_none() || seen == Some(founding(3)));
            assert!(!said || seen.is_some(), "call {call}, {crash:?}");
            outcomes[usize::from(seen.is_some())] += 1;
            // What a start has seen stays so.
            disk.crash(Crash::LoseAll);
            let again = open(&disk).expect("it starts").identity().founding.clone();
            assert_eq!(again, seen, "call {call}, {crash:?}");
        }
    }
    assert!(outcomes.iter().all(|count| *count > 2), "{outcomes:?}");
}

#[test]
fn a_damaged_founding_is_an_error_and_never_another_cluster() {
    let disk = SimVfs::new(1);
    drop(found(&disk, &founding(3)).expect("it may be founded"));
    let path = Path::new(DATA).join("identity");
    let content = disk.content(&path).expect("the file");
    for bit in 0..content.len() * 8 {
        let mut damaged = content.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        disk.plant(&path, damaged);
        let refused = open(&disk).expect_err("flipped");
        assert_eq!(refused.code().name(), "store-bad-identity", "bit {bit}");
    }
    // Whole by its checksum, and yet not what was written: a founder is missing, or another one stands there.
    let text = String::from_utf8(content).expect("text");
    let body = &text[..text.rfind("crc32c ").expect("a checksum")];
    let lines: Vec<&str> = body.lines().collect();
    for (at, _) in lines.iter().enumerate().skip(4) {
        let mut fewer = lines.clone();
        fewer.remove(at);
        let body: String = fewer.iter().map(|line| format!("{line}\n")).collect();
        let sealed = format!("{body}crc32c {:08x}\n", crc32c::crc32c(body.as_bytes()));
        disk.plant(&path, sealed.into_bytes());
        let refused = open(&disk).expect_err("a line is missing");
        assert_eq!(refused.code().name(), "store-bad-identity", "{body}");
    }
}

/// A later life survives its file, and no bit of that may be otherwise.
// P-110
#[test]
fn a_recovery_is_begun_and_ended_once_and_a_node_starts_afterwards_only() {
    let disk = SimVfs::new(1);
    let vfs: Arc<dyn Vfs> = Arc::new(disk.clone());
    drop(found(&disk, &founding(3)).expect("it may be founded"));
    let survivors = BTreeMap::from([(NodeId(1), [1; 16])]);
    let later = founding(3).recovered(survivors.clone(), [5; 32]);
    let recover = || Store::open_for_recovery(&vfs, Path::new(DATA)).expect("a directory");
    let skipped = later.recovered(survivors.clone(), [6; 32]);
    let apart = founding(2).recovered(survivors.clone(), [5; 32]);
    for wrong in [skipped, apart, founding(2)] {
        let refused = recover().begin_recovery(&vfs, &wrong);
        assert_eq!(
            refused.expect_err("it does not follow").code().name(),
            "store-founded"
        );
    }
    recover().begin_recovery(&vfs, &later).expect("begun");
    recover().begin_recovery(&vfs, &later).expect("begun again");
    let other = founding(3).recovered(survivors, [6; 32]);
    let refused = recover().begin_recovery(&vfs, &other);
    assert_eq!(
        refused.expect_err("another one").code().name(),
        "store-founded"
    );
    let refused = open(&disk).expect_err("half done");
    assert_eq!(refused.code().name(), "store-recovering");
    recover().end_recovery(&vfs).expect("done");
    let store = open(&disk).expect("a node starts");
    assert_eq!(store.identity().founding.as_ref(), Some(&later));
    drop(store);
    let path = Path::new(DATA).join("identity");
    let content = disk.content(&path).expect("the file");
    assert!(content.starts_with(b"skep store, format 3\n"));
    for bit in 0..content.len() * 8 {
        let mut damaged = content.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        disk.plant(&path, damaged);
        let refused = open(&disk).expect_err("flipped");
        assert_eq!(refused.code().name(), "store-bad-identity", "bit {bit}");
    }
}

#[test]
fn whoever_has_a_log_is_known_to_have_one() {
    let disk = SimVfs::new(1);
    let vfs: Arc<dyn Vfs> = Arc::new(disk.clone());
    let store = open(&disk).expect("new");
    assert!(!store.has_log(&disk).expect("a look"));
    drop(store.open_log(&vfs, LogOptions::default()).expect("a log"));
    assert!(store.has_log(&disk).expect("a look"));
}
