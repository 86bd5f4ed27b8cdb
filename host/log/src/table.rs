//! What the log knows of each group in memory: its small state, and which frames hold its live entries.
//!
//! The first record of a group in each segment carries the group's whole small state (hard state, snapshot,
//! truncation, replica id), so a group needs only the segment of its newest record and those of its live entries.

use std::collections::{HashMap, VecDeque};

use crate::frame::Carried;
use crate::record::{GroupKey, HardState, LogPosition, Record, SnapshotMark};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct FramePlace {
    pub(crate) segment: u64,
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

/// The live entries `first..=last` of a group, all in one frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Span {
    pub(crate) first: u64,
    pub(crate) last: u64,
    pub(crate) place: FramePlace,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct GroupState {
    pub(crate) replica: u64,
    pub(crate) hard_state: HardState,
    pub(crate) snapshot: Option<SnapshotMark>,
    pub(crate) truncated: LogPosition,
    /// In the order of indices, which is also the order of places.
    pub(crate) spans: VecDeque<Span>,
    /// The segment of the newest record.
    pub(crate) newest: u64,
    pub(crate) live_bytes: u64,
    /// How often collection has asked for a snapshot in vain.
    pub(crate) asks: u32,
}

impl GroupState {
    pub(crate) fn last_index(&self) -> u64 {
        self.spans
            .back()
            .map_or(self.truncated.index, |span| span.last)
    }

    /// The oldest segment the group needs.
    fn oldest(&self) -> u64 {
        self.spans
            .front()
            .map_or(self.newest, |span| span.place.segment.min(self.newest))
    }

    pub(crate) fn carried(&self) -> Carried<'_> {
        Carried {
            replica: self.replica,
            hard_state: Some(self.hard_state),
            snapshot: self.snapshot.as_ref(),
            truncated: Some(self.truncated),
        }
    }

    fn apply(&mut self, record: &Record, place: FramePlace) {
        if record.reset {
            self.spans.clear();
            self.live_bytes = 0;
            self.truncated = record.truncated.unwrap_or_default();
        }
        if let (Some(first), Some(last)) = (record.entries.first(), record.entries.last()) {
            self.drop_from(first.index);
            self.spans.push_back(Span {
                first: first.index,
                last: last.index,
                place,
            });
            self.live_bytes += place.len;
        }
        if let Some(position) = record.truncated
            && position.index > self.truncated.index
        {
            self.truncated = position;
            self.drop_through(position.index);
            self.asks = 0;
        }
        if let Some(mark) = &record.snapshot {
            self.snapshot = Some(mark.clone());
        }
        if let Some(state) = record.hard_state {
            self.hard_state = state;
        }
        // What is truncated is in a snapshot, so it was committed, even if the hard state that says so came later.
        self.hard_state.commit = self.hard_state.commit.max(self.truncated.index);
        if record.replica != 0 {
            self.replica = record.replica;
        }
        self.newest = place.segment;
    }

    fn drop_from(&mut self, index: u64) {
        while let Some(span) = self.spans.pop_back_if(|span| span.first >= index) {
            self.live_bytes -= span.place.len;
        }
        if let Some(span) = self.spans.back_mut() {
            span.last = span.last.min(index.saturating_sub(1));
        }
    }

    fn drop_through(&mut self, index: u64) {
        while let Some(span) = self.spans.pop_front_if(|span| span.last <= index) {
            self.live_bytes -= span.place.len;
        }
        if let Some(span) = self.spans.front_mut() {
            span.first = span.first.max(index + 1);
        }
    }
}

/// What is left of replicas that were removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tombstone {
    /// The last replica that is gone.
    pub(crate) replica: u64,
    /// The segment that says so.
    pub(crate) segment: u64,
}

/// All groups and tombstones of a log.
#[derive(Debug, Default)]
pub(crate) struct GroupTable {
    pub(crate) groups: HashMap<GroupKey, GroupState>,
    /// What was removed and has not begun anew.
    pub(crate) tombstones: HashMap<GroupKey, Tombstone>,
    pub(crate) live_bytes: u64,
}

/// What keeps a segment from being freed.
#[derive(Debug, Default)]
pub(crate) struct Pins {
    pub(crate) groups: Vec<GroupKey>,
    pub(crate) tombstones: Vec<(GroupKey, u64)>,
}

impl GroupTable {
    /// Whether `record` is of a replica that was removed before.
    pub(crate) fn is_removed(&self, record: &Record) -> bool {
        self.tombstones
            .get(&record.key)
            .is_some_and(|tombstone| record.replica <= tombstone.replica)
    }

