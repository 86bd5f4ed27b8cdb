//! Bytes as what happens to one replica: frames from peers, ticks, syncs, crashes, in any order.
//!
//! Byte 0 chooses the replica's place in its group; then come `Op`s. Frames go the way of the real ones, through
//! `skep-wire`. The disk loses what was not synced at a restart. What is checked is what Raft's safety rests on: terms
//! and votes that are durable before anybody hears of them and never taken back, committed entries that stay, indices in
//! their order, one answer to each question.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::{BufMut, Bytes};
use prost::Message;
use raft::eraftpb::{self, HardState, MessageType};
use sha2::{Digest, Sha256};
use skep_core::effect::{Call, Effect, Persist, Work};
use skep_core::id::{
    GroupId, Incarnation, LogIndex, NodeId, ReplicaId, RequestId, SessionId, Term,
};
use skep_core::input::{Input, Waiter};
use skep_core::message::{ArrivedSnapshot, Batch, Body, PeerMessage, SnapshotName};
use skep_core::outcome::Outcome;
use skep_core::proposal::{Change, Command, Proposal};
use skep_core::status::{Part, Status};
use skep_core::{Group, GroupConfig, Member, Recovered};
use skep_wire::peer::{SnapshotOffer, batch_from_wire, batch_to_wire, frame};
use skep_wire::proto::{self, peer_frame};

/// Ops of one input: enough for several elections and snapshots, few enough that none takes long.
const OPS_MAX: usize = 4096;
/// Queued proposals and queries of the replica, so that a script can reach the limit.
const QUEUE: usize = 64;

/// Lets the bytes happen to a replica.
///
/// # Panics
/// If the replica panics, even where it catches that itself, or breaks a promise.
pub fn run(data: &[u8]) {
    let Some((&place, mut rest)) = data.split_first() else {
        return;
    };
    let mut replica = Replica::new(Place::of(place));
    for _ in 0..OPS_MAX {
        let Some(op) = Op::decode(&mut rest) else {
            break;
        };
        replica.apply(op);
        // Nobody is there; what it says is checked and lost.
        replica.sent.clear();
    }
}

/// Which replica of which group is tried.
#[derive(Clone, Copy)]
struct Place {
    node: u64,
    members: u64,
}

impl Place {
    fn of(byte: u8) -> Self {
        let (node, members) = match byte % 4 {
            0 => (2, 3),
            1 => (4, 0),
            2 => (1, 1),
            _ => (1, 3),
        };
        Self { node, members }
    }
}

/// One thing that happens to the replica.
#[derive(Clone, Debug)]
enum Op {
    /// The body of a `PeerFrame` arrives.
    Frame(Bytes),
    /// A snapshot arrives whole: the body of its offer, and the host's section of the file.
    Snapshot(Bytes, Bytes),
    Tick(u8),
    /// So many records become durable.
    Sync(u8),
    /// The machine does so much work.
    Work(u8),
    Propose {
        kind: u8,
        number: u8,
        data: Bytes,
    },
    Query(bool),
    Forget(u8),
    Campaign,
    Transfer(u8),
    Unreachable(u8),
    SnapshotSent(u8, bool),
    /// The process dies and comes back with what its disk had synced.
    Restart,
    MachineFails,
}

impl Op {
    fn decode(from: &mut &[u8]) -> Option<Self> {
        let byte = |from: &mut &[u8]| from.split_off_first().copied();
        let bytes = |from: &mut &[u8]| {
            let len = usize::from(byte(from)?) | usize::from(byte(from)?) << 8;
            let taken = from.split_off(..len.min(from.len()))?;
            Some(Bytes::copy_from_slice(taken))
        };
        Some(match byte(from)? % 14 {
            0 => Self::Frame(bytes(from)?),
            1 => Self::Snapshot(bytes(from)?, bytes(from)?),
            2 => Self::Tick(byte(from)?),
            3 => Self::Sync(byte(from)?),
            4 => Self::Work(byte(from)?),
            5 => Self::Propose {
                kind: byte(from)?,
                number: byte(from)?,
                data: bytes(from)?,
            },
            6 => Self::Query(byte(from)? & 1 == 1),
            7 => Self::Forget(byte(from)?),
            8 => Self::Campaign,
            9 => Self::Transfer(byte(from)?),
            10 => Self::Unreachable(byte(from)?),
            11 => Self::SnapshotSent(byte(from)?, byte(from)? & 1 == 1),
            12 => Self::Restart,
            _ => Self::MachineFails,
        })
    }

