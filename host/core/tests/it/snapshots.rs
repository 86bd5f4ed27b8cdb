//! Barriers, compaction, catch-up by snapshot, recovery from one.

use raft::eraftpb;
use skep_core::id::{NodeId, ReplicaId};
use skep_core::input::Input;
use skep_core::message::{Body, PeerMessage};
use skep_core::proposal::{Change, Proposal};

use crate::cluster::{Cluster, InFlight, anonymous, in_session};

/// Whoever lacks what a snapshot covers is sent the snapshot.
fn small(config: &mut skep_core::GroupConfig) {
    config.snapshot_entries = 8;
    config.limits.log_retained_bytes = 0;
}

#[test]
fn every_replica_snapshots_at_the_same_index_and_forgets_the_log_below() {
    let mut cluster = Cluster::with(3, small);
    cluster.elect(1);
    for n in 0..40 {
        cluster
            .ask(1, anonymous(&n.to_string()))
            .expect("committed");
    }
    cluster.tick(5);
    let files: Vec<Vec<_>> = (1..=3)
        .map(|node| cluster.node(node).disk.files.keys().copied().collect())
        .collect();
    assert!(files[0].len() >= 3, "{files:?}");
    assert_eq!(files[0], files[1]);
    assert_eq!(files[0], files[2]);
    for node in 1..=3 {
        let status = cluster.status(node).expect("runs");
        assert!(
            status.first.0 > 1 && status.first <= status.snapshot,
            "{status:?}"
        );
        let disk = &cluster.node(node).disk;
        assert_eq!(
            disk.entries.first().map(|entry| entry.index),
            Some(disk.truncated.0.0 + 1)
        );
        assert!(disk.hard_state.commit >= disk.snapshot.as_ref().expect("there").index.0);
    }
}

#[test]
fn a_replica_recovers_from_its_snapshot_and_the_log_after_it() {
    let mut cluster = Cluster::with(3, small);
    cluster.elect(1);
    let session = cluster
        .ask(1, Proposal::OpenSession)
        .expect("opened")
        .session();
    let first = cluster
        .ask(1, in_session(session, 1, "0"))
        .expect("committed");
    for n in 1..30 {
        cluster
            .ask(1, anonymous(&n.to_string()))
            .expect("committed");
    }
    for node in 1..=3 {
        cluster.crash(node);
    }
    for node in 1..=3 {
        cluster.restart(node);
    }
    cluster.until("a leader", |cluster| cluster.leader().is_some());
    cluster.tick(5);
    let expected: Vec<_> = (0..30).map(|n| n.to_string()).collect();
    for node in 1..=3 {
        assert_eq!(cluster.commands(node), expected);
        assert!(
            cluster.node(node).machine.inits.is_empty(),
            "`init` is never called on restore"
        );
    }
    // The session table is part of the snapshot.
    assert_eq!(cluster.ask(2, in_session(session, 1, "0")), Ok(first));
    assert_eq!(cluster.commands(2), expected);
}

#[test]
fn a_node_that_was_away_catches_up_by_snapshot() {
    let mut cluster = Cluster::with(3, small);
    cluster.elect(1);
    cluster.tick(2);
    cluster.crash(3);
    for n in 0..60 {
        cluster
            .ask(1, anonymous(&n.to_string()))
            .expect("committed");
    }
    let first = cluster.status(1).expect("runs").first;
    assert!(
        first.0 > cluster.node(3).disk.entries.len() as u64,
        "the log alone cannot help it"
    );
    cluster.restart(3);
    let expected: Vec<_> = (0..60).map(|n| n.to_string()).collect();
    cluster.until("node 3 has everything", |cluster| {
        cluster.commands(3).len() == 60
    });
    assert_eq!(cluster.commands(3), expected);
    assert!(cluster.node(3).disk.snapshot.is_some());
    // The installed snapshot counts as one: no other follows before the leader's next barrier.
    let others: Vec<_> = cluster.node(1).disk.files.keys().copied().collect();
    let own: Vec<_> = cluster.node(3).disk.files.keys().copied().collect();
    assert!(
        own.iter().all(|index| others.contains(index)),
        "{own:?} are not among {others:?}"
    );
    cluster.ask(3, anonymous("and goes on")).expect("committed");
    // Crash and recovery right after an installation.
    cluster.crash(3);
    cluster.restart(3);
    cluster.until("node 3 has everything", |cluster| {
        cluster.commands(3).len() == 61
    });
}

#[test]
fn a_joiner_is_given_a_snapshot_that_knows_it() {
    let mut cluster = Cluster::with(1, small);
    cluster.elect(1);
    for n in 0..40 {
        cluster
            .ask(1, anonymous(&n.to_string()))
            .expect("committed");
    }
    cluster.add(2, 0);
    let change = Change::Add {
        node: NodeId(2),
        data: bytes::Bytes::new(),
    };
    cluster
        .ask(1, Proposal::Change(change))
        .expect("caught up and promoted");
    assert_eq!(cluster.commands(2).len(), 40);
    let status = cluster.status(2).expect("runs");
    assert_eq!(status.members.len(), 2);
    // Membership is in the joiner's snapshot: it knows its peers after a restart.
    cluster.crash(2);
    cluster.restart(2);
    cluster.tick(3);
    assert_eq!(cluster.status(2).expect("runs").members.len(), 2);
}

