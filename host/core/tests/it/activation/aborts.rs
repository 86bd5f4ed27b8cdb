//! Activations that are given up on request.

use super::*;

#[test]
fn an_operator_gives_it_up() {
    let mut cluster = cluster(3);
    assert_eq!(
        cluster.ask(1, Proposal::AbortActivation),
        Err(ProposalError::NotNeeded)
    );
    for asked_at in [1, 2] {
        lack(&mut cluster, &[1, 2, 3]);
        let waiter = cluster.propose(2, activate(5));
        cluster.run();
        // Not behind what waits.
        let commands: Vec<_> = (0..3).map(|_| cluster.propose(1, anonymous("x"))).collect();
        let aborted = cluster.ask(asked_at, Proposal::AbortActivation);
        assert_eq!(
            aborted.expect("committed").outcome,
            Outcome::Reply(Bytes::new())
        );
        let told = answer(&mut cluster, 2, waiter);
        assert!(refusal(&told).contains("operator"), "{told:?}");
        for command in commands {
            answer(&mut cluster, 1, command);
        }
    }
    assert_eq!(runs(&mut cluster), [0, 0, 0]);
    agree(&mut cluster);
}

#[test]
fn many_that_wait_keep_no_operator_from_giving_it_up() {
    let mut cluster = Cluster::with(3, |config| {
        config.limits.activation_ticks = DEADLINE;
        config.limits.queued_proposals = 3;
    });
    cluster.elect(1);
    lack(&mut cluster, &[1, 2, 3]);
    cluster.propose(1, activate(5));
    cluster.run();
    for _ in 0..3 {
        cluster.propose(1, anonymous("x"));
    }
    assert_eq!(
        cluster.ask(1, anonymous("too many")),
        Err(ProposalError::Busy)
    );
    let aborted = cluster.ask(1, Proposal::AbortActivation);
    let aborted = aborted.expect("committed").outcome;
    assert_eq!(aborted, Outcome::Reply(Bytes::new()));
}

#[test]
fn an_abort_that_cannot_be_proposed_yet_goes_before_what_waits_for_the_decision() {
    let mut cluster = cluster(3);
    lack(&mut cluster, &[1, 2, 3]);
    cluster.propose(1, activate(5));
    cluster.run();
    let commands: Vec<_> = (0..3).map(|_| cluster.propose(1, anonymous("x"))).collect();
    // It hands over to one that it does not reach, and takes nothing before it has given that up.
    cluster.cut.insert((1, 2));
    cluster.input(1, Input::Transfer { to: NodeId(2) });
    let aborting = cluster.propose(1, Proposal::AbortActivation);
    cluster.run();
    assert!(cluster.reply(1, aborting).is_none(), "it is handing over");
    cluster.tick(25);
    let aborted = cluster.reply(1, aborting).expect("answered by now");
    assert_eq!(
        aborted.expect("committed").outcome,
        Outcome::Reply(Bytes::new())
    );
    for command in commands {
        answer(&mut cluster, 1, command);
    }
}

#[test]
fn what_was_given_up_is_not_begun_again_by_another_leader() {
    let mut cluster = cluster(3);
    lack(&mut cluster, &[1, 2, 3]);
    let waiter = cluster.propose(3, activate(5));
    cluster.run();
    hand_over(&mut cluster, 1, 2);
    let aborted = cluster.ask(2, Proposal::AbortActivation);
    aborted.expect("committed");
    let told = answer(&mut cluster, 3, waiter);
    assert!(refusal(&told).contains("operator"), "{told:?}");
    cluster.tick(5);
    agree(&mut cluster);
    // Nor is one that the new leader may know and this replica does not.
    cluster.drop = |message| message.to.0 == 3 && is_append(message);
    let waiter = cluster.propose(3, activate(6));
    cluster.run();
    assert!(waits(&mut cluster, 2) && !waits(&mut cluster, 3));
    hand_over(&mut cluster, 2, 1);
    cluster.until("an answer", |cluster| cluster.reply(3, waiter).is_some());
    let told = cluster.reply(3, waiter).expect("just seen");
    assert_eq!(told, Err(ProposalError::Unknown));
    let aborted = cluster.ask(1, Proposal::AbortActivation);
    aborted.expect("committed");
    cluster.drop = |_| false;
    cluster.tick(5);
    agree(&mut cluster);
}

#[test]
fn an_abort_gives_up_no_later_activation() {
    let mut cluster = cluster(3);
    lack(&mut cluster, &[1, 2, 3]);
    cluster.propose(1, activate(5));
    cluster.run();
    cluster.drop = |message| matches!(message.body, Body::Answer(_));
    let aborting = cluster.propose(3, Proposal::AbortActivation);
    cluster.run();
    assert!(!waits(&mut cluster, 1), "it is given up");
    let waiter = cluster.propose(1, activate(6));
    cluster.run();
    hand_over(&mut cluster, 1, 2);
    cluster.drop = |_| false;
    cluster.tick(5);
    assert_eq!(
        cluster.reply(3, aborting),
        Some(Err(ProposalError::Unknown))
    );
    assert!(waits(&mut cluster, 2), "nobody asked to give up this one");
    lack(&mut cluster, &[]);
    let done = answer(&mut cluster, 1, waiter).outcome;
    assert_eq!(done, Outcome::Reply(Bytes::new()));
}
