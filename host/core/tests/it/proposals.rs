//! Commands: packed, forwarded, applied once, answered once.

use bytes::Bytes;
use skep_core::id::{GroupId, Incarnation, NodeId, ReplicaId};
use skep_core::input::Input;
use skep_core::message::{Body, PeerMessage};
use skep_core::outcome::Outcome;
use skep_core::proposal::{Change, Proposal, ProposalError};

use crate::cluster::{Cluster, anonymous, in_session};

fn reply(text: &str) -> Outcome {
    Outcome::Reply(Bytes::copy_from_slice(text.as_bytes()))
}

#[test]
fn a_command_is_applied_everywhere_and_answered_with_its_place() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    let response = cluster.ask(1, anonymous("a")).expect("committed");
    assert_eq!(response.outcome, reply("1"));
    assert_eq!(response.term, cluster.status(1).expect("runs").term);
    cluster.tick(3);
    for node in 1..=3 {
        assert_eq!(cluster.commands(node), ["a"]);
        assert_eq!(
            cluster.node(node).machine.inits,
            [Bytes::from_static(b"init")]
        );
        // The three initial members, in the same order everywhere.
        assert_eq!(cluster.node(node).machine.changes, [(1, 0), (2, 0), (3, 0)]);
        let leaders = &cluster.node(node).machine.leaders;
        assert_eq!(
            leaders.last().map(|changed| (changed.new, changed.term.0)),
            Some((NodeId(1), response.term.0))
        );
    }
}

#[test]
fn commands_that_wait_together_share_an_entry() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    let last = cluster.status(1).expect("runs").last;
    let waiters: Vec<_> = (0..500)
        .map(|n| cluster.command(1, &n.to_string()))
        .collect();
    cluster.run();
    assert_eq!(cluster.status(1).expect("runs").last.0, last.0 + 1);
    for (place, waiter) in waiters.into_iter().enumerate() {
        let response = cluster
            .reply(1, waiter)
            .expect("answered")
            .expect("committed");
        assert_eq!(response.outcome, reply(&(place + 1).to_string()));
    }
}

#[test]
fn a_follower_forwards_and_answers() {
    let mut cluster = Cluster::new(3);
    cluster.elect(2);
    cluster.tick(2);
    assert_eq!(
        cluster
            .ask(3, anonymous("through 3"))
            .expect("committed")
            .outcome,
        reply("1")
    );
    assert_eq!(cluster.commands(2), ["through 3"]);
}

#[test]
fn a_proposal_waits_for_a_leader_but_not_for_ever() {
    let mut cluster = Cluster::new(3);
    cluster.cut_off(1);
    let waiter = cluster.command(1, "nobody hears this");
    cluster.until("an answer", |cluster| cluster.reply(1, waiter).is_some());
    assert_eq!(cluster.reply(1, waiter), Some(Err(ProposalError::NoLeader)));
    cluster.cut.clear();
    cluster.until("a leader", |cluster| cluster.leader().is_some());
    cluster.tick(60);
    for node in 1..=3 {
        assert!(cluster.commands(node).is_empty());
    }
}

// P-10
#[test]
fn a_deposed_leader_says_superseded_or_unknown_and_never_done() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.cut_off(1);
    let lost = cluster.command(1, "lost");
    cluster.run();
    cluster.until("another leader", |cluster| {
        cluster.leader().is_some_and(|leader| leader != 1)
    });
    let leader = cluster.leader().expect("just seen");
    cluster.ask(leader, anonymous("kept")).expect("committed");
    cluster.cut.clear();
    cluster.until("an answer", |cluster| cluster.reply(1, lost).is_some());
    let answer = cluster.reply(1, lost);
    assert!(
        matches!(
            answer,
            Some(Err(ProposalError::Superseded | ProposalError::Unknown))
        ),
        "{answer:?}"
    );
    cluster.tick(5);
    for node in 1..=3 {
        assert_eq!(cluster.commands(node), ["kept"]);
    }
}

