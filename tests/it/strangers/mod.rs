//! What people who do not know the house found out about it, and what it makes of that now. See `tests/BUGS.md`.

use skep::GroupStatus;
use skep_client::GroupId;
use skep_tests::clock::eventually;
use skep_tests::cluster::{Cluster, Settings};

use crate::load::{answer, propose, text};

mod activation;
mod catch_up;
mod compile;
mod disk;
mod doors;
mod healing;
mod logs;
mod machines;
mod peers;
mod sessions;

/// A cluster with a group that strangers are after, in which something was written.
async fn begun(settings: &Settings) -> (Cluster, GroupId) {
    let cluster = Cluster::start(settings).await;
    let group = cluster.create_kv(1, "victim", &[1, 2, 3]).await;
    let client = cluster.client().await;
    assert!(text(propose(&client, group, "put kept before").await).starts_with("OK"));
    cluster.caught_up(group, &cluster.ids()).await;
    (cluster, group)
}

/// All is as it was, on every node: what was written is there, and more can be.
async fn goes_on(cluster: &Cluster, group: GroupId) {
    let client = cluster.client().await;
    assert_eq!(answer(&client, group, "get kept").await, "before");
    assert!(text(propose(&client, group, "put after all").await).starts_with("OK"));
    cluster.caught_up(group, &cluster.ids()).await;
    for status in statuses(cluster, group).await {
        assert_eq!(status.halted, None);
        assert_eq!(status.replica.members.len(), 3);
    }
    // The catalogue too.
    let groups = cluster.http(1, "GET", "/v1/groups", "").await.json();
    let name = format!("more-{}", groups.as_array().expect("a list").len());
    cluster.create_kv(1, &name, &[1, 2, 3]).await;
}

async fn statuses(cluster: &Cluster, group: GroupId) -> Vec<GroupStatus> {
    let mut all = Vec::new();
    for id in cluster.ids() {
        let what = format!("the status at node {id}");
        let status = eventually(&what, async || cluster.try_status(id, group).await);
        all.push(status.await);
    }
    all
}
