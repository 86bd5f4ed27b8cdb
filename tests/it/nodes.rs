//! Nodes that come to a running cluster, go for ever, or move; and who votes in its catalogue.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use skep_client::GroupId;
use skep_core::state::Role;
use skep_tests::clock::eventually;
use skep_tests::cluster::{Cluster, Settings};
use skep_tests::http;

use crate::load::{answer, propose, text};

/// A command that is sent until it has an answer, and applied once.
async fn put(cluster: &Cluster, at: &[u64], group: GroupId, command: &'static str) {
    let client = cluster.client_at(at).await;
    let session = client.session(group).await.expect("a session");
    let response = session.propose(command.into()).await.expect("applied");
    assert!(text(response.outcome).starts_with("OK"), "{command}");
}

pub const CATALOGUE: GroupId = GroupId(0);

/// What a node says of all nodes.
pub async fn listed(cluster: &Cluster, at: u64) -> Result<Vec<Value>, String> {
    let address = &cluster.node(at).http;
    let answer = http::request(address, "GET", "/v1/nodes", &[], b"").await;
    let answer = answer.map_err(|error| error.to_string())?;
    match answer.status {
        200 => Ok(answer.json().as_array().expect("a list").clone()),
        _ => Err(answer.text()),
    }
}

/// Waits until these are the voters of the catalogue, and these its other members.
pub async fn catalogue_is(cluster: &Cluster, at: u64, voters: &[u64], learners: &[u64]) {
    let what = format!("the catalogue has the voters {voters:?}, the learners {learners:?}");
    eventually(&what, async || {
        let status = cluster.try_status(at, CATALOGUE).await?;
        let of = |votes: bool| {
            let members = status.replica.members.iter();
            let members = members.filter(|member| (member.role == Role::Voter) == votes);
            members.map(|member| member.node.0).collect::<BTreeSet<_>>()
        };
        let is_so = of(true).iter().eq(voters) && of(false).iter().eq(learners);
        match is_so {
            true => Ok(()),
            false => Err(format!("{:?}", status.replica.members)),
        }
    })
    .await;
}

pub async fn members(cluster: &Cluster, at: u64, group: &str) -> Value {
    let answer = cluster
        .http(at, "GET", &format!("/v1/groups/{group}"), "")
        .await;
    answer.json()["members"].clone()
}

