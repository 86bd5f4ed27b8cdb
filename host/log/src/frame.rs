//! Frames: how a record lies in a segment, and the only code that turns bytes back into one.

use bytes::{Buf, BufMut, Bytes};

use crate::record::{Entry, GroupKey, HardState, LogPosition, Record, SnapshotMark};

/// Bytes of a frame before its body.
pub(crate) const FRAME_HEADER: usize = 40;

/// Frames start at multiples of this, so that the search for frames behind damage has few places to look at.
pub(crate) const FRAME_ALIGN: u64 = 8;

/// The largest body. It bounds what recovery allocates for one frame, and leaves room for some thirty of raft's
/// largest entries (8 MiB) in one record.
pub(crate) const MAX_BODY: u64 = 256 << 20;

const MAGIC: u32 = u32::from_le_bytes(*b"SKF1");

/// A place in the log: segment sequence in the high half, byte offset in the low one, so that places order as written.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(crate) struct Place(pub(crate) u64);

impl Place {
    pub(crate) fn new(sequence: u64, offset: u64) -> Place {
        Place(sequence << 32 | offset)
    }

    /// The offset, if the place is in this segment.
    pub(crate) fn offset_in(self, sequence: u64) -> Option<u64> {
        (self.0 >> 32 == sequence).then_some(self.0 & u64::from(u32::MAX))
    }
}

/// The checksum state all frames of one segment start from. It holds the store's id and the segment's sequence, so
/// frames left over in a recycled file, or copied from another store, do not verify.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seed(u32);

impl Seed {
    pub(crate) fn new(store: &[u8; 16], sequence: u64) -> Seed {
        Seed(crc32c::crc32c_append(
            crc32c::crc32c(store),
            &sequence.to_le_bytes(),
        ))
    }
}

/// A frame's header after its own checksum has been verified.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct FrameHeader {
    pub(crate) body_len: u32,
    pub(crate) key: GroupKey,
    pub(crate) synced_through: Place,
    body_crc: u32,
}

impl FrameHeader {
    pub(crate) fn parse(bytes: &[u8], seed: Seed) -> Option<FrameHeader> {
        let mut header = bytes.get(..FRAME_HEADER)?;
        if header.get_u32_le() != MAGIC {
            return None;
        }
        let body_len = header.get_u32_le();
        let key = GroupKey {
            group: header.get_u64_le(),
            incarnation: header.get_u64_le(),
        };
        let synced_through = Place(header.get_u64_le());
        let body_crc = header.get_u32_le();
        let sound = header.get_u32_le()
            == crc32c::crc32c_append(seed.0, &bytes[..FRAME_HEADER - 4])
            && u64::from(body_len) <= MAX_BODY;
        sound.then_some(FrameHeader {
            body_len,
            key,
            synced_through,
            body_crc,
        })
    }

    pub(crate) fn body_is_sound(&self, body: &[u8], seed: Seed) -> bool {
        body.len() == self.body_len as usize && crc32c::crc32c_append(seed.0, body) == self.body_crc
    }

    /// The whole frame's length, padding included.
    pub(crate) fn frame_len(&self) -> u64 {
        frame_len(u64::from(self.body_len))
    }
}

pub(crate) fn frame_len(body_len: u64) -> u64 {
    (FRAME_HEADER as u64 + body_len).next_multiple_of(FRAME_ALIGN)
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Body {
    /// A caller's record.
    Record(Record),
    /// Segments before this sequence hold nothing that is still needed.
    Checkpoint { first_live: u64 },
    /// One part of a group's complete state, copied forward by collection; it counts from the `last` part on.
    Rewrite {
        part: u32,
        last: bool,
        record: Record,
    },
}

const RECORD: u8 = 1;
const CHECKPOINT: u8 = 2;
const REWRITE: u8 = 3;

const HAS_HARD_STATE: u8 = 1;
const HAS_SNAPSHOT: u8 = 2;
const HAS_TRUNCATED: u8 = 4;
const IS_RESET: u8 = 8;
const IS_REMOVED: u8 = 16;
const HAS_ENTRIES: u8 = 32;

/// Bytes of an entry beside its data and context.
const ENTRY_OVERHEAD: usize = 8 + 1 + 4 + 4;

/// An upper bound of a record body's size without entries.
const RECORD_OVERHEAD: usize = 64 + 24 + 56 + 16;

/// An upper bound of the body size of `record`, all optional parts included.
pub(crate) fn body_bound(record: &Record) -> u64 {
    let entries: usize = record.entries.iter().map(entry_len).sum();
    (RECORD_OVERHEAD + entries) as u64
}

pub(crate) fn entry_len(entry: &Entry) -> usize {
    ENTRY_OVERHEAD + entry.data.len() + entry.context.len()
}

/// Parts of a record that a frame may carry although the record itself does not, see
/// [`GroupTable`](crate::table::GroupTable).
#[derive(Clone, Copy, Default)]
pub(crate) struct Carried<'a> {
    pub(crate) replica: u64,
    pub(crate) hard_state: Option<HardState>,
    pub(crate) snapshot: Option<&'a SnapshotMark>,
    pub(crate) truncated: Option<LogPosition>,
}

