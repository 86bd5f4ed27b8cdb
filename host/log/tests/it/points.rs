//! Crash points: a workload on a whole data directory, stopped before and after every call that changes the disk.
//!
//! For each stop the disk is put into the states a crash may leave it in, and recovered. `SKEP_LOG_SCALE` says how many
//! workloads are run (1 if unset), each from another seed.

use std::collections::{BTreeMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;

use bytes::Bytes;
use skep_log::sim::Crash;
use skep_log::{SimVfs, Vfs};

use crate::model::entries;
use crate::node::{self, DATA, Done, Files, Found, Plan, Promise};
use crate::trace::{Call, Traced, When};

/// Enough operations for all of them to happen several times, and for more than [`IMAGES`] different disks.
const OPS: usize = 450;

/// The fewest different disks that are recovered.
const IMAGES: u64 = 20_000;

/// Random subsets of the unsynced writes at each stop.
const SUBSETS: u64 = 8;

/// One in so many recovered logs is written on to.
const SAMPLE: u64 = 4;

/// The disk and the promise at one moment of a workload.
struct Stop {
    number: u64,
    at: String,
    disk: SimVfs,
    promise: Promise,
    /// The write that the crash may cut.
    write: Option<(PathBuf, u64, Bytes)>,
}

#[derive(Default)]
struct Tally {
    stops: AtomicU64,
    torn: AtomicU64,
    images: AtomicU64,
    different: AtomicU64,
    continued: AtomicU64,
    seen: Mutex<HashSet<u64>>,
}

#[test]
fn no_crash_point_loses_what_was_promised_or_brings_back_what_was_gone() {
    let workloads = node::scale();
    let tally = Tally::default();
    for seed in 0..workloads {
        let (done, calls) = stop_everywhere(seed, &tally);
        println!("workload {seed}: {done:?}\ncalls: {calls:?}");
        assert_everything_happened(&done);
    }
    let count = |counter: &AtomicU64| counter.load(Relaxed);
    let different = count(&tally.different);
    println!(
        "{workloads} workloads, {} stops, {} images ({} of them torn writes), {different} different ones recovered twice, \
         {} of these written on and recovered again",
        count(&tally.stops),
        count(&tally.images),
        count(&tally.torn),
        count(&tally.continued)
    );
    assert!(different >= IMAGES * workloads, "only {different} images");
}

fn assert_everything_happened(done: &Done) {
    let Done {
        ops,
        records,
        overwrites,
        hard_states,
        truncations,
        saved,
        installed,
        pruned,
        removals,
        abandoned,
        pins,
        restarts,
        freed_segments,
        copied_bytes,
        reported,
    } = done;
    assert!(*ops >= 300 && *records >= 150, "{done:?}");
    for count in [
        overwrites,
        hard_states,
        truncations,
        saved,
        installed,
        pruned,
        removals,
        abandoned,
        pins,
        restarts,
    ] {
        assert!(*count >= 3, "{done:?}");
    }
    assert!(*freed_segments > 3 && *copied_bytes > 0, "{done:?}");
    assert_eq!(reported, &[] as &[String]);
}

/// Runs a workload once, and gives each of its stops to one of a few threads that recover it.
fn stop_everywhere(seed: u64, tally: &Tally) -> (Done, BTreeMap<&'static str, u64>) {
    let threads = node::threads();
    // A stop is some hundred kilobytes, so only a few wait.
    let (stops, waiting) = sync_channel::<Stop>(2 * threads);
    let waiting = Arc::new(Mutex::new(waiting));
    thread::scope(|scope| {
        for _ in 0..threads {
            let waiting = Arc::clone(&waiting);
            scope.spawn(move || examine_all(&waiting, tally));
        }
        drop(waiting);

        let disk = SimVfs::new(seed);
        let promise = Arc::new(Mutex::new(Promise::new()));
        let calls = Arc::new(Mutex::new(BTreeMap::new()));
        let traced = Traced::new(&disk, {
            let (disk, promise, calls) = (disk.clone(), Arc::clone(&promise), Arc::clone(&calls));
            let number = AtomicU64::new(seed << 32);
            move |when, call| {
                let Call { what, path, write } = call;
                if when == When::After {
                    *calls.lock().expect("one thread").entry(*what).or_insert(0) += 1;
                }
                let write = write.clone().filter(|_| when == When::Before);
                let number = number.fetch_add(1, Relaxed);
                let stop = Stop {
                    number,
                    at: format!(
                        "workload {seed}, stop {number}: {when:?} {what} of {}",
                        path.display()
                    ),
                    disk: disk.fork(),
                    promise: promise.lock().expect("nobody panicked").clone(),
                    write: write.map(|(offset, data)| (path.clone(), offset, data)),
                };
                stops.send(stop).expect("a thread examines the stops");
            }
        });
        let vfs: Arc<dyn Vfs> = Arc::new(traced);
        let ended = node::run(
            &vfs,
            &disk,
            &promise,
            Plan {
                seed,
                ops: OPS,
                fault: None,
            },
        );
        if let Some(error) = ended.error {
            panic!("nothing failed: {error}");
        }
        let calls = calls.lock().expect("one thread").clone();
        (ended.done, calls)
    })
}

fn examine_all(waiting: &Mutex<Receiver<Stop>>, tally: &Tally) {
    loop {
        let next = waiting.lock().expect("nobody panicked").recv();
        match next {
            Ok(stop) => examine(&stop, tally),
            Err(_) => return,
        }
    }
}

/// Recovers all that a crash at this moment may leave.
fn examine(stop: &Stop, tally: &Tally) {
    tally.stops.fetch_add(1, Relaxed);
    let crashes = [Crash::LoseAll, Crash::ProcessOnly].into_iter();
    let subsets = (0..SUBSETS).map(|subset| Crash::Subset(stop.number * SUBSETS + subset));
    for crash in crashes.chain(subsets) {
        let image = stop.disk.fork();
        image.crash(crash);
        check_once(stop, tally, &format!("{crash:?}"), image);
    }
    let Some((path, offset, data)) = &stop.write else {
        return;
    };
    let all_kept = stop.disk.fork();
    make_durable(&all_kept);
    let all_lost = stop.disk.fork();
    all_lost.crash(Crash::LoseAll);
    let mut bases = vec![("kept", all_kept)];
    if node::files(&bases[0].1) != node::files(&all_lost) && all_lost.content(path).is_some() {
        bases.push(("lost", all_lost));
    }
    for (what, before) in bases {
        for cut in cuts(data) {
            let image = before.fork();
            let file = image.open(path).expect("it is there");
            file.write_all_at(*offset, &data[..cut]).expect("written");
            file.sync_data().expect("synced");
            image.crash(Crash::LoseAll);
            tally.torn.fetch_add(1, Relaxed);
            let at = format!("the write cut after {cut} bytes, all before it {what}");
            check_once(stop, tally, &at, image);
        }
    }
}

fn make_durable(disk: &SimVfs) {
    for path in disk.files() {
        let file = disk.open(&path).expect("it is there");
        file.sync_data().expect("synced");
    }
    for dir in ["", "wal", "snap"] {
        disk.sync_dir(&Path::new(DATA).join(dir)).expect("synced");
    }
}

/// Where a write is cut: at every byte of each header in it, and every 512 bytes.
fn cuts(data: &[u8]) -> Vec<usize> {
    const FRAME_HEADER: usize = 40;
    /// The headers and trailers of the other files are within so many bytes of a write's start.
    const START: usize = 100;
    let every = |from: usize, step: usize| (from..data.len()).step_by(step);
    if data.iter().all(|byte| *byte == 0) {
        return every(0, 512).collect();
    }
    let mut cuts: Vec<usize> = every(0, 512).collect();
    let mut start = 0;
    while data[start..].starts_with(b"SKF1") {
        let body = u32::from_le_bytes(data[start + 4..start + 8].try_into().expect("4 bytes"));
        cuts.extend(start..=start + FRAME_HEADER);
        let end = (start + FRAME_HEADER + body as usize).next_multiple_of(8);
        cuts.extend((start + FRAME_HEADER..end).step_by(512));
        cuts.extend(end - 9..end);
        start = end;
    }
    if start == 0 {
        cuts.extend(0..data.len().min(START));
    }
    cuts.sort_unstable();
    cuts.dedup();
    cuts.retain(|cut| *cut < data.len());
    cuts
}

/// Checks an image, unless an equal one was checked against an equal promise.
fn check_once(stop: &Stop, tally: &Tally, crash: &str, image: SimVfs) {
    tally.images.fetch_add(1, Relaxed);
    let mut hasher = DefaultHasher::new();
    // When only the process dies, equal files may still be durable or not.
    (
        stop.number >> 32,
        stop.promise.revision,
        crash == "ProcessOnly",
    )
        .hash(&mut hasher);
    node::files(&image).hash(&mut hasher);
    let new = |seen: &mut HashSet<u64>| seen.insert(hasher.finish());
    if !new(&mut tally.seen.lock().expect("nobody panicked")) {
        return;
    }
    let different = tally.different.fetch_add(1, Relaxed);
    let at = format!("{}, {crash}", stop.at);
    let go_on = different.is_multiple_of(SAMPLE);
    check(&image, &stop.promise, &at, go_on);
    tally.continued.fetch_add(u64::from(go_on), Relaxed);
}

/// Recovers a disk twice, with the power failing between: both find the same, which the promise allows, and the second
/// changes nothing that the first has left.
fn check(disk: &SimVfs, promise: &Promise, at: &str, go_on: bool) {
    let open = |id, which: &str| {
        node::open(Arc::new(disk.clone()), id)
            .unwrap_or_else(|error| panic!("{at}: the {which} recovery: {error}"))
    };
    // Without this file a log that is gone would pass for a new one.
    let guarded = disk.content(&Path::new(DATA).join("has-log")).is_some();
    assert!(guarded || !promise.named, "{at}: has-log is gone");
    let (node, found) = open(5, "first");
    if let Some(breach) = promise.breach(&found) {
        panic!("{at}: {breach}");
    }
    drop(node);
    let repaired = node::files(disk);
    disk.crash(Crash::LoseAll);

    let (node, again) = open(6, "second");
    assert_same(&found, &again, at);
    drop(node);
    assert_settled(&repaired, &node::files(disk), at);
    if !go_on {
        return;
    }

    let (mut node, _) = open(7, "third");
    let record = entries(99, 1..=2, 10);
    node.log
        .append(&record)
        .and_then(|()| node.log.sync())
        .and_then(|()| node.log.collect(u64::MAX))
        .unwrap_or_else(|error| panic!("{at}: the log does not go on: {error}"));
    drop(node);
    disk.crash(Crash::LoseAll);
    let (_, last) = open(8, "last");
    let mut expected = found;
    expected.state.apply(&record);
    assert_same(&expected, &last, at);
}

fn assert_same(found: &Found, again: &Found, at: &str) {
    assert_eq!(found.store, again.store, "{at}: the second recovery");
    assert_eq!(found.state, again.state, "{at}: the second recovery");
    assert_eq!(found.pins, again.pins, "{at}: the second recovery");
}

/// The line that proves a text whole.
const SEAL: usize = "crc32c 01234567\n".len();

/// A start goes on in a new segment, and adds a life. Nothing else that counts may differ: names of unfinished files and bytes behind
/// the end of a segment do not.
fn assert_settled(repaired: &Files, now: &Files, at: &str) {
    let finished = |files: &Files| {
        let mut files = files.clone();
        files.retain(|path, _| path.extension().is_none_or(|end| end != "tmp"));
        files
    };
    let (repaired, mut now) = (finished(repaired), finished(now));
    let mut ends = node::segment_ends(&now);
    let (newest, _) = ends.pop_last().expect("there is a segment");
    assert!(!repaired.contains_key(&newest), "{at}: {newest:?} is old");
    now.remove(&newest);
    let names = |files: &Files| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&repaired), names(&now), "{at}: files come and go");
    for (path, content) in &repaired {
        let end = match path.ends_with("lives") {
            true => content.len() - SEAL,
            false => ends.get(path).copied().unwrap_or(content.len()),
        };
        assert!(now[path][..end] == content[..end], "{at}: {path:?} changed");
    }
}

