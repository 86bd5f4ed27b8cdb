//! A finished snapshot, and the layout of its file.

use std::path::{Path, PathBuf};

use bytes::{Buf, BufMut, Bytes};
use sha2::{Digest, Sha256};

use super::SnapshotMeta;
use crate::error::LogError;
use crate::record::{GroupKey, LogPosition, SnapshotMark};

const MAGIC: u64 = u64::from_le_bytes(*b"SKEPSNAP");

const FORMAT_VERSION: u32 = 1;

/// Bytes before the host's section: magic, version, schema, key, position, component, length of the section, checksum.
pub(super) const HEADER: usize = 8 + 4 + 4 + 16 + 16 + 32 + 8 + 4;

/// Bytes behind the guest's: their length and the digest.
const TRAILER: usize = 8 + 32;

/// Bytes of the host's section, at the most. What it holds is bounded far below this.
pub const MAX_STATE: u64 = 256 << 20;

/// A finished, verified snapshot. It stays readable while it is held, even if its file is removed.
#[derive(Clone, Debug)]
pub struct SnapshotFile {
    pub(super) path: PathBuf,
    pub(super) meta: SnapshotMeta,
    pub(super) mark: SnapshotMark,
    pub(super) content: Bytes,
    pub(super) guest: Bytes,
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

    /// The guest's bytes, mapped from the file.
    pub fn guest(&self) -> Bytes {
        self.guest.clone()
    }

    /// Up to `len` bytes of the raw file from `offset` on, for sending; empty behind its end.
    pub fn read_chunk(&self, offset: u64, len: usize) -> Bytes {
        let from = usize::try_from(offset)
            .unwrap_or(usize::MAX)
            .min(self.content.len());
        let to = from.saturating_add(len).min(self.content.len());
        self.content.slice(from..to)
    }

    /// The digest at the end of the file.
    pub fn digest(&self) -> [u8; 32] {
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

    pub(super) fn parse(path: &Path, content: Bytes) -> Result<SnapshotFile, LogError> {
        let bad = |reason: &str| LogError::bad_snapshot(path, reason);
        if content.len() < HEADER + TRAILER {
            return Err(bad("it is too short to be a snapshot"));
        }
        let covered = content.len() - 32;
        let digest: [u8; 32] = Sha256::digest(&content[..covered]).into();
        let mut fields = content.slice(..HEADER);
        if fields.get_u64_le() != MAGIC {
            return Err(bad("it is not a snapshot file"));
        }
        let version = fields.get_u32_le();
        if digest != content[covered..] {
            return Err(bad("its digest does not match its content"));
        }
        if version != FORMAT_VERSION {
            return Err(LogError::UnsupportedFormat {
                file: path.to_path_buf(),
                found: version,
                supported: FORMAT_VERSION,
            });
        }
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
        if fields.get_u32_le() != crc32c::crc32c(&content[..HEADER - 4]) {
            return Err(bad("its header's checksum is wrong"));
        }
        let guest_len = (&content[covered - 8..covered]).get_u64_le();
        let room = (content.len() - HEADER - TRAILER) as u64;
        if state_len > MAX_STATE || state_len.checked_add(guest_len) != Some(room) {
            return Err(bad("its section lengths do not add up"));
        }
        let guest_at = HEADER + state_len as usize;
        let meta = SnapshotMeta {
            key,
            position,
            state: content.slice(HEADER..guest_at),
            schema,
            component,
        };
        let mark = SnapshotMark {
            position,
            digest,
            size: content.len() as u64,
        };
        let guest = content.slice(guest_at..covered - 8);
        Ok(SnapshotFile {
            path: path.to_path_buf(),
            meta,
            mark,
            content,
            guest,
        })
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

pub(super) fn encode_header(meta: &SnapshotMeta) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER);
    out.put_u64_le(MAGIC);
    out.put_u32_le(FORMAT_VERSION);
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
