//! One node: a simulated disk with the real log on it, and the real replicas, driven as the host's shards, log writer and
//! workers drive them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use skep_core::effect::{Effect, Work};
use skep_core::group::Group;
use skep_core::id::{GroupId, Incarnation, LogIndex, NodeId};
use skep_core::input::{Input, Waiter};
use skep_core::message::{ArrivedSnapshot, PeerMessage, SnapshotName};
use skep_core::proposal::{Proposal, ProposalError, Response};
use skep_core::status::{Health, Status};
use skep_core::{GroupConfig, Member};
use skep_log::sim::Crash;
use skep_log::{
    GroupKey, Log, LogError, LogOptions, LogPosition, Record, SimVfs, SnapshotMeta, SnapshotStore,
    Store, StoreId, Vfs,
};
use skep_store::{Lives, convert};

use crate::catalogue::Catalogue;
use crate::invariant::{Checker, Place, Queues, Violation};
use crate::machine::Machine;
use crate::scenario::Scenario;
use crate::trace::Trace;

/// Where a node keeps everything on its disk.
const DIR: &str = "/data";
/// Bytes that collection copies at once.
const COLLECT_BYTES: u64 = 64 << 10;
/// The waiter of a barrier that the log asked for; nobody waits.
const NOBODY: Waiter = 0;

/// What a node wants of the world.
#[derive(Debug)]
pub enum Out {
    /// A message.
    Send {
        /// The receiving node.
        to: u64,
        /// The message.
        message: PeerMessage,
    },
    /// A snapshot file; then one `Input::SnapshotSent`.
    Snapshot {
        /// The receiving node.
        to: u64,
        /// Its header.
        message: PeerMessage,
        /// What it is.
        name: SnapshotName,
        /// The file.
        file: Bytes,
    },
    /// Call [`Node::sync`] when the disk has had its time.
    Sync,
    /// Call [`Node::work`] when the machine has had its time.
    Work {
        /// Whose machine.
        group: GroupId,
        /// Of which replica.
        life: u64,
    },
    /// A proposal has its answer.
    Reply {
        /// Where.
        place: Place,
        /// Who waits.
        waiter: Waiter,
        /// The answer.
        result: Result<Response, ProposalError>,
    },
    /// A query has its answer: the state after an index.
    Answer {
        /// Where.
        place: Place,
        /// Who waits.
        waiter: Waiter,
        /// The answer.
        result: Result<(LogIndex, u64), ProposalError>,
    },
}

/// What a step of a node may look at and change beside the node.
pub struct Context<'a> {
    /// Virtual time in microseconds.
    pub now: u64,
    /// Watches.
    pub checker: &'a mut Checker,
    /// Notes.
    pub trace: &'a mut Trace,
    /// What is wanted of the world.
    pub out: &'a mut Vec<Out>,
}

/// How a step of a node ended, if not well.
#[derive(Debug)]
pub enum Stop {
    /// A promise was broken.
    Violation(Violation),
    /// The disk failed the node, which ends as the host's process does.
    Disk(LogError),
}

impl From<Violation> for Stop {
    fn from(violation: Violation) -> Self {
        Self::Violation(violation)
    }
}

impl From<LogError> for Stop {
    fn from(error: LogError) -> Self {
        Self::Disk(error)
    }
}

/// A node, running or not.
pub struct Node {
    /// Its id.
    pub id: u64,
    /// Its disk.
    pub vfs: SimVfs,
    /// Counts its starts.
    pub boots: u64,
    /// The catalogue as it was last seen here; it survives the process.
    pub catalogue: Catalogue,
    /// Nothing of its disk is left, or nothing of it can be trusted; it never comes back under this id.
    pub destroyed: bool,
    /// Its wall clock is this far from the world's, in microseconds.
    pub skew: i64,
    running: Option<Running>,
}

struct Running {
    _store: Store,
    log: Log,
    snapshots: SnapshotStore,
    lives: Lives,
    replicas: BTreeMap<GroupId, Replica>,
    queue: Vec<(Record, Token)>,
    syncing: bool,
    /// Their tombstones are not durable yet.
    burying: BTreeSet<GroupKey>,
    next_life: u64,
}

enum Token {
    Persisted {
        group: GroupId,
        life: u64,
        number: u64,
    },
    Buried(GroupKey),
}

