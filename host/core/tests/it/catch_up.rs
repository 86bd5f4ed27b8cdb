//! Members that are behind: from the files, by one snapshot, or left behind.

use skep_core::GroupConfig;
use skep_core::input::LogRead;

use crate::cluster::{Cluster, anonymous};

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
