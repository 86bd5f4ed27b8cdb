//! A removed replica lingers until those who stay know: it does no harm meanwhile, and it learns of its end.

use bytes::Bytes;
use raft::eraftpb::{HardState, MessageType};
use skep_core::effect::Effect;
use skep_core::id::{GroupId, Incarnation, LogIndex, NodeId, ReplicaId, Term};
use skep_core::input::Input;
use skep_core::message::{Body, PeerMessage};
use skep_core::proposal::{Change, Proposal, ProposalError};
use skep_core::status::Part;
use skep_core::{Group, GroupConfig, Recovered};

use crate::cluster::{Cluster, anonymous};

fn remove(node: u64) -> Proposal {
    Proposal::Change(Change::Remove {
        node: NodeId(node),
        data: Bytes::new(),
    })
}

fn learner(node: u64) -> Proposal {
    Proposal::Change(Change::AddLearner {
        node: NodeId(node),
        data: Bytes::new(),
    })
}

fn is_raft(message: &PeerMessage, kind: MessageType) -> bool {
    matches!(&message.body, Body::Raft(raft) if raft.msg_type == kind)
}

fn is_gone(message: &PeerMessage) -> bool {
    matches!(message.body, Body::Gone)
}

/// Lets nothing be acknowledged, so that nothing is committed.
fn is_acknowledgement(message: &PeerMessage) -> bool {
    is_raft(message, MessageType::MsgAppendResponse)
}

/// Events happen one by one until the condition holds. Time passes when nothing else can.
fn step_until(cluster: &mut Cluster, what: &str, condition: impl Fn(&mut Cluster) -> bool) {
    let ids: Vec<_> = cluster.nodes.keys().copied().collect();
    for _ in 0..10_000 {
        let mut moved = false;
        for id in &ids {
            moved |= cluster.turn(*id, usize::MAX, usize::MAX);
        }
        if condition(cluster) {
            return;
        }
        if let Some((from, to, message, file)) = cluster.network.pop_front() {
            cluster.deliver(from, to, message, file);
        } else if !moved {
            cluster.now += 100;
            let now = cluster.now;
            for id in &ids {
                cluster.input(*id, Input::Tick { now });
            }
        }
    }
    panic!("never: {what}");
}

fn leads(cluster: &mut Cluster, id: u64) -> bool {
    cluster
        .status(id)
        .is_some_and(|status| status.part == Part::Leader)
}

fn is_member(cluster: &mut Cluster, id: u64) -> bool {
    cluster.status(id).is_some_and(|status| {
        let mut members = status.members.iter();
        members.any(|member| member.node == NodeId(id))
    })
}

/// Whether the replica leads on although it has applied its own removal.
fn lingers_as_leader(cluster: &mut Cluster, id: u64) -> bool {
    leads(cluster, id) && !is_member(cluster, id)
}

/// The removal of node 2 is in all logs and committed nowhere, and every replica has just started, so that each votes at
/// once.
fn with_the_removal_of_node_2_in_the_logs(nodes: u64) -> Cluster {
    let mut cluster = Cluster::new(nodes);
    cluster.elect(1);
    cluster.tick(5);
    cluster.drop = is_acknowledgement;
    let waiter = cluster.propose(1, remove(2));
    cluster.run();
    assert_eq!(cluster.reply(1, waiter), None, "nothing is committed");
    start_anew(&mut cluster, nodes);
    cluster
}

/// Every replica crashes and reads its log; nothing is sent. Each votes at once then.
fn start_anew(cluster: &mut Cluster, nodes: u64) {
    cluster.network.clear();
    for id in 1..=nodes {
        cluster.crash(id);
    }
    for id in 1..=nodes {
        cluster.boot(id);
        while cluster.turn(id, usize::MAX, usize::MAX) {}
    }
    assert!(is_member(cluster, 2), "the removal is not committed");
}

