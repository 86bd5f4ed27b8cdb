//! Recovery: reads the segments once, oldest first, and sums up each group's records.
//!
//! In every segment but the last, frames must be sound up to the end that the next segment's header names. In the
//! last one, the first unsound frame is the torn tail of an unacknowledged write, unless a later frame says that the
//! bytes there had been synced; then acknowledged data is damaged, and recovery refuses.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use skep_vfs::{Vfs, VfsFile};

use crate::error::LogError;
use crate::frame::{
    Body, FRAME_ALIGN, FRAME_HEADER, FrameHeader, Place, Seed, decode_body, entry_len,
};
use crate::options::LogOptions;
use crate::record::{EVERY_REPLICA, Entry, GroupKey, HardState, LogPosition, Record, SnapshotMark};
use crate::segment::{SEGMENT_HEADER, SegmentHeader, SegmentName};
use crate::table::{FramePlace, GroupTable};

/// Everything a log held when it was opened.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Recovered {
    /// The groups, by key.
    pub groups: Vec<RecoveredGroup>,
    /// The incarnations that were removed, by key. They never come back.
    pub tombstones: Vec<GroupKey>,
    /// The last replica of an incarnation that was removed from this node, by key. A later one may begin anew.
    pub removed_replicas: Vec<(GroupKey, u64)>,
    /// Bytes of frames behind the end of the log that a crash left incomplete or without what they follow. None of
    /// them had been acknowledged.
    pub torn_bytes: u64,
    /// Segments read.
    pub segments: u64,
    /// Frames read.
    pub frames: u64,
    /// Whether there was no log before.
    pub created: bool,
}

/// The sum of one group's records.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RecoveredGroup {
    /// Which group.
    pub key: GroupKey,
    /// The raft id of its replica here, 0 if never recorded.
    pub replica: u64,
    /// The newest hard state. Its commit is at least `truncated.index` and at most the last entry's index.
    pub hard_state: HardState,
    /// The newest durable snapshot.
    pub snapshot: Option<SnapshotMark>,
    /// Where the log starts: the entries follow this position without a gap. The files may hold older ones, which are of no use
    /// for recovery ([`LogOptions::recovered_behind_bytes`]).
    pub truncated: LogPosition,
    /// The live entries, contiguous.
    pub entries: Vec<Entry>,
}

/// What the log goes on with.
pub(crate) struct Replayed {
    pub(crate) table: GroupTable,
    /// Sequence and end of each segment that is still needed, oldest first.
    pub(crate) segments: VecDeque<(u64, u64)>,
    pub(crate) first_live: u64,
    /// Files that are of no use any more.
    pub(crate) leftovers: Vec<PathBuf>,
    pub(crate) recovered: Recovered,
}

pub(crate) fn replay(
    vfs: &dyn Vfs,
    dir: &Path,
    options: &LogOptions,
) -> Result<Replayed, LogError> {
    let mut sequences = Vec::new();
    let mut leftovers = Vec::new();
    for name in vfs.list(dir).map_err(LogError::io("list", dir))? {
        match SegmentName::parse(&name) {
            Some(SegmentName::Segment(sequence)) => sequences.push(sequence),
            Some(other) => leftovers.push(other.path(dir)),
            None => {}
        }
    }
    sequences.sort_unstable();
    let run = newest_run(&sequences);
    let mut segments = Vec::with_capacity(run.len());
    for &sequence in run {
        let path = SegmentName::Segment(sequence).path(dir);
        let file = vfs.open(&path).map_err(LogError::io("open", &path))?;
        let header = SegmentHeader::read(&*file, &path, sequence, &options.store)?;
        segments.push(Segment { file, path, header });
    }

    let mut replay = Replay {
        first_live: 1,
        behind_bytes: options.recovered_behind_bytes,
        ..Replay::default()
    };
    for (position, segment) in segments.iter().enumerate() {
        let sealed_at = segments
            .get(position + 1)
            .map(|next| next.header.previous_end);
        replay.segment(segment, sealed_at)?;
    }
    if let Some(last) = segments.last() {
        settle(
            last,
            replay.known_synced,
            replay
                .ends
                .get(&last.header.sequence)
                .copied()
                .unwrap_or(SEGMENT_HEADER),
        )?;
        vfs.sync_dir(dir).map_err(LogError::io("sync", dir))?;
    }

    let newest = sequences.last().copied().unwrap_or(0);
    if let Some(missing) =
        (replay.first_live..newest).find(|sequence| sequences.binary_search(sequence).is_err())
    {
        return Err(LogError::MissingSegment {
            file: SegmentName::Segment(missing).path(dir),
        });
    }
    let stale = sequences
        .iter()
        .filter(|sequence| **sequence < replay.first_live);
    leftovers.extend(stale.map(|sequence| SegmentName::Segment(*sequence).path(dir)));
    replay.finish(dir, leftovers)
}

