//! Nodes that go: by SIGTERM nobody notices, and a process that has ended is noticed at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;
use skep_client::{Client, GroupId};
use skep_tests::clock::{Stopwatch, eventually, pause};
use skep_tests::cluster::{Cluster, Settings};
use skep_tests::proxy::Fault;
use skep_tests::seed::Seed;
use tokio::task::JoinSet;

use crate::load::reply;

/// Elections take seconds: a gap that is shorter had none, or one for which nobody waited.
fn slow_elections() -> Settings {
    Settings {
        tick_ms: 100,
        election_ticks: 40,
        ..Settings::default()
    }
}

/// The shortest timeout with [`slow_elections`].
const TIMEOUT: Duration = Duration::from_secs(4);

/// What one client saw.
#[derive(Default)]
struct Seen {
    commands: usize,
    /// Outcomes that nobody knows, and other failures.
    unknown: Vec<String>,
    failed: Vec<String>,
    longest: Duration,
}

/// Sends one command after another until it is told to stop.
async fn work(client: Client, group: GroupId, in_session: bool, stop: Arc<AtomicBool>) -> Seen {
    let mut seen = Seen::default();
    let session = client.session(group).await.expect("a session");
    while !stop.load(Ordering::SeqCst) {
        let watch = Stopwatch::start();
        if in_session {
            reply(&session, "incr total").await;
        } else if let Err(error) = client.propose_once(group, "incr once".into()).await {
            let code = error.code().name();
            match code {
                "outcome-unknown" => seen.unknown.push(error.to_string()),
                _ => seen.failed.push(format!("{code}: {error}")),
            }
        }
        seen.commands += 1;
        seen.longest = seen.longest.max(watch.elapsed());
    }
    seen
}

/// Runs clients in sessions and without, of so many groups, while something is done to the cluster.
async fn under_load(
    cluster: &mut Cluster,
    groups: &[GroupId],
    act: impl AsyncFnOnce(&mut Cluster),
) -> Vec<Seen> {
    let stop = Arc::new(AtomicBool::new(false));
    let mut workers = JoinSet::new();
    for (number, group) in groups.iter().enumerate() {
        // They know different nodes first.
        let mut ids = cluster.ids();
        ids.rotate_left(number % 3);
        let client = cluster.client_at(&ids).await;
        workers.spawn(work(client, *group, number % 2 == 0, Arc::clone(&stop)));
    }
    pause(Duration::from_millis(500)).await;
    act(cluster).await;
    pause(Duration::from_millis(500)).await;
    stop.store(true, Ordering::SeqCst);
    workers.join_all().await
}

async fn many(cluster: &Cluster, count: usize) -> Vec<GroupId> {
    let request = json!({"name": "g", "count": count}).to_string();
    let created = cluster.http(1, "POST", "/v1/groups", request).await;
    assert_eq!(created.status, 201, "{}", created.text());
    let groups = created.json();
    let id = |group: &serde_json::Value| group["id"].as_str().and_then(|id| id.parse::<u64>().ok());
    let groups = groups.as_array().expect("a list").iter();
    groups
        .map(|group| id(group).expect("an id").into())
        .collect()
}

/// SIGTERM of a leader cost as much as kill -9 (F6).
// P-90
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_told_to_stop_hands_over_first() {
    const GROUPS: usize = 12;
    let mut cluster = Cluster::start(&slow_elections()).await;
    let groups = many(&cluster, GROUPS).await;
    for id in [1, 2, 3] {
        let seen = under_load(&mut cluster, &groups, async |cluster| {
            let (status, took) = cluster.stop(id);
            println!("node {id} stopped in {took:?}");
            assert_eq!(status.code(), Some(0), "node {id}");
        })
        .await;
        for seen in &seen {
            assert!(seen.commands > 0);
            assert!(seen.unknown.is_empty(), "{:?}", seen.unknown);
            assert!(seen.failed.is_empty(), "{:?}", seen.failed);
        }
        let longest = seen
            .iter()
            .map(|seen| seen.longest)
            .max()
            .unwrap_or_default();
        println!("the longest gap when node {id} stops: {longest:?}");
        assert!(
            longest < TIMEOUT,
            "{longest:?}: somebody waited for an election"
        );
        cluster.restart(id).await;
    }
}

// P-91
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_was_killed_is_noticed_before_a_timeout_ends() {
    let mut cluster = Cluster::start(&slow_elections()).await;
    let group = cluster.create_kv(1, "kv", &[1, 2, 3]).await;
    for _ in 0..3 {
        let leader = cluster.leader(group).await;
        let others = cluster.others(&[leader]);
        let client = cluster.client_at(&others).await;
        let session = client.session(group).await.expect("a session");
        cluster.kill(leader);
        let watch = Stopwatch::start();
        reply(&session, "incr total").await;
        let gap = watch.elapsed();
        println!("served {gap:?} after kill -9 of the leader");
        assert!(gap < TIMEOUT, "{gap:?}: the timeout had to end");
        cluster.restart(leader).await;
        cluster.caught_up(group, &[1, 2, 3]).await;
    }
}

