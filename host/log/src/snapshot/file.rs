//! A finished snapshot, and the layout of its file.
//!
//! Files are read with `pread` and never mapped: a file that somebody shortens, or a sector that cannot be read, is then an
//! error of one snapshot and no signal that ends the process.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes};
use sha2::{Digest, Sha256};
use skep_types::form::Form;
use skep_vfs::VfsFile;

use super::SnapshotMeta;
use crate::error::LogError;
use crate::record::{GroupKey, LogPosition, SnapshotMark};

const MAGIC: u64 = u64::from_le_bytes(*b"SKEPSNAP");

/// The newest version of the format. Both are read, and their layout is the same.
const NEWEST_VERSION: u32 = 2;

/// The version of a file, which says what the guest's bytes are: a program that knows no images must not restore one.
fn version(form: Form) -> u32 {
    match form {
        Form::Saved => 1,
        Form::Image => NEWEST_VERSION,
    }
}

/// Bytes before the host's section: magic, version, schema, key, position, component, length of the section, checksum.
const HEADER: usize = 8 + 4 + 4 + 16 + 16 + 32 + 8 + 4;

const DIGEST: usize = 32;

/// Bytes behind the guest's: their length and the digest.
const TRAILER: usize = 8 + DIGEST;

/// Bytes of the host's section, at the most. What it holds is bounded far below this.
pub const MAX_STATE: u64 = 256 << 20;

/// What is read at once while a file is verified.
const READ_STEP: usize = 1 << 20;

/// A finished, verified snapshot. It stays readable while it is held, even if its file is removed.
#[derive(Clone, Debug)]
pub struct SnapshotFile {
    path: PathBuf,
    meta: SnapshotMeta,
    mark: SnapshotMark,
    guest_len: u64,
    file: Arc<dyn VfsFile>,
}

impl SnapshotFile {
    /// What the snapshot is of.
    pub fn meta(&self) -> &SnapshotMeta {
        &self.meta
    }

    /// What to write to the log about it.
    pub fn mark(&self) -> &SnapshotMark {
        &self.mark
    }

    /// The guest's bytes, read into memory and verified once more: the file may have changed since it was opened. Whoever
    /// wants nothing else reads the file once, with [`SnapshotStore::read`](super::SnapshotStore::read).
    ///
    /// # Errors
    /// [`LogError::BadSnapshot`] if it has; [`LogError::Io`].
    pub fn guest(&self) -> Result<Bytes, LogError> {
        let at = (HEADER + self.meta.state.len()) as u64;
        let guest = read(&*self.file, &self.path, at, self.guest_len)?;
        let mut digest = Sha256::new();
        digest.update(encode_header(&self.meta));
        digest.update(&self.meta.state);
        digest.update(&guest);
        digest.update(self.guest_len.to_le_bytes());
        if digest.finalize()[..] != self.mark.digest {
            return Err(bad(&self.path, "it changed after it was verified"));
        }
        Ok(guest.into())
    }

    /// Up to `len` bytes of the raw file from `offset` on, for sending; empty behind its end. Whoever receives them
    /// verifies the whole.
    ///
    /// # Errors
    /// [`LogError::BadSnapshot`] if the file was shortened; [`LogError::Io`].
    pub fn read_chunk(&self, offset: u64, len: usize) -> Result<Bytes, LogError> {
        let from = offset.min(self.mark.size);
        let len = (len as u64).min(self.mark.size - from);
        read(&*self.file, &self.path, from, len).map(Bytes::from)
    }

    /// The digest at the end of the file.
    pub fn digest(&self) -> [u8; DIGEST] {
        self.mark.digest
    }

