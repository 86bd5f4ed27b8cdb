//! Members that come and go, and leadership that is handed over.

use serde_json::json;
use skep_tests::clock::eventually;
use skep_tests::cluster::{Cluster, Settings};

use crate::load::{Load, text};

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
    assert_eq!(added.json()["members"], json!([1, 2, 3, 4]));
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
    assert_eq!(removed.json()["members"], json!(left));
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
