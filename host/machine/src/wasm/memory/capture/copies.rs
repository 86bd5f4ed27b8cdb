//! Blocks of a memory as they were.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Release};
use std::sync::atomic::{AtomicU32, AtomicUsize};

use super::BLOCK_BYTES;
use crate::wasm::memory::mapping::Reservation;

/// A block has no copy.
const NOWHERE: u32 = u32::MAX;

/// Copies of blocks, one behind the other in the order in which they were made: so they take no more memory than there are of
/// them, and the next capture finds the memory where the system has already found it.
#[derive(Debug)]
pub(super) struct Copies {
    to: Arc<Reservation>,
    /// Where the copy of each block is.
    places: Box<[AtomicU32]>,
    count: AtomicUsize,
}

impl Copies {
    /// Room for the copies of so many blocks: that of former ones, which nobody needs any more, if it is enough.
    pub(super) fn with_room(blocks: usize, former: Option<&Self>) -> io::Result<Self> {
        let fits = |former: &&Self| former.places.len() >= blocks;
        let room = match former.filter(fits) {
            Some(former) => Arc::clone(&former.to),
            None => {
                let bytes = blocks * BLOCK_BYTES;
                let to = Reservation::new(bytes.max(1))?;
                to.map_zeroes(0, bytes)?;
                Arc::new(to)
            }
        };
        Ok(Self {
            to: room,
            places: (0..blocks).map(|_| AtomicU32::new(NOWHERE)).collect(),
            count: AtomicUsize::new(0),
        })
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.count.load(Acquire)
    }

    /// Adds the copy of a block, of which there is none yet. Fit for a signal handler.
    pub(super) fn add(&self, block: usize, bytes: &[u8]) {
        let place = self.count.fetch_add(1, AcqRel);
        self.to.find(place * BLOCK_BYTES, bytes.len());
        let to = self.to.at(place * BLOCK_BYTES);
        // SAFETY: there is room for each block, and this place is this call's alone.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
        self.places[block].store(place as u32, Release);
    }

    /// The first so many bytes of a block, if there is a copy.
    pub(super) fn of(&self, block: usize, bytes: usize) -> Option<&[u8]> {
        let place = self.places[block].load(Acquire);
        let from = (place != NOWHERE).then(|| self.to.at(place as usize * BLOCK_BYTES))?;
        // SAFETY: the copy is there, and nobody writes it again as long as these copies are here.
        Some(unsafe { std::slice::from_raw_parts(from, bytes.min(BLOCK_BYTES)) })
    }
}
