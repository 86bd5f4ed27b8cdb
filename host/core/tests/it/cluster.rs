//! Replicas of one group, in one thread, with a network and disks that the test owns.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use skep_core::deployment::{Deployment, Quota};
use skep_core::effect::{Call, Effect, Persist, Work};
use skep_core::id::{ComponentId, GroupId, Incarnation, LogIndex, NodeId, RequestId, SessionId};
use skep_core::input::{Input, LogRead, Waiter};
use skep_core::message::{ArrivedSnapshot, Body, PeerMessage, SnapshotName};
use skep_core::proposal::{Command, Proposal, ProposalError, Response};
use skep_core::standing::Distrust;
use skep_core::status::{Part, Status};
use skep_core::{Group, GroupConfig, Member, Recovered};
use skep_peer::{SnapshotOffer, message_from_wire, message_to_wire};

pub use crate::disk::{Disk, File};
pub use crate::machine::{Machine, REFUSED, Sick};

pub struct Node {
    pub group: Option<Group>,
    pub disk: Disk,
    unsynced: VecDeque<Persist>,
    pub machine: Machine,
    /// Work waits while this is set.
    pub machine_stuck: bool,
    /// Images are not taken to their ends while this is set.
    pub images_stuck: bool,
    work: VecDeque<Work>,
    pub replies: BTreeMap<Waiter, Result<Response, ProposalError>>,
    pub query_replies: BTreeMap<Waiter, Result<Vec<Bytes>, ProposalError>>,
    pub halted: Option<String>,
    pub removed: bool,
    /// Barriers that it was told replicas disagree on.
    pub diverged: Vec<LogIndex>,
    pub sent: Vec<PeerMessage>,
    /// Whose messages it did not believe, and why.
    pub distrusted: Vec<(NodeId, Distrust)>,
    /// Snapshots it was told to send, and reads of its log, by where they begin.
    pub offered: Vec<LogIndex>,
    pub reads: Vec<LogIndex>,
    /// Reads are answered by this instead of what is on the disk.
    pub read_fails: Option<fn() -> LogRead>,
}

impl Node {
    /// Whether the machine has this command to apply next; none if it has nothing to do.
    pub fn next_work_has(&self, command: &str) -> Option<bool> {
        let is_it = |call: &Call| matches!(call, Call::Commands(commands) if commands.iter().any(|known| known == command));
        let work = self.work.front()?;
        Some(matches!(work, Work::Apply { calls, .. } if calls.iter().any(is_it)))
    }

    /// The time that the machine is told with what it has to apply next.
    pub fn time_of_next_work(&self) -> Option<u64> {
        match self.work.front()? {
            Work::Apply { context, .. } => Some(context.now),
            _ => None,
        }
    }
}

pub struct Cluster {
    pub nodes: BTreeMap<u64, Node>,
    pub network: VecDeque<InFlight>,
    /// Pairs that cannot talk, either way.
    pub cut: BTreeSet<(u64, u64)>,
    /// Nodes whose disk does not finish a sync.
    pub slow_disks: BTreeSet<u64>,
    pub drop: fn(&PeerMessage) -> bool,
    /// How often each node crashed or started; whoever waited there before waits in vain.
    pub crashes: BTreeMap<u64, u64>,
    pub config: fn(&mut GroupConfig),
    next_waiter: Waiter,
    pub now: u64,
    /// Snapshots are on their way until [`Cluster::deliver_late`].
    pub late_snapshots: bool,
    late: Vec<InFlight>,
}

/// A message from a node to a node, and the file that it brings.
pub type InFlight = (NodeId, NodeId, PeerMessage, Option<File>);

impl Cluster {
    pub fn new(nodes: u64) -> Self {
        Self::with(nodes, |_| ())
    }

    pub fn with(nodes: u64, config: fn(&mut GroupConfig)) -> Self {
        let mut cluster = Self {
            nodes: BTreeMap::new(),
            network: VecDeque::new(),
            cut: BTreeSet::new(),
            slow_disks: BTreeSet::new(),
            drop: |_| false,
            crashes: BTreeMap::new(),
            config,
            next_waiter: 0,
            now: 1_000,
            late_snapshots: false,
            late: Vec::new(),
        };
        for id in 1..=nodes {
            cluster.add(id, nodes);
        }
        cluster
    }

