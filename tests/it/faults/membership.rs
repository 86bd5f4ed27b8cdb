//! A group that changes while it serves.

use serde_json::json;
use skep_core::state::Role;
use skep_tests::clock::eventually;
use skep_tests::cluster::Settings;

use super::scenario::{Scenario, rounds, step};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_come_and_go() {
    let settings = Settings {
        nodes: 4,
        snapshot_entries: 100,
        ..Settings::default()
    };
    // The group is founded on all four; one of them is always on its way out or in.
    let scenario = Scenario::start("members come and go", &settings).await;
    let ids = scenario.cluster.ids();
    for round in 0..rounds() {
        // The leader in every second round: it has to hand over first.
        let leader = scenario.leader().await;
        let leaves = match round % 2 {
            0 => leader,
            _ => scenario.cluster.others(&[leader])[round as usize / 2 % 3],
        };
        let left = scenario.cluster.others(&[leaves]);
        let path = format!("/v1/groups/kv/members/{leaves}");
        changed(&scenario, left[0], "DELETE", &path, "", &left).await;
        scenario.led_by_one_of(&left).await;
        scenario.load.more(step()).await;
        let body = json!({"node": leaves}).to_string();
        changed(
            &scenario,
            left[0],
            "POST",
            "/v1/groups/kv/members",
            &body,
            &ids,
        )
        .await;
        scenario.load.more(step()).await;
        // Not before it votes: the next removal would be refused, rightly.
        all_vote(&scenario, left[0], 4).await;
    }
    scenario.finish(&ids).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_is_handed_around() {
    let scenario = Scenario::start("leadership is handed around", &Settings::default()).await;
    for round in 0..rounds() * 4 {
        let leader = scenario.leader().await;
        let next = scenario.cluster.others(&[leader])[round as usize % 2];
        handed_over(&scenario, next).await;
        scenario.load.more(step() / 2).await;
    }
    let ids = scenario.cluster.ids();
    scenario.finish(&ids).await;
}

/// Leadership of the group goes to this node, however often that has to be asked for.
pub async fn handed_over(scenario: &Scenario, next: u64) {
    let body = json!({"node": next}).to_string();
    eventually(&format!("leadership goes to node {next}"), async || {
        let path = "/v1/groups/kv/transfer";
        let moved = scenario.cluster.http(next, "POST", path, &body).await;
        match moved.status {
            200 => Ok(()),
            // The next one lags behind, or the leader is new itself.
            503 | 504 => Err(moved.text()),
            _ => panic!("{}", moved.text()),
        }
    })
    .await;
}

/// Waits until so many members of the group vote, as one says.
pub async fn all_vote(scenario: &Scenario, at: u64, count: usize) {
    eventually(&format!("{count} members vote"), async || {
        let status = scenario.cluster.try_status(at, scenario.group).await?;
        let members = status.replica.members.iter();
        match members.filter(|member| member.role == Role::Voter).count() {
            voters if voters == count => Ok(()),
            _ => Err(format!("{status:?}")),
        }
    })
    .await;
}

/// A change of membership is made, however often it has to be asked for.
pub async fn changed(
    scenario: &Scenario,
    at: u64,
    method: &str,
    path: &str,
    body: &str,
    members: &[u64],
) {
    let texts: Vec<_> = members.iter().map(u64::to_string).collect();
    eventually(&format!("{method} {path}"), async || {
        let answer = scenario.cluster.http(at, method, path, body).await;
        match answer.status {
            200 if answer.json()["members"] == json!(texts) => Ok(()),
            // Not now, or nobody knows: asked again, the answer says how it is.
            200 | 409 | 503 | 504 => Err(answer.text()),
            _ => panic!("{}", answer.text()),
        }
    })
    .await;
}
