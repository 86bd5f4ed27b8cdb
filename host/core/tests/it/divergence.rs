//! Replicas whose machines differ: noticed at the next barrier, judged by the log, mended from the majority.

use skep_core::id::{LogIndex, NodeId};
use skep_core::input::Input;
use skep_core::proposal::{Change, Proposal, ProposalError};
use skep_core::status::{Health, Part, Status};

use crate::cluster::{Cluster, Sick, activate, anonymous};

/// Three replicas of which node 1 leads, after a few commands.
fn cluster(nodes: u64) -> Cluster {
    let mut cluster = Cluster::new(nodes);
    cluster.elect(1);
    for n in 0..3 {
        cluster
            .ask(1, anonymous(&format!("good {n}")))
            .expect("committed");
    }
    cluster
}

fn status(cluster: &mut Cluster, id: u64) -> Status {
    cluster.status(id).expect("it runs")
}

fn health(cluster: &mut Cluster, id: u64) -> Health {
    status(cluster, id).health
}

fn is_suspended(cluster: &mut Cluster, id: u64) -> bool {
    matches!(health(cluster, id), Health::Suspended { .. })
}

/// Node `id` alone does something else with the next command.
fn make_sick(cluster: &mut Cluster, id: u64, sick: Sick) {
    cluster.node(id).machine.sick = sick;
    cluster.ask(1, anonymous("contested")).expect("committed");
    cluster.run();
    cluster.node(id).machine.sick = Sick::Healthy;
}

#[test]
fn replicas_that_agree_say_so_and_nothing_is_put_into_the_log() {
    let mut cluster = cluster(3);
    let barrier = cluster.ask(1, Proposal::Barrier).expect("a snapshot").index;
    cluster.until("the leader has heard of all", |cluster| {
        status(cluster, 1).verified == barrier
    });
    cluster.tick(50);
    assert_eq!(status(&mut cluster, 1).last, barrier);
    for id in 1..=3 {
        assert_eq!(health(&mut cluster, id), Health::Healthy);
        assert!(cluster.node(id).diverged.is_empty());
    }
}

fn a_minority_is_mended(sick: Sick, id: u64) {
    let mut cluster = cluster(3);
    make_sick(&mut cluster, id, sick);
    let barrier = cluster.ask(1, Proposal::Barrier).expect("a snapshot").index;
    cluster.until("everybody was told", |cluster| {
        (1..=3).all(|id| cluster.node(id).diverged == [barrier])
    });
    cluster.until(
        "the sick one has another snapshot, and all are well",
        |cluster| {
            status(cluster, id).snapshot > barrier
                && (1..=3).all(|id| health(cluster, id) == Health::Healthy)
        },
    );
    let leader = cluster.leader().expect("somebody leads");
    cluster.ask(leader, anonymous("after")).expect("committed");
    cluster.tick(20);
    let expected = ["good 0", "good 1", "good 2", "contested", "after"];
    for id in 1..=3 {
        assert_eq!(cluster.commands(id), expected, "node {id}");
    }
    let again = cluster
        .ask(leader, Proposal::Barrier)
        .expect("a snapshot")
        .index;
    cluster.until("they agree", |cluster| {
        status(cluster, leader).verified == again
    });
}

// P-22
#[test]
fn a_follower_that_lost_a_command_takes_the_state_of_the_majority() {
    a_minority_is_mended(Sick::Forgets, 2);
}

// P-22
#[test]
fn a_leader_that_lost_a_command_gives_way_and_takes_the_state_of_the_majority() {
    a_minority_is_mended(Sick::Forgets, 1);
}

// P-22
#[test]
fn a_reply_that_differs_is_noticed_although_the_snapshots_are_equal() {
    // Whoever of the three speaks first.
    for id in 1..=3 {
        a_minority_is_mended(Sick::Lies, id);
    }
}