/// What the frame header says beside the body.
#[derive(Clone, Copy)]
pub(crate) struct FrameContext {
    pub(crate) seed: Seed,
    pub(crate) synced_through: Place,
}

pub(crate) fn encode_record(
    out: &mut Vec<u8>,
    context: FrameContext,
    record: &Record,
    carried: Carried<'_>,
) -> u64 {
    encode_frame(out, context, record.key, |out| {
        out.push(RECORD);
        put_record(out, record, carried);
    })
}

pub(crate) fn encode_checkpoint(out: &mut Vec<u8>, context: FrameContext, first_live: u64) -> u64 {
    encode_frame(
        out,
        context,
        GroupKey {
            group: 0,
            incarnation: 0,
        },
        |out| {
            out.push(CHECKPOINT);
            out.put_u64_le(first_live);
        },
    )
}

pub(crate) fn encode_rewrite(
    out: &mut Vec<u8>,
    context: FrameContext,
    part: u32,
    last: bool,
    record: &Record,
) -> u64 {
    encode_frame(out, context, record.key, |out| {
        out.push(REWRITE);
        out.put_u32_le(part);
        out.push(u8::from(last));
        put_record(out, record, Carried::default());
    })
}

/// Appends a frame to `out` and returns its length. The caller has checked the body's size.
fn encode_frame(
    out: &mut Vec<u8>,
    context: FrameContext,
    key: GroupKey,
    body: impl FnOnce(&mut Vec<u8>),
) -> u64 {
    let start = out.len();
    out.resize(start + FRAME_HEADER, 0);
    body(out);
    let body_start = start + FRAME_HEADER;
    let body_len = out.len() - body_start;
    let body_crc = crc32c::crc32c_append(context.seed.0, &out[body_start..]);
    let mut header = &mut out[start..body_start];
    header.put_u32_le(MAGIC);
    header.put_u32_le(body_len as u32);
    header.put_u64_le(key.group);
    header.put_u64_le(key.incarnation);
    header.put_u64_le(context.synced_through.0);
    header.put_u32_le(body_crc);
    let header_crc = crc32c::crc32c_append(context.seed.0, &out[start..body_start - 4]);
    out[body_start - 4..body_start].copy_from_slice(&header_crc.to_le_bytes());
    let len = frame_len(body_len as u64);
    out.resize(start + len as usize, 0);
    len
}

fn put_record(out: &mut Vec<u8>, record: &Record, carried: Carried<'_>) {
    let replica = if record.replica == 0 {
        carried.replica
    } else {
        record.replica
    };
    let hard_state = record.hard_state.or(carried.hard_state);
    let snapshot = record.snapshot.as_ref().or(carried.snapshot);
    let truncated = record.truncated.or(carried.truncated);
    let flag = |set: bool, flag: u8| if set { flag } else { 0 };
    out.push(
        flag(hard_state.is_some(), HAS_HARD_STATE)
            | flag(snapshot.is_some(), HAS_SNAPSHOT)
            | flag(truncated.is_some(), HAS_TRUNCATED)
            | flag(record.reset, IS_RESET)
            | flag(record.removed, IS_REMOVED)
            | flag(!record.entries.is_empty(), HAS_ENTRIES),
    );
    out.put_u64_le(replica);
    if let Some(state) = hard_state {
        out.put_u64_le(state.term);
        out.put_u64_le(state.vote);
        out.put_u64_le(state.commit);
    }
    if let Some(mark) = snapshot {
        put_position(out, mark.position);
        out.put_u64_le(mark.size);
        out.put_slice(&mark.digest);
    }
    if let Some(position) = truncated {
        put_position(out, position);
    }
    if let Some(first) = record.entries.first() {
        out.put_u64_le(first.index);
        out.put_u32_le(record.entries.len() as u32);
        for entry in &record.entries {
            out.put_u64_le(entry.term);
            out.push(entry.kind);
            out.put_u32_le(entry.data.len() as u32);
            out.put_u32_le(entry.context.len() as u32);
            out.put_slice(&entry.data);
            out.put_slice(&entry.context);
        }
    }
}