#[test]
fn a_snapshot_is_taken_on_request() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.ask(1, anonymous("a")).expect("committed");
    let response = cluster.ask(2, Proposal::Barrier).expect("snapshotted");
    cluster.tick(3);
    for node in 1..=3 {
        assert_eq!(cluster.status(node).expect("runs").snapshot, response.index);
    }
}

#[test]
fn a_crash_between_snapshot_file_and_record_loses_nothing() {
    let mut cluster = Cluster::new(1);
    cluster.elect(1);
    cluster.ask(1, anonymous("a")).expect("committed");
    cluster.slow_disks.insert(1);
    // The barrier entry itself must be durable first.
    let barrier = cluster.propose(1, Proposal::Barrier);
    cluster.run();
    assert_eq!(cluster.reply(1, barrier), None);
    cluster.crash(1);
    cluster.slow_disks.clear();
    cluster.restart(1);
    cluster.until("a leader", |cluster| cluster.leader().is_some());
    cluster.tick(2);
    assert_eq!(cluster.commands(1), ["a"]);
}

/// A leader that missed an acknowledgement and has cut its log offers a snapshot that the follower has already.
#[test]
fn a_snapshot_that_need_not_arrive_is_acknowledged() {
    let mut cluster = Cluster::with(3, small);
    cluster.elect(1);
    for n in 0..10 {
        let text = n.to_string();
        cluster.ask(1, anonymous(&text)).expect("committed");
    }
    cluster.tick(5);
    let (index, (name, _, _)) = cluster.node(2).disk.files.last_key_value().expect("a file");
    let (index, name) = (*index, name.clone());
    let status = cluster.status(1).expect("runs");
    let header = eraftpb::Message {
        msg_type: eraftpb::MessageType::MsgSnapshot,
        from: 1,
        to: 2,
        term: status.term.0,
        ..Default::default()
    };
    let message = PeerMessage {
        group: status.group,
        incarnation: status.incarnation,
        from: ReplicaId(1),
        to: ReplicaId(2),
        body: Body::Raft(header),
    };
    cluster.node(2).sent.clear();
    let outdated = Input::SnapshotOutdated {
        from: NodeId(1),
        message,
        name,
    };
    cluster.input(2, outdated);
    cluster.run();
    let acknowledged = cluster.node(2).sent.iter().any(|sent| {
        matches!(&sent.body, Body::Raft(raft)
            if raft.msg_type == eraftpb::MessageType::MsgAppendResponse && !raft.reject && raft.index >= index.0)
    });
    assert!(acknowledged, "{:?}", cluster.node(2).sent);
}

/// What arrives late from a former leader must not take the place of what Raft has accepted and not installed yet.
#[test]
fn a_late_snapshot_of_a_former_leader_does_not_displace_the_accepted_one() {
    let mut cluster = Cluster::with(3, small);
    cluster.elect(1);
    cluster.tick(2);
    cluster.crash(3);
    let fill = |cluster: &mut Cluster, leader: u64, texts: std::ops::Range<u64>| {
        for n in texts {
            let text = n.to_string();
            cluster.ask(leader, anonymous(&text)).expect("committed");
        }
    };
    fill(&mut cluster, 1, 0..30);
    cluster.boot(3);
    let late = intercept(&mut cluster, 3);
    cluster.cut_off(3);
    cluster.input(1, Input::Transfer { to: NodeId(2) });
    cluster.until("node 2 leads", |cluster| cluster.leader() == Some(2));
    fill(&mut cluster, 2, 30..60);
    cluster.cut.clear();
    let accepted = intercept(&mut cluster, 3);
    let index = |(_, _, _, file): &InFlight| file.as_ref().map(|(name, _, _)| name.index);
    assert_eq!((late.0, accepted.0), (NodeId(1), NodeId(2)));
    assert!(index(&late) < index(&accepted));
    for (from, to, message, file) in [accepted, late] {
        cluster.deliver(from, to, message, file);
    }
    cluster.run();
    assert_eq!(cluster.node(3).halted, None);
    cluster.until("node 3 has everything", |cluster| {
        cluster.commands(3).len() == 60
    });
    let expected: Vec<_> = (0..60).map(|n| n.to_string()).collect();
    assert_eq!(cluster.commands(3), expected);
}

/// Lets time pass until a snapshot is on its way to a node, and takes it off the network.
fn intercept(cluster: &mut Cluster, node: u64) -> InFlight {
    for _ in 0..10_000 {
        for id in [1, 2, 3] {
            cluster.turn(id, usize::MAX, usize::MAX);
        }
        match cluster.network.pop_front() {
            Some(transfer) if transfer.1 == NodeId(node) && transfer.3.is_some() => {
                return transfer;
            }
            Some((from, to, message, file)) => cluster.deliver(from, to, message, file),
            None => {
                cluster.now += 100;
                let now = cluster.now;
                for id in [1, 2, 3] {
                    cluster.input(id, Input::Tick { now });
                }
            }
        }
    }
    panic!("no snapshot is ever sent to node {node}");
}
