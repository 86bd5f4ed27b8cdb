//! Groups keep their number of replicas, on nodes that stay; replicas and leaders are where they ought to be.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use skep_client::GroupId;
use skep_core::state::Role;
use skep_tests::clock::{Stopwatch, eventually, pause};
use skep_tests::cluster::{Cluster, Settings};
use skep_tests::{http, process};
use skep_types::admin::GroupInfo;
use tokio::task::JoinSet;

use crate::load::{Load, reply};
use crate::nodes::listed;

/// Pause between two looks at many groups, which cost the nodes something.
const LOOK: Duration = Duration::from_millis(200);

fn settings(nodes: u64) -> Settings {
    Settings {
        nodes,
        tick_ms: 40,
        ..Settings::default()
    }
}

/// A cluster that makes the replicas of a node anew that is silent for so many seconds.
async fn cluster(nodes: u64, replace_after_seconds: u64) -> Cluster {
    let mut cluster = Cluster::prepare(&settings(nodes));
    cluster.set("SKEP_CLUSTER__REPLACE_AFTER_SECONDS", replace_after_seconds);
    cluster.start_all().await;
    cluster
}

/// So many groups, put where the cluster chooses.
async fn many(cluster: &Cluster, count: usize) -> Vec<GroupId> {
    let request = json!({"name": "g", "count": count}).to_string();
    let created = cluster.http(1, "POST", "/v1/groups", request).await;
    assert_eq!(created.status, 201, "{}", created.text());
    let groups: Vec<GroupInfo> = serde_json::from_value(created.json()).expect("groups");
    groups.iter().map(|group| group.id).collect()
}

async fn get(cluster: &Cluster, at: u64, path: &str) -> Result<Value, String> {
    let answer = http::request(&cluster.node(at).http, "GET", path, &[], b"").await;
    let answer = answer.map_err(|error| error.to_string())?;
    match answer.status {
        200 => Ok(answer.json()),
        _ => Err(answer.text()),
    }
}

async fn groups(cluster: &Cluster, at: u64, parameters: &str) -> Result<Vec<GroupInfo>, String> {
    let groups = get(cluster, at, &format!("/v1/groups{parameters}")).await?;
    serde_json::from_value(groups).map_err(|error| error.to_string())
}

/// Waits until every group has this many members, all of them voters, and none on these nodes; who they are.
async fn at_full_strength(
    cluster: &Cluster,
    at: u64,
    replicas: usize,
    without: &[u64],
) -> BTreeMap<GroupId, BTreeSet<u64>> {
    let what = format!("all groups have {replicas} replicas, none on {without:?}");
    eventually(&what, async || {
        pause(LOOK).await;
        let mut seen = BTreeMap::new();
        for group in groups(cluster, at, "").await? {
            let members: BTreeSet<u64> = group.members.iter().map(|node| node.0).collect();
            let is_so = members.len() == replicas && without.iter().all(|id| !members.contains(id));
            if !is_so {
                return Err(format!("{} is on {members:?}", group.name));
            }
            let host = members.first().copied().unwrap_or_default();
            let status = cluster.try_status(host, group.id).await?;
            let known = status.replica.members.iter();
            let voters = known.filter(|member| member.role == Role::Voter);
            let voters: BTreeSet<u64> = voters.map(|member| member.node.0).collect();
            if voters != members {
                return Err(format!("{} has the voters {voters:?}", group.name));
            }
            seen.insert(group.id, members);
        }
        let lacking = groups(cluster, at, "?under_replicated=true").await?;
        match lacking.is_empty() {
            true => Ok(seen),
            false => Err(format!("{} groups are under-replicated", lacking.len())),
        }
    })
    .await
}

async fn catalogue_leader(cluster: &Cluster, among: &[u64]) -> u64 {
    cluster.leader_among(GroupId(0), among).await
}

async fn skep(cluster: &Cluster, at: u64, arguments: &[&str]) -> String {
    let client = cluster.node(at).client.clone();
    let ended = process::run(&[arguments, &["--at", &client]].concat()).await;
    assert_eq!(
        ended.code,
        Some(0),
        "{arguments:?}: {} {}",
        ended.stdout,
        ended.stderr
    );
    ended.stdout
}

