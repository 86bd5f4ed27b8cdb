//! Nodes: started, stopped, dropped, broken.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use bytes::Bytes;
use skep::{Config, Consistency, Error, GroupId, MultiNode, NodeId, SnapshotStatus, Ticker};
use skep_log::SimVfs;

use crate::support::{Cluster, GROUP, Net, add, number, soon, until};

const ONE: NodeId = NodeId(1);

// P-11
#[tokio::test(flavor = "multi_thread")]
async fn after_stop_every_call_says_so_and_none_hangs() {
    let mut cluster = Cluster::with_group(1).await;
    cluster.leader(GROUP).await;
    let node = cluster.node(1).clone();
    assert_eq!(node.to_string(), "node 1 (name-1)");
    soon("stop", node.stop()).await;
    soon("stop again", node.stop()).await;
    let again = cluster.group(ONE, GroupId(50), &[ONE]);
    let command = skep::Command {
        request: skep::RequestId::ANONYMOUS,
        acknowledged: 0,
        data: add("k"),
    };
    let codes = soon("all calls", async {
        [
            node.create_group(again).await.expect_err("stopped"),
            node.remove_group(GROUP).await.expect_err("stopped"),
            node.add_node_to_group(GROUP, NodeId(2), Bytes::new())
                .await
                .expect_err("stopped"),
            node.remove_node_from_group(GROUP, NodeId(2), Bytes::new())
                .await
                .expect_err("stopped"),
            node.campaign(GROUP).await.expect_err("stopped"),
            node.transfer_leader(GROUP, ONE).await.expect_err("stopped"),
            node.status(GROUP).await.expect_err("stopped"),
            node.leader(GROUP).expect_err("stopped"),
            node.propose(GROUP, add("k")).await.expect_err("stopped"),
            node.propose_as(GROUP, command).await.expect_err("stopped"),
            node.propose_retry(GROUP, add("k"), Duration::MAX, None)
                .await
                .expect_err("stopped"),
            node.open_session(GROUP).await.expect_err("stopped"),
            node.query(GROUP, Bytes::new(), Consistency::Linearizable)
                .await
                .expect_err("stopped"),
            node.query(GROUP, Bytes::new(), Consistency::Stale)
                .await
                .expect_err("stopped"),
            node.snapshot(GROUP).await.expect_err("stopped"),
            node.step_batch(skep::Batch {
                from: NodeId(2),
                to: ONE,
                priority: skep::Priority::Normal,
                messages: Default::default(),
            })
            .expect_err("stopped"),
            node.report_unreachable(GROUP, NodeId(2))
                .expect_err("stopped"),
            node.report_snapshot(GROUP, NodeId(2), SnapshotStatus::Failure)
                .expect_err("stopped"),
        ]
    })
    .await;
    for error in codes {
        assert!(matches!(error, Error::Stopped { node: ONE }), "{error:?}");
    }
    assert!(!node.exists(GROUP));
    assert!(node.node_status().stopped);
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_answers_what_is_in_flight() {
    let mut cluster = Cluster::with_group(1).await;
    cluster.leader(GROUP).await;
    let probe = cluster.probe(ONE, GROUP);
    let node = cluster.node(1).clone();
    let in_flight = |command: &'static [u8]| {
        let node = node.clone();
        tokio::spawn(async move { node.propose(GROUP, Bytes::from_static(command)).await })
    };
    let blocked = in_flight(b"block");
    until("it blocks", || async {
        (probe.entered.load(SeqCst) == 1).then_some(())
    })
    .await;
    let committed = || async {
        let status = node.status(GROUP).await.expect("the group is here");
        status.replica.commit
    };
    let before = committed().await;
    let behind = in_flight(b"add k");
    until("it is in the log", || async {
        (committed().await > before).then_some(())
    })
    .await;
    let asking = {
        let node = node.clone();
        tokio::spawn(async move {
            node.query(GROUP, Bytes::from_static(b"k"), Consistency::Stale)
                .await
        })
    };
    until("they wait", || async {
        (node.node_status().requests == 3).then_some(())
    })
    .await;
    let stops: Vec<_> = (0..3)
        .map(|_| {
            let node = node.clone();
            tokio::spawn(async move { node.stop().await })
        })
        .collect();
    for waiting in [blocked, behind] {
        let error = soon("the answer", waiting)
            .await
            .expect("no panic")
            .expect_err("stopped");
        assert_eq!(error.code().name(), "stopped");
        assert!(error.is_unknown(), "it may be in the log");
    }
    let error = soon("the answer", asking)
        .await
        .expect("no panic")
        .expect_err("stopped");
    assert_eq!(error.code().name(), "stopped");
    probe.open();
    for stop in stops {
        soon("stop", stop).await.expect("no panic");
    }
    assert_eq!(node.node_status().requests, 0);

    // Everything is closed: the same directory can be used again, and what was in the log is applied.
    cluster.stop_node(ONE).await;
    cluster.start_node(ONE).await;
    cluster.create(GROUP, &[ONE]).await;
    cluster.leader(GROUP).await;
    let count = cluster
        .count(1, GROUP, "k", Consistency::Linearizable)
        .await
        .expect("it is answered");
    assert_eq!(count, 1, "it was in the log");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_node_lets_its_directory_go() {
    let mut cluster = Cluster::start(0).await;
    for _ in 0..2 {
        let config = cluster.config(ONE);
        let net = Arc::new(Net::default());
        let node = until("the lock is free", || {
            let config = Config {
                ticker: Ticker::default(),
                ..Config::new(ONE, "n", "test", &config.data_dir)
            };
            let net = Arc::clone(&net);
            async move {
                match MultiNode::start(config, |inbound| Ok(net.join(ONE, inbound))).await {
                    Ok(node) => Some(node),
                    Err(error) => {
                        assert_eq!(error.code().name(), "store-locked", "{error}");
                        None
                    }
                }
            }
        })
        .await;
        drop(node);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_not_started_on_what_is_not_its_own() {
    let mut cluster = Cluster::start(1).await;
    let dir = cluster.config(ONE).data_dir;
    let start = |config: Config| async {
        let net = Arc::new(Net::default());
        let id = config.id;
        MultiNode::start(config, |inbound| Ok(net.join(id, inbound)))
            .await
            .expect_err("it is refused")
            .code()
            .name()
    };
    assert_eq!(
        start(Config::new(ONE, "n", "test", &dir)).await,
        "store-locked"
    );
    cluster.stop_node(ONE).await;
    assert_eq!(
        start(Config::new(ONE, "n", "another", &dir)).await,
        "store-wrong-cluster"
    );
    assert_eq!(
        start(Config::new(NodeId(2), "n", "test", &dir)).await,
        "store-wrong-node"
    );
    assert_eq!(
        start(Config::new(NodeId(0), "n", "test", &dir)).await,
        "invalid-config"
    );
    let still = Config {
        ticker: Ticker::Every(Duration::ZERO),
        ..Config::new(ONE, "n", "test", &dir)
    };
    assert_eq!(start(still).await, "invalid-config");
    // A transport that cannot be made leaves nothing running and nothing locked.
    let refused = MultiNode::start(Config::new(ONE, "n", "test", &dir), |_| {
        Err(io::Error::other("no network"))
    })
    .await;
    assert_eq!(
        refused.expect_err("no transport").code().name(),
        "cannot-start"
    );
    until("the lock is free", || async {
        let net = Arc::new(Net::default());
        MultiNode::start(Config::new(ONE, "n", "test", &dir), |inbound| {
            Ok(net.join(ONE, inbound))
        })
        .await
        .ok()
    })
    .await;
}

// P-56
#[tokio::test(flavor = "multi_thread")]
async fn a_failed_sync_fails_the_node_and_acknowledges_nothing() {
    let mut cluster = Cluster::start(0).await;
    let disk = SimVfs::new(1);
    let config = Config {
        vfs: Arc::new(disk.clone()),
        ..cluster.config(ONE)
    };
    cluster.start_with(config).await;
    cluster.create(GROUP, &[ONE]).await;
    cluster.leader(GROUP).await;
    let node = cluster.node(1).clone();
    assert_eq!(
        number(
            &node
                .propose(GROUP, add("k"))
                .await
                .expect("it is applied")
                .outcome
        ),
        1
    );
    let fatal = node.on_fatal();
    let calls = disk.calls();
    for call in calls..calls + 1000 {
        disk.fail_call(call, io::ErrorKind::StorageFull);
    }
    let error = soon("propose", node.propose(GROUP, add("k")))
        .await
        .expect_err("it is not durable");
    assert!(
        error.is_unknown() || error.code().name() == "node-failed",
        "{error}"
    );
    let fault = soon("the fault", fatal).await;
    assert_eq!(fault.node, ONE);
    for _ in 0..2 {
        let error = soon("propose", node.propose(GROUP, add("k")))
            .await
            .expect_err("it has failed");
        assert_eq!(error.code().name(), "node-failed");
    }
    assert!(node.node_status().fault.is_some());
    soon("stop", node.stop()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forgotten_request_gives_its_room_back() {
    let mut cluster = Cluster::with_group(1).await;
    cluster.leader(GROUP).await;
    let probe = cluster.probe(ONE, GROUP);
    let node = cluster.node(1).clone();
    let waiting = {
        let node = node.clone();
        tokio::spawn(async move { node.propose(GROUP, Bytes::from_static(b"block")).await })
    };
    until("it blocks", || async {
        (probe.entered.load(SeqCst) == 1).then_some(())
    })
    .await;
    assert_eq!(node.node_status().requests, 1);
    waiting.abort();
    until("it is forgotten", || async {
        (node.node_status().requests == 0).then_some(())
    })
    .await;
    probe.open();
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
