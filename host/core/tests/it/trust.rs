//! What replicas believe of whom: forged messages delete nothing and stop nobody, and who was away believes those who came
//! meanwhile.

use bytes::Bytes;
use raft::eraftpb::{self, MessageType};
use skep_core::attestation::Attestation;
use skep_core::id::{LogIndex, NodeId, ReplicaId, Term};
use skep_core::impasse::Word;
use skep_core::input::Input;
use skep_core::message::{Answer, Body, PeerMessage};
use skep_core::outcome::Outcome;
use skep_core::proposal::{Change, Proposal, ProposalError};
use skep_core::standing::{Distrust, Standing};
use skep_core::status::{Health, Part};

use crate::cluster::{Cluster, anonymous};

fn add(node: u64) -> Proposal {
    Proposal::Change(Change::Add {
        node: NodeId(node),
        data: Bytes::new(),
    })
}

fn remove(node: u64) -> Proposal {
    Proposal::Change(Change::Remove {
        node: NodeId(node),
        data: Bytes::new(),
    })
}

/// A message in the name of replica `from`, from the node `node`, to the replica on `to`.
fn forge(cluster: &mut Cluster, (from, node): (u64, u64), to: u64, body: Body) {
    let status = cluster.status(to).expect("runs");
    let message = PeerMessage {
        group: status.group,
        incarnation: status.incarnation,
        from: ReplicaId(from),
        to: status.replica,
        body,
    };
    let from = NodeId(node);
    cluster.input(to, Input::Message { from, message });
    cluster.run();
}

fn raft(cluster: &mut Cluster, from: u64, to: u64, kind: MessageType) -> eraftpb::Message {
    let status = cluster.status(to).expect("runs");
    eraftpb::Message {
        msg_type: kind,
        from,
        to: status.replica.0,
        term: status.term.0,
        ..Default::default()
    }
}

fn beat(cluster: &mut Cluster, from: u64, to: u64, commit: u64) -> Body {
    Body::Raft(eraftpb::Message {
        commit,
        ..raft(cluster, from, to, MessageType::MsgHeartbeat)
    })
}

/// Three replicas, of which the first leads; some commands are applied.
fn healthy() -> Cluster {
    begun(Cluster::new(3))
}

fn begun(mut cluster: Cluster) -> Cluster {
    cluster.elect(1);
    for text in ["a", "b", "c"] {
        cluster.ask(1, anonymous(text)).expect("committed");
    }
    cluster.tick(3);
    cluster
}

fn goes_on(cluster: &mut Cluster, ids: &[u64]) {
    cluster.tick(40);
    cluster.until("a leader", |cluster| cluster.leader().is_some());
    let leader = cluster.leader().expect("just seen");
    cluster
        .ask(leader, anonymous("after"))
        .expect("committed after all that");
    cluster.tick(5);
    for id in ids {
        let node = cluster.node(*id);
        assert_eq!(
            (node.halted.as_deref(), node.removed),
            (None, false),
            "{id}"
        );
        assert_eq!(cluster.status(*id).expect("runs").health, Health::Healthy);
        assert!(cluster.commands(*id).ends_with(&["after".to_owned()]));
    }
}

#[test]
fn nobody_is_removed_by_a_message_that_says_so() {
    let mut cluster = healthy();
    for to in 1..=3 {
        for from in 1..=3 {
            // In the right name from its own node, from another node, and from a replica that nobody knows.
            forge(&mut cluster, (from, from), to, Body::Gone);
            forge(&mut cluster, (from, 6), to, Body::Gone);
            forge(&mut cluster, (77, from), to, Body::Gone);
            for nonce in [0, 1, u64::MAX] {
                let standing = Standing {
                    nonce,
                    removed: true,
                    member: true,
                    term: Term(1 << 40),
                    matched: LogIndex(1 << 40),
                    well: true,
                    word: Word::default(),
                };
                forge(&mut cluster, (from, from), to, Body::Standing(standing));
            }
        }
    }
    assert!(
        cluster
            .node(2)
            .distrusted
            .contains(&(NodeId(6), Distrust::Placement))
    );
    assert!(
        cluster
            .node(2)
            .distrusted
            .contains(&(NodeId(1), Distrust::Nonce))
    );
    goes_on(&mut cluster, &[1, 2, 3]);
}

#[test]
fn a_commit_index_beyond_the_log_stops_nobody() {
    let mut cluster = healthy();
    for to in 1..=3 {
        for (from, node) in [(1, 1), (2, 2), (3, 3), (1, 6), (77, 2)] {
            let body = beat(&mut cluster, from, to, 1 << 40);
            forge(&mut cluster, (from, node), to, body);
        }
    }
    assert!(
        cluster
            .node(2)
            .distrusted
            .contains(&(NodeId(1), Distrust::Commit))
    );
    goes_on(&mut cluster, &[1, 2, 3]);
}

