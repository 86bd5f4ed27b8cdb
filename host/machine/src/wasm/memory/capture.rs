//! A copy of a memory as it is between two calls, taken while the calls go on.

use std::hint::spin_loop;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Release};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8};

use super::Memory;
use super::mapping::{Access, Reservation, protect, whole_pages};

/// What is copied at once, and can then be written again. A call that writes to it first takes some ten microseconds for that.
pub(crate) const BLOCK_BYTES: usize = 64 << 10;

/// A block is as it was, and protected.
const THERE: u8 = 0;

/// Somebody copies it.
const LEAVING: u8 = 1;

/// It was copied, and is still protected.
const COPIED: u8 = 2;

/// It was copied, and can be written.
const OPEN: u8 = 3;

/// A memory as it was when the capture began.
///
/// All of the memory is protected then. A block is copied when it is asked for ([`Captured`]), or by the first call that writes to
/// it, before it does; after that it can be written. So a call pays for the blocks that it writes to, and waits for no other.
#[derive(Debug)]
pub(crate) struct Capture {
    /// What is copied from stays mapped as long as this is here.
    _of: Arc<Memory>,
    from: AtomicPtr<u8>,
    /// In whole pages.
    bytes: usize,
    to: Reservation,
    blocks: Box<[AtomicU8]>,
    /// Somebody opens the memory as a whole.
    opens_all: AtomicBool,
    /// Nothing is protected any more.
    is_over: AtomicBool,
}

impl Capture {
    /// Protects the memory. No call runs in it.
    ///
    /// # Errors
    /// The system gives no mapping. Then nothing is protected.
    pub(super) fn begin(of: &Arc<Memory>, from: *mut u8, bytes: usize) -> io::Result<Arc<Self>> {
        let bytes = whole_pages(bytes);
        let to = Reservation::new(bytes.max(1))?;
        to.map_zeroes(0, bytes)?;
        let blocks = bytes.div_ceil(BLOCK_BYTES);
        let capture = Arc::new(Self {
            _of: Arc::clone(of),
            from: AtomicPtr::new(from),
            bytes,
            to,
            blocks: (0..blocks).map(|_| AtomicU8::new(THERE)).collect(),
            opens_all: AtomicBool::new(false),
            is_over: AtomicBool::new(bytes == 0),
        });
        protect(from, bytes, Access::Read).inspect_err(|_| {
            // A part of it may be protected.
            let _ = protect(from, bytes, Access::Write);
        })?;
        Ok(capture)
    }

    /// Whether nothing is protected any more.
    pub(crate) fn is_over(&self) -> bool {
        self.is_over.load(Acquire)
    }

    /// Copies what was not copied yet.
    ///
    /// # Errors
    /// The system does not let the memory be written again.
    pub(crate) fn finish(&self) -> io::Result<()> {
        (0..self.blocks.len()).try_for_each(|block| self.take(block, true))?;
        self.is_over.store(true, Release);
        Ok(())
    }

    /// Copies the block in which these bytes of the memory begin, if it has any.
    ///
    /// # Errors
    /// As [`finish`](Self::finish).
    pub(super) fn take_at(&self, offset: usize) -> io::Result<()> {
        match offset < self.bytes {
            true => self.take(offset / BLOCK_BYTES, true),
            false => Ok(()),
        }
    }

    /// Whether a fault at the address is a write to what is protected for this capture. It can be written then. Called from a
    /// signal handler.
    pub(super) fn takes(&self, address: usize) -> bool {
        let offset = address.checked_sub(self.at(0).addr());
        // One that was opened meanwhile is tried again, and succeeds.
        offset.is_some_and(|offset| offset < self.bytes && self.take_at(offset).is_ok())
    }