struct Replica {
    place: Place,
    life: u64,
    group: Group,
    machine: Option<Machine>,
    work: VecDeque<Work>,
    working: bool,
    /// Snapshots whose record is not durable yet.
    marks: VecDeque<(u64, SnapshotName)>,
    snapshot: LogIndex,
    /// Numbers of the last record asked for, and of the last known here to be durable.
    records: (u64, u64),
}

impl Node {
    /// A node with an empty disk, not running.
    pub fn new(id: u64, scenario: &Scenario) -> Self {
        Self {
            id,
            vfs: SimVfs::new(scenario.seed ^ id),
            boots: 0,
            catalogue: Catalogue::default(),
            destroyed: false,
            skew: 0,
            running: None,
        }
    }

    /// Whether it runs.
    pub fn is_up(&self) -> bool {
        self.running.is_some()
    }

    /// Opens the disk and brings up what the catalogue says.
    pub fn boot(&mut self, scenario: &Scenario, context: &mut Context<'_>) -> Result<(), Stop> {
        self.boots += 1;
        let vfs: Arc<dyn Vfs> = Arc::new(self.vfs.clone());
        let mut id = [0; 16];
        id[..8].copy_from_slice(&self.id.to_le_bytes());
        id[8..].copy_from_slice(&scenario.seed.to_le_bytes());
        let store = Store::open_with(&vfs, Path::new(DIR), "simulation", self.id, || {
            Ok(StoreId(id))
        })?;
        let options = LogOptions {
            segment_bytes: 64 << 10,
            fill_step: 4 << 10,
            garbage_bytes: 128 << 10,
            light_group_bytes: 8 << 10,
            ..LogOptions::default()
        };
        let (log, recovered) = store.open_log(&vfs, options)?;
        let snapshots = SnapshotStore::open_dir(vfs, &store.snapshot_dir())?;
        let lives = Lives::new(recovered);
        snapshots.sweep_orphans(&lives.snapshots())?;
        self.running = Some(Running {
            _store: store,
            log,
            snapshots,
            lives,
            replicas: BTreeMap::new(),
            queue: Vec::new(),
            syncing: false,
            burying: BTreeSet::new(),
            next_life: self.boots << 32,
        });
        self.reconcile(scenario, context)
    }

    /// The process ends, or the power: what was not synced is dealt with as `crash` says.
    pub fn crash(&mut self, crash: Crash) {
        self.running = None;
        self.vfs.crash(crash);
    }

    /// Hosts what the catalogue says, and nothing else.
    pub fn reconcile(
        &mut self,
        scenario: &Scenario,
        context: &mut Context<'_>,
    ) -> Result<(), Stop> {
        let id = self.id;
        let Some(running) = &mut self.running else {
            return Ok(());
        };
        let hosted: Vec<_> = running.replicas.keys().copied().collect();
        for group in hosted {
            let key = running.replicas[&group].place.key;
            if !self.catalogue.hosts(key, id) {
                running.remove(group, context)?;
            }
        }
        for (group, record) in &self.catalogue.groups {
            let key = GroupKey {
                group: *group,
                incarnation: record.incarnation,
            };
            let group = GroupId(*group);
            if !record.hosts.contains(&id)
                || running.replicas.contains_key(&group)
                || running.burying.iter().any(|other| other.group == key.group)
            {
                continue;
            }
            let mut config = scenario.group_config(key, id, self.boots);
            if !record.joiners.contains(&id) {
                config.members = record.founders.iter().map(|node| member(*node)).collect();
            }
            running.bring_up(Place { node: id, key }, config, context)?;
        }
        Ok(())
    }

    /// One tick of its clock.
    pub fn tick(&mut self, scenario: &Scenario, context: &mut Context<'_>) -> Result<(), Stop> {
        // A replica that was removed may be wanted again.
        self.reconcile(scenario, context)?;
        let now = (scenario.epoch + context.now).saturating_add_signed(self.skew) * 1000;
        let Some(running) = &mut self.running else {
            return Ok(());
        };
        let groups: Vec<_> = running.replicas.keys().copied().collect();
        for group in groups {
            running.handle(group, Input::Tick { now }, context)?;
        }
        Ok(())
    }

