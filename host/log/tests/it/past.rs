//! What nodes remember of each other's stores, and what a store says of itself.

use std::path::Path;
use std::sync::Arc;

use skep_log::sim::Crash;
use skep_log::{
    GroupKey, HardState, Heard, Log, LogError, PeerPins, Pin, Record, SimVfs, Store, StoreId, Vfs,
    note_went_back,
};
use skep_types::past::{Durable, Known};

use crate::files::{DATA, store};
use crate::model::small;

// P-94
#[test]
fn what_a_peer_was_known_by_outlasts_a_crash_and_refuses_an_older_copy() {
    let (one, two) = (SimVfs::new(1), SimVfs::new(2));
    two.create_dir_all(Path::new(DATA)).expect("a directory");
    let vfs: Arc<dyn Vfs> = Arc::new(one.clone());
    let pins = || PeerPins::open(Arc::new(two.clone()), Path::new(DATA)).expect("pins");
    let past = |work: &dyn Fn(&mut Log)| {
        let store = store(&one, "bees", 1, 4).expect("a store");
        let (mut log, _) = store.open_log(&vfs, small()).expect("a log");
        work(&mut log);
        store.account().past()
    };
    let id = StoreId([4; 16]);
    let first = past(&|_| ());
    assert_eq!(first.present().map(|life| life.number), Some(1));
    assert_eq!(pins().meet(1, id, &first).expect("new"), Pin::New);
    let copy = one.fork();
    let write = |log: &mut Log| {
        let record = Record {
            hard_state: Some(HardState::default()),
            ..Record::new(GroupKey {
                group: 1,
                incarnation: 1,
            })
        };
        log.append(&record).expect("appended");
        log.sync().expect("synced");
    };
    let second = past(&write);
    assert!(second.durable > first.durable);
    let mut known = pins();
    assert_eq!(known.meet(1, id, &second).expect("it goes on"), Pin::Known);
    let further = Durable(second.durable.0 + 8);
    let heard = |life, durable| [(1, Heard { life, durable })].into();
    known.remember(&heard(2, further)).expect("noted");
    // Neither what a former life said nor what is said out of order takes anything back.
    known.remember(&heard(1, Durable(u64::MAX))).expect("late");
    known.remember(&heard(2, first.durable)).expect("late");
    two.crash(Crash::LoseAll);
    let known = pins().known(1).expect("what was noted");
    assert_eq!((known.life, known.durable), (2, further));
    // The copy begins a second life too.
    one.crash(Crash::LoseAll);
    let vfs: Arc<dyn Vfs> = Arc::new(copy.clone());
    let store = store(&copy, "bees", 1, 4).expect("a store");
    let (log, _) = store.open_log(&vfs, small()).expect("a log");
    let older = store.account().past();
    let refused = pins().meet(1, id, &older).expect_err("another life 2");
    assert_eq!(refused.code().name(), "store-went-back");
    assert!(
        refused.to_string().contains("skep node remove"),
        "{refused}"
    );
    drop((log, store));
    note_went_back(&vfs, Path::new(DATA), &refused.to_string()).expect("noted");
    let refused = Store::open(&vfs, Path::new(DATA), "bees", 1).expect_err("it stays out");
    assert_eq!(refused.code().name(), "store-went-back");
    assert!(
        refused.to_string().contains("skep node remove"),
        "{refused}"
    );
}

/// Wherever the power fails, the next life goes on from what was told.
// P-94
#[test]
fn a_start_that_is_cut_anywhere_goes_on_from_what_was_told() {
    let start = |disk: &SimVfs| {
        let vfs: Arc<dyn Vfs> = Arc::new(disk.clone());
        let store = store(disk, "bees", 1, 4)?;
        let opened = store.open_log(&vfs, small())?;
        Ok::<_, LogError>((store.account().past(), opened))
    };
    let disk = SimVfs::new(1);
    let known = Known::first(&start(&disk).expect("a first start").0).expect("a life");
    let clean = disk.fork();
    let before = clean.calls();
    drop(start(&clean).expect("a second start"));
    for call in before..=clean.calls() {
        let vfs = disk.fork();
        vfs.cut_power_after(call);
        let cut = start(&vfs).ok();
        // Whoever had begun may have been heard.
        let known = cut.map_or(Ok(known), |(past, _)| known.meet(&past));
        let known = known.expect("it went on");
        for crash in [Crash::LoseAll, Crash::Subset(call), Crash::ProcessOnly] {
            let again = vfs.fork();
            again.crash(crash);
            let (past, _) = start(&again).expect("it starts");
            let met = known.meet(&past);
            met.unwrap_or_else(|why| panic!("call {call}, {crash:?}: {why}"));
        }
    }
}
