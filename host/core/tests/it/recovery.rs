//! A group that has lost its majority goes on from one replica that is left.

use std::collections::BTreeSet;

use bytes::Bytes;
use skep_core::Recovered;
use skep_core::id::{LogIndex, NodeId, ReplicaId, Term};
use skep_core::proposal::{Change, Proposal};
use skep_core::recovery::{NoStart, NoSurvey, Survey};
use skep_core::state::Role;

use crate::cluster::{Cluster, activate, anonymous};
use crate::disk::Disk;

fn on_disk(disk: &Disk) -> Recovered {
    let snapshot = disk.snapshot.clone().map(|name| {
        let (_, state, _) = &disk.files[&name.index];
        (name, state.clone())
    });
    Recovered {
        replica: disk.replica,
        hard_state: disk.hard_state.clone(),
        entries: disk.entries.clone(),
        truncated: disk.truncated,
        snapshot,
    }
}

fn survey(cluster: &Cluster, id: u64) -> Survey {
    Survey::of(&on_disk(&cluster.nodes[&id].disk)).expect("a replica")
}

/// The nodes that are left are down; the group starts from the best of them.
fn recover(cluster: &mut Cluster, left: &[u64]) -> u64 {
    let surveys = left.iter().map(|id| (*id, survey(cluster, *id)));
    let surveys: Vec<_> = surveys.collect();
    let term = surveys.iter().map(|(_, of)| of.term).max().expect("one");
    let best = surveys.iter().max_by_key(|(_, of)| (of.last.1, of.last.0));
    let (best, of) = best.expect("one");
    let committed = surveys.iter().map(|(_, of)| of.commit).max();
    assert!(
        committed <= Some(of.last.0),
        "the best one has all that anybody knows"
    );
    let stay: BTreeSet<_> = left.iter().copied().map(NodeId).collect();
    let commands = vec![Bytes::from_static(b"recovered")];
    let record = of.start(Term(term.0 + 1), &stay, &[7; 32], commands.clone());
    let record = record.expect("it can start");
    let again = of.start(Term(term.0 + 1), &stay, &[7; 32], commands);
    assert_eq!(Ok(&record), again.as_ref(), "the same, whoever makes it");
    let best = *best;
    cluster
        .nodes
        .get_mut(&best)
        .expect("a node")
        .disk
        .write(record);
    best
}

fn roles(cluster: &mut Cluster, at: u64) -> Vec<(u64, Role)> {
    let status = cluster.status(at).expect("runs");
    let members = status.members.iter();
    members.map(|member| (member.node.0, member.role)).collect()
}

fn learner(node: u64) -> Proposal {
    Proposal::Change(Change::AddLearner {
        node: NodeId(node),
        data: Bytes::new(),
    })
}

// P-111
#[test]
fn two_of_five_go_on_and_lose_nothing_that_either_has() {
    let mut cluster = Cluster::new(5);
    cluster.elect(1);
    for at in 0..20 {
        cluster
            .ask(1, anonymous(&format!("command {at}")))
            .expect("applied");
    }
    // The first has more than the second, and something in doubt.
    for other in [2, 3, 4, 5] {
        cluster.cut.insert((1, other));
    }
    let _in_doubt = cluster.propose(1, anonymous("in doubt"));
    cluster.run();
    for id in 1..=5 {
        cluster.crash(id);
    }
    cluster.cut.clear();
    let best = recover(&mut cluster, &[1, 2]);
    assert_eq!(best, 1);
    cluster.restart(1);
    cluster.restart(2);
    cluster.tick(60);
    assert_eq!(cluster.leader(), Some(1));
    let said = cluster.ask(2, anonymous("after")).expect("applied");
    assert!(said.index.0 > 20);
    cluster.tick(10);
    // Both vote again, each with all of it.
    assert_eq!(roles(&mut cluster, 1), [(1, Role::Voter), (2, Role::Voter)]);
    let applied = cluster.commands(1);
    assert_eq!(applied, cluster.commands(2));
    for command in ["command 0", "command 19", "in doubt", "recovered", "after"] {
        let times = applied.iter().filter(|of| *of == command).count();
        assert_eq!(times, 1, "{command}");
    }
}

/// The one with the longest log only learns; and its log begins with a snapshot.
#[test]
fn a_learner_may_be_all_that_is_left() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.add(4, 0);
    cluster.ask(1, learner(4)).expect("it learns");
    for at in 0..30 {
        cluster
            .ask(1, anonymous(&format!("command {at}")))
            .expect("applied");
    }
    cluster.ask(1, Proposal::Barrier).expect("a barrier");
    cluster.ask(1, anonymous("behind it")).expect("applied");
    cluster.tick(20);
    for id in 1..=4 {
        cluster.crash(id);
    }
    assert!(on_disk(&cluster.nodes[&4].disk).snapshot.is_some());
    assert_eq!(recover(&mut cluster, &[4]), 4);
    cluster.restart(4);
    cluster.tick(60);
    assert_eq!(roles(&mut cluster, 4), [(4, Role::Voter)]);
    cluster.ask(4, anonymous("alone")).expect("applied");
    // No id is used twice: whoever joins now is another replica than any before.
    cluster.add(5, 0);
    cluster.ask(4, learner(5)).expect("it learns");
    let status = cluster.status(4).expect("runs");
    let joined = status
        .members
        .iter()
        .find(|member| member.node == NodeId(5));
    assert_eq!(joined.map(|member| member.replica), Some(ReplicaId(5)));
}

/// Behind an activation nothing is applied, and who has a change before it that it does not apply is elected by nobody.
#[test]
fn an_activation_that_nobody_decided_is_given_up() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.ask(1, anonymous("before")).expect("applied");
    for id in 1..=3 {
        cluster.node(id).machine.lacks = true;
    }
    cluster.propose(1, activate(5));
    cluster.tick(3);
    assert!(cluster.status(1).expect("runs").activation.is_some());
    for id in 1..=3 {
        cluster.crash(id);
    }
    let best = recover(&mut cluster, &[1]);
    cluster.restart(best);
    cluster.tick(60);
    assert_eq!(roles(&mut cluster, best), [(best, Role::Voter)]);
    cluster.ask(best, anonymous("after")).expect("applied");
    assert_eq!(cluster.node(best).machine.runs, 0, "it runs what it ran");
    assert!(cluster.status(best).expect("runs").activation.is_none());
}

#[test]
fn what_cannot_start_a_group_says_why() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.ask(1, anonymous("a")).expect("applied");
    let of = survey(&cluster, 1);
    let stay = BTreeSet::from([NodeId(1)]);
    let refused = of.start(of.term, &stay, &[0; 32], Vec::new());
    assert_eq!(refused, Err(NoStart::UsedTerm(of.term)));
    let mut disk = on_disk(&cluster.nodes[&1].disk);
    disk.replica = ReplicaId(0);
    assert!(matches!(Survey::of(&disk), Err(NoSurvey::Empty)));
    let mut disk = on_disk(&cluster.nodes[&1].disk);
    disk.truncated = (LogIndex(2), Term(1));
    assert!(matches!(
        Survey::of(&disk),
        Err(NoSurvey::NoSnapshot { .. })
    ));
    let mut disk = on_disk(&cluster.nodes[&1].disk);
    disk.replica = ReplicaId(9);
    let stranger = Survey::of(&disk).expect("a log");
    let refused = stranger.start(Term(99), &stay, &[0; 32], Vec::new());
    assert_eq!(refused, Err(NoStart::NoMember));
}
