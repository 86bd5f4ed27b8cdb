//! Accidents while a cluster is founded, and afterwards to those whom it was founded with: never two clusters, and each who
//! waits says for whom and why. Two clusters under one name, with one log of two contents, came of four of them before.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use skep_log::{DiskVfs, Identity, LogOptions, Store, Vfs};
use skep_tests::clock::{Stopwatch, eventually, pause};
use skep_tests::cluster::{Cluster, Settings};
use skep_tests::forger::{Claim, Forger, past};
use skep_tests::{http, process};
use skep_types::founding::{ClusterIdentity, Founding};
use skep_wire::proto::{Lane, RefusalReason};

/// Nodes with directories and addresses; each is told by [`lists`] whom it founds with.
fn prepared(nodes: u64) -> Cluster {
    Cluster::prepare(&Settings {
        nodes,
        ..Settings::default()
    })
}

/// From its next start on, the file of a node names these.
fn lists(cluster: &Cluster, id: u64, named: &[u64]) {
    let config = cluster.node(id).config();
    let text = std::fs::read_to_string(&config).expect("a configuration");
    let (mut text, _) = text.split_once("[[cluster.nodes]]").expect("a list");
    text = text.trim_end();
    let mut text = format!("{text}\n");
    for other in named {
        let node = cluster.node(*other);
        text.push_str(&format!(
            "\n[[cluster.nodes]]\nid = {other}\npeer = \"{}\"\nclient = \"{}\"\nhttp = \"{}\"\n",
            node.peer, node.client, node.http
        ));
    }
    std::fs::write(&config, text).expect("a configuration");
}

fn all_list(cluster: &Cluster, ids: &[u64], named: &[u64]) {
    ids.iter().for_each(|id| lists(cluster, *id, named));
}

/// The cluster that a node's directory belongs to.
fn founding(cluster: &Cluster, id: u64) -> Option<Founding> {
    Identity::read(&DiskVfs, &cluster.node(id).data())
        .ok()?
        .founding
}

fn identity(cluster: &Cluster, id: u64) -> Option<ClusterIdentity> {
    Some(founding(cluster, id)?.identity())
}

/// Waits until nodes belong to a cluster, which is one.
async fn founded(cluster: &Cluster, ids: &[u64]) -> ClusterIdentity {
    eventually("the cluster is founded", async || {
        let found: Vec<_> = ids.iter().map(|id| identity(cluster, *id)).collect();
        let different: BTreeSet<_> = found.iter().flatten().copied().collect();
        assert!(different.len() < 2, "two clusters: {different:?}");
        match found.iter().all(Option::is_some) {
            true => Ok(different.first().copied().expect("one")),
            false => Err(format!("{found:?}")),
        }
    })
    .await
}

/// Waits until a node says at its port, in its status and in its log that it waits for a node, and why; it belongs to no
/// cluster.
async fn waits(cluster: &Cluster, id: u64, on: u64, why: &str) {
    let what = format!("node {id} says that it waits for node {on}: {why}");
    let says = |text: &str| {
        let on = format!("node {on}");
        text.split(&on).skip(1).any(|behind| behind.contains(why))
    };
    eventually(&what, async || {
        let node = cluster.node(id);
        let ready = http::request(&node.http, "GET", "/readyz", &[], b"").await;
        let ready = ready.map_err(|error| error.to_string())?;
        let status = cluster.http(id, "GET", "/v1/status", "").await.json();
        let status = status["waiting_for"].to_string();
        match ready.status == 503
            && [&ready.text(), &status, &node.log()]
                .iter()
                .all(|text| says(text))
        {
            true => Ok(()),
            false => Err(format!("{} {status}", ready.text())),
        }
    })
    .await;
    assert_eq!(
        identity(cluster, id),
        None,
        "node {id} belongs to a cluster"
    );
}

async fn put(cluster: &Cluster, at: u64, command: &str) -> String {
    let answer = cluster
        .http(at, "POST", "/v1/groups/kv/propose", command)
        .await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.text()
}

async fn get(cluster: &Cluster, at: u64, key: &str) -> String {
    let query = format!("get {key}");
    let answer = cluster.http(at, "POST", "/v1/groups/kv/query", query).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.text()
}