    /// Something happens to a replica, if there is one.
    pub fn handle(
        &mut self,
        group: GroupId,
        input: Input,
        context: &mut Context<'_>,
    ) -> Result<(), Stop> {
        match &mut self.running {
            Some(running) => running.handle(group, input, context),
            None => Ok(()),
        }
    }

    /// A snapshot arrives. Whether it was taken.
    pub fn receive(
        &mut self,
        from: u64,
        message: PeerMessage,
        name: SnapshotName,
        file: &Bytes,
        context: &mut Context<'_>,
    ) -> Result<bool, Stop> {
        let Some(running) = &mut self.running else {
            return Ok(false);
        };
        let group = message.group;
        let Some(replica) = running
            .replicas
            .get(&group)
            .filter(|replica| replica.place.key.incarnation == message.incarnation.0)
        else {
            return Ok(false);
        };
        let from = NodeId(from);
        if name.index <= replica.snapshot {
            let outdated = Input::SnapshotOutdated {
                from,
                message,
                name,
            };
            running.handle(group, outdated, context)?;
            return Ok(false);
        }
        let key = replica.place.key;
        let mut receiver = running
            .snapshots
            .receive(key, convert::mark(&name), 1 << 20)?;
        receiver.write_chunk(0, file)?;
        let arrived = receiver.finish()?;
        let snapshot = ArrivedSnapshot {
            message,
            name: convert::name(arrived.mark()),
            state: arrived.meta().state.clone(),
        };
        running.handle(group, Input::SnapshotArrived { from, snapshot }, context)?;
        Ok(true)
    }

    /// The disk has had its time: what waits for it is written and made durable.
    pub fn sync(&mut self, context: &mut Context<'_>) -> Result<(), Stop> {
        match &mut self.running {
            Some(running) => running.sync(self.id, context),
            None => Ok(()),
        }
    }

    /// The machine has had its time for one piece of work.
    pub fn work(
        &mut self,
        group: GroupId,
        life: u64,
        context: &mut Context<'_>,
    ) -> Result<(), Stop> {
        match &mut self.running {
            Some(running) => running.work(group, life, context),
            None => Ok(()),
        }
    }

    /// What each replica says of itself, and the state of its machine.
    pub fn replicas(&self) -> impl Iterator<Item = (Place, Status, Option<u64>)> {
        self.running
            .iter()
            .flat_map(|running| running.replicas.values())
            .map(|replica| {
                (
                    replica.place,
                    replica.group.status(),
                    replica.machine.as_ref().map(Machine::state),
                )
            })
    }

    /// Whether a machine failed here, so that the node should be started anew.
    pub fn is_faulted(&self) -> bool {
        self.running
            .iter()
            .flat_map(|running| running.replicas.values())
            .any(|replica| matches!(replica.group.status().health, Health::Faulted { .. }))
    }
}

impl Running {
    fn bring_up(
        &mut self,
        place: Place,
        mut config: GroupConfig,
        context: &mut Context<'_>,
    ) -> Result<(), Stop> {
        let key = place.key;
        let Ok(begin) = self.lives.begin(key, config.members.is_empty()) else {
            // Its life is over here; the catalogue is older than that.
            return Ok(());
        };
        config.removed_through = begin.removed_through;
        for former in begin.former {
            let replica = self.lives.replica_of(former);
            let node = place.node;
            self.bury(Place { node, key: former }, replica, context);
        }
        let group = match begin.recovered {
            None => {
                context.checker.began(place, None)?;
                Group::create(config)
            }
            Some(recovered) => {
                let state = match &recovered.snapshot {
                    Some(mark) => Some(self.snapshots.open(key, mark)?.meta().state.clone()),
                    None => None,
                };
                let recovered = convert::recovered(recovered, state)?;
                context.checker.began(place, Some(&recovered))?;
                Group::recover(config, recovered)
            }
        };
        let group = group.map_err(|error| violation("recovery", place, error.to_string()))?;
        self.lives.began(key);
        self.next_life += 1;
        let snapshot = group.status().snapshot;
        let id = GroupId(key.group);
        self.replicas.insert(
            id,
            Replica {
                place,
                life: self.next_life,
                group,
                machine: Some(Machine::default()),
                work: VecDeque::new(),
                working: false,
                marks: VecDeque::new(),
                snapshot,
                records: (0, 0),
            },
        );
        context.trace.line(context.now, || {
            format!("node {}: {key} is up, snapshot {snapshot}", place.node)
        });
        self.poll(id, context)
    }

