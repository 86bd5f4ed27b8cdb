//! Snapshot files: written beside their final name, made durable, then renamed.
//!
//! A [`SnapshotMark`] goes to the log only after `finish`, so a mark in the log always has its file.

mod file;
mod writer;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use bytes::Bytes;
use skep_types::form::Form;
use skep_vfs::{Draft, Vfs};

pub(crate) use self::file::buffer;
pub use self::file::{MAX_STATE, SnapshotFile};
pub use self::writer::{SealedSnapshot, SnapshotReceiver};
use crate::error::LogError;
use crate::record::{GroupKey, LogPosition, SnapshotMark};

/// What a snapshot is of. The guest's bytes come beside it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SnapshotMeta {
    /// Of which group.
    pub key: GroupKey,
    /// The last entry it contains.
    pub position: LogPosition,
    /// The host's own section, opaque here: configuration, sessions. At most 256 MiB.
    pub state: Bytes,
    /// What the guest's bytes are: what it saved, or its memory.
    pub form: Form,
    /// The version of the guest's own format.
    pub schema: u32,
    /// The SHA-256 of the component that saved it.
    pub component: [u8; 32],
}

/// Which snapshot a file is, by its name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SnapshotName {
    /// Of which group.
    pub key: GroupKey,
    /// The last entry it contains.
    pub position: LogPosition,
}

/// The snapshot files of a node, all in one directory.
///
/// *Concurrency*: may be shared; several snapshots may be written and received at once. *Failure*: an error leaves the
/// finished files as they were, and unfinished ones to be removed by the next [`SnapshotStore::open_dir`].
#[derive(Clone, Debug)]
pub struct SnapshotStore {
    vfs: Arc<dyn Vfs>,
    dir: PathBuf,
    /// Tells apart the temporary files of one process.
    temporaries: Arc<AtomicU64>,
}

impl SnapshotStore {
    /// Opens the directory, or makes it, and removes what was left unfinished. The caller holds the store's lock.
    ///
    /// # Errors
    /// [`LogError::Io`].
    pub fn open_dir(vfs: Arc<dyn Vfs>, dir: &Path) -> Result<SnapshotStore, LogError> {
        vfs.create_dir_all(dir)
            .map_err(LogError::io("create", dir))?;
        for name in vfs.list(dir).map_err(LogError::io("list", dir))? {
            if name.ends_with(Draft::SUFFIX) {
                let path = dir.join(name);
                vfs.remove(&path).map_err(LogError::io("remove", &path))?;
            }
        }
        Ok(SnapshotStore {
            vfs,
            dir: dir.to_path_buf(),
            temporaries: Arc::default(),
        })
    }

    /// A snapshot of these bytes of a guest. Nothing is on the disk before [`SealedSnapshot::place`].
    ///
    /// # Errors
    /// [`LogError::SnapshotTooLarge`] if the host's section is.
    pub fn seal(&self, meta: SnapshotMeta, guest: Bytes) -> Result<SealedSnapshot, LogError> {
        let size = meta.state.len() as u64;
        if size > MAX_STATE {
            return Err(LogError::SnapshotTooLarge {
                file: self.path(meta.key, meta.position),
                size,
                limit: MAX_STATE,
            });
        }
        Ok(SealedSnapshot::new(self.clone(), meta, guest))
    }

    /// Opens a finished snapshot and verifies every byte of it against the mark.
    ///
    /// # Errors
    /// [`LogError::BadSnapshot`] if it is damaged or another one; [`LogError::Io`] if it cannot be read.
    pub fn open(&self, key: GroupKey, mark: &SnapshotMark) -> Result<SnapshotFile, LogError> {
        let file = self.verify(&self.path(key, mark.position))?;
        file.check_is(key, mark)?;
        Ok(file)
    }

