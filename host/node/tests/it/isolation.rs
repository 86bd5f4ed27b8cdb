//! What goes wrong in one group stays there.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use bytes::Bytes;
use skep::{Consistency, GroupId, NodeId};
use skep_core::status::Health;

use crate::support::{Cluster, GROUP, add, number, soon, until};

const ONE: NodeId = NodeId(1);
const OTHER: GroupId = GroupId(8);

async fn two_groups() -> Cluster {
    let mut cluster = Cluster::start(1).await;
    for group in [GROUP, OTHER] {
        cluster.create(group, &[ONE]).await;
        cluster.leader(group).await;
    }
    cluster
}

// P-38
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_panics_faults_only_its_group() {
    let cluster = two_groups().await;
    let node = cluster.node(1);
    let error = soon("propose", node.propose(GROUP, Bytes::from_static(b"panic")))
        .await
        .expect_err("no outcome");
    assert!(
        error.is_unknown() || error.code().name() == "group-faulted",
        "{error}"
    );
    let reason = until("the fault is seen", || async {
        match node.status(GROUP).await.ok()?.replica.health {
            Health::Faulted { reason } => Some(reason),
            _ => None,
        }
    })
    .await;
    assert!(reason.contains("on purpose"), "{reason}");
    for _ in 0..3 {
        let error = soon("query", cluster.count(1, GROUP, "k", Consistency::Stale))
            .await
            .expect_err("no machine");
        assert_eq!(error.code().name(), "group-faulted");
    }
    assert_eq!(
        number(
            &node
                .propose(OTHER, add("k"))
                .await
                .expect("the other goes on")
                .outcome
        ),
        1
    );
    soon("remove", node.remove_group(GROUP))
        .await
        .expect("a faulted group can be removed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_panics_on_one_node_leaves_the_others() {
    let mut cluster = Cluster::with_group(3).await;
    cluster.leader(GROUP).await;
    // Every replica applies the same entry; here they all panic, and all nodes live on with their other groups.
    let ids = cluster.ids();
    cluster.create(OTHER, &ids).await;
    drop(
        soon(
            "propose",
            cluster.node(1).propose(GROUP, Bytes::from_static(b"panic")),
        )
        .await,
    );
    cluster.leader(OTHER).await;
    for node in 1..=3 {
        let response = until("it goes on", || async {
            cluster.node(node).propose(OTHER, add("k")).await.ok()
        })
        .await;
        assert!(number(&response.outcome) >= node);
        assert!(cluster.node(node).exists(GROUP));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_blocks_delays_only_its_group() {
    let mut cluster = two_groups().await;
    let probe = cluster.probe(ONE, GROUP);
    let node = cluster.node(1).clone();
    let blocked =
        tokio::spawn(async move { node.propose(GROUP, Bytes::from_static(b"block")).await });
    until("it blocks", || async {
        (probe.entered.load(SeqCst) == 1).then_some(())
    })
    .await;
    for count in 1..=100 {
        let response = soon("the other", cluster.node(1).propose(OTHER, add("k")))
            .await
            .expect("it goes on");
        assert_eq!(number(&response.outcome), count);
    }
    // Its replica is well: only the machine is late.
    assert_eq!(
        cluster
            .node(1)
            .status(GROUP)
            .await
            .expect("a status")
            .replica
            .health,
        Health::Healthy
    );
    probe.open();
    drop(soon("the blocked one", blocked).await.expect("no panic"));
    let response = soon("it goes on", cluster.node(1).propose(GROUP, add("k")))
        .await
        .expect("it goes on");
    assert_eq!(number(&response.outcome), 1);
}

// P-40
#[tokio::test(flavor = "multi_thread")]
async fn more_blocked_machines_than_cores_delay_nobody_else() {
    let mut cluster = Cluster::start(1).await;
    let stuck: Vec<_> = (100..116).map(GroupId).collect();
    cluster.create(OTHER, &[ONE]).await;
    cluster.leader(OTHER).await;
    for group in &stuck {
        cluster.create(*group, &[ONE]).await;
        cluster.leader(*group).await;
        let node = cluster.node(1).clone();
        let group = *group;
        tokio::spawn(async move { drop(node.propose(group, Bytes::from_static(b"block")).await) });
    }
    for group in &stuck {
        let probe = cluster.probe(ONE, *group);
        until("it blocks", || async {
            (probe.entered.load(SeqCst) == 1).then_some(())
        })
        .await;
    }
    let response = soon("the other", cluster.node(1).propose(OTHER, add("k")))
        .await
        .expect("it goes on");
    assert_eq!(number(&response.outcome), 1);
    for group in &stuck {
        cluster.probe(ONE, *group).open();
    }
    soon("stop", cluster.node(1).stop()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_configuration_faults_the_group() {
    let mut cluster = two_groups().await;
    let refused = GroupId(9);
    let mut config = cluster.group(ONE, refused, &[ONE]);
    config.init = Bytes::from_static(b"refuse");
    cluster
        .node(1)
        .create_group(config)
        .await
        .expect("the group is created");
    let reason = until("the fault is seen", || async {
        match cluster.node(1).status(refused).await.ok()?.replica.health {
            Health::Faulted { reason } => Some(reason),
            _ => None,
        }
    })
    .await;
    assert!(reason.contains("refused on purpose"), "{reason}");
    assert_eq!(
        number(
            &cluster
                .node(1)
                .propose(OTHER, add("k"))
                .await
                .expect("the other goes on")
                .outcome
        ),
        1
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn misdirected_batches_are_counted_and_dropped() {
    let cluster = two_groups().await;
    let batch = |to: u64, group: u64| skep::Batch {
        from: NodeId(2),
        to: NodeId(to),
        priority: skep::Priority::High,
        messages: [(
            GroupId(group),
            vec![skep_core::message::PeerMessage {
                group: GroupId(group),
                incarnation: skep::Incarnation(1),
                from: skep::ReplicaId(2),
                to: skep::ReplicaId(1),
                body: skep_core::message::Body::Gone,
            }],
        )]
        .into(),
    };
    let node = Arc::new(cluster.node(1).clone());
    node.step_batch(batch(9, GROUP.0)).expect("it is running");
    node.step_batch(batch(1, 999)).expect("it is running");
    assert_eq!(node.node_status().misdirected_messages, 2);
    assert_eq!(
        number(
            &node
                .propose(GROUP, add("k"))
                .await
                .expect("it goes on")
                .outcome
        ),
        1
    );
}
