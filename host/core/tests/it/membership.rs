//! Members come and go without losing a quorum.

use bytes::Bytes;
use skep_core::id::NodeId;
use skep_core::input::Input;
use skep_core::proposal::{Change, ChangeRefusal, Proposal, ProposalError};
use skep_core::state::Role;
use skep_core::status::Part;

use crate::cluster::{Cluster, anonymous};

fn add(node: u64) -> Proposal {
    Proposal::Change(Change::Add {
        node: NodeId(node),
        data: Bytes::from_static(b"data"),
    })
}

fn remove(node: u64) -> Proposal {
    Proposal::Change(Change::Remove {
        node: NodeId(node),
        data: Bytes::new(),
    })
}

fn learn(node: u64) -> Proposal {
    Proposal::Change(Change::AddLearner {
        node: NodeId(node),
        data: Bytes::new(),
    })
}

fn promote(node: u64) -> Proposal {
    let node = NodeId(node);
    Proposal::Change(Change::Promote { node })
}

fn demote(node: u64) -> Proposal {
    let node = NodeId(node);
    Proposal::Change(Change::Demote { node })
}

/// The nodes of the members that vote, as a node knows them.
fn voters(cluster: &mut Cluster, at: u64) -> Vec<u64> {
    let status = cluster.status(at).expect("runs");
    let members = status.members.iter();
    members
        .filter(|member| member.role == Role::Voter)
        .map(|member| member.node.0)
        .collect()
}

#[test]
fn of_many_founders_the_first_ones_vote() {
    let mut cluster = Cluster::with(7, |config| config.founding_voters = 5);
    cluster.elect(2);
    cluster
        .ask(7, anonymous("through a learner"))
        .expect("committed");
    cluster.tick(3);
    for id in [2, 7] {
        assert_eq!(voters(&mut cluster, id), [1, 2, 3, 4, 5]);
        assert_eq!(cluster.status(id).expect("runs").members.len(), 7);
    }
    // Two of the five may go at once.
    cluster.crash(1);
    cluster.crash(5);
    cluster.ask(6, anonymous("still")).expect("committed");
    // A learner elects nobody.
    cluster.crash(3);
    cluster.input(7, Input::Campaign);
    cluster.tick(40);
    assert_ne!(cluster.leader(), Some(7));
}

// P-82
#[test]
fn a_learner_becomes_a_voter_and_a_voter_a_learner() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.tick(3);
    cluster.add(4, 0);
    cluster.ask(1, learn(4)).expect("added");
    cluster.tick(3);
    let refused = |refusal| Err(ProposalError::ChangeRefused(refusal));
    for (change, refusal) in [
        (promote(2), ChangeRefusal::SameRole),
        (demote(4), ChangeRefusal::SameRole),
        (promote(9), ChangeRefusal::NotMember),
        (demote(0), ChangeRefusal::NotMember),
    ] {
        assert_eq!(cluster.ask(1, change), refused(refusal));
    }
    cluster.ask(2, promote(4)).expect("through a follower");
    assert_eq!(voters(&mut cluster, 1), [1, 2, 3, 4]);
    // The leader hands over first.
    cluster.ask(1, demote(1)).expect("by its successor");
    cluster.tick(12);
    let leader = cluster.leader().expect("another one leads");
    assert_ne!(leader, 1);
    assert_eq!(voters(&mut cluster, leader), [2, 3, 4]);
    cluster.ask(1, anonymous("after")).expect("committed");
    cluster.tick(3);
    assert_eq!(cluster.commands(1), ["after"], "it follows");
    // What it was told lasts.
    cluster.crash(1);
    cluster.restart(1);
    cluster.tick(12);
    assert_eq!(voters(&mut cluster, 1), [2, 3, 4]);
    let machine = &cluster.node(4).machine;
    assert!(machine.changes.ends_with(&[(4, 1), (4, 2), (1, 1)]));
}

// P-82
#[test]
fn a_dead_voter_is_replaced_and_does_not_count_when_it_is_back() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.tick(3);
    cluster.add(4, 0);
    cluster.ask(1, learn(4)).expect("added");
    cluster.crash(3);
    cluster.tick(25);
    let refused = |refusal| Err(ProposalError::ChangeRefused(refusal));
    assert_eq!(
        cluster.ask(1, demote(2)),
        refused(ChangeRefusal::QuorumAtRisk)
    );
    cluster.ask(1, promote(4)).expect("three of four are alive");
    cluster.ask(1, demote(3)).expect("the dead one");
    // Another one may fail now.
    cluster.crash(2);
    cluster
        .ask(4, anonymous("with two of three"))
        .expect("committed");
    cluster.restart(3);
    cluster.tick(40);
    assert_eq!(voters(&mut cluster, 3), [1, 2, 4]);
    assert_eq!(cluster.commands(3), ["with two of three"]);
    assert_eq!(cluster.leader(), Some(1), "it disturbs nobody");
    // A silent learner is no voter.
    cluster.crash(3);
    cluster.tick(25);
    assert_eq!(
        cluster.ask(1, promote(3)),
        refused(ChangeRefusal::NotCaughtUp)
    );
}

