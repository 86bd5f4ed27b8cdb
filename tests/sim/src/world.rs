//! One simulation: nodes, a network, clients and whatever goes wrong, on one clock, from one seed.
//!
//! What happens is an `event`; the other modules say what each one does to the world: to its `nodes`, to the `roster` of
//! them, on the `network` between them, to the `clients` and the `operators`. `faults` break it, and `healing` shows that it was not broken
//! for good.

mod clients;
mod event;
mod faults;
mod healing;
mod network;
mod nodes;
mod operators;
mod roster;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use skep_core::id::{GroupId, NodeId};
use skep_core::input::{Input, Waiter};
use skep_core::message::{PeerMessage, Priority};
use skep_core::status::Status;
use skep_log::sim::Crash;

use self::clients::Who;
use self::event::Event;
use self::healing::Calm;
use self::operators::Task;
use self::roster::Leaver;
use crate::catalogue::Catalogue;
use crate::client::Client;
use crate::invariant::{Checker, Counts, Place, Violation};
use crate::nemesis::Fault;
use crate::node::Node;
use crate::random::Random;
use crate::scenario::{SECOND, Scenario};
use crate::trace::Trace;

/// How long a client or an operator waits for an answer.
const PATIENCE: u64 = 8 * SECOND;
/// Nodes there may ever be, replacements included.
const NODES_MAX: u64 = 24;

/// How a simulation went.
#[derive(Clone, Debug)]
pub struct Report {
    /// Virtual microseconds.
    pub elapsed: u64,
    /// Starts of nodes that had run before.
    pub restarts: u64,
    /// How often each fault happened.
    pub faults: BTreeMap<Fault, u64>,
    /// What the checker counted.
    pub counts: Counts,
    /// Messages delivered.
    pub messages: u64,
    /// The whole run in one number.
    pub digest: u64,
}

/// A broken promise, and when.
#[derive(Clone, Debug)]
pub struct Failure {
    /// What was broken.
    pub violation: Violation,
    /// Virtual microseconds since the start.
    pub at: u64,
    /// The run until then in one number.
    pub digest: u64,
    /// The last lines of the trace, if it was kept.
    pub lines: Vec<String>,
}

/// One simulation.
pub struct World {
    scenario: Scenario,
    random: Random,
    now: u64,
    sequence: u64,
    queue: BinaryHeap<Reverse<(u64, u64, usize)>>,
    /// Events by slot; heaps move what is in them.
    events: Vec<Option<Event>>,
    free: Vec<usize>,
    nodes: BTreeMap<u64, Node>,
    paused: BTreeMap<u64, u64>,
    slow: BTreeSet<u64>,
    /// Nodes whose machines cannot run some commands.
    sick: BTreeSet<u64>,
    full: BTreeSet<u64>,
    /// The power of a node fails behind this call of its disk.
    armed: BTreeMap<u64, u64>,
    rotten: BTreeSet<u64>,
    cuts: BTreeMap<(u64, u64), u64>,
    lanes: BTreeMap<(u64, u64, Priority), u64>,
    stale: Vec<(u64, u64, PeerMessage)>,
    catalogue: Catalogue,
    clients: Vec<Client>,
    tasks: BTreeMap<u64, Task>,
    /// Nodes that are to go for ever.
    leaving: BTreeMap<u64, Leaver>,
    waiters: BTreeMap<Waiter, Who>,
    next_waiter: Waiter,
    checker: Checker,
    trace: Trace,
    healing: bool,
    /// The terms of the groups when all was well.
    calm: Option<Calm>,
    restarts: u64,
    faults: BTreeMap<Fault, u64>,
    messages: u64,
}

impl World {
    /// A world before its first event. `lines` of its trace are kept.
    pub fn new(scenario: Scenario, lines: usize) -> Self {
        let random = Random::new(scenario.seed, 3);
        let mut world = Self {
            random,
            now: 0,
            sequence: 0,
            queue: BinaryHeap::new(),
            events: Vec::new(),
            free: Vec::new(),
            nodes: BTreeMap::new(),
            paused: BTreeMap::new(),
            slow: BTreeSet::new(),
            sick: BTreeSet::new(),
            full: BTreeSet::new(),
            armed: BTreeMap::new(),
            rotten: BTreeSet::new(),
            cuts: BTreeMap::new(),
            lanes: BTreeMap::new(),
            stale: Vec::new(),
            catalogue: Catalogue::default(),
            clients: Vec::new(),
            tasks: BTreeMap::new(),
            leaving: BTreeMap::new(),
            waiters: BTreeMap::new(),
            next_waiter: 1,
            checker: Checker::default(),
            trace: Trace::new(lines),
            healing: false,
            calm: None,
            restarts: 0,
            faults: BTreeMap::new(),
            messages: 0,
            scenario,
        };
        world.found();
        world
    }

