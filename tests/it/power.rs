//! kill -9 of all nodes at once, under load, many times.

use skep_tests::clock::{eventually, within};
use skep_tests::cluster::{Cluster, Settings};
use skep_tests::seed::Seed;
use std::time::Duration;
use tokio::net::TcpStream;

use crate::load::{Load, answer};

const ROUNDS: u64 = 24;
const WORKERS: usize = 8;
/// Commands before a kill, at most: several snapshots' worth, so that a kill hits every phase of one.
const COMMANDS: u64 = 150;
const LIMIT: Duration = Duration::from_secs(150);

// P-1
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_the_death_of_all_nodes_once() {
    within(LIMIT, "all rounds", async {
        // Small logs, so that snapshots and compaction are among what the kills interrupt.
        let settings = Settings {
            snapshot_entries: 60,
            ..Settings::default()
        };
        let mut cluster = Cluster::start(&settings).await;
        let group = cluster.create_kv(1, "kv", &[1, 2, 3]).await;
        let clients = [
            cluster.client_at(&[1, 2, 3]).await,
            cluster.client_at(&[2, 3, 1]).await,
        ];
        let load = Load::start(&clients, group, WORKERS).await;
        for round in 0..ROUNDS {
            let mut seed = Seed::new(round + 1);
            load.more(1 + seed.below(COMMANDS)).await;
            cluster.kill_at_once(&seed.shuffled(vec![1, 2, 3]));
            // No node is left that could acknowledge anything.
            let acknowledged = load.increments();
            if seed.below(3) == 0 {
                die_while_starting(&mut cluster, 1 + seed.below(3)).await;
            }
            for id in seed.shuffled(vec![1, 2, 3]) {
                cluster.spawn(id);
            }
            let reader = reader(&cluster).await;
            let total: u64 = answer(&reader, group, "get total")
                .await
                .parse()
                .expect("a number");
            assert!(
                total >= acknowledged,
                "round {round}: {acknowledged} increments were acknowledged, {total} are left"
            );
        }
        cluster.start_all().await;
        let commands = load.verify(&cluster).await;
        cluster.caught_up(group, &[1, 2, 3]).await;
        println!("{ROUNDS} deaths of all nodes, {commands} commands, each applied once");
    })
    .await;
}

/// Recovery itself is interrupted, as soon as one node listens.
async fn die_while_starting(cluster: &mut Cluster, first: u64) {
    for id in cluster.ids() {
        cluster.spawn(id);
    }
    let address = cluster.node(first).client.clone();
    eventually(&format!("node {first} listens"), async || {
        TcpStream::connect(&address)
            .await
            .map_err(|error| error.to_string())
    })
    .await;
    cluster.kill_at_once(&cluster.ids());
}

/// A client of the first node that listens again.
async fn reader(cluster: &Cluster) -> skep_client::Client {
    let config = skep_client::ClientConfig::new(
        cluster
            .ids()
            .iter()
            .map(|id| cluster.node(*id).client.clone()),
    );
    let config = skep_client::ClientConfig {
        request_timeout: skep_tests::clock::PATIENCE,
        ..config
    };
    eventually("a node takes a client", async || {
        skep_client::Client::connect(config.clone())
            .await
            .map_err(|error| error.to_string())
    })
    .await
}
