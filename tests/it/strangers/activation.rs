//! Nobody puts into a group's log what its replicas cannot do.

use serde_json::json;
use skep_client::{ComponentId, Consistency, Outcome};
use skep_tests::cluster::{Cluster, Settings};

use crate::load::propose;

/// C2: 200 bytes to the client port named a component that nobody has, and the group stopped for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_component_that_nobody_has_is_not_activated() {
    let mut cluster = Cluster::start(&Settings::default()).await;
    let group = cluster.create_kv(1, "victim", &[1, 2, 3]).await;
    let client = cluster.client().await;
    propose(&client, group, "put a 1").await;
    let nobody_has = ComponentId::of(b"forged");
    for method in ["group.activate", "local:group.activate"] {
        for id in cluster.ids() {
            let stranger = cluster.client_at(&[id]).await;
            let asked = json!({
                "group": "victim",
                "deployed": {
                    "component": nobody_has.to_string(),
                    "profile": {},
                    "quota": {},
                },
            });
            let refused = stranger.call(method, &asked).await;
            assert!(refused.is_err(), "{method} at node {id}: {refused:?}");
        }
    }
    let serves = async |cluster: &Cluster, what: &str| {
        propose(&client, group, &format!("put {what} 1")).await;
        let asked = format!("get {what}").into();
        let answer = client
            .query(group, asked, Consistency::Linearizable)
            .await
            .expect("it serves");
        assert_eq!(answer.outcome, Outcome::Reply("1".into()));
        cluster.caught_up(group, &cluster.ids()).await;
    };
    serves(&cluster, "after").await;
    for id in cluster.ids() {
        cluster.kill(id);
        cluster.restart(id).await;
    }
    serves(&cluster, "restarted").await;
    cluster.assert_no_panic();
}
