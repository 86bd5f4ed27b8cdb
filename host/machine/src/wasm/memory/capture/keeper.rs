//! Who may go back to what a memory was.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Release};

use super::{Capture, OPEN};
use crate::wasm::memory::Memory;

/// Has the blocks of a [`Capture`] kept that are written after it began, so that the memory can become again what it was. Once it
/// is dropped nobody wants that any more.
#[derive(Debug)]
pub(crate) struct Keeper(Arc<Capture>);

impl Keeper {
    pub(super) fn new(capture: Arc<Capture>) -> Self {
        Self(capture)
    }

    /// Whether nothing has gone by. More may have been written than was to be kept.
    pub(crate) fn is_whole(&self) -> bool {
        self.0.is_kept()
    }

    /// Blocks that are kept.
    pub(crate) fn blocks(&self) -> usize {
        self.0.copies.count()
    }

    /// Gives the memory the bytes again that it had, but for what it has grown by; answers it, and how many bytes the guest had.
    /// No call runs in it, and none will. Whoever reads the capture finds the rest in the copies.
    ///
    /// # Errors
    /// Something has gone by; or the system does not let the memory be written.
    pub(in crate::wasm::memory) fn put_back(&self) -> io::Result<(&Arc<Memory>, usize)> {
        let capture = &self.0;
        if capture.is_read() {
            capture.finish()?;
        }
        if !capture.is_kept.swap(false, AcqRel) {
            return Err(io::Error::other("more was written than is kept"));
        }
        for (block, state) in capture.blocks.iter().enumerate() {
            if state.load(Acquire) != OPEN {
                continue;
            }
            let (offset, bytes) = capture.place_of(block);
            let copy = capture.copies.of(block, bytes);
            let copy = copy.ok_or_else(|| io::Error::other("a block was not kept"))?;
            let to = capture.at(offset);
            // SAFETY: an open block can be written, and no call runs.
            unsafe { std::ptr::copy_nonoverlapping(copy.as_ptr(), to, copy.len()) };
        }
        capture.is_over.store(true, Release);
        Ok((&capture.of, capture.had))
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        if self.0.is_kept.swap(false, AcqRel) {
            self.0.open_if_unwanted();
        }
    }
}
