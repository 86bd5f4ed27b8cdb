//! What a group runs, and what it takes: exchanged, paused and resumed by entries of the log.

use bytes::Bytes;
use skep_core::deployment::{Deployment, Quota};
use skep_core::id::ComponentId;
use skep_core::outcome::Outcome;
use skep_core::proposal::{Proposal, ProposalError};
use skep_core::status::HeldBack;

use crate::cluster::{Cluster, REFUSED, activate, anonymous, in_session};

fn deployment(component: u8, quota: Quota) -> Deployment {
    Deployment {
        component: ComponentId([component; 32]),
        profile: Bytes::from_static(b"limits"),
        quota,
        barriers: Default::default(),
    }
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
        matches!(&refused.outcome, Outcome::Refused { code: 422, message } if message.contains("restore: unreachable")),
        "{refused:?}"
    );
    assert!(cluster.reply(1, behind).expect("answered").is_ok());
    assert_eq!(runs(&mut cluster), [5, 5, 5]);
    let component = cluster.status(1).expect("runs").deployed;
    assert_eq!(component, Some(ComponentId([5; 32])));
}

// P-24
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

// P-29
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
        let status = cluster.status(id).expect("runs");
        assert!(status.paused, "node {id}");
        assert!(status.held_back.contains(&HeldBack::Paused), "{status:?}");
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
fn a_machine_that_was_exchanged_is_not_paused_for_what_the_former_one_failed_on() {
    let mut cluster = Cluster::with(3, |config| config.limits.pause_faults = 2);
    cluster.elect(1);
    cluster.node(1).machine_stuck = true;
    for _ in 0..4 {
        cluster.propose(1, anonymous("fault"));
        cluster.run();
    }
    let waiter = cluster.propose(1, activate(5));
    cluster.run();
    cluster.node(1).machine_stuck = false;
    cluster.until("exchanged", |cluster| cluster.reply(1, waiter).is_some());
    cluster.tick(5);
    for id in 1..=3 {
        assert!(!cluster.status(id).expect("runs").paused, "node {id}");
    }
    cluster.ask(1, anonymous("good")).expect("committed");
}

// P-46
#[test]
fn a_quota_is_held_by_whoever_leads() {
    let mut cluster = Cluster::with(3, |config| {
        let quota = Quota {
            commands_per_second: 3,
            ..Quota::default()
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
    let held_back = |cluster: &mut Cluster| cluster.status(1).expect("leads").held_back;
    assert_eq!(held_back(&mut cluster), [HeldBack::CommandsPerSecond]);
    second(&mut cluster);
    assert_eq!(held_back(&mut cluster), []);
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
        in_flight_bytes: 200,
        ..Quota::default()
    };
    cluster
        .ask(1, Proposal::Activate(deployment(0, bytes)))
        .expect("committed");
    let large = "x".repeat(300);
    assert_eq!(held_back(&mut cluster), []);
    assert_eq!(cluster.ask(1, anonymous(&large)), Err(ProposalError::Busy));
    assert_eq!(held_back(&mut cluster), [HeldBack::BytesInFlight]);
    cluster.ask(1, anonymous("small")).expect("committed");
}

// P-46, P-47
#[test]
fn commands_wait_for_what_they_and_their_replies_cost_in_bytes() {
    let mut cluster = Cluster::with(3, |config| {
        let quota = Quota {
            bytes_per_second: 1000,
            ..Quota::default()
        };
        config.deployment = Some(deployment(0, quota));
        config.limits.long_bytes_per_second = 1 << 20;
        config.limits.request_ticks = 1000;
    });
    let tick = |cluster: &mut Cluster| {
        cluster.now += 100_000_000;
        cluster.tick(1);
    };
    // How many tenths of a second it takes until everybody's next command is answered.
    let ticks_after = |cluster: &mut Cluster, echo: &str| {
        cluster.ask(2, anonymous(echo)).expect("committed");
        let waiters: Vec<_> = (1..=3)
            .map(|id| (id, cluster.propose(id, anonymous("small"))))
            .collect();
        cluster.run();
        let mut ticks = 0;
        while waiters
            .iter()
            .any(|(id, waiter)| cluster.reply(*id, *waiter).is_none())
        {
            let status = cluster.status(1).expect("leads");
            let expected = match status.quota.bytes_per_second {
                0 => HeldBack::LongBytesPerSecond,
                _ => HeldBack::BytesPerSecond,
            };
            assert_eq!(status.held_back, [expected]);
            tick(cluster);
            ticks += 1;
            assert!(ticks <= 100, "they wait for ever");
        }
        ticks
    };
    cluster.now += 7_200_000_000_000;
    cluster.elect(1);
    for _ in 0..3 {
        tick(&mut cluster);
    }
    // A quarter of a second is saved up, and two seconds' worth is taken.
    let echo = format!("echo {}", "x".repeat(995));
    assert_eq!(ticks_after(&mut cluster, &echo), 18);
    assert_eq!(cluster.status(1).expect("runs").quota_waits, 18);
    assert_eq!(cluster.status(2).expect("runs").quota_waits, 0);
    // A clock that was an hour ahead and is set right again stops nobody for an hour.
    cluster.now -= 3_600_000_000_000;
    for _ in 0..5 {
        tick(&mut cluster);
    }
    assert_eq!(ticks_after(&mut cluster, &echo), 18);
    // No more than four seconds are held against it.
    let longest = format!("echo {}", "x".repeat(100_000));
    assert_eq!(ticks_after(&mut cluster, &longest), 41);
    // What is no command waits for nothing, and lifts the limit.
    cluster.ask(1, anonymous(&longest)).expect("committed");
    let none = deployment(0, Quota::default());
    let waiter = cluster.propose(1, Proposal::Activate(none));
    cluster.run();
    cluster
        .reply(1, waiter)
        .expect("answered")
        .expect("committed");
    for _ in 0..6 {
        tick(&mut cluster);
    }
    // Then the node's is left, a mebibyte in a second, for what is long. A quarter is saved up, command and reply are two.
    for _ in 0..100 {
        assert_eq!(ticks_after(&mut cluster, "echo short"), 0);
    }
    let long = format!("echo {}", "x".repeat((1 << 20) - 5));
    assert_eq!(ticks_after(&mut cluster, &long), 18);
}
