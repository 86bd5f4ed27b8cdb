//! Flipped bits: in every byte of every file of a data directory.
//!
//! `SKEP_LOG_SCALE` says how many bits of each byte are flipped, one after the other (1 if unset, at most 8).

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread;

use skep_log::sim::Crash;
use skep_log::{LogError, SimVfs, Vfs};

use crate::model::{State, entries, small};
use crate::node::{self, Files, Found, Plan, Promise};

/// What a flipped byte of a file must lead to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Outcome {
    /// Nothing is read from there.
    Harmless,
    /// The log is refused, with the file and this offset.
    Corrupt(usize),
    /// The log ends before this of the frames that were never synced.
    CutBefore(usize),
    /// The snapshot is refused, with the file.
    BadSnapshot,
    /// The file is refused.
    BadIdentity,
}

/// A data directory that nobody uses, and what it holds.
struct Directory {
    disk: SimVfs,
    files: Files,
    /// The state after the last sync, and after each record that was written behind it without one.
    states: Vec<State>,
    found: Found,
}

const OPS: usize = 160;

/// Runs a workload, and then writes a few records that are `synced` in the end or not.
fn directory(seed: u64, synced: bool) -> Directory {
    let disk = SimVfs::new(seed);
    let vfs: Arc<dyn Vfs> = Arc::new(disk.clone());
    let promise = Arc::new(Mutex::new(Promise::new()));
    let plan = Plan {
        seed,
        ops: OPS,
        fault: None,
    };
    let mut log = node::run(&vfs, &disk, &promise, plan)
        .node
        .expect("a run without faults")
        .log;
    let synced_state = promise
        .lock()
        .expect("nobody panicked")
        .log
        .acknowledged()
        .clone();
    let mut states = vec![synced_state];
    for index in 1..=4 {
        let record = entries(90, index..=index, 21);
        log.append(&record).expect("append");
        let mut state = states[states.len() - 1].clone();
        state.apply(&record);
        states.push(state);
    }
    if synced {
        log.close().expect("close");
        states.drain(..states.len() - 1);
    } else {
        // The write reaches the system; its sync does not happen.
        disk.cut_power_after(disk.calls() + 1);
        assert!(log.sync().is_err());
    }
    disk.crash(Crash::ProcessOnly);
    let (_, found) = open(&disk.fork()).expect("it is sound");
    assert_eq!(Some(&found.state), states.last());
    let files = node::files(&disk);
    Directory {
        disk,
        files,
        states,
        found,
    }
}

fn open(disk: &SimVfs) -> Result<(node::Node, Found), LogError> {
    node::open(Arc::new(disk.clone()), 5)
}

/// What a flip at each byte of the file must lead to, from a reading of FORMAT.md that shares no code with the log.
fn outcomes(directory: &Directory, path: &Path) -> Vec<Outcome> {
    let content = &directory.files[path];
    let whole = |outcome| vec![outcome; content.len()];
    match path.extension().and_then(|end| end.to_str()) {
        Some("wal") => segment_outcomes(directory, path),
        Some("snap") => whole(Outcome::BadSnapshot),
        Some("spare") => whole(Outcome::Harmless),
        None if ["identity", "peers", "lives"]
            .map(|name| path.ends_with(name))
            .contains(&true) =>
        {
            whole(Outcome::BadIdentity)
        }
        None if path.ends_with("has-log") => whole(Outcome::Harmless),
        _ => panic!("what is {path:?}?"),
    }
}

fn segment_outcomes(directory: &Directory, path: &Path) -> Vec<Outcome> {
    let content = &directory.files[path];
    let mut ends = node::segment_ends(&directory.files);
    let (last, _) = ends.pop_last().expect("there is a segment");
    let frames = frames(content, ends.get(path).copied());
    let mut outcomes = vec![Outcome::Harmless; content.len()];
    outcomes[..HEADER].fill(Outcome::Corrupt(0));
    let unsynced = directory.states.len() - 1;
    for (number, frame) in frames.iter().enumerate() {
        let place = frame.sequence << 32 | frame.bytes.start as u64;
        let later = &frames[number + 1..];
        let acknowledged = path != last || later.iter().any(|later| later.synced_through > place);
        let outcome = if acknowledged {
            Outcome::Corrupt(frame.bytes.start)
        } else if unsynced == 0 {
            // The checkpoint of a clean close says nothing new.
            Outcome::CutBefore(0)
        } else {
            Outcome::CutBefore(unsynced - (frames.len() - number))
        };
        outcomes[frame.bytes.clone()].fill(outcome);
    }
    outcomes
}

/// Bytes of a segment's header.
const HEADER: usize = 64;

struct Frame {
    sequence: u64,
    /// Without the padding.
    bytes: Range<usize>,
    synced_through: u64,
}

