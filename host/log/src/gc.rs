//! Collection: gives back the oldest segments once nothing in them is needed, copying what little is.

use std::collections::VecDeque;

use skep_types::shared::lock;
use skep_vfs::patiently;

use crate::error::LogError;
use crate::frame::{body_bound, encode_record, encode_rewrite, entry_len, frame_len};
use crate::log::Log;
use crate::reader::SpanReader;
use crate::record::{Entry, GroupKey, Record};
use crate::segment::SegmentName;
use crate::table::{GroupState, Span, Tombstone};

/// What one call of [`Log::collect`] did.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Collected {
    /// Segments given back.
    pub freed_segments: u64,
    /// Bytes of frames copied forward.
    pub copied_bytes: u64,
    /// Groups that should snapshot and truncate their log: each keeps old segments alive and is too large to copy.
    pub heavy: Vec<GroupKey>,
}

/// How many bytes of entries one copied frame holds at most, beside a first larger entry. Half a segment at most, so
/// that segments fill well.
const PART_BYTES: usize = 4 << 20;

impl Log {
    /// Whether [`Log::collect`] may find something to do: a segment has filled up, or the last call reached its limit.
    pub fn wants_collect(&self) -> bool {
        self.collect_due
    }

    /// Frees the oldest segments that nothing needs. If more of the log is dead than alive
    /// ([`LogOptions::garbage_bytes`](crate::LogOptions::garbage_bytes)), first copies the live state of the groups in
    /// them forward, about `limit` bytes of it, and names the groups too large for that. A named group that does not
    /// snapshot is named again when further segments have filled up, and copied in the end.
    ///
    /// Everything appended before is durable when this returns.
    ///
    /// # Errors
    /// As [`Log::sync`]; [`LogError::Corrupt`] if an entry to be copied cannot be read back. Both poison the log.
    pub fn collect(&mut self, limit: u64) -> Result<Collected, LogError> {
        self.sync()?;
        let mut collected = Collected::default();
        let outcome = self.collect_segments(limit, &mut collected);
        self.poison_on_error(outcome)?;
        self.publish();
        Ok(collected)
    }

    fn collect_segments(&mut self, limit: u64, collected: &mut Collected) -> Result<(), LogError> {
        let mut dead = 0;
        self.collect_due = false;
        while let Some(&(sequence, end)) = self.sealed.get(dead) {
            let pins = lock(&self.table).pins(sequence);
            if pins.is_empty() {
                dead += 1;
                continue;
            }
            let freed: u64 = self.sealed.iter().take(dead).map(|(_, end)| end).sum();
            let live = lock(&self.table).live_bytes;
            let total = self.total_bytes() - freed;
            // A segment that is pinned by little more than tombstones and small states counts as dead space too.
            if total.saturating_sub(live) < live + self.options.garbage_bytes.max(end) {
                break;
            }
            if collected.copied_bytes >= limit {
                self.collect_due = true;
                break;
            }
            collected.heavy = self.ask(&pins.groups);
            if !collected.heavy.is_empty() {
                break;
            }
            let copied = self.copy_forward(
                pins.groups,
                pins.tombstones,
                limit.saturating_sub(collected.copied_bytes),
            )?;
            collected.copied_bytes += copied;
            if !lock(&self.table).pins(sequence).is_empty() {
                self.collect_due = true;
                break;
            }
        }
        collected.freed_segments = dead as u64;
        self.free(dead)
    }

    /// The groups that are too large to copy and have not been asked often enough yet.
    fn ask(&mut self, groups: &[GroupKey]) -> Vec<GroupKey> {
        let (light, asks) = (self.options.light_group_bytes, self.options.heavy_asks);
        let mut heavy = Vec::new();
        let mut table = lock(&self.table);
        for key in groups {
            if let Some(group) = table.groups.get_mut(key)
                && group.live_bytes > light
                && group.asks < asks
            {
                group.asks += 1;
                heavy.push(*key);
            }
        }
        heavy
    }

    fn copy_forward(
        &mut self,
        groups: Vec<GroupKey>,
        tombstones: Vec<(GroupKey, u64)>,
        limit: u64,
    ) -> Result<u64, LogError> {
        let mut copied = 0;
        for (key, replica) in tombstones {
            let record = Record::replica_removed(key, replica);
            let place = self.append_copy(frame_len(body_bound(&record)), |out, context| {
                encode_record(out, context, &record, Default::default())
            })?;
            let tombstone = Tombstone {
                replica,
                segment: place.segment,
            };
            lock(&self.table).tombstones.insert(key, tombstone);
            copied += place.len;
        }
        let mut reader = SpanReader::default();
        for key in groups {
            if copied >= limit.max(1) {
                break;
            }
            copied += self.copy_group(key, &mut reader)?;
        }
        self.sync()?;
        Ok(copied)
    }