    /// Ends a replica for ever.
    fn remove(&mut self, group: GroupId, context: &mut Context<'_>) -> Result<(), Stop> {
        if let Some(replica) = self.replicas.remove(&group) {
            let key = replica.place.key;
            let id = replica.group.replica();
            context.trace.line(context.now, || {
                format!("node {}: {key} is removed", replica.place.node)
            });
            self.bury(replica.place, id, context);
            if !self.burying.contains(&key) {
                self.snapshots_of(key, u64::MAX)?;
            }
            self.request_sync(context);
        }
        Ok(())
    }

    fn bury(&mut self, place: Place, replica: skep_core::id::ReplicaId, context: &mut Context<'_>) {
        let key = place.key;
        if let Some(record) = self.lives.bury(key, replica) {
            context.checker.buries(place);
            self.burying.insert(key);
            self.queue.push((record, Token::Buried(key)));
        }
    }

    /// Deletes the snapshots of a group before this index.
    fn snapshots_of(&self, key: GroupKey, before: u64) -> Result<(), LogError> {
        for name in self.snapshots.list()? {
            if name.key == key && name.position.index < before {
                self.snapshots.remove(key, name.position)?;
            }
        }
        Ok(())
    }

    fn handle(
        &mut self,
        group: GroupId,
        input: Input,
        context: &mut Context<'_>,
    ) -> Result<(), Stop> {
        if let Some(replica) = self.replicas.get_mut(&group) {
            replica.group.handle(input);
            self.poll(group, context)?;
        }
        Ok(())
    }

    /// Lets a replica act, and carries out what it wants.
    fn poll(&mut self, group: GroupId, context: &mut Context<'_>) -> Result<(), Stop> {
        loop {
            let Some(replica) = self.replicas.get_mut(&group) else {
                return Ok(());
            };
            let place = replica.place;
            let mut effects = Vec::new();
            replica.group.poll(&mut effects);
            // What it has written and what it knows come before what it says.
            for effect in &effects {
                if let Effect::Persist(persist) = effect {
                    context.checker.persists(place, persist);
                }
            }
            replica.records.0 += effects
                .iter()
                .filter(|effect| matches!(effect, Effect::Persist(_)))
                .count() as u64;
            replica.check(&effects, context)?;
            let mut removed = false;
            let mut unsent = Vec::new();
            for effect in effects {
                match effect {
                    Effect::Persist(persist) => {
                        if let Some(name) = &persist.snapshot {
                            replica.marks.push_back((persist.number, name.clone()));
                        }
                        let token = Token::Persisted {
                            group,
                            life: replica.life,
                            number: persist.number,
                        };
                        self.queue
                            .push((convert::record(place.key, persist), token));
                    }
                    Effect::Send { to, message } => {
                        context.checker.sends(place, &message)?;
                        context.out.push(Out::Send { to: to.0, message });
                    }
                    Effect::SendSnapshot {
                        to,
                        message,
                        snapshot,
                    } => match self.snapshots.open(place.key, &convert::mark(&snapshot)) {
                        Ok(file) => context.out.push(Out::Snapshot {
                            to: to.0,
                            message,
                            name: snapshot,
                            file: file.read_chunk(0, file.size() as usize),
                        }),
                        Err(_) => unsent.push(to),
                    },
                    Effect::Machine(work) => replica.work.push_back(work),
                    Effect::Reply { waiter, result } => context.out.push(Out::Reply {
                        place,
                        waiter,
                        result,
                    }),
                    Effect::QueryFailed { waiter, error } => context.out.push(Out::Answer {
                        place,
                        waiter,
                        result: Err(error),
                    }),
                    Effect::Leader(_) => {}
                    Effect::Removed => removed = true,
                    Effect::Halt { reason } => {
                        return Err(violation("a replica goes on", place, reason).into());
                    }
                }
            }
            replica.request_work(context);
            for to in unsent.iter().copied() {
                let unsent = Input::SnapshotSent {
                    node: to,
                    arrived: false,
                };
                replica.group.handle(unsent);
            }
            if removed {
                self.remove(group, context)?;
            }
            self.request_sync(context);
            if unsent.is_empty() || removed {
                return Ok(());
            }
        }
    }

