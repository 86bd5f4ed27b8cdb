//! Bytes as the files of a log: recovery of what a disk may hold after anything.
//!
//! Byte 0: with bit 0 the checksums are made to fit, so that damage reaches the records; with bit 1 the rest is two
//! segments, of which the first has the length that the next two bytes say. A sound log is what the generator wrote; the
//! rest of the space is torn, damaged or written by somebody else.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use skep_log::vfs::Vfs;
use skep_log::{
    Entry, GroupKey, HardState, Log, LogError, LogOptions, LogPosition, Record, Recovered,
    RecoveredGroup, SimVfs, SnapshotMark,
};

const STORE: [u8; 16] = [7; 16];
const SEGMENT_HEADER: usize = 64;
const FRAME_HEADER: usize = 40;

/// What opening a log may answer whatever its files hold.
const CODES: [&str; 5] = [
    "log-corrupt",
    "log-missing-segment",
    "log-format",
    "log-wrong-store",
    "log-options",
];

/// Opens a log whose files hold these bytes.
///
/// # Panics
/// If recovery panics, changes files it refuses, gives back groups that make no sense, or forgets between two starts what
/// it gave back.
pub fn run(data: &[u8]) {
    let Some((&mode, rest)) = data.split_first() else {
        return;
    };
    let (first, second) = match rest.split_first_chunk::<2>() {
        Some((len, rest)) if mode & 2 != 0 => {
            let (first, second) =
                rest.split_at(usize::from(u16::from_le_bytes(*len)).min(rest.len()));
            (first, Some(second))
        }
        _ => (rest, None),
    };
    let vfs = SimVfs::new(1);
    vfs.create_dir_all(dir()).expect("a sound disk");
    for (sequence, content) in (1..).zip([Some(first), second].into_iter().flatten()) {
        let mut content = content.to_vec();
        if mode & 1 != 0 {
            mend(&mut content, sequence);
        }
        vfs.plant(&segment(sequence), content);
    }
    check(&vfs);
}

fn check(vfs: &SimVfs) {
    let before = contents(vfs);
    let (log, recovered) = match open(vfs) {
        Ok(opened) => opened,
        Err(error) => {
            assert!(
                CODES.contains(&error.code().name()),
                "{}: {error}",
                error.code().name()
            );
            assert_eq!(contents(vfs), before, "files were changed and then refused");
            return;
        }
    };
    let held: u64 = before.iter().map(|(_, content)| content.len() as u64).sum();
    assert!(recovered.torn_bytes <= held && recovered.frames * FRAME_HEADER as u64 <= held);
    recovered.groups.iter().for_each(makes_sense);
    assert!(
        recovered
            .groups
            .windows(2)
            .all(|two| two[0].key < two[1].key)
    );
    for key in &recovered.tombstones {
        assert!(recovered.groups.iter().all(|group| group.key != *key));
    }
    drop(log);
    let (mut log, again) = open(vfs).expect("it was recovered a moment ago");
    same(&recovered, &again);
    assert_eq!(again.torn_bytes, 0);

    // It goes on from there.
    let mut expected = again.groups;
    for group in &mut expected {
        let last = group
            .entries
            .last()
            .map_or(group.truncated.index, |entry| entry.index);
        if last >= u64::MAX - 1 {
            continue;
        }
        let entry = Entry {
            index: last + 1,
            term: group.hard_state.term,
            kind: 0,
            data: Bytes::from_static(b"next"),
            context: Bytes::new(),
        };
        let mut record = Record::new(group.key);
        record.entries = vec![entry.clone()];
        record.replica = group.replica;
        log.append(&record)
            .expect("the next entry of a known group");
        group.entries.push(entry);
    }
    log.close().expect("a sound disk");
    let (_, last) = open(vfs).expect("it was closed in order");
    assert_eq!(last.groups, expected);
}

fn same(one: &Recovered, two: &Recovered) {
    assert_eq!(
        one.groups, two.groups,
        "the second start finds another state"
    );
    assert_eq!(one.tombstones, two.tombstones);
    assert_eq!(one.removed_replicas, two.removed_replicas);
}

fn makes_sense(group: &RecoveredGroup) {
    let mut last = group.truncated.index;
    for entry in &group.entries {
        assert_eq!(entry.index, last + 1, "a gap in {group:?}");
        last = entry.index;
    }
    let commit = group.hard_state.commit;
    assert!(
        group.truncated.index <= commit && commit <= last,
        "{group:?}"
    );
}

fn open(vfs: &SimVfs) -> Result<(Log, Recovered), LogError> {
    Log::open(Arc::new(vfs.clone()), dir(), options())
}

fn options() -> LogOptions {
    LogOptions {
        store: STORE,
        segment_bytes: 4 << 10,
        fill_step: 512,
        ..LogOptions::default()
    }
}

fn dir() -> &'static Path {
    Path::new("/wal")
}

fn segment(sequence: u64) -> PathBuf {
    dir().join(format!("{sequence:016x}.wal"))
}

fn contents(vfs: &SimVfs) -> Vec<(PathBuf, Vec<u8>)> {
    let read = |path: PathBuf| {
        let content = vfs.content(&path)?;
        Some((path, content))
    };
    vfs.files().into_iter().filter_map(read).collect()
}

