//! How clusters are founded, under faults: the real [`Founders`] over real stores on simulated disks. Messages are lost, late and
//! out of order; processes are killed and disks lose their power at each step; directories are wiped, copied and put back;
//! lists differ. A run is a few hundred such steps, drawn from one seed, and then a time in which nothing goes wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use skep_core::founders::{ClusterIdentity, Founders, Founding, Round, Statement};
use skep_core::id::NodeId;
use skep_log::sim::Crash;
use skep_log::{SimVfs, Store, StoreId, Vfs};

use crate::random::Random;

const DIR: &str = "/data";
const CLUSTER: &str = "bees";
/// Messages on their way at once, at the most; more are lost.
const IN_FLIGHT: usize = 32;
/// Steps in which nothing goes wrong any more: enough for each to ask each other one some thirty times.
const QUIET_STEPS: usize = 3000;

/// What happened in some runs.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Tally {
    /// Runs.
    pub runs: u64,
    /// Foundings that somebody adopted.
    pub foundings: u64,
    /// Nodes that adopted one, again after each wiping.
    pub adopted: u64,
    /// Processes that ended.
    pub kills: u64,
    /// Those that ended while they adopted something.
    pub half_way: u64,
    /// Directories that were wiped.
    pub wiped: u64,
    /// Directories that came back from a copy.
    pub put_back: u64,
    /// Runs in which not all lists were the same.
    pub differing: u64,
    /// Nodes that waited at the end, each for somebody whom it named.
    pub waiting: u64,
}

impl Tally {
    /// Adds another one.
    pub fn add(&mut self, other: Self) {
        self.runs += other.runs;
        self.foundings += other.foundings;
        self.adopted += other.adopted;
        self.kills += other.kills;
        self.half_way += other.half_way;
        self.wiped += other.wiped;
        self.put_back += other.put_back;
        self.differing += other.differing;
        self.waiting += other.waiting;
    }
}

/// Runs a seed.
///
/// # Errors
/// What was promised and is not so.
pub fn run(seed: u64) -> Result<Tally, String> {
    let mut world = World::draw(seed);
    let steps = world.random.range(50, 1000);
    for _ in 0..steps {
        world.step()?;
    }
    world.settle()?;
    world.tally.runs = 1;
    Ok(world.tally)
}

/// What may happen next.
#[derive(Clone, Copy, Debug)]
enum Event {
    Ask,
    Deliver,
    Lose,
    Note,
    NoteHalf,
    Start,
    Kill,
    Wipe,
    Copy,
    PutBack,
    Tick,
}

/// How often each of them happens, in this run.
struct Odds(Vec<(Event, u64)>);

impl Odds {
    fn of_seed(random: &mut Random, copying: bool) -> Self {
        let mut odd = |event, from, to| (event, random.range(from, to));
        let mut odds = vec![
            odd(Event::Ask, 60, 120),
            odd(Event::Deliver, 100, 200),
            odd(Event::Lose, 0, 4),
            odd(Event::Note, 2, 20),
            odd(Event::NoteHalf, 0, 2),
            odd(Event::Start, 8, 24),
            odd(Event::Kill, 0, 4),
            odd(Event::Wipe, 0, 4),
            odd(Event::Tick, 1, 2),
        ];
        if copying {
            odds.extend([odd(Event::Copy, 1, 2), odd(Event::PutBack, 1, 2)]);
        }
        Self(odds)
    }

    fn draw(&self, random: &mut Random) -> Event {
        let mut left = random.below(self.0.iter().map(|(_, odds)| odds).sum());
        for (event, odds) in &self.0 {
            match left.checked_sub(*odds) {
                None => return *event,
                Some(rest) => left = rest,
            }
        }
        Event::Tick
    }
}

struct World {
    random: Random,
    odds: Odds,
    nodes: BTreeMap<NodeId, Node>,
    messages: Vec<InFlight>,
    /// Copies of directories that somebody made.
    copies: Vec<(NodeId, SimVfs)>,
    /// Whether copies are made: what they are used for cannot be told from the originals.
    copying: bool,
    lives: u64,
    stores: u64,
    known: BTreeSet<ClusterIdentity>,
    tally: Tally,
}

struct Node {
    list: BTreeSet<NodeId>,
    disk: SimVfs,
    running: Option<Running>,
}

