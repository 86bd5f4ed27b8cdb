//! A memory as it is between two calls, while the calls go on: to be written down, or to be gone back to.

use std::io;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Release};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicUsize};
use std::sync::{Arc, Mutex};

use skep_types::shared::lock;

mod captured;
mod copies;
mod keeper;

pub(crate) use self::captured::Captured;
use self::copies::Copies;
pub(crate) use self::keeper::Keeper;
use super::Memory;
use super::mapping::{Access, protect, whole_pages};

/// What is copied at once, and can then be written again. A call that writes to it first takes some ten microseconds for that.
pub(crate) const BLOCK_BYTES: usize = 64 << 10;

/// A block is as it was, and protected.
const THERE: u8 = 0;

/// Somebody copies it.
const LEAVING: u8 = 1;

/// It was copied, and is still protected.
const COPIED: u8 = 2;

/// It can be written. It was copied before if anybody wanted it.
const OPEN: u8 = 3;

/// Of so many blocks one part may be written before all are protected at once, and not each by itself.
const FEW_RUNS: usize = 4;

/// A memory as it was when the capture began.
///
/// All of the memory is protected then. The first call that writes to a block copies it before it does; after that it can be
/// written. So a call pays for the blocks that it writes to, and waits for no other.
///
/// Two may want to know how it was: who [reads](Captured) it, once, from its first block to its last; and who may want to [go
/// back](Keeper) to it, for whom blocks stay protected until they are written.
#[derive(Debug)]
pub(crate) struct Capture {
    /// What is copied from stays mapped as long as this is here.
    of: Arc<Memory>,
    from: AtomicPtr<u8>,
    /// Bytes that the guest had.
    had: usize,
    /// The same in whole pages.
    bytes: usize,
    blocks: Box<[AtomicU8]>,
    copies: Copies,
    /// Copies for whoever may go back, at the most.
    most: AtomicUsize,
    is_read: AtomicBool,
    is_kept: AtomicBool,
    /// Somebody opens the memory as a whole.
    opens_all: AtomicBool,
    /// Nothing is protected any more, or what is is protected for another capture.
    is_over: AtomicBool,
    /// Held by whoever opens the memory, or ends this, and does not run in it: others may protect it again behind that.
    ending: Mutex<()>,
}

impl Capture {
    /// Protects the memory. No call runs in it. The `former` capture, which nobody reads any more, ends.
    ///
    /// # Errors
    /// The system gives no mapping. Then nothing is protected.
    pub(super) fn begin(
        of: &Arc<Memory>,
        from: *mut u8,
        had: usize,
        former: Option<&Self>,
    ) -> io::Result<Arc<Self>> {
        let bytes = whole_pages(had);
        let blocks = bytes.div_ceil(BLOCK_BYTES);
        let copies = Copies::with_room(blocks, former.and_then(Self::spent_copies))?;
        let protected = former.and_then(|former| former.end(from, bytes));
        let capture = Arc::new(Self {
            of: Arc::clone(of),
            from: AtomicPtr::new(from),
            had,
            bytes,
            blocks: (0..blocks).map(|_| AtomicU8::new(THERE)).collect(),
            copies,
            most: AtomicUsize::new(0),
            is_read: AtomicBool::new(true),
            is_kept: AtomicBool::new(false),
            opens_all: AtomicBool::new(false),
            is_over: AtomicBool::new(bytes == 0),
            ending: Mutex::new(()),
        });
        let parts = protected.unwrap_or_else(|| vec![(0, bytes)]);
        let mut parts = parts.into_iter();
        let done =
            parts.try_for_each(|(offset, bytes)| protect(capture.at(offset), bytes, Access::Read));
        done.inspect_err(|_| {
            // A part of it may be protected.
            let _ = protect(from, bytes, Access::Write);
        })?;
        Ok(capture)
    }

    /// The copies, if nobody reads them any more, and they are no more than somebody wanted to keep.
    fn spent_copies(&self) -> Option<&Copies> {
        let are_few = self.copies.count() <= self.most.load(Acquire);
        (are_few && !self.is_read()).then_some(&self.copies)
    }

    /// Nobody may go back to it any more, and what it protects stays so for the next one: what else that must protect, to have all
    /// of these bytes. None if it protects nothing of use.
    fn end(&self, from: *mut u8, bytes: usize) -> Option<Vec<(usize, usize)>> {
        let _ending = lock(&self.ending);
        self.is_kept.store(false, Release);
        let was_over = self.is_over.swap(true, AcqRel);
        if was_over || self.at(0) != from || self.bytes > bytes {
            return None;
        }
        let mut open = Vec::new();
        let is_open = |block: &usize| self.blocks[*block].load(Acquire) != THERE;
        for block in (0..self.blocks.len()).filter(is_open) {
            let (offset, bytes) = self.place_of(block);
            match open.last_mut() {
                Some((first, length)) if *first + *length == offset => *length += bytes,
                _ => open.push((offset, bytes)),
            }
        }
        open.push((self.bytes, bytes - self.bytes));
        (open.len() <= self.blocks.len() / FEW_RUNS).then_some(open)
    }

    /// Whether nothing is protected any more.
    pub(crate) fn is_over(&self) -> bool {
        self.is_over.load(Acquire)
    }

