//! Nodes that stop, come back, and were away for long.

use std::time::Duration;

use serde_json::json;
use skep_client::Outcome;
use skep_tests::clock::eventually;
use skep_tests::cluster::{Cluster, Settings};

use crate::load::{Load, answer, propose, text};

/// How long a node that is told to stop takes at most, busy as it is.
const PROMPT: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_away_catches_up_by_snapshot() {
    let mut cluster = Cluster::start(&Settings {
        snapshot_entries: 50,
        ..Settings::default()
    })
    .await;
    let group = cluster.create_kv(1, "kv", &[1, 2, 3]).await;
    let leader = cluster.leader(group).await;
    let away = cluster.others(&[leader])[0];
    let load = Load::start(&[cluster.client_at(&[leader]).await], group, 4).await;
    load.more(20).await;
    let last = cluster
        .try_status(away, group)
        .await
        .expect("a status")
        .replica
        .last;
    cluster.kill(away);
    eventually(
        "the leader has compacted what the absent node lacks",
        async || {
            let replica = cluster.try_status(leader, group).await?.replica;
            if replica.first.0 > last.0 + 1 {
                Ok(())
            } else {
                Err(format!("{replica:?}"))
            }
        },
    )
    .await;
    cluster.restart(away).await;
    load.more(20).await;
    let commands = load.verify(&cluster).await;
    cluster.caught_up(group, &cluster.ids()).await;
    assert!(cluster.metric(away, "skep_snapshots_received_total").await >= 1);
    for id in cluster.ids() {
        let stats = text(cluster.replica_answer(id, group, "stats").await);
        assert!(
            stats.contains(&format!("\nrevision {commands}\n")),
            "node {id}: {stats}"
        );
    }
}

// P-12
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_under_load_loses_nothing_and_is_prompt() {
    let mut cluster = Cluster::start(&Settings::default()).await;
    let group = cluster.create_kv(1, "kv", &[1, 2, 3]).await;
    let clients = [
        cluster.client_at(&[1, 2, 3]).await,
        cluster.client_at(&[3, 2, 1]).await,
    ];
    let load = Load::start(&clients, group, 6).await;
    for id in cluster.ids() {
        load.more(100).await;
        let (status, elapsed) = cluster.stop(id);
        assert_eq!(status.code(), Some(0), "node {id}");
        assert!(elapsed < PROMPT, "node {id} took {elapsed:?} to stop");
        load.more(50).await;
        cluster.restart(id).await;
    }
    load.verify(&cluster).await;
}

// P-12
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_leader_is_replaced_and_follows_when_it_wakes() {
    let mut cluster = Cluster::start(&Settings::default()).await;
    let group = cluster.create_kv(1, "kv", &[1, 2, 3]).await;
    let leader = cluster.leader(group).await;
    let others = cluster.others(&[leader]);
    let load = Load::start(&[cluster.client_at(&others).await], group, 4).await;
    load.more(50).await;
    cluster.pause(leader);
    let next = eventually("the others elect one of them", async || {
        match cluster.try_status(others[0], group).await?.replica.leader {
            Some(next) if next.0 != leader => Ok(next.0),
            seen => Err(format!("{seen:?}")),
        }
    })
    .await;
    assert!(others.contains(&next));
    load.more(50).await;
    cluster.resume(leader);
    load.more(50).await;
    load.verify(&cluster).await;
    cluster.caught_up(group, &cluster.ids()).await;
    assert!(cluster.node_mut(leader).is_running());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_is_removed_with_its_state_and_made_anew() {
    let mut cluster = Cluster::start(&Settings::default()).await;
    let first = cluster.create_kv(1, "orders", &[1, 2, 3]).await;
    let client = cluster.client().await;
    assert_eq!(text(propose(&client, first, "put a old").await), "OK 1");
    // One node is down while the group goes and comes back as another.
    cluster.kill(3);
    let removed = cluster.http(1, "DELETE", "/v1/groups/orders", "").await;
    assert_eq!(removed.status, 200, "{}", removed.text());
    for id in [1, 2] {
        let answer = cluster
            .http(id, "POST", "/v1/groups/orders/propose", "put a 1")
            .await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (404, "no-such-group"),
            "{}",
            answer.text()
        );
    }
    // Under the same id and name: another life of it.
    let request = json!({"name": "orders", "id": first, "members": [1, 2, 3]}).to_string();
    let created = cluster.http(2, "POST", "/v1/groups", request).await;
    assert_eq!(created.status, 201, "{}", created.text());
    assert_eq!(created.number("id"), first.0);
    match propose(&client, first, "get a").await {
        Outcome::Rejected { code: 404, .. } => {}
        other => panic!("something of the former life is left: {other:?}"),
    }
    assert_eq!(text(propose(&client, first, "put a new").await), "OK 1");
    cluster.restart(3).await;
    cluster.caught_up(first, &cluster.ids()).await;
    for id in cluster.ids() {
        assert_eq!(
            text(cluster.replica_answer(id, first, "get a").await),
            "new",
            "node {id}"
        );
    }
    cluster.kill_at_once(&[2, 3, 1]);
    cluster.start_all().await;
    assert_eq!(
        answer(&cluster.client().await, first, "gets a").await,
        "1 new"
    );
}
