//! What the host keeps beside an instance between two calls, and a guest can see.

use prost::Message;

use super::World;
use super::pollables::MAX_POLLABLES;

/// Written down. Randomness is not among it: each call has its own, and the seed is that of the start.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Kept {
    /// What the guest has read of its clock last.
    #[prost(uint64, tag = "1")]
    pub(super) clock: u64,
    /// The instants that its pollables wait for, by number; those of none are given back.
    #[prost(message, repeated, tag = "2")]
    pub(super) pollables: Vec<Instant>,
    /// Numbers of pollables that are to be given next, the last first.
    #[prost(uint32, repeated, tag = "3")]
    pub(super) free: Vec<u32>,
}

/// What one pollable waits for.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Instant {
    #[prost(uint64, optional, tag = "1")]
    pub(super) at: Option<u64>,
}

impl Kept {
    /// Whether a world can go on from it.
    pub(crate) fn is_sound(&self) -> bool {
        let pollables = self.pollables.len();
        pollables <= MAX_POLLABLES
            && self
                .free
                .iter()
                .all(|number| (*number as usize) < pollables)
    }
}

impl World {
    /// Between two calls.
    pub(crate) fn keep(&self) -> Kept {
        let (pollables, free) = self.pollables.keep();
        Kept {
            clock: self.clock.peek(),
            pollables,
            free,
        }
    }

    /// Goes on from what another world has kept.
    pub(crate) fn resume(&mut self, kept: &Kept) {
        self.clock.resume(kept.clock);
        self.pollables.resume(&kept.pollables, &kept.free);
    }
}
