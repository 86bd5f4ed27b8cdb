//! The components a node keeps: files named by the sha256 of what they hold.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use skep_core::id::ComponentId;

const SUFFIX: &str = "wasm";
/// Of a component that has not arrived whole.
const PARTIAL_SUFFIX: &str = "part";
/// Uploads that may be under way: what abandoned ones can cost in disk space is this many components.
const UPLOADS_MAX: usize = 16;

/// A directory of components. All methods block on the disk; call them off the async threads.
///
/// A file appears whole or not at all, and is verified when it is read whole, so a torn or damaged one is noticed and
/// fetched again instead of being run.
#[derive(Clone, Debug)]
pub struct ComponentStore {
    dir: PathBuf,
}

/// One piece of a component that is uploaded in pieces, from its start to its end.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Upload {
    /// Name of the whole.
    pub id: ComponentId,
    /// Where the piece begins.
    pub offset: u64,
    /// Bytes of the whole.
    pub total: u64,
    /// The piece, in hexadecimal digits.
    #[serde(with = "crate::catalog::hex")]
    pub data: Vec<u8>,
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

impl ComponentStore {
    /// Opens the directory; creates it if it is not there. What was not finished before is removed.
    pub fn open(dir: PathBuf) -> Result<Self, StoreError> {
        std::fs::create_dir_all(&dir).map_err(disk("create the directory", &dir))?;
        let store = Self { dir };
        for path in store.list()? {
            if path
                .extension()
                .is_some_and(|suffix| suffix == PARTIAL_SUFFIX || suffix == "tmp")
            {
                std::fs::remove_file(&path).map_err(disk("remove", &path))?;
            }
        }
        Ok(store)
    }

    /// Takes one piece in; returns how many bytes have arrived, and the whole once it is complete and verified. The
    /// whole is not stored: whoever gets it decides whether it is worth that.
    pub fn write(&self, piece: &Upload) -> Result<(u64, Option<Bytes>), StoreError> {
        let path = self.dir.join(format!("{}.{PARTIAL_SUFFIX}", piece.id));
        let append = || {
            let mut file = std::fs::OpenOptions::new()
                .create(true)
                .append(true)
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
        let uploads = self
            .list()?
            .into_iter()
            .filter(|path| path.extension().is_some_and(|s| s == PARTIAL_SUFFIX));
        if !path.exists() && uploads.count() >= UPLOADS_MAX {
            return Err(StoreError::TooManyUploads);
        }
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

    /// Stores bytes under a name they must match; durable when it returns. Storing twice is no error.
    pub fn put(&self, expected: ComponentId, bytes: &[u8]) -> Result<(), StoreError> {
        let actual = ComponentId::of(bytes);
        if actual != expected {
            return Err(StoreError::Digest { expected, actual });
        }
        if matches!(self.read(expected), Ok(Some(_))) {
            return Ok(());
        }
        let path = self.path(expected);
        // Named by process and thread, so two writers of one component do not write into one file.
        let unique = format!("{}-{:?}", std::process::id(), std::thread::current().id());
        let temporary = self.dir.join(format!("{expected}.{unique}.tmp"));
        let written = File::create(&temporary).and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()
        });
        let renamed = written.and_then(|()| std::fs::rename(&temporary, &path));
        if let Err(source) = renamed {
            let _ = std::fs::remove_file(&temporary);
            return Err(StoreError::Disk {
                what: "write",
                path,
                source,
            });
        }
        File::open(&self.dir)
            .and_then(|dir| dir.sync_all())
            .map_err(disk("sync the directory", &self.dir))
    }

    /// The bytes of a component, verified; `None` if it is not here. A damaged file counts as not here.
    pub fn read(&self, id: ComponentId) -> Result<Option<Bytes>, StoreError> {
        let path = self.path(id);
        match std::fs::read(&path) {
            Ok(bytes) if ComponentId::of(&bytes) == id => Ok(Some(bytes.into())),
            Ok(_) => {
                tracing::warn!(component = %id, path = %path.display(), "a stored component is damaged; it will be fetched again");
                Ok(None)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StoreError::Disk {
                what: "read",
                path,
                source,
            }),
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
            let mut file = File::open(&path)?;
            let total = file.metadata()?.len();
            file.seek(SeekFrom::Start(offset))?;
            let mut bytes = Vec::with_capacity(length.min(total.saturating_sub(offset)) as usize);
            file.take(length).read_to_end(&mut bytes)?;
            Ok::<_, io::Error>((Bytes::from(bytes), total))
        };
        match read() {
            Ok(found) => Ok(Some(found)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StoreError::Disk {
                what: "read",
                path,
                source,
            }),
        }
    }

