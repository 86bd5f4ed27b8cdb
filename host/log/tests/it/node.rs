//! A node's whole data directory (identity, log, snapshot files, pins), a workload on it, and what it promised so far.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use skep_log::sim::Crash;
use skep_log::{
    GroupKey, HardState, Log, LogError, LogPosition, PeerPins, Record, SimVfs, SnapshotFile,
    SnapshotMark, SnapshotMeta, SnapshotName, SnapshotStore, Store, StoreId, Vfs,
};
use skep_types::form::Form;

use crate::model::{Random, State, key, small};

pub const DATA: &str = "/data";

/// The nodes that the workload pins.
const PEERS: std::ops::RangeInclusive<u64> = 1..=5;

pub type Pins = BTreeMap<u64, StoreId>;

/// An open data directory.
pub struct Node {
    /// Locks the directory while the node is open.
    pub store: Store,
    pub log: Log,
    pub snapshots: SnapshotStore,
    pub pins: PeerPins,
}

/// What a data directory held when it was opened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Found {
    pub store: StoreId,
    pub state: State,
    pub pins: Pins,
    /// The finished snapshots that were there before the orphans were swept.
    pub snapshots: BTreeSet<Name>,
}

/// A [`SnapshotName`] that orders.
pub type Name = (GroupKey, u64, u64);

/// Opens a data directory as a node does, and reads everything in it. `id` is drawn if it is new.
pub fn open(vfs: Arc<dyn Vfs>, id: u8) -> Result<(Node, Found), LogError> {
    let store = Store::open_with(&vfs, Path::new(DATA), "bees", 1, || Ok(StoreId([id; 16])))?;
    let (log, recovered) = store.open_log(&vfs, small())?;
    let snapshots = SnapshotStore::open_dir(Arc::clone(&vfs), &store.snapshot_dir())?;
    let state = State::of(&recovered);
    let listed = snapshots.list()?;
    for name in &listed {
        let file = snapshots.verify(&snapshots.path(name.key, name.position))?;
        check_content(&file, *name)?;
    }
    let mut marked = Vec::new();
    for (key, mark) in marks(&state) {
        let position = mark.position;
        check_content(&snapshots.open(key, mark)?, SnapshotName { key, position })?;
        marked.push(SnapshotName { key, position });
    }
    snapshots.sweep_orphans(&marked)?;
    let pins = PeerPins::open(vfs, store.dir())?;
    let found = Found {
        store: store.identity().store,
        state,
        pins: PEERS
            .filter_map(|peer| Some((peer, pins.pinned(peer)?)))
            .collect(),
        snapshots: listed.into_iter().map(name).collect(),
    };
    let node = Node {
        store,
        log,
        snapshots,
        pins,
    };
    Ok((node, found))
}

pub fn name(name: SnapshotName) -> Name {
    (name.key, name.position.index, name.position.term)
}

/// The snapshots that a log's groups rely on.
pub fn marks(state: &State) -> impl Iterator<Item = (GroupKey, &SnapshotMark)> {
    let groups = state.groups.values();
    groups.filter_map(|group| Some((group.key, group.snapshot.as_ref()?)))
}

fn check_content(file: &SnapshotFile, name: SnapshotName) -> Result<(), LogError> {
    let (meta, guest) = content(name);
    assert!(
        file.meta() == &meta && file.guest()? == guest,
        "wrong data is served for {name:?}"
    );
    Ok(())
}

/// What the workload writes into the snapshot of that name.
fn content(name: SnapshotName) -> (SnapshotMeta, Bytes) {
    let SnapshotName { key, position } = name;
    let mut random = Random(key.group << 40 | key.incarnation << 32 | position.index);
    let len = random.below(1800);
    let guest: Vec<u8> = (0..len).map(|_| random.below(256) as u8).collect();
    let meta = SnapshotMeta {
        key,
        position,
        state: Bytes::from(vec![position.term as u8; 24]),
        form: Form::Saved,
        schema: 3,
        component: [9; 32],
    };
    (meta, guest.into())
}

