//! A simulated file system for tests: everything a crash, a failing disk or a full disk may do, from a seed.
//!
//! Kept outside `cfg(test)` because other crates' tests and the cluster simulator run on it as well.

mod disk;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::vfs::{Vfs, VfsFile, VfsLock};
use disk::{Disk, FileOp, Inode, NameOp, Random};

/// An in-memory [`Vfs`] that keeps unsynced writes and names apart from durable ones.
///
/// Clones share one disk; [`SimVfs::fork`] copies it. The same calls with the same seed give the same bytes.
#[derive(Clone, Debug)]
pub struct SimVfs {
    disk: Arc<Mutex<Disk>>,
}

/// What a crash does with the writes and names that were not synced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Crash {
    /// All are lost.
    LoseAll,
    /// Only the process dies: readers still see everything, and it is still not durable.
    ProcessOnly,
    /// Each is kept, lost or torn (some of its 512-byte sectors, one of them cut) as the seed decides.
    Subset(u64),
    /// All are kept but the last write, which is cut after a number of bytes the seed decides.
    TearLast(u64),
}

impl SimVfs {
    /// An empty disk. The seed decides how much of a failing write still happens.
    pub fn new(seed: u64) -> SimVfs {
        SimVfs {
            disk: Arc::new(Mutex::new(Disk {
                random: Random(seed),
                ..Disk::default()
            })),
        }
    }

    /// A deep copy of the disk as it is now, unsynced writes included; open files stay with the original.
    pub fn fork(&self) -> SimVfs {
        SimVfs {
            disk: Arc::new(Mutex::new(self.disk().clone())),
        }
    }

    /// How many calls were made so far, failed ones included.
    pub fn calls(&self) -> u64 {
        self.disk().calls
    }

    /// How many file syncs succeeded so far.
    pub fn syncs(&self) -> u64 {
        self.disk().syncs
    }

    /// Lets the call with this number (the first is 1) fail with an error of `kind`. A failing write still writes a
    /// part; a failing sync leaves the unsynced writes readable but for ever unsyncable, as Linux does.
    pub fn fail_call(&self, number: u64, kind: io::ErrorKind) {
        self.disk().faults.insert(number, kind);
    }

    /// Lets every call after this number fail without effect, as if the power were cut there.
    pub fn cut_power_after(&self, number: u64) {
        self.disk().power_cut = Some(number);
    }

    /// Lets so many of the next calls that open or create a file fail without effect, as if the process had no descriptor left.
    pub fn lack_descriptors(&self, calls: u32) {
        self.disk().lacking = calls;
    }

    /// Limits the sum of all file lengths; a write beyond it fails with `StorageFull` after the part that fits.
    pub fn limit_capacity(&self, bytes: Option<u64>) {
        self.disk().capacity = bytes;
    }

    /// Ends the power cut or the process: unsynced effects are dealt with as `crash` says, locks are released, open
    /// files become unusable, and pending faults are forgotten.
    pub fn crash(&self, crash: Crash) {
        self.disk().crash(crash);
    }

    /// The content of a file as a reader sees it now.
    pub fn content(&self, path: &Path) -> Option<Vec<u8>> {
        let disk = self.disk();
        let inode = disk.names.get(path)?;
        Some(disk.inodes[inode].current.clone())
    }

    /// Replaces a file's content, durably: for planting damage.
    pub fn plant(&self, path: &Path, content: Vec<u8>) {
        let mut disk = self.disk();
        let inode = disk.allocate();
        disk.inodes.insert(
            inode,
            Inode {
                current: content.clone(),
                durable: content,
                pending: Vec::new(),
            },
        );
        disk.names.insert(path.to_path_buf(), inode);
        disk.durable_names.insert(path.to_path_buf(), inode);
    }