#[test]
fn a_retry_under_the_same_request_is_applied_once() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    let session = cluster
        .ask(1, Proposal::OpenSession)
        .expect("opened")
        .session();
    assert_ne!(session.0, 0);
    let first = cluster
        .ask(1, in_session(session, 1, "once"))
        .expect("committed");
    // Again at the same leader, at a follower, and at another leader after a restart of everything.
    assert_eq!(
        cluster.ask(1, in_session(session, 1, "once")).as_ref(),
        Ok(&first)
    );
    assert_eq!(
        cluster.ask(3, in_session(session, 1, "once")).as_ref(),
        Ok(&first)
    );
    for node in 1..=3 {
        cluster.crash(node);
    }
    for node in 1..=3 {
        cluster.restart(node);
    }
    cluster.elect(3);
    assert_eq!(
        cluster.ask(2, in_session(session, 1, "once")).as_ref(),
        Ok(&first)
    );
    // Twice in one entry.
    let twins = [2, 2].map(|sequence| cluster.propose(3, in_session(session, sequence, "twin")));
    cluster.run();
    let answers = twins.map(|waiter| {
        cluster
            .reply(3, waiter)
            .expect("answered")
            .expect("committed")
    });
    assert_eq!(answers[0], answers[1]);
    cluster.tick(3);
    for node in 1..=3 {
        assert_eq!(cluster.commands(node), ["once", "twin"]);
    }
}

// P-4
#[test]
fn a_retry_across_the_death_of_the_leader_is_applied_once() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.tick(2);
    let session = cluster
        .ask(2, Proposal::OpenSession)
        .expect("opened")
        .session();
    let waiter = cluster.propose(2, in_session(session, 1, "once"));
    // The leader takes it and dies before it can answer; the entry is on the others.
    cluster.drop = |message| matches!(message.body, Body::Answer(_));
    cluster.run();
    cluster.crash(1);
    // A command with a name is safe to repeat, so node 2 hands it to the next leader itself.
    cluster.drop = |_| false;
    cluster.until("an answer", |cluster| cluster.reply(2, waiter).is_some());
    let first = cluster
        .reply(2, waiter)
        .expect("just seen")
        .expect("applied");
    let again = cluster.ask(2, in_session(session, 1, "once"));
    assert_eq!(again, Ok(first));
    cluster.restart(1);
    cluster.tick(5);
    for node in 1..=3 {
        assert_eq!(cluster.commands(node), ["once"]);
    }
}

#[test]
fn an_unknown_session_applies_nothing() {
    let mut cluster = Cluster::new(1);
    cluster.elect(1);
    let answer = cluster.ask(1, in_session(skep_core::id::SessionId(77), 1, "stranger"));
    assert_eq!(answer, Err(ProposalError::SessionExpired));
    assert!(cluster.commands(1).is_empty());
}

// P-49
#[test]
fn what_is_too_large_or_too_much_is_refused_at_once() {
    let mut cluster = Cluster::with(1, |config| {
        config.limits.command_bytes = 10;
        config.limits.queued_proposals = 3;
    });
    cluster.elect(1);
    let answer = cluster.ask(1, anonymous("12345678901"));
    assert_eq!(
        answer,
        Err(ProposalError::TooLarge {
            size: 11,
            limit: 10
        })
    );
    let waiters: Vec<_> = (0..4).map(|_| cluster.command(1, "x")).collect();
    cluster.run();
    let busy = waiters
        .iter()
        .filter(|waiter| cluster.reply(1, **waiter) == Some(Err(ProposalError::Busy)))
        .count();
    assert_eq!(busy, 1);
    assert_eq!(cluster.commands(1).len(), 3);
}

// P-11
#[test]
fn a_stuck_machine_gives_unknown_in_bounded_time_and_goes_on_later() {
    let mut cluster = Cluster::new(1);
    cluster.elect(1);
    cluster.node(1).machine_stuck = true;
    let waiter = cluster.command(1, "slow");
    cluster.tick(60);
    assert_eq!(cluster.reply(1, waiter), Some(Err(ProposalError::Unknown)));
    cluster.node(1).machine_stuck = false;
    cluster.run();
    assert_eq!(cluster.commands(1), ["slow"]);
    assert!(cluster.ask(1, anonymous("next")).is_ok());
}

// P-11
#[test]
fn whatever_a_stuck_machine_has_in_hand_its_asker_is_answered_by_the_deadline() {
    let removal = Change::Remove {
        node: NodeId(3),
        data: Bytes::new(),
    };
    // A change is given as long as a snapshot may take.
    for (proposal, ticks) in [
        (Proposal::Barrier, 60),
        (Proposal::Change(removal), 12 * 60),
    ] {
        let mut cluster = Cluster::new(3);
        cluster.elect(1);
        cluster.node(1).machine_stuck = true;
        let waiter = cluster.propose(1, proposal.clone());
        cluster.tick(ticks);
        let reply = cluster.reply(1, waiter);
        assert_eq!(reply, Some(Err(ProposalError::Unknown)), "{proposal:?}");
    }
}