    /// Writes the group's whole state again, in parts that recovery takes together or not at all.
    fn copy_group(&mut self, key: GroupKey, reader: &mut SpanReader) -> Result<u64, LogError> {
        let Some(group) = lock(&self.table).groups.get(&key).cloned() else {
            return Ok(0);
        };
        let mut part = state_record(key, &group, true);
        let part_bytes = PART_BYTES.min(self.options.segment_bytes as usize / 2);
        let mut number = 0;
        let mut moved = VecDeque::new();
        let mut bytes = 0;
        let mut copied = 0;
        for span in &group.spans {
            for entry in self.read_back(reader, key, span)? {
                let len = entry_len(&entry);
                if bytes > 0 && bytes + len > part_bytes {
                    copied += self.copy_part(&part, number, false, &mut moved)?;
                    part = state_record(key, &group, false);
                    number += 1;
                    bytes = 0;
                }
                bytes += len;
                part.entries.push(entry);
            }
        }
        copied += self.copy_part(&part, number, true, &mut moved)?;
        if !moved.is_empty() {
            // Whoever reads an entry back from its new place must find it there.
            self.flush()?;
        }
        lock(&self.table).moved(key, moved, self.active.sequence);
        Ok(copied)
    }

    fn read_back(
        &mut self,
        reader: &mut SpanReader,
        key: GroupKey,
        span: &Span,
    ) -> Result<Vec<Entry>, LogError> {
        self.flush()?;
        let place = (&*self.dir, &self.options.store);
        // The log stops if this fails; that there is no descriptor at the moment is no reason.
        reader.entries(place, key, span, |path| patiently(|| self.vfs.open(path)))
    }

    fn copy_part(
        &mut self,
        part: &Record,
        number: u32,
        last: bool,
        moved: &mut VecDeque<Span>,
    ) -> Result<u64, LogError> {
        let bound = frame_len(body_bound(part));
        let place = self.append_copy(bound, |out, context| {
            encode_rewrite(out, context, number, last, part)
        })?;
        if let (Some(first), Some(last)) = (part.entries.first(), part.entries.last()) {
            moved.push_back(Span {
                first: first.index,
                last: last.index,
                place,
            });
        }
        Ok(place.len)
    }

    /// Gives back the `count` oldest segments. The log says that they are not needed before the first of them goes, so
    /// it does not matter which of the removals a crash undoes.
    fn free(&mut self, count: usize) -> Result<(), LogError> {
        if count == 0 {
            return Ok(());
        }
        let first_live = self
            .sealed
            .get(count)
            .map_or(self.active.sequence, |(sequence, _)| *sequence);
        self.append_checkpoint(first_live)?;
        self.sync()?;
        self.first_live = first_live;
        for (sequence, end) in self.sealed.drain(..count).collect::<Vec<_>>() {
            let path = SegmentName::Segment(sequence).path(&self.dir);
            // Only a file that was filled is worth keeping, and an oversized one would waste its space.
            let full = end > self.options.segment_bytes / 2 && end <= self.options.segment_bytes;
            if full && self.spares.len() < self.options.spare_segments {
                let spare = SegmentName::Spare(sequence).path(&self.dir);
                self.vfs
                    .rename(&path, &spare)
                    .map_err(LogError::io("rename", &path))?;
                self.spares.push(spare);
            } else {
                self.vfs
                    .remove(&path)
                    .map_err(LogError::io("remove", &path))?;
            }
        }
        self.vfs
            .sync_dir(&self.dir)
            .map_err(LogError::io("sync", &self.dir))?;
        self.counters
            .count(|stats| stats.freed_segments += count as u64);
        Ok(())
    }
}

/// The group's small state. Every part carries it, because the segments of the first parts may be freed before the last.
fn state_record(key: GroupKey, group: &GroupState, reset: bool) -> Record {
    Record {
        key,
        replica: group.replica,
        hard_state: Some(group.hard_state),
        entries: Vec::new(),
        snapshot: group.snapshot.clone(),
        truncated: Some(group.truncated),
        reset,
        removed: false,
    }
}
