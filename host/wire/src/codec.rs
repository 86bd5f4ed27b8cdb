//! Frames: how one message is told from the next, and a damaged one from a whole one.
//!
//! | bytes | what |
//! |---|---|
//! | 2 | magic, `sk` |
//! | 1 | version of this layout, 1 |
//! | 1 | CRC-8 of the other seven bytes up to the checksum |
//! | 4 | length of the body, little endian |
//! | 4 | CRC-32C of the eight bytes above and the body, little endian |
//! | length | body: one prost message |

use std::marker::PhantomData;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;

use crate::error::WireError;

/// Bytes before the body.
pub const HEADER: usize = 12;

const MAGIC: [u8; 2] = *b"sk";
const VERSION: u8 = 1;

/// Where the header's own check is. A damaged length must be noticed at once: the checksum of the frame is only looked at
/// when as many bytes have come as the length says, which on a quiet lane may be never, and until then the lane is mute.
const CHECK: usize = 3;

/// Bytes of the header that the checksum covers.
const CHECKED: usize = 8;

/// A decoder asks for at most this much room beyond what it has received, so that a header alone allocates nothing
/// worth mentioning: a sender must send bytes to make the receiver hold bytes.
const GROWTH: usize = 64 << 10;

/// Writes messages as frames (`Encoder` of the seed package).
///
/// A failed [`Encoder::put`] leaves the buffer as it was.
#[derive(Debug)]
pub struct Encoder<M> {
    limit: usize,
    message: PhantomData<fn(M)>,
}

/// Reads messages from frames (`Decoder` of the seed package), however the stream is split.
///
/// Bytes fields of a message are slices of the buffer; a message holds on to the memory it came in. Make what is kept [`own`]ed.
#[derive(Debug)]
pub struct Decoder<M> {
    limit: usize,
    message: PhantomData<fn() -> M>,
}

/// The same bytes in memory of their own.
///
/// A slice keeps all of the buffer that it came in, however little of it is its own: an entry of a few bytes would hold on to the
/// megabytes that were received beside it, until its group forgets it.
pub fn own(slice: &Bytes) -> Bytes {
    Bytes::copy_from_slice(slice)
}

/// Bytes of a field of fixed size.
///
/// # Errors
/// [`WireError::BadLength`].
pub fn fixed<const N: usize>(what: &'static str, bytes: &[u8]) -> Result<[u8; N], WireError> {
    bytes.try_into().map_err(|_| WireError::BadLength {
        what,
        found: bytes.len(),
        expected: N,
    })
}

impl<M: Message> Encoder<M> {
    /// An encoder of frames with at most `limit` bytes of body.
    pub fn new(limit: usize) -> Self {
        Self {
            limit: limit.min(u32::MAX as usize),
            message: PhantomData,
        }
    }

    /// Appends one frame to the buffer.
    ///
    /// # Errors
    /// [`WireError::EmptyMessage`] for a message that encodes to nothing, [`WireError::FrameTooLarge`].
    pub fn put(&self, message: &M, buffer: &mut BytesMut) -> Result<(), WireError> {
        let size = message.encoded_len();
        if size == 0 {
            return Err(WireError::EmptyMessage);
        }
        if size > self.limit {
            return Err(WireError::FrameTooLarge {
                size,
                limit: self.limit,
            });
        }
        buffer.reserve(HEADER + size);
        let start = buffer.len();
        buffer.put_slice(&MAGIC);
        buffer.put_u8(VERSION);
        buffer.put_u8(0);
        buffer.put_u32_le(u32::try_from(size).expect("the limit is at most u32::MAX"));
        buffer.put_u32_le(0);
        message.encode_raw(buffer);
        let frame = &mut buffer[start..];
        frame[CHECK] = header_check(frame);
        let checksum = checksum(&frame[..CHECKED], &frame[HEADER..]);
        frame[CHECKED..HEADER].copy_from_slice(&checksum.to_le_bytes());
        Ok(())
    }
}

