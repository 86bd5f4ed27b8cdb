//! Snapshots on their way to their final name.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::{BufMut, Bytes};
use sha2::{Digest, Sha256};

use super::SnapshotMeta;
use super::file::{HEADER, SnapshotFile, encode_header};
use crate::error::LogError;
use crate::record::{GroupKey, SnapshotMark};
use crate::vfs::{Vfs, VfsFile};

/// Guest bytes are handed to the system in pieces of this size.
const WRITE_STEP: usize = 1 << 20;

/// Takes the guest's bytes of a new snapshot. Dropped unfinished, it removes what it wrote.
#[derive(Debug)]
pub struct SnapshotWriter {
    draft: Draft,
    /// Bytes that were not handed to the system yet.
    buffer: Vec<u8>,
    digest: Sha256,
    guest_len: u64,
    meta: SnapshotMeta,
}

impl SnapshotWriter {
    pub(super) fn new(draft: Draft, meta: SnapshotMeta) -> Result<SnapshotWriter, LogError> {
        let mut writer = SnapshotWriter {
            draft,
            buffer: encode_header(&meta),
            digest: Sha256::new(),
            guest_len: 0,
            meta,
        };
        let state = writer.meta.state.clone();
        writer
            .put(&state)
            .map_err(LogError::io("write", &writer.draft.temporary))?;
        Ok(writer)
    }

    /// Makes the snapshot durable under its name: [`seal`](Self::seal) and [`SealedSnapshot::place`].
    ///
    /// # Errors
    /// [`LogError::Io`]. The snapshot must then be taken for one that does not exist: no mark may name it. If only the
    /// directory could not be synced, a file of its name, whole or gone after a crash, may be there; the next sweep of
    /// orphans removes it, and a snapshot of the same position replaces it.
    pub fn finish(self) -> Result<SnapshotFile, LogError> {
        self.seal()?.place()
    }

    /// Writes what is left. The snapshot can be read from then on, and is not durable yet.
    ///
    /// # Errors
    /// [`LogError::Io`]; the snapshot then does not exist.
    pub fn seal(mut self) -> Result<SealedSnapshot, LogError> {
        let guest_len = self.guest_len;
        self.buffer.put_u64_le(guest_len);
        self.flush_buffer()
            .map_err(LogError::io("write", &self.draft.temporary))?;
        let digest = self.digest.finalize_reset();
        self.draft
            .write(&digest)
            .map_err(LogError::io("write", &self.draft.temporary))?;
        let content = self
            .draft
            .vfs
            .map(&self.draft.temporary)
            .map_err(LogError::io("read", &self.draft.temporary))?;
        let mark = SnapshotMark {
            position: self.meta.position,
            digest: digest.into(),
            size: self.draft.len,
        };
        let guest_at = HEADER + self.meta.state.len();
        if content.len() as u64 != mark.size {
            return Err(LogError::bad_snapshot(
                &self.draft.temporary,
                "its length changed while it was written",
            ));
        }
        let guest = content.slice(guest_at..guest_at + guest_len as usize);
        let file = SnapshotFile {
            path: self.draft.path.clone(),
            meta: self.meta,
            mark,
            content,
            guest,
        };
        Ok(SealedSnapshot {
            draft: self.draft,
            file,
        })
    }

    fn put(&mut self, data: &[u8]) -> io::Result<()> {
        self.buffer.extend_from_slice(data);
        if self.buffer.len() >= WRITE_STEP {
            self.flush_buffer()
        } else {
            Ok(())
        }
    }

    fn flush_buffer(&mut self) -> io::Result<()> {
        self.draft.write(&self.buffer)?;
        self.digest.update(&self.buffer);
        self.buffer.clear();
        Ok(())
    }
}

impl io::Write for SnapshotWriter {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.put(data)?;
        self.guest_len += data.len() as u64;
        Ok(data.len())
    }

    /// Does nothing: the bytes count when the snapshot is finished.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A snapshot that is written and not durable yet. Dropped, it removes what it wrote; its bytes stay readable to whoever
/// holds them.
#[derive(Debug)]
pub struct SealedSnapshot {
    draft: Draft,
    file: SnapshotFile,
}

impl SealedSnapshot {
    /// The guest's bytes, mapped from the file.
    pub fn guest(&self) -> Bytes {
        self.file.guest()
    }

    /// What to write to the log about it, once it is durable.
    pub fn mark(&self) -> &SnapshotMark {
        self.file.mark()
    }

    /// Makes the snapshot durable under its name. Only then may its mark go to the log. Takes as long as the disk does.
    ///
    /// # Errors
    /// [`LogError::Io`]; the snapshot then does not exist.
    pub fn place(self) -> Result<SnapshotFile, LogError> {
        self.draft.sync()?;
        self.draft.place()?;
        Ok(self.file)
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
        let received = self.draft.len;
        let end = offset.saturating_add(data.len() as u64);
        if end > self.mark.size {
            let file = self.draft.path.clone();
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
                file: self.draft.path.clone(),
                offset,
                received,
            });
        }
        self.draft
            .write(data)
            .map_err(LogError::io("write", &self.draft.temporary))
    }

    /// How many bytes are stored: where a broken transfer goes on.
    pub fn received(&self) -> u64 {
        self.draft.len
    }

    /// Whether all announced bytes are stored.
    pub fn is_complete(&self) -> bool {
        self.draft.len == self.mark.size
    }

    /// Verifies the snapshot against its mark and makes it durable under its name.
    ///
    /// # Errors
    /// [`LogError::BadSnapshot`] if it is incomplete, damaged or another one; [`LogError::Io`].
    pub fn finish(self) -> Result<SnapshotFile, LogError> {
        self.draft.sync()?;
        let content = self
            .draft
            .vfs
            .map(&self.draft.temporary)
            .map_err(LogError::io("read", &self.draft.temporary))?;
        let mut file = SnapshotFile::parse(&self.draft.temporary, content)?;
        file.check_is(self.key, &self.mark)?;
        file.path = self.draft.path.clone();
        self.draft.place()?;
        Ok(file)
    }
}

/// A file on its way to its final name; removed if it does not get there.
#[derive(Debug)]
pub(super) struct Draft {
    vfs: Arc<dyn Vfs>,
    dir: PathBuf,
    path: PathBuf,
    temporary: PathBuf,
    file: Box<dyn VfsFile>,
    len: u64,
    placed: bool,
}

impl Draft {
    pub(super) fn new(
        vfs: Arc<dyn Vfs>,
        dir: PathBuf,
        path: PathBuf,
        temporary: PathBuf,
        file: Box<dyn VfsFile>,
    ) -> Draft {
        Draft {
            vfs,
            dir,
            path,
            temporary,
            file,
            len: 0,
            placed: false,
        }
    }

    fn write(&mut self, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(self.len, data)?;
        self.len += data.len() as u64;
        Ok(())
    }

    fn sync(&self) -> Result<(), LogError> {
        self.file
            .sync_data()
            .map_err(LogError::io("sync", &self.temporary))
    }

    fn place(mut self) -> Result<(), LogError> {
        self.vfs
            .rename(&self.temporary, &self.path)
            .map_err(LogError::io("rename", &self.temporary))?;
        self.placed = true;
        self.vfs
            .sync_dir(&self.dir)
            .map_err(LogError::io("sync", &self.dir))
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.placed {
            // Best effort: the next start removes temporary files as well.
            let _ = self.vfs.remove(&self.temporary);
        }
    }
}