    fn encode(&self, out: &mut Vec<u8>) {
        let bytes = |out: &mut Vec<u8>, bytes: &Bytes| {
            out.put_u16_le(u16::try_from(bytes.len()).expect("recorded frames are short"));
            out.put_slice(bytes);
        };
        match self {
            Self::Frame(frame) => {
                out.push(0);
                bytes(out, frame);
            }
            Self::Snapshot(offer, state) => {
                out.push(1);
                bytes(out, offer);
                bytes(out, state);
            }
            Self::Tick(ticks) => out.extend([2, *ticks]),
            Self::Sync(records) => out.extend([3, *records]),
            Self::Work(pieces) => out.extend([4, *pieces]),
            Self::Propose { kind, number, data } => {
                out.extend([5, *kind, *number]);
                bytes(out, data);
            }
            Self::Query(linearizable) => out.extend([6, u8::from(*linearizable)]),
            Self::Forget(waiter) => out.extend([7, *waiter]),
            Self::Campaign => out.push(8),
            Self::Transfer(node) => out.extend([9, *node]),
            Self::Unreachable(node) => out.extend([10, *node]),
            Self::SnapshotSent(node, arrived) => out.extend([11, *node, u8::from(*arrived)]),
            Self::Restart => out.push(12),
            Self::MachineFails => out.push(13),
        }
    }
}

/// What records have made of a disk.
#[derive(Clone, Default)]
struct Disk {
    replica: ReplicaId,
    hard_state: HardState,
    entries: Vec<eraftpb::Entry>,
    truncated: (LogIndex, Term),
    snapshot: Option<SnapshotName>,
}

impl Disk {
    fn last(&self) -> u64 {
        self.truncated.0.0 + self.entries.len() as u64
    }

    /// Takes a record in, as the log would; what the log would refuse is a broken promise.
    fn write(&mut self, record: &Persist) {
        let before = self.hard_state.clone();
        self.replica = record.replica;
        if record.reset {
            let (index, _) = record.truncated.expect("a reset says where the log starts");
            assert!(
                index.0 >= before.commit,
                "a snapshot took committed entries back"
            );
            self.entries.clear();
            self.truncated = record.truncated.unwrap_or_default();
        }
        if let Some(first) = record.entries.first() {
            assert!(
                first.index > before.commit.max(self.truncated.0.0)
                    && first.index <= self.last() + 1,
                "entries from {} on, committed are {}, the log covers {}..={}",
                first.index,
                before.commit,
                self.truncated.0.0 + 1,
                self.last()
            );
            self.entries
                .truncate((first.index - self.truncated.0.0 - 1) as usize);
            for entry in &record.entries {
                assert_eq!(entry.index, self.last() + 1, "entries with a gap");
                self.entries.push(entry.clone());
            }
        }
        if let Some(snapshot) = &record.snapshot {
            self.snapshot = Some(snapshot.clone());
        }
        if let Some((index, term)) = record.truncated {
            assert!(index.0 <= self.last() && index >= self.truncated.0);
            let covered = self
                .snapshot
                .as_ref()
                .map_or(0, |snapshot| snapshot.index.0);
            assert!(index.0 <= covered, "truncated above the snapshot");
            self.entries.retain(|entry| entry.index > index.0);
            self.truncated = (index, term);
        }
        if let Some(hard_state) = &record.hard_state {
            assert!(hard_state.term >= before.term, "the term went back");
            assert!(
                hard_state.term > before.term || before.vote == 0 || hard_state.vote == before.vote,
                "a second vote in term {}",
                hard_state.term
            );
            assert!(
                hard_state.commit >= before.commit,
                "the commit index went back"
            );
            assert!(hard_state.commit <= self.last(), "committed beyond the log");
            self.hard_state = hard_state.clone();
        }
    }
}