struct Running {
    life: u64,
    store: Store,
    stage: Stage,
}

enum Stage {
    Founds(Founders),
    /// It adopts this, and has not noted it yet.
    Adopts(Founders, Founding),
    Founded(Founding),
}

/// A message on its way.
enum InFlight {
    Question {
        from: NodeId,
        to: NodeId,
        /// The life that asks, and its round.
        life: u64,
        round: Round,
        list: BTreeSet<NodeId>,
    },
    Answer {
        from: NodeId,
        to: NodeId,
        life: u64,
        round: Round,
        said: Statement,
    },
}

impl World {
    fn draw(seed: u64) -> Self {
        let mut random = Random::new(seed, 14);
        let size = *random.pick(&[1, 2, 2, 2, 3, 3, 4, 5]).expect("sizes");
        let ids: BTreeSet<NodeId> = (1..=size).map(NodeId).collect();
        let differ = random.one_in(4);
        let mut nodes = BTreeMap::new();
        for id in &ids {
            let mut list = ids.clone();
            // One that is missing, or one that nobody else has.
            if differ && random.one_in(2) {
                let other = NodeId(random.range(1, size + 1));
                if !list.insert(other) {
                    list.remove(&other);
                }
                list.insert(*id);
            }
            nodes.insert(
                *id,
                Node {
                    list,
                    disk: SimVfs::new(seed),
                    running: None,
                },
            );
        }
        let differing = nodes.values().any(|node| node.list != ids);
        let copying = random.one_in(4);
        Self {
            copying,
            odds: Odds::of_seed(&mut random, copying),
            random,
            nodes,
            messages: Vec::new(),
            copies: Vec::new(),
            lives: 0,
            stores: 0,
            known: BTreeSet::new(),
            tally: Tally {
                differing: differing.into(),
                ..Tally::default()
            },
        }
    }

    fn step(&mut self) -> Result<(), String> {
        let ids: Vec<NodeId> = self.nodes.keys().copied().collect();
        let id = *self.random.pick(&ids).expect("there are nodes");
        match self.odds.draw(&mut self.random) {
            Event::Ask => self.ask(id),
            Event::Deliver => self.deliver()?,
            Event::Lose => drop(self.take_message()),
            Event::Note => self.note(id, None)?,
            Event::NoteHalf => {
                // Anywhere while it notes what it adopts.
                let call = self.random.below(8);
                self.note(id, Some(call))?;
            }
            Event::Start => self.start(id)?,
            Event::Kill => self.kill(id),
            Event::Wipe => self.wipe(id),
            Event::Copy => self.copy(id),
            Event::PutBack => return self.put_back(),
            Event::Tick => self.tick(id),
        }
        Ok(())
    }

    fn ask(&mut self, from: NodeId) {
        let node = &self.nodes[&from];
        let others: Vec<NodeId> = node.list.iter().copied().filter(|to| *to != from).collect();
        let Some(Running {
            life,
            stage: Stage::Founds(founders),
            ..
        }) = &node.running
        else {
            return;
        };
        if let Some(to) = self.random.pick(&others)
            && self.messages.len() < IN_FLIGHT
        {
            self.messages.push(InFlight::Question {
                from,
                to: *to,
                life: *life,
                round: founders.round(),
                list: node.list.clone(),
            });
        }
    }

    /// Mostly the newest, so that a founding comes about; now and then any, which may be of a time long gone.
    fn take_message(&mut self) -> Option<InFlight> {
        let count = self.messages.len() as u64;
        let newest = count.checked_sub(1)?;
        let at = match self.random.one_in(8) {
            true => self.random.below(count),
            false => newest,
        };
        Some(self.messages.remove(at as usize))
    }

