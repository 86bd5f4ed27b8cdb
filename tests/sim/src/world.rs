//! One simulation: nodes, a network, clients and whatever goes wrong, on one clock, from one seed.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::io;

use bytes::Bytes;
use skep_core::id::{GroupId, LogIndex, NodeId};
use skep_core::input::{Input, Waiter};
use skep_core::message::{Body, PeerMessage, Priority, SnapshotName};
use skep_core::proposal::{Change, ChangeRefusal, Proposal, ProposalError, Response};
use skep_core::state::Role;
use skep_core::status::{Part, Status};
use skep_log::sim::Crash;
use skep_log::{GroupKey, LogError};

use crate::catalogue::Catalogue;
use crate::client::{Client, Kind, Settled};
use crate::invariant::{Checker, Counts, Place, Violation};
use crate::nemesis::Fault;
use crate::node::{Context, Node, Out, Stop};
use crate::random::Random;
use crate::scenario::{SECOND, Scenario};
use crate::trace::{Trace, list};

/// Time that everything has to become well again when nothing goes wrong any more.
const HEALING: u64 = 300 * SECOND;
/// How long a client or an operator waits for an answer.
const PATIENCE: u64 = 8 * SECOND;
/// Messages of long ago that are kept, to arrive again.
const STALE: usize = 64;
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

#[derive(Debug)]
enum Event {
    Tick {
        node: u64,
        boot: u64,
    },
    Deliver {
        from: u64,
        to: u64,
        /// The receiver's start that its connection belongs to.
        boot: Option<u64>,
        message: PeerMessage,
    },
    Snapshot {
        from: u64,
        from_boot: u64,
        to: u64,
        message: PeerMessage,
        name: SnapshotName,
        file: Bytes,
        /// The sender waits to hear of this one; of a copy nobody does.
        reported: bool,
    },
    SnapshotSent {
        node: u64,
        boot: u64,
        group: GroupId,
        to: u64,
        arrived: bool,
    },
    Unreachable {
        node: u64,
        boot: u64,
        group: GroupId,
        to: u64,
    },
    /// A client's request.
    Request {
        node: u64,
        boot: u64,
        group: GroupId,
        input: Input,
    },
    Sync {
        node: u64,
        boot: u64,
    },
    Work {
        node: u64,
        boot: u64,
        group: GroupId,
        life: u64,
    },
    Boot {
        node: u64,
    },
    Reconcile {
        node: u64,
    },
    Client {
        client: usize,
        /// Only its last appointment counts.
        turn: u64,
    },
    Operator {
        group: u64,
        turn: u64,
    },
    Fault,
    /// A process that has just started ends, so many more times.
    Flap {
        node: u64,
        times: u64,
    },
    /// A fault is over.
    Mend(Mend),
    Look,
}

#[derive(Clone, Debug)]
enum Mend {
    Cut(Vec<(u64, u64)>),
    Full(u64),
    Slow(u64),
}

/// A change of membership that an operator wants done.
#[derive(Clone, Debug)]
struct Task {
    key: GroupKey,
    add: bool,
    /// It is to vote, when it is added.
    votes: bool,
    node: u64,
    waiting: Option<Waiter>,
    turn: u64,
    /// Given up then, unless the node is gone for ever.
    until: u64,
}

