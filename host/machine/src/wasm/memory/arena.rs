//! Where the bytes of linear memories are.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};

use skep_types::shared::lock;

use super::mapping::{Access, Reservation, Sharing, memory_file, punch};

/// Files that all memories of a process share, each memory at an offset of its own: so memories use no descriptors. More than one,
/// because the system locks a file while it finds pages for it.
const FILES: usize = 8;

/// What a memory may come to need of its file: all that a 32-bit address reaches.
const SLOT_BYTES: u64 = 4 << 30;

/// The files that linear memories are in.
#[derive(Debug)]
pub(crate) struct Arena {
    files: Vec<Arc<Slots>>,
    next: AtomicUsize,
}

#[derive(Debug)]
struct Slots {
    file: File,
    free: Mutex<Free>,
}

#[derive(Debug, Default)]
struct Free {
    slots: Vec<u64>,
    /// Slots that the file is long enough for.
    count: u64,
}

impl Slots {
    fn free(&self) -> MutexGuard<'_, Free> {
        lock(&self.free)
    }
}

impl Arena {
    /// # Errors
    /// This system has no files in memory.
    pub(crate) fn new() -> io::Result<Self> {
        let files = (0..FILES).map(|_| {
            Ok(Arc::new(Slots {
                file: memory_file()?,
                free: Mutex::default(),
            }))
        });
        Ok(Self {
            files: files.collect::<io::Result<_>>()?,
            next: AtomicUsize::new(0),
        })
    }

    /// A place for one memory, which reads as zeroes.
    pub(super) fn take(&self) -> io::Result<Region> {
        let slots = &self.files[self.next.fetch_add(1, Relaxed) % FILES];
        let mut free = slots.free();
        let slot = match free.slots.pop() {
            Some(slot) => slot,
            None => {
                // It takes no memory until something is written.
                slots.file.set_len((free.count + 1) * SLOT_BYTES)?;
                free.count += 1;
                free.count - 1
            }
        };
        drop(free);
        Ok(Region {
            slots: Arc::clone(slots),
            slot,
        })
    }
}

/// The place of one memory. Given back, and its bytes with it, when nothing maps it any more.
#[derive(Debug)]
pub(super) struct Region {
    slots: Arc<Slots>,
    slot: u64,
}

impl Region {
    /// Maps its bytes from `offset` on, at the same offset behind `base` of the reservation.
    pub(super) fn map(
        &self,
        into: &Reservation,
        base: usize,
        offset: usize,
        bytes: usize,
        sharing: Sharing,
        access: Access,
    ) -> io::Result<()> {
        let from = self.slot * SLOT_BYTES + offset as u64;
        into.map(
            base + offset,
            bytes,
            &self.slots.file,
            from,
            sharing,
            access,
        )
    }

    /// What is behind so many bytes reads as zeroes again.
    pub(super) fn clear(&self, from: usize) -> io::Result<()> {
        let from = (from as u64).min(SLOT_BYTES);
        let offset = self.slot * SLOT_BYTES + from;
        match SLOT_BYTES - from {
            0 => Ok(()),
            bytes => punch(&self.slots.file, offset, bytes),
        }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        match punch(&self.slots.file, self.slot * SLOT_BYTES, SLOT_BYTES) {
            Ok(()) => self.slots.free().slots.push(self.slot),
            // Never used again, so that nobody finds in it what was there.
            Err(error) => tracing::error!(
                target: "skep::machine", %error,
                "the memory of a machine that has gone cannot be given back to the system"
            ),
        }
    }
}