    /// Whether somebody still reads it.
    pub(crate) fn is_read(&self) -> bool {
        self.is_read.load(Acquire)
    }

    fn is_kept(&self) -> bool {
        self.is_kept.load(Acquire)
    }

    /// Copies what was not copied yet.
    ///
    /// # Errors
    /// The system does not let the memory be written again.
    pub(super) fn finish(&self) -> io::Result<()> {
        for block in 0..self.blocks.len() {
            if self.is_over() {
                return Ok(());
            }
            self.open(block)?;
        }
        self.is_over.store(true, Release);
        Ok(())
    }

    /// The memory goes elsewhere: nobody can go back to what it was, and whoever reads finds it in the copies.
    ///
    /// # Errors
    /// As [`finish`](Self::finish).
    pub(super) fn leave(&self) -> io::Result<()> {
        self.is_kept.store(false, Release);
        if self.is_read() {
            self.finish()?;
        }
        let _ending = lock(&self.ending);
        self.is_over.store(true, Release);
        Ok(())
    }

    /// Prepares the block in which these bytes of the memory begin for being written, if it has any.
    ///
    /// # Errors
    /// As [`finish`](Self::finish).
    pub(super) fn open_at(&self, offset: usize) -> io::Result<()> {
        match offset < self.bytes && !self.is_over() {
            true => self.open(offset / BLOCK_BYTES),
            false => Ok(()),
        }
    }

    /// Whether a fault at the address is a write to what is protected for this capture. It can be written then. Called from a
    /// signal handler.
    pub(super) fn takes(&self, address: usize) -> bool {
        let offset = address.checked_sub(self.at(0).addr());
        // One that was opened meanwhile is tried again, and succeeds.
        offset.is_some_and(|offset| offset < self.bytes && self.open_at(offset).is_ok())
    }

    /// Opens a block; copies it before, if anybody wants it. Fit for a signal handler.
    fn open(&self, block: usize) -> io::Result<()> {
        if !self.begin_to_take(block) {
            return Ok(());
        }
        if !self.is_wanted() {
            self.blocks[block].store(OPEN, Release);
            return self.open_unwanted();
        }
        self.copy(block);
        let (offset, bytes) = self.place_of(block);
        match protect(self.at(offset), bytes, Access::Write) {
            Ok(()) => {
                self.blocks[block].store(OPEN, Release);
                Ok(())
            }
            // The system may have no room for another mapping. The whole memory is one.
            Err(_) => {
                self.blocks[block].store(COPIED, Release);
                match self.is_read() {
                    true => self.open_all(block),
                    false => self.open_unwanted(),
                }
            }
        }
    }

    /// Whether anybody wants one more copy. While it is read there is no bound: each block may be copied.
    fn is_wanted(&self) -> bool {
        self.is_read() || self.is_kept() && self.copies.count() < self.most.load(Acquire)
    }

    /// Opens what is still protected, once nobody wants to know how it was. Two who both think that the other does leave it to the
    /// next call that writes.
    fn open_if_unwanted(&self) {
        let _ending = lock(&self.ending);
        if self.is_read() || self.is_kept() || self.is_over() {
            return;
        }
        let is_open = |state: &AtomicU8| state.load(Acquire) == OPEN;
        // Nothing runs in a memory that only this has.
        let is_used = Arc::strong_count(&self.of) > 1;
        if self.blocks.iter().all(is_open) || !is_used {
            self.is_over.store(true, Release);
        } else {
            // Otherwise calls open what they write to.
            let _ = self.open_unwanted();
        }
    }

    /// Opens the memory as a whole, of which nobody wants copies any more.
    fn open_unwanted(&self) -> io::Result<()> {
        self.is_kept.store(false, Release);
        protect(self.at(0), self.bytes, Access::Write)?;
        self.is_over.store(true, Release);
        Ok(())
    }

    /// Waits while somebody else has the block in hand. True if it is this call's to take, false if it is open.
    fn begin_to_take(&self, block: usize) -> bool {
        let state = &self.blocks[block];
        while let Err(found) = state.compare_exchange(THERE, LEAVING, AcqRel, Acquire) {
            if found == OPEN {
                return false;
            }
            std::hint::spin_loop();
        }
        true
    }

    /// Copies all blocks, and opens the memory as a whole; or waits until another call has done so, if one does it already.
    fn open_all(&self, block: usize) -> io::Result<()> {
        while self.opens_all.swap(true, AcqRel) {
            if self.blocks[block].load(Acquire) == OPEN {
                return Ok(());
            }
            std::hint::spin_loop();
        }
        for (block, state) in self.blocks.iter().enumerate() {
            let there = state.compare_exchange(THERE, LEAVING, AcqRel, Acquire);
            if there.is_ok() {
                self.copy(block);
                state.store(COPIED, Release);
            }
            while state.load(Acquire) == LEAVING {
                std::hint::spin_loop();
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
        self.read_block(block, |bytes| self.copies.add(block, bytes));
    }

    /// The bytes of a block that is this call's to take.
    fn read_block<T>(&self, block: usize, read: impl FnOnce(&[u8]) -> T) -> T {
        let (offset, bytes) = self.place_of(block);
        // SAFETY: so many bytes are mapped there, and nobody writes to them: they are protected.
        read(unsafe { std::slice::from_raw_parts(self.at(offset), bytes) })
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
