//! Snapshots on their way to their final name.

use std::sync::Arc;

use bytes::Bytes;
use skep_vfs::Draft;

use super::SnapshotMeta;
use super::SnapshotStore;
use super::file::{Sealed, SnapshotFile};
use crate::error::LogError;
use crate::record::{GroupKey, SnapshotMark};

/// A snapshot that is whole and in memory: a machine goes on from it at once, and a disk that cannot take it now may be asked
/// again.
#[derive(Debug)]
pub struct SealedSnapshot {
    store: SnapshotStore,
    sealed: Sealed,
}

impl SealedSnapshot {
    pub(super) fn new(store: SnapshotStore, meta: SnapshotMeta, guest: Bytes) -> SealedSnapshot {
        SealedSnapshot {
            store,
            sealed: Sealed::new(meta, guest),
        }
    }

    /// The guest's bytes.
    pub fn guest(&self) -> Bytes {
        self.sealed.guest.clone()
    }

    /// What to write to the log about it, once it is durable.
    pub fn mark(&self) -> &SnapshotMark {
        &self.sealed.mark
    }

    /// Writes the file and makes it durable under its name. Only then may its mark go to the log. Takes as long as the disk
    /// does, and may be tried again, each time with a new file.
    ///
    /// # Errors
    /// [`LogError::Io`]. The snapshot must then be taken for one that does not exist: no mark may name it. If only the
    /// directory could not be synced, a file of its name, whole or gone after a crash, may be there; the next sweep of
    /// orphans removes it, and a snapshot of the same position replaces it.
    pub fn place(&self) -> Result<SnapshotFile, LogError> {
        let Sealed {
            meta,
            head,
            guest,
            tail,
            ..
        } = &self.sealed;
        let mut draft = self.store.draft(meta.key, meta.position)?;
        for part in [head, guest, tail] {
            draft.write(part)?;
        }
        let path = draft.path().to_owned();
        Ok(SnapshotFile::written(path, &self.sealed, draft.place()?))
    }
}

/// Takes a snapshot from the network in chunks. Dropped unfinished, it removes what it stored.
#[derive(Debug)]
pub struct SnapshotReceiver {
    draft: Draft,
    key: GroupKey,
    mark: SnapshotMark,
}

impl SnapshotReceiver {
    pub(super) fn new(draft: Draft, key: GroupKey, mark: SnapshotMark) -> SnapshotReceiver {
        SnapshotReceiver { draft, key, mark }
    }

    /// Stores the bytes from `offset` on. Chunks come in order; one that repeats bytes already stored is ignored.
    ///
    /// # Errors
    /// [`LogError::SnapshotChunk`] if bytes between are missing; [`LogError::SnapshotTooLarge`] if the chunk goes beyond
    /// the announced size; [`LogError::Io`].
    pub fn write_chunk(&mut self, offset: u64, data: &[u8]) -> Result<(), LogError> {
        let received = self.draft.written();
        let end = offset.saturating_add(data.len() as u64);
        if end > self.mark.size {
            let file = self.draft.path().to_owned();
            return Err(LogError::SnapshotTooLarge {
                file,
                size: end,
                limit: self.mark.size,
            });
        }
        if end <= received {
            return Ok(());
        }
        if offset != received {
            return Err(LogError::SnapshotChunk {
                file: self.draft.path().to_owned(),
                offset,
                received,
            });
        }
        Ok(self.draft.write(data)?)
    }

    /// How many bytes are stored: where a broken transfer goes on.
    pub fn received(&self) -> u64 {
        self.draft.written()
    }

    /// Verifies the snapshot against its mark and makes it durable under its name.
    ///
    /// # Errors
    /// [`LogError::BadSnapshot`] if it is incomplete, damaged or another one; [`LogError::Io`].
    pub fn finish(self) -> Result<SnapshotFile, LogError> {
        let written = Arc::clone(self.draft.file());
        let file = SnapshotFile::verify(self.draft.temporary(), written)?;
        file.check_is(self.key, &self.mark)?;
        let path = self.draft.path().to_owned();
        self.draft.place()?;
        Ok(file.at(path))
    }
}