// P-65
#[test]
fn a_node_is_added_as_a_learner_and_promoted() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.ask(1, anonymous("before")).expect("committed");
    cluster.add(4, 0);
    let response = cluster
        .ask(2, add(4))
        .expect("through a follower, after the promotion");
    assert_eq!(
        response.outcome,
        skep_core::outcome::Outcome::Reply(Bytes::from_static(b"data"))
    );
    cluster.tick(3);
    let status = cluster.status(4).expect("runs");
    assert_eq!(status.members.len(), 4);
    assert!(
        status
            .members
            .iter()
            .all(|member| member.role == Role::Voter)
    );
    assert_eq!(cluster.commands(4), ["before"]);
    // Added as a learner (1), then promoted (2): the machine was told both.
    assert!(cluster.node(4).machine.changes.ends_with(&[(4, 1), (4, 2)]));
}

#[test]
fn only_one_change_is_in_flight() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.add(4, 0);
    cluster.add(5, 0);
    let waiters = [add(4), add(5), remove(3)].map(|change| cluster.propose(1, change));
    cluster.until("answers", |cluster| {
        waiters
            .iter()
            .all(|waiter| cluster.reply(1, *waiter).is_some())
    });
    let answers = waiters.map(|waiter| cluster.reply(1, waiter).expect("answered"));
    assert!(answers[0].is_ok(), "{:?}", answers[0]);
    assert_eq!(answers[1], Err(ProposalError::ChangeInProgress));
    assert_eq!(answers[2], Err(ProposalError::ChangeInProgress));
}

// P-66
#[test]
fn senseless_and_dangerous_changes_are_refused() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.tick(3);
    let refused = |refusal| Err(ProposalError::ChangeRefused(refusal));
    assert_eq!(
        cluster.ask(1, add(2)),
        refused(ChangeRefusal::AlreadyMember)
    );
    assert_eq!(cluster.ask(1, remove(9)), refused(ChangeRefusal::NotMember));
    assert_eq!(cluster.ask(1, add(0)), refused(ChangeRefusal::ZeroId));
    // With node 3 dead, removing node 2 would leave one of two alive.
    cluster.crash(3);
    cluster.tick(12);
    cluster.until("the leader has noticed", |cluster| {
        cluster
            .status(1)
            .is_some_and(|status| status.members.iter().any(|m| m.active == Some(false)))
    });
    assert_eq!(
        cluster.ask(1, remove(2)),
        refused(ChangeRefusal::QuorumAtRisk)
    );
    assert!(cluster.ask(1, remove(3)).is_ok(), "the dead one may go");
    let mut lone = Cluster::new(1);
    lone.elect(1);
    assert_eq!(lone.ask(1, remove(1)), refused(ChangeRefusal::LastVoter));
}

// P-67
#[test]
fn a_leader_hands_over_before_it_is_removed() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.tick(3);
    cluster.ask(1, remove(1)).expect("removed by its successor");
    cluster.until("node 1 knows", |cluster| cluster.node(1).removed);
    let leader = cluster.leader().expect("another one leads");
    assert_ne!(leader, 1);
    cluster.ask(leader, anonymous("after")).expect("committed");
    assert_eq!(cluster.status(leader).expect("runs").members.len(), 2);
}

#[test]
fn a_member_that_was_away_when_it_was_removed_learns_of_it() {
    let mut cluster = Cluster::new(4);
    cluster.elect(1);
    cluster.tick(2);
    cluster.cut_off(4);
    cluster.ask(1, remove(4)).expect("removed");
    assert!(!cluster.node(4).removed);
    cluster.cut.clear();
    cluster.until("node 4 is told", |cluster| cluster.node(4).removed);
    assert_eq!(cluster.leader(), Some(1), "and disturbs nobody");
}

// P-68
#[test]
fn a_node_that_comes_back_is_another_replica() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.tick(2);
    cluster.ask(1, remove(3)).expect("removed");
    cluster.until("node 3 knows", |cluster| cluster.node(3).removed);
    cluster.add(3, 0);
    cluster.ask(1, add(3)).expect("added anew");
    let status = cluster.status(3).expect("runs");
    assert_eq!(status.replica.0, 4, "ids are never used again");
    assert_eq!(status.members.len(), 3);
}

#[test]
fn leadership_is_transferred_on_request() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.tick(2);
    cluster.input(1, Input::Transfer { to: NodeId(3) });
    cluster.until("node 3 leads", |cluster| {
        cluster
            .status(3)
            .is_some_and(|status| status.part == Part::Leader)
    });
    cluster.ask(1, anonymous("a")).expect("committed");
}

