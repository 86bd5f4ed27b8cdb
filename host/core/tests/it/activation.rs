//! A group goes on with another component when a majority has it, and with what it ran when it has not; all at one place.

mod aborts;

use bytes::Bytes;
use skep_core::activation::Readiness;
use skep_core::id::{ComponentId, NodeId};
use skep_core::input::{Input, Waiter};
use skep_core::message::Body;
use skep_core::outcome::Outcome;
use skep_core::payload::{Abort, Confirm, Kind, Payload};
use skep_core::proposal::{Change, Proposal, ProposalError, Response};
use skep_core::status::{Health, HeldBack};

use crate::cluster::{Cluster, REFUSED, activate, anonymous, is_append};

/// Ticks until an activation is given up.
const DEADLINE: u32 = 50;

fn cluster(nodes: u64) -> Cluster {
    let mut cluster = Cluster::with(nodes, |config| {
        config.limits.activation_ticks = DEADLINE;
    });
    cluster.elect(1);
    cluster.ask(1, anonymous("before")).expect("committed");
    cluster
}

fn all(cluster: &Cluster) -> Vec<u64> {
    cluster.nodes.keys().copied().collect()
}

fn runs(cluster: &mut Cluster) -> Vec<u8> {
    let all = all(cluster);
    all.into_iter()
        .map(|id| cluster.node(id).machine.runs)
        .collect()
}

/// Which nodes cannot make any other machine.
fn lack(cluster: &mut Cluster, nodes: &[u64]) {
    for id in all(cluster) {
        cluster.node(id).machine.lacks = nodes.contains(&id);
    }
}

fn waits(cluster: &mut Cluster, id: u64) -> bool {
    cluster.status(id).expect("runs").activation.is_some()
}

fn answer(cluster: &mut Cluster, id: u64, waiter: Waiter) -> Response {
    cluster.until("an answer", |cluster| cluster.reply(id, waiter).is_some());
    let answer = cluster.reply(id, waiter).expect("just seen");
    answer.expect("committed")
}

fn refusal(response: &Response) -> &str {
    match &response.outcome {
        Outcome::Refused { message, .. } => message,
        other => panic!("{other:?}"),
    }
}

/// Another one leads from here on.
fn hand_over(cluster: &mut Cluster, from: u64, to: u64) {
    cluster.input(from, Input::Transfer { to: NodeId(to) });
    cluster.until("it leads", |cluster| cluster.leader() == Some(to));
    cluster.tick(1);
}

/// All have the same commands, and go on.
fn agree(cluster: &mut Cluster) {
    let leader = cluster.leader().expect("somebody leads");
    cluster.ask(leader, anonymous("behind")).expect("committed");
    cluster.tick(5);
    let expected = cluster.commands(leader);
    for id in all(cluster) {
        assert_eq!(cluster.commands(id), expected, "node {id}");
        assert!(!waits(cluster, id), "node {id}");
        let status = cluster.status(id).expect("runs");
        assert_eq!(status.health, Health::Healthy, "node {id}");
    }
}

// P-25
#[test]
fn a_component_that_nobody_has_is_given_up_at_the_deadline() {
    let mut cluster = cluster(3);
    lack(&mut cluster, &[1, 2, 3]);
    let waiter = cluster.propose(2, activate(5));
    cluster.run();
    let command = cluster.propose(1, anonymous("late"));
    cluster.tick(DEADLINE - 1);
    for id in 1..=3 {
        let status = cluster.status(id).expect("runs");
        assert_eq!(status.held_back, [HeldBack::Upgrade]);
        let awaited = status.activation.expect("it waits");
        assert_eq!(awaited.component, ComponentId([5; 32]));
        assert_eq!(
            (awaited.is_confirmed, awaited.here),
            (None, Some(Readiness::NotYet))
        );
        let expected: &[NodeId] = if id == 1 {
            &[NodeId(1), NodeId(2), NodeId(3)]
        } else {
            &[]
        };
        assert_eq!(awaited.waits_for, expected);
        assert_eq!(cluster.commands(id), ["before"]);
    }
    let given_up = answer(&mut cluster, 2, waiter);
    assert!(refusal(&given_up).contains("in time"), "{given_up:?}");
    assert_eq!(runs(&mut cluster), [0, 0, 0]);
    // What waited was not put into the log, so it is certain what became of it.
    cluster.until("an answer", |cluster| cluster.reply(1, command).is_some());
    let late = cluster.reply(1, command).expect("just seen");
    assert!(matches!(late, Ok(_) | Err(ProposalError::Busy)), "{late:?}");
    agree(&mut cluster);
}