    fn found(&mut self) {
        for id in 1..=self.scenario.nodes {
            self.nodes.insert(id, Node::new(id, &self.scenario));
        }
        for group in 1..=self.scenario.groups {
            let founders = self.draw_founders();
            self.catalogue.create(group, founders);
            for _ in 0..self.scenario.clients {
                let id = self.clients.len() as u64 + 1;
                let anonymous = self.random.one_in(5);
                let key = self.catalogue.key(group).expect("just created");
                self.clients.push(Client::new(id, key, anonymous));
            }
        }
        for id in 1..=self.scenario.nodes {
            let at = self.random.below(2 * SECOND);
            self.at(at, Event::Boot { node: id });
        }
        for client in 0..self.clients.len() {
            let first = self.random.around(self.scenario.think);
            self.wake_client(client, first);
        }
        let fault = self.random.around(self.scenario.fault);
        self.at(fault, Event::Fault);
    }

    /// Runs until everything has healed.
    pub fn run(mut self) -> Result<Report, Box<Failure>> {
        match self.drive() {
            Ok(()) => Ok(Report {
                elapsed: self.now,
                restarts: self.restarts,
                faults: self.faults,
                counts: self.checker.counts(),
                messages: self.messages,
                digest: self.trace.digest(),
            }),
            Err(violation) => Err(Box::new(Failure {
                violation,
                at: self.now,
                digest: self.trace.digest(),
                lines: self.trace.lines().map(str::to_owned).collect(),
            })),
        }
    }

    fn drive(&mut self) -> Result<(), Violation> {
        let end = self.scenario.seconds * SECOND;
        loop {
            let Reverse((at, _, slot)) = self.queue.pop().expect("nodes always have a next tick");
            if at >= end && !self.healing {
                self.heal();
                // What was taken out goes back to its place.
                self.sequence += 1;
                self.queue.push(Reverse((at, self.sequence, slot)));
                continue;
            }
            self.now = at;
            let event = self.events[slot].take().expect("each slot is used once");
            self.free.push(slot);
            let paused = event
                .node()
                .and_then(|node| self.paused.get(&node))
                .copied();
            if let Some(until) = paused.filter(|until| *until > at) {
                self.at(until, event);
                continue;
            }
            self.trace.hash((at, event.tag(), event.node()));
            if let Event::Look = event {
                if self.look(end)? {
                    return Ok(());
                }
                continue;
            }
            self.dispatch(event)?;
        }
    }