#[test]
fn a_quarantined_replica_answers_nothing_and_its_snapshot_is_offered_to_nobody() {
    let mut cluster = cluster(3);
    make_sick(&mut cluster, 3, Sick::Forgets);
    // Whatever the leader sends it is lost, so it stays as it is.
    cluster.ask(1, Proposal::Barrier).expect("a snapshot");
    cluster.drop = |message| {
        matches!(&message.body, skep_core::message::Body::Raft(raft)
            if raft.msg_type == raft::eraftpb::MessageType::MsgSnapshot)
    };
    cluster.until("it is quarantined", |cluster| {
        matches!(health(cluster, 3), Health::Quarantined { .. })
    });
    for linearizable in [false, true] {
        let waiter = cluster.query(3, linearizable);
        cluster.run();
        assert_eq!(
            cluster.node(3).query_replies.remove(&waiter),
            Some(Err(ProposalError::Faulted))
        );
    }
    assert_eq!(
        status(&mut cluster, 3).snapshot,
        LogIndex(0),
        "what it has is not offered"
    );
    // A restart forgets the quarantine, and the log says it again.
    cluster.crash(3);
    cluster.restart(3);
    cluster.until("it is quarantined again", |cluster| {
        matches!(health(cluster, 3), Health::Quarantined { .. })
    });
    cluster.drop = |_| false;
    cluster.until("it is mended", |cluster| {
        health(cluster, 3) == Health::Healthy
    });
    cluster.tick(20);
    assert_eq!(cluster.commands(3), cluster.commands(1));
}

// P-22
#[test]
fn two_that_disagree_wait_for_the_third() {
    let mut cluster = cluster(3);
    cluster.crash(3);
    make_sick(&mut cluster, 2, Sick::Forgets);
    cluster.ask(1, Proposal::Barrier).expect("a snapshot");
    cluster.until("both wait", |cluster| {
        (1..=2).all(|id| is_suspended(cluster, id))
    });
    assert_eq!(
        cluster.ask(1, anonymous("refused")),
        Err(ProposalError::Faulted),
        "the group rather stops than guesses"
    );
    // A restart changes nothing of it.
    cluster.crash(2);
    cluster.restart(2);
    cluster.until("it waits again", |cluster| is_suspended(cluster, 2));
    cluster.boot(3);
    cluster.until("all are well", |cluster| {
        (1..=3).all(|id| health(cluster, id) == Health::Healthy)
    });
    let leader = cluster.leader().expect("somebody leads");
    cluster.ask(leader, anonymous("after")).expect("committed");
    cluster.tick(30);
    let expected = ["good 0", "good 1", "good 2", "contested", "after"];
    for id in 1..=3 {
        assert_eq!(cluster.commands(id), expected, "node {id}");
    }
}

#[test]
fn who_was_given_the_contested_state_is_no_witness_for_it() {
    let mut cluster = Cluster::with(3, |config| {
        config.snapshot_entries = 8;
        // Whoever lacks what a snapshot covers is sent the snapshot.
        config.limits.log_retained_bytes = 0;
    });
    cluster.elect(1);
    cluster.crash(3);
    for n in 0..40 {
        cluster
            .ask(1, anonymous(&format!("{n}")))
            .expect("committed");
    }
    make_sick(&mut cluster, 2, Sick::Forgets);
    let barrier = cluster.ask(1, Proposal::Barrier).expect("a snapshot").index;
    cluster.until("both wait", |cluster| {
        (1..=2).all(|id| is_suspended(cluster, id))
    });
    // The log does not reach back to where node 3 is, so it takes the snapshot of one of the two.
    cluster.boot(3);
    cluster.until("it has the contested state", |cluster| {
        status(cluster, 3).snapshot == barrier
    });
    cluster.tick(100);
    assert!((1..=2).all(|id| is_suspended(&mut cluster, id)));
    let leader = cluster.leader().expect("somebody leads");
    let trust = Proposal::Trust { node: NodeId(1) };
    cluster.ask(leader, trust).expect("decided");
    cluster.until("all are well", |cluster| {
        (1..=3).all(|id| health(cluster, id) == Health::Healthy)
    });
    cluster.tick(20);
    for id in 1..=3 {
        assert_eq!(
            cluster.commands(id).last().map(String::as_str),
            Some("contested")
        );
    }
}