/// A cluster of one node that has something to lose.
async fn alone(cluster: &mut Cluster, id: u64) -> ClusterIdentity {
    lists(cluster, id, &[id]);
    cluster.restart(id).await;
    cluster.create_kv(id, "kv", &[id]).await;
    put(cluster, id, "put k before").await;
    identity(cluster, id).expect("it is founded")
}

// P-74
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_found_one_cluster_and_quickly() {
    let mut cluster = prepared(3);
    cluster.spawn(1);
    cluster.spawn(2);
    waits(&cluster, 1, 3, "connect").await;
    waits(&cluster, 2, 3, "connect").await;
    let watch = Stopwatch::start();
    cluster.spawn(3);
    let identity = founded(&cluster, &[1, 2, 3]).await;
    println!(
        "founded {:?} after the last one was started",
        watch.elapsed()
    );
    for id in cluster.ids() {
        cluster.ready(id).await;
        let status = cluster.http(id, "GET", "/v1/status", "").await.json();
        assert_eq!(status["identity"], identity.to_string());
        assert_eq!(founding(&cluster, id).expect("founded").founders.len(), 3);
    }
}

/// Accident 1: the lists differ. All say so, and once they are the same the cluster is founded.
// P-74
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_that_differ_found_nothing() {
    let mut cluster = prepared(4);
    all_list(&cluster, &[1, 2], &[1, 2, 3]);
    lists(&cluster, 3, &[1, 2, 3, 4]);
    (1..=3).for_each(|id| cluster.spawn(id));
    waits(&cluster, 1, 3, "the same [[cluster.nodes]]").await;
    waits(&cluster, 2, 3, "the same [[cluster.nodes]]").await;
    waits(&cluster, 3, 1, "the same [[cluster.nodes]]").await;
    cluster.stop(3);
    lists(&cluster, 3, &[1, 2, 3]);
    cluster.spawn(3);
    founded(&cluster, &[1, 2, 3]).await;
}