/// What a replica sends.
struct Sent {
    to: NodeId,
    message: PeerMessage,
    snapshot: Option<SnapshotName>,
}

struct Replica {
    place: Place,
    group: Group,
    /// With everything that was given to the disk.
    issued: Disk,
    /// With what it has synced.
    durable: Disk,
    unsynced: VecDeque<Persist>,
    /// Every vote that was ever durable, by its term.
    votes: BTreeMap<u64, u64>,
    /// The host's sections of the snapshot files.
    files: BTreeMap<(LogIndex, [u8; 32]), Bytes>,
    work: VecDeque<Work>,
    commands: u64,
    /// The last index the machine was given.
    worked: LogIndex,
    waiting: BTreeSet<Waiter>,
    /// Those who have left; they may be answered.
    forgotten: BTreeSet<Waiter>,
    waiters: Waiter,
    records: u64,
    lives: u64,
    now: u64,
    seen: Option<Status>,
    ended: bool,
    sent: Vec<Sent>,
}

impl Replica {
    fn new(place: Place) -> Self {
        let mut config = config(place, 1);
        config.members = (1..=place.members)
            .map(|node| Member {
                node: NodeId(node),
                data: Bytes::from_static(b"data"),
            })
            .collect();
        let mut replica = Self {
            place,
            group: Group::create(config).expect("the configuration is good"),
            issued: Disk::default(),
            durable: Disk::default(),
            unsynced: VecDeque::new(),
            votes: BTreeMap::new(),
            files: BTreeMap::new(),
            work: VecDeque::new(),
            commands: 0,
            worked: LogIndex(0),
            waiting: BTreeSet::new(),
            forgotten: BTreeSet::new(),
            waiters: 0,
            records: 0,
            lives: 1,
            now: 1_000,
            seen: None,
            ended: false,
            sent: Vec::new(),
        };
        replica.settle();
        replica
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Frame(body) => self.frame(body),
            Op::Snapshot(offer, state) => self.snapshot(offer, state),
            Op::Tick(ticks) => {
                for _ in 0..ticks % 64 {
                    self.now += 100;
                    self.group.handle(Input::Tick { now: self.now });
                    self.settle();
                }
            }
            Op::Sync(records) => self.sync(records.into()),
            Op::Work(pieces) => {
                for _ in 0..pieces {
                    let Some(work) = self.work.pop_front() else {
                        break;
                    };
                    self.machine(work);
                    self.settle();
                }
            }
            Op::Propose { kind, number, data } => {
                let waiter = self.waiter();
                let proposal = proposal(kind, number, data);
                self.group.handle(Input::Propose { waiter, proposal });
            }
            Op::Query(linearizable) => {
                let waiter = self.waiter();
                self.group.handle(Input::Query {
                    waiter,
                    request: Bytes::new(),
                    linearizable,
                });
            }
            Op::Forget(waiter) => {
                let waiter = waiter.into();
                if self.waiting.remove(&waiter) {
                    self.forgotten.insert(waiter);
                }
                self.group.handle(Input::Forget { waiter });
            }
            Op::Campaign => self.group.handle(Input::Campaign),
            Op::Transfer(node) => self.group.handle(Input::Transfer { to: id(node) }),
            Op::Unreachable(node) => self.group.handle(Input::Unreachable { node: id(node) }),
            Op::SnapshotSent(node, arrived) => self.group.handle(Input::SnapshotSent {
                node: id(node),
                arrived,
            }),
            Op::Restart => self.restart(),
            Op::MachineFails => self.group.handle(Input::MachineFailed {
                reason: "as the script says".into(),
            }),
        }
        self.settle();
    }

    fn waiter(&mut self) -> Waiter {
        self.waiters += 1;
        self.waiting.insert(self.waiters);
        self.waiters
    }

    fn frame(&mut self, body: Bytes) {
        let Ok(proto::PeerFrame {
            body: Some(peer_frame::Body::Batch(batch)),
        }) = proto::PeerFrame::decode(body)
        else {
            return;
        };
        let Ok(batch) = batch_from_wire(batch, &mut Vec::new()) else {
            return;
        };
        for message in batch.messages.into_values().flatten() {
            self.group.handle(Input::Message {
                from: batch.from,
                message,
            });
        }
    }

    fn snapshot(&mut self, offer: Bytes, state: Bytes) {
        let Ok(proto::PeerFrame {
            body: Some(peer_frame::Body::SnapshotOffer(offer)),
        }) = proto::PeerFrame::decode(offer)
        else {
            return;
        };
        let Ok(offer) = SnapshotOffer::try_from(offer) else {
            return;
        };
        // The receiver has verified the file against its name, so the name fits.
        let name = SnapshotName {
            digest: digest(&state),
            ..offer.name
        };
        self.files.insert((name.index, name.digest), state.clone());
        let from = NodeId(offer.message.from.0);
        let snapshot = ArrivedSnapshot {
            message: offer.message,
            name,
            state,
        };
        self.group.handle(Input::SnapshotArrived { from, snapshot });
    }

    fn sync(&mut self, records: usize) {
        let records = records.min(self.unsynced.len());
        let mut last = None;
        for record in self.unsynced.drain(..records) {
            self.durable.write(&record);
            last = Some(record.number);
            let HardState { term, vote, .. } = self.durable.hard_state;
            if vote != 0 {
                let given = *self.votes.entry(term).or_insert(vote);
                assert_eq!(given, vote, "two votes in term {term}");
            }
        }
        if let Some(number) = last {
            self.group.handle(Input::Persisted { number });
        }
    }

    fn restart(&mut self) {
        self.lives += 1;
        self.unsynced.clear();
        self.work.clear();
        self.waiting.clear();
        self.forgotten.clear();
        self.records = 0;
        self.worked = LogIndex(0);
        self.seen = None;
        self.ended = false;
        self.issued = self.durable.clone();
        let disk = &self.durable;
        let snapshot = disk
            .snapshot
            .clone()
            .map(|name| (name.clone(), self.files[&(name.index, name.digest)].clone()));
        let recovered = Recovered {
            replica: disk.replica,
            hard_state: disk.hard_state.clone(),
            entries: disk.entries.clone(),
            truncated: disk.truncated,
            snapshot,
        };
        // A group that nobody has recorded anything of is made anew, as a node does.
        if disk.replica.0 == 0 && self.place.members > 0 {
            let (votes, lives) = (std::mem::take(&mut self.votes), self.lives);
            *self = Self::new(self.place);
            (self.votes, self.lives) = (votes, lives);
            return;
        }
        let config = config(self.place, self.lives);
        self.group = Group::recover(config, recovered).expect("its own disk");
    }

    /// Carries out what the replica wants, but for the disk and the machine, and checks it.
    fn settle(&mut self) {
        let mut effects = Vec::new();
        self.group.poll(&mut effects);
        for effect in effects {
            match effect {
                Effect::Persist(record) => {
                    self.records += 1;
                    assert_eq!(record.number, self.records, "records out of order");
                    self.issued.write(&record);
                    self.unsynced.push_back(record);
                }
                Effect::Send { to, message } => {
                    self.check_sent(&message);
                    self.sent.push(Sent {
                        to,
                        message,
                        snapshot: None,
                    });
                }
                Effect::SendSnapshot {
                    to,
                    message,
                    snapshot,
                } => {
                    self.check_sent(&message);
                    assert!(self.files.contains_key(&(snapshot.index, snapshot.digest)));
                    self.sent.push(Sent {
                        to,
                        message,
                        snapshot: Some(snapshot),
                    });
                }
                Effect::Machine(work) => {
                    if let Work::Query { waiter, .. } = &work {
                        self.answered(*waiter);
                    }
                    self.work.push_back(work);
                }
                Effect::Reply { waiter, .. } | Effect::QueryFailed { waiter, .. } => {
                    self.answered(waiter);
                }
                Effect::Diverged { .. } => {}
                Effect::Leader(changed) => assert!(changed.new.0 != 0 && changed.term.0 != 0),
                Effect::Removed => self.ended = true,
                Effect::Halt { reason } => {
                    assert!(!reason.contains("panicked"), "{reason}");
                    self.ended = true;
                }
            }
        }
        let status = self.group.status();
        self.check_status(&status);
        self.seen = Some(status);
    }

    fn answered(&mut self, waiter: Waiter) {
        assert!(
            self.waiting.remove(&waiter) || self.forgotten.remove(&waiter),
            "{waiter} was answered twice"
        );
    }

    /// Nothing leaves before what it speaks for is durable.
    fn check_sent(&self, sent: &PeerMessage) {
        let Body::Raft(message) = &sent.body else {
            return;
        };
        let (kind, term, durable) = (message.msg_type, message.term, &self.durable);
        if kind == MessageType::MsgRequestPreVote
            || (kind == MessageType::MsgRequestPreVoteResponse && !message.reject)
        {
            // It speaks of a term that nobody is in yet.
            return;
        }
        assert!(
            term <= durable.hard_state.term,
            "{kind:?} of term {term}, durable is {}",
            durable.hard_state.term
        );
        let vote = match kind {
            MessageType::MsgRequestVote => Some(message.from),
            MessageType::MsgRequestVoteResponse if !message.reject => Some(message.to),
            _ => None,
        };
        if let Some(vote) = vote {
            assert_eq!(
                self.votes.get(&term),
                Some(&vote),
                "a vote in term {term} that is not durable"
            );
        }
        if kind == MessageType::MsgAppendResponse && !message.reject {
            assert!(
                message.index <= durable.last(),
                "{} acknowledged, durable is {}",
                message.index,
                durable.last()
            );
        }
    }

    fn check_status(&self, now: &Status) {
        assert!(now.queued <= QUEUE);
        if self.ended {
            assert!(self.waiting.is_empty(), "nobody answers them any more");
            assert_eq!(now.part, Part::Stopped);
            return;
        }
        assert!(
            now.applied <= now.commit && now.commit <= now.last,
            "{now:?}"
        );
        assert!(
            now.snapshot <= now.commit && now.first.0 <= now.snapshot.0 + 1,
            "{now:?}"
        );
        if let Some(before) = &self.seen {
            assert!(
                now.term >= before.term && now.commit >= before.commit,
                "{before:?} became {now:?}"
            );
        }
    }

    fn machine(&mut self, work: Work) {
        let input = match work {
            Work::Apply { context, calls } => {
                assert!(context.index > self.worked, "the machine was led back");
                self.worked = context.index;
                let mut outcomes = Vec::new();
                for call in calls {
                    match call {
                        Call::Commands(commands) => outcomes.extend(commands.iter().map(|_| {
                            self.commands += 1;
                            Outcome::Reply(self.commands.to_string().into())
                        })),
                        Call::ConfChange(change) => outcomes.push(Outcome::Reply(change.data)),
                        Call::Activate(_) => outcomes.push(Outcome::Reply(Bytes::new())),
                        Call::Init(_) | Call::StatusChange(_) => {}
                    }
                }
                Input::Applied {
                    index: context.index,
                    outcomes,
                    fuel: 1,
                }
            }
            Work::Barrier { context, state } => {
                assert!(context.index > self.worked, "the machine was led back");
                self.worked = context.index;
                let name = SnapshotName {
                    index: context.index,
                    term: context.term,
                    digest: digest(&state),
                    size: 1,
                };
                self.files.insert((name.index, name.digest), state);
                Input::Snapshotted {
                    index: context.index,
                    snapshot: Some(name),
                }
            }
            Work::Restore {
                context, snapshot, ..
            } => {
                assert_eq!(context.index, snapshot.index);
                assert!(self.files.contains_key(&(snapshot.index, snapshot.digest)));
                self.worked = context.index;
                Input::Restored {
                    index: context.index,
                }
            }
            Work::Query { .. } => return,
        };
        self.group.handle(input);
    }
}