    /// The whole file's size in bytes.
    pub fn size(&self) -> u64 {
        self.mark.size
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Of a file that was written just now.
    pub(super) fn written(path: PathBuf, sealed: &Sealed, file: Arc<dyn VfsFile>) -> SnapshotFile {
        SnapshotFile {
            path,
            meta: sealed.meta.clone(),
            mark: sealed.mark.clone(),
            guest_len: sealed.guest.len() as u64,
            file,
        }
    }

    /// Reads the whole file, a piece at a time, and verifies it against the digest in it.
    pub(super) fn verify(path: &Path, file: Arc<dyn VfsFile>) -> Result<SnapshotFile, LogError> {
        SnapshotFile::take_in(path, file, None)
    }

    /// As [`verify`](Self::verify), and keeps the guest's bytes.
    pub(super) fn read(
        path: &Path,
        file: Arc<dyn VfsFile>,
    ) -> Result<(SnapshotFile, Bytes), LogError> {
        let mut guest = Vec::new();
        let file = SnapshotFile::take_in(path, file, Some(&mut guest))?;
        Ok((file, guest.into()))
    }

    /// The guest's bytes go to `guest`, if anybody wants them.
    fn take_in(
        path: &Path,
        file: Arc<dyn VfsFile>,
        mut guest: Option<&mut Vec<u8>>,
    ) -> Result<SnapshotFile, LogError> {
        let size = file.len().map_err(LogError::io("read", path))?;
        if size < (HEADER + TRAILER) as u64 {
            return Err(bad(path, "it is too short to be a snapshot"));
        }
        let end = size - TRAILER as u64;
        let head = Bytes::from(read(&*file, path, 0, HEADER as u64)?);
        let header = Header::parse(path, &head)?;
        // Of a version or with lengths that make no sense nothing is taken in; the digest says first what is wrong.
        let room = end - HEADER as u64;
        let state_len = match header.is_sound {
            true => header.state_len.min(MAX_STATE).min(room),
            false => 0,
        };
        let state = Bytes::from(read(&*file, path, HEADER as u64, state_len)?);
        let mut digest = Sha256::new();
        digest.update(&head);
        digest.update(&state);
        if let Some(guest) = &mut guest {
            **guest = buffer(room - state_len).map_err(LogError::io("read", path))?;
        }
        let mut at = HEADER as u64 + state_len;
        while at < end {
            let piece = read(&*file, path, at, (end - at).min(READ_STEP as u64))?;
            digest.update(&piece);
            at += piece.len() as u64;
            if let Some(guest) = &mut guest {
                guest.extend_from_slice(&piece);
            }
        }
        let trailer = read(&*file, path, end, TRAILER as u64)?;
        let (mut guest_len, found) = trailer.split_at(TRAILER - DIGEST);
        digest.update(guest_len);
        let digest: [u8; DIGEST] = digest.finalize().into();
        if digest[..] != *found {
            return Err(bad(path, "its digest does not match its content"));
        }
        let Some(form) = header.form() else {
            return Err(LogError::UnsupportedFormat {
                file: path.to_path_buf(),
                found: header.version,
                supported: NEWEST_VERSION,
            });
        };
        if !header.is_sound {
            return Err(bad(path, "its header's checksum is wrong"));
        }
        let guest_len = guest_len.get_u64_le();
        if header.state_len != state_len || state_len.checked_add(guest_len) != Some(room) {
            return Err(bad(path, "its section lengths do not add up"));
        }
        let mark = SnapshotMark {
            position: header.position,
            digest,
            size,
        };
        Ok(SnapshotFile {
            path: path.to_path_buf(),
            meta: SnapshotMeta {
                key: header.key,
                position: header.position,
                state,
                form,
                schema: header.schema,
                component: header.component,
            },
            mark,
            guest_len,
            file,
        })
    }

    pub(super) fn at(self, path: PathBuf) -> SnapshotFile {
        SnapshotFile { path, ..self }
    }

    pub(super) fn check_is(&self, key: GroupKey, mark: &SnapshotMark) -> Result<(), LogError> {
        if self.meta.key == key && &self.mark == mark {
            return Ok(());
        }
        let (index, size) = (self.mark.position.index, self.mark.size);
        let reason = format!(
            "it is of {} at index {index} with {size} bytes, not the one expected",
            self.meta.key
        );
        Err(LogError::bad_snapshot(&self.path, reason))
    }
}

/// A snapshot in memory, as its file is to be.
#[derive(Debug)]
pub(super) struct Sealed {
    pub(super) meta: SnapshotMeta,
    pub(super) mark: SnapshotMark,
    /// What stands before the guest's bytes.
    pub(super) head: Bytes,
    pub(super) guest: Bytes,
    /// What stands behind them.
    pub(super) tail: Bytes,
}

impl Sealed {
    pub(super) fn new(meta: SnapshotMeta, guest: Bytes) -> Sealed {
        let mut head = encode_header(&meta);
        head.extend_from_slice(&meta.state);
        let mut tail = (guest.len() as u64).to_le_bytes().to_vec();
        let mut digest = Sha256::new();
        digest.update(&head);
        digest.update(&guest);
        digest.update(&tail);
        let digest: [u8; DIGEST] = digest.finalize().into();
        tail.extend_from_slice(&digest);
        let mark = SnapshotMark {
            position: meta.position,
            digest,
            size: (head.len() + guest.len() + tail.len()) as u64,
        };
        Sealed {
            meta,
            mark,
            head: head.into(),
            guest,
            tail: tail.into(),
        }
    }
}

struct Header {
    version: u32,
    schema: u32,
    key: GroupKey,
    position: LogPosition,
    component: [u8; 32],
    state_len: u64,
    /// Its checksum is right.
    is_sound: bool,
}

impl Header {
    /// What the guest's bytes are; none of a version that is not known.
    fn form(&self) -> Option<Form> {
        Form::ALL
            .into_iter()
            .find(|form| version(*form) == self.version)
    }