    fn dispatch(&mut self, event: Event) -> Result<(), Violation> {
        match event {
            Event::Tick { node, boot } => {
                if self.runs(node, boot) {
                    self.after(self.scenario.tick, Event::Tick { node, boot });
                    self.step(node, Node::tick)?;
                }
            }
            Event::Deliver {
                from,
                to,
                boot,
                message,
            } => {
                let here = self
                    .nodes
                    .get(&to)
                    .is_some_and(|node| boot.is_none_or(|boot| node.boots == boot));
                if here && !self.is_cut(from, to) {
                    self.messages += 1;
                    let input = Input::Message {
                        from: NodeId(from),
                        message,
                    };
                    let Input::Message { message, .. } = &input else {
                        unreachable!("just made")
                    };
                    let group = message.group;
                    self.input(to, group, input)?;
                }
            }
            Event::Snapshot {
                from,
                from_boot,
                to,
                message,
                name,
                file,
                reported,
            } => {
                let group = message.group;
                let mut arrived = false;
                if !self.is_cut(from, to) {
                    let taken = &mut arrived;
                    self.step(to, |node, _, context| {
                        *taken = node.receive(from, message, name, &file, context)?;
                        Ok(())
                    })?;
                }
                let sent = Event::SnapshotSent {
                    node: from,
                    boot: from_boot,
                    group,
                    to,
                    arrived,
                };
                if reported {
                    let delay = self.delay();
                    self.after(delay, sent);
                }
            }
            Event::SnapshotSent {
                node,
                boot,
                group,
                to,
                arrived,
            } => {
                if self.runs(node, boot) {
                    let node_id = NodeId(to);
                    let input = Input::SnapshotSent {
                        node: node_id,
                        arrived,
                    };
                    self.input(node, group, input)?;
                }
            }
            Event::Unreachable {
                node,
                boot,
                group,
                to,
            } => {
                if self.runs(node, boot) {
                    self.input(node, group, Input::Unreachable { node: NodeId(to) })?;
                }
            }
            Event::Gone { node, boot, gone } => {
                let groups: Vec<u64> = self.catalogue.groups.keys().copied().collect();
                for group in groups {
                    if self.runs(node, boot) {
                        let input = Input::NodeGone { node: NodeId(gone) };
                        self.input(node, GroupId(group), input)?;
                    }
                }
            }
            Event::Request {
                node,
                boot,
                group,
                input,
            } => {
                if self.runs(node, boot) {
                    self.input(node, group, input)?;
                }
            }
            Event::Sync { node, boot } => {
                if self.runs(node, boot) {
                    self.step(node, |node, _, context| node.sync(context))?;
                }
            }
            Event::Work {
                node,
                boot,
                group,
                life,
            } => {
                if self.runs(node, boot) {
                    self.step(node, |node, _, context| node.work(group, life, context))?;
                }
            }
            Event::StartAgain {
                node,
                boot,
                group,
                life,
            } => {
                if self.runs(node, boot) {
                    let mut started = true;
                    self.step(node, |node, scenario, context| {
                        started = node.start_again(group, life, scenario, context)?;
                        Ok(())
                    })?;
                    if !started {
                        self.start_again(node, boot, (group, life), SECOND / 10);
                    }
                }
            }
            Event::Boot { node } => self.boot(node)?,
            Event::Reconcile { node } => {
                let catalogue = self.catalogue.clone();
                self.step(node, |node, scenario, context| {
                    node.catalogue = catalogue;
                    node.reconcile(scenario, context)
                })?;
            }
            Event::Client { client, turn } => {
                if self.clients[client].turn == turn {
                    self.client(client)?;
                }
            }
            Event::Operator { group, turn } => {
                if self.tasks.get(&group).is_some_and(|task| task.turn == turn) {
                    self.operate(group)?;
                }
            }
            Event::Dismiss => self.dismiss(),
            Event::Discard { node } => self.destroy(node),
            Event::Fault => {
                if !self.healing {
                    let next = self.random.around(self.scenario.fault);
                    self.after(next, Event::Fault);
                    let fault = *self.random.pick(&Fault::ALL).expect("there are some");
                    if self.scenario.faults.contains(&fault) && self.strike(fault)? {
                        *self.faults.entry(fault).or_default() += 1;
                    }
                }
            }
            Event::Flap { node, times } => {
                if self.nodes[&node].is_up() {
                    self.crash(node, Some(Crash::ProcessOnly));
                }
                // Back before anybody has noticed.
                let down = self.random.around(SECOND / 20);
                self.after(down, Event::Boot { node });
                if times > 0 && !self.healing {
                    let lives = down + self.random.around(SECOND / 2);
                    let times = times - 1;
                    self.after(lives, Event::Flap { node, times });
                }
            }
            Event::Mend(mend) => self.mend(mend),
            Event::Look => {}
        }
        Ok(())
    }

    // Time.

    fn at(&mut self, at: u64, event: Event) {
        self.sequence += 1;
        let slot = match self.free.pop() {
            Some(slot) => {
                self.events[slot] = Some(event);
                slot
            }
            None => {
                self.events.push(Some(event));
                self.events.len() - 1
            }
        };
        self.queue
            .push(Reverse((at.max(self.now), self.sequence, slot)));
    }

    fn after(&mut self, delay: u64, event: Event) {
        self.at(self.now + delay, event);
    }

    fn statuses(&self, group: u64) -> Vec<(Place, Status, Option<u64>)> {
        let Some(key) = self.catalogue.key(group) else {
            return Vec::new();
        };
        self.nodes
            .values()
            .flat_map(Node::replicas)
            .filter(|(place, _, _)| place.key == key)
            .collect()
    }
}