/// Makes the frames between `from` and `end` durable, which are about to be relied on. If only the process died they
/// may be in the page cache alone, and if it died because a sync failed, the system may hold them for clean: so they
/// are written again, and then synced.
fn settle(segment: &Segment, from: Place, end: u64) -> Result<(), LogError> {
    let mut offset = from
        .offset_in(segment.header.sequence)
        .unwrap_or(SEGMENT_HEADER);
    let mut chunk = vec![0; READ_STEP.min(end.saturating_sub(offset)) as usize];
    while offset < end {
        let step = chunk.len().min((end - offset) as usize);
        let read = segment
            .file
            .read_at(offset, &mut chunk[..step])
            .map_err(LogError::io("read", &segment.path))?;
        if read < step {
            return Err(LogError::corrupt(
                &segment.path,
                offset,
                "the file became shorter while it was read",
            ));
        }
        segment
            .file
            .write_all_at(offset, &chunk[..step])
            .map_err(LogError::io("write", &segment.path))?;
        offset += step as u64;
    }
    segment
        .file
        .sync_data()
        .map_err(LogError::io("sync", &segment.path))
}

/// Drops the entries that a snapshot covers, but for the newest of so many bytes. Gives the last one dropped.
fn pass_over(entries: &mut VecDeque<Entry>, covered: u64, behind: u64) -> Option<LogPosition> {
    let count = entries.partition_point(|entry| entry.index <= covered);
    let mut bytes = 0;
    let kept = entries.iter().take(count).rev().take_while(|entry| {
        bytes += entry_len(entry) as u64;
        bytes <= behind
    });
    let dropped = count - kept.count();
    let last = entries.drain(..dropped).next_back()?;
    Some(LogPosition {
        index: last.index,
        term: last.term,
    })
}

/// The longest run of consecutive sequences that ends with the newest.
fn newest_run(sequences: &[u64]) -> &[u64] {
    let mut start = sequences.len();
    while start > 0
        && (start == sequences.len()
            || sequences[start - 1].checked_add(1) == Some(sequences[start]))
    {
        start -= 1;
    }
    &sequences[start..]
}

struct Segment {
    file: Box<dyn VfsFile>,
    path: PathBuf,
    header: SegmentHeader,
}

/// The parts of a group's copy, until the last one makes them count.
#[derive(Default)]
struct Rewrite {
    parts: Vec<(Record, FramePlace)>,
    next: u32,
}

#[derive(Default)]
struct Replay {
    table: GroupTable,
    entries: HashMap<GroupKey, VecDeque<Entry>>,
    /// Bytes of entries that are taken up although a snapshot covers them.
    behind_bytes: u64,
    /// The last entry of each group that was passed over because its snapshot covers it.
    passed: HashMap<GroupKey, LogPosition>,
    rewrites: HashMap<GroupKey, Rewrite>,
    ends: BTreeMap<u64, u64>,
    first_live: u64,
    /// The furthest place that a frame says had been synced.
    known_synced: Place,
    frames: u64,
    torn_bytes: u64,
}

impl Replay {
    fn segment(&mut self, segment: &Segment, sealed_at: Option<u64>) -> Result<(), LogError> {
        let sequence = segment.header.sequence;
        let mut reader = FrameReader::new(segment, self.seed(segment))?;
        self.first_live = self.first_live.max(segment.header.first_live);
        let mut offset = SEGMENT_HEADER;
        while sealed_at.is_none_or(|end| offset < end) {
            let Some((header, body)) = reader.frame(offset)? else {
                break;
            };
            let len = header.frame_len();
            let body = decode_body(header.key, body)
                .map_err(|reason| LogError::corrupt(&segment.path, offset, reason))?;
            self.body(
                body,
                FramePlace {
                    segment: sequence,
                    offset,
                    len,
                },
                &segment.path,
            )?;
            self.known_synced = self.known_synced.max(header.synced_through);
            self.frames += 1;
            offset += len;
        }
        match sealed_at {
            Some(end) if offset != end => {
                let reason =
                    format!("a frame is damaged; the segment's frames reach to byte {end}");
                return Err(LogError::corrupt(&segment.path, offset, reason));
            }
            Some(_) => {}
            None => self.torn_bytes += reader.check_tail(sequence, offset)?,
        }
        self.ends.insert(sequence, offset);
        Ok(())
    }