fn config(place: Place, life: u64) -> GroupConfig {
    let mut config = GroupConfig::new(GroupId(1), Incarnation(1), NodeId(place.node));
    config.init = Bytes::from_static(b"init");
    config.seed = life << 8 | place.node;
    config.snapshot_entries = 16;
    config.limits.queued_proposals = QUEUE;
    config.limits.queued_queries = QUEUE;
    config.limits.command_bytes = 4096;
    config.limits.request_ticks = 20;
    config
}

fn id(byte: u8) -> NodeId {
    NodeId(u64::from(byte) % 6)
}

fn digest(state: &[u8]) -> [u8; 32] {
    Sha256::digest(state).into()
}

fn proposal(kind: u8, number: u8, data: Bytes) -> Proposal {
    let node = id(number);
    match kind % 7 {
        0 => Proposal::Command(Command {
            request: RequestId::ANONYMOUS,
            acknowledged: 0,
            data,
        }),
        1 => Proposal::Command(Command {
            request: RequestId {
                session: SessionId(u64::from(number >> 4) + 1),
                sequence: u64::from(number & 15) + 1,
            },
            acknowledged: u64::from(number & 15) / 2,
            data,
        }),
        2 => Proposal::OpenSession,
        3 => Proposal::Barrier,
        4 => Proposal::Change(Change::Add { node, data }),
        5 => Proposal::Change(Change::AddLearner { node, data }),
        _ => Proposal::Change(Change::Remove { node, data }),
    }
}

