//! Members that come and go, and leadership that is handed over.

use serde_json::json;
use skep_client::Consistency;
use skep_tests::clock::eventually;
use skep_tests::cluster::{Cluster, Settings};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::load::{Load, text};

// P-65
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_change_under_load() {
    let cluster = Cluster::start(&Settings {
        nodes: 4,
        snapshot_entries: 50,
        ..Settings::default()
    })
    .await;
    let group = cluster.create_kv(1, "kv", &[1, 2, 3]).await;
    let load = Load::start(&[cluster.client().await], group, 4).await;
    load.more(200).await;

    // A fourth node joins: as a learner, by a snapshot, then as a voter.
    let added = cluster
        .http(
            4,
            "POST",
            "/v1/groups/kv/members",
            json!({"node": 4, "data": "rack 9"}).to_string(),
        )
        .await;
    assert_eq!(added.status, 200, "{}", added.text());
    assert_eq!(added.json()["members"], json!(["1", "2", "3", "4"]));
    eventually("node 4 is a voter", async || {
        let stats = text(cluster.replica_answer(1, group, "stats").await);
        if stats.contains("\nmember 4 voter rack%209") {
            Ok(())
        } else {
            Err(stats)
        }
    })
    .await;
    load.more(50).await;

    // The leader goes: leadership is handed over first.
    let leader = cluster.leader(group).await;
    let at = cluster.others(&[leader])[0];
    let removed = cluster
        .http(at, "DELETE", &format!("/v1/groups/kv/members/{leader}"), "")
        .await;
    assert_eq!(removed.status, 200, "{}", removed.text());
    let left = cluster.others(&[leader]);
    let left_texts: Vec<_> = left.iter().map(u64::to_string).collect();
    assert_eq!(removed.json()["members"], json!(left_texts));
    load.more(50).await;
    let next = cluster.leader_among(group, &left).await;
    assert_ne!(next, leader);
    eventually(
        "the removed node hosts nothing of the group",
        async || match cluster.try_status(leader, group).await {
            Err(_) => Ok(()),
            Ok(status) => Err(format!("{status:?}")),
        },
    )
    .await;
    // It still serves the group's clients, by those who host it.
    let answer = cluster
        .http(leader, "POST", "/v1/groups/kv/query", "get total")
        .await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    // Leadership goes where it is told, and to nobody else.
    for to in &left {
        let to_node = json!({"node": to}).to_string();
        eventually(&format!("leadership is handed to node {to}"), async || {
            let moved = cluster
                .http(at, "POST", "/v1/groups/kv/transfer", &to_node)
                .await;
            match moved.status {
                200 => Ok(()),
                // A leader that is new itself has not heard from everybody yet.
                503 => Err(moved.text()),
                _ => panic!("{}", moved.text()),
            }
        })
        .await;
        eventually(&format!("node {to} leads"), async || {
            match cluster.leader_among(group, &left).await {
                leader if leader == *to => Ok(()),
                leader => Err(leader.to_string()),
            }
        })
        .await;
    }
    let moved = cluster
        .http(
            at,
            "POST",
            "/v1/groups/kv/transfer",
            json!({"node": leader}).to_string(),
        )
        .await;
    assert_eq!(
        (moved.status, moved.code().as_str()),
        (400, "invalid-request"),
        "{}",
        moved.text()
    );

    // A node that was removed may come back, as another replica: the ids of replicas are never used again.
    let before = replica(&cluster, group, at, 4).await;
    let back = cluster
        .http(
            at,
            "POST",
            "/v1/groups/kv/members",
            json!({"node": leader}).to_string(),
        )
        .await;
    assert_eq!(back.status, 200, "{}", back.text());
    load.more(50).await;
    load.verify(&cluster).await;
    cluster.caught_up(group, &cluster.ids()).await;
    let again = replica(&cluster, group, at, leader).await;
    assert!(
        again > before,
        "replica {again} of node {leader} is not newer than replica {before}"
    );
}

/// Commands that arrive at a member in the moment it is removed are answered all the same: by those who stay.
// P-73
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removal_is_nothing_that_clients_of_the_removed_node_see() {
    const REMOVALS: usize = 8;
    const WORKERS: usize = 16;

    let cluster = Cluster::start(&Settings::default()).await;
    let group = cluster.create_kv(1, "kv", &[1, 2, 3]).await;
    let mut increments = 0;
    for _ in 0..REMOVALS {
        // A client that knows no other node yet.
        let client = cluster.client_at(&[3]).await;
        let (stop, removed) = watch::channel(false);
        let mut workers = JoinSet::new();
        for _ in 0..WORKERS {
            let (client, removed) = (client.clone(), removed.clone());
            workers.spawn(async move {
                let session = client.session(group).await.expect("a session");
                let mut increments = 0_u64;
                while !*removed.borrow() {
                    let answer = session.propose("incr total".into()).await;
                    answer.unwrap_or_else(|error| panic!("{error} [{}]", error.code()));
                    let answer = client
                        .query(group, "get total".into(), Consistency::Linearizable)
                        .await;
                    answer.unwrap_or_else(|error| panic!("{error} [{}]", error.code()));
                    increments += 1;
                }
                increments
            });
        }
        let status = cluster
            .http(1, "DELETE", "/v1/groups/kv/members/3", "")
            .await;
        assert_eq!(status.status, 200, "{}", status.text());
        eventually("node 3 hosts nothing of the group", async || match cluster
            .try_status(3, group)
            .await
        {
            Err(_) => Ok(()),
            Ok(status) => Err(format!("{status:?}")),
        })
        .await;
        stop.send_replace(true);
        increments += workers.join_all().await.iter().sum::<u64>();
        let added = cluster
            .http(
                1,
                "POST",
                "/v1/groups/kv/members",
                json!({"node": 3}).to_string(),
            )
            .await;
        assert_eq!(added.status, 200, "{}", added.text());
    }
    let total = crate::load::answer(&cluster.client().await, group, "get total").await;
    assert_eq!(total, increments.to_string());
}

/// Which replica of the group is on a node, as another node knows.
async fn replica(cluster: &Cluster, group: skep_client::GroupId, at: u64, node: u64) -> u64 {
    let status = cluster.try_status(at, group).await.expect("a status");
    let member = status
        .replica
        .members
        .iter()
        .find(|member| member.node.0 == node);
    member
        .unwrap_or_else(|| panic!("node {node} is no member: {status:?}"))
        .replica
        .0
}