/// Accident 2 (public case 1): the operator of one node lists two more. The new ones are a majority of the list.
// P-74
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_majority_is_no_cluster_beside_a_node_that_has_one() {
    let mut cluster = prepared(3);
    let first = alone(&mut cluster, 1).await;
    cluster.stop(1);
    all_list(&cluster, &[1, 2, 3], &[1, 2, 3]);
    (1..=3).for_each(|id| cluster.spawn(id));
    cluster.ready(1).await;
    for id in [2, 3] {
        waits(&cluster, id, 1, "belongs to a cluster already").await;
        // It cannot create or answer anything in the meantime, and says why.
        let refused = cluster
            .http(id, "POST", "/v1/groups", r#"{"name": "kv"}"#)
            .await;
        assert_eq!(
            (refused.status, refused.code().as_str()),
            (503, "unfounded")
        );
        assert!(refused.text().contains("node 1"), "{}", refused.text());
    }
    assert_eq!(get(&cluster, 1, "k").await, "before");
    put(&cluster, 1, "put k after").await;
    assert_eq!(identity(&cluster, 1), Some(first));
    let said = cluster.node(1).log();
    assert!(
        said.contains("would found a cluster with this node"),
        "{said}"
    );
}

/// Accident 3: nodes of two clusters of one name list each other. They never exchange a message of a group.
// P-75
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_clusters_of_one_name_have_nothing_to_do_with_each_other() {
    let mut cluster = prepared(2);
    let (one, two) = (alone(&mut cluster, 1).await, alone(&mut cluster, 2).await);
    assert_ne!(one, two);
    put(&cluster, 1, "put k one").await;
    put(&cluster, 2, "put k two").await;
    for id in [1, 2] {
        cluster.stop(id);
        lists(&cluster, id, &[1, 2]);
    }
    cluster.start_all().await;
    // In the name of the other one, with its own identity: what was said over the port for nodes is refused there.
    for (from, to) in [(1, 2), (2, 1)] {
        let status = cluster.http(from, "GET", "/v1/status", "").await.json();
        let own = identity(&cluster, from).expect("founded");
        assert_eq!(status["identity"], own.to_string());
        let store = Identity::read(&DiskVfs, &cluster.node(from).data())
            .expect("an identity")
            .store;
        let claim = Claim {
            cluster: "test".to_owned(),
            node: from,
            store: store.0,
            identity: own,
            past: past(&cluster.node(from).data()),
        };
        let refused = Forger::introduce(&cluster.node(to).peer, &claim, to, Lane::High).await;
        let refusal = refused.expect_err("another cluster");
        assert_eq!(refusal.reason(), RefusalReason::Cluster);
        assert!(refusal.text.contains("founded apart"), "{}", refusal.text);
    }
    assert_eq!(get(&cluster, 1, "k").await, "one");
    assert_eq!(get(&cluster, 2, "k").await, "two");
}

/// Accident 5: a directory was copied to another node.
// P-74
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copied_directory_makes_no_second_node() {
    let mut cluster = prepared(3);
    cluster.spawn(1);
    waits(&cluster, 1, 2, "connect").await;
    cluster.stop(1);
    let (from, to) = (cluster.node(1).data(), cluster.node(2).data());
    std::fs::create_dir(&to).expect("a directory");
    std::fs::copy(from.join("identity"), to.join("identity")).expect("a copy");
    let (code, log) = cluster.refuses_to_start(2).await;
    assert_eq!(code, Some(1));
    assert!(log.contains("store-wrong-node"), "{log}");
    std::fs::remove_dir_all(cluster.node(2).data()).expect("the copy");
    cluster.start_all().await;
    founded(&cluster, &[1, 2, 3]).await;
}

/// Accident 6: a founder loses its directory, before the founding and after it.
// P-74
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_founder_that_is_wiped_before_is_another_founder_and_afterwards_is_told() {
    let mut cluster = prepared(3);
    cluster.spawn(1);
    cluster.spawn(3);
    waits(&cluster, 1, 2, "connect").await;
    waits(&cluster, 3, 2, "connect").await;
    let store = |cluster: &Cluster| {
        let identity = Identity::read(&DiskVfs, &cluster.node(3).data());
        identity.expect("an identity").store.0
    };
    let first = store(&cluster);
    cluster.kill(3);
    std::fs::remove_dir_all(cluster.node(3).data()).expect("its directory");
    cluster.spawn(3);
    cluster.spawn(2);
    let before = founded(&cluster, &[1, 2, 3]).await;
    let founders = founding(&cluster, 1).expect("founded").founders;
    assert_eq!(founders[&skep::NodeId(3)], store(&cluster));
    assert_ne!(first, store(&cluster));
    for id in [1, 2, 3] {
        cluster.ready(id).await;
    }
    cluster.kill(3);
    std::fs::remove_dir_all(cluster.node(3).data()).expect("its directory");
    cluster.spawn(3);
    waits(&cluster, 3, 1, "known here with another store").await;
    waits(&cluster, 3, 2, "another id").await;
    cluster.create_kv(1, "kv", &[1, 2]).await;
    put(&cluster, 2, "put k after").await;
    assert_eq!(founded(&cluster, &[1, 2]).await, before);
}

/// Accident 7: each node is killed at some moment of the founding. One cluster comes of it every time.
// P-74
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn founders_that_are_killed_at_any_moment_found_one_cluster() {
    for moment in 0..8_u64 {
        let mut cluster = prepared(3);
        let victim = 1 + moment % 3;
        (1..=3).for_each(|id| cluster.spawn(id));
        pause(Duration::from_millis(15 * moment)).await;
        cluster.kill(victim);
        cluster.spawn(victim);
        pause(Duration::from_millis(5 * moment)).await;
        cluster.kill_at_once(&[1, 2, 3]);
        (1..=3).for_each(|id| cluster.spawn(id));
        let identity = founded(&cluster, &[1, 2, 3]).await;
        cluster.kill_at_once(&[1, 2, 3]);
        assert_eq!(founded(&cluster, &[1, 2, 3]).await, identity);
    }
}

/// Accident 8: two processes with one id, at two addresses. The cluster is founded with one of them.
// P-74
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_id_that_is_used_twice_is_found_out() {
    let mut cluster = prepared(4);
    all_list(&cluster, &[1, 2, 3], &[1, 2, 3]);
    // The impostor stands in for node 2 in its own list.
    lists(&cluster, 4, &[1, 4, 3]);
    let config = cluster.node(4).config();
    let text = std::fs::read_to_string(&config).expect("a configuration");
    std::fs::write(&config, text.replace("id = 4\n", "id = 2\n")).expect("a configuration");
    (1..=4).for_each(|id| cluster.spawn(id));
    founded(&cluster, &[1, 2, 3]).await;
    waits(&cluster, 4, 1, "another process uses its id").await;
    // And within one list it is refused at once.
    let text = std::fs::read_to_string(cluster.node(1).config()).expect("a configuration");
    let twice = text.replace("[[cluster.nodes]]\nid = 2\n", "[[cluster.nodes]]\nid = 3\n");
    let path = cluster.node(1).home.join("twice.toml");
    std::fs::write(&path, twice).expect("a configuration");
    let ended = process::run(&["serve", "--config", path.to_str().expect("a plain name")]).await;
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("given twice"), "{ended:?}");
}

