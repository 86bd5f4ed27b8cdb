//! Nothing is said before what it speaks for is durable.

use raft::eraftpb::MessageType;
use skep_core::id::NodeId;
use skep_core::input::Input;
use skep_core::message::{Body, PeerMessage};
use skep_core::proposal::Proposal;
use skep_core::status::Part;

use crate::cluster::{Cluster, anonymous, is_append};

fn kinds(messages: &[PeerMessage]) -> Vec<MessageType> {
    messages
        .iter()
        .filter_map(|message| match &message.body {
            Body::Raft(raft) => Some(raft.msg_type),
            _ => None,
        })
        .collect()
}

#[test]
fn a_follower_acknowledges_after_its_sync() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.tick(2);
    cluster.slow_disks.insert(2);
    cluster.node(2).sent.clear();
    cluster
        .ask(1, anonymous("a"))
        .expect("1 and 3 are a quorum");
    let before = kinds(&cluster.node(2).sent);
    assert!(
        !before.contains(&MessageType::MsgAppendResponse),
        "{before:?}"
    );
    cluster.slow_disks.clear();
    cluster.run();
    assert!(kinds(&cluster.node(2).sent).contains(&MessageType::MsgAppendResponse));
}

// P-1
#[test]
fn a_command_is_not_acknowledged_before_a_quorum_has_synced() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.tick(2);
    cluster.slow_disks.extend([2, 3]);
    let waiter = cluster.command(1, "a");
    cluster.run();
    assert_eq!(cluster.reply(1, waiter), None);
    cluster.slow_disks.remove(&3);
    cluster.run();
    assert!(matches!(cluster.reply(1, waiter), Some(Ok(_))));
}

#[test]
fn a_leaders_own_sync_counts_like_any_other() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.tick(2);
    cluster.slow_disks.extend([1, 2]);
    let waiter = cluster.command(1, "a");
    cluster.run();
    assert_eq!(cluster.reply(1, waiter), None, "only node 3 has it");
    cluster.slow_disks.remove(&1);
    cluster.run();
    assert!(matches!(cluster.reply(1, waiter), Some(Ok(_))));
}

// P-3
#[test]
fn a_vote_is_given_after_its_sync_and_not_twice_after_a_crash() {
    let mut cluster = Cluster::new(3);
    cluster.run();
    cluster.slow_disks.insert(2);
    cluster.cut.insert((1, 3));
    cluster.input(1, Input::Campaign);
    cluster.run();
    let sent = kinds(&cluster.node(2).sent);
    assert!(
        sent.contains(&MessageType::MsgRequestPreVoteResponse),
        "a pre-vote promises nothing"
    );
    assert!(
        !sent.contains(&MessageType::MsgRequestVoteResponse),
        "{sent:?}"
    );
    assert_eq!(cluster.leader(), None);
    cluster.slow_disks.clear();
    cluster.run();
    assert_eq!(cluster.leader(), Some(1));
    let vote = cluster.node(2).disk.hard_state.vote;
    assert_eq!(vote, 1);
}

/// With one voter and a learner raft-rs hands out a leader's appends together with the hard state of its term.
// P-3
#[test]
fn a_lone_voter_says_nothing_in_a_term_that_is_not_durable() {
    let mut cluster = Cluster::new(1);
    cluster.elect(1);
    cluster.add(2, 0);
    let change = skep_core::proposal::Change::AddLearner {
        node: NodeId(2),
        data: bytes::Bytes::new(),
    };
    cluster.ask(1, Proposal::Change(change)).expect("added");
    cluster.ask(1, anonymous("old")).expect("committed");
    cluster.tick(3);
    cluster.crash(1);
    cluster.slow_disks.insert(1);
    cluster.restart(1);
    cluster.node(1).sent.clear();
    cluster.until("the restarted voter leads", |cluster| {
        cluster.leader() == Some(1)
    });
    let _lost = cluster.command(1, "never durable");
    cluster.tick(4);
    let sent = cluster.node(1).sent.clone();
    assert!(!sent.iter().any(is_append), "{:?}", kinds(&sent));
    cluster.crash(1);
    cluster.slow_disks.clear();
    cluster.restart(1);
    cluster.until("the restarted voter leads", |cluster| {
        cluster.leader() == Some(1)
    });
    cluster.ask(1, anonymous("new")).expect("committed");
    cluster.tick(3);
    assert_eq!(cluster.commands(1), ["old", "new"]);
    assert_eq!(cluster.commands(2), ["old", "new"]);
}

