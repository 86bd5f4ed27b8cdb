//! Many acknowledged commands share one sync of the log.

use std::time::Duration;

use skep_client::{Client, ClientConfig};
use skep_tests::cluster::{Cluster, Settings};
use skep_tests::shim::Shim;
use tokio::task::JoinSet;

use crate::load::{propose, text};

const CLIENTS: usize = 256;
const COMMANDS: usize = 20;
/// Commands per sync that are many; one by one it would be 1.
const MANY: u64 = 8;
/// What each sync takes at the least. On a disk without a wait a sync has only what came in the meantime, and that depends on how
/// fast the machine is.
const SYNC: Duration = Duration::from_millis(10);

// P-62
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_of_concurrent_clients_share_syncs() {
    let mut cluster = Cluster::prepare(&Settings::default());
    for id in cluster.ids() {
        if let Some(shim) = Shim::install(&mut cluster, id) {
            shim.slow_syncs(SYNC);
        }
    }
    cluster.start_all().await;
    let group = cluster.create_kv(1, "kv", &[1, 2, 3]).await;
    let leader = cluster.leader(group).await;
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        let config = ClientConfig::new([cluster.node(leader).client.clone()]);
        clients.push(Client::connect(config).await.expect("a client"));
    }
    let before = syncs(&cluster).await;
    let mut tasks = JoinSet::new();
    for (number, client) in clients.into_iter().enumerate() {
        tasks.spawn(async move {
            for step in 0..COMMANDS {
                text(propose(&client, group, &format!("put {number}-{step} {step}")).await);
            }
        });
    }
    while let Some(task) = tasks.join_next().await {
        task.expect("a client failed");
    }
    let after = syncs(&cluster).await;
    let commands = (CLIENTS * COMMANDS) as u64;
    assert_eq!(
        text(cluster.replica_answer(leader, group, "count").await),
        commands.to_string()
    );
    for (id, (before, after)) in cluster.ids().into_iter().zip(before.into_iter().zip(after)) {
        let syncs = after - before;
        println!(
            "node {id}: {commands} commands, {syncs} syncs, {} commands per sync",
            commands / syncs.max(1)
        );
        // A leader and at least one follower have synced each command before it was acknowledged.
        assert!(
            syncs >= 1 || id != leader,
            "node {id} acknowledged without a sync"
        );
        assert!(
            commands >= syncs * MANY,
            "node {id}: {syncs} syncs for {commands} commands"
        );
    }
}

async fn syncs(cluster: &Cluster) -> Vec<u64> {
    let mut syncs = Vec::new();
    for id in cluster.ids() {
        syncs.push(cluster.metric(id, "skep_log_syncs_total").await);
    }
    syncs
}
