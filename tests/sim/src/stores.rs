//! Stores that are set back to older copies, or used twice, and whether the others notice: real stores, logs and memories of peers
//! on simulated disks. Processes are killed, disks lose their power at each step, logs are truncated and collected meanwhile. A run is
//! some hundred such steps, drawn from one seed.
//!
//! Two things are promised. Whoever was told of an entry and has it in mind, or has noted it durably and began anew since, lets in no
//! store that lacks the entry. And a store that only ever went on is refused by nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use skep_core::past::{Durable, Past};
use skep_log::sim::Crash;
use skep_log::{
    Entry, GroupKey, Heard, Log, LogError, LogOptions, LogPosition, PeerPins, Record, SimVfs,
    SnapshotMark, Store, StoreId, Vfs, note_went_back,
};

use crate::random::Random;

const DIR: &str = "/data";
/// Directories there may ever be, those that are used twice included.
const DIRECTORIES: usize = 8;
/// Copies that are kept.
const COPIES: usize = 6;
const KEY: GroupKey = GroupKey {
    group: 1,
    incarnation: 1,
};

/// What is wrong with a cluster on purpose, to see that it is found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flaw {
    /// Each life draws the same.
    DrawsAlike,
    /// Where lives began is not compared.
    PlacesUntold,
    /// What is told to be durable is not.
    TellsUnsynced,
    /// What was heard is not noted.
    NotesNothing,
    /// A store that went back is let in by whoever has not refused it before.
    ForgetsLives,
}

impl Flaw {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::DrawsAlike,
        Self::PlacesUntold,
        Self::TellsUnsynced,
        Self::NotesNothing,
        Self::ForgetsLives,
    ];
}

/// What happened in some runs.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Tally {
    /// Runs.
    pub runs: u64,
    /// Starts of processes.
    pub starts: u64,
    /// Times that the power failed.
    pub cuts: u64,
    /// Entries that were written.
    pub entries: u64,
    /// Times that one node told another how far it is.
    pub told: u64,
    /// Directories that came back from a copy.
    pub put_back: u64,
    /// Directories that were used twice.
    pub twins: u64,
    /// Stores that were refused.
    pub refused: u64,
    /// Segments of logs that were given back.
    pub collected: u64,
}

impl Tally {
    /// Adds another one.
    pub fn add(&mut self, other: Self) {
        self.runs += other.runs;
        self.starts += other.starts;
        self.cuts += other.cuts;
        self.entries += other.entries;
        self.told += other.told;
        self.put_back += other.put_back;
        self.twins += other.twins;
        self.refused += other.refused;
        self.collected += other.collected;
    }
}

/// Runs a seed.
///
/// # Errors
/// What was promised and is not so.
pub fn run(seed: u64, flaw: Option<Flaw>) -> Result<Tally, String> {
    let mut random = Random::new(seed, 5);
    let nodes = random.range(2, 4);
    let mut world = World {
        directories: (1..=nodes).map(|node| Directory::new(node, seed)).collect(),
        copies: Vec::new(),
        unclean: BTreeSet::new(),
        drawn: 0,
        flaw,
        tally: Tally {
            runs: 1,
            ..Tally::default()
        },
        random,
    };
    for _ in 0..world.random.range(50, 600) {
        world.step()?;
    }
    Ok(world.tally)
}

struct World {
    random: Random,
    directories: Vec<Directory>,
    copies: Vec<Directory>,
    /// Nodes of which some directory was set back or is used twice.
    unclean: BTreeSet<u64>,
    /// Of entries and lives.
    drawn: u64,
    flaw: Option<Flaw>,
    tally: Tally,
}

/// A data directory, and the process that uses it.
struct Directory {
    node: u64,
    disk: SimVfs,
    /// The entries of its log, each of which is one of a kind; the first so many are durable.
    entries: Vec<u64>,
    durable: usize,
    /// The last entry that it noted durably to have been told of, by each node.
    noted: BTreeMap<u64, u64>,
    running: Option<Running>,
    /// It was refused.
    is_out: bool,
}

