//! Members come and go.

use std::sync::atomic::Ordering::SeqCst;

use bytes::Bytes;
use skep::{Consistency, NodeId};
use skep_core::state::Role;

use crate::support::{Cluster, GROUP, add, number, soon, until};

/// Three nodes, of which two hold the group.
async fn two_of_three() -> Cluster {
    let mut cluster = Cluster::start(3).await;
    for node in MEMBERS {
        let config = eager(cluster.group(node, GROUP, &MEMBERS));
        cluster
            .node(node.0)
            .create_group(config)
            .await
            .expect("the group is created");
    }
    cluster.leader(GROUP).await;
    cluster
}

const MEMBERS: [NodeId; 2] = [NodeId(1), NodeId(2)];

/// Snapshots soon, and so keeps little of the log behind a snapshot.
fn eager(config: skep::GroupConfig) -> skep::GroupConfig {
    skep::GroupConfig {
        snapshot_entries: 16,
        ..config
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_joiner_catches_up_by_a_snapshot_and_votes() {
    let mut cluster = two_of_three().await;
    for _ in 0..50 {
        cluster
            .node(1)
            .propose(GROUP, add("k"))
            .await
            .expect("it is applied");
    }
    cluster.node(1).snapshot(GROUP).await.expect("a snapshot");
    until("the log is cut", || async {
        let leader = cluster.leader(GROUP).await;
        (cluster
            .node(leader.0)
            .status(GROUP)
            .await
            .ok()?
            .replica
            .first
            .0
            > 1)
        .then_some(())
    })
    .await;
    cluster
        .node(1)
        .propose(GROUP, add("k"))
        .await
        .expect("it is applied");

    let joiner = NodeId(3);
    let config = cluster.group(joiner, GROUP, &[]);
    cluster
        .node(3)
        .create_group(config)
        .await
        .expect("the joiner waits");
    let data = Bytes::from_static(b"address-3");
    let added = soon(
        "add",
        cluster
            .node(1)
            .add_node_to_group(GROUP, joiner, data.clone()),
    )
    .await
    .expect("it is added");
    assert!(added.index.0 > 0);
    assert!(cluster.net.snapshots.load(SeqCst) >= 1);
    assert!(cluster.probe(joiner, GROUP).restores.load(SeqCst) >= 1);
    let count = until("the joiner reads", || async {
        cluster
            .count(3, GROUP, "k", Consistency::Linearizable)
            .await
            .ok()
    });
    assert_eq!(count.await, 51);
    let status = cluster.node(3).status(GROUP).await.expect("a status");
    let roles: Vec<_> = status
        .replica
        .members
        .iter()
        .map(|member| (member.node.0, member.role))
        .collect();
    assert_eq!(
        roles,
        [(1, Role::Voter), (2, Role::Voter), (3, Role::Voter)]
    );
    assert!(status.replica.snapshot.0 > 0);
    let told = cluster
        .probe(NodeId(1), GROUP)
        .conf_changes
        .lock()
        .expect("no panic")
        .clone();
    assert!(
        told.iter()
            .any(|change| change.node == joiner && change.data == data),
        "{told:?}"
    );

    // It counts: with one of the others away, the two left are a majority.
    cluster.stop_node(NodeId(2)).await;
    let response = until("two of three", || async {
        cluster.node(3).propose(GROUP, add("after")).await.ok()
    })
    .await;
    assert!(number(&response.outcome) >= 1);

    // And it knows its fellows after a restart, though it learned of them by the snapshot.
    cluster.stop_node(joiner).await;
    cluster.start_node(joiner).await;
    let config = cluster.group(joiner, GROUP, &[]);
    cluster
        .node(3)
        .create_group(config)
        .await
        .expect("it is recovered");
    let members = cluster
        .node(3)
        .status(GROUP)
        .await
        .expect("a status")
        .replica
        .members;
    assert_eq!(members.len(), 3);
    let count = until("the joiner reads", || async {
        cluster
            .count(3, GROUP, "k", Consistency::Linearizable)
            .await
            .ok()
    });
    assert_eq!(count.await, 51);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_leader_hands_over_and_deletes_itself() {
    let cluster = Cluster::with_group(3).await;
    let leader = cluster.leader(GROUP).await;
    cluster
        .node(leader.0)
        .propose(GROUP, add("k"))
        .await
        .expect("it is applied");
    let asked = NodeId(leader.0 % 3 + 1);
    soon(
        "remove",
        cluster
            .node(asked.0)
            .remove_node_from_group(GROUP, leader, Bytes::new()),
    )
    .await
    .expect("it is removed");
    until("it is gone", || async {
        (!cluster.node(leader.0).exists(GROUP)).then_some(())
    })
    .await;
    let response = until("the others go on", || async {
        cluster.node(asked.0).propose(GROUP, add("k")).await.ok()
    })
    .await;
    assert!(number(&response.outcome) >= 2);
    let left = cluster
        .node(asked.0)
        .status(GROUP)
        .await
        .expect("a status")
        .replica
        .members;
    assert!(left.iter().all(|member| member.node != leader) && left.len() == 2);
    // A message to a node without the group is an error there, not a crash.
    let error = cluster
        .node(leader.0)
        .propose(GROUP, add("k"))
        .await
        .expect_err("it has no replica");
    assert_eq!(error.code().name(), "no-such-group");
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_that_make_no_sense_are_refused() {
    let cluster = two_of_three().await;
    let node = cluster.node(1);
    let refusals = [
        soon(
            "add",
            node.add_node_to_group(GROUP, NodeId(0), Bytes::new()),
        )
        .await,
        soon(
            "add",
            node.add_node_to_group(GROUP, NodeId(2), Bytes::new()),
        )
        .await,
        soon(
            "remove",
            node.remove_node_from_group(GROUP, NodeId(3), Bytes::new()),
        )
        .await,
        soon(
            "remove",
            node.remove_node_from_group(GROUP, NodeId(0), Bytes::new()),
        )
        .await,
    ];
    for refusal in refusals {
        assert_eq!(
            refusal.expect_err("it makes no sense").code().name(),
            "change-refused"
        );
    }
    let members = node.status(GROUP).await.expect("a status").replica.members;
    assert_eq!(members.len(), 2);
}

// P-64
#[tokio::test(flavor = "multi_thread")]
async fn one_change_at_a_time_and_none_hangs() {
    let mut cluster = two_of_three().await;
    // Nobody is there to be caught up, so the first change stays in flight.
    let first = cluster.node(1).clone();
    let leader = cluster.leader(GROUP).await;
    let adding = tokio::spawn(async move {
        first
            .add_node_to_group(GROUP, NodeId(3), Bytes::new())
            .await
    });
    until("it is in flight", || async {
        let members = cluster
            .node(leader.0)
            .status(GROUP)
            .await
            .ok()?
            .replica
            .members;
        members
            .iter()
            .any(|member| member.node == NodeId(3))
            .then_some(())
    })
    .await;
    let second = soon(
        "the second",
        cluster
            .node(2)
            .add_node_to_group(GROUP, NodeId(4), Bytes::new()),
    )
    .await;
    assert_eq!(
        second.expect_err("one at a time").code().name(),
        "change-in-progress"
    );
    let config = cluster.group(NodeId(3), GROUP, &[]);
    cluster
        .node(3)
        .create_group(config)
        .await
        .expect("the joiner comes");
    let first = soon("the first", adding).await.expect("no panic");
    assert!(
        first.is_ok() || first.as_ref().is_err_and(skep::Error::is_unknown),
        "{first:?}"
    );
    until("it votes", || async {
        let members = cluster
            .node(leader.0)
            .status(GROUP)
            .await
            .ok()?
            .replica
            .members;
        members
            .iter()
            .any(|member| member.node == NodeId(3) && member.role == Role::Voter)
            .then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_fell_behind_catches_up_by_a_snapshot() {
    let mut cluster = Cluster::start(3).await;
    let ids = cluster.ids();
    for node in &ids {
        let config = eager(cluster.group(*node, GROUP, &ids));
        cluster
            .node(node.0)
            .create_group(config)
            .await
            .expect("the group is created");
    }
    let leader = cluster.leader(GROUP).await;
    let behind = NodeId(leader.0 % 3 + 1);
    cluster.stop_node(behind).await;
    for _ in 0..30 {
        cluster
            .node(leader.0)
            .propose(GROUP, add("k"))
            .await
            .expect("two of three will do");
    }
    cluster
        .node(leader.0)
        .snapshot(GROUP)
        .await
        .expect("a snapshot");
    until("the log is cut", || async {
        (cluster
            .node(leader.0)
            .status(GROUP)
            .await
            .ok()?
            .replica
            .first
            .0
            > 20)
            .then_some(())
    })
    .await;
    cluster.start_node(behind).await;
    let config = eager(cluster.group(behind, GROUP, &ids));
    cluster
        .node(behind.0)
        .create_group(config)
        .await
        .expect("it is recovered");
    let count = until("it catches up", || async {
        cluster
            .count(behind.0, GROUP, "k", Consistency::Linearizable)
            .await
            .ok()
    });
    assert_eq!(count.await, 30);
    assert!(cluster.net.snapshots.load(SeqCst) >= 1);
}

// P-68
#[tokio::test(flavor = "multi_thread")]
async fn a_removed_node_may_join_again_as_another_replica() {
    let mut cluster = Cluster::with_group(3).await;
    cluster.leader(GROUP).await;
    let (leaver, asked) = (NodeId(3), 1);
    let ids = cluster.ids();
    let mut replica = cluster
        .node(3)
        .status(GROUP)
        .await
        .expect("a status")
        .replica
        .replica;
    for restart in [false, true] {
        let remove = cluster
            .node(asked)
            .remove_node_from_group(GROUP, leaver, Bytes::new());
        soon("remove", remove).await.expect("it is removed");
        until("it is gone", || async {
            (!cluster.node(3).exists(GROUP)).then_some(())
        })
        .await;
        if restart {
            cluster.stop_node(leaver).await;
            cluster.start_node(leaver).await;
        }
        // Its old part is over. Until its files are gone too, the name is taken.
        let refusal =
            |error: &skep::Error| matches!(error.code().name(), "group-removed" | "group-exists");
        let founder = cluster.group(leaver, GROUP, &ids);
        assert!(
            cluster
                .node(3)
                .create_group(founder)
                .await
                .is_err_and(|error| refusal(&error))
        );
        let probe = cluster.probe(leaver, GROUP);
        until("the joiner is up", || async {
            let machine = crate::support::Counters::machine(&probe);
            let config = skep::GroupConfig::new(GROUP, "again", machine, Vec::new());
            cluster.node(3).create_group(config).await.ok()
        })
        .await;
        let add_back = cluster
            .node(asked)
            .add_node_to_group(GROUP, leaver, Bytes::new());
        soon("add", add_back).await.expect("it is added");
        cluster
            .node(asked)
            .propose(GROUP, add("k"))
            .await
            .expect("it is applied");
        let count = until("it reads", || async {
            cluster
                .count(3, GROUP, "k", Consistency::Linearizable)
                .await
                .ok()
        });
        assert_eq!(count.await, if restart { 2 } else { 1 });
        let again = cluster
            .node(3)
            .status(GROUP)
            .await
            .expect("a status")
            .replica
            .replica;
        assert!(again > replica, "{again:?} after {replica:?}");
        replica = again;
    }
    // And what it became is what it comes back as.
    cluster.stop_node(leaver).await;
    cluster.start_node(leaver).await;
    let config = cluster.group(leaver, GROUP, &[]);
    cluster
        .node(3)
        .create_group(config)
        .await
        .expect("it is recovered");
    assert_eq!(
        cluster
            .node(3)
            .status(GROUP)
            .await
            .expect("a status")
            .replica
            .replica,
        replica
    );
    let count = until("it reads", || async {
        cluster
            .count(3, GROUP, "k", Consistency::Linearizable)
            .await
            .ok()
    });
    assert_eq!(count.await, 2);
}