#[test]
fn a_majority_is_enough_and_who_lacks_it_comes_later() {
    let mut cluster = cluster(3);
    lack(&mut cluster, &[3]);
    let waiter = cluster.propose(3, activate(5));
    let decided = {
        cluster.until("decided", |cluster| cluster.node(1).machine.runs == 5);
        cluster.status(1).expect("runs").applied
    };
    cluster.ask(1, anonymous("new")).expect("committed");
    cluster.tick(30);
    assert_eq!(runs(&mut cluster), [5, 5, 0]);
    assert_eq!(
        cluster.commands(3),
        ["before"],
        "nothing behind it is applied"
    );
    let awaited = cluster.status(3).expect("runs").activation.expect("waits");
    assert_eq!(awaited.is_confirmed, Some(true));
    assert!(awaited.index <= decided);
    lack(&mut cluster, &[]);
    cluster.tick(15);
    assert_eq!(
        answer(&mut cluster, 3, waiter).outcome,
        Outcome::Reply(Bytes::new())
    );
    assert_eq!(runs(&mut cluster), [5, 5, 5]);
    agree(&mut cluster);
}

#[test]
fn a_leader_that_lacks_what_was_confirmed_hands_over() {
    let mut cluster = cluster(3);
    lack(&mut cluster, &[1]);
    cluster.propose(1, activate(5));
    cluster.until("another leads", |cluster| {
        cluster.leader().is_some_and(|leader| leader != 1)
    });
    let leader = cluster.leader().expect("just seen");
    cluster.ask(leader, anonymous("served")).expect("committed");
    assert_eq!(cluster.commands(1), ["before"]);
    lack(&mut cluster, &[]);
    cluster.tick(30);
    agree(&mut cluster);
}

#[test]
fn of_those_that_lack_what_was_confirmed_none_hands_over_to_another() {
    let mut cluster = cluster(5);
    lack(&mut cluster, &[4, 5]);
    cluster.propose(1, activate(5));
    cluster.until("decided", |cluster| cluster.node(1).machine.runs == 5);
    hand_over(&mut cluster, 1, 4);
    cluster.until("one that has it leads", |cluster| {
        cluster.leader().is_some_and(|leader| leader <= 3)
    });
    let leader = cluster.leader().expect("just seen");
    cluster.ask(leader, anonymous("served")).expect("committed");
    lack(&mut cluster, &[]);
    cluster.tick(30);
    agree(&mut cluster);
}

#[test]
fn who_is_left_behind_takes_a_snapshot_of_a_later_point() {
    let mut cluster = Cluster::with(3, |config| {
        config.snapshot_entries = 10;
        config.limits.log_retained_bytes = 0;
        config.limits.log_memory_bytes = 0;
        config.limits.activation_ticks = DEADLINE;
    });
    cluster.elect(1);
    lack(&mut cluster, &[3]);
    cluster.propose(1, activate(5));
    cluster.until("decided", |cluster| cluster.node(1).machine.runs == 5);
    cluster.cut_off(3);
    for n in 0..60 {
        cluster
            .ask(1, anonymous(&n.to_string()))
            .expect("committed");
    }
    cluster.cut.clear();
    // It has not got it to this day; the snapshot says what runs.
    cluster.until("it has caught up", |cluster| {
        cluster.commands(3).len() == 60 && !waits(cluster, 3)
    });
    cluster.tick(5);
    assert_eq!(runs(&mut cluster), [5, 5, 5]);
    agree(&mut cluster);
}

#[test]
fn an_answer_of_a_machine_that_is_to_be_replaced_is_from_before() {
    let mut cluster = cluster(3);
    lack(&mut cluster, &[3]);
    let activation = cluster.ask(1, activate(5)).expect("committed").index;
    cluster.until("it is left behind", |cluster| waits(cluster, 3));
    assert_eq!(cluster.node(3).machine.runs, 0);
    let answered = |cluster: &mut Cluster, id| {
        let waiter = cluster.query(id, false);
        let there = |cluster: &mut Cluster| cluster.node(id).machine.answered.contains_key(&waiter);
        cluster.until("an answer", there);
        cluster.node(id).machine.answered[&waiter]
    };
    let (new, former) = (answered(&mut cluster, 1), answered(&mut cluster, 3));
    assert!(former < activation && activation <= new, "{former} {new}");
}