/// The values one of which must be found: the last acknowledged one, and those begun after it.
#[derive(Clone, Debug)]
pub struct Window<T>(Vec<Arc<T>>);

impl<T: PartialEq> Window<T> {
    fn new(value: T) -> Window<T> {
        Window(vec![Arc::new(value)])
    }

    fn begin(&mut self, value: T) {
        self.0.push(Arc::new(value));
    }

    fn acknowledge(&mut self) {
        self.0.drain(..self.0.len() - 1);
    }

    pub fn allows(&self, value: &T) -> bool {
        self.0.iter().any(|allowed| **allowed == *value)
    }

    pub fn acknowledged(&self) -> &T {
        &self.0[0]
    }

    fn latest(&self) -> &Arc<T> {
        &self.0[self.0.len() - 1]
    }
}

/// What a node has promised: whatever happens next, recovery must find this.
#[derive(Clone, Debug)]
pub struct Promise {
    /// Whether the node was up once, so that its identity counts.
    pub named: bool,
    pub log: Window<State>,
    pub pins: Window<Pins>,
    /// Snapshots that were finished, and whose removal has not begun.
    pub snapshots: Arc<BTreeSet<Name>>,
    /// Changes with every change of the above.
    pub revision: u64,
}

impl Promise {
    pub fn new() -> Promise {
        Promise {
            named: false,
            log: Window::new(State::default()),
            pins: Window::new(Pins::new()),
            snapshots: Arc::default(),
            revision: 0,
        }
    }

    /// Why what was found breaks the promise, if it does.
    pub fn breach(&self, found: &Found) -> Option<String> {
        if self.named && found.store != STORE {
            return Some(format!("the store became {}", found.store));
        }
        if !self.log.allows(&found.state) {
            let (state, acknowledged) = (&found.state, self.log.acknowledged());
            return Some(format!(
                "the log holds {state:#?}\nacknowledged was {acknowledged:#?}"
            ));
        }
        if !self.pins.allows(&found.pins) {
            let acknowledged = self.pins.acknowledged();
            return Some(format!(
                "the pins are {:?}, acknowledged was {acknowledged:?}",
                found.pins
            ));
        }
        let lost = self.snapshots.difference(&found.snapshots).next();
        lost.map(|name| format!("the finished snapshot {name:?} is gone"))
    }

    /// From here on what was found counts, and what was not is gone for ever.
    fn settle(&mut self, found: &Found) {
        self.named = true;
        self.log = Window::new(found.state.clone());
        self.pins = Window::new(found.pins.clone());
        let marked =
            marks(&found.state).map(|(key, mark)| (key, mark.position.index, mark.position.term));
        self.snapshots = Arc::new(marked.collect());
    }
}

/// The id that the workload's first start draws; recovery tests draw others.
const STORE: StoreId = StoreId([4; 16]);

/// What a workload did, to show that it does everything.
#[derive(Clone, Default, Debug)]
pub struct Done {
    pub ops: usize,
    pub records: usize,
    pub overwrites: usize,
    pub hard_states: usize,
    pub truncations: usize,
    pub saved: usize,
    pub installed: usize,
    pub pruned: usize,
    pub removals: usize,
    pub abandoned: usize,
    pub pins: usize,
    pub restarts: usize,
    pub freed_segments: u64,
    pub copied_bytes: u64,
    /// The errors that calls answered with and that did not end the run.
    pub reported: Vec<String>,
}

/// How a run ended.
pub struct Ended {
    pub done: Done,
    /// What ended it early.
    pub error: Option<LogError>,
    /// The node, if the log was not poisoned and the last start went well.
    pub node: Option<Node>,
}

/// Which workload to run.
#[derive(Clone, Copy)]
pub struct Plan {
    pub seed: u64,
    pub ops: usize,
    /// The call that fails, counted from 1, and how.
    pub fault: Option<(u64, ErrorKind)>,
}

