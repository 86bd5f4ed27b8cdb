//! Leaders that go, by their own will or because their process has ended: how soon another leads, and what becomes of commands.

use bytes::Bytes;
use skep_core::id::NodeId;
use skep_core::input::Input;
use skep_core::proposal::{Change, Proposal, ProposalError};

use crate::cluster::Cluster;

/// Ticks of the shortest election timeout.
const TIMEOUT: u32 = 10;

fn gone(node: u64) -> Input {
    Input::NodeGone { node: NodeId(node) }
}

fn change(node: u64) -> Proposal {
    Proposal::Change(Change::Add {
        node: NodeId(node),
        data: Bytes::new(),
    })
}

/// Three replicas, led by the first, that have been at it for a while.
fn led_by_the_first() -> Cluster {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.tick(3);
    cluster
}

#[test]
fn a_leader_whose_process_has_ended_is_replaced_within_a_part_of_the_timeout() {
    for term in 0..3 {
        let mut cluster = led_by_the_first();
        // Another term, another order of the followers.
        for _ in 0..term {
            cluster.input(1, Input::Transfer { to: NodeId(2) });
            cluster.run();
            cluster.input(2, Input::Transfer { to: NodeId(1) });
            cluster.run();
        }
        cluster.crash(1);
        cluster.input(2, gone(1));
        cluster.input(3, gone(1));
        let mut ticks = 0;
        while cluster.leader().is_none() {
            cluster.tick(1);
            ticks += 1;
            assert!(ticks < TIMEOUT / 2, "after {ticks} ticks nobody leads");
        }
    }
}

// P-91
#[test]
fn a_leader_that_lives_stays_whatever_one_follower_hears_of_its_process() {
    let mut cluster = led_by_the_first();
    let term = cluster.status(1).expect("it is up").term;
    for _ in 0..20 {
        cluster.input(2, gone(1));
        cluster.tick(3);
    }
    let status = cluster.status(1).expect("it is up");
    assert_eq!((cluster.leader(), status.term), (Some(1), term));
    let command = cluster.command(2, "put a 1");
    cluster.tick(2);
    assert!(matches!(cluster.reply(2, command), Some(Ok(_))));
}

/// A leader that hands over still knows what became of a command, and its follower waits for that.
// P-90
#[test]
fn a_command_in_flight_while_leadership_moves_has_a_known_outcome() {
    let mut cluster = led_by_the_first();
    cluster.node(1).machine_stuck = true;
    let command = cluster.command(2, "put a 1");
    cluster.run();
    cluster.input(1, Input::Transfer { to: NodeId(3) });
    cluster.run();
    assert_eq!(cluster.leader(), Some(3));
    assert_eq!(
        cluster.reply(2, command),
        None,
        "its outcome is not known yet"
    );
    cluster.node(1).machine_stuck = false;
    cluster.run();
    assert!(matches!(cluster.reply(2, command), Some(Ok(_))));
}

#[test]
fn a_former_leader_that_says_nothing_is_not_waited_for_long() {
    for has_ended in [true, false] {
        let mut cluster = led_by_the_first();
        cluster.node(1).machine_stuck = true;
        let command = cluster.command(2, "put a 1");
        cluster.run();
        if has_ended {
            cluster.crash(1);
            cluster.input(2, gone(1));
            cluster.input(3, gone(1));
        } else {
            cluster.input(1, Input::Transfer { to: NodeId(3) });
        }
        cluster.until("another leads", |cluster| {
            let leader = cluster.status(2).and_then(|status| status.leader);
            leader.is_some_and(|leader| leader != NodeId(1))
        });
        cluster.tick(if has_ended { 0 } else { TIMEOUT });
        let reply = cluster.reply(2, command);
        assert_eq!(reply, Some(Err(ProposalError::Unknown)), "{has_ended}");
    }
}

/// Public case 25: without a majority a change of members was answered after twelve times the deadline.
// P-11
#[test]
fn a_change_of_members_that_nobody_leads_is_answered_as_any_request() {
    let mut cluster = Cluster::new(2);
    cluster.elect(1);
    cluster.tick(3);
    cluster.crash(2);
    let early = cluster.propose(1, change(3));
    cluster.tick(2 * TIMEOUT);
    let late = cluster.propose(1, change(3));
    cluster.tick(50);
    assert_eq!(cluster.reply(1, late), Some(Err(ProposalError::NoLeader)));
    // What was proposed before the majority was missed is in the log.
    assert_eq!(cluster.reply(1, early), Some(Err(ProposalError::Unknown)));
}

/// F10: a node that is down kept the group from all other changes until it was removed again.
// P-93
#[test]
fn a_joiner_that_says_nothing_holds_up_no_other_change() {
    let mut cluster = led_by_the_first();
    let down = cluster.propose(1, change(4));
    cluster.tick(1);
    assert_eq!(
        cluster.ask(1, change(5)),
        Err(ProposalError::ChangeInProgress)
    );
    cluster.tick(TIMEOUT);
    cluster.add(5, 0);
    cluster.ask(1, change(5)).expect("added meanwhile");
    assert_eq!(cluster.reply(1, down), None);
    // It comes up after all.
    cluster.add(4, 0);
    cluster.until("it is a voter too", |cluster| {
        cluster.reply(1, down).is_some()
    });
    assert_eq!(cluster.status(1).expect("it is up").members.len(), 5);
}