    /// Reads a finished snapshot and verifies every byte of it against the mark, in one pass: what it is of, and the guest's
    /// bytes.
    ///
    /// # Errors
    /// As [`SnapshotStore::open`].
    pub fn read(
        &self,
        key: GroupKey,
        mark: &SnapshotMark,
    ) -> Result<(SnapshotMeta, Bytes), LogError> {
        let path = self.path(key, mark.position);
        let file = self.vfs.open(&path).map_err(LogError::io("read", &path))?;
        let size = file.len().map_err(LogError::io("read", &path))?;
        // Before there is memory for it.
        if size != mark.size {
            let reason = format!("it has {size} bytes and should have {}", mark.size);
            return Err(LogError::bad_snapshot(&path, reason));
        }
        let (file, guest) = SnapshotFile::read(&path, file.into())?;
        file.check_is(key, mark)?;
        Ok((file.meta().clone(), guest))
    }

    /// Opens a snapshot file and verifies it against the digest in it.
    ///
    /// # Errors
    /// As [`SnapshotStore::open`].
    pub fn verify(&self, path: &Path) -> Result<SnapshotFile, LogError> {
        let file = self.vfs.open(path).map_err(LogError::io("read", path))?;
        SnapshotFile::verify(path, file.into())
    }

    /// Begins to take a snapshot from the network: `mark` is what the sender says it is, `limit` the most bytes that
    /// may be stored for it.
    ///
    /// # Errors
    /// [`LogError::SnapshotTooLarge`] before anything is stored; [`LogError::Io`].
    pub fn receive(
        &self,
        key: GroupKey,
        mark: SnapshotMark,
        limit: u64,
    ) -> Result<SnapshotReceiver, LogError> {
        if mark.size > limit {
            return Err(LogError::SnapshotTooLarge {
                file: self.path(key, mark.position),
                size: mark.size,
                limit,
            });
        }
        let draft = self.draft(key, mark.position)?;
        Ok(SnapshotReceiver::new(draft, key, mark))
    }

    /// The finished snapshots, in the order of their file names.
    ///
    /// # Errors
    /// [`LogError::Io`].
    pub fn list(&self) -> Result<Vec<SnapshotName>, LogError> {
        let names = self
            .vfs
            .list(&self.dir)
            .map_err(LogError::io("list", &self.dir))?;
        Ok(names
            .iter()
            .filter_map(|name| SnapshotName::parse(name))
            .collect())
    }

    /// Removes a snapshot. One that is open or being sent stays readable to its holders. A missing one is no error.
    ///
    /// # Errors
    /// [`LogError::Io`].
    pub fn remove(&self, key: GroupKey, position: LogPosition) -> Result<(), LogError> {
        let path = self.path(key, position);
        match self.vfs.remove(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(LogError::io("remove", &path)(error))
            }
            _ => Ok(()),
        }
    }

    /// Removes every finished snapshot but those to `keep`, and says how many. For the start of a node, when the log has
    /// said which snapshots count.
    ///
    /// # Errors
    /// [`LogError::Io`].
    pub fn sweep_orphans(&self, keep: &[SnapshotName]) -> Result<usize, LogError> {
        let mut removed = 0;
        for name in self.list()? {
            if !keep.contains(&name) {
                self.remove(name.key, name.position)?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    /// Where the file of a snapshot is, or would be.
    pub fn path(&self, key: GroupKey, position: LogPosition) -> PathBuf {
        self.dir.join(SnapshotName { key, position }.to_string())
    }

    fn draft(&self, key: GroupKey, position: LogPosition) -> Result<Draft, LogError> {
        let number = self.temporaries.fetch_add(1, Relaxed);
        Ok(Draft::create(&self.vfs, self.path(key, position), number)?)
    }
}

impl SnapshotName {
    fn parse(name: &str) -> Option<SnapshotName> {
        let mut fields = name
            .strip_suffix(".snap")?
            .split('-')
            .map(|field| field.parse().ok());
        let mut next = || fields.next().flatten();
        let parsed = SnapshotName {
            key: GroupKey {
                group: next()?,
                incarnation: next()?,
            },
            position: LogPosition {
                index: next()?,
                term: next()?,
            },
        };
        (parsed.to_string() == name).then_some(parsed)
    }
}

impl std::fmt::Display for SnapshotName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (key, position) = (self.key, self.position);
        write!(
            f,
            "{}-{}-{}-{}.snap",
            key.group, key.incarnation, position.index, position.term
        )
    }
}