/// Runs a workload, the same for the same seed until a call fails.
///
/// `promise` is kept up to date before and after every call to `vfs`, which works on `disk`. A failure of the log or
/// of a start ends the run; a failure of a snapshot or a pin is that operation's alone.
pub fn run(vfs: &Arc<dyn Vfs>, disk: &SimVfs, promise: &Arc<Mutex<Promise>>, plan: Plan) -> Ended {
    let mut run = Run {
        vfs,
        disk,
        promise,
        fault: plan.fault,
        random: Random(plan.seed),
        incarnations: BTreeMap::new(),
        done: Done::default(),
    };
    let mut node = None;
    run.arm();
    let mut outcome = run.start(&mut node);
    while outcome.is_ok() && run.done.ops < plan.ops {
        run.done.ops += 1;
        outcome = run.step(&mut node);
    }
    let last = outcome.and_then(|()| run.sync(node.as_mut()));
    let done = run.done;
    match last {
        Ok(()) => Ended {
            done,
            error: None,
            node,
        },
        Err(error) => {
            if let Some(node) = node {
                check_poisoned(node.log);
            }
            Ended {
                done,
                error: Some(error),
                node: None,
            }
        }
    }
}

/// A log that failed once refuses everything.
fn check_poisoned(mut log: Log) {
    let record = Record {
        hard_state: Some(HardState::default()),
        ..Record::new(key(77))
    };
    for outcome in [
        log.append(&record),
        log.sync(),
        log.prepare(),
        log.collect(1).map(drop),
        log.close(),
    ] {
        assert!(
            matches!(outcome, Err(LogError::Poisoned { .. })),
            "a failed log goes on: {outcome:?}"
        );
    }
}

struct Run<'a> {
    vfs: &'a Arc<dyn Vfs>,
    disk: &'a SimVfs,
    promise: &'a Arc<Mutex<Promise>>,
    fault: Option<(u64, ErrorKind)>,
    random: Random,
    incarnations: BTreeMap<u64, u64>,
    done: Done,
}