    fn seed(&self, segment: &Segment) -> Seed {
        Seed::new(&segment.header.store, segment.header.sequence)
    }

    fn body(&mut self, body: Body, place: FramePlace, file: &Path) -> Result<(), LogError> {
        match body {
            // It would have everything up to there deleted, this segment included.
            Body::Checkpoint { first_live } if first_live > place.segment => {
                Err(LogError::corrupt(
                    file,
                    place.offset,
                    format!("a checkpoint names segment {first_live:016x}, which comes later"),
                ))
            }
            Body::Checkpoint { first_live } => {
                self.first_live = self.first_live.max(first_live);
                Ok(())
            }
            Body::Record(record) => {
                // A copy that was cut off by a crash; its original is still there.
                self.rewrites.remove(&record.key);
                self.record(record, place, file)
            }
            Body::Rewrite { part, last, record } => {
                let key = record.key;
                let rewrite = self.rewrites.entry(key).or_default();
                if part == 0 {
                    *rewrite = Rewrite::default();
                }
                // The first parts may have been collected already; then the copy begins with a later one.
                if !rewrite.parts.is_empty() && rewrite.next != part {
                    return Err(LogError::corrupt(
                        file,
                        place.offset,
                        format!("a part of the copy of {key} is missing"),
                    ));
                }
                rewrite.next = part.saturating_add(1);
                rewrite.parts.push((record, place));
                if last {
                    for (record, place) in self.rewrites.remove(&key).unwrap_or_default().parts {
                        self.record(record, place, file)?;
                    }
                }
                Ok(())
            }
        }
    }

    /// Replay may start in the middle of a group's history, with the part before already collected. So entries may
    /// begin anywhere as long as nothing older of the group is known; `finish` checks that the history has closed the
    /// gap.
    fn record(&mut self, record: Record, place: FramePlace, file: &Path) -> Result<(), LogError> {
        if !record.removed && self.table.is_removed(&record) {
            return Err(LogError::corrupt(
                file,
                place.offset,
                format!("a record of {} after its removal", record.key),
            ));
        }
        self.table.apply(&record, place);
        let entries = self.entries.entry(record.key).or_default();
        if record.removed {
            self.entries.remove(&record.key);
            self.passed.remove(&record.key);
            return Ok(());
        }
        if record.reset {
            entries.clear();
            self.passed.remove(&record.key);
        }
        if let Some(first) = record.entries.first() {
            while entries
                .pop_back_if(|entry| entry.index >= first.index)
                .is_some()
            {}
            if entries
                .back()
                .is_some_and(|entry| entry.index + 1 != first.index)
            {
                let reason = format!(
                    "entries of {} before index {} are missing",
                    record.key, first.index
                );
                return Err(LogError::corrupt(file, place.offset, reason));
            }
            entries.extend(record.entries);
        }
        if let Some(position) = record.truncated {
            while entries
                .pop_front_if(|entry| entry.index <= position.index)
                .is_some()
            {}
        }
        if let Some(mark) = &record.snapshot
            && let Some(passed) = pass_over(entries, mark.position.index, self.behind_bytes)
        {
            self.passed.insert(record.key, passed);
        }
        Ok(())
    }

    fn finish(mut self, dir: &Path, leftovers: Vec<PathBuf>) -> Result<Replayed, LogError> {
        let mut groups = Vec::with_capacity(self.table.groups.len());
        for (key, state) in &self.table.groups {
            let entries: Vec<Entry> = self.entries.remove(key).unwrap_or_default().into();
            let passed = self.passed.get(key).copied().unwrap_or_default();
            let truncated = match passed.index > state.truncated.index {
                true => passed,
                false => state.truncated,
            };
            let gap = entries
                .first()
                .is_some_and(|first| first.index.checked_sub(1) != Some(truncated.index));
            if gap || state.hard_state.commit > state.last_index() {
                let place = state.spans.front().map_or((state.newest, 0), |span| {
                    (span.place.segment, span.place.offset)
                });
                let reason = format!(
                    "entries of {key} after index {} are missing",
                    truncated.index
                );
                return Err(LogError::corrupt(
                    &SegmentName::Segment(place.0).path(dir),
                    place.1,
                    reason,
                ));
            }
            groups.push(RecoveredGroup {
                key: *key,
                replica: state.replica,
                hard_state: state.hard_state,
                snapshot: state.snapshot.clone(),
                truncated,
                entries,
            });
        }
        groups.sort_unstable_by_key(|group| group.key);
        let (mut tombstones, mut removed_replicas) = (Vec::new(), Vec::new());
        for (key, tombstone) in &self.table.tombstones {
            match tombstone.replica {
                EVERY_REPLICA => tombstones.push(*key),
                replica => removed_replicas.push((*key, replica)),
            }
        }
        tombstones.sort_unstable();
        removed_replicas.sort_unstable();
        let recovered = Recovered {
            groups,
            tombstones,
            removed_replicas,
            torn_bytes: self.torn_bytes,
            segments: self.ends.len() as u64,
            frames: self.frames,
            created: self.ends.is_empty(),
        };
        let segments = self
            .ends
            .into_iter()
            .filter(|(sequence, _)| *sequence >= self.first_live)
            .collect();
        Ok(Replayed {
            table: self.table,
            segments,
            first_live: self.first_live,
            leftovers,
            recovered,
        })
    }
}

