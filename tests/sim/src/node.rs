//! One node: a simulated disk with the real log on it, and the real replicas, driven as the host's shards, log writer and
//! workers drive them.

mod replica;
mod running;

use bytes::Bytes;
use skep_core::id::{GroupId, Incarnation, LogIndex, NodeId};
use skep_core::input::{Input, Waiter};
use skep_core::message::{ArrivedSnapshot, PeerMessage, SnapshotName};
use skep_core::proposal::{ProposalError, Response};
use skep_core::status::{Health, Status};
use skep_core::{GroupConfig, Member};
use skep_log::sim::Crash;
use skep_log::{GroupKey, LogError, SimVfs};
use skep_store::convert;

use self::running::Running;
use crate::catalogue::Catalogue;
use crate::invariant::{Checker, Place, Violation};
use crate::scenario::Scenario;
use crate::trace::Trace;

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
    /// A machine has failed: call [`Node::start_again`] in a while.
    Failed {
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
    /// The machines of the node cannot run some of the commands.
    pub sick: bool,
    /// How often the node can take no image, or use none, of a thousand times.
    pub unable: u64,
    /// Seconds that a component is on its way, at the most.
    pub fetch_seconds: u64,
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
    /// It is to go for ever.
    pub leaves: bool,
    /// Its wall clock is this far from the world's, in microseconds.
    pub skew: i64,
    running: Option<Running>,
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
            leaves: false,
            skew: 0,
            running: None,
        }
    }

    /// Whether it runs.
    pub fn is_up(&self) -> bool {
        self.running.is_some()
    }

    /// Whether anything may be put on it.
    pub fn stays(&self) -> bool {
        !self.destroyed && !self.leaves
    }

    /// Opens the disk and brings up what the catalogue says.
    pub fn boot(&mut self, scenario: &Scenario, context: &mut Context<'_>) -> Result<(), Stop> {
        self.boots += 1;
        self.running = Some(Running::open(self.id, self.boots, &self.vfs, scenario)?);
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
                // Some groups name who leads first, and the others wait for a timeout.
                let first = config.members.iter().map(|founder| founder.node).min();
                config.first_leader =
                    first.filter(|_| (key.group + key.incarnation).is_multiple_of(2));
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

    /// A replica whose machine has failed starts again from what is on the disk; `false` if it must wait.
    pub fn start_again(
        &mut self,
        group: GroupId,
        life: u64,
        scenario: &Scenario,
        context: &mut Context<'_>,
    ) -> Result<bool, Stop> {
        let Some(running) = &mut self.running else {
            return Ok(true);
        };
        if !running.give_up(group, life, context)? {
            return Ok(false);
        }
        self.reconcile(scenario, context)?;
        Ok(true)
    }

    /// Its machine of a group goes wrong; `false` if there is none.
    pub fn go_wrong(&mut self, key: GroupKey) -> bool {
        let running = self.running.iter_mut();
        let mut replicas = running.flat_map(|running| running.replicas.values_mut());
        let replica = replicas.find(|replica| replica.place.key == key);
        let driver = replica.and_then(|replica| replica.driver.as_mut());
        driver
            .map(|driver| driver.machine_mut().go_wrong())
            .is_some()
    }

    /// Whether it has a replica of this life of a group.
    pub fn hosts(&self, key: GroupKey) -> bool {
        self.replicas().any(|(place, _, _)| place.key == key)
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
                    replica
                        .driver
                        .as_ref()
                        .map(|driver| driver.machine().state()),
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
