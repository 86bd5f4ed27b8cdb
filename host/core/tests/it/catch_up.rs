//! Members that are behind: from the files, by one snapshot, or left behind.

use skep_core::GroupConfig;
use skep_core::id::{NodeId, ReplicaId};
use skep_core::input::{Input, LogRead};
use skep_core::message::Priority;
use skep_core::status::{CatchingUp, HeldBack};

use crate::cluster::{Cluster, anonymous, is_append};

/// Nothing that was processed stays in memory, and a snapshot is taken every few entries.
fn frugal(config: &mut GroupConfig) {
    config.snapshot_entries = 8;
    config.max_message_bytes = 300;
    config.limits.log_memory_bytes = 0;
    config.limits.log_kept_bytes = 0;
}

fn fill(cluster: &mut Cluster, texts: std::ops::Range<u64>) {
    for n in texts {
        let text = n.to_string();
        cluster.ask(1, anonymous(&text)).expect("committed");
    }
}

fn has_everything(cluster: &mut Cluster, count: u64) {
    cluster.until("node 3 has everything", |cluster| {
        cluster.commands(3).len() as u64 == count
    });
    let expected: Vec<_> = (0..count).map(|n| n.to_string()).collect();
    assert_eq!(cluster.commands(3), expected);
}

/// A cluster whose node 3 was cut off for a moment and lacks sixty entries, over many snapshots of the others.
fn with_one_behind(config: fn(&mut GroupConfig)) -> Cluster {
    let mut cluster = Cluster::with(3, config);
    cluster.elect(1);
    cluster.tick(2);
    cluster.cut_off(3);
    fill(&mut cluster, 0..60);
    let snapshots = cluster.node(1).disk.files.len();
    assert!(snapshots > 5, "{snapshots}");
    cluster
}

#[test]
fn who_was_away_for_a_moment_is_served_from_the_files_without_a_snapshot() {
    let mut cluster = with_one_behind(frugal);
    cluster.cut.clear();
    has_everything(&mut cluster, 60);
    let leader = cluster.node(1);
    assert_eq!(leader.offered, [], "no snapshot was needed");
    assert!(!leader.reads.is_empty());
    // When nobody needs it any more, the log goes.
    cluster.tick(3);
    let status = cluster.status(1).expect("runs");
    assert!(status.snapshot.0 - status.first.0 <= 8, "{status:?}");
    fill(&mut cluster, 60..70);
    has_everything(&mut cluster, 70);
}

#[test]
fn what_cannot_be_read_now_is_read_later() {
    let mut cluster = with_one_behind(frugal);
    cluster.node(1).read_fails = Some(|| LogRead::Failed);
    cluster.cut.clear();
    cluster.tick(6);
    assert!(!cluster.node(1).reads.is_empty());
    assert!(cluster.commands(3).is_empty());
    cluster.node(1).read_fails = None;
    has_everything(&mut cluster, 60);
    assert_eq!(cluster.node(1).offered, []);
}

#[test]
fn what_cannot_be_read_any_more_is_in_a_snapshot() {
    for wrong in [
        || LogRead::Gone,
        || LogRead::Entries(Vec::new()),
        || LogRead::Entries(vec![raft::eraftpb::Entry::default()]),
    ] as [fn() -> LogRead; 3]
    {
        let mut cluster = with_one_behind(frugal);
        cluster.node(1).read_fails = Some(wrong);
        cluster.cut.clear();
        has_everything(&mut cluster, 60);
        assert!(!cluster.node(1).offered.is_empty());
        fill(&mut cluster, 60..90);
        has_everything(&mut cluster, 90);
    }
}

#[test]
fn beyond_the_budget_a_snapshot_is_sent() {
    let mut cluster = with_one_behind(|config| {
        frugal(config);
        config.limits.log_retained_bytes = 2000;
    });
    let status = cluster.status(1).expect("runs");
    assert!(status.first.0 > 10, "{status:?}");
    cluster.cut.clear();
    has_everything(&mut cluster, 60);
    assert!(!cluster.node(1).offered.is_empty());
}

#[test]
fn what_is_kept_goes_when_the_files_of_the_log_hold_too_much() {
    let mut cluster = with_one_behind(frugal);
    let kept = |cluster: &mut Cluster| {
        let status = cluster.status(1).expect("runs");
        status.snapshot.0.saturating_sub(status.first.0)
    };
    assert!(kept(&mut cluster) > 40);
    let before = cluster.status(1).expect("runs").snapshot;
    cluster.input(1, Input::LogCrowded);
    cluster.run();
    assert!(kept(&mut cluster) <= 8);
    assert!(cluster.status(1).expect("runs").snapshot > before);
    cluster.tick(3);
    assert!(kept(&mut cluster) <= 8, "and stays away");
    cluster.cut.clear();
    has_everything(&mut cluster, 60);
    assert!(!cluster.node(1).offered.is_empty());
}

