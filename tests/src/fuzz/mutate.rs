//! Damage: what a bounded run does to the samples of a corpus, the same in every run.

use crate::seed::Seed;

/// Bytes of a mutated sample at most: splices must not grow without end.
const SIZE_MAX: usize = 64 << 10;

/// Bytes that sit at the edges of what numbers and lengths may be.
const EDGES: [u8; 8] = [0, 1, 0x7f, 0x80, 0xfe, 0xff, 0x40, 0x10];

/// A damaged copy of the sample: one to four of flipped bits, edge values, cuts, repeated and moved pieces, length fields
/// of two, four and eight bytes, and pieces of another sample.
pub fn mutated(sample: &[u8], other: &[u8], seed: &mut Seed) -> Vec<u8> {
    let mut data = sample.to_vec();
    for _ in 0..=seed.below(4) {
        mutate(&mut data, other, seed);
        data.truncate(SIZE_MAX);
    }
    data
}

fn mutate(data: &mut Vec<u8>, other: &[u8], seed: &mut Seed) {
    let kind = seed.below(10);
    let Some(len) = Some(data.len()).filter(|len| *len > 0) else {
        data.extend_from_slice(other);
        return;
    };
    let at = seed.below(len as u64) as usize;
    match kind {
        0 | 1 => data[at] ^= 1 << seed.below(8),
        2 => data[at] = EDGES[seed.below(EDGES.len() as u64) as usize],
        3 => data[at] = data[at].wrapping_add(1 + 254 * seed.below(2) as u8),
        4 => data.truncate(at),
        5 => {
            let end = at + 1 + seed.below(16) as usize;
            data.drain(at..end.min(len));
        }
        6 => {
            let end = (at + 1 + seed.below(64) as usize).min(len);
            let piece = data[at..end].to_vec();
            let to = seed.below(len as u64 + 1) as usize;
            data.splice(to..to, piece);
        }
        7 => {
            let width = 2usize << seed.below(3);
            let edge = match seed.below(5) {
                0 => u64::MAX,
                1 => u64::MAX >> 1,
                2 => (len - at) as u64,
                3 => 1 << seed.below(40),
                _ => seed.below(300),
            };
            let end = (at + width).min(len);
            data[at..end].copy_from_slice(&edge.to_le_bytes()[..end - at]);
        }
        8 if !other.is_empty() => {
            let from = seed.below(other.len() as u64) as usize;
            data.truncate(at);
            data.extend_from_slice(&other[from..]);
        }
        _ => {
            // A varint as large as it can be, in place of what stood there.
            let huge = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
            let end = (at + 1 + seed.below(2) as usize).min(len);
            data.splice(at..end, huge);
        }
    }
}