struct Running {
    /// No two processes have the same one.
    process: u64,
    store: Store,
    log: Log,
    pins: PeerPins,
    /// The last entry that this process was told of.
    told: BTreeMap<u64, u64>,
    heard: BTreeMap<u64, Heard>,
    /// The process of each node that was let in last. Another one before it is heard no longer, and has to come again.
    met: BTreeMap<u64, u64>,
}

/// How something ended that needs a disk.
enum Stop {
    Disk(LogError),
    Broken(String),
}

impl From<LogError> for Stop {
    fn from(error: LogError) -> Self {
        Self::Disk(error)
    }
}

impl Directory {
    fn new(node: u64, seed: u64) -> Self {
        Self {
            node,
            disk: SimVfs::new(seed ^ node),
            entries: Vec::new(),
            durable: 0,
            noted: BTreeMap::new(),
            running: None,
            is_out: false,
        }
    }

    fn copy(&self) -> Self {
        Self {
            node: self.node,
            disk: self.disk.fork(),
            entries: self.entries.clone(),
            durable: self.durable,
            noted: self.noted.clone(),
            running: None,
            is_out: self.is_out,
        }
    }

    fn vfs(&self) -> Arc<dyn Vfs> {
        Arc::new(self.disk.clone())
    }

    fn end(&mut self, crash: Crash) {
        self.running = None;
        self.disk.crash(crash);
    }

    fn start(&mut self, process: u64, nonce: u64) -> Result<(), Stop> {
        let vfs = self.vfs();
        let id = StoreId([self.node as u8; 16]);
        let store = Store::open_with(&vfs, Path::new(DIR), "bees", self.node, || Ok(id))?;
        let options = LogOptions {
            segment_bytes: 8 << 10,
            fill_step: 1 << 10,
            garbage_bytes: 4 << 10,
            light_group_bytes: 1 << 10,
            ..LogOptions::default()
        };
        let (log, recovered) = store.open_log_with(&vfs, options, || Ok(nonce))?;
        let group = recovered.groups.first();
        let last = group.map_or(0, |group| {
            let last = group.entries.last().map(|entry| entry.index);
            last.unwrap_or(group.truncated.index) as usize
        });
        if last < self.durable || last > self.entries.len() {
            let (durable, all) = (self.durable, self.entries.len());
            return Err(Stop::Broken(format!(
                "{last} entries are recovered, {durable} of {all} were durable"
            )));
        }
        self.entries.truncate(last);
        self.durable = last;
        let pins = PeerPins::open(vfs, Path::new(DIR))?;
        self.running = Some(Running {
            process,
            store,
            log,
            pins,
            told: self.noted.clone(),
            heard: BTreeMap::new(),
            met: BTreeMap::new(),
        });
        Ok(())
    }

    fn write(&mut self, drawn: u64, syncs: bool) -> Result<(), Stop> {
        let Some(running) = &mut self.running else {
            return Ok(());
        };
        let entry = Entry {
            index: self.entries.len() as u64 + 1,
            term: 1,
            data: Bytes::from(vec![drawn as u8; 300]),
            ..Entry::default()
        };
        // What is asked of the disk may be there, whatever it answers.
        self.entries.push(drawn);
        running.log.append(&Record {
            replica: 1,
            entries: vec![entry],
            ..Record::new(KEY)
        })?;
        if syncs {
            running.log.sync()?;
            self.durable = self.entries.len();
        }
        Ok(())
    }

    /// Truncates the log behind a snapshot, and gives back what nothing needs.
    fn collect(&mut self) -> Result<u64, Stop> {
        let Some(running) = self.running.as_mut().filter(|_| self.entries.len() > 1) else {
            return Ok(0);
        };
        let position = LogPosition {
            index: self.entries.len() as u64 - 1,
            term: 1,
        };
        running.log.append(&Record {
            snapshot: Some(SnapshotMark {
                position,
                size: 1,
                digest: [0; 32],
            }),
            truncated: Some(position),
            ..Record::new(KEY)
        })?;
        let collected = running.log.collect(u64::MAX)?;
        self.durable = self.entries.len();
        Ok(collected.freed_segments)
    }

