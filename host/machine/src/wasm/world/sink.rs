//! Where the snapshot goes that an instance saves.

use std::sync::{Arc, Mutex, MutexGuard};

use skep_core::outcome::GuestFault;
use skep_types::shared::lock;

use crate::wasm::fault::Stop;

/// Bytes of a snapshot that are handed to its writer together, at least.
const CHUNK_WORTH_SENDING: usize = 64 << 10;

/// Chunks between the guest that writes them and the writer.
const CHUNKS_MAX: usize = 4;

/// What a guest has written of its snapshot and nobody has taken yet.
#[derive(Clone, Debug, Default)]
pub(crate) struct Chunks(Arc<Mutex<Vec<Vec<u8>>>>);

impl Chunks {
    /// Whether the guest should wait until somebody has taken them.
    pub(crate) fn are_many(&self) -> bool {
        self.lock().len() >= CHUNKS_MAX
    }

    /// Takes them.
    pub(crate) fn take(&self) -> Vec<Vec<u8>> {
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        lock(&self.0)
    }
}

/// Where `save` writes, in chunks that are worth handing over. A guest may write byte by byte, and pays for that less than handing
/// each over would cost.
#[derive(Debug)]
pub(crate) struct Sink {
    chunks: Chunks,
    pending: Vec<u8>,
    left: u64,
}

impl Sink {
    pub(crate) fn new(chunks: Chunks, limit: u64) -> Self {
        Self {
            chunks,
            pending: Vec::new(),
            left: limit,
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.chunks.are_many()
    }

    pub(crate) fn write(&mut self, chunk: Vec<u8>) -> Result<(), Stop> {
        self.left = self
            .left
            .checked_sub(chunk.len() as u64)
            .ok_or(Stop::Fault(GuestFault::Limit))?;
        if self.pending.is_empty() && chunk.len() >= CHUNK_WORTH_SENDING {
            self.chunks.lock().push(chunk);
            return Ok(());
        }
        self.pending.extend_from_slice(&chunk);
        if self.pending.len() >= CHUNK_WORTH_SENDING {
            self.hand_over();
        }
        Ok(())
    }

    fn hand_over(&mut self) {
        let full = std::mem::take(&mut self.pending);
        self.chunks.lock().push(full);
    }
}

/// The rest follows when the call of `save` is over.
impl Drop for Sink {
    fn drop(&mut self) {
        if !self.pending.is_empty() {
            self.hand_over();
        }
    }
}
