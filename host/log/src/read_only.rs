//! A data directory that is only looked at.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use skep_types::shared::lock;
use skep_vfs::{DiskVfs, Vfs, VfsFile, VfsLock, read_at};

/// The real file system, without a way to change it.
///
/// Files are opened for reading. What a log does on its way up is kept in memory and lost with this value: the new
/// segment it makes, the names it removes. Bytes that are written where the same bytes are already (recovery settles
/// the tail of a log so) are taken for written; any other write to a file of the disk is refused.
///
/// [`Vfs::lock`] takes the real lock, if its file is there, so that nobody looks at a directory in use.
#[derive(Debug, Default)]
pub struct ReadOnlyVfs {
    changes: Mutex<BTreeMap<PathBuf, Change>>,
}

#[derive(Clone, Debug)]
enum Change {
    Made(Memory),
    Removed,
}

/// A file that exists here only.
#[derive(Clone, Debug, Default)]
struct Memory(Arc<Mutex<Vec<u8>>>);

/// A file of the disk.
#[derive(Debug)]
struct Seen(File);

impl ReadOnlyVfs {
    /// Nothing changed yet.
    pub fn new() -> Self {
        Self::default()
    }

    fn change(&self, path: &Path) -> Option<Change> {
        lock(&self.changes).get(path).cloned()
    }
}

fn refused(what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::ReadOnlyFilesystem,
        format!("{what}, but the directory is only looked at"),
    )
}

fn missing() -> io::Error {
    io::ErrorKind::NotFound.into()
}

