//! Barriers that leave an image of the machine, beside those that rebuild it from what it saved.

use skep_core::deployment::Deployment;
use skep_core::form::{Barriers, Form};
use skep_core::id::LogIndex;
use skep_core::outcome::Outcome;
use skep_core::proposal::Proposal;
use skep_core::state::HostState;
use skep_core::status::{Health, Status};

use crate::cluster::{Cluster, Sick, activate, anonymous};

/// Three replicas of which node 1 leads; their machines have images, which are hardly larger than what they save.
fn cluster() -> Cluster {
    with(Some(1), Barriers::Auto)
}

fn with(memory: Option<u64>, barriers: Barriers) -> Cluster {
    let mut cluster = Cluster::with(3, |config| {
        config.snapshot_entries = 8;
        config.limits.log_retained_bytes = 0;
        config.limits.log_kept_bytes = 0;
    });
    for id in 1..=3 {
        cluster.node(id).machine.memory = memory;
    }
    cluster.elect(1);
    if let Proposal::Activate(deployment) = activate(0)
        && barriers != Barriers::Auto
    {
        let deployment = Deployment {
            barriers,
            ..deployment
        };
        let activate = Proposal::Activate(deployment);
        cluster.ask(1, activate).expect("it is a setting");
    }
    cluster
}

fn commands(cluster: &mut Cluster, count: usize) {
    for number in 0..count {
        let leader = cluster.leader().expect("somebody leads");
        let command = anonymous(&format!("{number}"));
        cluster.ask(leader, command).expect("committed");
    }
    cluster.tick(2);
}

fn status(cluster: &mut Cluster, id: u64) -> Status {
    cluster.status(id).expect("it runs")
}

/// The form of the newest snapshot of a node.
fn newest(cluster: &mut Cluster, id: u64) -> Option<(LogIndex, Form)> {
    let name = cluster.node(id).disk.snapshot.clone()?;
    let (_, state, _) = cluster.node(id).disk.files[&name.index].clone();
    let (state, _) = HostState::decode(state).expect("the host's section");
    Some((name.index, state.form))
}

/// Commands until the leader has a snapshot of this form.
fn until(cluster: &mut Cluster, form: Form) -> LogIndex {
    for _ in 0..20 {
        commands(cluster, 4);
        let leader = cluster.leader().expect("somebody leads");
        match newest(cluster, leader) {
            Some((index, is)) if is == form => return index,
            _ => {}
        }
    }
    panic!("there is no snapshot of form {form}");
}

fn heap(cluster: &mut Cluster) -> String {
    let leader = cluster.leader().expect("somebody leads");
    let response = cluster.ask(leader, anonymous("heap")).expect("committed");
    let Outcome::Reply(reply) = response.outcome else {
        panic!("{response:?}");
    };
    String::from_utf8_lossy(&reply).into_owned()
}

/// All have the same heap, have no word against each other, and are well.
fn all_are_one(cluster: &mut Cluster) {
    cluster.until("all are well", |cluster| {
        (1..=3).all(|id| status(cluster, id).health == Health::Healthy)
    });
    let leader = cluster.leader().expect("somebody leads");
    let response = cluster.ask(leader, Proposal::Barrier);
    let barrier = response.expect("a snapshot").index;
    cluster.until("they agree", |cluster| {
        status(cluster, leader).verified == barrier
    });
    let commands = cluster.commands(1);
    for id in 1..=3 {
        assert_eq!(cluster.node(id).diverged, [], "node {id}");
        assert_eq!(cluster.commands(id), commands, "node {id}");
        assert_eq!(cluster.node(id).machine.heap, 0, "node {id}");
    }
}

// P-21
#[test]
fn a_machine_goes_on_as_it_is_behind_an_image_here_and_wherever_it_is_restored() {
    let mut cluster = cluster();
    // Nothing is known of what images would save before the first one.
    until(&mut cluster, Form::Saved);
    let index = until(&mut cluster, Form::Image);
    let before = cluster.node(1).machine.heap;
    assert!(before > 8, "{before}: it was not rebuilt at the image");
    for id in 2..=3 {
        assert_eq!(newest(&mut cluster, id), Some((index, Form::Image)));
    }
    cluster.crash(3);
    cluster.restart(3);
    cluster.tick(5);
    for id in 1..=3 {
        assert_eq!(cluster.node(id).machine.heap, before, "node {id}");
    }
    // One that was away for long takes the image from the leader.
    cluster.crash(2);
    let index = until(&mut cluster, Form::Image);
    assert!(status(&mut cluster, 1).first > LogIndex(10));
    cluster.restart(2);
    cluster.until("it is there", |cluster| {
        status(cluster, 2).snapshot == index
    });
    cluster.tick(5);
    let heap = heap(&mut cluster);
    for id in 1..=3 {
        assert_eq!(cluster.node(id).machine.heap.to_string(), heap);
    }
    all_are_one(&mut cluster);
}