impl<M: Message + Default> Decoder<M> {
    /// A decoder that refuses frames with more than `limit` bytes of body before it makes room for them.
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            message: PhantomData,
        }
    }

    /// Changes the limit for the frames to come: the first frame of a connection comes from a stranger.
    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// Takes one message out of the buffer, or `None` if its frame is not complete yet.
    ///
    /// # Errors
    /// All of [`WireError`] that speaks of frames except [`WireError::NotEnoughData`]; after one the buffer has lost
    /// its place.
    pub fn take(&mut self, buffer: &mut BytesMut) -> Result<Option<M>, WireError> {
        let Some(header) = Header::peek(buffer)? else {
            return Ok(None);
        };
        let size = header.size;
        if size > self.limit {
            return Err(WireError::FrameTooLarge {
                size,
                limit: self.limit,
            });
        }
        if size == 0 {
            return Err(WireError::EmptyMessage);
        }
        let whole = HEADER + size;
        if buffer.len() < whole {
            buffer.reserve((whole - buffer.len()).min(GROWTH));
            return Ok(None);
        }
        let mut frame = buffer.split_to(whole).freeze();
        if whole > GROWTH && buffer.len() <= GROWTH {
            // The memory of a large frame goes with it, instead of being kept for the small ones to come.
            *buffer = BytesMut::from(&buffer[..]);
        }
        let computed = checksum(&frame[..CHECKED], &frame[HEADER..]);
        if computed != header.checksum {
            return Err(WireError::Corrupt {
                found: header.checksum,
                computed,
            });
        }
        frame.advance(HEADER);
        Ok(Some(M::decode(frame)?))
    }

    /// As [`Decoder::take`], at the end of the stream.
    ///
    /// # Errors
    /// [`WireError::NotEnoughData`] if the stream ended inside a frame, and those of `take`.
    pub fn take_last(&mut self, buffer: &mut BytesMut) -> Result<Option<M>, WireError> {
        if let Some(message) = self.take(buffer)? {
            return Ok(Some(message));
        }
        if buffer.is_empty() {
            return Ok(None);
        }
        let whole = HEADER + Header::peek(buffer)?.map_or(0, |header| header.size);
        Err(WireError::NotEnoughData {
            missing: whole - buffer.len(),
        })
    }
}

struct Header {
    size: usize,
    checksum: u32,
}

impl Header {
    /// Reads the header at the start of the buffer, or `None` if too little of it is there. What is wrong with the
    /// first bytes is said as soon as they are there: a stranger may wait for an answer before it sends more.
    fn peek(buffer: &[u8]) -> Result<Option<Self>, WireError> {
        let seen = buffer.len().min(MAGIC.len());
        if buffer[..seen] != MAGIC[..seen] {
            return Err(WireError::BadMagic {
                found: [buffer[0], buffer.get(1).copied().unwrap_or(0)],
            });
        }
        if let Some(&found) = buffer.get(2).filter(|version| **version != VERSION) {
            return Err(WireError::UnsupportedVersion {
                found,
                supported: VERSION,
            });
        }
        let Some(header) = buffer.first_chunk::<HEADER>() else {
            return Ok(None);
        };
        if header[CHECK] != header_check(header) {
            return Err(WireError::Corrupt {
                found: header[CHECK].into(),
                computed: header_check(header).into(),
            });
        }
        let word = |at: usize| {
            u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        Ok(Some(Self {
            size: word(4) as usize,
            checksum: word(CHECKED),
        }))
    }
}

/// What stands in the fourth byte of a header: the CRC-8 (polynomial 0x07) of the seven bytes around it, which tells every
/// damage of up to three bits in so few.
///
/// # Panics
/// If there are fewer than eight bytes.
pub fn header_check(header: &[u8]) -> u8 {
    let covered = header[..CHECK].iter().chain(&header[CHECK + 1..CHECKED]);
    covered.fold(0, |crc, byte| {
        (0..8).fold(crc ^ byte, |crc, _| {
            if crc & 0x80 == 0 {
                crc << 1
            } else {
                crc << 1 ^ 0x07
            }
        })
    })
}

fn checksum(header: &[u8], body: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(header), body)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::proto::SnapshotChunk;