/// Whoever knows who leads, and where, could still send this; raft-rs panics on it once the log does not begin at its first
/// entry.
#[test]
fn an_append_of_a_lower_term_than_what_is_committed_stops_nobody() {
    let mut cluster = begun(Cluster::with(3, |config| config.snapshot_entries = 8));
    for to in [2, 1] {
        let leader = cluster.leader().expect("somebody leads");
        cluster.input(leader, Input::Transfer { to: NodeId(to) });
        cluster.until("another leads", |cluster| cluster.leader() == Some(to));
    }
    for n in 0..40 {
        cluster
            .ask(1, anonymous(&n.to_string()))
            .expect("committed");
    }
    cluster.tick(3);
    let status = cluster.status(2).expect("runs");
    assert!(status.first.0 > 1, "nothing of the log was cut: {status:?}");
    for index in [status.commit.0, status.last.0, status.last.0 + 5] {
        let body = Body::Raft(eraftpb::Message {
            index,
            log_term: 1,
            ..raft(&mut cluster, 1, 2, MessageType::MsgAppend)
        });
        forge(&mut cluster, (1, 1), 2, body);
    }
    assert!(
        cluster
            .node(2)
            .distrusted
            .contains(&(NodeId(1), Distrust::Term))
    );
    goes_on(&mut cluster, &[1, 2, 3]);
}

#[test]
fn a_replica_speaks_from_its_own_node_only() {
    let mut cluster = healthy();
    let term = cluster.status(1).expect("runs").term;
    for to in 1..=3 {
        for from in (1..=3).filter(|from| *from != to) {
            for kind in [
                MessageType::MsgRequestVote,
                MessageType::MsgAppend,
                MessageType::MsgHeartbeat,
                MessageType::MsgTimeoutNow,
            ] {
                let mut message = raft(&mut cluster, from, to, kind);
                message.term += 5;
                forge(&mut cluster, (from, 6), to, Body::Raft(message));
            }
        }
    }
    let after = cluster.status(1).expect("runs");
    assert_eq!((after.term, after.part), (term, Part::Leader));
    goes_on(&mut cluster, &[1, 2, 3]);
}

/// What others are said to have attested would quarantine those who are right.
#[test]
fn attestations_are_believed_only_of_who_was_asked() {
    let mut cluster = healthy();
    // What the others say themselves comes later, so that nothing is judged yet.
    cluster.drop = |message| matches!(message.body, Body::Attestations { .. });
    let index = cluster.ask(1, Proposal::Barrier).expect("a snapshot").index;
    for from in [2, 3] {
        let said = vec![Attestation {
            index,
            snapshot: Some([66; 32]),
            chain: Some([66; 16]),
            unable: false,
        }];
        let body = Body::Attestations { nonce: 0, said };
        forge(&mut cluster, (from, from), 1, body);
    }
    assert!(
        cluster
            .node(1)
            .distrusted
            .contains(&(NodeId(2), Distrust::Nonce))
    );
    cluster.drop = |_| false;
    goes_on(&mut cluster, &[1, 2, 3]);
    for id in 1..=3 {
        assert!(cluster.node(id).diverged.is_empty(), "node {id}");
    }
    assert!(cluster.status(1).expect("runs").verified >= index);
}

#[test]
fn answers_are_taken_from_whoever_was_asked() {
    let mut cluster = healthy();
    cluster.drop = |message| matches!(message.body, Body::Forward(_));
    let waiter = cluster.command(2, "passed on");
    cluster.run();
    let token = cluster
        .node(2)
        .sent
        .iter()
        .find_map(|message| match &message.body {
            Body::Forward(forwards) => forwards.first().map(|forward| forward.token),
            _ => None,
        })
        .expect("it was passed on");
    let answers = vec![Answer {
        token,
        result: Err(ProposalError::SessionExpired),
    }];
    forge(&mut cluster, (3, 3), 2, Body::Answer(answers.clone()));
    assert_eq!(cluster.reply(2, waiter), None);
    forge(&mut cluster, (1, 1), 2, Body::Answer(answers));
    assert_eq!(
        cluster.reply(2, waiter),
        Some(Err(ProposalError::SessionExpired))
    );
}