    fn deliver(&mut self) -> Result<(), String> {
        match self.take_message() {
            Some(InFlight::Question {
                from,
                to,
                life,
                round,
                list,
            }) => {
                let store = |running: &Running| running.store.identity().store.0;
                let Some(running) = self
                    .nodes
                    .get_mut(&to)
                    .and_then(|node| node.running.as_mut())
                else {
                    return Ok(());
                };
                let own = store(running);
                let said = match &mut running.stage {
                    Stage::Founds(founders) | Stage::Adopts(founders, _) => {
                        founders.asked(from, &list)
                    }
                    Stage::Founded(founding) => Statement::founded(own, founding.clone()),
                };
                self.messages.push(InFlight::Answer {
                    from: to,
                    to: from,
                    life,
                    round,
                    said,
                });
            }
            Some(InFlight::Answer {
                from,
                to,
                life,
                round,
                said,
            }) => {
                let Some(running) = self
                    .nodes
                    .get_mut(&to)
                    .and_then(|node| node.running.as_mut())
                else {
                    return Ok(());
                };
                // A connection ends with the process that dialled it.
                if running.life == life
                    && let Stage::Founds(founders) | Stage::Adopts(founders, _) = &mut running.stage
                    && let Some(founding) = founders.heard(from, round, said)
                {
                    self.adopts(to, founding);
                }
            }
            None => {}
        }
        Ok(())
    }

    fn adopts(&mut self, id: NodeId, founding: Founding) {
        let node = self.nodes.get_mut(&id).expect("it is there");
        if let Some(running) = &mut node.running {
            let nothing = Stage::Founded(founding.clone());
            if let Stage::Founds(founders) = std::mem::replace(&mut running.stage, nothing) {
                running.stage = Stage::Adopts(founders, founding);
            }
        }
    }

    /// A node notes what it adopts; its disk loses power after so many calls.
    fn note(&mut self, id: NodeId, power: Option<u64>) -> Result<(), String> {
        let node = self.nodes.get_mut(&id).expect("it is there");
        let Some(running) = &mut node.running else {
            return Ok(());
        };
        let Stage::Adopts(_, founding) = &running.stage else {
            return Ok(());
        };
        let founding = founding.clone();
        if let Some(call) = power {
            node.disk.cut_power_after(node.disk.calls() + call);
        }
        let vfs: Arc<dyn Vfs> = Arc::new(node.disk.clone());
        match running.store.found(&vfs, &founding) {
            Ok(()) => {
                if let Stage::Adopts(founders, _) = &mut running.stage {
                    founders.adopted();
                    if founders.founded() != Some(&founding) {
                        return Err(format!("node {id} adopted {founding:?} and denies it"));
                    }
                }
                running.stage = Stage::Founded(founding.clone());
                self.tally.adopted += 1;
                if self.known.insert(founding.identity()) {
                    self.tally.foundings += 1;
                }
            }
            Err(error) if power.is_none() => return Err(format!("node {id}: {error}")),
            Err(_) => {}
        }
        if power.is_some() {
            self.tally.half_way += 1;
            self.kill(id);
        }
        self.check()
    }

    fn start(&mut self, id: NodeId) -> Result<(), String> {
        self.lives += 1;
        let node = self.nodes.get_mut(&id).expect("it is there");
        if node.running.is_some() {
            return Ok(());
        }
        self.stores += 1;
        let mut drawn = [0; 16];
        drawn[..8].copy_from_slice(&self.stores.to_be_bytes());
        let vfs: Arc<dyn Vfs> = Arc::new(node.disk.clone());
        let opened = Store::open_with(&vfs, Path::new(DIR), CLUSTER, id.0, || Ok(StoreId(drawn)));
        let store = opened.map_err(|error| format!("node {id} does not start: {error}"))?;
        let identity = store.identity();
        let stage = match &identity.founding {
            Some(founding) => Stage::Founded(founding.clone()),
            None => Stage::Founds(Founders::new(
                CLUSTER,
                id,
                identity.store.0,
                node.list.clone(),
            )),
        };
        let mut running = Running {
            life: self.lives,
            store,
            stage,
        };
        let alone = match &mut running.stage {
            Stage::Founds(founders) => founders.decide(),
            Stage::Adopts(..) | Stage::Founded(_) => None,
        };
        node.running = Some(running);
        if let Some(founding) = alone {
            self.adopts(id, founding);
        }
        Ok(())
    }

    fn kill(&mut self, id: NodeId) {
        let node = self.nodes.get_mut(&id).expect("it is there");
        if node.running.take().is_some() {
            let crash = match self.random.below(3) {
                0 => Crash::ProcessOnly,
                1 => Crash::LoseAll,
                _ => Crash::Subset(self.random.word()),
            };
            node.disk.crash(crash);
            self.tally.kills += 1;
        }
    }

    fn wipe(&mut self, id: NodeId) {
        self.kill(id);
        let node = self.nodes.get_mut(&id).expect("it is there");
        node.disk = SimVfs::new(self.random.word());
        self.tally.wiped += 1;
    }

