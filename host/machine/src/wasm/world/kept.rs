//! What the host keeps beside an instance between two calls, and a guest can see.

use prost::Message;

use super::World;
use super::handles::Handles;
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
    #[prost(message, required, tag = "4")]
    pub(super) handles: KeptHandles,
}

/// The handles that the guest has.
#[derive(Clone, PartialEq, Message)]
pub(super) struct KeptHandles {
    /// In the order in which they were given.
    #[prost(message, repeated, tag = "1")]
    pub(super) given: Vec<KeptHandle>,
    /// The host's numbers that are to be given next, the last first.
    #[prost(uint32, repeated, tag = "2")]
    pub(super) free: Vec<u32>,
    /// Places of the guest's table that are to be given next, the last first.
    #[prost(uint32, repeated, tag = "3")]
    pub(super) free_places: Vec<u32>,
    #[prost(bool, tag = "4")]
    pub(super) is_disordered: bool,
}

/// A handle.
#[derive(Clone, PartialEq, Message)]
pub(super) struct KeptHandle {
    /// The host's number for it.
    #[prost(uint32, tag = "1")]
    pub(super) number: u32,
    /// Number of the import that gave it.
    #[prost(uint32, tag = "2")]
    pub(super) origin: u32,
    /// What it stands for.
    #[prost(uint32, tag = "3")]
    pub(super) thing: u32,
    /// Where it stands in the guest's table.
    #[prost(uint32, tag = "4")]
    pub(super) place: u32,
}

impl KeptHandles {
    /// Whether each number, and each place, is there once.
    fn is_sound(&self) -> bool {
        let numbers = self.given.iter().map(|handle| handle.number);
        let places = self.given.iter().map(|handle| handle.place);
        are_all(numbers.chain(self.free.iter().copied()))
            && are_all(places.chain(self.free_places.iter().copied()))
    }
}

/// Whether these are all numbers from 0 on, in whatever order.
fn are_all(numbers: impl Iterator<Item = u32>) -> bool {
    let mut numbers = numbers.collect::<Vec<_>>();
    numbers.sort_unstable();
    numbers.iter().copied().eq(0..numbers.len() as u32)
}

/// What one pollable waits for.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Instant {
    #[prost(uint64, optional, tag = "1")]
    pub(super) at: Option<u64>,
}

impl Kept {
    /// The handles that the guest has.
    pub(crate) fn handles(&self) -> Handles {
        Handles::resumed(&self.handles)
    }

    /// Whether a world can go on from it.
    pub(crate) fn is_sound(&self) -> bool {
        let pollables = self.pollables.len();
        pollables <= MAX_POLLABLES
            && self.handles.is_sound()
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
            handles: self.handles.keep(),
        }
    }

    /// Goes on from what another world has kept, but for the handles: they must be given to the guest.
    pub(crate) fn resume(&mut self, kept: &Kept) {
        self.clock.resume(kept.clock);
        self.pollables.resume(&kept.pollables, &kept.free);
    }
}
