//! What surrounds a machine: the time and the chance that come with entries, and with the start of an instance.

use skep_core::id::{LogIndex, Term};
use skep_core::outcome::EntryContext;

/// The term of every entry.
pub(crate) const TERM: Term = Term(3);

/// SplitMix64: small, and the same on every platform.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = Self(seed);
        // Neighbouring seeds must not give neighbouring streams.
        Self(random.word())
    }

    pub(crate) fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    /// A number below `bound`, which is not 0.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.word() % bound as u64) as usize
    }

    /// One of the items, of which there is at least one.
    pub(crate) fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }
}

/// One way the world may be. Replicas of one group share all of it; a check that changes a part finds out whether the
/// machine looks at that part.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct World {
    /// Added to the stamp of each entry, in nanoseconds.
    pub(crate) later: u64,
    /// Nanoseconds between two entries, beyond the usual millisecond.
    pub(crate) slower: u64,
    /// Decides the bytes of chance in each entry.
    pub(crate) chance: u64,
    /// Decides the seeds an instance starts with.
    pub(crate) seed: u64,
}

impl World {
    /// The usual one, but for the seeds of instances.
    pub(crate) fn seeded(seed: u64) -> Self {
        Self {
            seed,
            ..Self::default()
        }
    }

    /// The context of the group's creation, under which its first instance starts.
    pub(crate) fn genesis(&self) -> EntryContext {
        self.context(0, 0x5eed ^ self.seed)
    }

    /// The context of the `number`-th event.
    pub(crate) fn event(&self, number: usize) -> EntryContext {
        self.context(2 * number as u64 + 1, self.chance)
    }

    /// The context of a barrier behind the first `events` events.
    pub(crate) fn barrier(&self, events: usize) -> EntryContext {
        self.context(2 * events as u64, 0x5eed ^ self.seed)
    }

    fn context(&self, index: u64, salt: u64) -> EntryContext {
        const START: u64 = 1_800_000_000_000_000_000;
        const MILLISECOND: u64 = 1_000_000;
        let mut random = Random::new(index ^ salt.wrapping_mul(0xa076_1d64_78bd_642f));
        let mut entropy = [0; 16];
        entropy[..8].copy_from_slice(&random.word().to_le_bytes());
        entropy[8..].copy_from_slice(&random.word().to_le_bytes());
        EntryContext {
            index: LogIndex(index),
            term: TERM,
            now: START + self.later + index * (MILLISECOND + self.slower),
            entropy,
        }
    }
}