// P-80
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_joins_a_running_cluster_and_hosts_a_replica() {
    let settings = Settings::default();
    let mut cluster = Cluster::start(&settings).await;
    let group = cluster.create_kv(1, "kv", &[1, 2, 3]).await;
    let client = cluster.client_at(&[1, 2, 3]).await;
    assert!(text(propose(&client, group, "put k before").await).starts_with("OK"));
    let token = cluster.invited(2).await;
    cluster.newcomer(&settings, 4, &[2, 3], &token);
    cluster.spawn(4);
    cluster.ready(4).await;
    catalogue_is(&cluster, 1, &[1, 2, 3], &[4]).await;
    let nodes = listed(&cluster, 4).await.expect("it knows the others");
    assert_eq!(nodes.len(), 4);
    assert_eq!(nodes[3]["node"]["id"], json!("4"));
    assert_eq!(
        (&nodes[3]["role"], &nodes[3]["alive"]),
        (&json!("learner"), &json!(true))
    );
    // It is a node like any other: for clients, for groups, for replicas.
    let client = cluster.client_at(&[4]).await;
    assert_eq!(answer(&client, group, "get k").await, "before");
    let added = cluster
        .http(4, "POST", "/v1/groups/kv/members", r#"{"node":4}"#)
        .await;
    assert_eq!(added.status, 200, "{}", added.text());
    let own = cluster.create_kv(4, "own", &[2, 3, 4]).await;
    assert!(text(propose(&client, own, "put k own").await).starts_with("OK"));
    // The token is good for one node.
    cluster.newcomer(&settings, 5, &[1], &token);
    let (code, log) = cluster.refuses_to_start(5).await;
    assert_eq!(code, Some(1), "{log}");
    // It needs no token when it starts again, and no list.
    cluster.kill(4);
    cluster.node_mut(4).environment.clear();
    cluster.restart(4).await;
    cluster.caught_up(group, &[1, 2, 3, 4]).await;
    cluster.caught_up(own, &[2, 3, 4]).await;
    // With half of the founders gone it carries its groups.
    cluster.kill(1);
    put(&cluster, &[4], group, "put k after").await;
    assert_eq!(answer(&client, own, "get k").await, "own");
}

// P-81
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_node_is_removed_and_is_told_when_it_is_back() {
    let settings = Settings::default();
    let mut cluster = Cluster::start(&settings).await;
    let group = cluster.create_kv(1, "kv", &[1, 2, 3]).await;
    let client = cluster.client_at(&[1, 2]).await;
    assert!(text(propose(&client, group, "put k v").await).starts_with("OK"));
    cluster.kill(3);
    let removed = cluster.http(2, "DELETE", "/v1/nodes/3", "").await;
    assert_eq!(removed.status, 200, "{}", removed.text());
    assert_eq!(
        removed.json()["node"]["state"],
        json!("removed"),
        "{}",
        removed.text()
    );
    assert_eq!(members(&cluster, 1, "kv").await, json!(["1", "2"]));
    catalogue_is(&cluster, 1, &[1, 2], &[]).await;
    let again = cluster.http(1, "DELETE", "/v1/nodes/3", "").await;
    assert_eq!(again.status, 200, "it is so already: {}", again.text());
    // It is told, and so is who looks after it.
    cluster.spawn(3);
    let said = eventually("node 3 says that it was removed", async || {
        let answer = http::request(&cluster.node(3).http, "GET", "/readyz", &[], b"").await;
        let said = answer.map_err(|error| error.to_string())?.text();
        match said.contains("removed from the cluster for ever") {
            true => Ok(said),
            false => Err(said),
        }
    })
    .await;
    assert!(said.contains("skep node invite"), "the next step: {said}");
    assert!(
        cluster
            .node(3)
            .log()
            .contains("removed from the cluster for ever")
    );
    assert!(
        cluster.node(1).log().contains("node-removed")
            || cluster.node(2).log().contains("node-removed")
    );
    // Another takes its place, under another id, and votes.
    cluster.kill(3);
    cluster.join(&settings, 4, &[1, 2]).await;
    catalogue_is(&cluster, 1, &[1, 2, 4], &[]).await;
    eventually("it takes the replica that is wanted", async || {
        let members = members(&cluster, 1, "kv").await;
        let lacking = cluster
            .http(1, "GET", "/v1/groups?under_replicated=true", "")
            .await;
        match (
            members == json!(["1", "2", "4"]),
            lacking.json() == json!([]),
        ) {
            (true, true) => Ok(()),
            _ => Err(members.to_string()),
        }
    })
    .await;
    cluster.kill(1);
    put(&cluster, &[2, 4], group, "put k w").await;
    cluster.create_kv(2, "more", &[2, 4]).await;
}

// P-81
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_groups_need_is_not_removed() {
    let mut cluster = Cluster::start(&Settings::default()).await;
    cluster.create_kv(1, "pair", &[1, 3]).await;
    cluster.create_kv(1, "lone", &[2]).await;
    let refused = async |cluster: &Cluster, node: u64, group: &str| {
        let path = format!("/v1/nodes/{node}");
        eventually(&format!("node {node} is not removed"), async || {
            let answer = cluster.http(1, "DELETE", &path, "").await;
            let is_refused = answer.status == 409 && answer.code() == "node-needed";
            match is_refused && answer.text().contains(group) {
                true => Ok(()),
                false => Err(answer.text()),
            }
        })
        .await;
    };
    refused(&cluster, 2, "lone").await;
    cluster.kill(3);
    // Until the leader has noticed that it is dead, nobody can tell.
    eventually("node 3 is known to be dead", async || {
        let nodes = listed(&cluster, 1).await?;
        match nodes[2]["alive"] == json!(false) {
            true => Ok(()),
            false => Err(nodes[2].to_string()),
        }
    })
    .await;
    refused(&cluster, 3, "pair").await;
    let nodes = listed(&cluster, 1).await.expect("a list");
    assert!(
        nodes
            .iter()
            .all(|node| node["node"]["state"] == json!("member"))
    );
    // Back, it can be asked for its vote, and goes.
    cluster.restart(3).await;
    eventually("node 3 is removed", async || {
        let answer = cluster.http(1, "DELETE", "/v1/nodes/3", "").await;
        match answer.status == 200 && answer.json()["node"]["state"] == json!("removed") {
            true => Ok(()),
            false => Err(answer.text()),
        }
    })
    .await;
    assert_eq!(
        members(&cluster, 1, "pair").await,
        json!(["1", "2"]),
        "another node took its replica"
    );
}

// P-83
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_at_another_address_tells_the_others() {
    let mut cluster = Cluster::start(&Settings::default()).await;
    let group = cluster.create_kv(1, "kv", &[1, 2, 3]).await;
    cluster.stop(2);
    cluster.moves(2);
    cluster.restart(2).await;
    let address = cluster.node(2).peer.clone();
    let knows = async |cluster: &Cluster, at: u64| {
        let nodes = listed(cluster, at).await?;
        match nodes[1]["node"]["peer"] == json!(address) {
            true => Ok(()),
            false => Err(nodes[1].to_string()),
        }
    };
    for at in [1, 3] {
        let what = format!("node {at} knows where node 2 is");
        eventually(&what, async || knows(&cluster, at).await).await;
    }
    cluster.caught_up(group, &[1, 2, 3]).await;
    // The files of the others are as they were, and nobody cares.
    for id in [1, 3] {
        cluster.kill(id);
        cluster.restart(id).await;
        cluster.caught_up(group, &[1, 2, 3]).await;
    }
    // All at once: nobody has anybody else's address but from its own file.
    cluster.kill_at_once(&[1, 3]);
    cluster.kill(2);
    cluster.moves(1);
    cluster.start_all().await;
    cluster.caught_up(group, &[1, 2, 3]).await;
}

// P-82
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_voters_become_five_and_a_dead_one_is_replaced() {
    let settings = Settings::default();
    let mut cluster = Cluster::prepare(&settings);
    // For newcomers it stays at what it is; one of those who began leads.
    cluster.set("SKEP_CLUSTER__REPLACE_VOTER_SECONDS", 1);
    cluster.start_all().await;
    catalogue_is(&cluster, 1, &[1, 2, 3], &[]).await;
    cluster.join(&settings, 4, &[1]).await;
    catalogue_is(&cluster, 1, &[1, 2, 3], &[4]).await;
    cluster.join(&settings, 5, &[3]).await;
    catalogue_is(&cluster, 1, &[1, 2, 3, 4, 5], &[]).await;
    cluster.join(&settings, 6, &[5]).await;
    catalogue_is(&cluster, 1, &[1, 2, 3, 4, 5], &[6]).await;
    cluster.kill(5);
    catalogue_is(&cluster, 1, &[1, 2, 3, 4, 6], &[5]).await;
    // Now two others may fail at once.
    cluster.kill_at_once(&[2, 3]);
    cluster.create_kv(1, "kv", &[1, 4, 6]).await;
    cluster.restart(5).await;
    cluster.restart(2).await;
    cluster.restart(3).await;
    // Whether one of them was away for too long is a matter of how fast the others came back.
    eventually("five vote again, and one learns", async || {
        let members = cluster.try_status(5, CATALOGUE).await?.replica.members;
        let voters = members.iter().filter(|member| member.role == Role::Voter);
        match (members.len(), voters.count()) {
            (6, 5) => Ok(()),
            _ => Err(format!("{members:?}")),
        }
    })
    .await;
}