    /// Deletes a component; that it is not here is no error.
    pub fn remove(&self, id: ComponentId) -> Result<(), StoreError> {
        let path = self.path(id);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StoreError::Disk {
                what: "remove",
                path,
                source: error,
            }),
            _ => Ok(()),
        }
    }

    /// The components that are here, whole or damaged.
    pub fn ids(&self) -> Result<BTreeSet<ComponentId>, StoreError> {
        let suffix = |path: &PathBuf| path.extension().is_some_and(|suffix| suffix == SUFFIX);
        let paths = self.list()?.into_iter().filter(suffix);
        Ok(paths
            .filter_map(|path| path.file_stem()?.to_str()?.parse().ok())
            .collect())
    }

    fn list(&self) -> Result<Vec<PathBuf>, StoreError> {
        let list = || {
            std::fs::read_dir(&self.dir)?
                .map(|entry| Ok(entry?.path()))
                .collect::<io::Result<Vec<_>>>()
        };
        list().map_err(disk("list", &self.dir))
    }

    fn path(&self, id: ComponentId) -> PathBuf {
        self.dir.join(format!("{id}.{SUFFIX}"))
    }
}

fn disk(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Disk { what, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_bytes_come_back_and_others_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let store = ComponentStore::open(dir.path().join("components")).unwrap();
        let bytes = b"a component".as_slice();
        let id = ComponentId::of(bytes);
        assert_eq!(store.read(id).unwrap(), None);
        store.put(id, bytes).unwrap();
        store.put(id, bytes).unwrap();
        assert_eq!(store.read(id).unwrap().as_deref(), Some(bytes));
        let wrong = store.put(id, b"other bytes");
        assert!(matches!(wrong, Err(StoreError::Digest { expected, .. }) if expected == id));
        let files = std::fs::read_dir(dir.path().join("components"))
            .unwrap()
            .count();
        assert_eq!(files, 1, "no temporary file is left");
        assert_eq!(store.ids().unwrap(), [id].into());
        store.remove(id).unwrap();
        store.remove(id).unwrap();
        assert_eq!(store.read(id).unwrap(), None);
        assert_eq!(store.ids().unwrap(), [].into());
    }

    #[test]
    fn a_damaged_file_counts_as_absent_and_is_mended() {
        let dir = tempfile::tempdir().unwrap();
        let store = ComponentStore::open(dir.path().to_owned()).unwrap();
        let bytes = b"a component".as_slice();
        let id = ComponentId::of(bytes);
        store.put(id, bytes).unwrap();
        std::fs::write(store.path(id), b"a c").unwrap();
        assert_eq!(store.read(id).unwrap(), None);
        store.put(id, bytes).unwrap();
        assert_eq!(store.read(id).unwrap().as_deref(), Some(bytes));
    }

    #[test]
    fn pieces_add_up_in_order_only() {
        let dir = tempfile::tempdir().unwrap();
        let store = ComponentStore::open(dir.path().to_owned()).unwrap();
        let id = ComponentId::of(b"abcdef");
        let piece = |offset, data: &'static [u8]| Upload {
            id,
            offset,
            total: 6,
            data: data.to_vec(),
        };
        assert_eq!(store.write(&piece(0, b"abcd")).unwrap(), (4, None));
        assert!(matches!(
            store.write(&piece(2, b"cd")),
            Err(StoreError::OutOfOrder {
                offset: 2,
                received: 4
            })
        ));
        assert_eq!(
            store.write(&piece(4, b"ef")).unwrap(),
            (6, Some(Bytes::from_static(b"abcdef")))
        );
        assert_eq!(
            store.write(&piece(0, b"zzz")).unwrap(),
            (3, None),
            "an upload can begin again"
        );
        assert!(matches!(
            store.write(&piece(3, b"zzz")),
            Err(StoreError::Digest { .. })
        ));
        assert_eq!(store.list().unwrap(), Vec::<PathBuf>::new());
        store.write(&piece(0, b"abcd")).unwrap();
        let again = ComponentStore::open(dir.path().to_owned()).unwrap();
        assert_eq!(
            again.list().unwrap(),
            Vec::<PathBuf>::new(),
            "what was not finished is removed"
        );
    }

    #[test]
    fn abandoned_uploads_are_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let store = ComponentStore::open(dir.path().to_owned()).unwrap();
        let write = |n: usize| {
            let id = ComponentId::of(&n.to_le_bytes());
            store.write(&Upload {
                id,
                offset: 0,
                total: 6,
                data: b"a".to_vec(),
            })
        };
        for n in 0..UPLOADS_MAX {
            write(n).unwrap();
        }
        assert!(matches!(
            write(UPLOADS_MAX),
            Err(StoreError::TooManyUploads)
        ));
        write(0).unwrap();
    }

    #[test]
    fn ranges_add_up_to_the_whole() {
        let dir = tempfile::tempdir().unwrap();
        let store = ComponentStore::open(dir.path().to_owned()).unwrap();
        let bytes: Vec<u8> = (0..=255).collect();
        let id = ComponentId::of(&bytes);
        store.put(id, &bytes).unwrap();
        let mut whole = Vec::new();
        while let Some((chunk, total)) = store.read_range(id, whole.len() as u64, 100).unwrap() {
            assert_eq!(total, 256);
            if chunk.is_empty() {
                break;
            }
            whole.extend_from_slice(&chunk);
        }
        assert_eq!(whole, bytes);
        assert_eq!(store.read_range(ComponentId::of(b"x"), 0, 1).unwrap(), None);
    }
}