    /// A node that starts the group with `members` initial voters, or, with 0, waits to be contacted.
    pub fn add(&mut self, id: u64, members: u64) {
        *self.crashes.entry(id).or_default() += 1;
        let mut config = self.group_config(id);
        config.members = (1..=members)
            .map(|node| Member {
                node: NodeId(node),
                data: format!("node {node}").into(),
            })
            .collect();
        let group = Group::create(config).expect("the configuration is good");
        let node = Node {
            group: Some(group),
            disk: Disk::default(),
            unsynced: VecDeque::new(),
            machine: Machine::default(),
            machine_stuck: false,
            images_stuck: false,
            work: VecDeque::new(),
            replies: BTreeMap::new(),
            query_replies: BTreeMap::new(),
            halted: None,
            removed: false,
            diverged: Vec::new(),
            sent: Vec::new(),
            distrusted: Vec::new(),
            offered: Vec::new(),
            reads: Vec::new(),
            read_fails: None,
        };
        self.nodes.insert(id, node);
    }

    fn group_config(&self, id: u64) -> GroupConfig {
        let mut config = GroupConfig::new(GroupId(1), Incarnation(1), NodeId(id));
        config.init = Bytes::from_static(b"init");
        config.seed = 99 + (self.crashes.get(&id).copied().unwrap_or(0) << 8);
        (self.config)(&mut config);
        config
    }

    pub fn node(&mut self, id: u64) -> &mut Node {
        self.nodes.get_mut(&id).expect("the node exists")
    }

    /// Stops a node; what its disk had not synced is gone.
    pub fn crash(&mut self, id: u64) {
        *self.crashes.entry(id).or_default() += 1;
        let node = self.node(id);
        node.group = None;
        node.unsynced.clear();
        node.work.clear();
        node.machine = node.machine.after_a_crash();
    }

    /// Starts a replica whose machine has failed again, in the same process. `false` while something is on its way to its disk.
    pub fn start_again(&mut self, id: u64) -> bool {
        let parked = self.node(id).group.as_ref().and_then(Group::parked);
        let Some(parked) = parked else { return false };
        self.crash(id);
        self.boot(id);
        if let Some(group) = &mut self.node(id).group {
            group.has_not_tried(parked.untried_from);
        }
        true
    }

    pub fn restart(&mut self, id: u64) {
        self.boot(id);
        self.run();
    }

    /// Starts a node from its disk and lets nothing happen yet.
    pub fn boot(&mut self, id: u64) {
        *self.crashes.entry(id).or_default() += 1;
        let mut config = self.group_config(id);
        config.members.clear();
        let node = self.node(id);
        let disk = &node.disk;
        let file = |name: SnapshotName| match disk.files.get(&name.index) {
            Some((_, state, _)) => Ok((name, state.clone())),
            None => Err(name),
        };
        let (snapshot, lost) = match disk.snapshot.clone().map(file) {
            Some(Ok(snapshot)) => (Some(snapshot), None),
            Some(Err(lost)) => (None, Some(lost)),
            None => (None, None),
        };
        let recovered = Recovered {
            replica: disk.replica,
            hard_state: disk.hard_state.clone(),
            entries: disk.entries.clone(),
            truncated: disk.truncated,
            snapshot,
        };
        let group = match lost {
            Some(lost) => Group::recover_without_snapshot(config, recovered, lost),
            None => Group::recover(config, recovered),
        };
        node.group = Some(group.expect("own disk"));
    }

    pub fn input(&mut self, id: u64, input: Input) {
        if let Some(group) = &mut self.node(id).group {
            group.handle(input);
        }
    }

    /// Everything that can happen without time passing happens.
    pub fn run(&mut self) {
        for _ in 0..10_000 {
            let mut moved = false;
            for id in self.nodes.keys().copied().collect::<Vec<_>>() {
                moved |= self.turn(id, usize::MAX, usize::MAX);
            }
            if let Some((from, to, message, transfer)) = self.network.pop_front() {
                moved = true;
                self.deliver(from, to, message, transfer);
            }
            if !moved {
                return;
            }
        }
        panic!("the replicas never come to rest");
    }

    pub fn tick(&mut self, ticks: u32) {
        for _ in 0..ticks {
            self.now += 100;
            let now = self.now;
            for id in self.nodes.keys().copied().collect::<Vec<_>>() {
                self.input(id, Input::Tick { now });
            }
            self.run();
        }
    }

    /// A tick for all, and nothing else.
    pub fn tick_without_rest(&mut self) {
        self.now += 100;
        let now = self.now;
        for id in self.nodes.keys().copied().collect::<Vec<_>>() {
            self.input(id, Input::Tick { now });
        }
    }

    /// Snapshots that were late arrive.
    pub fn deliver_late(&mut self) {
        for (from, to, message, file) in std::mem::take(&mut self.late) {
            let late = std::mem::replace(&mut self.late_snapshots, false);
            self.deliver(from, to, message, file);
            self.late_snapshots = late;
        }
    }

