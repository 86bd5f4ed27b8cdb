//! The trait, and the real file system.

use std::any::Any;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::Path;

use crate::patience::patiently;

/// The file system operations that all files of a node are built on.
///
/// *Concurrency*: every method may be called from any thread.
///
/// *Durability*: a written byte survives a power failure once [`VfsFile::sync_data`] on that file has returned `Ok`;
/// until then any part of any write may survive, in any order. A created, renamed or removed name survives once
/// [`Vfs::sync_dir`] on its directory has returned `Ok`; a rename is atomic. Directories made by
/// [`Vfs::create_dir_all`] are durable when it returns. After a failed `sync_data` nothing written since the last
/// successful one may be relied on, even if a later call succeeds.
///
/// *Failure*: a failed call may have had part of its effect.
pub trait Vfs: Send + Sync + fmt::Debug {
    /// Makes `dir` and its missing parents, durably. An existing directory is no error.
    fn create_dir_all(&self, dir: &Path) -> io::Result<()>;
    /// Makes a new empty file, open for reading and writing; `AlreadyExists` if the name is taken.
    fn create(&self, path: &Path) -> io::Result<Box<dyn VfsFile>>;
    /// Opens an existing file for reading and writing.
    fn open(&self, path: &Path) -> io::Result<Box<dyn VfsFile>>;
    /// Gives a file a new name, replacing what had it. Open files stay usable.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a name. Open files of it stay usable.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// The names of the files (not directories) in `dir` that are valid Unicode, sorted.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// Makes the names in `dir` durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Takes an exclusive lock on a file, making it if need be; `WouldBlock` if somebody holds it. The lock ends when
    /// the value is dropped or the process dies.
    fn lock(&self, path: &Path) -> io::Result<VfsLock>;
    /// The length of a file in bytes.
    fn size(&self, path: &Path) -> io::Result<u64> {
        self.open(path)?.len()
    }
    /// The whole content of a small file, refused with `InvalidData` above `limit` bytes.
    fn read(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
        let file = self.open(path)?;
        let len = file.len()?;
        if len > limit {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("the file has {len} bytes, expected at most {limit}"),
            ));
        }
        let mut content = vec![0; len as usize];
        let read = file.read_at(0, &mut content)?;
        content.truncate(read);
        Ok(content)
    }
}

/// An open file. Reads and writes name their offset, so there is no cursor to share.
pub trait VfsFile: Send + Sync + fmt::Debug {
    /// The length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Whether the file has no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Reads until `buf` is full or the file ends, and says how many bytes that were.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize>;
    /// Writes all of `data`, growing the file as needed.
    fn write_all_at(&self, offset: u64, data: &[u8]) -> io::Result<()>;
    /// Cuts the file, or grows it with zeros.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Makes everything written to the file so far durable, and its length with it.
    fn sync_data(&self) -> io::Result<()>;
    /// Writes real zeros over `len` bytes, so that a later write there changes no file metadata.
    fn zero_fill(&self, offset: u64, len: u64) -> io::Result<()> {
        let mut at = offset;
        let end = offset + len;
        while at < end {
            let step = (end - at).min(ZEROS.len() as u64);
            self.write_all_at(at, &ZEROS[..step as usize])?;
            at += step;
        }
        Ok(())
    }
}

/// One system call's worth of zeros; large enough that the call itself costs little.
static ZEROS: [u8; 256 << 10] = [0; 256 << 10];

/// Holds a lock taken with [`Vfs::lock`] until it is dropped.
pub struct VfsLock {
    _guard: Box<dyn Any + Send + Sync>,
}

impl VfsLock {
    /// Wraps whatever value releases the lock when it is dropped.
    pub fn new(guard: impl Any + Send + Sync) -> VfsLock {
        VfsLock {
            _guard: Box::new(guard),
        }
    }
}

impl fmt::Debug for VfsLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("VfsLock")
    }
}

/// The real file system: `pread`, `pwrite`, `fdatasync` and `flock`. Files are readable by their owner only.
#[derive(Clone, Copy, Debug, Default)]
pub struct DiskVfs;

impl Vfs for DiskVfs {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        if dir.as_os_str().is_empty() || dir.is_dir() {
            return Ok(());
        }
        let parent = dir
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        self.create_dir_all(parent)?;
        match fs::DirBuilder::new().mode(0o700).create(dir) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => {}
            other => other?,
        }
        self.sync_dir(parent)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn VfsFile>> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)?;
        Ok(Box::new(DiskFile(file)))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn VfsFile>> {
        Ok(Box::new(DiskFile(
            OpenOptions::new().read(true).write(true).open(path)?,
        )))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            if !entry.file_type()?.is_dir()
                && let Ok(name) = entry.file_name().into_string()
            {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    // Without a descriptor, of which there may be none.
    fn size(&self, path: &Path) -> io::Result<u64> {
        Ok(fs::metadata(path)?.len())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        // The log stops after a failed sync; that there is no descriptor to sync through is none.
        patiently(|| File::open(dir))?.sync_all()
    }

    fn lock(&self, path: &Path) -> io::Result<VfsLock> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(VfsLock::new(file)),
            Err(fs::TryLockError::WouldBlock) => Err(io::ErrorKind::WouldBlock.into()),
            Err(fs::TryLockError::Error(error)) => Err(error),
        }
    }
}

/// Reads until `buf` is full or the file ends, and says how many bytes that were.
pub fn read_at(file: &File, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < buf.len() {
        match file.read_at(&mut buf[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(read) => done += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

#[derive(Debug)]
struct DiskFile(File);

impl VfsFile for DiskFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        read_at(&self.0, offset, buf)
    }

    fn write_all_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_all_at(data, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}