#[test]
fn a_leader_that_applies_its_own_removal_goes_on_until_it_is_told() {
    let mut cluster = with_the_removal_of_node_2_in_the_logs(3);
    cluster.drop = is_gone;
    cluster.input(2, Input::Campaign);
    // The records of its vote are durable, and nothing after them.
    step_until(&mut cluster, "node 2 asks for votes", |cluster| {
        let mut sent = cluster.node(2).sent.iter();
        sent.any(|message| is_raft(message, MessageType::MsgRequestVote))
    });
    cluster.slow_disks.insert(2);
    step_until(&mut cluster, "the others commit the removal", |cluster| {
        lingers_as_leader(cluster, 2)
    });
    // What they acknowledge from now on finds a leader without progress of its own, and so does its disk.
    cluster.run();
    cluster.slow_disks.clear();
    cluster.run();
    assert_eq!(cluster.node(2).halted, None);
    cluster.tick(3);
    assert_eq!(cluster.node(2).halted, None);
    assert!(lingers_as_leader(&mut cluster, 2));
    // It takes nothing into its log any more.
    let last = cluster.status(2).expect("runs").last;
    let waiter = cluster.command(2, "late");
    let query = cluster.query(2, true);
    cluster.run();
    assert_eq!(cluster.reply(2, waiter), None);
    assert_eq!(cluster.node(2).query_replies.get(&query), None);
    assert_eq!(cluster.status(2).expect("runs").last, last);
    // Its heartbeats have told the others what is committed; once they may say so, it ends.
    cluster.drop = |_| false;
    cluster.until("node 2 is told", |cluster| cluster.node(2).removed);
    assert_eq!(cluster.node(2).halted, None);
    assert_eq!(
        cluster.reply(2, waiter),
        Some(Err(ProposalError::Stopped)),
        "certainly not proposed"
    );
    cluster.until("another leads", |cluster| {
        cluster.leader().is_some_and(|leader| leader != 2)
    });
    let leader = cluster.leader().expect("just seen");
    cluster.ask(leader, anonymous("after")).expect("committed");
    assert_eq!(cluster.commands(leader), ["after"]);
}

/// Of two voters the removed one leads on, and the other leads alone: of the two states only one is the group's.
// P-71
#[test]
fn a_leader_that_was_removed_answers_no_reads() {
    let mut cluster = with_the_removal_of_node_2_in_the_logs(2);
    cluster.drop = is_gone;
    cluster.input(2, Input::Campaign);
    step_until(&mut cluster, "node 2 applies its removal", |cluster| {
        lingers_as_leader(cluster, 2)
    });
    // Node 1 hears of it, leads alone, and writes; node 2 cannot know.
    step_until(&mut cluster, "node 1 knows", |cluster| {
        cluster
            .status(1)
            .is_some_and(|status| status.members.len() == 1)
    });
    cluster.cut_off(2);
    cluster.elect(1);
    cluster.ask(1, anonymous("new")).expect("committed");
    let query = cluster.query(2, true);
    cluster.run();
    assert!(cluster.commands(2).is_empty());
    let answer = cluster.node(2).query_replies.get(&query).cloned();
    assert!(!matches!(answer, Some(Ok(_))), "a stale read: {answer:?}");
    cluster.cut.clear();
    cluster.drop = |_| false;
    cluster.until("node 2 is told", |cluster| cluster.node(2).removed);
    let answer = cluster.node(2).query_replies.get(&query).cloned();
    assert!(matches!(answer, Some(Err(_))), "{answer:?}");
}

/// Three voters, of which the third knows that it was removed and hears from nobody that it may go.
fn with_node_3_lingering() -> Cluster {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.tick(2);
    cluster.drop = is_gone;
    cluster.ask(1, remove(3)).expect("removed");
    cluster.tick(3);
    assert!(!cluster.node(3).removed);
    assert!(
        !is_member(&mut cluster, 3),
        "node 3 has applied its removal"
    );
    cluster
}

// P-71
#[test]
fn a_follower_that_was_removed_answers_no_reads() {
    let mut cluster = with_node_3_lingering();
    let query = cluster.query(3, true);
    // As long as a client waits.
    cluster.tick(60);
    let answer = cluster.node(3).query_replies.get(&query).cloned();
    assert!(matches!(answer, Some(Err(_))), "{answer:?}");
    assert!(!cluster.node(3).removed);
}

// P-71
#[test]
fn a_replica_that_was_removed_is_not_elected_and_elects_nobody() {
    let mut cluster = with_node_3_lingering();
    cluster.input(3, Input::Campaign);
    cluster.run();
    let status = cluster.status(3).expect("runs");
    assert_eq!(status.part, Part::Follower, "it does not even try");
    cluster.tick(60);
    assert_eq!(cluster.status(3).expect("runs").part, Part::Follower);
    assert_eq!(cluster.leader(), Some(1));
    // Of the two who stay one is away; the other needs its vote, and no other makes up for it.
    cluster.crash(1);
    let commit = cluster.status(2).expect("runs").commit;
    for _ in 0..5 {
        cluster.tick(15);
        cluster.input(2, Input::Campaign);
        cluster.run();
        assert!(!leads(&mut cluster, 2));
    }
    assert_eq!(cluster.status(2).expect("runs").commit, commit);
    cluster.restart(1);
    cluster.until("a leader", |cluster| cluster.leader().is_some());
    cluster.drop = |_| false;
    cluster.until("node 3 is told", |cluster| cluster.node(3).removed);
}