// P-44
#[test]
fn entries_behind_an_image_are_answered_before_it_is_written() {
    let mut cluster = cluster();
    until(&mut cluster, Form::Saved);
    for id in 1..=3 {
        cluster.node(id).images_stuck = true;
    }
    let before = status(&mut cluster, 1).snapshot;
    commands(&mut cluster, 40);
    assert_eq!(status(&mut cluster, 1).snapshot, before, "it is in no file");
    // Nor is anything behind another barrier done before.
    let waiter = cluster.propose(1, Proposal::Barrier);
    let later = cluster.propose(1, anonymous("later"));
    cluster.tick(5);
    assert!(!cluster.node(1).replies.contains_key(&waiter));
    assert!(!cluster.node(1).replies.contains_key(&later));
    for id in 1..=3 {
        cluster.node(id).images_stuck = false;
    }
    cluster.tick(5);
    assert!(cluster.node(1).replies[&waiter].is_ok());
    assert!(cluster.node(1).replies[&later].is_ok());
    all_are_one(&mut cluster);
}

// P-22
#[test]
fn what_a_machine_did_behind_an_image_is_compared_although_the_image_came_late() {
    let mut cluster = cluster();
    until(&mut cluster, Form::Saved);
    for id in 1..=3 {
        cluster.node(id).images_stuck = true;
    }
    commands(&mut cluster, 20);
    cluster.node(3).machine.sick = Sick::Lies;
    commands(&mut cluster, 1);
    cluster.node(3).machine.sick = Sick::Healthy;
    for id in 1..=3 {
        cluster.node(id).images_stuck = false;
    }
    let barrier = cluster.ask(1, Proposal::Barrier).expect("a snapshot").index;
    cluster.until("it is found out", |cluster| {
        cluster.node(3).diverged == [barrier]
    });
}

#[test]
fn a_barrier_that_somebody_asks_for_is_saved() {
    for barriers in Barriers::ALL {
        let mut cluster = with(Some(1), barriers);
        for _ in 0..3 {
            commands(&mut cluster, 1);
            let index = cluster.ask(1, Proposal::Barrier).expect("a snapshot").index;
            assert_eq!(newest(&mut cluster, 1), Some((index, Form::Saved)));
            assert_eq!(cluster.node(1).machine.heap, 0);
        }
    }
}

#[test]
fn a_group_may_have_images_never_or_always() {
    // One byte is saved, so that 3 are much.
    let mut never = with(Some(1), Barriers::Saved);
    let mut always = with(Some(3), Barriers::Image);
    let mut auto = with(Some(3), Barriers::Auto);
    for cluster in [&mut never, &mut always, &mut auto] {
        commands(cluster, 60);
    }
    assert_eq!(
        newest(&mut never, 1).map(|(_, form)| form),
        Some(Form::Saved)
    );
    assert_eq!(
        newest(&mut always, 1).map(|(_, form)| form),
        Some(Form::Image)
    );
    assert_eq!(
        newest(&mut auto, 1).map(|(_, form)| form),
        Some(Form::Saved)
    );
}

#[test]
fn a_new_leader_knows_what_was_saved_and_takes_images_at_once() {
    let mut cluster = cluster();
    until(&mut cluster, Form::Saved);
    until(&mut cluster, Form::Image);
    for id in 1..=3 {
        cluster.crash(id);
    }
    for id in 1..=3 {
        cluster.boot(id);
    }
    cluster.elect(2);
    let before = newest(&mut cluster, 2).expect("a snapshot").0;
    commands(&mut cluster, 12);
    let (index, form) = newest(&mut cluster, 2).expect("a snapshot");
    assert!(index > before);
    assert_eq!(form, Form::Image);
}