/// The frames up to `end`, or to the first that is not sound.
fn frames(content: &[u8], end: Option<usize>) -> Vec<Frame> {
    let sequence = u64_at(content, 32);
    let seed = crc32c::crc32c_append(crc32c::crc32c(&content[16..32]), &content[32..40]);
    let mut frames = Vec::new();
    let mut at = HEADER;
    while end.is_none_or(|end| at < end) {
        let Some(header) = content.get(at..at + 40) else {
            break;
        };
        let crc = crc32c::crc32c_append(seed, &header[..36]).to_le_bytes();
        if !header.starts_with(b"SKF1") || header[36..] != crc {
            break;
        }
        let bytes = at..at + 40 + (u64_at(header, 0) >> 32) as usize;
        at = bytes.end.next_multiple_of(8);
        frames.push(Frame {
            sequence,
            bytes,
            synced_through: u64_at(header, 24),
        });
    }
    assert!(
        end.is_none_or(|end| at == end),
        "the test misread a segment"
    );
    frames
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

fn flip(directory: &Directory, path: &Path, at: usize, bit: u64, expected: Outcome) {
    let disk = directory.disk.fork();
    let mut damaged = directory.files[path].clone();
    damaged[at] ^= 1 << bit;
    disk.plant(path, damaged);
    let full = directory.states.len() - 1;
    match (expected, open(&disk)) {
        (Outcome::Harmless, Ok((_, found))) => {
            assert_eq!(found, directory.found, "{path:?} byte {at} bit {bit}");
        }
        (Outcome::CutBefore(kept), Ok((_, found))) => {
            assert!(kept <= full);
            let (state, expected) = (&found.state, &directory.states[kept]);
            assert_eq!(state, expected, "{path:?} byte {at} bit {bit}");
        }
        (Outcome::Corrupt(start), Err(LogError::Corrupt { file, offset, .. }))
            if file == path && offset == start as u64 => {}
        (Outcome::BadSnapshot, Err(LogError::BadSnapshot { file, .. })) if file == path => {}
        (Outcome::BadIdentity, Err(LogError::BadIdentity { file, .. })) if file == path => {}
        (_, Ok((_, found))) => {
            panic!("{path:?} byte {at} bit {bit}: {expected:?}, but it was opened: {found:#?}")
        }
        (_, Err(error)) => panic!("{path:?} byte {at} bit {bit}: {expected:?}, but {error}"),
    }
}

/// Flips each byte of each file, and says how many flips were harmless, refused, and cut an unsynced tail.
fn flip_all(directory: &Directory) -> [usize; 3] {
    let mut flips: Vec<(&PathBuf, usize, Outcome)> = Vec::new();
    for path in directory.files.keys() {
        let outcomes = outcomes(directory, path).into_iter().enumerate();
        flips.extend(outcomes.map(|(at, outcome)| (path, at, outcome)));
    }
    let next = AtomicUsize::new(0);
    let bits = node::scale().min(8);
    thread::scope(|scope| {
        for _ in 0..node::threads() {
            scope.spawn(|| {
                while let Some((path, at, outcome)) = flips.get(next.fetch_add(1, Relaxed)) {
                    for bit in 0..bits {
                        flip(directory, path, *at, (*at as u64 + bit) % 8, *outcome);
                    }
                }
            });
        }
    });
    let count = |counted: &dyn Fn(Outcome) -> bool| {
        let flips = flips.iter().filter(|(_, _, outcome)| counted(*outcome));
        flips.count() * bits as usize
    };
    let cut = count(&|outcome| matches!(outcome, Outcome::CutBefore(_)));
    let harmless = count(&|outcome| outcome == Outcome::Harmless);
    [harmless, flips.len() * bits as usize - harmless - cut, cut]
}

#[test]
fn a_flip_of_any_byte_is_refused_by_name_or_harmless_or_cuts_what_was_never_synced() {
    for (what, synced) in [("closed", true), ("killed in a write", false)] {
        let directory = directory(5, synced);
        let count = |end: &str| {
            let ends = |path: &&PathBuf| path.to_string_lossy().ends_with(end);
            directory.files.keys().filter(ends).count()
        };
        let (segments, snapshots) = (count(".wal"), count(".snap"));
        assert!(
            segments >= 3 && snapshots >= 1,
            "{:?}",
            directory.files.keys()
        );
        assert_eq!(count("identity") + count("peers"), 2);
        let [harmless, refused, cut] = flip_all(&directory);
        println!(
            "{what}: {segments} segments, {snapshots} snapshots, identity and peers: {refused} flips refused, {cut} cut the \
             tail, {harmless} harmless"
        );
        assert!(refused > 5000 && cut > 40, "too little to flip");
    }
}

#[test]
fn an_entry_that_rots_while_the_log_is_open_is_not_copied_forward() {
    let disk = SimVfs::new(1);
    let (mut log, _) = crate::model::open_with(&disk, small()).expect("a new log");
    log.append(&entries(1, 1..=2, 100)).expect("append");
    log.sync().expect("sync");
    let path = disk.files().remove(0);
    let mut content = disk.content(&path).expect("the segment");
    content[HEADER + 150] ^= 1;
    disk.plant(&path, content);
    let error = (1..=200)
        .find_map(|index| {
            let record = entries(2, index..=index, 100);
            log.append(&record).expect("append");
            log.append(&crate::model::compaction(2, index))
                .expect("append");
            log.collect(u64::MAX).err()
        })
        .expect("the idle group must be copied to free its segment");
    assert!(
        matches!(&error, LogError::Corrupt { file, offset: 64, .. } if *file == path),
        "{error}"
    );
    let refused = log.sync().expect_err("it failed before");
    assert_eq!(refused.code().name(), "log-poisoned");
}
