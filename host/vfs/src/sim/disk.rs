//! What a simulated disk holds: now, and after a crash.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use super::Crash;

#[derive(Clone, Debug, Default)]
pub(super) struct Disk {
    pub(super) random: Random,
    pub(super) next_inode: u64,
    pub(super) inodes: BTreeMap<u64, Inode>,
    pub(super) dirs: BTreeSet<PathBuf>,
    pub(super) names: BTreeMap<PathBuf, u64>,
    pub(super) durable_names: BTreeMap<PathBuf, u64>,
    pub(super) pending_names: Vec<NameOp>,
    pub(super) locks: BTreeSet<PathBuf>,
    pub(super) calls: u64,
    pub(super) syncs: u64,
    pub(super) faults: BTreeMap<u64, io::ErrorKind>,
    /// Calls that find no descriptor.
    pub(super) lacking: u32,
    pub(super) power_cut: Option<u64>,
    pub(super) capacity: Option<u64>,
    /// Counts crashes, so that files opened before one are known.
    pub(super) life: u64,
}

impl Disk {
    pub(super) fn enter(&mut self) -> io::Result<()> {
        self.calls += 1;
        if self.power_is_cut() {
            return Err(io::Error::other("simulated power cut"));
        }
        match self.faults.remove(&self.calls) {
            Some(kind) => Err(io::Error::new(kind, "simulated fault")),
            None => Ok(()),
        }
    }

    pub(super) fn take_descriptor(&mut self) -> io::Result<()> {
        if self.lacking == 0 {
            return Ok(());
        }
        self.lacking -= 1;
        Err(io::Error::from_raw_os_error(libc::EMFILE))
    }

    pub(super) fn power_is_cut(&self) -> bool {
        self.power_cut.is_some_and(|last| self.calls > last)
    }

    pub(super) fn allocate(&mut self) -> u64 {
        self.next_inode += 1;
        self.next_inode
    }

    pub(super) fn find(&self, path: &Path) -> io::Result<u64> {
        self.names
            .get(path)
            .copied()
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    pub(super) fn inode(&mut self, inode: u64) -> &mut Inode {
        self.inodes.entry(inode).or_default()
    }

    pub(super) fn free(&self) -> u64 {
        let used: u64 = self
            .inodes
            .values()
            .map(|inode| inode.current.len() as u64)
            .sum();
        self.capacity
            .map_or(u64::MAX, |capacity| capacity.saturating_sub(used))
    }

    pub(super) fn name(&mut self, op: NameOp) {
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

    pub(super) fn crash(&mut self, crash: Crash) {
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
pub(super) struct Inode {
    pub(super) current: Vec<u8>,
    pub(super) durable: Vec<u8>,
    pub(super) pending: Vec<FileOp>,
}

impl Inode {
    pub(super) fn change(&mut self, op: FileOp) {
        op.apply(&mut self.current);
        self.pending.push(op);
    }
}

#[derive(Clone, Debug)]
pub(super) enum FileOp {
    Write { offset: u64, data: Vec<u8> },
    SetLen(u64),
}

/// Disks write whole sectors, so a torn write keeps some of them; one may still be cut inside.
const SECTOR: usize = 512;

impl FileOp {
    pub(super) fn apply(&self, content: &mut Vec<u8>) {
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
pub(super) enum NameOp {
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
    pub(super) fn apply(&self, names: &mut BTreeMap<PathBuf, u64>) {
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

    pub(super) fn dir(&self) -> Option<&Path> {
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
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit.max(1)
    }
}