// P-22
#[test]
fn of_two_an_operator_decides() {
    for trusted in [1, 2] {
        let mut cluster = cluster(2);
        make_sick(&mut cluster, 2, Sick::Forgets);
        let trust = |node| Proposal::Trust { node: NodeId(node) };
        assert_eq!(cluster.ask(1, trust(1)), Err(ProposalError::NotNeeded));
        cluster.ask(1, Proposal::Barrier).expect("a snapshot");
        cluster.until("both wait", |cluster| {
            (1..=2).all(|id| is_suspended(cluster, id))
        });
        assert_eq!(cluster.ask(1, trust(9)), Err(ProposalError::NotNeeded));
        cluster.ask(1, trust(trusted)).expect("decided");
        cluster.until("both are well", |cluster| {
            (1..=2).all(|id| health(cluster, id) == Health::Healthy)
        });
        cluster.tick(20);
        let expected: &[&str] = match trusted {
            1 => &["good 0", "good 1", "good 2", "contested"],
            _ => &["good 0", "good 1", "good 2"],
        };
        for id in 1..=2 {
            assert_eq!(cluster.commands(id), expected, "node {id} trusts {trusted}");
        }
    }
}

#[test]
fn changes_of_membership_go_on_beside_barriers() {
    let mut cluster = cluster(3);
    cluster.add(4, 0);
    let node = NodeId(4);
    let data = bytes::Bytes::new();
    let add = Change::Add { node, data };
    cluster.ask(1, Proposal::Barrier).expect("a snapshot");
    let waiter = cluster.propose(1, Proposal::Change(add));
    cluster.until("it is a member", |cluster| {
        cluster.reply(1, waiter).is_some_and(|reply| reply.is_ok())
    });
    let barrier = cluster.ask(1, Proposal::Barrier).expect("a snapshot").index;
    cluster.until("they agree", |cluster| {
        status(cluster, 1).verified == barrier
    });
    assert_eq!(status(&mut cluster, 4).part, Part::Follower);
    make_sick(&mut cluster, 4, Sick::Forgets);
    cluster.ask(1, Proposal::Barrier).expect("a snapshot");
    cluster.until("the new one was mended", |cluster| {
        !cluster.node(4).diverged.is_empty() && health(cluster, 4) == Health::Healthy
    });
    cluster.tick(20);
    assert_eq!(cluster.commands(4), cluster.commands(1));
}

/// Two voters that differ from each other, both wrong, and a learner that is right: an operator trusts it. What is proposed
/// before that stands behind the disagreement.
fn only_a_learner_is_right(meanwhile: impl Fn(&mut Cluster)) -> Cluster {
    let mut cluster = Cluster::with(2, |config| config.limits.activation_ticks = 10_000);
    cluster.elect(1);
    cluster.add(3, 0);
    let (node, data) = (NodeId(3), bytes::Bytes::new());
    let learner = Proposal::Change(Change::AddLearner { node, data });
    cluster.ask(1, learner).expect("a learner");
    cluster.ask(1, Proposal::Barrier).expect("a snapshot");
    cluster.until("the learner is there", |cluster| {
        status(cluster, 3).applied == status(cluster, 1).applied
    });
    for id in [1, 1, 2] {
        make_sick(&mut cluster, id, Sick::Forgets);
    }
    cluster.ask(1, Proposal::Barrier).expect("a snapshot");
    cluster.until("all wait", |cluster| {
        (1..=3).all(|id| is_suspended(cluster, id))
    });
    meanwhile(&mut cluster);
    let trust = Proposal::Trust { node: NodeId(3) };
    cluster.ask(1, trust).expect("decided");
    for id in 1..=2 {
        let health = health(&mut cluster, id);
        assert!(matches!(health, Health::Quarantined { .. }), "{health:?}");
    }
    cluster
}