/// What a lingering replica is asked to do it does not do itself: it hands it to the leader, whose word counts.
// P-71
#[test]
fn a_follower_that_was_removed_only_hands_proposals_on() {
    let mut cluster = with_node_3_lingering();
    let before = cluster.status(3).expect("runs");
    cluster.ask(3, anonymous("late")).expect("by the leader");
    assert_eq!(cluster.commands(1), ["late"]);
    assert_eq!(cluster.commands(2), ["late"]);
    assert!(cluster.commands(3).is_empty());
    assert_eq!(cluster.status(3).expect("runs").last, before.last);
}

// P-72
#[test]
fn a_learner_that_was_removed_while_it_was_cut_off_asks() {
    let mut cluster = with_a_learner_removed_while_cut_off();
    cluster.cut.clear();
    cluster.until("node 4 is told", |cluster| cluster.node(4).removed);
    assert_eq!(cluster.leader(), Some(1), "and disturbs nobody");
}

// P-72
#[test]
fn a_learner_that_was_removed_while_it_was_down_asks() {
    let mut cluster = with_a_learner_removed_while_cut_off();
    cluster.crash(4);
    cluster.cut.clear();
    cluster.restart(4);
    assert!(!cluster.node(4).removed);
    cluster.until("node 4 is told", |cluster| cluster.node(4).removed);
    assert_eq!(cluster.leader(), Some(1), "and disturbs nobody");
}

fn with_a_learner_removed_while_cut_off() -> Cluster {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.tick(2);
    cluster.add(4, 0);
    cluster.ask(1, learner(4)).expect("added");
    cluster.tick(5);
    assert!(is_member(&mut cluster, 4));
    cluster.cut_off(4);
    cluster.ask(1, remove(4)).expect("removed");
    cluster.run();
    assert!(!cluster.node(4).removed);
    cluster
}

/// The one voter who stays has not heard of the commit and needs the vote of the removed one. A learner has heard of it,
/// but its knowledge elects nobody.
// P-70
#[test]
fn a_learner_announces_no_removal() {
    let mut cluster = Cluster::new(2);
    cluster.elect(1);
    cluster.tick(5);
    cluster.add(3, 0);
    cluster.ask(1, learner(3)).expect("added");
    cluster.tick(5);
    cluster.drop = is_acknowledgement;
    cluster.propose(1, remove(2));
    cluster.run();
    start_anew(&mut cluster, 3);
    // A leader tells those what is committed whose acknowledgement it has seen: first the learner's, then node 1's.
    cluster.drop = |message| is_acknowledgement(message) && message.from == ReplicaId(1);
    cluster.input(2, Input::Campaign);
    step_until(&mut cluster, "the learner has everything", |cluster| {
        let status = cluster.status(2).expect("runs");
        let mut members = status.members.iter();
        leads(cluster, 2)
            && members.any(|member| member.node == NodeId(3) && member.matched == Some(status.last))
    });
    cluster.drop = |_| false;
    step_until(
        &mut cluster,
        "node 2 has committed its removal",
        |cluster| lingers_as_leader(cluster, 2),
    );
    cluster.cut.insert((1, 2));
    cluster.until("the learner knows", |cluster| {
        cluster
            .status(3)
            .is_some_and(|status| status.members.len() == 2)
    });
    let voters = cluster.status(1).expect("runs").members.len();
    assert_eq!(voters, 3, "node 1 does not know");
    // Long enough for each to ask several times.
    cluster.tick(60);
    assert!(!cluster.node(2).removed, "node 1 cannot do without it");
    let told = cluster.node(3).sent.iter().any(is_gone);
    assert!(!told);
    cluster.cut.clear();
    cluster.until("node 1 leads", |cluster| leads(cluster, 1));
    cluster.until("node 2 is told", |cluster| cluster.node(2).removed);
    cluster.ask(1, anonymous("alone")).expect("committed");
}