    fn note(&mut self, flaw: Option<Flaw>) -> Result<(), Stop> {
        if let Some(running) = &mut self.running {
            if flaw != Some(Flaw::NotesNothing) {
                running.pins.remember(&running.heard)?;
            }
            self.noted.clone_from(&running.told);
        }
        Ok(())
    }

    fn past(&self, flaw: Option<Flaw>) -> Option<Past> {
        let running = self.running.as_ref()?;
        let mut past = running.store.account().past();
        match flaw {
            Some(Flaw::PlacesUntold) => {
                for life in &mut past.lives {
                    life.began = Durable(u64::MAX);
                }
            }
            Some(Flaw::TellsUnsynced) if self.durable < self.entries.len() => {
                past.durable.0 += 200;
            }
            _ => {}
        }
        Some(past)
    }
}

impl World {
    fn step(&mut self) -> Result<(), String> {
        let at = self.random.below(self.directories.len() as u64) as usize;
        let other = self.random.below(self.directories.len() as u64) as usize;
        if self.directories[at].is_out {
            return self.stays_out(at);
        }
        if self.directories[at].running.is_none() {
            let what = self.random.below(4);
            return match what {
                0 => self.put_back(at),
                _ => self.on_disk(at, |directory, drawn, flaw| {
                    let nonce = match flaw {
                        Some(Flaw::DrawsAlike) => 7,
                        _ => drawn,
                    };
                    directory.start(drawn, nonce).map(|()| 0)
                }),
            };
        }
        let what = self.random.below(100);
        match what {
            0..=39 => {
                let syncs = self.random.one_in(2);
                self.tally.entries += 1;
                self.on_disk(at, |directory, drawn, _| {
                    directory.write(drawn, syncs).map(|()| 0)
                })
            }
            40..=45 => self.on_disk(at, |directory, _, _| directory.collect()),
            46..=79 => self.tell(at, other),
            80..=84 => self.on_disk(at, |directory, _, flaw| directory.note(flaw).map(|()| 0)),
            85..=89 => self.copied(at),
            90 => self.twin(),
            _ => {
                let crash = self.crash();
                self.directories[at].end(crash);
                Ok(())
            }
        }
    }

    fn crash(&mut self) -> Crash {
        match self.random.below(4) {
            0 => Crash::LoseAll,
            1 => Crash::TearLast(self.random.word()),
            2 => Crash::Subset(self.random.word()),
            _ => Crash::ProcessOnly,
        }
    }

    /// Does something that needs the disk, whose power may fail at any call.
    fn on_disk(
        &mut self,
        at: usize,
        work: impl FnOnce(&mut Directory, u64, Option<Flaw>) -> Result<u64, Stop>,
    ) -> Result<(), String> {
        self.drawn += 1;
        let fails = self.random.one_in(8).then(|| self.random.below(12));
        let starts = self.directories[at].running.is_none();
        let directory = &mut self.directories[at];
        let last = fails.map(|calls| directory.disk.calls() + calls);
        if let Some(last) = last {
            directory.disk.cut_power_after(last);
        }
        match work(directory, self.drawn, self.flaw) {
            Ok(collected) => self.tally.collected += collected,
            Err(Stop::Broken(broken)) => return Err(broken),
            Err(Stop::Disk(error)) if last.is_none() => {
                return Err(format!("node {}: {error}", self.directories[at].node));
            }
            Err(Stop::Disk(_)) => {}
        }
        self.tally.starts += u64::from(starts);
        if last.is_some() {
            self.tally.cuts += 1;
            let crash = self.crash();
            self.directories[at].end(crash);
        }
        Ok(())
    }

