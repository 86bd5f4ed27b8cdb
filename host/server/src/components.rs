//! The components a node keeps: files named by the sha256 of what they hold.

pub mod compiler;
pub mod machines;

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use skep::{DiskRoom, NoRoom};
use skep_core::id::ComponentId;
use skep_types::code::Code;
use skep_types::shared::lock;
use skep_vfs::{DiskVfs, Draft, FileError, Vfs, replace};

const SUFFIX: &str = "wasm";
/// Of a component that has not arrived whole.
const PARTIAL_SUFFIX: &str = "part";
/// Uploads that may be under way.
const UPLOADS_MAX: usize = 16;
/// How long an upload may be without progress: then it is abandoned. Where others wait for its place it is sooner.
const ABANDONED: Duration = Duration::from_secs(60);
const ABANDONED_IF_FULL: Duration = Duration::from_secs(10);

/// A directory of components. All methods block on the disk; call them off the async threads.
///
/// A file appears whole or not at all, and is verified when it is read whole, so a torn or damaged one is noticed and
/// fetched again instead of being run.
#[derive(Clone, Debug)]
pub struct ComponentStore {
    vfs: Arc<dyn Vfs>,
    dir: PathBuf,
    /// Tells apart the drafts of this process.
    drafts: Arc<AtomicU64>,
    /// Bytes of all uploads under way together.
    uploads_bytes: u64,
    /// The disk; none if it is nobody's business how full that is.
    room: Option<Arc<DiskRoom>>,
    /// Held while pieces are taken in, so that what all uploads may have together is not given twice.
    taking: Arc<Mutex<()>>,
}

/// One piece of a component that is uploaded in pieces, from its start to its end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Upload {
    /// Name of the whole.
    pub id: ComponentId,
    /// Where the piece begins.
    pub offset: u64,
    /// Bytes of the whole.
    pub total: u64,
    /// The piece.
    pub data: Bytes,
}

/// Why a component could not be stored or read.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk failed.
    #[error("cannot {what} {path}; check the disk and the rights of the data directory")]
    Disk {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A piece does not follow those before it.
    #[error(
        "the piece begins at {offset}, but {received} bytes have arrived; go on from there, or begin again at 0"
    )]
    OutOfOrder {
        /// Where the piece begins.
        offset: u64,
        /// Where it should.
        received: u64,
    },
    /// Too many components are being uploaded.
    #[error("{UPLOADS_MAX} components are being uploaded already; try again")]
    TooManyUploads,
    /// There is no room for it.
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
    /// The bytes are not those the name promises.
    #[error(
        "the bytes have the sha256 {actual}, not {expected}; the transfer was damaged or the name is wrong"
    )]
    Digest {
        /// The name.
        expected: ComponentId,
        /// What the bytes are.
        actual: ComponentId,
    },
}

impl StoreError {
    /// The stable code, for programs and for documentation.
    pub fn code(&self) -> Code {
        match self {
            Self::Disk { .. } => Code::Storage,
            Self::OutOfOrder { .. } => Code::InvalidRequest,
            Self::TooManyUploads => Code::Busy,
            Self::NoRoom(_) => Code::OutOfBudget,
            Self::Digest { .. } => Code::DigestMismatch,
        }
    }
}

impl From<FileError> for StoreError {
    fn from(failed: FileError) -> Self {
        disk(failed.action, &failed.path)(failed.source)
    }
}

impl ComponentStore {
    /// Opens the directory; creates it if it is not there. What was not finished before is removed.
    pub fn open(dir: PathBuf) -> Result<Self, StoreError> {
        Self::open_on(Arc::new(DiskVfs), dir)
    }

    /// As [`open`](Self::open), on this file system. Uploads under way are on the real one: no promise hangs on them.
    pub fn open_on(vfs: Arc<dyn Vfs>, dir: PathBuf) -> Result<Self, StoreError> {
        vfs.create_dir_all(&dir)
            .map_err(disk("create the directory", &dir))?;
        let store = Self {
            vfs,
            dir,
            drafts: Arc::default(),
            uploads_bytes: u64::MAX,
            room: None,
            taking: Arc::default(),
        };
        for path in store.list()? {
            let name = path.to_string_lossy();
            if has_suffix(&path, PARTIAL_SUFFIX) || name.ends_with(Draft::SUFFIX) {
                store.vfs.remove(&path).map_err(disk("remove", &path))?;
            }
        }
        Ok(store)
    }

