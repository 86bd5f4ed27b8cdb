//! A node that runs: its log and its snapshots, and the replicas that it drives.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use skep_core::GroupConfig;
use skep_core::deployment::{Deployment, Quota};
use skep_core::effect::Effect;
use skep_core::group::Group;
use skep_core::id::{ComponentId, GroupId, ReplicaId};
use skep_core::input::{Input, Waiter};
use skep_core::message::{PeerMessage, SnapshotName};
use skep_core::proposal::Proposal;
use skep_core::standing::Distrust;
use skep_drive::Driver;
use skep_log::{
    GroupKey, Log, LogError, LogOptions, Record, SimVfs, SnapshotStore, Store, StoreId, Vfs,
};
use skep_peer::{SnapshotOffer, message_from_wire, message_to_wire};
use skep_store::{Lives, convert};
use skep_wire::WireError;

use super::replica::Replica;
use super::{Context, Out, Stop, violation};
use crate::invariant::Place;
use crate::machine::Machine;
use crate::scenario::Scenario;

/// Where a node keeps everything on its disk.
const DIR: &str = "/data";
/// Bytes that collection copies at once.
const COLLECT_BYTES: u64 = 64 << 10;
/// The waiter of a barrier that the log asked for; nobody waits.
const NOBODY: Waiter = 0;

/// What a node has while it runs.
pub(super) struct Running {
    _store: Store,
    log: Log,
    pub(super) snapshots: SnapshotStore,
    lives: Lives,
    pub(super) replicas: BTreeMap<GroupId, Replica>,
    queue: Vec<(Record, Token)>,
    syncing: bool,
    /// Their tombstones are not durable yet.
    pub(super) burying: BTreeSet<GroupKey>,
    next_life: u64,
}

/// What a record that became durable is good for.
enum Token {
    Persisted {
        group: GroupId,
        life: u64,
        number: u64,
    },
    Buried(GroupKey),
}

impl Running {
    /// Opens the disk; no replica is up yet.
    pub(super) fn open(
        node: u64,
        boots: u64,
        vfs: &SimVfs,
        scenario: &Scenario,
    ) -> Result<Self, LogError> {
        let vfs: Arc<dyn Vfs> = Arc::new(vfs.clone());
        let mut id = [0; 16];
        id[..8].copy_from_slice(&node.to_le_bytes());
        id[8..].copy_from_slice(&scenario.seed.to_le_bytes());
        let store = Store::open_with(&vfs, Path::new(DIR), "simulation", node, || Ok(StoreId(id)))?;
        let options = LogOptions {
            segment_bytes: 64 << 10,
            fill_step: 4 << 10,
            garbage_bytes: 128 << 10,
            light_group_bytes: 8 << 10,
            recovered_behind_bytes: scenario.log_memory_bytes,
            ..LogOptions::default()
        };
        let (log, recovered) = store.open_log_with(&vfs, options, || Ok(boots))?;
        let snapshots = SnapshotStore::open_dir(vfs, &store.snapshot_dir())?;
        let lives = Lives::new(recovered);
        snapshots.sweep_orphans(&lives.snapshots())?;
        Ok(Self {
            _store: store,
            log,
            snapshots,
            lives,
            replicas: BTreeMap::new(),
            queue: Vec::new(),
            syncing: false,
            burying: BTreeSet::new(),
            next_life: boots << 32,
        })
    }

