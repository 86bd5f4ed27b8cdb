//! A cluster whose nodes come and go for ever while it serves.

use std::time::Duration;

use serde_json::json;
use skep_tests::clock::eventually;
use skep_tests::cluster::Settings;

use super::membership::{all_vote, changed, handed_over};
use super::scenario::{Scenario, step};
use super::workload::PATIENT;
use crate::nodes::catalogue_is;

/// How a node goes for ever that leads the group.
enum Going {
    /// It runs until the cluster has done without it.
    Living,
    /// Nothing is left of it when the others are told.
    Dead,
    /// It is stopped first.
    Stopped,
}

/// Three nodes become five, each of those who began is replaced while it leads, by one with another id, and three are left, of
/// whom none was there at the start.
// P-80, P-81, P-82
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_node_is_replaced_by_another() {
    let settings = Settings {
        snapshot_entries: 100,
        ..Settings::default()
    };
    let later: Vec<u64> = (4..=8).collect();
    let mut scenario = Scenario::start_open("every node is replaced", &settings, &later).await;
    let start = scenario.load.now();
    let mut longest = Vec::new();
    for id in [4, 5] {
        longest.push(comes(&mut scenario, &settings, id).await);
    }
    for (old, new, going) in [
        (1, 6, Going::Living),
        (2, 7, Going::Dead),
        (3, 8, Going::Stopped),
    ] {
        handed_over(&scenario, old).await;
        longest.push(goes(&mut scenario, old, going).await);
        longest.push(comes(&mut scenario, &settings, new).await);
    }
    for id in [4, 5] {
        longest.push(goes(&mut scenario, id, Going::Living).await);
    }
    let left = [6, 7, 8];
    catalogue_is(&scenario.cluster, left[0], &left, &[]).await;
    let all = scenario.silence(start, scenario.load.now());
    println!(
        "{}: the longest gap between two answers to one client is {all:.2?}; of each step {longest:.2?}",
        scenario.name
    );
    assert!(all < PATIENT, "a client gave up");
    scenario.finish(&left).await;
}

/// A node joins, and hosts a replica that votes; the longest gap meanwhile.
async fn comes(scenario: &mut Scenario, settings: &Settings, id: u64) -> Duration {
    let from = scenario.load.now();
    let there = scenario.cluster.ids();
    scenario.cluster.join(settings, id, &there).await;
    let members = scenario.cluster.ids();
    let body = json!({"node": id}).to_string();
    let path = "/v1/groups/kv/members";
    changed(scenario, there[0], "POST", path, &body, &members).await;
    all_vote(scenario, there[0], members.len()).await;
    scenario.load.more(step()).await;
    scenario.silence(from, scenario.load.now())
}

/// A node is removed, and its directory with it; the longest gap meanwhile.
async fn goes(scenario: &mut Scenario, id: u64, going: Going) -> Duration {
    let from = scenario.load.now();
    match going {
        Going::Living => {}
        Going::Dead => scenario.cluster.discard(id),
        Going::Stopped => {
            let (status, _) = scenario.cluster.stop(id);
            assert_eq!(status.code(), Some(0), "node {id}");
        }
    }
    let left = scenario.cluster.others(&[id]);
    eventually(&format!("node {id} is removed"), async || {
        let path = format!("/v1/nodes/{id}");
        let answer = scenario.cluster.http(left[0], "DELETE", &path, "").await;
        match answer.status == 200 && answer.json()["node"]["state"] == json!("removed") {
            true => Ok(()),
            false => Err(answer.text()),
        }
    })
    .await;
    if !matches!(going, Going::Dead) {
        scenario.cluster.discard(id);
    }
    scenario.led_by_one_of(&left).await;
    all_vote(scenario, left[0], left.len()).await;
    scenario.load.more(step()).await;
    scenario.silence(from, scenario.load.now())
}