    /// Bounds what uploads under way may have together, and lets the disk refuse what does not fit.
    pub fn bounded(self, uploads_bytes: u64, room: Arc<DiskRoom>) -> Self {
        Self {
            uploads_bytes,
            room: Some(room),
            ..self
        }
    }

    /// Takes one piece in; returns how many bytes have arrived, and the whole once it is complete and verified. The
    /// whole is not stored: whoever gets it decides whether it is worth that.
    pub fn write(&self, piece: &Upload) -> Result<(u64, Option<Bytes>), StoreError> {
        let path = self.dir.join(format!("{}.{PARTIAL_SUFFIX}", piece.id));
        let append = || {
            let mut file = std::fs::OpenOptions::new()
                .create(true)
                .append(true)
                .mode(0o600)
                .open(&path)?;
            if piece.offset == 0 {
                file.set_len(0)?;
            }
            let received = file.metadata()?.len();
            if received == piece.offset {
                file.write_all(&piece.data)?;
            }
            Ok::<_, io::Error>(received)
        };
        let _nobody_else = lock(&self.taking);
        self.admit(&path, piece)?;
        let received = append().map_err(disk("write", &path))?;
        if received != piece.offset {
            return Err(StoreError::OutOfOrder {
                offset: piece.offset,
                received,
            });
        }
        let received = received + piece.data.len() as u64;
        if received < piece.total {
            return Ok((received, None));
        }
        let bytes = Bytes::from(std::fs::read(&path).map_err(disk("read", &path))?);
        std::fs::remove_file(&path).map_err(disk("remove", &path))?;
        match ComponentId::of(&bytes) {
            actual if actual == piece.id => Ok((received, Some(bytes))),
            actual => Err(StoreError::Digest {
                expected: piece.id,
                actual,
            }),
        }
    }

    /// Makes room for a piece of an upload: abandoned ones go.
    fn admit(&self, path: &Path, piece: &Upload) -> Result<(), StoreError> {
        let mut others = self.uploads()?;
        others.retain(|upload| upload.path != path);
        let abandoned = match others.len() >= UPLOADS_MAX {
            true => ABANDONED_IF_FULL,
            false => ABANDONED,
        };
        let mut kept = Vec::new();
        for upload in others {
            if upload.idle >= abandoned {
                std::fs::remove_file(&upload.path).map_err(disk("remove", &upload.path))?;
                tracing::info!(path = %upload.path.display(), "an upload that does not go on is given up");
            } else {
                kept.push(upload);
            }
        }
        if kept.len() >= UPLOADS_MAX {
            return Err(StoreError::TooManyUploads);
        }
        let others: u64 = kept.iter().map(|upload| upload.bytes).sum();
        let end = piece.offset.saturating_add(piece.data.len() as u64);
        NoRoom::above(
            others.saturating_add(end),
            self.uploads_bytes,
            "bytes of components that are being uploaded",
            "uploads_bytes",
            "wait until others have ended",
        )?;
        self.has_room(piece.data.len())
    }

    fn has_room(&self, bytes: usize) -> Result<(), StoreError> {
        match &self.room {
            Some(room) => Ok(room.check(bytes as u64)?),
            None => Ok(()),
        }
    }

    /// Uploads under way.
    fn uploads(&self) -> Result<Vec<UnderWay>, StoreError> {
        let mut uploads = Vec::new();
        for path in self.list()? {
            if !has_suffix(&path, PARTIAL_SUFFIX) {
                continue;
            }
            let looked = std::fs::metadata(&path).and_then(|found| {
                // One that was changed in what is the future here has just been changed.
                let idle = found.modified()?.elapsed().unwrap_or_default();
                Ok((found.len(), idle))
            });
            let (bytes, idle) = looked.map_err(disk("look at", &path))?;
            uploads.push(UnderWay { path, bytes, idle });
        }
        Ok(uploads)
    }

