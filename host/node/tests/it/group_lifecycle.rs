//! Groups: created, recovered, led, removed; and what is refused.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use bytes::Bytes;
use skep::{Consistency, GroupId, GroupNode, Incarnation, NodeId, Peer, SnapshotStatus};
use skep_core::outcome::ChangeKind;

use crate::support::{Cluster, Counters, GROUP, Probe, add, number, soon, until};

const ONE: NodeId = NodeId(1);

#[tokio::test(flavor = "multi_thread")]
async fn a_group_exists_once_and_the_second_touches_nothing() {
    let mut cluster = Cluster::with_group(1).await;
    cluster.leader(GROUP).await;
    cluster
        .node(1)
        .propose(GROUP, add("k"))
        .await
        .expect("it is applied");
    let before = cluster.node(1).log_stats();
    let mut again = cluster.group(ONE, GROUP, &[ONE]);
    // Where the first is refused at the door, its own directory is not even made.
    let elsewhere = cluster.dir(1).join("elsewhere");
    again.data_dir = Some(elsewhere.clone());
    let error = cluster
        .node(1)
        .create_group(again)
        .await
        .expect_err("it exists");
    assert_eq!(error.code().name(), "group-exists");
    assert!(!elsewhere.exists());
    assert_eq!(cluster.node(1).log_stats(), before);
    assert_eq!(
        cluster
            .count(1, GROUP, "k", Consistency::Linearizable)
            .await
            .expect("it goes on"),
        1
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_configurations_name_their_field() {
    let mut cluster = Cluster::start(1).await;
    type Spoil = fn(&mut skep::GroupConfig);
    let fields: [(&str, Spoil); 9] = [
        ("members", |config| {
            config.members = vec![Peer::new(NodeId(0))]
        }),
        ("members", |config| {
            config.members = vec![Peer::new(ONE), Peer::new(ONE)]
        }),
        ("members", |config| {
            config.members = vec![Peer::new(NodeId(2))]
        }),
        ("incarnation", |config| config.incarnation = Incarnation(0)),
        ("heartbeat_ticks", |config| config.heartbeat_ticks = 0),
        ("election_ticks", |config| {
            config.election_ticks = config.heartbeat_ticks
        }),
        ("max_in_flight", |config| config.max_in_flight = 0),
        ("max_message_bytes", |config| config.max_message_bytes = 0),
        ("snapshot_entries", |config| config.snapshot_entries = 0),
    ];
    for (field, spoil) in fields {
        let mut config = cluster.group(ONE, GROUP, &[ONE]);
        spoil(&mut config);
        let error = cluster.node(1).create_group(config).await.expect_err(field);
        assert_eq!(error.code().name(), "invalid-config");
        assert!(error.to_string().contains(&format!("`{field}`")), "{error}");
        assert!(!cluster.node(1).exists(GROUP));
    }
    // What was refused has left nothing that stands in the way.
    cluster.create(GROUP, &[ONE]).await;
    assert!(cluster.node(1).exists(GROUP));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_group_is_an_error_at_once() {
    let cluster = Cluster::with_group(1).await;
    cluster.leader(GROUP).await;
    let (node, unknown) = (cluster.node(1), GroupId(99));
    assert!(!node.exists(unknown));
    let codes = [
        node.propose(unknown, add("k"))
            .await
            .expect_err("unknown")
            .code()
            .name(),
        node.propose_retry(unknown, add("k"), std::time::Duration::MAX, None)
            .await
            .expect_err("unknown")
            .code()
            .name(),
        node.query(unknown, Bytes::new(), Consistency::Stale)
            .await
            .expect_err("unknown")
            .code()
            .name(),
        node.status(unknown)
            .await
            .expect_err("unknown")
            .code()
            .name(),
        node.campaign(unknown)
            .await
            .expect_err("unknown")
            .code()
            .name(),
        node.transfer_leader(unknown, ONE)
            .await
            .expect_err("unknown")
            .code()
            .name(),
        node.snapshot(unknown)
            .await
            .expect_err("unknown")
            .code()
            .name(),
        node.remove_group(unknown)
            .await
            .expect_err("unknown")
            .code()
            .name(),
        node.add_node_to_group(unknown, NodeId(2), Bytes::new())
            .await
            .expect_err("unknown")
            .code()
            .name(),
        node.report_unreachable(unknown, NodeId(2))
            .expect_err("unknown")
            .code()
            .name(),
        node.report_snapshot(unknown, NodeId(2), SnapshotStatus::Failure)
            .expect_err("unknown")
            .code()
            .name(),
    ];
    assert!(
        codes.iter().all(|code| *code == "no-such-group"),
        "{codes:?}"
    );
    // A node that is no member is an error too, and neither disturbs the group.
    let stranger = NodeId(9);
    assert_eq!(
        node.report_unreachable(GROUP, stranger)
            .expect_err("no member")
            .code()
            .name(),
        "invalid-config"
    );
    assert_eq!(
        node.report_snapshot(GROUP, stranger, SnapshotStatus::Finish)
            .expect_err("no member")
            .code()
            .name(),
        "invalid-config"
    );
    assert_eq!(
        node.transfer_leader(GROUP, stranger)
            .await
            .expect_err("no member")
            .code()
            .name(),
        "invalid-config"
    );
    assert!(node.propose(GROUP, add("k")).await.is_ok());
}

// P-69
#[tokio::test(flavor = "multi_thread")]
async fn leaders_are_announced_with_their_real_term() {
    let mut cluster = Cluster::start(3).await;
    let mut changes = cluster.node(1).leader_changes();
    let ids = cluster.ids();
    cluster.create(GROUP, &ids).await;
    let leader = cluster.leader(GROUP).await;
    let (group, change) = soon("the change", changes.recv())
        .await
        .expect("it is seen");
    assert_eq!(group, GROUP);
    assert!(change.term.0 > 0);
    let response = cluster
        .node(leader.0)
        .propose(GROUP, add("k"))
        .await
        .expect("it is applied");
    // The machines are told through the log, all the same.
    for node in 1..=3 {
        cluster
            .count(node, GROUP, "k", Consistency::Linearizable)
            .await
            .expect("it is answered");
        let probe = cluster.probe(NodeId(node), GROUP);
        let told = probe.leaders.lock().expect("no panic").clone();
        let last = told.last().expect("a leader was told");
        assert_eq!((last.new, last.term), (leader, response.term));
    }
    let status = cluster.node(1).status(GROUP).await.expect("a status");
    assert_eq!(
        (status.replica.leader, status.replica.term),
        (Some(leader), response.term)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn campaign_and_transfer_move_leadership() {
    let cluster = Cluster::with_group(3).await;
    let first = cluster.leader(GROUP).await;
    cluster
        .node(first.0)
        .propose(GROUP, add("k"))
        .await
        .expect("it is applied");
    let second = NodeId(first.0 % 3 + 1);
    cluster
        .node(first.0)
        .transfer_leader(GROUP, second)
        .await
        .expect("it is begun");
    until("the transfer", || async {
        (cluster.leader(GROUP).await == second).then_some(())
    })
    .await;
    let third = NodeId(second.0 % 3 + 1);
    until("the campaign", || async {
        // A campaign may be lost, to the other follower too, and pre-vote refuses it while the leader is heard; so whoever
        // leads is silenced.
        let node = cluster.node(third.0);
        let leader = node.leader(GROUP).expect("the group is here");
        if let Some(other) = leader.filter(|leader| *leader != third) {
            cluster.net.mend(first);
            cluster.net.mend(second);
            cluster.net.cut(other);
        }
        node.campaign(GROUP).await.expect("it is begun");
        (leader == Some(third)).then_some(())
    })
    .await;
    cluster.net.mend(first);
    cluster.net.mend(second);
    assert_eq!(
        number(
            &cluster
                .node(third.0)
                .propose(GROUP, add("k"))
                .await
                .expect("it is applied")
                .outcome
        ),
        2
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_comes_back_from_disk() {
    let mut cluster = Cluster::with_group(3).await;
    cluster.leader(GROUP).await;
    for _ in 0..5 {
        cluster
            .node(1)
            .propose(GROUP, add("before"))
            .await
            .expect("it is applied");
    }
    let snapshot = cluster
        .node(1)
        .snapshot(GROUP)
        .await
        .expect("a snapshot")
        .index;
    for _ in 0..3 {
        cluster
            .node(1)
            .propose(GROUP, add("after"))
            .await
            .expect("it is applied");
    }
    let ids = cluster.ids();
    for node in &ids {
        cluster.stop_node(*node).await;
    }
    for node in &ids {
        cluster.start_node(*node).await;
        assert_eq!(
            cluster.node(node.0).dormant_groups(),
            [(GROUP, Incarnation(1))]
        );
    }
    cluster.create(GROUP, &ids).await;
    for node in 1..=3 {
        let counts = until("the counts", || async {
            let before = cluster
                .count(node, GROUP, "before", Consistency::Linearizable)
                .await
                .ok()?;
            Some((
                before,
                cluster
                    .count(node, GROUP, "after", Consistency::Linearizable)
                    .await
                    .ok()?,
            ))
        });
        assert_eq!(counts.await, (5, 3));
        let status = cluster.node(node).status(GROUP).await.expect("a status");
        assert!(status.replica.snapshot >= snapshot, "{:?}", status.replica);
    }
}

// P-61
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_leaves_one_file_and_a_restored_machine() {
    let mut cluster = Cluster::with_group(1).await;
    cluster.leader(GROUP).await;
    let probe = cluster.probe(ONE, GROUP);
    for round in 1..=3 {
        cluster
            .node(1)
            .propose(GROUP, add("k"))
            .await
            .expect("it is applied");
        let index = cluster
            .node(1)
            .snapshot(GROUP)
            .await
            .expect("a snapshot")
            .index;
        assert!(probe.restores.load(SeqCst) >= round);
        let snap = cluster.dir(1).join("snap");
        until("the snapshot counts and the former is gone", || async {
            let status = cluster.node(1).status(GROUP).await.ok()?;
            let files = std::fs::read_dir(&snap).expect("the directory").count();
            (status.replica.snapshot == index && files == 1).then_some(())
        })
        .await;
    }
    assert_eq!(
        cluster
            .count(1, GROUP, "k", Consistency::Linearizable)
            .await
            .expect("it is answered"),
        3
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_group_is_gone_for_ever_and_may_come_again() {
    let mut cluster = Cluster::with_group(1).await;
    cluster.leader(GROUP).await;
    cluster
        .node(1)
        .propose(GROUP, add("k"))
        .await
        .expect("it is applied");
    cluster.node(1).snapshot(GROUP).await.expect("a snapshot");
    soon("remove", cluster.node(1).remove_group(GROUP))
        .await
        .expect("it is removed");
    assert!(!cluster.node(1).exists(GROUP));
    assert_eq!(
        cluster
            .node(1)
            .remove_group(GROUP)
            .await
            .expect_err("it is gone")
            .code()
            .name(),
        "no-such-group"
    );
    assert_eq!(
        std::fs::read_dir(cluster.dir(1).join("snap"))
            .expect("the directory")
            .count(),
        0
    );

    let restarts = [false, true];
    for restart in restarts {
        if restart {
            cluster.stop_node(ONE).await;
            cluster.start_node(ONE).await;
            assert_eq!(cluster.node(1).dormant_groups(), []);
        }
        let config = cluster.group(ONE, GROUP, &[ONE]);
        assert_eq!(
            cluster
                .node(1)
                .create_group(config)
                .await
                .expect_err("that life is over")
                .code()
                .name(),
            "group-removed"
        );
    }
    let mut config = cluster.group(ONE, GROUP, &[ONE]);
    config.incarnation = Incarnation(2);
    cluster
        .node(1)
        .create_group(config)
        .await
        .expect("another life");
    cluster.leader(GROUP).await;
    assert_eq!(
        cluster
            .count(1, GROUP, "k", Consistency::Linearizable)
            .await
            .expect("it is answered"),
        0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dormant_group_can_be_removed_or_replaced() {
    let mut cluster = Cluster::start(1).await;
    let (kept, replaced) = (GroupId(1), GroupId(2));
    for group in [kept, replaced] {
        cluster.create(group, &[ONE]).await;
        cluster.leader(group).await;
        cluster
            .node(1)
            .propose(group, add("k"))
            .await
            .expect("it is applied");
        cluster.node(1).snapshot(group).await.expect("a snapshot");
    }
    cluster.stop_node(ONE).await;
    cluster.start_node(ONE).await;
    assert_eq!(cluster.node(1).dormant_groups().len(), 2);
    soon("remove", cluster.node(1).remove_group(kept))
        .await
        .expect("it is removed");
    let mut config = cluster.group(ONE, replaced, &[ONE]);
    config.incarnation = Incarnation(2);
    cluster
        .node(1)
        .create_group(config)
        .await
        .expect("the former life ends by itself");
    cluster.leader(replaced).await;
    assert_eq!(
        cluster
            .count(1, replaced, "k", Consistency::Linearizable)
            .await
            .expect("it is answered"),
        0
    );
    let config = cluster.group(ONE, kept, &[ONE]);
    assert_eq!(
        cluster
            .node(1)
            .create_group(config)
            .await
            .expect_err("that life is over")
            .code()
            .name(),
        "group-removed"
    );
    assert_eq!(cluster.node(1).dormant_groups(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_may_have_a_log_of_its_own() {
    let mut cluster = Cluster::start(1).await;
    let own = cluster.dir(1).join("own");
    for life in 0..2 {
        let mut config = cluster.group(ONE, GROUP, &[ONE]);
        config.data_dir = Some(own.clone());
        cluster
            .node(1)
            .create_group(config)
            .await
            .expect("the group is created");
        cluster.leader(GROUP).await;
        let response = cluster
            .node(1)
            .propose(GROUP, add("k"))
            .await
            .expect("it is applied");
        assert_eq!(number(&response.outcome), life + 1);
        assert_eq!(
            cluster.node(1).log_stats().records,
            0,
            "the node's log has nothing of it"
        );
        cluster.stop_node(ONE).await;
        cluster.start_node(ONE).await;
    }
    assert!(own.join("wal").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_machine_hears_of_members_with_their_data() {
    let cluster_probe = Arc::new(Probe::default());
    let cluster = Cluster::start(1).await;
    let member = GroupNode {
        group: GROUP,
        node: ONE,
        data: Bytes::from_static(b"10.0.0.1:7"),
    };
    let config = skep::GroupConfig::new(
        GROUP,
        "g",
        Counters::machine(&cluster_probe),
        vec![member.peer()],
    );
    cluster
        .node(1)
        .create_group(config)
        .await
        .expect("the group is created");
    cluster.leader(GROUP).await;
    cluster
        .node(1)
        .propose(GROUP, add("k"))
        .await
        .expect("it is applied");
    let told = cluster_probe.conf_changes.lock().expect("no panic").clone();
    let [change] = &told[..] else {
        panic!("one member was added, not {told:?}")
    };
    assert_eq!(
        (change.kind, change.node, &change.data),
        (ChangeKind::AddVoter, ONE, &member.data)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_to_a_silent_member_says_that_it_is_unreachable() {
    let cluster = Cluster::with_group(3).await;
    let leader = cluster.leader(GROUP).await;
    let silent = cluster
        .ids()
        .into_iter()
        .find(|node| *node != leader)
        .expect("there are three");
    cluster.net.cut(silent);
    let error = until("the leader has noticed", || async {
        let node = cluster.node(leader.0);
        node.transfer_leader(GROUP, silent).await.err()
    })
    .await;
    assert_eq!(error.code().name(), "unreachable", "{error}");
}