fn put_position(out: &mut Vec<u8>, position: LogPosition) {
    out.put_u64_le(position.index);
    out.put_u64_le(position.term);
}

/// Decodes a body whose checksum has been verified. Entry data are slices of `body`. An error therefore means a
/// writer's mistake or a newer format, never a torn write.
pub(crate) fn decode_body(key: GroupKey, body: Bytes) -> Result<Body, &'static str> {
    let mut reader = Reader(body);
    let decoded = match reader.u8()? {
        RECORD => Body::Record(record(key, &mut reader)?),
        CHECKPOINT => Body::Checkpoint {
            first_live: reader.u64()?,
        },
        REWRITE => {
            let part = reader.u32()?;
            let last = reader.u8()? == 1;
            Body::Rewrite {
                part,
                last,
                record: record(key, &mut reader)?,
            }
        }
        _ => return Err("a frame of an unknown kind; a newer version of Skep may have written it"),
    };
    if !reader.0.is_empty() {
        return Err("a frame with bytes behind its content");
    }
    Ok(decoded)
}

fn record(key: GroupKey, reader: &mut Reader) -> Result<Record, &'static str> {
    let flags = reader.u8()?;
    if flags
        & !(HAS_HARD_STATE | HAS_SNAPSHOT | HAS_TRUNCATED | IS_RESET | IS_REMOVED | HAS_ENTRIES)
        != 0
    {
        return Err("a record with unknown flags; a newer version of Skep may have written it");
    }
    let has = |flag: u8| flags & flag != 0;
    let replica = reader.u64()?;
    let hard_state = has(HAS_HARD_STATE)
        .then(|| reader.hard_state())
        .transpose()?;
    let snapshot = has(HAS_SNAPSHOT).then(|| reader.mark()).transpose()?;
    let truncated = has(HAS_TRUNCATED).then(|| reader.position()).transpose()?;
    let entries = if has(HAS_ENTRIES) {
        reader.entries()?
    } else {
        Vec::new()
    };
    Ok(Record {
        key,
        replica,
        hard_state,
        entries,
        snapshot,
        truncated,
        reset: has(IS_RESET),
        removed: has(IS_REMOVED),
    })
}

/// Takes values from the front of a body and never reads past its end.
struct Reader(Bytes);

const SHORT: &str = "a frame whose content ends early";