    /// One node speaks to another. Before the first word each is shown the past of the other.
    fn tell(&mut self, from: usize, to: usize) -> Result<(), String> {
        let (speaker, listener) = (&self.directories[from], &self.directories[to]);
        if speaker.node == listener.node || listener.is_out {
            return Ok(());
        }
        if !self.meets(to, from)? || !self.meets(from, to)? {
            return Ok(());
        }
        let speaker = &self.directories[from];
        let (node, said) = (speaker.node, speaker.past(self.flaw));
        let entry = speaker.durable.checked_sub(1);
        let entry = entry.map(|last| speaker.entries[last]);
        let (Some(said), Some(running)) = (said, &mut self.directories[to].running) else {
            return Ok(());
        };
        let life = said.present().map_or(0, |life| life.number);
        let durable = said.durable;
        running.heard.insert(node, Heard { life, durable });
        if let Some(entry) = entry {
            running.told.insert(node, entry);
        }
        self.tally.told += 1;
        Ok(())
    }

    /// Whether a node lets another one in.
    fn meets(&mut self, at: usize, other: usize) -> Result<bool, String> {
        let (node, process, past) = {
            let other = &self.directories[other];
            let Some(running) = &other.running else {
                return Ok(false);
            };
            (other.node, running.process, other.past(self.flaw))
        };
        let Some(running) = &mut self.directories[at].running else {
            return Ok(false);
        };
        if running.met.get(&node) == Some(&process) {
            return Ok(true);
        }
        let past = past.expect("it runs");
        let store = StoreId([node as u8; 16]);
        let noted = match self.flaw {
            Some(Flaw::NotesNothing) => Ok(()),
            _ => running.pins.remember(&running.heard),
        };
        noted.map_err(|error| error.to_string())?;
        let met = match self.flaw {
            Some(Flaw::ForgetsLives) => running.pins.check(node, store),
            _ => running.pins.meet(node, store, &past),
        };
        match met {
            Ok(_) => {
                let told = running.told.get(&node).copied();
                running.met.insert(node, process);
                let noted = running.told.clone();
                self.directories[at].noted = noted;
                match told.filter(|told| !self.directories[other].entries.contains(told)) {
                    None => Ok(true),
                    Some(told) => Err(format!(
                        "node {node} is let in without entry {told}, of which it has told"
                    )),
                }
            }
            Err(LogError::PeerWentBack { why, .. }) if self.unclean.contains(&node) => {
                self.tally.refused += 1;
                let directory = &mut self.directories[other];
                let noted = note_went_back(&directory.vfs(), Path::new(DIR), &why.to_string());
                noted.map_err(|error| error.to_string())?;
                directory.end(Crash::LoseAll);
                directory.is_out = true;
                Ok(false)
            }
            Err(error) => Err(format!("a store that went on is refused: {error}")),
        }
    }

    /// What was refused once is not opened again.
    fn stays_out(&mut self, at: usize) -> Result<(), String> {
        let opened = self.directories[at].start(0, 0);
        match opened {
            Err(Stop::Disk(LogError::WentBack { .. })) => Ok(()),
            Err(Stop::Disk(error)) => Err(error.to_string()),
            Err(Stop::Broken(broken)) => Err(broken),
            Ok(()) => Err("a directory that was refused is opened again".to_owned()),
        }
    }

    fn copied(&mut self, at: usize) -> Result<(), String> {
        let copy = self.directories[at].copy();
        let crash = self.crash();
        copy.disk.crash(crash);
        if self.copies.len() == COPIES {
            let oldest = self.random.below(COPIES as u64) as usize;
            self.copies.remove(oldest);
        }
        self.copies.push(copy);
        Ok(())
    }

    fn put_back(&mut self, at: usize) -> Result<(), String> {
        let node = self.directories[at].node;
        let copies = self.copies.iter().filter(|copy| copy.node == node);
        let copies: Vec<_> = copies.collect();
        let Some(copy) = self.random.pick(&copies) else {
            return Ok(());
        };
        self.directories[at] = copy.copy();
        self.unclean.insert(node);
        self.tally.put_back += 1;
        Ok(())
    }

    fn twin(&mut self) -> Result<(), String> {
        if self.directories.len() == DIRECTORIES {
            return Ok(());
        }
        if let Some(copy) = self.random.pick(&self.copies.iter().collect::<Vec<_>>()) {
            self.unclean.insert(copy.node);
            self.directories.push(copy.copy());
            self.tally.twins += 1;
        }
        Ok(())
    }
}
