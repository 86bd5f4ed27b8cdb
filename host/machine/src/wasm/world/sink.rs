//! Where the snapshot goes that an instance saves.

use std::sync::mpsc::SyncSender;

use skep_core::outcome::GuestFault;

use crate::LocalCode;
use crate::wasm::fault::Stop;

/// Bytes of a snapshot that are handed to its writer together, at least.
const CHUNK_WORTH_SENDING: usize = 64 << 10;

/// Where `save` writes: to the thread that holds the writer, in chunks that are worth waking it for. A guest may write byte
/// by byte, and pays for that less than handing each over would cost.
#[derive(Debug)]
pub(crate) struct Sink {
    chunks: SyncSender<Vec<u8>>,
    pending: Vec<u8>,
    left: u64,
}

impl Sink {
    pub(crate) fn new(chunks: SyncSender<Vec<u8>>, limit: u64) -> Self {
        Self {
            chunks,
            pending: Vec::new(),
            left: limit,
        }
    }

    pub(crate) fn write(&mut self, chunk: Vec<u8>) -> Result<(), Stop> {
        self.left = self
            .left
            .checked_sub(chunk.len() as u64)
            .ok_or(Stop::Fault(GuestFault::Limit))?;
        if self.pending.is_empty() && chunk.len() >= CHUNK_WORTH_SENDING {
            return self.send(chunk);
        }
        self.pending.extend_from_slice(&chunk);
        if self.pending.len() < CHUNK_WORTH_SENDING {
            return Ok(());
        }
        let full = std::mem::take(&mut self.pending);
        self.send(full)
    }

    fn send(&self, chunk: Vec<u8>) -> Result<(), Stop> {
        self.chunks.send(chunk).map_err(|_| Stop::Local {
            code: LocalCode::Io,
            reason: "the snapshot's writer failed".into(),
        })
    }
}

/// The rest follows when the call of `save` is over.
impl Drop for Sink {
    fn drop(&mut self) {
        let rest = std::mem::take(&mut self.pending);
        if !rest.is_empty() {
            // If nobody receives it the writer has failed, which its own end reports.
            let _ = self.send(rest);
        }
    }
}