#[test]
fn a_state_that_only_one_machine_refuses_is_wrong_there() {
    let mut cluster = cluster(3);
    cluster.node(3).machine.refuses = true;
    cluster.ask(1, activate(5)).expect("committed");
    cluster.until("it is known to be wrong", |cluster| {
        !cluster.node(3).diverged.is_empty()
    });
    cluster.node(3).machine.refuses = false;
    cluster.until("it is cured", |cluster| {
        cluster.node(3).machine.runs == 5
            && cluster.status(3).expect("runs").health == Health::Healthy
    });
    assert_eq!(runs(&mut cluster), [5, 5, 5]);
    agree(&mut cluster);
}

#[test]
fn a_refusal_of_all_is_told_at_once() {
    let mut cluster = cluster(5);
    let before = cluster.now;
    let refused = cluster.ask(2, activate(REFUSED)).expect("committed");
    assert!(refusal(&refused).contains("restore"), "{refused:?}");
    assert_eq!(cluster.now, before, "no tick is needed");
    agree(&mut cluster);
}

#[test]
fn confirm_and_abort_on_their_way_together_are_one_decision() {
    let mut cluster = cluster(3);
    // The confirmation is proposed and not durable when the operator asks.
    lack(&mut cluster, &[2, 3]);
    let waiter = cluster.propose(2, activate(5));
    cluster.tick(1);
    cluster.slow_disks.extend([1, 2, 3]);
    lack(&mut cluster, &[]);
    cluster.tick(12);
    let aborting = cluster.propose(1, Proposal::AbortActivation);
    cluster.run();
    assert!(cluster.reply(1, aborting).is_none());
    cluster.slow_disks.clear();
    cluster.run();
    let late = answer(&mut cluster, 1, aborting);
    assert!(refusal(&late).contains("before"), "{late:?}");
    assert_eq!(
        answer(&mut cluster, 2, waiter).outcome,
        Outcome::Reply(Bytes::new())
    );
    assert_eq!(runs(&mut cluster), [5, 5, 5]);
    agree(&mut cluster);
}

/// Both decisions are in the log before anybody looks; whoever sees how much of it when, all do the first.
// P-24
#[test]
fn the_first_decision_in_the_log_counts() {
    let decision = |kind| {
        Bytes::from(prost::Message::encode_to_vec(&Payload {
            now: 1,
            entropy: Bytes::from_static(&[7; 16]),
            kind: Some(kind),
        }))
    };
    for confirm_first in [true, false] {
        let mut cluster = cluster(3);
        lack(&mut cluster, &[1, 2, 3]);
        cluster.propose(1, activate(5));
        cluster.tick(1);
        let index = cluster
            .status(1)
            .expect("runs")
            .activation
            .expect("waits")
            .index
            .0;
        for id in 1..=3 {
            cluster.crash(id);
            let entries = &mut cluster.node(id).disk.entries;
            let last = entries.last().expect("the activation").clone();
            assert_eq!(last.index, index);
            let mut kinds = [
                Kind::Confirm(Confirm { index }),
                Kind::Abort(Abort { index, code: 2 }),
                // On another one: nobody minds.
                Kind::Abort(Abort {
                    index: index + 1,
                    code: 1,
                }),
            ];
            if !confirm_first {
                kinds.reverse();
            }
            for (kind, place) in kinds.into_iter().zip(index + 1..) {
                entries.push(raft::eraftpb::Entry {
                    index: place,
                    data: decision(kind),
                    ..last.clone()
                });
            }
        }
        for id in 1..=3 {
            cluster.boot(id);
        }
        cluster.elect(2);
        cluster.tick(30);
        let expected = if confirm_first { 5 } else { 0 };
        assert_eq!(
            runs(&mut cluster),
            [expected; 3],
            "confirmed first: {confirm_first}"
        );
        agree(&mut cluster);
    }
}

// P-25
#[test]
fn a_new_leader_counts_anew_and_decides() {
    let mut cluster = cluster(3);
    lack(&mut cluster, &[1, 2, 3]);
    let waiter = cluster.propose(3, activate(5));
    cluster.tick(DEADLINE - 10);
    hand_over(&mut cluster, 1, 2);
    cluster.tick(DEADLINE - 25);
    assert!(
        waits(&mut cluster, 2),
        "the former leader's time does not count"
    );
    lack(&mut cluster, &[1]);
    assert_eq!(
        answer(&mut cluster, 3, waiter).outcome,
        Outcome::Reply(Bytes::new())
    );
    assert_eq!(runs(&mut cluster)[1..], [5, 5]);
    lack(&mut cluster, &[]);
    cluster.tick(25);
    assert_eq!(runs(&mut cluster), [5, 5, 5]);
    agree(&mut cluster);
}

