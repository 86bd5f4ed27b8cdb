//! Who reads a capture.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Release;

use super::{BLOCK_BYTES, Capture, Keeper, OPEN, THERE};
use crate::wasm::memory::mapping::{Access, protect};

/// The reader of a [`Capture`], which there is one of. Once it is dropped nobody reads the capture any more.
#[derive(Debug)]
pub(crate) struct Captured {
    capture: Arc<Capture>,
    /// The block that was read last.
    block: Vec<u8>,
}

impl Captured {
    pub(in crate::wasm::memory) fn new(capture: Arc<Capture>) -> Self {
        Self {
            capture,
            block: Vec::new(),
        }
    }

    pub(crate) fn capture(&self) -> &Arc<Capture> {
        &self.capture
    }

    /// Who may go back to what is captured, unless more blocks are written than there are to be copied at the `most`. No call has
    /// run, and nothing was read, since the capture began, and nobody has asked for this before.
    pub(crate) fn keeper(&self, most: usize) -> Keeper {
        self.capture.most.store(most, Release);
        self.capture.is_kept.store(true, Release);
        Keeper::new(Arc::clone(&self.capture))
    }

    /// How many blocks there are. The last one may be shorter than [`BLOCK_BYTES`].
    pub(crate) fn blocks(&self) -> usize {
        self.capture.blocks.len()
    }

    /// Reads a block as it was when the capture began, once.
    ///
    /// # Errors
    /// It was read before.
    pub(crate) fn read_once<T>(
        &mut self,
        block: usize,
        read: impl FnOnce(&[u8]) -> T,
    ) -> io::Result<T> {
        let capture = &self.capture;
        if capture.begin_to_take(block) {
            // So it is out of the machine's way at once.
            self.block.clear();
            self.block.reserve_exact(BLOCK_BYTES);
            capture.read_block(block, |bytes| self.block.extend_from_slice(bytes));
            capture.blocks[block].store(self.opened(block), Release);
            return Ok(read(&self.block));
        }
        let (_, bytes) = capture.place_of(block);
        let copy = capture.copies.of(block, bytes);
        let copy = copy.ok_or_else(|| io::Error::other("a block was read before"))?;
        Ok(read(copy))
    }

    /// What a block is that was read, and is still taken.
    fn opened(&self, block: usize) -> u8 {
        let (offset, bytes) = self.capture.place_of(block);
        let stays = self.capture.is_kept()
            || protect(self.capture.at(offset), bytes, Access::Write).is_err();
        match stays {
            // Whoever writes to it opens it.
            true => THERE,
            false => OPEN,
        }
    }
}

impl Drop for Captured {
    fn drop(&mut self) {
        self.capture.is_read.store(false, Release);
        self.capture.open_if_unwanted();
    }
}
