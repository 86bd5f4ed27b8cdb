//! Samples: what happens to one replica of a cluster that does its work.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use prost::Message;
use skep_core::id::NodeId;
use skep_core::message::Batch;
use skep_core::status::Part;
use skep_peer::{SnapshotOffer, batch_to_wire, frame};
use skep_wire::proto::{self, peer_frame};

use super::op::Op;
use super::{Place, Replica, Sent};

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
        ("told", 2, told),
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

    /// Makes a node lead. Who is the first to campaign is drawn; whoever else leads hands over.
    fn elect(&mut self, node: u64) {
        for _ in 0..5 {
            let mut others = self.replicas.keys().copied();
            match others.find(|other| *other != node && self.leads(*other)) {
                Some(leader) => self.give(leader, Op::Transfer(node as u8)),
                None => self.give(node, Op::Campaign),
            }
            self.settle();
            if self.leads(node) {
                return;
            }
            self.tick(11);
        }
        panic!("node {node} is not elected");
    }

    fn leads(&self, node: u64) -> bool {
        !self.cut.contains(&node) && self.replicas[&node].group.status().part == Part::Leader
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
            durable: 0,
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

/// A follower hears of a process that has ended: of one that runs, and of one that does not.
fn told(cluster: &mut Recorder) {
    cluster.elect(1);
    cluster.propose(1, 0, 0);
    cluster.give(2, Op::NodeGone(1));
    cluster.tick(4);
    cluster.propose(2, 0, 1);
    cluster.cut.insert(1);
    for node in [2, 3] {
        cluster.give(node, Op::NodeGone(1));
    }
    cluster.tick(10);
    cluster.give(2, Op::NodeGone(3));
    cluster.elect(2);
    cluster.propose(2, 0, 2);
    cluster.cut.clear();
    cluster.tick(4);
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