    /// All file names, sorted.
    pub fn files(&self) -> Vec<PathBuf> {
        self.disk().names.keys().cloned().collect()
    }

    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.disk
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Vfs for SimVfs {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        let mut disk = self.disk();
        disk.enter()?;
        for ancestor in dir.ancestors() {
            disk.dirs.insert(ancestor.to_path_buf());
        }
        Ok(())
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn VfsFile>> {
        let mut disk = self.disk();
        disk.enter()?;
        disk.take_descriptor()?;
        if disk.names.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        if path.parent().is_some_and(|dir| !disk.dirs.contains(dir)) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let inode = disk.allocate();
        disk.inodes.insert(inode, Inode::default());
        disk.name(NameOp::Link {
            path: path.to_path_buf(),
            inode,
        });
        Ok(self.handle(&disk, inode))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn VfsFile>> {
        let mut disk = self.disk();
        disk.enter()?;
        disk.take_descriptor()?;
        let inode = disk.find(path)?;
        Ok(self.handle(&disk, inode))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut disk = self.disk();
        disk.enter()?;
        let inode = disk.find(from)?;
        disk.name(NameOp::Rename {
            from: from.to_path_buf(),
            to: to.to_path_buf(),
            inode,
        });
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut disk = self.disk();
        disk.enter()?;
        disk.find(path)?;
        disk.name(NameOp::Unlink {
            path: path.to_path_buf(),
        });
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut disk = self.disk();
        disk.enter()?;
        if !disk.dirs.contains(dir) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let names = disk.names.keys().filter(|path| path.parent() == Some(dir));
        Ok(names
            .filter_map(|path| Some(path.file_name()?.to_str()?.to_owned()))
            .collect())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut disk = self.disk();
        disk.enter()?;
        let (synced, rest) = std::mem::take(&mut disk.pending_names)
            .into_iter()
            .partition(|op| op.dir() == Some(dir));
        disk.pending_names = rest;
        let synced: Vec<NameOp> = synced;
        for op in &synced {
            op.apply(&mut disk.durable_names);
        }
        Ok(())
    }

    fn lock(&self, path: &Path) -> io::Result<VfsLock> {
        let mut disk = self.disk();
        disk.enter()?;
        if !disk.locks.insert(path.to_path_buf()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(VfsLock::new(SimLock {
            vfs: self.clone(),
            path: path.to_path_buf(),
            life: disk.life,
        }))
    }
}

impl SimVfs {
    fn handle(&self, disk: &Disk, inode: u64) -> Box<dyn VfsFile> {
        Box::new(SimFile {
            vfs: self.clone(),
            inode,
            life: disk.life,
        })
    }
}

#[derive(Debug)]
struct SimFile {
    vfs: SimVfs,
    inode: u64,
    life: u64,
}

impl SimFile {
    /// The disk, or an error if this file was opened before a crash.
    fn disk(&self) -> io::Result<MutexGuard<'_, Disk>> {
        let disk = self.vfs.disk();
        if disk.life != self.life {
            return Err(io::Error::other("the file was opened before the crash"));
        }
        Ok(disk)
    }
}

impl VfsFile for SimFile {
    fn len(&self) -> io::Result<u64> {
        let mut disk = self.disk()?;
        disk.enter()?;
        Ok(disk.inode(self.inode).current.len() as u64)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let mut disk = self.disk()?;
        disk.enter()?;
        let content = &disk.inode(self.inode).current;
        let from = content.len().min(offset as usize);
        let read = buf.len().min(content.len() - from);
        buf[..read].copy_from_slice(&content[from..from + read]);
        Ok(read)
    }

    fn write_all_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut disk = self.disk()?;
        let entered = disk.enter();
        if entered.is_err() && disk.power_is_cut() {
            return entered;
        }
        let free = disk.free();
        let growth = (offset + data.len() as u64)
            .saturating_sub(disk.inode(self.inode).current.len() as u64);
        let (part, outcome) = match entered {
            Err(error) => (disk.random.below(data.len() as u64 + 1), Err(error)),
            Ok(()) if growth > free => (
                (data.len() as u64).saturating_sub(growth - free),
                Err(io::ErrorKind::StorageFull.into()),
            ),
            Ok(()) => (data.len() as u64, Ok(())),
        };
        if part > 0 {
            disk.inode(self.inode).change(FileOp::Write {
                offset,
                data: data[..part as usize].to_vec(),
            });
        }
        outcome
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut disk = self.disk()?;
        disk.enter()?;
        let growth = len.saturating_sub(disk.inode(self.inode).current.len() as u64);
        if growth > disk.free() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        disk.inode(self.inode).change(FileOp::SetLen(len));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut disk = self.disk()?;
        let entered = disk.enter();
        if entered.is_err() && disk.power_is_cut() {
            return entered;
        }
        let inode = disk.inode(self.inode);
        let pending = std::mem::take(&mut inode.pending);
        entered?;
        for op in &pending {
            op.apply(&mut inode.durable);
        }
        disk.syncs += 1;
        Ok(())
    }
}

struct SimLock {
    vfs: SimVfs,
    path: PathBuf,
    life: u64,
}

impl Drop for SimLock {
    fn drop(&mut self) {
        let mut disk = self.vfs.disk();
        if disk.life == self.life {
            disk.locks.remove(&self.path);
        }
    }
}