// P-33
#[test]
fn a_replica_whose_machine_failed_gives_leadership_away() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.tick(2);
    cluster.input(
        1,
        Input::MachineFailed {
            reason: "stack".into(),
            at: None,
        },
    );
    cluster.until("another leads", |cluster| {
        cluster.leader().is_some_and(|leader| leader != 1)
    });
    let leader = cluster.leader().expect("just seen");
    cluster.ask(leader, anonymous("a")).expect("committed");
    assert_eq!(cluster.ask(1, anonymous("b")), Err(ProposalError::Faulted));
}

#[test]
fn a_joiner_takes_no_id_of_a_replica_that_was_removed() {
    let mut cluster = Cluster::with(2, |config| {
        if config.node == NodeId(2) {
            config.removed_through = skep_core::id::ReplicaId(2);
        }
    });
    cluster.elect(1);
    // Node 2 has lost its replica 2 by a removal, and a late message to it arrives.
    cluster.add(2, 0);
    cluster.tick(5);
    assert_eq!(cluster.status(2).expect("runs").replica.0, 0);
}

#[test]
fn a_change_asked_of_a_new_leader_waits_for_its_log() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.tick(2);
    // Node 2 is elected with an entry of its own that is not committed yet.
    cluster.input(1, Input::Transfer { to: NodeId(2) });
    cluster.drop = |message| crate::cluster::is_append(message) && message.from.0 == 2;
    cluster.until("node 2 leads", |cluster| {
        cluster
            .status(2)
            .is_some_and(|status| status.part == Part::Leader)
    });
    let waiter = cluster.propose(2, remove(3));
    cluster.run();
    assert_eq!(cluster.reply(2, waiter), None);
    cluster.drop = |_| false;
    cluster.until("an answer", |cluster| cluster.reply(2, waiter).is_some());
    assert!(matches!(cluster.reply(2, waiter), Some(Ok(_))));
}

/// Of two voters one is removed, and the leader forgets in a crash that this was committed: it then needs the vote of the
/// other, which therefore must still be there.
// P-70
#[test]
fn of_two_voters_the_removed_one_stays_until_the_other_cannot_forget() {
    let mut cluster = Cluster::new(2);
    cluster.elect(1);
    cluster.tick(5);
    let waiter = cluster.propose(1, remove(2));
    // The entry becomes durable on both; the leader commits and applies it, and its disk does nothing more.
    cluster.turn(1, usize::MAX, usize::MAX);
    while let Some((from, to, message, file)) = cluster.network.pop_front() {
        cluster.deliver(from, to, message, file);
    }
    // Once to write, once to say so.
    cluster.turn(2, usize::MAX, usize::MAX);
    cluster.turn(2, usize::MAX, usize::MAX);
    while let Some((from, to, message, file)) = cluster.network.pop_front() {
        cluster.deliver(from, to, message, file);
    }
    cluster.slow_disks.insert(1);
    cluster.turn(1, 0, usize::MAX);
    cluster.turn(1, 0, usize::MAX);
    let members = cluster.status(1).expect("runs").members;
    assert_eq!(members.len(), 1, "the removal is applied: {members:?}");
    assert_eq!(cluster.reply(1, waiter), None, "and not announced");
    while let Some((from, to, message, file)) = cluster.network.pop_front() {
        cluster.deliver(from, to, message, file);
    }
    cluster.turn(2, usize::MAX, usize::MAX);
    cluster.crash(1);
    cluster.slow_disks.clear();
    cluster.tick(30);
    assert!(!cluster.node(2).removed);
    cluster.boot(1);
    cluster.until("a leader", |cluster| cluster.leader().is_some());
    cluster.until("the removal is done in the end", |cluster| {
        cluster.node(2).removed
    });
    cluster.ask(1, anonymous("alone")).expect("committed");
}

/// raft-rs forgets who is active with every check of the quorum; a removal must not be refused for that, nor the operator be
/// told that a node is silent.
// P-53
#[test]
fn who_answers_is_never_taken_for_silent() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    let active = |cluster: &mut Cluster| {
        let members = cluster.status(1).expect("runs").members;
        members
            .iter()
            .map(|member| member.active)
            .collect::<Vec<_>>()
    };
    for tick in 0..60 {
        cluster.tick(1);
        assert_eq!(active(&mut cluster), [Some(true); 3], "at tick {tick}");
    }
    cluster.cut_off(3);
    cluster.tick(30);
    assert_eq!(active(&mut cluster), [Some(true), Some(true), Some(false)]);
    for id in [2, 3] {
        let members = cluster.status(id).expect("runs").members;
        assert!(
            members.iter().all(|member| member.active.is_none()),
            "only the leader knows"
        );
    }
}