    const LIMIT: usize = 1 << 16;

    fn chunk(transfer: u64, data: Vec<u8>) -> SnapshotChunk {
        SnapshotChunk {
            transfer,
            offset: 7,
            data: Bytes::from(data),
        }
    }

    fn stream(messages: &[SnapshotChunk]) -> BytesMut {
        let mut buffer = BytesMut::new();
        for message in messages {
            Encoder::new(LIMIT).put(message, &mut buffer).unwrap();
        }
        buffer
    }

    fn all(pieces: &[&[u8]]) -> Result<Vec<SnapshotChunk>, WireError> {
        let mut decoder = Decoder::<SnapshotChunk>::new(LIMIT);
        let (mut buffer, mut messages) = (BytesMut::new(), Vec::new());
        for piece in pieces {
            buffer.extend_from_slice(piece);
            while let Some(message) = decoder.take(&mut buffer)? {
                messages.push(message);
            }
        }
        while let Some(message) = decoder.take_last(&mut buffer)? {
            messages.push(message);
        }
        Ok(messages)
    }

    #[test]
    fn an_empty_message_is_an_error_on_both_ends() {
        let mut buffer = BytesMut::new();
        let empty = SnapshotChunk::default();
        assert!(matches!(
            Encoder::new(LIMIT).put(&empty, &mut buffer),
            Err(WireError::EmptyMessage)
        ));
        assert!(buffer.is_empty());
        let mut frame = stream(&[chunk(1, vec![1])]);
        frame.truncate(HEADER);
        frame[4..8].fill(0);
        frame[CHECK] = header_check(&frame);
        assert!(matches!(all(&[&frame]), Err(WireError::EmptyMessage)));
    }

