//! Room for what strangers bring: on the disk, and in the catalogue.
//!
//! A node whose disk is full can neither write its log nor start. So what can be refused is refused before that, the more the
//! less there is: first uploads, new groups and what is only kept to save time, then commands of clients. Deleting is never
//! refused. What others do to the disk, or other nodes by entries that were committed without this one, is not this node's to
//! refuse; for that it keeps a file that it gives up when it starts on a full disk.

use std::ffi::CString;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Name of the file that is given up when the disk is full.
const FILE: &str = "reserve";
/// Its bytes: enough for a new segment of the log, for what starting writes, and for what deleting writes.
const FILE_BYTES: u64 = 32 << 20;

/// The part of the reserve at which commands of clients are refused too.
const COMMANDS: u64 = 4;

/// What is asked for does not fit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NoRoom {
    /// Too much of one kind.
    #[error(
        "{what} would be {would}, and at most {most} are allowed; {next}, or raise [limits] {key} on the nodes"
    )]
    Budget {
        /// What there would be too much of.
        what: &'static str,
        /// How much there would be.
        would: u64,
        /// How much there may be.
        most: u64,
        /// The key of the configuration.
        key: &'static str,
        /// What to do.
        next: &'static str,
    },
    /// The disk is short.
    #[error(
        "the disk of this node has {free} bytes left and keeps {reserve} of them back; delete groups or `skep component collect`, make room, or lower [limits] disk_reserve_bytes"
    )]
    Disk {
        /// Bytes that are free.
        free: u64,
        /// Bytes that are kept back for this.
        reserve: u64,
    },
}

impl NoRoom {
    /// Refuses what would be more than allowed.
    pub fn above(
        would: u64,
        most: u64,
        what: &'static str,
        key: &'static str,
        next: &'static str,
    ) -> Result<(), Self> {
        if would <= most {
            return Ok(());
        }
        Err(Self::Budget {
            what,
            would,
            most,
            key,
            next,
        })
    }
}

/// The disk under a data directory.
#[derive(Debug)]
pub struct DiskRoom {
    dir: PathBuf,
    reserve: u64,
    /// What was free when it was looked at last.
    seen: AtomicU64,
}

impl DiskRoom {
    /// The disk of a directory, which need not be there yet, of which so many bytes are kept back. Gives up the reserve file if
    /// there is not even room for as much, or if nothing is to be kept back.
    ///
    /// # Errors
    /// The disk cannot be looked at, or the file not be deleted.
    pub fn open(dir: &Path, reserve: u64) -> io::Result<Self> {
        let room = Self::new(dir, reserve);
        let free = room.look()?;
        if (reserve == 0 || free < FILE_BYTES) && remove(&room.file())? {
            tracing::warn!(
                dir = %dir.display(),
                free,
                "the reserve is given up: the disk is full, or disk_reserve_bytes is 0"
            );
            room.look()?;
        }
        Ok(room)
    }

    /// The disk of a directory, that was not looked at yet.
    pub(crate) fn new(dir: &Path, reserve: u64) -> Self {
        Self {
            dir: dir.to_owned(),
            reserve,
            seen: AtomicU64::new(u64::MAX),
        }
    }

    /// Looks at the disk; how many bytes are free.
    ///
    /// # Errors
    /// It cannot be looked at.
    pub fn look(&self) -> io::Result<u64> {
        // A new node's directory is made later; the disk is that of the first one above it that is there.
        let dir = self.dir.ancestors().find(|dir| dir.exists());
        let free = free(dir.unwrap_or(Path::new("/")))?;
        self.seen.store(free, Ordering::Relaxed);
        Ok(free)
    }

    /// Looks at the disk, and makes the reserve file if it is not there and there is room for it.
    ///
    /// # Errors
    /// The disk cannot be looked at, or the file not be made.
    pub fn keep_up(&self) -> io::Result<()> {
        let free = self.look()?;
        let wanted = free >= self.reserve.saturating_add(FILE_BYTES) && self.reserve > 0;
        if wanted && !self.file().exists() {
            allocate(&self.file()).inspect_err(|_| {
                // Half of it is none. The first error is the one to report.
                let _ = fs::remove_file(self.file());
            })?;
        }
        Ok(())
    }

