//! Randomness that is the same on every replica: a stream keyed by bytes which the leader put into the log entry.
//!
//! Nobody can predict it before the entry is committed, and everybody who reads the log knows it afterwards: good for
//! sampling, jitter and tie-breaks, not for keys. In a native build the stream starts from a fixed seed on each thread;
//! [`testing::Harness`](crate::testing::Harness) starts it anew from the index of each entry.

/// The most bytes asked of the host at once, so that a large buffer does not exist twice.
#[cfg(target_family = "wasm")]
const CHUNK: usize = 64 * 1024;

/// Fills `buffer` from the stream.
#[cfg(target_family = "wasm")]
pub fn fill(buffer: &mut [u8]) {
    for chunk in buffer.chunks_mut(CHUNK) {
        chunk.copy_from_slice(&crate::component::bindings::skep::machine::entropy::fill(
            chunk.len() as u32,
        ));
    }
}

/// The next eight bytes of the stream.
#[cfg(target_family = "wasm")]
pub fn next_u64() -> u64 {
    crate::component::bindings::skep::machine::entropy::next_u64()
}

/// Fills `buffer` from the stream.
#[cfg(not(target_family = "wasm"))]
pub fn fill(buffer: &mut [u8]) {
    for chunk in buffer.chunks_mut(8) {
        chunk.copy_from_slice(&next_u64().to_le_bytes()[..chunk.len()]);
    }
}

/// The next eight bytes of the stream.
#[cfg(not(target_family = "wasm"))]
pub fn next_u64() -> u64 {
    // SplitMix64 (Steele, Lea, Flood 2014): one word of state and every seed is as good as another.
    STATE.with(|state| {
        let seed = state.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        state.set(seed);
        let mixed = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    })
}

/// Starts this thread's stream anew.
#[cfg(not(target_family = "wasm"))]
pub(crate) fn seed(seed: u64) {
    STATE.with(|state| state.set(seed));
}

#[cfg(not(target_family = "wasm"))]
thread_local! {
    static STATE: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_a_stream() {
        let draw = |from| {
            seed(from);
            let mut bytes = [0; 21];
            fill(&mut bytes);
            (bytes, next_u64())
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }
}