    // P-50
    #[test]
    fn an_oversized_frame_is_refused_before_there_is_room_for_it() {
        let mut buffer = BytesMut::new();
        let large = chunk(1, vec![0; LIMIT]);
        let Err(WireError::FrameTooLarge { size, limit }) =
            Encoder::new(LIMIT).put(&large, &mut buffer)
        else {
            panic!("encoded");
        };
        assert_eq!((size, limit), (large.encoded_len(), LIMIT));
        Encoder::new(usize::MAX).put(&large, &mut buffer).unwrap();
        buffer.truncate(HEADER);
        let mut header = BytesMut::from(&buffer[..]);
        assert!(matches!(
            Decoder::<SnapshotChunk>::new(LIMIT).take(&mut header),
            Err(WireError::FrameTooLarge { .. })
        ));
        let mut allowed = BytesMut::from(&buffer[..]);
        allowed[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        allowed[CHECK] = header_check(&allowed);
        assert!(
            Decoder::<SnapshotChunk>::new(usize::MAX)
                .take(&mut allowed)
                .unwrap()
                .is_none()
        );
        assert!(
            allowed.capacity() <= 4 * GROWTH,
            "a header alone made {} bytes of room",
            allowed.capacity()
        );
    }

    #[test]
    fn a_stream_that_ends_inside_a_frame_says_so() {
        let frame = stream(&[chunk(1, vec![7; 30])]);
        assert!(all(&[]).unwrap().is_empty());
        for end in 1..frame.len() {
            let error = all(&[&frame[..end]]).unwrap_err();
            let WireError::NotEnoughData { missing } = error else {
                panic!("{error} at {end}")
            };
            let known = if end < HEADER { HEADER } else { frame.len() };
            assert_eq!(missing, known - end);
        }
    }

    #[test]
    fn strangers_are_recognised_by_their_first_bytes() {
        assert!(matches!(all(&[b"G"]), Err(WireError::BadMagic { .. })));
        assert!(matches!(
            all(&[b"GET / HTTP/1.1\r\n"]),
            Err(WireError::BadMagic {
                found: [b'G', b'E']
            })
        ));
        assert!(matches!(
            all(&[b"sk\x09"]),
            Err(WireError::UnsupportedVersion { found: 9, .. })
        ));
    }

    #[test]
    fn decoded_bytes_are_slices_of_the_frame() {
        let mut buffer = stream(&[chunk(1, vec![7; 4096])]);
        let memory = buffer.as_ptr_range();
        let message = Decoder::<SnapshotChunk>::new(LIMIT)
            .take(&mut buffer)
            .unwrap()
            .unwrap();
        assert!(memory.contains(&message.data.as_ptr()));
    }

    #[test]
    fn the_memory_of_a_large_frame_goes_with_it() {
        let small = stream(&[chunk(2, vec![7; 10])]);
        let most = 8 * GROWTH;
        let mut buffer = BytesMut::new();
        Encoder::new(most)
            .put(&chunk(1, vec![7; 4 * GROWTH]), &mut buffer)
            .unwrap();
        buffer.extend_from_slice(&small);
        let mut decoder = Decoder::<SnapshotChunk>::new(most);
        let large = decoder.take(&mut buffer).unwrap().unwrap();
        assert_eq!(buffer, small);
        assert!(buffer.capacity() < GROWTH);
        let memory = large.data.as_ptr_range();
        assert!(!memory.contains(&buffer.as_ptr()));
        assert!(large.data.is_unique());
        assert_eq!(decoder.take(&mut buffer).unwrap().unwrap().data.len(), 10);
    }

    #[test]
    fn a_wrong_body_under_a_right_checksum_is_malformed() {
        let mut frame = stream(&[chunk(1, vec![7; 3])]);
        frame[HEADER] = 0xff;
        let sum = checksum(&frame[..CHECKED], &frame[HEADER..]);
        frame[CHECKED..HEADER].copy_from_slice(&sum.to_le_bytes());
        assert!(matches!(all(&[&frame]), Err(WireError::Malformed(_))));
    }

    #[test]
    fn every_flipped_bit_is_an_error() {
        let frame = stream(&[chunk(1, vec![7; 20]), chunk(2, vec![8; 5])]);
        for bit in 0..frame.len() * 8 {
            let mut damaged = frame.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(all(&[&damaged]).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_damaged_header_is_noticed_before_more_is_waited_for() {
        let frame = stream(&[chunk(1, vec![7; 20])]);
        for bit in 0..CHECKED * 8 {
            let mut damaged = frame.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let taken = Decoder::<SnapshotChunk>::new(LIMIT).take(&mut damaged);
            assert!(taken.is_err(), "bit {bit}: {taken:?}");
        }
    }

    proptest! {
        #[test]
        fn any_split_of_a_stream_decodes_the_same(
            bodies in prop::collection::vec((1u64.., prop::collection::vec(any::<u8>(), 0..300)), 0..8),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        ) {
            let messages: Vec<_> = bodies.into_iter().map(|(transfer, data)| chunk(transfer, data)).collect();
            let bytes = stream(&messages);
            let mut at: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            at.extend([0, bytes.len()]);
            at.sort_unstable();
            let pieces: Vec<_> = at.windows(2).map(|ends| &bytes[ends[0]..ends[1]]).collect();
            prop_assert_eq!(all(&pieces).unwrap(), messages);
        }

        #[test]
        fn garbage_never_panics(garbage in prop::collection::vec(any::<u8>(), 0..200), framed in any::<bool>()) {
            let mut bytes = BytesMut::new();
            if framed {
                bytes.put_slice(&MAGIC);
                bytes.put_slice(&[VERSION, 0]);
                bytes.put_u32_le(garbage.len() as u32);
                bytes[CHECK] = header_check(&bytes);
                let sum = checksum(&bytes[..CHECKED], &garbage);
                bytes.put_u32_le(sum);
            }
            bytes.extend_from_slice(&garbage);
            let _ = all(&[&bytes]);
        }
    }
}
