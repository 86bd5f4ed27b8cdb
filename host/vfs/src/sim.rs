//! A simulated file system for tests: everything a crash, a failing disk or a full disk may do, from a seed.
//!
//! Kept outside `cfg(test)` because other crates' tests and the cluster simulator run on it as well.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::vfs::{Vfs, VfsFile, VfsLock};

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

#[derive(Clone, Debug, Default)]
struct Disk {
    random: Random,
    next_inode: u64,
    inodes: BTreeMap<u64, Inode>,
    dirs: BTreeSet<PathBuf>,
    names: BTreeMap<PathBuf, u64>,
    durable_names: BTreeMap<PathBuf, u64>,
    pending_names: Vec<NameOp>,
    locks: BTreeSet<PathBuf>,
    calls: u64,
    syncs: u64,
    faults: BTreeMap<u64, io::ErrorKind>,
    /// Calls that find no descriptor.
    lacking: u32,
    power_cut: Option<u64>,
    capacity: Option<u64>,
    /// Counts crashes, so that files opened before one are known.
    life: u64,
}

impl Disk {
    fn enter(&mut self) -> io::Result<()> {
        self.calls += 1;
        if self.power_is_cut() {
            return Err(io::Error::other("simulated power cut"));
        }
        match self.faults.remove(&self.calls) {
            Some(kind) => Err(io::Error::new(kind, "simulated fault")),
            None => Ok(()),
        }
    }

    fn take_descriptor(&mut self) -> io::Result<()> {
        if self.lacking == 0 {
            return Ok(());
        }
        self.lacking -= 1;
        Err(io::Error::from_raw_os_error(libc::EMFILE))
    }

    fn power_is_cut(&self) -> bool {
        self.power_cut.is_some_and(|last| self.calls > last)
    }

    fn allocate(&mut self) -> u64 {
        self.next_inode += 1;
        self.next_inode
    }

    fn find(&self, path: &Path) -> io::Result<u64> {
        self.names
            .get(path)
            .copied()
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn inode(&mut self, inode: u64) -> &mut Inode {
        self.inodes.entry(inode).or_default()
    }

    fn free(&self) -> u64 {
        let used: u64 = self
            .inodes
            .values()
            .map(|inode| inode.current.len() as u64)
            .sum();
        self.capacity
            .map_or(u64::MAX, |capacity| capacity.saturating_sub(used))
    }

    fn name(&mut self, op: NameOp) {
        op.apply(&mut self.names);
        self.pending_names.push(op);
        self.forget_unnamed();
    }

    /// An inode without any name gives its space back. An open file of it then reads as empty, which suffices: the
    /// log never reads a file it has removed.
    fn forget_unnamed(&mut self) {
        let pending = self.pending_names.iter().filter_map(NameOp::inode);
        let named: BTreeSet<u64> = self
            .names
            .values()
            .chain(self.durable_names.values())
            .copied()
            .chain(pending)
            .collect();
        self.inodes.retain(|inode, _| named.contains(inode));
    }

    fn crash(&mut self, crash: Crash) {
        self.locks.clear();
        self.faults.clear();
        self.lacking = 0;
        self.power_cut = None;
        self.life += 1;
        if crash != Crash::ProcessOnly {
            self.lose_power(crash);
        }
    }

    fn lose_power(&mut self, crash: Crash) {
        let mut random = match crash {
            Crash::Subset(seed) | Crash::TearLast(seed) => Random(seed),
            Crash::LoseAll | Crash::ProcessOnly => Random(0),
        };
        for op in std::mem::take(&mut self.pending_names) {
            let kept = match crash {
                Crash::LoseAll => false,
                Crash::ProcessOnly | Crash::TearLast(_) => true,
                Crash::Subset(_) => random.below(2) == 0,
            };
            if kept {
                op.apply(&mut self.durable_names);
            }
        }
        for inode in self.inodes.values_mut() {
            let pending = std::mem::take(&mut inode.pending);
            let last = pending.len().saturating_sub(1);
            for (position, op) in pending.into_iter().enumerate() {
                match crash {
                    Crash::LoseAll => {}
                    Crash::TearLast(_) if position == last => {
                        op.apply_cut(&mut inode.durable, &mut random)
                    }
                    Crash::ProcessOnly | Crash::TearLast(_) => op.apply(&mut inode.durable),
                    Crash::Subset(_) => match random.below(3) {
                        0 => {}
                        1 => op.apply(&mut inode.durable),
                        _ => op.apply_torn(&mut inode.durable, &mut random),
                    },
                }
            }
            inode.current = inode.durable.clone();
        }
        self.names = self.durable_names.clone();
        self.forget_unnamed();
    }
}

#[derive(Clone, Debug, Default)]
struct Inode {
    current: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<FileOp>,
}

impl Inode {
    fn change(&mut self, op: FileOp) {
        op.apply(&mut self.current);
        self.pending.push(op);
    }
}

#[derive(Clone, Debug)]
enum FileOp {
    Write { offset: u64, data: Vec<u8> },
    SetLen(u64),
}

/// Disks write whole sectors, so a torn write keeps some of them; one may still be cut inside.
const SECTOR: usize = 512;

impl FileOp {
    fn apply(&self, content: &mut Vec<u8>) {
        match self {
            FileOp::Write { offset, data } => overwrite(content, *offset as usize, data),
            FileOp::SetLen(len) => content.resize(*len as usize, 0),
        }
    }