/// What clients in sessions see until they are told to stop.
struct Clients {
    stop: Arc<AtomicBool>,
    clients: JoinSet<Vec<Duration>>,
}

impl Clients {
    async fn start(cluster: &Cluster, at: &[u64], groups: &[GroupId]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut clients = JoinSet::new();
        for group in groups {
            let client = cluster.client_at(at).await;
            let session = client.session(*group).await.expect("a session");
            let stop = Arc::clone(&stop);
            clients.spawn(async move {
                let mut took = Vec::new();
                while !stop.load(Ordering::SeqCst) {
                    let watch = Stopwatch::start();
                    reply(&session, "incr total").await;
                    took.push(watch.elapsed());
                    pause(Duration::from_millis(5)).await;
                }
                took
            });
        }
        Self { stop, clients }
    }

    /// The median, the 99th percentile and the longest time of a command. Each was answered.
    async fn end(self, when: &str) {
        self.stop.store(true, Ordering::SeqCst);
        let mut took: Vec<_> = self
            .clients
            .join_all()
            .await
            .into_iter()
            .flatten()
            .collect();
        took.sort_unstable();
        assert!(!took.is_empty(), "{when}: nothing was asked");
        let at = |percent: usize| took[(took.len() - 1) * percent / 100];
        println!(
            "{when}: {} commands, median {:?}, p99 {:?}, longest {:?}",
            took.len(),
            at(50),
            at(99),
            at(100)
        );
    }
}

// P-120
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_replicas_of_a_dead_node_are_made_anew() {
    let mut cluster = cluster(5, 2).await;
    let groups = many(&cluster, 20).await;
    let dead = 5;
    let left = cluster.others(&[dead]);
    let load = Load::start(&[cluster.client_at(&left).await], groups[0], 2).await;
    load.more(20).await;
    cluster.kill(dead);
    let watch = Stopwatch::start();
    eventually("groups are under-replicated", async || {
        let listed = groups_lacking(&cluster, 1).await?;
        match listed.is_empty() {
            false => Ok(()),
            true => Err("none is".to_owned()),
        }
    })
    .await;
    let leader = catalogue_leader(&cluster, &left).await;
    assert!(cluster.metric(leader, "skep_groups_under_replicated").await > 0);
    let placed = at_full_strength(&cluster, 1, 3, &[dead]).await;
    println!(
        "{} groups at full strength after {:?}",
        placed.len(),
        watch.elapsed()
    );
    assert_eq!(
        cluster.metric(leader, "skep_groups_under_replicated").await,
        0
    );
    load.more(20).await;
    load.verify(&cluster).await;
    // It comes back to find that it hosts nothing of them any more.
    cluster.restart(dead).await;
    let again = at_full_strength(&cluster, dead, 3, &[]).await;
    assert_eq!(placed, again, "nothing moves back");
}

async fn groups_lacking(cluster: &Cluster, at: u64) -> Result<Vec<GroupInfo>, String> {
    groups(cluster, at, "?under_replicated=true").await
}

/// Whoever leads the catalogue next goes on with what was begun.
// P-120
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_of_the_catalogue_may_die_in_the_middle() {
    let mut cluster = cluster(5, 2).await;
    many(&cluster, 30).await;
    let dead = 4;
    let left = cluster.others(&[dead]);
    cluster.kill(dead);
    let hosts = async |cluster: &Cluster, at: u64| {
        let groups = groups(cluster, at, "").await?;
        let on = groups
            .iter()
            .filter(|group| group.members.contains(&dead.into()));
        Ok::<_, String>(on.count())
    };
    let at_first = hosts(&cluster, 1).await.expect("a list");
    assert!(at_first > 10, "{at_first}");
    let mut leader = catalogue_leader(&cluster, &left).await;
    let other = left
        .iter()
        .copied()
        .find(|id| *id != leader)
        .expect("others");
    eventually("some are made anew", async || {
        match hosts(&cluster, other).await? {
            now if now < at_first => Ok(()),
            now => Err(format!("{now} of {at_first}")),
        }
    })
    .await;
    for _ in 0..2 {
        cluster.kill(leader);
        cluster.restart(leader).await;
        leader = catalogue_leader(&cluster, &left).await;
    }
    let placed = at_full_strength(&cluster, other, 3, &[dead]).await;
    assert_eq!(placed.len(), 30);
}