/// One that is silent is not waited for, unless the log is cheaper for it than the snapshot.
#[test]
fn nothing_is_kept_for_who_is_silent() {
    let mut cluster = Cluster::with(3, frugal);
    cluster.elect(1);
    cluster.tick(2);
    cluster.cut_off(3);
    fill(&mut cluster, 0..20);
    let last = cluster.status(3).expect("runs").last;
    let first = |cluster: &mut Cluster| cluster.status(1).expect("runs").first;
    assert!(first(&mut cluster).0 <= last.0 + 1);
    cluster.tick(12);
    assert!(first(&mut cluster).0 > last.0 + 1);
}

/// Steps of one message at a time: each of `entries` commands is followed by a few of them, so that a snapshot is late when
/// it arrives.
fn busy(cluster: &mut Cluster, numbers: std::ops::Range<u64>, steps: usize) {
    for n in numbers {
        cluster.command(1, &n.to_string());
        for _ in 0..steps {
            for id in 1..=3 {
                cluster.turn(id, usize::MAX, usize::MAX);
            }
            let Some((from, to, message, file)) = cluster.network.pop_front() else {
                break;
            };
            cluster.deliver(from, to, message, file);
        }
    }
}

/// The snapshots that a member is sent which was away, where each arrives when others have been taken.
fn snapshots_until_it_is_there(config: fn(&mut GroupConfig)) -> usize {
    let mut cluster = Cluster::with(3, config);
    cluster.elect(1);
    cluster.tick(2);
    cluster.cut_off(3);
    fill(&mut cluster, 0..30);
    cluster.tick(15);
    fill(&mut cluster, 30..60);
    cluster.cut.clear();
    cluster.late_snapshots = true;
    for round in 0..40 {
        busy(&mut cluster, 60 + round * 5..65 + round * 5, 12);
        cluster.tick_without_rest();
        if round % 8 == 7 {
            cluster.deliver_late();
        }
    }
    cluster.late_snapshots = false;
    cluster.deliver_late();
    has_everything(&mut cluster, 260);
    cluster.node(1).offered.len()
}

#[test]
fn who_catches_up_while_much_is_written_takes_one_snapshot() {
    assert_eq!(snapshots_until_it_is_there(frugal), 1);
    // What it was like without a log that is kept: none of them is new enough when it arrives.
    let many = snapshots_until_it_is_there(|config| {
        frugal(config);
        config.limits.log_retained_bytes = 0;
    });
    assert!(many > 3, "{many}");
}

#[test]
fn barriers_are_apart_by_what_they_cost() {
    let mut cluster = Cluster::with(1, |config| config.snapshot_entries = 8);
    cluster.elect(1);
    let files = |cluster: &mut Cluster| cluster.node(1).disk.files.len();
    fill(&mut cluster, 0..20);
    let before = files(&mut cluster);
    assert!(before >= 2, "{before}");
    // One takes ten ticks; the next comes when forty have passed, or the log is twice as long.
    cluster.node(1).machine_stuck = true;
    let barrier = cluster.propose(1, skep_core::proposal::Proposal::Barrier);
    cluster.tick(10);
    assert_eq!(cluster.reply(1, barrier), None);
    cluster.node(1).machine_stuck = false;
    cluster.run();
    let before = files(&mut cluster);
    fill(&mut cluster, 20..30);
    assert_eq!(files(&mut cluster), before, "it rests");
    cluster.tick(30);
    fill(&mut cluster, 30..31);
    assert_eq!(files(&mut cluster), before + 1, "it has rested");
    cluster.node(1).machine_stuck = true;
    cluster.propose(1, skep_core::proposal::Proposal::Barrier);
    cluster.tick(10);
    cluster.node(1).machine_stuck = false;
    cluster.run();
    let before = files(&mut cluster);
    fill(&mut cluster, 31..50);
    assert_eq!(
        files(&mut cluster),
        before + 1,
        "twice the log does not wait"
    );
}

/// A member that never comes nearer: commands are held back, then it is left behind, and tried again when less is written.
#[test]
fn who_does_not_come_nearer_is_left_behind_and_tried_again() {
    let mut cluster = Cluster::with(3, |config| {
        frugal(config);
        config.limits.catch_up_ticks = 50;
        config.limits.request_ticks = 1000;
    });
    cluster.elect(1);
    cluster.tick(2);
    let long = "x".repeat(100_000);
    // Node 3 answers, but what it is sent gets lost.
    cluster.drop = |message| message.to == ReplicaId(3) && is_append(message);
    let mut asked = Vec::new();
    let mut lowest = 100;
    for _ in 0..200 {
        for _ in 0..10 {
            asked.push(cluster.command(1, &long));
        }
        cluster.tick(1);
        let status = cluster.status(1).expect("leads");
        lowest = lowest.min(status.catch_up.share_percent);
        let is_held_back = status.held_back.contains(&HeldBack::CatchUp);
        assert_eq!(is_held_back, status.catch_up.share_percent < 100);
        if status.catch_up.left_behind > 0 {
            break;
        }
    }
    let status = cluster.status(1).expect("leads");
    assert_eq!(status.catch_up.left_behind, 1, "{status:?}");
    assert!(
        lowest <= 30 && status.catch_up.waits > 0,
        "{lowest}, {status:?}"
    );
    assert_eq!(status.members[2].catching_up, Some(CatchingUp::LeftBehind));
    // All that waited is taken, nothing is kept for it, and no snapshot is sent.
    cluster.tick(30);
    let answered =
        |cluster: &mut Cluster, waiter: &u64| matches!(cluster.reply(1, *waiter), Some(Ok(_)));
    assert!(asked.iter().all(|waiter| answered(&mut cluster, waiter)));
    let status = cluster.status(1).expect("leads");
    assert_eq!(status.catch_up.share_percent, 100);
    cluster.drop = |_| false;
    cluster.until("node 3 has everything", |cluster| {
        cluster.commands(3).len() == asked.len()
    });
    cluster.tick(2);
    let status = cluster.status(1).expect("leads");
    assert_eq!(
        (status.members[2].catching_up, status.catch_up.left_behind),
        (None, 1)
    );
}