// P-1
#[test]
fn everything_acknowledged_survives_the_crash_of_all_nodes() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    for n in 0..20 {
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
    let expected: Vec<_> = (0..20).map(|n| n.to_string()).collect();
    for node in 1..=3 {
        assert_eq!(cluster.commands(node), expected);
        // `init` is called once in the life of the group; the replay of the log is that one call again.
        assert_eq!(cluster.node(node).machine.inits.len(), 1);
    }
}

// P-38
#[test]
fn a_replica_that_lost_acknowledged_entries_halts_instead_of_panicking() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    for n in 0..5 {
        cluster
            .ask(1, anonymous(&n.to_string()))
            .expect("committed");
    }
    cluster.tick(3);
    cluster.crash(3);
    let lost = cluster.node(3).disk.entries.split_off(4);
    assert!(!lost.is_empty());
    cluster.node(3).disk.hard_state.commit = 3;
    cluster.restart(3);
    cluster.tick(5);
    let reason = cluster.node(3).halted.clone().expect("it has noticed");
    assert!(reason.contains("acknowledged data was lost"), "{reason}");
    cluster
        .ask(1, anonymous("the others go on"))
        .expect("committed");
}

#[test]
fn the_same_inputs_give_the_same_effects() {
    let run = || {
        let mut cluster = Cluster::new(3);
        cluster.tick(40);
        let leader = cluster.leader().expect("elected");
        cluster.ask(leader, anonymous("a")).expect("committed");
        cluster.crash(leader);
        cluster.tick(40);
        let sent: Vec<_> = (1..=3)
            .map(|id| format!("{:?}", cluster.node(id).sent))
            .collect();
        (leader, sent)
    };
    assert_eq!(run(), run());
}

#[test]
fn groups_of_a_node_do_not_elect_in_lock_step_and_ties_end() {
    let mut cluster = Cluster::new(5);
    cluster.until("a leader", |cluster| cluster.leader().is_some());
    let leader = cluster.leader().expect("just seen");
    cluster.crash(leader);
    cluster.until("another leader", |cluster| {
        cluster.leader().is_some_and(|other| {
            other != leader
                && cluster
                    .status(other)
                    .is_some_and(|status| status.part == Part::Leader)
        })
    });
}

/// raft-rs lets a replica without a configuration win an election against nobody, and panics.
#[test]
fn a_replica_that_knows_no_members_yet_does_not_campaign() {
    let mut cluster = Cluster::new(1);
    cluster.add(2, 0);
    for id in 1..=2 {
        cluster.input(id, Input::Campaign);
    }
    cluster.run();
    assert_eq!(cluster.node(1).halted, None);
    assert_eq!(cluster.leader(), None);
    cluster.elect(1);
}

/// Skipping it would make replicas differ that read it differently; so would guessing.
#[test]
fn a_committed_entry_that_cannot_be_read_halts_the_replica() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.ask(1, anonymous("a")).expect("committed");
    cluster.tick(3);
    cluster.crash(3);
    let spoiled = cluster.node(3).disk.entries.iter_mut();
    for entry in spoiled.filter(|entry| !entry.data.is_empty()) {
        entry.data = bytes::Bytes::from_static(&[0xff; 9]);
    }
    cluster.restart(3);
    cluster.tick(5);
    let reason = cluster.node(3).halted.clone().expect("it has noticed");
    assert!(reason.contains("cannot be read"), "{reason}");
    cluster
        .ask(1, anonymous("the others go on"))
        .expect("committed");
}