    pub(super) fn bring_up(
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
        // Each life draws anew, so that answers to the former one are not taken for its own.
        config.seed ^= self.next_life.rotate_left(16);
        let founding = config.deployment.clone().unwrap_or(Deployment {
            component: ComponentId::default(),
            profile: Bytes::new(),
            quota: Quota::default(),
            barriers: Default::default(),
        });
        let machine = Machine::new(founding.component);
        let driver = Driver::exchangeable(machine, founding.clone(), founding);
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
                let opened = recovered
                    .snapshot
                    .as_ref()
                    .map(|mark| (convert::name(mark), self.snapshots.open(key, mark)));
                let (state, lost) = match opened {
                    Some((_, Ok(file))) => (Some(file.meta().state.clone()), None),
                    // A call that fails once is the end of this start, and no damage.
                    // The checker is shown the name; the section that cannot be read is not looked at.
                    Some((name, Err(LogError::BadSnapshot { .. }))) => {
                        (Some(Bytes::new()), Some(name))
                    }
                    Some((_, Err(error))) => return Err(error.into()),
                    None => (None, None),
                };
                let recovered = convert::recovered(recovered, state)?;
                match begin.untried_from {
                    Some(_) => context.checker.began_again(place),
                    None => context.checker.began(place, Some(&recovered))?,
                }
                match lost {
                    Some(lost) => Group::recover_without_snapshot(config, recovered, lost),
                    None => Group::recover(config, recovered),
                }
            }
        };
        let mut group = group.map_err(|error| violation("recovery", place, error.to_string()))?;
        if let Some(from) = begin.untried_from {
            group.has_not_tried(from);
        }
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
                driver: Some(driver),
                work: VecDeque::new(),
                working: false,
                marks: VecDeque::new(),
                snapshot,
                unwritten: None,
                imaging: None,
                records: (0, 0),
            },
        );
        context.trace.line(context.now, || {
            format!("node {}: {key} is up, snapshot {snapshot}", place.node)
        });
        self.poll(id, context)
    }

    /// Gives up a replica whose machine has failed, for its next life; `false` while something is on its way to the disk.
    pub(super) fn give_up(
        &mut self,
        group: GroupId,
        life: u64,
        context: &mut Context<'_>,
    ) -> Result<bool, Stop> {
        let Some(replica) = self
            .replicas
            .get(&group)
            .filter(|replica| replica.life == life)
        else {
            return Ok(true);
        };
        let Some(parked) = replica.group.parked() else {
            return Ok(false);
        };
        let (key, untried) = (replica.place.key, parked.untried_from);
        let (mut next, last) = (parked.start.0.0 + 1, parked.before.0.0);
        let mut older = Vec::new();
        while next <= last {
            let Some(read) = self.log.reader().entries(key, next, last, u64::MAX)? else {
                let text = format!("entry {next} is not in the log any more");
                return Err(violation("a replica goes on", replica.place, text).into());
            };
            next += read.len() as u64;
            older.extend(read);
        }
        context.trace.line(context.now, || {
            format!("node {}: {key} is started again", replica.place.node)
        });
        self.replicas.remove(&group);
        self.lives
            .park(convert::parked(key, parked, older), untried);
        Ok(true)
    }

    /// Ends a replica for ever.
    pub(super) fn remove(&mut self, group: GroupId, context: &mut Context<'_>) -> Result<(), Stop> {
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

    fn bury(&mut self, place: Place, replica: ReplicaId, context: &mut Context<'_>) {
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

    pub(super) fn handle(
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
        let reader = self.log.reader();
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
            let mut answers = Vec::new();
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
                        let message = over_the_wire(message)
                            .map_err(|error| violation(READABLE, place, error.to_string()))?;
                        context.out.push(Out::Send { to: to.0, message });
                    }
                    Effect::SendSnapshot {
                        to,
                        message,
                        snapshot,
                    } => match self.snapshots.open(place.key, &convert::mark(&snapshot)) {
                        Ok(file) => {
                            let message = offered(message, &snapshot)
                                .map_err(|error| violation(READABLE, place, error.to_string()))?;
                            match file.read_chunk(0, file.size() as usize) {
                                Ok(file) => context.out.push(Out::Snapshot {
                                    to: to.0,
                                    message,
                                    name: snapshot,
                                    file,
                                }),
                                Err(_) => answers.push(Input::SnapshotSent {
                                    node: to,
                                    arrived: false,
                                }),
                            }
                        }
                        Err(error) => {
                            if error.is_lost_snapshot() {
                                answers.push(Input::SnapshotUnreadable {
                                    index: snapshot.index,
                                    reason: error.to_string(),
                                });
                            }
                            answers.push(Input::SnapshotSent {
                                node: to,
                                arrived: false,
                            });
                        }
                    },
                    Effect::ReadLog {
                        from,
                        through,
                        bytes,
                    } => {
                        let read = reader.entries(place.key, from.0, through.0, bytes);
                        let read = convert::log_read(place.key, read);
                        context.checker.reads_back(place, from.0, &read)?;
                        answers.push(Input::LogRead { from, read });
                    }
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
                    Effect::Leader(_) | Effect::GivenUp { .. } => {}
                    // An answer to a question of a former life.
                    Effect::Distrusted {
                        why: Distrust::Nonce,
                        ..
                    } => {}
                    Effect::Distrusted { from, why } => {
                        let text = format!("a message of node {from} is not believed: {why:?}");
                        return Err(violation("no false suspicion", place, text).into());
                    }
                    Effect::Diverged { .. } if context.checker.may_differ(place.key) => {}
                    Effect::Diverged { index, .. } => {
                        let text = format!("replicas are said to differ at barrier {index}");
                        return Err(violation("no false alarm", place, text).into());
                    }
                    Effect::Removed => removed = true,
                    Effect::Halt { reason } => {
                        return Err(violation("a replica goes on", place, reason).into());
                    }
                }
            }
            replica.request_work(context);
            let acts_again = !answers.is_empty();
            for answer in answers {
                replica.group.handle(answer);
            }
            if removed {
                self.remove(group, context)?;
            }
            self.request_sync(context);
            if !acts_again || removed {
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

    pub(super) fn sync(&mut self, node: u64, context: &mut Context<'_>) -> Result<(), Stop> {
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

    pub(super) fn work(
        &mut self,
        group: GroupId,
        life: u64,
        context: &mut Context<'_>,
    ) -> Result<(), Stop> {
        let Some(replica) = self
            .replicas
            .get_mut(&group)
            .filter(|replica| replica.life == life)
        else {
            return Ok(());
        };
        replica.working = false;
        let had_failed = replica.driver.is_none();
        let input = match replica.work.pop_front() {
            Some(work) => replica.run(work, &self.snapshots, context)?,
            None => None,
        };
        let image = replica.finish_image(&self.snapshots, context)?;
        if replica.driver.is_none() && !had_failed {
            context.out.push(Out::Failed { group, life });
        }
        let written = replica.write_again();
        replica.request_work(context);
        for input in input.into_iter().chain(image).chain(written) {
            self.handle(group, input, context)?;
        }
        Ok(())
    }
}

/// The promise that the two below look after.
const READABLE: &str = "what is said can be read";

/// A message as its receiver reads it.
fn over_the_wire(message: PeerMessage) -> Result<PeerMessage, WireError> {
    message_from_wire(message_to_wire(message)?)
}

/// The header of a snapshot as its receiver reads it.
fn offered(message: PeerMessage, name: &SnapshotName) -> Result<PeerMessage, WireError> {
    let offer = SnapshotOffer {
        transfer: 1,
        message,
        name: name.clone(),
    };
    Ok(SnapshotOffer::try_from(offer.into_wire()?)?.message)
}