/// What is not on a voter's disk it forgets in a crash; then it needs the one that it has sent away.
// P-70
#[test]
fn a_voter_announces_no_removal_that_it_may_forget() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.tick(2);
    // Of those who could tell node 3, only node 2 can reach it.
    cluster.cut.insert((1, 3));
    let waiter = cluster.propose(1, remove(3));
    step_until(&mut cluster, "node 1 has the answer of node 2", |cluster| {
        cluster
            .status(1)
            .is_some_and(|status| status.members.len() == 2)
    });
    cluster.slow_disks.insert(2);
    step_until(&mut cluster, "node 2 applies the removal", |cluster| {
        cluster
            .status(2)
            .is_some_and(|status| status.members.len() == 2)
    });
    cluster.run();
    assert!(matches!(cluster.reply(1, waiter), Some(Ok(_))));
    let message = question(&mut cluster, 3, 2);
    ask(&mut cluster, message.clone());
    assert!(!cluster.node(2).sent.iter().any(is_gone));
    assert!(!cluster.node(3).removed);
    cluster.slow_disks.clear();
    cluster.run();
    ask(&mut cluster, message);
    assert!(cluster.node(3).removed);
}

/// What a replica asks a member that may know whether it was removed.
fn question(cluster: &mut Cluster, from: u64, to: u64) -> PeerMessage {
    let status = cluster.status(from).expect("runs");
    PeerMessage {
        group: status.group,
        incarnation: status.incarnation,
        from: ReplicaId(from),
        to: ReplicaId(to),
        body: Body::Raft(raft::eraftpb::Message {
            msg_type: MessageType::MsgHeartbeatResponse,
            from,
            to,
            term: status.term.0,
            ..Default::default()
        }),
    }
}

fn ask(cluster: &mut Cluster, message: PeerMessage) {
    let (from, to) = (NodeId(message.from.0), message.to.0);
    cluster.input(to, Input::Message { from, message });
    cluster.run();
}

/// A snapshot that knows of a removal is no knowledge before it is durable.
#[test]
fn a_voter_announces_no_removal_from_a_snapshot_that_it_may_lose() {
    let mut cluster = Cluster::with(5, |config| {
        config.snapshot_entries = 8;
        // Whoever lacks what a snapshot covers is sent the snapshot.
        config.limits.log_retained_bytes = 0;
    });
    cluster.elect(1);
    cluster.tick(2);
    // Nodes 2 and 4 are away while node 4 is removed and the log that says so is cut.
    cluster.cut_off(4);
    cluster.crash(2);
    cluster.ask(1, remove(4)).expect("removed");
    for n in 0..40 {
        let text = n.to_string();
        cluster.ask(1, anonymous(&text)).expect("committed");
    }
    cluster.boot(2);
    step_until(&mut cluster, "a snapshot arrives", |cluster| {
        let mut network = cluster.network.iter();
        network.any(|(_, to, _, file)| *to == NodeId(2) && file.is_some())
    });
    cluster.slow_disks.insert(2);
    step_until(&mut cluster, "node 2 has taken it", |cluster| {
        cluster
            .status(2)
            .is_some_and(|status| status.members.len() == 4)
    });
    cluster.cut.remove(&(2, 4));
    let message = question(&mut cluster, 4, 2);
    ask(&mut cluster, message.clone());
    assert!(!cluster.node(4).removed);
    cluster.slow_disks.clear();
    cluster.run();
    ask(&mut cluster, message);
    assert!(cluster.node(4).removed);
}

/// Its name is durable, and nothing else. The question of a message of Raft would speak for term 0, which is none.
// P-72
#[test]
fn a_joiner_that_knows_its_name_alone_asks_without_a_term() {
    let config = GroupConfig::new(GroupId(1), Incarnation(1), NodeId(4));
    let timeout = config.election_ticks;
    let mut joiner = Group::recover(
        config,
        Recovered {
            replica: ReplicaId(4),
            hard_state: HardState::default(),
            entries: Vec::new(),
            truncated: (LogIndex(0), Term(0)),
            snapshot: None,
        },
    )
    .expect("a replica");
    let message = PeerMessage {
        group: GroupId(1),
        incarnation: Incarnation(1),
        from: ReplicaId(1),
        to: ReplicaId(4),
        body: Body::AskAttestations {
            after: LogIndex(0),
            nonce: 1,
        },
    };
    let from = NodeId(1);
    joiner.handle(Input::Message { from, message });
    let mut effects = Vec::new();
    for _ in 0..2 * timeout {
        joiner.handle(Input::Tick { now: 1 });
        joiner.poll(&mut effects);
    }
    let said: Vec<_> = effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Send { message, .. } => Some(&message.body),
            _ => None,
        })
        .collect();
    let asks = |body: &&Body| matches!(body, Body::AskStanding { .. });
    assert!(!said.is_empty() && said.iter().all(asks), "{said:?}");
}