    /// Refuses something of so many bytes that can be done without.
    ///
    /// # Errors
    /// [`NoRoom::Disk`]. A disk that cannot be looked at refuses nothing: it will say so itself when it is written to.
    pub fn check(&self, bytes: u64) -> Result<(), NoRoom> {
        let free = self.look().unwrap_or(u64::MAX);
        refuse(
            free,
            free.saturating_sub(bytes) < self.reserve,
            self.reserve,
        )
    }

    /// Refuses a command, by what was seen last.
    ///
    /// # Errors
    /// [`NoRoom::Disk`].
    pub fn check_command(&self) -> Result<(), NoRoom> {
        let (free, reserve) = (self.seen.load(Ordering::Relaxed), self.reserve / COMMANDS);
        refuse(free, free < reserve, reserve)
    }

    fn file(&self) -> PathBuf {
        self.dir.join(FILE)
    }
}

fn refuse(free: u64, short: bool, reserve: u64) -> Result<(), NoRoom> {
    match short {
        true => Err(NoRoom::Disk { free, reserve }),
        false => Ok(()),
    }
}

fn remove(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Makes a file whose blocks are its own.
#[cfg(target_os = "linux")]
fn allocate(path: &Path) -> io::Result<()> {
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    // SAFETY: the descriptor is open for as long as the call takes, and the rest are plain numbers.
    match unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, FILE_BYTES as libc::off_t) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(not(target_os = "linux"))]
fn allocate(path: &Path) -> io::Result<()> {
    use std::io::Write;
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    let zeros = vec![0; 1 << 20];
    for _ in 0..FILE_BYTES >> 20 {
        file.write_all(&zeros)?;
    }
    file.sync_all()
}

/// Bytes that are free on the disk of a directory.
fn free(dir: &Path) -> io::Result<u64> {
    let path = CString::new(dir.as_os_str().as_bytes())?;
    // SAFETY: plain numbers, for which zero is a value.
    let mut found: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: both outlive the call; the path ends with a zero.
    match unsafe { libc::statvfs(path.as_ptr(), &raw mut found) } {
        0 => Ok((found.f_bavail as u64).saturating_mul(found.f_frsize as u64)),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_less_there_is_the_more_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let free = free(dir.path()).unwrap();
        let plenty = DiskRoom::open(dir.path(), 0).unwrap();
        plenty.check(1000).unwrap();
        plenty.check_command().unwrap();
        plenty.keep_up().unwrap();
        assert!(!dir.path().join(FILE).exists(), "nothing is kept back");
        // What others write on this disk meanwhile makes no difference of this size.
        let short = DiskRoom::open(dir.path(), free.saturating_mul(2)).unwrap();
        assert!(matches!(short.check(0), Err(NoRoom::Disk { .. })));
        short.check_command().unwrap();
        let full = DiskRoom::open(dir.path(), free.saturating_mul(8)).unwrap();
        assert!(matches!(full.check_command(), Err(NoRoom::Disk { .. })));
        full.keep_up().unwrap();
        assert!(!dir.path().join(FILE).exists(), "there is no room for it");
    }

    #[test]
    fn a_reserve_is_made_while_there_is_room() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let room = DiskRoom::open(&dir.path().join("new"), 1).unwrap();
        fs::create_dir(dir.path().join("new")).unwrap();
        room.keep_up().unwrap();
        room.keep_up().unwrap();
        let file = fs::metadata(dir.path().join("new").join(FILE)).unwrap();
        assert!(file.blocks() * 512 >= FILE_BYTES);
        assert_eq!(file.mode() & 0o777, 0o600);
        let none = DiskRoom::open(&dir.path().join("new"), 0).unwrap();
        none.keep_up().unwrap();
        assert!(
            !dir.path().join("new").join(FILE).exists(),
            "it is given up"
        );
    }
}