// P-120
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_stand_in_different_zones() {
    let mut cluster = Cluster::prepare(&settings(5));
    for (id, zone) in [(1, "a"), (2, "a"), (3, "b"), (4, "b"), (5, "c")] {
        let labels = PathBuf::from(format!("{{zone = \"{zone}\"}}"));
        cluster
            .node_mut(id)
            .environment
            .push(("SKEP_NODE__LABELS", labels));
    }
    cluster.start_all().await;
    let zones = |members: &BTreeSet<u64>| {
        let zone = |id: &u64| id.div_ceil(2);
        members.iter().map(zone).collect::<BTreeSet<u64>>().len()
    };
    eventually("all nodes have said where they stand", async || {
        let nodes = listed(&cluster, 1).await?;
        let said = nodes
            .iter()
            .filter(|node| node["node"]["labels"]["zone"].is_string());
        match said.count() {
            5 => Ok(()),
            said => Err(format!("{said} have")),
        }
    })
    .await;
    many(&cluster, 6).await;
    let placed = groups(&cluster, 1, "").await.expect("a list");
    for group in &placed {
        let members = group.members.iter().map(|node| node.0).collect();
        assert_eq!(zones(&members), 3, "{members:?} at once");
    }
    // One that was put elsewhere on purpose, or when there was nothing else, comes to stand better.
    let crowded = cluster.create_kv(1, "crowded", &[1, 2, 3]).await;
    eventually("it spreads", async || {
        pause(LOOK).await;
        let placed = at_full_strength(&cluster, 1, 3, &[]).await;
        let members = &placed[&crowded];
        match zones(members) {
            3 => Ok(()),
            _ => Err(format!("{members:?}")),
        }
    })
    .await;
}

// P-121
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_drained_and_replaced_and_no_session_sees_it() {
    let mut cluster = cluster(4, 0).await;
    let groups = many(&cluster, 8).await;
    let all = cluster.ids();
    let clients = Clients::start(&cluster, &all, &groups[..4]).await;
    let said = skep(&cluster, 1, &["node", "drain", "2", "--wait"]).await;
    assert!(
        said.contains("draining") && said.contains("it is empty"),
        "{said}"
    );
    at_full_strength(&cluster, 1, 3, &[2]).await;
    clients.end("a node is drained").await;
    // A new one takes the place of a living one, and another that of a dead one.
    cluster.join(&settings(4), 5, &[1]).await;
    let clients = Clients::start(&cluster, &[1, 4], &groups[..4]).await;
    let said = skep(&cluster, 1, &["node", "replace", "3", "5", "--wait"]).await;
    assert!(said.contains("removed"), "{said}");
    let placed = at_full_strength(&cluster, 1, 3, &[2, 3]).await;
    assert!(
        placed.values().all(|members| members.contains(&5)),
        "{placed:?}"
    );
    clients.end("a living node is replaced").await;
    skep(&cluster, 1, &["node", "uncordon", "2"]).await;
    cluster.kill(3);
    cluster.kill(4);
    let said = skep(&cluster, 1, &["node", "replace", "4", "2", "--wait"]).await;
    assert!(said.contains("removed"), "{said}");
    let placed = at_full_strength(&cluster, 1, 3, &[3, 4]).await;
    assert!(
        placed.values().all(|members| members.contains(&2)),
        "{placed:?}"
    );
}