// P-44
#[test]
fn a_replica_that_has_no_image_goes_on_and_the_next_barrier_is_saved() {
    for unable in [1, 3] {
        let mut cluster = cluster();
        until(&mut cluster, Form::Saved);
        let before = status(&mut cluster, unable).snapshot;
        cluster.node(unable).machine.unable = true;
        let others = (1..=3).find(|id| *id != unable).expect("another");
        while newest(&mut cluster, others).map(|(_, form)| form) != Some(Form::Image) {
            commands(&mut cluster, 1);
        }
        let now = status(&mut cluster, unable);
        let Health::Degraded { reason, .. } = &now.health else {
            panic!("{:?}", now.health);
        };
        assert!(reason.contains("image"), "{reason}");
        assert_eq!(now.snapshot, before);
        assert!(now.first <= LogIndex(before.0 + 1), "its log is kept");
        // It does what the others do.
        let heap = heap(&mut cluster);
        cluster.tick(2);
        assert_eq!(cluster.node(unable).machine.heap.to_string(), heap);
        // The next one is of the form that all can have.
        while newest(&mut cluster, others).map(|(_, form)| form) != Some(Form::Saved) {
            commands(&mut cluster, 1);
        }
        assert_eq!(newest(&mut cluster, unable), newest(&mut cluster, others));
        assert_eq!(status(&mut cluster, unable).health, Health::Healthy);
        all_are_one(&mut cluster);
        // It begins again from before the image, and meets it once more.
        cluster.crash(unable);
        cluster.restart(unable);
        cluster.tick(30);
        all_are_one(&mut cluster);
    }
}

// P-22
#[test]
fn a_replica_without_an_image_is_found_out_all_the_same() {
    let mut cluster = cluster();
    until(&mut cluster, Form::Saved);
    cluster.node(3).machine.unable = true;
    cluster.node(3).machine.sick = Sick::Lies;
    commands(&mut cluster, 1);
    cluster.node(3).machine.sick = Sick::Healthy;
    while cluster.node(3).diverged.is_empty() {
        commands(&mut cluster, 1);
    }
    let diverged = cluster.node(3).diverged.clone();
    assert_eq!(cluster.node(1).diverged, diverged);
    // It had no image of the barrier, and the others did not call it right for that.
    let files = &cluster.node(1).disk.files;
    let (state, _) = HostState::decode(files[&diverged[0]].1.clone()).expect("the host's section");
    assert_eq!(state.form, Form::Image);
    assert!(!cluster.node(3).disk.files.contains_key(&diverged[0]));
    // It gets what the others save, since it could not go on from an image.
    cluster.until("it is well", |cluster| {
        status(cluster, 3).health == Health::Healthy
    });
    let mine = cluster.node(3).offered.clone();
    assert!(mine.is_empty(), "{mine:?}");
    commands(&mut cluster, 4);
    let heap = heap(&mut cluster);
    cluster.tick(2);
    assert_eq!(cluster.node(3).machine.heap.to_string(), heap);
}

/// There may be nobody who has another snapshot: what a node lacks it may come to have.
#[test]
fn a_replica_that_could_not_go_on_from_an_image_tries_again() {
    let mut cluster = cluster();
    until(&mut cluster, Form::Saved);
    until(&mut cluster, Form::Image);
    let heap = cluster.node(1).machine.heap;
    for id in 1..=3 {
        cluster.crash(id);
        cluster.node(id).machine.unable = true;
    }
    for id in 1..=3 {
        cluster.boot(id);
    }
    cluster.tick(60);
    for id in 1..=3 {
        let health = status(&mut cluster, id).health;
        assert!(matches!(health, Health::Damaged { .. }), "{health:?}");
        cluster.node(id).machine.unable = false;
    }
    cluster.until("all are well", |cluster| {
        (1..=3).all(|id| status(cluster, id).health == Health::Healthy)
    });
    cluster.tick(60);
    for id in 1..=3 {
        assert_eq!(cluster.node(id).machine.heap, heap, "node {id}");
    }
    commands(&mut cluster, 4);
    all_are_one(&mut cluster);
}

// P-44
#[test]
fn a_replica_that_cannot_go_on_from_an_image_gets_what_the_others_save() {
    // It has the image itself, or takes it from the leader.
    for is_away in [false, true] {
        let mut cluster = cluster();
        until(&mut cluster, Form::Saved);
        if is_away {
            cluster.crash(3);
        }
        until(&mut cluster, Form::Image);
        commands(&mut cluster, 1);
        if !is_away {
            cluster.crash(3);
        }
        cluster.node(3).machine.unable = true;
        cluster.boot(3);
        cluster.until("it cannot go on", |cluster| {
            matches!(status(cluster, 3).health, Health::Damaged { .. })
        });
        cluster.until("it has another snapshot, and is well", |cluster| {
            status(cluster, 3).health == Health::Healthy
        });
        assert_eq!(
            newest(&mut cluster, 3).map(|(_, form)| form),
            Some(Form::Saved)
        );
        commands(&mut cluster, 3);
        let heap = heap(&mut cluster);
        cluster.tick(2);
        assert_eq!(cluster.node(3).machine.heap.to_string(), heap);
        assert_eq!(cluster.node(3).halted, None);
        all_are_one(&mut cluster);
    }
}