    fn parse(path: &Path, head: &Bytes) -> Result<Header, LogError> {
        let mut fields = head.clone();
        if fields.get_u64_le() != MAGIC {
            return Err(bad(path, "it is not a snapshot file"));
        }
        let version = fields.get_u32_le();
        let schema = fields.get_u32_le();
        let key = GroupKey {
            group: fields.get_u64_le(),
            incarnation: fields.get_u64_le(),
        };
        let position = LogPosition {
            index: fields.get_u64_le(),
            term: fields.get_u64_le(),
        };
        let mut component = [0; 32];
        fields.copy_to_slice(&mut component);
        let state_len = fields.get_u64_le();
        let is_sound = fields.get_u32_le() == crc32c::crc32c(&head[..HEADER - 4]);
        Ok(Header {
            version,
            schema,
            key,
            position,
            component,
            state_len,
            is_sound,
        })
    }
}

fn bad(path: &Path, reason: &str) -> LogError {
    LogError::bad_snapshot(path, reason)
}

/// So many bytes of the file, all of which its length or its verification promised.
fn read(file: &dyn VfsFile, path: &Path, offset: u64, len: u64) -> Result<Vec<u8>, LogError> {
    let failed = LogError::io("read", path);
    let mut bytes = match buffer(len) {
        Ok(bytes) => bytes,
        Err(error) => return Err(failed(error)),
    };
    bytes.resize(len as usize, 0);
    let read = file.read_at(offset, &mut bytes).map_err(failed)?;
    if read as u64 != len {
        return Err(bad(path, "it was shortened while it was read"));
    }
    Ok(bytes)
}

/// Room for so many bytes; an error, and no end of the process, if there is none.
pub(crate) fn buffer(len: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let len = usize::try_from(len).map_err(|_| std::io::ErrorKind::OutOfMemory)?;
    bytes
        .try_reserve_exact(len)
        .map_err(|_| std::io::ErrorKind::OutOfMemory)?;
    Ok(bytes)
}

fn encode_header(meta: &SnapshotMeta) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER);
    out.put_u64_le(MAGIC);
    out.put_u32_le(version(meta.form));
    out.put_u32_le(meta.schema);
    out.put_u64_le(meta.key.group);
    out.put_u64_le(meta.key.incarnation);
    out.put_u64_le(meta.position.index);
    out.put_u64_le(meta.position.term);
    out.put_slice(&meta.component);
    out.put_u64_le(meta.state.len() as u64);
    out.put_u32_le(crc32c::crc32c(&out));
    out
}