    /// Bytes of all components that are here.
    pub fn bytes(&self) -> Result<u64, StoreError> {
        let mut bytes: u64 = 0;
        for path in self.list()? {
            if has_suffix(&path, SUFFIX) {
                match self.vfs.size(&path) {
                    Ok(size) => bytes = bytes.saturating_add(size),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(source) => return Err(disk("look at", &path)(source)),
                }
            }
        }
        Ok(bytes)
    }

    /// Stores bytes under a name they must match; durable when it returns. Storing twice is no error.
    pub fn put(&self, expected: ComponentId, bytes: &[u8]) -> Result<(), StoreError> {
        let actual = ComponentId::of(bytes);
        if actual != expected {
            return Err(StoreError::Digest { expected, actual });
        }
        if matches!(self.read(expected), Ok(Some(_))) {
            // It may have its name from a call that did not come as far as this.
            let synced = self.vfs.sync_dir(&self.dir);
            return synced.map_err(disk("sync the directory", &self.dir));
        }
        self.has_room(bytes.len())?;
        let path = self.path(expected);
        let unique = self.drafts.fetch_add(1, Relaxed);
        Ok(replace(&self.vfs, &path, unique, &[bytes])?)
    }

    /// The bytes of a component, verified; `None` if it is not here. A damaged file counts as not here.
    pub fn read(&self, id: ComponentId) -> Result<Option<Bytes>, StoreError> {
        let path = self.path(id);
        match self.vfs.read(&path, u64::MAX) {
            Ok(bytes) if ComponentId::of(&bytes) == id => Ok(Some(bytes.into())),
            Ok(_) => {
                tracing::warn!(component = %id, path = %path.display(), "a stored component is damaged; it will be fetched again");
                Ok(None)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(disk("read", &path)(source)),
        }
    }

    /// Up to `length` bytes from `offset`, and the size of the whole; `None` if it is not here. Not verified: whoever
    /// fetches verifies the whole.
    pub fn read_range(
        &self,
        id: ComponentId,
        offset: u64,
        length: u64,
    ) -> Result<Option<(Bytes, u64)>, StoreError> {
        let path = self.path(id);
        let read = || {
            let file = self.vfs.open(&path)?;
            let total = file.len()?;
            let mut bytes = vec![0; length.min(total.saturating_sub(offset)) as usize];
            let read = file.read_at(offset, &mut bytes)?;
            bytes.truncate(read);
            Ok::<_, io::Error>((Bytes::from(bytes), total))
        };
        match read() {
            Ok(found) => Ok(Some(found)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(disk("read", &path)(source)),
        }
    }

    /// Deletes a component; that it is not here is no error.
    pub fn remove(&self, id: ComponentId) -> Result<(), StoreError> {
        let path = self.path(id);
        match self.vfs.remove(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(disk("remove", &path)(error))
            }
            _ => Ok(()),
        }
    }

    /// The components that are here, whole or damaged.
    pub fn ids(&self) -> Result<BTreeSet<ComponentId>, StoreError> {
        let paths = self.list()?.into_iter();
        Ok(paths
            .filter(|path| has_suffix(path, SUFFIX))
            .filter_map(|path| path.file_stem()?.to_str()?.parse().ok())
            .collect())
    }

    fn list(&self) -> Result<Vec<PathBuf>, StoreError> {
        let names = self.vfs.list(&self.dir).map_err(disk("list", &self.dir))?;
        Ok(names.iter().map(|name| self.dir.join(name)).collect())
    }

    fn path(&self, id: ComponentId) -> PathBuf {
        self.dir.join(format!("{id}.{SUFFIX}"))
    }
}

/// An upload that has begun.
struct UnderWay {
    path: PathBuf,
    bytes: u64,
    /// How long it has not gone on.
    idle: Duration,
}

fn has_suffix(path: &Path, suffix: &str) -> bool {
    path.extension().is_some_and(|found| found == suffix)
}

fn disk(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Disk { what, path, source }
}

#[cfg(test)]
mod tests;