// P-122
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaders_are_spread_again_after_a_rolling_restart() {
    let mut cluster = cluster(3, 0).await;
    many(&cluster, 30).await;
    for id in cluster.ids() {
        let (status, _) = cluster.stop(id);
        assert_eq!(status.code(), Some(0));
        cluster.restart(id).await;
    }
    eventually("each node leads about a third", async || {
        pause(LOOK).await;
        let mut led = BTreeMap::<u64, usize>::new();
        for group in groups(&cluster, 1, "").await? {
            let leader = group
                .leader
                .ok_or_else(|| format!("nobody leads {}", group.name))?;
            *led.entry(leader.0).or_default() += 1;
        }
        match led.len() == 3 && led.values().all(|led| (8..=12).contains(led)) {
            true => Ok(()),
            false => Err(format!("{led:?}")),
        }
    })
    .await;
}

// P-120
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_is_moved_and_their_number_is_changed() {
    let cluster = cluster(4, 0).await;
    let group = cluster.create_kv(1, "kv", &[1, 2, 3]).await;
    let load = Load::start(&[cluster.client().await], group, 2).await;
    let at = async |replicas: usize, without: &[u64]| {
        let placed = at_full_strength(&cluster, 1, replicas, without).await;
        placed[&group]
            .iter()
            .map(u64::to_string)
            .collect::<Vec<_>>()
            .join(",")
    };
    skep(
        &cluster,
        1,
        &["group", "move", "kv", "--from", "3", "--to", "4"],
    )
    .await;
    assert_eq!(at(3, &[3]).await, "1,2,4");
    skep(&cluster, 1, &["group", "set", "kv", "--replicas", "4"]).await;
    assert_eq!(at(4, &[]).await, "1,2,3,4");
    skep(&cluster, 1, &["group", "set", "kv", "--replicas", "1"]).await;
    at(1, &[]).await;
    load.more(20).await;
    load.verify(&cluster).await;
    let refused = cluster
        .http(1, "POST", "/v1/groups/kv/replicas", r#"{"replicas":9}"#)
        .await;
    assert_eq!(
        (refused.status, refused.code().as_str()),
        (400, "invalid-request")
    );
    let listed = skep(&cluster, 1, &["group", "list", "--under-replicated"]).await;
    assert!(!listed.contains("kv"), "{listed}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "minutes of two cores: SKEP_PLACED_GROUPS=500 cargo test --release -p skep-tests --test it a_dead_node_with_many_groups -- --ignored --nocapture"]
async fn a_dead_node_with_many_groups() {
    let count = std::env::var("SKEP_PLACED_GROUPS").ok();
    let count = count.map_or(500, |count| count.parse().expect("a number of groups"));
    let mut cluster = cluster(5, 2).await;
    let groups = many(&cluster, count).await;
    let dead = 5;
    let left = cluster.others(&[dead]);
    let clients = Clients::start(&cluster, &left, &groups[..8]).await;
    pause(Duration::from_secs(10)).await;
    clients.end("before").await;
    let clients = Clients::start(&cluster, &left, &groups[..8]).await;
    let watch = Stopwatch::start();
    cluster.kill(dead);
    let lacking = async |cluster: &Cluster| groups_lacking(cluster, 1).await.map(|of| of.len());
    eventually(
        "the first are known to lack a replica",
        async || match lacking(&cluster).await? {
            0 => Err("none".to_owned()),
            some => {
                println!("{some} groups lack a replica after {:?}", watch.elapsed());
                Ok(())
            }
        },
    )
    .await;
    while lacking(&cluster).await != Ok(0) {
        pause(Duration::from_secs(1)).await;
        assert!(
            watch.elapsed() < Duration::from_secs(900),
            "{:?}",
            lacking(&cluster).await
        );
    }
    println!(
        "{count} groups at full strength after {:?}",
        watch.elapsed()
    );
    clients.end("while replicas were made anew").await;
    let placed = at_full_strength(&cluster, 1, 3, &[dead]).await;
    let mut hosted = BTreeMap::<u64, usize>::new();
    placed
        .values()
        .flatten()
        .for_each(|node| *hosted.entry(*node).or_default() += 1);
    println!("replicas: {hosted:?}");
}