/// Makes magic, version, store, sequence and checksums of a segment right, whatever the rest says.
fn mend(segment: &mut [u8], sequence: u64) {
    let Some((header, mut frames)) = segment.split_at_mut_checked(SEGMENT_HEADER) else {
        return;
    };
    header[..8].copy_from_slice(b"SKEPWAL\0");
    header[8..12].copy_from_slice(&1u32.to_le_bytes());
    header[16..32].copy_from_slice(&STORE);
    header[32..40].copy_from_slice(&sequence.to_le_bytes());
    let checksum = crc32c::crc32c(&header[..60]);
    header[60..].copy_from_slice(&checksum.to_le_bytes());
    let seed = crc32c::crc32c_append(crc32c::crc32c(&STORE), &sequence.to_le_bytes());
    while frames.len() > FRAME_HEADER && frames[..4] == *b"SKF1" {
        let len = u32::from_le_bytes([frames[4], frames[5], frames[6], frames[7]]) as usize;
        let (header, rest) = frames.split_at_mut(FRAME_HEADER);
        if len > rest.len() {
            return;
        }
        let checksum = crc32c::crc32c_append(seed, &rest[..len]);
        header[32..36].copy_from_slice(&checksum.to_le_bytes());
        let checksum = crc32c::crc32c_append(seed, &header[..36]);
        header[36..].copy_from_slice(&checksum.to_le_bytes());
        let padded = (FRAME_HEADER + len).next_multiple_of(8) - FRAME_HEADER;
        let Some((_, after)) = rest.split_at_mut_checked(padded) else {
            return;
        };
        frames = after;
    }
}

/// Logs of one and two segments, whole and cut, and the damage that recovery must tell apart.
pub fn seeds() -> Vec<(String, Vec<u8>)> {
    let (first, second) = written();
    let one = |mode: u8, content: &[u8]| [&[mode][..], content].concat();
    let two = |mode: u8, first: &[u8], second: &[u8]| {
        let len = u16::try_from(first.len()).expect("a segment of a test is small");
        [&[mode | 2][..], &len.to_le_bytes(), first, second].concat()
    };
    let trim = |content: &[u8]| {
        let end = content
            .iter()
            .rposition(|byte| *byte != 0)
            .map_or(0, |at| at + 1);
        content[..end.next_multiple_of(8).min(content.len())].to_vec()
    };
    let (short, next) = (trim(&first), trim(&second));
    let mut flipped = first.clone();
    flipped[SEGMENT_HEADER + FRAME_HEADER + 5] ^= 4;
    let mut version = short.clone();
    version[8] = 2;
    vec![
        ("whole".into(), one(0, &short)),
        ("whole-mended".into(), one(1, &short)),
        (
            "zeros-behind".into(),
            one(0, &first[..(short.len() + 64).min(first.len())]),
        ),
        ("cut".into(), one(0, &short[..short.len() - 20])),
        ("flipped".into(), one(0, &flipped)),
        ("other-version".into(), one(0, &version)),
        ("two".into(), two(0, &short, &next)),
        ("two-mended".into(), two(1, &short, &next)),
        (
            "two-first-cut".into(),
            two(0, &short[..short.len() - 8], &next),
        ),
        (
            "two-second-cut".into(),
            two(0, &short, &next[..next.len() / 2]),
        ),
        ("header-only".into(), one(1, &first[..SEGMENT_HEADER])),
        ("empty".into(), one(0, &[])),
    ]
}

/// The first two segments of a log that has seen every kind of record.
fn written() -> (Vec<u8>, Vec<u8>) {
    let vfs = SimVfs::new(1);
    let (mut log, _) = open(&vfs).expect("an empty disk");
    let key = |group| GroupKey {
        group,
        incarnation: 1,
    };
    let entries = |from: u64, to: u64, term| {
        (from..=to)
            .map(|index| Entry {
                index,
                term,
                kind: (index % 2) as u8,
                data: Bytes::from(vec![b'd'; 24]),
                context: Bytes::from_static(b"ctx"),
            })
            .collect::<Vec<_>>()
    };
    let state = |term, vote, commit| Some(HardState { term, vote, commit });
    let at = |index, term| LogPosition { index, term };
    let mark = |index, term| SnapshotMark {
        position: at(index, term),
        digest: [3; 32],
        size: 400,
    };
    let append = |log: &mut Log, record: Record| {
        log.append(&record).expect("a sound record");
        log.sync().expect("a sound disk");
    };
    for group in 1..=3 {
        let mut record = Record::new(key(group));
        (record.replica, record.hard_state) = (group, state(1, group, 0));
        record.entries = entries(1, 4, 1);
        append(&mut log, record);
    }
    let mut overwrite = Record::new(key(1));
    (overwrite.hard_state, overwrite.entries) = (state(2, 0, 3), entries(4, 6, 2));
    append(&mut log, overwrite);
    let mut snapshot = Record::new(key(1));
    (snapshot.snapshot, snapshot.truncated) = (Some(mark(3, 1)), Some(at(3, 1)));
    append(&mut log, snapshot);
    let mut install = Record::new(key(2));
    (install.snapshot, install.truncated, install.reset) = (Some(mark(9, 3)), Some(at(9, 3)), true);
    install.hard_state = state(3, 0, 9);
    append(&mut log, install);
    append(&mut log, Record::replica_removed(key(3), 3));
    let mut again = Record::new(key(3));
    (again.replica, again.entries) = (5, entries(1, 2, 4));
    append(&mut log, again);
    append(&mut log, Record::tombstone(key(3)));
    // Enough to roll to the second segment.
    for index in 7..24 {
        let mut record = Record::new(key(1));
        (record.hard_state, record.entries) = (state(2, 1, index), entries(index, index + 2, 2));
        append(&mut log, record);
        if vfs.content(&segment(2)).is_some() {
            break;
        }
    }
    let mut more = Record::new(key(4));
    (more.replica, more.entries) = (1, entries(1, 3, 1));
    append(&mut log, more);
    log.close().expect("a sound disk");
    let read = |sequence| vfs.content(&segment(sequence)).unwrap_or_default();
    (read(1), read(2))
}