impl Vfs for ReadOnlyVfs {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        if dir.is_dir() { Ok(()) } else { Err(missing()) }
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn VfsFile>> {
        let exists = match self.change(path) {
            Some(Change::Made(_)) => true,
            Some(Change::Removed) => false,
            None => path.exists(),
        };
        if exists {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let file = Memory::default();
        lock(&self.changes).insert(path.to_owned(), Change::Made(file.clone()));
        Ok(Box::new(file))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn VfsFile>> {
        match self.change(path) {
            Some(Change::Made(file)) => Ok(Box::new(file)),
            Some(Change::Removed) => Err(missing()),
            None => Ok(Box::new(Seen(File::open(path)?))),
        }
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        match self.change(from) {
            Some(Change::Made(file)) => {
                let mut changes = lock(&self.changes);
                changes.insert(from.to_owned(), Change::Removed);
                changes.insert(to.to_owned(), Change::Made(file));
                Ok(())
            }
            Some(Change::Removed) => Err(missing()),
            None => Err(refused("a file was to be renamed")),
        }
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        match self.change(path) {
            Some(Change::Removed) => return Err(missing()),
            Some(Change::Made(_)) => {}
            None if path.exists() => {}
            None => return Err(missing()),
        }
        lock(&self.changes).insert(path.to_owned(), Change::Removed);
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut names = DiskVfs.list(dir)?;
        for (path, change) in lock(&self.changes).iter() {
            let name = path.file_name().and_then(|name| name.to_str());
            let Some(name) = name.filter(|_| path.parent() == Some(dir)) else {
                continue;
            };
            names.retain(|other| other != name);
            if matches!(change, Change::Made(_)) {
                names.push(name.to_owned());
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn lock(&self, path: &Path) -> io::Result<VfsLock> {
        let file = match File::open(path) {
            Ok(file) => file,
            // A copy of a directory may come without it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(VfsLock::new(())),
            Err(error) => return Err(error),
        };
        match file.try_lock() {
            Ok(()) => Ok(VfsLock::new(file)),
            Err(std::fs::TryLockError::WouldBlock) => Err(io::ErrorKind::WouldBlock.into()),
            Err(std::fs::TryLockError::Error(error)) => Err(error),
        }
    }
}

impl VfsFile for Memory {
    fn len(&self) -> io::Result<u64> {
        Ok(lock(&self.0).len() as u64)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let bytes = lock(&self.0);
        let from = usize::try_from(offset).map_or(bytes.len(), |from| from.min(bytes.len()));
        let len = buf.len().min(bytes.len() - from);
        buf[..len].copy_from_slice(&bytes[from..from + len]);
        Ok(len)
    }

    fn write_all_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut bytes = lock(&self.0);
        let from = usize::try_from(offset).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let end = from
            .checked_add(data.len())
            .ok_or(io::ErrorKind::FileTooLarge)?;
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        bytes[from..end].copy_from_slice(data);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let len = usize::try_from(len).map_err(|_| io::ErrorKind::FileTooLarge)?;
        lock(&self.0).resize(len, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }
}

impl VfsFile for Seen {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        read_at(&self.0, offset, buf)
    }

    fn write_all_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut there = vec![0; data.len()];
        if self.read_at(offset, &mut there)? == data.len() && there == data {
            return Ok(());
        }
        Err(refused("a file was to be written"))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        if self.len()? == len {
            return Ok(());
        }
        Err(refused("a file was to be cut"))
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::{Entry, GroupKey, LogError, LogOptions, Record, Store};

    /// Every file of a directory with its content and the time of its last change.
    fn everything(dir: &Path) -> BTreeMap<PathBuf, (Vec<u8>, std::time::SystemTime)> {
        let mut files = BTreeMap::new();
        let mut dirs = vec![dir.to_owned()];
        while let Some(dir) = dirs.pop() {
            for entry in std::fs::read_dir(&dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    dirs.push(path);
                } else {
                    let changed = path.metadata().unwrap().modified().unwrap();
                    files.insert(path.clone(), (std::fs::read(&path).unwrap(), changed));
                }
            }
        }
        files
    }

    // P-36
    #[test]
    fn a_log_is_recovered_and_no_byte_of_it_is_changed() {
        let dir = tempfile::tempdir().unwrap();
        let real: Arc<dyn Vfs> = Arc::new(DiskVfs);
        let key = GroupKey {
            group: 3,
            incarnation: 1,
        };
        let record = Record {
            replica: 1,
            entries: vec![Entry {
                index: 1,
                term: 1,
                data: Bytes::from_static(b"data"),
                ..Entry::default()
            }],
            ..Record::new(key)
        };
        let store = Store::open(&real, dir.path(), "c", 1).unwrap();
        let (mut log, _) = store.open_log(&real, LogOptions::default()).unwrap();
        log.append(&record).unwrap();
        log.sync().unwrap();
        let look = || -> Arc<dyn Vfs> { Arc::new(ReadOnlyVfs::new()) };
        let busy = Store::open(&look(), dir.path(), "c", 1).map(drop);
        assert!(matches!(busy, Err(LogError::Locked { .. })), "{busy:?}");
        // Not closed: as after a crash, so that recovery has a tail to settle.
        drop((log, store));
        std::fs::write(dir.path().join("snap.tmp"), b"left").unwrap();

        let before = everything(dir.path());
        for _ in 0..2 {
            let look = look();
            let store = Store::open(&look, dir.path(), "c", 1).unwrap();
            let (_, recovered) = store.open_log(&look, LogOptions::default()).unwrap();
            assert_eq!(recovered.groups.len(), 1);
            assert_eq!(recovered.groups[0].key, key);
            assert_eq!(recovered.groups[0].entries.len(), 1);
        }
        assert!(everything(dir.path()) == before, "something was changed");
    }

    #[test]
    fn a_file_of_the_disk_takes_only_the_bytes_it_has() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        std::fs::write(&path, b"abc").unwrap();
        let vfs = ReadOnlyVfs::new();
        let file = vfs.open(&path).unwrap();
        file.write_all_at(1, b"bc").unwrap();
        let refused = file.write_all_at(1, b"bd").unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ReadOnlyFilesystem);
        assert!(file.write_all_at(2, b"cd").is_err() && file.set_len(1).is_err());
        vfs.remove(&path).unwrap();
        assert!(vfs.open(&path).is_err() && vfs.list(dir.path()).unwrap().is_empty());
        vfs.create(&path).unwrap().write_all_at(2, b"x").unwrap();
        assert_eq!(vfs.read(&path, 100).unwrap(), b"\0\0x");
        assert_eq!(vfs.list(dir.path()).unwrap(), ["a"]);
        assert_eq!(std::fs::read(&path).unwrap(), b"abc");
    }
}