    fn copy(&mut self, id: NodeId) {
        if let Node {
            disk,
            running: None,
            ..
        } = &self.nodes[&id]
        {
            self.copies.push((id, disk.fork()));
        }
    }

    fn put_back(&mut self) -> Result<(), String> {
        let count = self.copies.len() as u64;
        if count > 0 {
            let (id, disk) = self.copies.swap_remove(self.random.below(count) as usize);
            self.kill(id);
            self.nodes.get_mut(&id).expect("it is there").disk = disk;
            self.tally.put_back += 1;
        }
        self.check()
    }

    fn tick(&mut self, id: NodeId) {
        let node = self.nodes.get_mut(&id).expect("it is there");
        if let Some(Running {
            stage: Stage::Founds(founders),
            ..
        }) = &mut node.running
        {
            founders.tick();
        }
    }

    /// The foundings that stand in the directories there are, each with the nodes that adopted it.
    fn adopted(&self) -> BTreeMap<Founding, BTreeSet<NodeId>> {
        let mut all = BTreeMap::<Founding, BTreeSet<NodeId>>::new();
        for (id, node) in &self.nodes {
            // What a killed process left in the memory of the system is there for the next one.
            if let Some(identity) = node.identity()
                && let Some(founding) = identity.founding
            {
                all.entry(founding).or_default().insert(*id);
            }
        }
        all
    }

    fn check(&self) -> Result<(), String> {
        let all = self.adopted();
        // With copies a node has two directories, and what counts is that no two clusters work.
        let counts = |founding: &Founding, nodes: &BTreeSet<NodeId>| {
            !self.copying || 2 * nodes.len() > founding.founders.len()
        };
        let mut working = all
            .iter()
            .filter(|(founding, nodes)| counts(founding, nodes));
        while let Some((one, nodes)) = working.next() {
            let with = |other: &Founding| {
                other
                    .founders
                    .keys()
                    .any(|id| one.founders.contains_key(id))
            };
            if let Some((other, others)) = working.clone().find(|(other, _)| with(other)) {
                return Err(format!(
                    "two clusters: {:?} at {nodes:?}, {:?} at {others:?}",
                    one.identity(),
                    other.identity()
                ));
            }
        }
        Ok(())
    }

    /// Nothing goes wrong any more: whoever can be in a cluster is in it, and whoever cannot says why.
    fn settle(&mut self) -> Result<(), String> {
        self.messages.clear();
        let ids: Vec<NodeId> = self.nodes.keys().copied().collect();
        for _ in 0..QUIET_STEPS {
            let id = *self.random.pick(&ids).expect("there are nodes");
            match self.random.below(10) {
                // More answers than questions, so that none is late.
                0..2 => self.ask(id),
                2..8 => self.deliver()?,
                8 => self.note(id, None)?,
                _ => self.start(id)?,
            }
        }
        self.check()?;
        let all = self.adopted();
        let full: BTreeSet<NodeId> = self.nodes.keys().copied().collect();
        let agree = self.nodes.values().all(|node| node.list == full);
        for (id, node) in &self.nodes {
            let running = node.running.as_ref().ok_or("a node was not started")?;
            let store = running.store.identity().store.0;
            let is_in = |founding: &Founding| founding.founders.get(id) == Some(&store);
            match &running.stage {
                Stage::Founded(founding) if is_in(founding) => {}
                Stage::Founded(founding) => {
                    return Err(format!(
                        "node {id} belongs to {founding:?}, which does not name it"
                    ));
                }
                Stage::Adopts(..) => return Err(format!("node {id} does not end to adopt")),
                Stage::Founds(founders) => {
                    self.tally.waiting += 1;
                    if founders.waits().is_empty() {
                        return Err(format!("node {id} waits for nobody"));
                    }
                    if agree && (all.is_empty() || all.keys().any(is_in)) {
                        let waits = founders.waits();
                        return Err(format!("node {id} waits for no reason: {waits:?}"));
                    }
                }
            }
        }
        Ok(())
    }
}

impl Node {
    /// What the directory says, if it says anything.
    fn identity(&self) -> Option<skep_log::Identity> {
        match &self.running {
            Some(running) => Some(running.store.identity().clone()),
            None => skep_log::Identity::read(&self.disk, Path::new(DIR)).ok(),
        }
    }
}
