//! A hundred nodes in one process, which is cheaper than a process each.

use std::collections::BTreeMap;
use std::path::Path;

use skep_core::id::NodeId;
use skep_server::api::client_port;
use skep_server::cluster::{Host, Reach};
use skep_server::config::Config;
use skep_server::join;
use skep_tests::clock::{Stopwatch, eventually};
use skep_tests::cluster::free_port;
use skep_types::admin::{CreateGroup, InviteNode, NodeView};
use skep_types::status::Role;
use tokio::net::TcpListener;

/// Nodes that found the cluster.
const FOUNDERS: u64 = 3;
/// Nodes that join at once.
const AT_ONCE: u64 = 8;

const COMMON: &str = r#"
[raft]
tick_ms = 100
shards = 1
[limits]
disk_reserve_bytes = 0
"#;

fn config(text: &str, dir: &Path) -> Config {
    let mut config = Config::parse(text, Path::new("skep.toml"), []).expect("a configuration");
    config.node.data_dir = dir.to_owned();
    config.cluster.replace_voter_seconds = 2;
    config
}

fn addresses() -> String {
    let [peer, client, http] = [(); 3].map(|()| free_port());
    format!(
        "peer = \"127.0.0.1:{peer}\"\nclient = \"127.0.0.1:{client}\"\nhttp = \"127.0.0.1:{http}\"\n"
    )
}

/// A node, and its port for clients.
async fn start(config: Config) -> Host {
    let listener = TcpListener::bind(config.listen_client()).await;
    let listener = listener.expect("a free port");
    let host = Host::start(config).await.expect("it starts");
    let (front, stop) = (host.clone(), host.stopping());
    tokio::spawn(async move { client_port::serve(front, &listener, stop).await });
    host
}

async fn founders(dir: &Path) -> BTreeMap<u64, Host> {
    let list: String = (1..=FOUNDERS)
        .map(|id| format!("[[cluster.nodes]]\nid = {id}\n{}", addresses()))
        .collect();
    let begun = (1..=FOUNDERS).map(|id| {
        let text = format!(
            "[node]\nid = {id}\ndata_dir = \"x\"\n{COMMON}[cluster]\nid = \"many\"\n{list}"
        );
        let config = config(&text, &dir.join(format!("founder-{id}")));
        async move { (id, start(config).await) }
    });
    futures::future::join_all(begun).await.into_iter().collect()
}

/// A node that has joined by one; its id.
async fn newcomer(by: Host, dir: std::path::PathBuf) -> (u64, Host) {
    let token = eventually("an invitation", async || {
        let invited = by.invite_node(InviteNode::default()).await;
        invited.map_err(|error| error.to_string())
    })
    .await
    .token;
    let text = format!(
        "[node]\ndata_dir = \"x\"\n{}{COMMON}[cluster]\njoin = [\"{}\"]\n",
        addresses(),
        by.config().listen_client()
    );
    let mut config = config(&text, &dir);
    join::join(&mut config, &token).await.expect("it joins");
    (config.node.id, start(config).await)
}

/// Waits until all nodes but these are known to be alive, and five of them vote.
async fn is_well(hosts: &BTreeMap<u64, Host>, nodes: usize) -> Vec<NodeView> {
    let what = format!("{nodes} nodes are alive, and five of them vote");
    eventually(&what, async || {
        let (_, host) = hosts.first_key_value().expect("some are left");
        let views = host
            .nodes(Reach::Cluster)
            .await
            .map_err(|error| error.to_string())?;
        let alive = views.iter().filter(|view| view.alive == Some(true));
        let voters = alive.clone().filter(|view| view.role == Some(Role::Voter));
        match (alive.count(), voters.count()) {
            (alive, 5) if alive == nodes => Ok(views),
            (alive, voters) => Err(format!("{alive} alive, {voters} of them vote")),
        }
    })
    .await
}

async fn create(hosts: &BTreeMap<u64, Host>, name: &str, members: &[u64]) {
    let (_, host) = hosts.first_key_value().expect("some are left");
    let request = CreateGroup {
        name: Some(name.to_owned()),
        members: Some(members.iter().copied().map(NodeId).collect()),
        ..CreateGroup::default()
    };
    let created = host.create_group(request).await.expect("created");
    assert_eq!(created.problem, None, "{created:?}");
}

async fn lose(hosts: &mut BTreeMap<u64, Host>, ids: &[u64]) {
    let lost = ids.iter().filter_map(|id| hosts.remove(id));
    let stops = lost.map(|host| async move { host.stop().await });
    futures::future::join_all(stops.collect::<Vec<_>>()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "it takes all of two cores, so it runs by itself: cargo test --workspace --test it a_hundred_nodes -- --ignored"]
async fn a_hundred_nodes_form_and_survive_the_loss_of_two_at_once() {
    let dir = tempfile::tempdir().expect("a directory");
    let watch = Stopwatch::start();
    let mut hosts = founders(dir.path()).await;
    let mut next = FOUNDERS;
    while next < 100 {
        let batch = (next..(next + AT_ONCE).min(100)).map(|number| {
            let by = hosts[&(1 + number % FOUNDERS)].clone();
            newcomer(by, dir.path().join(format!("newcomer-{number}")))
        });
        let batch = batch.collect::<Vec<_>>();
        for (id, host) in futures::future::join_all(batch).await {
            assert!(hosts.insert(id, host).is_none(), "the id {id} twice");
        }
        next = hosts.len() as u64;
    }
    assert!(hosts.keys().copied().eq(1..=100), "{:?}", hosts.keys());
    let views = is_well(&hosts, 100).await;
    println!("100 nodes after {:?}", watch.elapsed());
    create(&hosts, "far-apart", &[1, 50, 100]).await;

    // Two that vote, the leader among them; one that votes and one that learns; two that learn.
    let voters = |views: &[NodeView]| {
        let voters = views.iter().filter(|view| view.role == Some(Role::Voter));
        voters.map(|view| view.node.id.0).collect::<Vec<_>>()
    };
    let leader = hosts[&2].node().leader(skep_server::catalog::GROUP);
    let leader = leader.expect("it runs").expect("one leads").0;
    let other = voters(&views).into_iter().find(|voter| *voter != leader);
    for pair in [[leader, other.expect("five vote")], [3, 70], [80, 90]] {
        let watch = Stopwatch::start();
        lose(&mut hosts, &pair).await;
        let name = format!("without-{}-and-{}", pair[0], pair[1]);
        create(&hosts, &name, &[20, 30, 40]).await;
        println!(
            "nodes {pair:?} lost: a group was created after {:?}",
            watch.elapsed()
        );
        is_well(&hosts, hosts.len()).await;
        println!(
            "nodes {pair:?} lost: five vote again after {:?}",
            watch.elapsed()
        );
    }
    let all: Vec<u64> = hosts.keys().copied().collect();
    lose(&mut hosts, &all).await;
}