    /// Ticks until the condition holds.
    pub fn until(&mut self, what: &str, condition: impl Fn(&mut Self) -> bool) {
        for _ in 0..400 {
            self.run();
            if condition(self) {
                return;
            }
            self.tick(1);
        }
        let states: Vec<_> = self
            .nodes
            .keys()
            .copied()
            .collect::<Vec<_>>()
            .into_iter()
            .map(|id| self.status(id))
            .collect();
        panic!("never: {what}; {states:#?}");
    }

    pub fn elect(&mut self, id: u64) {
        self.run();
        for _ in 0..5 {
            self.input(id, Input::Campaign);
            self.run();
            if self
                .status(id)
                .is_some_and(|status| status.part == Part::Leader)
            {
                return;
            }
            self.tick(11);
        }
        panic!("node {id} is not elected");
    }

    pub fn leader(&mut self) -> Option<u64> {
        let mut leaders: Vec<_> = self
            .nodes
            .iter()
            .filter_map(|(id, node)| {
                let status = node.group.as_ref()?.status();
                (status.part == Part::Leader).then_some((status.term, *id))
            })
            .collect();
        leaders.sort_unstable();
        leaders.pop().map(|(_, id)| id)
    }

    pub fn status(&mut self, id: u64) -> Option<Status> {
        self.node(id).group.as_ref().map(Group::status)
    }

    pub fn propose(&mut self, id: u64, proposal: Proposal) -> Waiter {
        self.next_waiter += 1;
        let waiter = self.next_waiter;
        self.input(id, Input::Propose { waiter, proposal });
        waiter
    }

    pub fn command(&mut self, id: u64, text: &str) -> Waiter {
        self.propose(id, anonymous(text))
    }

    pub fn query(&mut self, id: u64, linearizable: bool) -> Waiter {
        self.next_waiter += 1;
        let waiter = self.next_waiter;
        self.input(
            id,
            Input::Query {
                waiter,
                request: Bytes::new(),
                linearizable,
            },
        );
        waiter
    }

    pub fn reply(&mut self, id: u64, waiter: Waiter) -> Option<Result<Response, ProposalError>> {
        self.node(id).replies.get(&waiter).cloned()
    }

    /// Proposes and waits.
    pub fn ask(&mut self, id: u64, proposal: Proposal) -> Result<Response, ProposalError> {
        let waiter = self.propose(id, proposal);
        self.until("an answer", |cluster| cluster.reply(id, waiter).is_some());
        self.reply(id, waiter).expect("just seen")
    }

    pub fn commands(&mut self, id: u64) -> Vec<String> {
        self.node(id)
            .machine
            .commands
            .iter()
            .map(|command| String::from_utf8_lossy(command).into_owned())
            .collect()
    }

    pub fn cut_off(&mut self, id: u64) {
        for other in self
            .nodes
            .keys()
            .copied()
            .filter(|other| *other != id)
            .collect::<Vec<_>>()
        {
            self.cut.insert((id.min(other), id.max(other)));
        }
    }

    /// Carries out the effects of one node; at most so many records are synced, so much work is done.
    pub fn turn(&mut self, id: u64, records: usize, work: usize) -> bool {
        let slow = self.slow_disks.contains(&id);
        let mut effects = Vec::new();
        let node = self.nodes.get_mut(&id).expect("the node exists");
        let Some(group) = &mut node.group else {
            return false;
        };
        group.poll(&mut effects);
        let mut moved = !effects.is_empty();
        let mut answers = Vec::new();
        for effect in effects {
            match effect {
                Effect::Persist(record) => node.unsynced.push_back(record),
                Effect::Send { to, message } => {
                    node.sent.push(message.clone());
                    self.network.push_back((NodeId(id), to, message, None));
                }
                Effect::SendSnapshot {
                    to,
                    message,
                    snapshot,
                } => {
                    node.offered.push(snapshot.index);
                    let file = node.disk.files.get(&snapshot.index).cloned();
                    self.network.push_back((NodeId(id), to, message, file));
                }
                Effect::ReadLog {
                    from,
                    through,
                    bytes,
                } => {
                    node.reads.push(from);
                    let read = match node.read_fails {
                        Some(fails) => fails(),
                        None => node.disk.read(from, through, bytes),
                    };
                    answers.push(Input::LogRead { from, read });
                }
                Effect::Machine(work) => node.work.push_back(work),
                Effect::Reply { waiter, result } => {
                    assert!(
                        node.replies.insert(waiter, result).is_none(),
                        "answered twice"
                    );
                }
                Effect::QueryFailed { waiter, error } => {
                    assert!(
                        node.query_replies.insert(waiter, Err(error)).is_none(),
                        "answered twice"
                    );
                }
                Effect::Leader(_) => {}
                Effect::GivenUp { .. } => {}
                Effect::Distrusted { from, why } => node.distrusted.push((from, why)),
                Effect::Diverged { index, .. } => node.diverged.push(index),
                Effect::Removed => node.removed = true,
                Effect::Halt { reason } => node.halted = Some(reason),
            }
        }
        if let Some(group) = &mut node.group {
            answers.into_iter().for_each(|answer| group.handle(answer));
        }
        if !slow {
            let records = records.min(node.unsynced.len());
            let mut last = None;
            for record in node.unsynced.drain(..records) {
                last = Some(record.number);
                node.disk.write(record);
            }
            if let (Some(number), Some(group)) = (last, &mut node.group) {
                group.handle(Input::Persisted { number });
                moved = true;
            }
        }
        for _ in 0..work {
            if node.machine_stuck {
                break;
            }
            let Some(work) = node.work.pop_front() else {
                break;
            };
            moved = true;
            let input = node
                .machine
                .run(work, &mut node.disk, &mut node.query_replies);
            if let (Some(input), Some(group)) = (input, &mut node.group) {
                group.handle(input);
            }
        }
        // Behind everything else that there is to do.
        if !moved && !node.images_stuck {
            let input = node.machine.finish_image(&mut node.disk);
            if let (Some(input), Some(group)) = (input, &mut node.group) {
                group.handle(input);
                moved = true;
            }
        }
        moved
    }