// P-25
#[test]
fn restarts_between_the_two_come_back_to_the_same_place() {
    for abort in [true, false] {
        let mut cluster = cluster(3);
        lack(&mut cluster, &[1, 2, 3]);
        cluster.propose(1, activate(5));
        cluster.tick(2);
        for id in 1..=3 {
            cluster.crash(id);
        }
        for id in 1..=3 {
            cluster.boot(id);
        }
        lack(&mut cluster, &[1, 2, 3]);
        cluster.elect(3);
        cluster.tick(2);
        for id in 1..=3 {
            assert!(waits(&mut cluster, id), "node {id}");
            assert_eq!(cluster.commands(id), ["before"]);
        }
        // And one that is away when it is decided.
        cluster.crash(2);
        if abort {
            cluster
                .ask(3, Proposal::AbortActivation)
                .expect("committed");
        } else {
            lack(&mut cluster, &[]);
            cluster.until("decided", |cluster| cluster.node(3).machine.runs == 5);
        }
        cluster
            .ask(3, anonymous("while it is away"))
            .expect("committed");
        cluster.restart(2);
        cluster.tick(20);
        assert_eq!(runs(&mut cluster), [if abort { 0 } else { 5 }; 3]);
        agree(&mut cluster);
    }
}

#[test]
fn members_do_not_change_while_it_is_undecided_and_snapshots_wait() {
    let mut cluster = cluster(3);
    cluster.add(4, 0);
    lack(&mut cluster, &[1, 2, 3, 4]);
    cluster.propose(1, activate(5));
    let add = Change::Add {
        node: NodeId(4),
        data: Bytes::new(),
    };
    let (add, barrier) = (
        cluster.propose(1, Proposal::Change(add)),
        cluster.propose(1, Proposal::Barrier),
    );
    cluster.tick(20);
    assert!(waits(&mut cluster, 1));
    assert!(cluster.reply(1, add).is_none() && cluster.reply(1, barrier).is_none());
    // So anybody can be elected meanwhile, and it goes on.
    hand_over(&mut cluster, 1, 2);
    hand_over(&mut cluster, 2, 1);
    lack(&mut cluster, &[]);
    cluster.until("the member is there", |cluster| {
        cluster.commands(4) == ["before"]
    });
    cluster.tick(20);
    assert_eq!(runs(&mut cluster), [5, 5, 5, 5]);
    agree(&mut cluster);
}

#[test]
fn one_activation_follows_another() {
    let mut cluster = cluster(3);
    let waiters: Vec<_> = [5, REFUSED, 6]
        .map(|component| cluster.propose(2, activate(component)))
        .into();
    cluster.tick(20);
    let answers: Vec<_> = waiters
        .into_iter()
        .map(|waiter| answer(&mut cluster, 2, waiter).outcome)
        .collect();
    assert!(matches!(
        &answers[..],
        [
            Outcome::Reply(_),
            Outcome::Refused { .. },
            Outcome::Reply(_)
        ]
    ));
    assert_eq!(runs(&mut cluster), [6, 6, 6]);
    agree(&mut cluster);
}

#[test]
fn what_strangers_say_of_their_readiness_decides_nothing() {
    let mut cluster = cluster(3);
    lack(&mut cluster, &[1, 2, 3]);
    cluster.propose(1, activate(5));
    cluster.tick(1);
    let index = cluster
        .status(1)
        .expect("runs")
        .activation
        .expect("waits")
        .index;
    for from in [7, 8, 9] {
        let message = skep_core::message::PeerMessage {
            group: skep_core::id::GroupId(1),
            incarnation: skep_core::id::Incarnation(1),
            from: skep_core::id::ReplicaId(from),
            to: skep_core::id::ReplicaId(1),
            body: Body::Readiness {
                index,
                readiness: Readiness::Prepared,
            },
        };
        let from = NodeId(from);
        cluster.input(1, Input::Message { from, message });
    }
    cluster.tick(5);
    assert!(waits(&mut cluster, 1));
    assert_eq!(runs(&mut cluster), [0, 0, 0]);
}

#[test]
fn lost_reports_are_made_again() {
    let mut cluster = cluster(3);
    cluster.drop = |message| matches!(message.body, Body::Readiness { .. });
    let waiter = cluster.propose(1, activate(5));
    cluster.tick(5);
    assert!(waits(&mut cluster, 1));
    cluster.drop = |_| false;
    assert_eq!(
        answer(&mut cluster, 1, waiter).outcome,
        Outcome::Reply(Bytes::new())
    );
    agree(&mut cluster);
}