    /// Opens a block; copies it before, if anybody wants it. Fit for a signal handler.
    fn take(&self, block: usize, is_wanted: bool) -> io::Result<()> {
        if !self.begin_to_take(block) {
            return Ok(());
        }
        if is_wanted {
            self.copy(block);
        }
        let (offset, bytes) = self.place_of(block);
        match protect(self.at(offset), bytes, Access::Write) {
            Ok(()) => {
                self.blocks[block].store(OPEN, Release);
                Ok(())
            }
            // The system may have no room for another mapping. The whole memory is one.
            Err(_) => {
                self.blocks[block].store(COPIED, Release);
                self.open_all(block)
            }
        }
    }

    /// Waits while somebody else has the block in hand. True if it is this call's to take, false if it is open.
    fn begin_to_take(&self, block: usize) -> bool {
        let state = &self.blocks[block];
        while let Err(found) = state.compare_exchange(THERE, LEAVING, AcqRel, Acquire) {
            if found == OPEN {
                return false;
            }
            spin_loop();
        }
        true
    }

    /// Copies all blocks, and opens the memory as a whole; or waits until another call has done so, if one does it already.
    fn open_all(&self, block: usize) -> io::Result<()> {
        while self.opens_all.swap(true, AcqRel) {
            if self.blocks[block].load(Acquire) == OPEN {
                return Ok(());
            }
            spin_loop();
        }
        for (block, state) in self.blocks.iter().enumerate() {
            let there = state.compare_exchange(THERE, LEAVING, AcqRel, Acquire);
            if there.is_ok() {
                self.copy(block);
                state.store(COPIED, Release);
            }
            while state.load(Acquire) == LEAVING {
                spin_loop();
            }
        }
        let opened = protect(self.at(0), self.bytes, Access::Write);
        if opened.is_ok() {
            self.blocks
                .iter()
                .for_each(|state| state.store(OPEN, Release));
        }
        self.opens_all.store(false, Release);
        opened
    }

    fn copy(&self, block: usize) {
        let (offset, bytes) = self.place_of(block);
        // SAFETY: both are mapped; nobody writes to the one, which is protected, or to the other, which is this call's alone.
        unsafe { std::ptr::copy_nonoverlapping(self.at(offset), self.to.at(offset), bytes) };
    }

    fn at(&self, offset: usize) -> *mut u8 {
        self.from.load(Acquire).wrapping_add(offset)
    }

    /// Offset and length.
    fn place_of(&self, block: usize) -> (usize, usize) {
        let offset = block * BLOCK_BYTES;
        (offset, BLOCK_BYTES.min(self.bytes - offset))
    }
}

/// The reader of a [`Capture`], which there is one of. Once it is dropped nobody wants the copy any more.
#[derive(Debug)]
pub(crate) struct Captured(Arc<Capture>);

impl Captured {
    pub(super) fn new(capture: Arc<Capture>) -> Self {
        Self(capture)
    }

    pub(crate) fn capture(&self) -> &Arc<Capture> {
        &self.0
    }

    /// How many blocks there are. The last one may be shorter than [`BLOCK_BYTES`].
    pub(crate) fn blocks(&self) -> usize {
        self.0.blocks.len()
    }

    /// Reads a block as it was when the capture began, once: its memory is given back then.
    ///
    /// # Errors
    /// The system does not let the memory be written again, or does not take the copy back.
    pub(crate) fn read_once<T>(
        &mut self,
        block: usize,
        read: impl FnOnce(&[u8]) -> T,
    ) -> io::Result<T> {
        let capture = &self.0;
        capture.take(block, true)?;
        let (offset, bytes) = capture.place_of(block);
        // SAFETY: so many bytes are mapped there; nobody writes them once the block is open.
        let read = read(unsafe { std::slice::from_raw_parts(capture.to.at(offset), bytes) });
        capture.to.map_zeroes(offset, bytes)?;
        Ok(read)
    }
}

impl Drop for Captured {
    fn drop(&mut self) {
        let opened = (0..self.blocks()).try_for_each(|block| self.0.take(block, false));
        // Otherwise calls open each block that they write to.
        if opened.is_ok() {
            self.0.is_over.store(true, Release);
        }
    }
}
