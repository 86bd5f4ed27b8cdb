//! Proposals, queries, retries.

use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use skep::{Command, Consistency, Error, NodeId, Outcome, ProposalError, RequestId, Ticker};

use crate::support::{Cluster, GROUP, PATIENCE, add, number, soon, until};

#[tokio::test(flavor = "multi_thread")]
async fn every_node_proposes_and_reads_what_was_acknowledged() {
    let cluster = Cluster::with_group(3).await;
    cluster.leader(GROUP).await;
    let mut last = None;
    for node in [1, 2, 3] {
        let response = soon("propose", cluster.node(node).propose(GROUP, add("k")))
            .await
            .expect("it is applied");
        assert_eq!(number(&response.outcome), node);
        assert!(response.term.0 > 0 && Some(response.index) > last);
        last = Some(response.index);
        for reader in [1, 2, 3] {
            let count = soon(
                "query",
                cluster.count(reader, GROUP, "k", Consistency::Linearizable),
            )
            .await;
            assert_eq!(count.expect("it is answered"), node);
        }
    }
    let refused = cluster
        .node(2)
        .propose(GROUP, Bytes::from_static(b"nonsense"))
        .await
        .expect("it is answered");
    assert!(matches!(refused.outcome, Outcome::Rejected { code: 1, .. }));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_proposals_at_once_are_each_answered() {
    let cluster = Cluster::with_group(3).await;
    cluster.leader(GROUP).await;
    let proposals = (0..600).map(|at| cluster.node(at % 3 + 1).propose(GROUP, add("k")));
    let mut counts: Vec<_> = soon("proposals", join_all(proposals))
        .await
        .into_iter()
        .map(|response| number(&response.expect("it is applied").outcome))
        .collect();
    counts.sort_unstable();
    assert_eq!(counts, (1..=600).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_request_is_applied_once() {
    let cluster = Cluster::with_group(3).await;
    cluster.leader(GROUP).await;
    let session = cluster
        .node(1)
        .open_session(GROUP)
        .await
        .expect("a session")
        .session();
    let request = RequestId {
        session,
        sequence: 1,
    };
    let command = Command {
        request,
        acknowledged: 0,
        data: add("k"),
    };
    let first = cluster
        .node(1)
        .propose_as(GROUP, command.clone())
        .await
        .expect("it is applied");
    let again = cluster
        .node(2)
        .propose_as(GROUP, command)
        .await
        .expect("it is answered");
    assert_eq!((number(&first.outcome), number(&again.outcome)), (1, 1));
    assert_eq!((first.index, first.request), (again.index, request));
}

// P-4
#[tokio::test(flavor = "multi_thread")]
async fn retries_apply_once_though_messages_are_lost() {
    let cluster = Cluster::with_group(3).await;
    let leader = cluster.leader(GROUP).await;
    let follower = cluster.node(if leader == NodeId(1) { 2 } else { 1 });
    cluster.net.lose_one_in.store(4, SeqCst);
    let commands = 40;
    let proposals = (0..commands)
        .map(|_| follower.propose_retry(GROUP, add("k"), Duration::from_millis(300), None));
    let mut counts: Vec<_> = soon("retries", join_all(proposals))
        .await
        .into_iter()
        .map(|response| number(&response.expect("it is applied in the end").outcome))
        .collect();
    cluster.net.lose_one_in.store(0, SeqCst);
    counts.sort_unstable();
    assert_eq!(counts, (1..=commands).collect::<Vec<_>>());
    for node in [1, 2, 3] {
        let count = until("the count", || async {
            cluster
                .count(node, GROUP, "k", Consistency::Linearizable)
                .await
                .ok()
        });
        assert_eq!(count.await, commands);
    }
}

// P-10
#[tokio::test(flavor = "multi_thread")]
async fn tries_are_counted_and_their_end_is_honest() {
    let cluster = Cluster::with_group(3).await;
    let leader = cluster.leader(GROUP).await;
    let node = cluster.node(leader.0);
    let response = node
        .propose_retry(GROUP, add("k"), PATIENCE, Some(0))
        .await
        .expect("without a retry there is one try");
    assert_eq!(number(&response.outcome), 1);

    cluster.net.cut(leader);
    for retries in [0, 1, 2].map(Some) {
        let error = soon(
            "the tries end",
            node.propose_retry(GROUP, add("lost"), Duration::from_millis(50), retries),
        )
        .await
        .expect_err("nobody answers");
        let code = error.code().name();
        assert!(matches!(code, "outcome-unknown" | "no-leader"), "{code}");
        assert_eq!(error.is_unknown(), code == "outcome-unknown");
    }
    // What never left the node ends as `no-leader`, once the node has stopped to lead.
    until("it gives up leading", || async {
        node.leader(GROUP).ok()?.is_none().then_some(())
    })
    .await;
    let error = soon("propose", node.propose(GROUP, add("lost")))
        .await
        .expect_err("there is no leader");
    assert!(
        matches!(
            error,
            Error::Proposal {
                source: ProposalError::NoLeader,
                ..
            }
        ),
        "{error}"
    );
    assert!(error.is_retryable() && !error.is_unknown());

    cluster.net.mend(leader);
    until("it is back", || async {
        node.propose_retry(GROUP, add("k"), PATIENCE, Some(0))
            .await
            .ok()
    })
    .await;
    let count = cluster
        .count(leader.0, GROUP, "k", Consistency::Linearizable)
        .await
        .expect("it is answered");
    assert_eq!(count, 2);
}

// P-17
#[tokio::test(flavor = "multi_thread")]
async fn a_stale_query_needs_nobody_else() {
    let cluster = Cluster::with_group(3).await;
    let leader = cluster.leader(GROUP).await;
    cluster
        .node(leader.0)
        .propose(GROUP, add("k"))
        .await
        .expect("it is applied");
    for node in [2, 3] {
        cluster.net.cut(NodeId(node));
    }
    cluster.net.cut(NodeId(1));
    let node = leader.0;
    assert_eq!(
        cluster
            .count(node, GROUP, "k", Consistency::Stale)
            .await
            .expect("its own state will do"),
        1
    );
    let error = soon(
        "query",
        cluster.count(node, GROUP, "k", Consistency::Linearizable),
    )
    .await;
    assert!(error.is_err_and(|error| error.is_retryable()));
}

#[tokio::test(flavor = "multi_thread")]
async fn too_large_a_command_is_refused_by_name() {
    let cluster = Cluster::with_group(1).await;
    cluster.leader(GROUP).await;
    let error = cluster
        .node(1)
        .propose(GROUP, Bytes::from(vec![b'x'; 2 << 20]))
        .await
        .expect_err("over the limit");
    assert_eq!(error.code().name(), "too-large");
    assert!(!error.is_unknown());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_caller_may_own_time() {
    let mut cluster = Cluster::start(0).await;
    let mut config = cluster.config(NodeId(1));
    let (ticks, ticker) = tokio::sync::mpsc::channel(1);
    config.ticker = Ticker::Channel(ticker);
    cluster.start_with(config).await;
    cluster.create(GROUP, &[NodeId(1)]).await;
    let node = cluster.node(1).clone();
    let mut leaders = node.leader_changes();
    // Time stands still: without a tick there is no election, however long one waits; with ticks there is one.
    assert_eq!(node.leader(GROUP).expect("the group is here"), None);
    let (_, change) = soon("an election", async {
        loop {
            tokio::select! {
                sent = ticks.send(()) => sent.expect("the node takes ticks"),
                change = leaders.recv() => return change.expect("it is seen"),
            }
        }
    })
    .await;
    assert_eq!((change.old, change.new), (NodeId(0), NodeId(1)));
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
    soon("stop", node.stop()).await;
    soon("the ticker ends", ticks.closed()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_patient_caller_holds_up_nobody() {
    let mut cluster = Cluster::start(3).await;
    // The group is on one node of three, so it has no leader, and no session can be opened.
    let ids = cluster.ids();
    let config = cluster.group(NodeId(1), GROUP, &ids);
    cluster
        .node(1)
        .create_group(config)
        .await
        .expect("the group is created");
    let node = cluster.node(1).clone();
    let patient = {
        let node = node.clone();
        tokio::spawn(async move { node.propose_retry(GROUP, add("k"), PATIENCE, None).await })
    };
    until("it waits", || async {
        (node.node_status().requests == 1).then_some(())
    })
    .await;
    let hasty = node.propose_retry(GROUP, add("k"), Duration::from_millis(50), Some(1));
    let error = soon("the hasty one", hasty)
        .await
        .expect_err("there is no leader");
    assert_eq!(error.code().name(), "no-leader");
    assert!(!patient.is_finished());
    soon("stop", node.stop()).await;
    let error = soon("the patient one", patient)
        .await
        .expect("no panic")
        .expect_err("it has stopped");
    assert_eq!(error.code().name(), "stopped");
}
