//! Snapshots that cannot be written or read on one node: what the replica does meanwhile, and how it gets well.

use bytes::Bytes;
use skep_core::id::{LogIndex, NodeId};
use skep_core::input::Input;
use skep_core::proposal::{Change, Proposal, ProposalError};
use skep_core::status::{Health, Part, Status};

use crate::cluster::{Cluster, anonymous};

/// Three replicas of which node 1 leads, and whose logs do not reach back to the first entry any more.
fn compacted(nodes: u64) -> Cluster {
    let mut cluster = Cluster::with(nodes, |config| config.snapshot_entries = 8);
    cluster.elect(1);
    commands(&mut cluster, 0..40);
    cluster.tick(20);
    for id in 1..=nodes {
        assert!(status(&mut cluster, id).first > LogIndex(1), "node {id}");
    }
    cluster
}

fn commands(cluster: &mut Cluster, numbers: std::ops::Range<u32>) {
    for number in numbers {
        let leader = cluster.leader().expect("somebody leads");
        let command = anonymous(&format!("{number}"));
        cluster.ask(leader, command).expect("committed");
    }
}

fn expected(count: u32) -> Vec<String> {
    (0..count).map(|number| number.to_string()).collect()
}

fn status(cluster: &mut Cluster, id: u64) -> Status {
    cluster.status(id).expect("it runs")
}

fn is_damaged(cluster: &mut Cluster, id: u64) -> bool {
    matches!(status(cluster, id).health, Health::Damaged { .. })
}

/// Stops a node and loses its snapshot file.
fn lose(cluster: &mut Cluster, id: u64) {
    cluster.crash(id);
    cluster.node(id).disk.files.clear();
}

fn until_well(cluster: &mut Cluster, ids: &[u64]) {
    let ids = ids.to_vec();
    cluster.until("all are well", |cluster| {
        ids.iter()
            .all(|id| status(cluster, *id).health == Health::Healthy)
    });
}

#[test]
fn a_follower_without_its_snapshot_takes_the_leaders() {
    let mut cluster = compacted(3);
    lose(&mut cluster, 3);
    cluster.boot(3);
    assert!(is_damaged(&mut cluster, 3));
    // The same snapshot, or a newer one: whatever the leader has.
    until_well(&mut cluster, &[1, 2, 3]);
    commands(&mut cluster, 40..44);
    cluster.tick(20);
    let members = status(&mut cluster, 1).members.len();
    for id in 1..=3 {
        assert_eq!(cluster.commands(id), expected(44), "node {id}");
        assert_eq!(status(&mut cluster, id).members.len(), members);
        assert_eq!(cluster.node(id).halted, None);
    }
    // What it took is also what is on its disk.
    cluster.crash(3);
    cluster.restart(3);
    until_well(&mut cluster, &[3]);
    cluster.tick(20);
    assert_eq!(cluster.commands(3), expected(44));
}

#[test]
fn it_is_given_a_newer_snapshot_over_changes_of_members_it_did_not_see() {
    let mut cluster = compacted(3);
    lose(&mut cluster, 3);
    cluster.add(4, 0);
    let (node, data) = (NodeId(4), Bytes::new());
    let add = Proposal::Change(Change::Add { node, data });
    let waiter = cluster.propose(1, add);
    cluster.until("it is a member", |cluster| {
        cluster.reply(1, waiter).is_some_and(|reply| reply.is_ok())
    });
    commands(&mut cluster, 40..80);
    cluster.boot(3);
    until_well(&mut cluster, &[1, 2, 3, 4]);
    cluster.tick(20);
    for id in 1..=4 {
        assert_eq!(cluster.commands(id), expected(80), "node {id}");
        assert_eq!(status(&mut cluster, id).members.len(), 4, "node {id}");
    }
    // And it may lead.
    let leader = cluster.leader().expect("somebody leads");
    cluster.input(leader, Input::Transfer { to: NodeId(3) });
    cluster.until("it leads", |cluster| cluster.leader() == Some(3));
    commands(&mut cluster, 80..84);
}

// P-57
#[test]
fn until_then_it_stores_and_votes_and_does_nothing_else() {
    let mut cluster = compacted(3);
    lose(&mut cluster, 3);
    cluster.boot(3);
    cluster.crash(2);
    // Nothing commits without it, and no snapshot comes through.
    cluster.drop = |message| {
        matches!(&message.body, skep_core::message::Body::Raft(raft)
            if raft.msg_type == raft::eraftpb::MessageType::MsgSnapshot)
    };
    commands(&mut cluster, 40..43);
    assert!(is_damaged(&mut cluster, 3));
    // Nor is anybody elected.
    cluster.crash(1);
    cluster.tick(200);
    let alone = status(&mut cluster, 3);
    assert_eq!(alone.part, Part::Follower, "it campaigned");
    cluster.boot(1);
    cluster.until("it votes for another", |cluster| {
        cluster.leader() == Some(1)
    });
    commands(&mut cluster, 43..46);
    for linearizable in [false, true] {
        let waiter = cluster.query(3, linearizable);
        cluster.run();
        assert_eq!(
            cluster.node(3).query_replies.remove(&waiter),
            Some(Err(ProposalError::Faulted))
        );
    }
    let refused = cluster.ask(3, anonymous("refused"));
    assert_eq!(refused, Err(ProposalError::Faulted));
    let status = status(&mut cluster, 3);
    assert_eq!(status.snapshot, LogIndex(0), "what it lost is not offered");
    // A restart changes nothing of it.
    cluster.crash(3);
    cluster.boot(3);
    assert!(is_damaged(&mut cluster, 3));
    cluster.drop = |_| false;
    until_well(&mut cluster, &[1, 3]);
    cluster.boot(2);
    cluster.tick(30);
    for id in 1..=3 {
        assert_eq!(cluster.commands(id), expected(46), "node {id}");
    }
}