    pub fn deliver(
        &mut self,
        from: NodeId,
        to: NodeId,
        message: PeerMessage,
        transfer: Option<File>,
    ) {
        if self.late_snapshots && transfer.is_some() {
            self.late.push((from, to, message, transfer));
            return;
        }
        let (a, b) = (from.0.min(to.0), from.0.max(to.0));
        let lost = self.cut.contains(&(a, b))
            || (self.drop)(&message)
            || self
                .nodes
                .get(&to.0)
                .is_none_or(|node| node.group.is_none());
        let is_snapshot = message.body.priority() == skep_core::message::Priority::Low;
        let message = over_the_wire(message, transfer.as_ref().map(|(name, _, _)| name));
        if is_snapshot {
            self.input(
                from.0,
                Input::SnapshotSent {
                    node: to,
                    arrived: !lost && transfer.is_some(),
                },
            );
        }
        if lost {
            return;
        }
        match transfer {
            Some((name, state, machine)) => {
                let node = self.node(to.0);
                node.disk
                    .files
                    .insert(name.index, (name.clone(), state.clone(), machine));
                let snapshot = ArrivedSnapshot {
                    message,
                    name,
                    state,
                };
                self.input(to.0, Input::SnapshotArrived { from, snapshot });
            }
            None if is_snapshot => {}
            None => self.input(to.0, Input::Message { from, message }),
        }
    }
}

/// A message as its receiver reads it: whatever the wire refuses must not be sent.
pub fn over_the_wire(message: PeerMessage, snapshot: Option<&SnapshotName>) -> PeerMessage {
    if message.body.priority() != skep_core::message::Priority::Low {
        let sent = message_to_wire(message).expect("it may travel");
        return message_from_wire(sent).expect("it can be read");
    }
    let Some(name) = snapshot else {
        // No file, so nothing is offered.
        return message;
    };
    let offer = SnapshotOffer {
        transfer: 1,
        message,
        name: name.clone(),
    };
    let offer = offer.into_wire().expect("it may travel");
    let offer = SnapshotOffer::try_from(offer).expect("it can be read");
    offer.message
}

/// Asks for the component of this name.
pub fn activate(component: u8) -> Proposal {
    Proposal::Activate(Deployment {
        component: ComponentId([component; 32]),
        profile: Bytes::from_static(b"limits"),
        quota: Quota::default(),
        barriers: Default::default(),
    })
}

pub fn anonymous(text: &str) -> Proposal {
    let data = Bytes::copy_from_slice(text.as_bytes());
    Proposal::Command(Command {
        request: RequestId::ANONYMOUS,
        acknowledged: 0,
        data,
    })
}

pub fn in_session(session: SessionId, sequence: u64, text: &str) -> Proposal {
    let data = Bytes::copy_from_slice(text.as_bytes());
    Proposal::Command(Command {
        request: RequestId { session, sequence },
        acknowledged: 0,
        data,
    })
}

pub fn is_append(message: &PeerMessage) -> bool {
    matches!(&message.body, Body::Raft(raft) if raft.msg_type == raft::eraftpb::MessageType::MsgAppend)
}
