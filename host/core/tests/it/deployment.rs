//! What a group runs, and what it takes: exchanged, paused and resumed by entries of the log.

use bytes::Bytes;
use skep_core::deployment::{Deployment, Quota};
use skep_core::id::ComponentId;
use skep_core::outcome::Outcome;
use skep_core::proposal::{Proposal, ProposalError};

use crate::cluster::{Cluster, REFUSED, anonymous, in_session};

fn deployment(component: u8, quota: Quota) -> Deployment {
    Deployment {
        component: ComponentId([component; 32]),
        profile: Bytes::from_static(b"limits"),
        quota,
    }
}

fn activate(component: u8) -> Proposal {
    Proposal::Activate(deployment(component, Quota::default()))
}

fn runs(cluster: &mut Cluster) -> Vec<u8> {
    cluster.run();
    (1..=3).map(|id| cluster.node(id).machine.runs).collect()
}

#[test]
fn every_replica_changes_at_one_place_of_the_log() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.ask(1, anonymous("a")).expect("committed");
    let answer = cluster.ask(1, activate(5)).expect("committed");
    assert_eq!(answer.outcome, Outcome::Reply(Bytes::new()));
    cluster.ask(2, anonymous("b")).expect("committed");
    cluster.tick(5);
    assert_eq!(runs(&mut cluster), [5, 5, 5]);
    // A snapshot follows by itself, and who starts from it knows what runs.
    let taken = cluster.status(2).expect("runs").snapshot;
    assert!(taken > answer.index, "{taken} follows {}", answer.index);
    cluster.crash(2);
    cluster.restart(2);
    cluster.tick(20);
    assert_eq!(runs(&mut cluster), [5, 5, 5]);
    assert_eq!(cluster.commands(2), ["a", "b"]);
    let component = cluster.status(2).expect("runs").deployed;
    assert_eq!(component, Some(ComponentId([5; 32])));
}

#[test]
fn a_refusal_leaves_everything_as_it_was() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.ask(1, activate(5)).expect("committed");
    let waiter = cluster.propose(3, activate(REFUSED));
    let behind = cluster.propose(1, anonymous("behind"));
    cluster.tick(5);
    let refused = cluster
        .reply(3, waiter)
        .expect("answered")
        .expect("committed");
    assert!(
        matches!(refused.outcome, Outcome::Rejected { code: 7, .. }),
        "{refused:?}"
    );
    assert!(cluster.reply(1, behind).expect("answered").is_ok());
    assert_eq!(runs(&mut cluster), [5, 5, 5]);
    let component = cluster.status(1).expect("runs").deployed;
    assert_eq!(component, Some(ComponentId([5; 32])));
}

#[test]
fn nothing_behind_an_activation_is_planned_before_it_is_done() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.ask(1, anonymous("a")).expect("committed");
    cluster.node(2).machine_stuck = true;
    cluster.ask(1, activate(5)).expect("committed");
    cluster.ask(1, anonymous("b")).expect("committed");
    cluster.tick(3);
    let status = cluster.status(2).expect("runs");
    assert!(status.commit > status.applied, "{status:?}");
    cluster.node(2).machine_stuck = false;
    cluster.tick(3);
    assert_eq!(cluster.commands(2), ["a", "b"]);
}

#[test]
fn a_machine_that_fails_on_everything_is_paused_until_somebody_resumes() {
    let mut cluster = Cluster::with(3, |config| config.limits.pause_faults = 5);
    cluster.elect(1);
    let session = cluster
        .ask(1, Proposal::OpenSession)
        .expect("opened")
        .session();
    for n in 0..20 {
        let command = if n % 4 == 3 { "good" } else { "fault" };
        cluster
            .ask(1, anonymous(command))
            .expect("three in a row are not many");
    }
    let mut failed = 0;
    while cluster.ask(1, anonymous("fault")).is_ok() {
        failed += 1;
        cluster.tick(1);
        assert!(failed <= 5, "it is never paused");
    }
    assert!(failed >= 4, "{failed}");
    for id in 1..=3 {
        assert!(cluster.status(id).expect("runs").paused, "node {id}");
        assert_eq!(
            cluster.ask(id, anonymous("good")),
            Err(ProposalError::Paused)
        );
        // The session is as it was: the same command is taken later.
        assert_eq!(
            cluster.ask(id, in_session(session, 1, "named")),
            Err(ProposalError::Paused)
        );
        let waiter = cluster.query(id, true);
        cluster.tick(2);
        assert!(
            cluster.node(id).query_replies[&waiter].is_ok(),
            "questions are answered"
        );
    }
    // It lasts.
    cluster.ask(1, Proposal::Barrier).expect("a snapshot");
    for id in 1..=3 {
        cluster.crash(id);
    }
    for id in 1..=3 {
        cluster.boot(id);
    }
    cluster.elect(2);
    assert_eq!(
        cluster.ask(2, anonymous("good")),
        Err(ProposalError::Paused)
    );
    cluster.ask(3, Proposal::Resume).expect("resumed");
    cluster
        .ask(2, in_session(session, 1, "named"))
        .expect("committed");
    assert_eq!(
        cluster.commands(1).last().map(String::as_str),
        Some("named")
    );
}

#[test]
fn an_exchange_resumes_a_paused_group() {
    let mut cluster = Cluster::with(3, |config| config.limits.pause_faults = 2);
    cluster.elect(1);
    while cluster.ask(1, anonymous("fault")).is_ok() {
        cluster.tick(1);
    }
    let waiter = cluster.propose(1, activate(5));
    let behind = cluster.propose(1, Proposal::OpenSession);
    cluster.run();
    assert!(cluster.reply(1, waiter).expect("answered").is_ok());
    assert!(cluster.reply(1, behind).expect("answered").is_ok());
    cluster.ask(1, anonymous("good")).expect("committed");
}

#[test]
fn a_quota_is_held_by_whoever_leads() {
    let mut cluster = Cluster::with(3, |config| {
        let quota = Quota {
            commands_per_second: 3,
            in_flight_bytes: 0,
        };
        config.deployment = Some(deployment(0, quota));
    });
    let second = |cluster: &mut Cluster| {
        cluster.now += 1_000_000_000;
        cluster.tick(1);
    };
    cluster.elect(1);
    second(&mut cluster);
    for id in [1, 2, 3] {
        cluster.ask(id, anonymous("within")).expect("committed");
    }
    for id in [1, 2, 3] {
        assert_eq!(
            cluster.ask(id, anonymous("beyond")),
            Err(ProposalError::Busy),
            "by node {id}"
        );
    }
    second(&mut cluster);
    for _ in 0..3 {
        cluster.ask(1, anonymous("within")).expect("committed");
    }
    assert_eq!(
        cluster.ask(1, anonymous("beyond")),
        Err(ProposalError::Busy)
    );
    // The log changes it, for every command that is taken afterwards.
    let free = deployment(0, Quota::default());
    cluster.ask(1, Proposal::Activate(free)).expect("committed");
    for _ in 0..20 {
        cluster.ask(1, anonymous("within")).expect("committed");
    }
    let bytes = Quota {
        commands_per_second: 0,
        in_flight_bytes: 200,
    };
    cluster
        .ask(1, Proposal::Activate(deployment(0, bytes)))
        .expect("committed");
    let large = "x".repeat(300);
    assert_eq!(cluster.ask(1, anonymous(&large)), Err(ProposalError::Busy));
    cluster.ask(1, anonymous("small")).expect("committed");
}
