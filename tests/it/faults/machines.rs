//! Disks that are full or fail, and clocks that jump.

use skep_client::{Client, GroupId};
use skep_tests::cluster::{Cluster, Settings};
use skep_tests::guests;
use skep_tests::seed::Seed;
use skep_tests::shim::Shim;
use skep_tests::small_disk::{self, SmallDisk};

use super::scenario::{Scenario, rounds, step};
use crate::load::{propose, text};

/// No file may grow beyond this: the log has some of its zeros written ahead already, and soon needs more.
const FILE_BYTES: u64 = 1 << 20;

/// Size of the small disk: room for the components and for the log of one scenario.
const DISK_BYTES: u64 = 512 << 20;

/// A node whose files cannot grow says so, ends with exit code 1, and is well when there is room again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_cannot_grow() {
    let scenario = Scenario::start("files cannot grow", &Settings::default()).await;
    // The log writes a mebibyte of zeros ahead, so this takes effect when that is used up: at once after a restart.
    let breaks = |cluster: &mut Cluster, id| cluster.limit_files(id, Some(FILE_BYTES));
    // The limit is the process's, and ends with it.
    let mends = |_: &mut Cluster, _| ();
    one_after_the_other(scenario, "File too large", breaks, mends).await;
}

/// The data directory of each node is a file system of its own, which somebody else fills.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_disk_is_full() {
    let probe = tempfile::tempdir().expect("a directory");
    if let Err(error) = SmallDisk::mount(probe.path(), DISK_BYTES) {
        println!(
            "SKIPPED the disk is full: a small file system cannot be mounted here ({error}); `files_cannot_grow` covers \
             a log that cannot be written"
        );
        return;
    }
    let scenario = Scenario::start_with("the disk is full", &Settings::default(), |cluster| {
        for id in cluster.ids() {
            let disk = SmallDisk::mount(&cluster.node(id).data(), DISK_BYTES);
            let disk = disk.expect("one more small disk");
            cluster.keep(disk);
        }
    })
    .await;
    let breaks = |cluster: &mut Cluster, id| small_disk::fill(&cluster.node(id).data());
    let mends = |cluster: &mut Cluster, id| small_disk::clear(&cluster.node(id).data());
    one_after_the_other(scenario, "No space left on device", breaks, mends).await;
}

/// After a failed sync a node acknowledges nothing any more, though later syncs would succeed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sync_fails() {
    let Some((scenario, shims)) = shimmed("a sync fails").await else {
        return;
    };
    let shim = |id: u64| &shims[id as usize - 1];
    let breaks = |_: &mut Cluster, id| shim(id).fail_syncs(libc::EIO);
    let mends = |_: &mut Cluster, id| shim(id).heal();
    one_after_the_other(scenario, "cannot sync", breaks, mends).await;
}

/// Wall clocks jump by hours, to and fro, each node's on its own. Nobody's reads or elections may notice, and the time
/// that machines are told must never go back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clocks_jump() {
    const HOUR: i64 = 3_600_000;
    const HOURS: u64 = 48;
    let Some((scenario, shims)) = shimmed("clocks jump").await else {
        return;
    };
    let members = scenario.cluster.ids();
    let cluster = &scenario.cluster;
    let clock = cluster
        .create_from(1, "clock", guests::CLOCKWORK, &members)
        .await;
    let client = cluster.client().await;
    let term = cluster
        .try_status(1, scenario.group)
        .await
        .map(|s| s.replica.term);
    let mut seed = Seed::new(7);
    let mut times = vec![told(&client, clock).await];
    for round in 0..rounds() * 2 {
        for shim in &shims {
            let hours = 1 + seed.below(HOURS) as i64;
            shim.shift_clock(if round % 2 == 0 { hours } else { -hours } * HOUR);
        }
        scenario.load.more(step()).await;
        times.push(told(&client, clock).await);
    }
    assert!(times.is_sorted(), "time went back: {times:?}");
    let hours = (times[1] - times[0]) / 1_000_000 / HOUR;
    assert!(hours >= 1, "no clock jumped: {times:?}");
    println!(
        "machines were told {hours} hours at the first jump of all clocks, and never an earlier time"
    );
    let now = cluster
        .try_status(1, scenario.group)
        .await
        .map(|s| s.replica.term);
    println!("terms before and after all jumps: {term:?}, {now:?}");
    for shim in &shims {
        shim.heal();
    }
    scenario.finish(&members).await;
}

/// The time that a machine is told, in nanoseconds since the Unix epoch.
async fn told(client: &Client, group: GroupId) -> i64 {
    let observed = text(propose(client, group, "tick").await);
    let now = observed
        .strip_prefix("now=")
        .and_then(|rest| rest.split(' ').next());
    now.and_then(|now| now.parse().ok())
        .unwrap_or_else(|| panic!("no time in `{observed}`"))
}

/// Now the leader's machine fails, now a follower's. Each ends and says why, and is well again when its machine is.
async fn one_after_the_other(
    mut scenario: Scenario,
    why: &str,
    breaks: impl Fn(&mut Cluster, u64),
    mends: impl Fn(&mut Cluster, u64),
) {
    for round in 0..rounds() {
        let leader = scenario.leader().await;
        let id = match round % 2 {
            0 => leader,
            _ => scenario.cluster.others(&[leader])[0],
        };
        breaks(&mut scenario.cluster, id);
        fails_under_load(&mut scenario, id, why).await;
        mends(&mut scenario.cluster, id);
        scenario.load.more(step()).await;
        scenario.cluster.restart(id).await;
        scenario.load.more(step()).await;
    }
    let ids = scenario.cluster.ids();
    scenario.finish(&ids).await;
}

/// The node ends by itself while its log grows, and says why.
async fn fails_under_load(scenario: &mut Scenario, id: u64, why: &str) {
    let client = scenario.cluster.client().await;
    let Scenario { cluster, load, .. } = scenario;
    let (code, log) = tokio::select! {
        ended = cluster.ends(id) => ended,
        () = load.fill(&client) => unreachable!("it goes on until it is dropped"),
    };
    // Its clients are served by the others, also those who asked between the failure and the end.
    let left_alone = load
        .reasons()
        .into_iter()
        .find(|(_, why)| why.contains("has failed"));
    assert_eq!(
        left_alone, None,
        "node {id} told clients to help themselves"
    );
    let last = log.lines().last().unwrap_or_default();
    assert!(
        code == Some(1) && last.contains(why) && last.ends_with("[node-failed]"),
        "node {id} ended with code {code:?} and the line `{last}`, expected `{why}`"
    );
}

/// A scenario with a shim beneath each node.
async fn shimmed(name: &'static str) -> Option<(Scenario, Vec<Shim>)> {
    let mut shims = Vec::new();
    let scenario = Scenario::start_with(name, &Settings::default(), |cluster| {
        for id in cluster.ids() {
            shims.extend(Shim::install(cluster, id));
        }
    })
    .await;
    if shims.is_empty() {
        println!(
            "SKIPPED {name}: there is no library for this system that could be loaded beneath a node"
        );
        return None;
    }
    Some((scenario, shims))
}