    /// Why `record` may not follow what is known of its group, if so.
    pub(crate) fn objection(&self, record: &Record) -> Option<String> {
        if record.removed {
            let bare = record.entries.is_empty() && !record.reset;
            return (!bare).then(|| "a tombstone carries nothing else".to_owned());
        }
        let known = self.groups.get(&record.key);
        let mut last = known.map_or(0, GroupState::last_index);
        let mut truncated = known.map_or(LogPosition::default(), |group| group.truncated);
        if record.reset {
            let Some(position) = record.truncated else {
                return Some("a reset needs the position the log starts after".to_owned());
            };
            if known.is_some() && record.snapshot.is_none() {
                return Some(
                    "a reset of a known group needs the snapshot that replaces its log".to_owned(),
                );
            }
            (last, truncated) = (position.index, position);
        }
        if let Some(first) = record.entries.first() {
            let contiguous = record
                .entries
                .iter()
                .zip(first.index..)
                .all(|(entry, index)| entry.index == index);
            if !contiguous
                || first
                    .index
                    .checked_add(record.entries.len() as u64)
                    .is_none()
            {
                return Some(format!(
                    "its entries from index {} on are not contiguous",
                    first.index
                ));
            }
            if first.index <= truncated.index || first.index > last + 1 {
                let (from, to) = (truncated.index, last);
                return Some(format!(
                    "its entries start at index {}, but the log covers ({from}, {to}]",
                    first.index
                ));
            }
            last = first.index + record.entries.len() as u64 - 1;
        }
        let snapshot = record
            .snapshot
            .as_ref()
            .or(known.and_then(|group| group.snapshot.as_ref()));
        if let Some(position) = record.truncated {
            if position.index > last {
                return Some(format!(
                    "it truncates through index {}, but the log ends at {last}",
                    position.index
                ));
            }
            let covered = snapshot.is_some_and(|mark| mark.position.index >= position.index);
            let bootstrap = record.reset && known.is_none() && record.snapshot.is_none();
            let advances = record.reset || position.index > truncated.index;
            if advances && !covered && !bootstrap {
                return Some(format!(
                    "it truncates through index {}, which no durable snapshot covers",
                    position.index
                ));
            }
        }
        let commit = record
            .hard_state
            .or(known.map(|group| group.hard_state))
            .map_or(0, |state| state.commit);
        if commit > last {
            return Some(format!(
                "index {commit} is committed, but the log would end at {last}"
            ));
        }
        None
    }

    pub(crate) fn apply(&mut self, record: &Record, place: FramePlace) {
        if record.removed {
            let gone = self.groups.remove(&record.key);
            self.live_bytes -= gone.map_or(0, |group| group.live_bytes);
            let tombstone = Tombstone {
                replica: record.replica,
                segment: place.segment,
            };
            self.tombstones.insert(record.key, tombstone);
            return;
        }
        // Segments are freed oldest first, so whatever the tombstone hides goes before it.
        self.tombstones.remove(&record.key);
        let group = self.groups.entry(record.key).or_default();
        let before = group.live_bytes;
        group.apply(record, place);
        self.live_bytes = self.live_bytes + group.live_bytes - before;
    }

    /// Notes that collection has copied the group's whole state to `spans`.
    pub(crate) fn moved(&mut self, key: GroupKey, spans: VecDeque<Span>, segment: u64) {
        if let Some(group) = self.groups.get_mut(&key) {
            self.live_bytes -= group.live_bytes;
            group.live_bytes = spans.iter().map(|span| span.place.len).sum();
            group.spans = spans;
            group.newest = segment;
            group.asks = 0;
            self.live_bytes += group.live_bytes;
        }
    }

    /// Everything that needs `segment` or an older one, in a fixed order.
    pub(crate) fn pins(&self, segment: u64) -> Pins {
        let groups = self
            .groups
            .iter()
            .filter(|(_, group)| group.oldest() <= segment)
            .map(|(key, _)| *key);
        let tombstones = self
            .tombstones
            .iter()
            .filter(|(_, tombstone)| tombstone.segment <= segment)
            .map(|(key, tombstone)| (*key, tombstone.replica));
        let mut pins = Pins {
            groups: groups.collect(),
            tombstones: tombstones.collect(),
        };
        pins.groups.sort_unstable();
        pins.tombstones.sort_unstable();
        pins
    }
}

impl Pins {
    pub(crate) fn is_empty(&self) -> bool {
        self.groups.is_empty() && self.tombstones.is_empty()
    }
}