/// What happened to each replica of clusters that do their ordinary work.
pub fn seeds() -> Vec<(String, Vec<u8>)> {
    let mut seeds = Vec::new();
    for (name, subject, script) in [
        ("follower", 2, ordinary as fn(&mut Recorder)),
        ("leader", 1, ordinary),
        ("alone", 1, alone),
        ("joiner", 4, joins),
        ("joined", 1, joins),
        ("behind", 2, behind),
        ("deposed", 1, deposed),
        ("candidate", 2, deposed),
        ("removed", 1, removals),
        ("remover", 2, removals),
        ("leader-misled", 1, misled),
        ("follower-misled", 2, misled),
    ] {
        let members = if name == "alone" { 1 } else { 3 };
        let mut recorder = Recorder::new(members, subject);
        script(&mut recorder);
        seeds.push((name.to_owned(), recorder.script));
    }
    seeds
}

/// A cluster that writes down what happens to one of its nodes.
struct Recorder {
    replicas: BTreeMap<u64, Replica>,
    network: VecDeque<(u64, Op)>,
    cut: BTreeSet<u64>,
    subject: u64,
    script: Vec<u8>,
}

impl Recorder {
    fn new(members: u64, subject: u64) -> Self {
        let place = |node| Place {
            node,
            members: if node == 4 { 0 } else { members },
        };
        let nodes = (1..=members).chain((subject == 4 || members == 3).then_some(4));
        let byte = match (subject, members) {
            (4, _) => 1,
            (_, 1) => 2,
            (2, _) => 0,
            _ => 3,
        };
        let mut recorder = Self {
            replicas: nodes
                .map(|node| (node, Replica::new(place(node))))
                .collect(),
            network: VecDeque::new(),
            cut: BTreeSet::new(),
            subject,
            script: vec![byte],
        };
        recorder.settle();
        recorder
    }