impl Run<'_> {
    fn step(&mut self, slot: &mut Option<Node>) -> Result<(), LogError> {
        let choice = self.random.below(100);
        match choice {
            // The process dies, stops in good order, or the power fails.
            0..=2 => {
                let node = slot.take();
                if choice == 1 {
                    node.map_or(Ok(()), |node| self.close(node))?;
                } else {
                    drop(node);
                }
                if choice == 2 {
                    self.disk.crash(Crash::Subset(self.done.ops as u64));
                    self.arm();
                }
                self.done.restarts += 1;
                self.start(slot)
            }
            3..=5 => self.pin(slot),
            6 => self.abandon(slot),
            7..=10 => node(slot).log.prepare(),
            11..=14 => {
                let collected = node(slot).log.collect(2000)?;
                self.done.freed_segments += collected.freed_segments;
                self.done.copied_bytes += collected.copied_bytes;
                self.change(|promise| promise.log.acknowledge());
                Ok(())
            }
            15..=38 => self.sync(slot.as_mut()),
            _ => self.record(slot),
        }
    }

    /// A crash of the disk forgets the faults to come.
    fn arm(&self) {
        if let Some((call, kind)) = self.fault {
            self.disk.fail_call(call, kind);
        }
    }

    fn start(&mut self, slot: &mut Option<Node>) -> Result<(), LogError> {
        let (node, found) = open(Arc::clone(self.vfs), STORE.0[0])?;
        *slot = Some(node);
        self.change(|promise| {
            if let Some(breach) = promise.breach(&found) {
                panic!("after a restart {breach}");
            }
            promise.settle(&found);
        });
        Ok(())
    }

    fn close(&mut self, node: Node) -> Result<(), LogError> {
        let _lock = node.store;
        node.log.close()?;
        self.change(|promise| promise.log.acknowledge());
        Ok(())
    }

    fn sync(&mut self, node: Option<&mut Node>) -> Result<(), LogError> {
        node.map_or(Ok(()), |node| node.log.sync())?;
        self.change(|promise| promise.log.acknowledge());
        Ok(())
    }

    /// One record, with the snapshot it names made before it, and the files it makes useless removed after it.
    fn record(&mut self, slot: &mut Option<Node>) -> Result<(), LogError> {
        let node = node(slot);
        let state = Arc::clone(self.promise().log.latest());
        let mut record = self
            .random
            .record(&state, &mut self.incarnations, self.done.ops);
        let key = record.key;
        if let Some(mark) = &mut record.snapshot {
            let file = if record.reset {
                install(node, key, mark.position)
            } else {
                save(node, key, mark.position)
            };
            match file {
                Ok(file) => *mark = file.mark().clone(),
                Err(error) => return self.survive(error),
            }
            let name = (key, mark.position.index, mark.position.term);
            self.change(|promise| {
                Arc::make_mut(&mut promise.snapshots).insert(name);
            });
        }
        self.count(&record, &state);
        let mut next = State::clone(&state);
        next.apply(&record);
        self.change(|promise| promise.log.begin(next));
        match node.log.append(&record) {
            Err(error) if error.is_record_error() => panic!("the workload is valid: {error}"),
            outcome => outcome?,
        }
        let keep = record.snapshot.as_ref().map(|mark| mark.position.index);
        if keep.is_none() && !record.removed {
            return Ok(());
        }
        self.sync(Some(node))?;
        let listed = match node.snapshots.list() {
            Ok(listed) => listed,
            Err(error) => return self.survive(error),
        };
        let useless = listed
            .into_iter()
            .filter(|file| file.key == key && keep.is_none_or(|keep| file.position.index < keep));
        for file in useless {
            self.change(|promise| {
                Arc::make_mut(&mut promise.snapshots).remove(&name(file));
            });
            self.done.pruned += 1;
            if let Err(error) = node.snapshots.remove(file.key, file.position) {
                self.survive(error)?;
            }
        }
        Ok(())
    }

    /// A snapshot from another node that never arrives whole.
    fn abandon(&mut self, slot: &mut Option<Node>) -> Result<(), LogError> {
        let key = key(self.random.below(4));
        let position = LogPosition { index: 1, term: 1 };
        let (meta, guest) = content(SnapshotName { key, position });
        self.done.abandoned += 1;
        let snapshots = &node(slot).snapshots;
        let outcome = snapshots.seal(meta, guest.clone()).and_then(|sealed| {
            let mut receiver = snapshots.receive(key, sealed.mark().clone(), 1 << 20)?;
            receiver.write_chunk(0, &guest)
        });
        outcome.or_else(|error| self.survive(error))
    }

    fn pin(&mut self, slot: &mut Option<Node>) -> Result<(), LogError> {
        let pins = &mut node(slot).pins;
        let peer = 1 + self.random.below(*PEERS.end());
        let store = StoreId([self.random.below(3) as u8; 16]);
        let old = Arc::clone(self.promise().pins.latest());
        let mut new = Pins::clone(&old);
        let known = new.remove(&peer).is_some();
        if !known {
            new.insert(peer, store);
        }
        self.change(|promise| promise.pins.begin(new));
        self.done.pins += 1;
        let outcome = if known {
            pins.forget(peer).map(drop)
        } else {
            pins.check(peer, store).map(drop)
        };
        match outcome {
            Ok(()) => self.change(|promise| promise.pins.acknowledge()),
            Err(error) => {
                // The pins in memory are the old ones again, and the next change starts from them.
                self.change(|promise| promise.pins.begin(Pins::clone(&old)));
                self.survive(error)?;
            }
        }
        Ok(())
    }

    /// Notes an error that ends one operation, and nothing else.
    fn survive(&mut self, error: LogError) -> Result<(), LogError> {
        self.done.reported.push(error.to_string());
        Ok(())
    }

    fn count(&mut self, record: &Record, state: &State) {
        let done = &mut self.done;
        let known = state.groups.get(&record.key);
        let last = known.and_then(|group| group.entries.last());
        let overwrites = record
            .entries
            .first()
            .is_some_and(|first| last.is_some_and(|last| first.index <= last.index));
        done.records += 1;
        done.overwrites += usize::from(overwrites);
        done.hard_states += usize::from(record.hard_state.is_some());
        done.truncations += usize::from(record.truncated.is_some());
        done.installed += usize::from(record.reset);
        done.saved += usize::from(record.snapshot.is_some() && !record.reset);
        done.removals += usize::from(record.removed);
    }

    fn promise(&self) -> MutexGuard<'_, Promise> {
        self.promise.lock().expect("nobody panicked")
    }

    fn change(&self, change: impl FnOnce(&mut Promise)) {
        let mut promise = self.promise();
        change(&mut promise);
        promise.revision += 1;
    }
}