    fn request_sync(&mut self, context: &mut Context<'_>) {
        if !self.queue.is_empty() && !self.syncing {
            self.syncing = true;
            context.out.push(Out::Sync);
        }
    }

    fn sync(&mut self, node: u64, context: &mut Context<'_>) -> Result<(), Stop> {
        let round = std::mem::take(&mut self.queue);
        let mut tokens = Vec::with_capacity(round.len());
        for (record, token) in round {
            match self.log.append(&record) {
                Ok(()) => tokens.push(token),
                Err(error) if error.is_record_error() => {
                    let key = record.key;
                    return Err(violation(
                        "the log takes every record",
                        Place { node, key },
                        error.to_string(),
                    )
                    .into());
                }
                Err(error) => return Err(error.into()),
            }
        }
        self.log.sync()?;
        self.syncing = false;
        // The sum is durable before any replica acts on its part of it.
        for token in &tokens {
            match token {
                Token::Persisted { group, number, .. } => {
                    if let Some(replica) = self.replicas.get(group) {
                        context.checker.durable(replica.place, *number)?;
                    }
                }
                Token::Buried(key) => context.checker.buried(Place { node, key: *key }),
            }
        }
        for token in tokens {
            match token {
                Token::Persisted {
                    group,
                    life,
                    number,
                } => self.persisted(group, life, number, context)?,
                Token::Buried(key) => {
                    self.burying.remove(&key);
                    self.snapshots_of(key, u64::MAX)?;
                }
            }
        }
        if self.log.wants_collect() {
            let collected = self.log.collect(COLLECT_BYTES)?;
            for key in collected.heavy {
                let waiter = NOBODY;
                let proposal = Proposal::Barrier;
                let group = GroupId(key.group);
                self.handle(group, Input::Propose { waiter, proposal }, context)?;
            }
        }
        self.log.prepare()?;
        self.request_sync(context);
        Ok(())
    }

    fn persisted(
        &mut self,
        group: GroupId,
        life: u64,
        number: u64,
        context: &mut Context<'_>,
    ) -> Result<(), Stop> {
        let Some(replica) = self
            .replicas
            .get_mut(&group)
            .filter(|replica| replica.life == life)
        else {
            return Ok(());
        };
        let mut newest = None;
        while let Some((_, name)) = replica.marks.pop_front_if(|(of, _)| *of <= number) {
            newest = Some(name.index);
        }
        let key = replica.place.key;
        if let Some(index) = newest {
            replica.snapshot = replica.snapshot.max(index);
        }
        replica.records.1 = number;
        replica.group.handle(Input::Persisted { number });
        self.poll(group, context)?;
        // A replacement that waits for the machine may still need the older file.
        let idle = self
            .replicas
            .get(&group)
            .is_some_and(|replica| replica.work.is_empty());
        if let Some(index) = newest.filter(|_| idle) {
            self.snapshots_of(key, index.0)?;
        }
        Ok(())
    }

    fn work(&mut self, group: GroupId, life: u64, context: &mut Context<'_>) -> Result<(), Stop> {
        let Some(replica) = self
            .replicas
            .get_mut(&group)
            .filter(|replica| replica.life == life)
        else {
            return Ok(());
        };
        replica.working = false;
        let Some(work) = replica.work.pop_front() else {
            return Ok(());
        };
        let input = replica.run(work, &self.snapshots, context)?;
        replica.request_work(context);
        match input {
            Some(input) => self.handle(group, input, context),
            None => Ok(()),
        }
    }
}

impl Replica {
    /// Shows the checker what this step has made of the replica.
    fn check(&self, effects: &[Effect], context: &mut Context<'_>) -> Result<(), Violation> {
        let place = self.place;
        let status = self.group.status();
        let restores = |work: &Work| matches!(work, Work::Restore { .. });
        let restoring = self.machine.is_none()
            || self.work.iter().any(restores)
            || effects
                .iter()
                .any(|effect| matches!(effect, Effect::Machine(work) if restores(work)));
        let queues = Queues {
            records: (self.records.0 - self.records.1) as usize,
            work: self.work.len(),
            restoring,
        };
        let limits = self.group.config().limits;
        let elected = context.checker.stepped(place, &status, &limits, queues)?;
        if elected {
            context.trace.line(context.now, || {
                format!(
                    "node {}: {} is led by replica {} in term {}",
                    place.node, place.key, status.replica, status.term
                )
            });
        }
        context.trace.hash((
            place.node,
            place.key.group,
            status.term.0,
            status.commit.0,
            status.applied.0,
            status.last.0,
        ));
        Ok(())
    }