#[test]
fn what_waits_for_a_client_that_is_gone_gets_into_no_log() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    let gone = cluster.command(1, "gone");
    let stays = cluster.command(1, "stays");
    cluster.input(1, Input::Forget { waiter: gone });
    cluster.run();
    assert!(cluster.reply(1, stays).is_some_and(|reply| reply.is_ok()));
    assert_eq!(cluster.reply(1, gone), None);
    assert_eq!(cluster.commands(1), ["stays"]);
}

#[test]
fn messages_of_another_life_or_replica_are_dropped() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    let term = cluster.status(2).expect("runs").term;
    let vote = |group, incarnation, to| PeerMessage {
        group: GroupId(group),
        incarnation: Incarnation(incarnation),
        from: ReplicaId(3),
        to: ReplicaId(to),
        body: Body::Raft(raft::eraftpb::Message {
            msg_type: raft::eraftpb::MessageType::MsgRequestVote,
            term: term.0 + 5,
            from: 3,
            to,
            context: Bytes::from_static(b"CampaignTransfer"),
            ..Default::default()
        }),
    };
    for message in [vote(2, 1, 2), vote(1, 2, 2), vote(1, 1, 1)] {
        cluster.input(
            2,
            Input::Message {
                from: NodeId(3),
                message,
            },
        );
        cluster.run();
        assert_eq!(cluster.status(2).expect("runs").term, term);
    }
    cluster.input(
        2,
        Input::Message {
            from: NodeId(3),
            message: vote(1, 1, 2),
        },
    );
    cluster.run();
    assert_ne!(
        cluster.status(2).expect("runs").term,
        term,
        "the test's message would have been taken"
    );
}

/// The answer to a question of a former life must not be taken for the answer to one of this life.
#[test]
fn an_answer_from_before_a_restart_reaches_nobody() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.tick(2);
    let _forgotten = cluster.propose(2, Proposal::OpenSession);
    // Its answer is under way while node 2 restarts and asks something else.
    while !cluster
        .network
        .iter()
        .any(|message| matches!(message.2.body, Body::Answer(_)))
    {
        for id in 1..=3 {
            cluster.turn(id, usize::MAX, usize::MAX);
        }
        if let Some((from, to, message, transfer)) = cluster
            .network
            .iter()
            .position(|message| !matches!(message.2.body, Body::Answer(_)))
            .and_then(|place| cluster.network.remove(place))
        {
            cluster.deliver(from, to, message, transfer);
        }
    }
    let late: Vec<_> = cluster.network.drain(..).collect();
    cluster.crash(2);
    cluster.restart(2);
    cluster.until("it knows the leader", |cluster| {
        cluster
            .status(2)
            .is_some_and(|status| status.leader.is_some())
    });
    cluster.cut.insert((1, 2));
    let asked = cluster.command(2, "another question");
    cluster.run();
    for (from, to, message, _) in late {
        if to == NodeId(2) {
            cluster.input(2, Input::Message { from, message });
        }
    }
    cluster.run();
    assert_eq!(cluster.reply(2, asked), None);
}

#[test]
fn a_nameless_command_whose_leader_died_is_unknown_and_not_repeated() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.tick(2);
    let waiter = cluster.command(2, "once");
    cluster.drop = |message| matches!(message.body, Body::Answer(_));
    cluster.run();
    cluster.crash(1);
    cluster.until("an answer", |cluster| cluster.reply(2, waiter).is_some());
    assert_eq!(cluster.reply(2, waiter), Some(Err(ProposalError::Unknown)));
    cluster.drop = |_| false;
    cluster.tick(60);
    assert_eq!(cluster.commands(2), ["once"]);
}

#[test]
fn a_snapshot_asked_of_a_leader_that_died_is_taken_by_the_next() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.ask(1, anonymous("a")).expect("committed");
    cluster.tick(2);
    cluster.crash(1);
    let response = cluster.ask(2, Proposal::Barrier).expect("snapshotted");
    cluster.tick(3);
    assert_eq!(cluster.status(2).expect("runs").snapshot, response.index);
}