    fn give(&mut self, node: u64, op: Op) {
        if node == self.subject {
            op.encode(&mut self.script);
        }
        let replica = self.replicas.get_mut(&node).expect("the node exists");
        replica.apply(op);
        for Sent {
            to,
            message,
            snapshot,
        } in std::mem::take(&mut replica.sent)
        {
            let Some(name) = snapshot else {
                let batch = Batch {
                    from: NodeId(node),
                    to,
                    priority: message.body.priority(),
                    messages: [(message.group, vec![message])].into(),
                };
                let mut refused = Vec::new();
                let body = peer_frame::Body::Batch(batch_to_wire(batch, &mut refused));
                assert!(refused.is_empty(), "{refused:?}");
                let body = frame(body).encode_to_vec();
                self.network.push_back((to.0, Op::Frame(body.into())));
                continue;
            };
            let state = replica.files[&(name.index, name.digest)].clone();
            let offer = SnapshotOffer {
                transfer: 1,
                message,
                name,
            };
            let offer = offer.into_wire().expect("a snapshot's header");
            let offer = frame(peer_frame::Body::SnapshotOffer(offer)).encode_to_vec();
            self.network
                .push_back((to.0, Op::Snapshot(offer.into(), state)));
            self.network
                .push_back((node, Op::SnapshotSent(to.0 as u8, true)));
        }
    }