/// A joiner that took any name would never be found under its own, and its node could never host the group again.
#[test]
fn a_joiner_takes_only_a_name_that_its_group_gave_it() {
    let mut cluster = healthy();
    cluster.add(4, 0);
    for (from, node) in [(1, 1), (77, 6)] {
        let (group, incarnation) = {
            let status = cluster.status(4).expect("runs");
            (status.group, status.incarnation)
        };
        for to in [3, 4, 1 << 50] {
            let beat = eraftpb::Message {
                msg_type: MessageType::MsgHeartbeat,
                from,
                to,
                term: 9,
                ..Default::default()
            };
            let message = PeerMessage {
                group,
                incarnation,
                from: ReplicaId(from),
                to: ReplicaId(to),
                body: Body::Raft(beat),
            };
            let from = NodeId(node);
            cluster.input(4, Input::Message { from, message });
            cluster.run();
        }
    }
    assert_eq!(cluster.status(4).expect("runs").replica, ReplicaId(0));
    cluster.ask(1, add(4)).expect("added");
    cluster.tick(3);
    assert_eq!(cluster.status(4).expect("runs").replica, ReplicaId(4));
    goes_on(&mut cluster, &[1, 2, 3, 4]);
}

#[test]
fn a_replica_catches_up_although_all_others_were_replaced_meanwhile() {
    let mut cluster = healthy();
    cluster.crash(3);
    for node in [4, 5, 6] {
        cluster.add(node, 0);
        cluster.ask(1, add(node)).expect("added");
        cluster.tick(3);
    }
    for node in [2, 1] {
        let leader = cluster.leader().expect("somebody leads");
        cluster.ask(leader, remove(node)).expect("removed");
        cluster.until("it knows", |cluster| cluster.node(node).removed);
    }
    let leader = cluster.leader().expect("somebody leads");
    cluster.ask(leader, anonymous("new")).expect("committed");
    // It knows the replicas 1, 2 and 3, and none of those who speak to it.
    cluster.restart(3);
    cluster.until("node 3 has caught up", |cluster| {
        cluster.commands(3).ends_with(&["new".to_owned()])
    });
    let members = cluster.status(3).expect("runs").members;
    let nodes: Vec<_> = members.iter().map(|member| member.node.0).collect();
    assert_eq!(nodes, [3, 4, 5, 6]);
    assert!(cluster.node(3).distrusted.is_empty());
    goes_on(&mut cluster, &[3, 4, 5, 6]);
}

/// The disk of a follower lied about its syncs. Its leader knows, and can prove it; nobody else can.
#[test]
fn who_lost_what_it_had_acknowledged_stops_when_its_leader_proves_it() {
    let mut cluster = healthy();
    cluster.crash(3);
    let disk = &mut cluster.node(3).disk;
    let last = disk.entries.pop().expect("it had entries").index;
    disk.hard_state.commit = disk.hard_state.commit.min(last - 1);
    cluster.restart(3);
    cluster.until("node 3 stops", |cluster| cluster.node(3).halted.is_some());
    let reason = cluster.node(3).halted.clone().expect("just seen");
    assert!(reason.contains("acknowledged data was lost"), "{reason}");
    goes_on(&mut cluster, &[1, 2]);
}

/// Ten elections and twenty entries a second, for ever, is what handing leadership round among the faulted came to.
#[test]
fn a_group_whose_machines_all_failed_elects_no_more() {
    let mut cluster = healthy();
    let fail = |cluster: &mut Cluster, id| {
        let reason = "stack".to_owned();
        cluster.input(id, Input::MachineFailed { reason, at: None });
    };
    for id in 1..=3 {
        fail(&mut cluster, id);
    }
    cluster.tick(30);
    let state = |cluster: &mut Cluster| {
        let leader = cluster.leader().expect("one leads on");
        let status = cluster.status(leader).expect("runs");
        (leader, status.term, status.last)
    };
    let before = state(&mut cluster);
    let sent = cluster.node(before.0).sent.len();
    cluster.tick(400);
    assert_eq!(state(&mut cluster), before);
    let asked = cluster.node(before.0).sent[sent..]
        .iter()
        .filter(|message| matches!(message.body, Body::AskStanding { .. }))
        .count();
    assert!(asked <= 2 * 400 / 80 + 2, "it asked {asked} times");
    // One of them is started anew, and well: it takes over.
    let well = [2, 3].into_iter().find(|id| *id != before.0).expect("one");
    cluster.crash(well);
    cluster.restart(well);
    cluster.until("the one that is well leads", |cluster| {
        cluster.leader() == Some(well)
    });
    let reply = cluster.ask(well, anonymous("after")).expect("committed");
    assert!(matches!(reply.outcome, Outcome::Reply(_)));
}