fn node(slot: &mut Option<Node>) -> &mut Node {
    slot.as_mut().expect("a run without a node has ended")
}

fn save(node: &Node, key: GroupKey, position: LogPosition) -> Result<SnapshotFile, LogError> {
    written(&node.snapshots, SnapshotName { key, position })
}

fn written(store: &SnapshotStore, name: SnapshotName) -> Result<SnapshotFile, LogError> {
    let (meta, guest) = content(name);
    store.seal(meta, guest)?.place()
}

/// Takes the snapshot from another node, in chunks.
fn install(node: &Node, key: GroupKey, position: LogPosition) -> Result<SnapshotFile, LogError> {
    let sender = SnapshotStore::open_dir(Arc::new(SimVfs::new(2)), Path::new("/sender"))?;
    let sent = written(&sender, SnapshotName { key, position })?;
    let mut receiver = node.snapshots.receive(key, sent.mark().clone(), 1 << 20)?;
    while receiver.received() < sent.size() {
        let chunk = sent
            .read_chunk(receiver.received(), 700)
            .expect("it can be read");
        receiver.write_chunk(receiver.received(), &chunk)?;
    }
    receiver.finish()
}

/// How much larger than by default the tests of crashes and damage are to be: `SKEP_LOG_SCALE`, 1 if unset.
pub fn scale() -> u64 {
    let scale = std::env::var("SKEP_LOG_SCALE").unwrap_or_else(|_| "1".to_owned());
    scale.parse().expect("SKEP_LOG_SCALE is a number")
}

/// How many threads a test may use.
pub fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, |count| count.get().min(4))
}

/// All files and what is in them.
pub type Files = BTreeMap<PathBuf, Vec<u8>>;

pub fn files(disk: &SimVfs) -> Files {
    let paths = disk.files().into_iter();
    paths
        .filter_map(|path| {
            let content = disk.content(&path)?;
            Some((path, content))
        })
        .collect()
}

pub fn is_segment(path: &Path) -> bool {
    path.extension().is_some_and(|end| end == "wal")
}

/// The segments, each with the end of its frames as the next one's header names it; for the last one, its length.
pub fn segment_ends(files: &Files) -> BTreeMap<PathBuf, usize> {
    const PREVIOUS_END: std::ops::Range<usize> = 40..48;
    let segments: Vec<_> = files.iter().filter(|(path, _)| is_segment(path)).collect();
    let mut ends = BTreeMap::new();
    for (position, (path, content)) in segments.iter().enumerate() {
        let end = segments.get(position + 1).map_or(content.len(), |next| {
            let end = next.1[PREVIOUS_END].try_into().expect("8 bytes");
            u64::from_le_bytes(end) as usize
        });
        ends.insert((*path).clone(), end);
    }
    ends
}