/// Accident 9: a node is not on its own list, which is an error of its file; or only on its own.
// P-74
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_others_forgot_is_heard_and_one_that_forgot_itself_is_refused() {
    let mut cluster = prepared(3);
    lists(&cluster, 3, &[1, 2]);
    let (code, log) = cluster.refuses_to_start(3).await;
    assert_eq!(code, Some(1));
    assert!(log.contains("this node has id 3"), "{log}");
    lists(&cluster, 3, &[1, 2, 3]);
    all_list(&cluster, &[1, 2], &[1, 2]);
    cluster.spawn(3);
    cluster.spawn(1);
    waits(&cluster, 1, 3, "the same [[cluster.nodes]]").await;
    waits(&cluster, 3, 1, "the same [[cluster.nodes]]").await;
    cluster.spawn(2);
    waits(&cluster, 2, 3, "the same [[cluster.nodes]]").await;
    // The others are right: they found without it once it is gone.
    cluster.stop(3);
    founded(&cluster, &[1, 2]).await;
    cluster.spawn(3);
    waits(&cluster, 3, 1, "belongs to a cluster already").await;
}

/// Accident 10 (F4): the list of a cluster grows by a majority of new nodes. Four of four such made two clusters.
// P-74
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_that_grows_after_the_founding_makes_no_second_cluster() {
    let mut cluster = prepared(7);
    all_list(&cluster, &[1, 2, 3], &[1, 2, 3]);
    (1..=3).for_each(|id| cluster.spawn(id));
    for id in 1..=3 {
        cluster.ready(id).await;
    }
    let first = founded(&cluster, &[1, 2, 3]).await;
    let all = cluster.ids();
    all_list(&cluster, &all, &all);
    // The old ones are away: now the new ones are alone.
    for id in 1..=3 {
        cluster.stop(id);
    }
    (4..=7).for_each(|id| cluster.spawn(id));
    waits(&cluster, 4, 1, "connect").await;
    (1..=3).for_each(|id| cluster.spawn(id));
    for id in 1..=3 {
        cluster.ready(id).await;
    }
    for id in 4..=7 {
        waits(&cluster, id, 1, "belongs to a cluster already").await;
    }
    assert_eq!(founded(&cluster, &[1, 2, 3]).await, first);
    let group = cluster.create_kv(1, "kv", &[1, 2, 3]).await;
    put(&cluster, 3, "put k all").await;
    cluster.caught_up(group, &[1, 2, 3]).await;
    // Nobody leads the old ones but one of them.
    let status = cluster.http(1, "GET", "/v1/status", "").await.json();
    assert_eq!(
        status["nodes"].as_array().map(Vec::len),
        Some(3),
        "{status}"
    );
}