    /// Everything that can happen without time passing happens.
    fn settle(&mut self) {
        loop {
            let mut moved = false;
            for node in self.replicas.keys().copied().collect::<Vec<_>>() {
                if !self.replicas[&node].unsynced.is_empty() {
                    self.give(node, Op::Sync(u8::MAX));
                    moved = true;
                }
                if !self.replicas[&node].work.is_empty() {
                    self.give(node, Op::Work(u8::MAX));
                    moved = true;
                }
            }
            if let Some((to, op)) = self.network.pop_front() {
                moved = true;
                if self.replicas.contains_key(&to) && !self.cut.contains(&to) {
                    self.give(to, op);
                }
            }
            if !moved {
                return;
            }
        }
    }

    fn tick(&mut self, ticks: u8) {
        for _ in 0..ticks {
            for node in self.replicas.keys().copied().collect::<Vec<_>>() {
                self.give(node, Op::Tick(1));
            }
            self.settle();
        }
    }

    fn elect(&mut self, node: u64) {
        for _ in 0..5 {
            self.give(node, Op::Campaign);
            self.settle();
            if self.replicas[&node].group.status().part == Part::Leader {
                return;
            }
            self.tick(11);
        }
        panic!("node {node} is not elected");
    }

    fn propose(&mut self, node: u64, kind: u8, number: u8) {
        let data = Bytes::from_static(b"put a 1");
        self.give(node, Op::Propose { kind, number, data });
        self.settle();
    }
}

fn ordinary(cluster: &mut Recorder) {
    cluster.elect(1);
    cluster.propose(1, 2, 0);
    for number in 0..4 {
        cluster.propose(1 + u64::from(number) % 2, 1, number);
    }
    cluster.give(2, Op::Query(true));
    cluster.give(1, Op::Query(true));
    cluster.settle();
    cluster.propose(2, 3, 0);
    cluster.tick(4);
    cluster.give(1, Op::Transfer(2));
    cluster.settle();
    cluster.propose(1, 0, 0);
}

