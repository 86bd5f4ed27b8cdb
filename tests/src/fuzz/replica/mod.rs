//! Bytes as what happens to one replica: frames from peers, ticks, syncs, crashes, in any order.
//!
//! Byte 0 chooses the replica's place in its group; then come `Op`s. Frames go the way of the real ones, through
//! `skep-wire`. The disk loses what was not synced at a restart. What is checked is what Raft's safety rests on: terms
//! and votes that are durable before anybody hears of them and never taken back, committed entries that stay, indices in
//! their order, one answer to each question.

mod disk;
mod op;
mod script;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use prost::Message;
use raft::eraftpb::{Entry, HardState, MessageType};
use sha2::{Digest, Sha256};
use skep_core::activation::Readiness;
use skep_core::attestation::Deed;
use skep_core::effect::{Call, Effect, Persist, Work};
use skep_core::id::{GroupId, Incarnation, LogIndex, NodeId};
use skep_core::input::{Input, LogRead, Waiter};
use skep_core::message::{ArrivedSnapshot, Body, PeerMessage, SnapshotName};
use skep_core::outcome::Outcome;
use skep_core::status::{Health, Part, Status};
use skep_core::{Group, GroupConfig, Member, Recovered};
use skep_peer::{SnapshotOffer, batch_from_wire};
use skep_wire::proto::{self, peer_frame};

use disk::Disk;
use op::{Op, id, proposal};
pub use script::seeds;

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
    /// It is quarantined, or was when its machine failed: it has a snapshot that it gives to nobody and does not speak of.
    withholds: bool,
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
            withholds: false,
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
            Op::NodeGone(node) => self.group.handle(Input::NodeGone { node: id(node) }),
            Op::SnapshotSent(node, arrived) => self.group.handle(Input::SnapshotSent {
                node: id(node),
                arrived,
            }),
            Op::Restart => self.restart(),
            Op::MachineFails => self.group.handle(Input::MachineFailed {
                reason: "as the script says".into(),
                at: None,
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
        self.withholds = false;
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
                Effect::ReadLog { from, through, .. } => {
                    let wanted = |entry: &&Entry| (from.0..=through.0).contains(&entry.index);
                    let entries: Vec<_> = (self.durable.entries.iter())
                        .filter(wanted)
                        .cloned()
                        .collect();
                    assert!(
                        entries.first().is_some_and(|first| first.index == from.0),
                        "entry {from} is to be read and is not on the disk"
                    );
                    let read = LogRead::Entries(entries);
                    self.group.handle(Input::LogRead { from, read });
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
                Effect::Diverged { .. } | Effect::Distrusted { .. } | Effect::GivenUp { .. } => {}
                Effect::Leader(changed) => assert!(changed.new.0 != 0 && changed.term.0 != 0),
                Effect::Removed => self.ended = true,
                Effect::Halt { reason } => {
                    assert!(!reason.contains("panicked"), "{reason}");
                    self.ended = true;
                }
            }
        }
        let status = self.group.status();
        self.withholds = match status.health {
            Health::Quarantined { .. } | Health::Damaged { .. } => true,
            Health::Faulted { .. } => self.withholds,
            _ => false,
        };
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
            now.snapshot <= now.commit && (self.withholds || now.first.0 <= now.snapshot.0 + 1),
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
            Work::Apply {
                context,
                entry,
                calls,
            } => {
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
                        Call::Init(_) | Call::StatusChange(_) => {}
                    }
                }
                Input::Applied {
                    index: context.index,
                    deed: Deed::of(&entry, &outcomes, 1),
                    outcomes,
                    fuel: 1,
                    rebuilds: 0,
                    replay_fuel: 1,
                }
            }
            Work::Barrier { context, state, .. } => {
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
                    memory: None,
                }
            }
            Work::Prepare { context, .. } => {
                assert!(context.index >= self.worked, "the machine was led back");
                self.worked = context.index;
                Input::Prepared {
                    index: context.index,
                    readiness: Readiness::Prepared,
                }
            }
            Work::Decide { context, .. } => {
                assert_eq!(context.index, self.worked, "nothing comes between");
                Input::Exchanged {
                    index: context.index,
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
                    memory: None,
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

fn digest(state: &[u8]) -> [u8; 32] {
    Sha256::digest(state).into()
}