#[test]
fn a_log_that_reaches_back_to_the_first_entry_is_all_that_is_needed() {
    let mut cluster = Cluster::new(1);
    cluster.elect(1);
    commands(&mut cluster, 0..10);
    cluster.ask(1, Proposal::Barrier).expect("a snapshot");
    commands(&mut cluster, 10..12);
    assert_eq!(status(&mut cluster, 1).first, LogIndex(1));
    lose(&mut cluster, 1);
    cluster.restart(1);
    cluster.until("it leads again", |cluster| cluster.leader() == Some(1));
    cluster.tick(5);
    assert_eq!(status(&mut cluster, 1).health, Health::Healthy);
    assert_eq!(cluster.commands(1), expected(12));
}

#[test]
fn a_leader_that_cannot_read_its_snapshot_takes_a_new_one() {
    let mut cluster = compacted(3);
    cluster.crash(3);
    commands(&mut cluster, 40..70);
    let before = status(&mut cluster, 1);
    let index = before.snapshot;
    let reason = "it is damaged".to_owned();
    cluster.input(1, Input::SnapshotUnreadable { index, reason });
    cluster.run();
    assert_eq!(status(&mut cluster, 1).snapshot, LogIndex(0));
    assert!(matches!(
        status(&mut cluster, 1).health,
        Health::Degraded { .. }
    ));
    cluster.until("there is another", |cluster| {
        status(cluster, 1).snapshot > index
    });
    cluster.boot(3);
    until_well(&mut cluster, &[1, 2, 3]);
    cluster.tick(20);
    assert_eq!(cluster.commands(3), expected(70));
    // One that is replaced already is no reason for another.
    let newest = status(&mut cluster, 1).snapshot;
    let reason = "it is damaged".to_owned();
    cluster.input(1, Input::SnapshotUnreadable { index, reason });
    cluster.run();
    assert_eq!(status(&mut cluster, 1).snapshot, newest);
    assert_eq!(status(&mut cluster, 1).health, Health::Healthy);
}

#[test]
fn snapshots_that_come_to_nothing_are_not_taken_one_after_the_other() {
    let mut cluster = compacted(3);
    let start = status(&mut cluster, 1).last;
    for _ in 0..400 {
        let index = status(&mut cluster, 1).snapshot;
        if index.0 > 0 {
            let reason = "it is damaged".to_owned();
            cluster.input(1, Input::SnapshotUnreadable { index, reason });
        }
        cluster.tick(1);
    }
    // With pauses of 10, 20, 40, … ticks.
    let taken = status(&mut cluster, 1).last.0 - start.0;
    assert!((3..=7).contains(&taken), "{taken} barriers");
}

#[test]
fn a_snapshot_in_no_file_keeps_the_log_and_agrees_all_the_same() {
    let mut cluster = compacted(3);
    let before = status(&mut cluster, 2);
    cluster.node(2).machine.cannot_write = true;
    commands(&mut cluster, 40..44);
    let barrier = cluster.ask(1, Proposal::Barrier).expect("a snapshot").index;
    cluster.until("all agree", |cluster| {
        status(cluster, 1).verified == barrier
    });
    let degraded = status(&mut cluster, 2);
    assert!(
        matches!(&degraded.health, Health::Degraded { index, reason } if *index == barrier && reason == "no room"),
        "{:?}",
        degraded.health
    );
    assert_eq!(
        (degraded.first, degraded.snapshot),
        (before.first, before.snapshot)
    );
    // It serves, and a restart goes on from what is on its disk.
    let waiter = cluster.query(2, true);
    cluster.until("an answer", |cluster| {
        cluster.node(2).query_replies.contains_key(&waiter)
    });
    assert!(cluster.node(2).query_replies[&waiter].is_ok());
    cluster.input(2, Input::Written { index: barrier });
    cluster.run();
    let written = status(&mut cluster, 2);
    assert_eq!(written.health, Health::Healthy);
    assert_eq!(written.snapshot, barrier);
    assert!(written.first > before.first);
    cluster.crash(2);
    cluster.restart(2);
    cluster.tick(20);
    assert_eq!(cluster.commands(2), expected(44));
}

#[test]
fn a_restart_forgets_what_was_in_no_file_and_loses_nothing() {
    let mut cluster = compacted(3);
    cluster.node(2).machine.cannot_write = true;
    commands(&mut cluster, 40..44);
    let barrier = cluster.ask(1, Proposal::Barrier).expect("a snapshot").index;
    cluster.tick(5);
    cluster.crash(2);
    // What was never written is not there.
    cluster.node(2).disk.files.remove(&barrier);
    cluster.restart(2);
    cluster.tick(20);
    assert_eq!(status(&mut cluster, 2).health, Health::Healthy);
    assert_eq!(cluster.commands(2), expected(44));
}