/// What no sound replica says, to a leader and to its follower.
fn misled(cluster: &mut Recorder) {
    use proto::RaftKind as Kind;
    cluster.elect(1);
    cluster.propose(1, 0, 0);
    let status = cluster.replicas[&1].group.status();
    let said = |kind: Kind| proto::RaftMessage {
        kind: kind.into(),
        term: status.term.0,
        log_term: status.term.0,
        ..Default::default()
    };
    let beyond = status.last.0 + 100;
    let messages = [
        proto::RaftMessage {
            index: beyond,
            ..said(Kind::AppendResponse)
        },
        proto::RaftMessage {
            index: status.last.0,
            reject: true,
            reject_hint: u64::MAX >> 1,
            ..said(Kind::AppendResponse)
        },
        proto::RaftMessage {
            index: beyond,
            log_term: 0,
            ..said(Kind::Append)
        },
        said(Kind::TransferLeader),
        said(Kind::ReadIndex),
        said(Kind::HeartbeatResponse),
        said(Kind::ReadIndexResponse),
        proto::RaftMessage {
            term: u64::MAX,
            ..said(Kind::RequestVote)
        },
    ];
    for (to, message) in [1, 2]
        .into_iter()
        .flat_map(|to| messages.clone().map(|m| (to, m)))
    {
        let message = proto::PeerMessage {
            group: 1,
            incarnation: 1,
            from: 3,
            to,
            body: Some(proto::peer_message::Body::Raft(message)),
        };
        let batch = proto::Batch {
            from: 3,
            to,
            lane: proto::Lane::Normal.into(),
            messages: vec![message],
        };
        let body = frame(peer_frame::Body::Batch(batch)).encode_to_vec();
        cluster.give(to, Op::Frame(body.into()));
        cluster.settle();
    }
    cluster.tick(2);
    cluster.propose(2, 0, 1);
    cluster.give(1, Op::Query(true));
    cluster.settle();
    let status = cluster.replicas[&2].group.status();
    assert!(status.applied.0 >= 5, "they go on: {status:?}");
}

fn alone(cluster: &mut Recorder) {
    cluster.elect(1);
    for kind in 0..4 {
        cluster.propose(1, kind, 0);
    }
    cluster.give(1, Op::Query(true));
    cluster.settle();
    cluster.propose(1, 4, 2);
    cluster.give(1, Op::Restart);
    cluster.settle();
    cluster.tick(21);
}

fn joins(cluster: &mut Recorder) {
    cluster.elect(1);
    for _ in 0..3 {
        cluster.propose(1, 0, 0);
    }
    cluster.propose(1, 3, 0);
    cluster.propose(1, 4, 4);
    cluster.tick(8);
    cluster.propose(4, 0, 0);
    cluster.propose(1, 5, 5);
}

fn behind(cluster: &mut Recorder) {
    cluster.elect(1);
    cluster.cut.insert(2);
    for _ in 0..20 {
        cluster.propose(1, 0, 0);
    }
    cluster.propose(1, 3, 0);
    cluster.cut.clear();
    cluster.give(2, Op::Restart);
    cluster.tick(6);
    cluster.propose(2, 0, 0);
    cluster.give(2, Op::Restart);
    cluster.tick(3);
}

fn deposed(cluster: &mut Recorder) {
    cluster.elect(1);
    cluster.propose(1, 0, 0);
    cluster.cut.insert(1);
    cluster.propose(1, 0, 1);
    cluster.propose(1, 0, 2);
    cluster.tick(12);
    cluster.elect(2);
    cluster.propose(2, 0, 3);
    cluster.cut.clear();
    cluster.tick(4);
    cluster.give(3, Op::Restart);
    cluster.give(1, Op::Unreachable(2));
    cluster.tick(2);
}

fn removals(cluster: &mut Recorder) {
    cluster.elect(1);
    cluster.propose(1, 6, 3);
    cluster.tick(3);
    cluster.propose(1, 6, 1);
    cluster.tick(14);
    cluster.elect(2);
    cluster.tick(6);
}