/// Connections that are cut and refused on the way say nothing of a process.
// P-91
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_that_flaps_is_no_process_that_ended() {
    let (mut cluster, proxy) = Cluster::prepare_behind_proxy(&slow_elections()).await;
    cluster.start_all().await;
    let group = cluster.create_kv(1, "kv", &[1, 2, 3]).await;
    let leader = cluster.leader(group).await;
    let before = cluster.try_status(leader, group).await.expect("a status");
    for _ in 0..8 {
        proxy.set_all(Fault::Refuse);
        pause(Duration::from_millis(100)).await;
        proxy.heal();
        pause(Duration::from_millis(200)).await;
    }
    assert!(proxy.damage().hindered > 0);
    let after = eventually("the leader serves", async || {
        cluster.try_status(leader, group).await
    })
    .await;
    assert_eq!(
        after.replica.term, before.replica.term,
        "there was an election"
    );
    for id in cluster.ids() {
        assert_eq!(cluster.metric(id, "skep_peers_gone_total").await, 0);
    }
}

/// Links that are reset at random, one at a time, elect nobody.
// P-91
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn links_that_are_reset_at_random_make_no_elections() {
    const RESETS: u64 = 60;
    let (mut cluster, proxy) = Cluster::prepare_behind_proxy(&slow_elections()).await;
    cluster.start_all().await;
    let group = cluster.create_kv(1, "kv", &[1, 2, 3]).await;
    let leader = cluster.leader(group).await;
    let before = cluster.try_status(leader, group).await.expect("a status");
    let client = cluster.client().await;
    let session = client.session(group).await.expect("a session");
    let mut seed = Seed::new(91);
    for _ in 0..RESETS {
        let from = 1 + seed.below(3);
        let to = cluster.others(&[from])[seed.below(2) as usize];
        proxy.set(from, to, Fault::Refuse);
        pause(Duration::from_millis(seed.below(60))).await;
        proxy.heal();
        reply(&session, "incr total").await;
    }
    assert!(
        proxy.damage().hindered >= RESETS / 2,
        "{:?}",
        proxy.damage()
    );
    let after = cluster.try_status(leader, group).await.expect("a status");
    assert_eq!(
        (after.replica.term, after.replica.leader),
        (before.replica.term, before.replica.leader)
    );
    for id in cluster.ids() {
        assert_eq!(cluster.metric(id, "skep_peers_gone_total").await, 0);
    }
}

/// Public case 25: such a change hung for two minutes, and the transfer was said to be done.
// P-11
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_without_a_majority_answers_whoever_steers_it() {
    let mut cluster = Cluster::start(&Settings {
        more: "[limits]\nrequest_timeout_ms = 2000\n".to_owned(),
        ..Settings::default()
    })
    .await;
    let group = cluster.create_kv(1, "two", &[1, 2]).await;
    cluster.kill(2);
    eventually("nobody leads", async || {
        match cluster.try_status(1, group).await?.replica.leader {
            None => Ok(()),
            Some(leader) => Err(format!("node {leader} leads")),
        }
    })
    .await;
    let to = json!({"node": 2}).to_string();
    let third = json!({"node": 3}).to_string();
    for (method, path, body) in [
        ("DELETE", "/v1/groups/two/members/2", ""),
        ("POST", "/v1/groups/two/members", third.as_str()),
        ("POST", "/v1/groups/two/transfer", to.as_str()),
    ] {
        let watch = Stopwatch::start();
        let answer = cluster.http(1, method, path, body).await;
        let took = watch.elapsed();
        let said = (answer.status, answer.code());
        assert_eq!(
            said,
            (503, "no-leader".to_owned()),
            "{path}: {}",
            answer.text()
        );
        assert!(took < Duration::from_secs(20), "{path} took {took:?}");
    }
}

/// F5, F10: a refused change stayed in the catalogue, and a node that was down kept the group from other changes.
// P-93
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_is_refused_leaves_no_trace() {
    let mut cluster = Cluster::start(&Settings {
        nodes: 5,
        more: "[limits]\nrequest_timeout_ms = 2000\n".to_owned(),
        ..Settings::default()
    })
    .await;
    let group = cluster.create_kv(1, "kv", &[1, 2, 3]).await;
    let members = async |cluster: &Cluster| {
        let info = cluster.http(1, "GET", "/v1/groups/kv", "").await;
        info.json()["members"].clone()
    };
    let add = async |cluster: &Cluster, node: u64| {
        let body = json!({"node": node}).to_string();
        cluster.http(1, "POST", "/v1/groups/kv/members", body).await
    };
    // A node that is down is no member, and holds up nobody.
    cluster.kill(4);
    let refused = add(&cluster, 4).await;
    assert_eq!(
        (refused.status, refused.code().as_str()),
        (503, "unreachable"),
        "{}",
        refused.text()
    );
    assert_eq!(members(&cluster).await, json!(["1", "2", "3"]));
    let added = add(&cluster, 5).await;
    assert_eq!(added.status, 200, "{}", added.text());
    let removed = cluster
        .http(1, "DELETE", "/v1/groups/kv/members/5", "")
        .await;
    assert_eq!(removed.status, 200, "{}", removed.text());
    cluster.restart(4).await;
    // What the group itself refuses is taken back.
    cluster.kill_at_once(&[2, 3]);
    eventually("nobody leads", async || {
        match cluster.try_status(1, group).await?.replica.leader {
            None => Ok(()),
            Some(leader) => Err(format!("node {leader} leads")),
        }
    })
    .await;
    let refused = add(&cluster, 4).await;
    assert_eq!(
        (refused.status, refused.code().as_str()),
        (503, "no-leader"),
        "{}",
        refused.text()
    );
    assert_eq!(members(&cluster).await, json!(["1", "2", "3"]));
    cluster.restart(2).await;
    cluster.restart(3).await;
    cluster.leader_among(group, &[1, 2, 3]).await;
    let added = add(&cluster, 4).await;
    assert_eq!(added.status, 200, "{}", added.text());
}