#[test]
fn whichever_call_fails_it_is_reported_and_all_that_was_promised_is_there() {
    let fresh = || Arc::new(Mutex::new(Promise::new()));
    let seed = 78;
    let clean = SimVfs::new(seed);
    let vfs: Arc<dyn Vfs> = Arc::new(clean.clone());
    let plan = Plan {
        seed,
        ops: FAILING_OPS,
        fault: None,
    };
    let ended = node::run(&vfs, &clean, &fresh(), plan);
    assert!(ended.error.is_none() && ended.done.reported.is_empty());
    let calls = clean.calls();
    let (next, images, unreported) = (AtomicU64::new(1), AtomicU64::new(0), AtomicU64::new(0));
    let threads = node::threads();
    let fail_each = || {
        loop {
            let call = next.fetch_add(1, Relaxed);
            if call > calls {
                return;
            }
            for kind in [eio(), ErrorKind::StorageFull] {
                let disk = SimVfs::new(call);
                let vfs: Arc<dyn Vfs> = Arc::new(disk.clone());
                let promise = fresh();
                let plan = Plan {
                    fault: Some((call, kind)),
                    ..plan
                };
                let ended = node::run(&vfs, &disk, &promise, plan);
                let at = format!("call {call} of {calls} fails with {kind:?}");
                let reported = match &ended.error {
                    Some(error) => {
                        let full = kind == ErrorKind::StorageFull;
                        assert_eq!(error.code().name() == "disk-full", full, "{at}: {error}");
                        true
                    }
                    None => !ended.done.reported.is_empty(),
                };
                unreported.fetch_add(u64::from(!reported), Relaxed);
                drop(ended);
                let promise = promise.lock().expect("nobody panicked").clone();
                for crash in [Crash::ProcessOnly, Crash::LoseAll, Crash::Subset(call)] {
                    let image = disk.fork();
                    image.crash(crash);
                    images.fetch_add(1, Relaxed);
                    check(
                        &image,
                        &promise,
                        &format!("{at}, {crash:?}"),
                        call.is_multiple_of(SAMPLE),
                    );
                }
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(fail_each);
        }
    });
    let (images, unreported) = (images.into_inner(), unreported.into_inner());
    let abandoned = ended.done.abandoned as u64;
    println!(
        "{} operations, {calls} calls failed in 2 ways, {images} disks recovered, {unreported} failures not reported",
        ended.done.ops
    );
    // Only the removal of an abandoned snapshot's temporary file has nobody to tell; the next start removes it.
    assert!(abandoned > 0);
    assert_eq!(unreported, 2 * abandoned, "failures passed in silence");
}

const FAILING_OPS: usize = 300;

fn eio() -> ErrorKind {
    const EIO: i32 = 5;
    std::io::Error::from_raw_os_error(EIO).kind()
}