/// Reads a segment front to back through one buffer.
struct FrameReader<'a> {
    segment: &'a Segment,
    seed: Seed,
    len: u64,
    buffer: Vec<u8>,
    /// Where in the file the buffer starts.
    start: u64,
}

/// How much is read at once: large enough for the disk's full speed.
const READ_STEP: u64 = 1 << 20;

impl<'a> FrameReader<'a> {
    fn new(segment: &'a Segment, seed: Seed) -> Result<FrameReader<'a>, LogError> {
        let len = segment
            .file
            .len()
            .map_err(LogError::io("read", &segment.path))?;
        Ok(FrameReader {
            segment,
            seed,
            len,
            buffer: Vec::new(),
            start: 0,
        })
    }

    /// The sound frame at `offset`, if there is one.
    fn frame(&mut self, offset: u64) -> Result<Option<(FrameHeader, Bytes)>, LogError> {
        let seed = self.seed;
        let Some(header) = self
            .bytes(offset, FRAME_HEADER as u64)?
            .and_then(|bytes| FrameHeader::parse(bytes, seed))
        else {
            return Ok(None);
        };
        let padded = header.frame_len() - FRAME_HEADER as u64;
        let Some(padded) = self.bytes(offset + FRAME_HEADER as u64, padded)? else {
            return Ok(None);
        };
        let body = &padded[..header.body_len as usize];
        if !header.body_is_sound(body, seed) {
            return Ok(None);
        }
        // A copy, so that a few live entries do not hold on to the whole buffer.
        let body = Bytes::copy_from_slice(body);
        Ok(Some((header, body)))
    }

    /// Looks behind the end of the last segment. Gives the bytes of frames found there, or the corruption they prove.
    fn check_tail(&mut self, sequence: u64, end: u64) -> Result<u64, LogError> {
        let seed = self.seed;
        let end_place = Place::new(sequence, end);
        let mut offset = end;
        let mut torn_to = end;
        while let Some(bytes) = self.bytes(offset, FRAME_HEADER as u64)? {
            if let Some(header) = FrameHeader::parse(bytes, seed) {
                if header.synced_through > end_place {
                    let reason = format!(
                        "a frame is damaged, and the frame at byte {offset} shows that it had been synced"
                    );
                    return Err(LogError::corrupt(&self.segment.path, end, reason));
                }
                torn_to = torn_to.max((offset + header.frame_len()).min(self.len));
            }
            offset += FRAME_ALIGN;
        }
        Ok(torn_to - end)
    }

    /// `len` bytes of the file, or nothing if it ends before. The length is checked against the file before anything
    /// is allocated.
    fn bytes(&mut self, offset: u64, len: u64) -> Result<Option<&[u8]>, LogError> {
        if offset + len > self.len {
            return Ok(None);
        }
        let buffered =
            offset >= self.start && offset + len <= self.start + self.buffer.len() as u64;
        if !buffered {
            let want = len.max(READ_STEP).min(self.len - offset);
            self.buffer.resize(want as usize, 0);
            self.start = offset;
            let read = self
                .segment
                .file
                .read_at(offset, &mut self.buffer)
                .map_err(LogError::io("read", &self.segment.path))?;
            self.buffer.truncate(read);
            if (read as u64) < len {
                return Ok(None);
            }
        }
        let from = (offset - self.start) as usize;
        Ok(Some(&self.buffer[from..from + len as usize]))
    }
}

#[cfg(test)]
mod tests {
    use super::newest_run;

    #[test]
    fn the_newest_run_ends_at_the_first_gap() {
        assert_eq!(newest_run(&[]), &[] as &[u64]);
        assert_eq!(newest_run(&[4]), &[4]);
        assert_eq!(newest_run(&[1, 2, 5, 6, 7]), &[5, 6, 7]);
        assert_eq!(newest_run(&[1, 2, 3]), &[1, 2, 3]);
    }
}