    fn request_work(&mut self, context: &mut Context<'_>) {
        if !self.work.is_empty() && !self.working {
            self.working = true;
            context.out.push(Out::Work {
                group: GroupId(self.place.key.group),
                life: self.life,
            });
        }
    }

    fn run(
        &mut self,
        work: Work,
        snapshots: &SnapshotStore,
        context: &mut Context<'_>,
    ) -> Result<Option<Input>, Violation> {
        let place = self.place;
        let Some(machine) = &mut self.machine else {
            if let Work::Query { waiter, .. } = work {
                context.out.push(Out::Answer {
                    place,
                    waiter,
                    result: Err(ProposalError::Faulted),
                });
            }
            return Ok(None);
        };
        let failed = |error: LogError| Input::MachineFailed {
            reason: error.to_string(),
        };
        match work {
            Work::Apply {
                context: entry,
                calls,
            } => {
                let applied = machine.apply(&entry, calls);
                context
                    .checker
                    .applied(place, entry.index.0, &applied, machine.state())?;
                Ok(Some(Input::Applied {
                    index: entry.index,
                    outcomes: applied.outcomes,
                    fuel: 1,
                }))
            }
            Work::Barrier {
                context: entry,
                state,
            } => {
                let position = LogPosition {
                    index: entry.index.0,
                    term: entry.term.0,
                };
                let meta = SnapshotMeta {
                    key: place.key,
                    position,
                    state,
                    schema: 1,
                    component: [0; 32],
                };
                let saved = machine.save();
                let written = snapshots.create(meta).and_then(|mut writer| {
                    let path = snapshots.path(place.key, position);
                    writer.write_all(&saved).map_err(|source| LogError::Io {
                        action: "write",
                        path,
                        source,
                    })?;
                    writer.finish()
                });
                let file = match written {
                    Ok(file) => file,
                    Err(error) => {
                        self.machine = None;
                        return Ok(Some(failed(error)));
                    }
                };
                context
                    .checker
                    .snapshotted(place, entry.index.0, file.mark().digest)?;
                *machine = restored(place, entry.index, file.guest())?;
                Ok(Some(Input::Snapshotted {
                    index: entry.index,
                    snapshot: Some(convert::name(file.mark())),
                }))
            }
            Work::Restore { snapshot, .. } => {
                match snapshots.open(place.key, &convert::mark(&snapshot)) {
                    Ok(file) => {
                        *machine = restored(place, snapshot.index, file.guest())?;
                        context
                            .checker
                            .restored(place, snapshot.index.0, machine.state())?;
                        Ok(Some(Input::Restored {
                            index: snapshot.index,
                        }))
                    }
                    Err(error) => {
                        self.machine = None;
                        Ok(Some(failed(error)))
                    }
                }
            }
            Work::Query { waiter, .. } => {
                context.out.push(Out::Answer {
                    place,
                    waiter,
                    result: Ok(machine.query()),
                });
                Ok(None)
            }
        }
    }
}

fn restored(place: Place, index: LogIndex, guest: Bytes) -> Result<Machine, Violation> {
    Machine::restore(index, guest).ok_or_else(|| {
        violation(
            "true snapshots",
            place,
            format!("the file at {index} is strange"),
        )
    })
}

fn violation(invariant: &'static str, place: Place, text: String) -> Violation {
    Violation {
        invariant,
        text: format!("{} on node {}: {text}", place.key, place.node),
    }
}

/// A founder of a group.
pub fn member(node: u64) -> Member {
    Member {
        node: NodeId(node),
        data: Bytes::new(),
    }
}

/// The configuration of a life of a group on a node.
pub fn core_config(key: GroupKey, node: u64) -> GroupConfig {
    GroupConfig::new(
        GroupId(key.group),
        Incarnation(key.incarnation),
        NodeId(node),
    )
}