enum Who {
    Client(usize),
    Operator(u64),
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
    waiters: BTreeMap<Waiter, Who>,
    next_waiter: Waiter,
    checker: Checker,
    trace: Trace,
    healing: bool,
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
            full: BTreeSet::new(),
            armed: BTreeMap::new(),
            rotten: BTreeSet::new(),
            cuts: BTreeMap::new(),
            lanes: BTreeMap::new(),
            stale: Vec::new(),
            catalogue: Catalogue::default(),
            clients: Vec::new(),
            tasks: BTreeMap::new(),
            waiters: BTreeMap::new(),
            next_waiter: 1,
            checker: Checker::default(),
            trace: Trace::new(lines),
            healing: false,
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
                match self.is_healed() {
                    Ok(()) => return self.check_healed(),
                    Err(why) if at > end + HEALING => {
                        return Err(Violation {
                            invariant: "liveness",
                            text: format!(
                                "not healed {} s after the last fault: {why}",
                                HEALING / SECOND
                            ),
                        });
                    }
                    Err(_) => self.after(SECOND, Event::Look),
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

    // Nodes.

    fn runs(&self, node: u64, boot: u64) -> bool {
        self.nodes
            .get(&node)
            .is_some_and(|node| node.boots == boot && node.is_up())
    }

    fn up(&self) -> Vec<u64> {
        let up = self.nodes.values().filter(|node| node.is_up());
        up.map(|node| node.id).collect()
    }

    /// Lets a node do something, then does what it wants; if its disk fails it, it ends.
    fn step(
        &mut self,
        id: u64,
        work: impl FnOnce(&mut Node, &Scenario, &mut Context<'_>) -> Result<(), Stop>,
    ) -> Result<(), Violation> {
        let mut out = Vec::new();
        let Some(node) = self.nodes.get_mut(&id) else {
            return Ok(());
        };
        let mut context = Context {
            now: self.now,
            checker: &mut self.checker,
            trace: &mut self.trace,
            out: &mut out,
        };
        let result = work(node, &self.scenario, &mut context);
        let boot = node.boots;
        match result {
            Ok(()) => {
                self.carry_out(id, boot, out)?;
                // A machine that cannot write its snapshot reports its failure itself; a node without power does not.
                if self.power_has_failed(id) {
                    self.crash(id, None);
                }
                Ok(())
            }
            Err(Stop::Violation(violation)) => Err(violation),
            Err(Stop::Disk(error)) => {
                // What it wanted before its disk failed it may have left; a process does not end between two lines.
                self.carry_out(id, boot, out)?;
                self.disk_failed(id, error)
            }
        }
    }

    fn power_has_failed(&self, id: u64) -> bool {
        self.armed
            .get(&id)
            .is_some_and(|last| self.nodes[&id].vfs.calls() > *last)
    }

    fn disk_failed(&mut self, id: u64, error: LogError) -> Result<(), Violation> {
        if self.power_has_failed(id) {
            self.crash(id, None);
            return Ok(());
        }
        self.trace
            .line(self.now, || format!("node {id} ends: {error}"));
        let is_damage = !matches!(error, LogError::Io { .. } | LogError::Poisoned { .. });
        if is_damage && self.rotten.contains(&id) {
            self.destroy(id);
            return Ok(());
        }
        if is_damage {
            return Err(Violation {
                invariant: "recovery",
                text: format!("node {id} cannot use its own disk: {error}"),
            });
        }
        // The process ends by itself; the system keeps what it wrote.
        self.crash(id, Some(Crash::ProcessOnly));
        Ok(())
    }

    fn crash(&mut self, id: u64, crash: Option<Crash>) {
        let crash = crash.unwrap_or_else(|| match self.random.below(4) {
            0 => Crash::LoseAll,
            1 => Crash::TearLast(self.random.word()),
            _ => Crash::Subset(self.random.word()),
        });
        self.armed.remove(&id);
        self.paused.remove(&id);
        self.trace
            .line(self.now, || format!("node {id} is down: {crash:?}"));
        if let Some(node) = self.nodes.get_mut(&id) {
            node.crash(crash);
        }
        // Some come back before anybody has noticed.
        let down = match self.random.one_in(3) {
            true => self.random.around(SECOND / 20),
            false => self.random.around(3 * SECOND),
        };
        self.after(down, Event::Boot { node: id });
    }

    /// A node's disk is lost for ever; operators will replace it.
    fn destroy(&mut self, id: u64) {
        self.trace
            .line(self.now, || format!("node {id} is lost for ever"));
        self.armed.remove(&id);
        self.paused.remove(&id);
        if let Some(node) = self.nodes.get_mut(&id) {
            node.crash(Crash::LoseAll);
            node.destroyed = true;
        }
        self.replace_destroyed();
    }

    fn boot(&mut self, id: u64) -> Result<(), Violation> {
        let Some(node) = self.nodes.get(&id) else {
            return Ok(());
        };
        if node.is_up() || node.destroyed {
            return Ok(());
        }
        if node.boots > 0 {
            self.restarts += 1;
        } else {
            let catalogue = self.catalogue.clone();
            if let Some(node) = self.nodes.get_mut(&id) {
                node.catalogue = catalogue;
            }
        }
        self.trace.line(self.now, || format!("node {id} starts"));
        self.step(id, Node::boot)?;
        let boot = self.nodes[&id].boots;
        if self.runs(id, boot) {
            let first = self.random.below(self.scenario.tick);
            self.after(first, Event::Tick { node: id, boot });
            let learns = self.random.around(SECOND);
            self.after(learns, Event::Reconcile { node: id });
        }
        Ok(())
    }

    /// Something happens to a replica.
    fn input(&mut self, node: u64, group: GroupId, input: Input) -> Result<(), Violation> {
        self.step(node, |node, _, context| node.handle(group, input, context))
    }

    fn carry_out(&mut self, node: u64, boot: u64, out: Vec<Out>) -> Result<(), Violation> {
        for out in out {
            match out {
                Out::Send { to, message } => self.send(node, boot, to, message),
                Out::Snapshot {
                    to,
                    message,
                    name,
                    file,
                } => {
                    let lost = self.random.per_mille(self.scenario.loss) || self.is_cut(node, to);
                    let delay = self.delay() * 3;
                    if lost {
                        let lost = Event::SnapshotSent {
                            node,
                            boot,
                            group: message.group,
                            to,
                            arrived: false,
                        };
                        self.after(delay, lost);
                    } else {
                        let snapshot = |message, reported| Event::Snapshot {
                            from: node,
                            from_boot: boot,
                            to,
                            message,
                            name: name.clone(),
                            file: file.clone(),
                            reported,
                        };
                        // What a connection that was given up had received may be taken for whole later.
                        if self.random.one_in(4) {
                            let late = delay + self.random.around(SECOND);
                            self.after(late, snapshot(message.clone(), false));
                        }
                        self.after(delay, snapshot(message, true));
                    }
                }
                Out::Sync => {
                    let mut time = self.random.around(self.scenario.disk);
                    if self.slow.contains(&node) {
                        time *= 50;
                    }
                    self.after(time, Event::Sync { node, boot });
                }
                Out::Work { group, life } => {
                    let time = self.random.around(self.scenario.apply);
                    let work = Event::Work {
                        node,
                        boot,
                        group,
                        life,
                    };
                    self.after(time, work);
                }
                Out::Reply {
                    place,
                    waiter,
                    result,
                } => self.replied(place, waiter, &result)?,
                Out::Answer {
                    place,
                    waiter,
                    result,
                } => self.read(place, waiter, result)?,
            }
        }
        Ok(())
    }

    // The network.

    fn is_cut(&self, from: u64, to: u64) -> bool {
        self.cuts.contains_key(&(from, to))
    }

    fn delay(&mut self) -> u64 {
        self.random.around(self.scenario.delay)
    }

    fn send(&mut self, from: u64, from_boot: u64, to: u64, message: PeerMessage) {
        self.trace.line(self.now, || {
            format!("{from} → {to}: {}", describe(&message))
        });
        let lost = self.is_cut(from, to) || self.random.per_mille(self.scenario.loss);
        let Some(receiver) = self.nodes.get(&to).filter(|node| !lost && node.is_up()) else {
            let unreachable = Event::Unreachable {
                node: from,
                boot: from_boot,
                group: message.group,
                to,
            };
            if self.random.one_in(2) {
                let delay = self.delay();
                self.after(delay, unreachable);
            }
            return;
        };
        let boot = Some(receiver.boots);
        // The transport gives each message at most once, in order within a lane. Only Raft's own are safe to repeat, and
        // a connection that was replaced may still hold some.
        let repeatable = matches!(message.body, Body::Raft(_));
        if repeatable && self.random.one_in(200) {
            if self.stale.len() == STALE {
                let at = self.random.below(STALE as u64) as usize;
                self.stale.swap_remove(at);
            }
            self.stale.push((from, to, message.clone()));
        }
        if repeatable && !self.healing && self.random.per_mille(self.scenario.duplicates) {
            let late = self.random.around(SECOND);
            let copy = Event::Deliver {
                from,
                to,
                boot,
                message: message.clone(),
            };
            self.after(late, copy);
        }
        let delay = self.delay();
        let lane = (from, to, message.body.priority());
        let at = (self.now + delay).max(self.lanes.get(&lane).map_or(0, |last| last + 1));
        self.lanes.insert(lane, at);
        let deliver = Event::Deliver {
            from,
            to,
            boot,
            message,
        };
        self.at(at, deliver);
    }

    // Clients.

    /// A request on its way to a node; if that ends before, nobody answers.
    fn request(&mut self, node: u64, group: GroupId, input: Input) {
        let boot = self.nodes[&node].boots;
        let delay = self.delay();
        let request = Event::Request {
            node,
            boot,
            group,
            input,
        };
        self.after(delay, request);
    }

    fn waiter(&mut self, who: Who) -> Waiter {
        self.next_waiter += 1;
        self.waiters.insert(self.next_waiter, who);
        self.next_waiter
    }

    fn a_host(&mut self, key: GroupKey) -> Option<u64> {
        let record = self.catalogue.groups.get(&key.group)?;
        let up: Vec<u64> = record
            .hosts
            .iter()
            .copied()
            .filter(|node| self.nodes.get(node).is_some_and(Node::is_up))
            .collect();
        self.random.pick(&up).copied()
    }

    fn client(&mut self, index: usize) -> Result<(), Violation> {
        let key = self.clients[index].key;
        let current = self.catalogue.key(key.group);
        let client = &mut self.clients[index];
        if let Some(current) = current.filter(|current| *current != key) {
            client.begin_anew(current);
        }
        let key = client.key;
        match &client.operation {
            None if self.healing => return Ok(()),
            None => {
                let floor = self.checker.begins(key);
                client.begin(floor, &mut self.random);
            }
            Some(operation) => {
                if let Some(waiter) = operation.waiting {
                    self.waiters.remove(&waiter);
                    client.timed_out();
                    if client.operation.is_none() {
                        self.wake_client(index, 1);
                        return Ok(());
                    }
                }
            }
        }
        let Some(node) = self.a_host(key) else {
            self.wake_client(index, SECOND);
            return Ok(());
        };
        let waiter = self.waiter(Who::Client(index));
        let client = &mut self.clients[index];
        self.trace.line(self.now, || {
            format!(
                "client {} asks node {node} as waiter {waiter}: {}",
                client.id,
                client.describe()
            )
        });
        let proposal = client.proposal(self.scenario.ballast);
        let operation = client.operation.as_mut().expect("begun above");
        operation.waiting = Some(waiter);
        let input = match proposal {
            Some(proposal) => Input::Propose { waiter, proposal },
            None => Input::Query {
                waiter,
                request: Bytes::new(),
                linearizable: operation.kind == Kind::Read,
            },
        };
        self.wake_client(index, PATIENCE);
        self.request(node, GroupId(key.group), input);
        Ok(())
    }

    fn replied(
        &mut self,
        place: Place,
        waiter: Waiter,
        result: &Result<Response, ProposalError>,
    ) -> Result<(), Violation> {
        match self.waiters.remove(&waiter) {
            Some(Who::Client(index)) => {
                let client = &mut self.clients[index];
                // An answer to what it asked before the group was created anew says nothing of what it asks now.
                let Some(operation) = client
                    .operation
                    .as_ref()
                    .filter(|operation| operation.waiting == Some(waiter))
                else {
                    return Ok(());
                };
                let floor = operation.floor;
                self.trace.line(self.now, || {
                    format!(
                        "client {} hears from node {} of {} as waiter {waiter}: {result:?}",
                        client.id, place.node, place.key
                    )
                });
                if client.key != place.key {
                    return Ok(());
                }
                let settled = client.answered(result);
                if let (Settled::Applied(command), Ok(response)) = (settled, result) {
                    self.checker.acknowledged(
                        place,
                        command,
                        floor,
                        response.index.0,
                        &response.outcome,
                    )?;
                }
                let pause = match settled {
                    Settled::Retry => self.random.around(SECOND / 4),
                    _ => self.random.around(self.scenario.think),
                };
                self.wake_client(index, pause);
                Ok(())
            }
            Some(Who::Operator(group)) => {
                self.operated(group, result);
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn read(
        &mut self,
        place: Place,
        waiter: Waiter,
        result: Result<(LogIndex, u64), ProposalError>,
    ) -> Result<(), Violation> {
        let Some(Who::Client(index)) = self.waiters.remove(&waiter) else {
            return Ok(());
        };
        let client = &mut self.clients[index];
        if client.key != place.key {
            return Ok(());
        }
        let Some(operation) = client
            .operation
            .as_mut()
            .filter(|operation| operation.waiting == Some(waiter))
        else {
            return Ok(());
        };
        operation.waiting = None;
        let pause = match result {
            Ok((index, state)) => {
                let linearizable = operation.kind == Kind::Read;
                let floor = operation.floor;
                client.operation = None;
                self.checker
                    .read(place, floor, index.0, state, linearizable)?;
                self.random.around(self.scenario.think)
            }
            Err(_) => self.random.around(SECOND / 4),
        };
        self.wake_client(index, pause);
        Ok(())
    }

    /// The client looks up again after so long, or earlier if it is told to before.
    fn wake_client(&mut self, index: usize, delay: u64) {
        let client = &mut self.clients[index];
        client.turn += 1;
        let turn = client.turn;
        self.after(
            delay,
            Event::Client {
                client: index,
                turn,
            },
        );
    }

    // Operators.

    fn wake_operator(&mut self, group: u64, delay: u64) {
        if let Some(task) = self.tasks.get_mut(&group) {
            task.turn += 1;
            let turn = task.turn;
            self.after(delay, Event::Operator { group, turn });
        }
    }

    /// Tells all nodes of the catalogue, sooner or later.
    fn publish(&mut self) {
        for id in self.up() {
            let learns = self.random.around(SECOND);
            self.after(learns, Event::Reconcile { node: id });
        }
    }

    fn begin_task(&mut self, group: u64, add: bool, node: u64) {
        let Some(key) = self.catalogue.key(group) else {
            return;
        };
        if self.tasks.contains_key(&group) {
            return;
        }
        self.trace.line(self.now, || {
            let verb = if add { "add" } else { "remove" };
            format!("operator: {verb} node {node} of {key}")
        });
        if add && let Some(record) = self.catalogue.groups.get_mut(&group) {
            record.hosts.insert(node);
            record.joiners.insert(node);
            self.publish();
        }
        let task = Task {
            key,
            add,
            votes: !self.random.one_in(3),
            node,
            waiting: None,
            // Turns of a former task must not be taken for one of this.
            turn: self.sequence,
            until: self.now + 120 * SECOND,
        };
        self.tasks.insert(group, task);
        self.wake_operator(group, SECOND);
    }

    fn operate(&mut self, group: u64) -> Result<(), Violation> {
        let Some(task) = self.tasks.get(&group).cloned() else {
            return Ok(());
        };
        if self.catalogue.key(group) != Some(task.key) {
            self.tasks.remove(&group);
            return Ok(());
        }
        let gone = self.nodes.get(&task.node).is_none_or(|node| node.destroyed);
        if self.now > task.until && (task.add || !gone) {
            self.tasks.remove(&group);
            return Ok(());
        }
        if let Some(waiter) = task.waiting {
            self.waiters.remove(&waiter);
        }
        self.wake_operator(group, PATIENCE);
        let Some(node) = self.a_host(task.key) else {
            return Ok(());
        };
        let waiter = self.waiter(Who::Operator(group));
        if let Some(task) = self.tasks.get_mut(&group) {
            task.waiting = Some(waiter);
        }
        let (target, data) = (NodeId(task.node), Bytes::new());
        let change = match (task.add, task.votes) {
            (true, true) => Change::Add { node: target, data },
            (true, false) => Change::AddLearner { node: target, data },
            (false, _) => Change::Remove { node: target, data },
        };
        let proposal = Proposal::Change(change);
        self.request(node, GroupId(group), Input::Propose { waiter, proposal });
        Ok(())
    }

    fn operated(&mut self, group: u64, result: &Result<Response, ProposalError>) {
        let Some(task) = self.tasks.get_mut(&group) else {
            return;
        };
        task.waiting = None;
        let done = match result {
            Ok(_) => true,
            Err(ProposalError::ChangeRefused(ChangeRefusal::AlreadyMember)) => task.add,
            Err(ProposalError::ChangeRefused(ChangeRefusal::NotMember)) => !task.add,
            Err(_) => false,
        };
        if !done {
            let pause = self.random.around(SECOND);
            self.wake_operator(group, pause);
            return;
        }
        let task = self.tasks.remove(&group).expect("seen above");
        self.trace.line(self.now, || {
            format!("operator: node {} of {} is done", task.node, task.key)
        });
        if !task.add
            && self.catalogue.key(group) == Some(task.key)
            && let Some(record) = self.catalogue.groups.get_mut(&group)
        {
            record.hosts.remove(&task.node);
            record.joiners.remove(&task.node);
            self.publish();
        }
    }

    /// Operators take nodes that are gone for ever out of their groups, and put others in.
    fn replace_destroyed(&mut self) {
        let mut tasks = Vec::new();
        for (group, record) in &self.catalogue.groups {
            let gone = record
                .hosts
                .iter()
                .find(|node| self.nodes.get(node).is_none_or(|node| node.destroyed));
            tasks.extend(gone.map(|node| (*group, *node)));
        }
        for (group, node) in tasks {
            self.begin_task(group, false, node);
        }
    }

    /// A change that an operator gave up may be done later by a leader of then: operators undo it.
    fn remove_strays(&mut self) {
        let mut tasks = Vec::new();
        for (group, record) in &self.catalogue.groups {
            let statuses = self.statuses(*group);
            let leader = statuses
                .iter()
                .find(|(_, status, _)| status.part == Part::Leader);
            let stray = leader.and_then(|(_, status, _)| {
                let mut members = status.members.iter();
                members.find(|member| !record.hosts.contains(&member.node.0))
            });
            tasks.extend(stray.map(|member| (*group, member.node.0)));
        }
        for (group, node) in tasks {
            self.begin_task(group, false, node);
        }
    }

    // Faults.

    /// Whether it could be done.
    fn strike(&mut self, fault: Fault) -> Result<bool, Violation> {
        let up = self.up();
        let groups: Vec<u64> = self.catalogue.groups.keys().copied().collect();
        let group = *self.random.pick(&groups).expect("there are groups");
        let Some(id) = self.random.pick(&up).copied() else {
            return Ok(false);
        };
        self.trace
            .line(self.now, || format!("fault: {fault:?} (node {id})"));
        match fault {
            Fault::Crash => self.crash(id, None),
            Fault::Kill => self.crash(id, Some(Crash::ProcessOnly)),
            Fault::Flap => {
                let times = self.random.range(2, 8);
                self.after(1, Event::Flap { node: id, times });
            }
            Fault::PowerCut => {
                let last = self.nodes[&id].vfs.calls() + self.random.below(40);
                self.nodes[&id].vfs.cut_power_after(last);
                self.armed.insert(id, last);
            }
            Fault::DiskError => {
                let number = self.nodes[&id].vfs.calls() + 1 + self.random.below(40);
                self.nodes[&id].vfs.fail_call(number, io::ErrorKind::Other);
            }
            Fault::DiskFull => {
                let used: usize = self.used(id);
                let free = self.random.below(64 << 10);
                self.nodes[&id].vfs.limit_capacity(Some(used as u64 + free));
                self.full.insert(id);
                let lasts = self.random.around(10 * SECOND);
                self.after(lasts, Event::Mend(Mend::Full(id)));
            }
            Fault::DiskSlow => {
                self.slow.insert(id);
                let lasts = self.random.around(20 * SECOND);
                self.after(lasts, Event::Mend(Mend::Slow(id)));
            }
            Fault::BitRot => return Ok(self.rot(id)),
            Fault::Wipe => {
                if !self.may_lose(id) {
                    return Ok(false);
                }
                self.destroy(id);
            }
            Fault::Pause => {
                let id = self.victim(group, id);
                let lasts = self.random.around(3 * SECOND);
                self.paused.insert(id, self.now + lasts);
                if self.random.one_in(2) {
                    let pairs = self.pairs_of(&BTreeSet::from([id]));
                    let lasts = lasts + self.random.below(SECOND / 2);
                    self.cut(pairs, lasts);
                }
            }
            Fault::Partition => {
                let all: Vec<u64> = self.nodes.keys().copied().collect();
                let side: BTreeSet<u64> = match self.random.one_in(2) {
                    true => BTreeSet::from([self.victim(group, id)]),
                    false => all
                        .iter()
                        .copied()
                        .filter(|_| self.random.one_in(2))
                        .collect(),
                };
                let pairs = self.pairs_of(&side);
                let lasts = self.random.around(5 * SECOND);
                self.cut(pairs, lasts);
            }
            Fault::OneWay => {
                let all: Vec<u64> = self.nodes.keys().copied().collect();
                let to = *self.random.pick(&all).expect("there are nodes");
                if to == id {
                    return Ok(false);
                }
                let lasts = self.random.around(5 * SECOND);
                self.cut(vec![(id, to)], lasts);
            }
            Fault::Stale => {
                let Some((from, to, message)) = self.random.pick(&self.stale).cloned() else {
                    return Ok(false);
                };
                let deliver = Event::Deliver {
                    from,
                    to,
                    boot: None,
                    message,
                };
                self.after(1, deliver);
            }
            Fault::Membership => return Ok(self.churn(group)),
            Fault::Transfer => {
                let all: Vec<u64> = self.nodes.keys().copied().collect();
                let to = *self.random.pick(&all).expect("there are nodes");
                self.request(id, GroupId(group), Input::Transfer { to: NodeId(to) });
            }
            Fault::Campaign => self.request(id, GroupId(group), Input::Campaign),
            Fault::Snapshot => {
                let proposal = Proposal::Barrier;
                let waiter = 0;
                self.request(id, GroupId(group), Input::Propose { waiter, proposal });
            }
            Fault::Recreate => {
                let founders = self.draw_founders();
                self.trace.line(self.now, || {
                    format!("group {group} is created anew on {}", list(&founders))
                });
                if let Some(former) = self.catalogue.key(group) {
                    self.checker.ended(former);
                }
                self.catalogue.create(group, founders);
                self.tasks.remove(&group);
                self.publish();
            }
            Fault::Clock => {
                let seconds = self.random.below(600) as i64 - 300;
                if let Some(node) = self.nodes.get_mut(&id) {
                    node.skew = seconds * SECOND as i64;
                }
            }
        }
        Ok(true)
    }

    fn draw_founders(&mut self) -> Vec<u64> {
        let mut all: Vec<u64> = self
            .nodes
            .values()
            .filter(|node| !node.destroyed && !self.rotten.contains(&node.id))
            .map(|node| node.id)
            .collect();
        // A group needs three to lose one.
        let count = match self.random.below(6) {
            0 => 1,
            1 => self.random.range(1, self.scenario.voters),
            _ => self.scenario.voters,
        };
        let mut founders = Vec::new();
        while founders.len() < count as usize && !all.is_empty() {
            let at = self.random.below(all.len() as u64) as usize;
            founders.push(all.swap_remove(at));
        }
        founders.sort_unstable();
        founders
    }

    fn used(&self, id: u64) -> usize {
        let vfs = &self.nodes[&id].vfs;
        vfs.files()
            .iter()
            .filter_map(|file| vfs.content(file))
            .map(|content| content.len())
            .sum()
    }

    /// Half the time the node that leads the group, because leaders have the most to lose.
    fn victim(&mut self, group: u64, otherwise: u64) -> u64 {
        let leader = self
            .statuses(group)
            .into_iter()
            .find(|(_, status, _)| status.part == Part::Leader)
            .map(|(place, _, _)| place.node);
        leader
            .filter(|_| self.random.one_in(2))
            .unwrap_or(otherwise)
    }

    /// Both ways between these nodes and all others.
    fn pairs_of(&self, side: &BTreeSet<u64>) -> Vec<(u64, u64)> {
        let all = || self.nodes.keys().copied();
        all()
            .flat_map(|from| all().map(move |to| (from, to)))
            .filter(|(from, to)| side.contains(from) != side.contains(to))
            .collect()
    }

    fn cut(&mut self, pairs: Vec<(u64, u64)>, lasts: u64) {
        for pair in &pairs {
            *self.cuts.entry(*pair).or_default() += 1;
        }
        self.after(lasts, Event::Mend(Mend::Cut(pairs)));
    }

    fn mend(&mut self, mend: Mend) {
        match mend {
            Mend::Cut(pairs) => {
                for pair in pairs {
                    if let Some(count) = self.cuts.get_mut(&pair) {
                        *count -= 1;
                        if *count == 0 {
                            self.cuts.remove(&pair);
                        }
                    }
                }
            }
            Mend::Full(id) => {
                self.full.remove(&id);
                self.nodes[&id].vfs.limit_capacity(None);
            }
            Mend::Slow(id) => {
                self.slow.remove(&id);
            }
        }
    }

    /// Whether no group would lose its majority, for ever, with this node's disk.
    fn may_lose(&self, id: u64) -> bool {
        let free = self.nodes.len() as u64;
        let another = self.nodes.values().any(|node| {
            // What has rotted may turn out to be lost at the next start.
            (node.destroyed || self.rotten.contains(&node.id))
                && self
                    .catalogue
                    .groups
                    .values()
                    .any(|record| record.hosts.contains(&node.id))
        });
        // Members that no longer are hosts, and joiners that are none yet, make the count uncertain.
        let groups_stand = self.catalogue.groups.values().all(|record| {
            !record.hosts.contains(&id) || (record.hosts.len() >= 3 && record.joiners.is_empty())
        });
        free < NODES_MAX && !another && self.tasks.is_empty() && groups_stand && self.settled(id)
    }

    /// Whether each group that the node hosts has the members that the catalogue says, as its leader sees it: then a
    /// single disk can be lost.
    fn settled(&self, id: u64) -> bool {
        self.catalogue.groups.iter().all(|(group, record)| {
            if !record.hosts.contains(&id) {
                return true;
            }
            let leader = self
                .statuses(*group)
                .into_iter()
                .filter(|(_, status, _)| status.part == Part::Leader)
                .max_by_key(|(_, status, _)| status.term);
            leader.is_some_and(|(_, status, _)| {
                let members: BTreeSet<u64> =
                    status.members.iter().map(|member| member.node.0).collect();
                members == record.hosts
                    && status
                        .members
                        .iter()
                        .all(|member| member.role == Role::Voter)
            })
        })
    }

    /// A process ends, and a byte on its disk changes, where its log or a snapshot can tell.
    fn rot(&mut self, id: u64) -> bool {
        if !self.may_lose(id) {
            return false;
        }
        self.crash(id, Some(Crash::ProcessOnly));
        let vfs = self.nodes[&id].vfs.clone();
        let mut files: Vec<_> = vfs
            .files()
            .into_iter()
            .filter(|file| {
                let name = file.to_string_lossy().into_owned();
                name.contains("/wal/") || name.ends_with(".snap")
            })
            .collect();
        // The last segment's tail looks like a torn write; what it holds is known to be synced only by what follows.
        let newest = files
            .iter()
            .filter(|file| file.to_string_lossy().contains("/wal/"))
            .max()
            .cloned();
        files.retain(|file| Some(file) != newest.as_ref());
        let Some(file) = self.random.pick(&files).cloned() else {
            return false;
        };
        let Some(mut content) = vfs.content(&file).filter(|content| !content.is_empty()) else {
            return false;
        };
        let at = self.random.below(content.len() as u64) as usize;
        content[at] ^= 1 << self.random.below(8);
        self.trace.line(self.now, || {
            format!("node {id}: {} rots at {at}", file.display())
        });
        vfs.plant(&file, content);
        self.rotten.insert(id);
        true
    }

    /// Adds or removes a member.
    fn churn(&mut self, group: u64) -> bool {
        let Some(record) = self.catalogue.groups.get(&group) else {
            return false;
        };
        let hosts: Vec<u64> = record.hosts.iter().copied().collect();
        let mut others: Vec<u64> = self
            .nodes
            .values()
            .filter(|node| !node.destroyed && !record.hosts.contains(&node.id))
            .map(|node| node.id)
            .collect();
        if self.tasks.contains_key(&group) {
            return false;
        }
        let grow = hosts.len() < 3 || (hosts.len() < 7 && self.random.one_in(2));
        if grow {
            let fresh = self.nodes.len() as u64 + 1;
            if others.is_empty() && fresh <= NODES_MAX.min(self.scenario.nodes + 3) {
                self.nodes.insert(fresh, Node::new(fresh, &self.scenario));
                self.after(1, Event::Boot { node: fresh });
                others.push(fresh);
            }
            let Some(node) = self.random.pick(&others).copied() else {
                return false;
            };
            self.begin_task(group, true, node);
        } else {
            let Some(node) = self.random.pick(&hosts).copied() else {
                return false;
            };
            self.begin_task(group, false, node);
        }
        true
    }

    // Healing.

    fn heal(&mut self) {
        self.healing = true;
        // A network slower than the election timeout, or a disk, is a fault too.
        self.scenario.delay = self.scenario.delay.min(5_000);
        self.scenario.disk = self.scenario.disk.min(5_000);
        self.scenario.loss = 0;
        self.trace.line(self.now, || "healing".to_owned());
        self.cuts.clear();
        self.slow.clear();
        self.paused.clear();
        self.full.clear();
        let mut down = Vec::new();
        for (id, node) in &self.nodes {
            node.vfs.limit_capacity(None);
            if !node.is_up() && !node.destroyed {
                down.push(*id);
            }
        }
        for id in down {
            self.after(SECOND, Event::Boot { node: id });
        }
        // What is armed strikes now or never.
        for (id, _) in std::mem::take(&mut self.armed) {
            self.crash(id, None);
        }
        self.replace_destroyed();
        self.after(SECOND, Event::Look);
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

    /// Whether every group has one leader whom all its members follow, all in one state, and every client its answer.
    fn is_healed(&mut self) -> Result<(), String> {
        let faulted: Vec<u64> = self
            .nodes
            .values()
            .filter(|node| node.is_faulted())
            .map(|node| node.id)
            .collect();
        for id in faulted {
            // An operator starts a node anew whose machine failed.
            self.crash(id, Some(Crash::ProcessOnly));
        }
        self.replace_destroyed();
        self.remove_strays();
        if let Some(task) = self.tasks.values().next() {
            return Err(format!(
                "an operator is at {task:?}: {:#?}",
                self.statuses(task.key.group)
            ));
        }
        if let Some(client) = self
            .clients
            .iter()
            .find(|client| client.operation.is_some())
        {
            return Err(format!(
                "client {client:?} has no answer: {:#?}",
                self.statuses(client.key.group)
            ));
        }
        for (group, record) in &self.catalogue.groups {
            let statuses = self.statuses(*group);
            let leaders: Vec<_> = statuses
                .iter()
                .filter(|(_, status, _)| status.part == Part::Leader)
                .collect();
            let [(_, leader, state)] = leaders[..] else {
                return Err(format!(
                    "group {group} has {} leaders: {statuses:#?}",
                    leaders.len()
                ));
            };
            // Whoever was removed has been told, and is gone.
            for (place, status, _) in &statuses {
                let is_member = leader
                    .members
                    .iter()
                    .any(|member| member.replica == status.replica);
                if !is_member && status.part != Part::Uninitialized {
                    return Err(format!(
                        "group {group}: node {} still holds a removed replica: {status:#?}",
                        place.node
                    ));
                }
            }
            for member in &leader.members {
                if !record.hosts.contains(&member.node.0) {
                    return Err(format!(
                        "{} is a member of group {group} and hosts nothing: {leader:#?}",
                        member.node
                    ));
                }
                let same = statuses.iter().any(|(place, status, other)| {
                    place.node == member.node.0
                        && status.replica == member.replica
                        && status.applied == leader.last
                        && status.leader == leader.leader
                        && other == state
                        && other.is_some()
                });
                if !same {
                    return Err(format!(
                        "group {group}: node {} is not where the leader is: {statuses:#?}",
                        member.node
                    ));
                }
            }
        }
        Ok(())
    }

    fn check_healed(&self) -> Result<(), Violation> {
        for group in self.catalogue.groups.keys() {
            let applied = self
                .statuses(*group)
                .into_iter()
                .map(|(_, status, _)| status.applied.0)
                .max();
            if let (Some(key), Some(applied)) = (self.catalogue.key(*group), applied) {
                self.checker.healed(key, applied)?;
            }
        }
        Ok(())
    }
}

/// A message in one line.
fn describe(message: &PeerMessage) -> String {
    let head = format!(
        "group {} ({}) {}→{}",
        message.group, message.incarnation, message.from, message.to
    );
    match &message.body {
        Body::Raft(raft) => format!(
            "{head} {:?} term {} log {}/{} +{} commit {}{}",
            raft.msg_type,
            raft.term,
            raft.index,
            raft.log_term,
            raft.entries.len(),
            raft.commit,
            if raft.reject { " reject" } else { "" }
        ),
        Body::Forward(forwards) => format!("{head} forwards {}", forwards.len()),
        Body::Answer(answers) => format!("{head} answers {}", answers.len()),
        Body::Gone => format!("{head} gone"),
    }
}

impl Event {
    /// The node it happens at; nothing happens at a node that is paused.
    fn node(&self) -> Option<u64> {
        match self {
            Self::Tick { node, .. }
            | Self::SnapshotSent { node, .. }
            | Self::Unreachable { node, .. }
            | Self::Request { node, .. }
            | Self::Sync { node, .. }
            | Self::Work { node, .. }
            | Self::Reconcile { node } => Some(*node),
            Self::Deliver { to, .. } | Self::Snapshot { to, .. } => Some(*to),
            Self::Boot { .. }
            | Self::Client { .. }
            | Self::Operator { .. }
            | Self::Fault
            | Self::Flap { .. }
            | Self::Mend(_)
            | Self::Look => None,
        }
    }

    fn tag(&self) -> u8 {
        match self {
            Self::Tick { .. } => 0,
            Self::Deliver { .. } => 1,
            Self::Snapshot { .. } => 2,
            Self::SnapshotSent { .. } => 3,
            Self::Unreachable { .. } => 4,
            Self::Sync { .. } => 5,
            Self::Work { .. } => 6,
            Self::Boot { .. } => 7,
            Self::Reconcile { .. } => 8,
            Self::Client { .. } => 9,
            Self::Operator { .. } => 10,
            Self::Fault => 11,
            Self::Mend(_) => 12,
            Self::Look => 13,
            Self::Request { .. } => 14,
            Self::Flap { .. } => 15,
        }
    }
}