/// Accident 11: a founder never comes. The others say so, again and again, to everybody who asks, and end when they are told to.
// P-74
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_founder_that_never_comes_is_named() {
    let mut cluster = prepared(3);
    cluster.spawn(1);
    waits(&cluster, 1, 2, "connect").await;
    waits(&cluster, 1, 3, "connect").await;
    assert_eq!(cluster.http(1, "GET", "/livez", "").await.status, 200);
    let client = cluster.node(1).client.clone();
    let ended = process::run(&["status", "--at", &client]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(
        ended.stdout.contains("waiting for node 2") && ended.stdout.contains("node 3"),
        "{ended:?}"
    );
    let ended = process::run(&["group", "create", "kv", "--at", &client, "--timeout", "1"]).await;
    assert_eq!(ended.code, Some(3), "{ended:?}");
    assert!(
        ended.stderr.contains("belongs to no cluster yet"),
        "{ended:?}"
    );
    let said = |cluster: &Cluster| cluster.node(1).log().matches("waiting for node 3").count();
    let before = said(&cluster);
    eventually("it is said again", async || match said(&cluster) {
        now if now > before => Ok(()),
        now => Err(format!("{now} times")),
    })
    .await;
    let (status, _) = cluster.stop(1);
    assert_eq!(status.code(), Some(0));
}

/// Accident 12: the same list under another name.
// P-74
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_name_with_the_same_list_founds_nothing() {
    let mut cluster = prepared(3);
    let config = cluster.node(3).config();
    let text = std::fs::read_to_string(&config).expect("a configuration");
    std::fs::write(&config, text.replace("id = \"test\"", "id = \"elsewhere\""))
        .expect("a configuration");
    (1..=3).for_each(|id| cluster.spawn(id));
    waits(&cluster, 1, 3, "another cluster").await;
    waits(&cluster, 2, 3, "another cluster").await;
    waits(&cluster, 3, 1, "another cluster").await;
}

/// A directory of before clusters had an identity is not taken for a new one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_belongs_to_no_cluster_is_refused() {
    let mut cluster = prepared(1);
    let data = cluster.node(1).data();
    let vfs: Arc<dyn Vfs> = Arc::new(DiskVfs);
    let store = Store::open(&vfs, &data, "test", 1).expect("a store");
    drop(store.open_log(&vfs, LogOptions::default()).expect("a log"));
    drop(store);
    let (code, log) = cluster.refuses_to_start(1).await;
    assert_eq!(code, Some(1));
    assert!(log.contains("store-unfounded"), "{log}");
}

/// Accident 4: two nodes are told at once to found a cluster alone; and one is, beside a node that has one, or waits.
// P-74
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_that_are_to_found_alone_not_both_do() {
    let mut cluster = prepared(2);
    let config = |cluster: &Cluster, id: u64| {
        let config = cluster.node(id).config();
        config.to_str().expect("a plain name").to_owned()
    };
    let (one, two) = (config(&cluster, 1), config(&cluster, 2));
    let ended = process::run(&["cluster", "init", "--config", &one]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.stdout.contains("founded cluster test"), "{ended:?}");
    let first = identity(&cluster, 1).expect("it is founded");
    // Again: the directory has been used.
    let ended = process::run(&["cluster", "init", "--config", &one]).await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("store-founded"), "{ended:?}");
    // It serves alone, whomever its list names; the other one cannot found beside it, neither way.
    cluster.restart(1).await;
    let ended = process::run(&["cluster", "init", "--config", &two]).await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(
        ended.stderr.contains("node 1 belongs to a cluster already"),
        "{ended:?}"
    );
    cluster.spawn(2);
    waits(&cluster, 2, 1, "belongs to a cluster already").await;
    assert_eq!(identity(&cluster, 1), Some(first));

    // Beside one that waits for others it is refused as well.
    let mut cluster = prepared(2);
    let (one, two) = (config(&cluster, 1), config(&cluster, 2));
    cluster.spawn(2);
    waits(&cluster, 2, 1, "connect").await;
    let ended = process::run(&["cluster", "init", "--config", &one]).await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("waits to found"), "{ended:?}");
    assert_eq!(identity(&cluster, 1), None);
    cluster.stop(2);

    // Both at once: one that sees the other gives way.
    std::fs::remove_dir_all(cluster.node(1).data()).expect("what the refused one left");
    std::fs::remove_dir_all(cluster.node(2).data()).expect("what the stopped one left");
    let init = |config| async move { process::run(&["cluster", "init", "--config", config]).await };
    let (first, second) = tokio::join!(init(&*one), init(&*two));
    assert!(
        first.code != Some(0) || second.code != Some(0),
        "{first:?} {second:?}"
    );
    for (id, ended) in [(1, &first), (2, &second)] {
        assert_eq!(
            ended.code == Some(0),
            identity(&cluster, id).is_some(),
            "{ended:?}"
        );
        assert!(
            ended.code == Some(0) || ended.stderr.contains("found one of the two"),
            "{ended:?}"
        );
    }
}