/// A leader that has just been elected does not know what is usual, and holds nobody back below the least share.
#[test]
fn a_new_leader_holds_nobody_back_before_it_knows_what_is_usual() {
    let mut cluster = Cluster::with(3, |config| {
        frugal(config);
        config.limits.catch_up_ticks = 150;
        config.limits.request_ticks = 1000;
    });
    cluster.elect(1);
    cluster.tick(2);
    let long = "x".repeat(100_000);
    // Node 3 answers, and takes snapshots; whatever else it is sent gets lost.
    cluster.drop = |message| message.to == ReplicaId(3) && is_append(message);
    for _ in 0..40 {
        cluster.command(1, &long);
        cluster.tick(1);
    }
    cluster.input(1, Input::Transfer { to: NodeId(2) });
    cluster.until("it leads", |cluster| cluster.leader() == Some(2));
    let (mut asked, mut before) = (0, 0);
    for _ in 0..100 {
        for _ in 0..10 {
            cluster.command(2, &long);
        }
        cluster.tick(1);
        let share = cluster.status(2).expect("leads").catch_up.share_percent;
        let there = cluster.node(2).machine.commands.len();
        if share < 100 {
            asked += 10;
            let taken = there - before;
            assert!(
                asked < 50 || taken * 100 >= asked * 20,
                "{taken} of {asked}"
            );
        } else {
            (asked, before) = (0, there);
        }
    }
    assert!(asked > 0, "node 3 is never waited for");
}

/// An offer that is refused is no snapshot that did not do, and brings nobody nearer.
#[test]
fn refused_offers_leave_nobody_behind_before_its_time() {
    let mut cluster = with_one_behind(|config| {
        frugal(config);
        config.limits.log_retained_bytes = 0;
        config.limits.catch_up_ticks = 100;
    });
    cluster.drop = |message| message.body.priority() == Priority::Low;
    cluster.cut.clear();
    let left = |cluster: &mut Cluster| {
        let status = cluster.status(1).expect("leads");
        status.catch_up.left_behind
    };
    cluster.late_snapshots = true;
    for _ in 0..10 {
        cluster.tick(8);
        cluster.deliver_late();
    }
    let offered = cluster.node(1).offered.len();
    assert!(offered > 6, "{offered}");
    assert_eq!(left(&mut cluster), 0);
    for _ in 0..6 {
        cluster.tick(8);
        cluster.deliver_late();
    }
    assert_eq!(left(&mut cluster), 1);
    cluster.drop = |_| false;
    cluster.late_snapshots = false;
    cluster.deliver_late();
    has_everything(&mut cluster, 60);
}

/// A follower whose machine is slow stores only so much more of what all others have.
#[test]
fn who_has_much_to_apply_takes_no_more_history() {
    let mut cluster = with_one_behind(|config| {
        frugal(config);
        config.limits.unapplied_bytes = 2000;
    });
    cluster.node(3).machine_stuck = true;
    cluster.cut.clear();
    cluster.tick(4);
    let status = cluster.status(3).expect("runs");
    assert!(status.last.0 < 50, "{status:?}");
    cluster.node(3).machine_stuck = false;
    has_everything(&mut cluster, 60);
}

/// Crashes of both ends between a read and what it is for.
#[test]
fn crashes_while_somebody_catches_up_lose_nothing() {
    for step in 0..40 {
        let mut cluster = with_one_behind(frugal);
        cluster.cut.clear();
        for _ in 0..step {
            for id in 1..=3 {
                cluster.turn(id, 1, 1);
            }
            if let Some((from, to, message, file)) = cluster.network.pop_front() {
                cluster.deliver(from, to, message, file);
            } else {
                cluster.tick(1);
            }
        }
        let victim = if step % 2 == 0 { 1 } else { 3 };
        cluster.crash(victim);
        cluster.tick(3);
        cluster.restart(victim);
        has_everything(&mut cluster, 60);
        assert_eq!(cluster.node(1).halted, None);
    }
}
