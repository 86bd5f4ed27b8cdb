//! Nobody puts into a group's log what its replicas cannot do.

use serde_json::{Value, json};
use skep_client::{ComponentId, GroupId};
use skep_tests::cluster::{Cluster, Settings};
use skep_tests::forger::{Claim, Forger};
use skep_tests::guests;
use skep_wire::proto::Lane;

use super::{begun, goes_on};

fn activation_of(component: ComponentId) -> Value {
    json!({
        "group": "victim",
        "deployed": {"component": component.to_string(), "profile": {}, "quota": {}},
    })
}

async fn goes_on_after_restarts(mut cluster: Cluster, group: GroupId) {
    goes_on(&cluster, group).await;
    for id in cluster.ids() {
        cluster.kill(id);
        cluster.restart(id).await;
    }
    goes_on(&cluster, group).await;
    cluster.assert_no_panic();
}

/// C2: 200 bytes to the client port named a component that nobody has, and the group stopped for ever.
// P-25
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_component_that_nobody_has_is_not_activated() {
    let (cluster, group) = begun(&Settings::default()).await;
    let asked = activation_of(ComponentId::of(b"forged"));
    for method in ["group.activate", "local:group.activate"] {
        for id in cluster.ids() {
            let stranger = cluster.client_at(&[id]).await;
            let refused = stranger.call(method, &asked).await;
            assert!(refused.is_err(), "{method} at node {id}: {refused:?}");
        }
    }
    goes_on_after_restarts(cluster, group).await;
}

/// The same in the name of a node, at the port where nodes ask each other: the catalogue must keep the component for the group, and
/// that it keeps it as an upload is not enough.
// P-25
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn not_even_a_node_activates_what_is_not_kept_for_the_group() {
    let (mut cluster, group) = begun(&Settings::default()).await;
    let nobody_has = ComponentId::of(b"forged");
    let not_kept = cluster.upload(1, guests::TRAPS).await;
    // In the name of one that is away: a node that runs takes its place back.
    let (away, others) = (3, [1, 2]);
    let claim = Claim::of(&cluster, away).await;
    cluster.kill(away);
    for group in [GroupId(0), group] {
        cluster.leader_among(group, &others).await;
    }
    for id in others {
        for component in [nobody_has, not_kept] {
            for method in ["group.activate", "local:group.activate"] {
                let address = &cluster.node(id).peer;
                let mut forger = Forger::introduce(address, &claim, id, Lane::Requests)
                    .await
                    .expect("nothing but the store tells nodes apart");
                let answer = forger.call(method, &activation_of(component)).await;
                let refusal = answer.expect_err(method);
                assert_eq!(refusal.code, "no-such-component", "{}", refusal.message);
                assert!(
                    refusal.message.contains(&component.to_string()),
                    "{}",
                    refusal.message
                );
            }
        }
    }
    cluster.restart(away).await;
    goes_on_after_restarts(cluster, group).await;
}