fn all_have_what_the_learner_had(cluster: &mut Cluster) {
    cluster.until("all are well", |cluster| {
        (1..=3).all(|id| health(cluster, id) == Health::Healthy)
    });
    let leader = cluster.leader().expect("somebody leads");
    assert_ne!(leader, 3, "a learner leads nobody");
    cluster.ask(leader, anonymous("after")).expect("committed");
    cluster.tick(20);
    for id in 1..=3 {
        assert_eq!(
            cluster.commands(id),
            ["contested", "contested", "contested", "after"],
            "node {id}"
        );
    }
}

// P-22
#[test]
fn voters_that_are_all_wrong_take_the_state_of_a_learner() {
    let mut cluster = only_a_learner_is_right(|_| {});
    all_have_what_the_learner_had(&mut cluster);
}

// P-22
#[test]
fn an_activation_that_only_a_learner_waits_at_is_given_up() {
    let mut cluster = only_a_learner_is_right(|cluster| {
        cluster.propose(1, activate(5));
        cluster.propose(1, activate(6));
        cluster.tick(2);
    });
    all_have_what_the_learner_had(&mut cluster);
    for id in 1..=3 {
        assert_eq!(cluster.node(id).machine.runs, 0, "node {id}");
    }
}

// P-22
#[test]
fn an_activation_is_given_up_that_keeps_a_majority_from_a_snapshot() {
    let mut cluster = Cluster::with(3, |config| config.limits.activation_ticks = 10_000);
    cluster.elect(1);
    for id in [2, 3, 3] {
        make_sick(&mut cluster, id, Sick::Forgets);
    }
    cluster.ask(1, Proposal::Barrier).expect("a snapshot");
    cluster.until("all wait", |cluster| {
        (1..=3).all(|id| is_suspended(cluster, id))
    });
    cluster.propose(1, activate(5));
    cluster.propose(1, activate(6));
    cluster.tick(2);
    let trust = Proposal::Trust { node: NodeId(1) };
    cluster.ask(1, trust).expect("decided");
    cluster.until("all are well", |cluster| {
        (1..=3).all(|id| health(cluster, id) == Health::Healthy)
    });
    cluster.ask(1, anonymous("after")).expect("committed");
    cluster.tick(20);
    for id in 1..=3 {
        let expected = ["contested", "contested", "contested", "after"];
        assert_eq!(cluster.commands(id), expected, "node {id}");
        assert_eq!(cluster.node(id).machine.runs, 0, "node {id}");
    }
}

// P-22
#[test]
fn a_quarantined_replica_learns_who_the_members_are_and_can_be_elected() {
    let mut cluster = cluster(3);
    make_sick(&mut cluster, 2, Sick::Forgets);
    cluster.drop = |message| {
        matches!(&message.body, skep_core::message::Body::Raft(raft)
            if raft.msg_type == raft::eraftpb::MessageType::MsgSnapshot)
    };
    cluster.ask(1, Proposal::Barrier).expect("a snapshot");
    cluster.until("it is quarantined", |cluster| {
        matches!(health(cluster, 2), Health::Quarantined { .. })
    });
    let (node, data) = (NodeId(3), bytes::Bytes::new());
    let remove = Proposal::Change(Change::Remove { node, data });
    cluster.ask(1, remove).expect("removed");
    cluster.crash(3);
    cluster.tick(2);
    // It may be the only one whose log has everything.
    cluster.input(1, Input::Transfer { to: NodeId(2) });
    cluster.until("it leads", |cluster| cluster.leader() == Some(2));
    assert_eq!(status(&mut cluster, 2).members.len(), 2);
    cluster.until("who is well leads", |cluster| cluster.leader() == Some(1));
    cluster.drop = |_| false;
    cluster.until("it is mended", |cluster| {
        health(cluster, 2) == Health::Healthy
    });
    cluster.ask(1, anonymous("after")).expect("committed");
    cluster.tick(20);
    assert_eq!(cluster.commands(2), cluster.commands(1));
}