impl Reader {
    fn take(&mut self, len: usize) -> Result<Bytes, &'static str> {
        if self.0.len() < len {
            return Err(SHORT);
        }
        Ok(self.0.split_to(len))
    }

    fn u8(&mut self) -> Result<u8, &'static str> {
        self.0.try_get_u8().map_err(|_| SHORT)
    }

    fn u32(&mut self) -> Result<u32, &'static str> {
        self.0.try_get_u32_le().map_err(|_| SHORT)
    }

    fn u64(&mut self) -> Result<u64, &'static str> {
        self.0.try_get_u64_le().map_err(|_| SHORT)
    }

    fn position(&mut self) -> Result<LogPosition, &'static str> {
        Ok(LogPosition {
            index: self.u64()?,
            term: self.u64()?,
        })
    }

    fn hard_state(&mut self) -> Result<HardState, &'static str> {
        Ok(HardState {
            term: self.u64()?,
            vote: self.u64()?,
            commit: self.u64()?,
        })
    }

    fn mark(&mut self) -> Result<SnapshotMark, &'static str> {
        let position = self.position()?;
        let size = self.u64()?;
        let mut digest = [0; 32];
        digest.copy_from_slice(&self.take(32)?);
        Ok(SnapshotMark {
            position,
            digest,
            size,
        })
    }

    fn entries(&mut self) -> Result<Vec<Entry>, &'static str> {
        let first = self.u64()?;
        let count = self.u32()? as usize;
        // The count is checked against the bytes there before anything is allocated for it.
        if count == 0
            || count > self.0.len() / ENTRY_OVERHEAD
            || first.checked_add(count as u64).is_none()
        {
            return Err("a record with an impossible number of entries");
        }
        let mut entries = Vec::with_capacity(count);
        for index in first..first + count as u64 {
            let term = self.u64()?;
            let kind = self.u8()?;
            let (data, context) = (self.u32()? as usize, self.u32()? as usize);
            entries.push(Entry {
                index,
                term,
                kind,
                data: self.take(data)?,
                context: self.take(context)?,
            });
        }
        Ok(entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CONTEXT: FrameContext = FrameContext {
        seed: Seed(7),
        synced_through: Place(9),
    };

    fn any_record() -> impl Strategy<Value = Record> {
        let position =
            || (any::<u64>(), any::<u64>()).prop_map(|(index, term)| LogPosition { index, term });
        let blob = || proptest::collection::vec(any::<u8>(), 0..40).prop_map(Bytes::from);
        let entries = (
            1..u64::MAX / 2,
            proptest::collection::vec((any::<u64>(), any::<u8>(), blob(), blob()), 0..5),
        );
        (
            (any::<u64>(), any::<u64>(), any::<u64>()),
            proptest::option::of((any::<u64>(), any::<u64>(), any::<u64>())),
            proptest::option::of((position(), any::<[u8; 32]>(), any::<u64>())),
            proptest::option::of(position()),
            (any::<bool>(), any::<bool>()),
            entries,
        )
            .prop_map(
                |(
                    (group, incarnation, replica),
                    state,
                    mark,
                    truncated,
                    (reset, removed),
                    (first, entries),
                )| Record {
                    key: GroupKey { group, incarnation },
                    replica,
                    hard_state: state.map(|(term, vote, commit)| HardState { term, vote, commit }),
                    entries: (first..)
                        .zip(entries)
                        .map(|(index, (term, kind, data, context))| Entry {
                            index,
                            term,
                            kind,
                            data,
                            context,
                        })
                        .collect(),
                    snapshot: mark.map(|(position, digest, size)| SnapshotMark {
                        position,
                        digest,
                        size,
                    }),
                    truncated,
                    reset,
                    removed,
                },
            )
    }

    fn decode(frame: &[u8]) -> Option<Body> {
        let header = FrameHeader::parse(frame, CONTEXT.seed)?;
        let body = frame.get(FRAME_HEADER..FRAME_HEADER + header.body_len as usize)?;
        if !header.body_is_sound(body, CONTEXT.seed) {
            return None;
        }
        decode_body(header.key, Bytes::copy_from_slice(body)).ok()
    }

    proptest! {
        #[test]
        fn a_frame_gives_back_its_record(record in any_record(), part in any::<u32>(), last in any::<bool>()) {
            let mut out = Vec::new();
            let len = encode_record(&mut out, CONTEXT, &record, Carried::default());
            prop_assert_eq!(len as usize, out.len());
            prop_assert_eq!(len % FRAME_ALIGN, 0);
            prop_assert!(len <= frame_len(body_bound(&record)));
            prop_assert_eq!(decode(&out), Some(Body::Record(record.clone())));
            out.clear();
            encode_rewrite(&mut out, CONTEXT, part, last, &record);
            prop_assert_eq!(decode(&out), Some(Body::Rewrite { part, last, record }));
        }

        #[test]
        fn any_flipped_bit_of_header_or_body_is_noticed(record in any_record(), place in any::<prop::sample::Index>(), bit in 0u8..8) {
            let mut out = Vec::new();
            encode_record(&mut out, CONTEXT, &record, Carried::default());
            let header = FrameHeader::parse(&out, CONTEXT.seed).expect("a fresh frame parses");
            let at = place.index(FRAME_HEADER + header.body_len as usize);
            out[at] ^= 1u8 << bit;
            prop_assert_eq!(decode(&out), None);
        }

        #[test]
        fn garbage_bodies_never_panic(body in proptest::collection::vec(any::<u8>(), 0..200), kind in 0u8..5) {
            let mut bytes = vec![kind];
            bytes.extend(body);
            let _ = decode_body(GroupKey { group: 1, incarnation: 1 }, bytes.into());
        }
    }

    #[test]
    fn a_frame_of_another_segment_or_store_does_not_verify() {
        let record = Record::new(GroupKey {
            group: 1,
            incarnation: 1,
        });
        let mut out = Vec::new();
        let seed = Seed::new(&[1; 16], 5);
        encode_record(
            &mut out,
            FrameContext {
                seed,
                synced_through: Place(0),
            },
            &record,
            Carried::default(),
        );
        assert!(FrameHeader::parse(&out, seed).is_some());
        assert!(FrameHeader::parse(&out, Seed::new(&[1; 16], 6)).is_none());
        assert!(FrameHeader::parse(&out, Seed::new(&[2; 16], 5)).is_none());
    }

    #[test]
    fn an_entry_count_beyond_the_body_is_refused_before_allocating() {
        let mut body = vec![RECORD, HAS_ENTRIES];
        body.extend(0u64.to_le_bytes());
        body.extend(1u64.to_le_bytes());
        body.extend(u32::MAX.to_le_bytes());
        assert!(
            decode_body(
                GroupKey {
                    group: 1,
                    incarnation: 1
                },
                body.into()
            )
            .is_err()
        );
    }
}