    fn apply_cut(&self, content: &mut Vec<u8>, random: &mut Random) {
        match self {
            FileOp::Write { offset, data } => {
                let kept = random.below(data.len() as u64) as usize;
                overwrite(content, *offset as usize, &data[..kept]);
            }
            FileOp::SetLen(_) => {}
        }
    }

    fn apply_torn(&self, content: &mut Vec<u8>, random: &mut Random) {
        match self {
            FileOp::Write { offset, data } => {
                for (number, sector) in data.chunks(SECTOR).enumerate() {
                    let kept = match random.below(8) {
                        0..=3 => sector.len(),
                        4 => random.below(sector.len() as u64) as usize,
                        _ => 0,
                    };
                    if kept > 0 {
                        overwrite(content, *offset as usize + number * SECTOR, &sector[..kept]);
                    }
                }
            }
            FileOp::SetLen(_) => self.apply(content),
        }
    }
}

fn overwrite(content: &mut Vec<u8>, offset: usize, data: &[u8]) {
    let end = offset + data.len();
    if content.len() < end {
        content.resize(end, 0);
    }
    content[offset..end].copy_from_slice(data);
}

#[derive(Clone, Debug)]
enum NameOp {
    Link {
        path: PathBuf,
        inode: u64,
    },
    Rename {
        from: PathBuf,
        to: PathBuf,
        inode: u64,
    },
    Unlink {
        path: PathBuf,
    },
}

impl NameOp {
    fn apply(&self, names: &mut BTreeMap<PathBuf, u64>) {
        match self {
            NameOp::Link { path, inode } => {
                names.insert(path.clone(), *inode);
            }
            NameOp::Rename { from, to, inode } => {
                names.remove(from);
                names.insert(to.clone(), *inode);
            }
            NameOp::Unlink { path } => {
                names.remove(path);
            }
        }
    }

    fn dir(&self) -> Option<&Path> {
        match self {
            NameOp::Link { path, .. } | NameOp::Unlink { path } => path.parent(),
            NameOp::Rename { to, .. } => to.parent(),
        }
    }

    fn inode(&self) -> Option<u64> {
        match self {
            NameOp::Link { inode, .. } | NameOp::Rename { inode, .. } => Some(*inode),
            NameOp::Unlink { .. } => None,
        }
    }
}

/// SplitMix64: small, and the same on every platform.
#[derive(Clone, Debug, Default)]
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit.max(1)
    }
}
