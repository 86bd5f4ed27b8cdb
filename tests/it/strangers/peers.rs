//! Who speaks to the port for nodes without being one, or in the name of one; and what nodes ask of each other.

use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::json;
use skep::GroupStatus;
use skep_core::status::Part;
use skep_tests::clock::eventually;
use skep_tests::cluster::{Cluster, Settings};
use skep_tests::forger::{Claim, Forger, Message};
use skep_tests::{http, silent};
use skep_wire::proto::{self, Lane, RaftKind, RefusalReason, peer_message};

use super::{begun, goes_on, statuses};

/// Further than any log goes.
const FAR: u64 = 1 << 40;

fn beat(term: u64, commit: u64) -> peer_message::Body {
    peer_message::Body::Raft(proto::RaftMessage {
        kind: RaftKind::Heartbeat.into(),
        term,
        commit,
        ..Default::default()
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_nobody_named_are_refused_and_not_remembered() {
    let (cluster, group) = begun(&Settings::default()).await;
    for to in cluster.ids() {
        let address = cluster.node(to).peer.clone();
        for stranger in (4..40).chain([6, u64::MAX]) {
            let claim = Claim::of(&cluster, stranger).await;
            let refused = Forger::introduce(&address, &claim, to, Lane::High).await;
            let refusal = refused.expect_err("nobody named it");
            assert_eq!(refusal.reason(), RefusalReason::UnknownNode, "{refusal:?}");
        }
        // And who does not know the name of the cluster does not learn it here.
        let elsewhere = Claim {
            cluster: "elsewhere".to_owned(),
            ..Claim::of(&cluster, 2).await
        };
        let refused = Forger::introduce(&address, &elsewhere, to, Lane::High).await;
        let refusal = refused.expect_err("another cluster");
        assert!(!refusal.text.contains("test"), "{}", refusal.text);
        let pins = std::fs::read_to_string(cluster.node(to).data().join("peers"));
        let pins = pins.expect("the stores of the other nodes");
        let pinned: Vec<u64> = pins
            .lines()
            .filter_map(|line| line.split_once(' ')?.0.parse().ok())
            .collect();
        let others = cluster.others(&[to]);
        assert!(
            pinned.iter().all(|node| others.contains(node)),
            "node {to} remembers {pinned:?}"
        );
    }
    goes_on(&cluster, group).await;
}

/// In the name of each node to each other one, with its store: what it says of the log and of the members is not believed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forged_messages_of_known_nodes_delete_nothing_and_stop_nobody() {
    let (cluster, group) = begun(&Settings::default()).await;
    let all = statuses(&cluster, group).await;
    let term = all.iter().map(|status| status.replica.term.0).max();
    let term = term.expect("three of them");
    let places: Vec<_> = all
        .iter()
        .map(|status| (status.replica.node.0, status.replica.replica.0))
        .collect();
    let incarnation = all[0].replica.incarnation.0;
    let standing = |nonce| {
        peer_message::Body::Standing(proto::Standing {
            nonce,
            term: FAR,
            member: true,
            removed: true,
            matched: FAR,
            well: true,
            stopped: None,
            waits: 0,
        })
    };
    for (to, replica) in &places {
        for (node, spoken_for) in places.iter().filter(|(node, _)| node != to) {
            let claim = Claim::of(&cluster, *node).await;
            let address = &cluster.node(*to).peer;
            let say = |group, incarnation, from, to, body| Message {
                group,
                incarnation,
                from,
                to,
                body,
            };
            // Of this group, by the replica that is there, and by one that nobody knows; of the catalogue, whose replicas have
            // the ids of their nodes.
            let speakers = [
                (group.0, incarnation, *spoken_for, *replica),
                (group.0, incarnation, 77, *replica),
                (0, 1, *node, *to),
                (0, 1, 77, *to),
            ];
            let high = speakers
                .iter()
                .flat_map(|(group, life, from, to)| {
                    [term, term + 1, FAR]
                        .map(|term| say(*group, *life, *from, *to, beat(term, FAR)))
                })
                .collect();
            let normal = speakers
                .iter()
                .flat_map(|(group, life, from, to)| {
                    [
                        peer_message::Body::Gone(proto::Nothing {}),
                        standing(0),
                        standing(1),
                    ]
                    .map(|body| say(*group, *life, *from, *to, body))
                })
                .collect();
            for (lane, messages) in [(Lane::High, high), (Lane::Normal, normal)] {
                let mut forger = Forger::introduce(address, &claim, *to, lane)
                    .await
                    .expect("nothing but the store tells nodes apart");
                forger.say(messages).await;
            }
        }
    }
    // What was sent has arrived.
    for id in cluster.ids() {
        eventually(&format!("node {id} has heard of it"), async || {
            let counted = cluster.metric(id, "skep_distrusted_messages_total").await;
            // Of two nodes, each heartbeat and each answer, for the group and the catalogue.
            match counted >= 2 * (3 + 2) * 2 {
                true => Ok(()),
                false => Err(format!("{counted} messages")),
            }
        })
        .await;
    }
    goes_on(&cluster, group).await;
}

/// Leaders are deposed, and entries come in, only by replicas from where the membership has them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_speaks_from_its_own_node_only() {
    // Nobody campaigns because the machine is busy: who leads must be the same afterwards.
    let (cluster, group) = begun(&Settings {
        election_ticks: 50,
        ..Settings::default()
    })
    .await;
    let leader = cluster.leader(group).await;
    let all = statuses(&cluster, group).await;
    let of = |node: u64| {
        let mut all = all.iter();
        let found = all.find(|status| status.replica.node.0 == node);
        found.expect("each node has one").clone()
    };
    let before = of(leader);
    for to in cluster.ids() {
        let (at, others) = (of(to), cluster.others(&[to]));
        let status = of(others[0]);
        // From the node of another replica than the one that is said to speak.
        let claim = Claim::of(&cluster, others[1]).await;
        let entry = proto::Entry {
            term: before.replica.term.0,
            index: before.replica.last.0 + 1,
            data: Bytes::from_static(b"no entry at all"),
            ..Default::default()
        };
        let append = proto::RaftMessage {
            kind: RaftKind::Append.into(),
            term: before.replica.term.0 + 1,
            log_term: before.replica.term.0,
            index: before.replica.last.0,
            entries: vec![entry],
            commit: FAR,
            ..Default::default()
        };
        let bodies = [
            (Lane::High, beat(before.replica.term.0 + 1, 0)),
            (Lane::Normal, peer_message::Body::Raft(append)),
        ];
        for (lane, body) in bodies {
            let mut forger = Forger::introduce(&cluster.node(to).peer, &claim, to, lane)
                .await
                .expect("nothing but the store tells nodes apart");
            let message = Message {
                group: group.0,
                incarnation: at.replica.incarnation.0,
                from: status.replica.replica.0,
                to: at.replica.replica.0,
                body,
            };
            forger.say(vec![message]).await;
        }
        eventually(&format!("node {to} has heard of it"), async || {
            let counted = cluster.metric(to, "skep_distrusted_messages_total").await;
            match counted >= 2 {
                true => Ok(()),
                false => Err(format!("{counted} messages")),
            }
        })
        .await;
    }
    let after = statuses(&cluster, group).await;
    for status in &after {
        assert_eq!(status.replica.last, before.replica.last, "{status:?}");
    }
    let leads = |status: &&GroupStatus| status.replica.part == Part::Leader;
    assert!(after.iter().any(|status| leads(&status)));
    goes_on(&cluster, group).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nodes_ask_of_each_other_is_refused_on_the_port_for_clients() {
    let (cluster, group) = begun(&Settings::default()).await;
    let client = cluster.client().await;
    let component = "ab".repeat(32);
    let activate = json!({
        "group": group.to_string(),
        "deployed": {"component": component, "profile": {}, "quota": {}},
    });
    for (method, body) in [
        ("group.activate", activate.clone()),
        ("local:group.activate", activate),
        ("component.prepare", json!({"component": component})),
        ("local:group.snapshot", json!({"group": group.to_string()})),
        ("local:group.resume", json!({"group": group.to_string()})),
        ("local:no.such.method", json!({})),
    ] {
        let error = client.call(method, &body).await.expect_err("refused");
        assert_eq!(error.code().name(), "forbidden", "{method}: {error}");
        assert!(error.to_string().contains(method), "{error}");
    }
    // What they are part of goes on.
    for id in cluster.ids() {
        let client = cluster.client_at(&[id]).await;
        let asked = json!({"group": group.to_string()});
        client
            .call("group.snapshot", &asked)
            .await
            .expect("a snapshot");
    }
    let upgrade = json!({"group": group.to_string(), "quota": {"commands-per-second": 1000}});
    client
        .call("group.upgrade", &upgrade)
        .await
        .expect("upgraded");
    goes_on(&cluster, group).await;
}

/// As many silent clients as a node takes: nodes ask each other on another port.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_clients_do_not_stop_what_nodes_ask_of_each_other() {
    const CONNECTIONS: usize = 8;
    let cluster = Cluster::start(&Settings {
        more: format!("[limits]\nclient_connections = {CONNECTIONS}\n"),
        ..Settings::default()
    })
    .await;
    let group = cluster.create_kv(1, "kv", &[1, 2]).await;
    let mut silent = Vec::new();
    for id in [1, 2] {
        for _ in 0..CONNECTIONS {
            silent.push(silent::client(&cluster.node(id).client).await);
        }
    }
    // Node 3 has no replica, so each of these is handed on.
    for n in 0..20 {
        let path = format!("/v1/groups/{group}/propose");
        let answer = cluster.http(3, "POST", &path, format!("put k{n} v")).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let path = format!("/v1/groups/{group}/query");
        let answer = cluster.http(3, "POST", &path, format!("get k{n}")).await;
        assert_eq!((answer.status, answer.text().as_str()), (200, "v"));
    }
    drop(silent);
}

/// Nobody can know yet that a member is silent, and nobody has to wait for it: another one can be connected to at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_request_that_is_handed_on_waits_for_no_silent_member() {
    let settings = Settings {
        nodes: 4,
        ..Settings::default()
    };
    let cluster = Cluster::start(&settings).await;
    let group = cluster.create_kv(1, "kv", &[1, 2, 3]).await;
    let moved = cluster
        .http(1, "POST", "/v1/groups/kv/transfer", "{\"node\": 2}")
        .await;
    assert_eq!(moved.status, 200, "{}", moved.text());
    cluster.leader_among(group, &[1, 2, 3]).await;
    cluster.pause(1);
    // Node 4 has asked nobody for anything of the group, and node 1 is the first of its members.
    let started = Instant::now();
    let answer = cluster
        .http(4, "POST", "/v1/groups/kv/propose", "put a 1")
        .await;
    let took = started.elapsed();
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(took < Duration::from_millis(1500), "it took {took:?}");
    cluster.resume(1);
}

/// One silent follower, the first of the members, made each request that was handed on take two seconds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_member_makes_nothing_slow_that_others_can_do() {
    let settings = Settings {
        nodes: 4,
        ..Settings::default()
    };
    let cluster = Cluster::start(&settings).await;
    let group = cluster.create_kv(1, "kv", &[1, 2, 3]).await;
    let leader = eventually("a leader that is not the first", async || {
        match cluster.leader_among(group, &[1, 2, 3]).await {
            1 => {
                let path = format!("/v1/groups/{group}/transfer");
                cluster.http(1, "POST", &path, "{\"node\": 2}").await;
                Err("node 1 leads".to_owned())
            }
            leader => Ok(leader),
        }
    })
    .await;
    let path = format!("/v1/groups/{group}/propose");
    let written = cluster.http(4, "POST", &path, "put first v").await;
    assert_eq!(written.status, 200, "{}", written.text());
    cluster.pause(1);
    let ask = async |kind: &str, path: &str, body: &str| {
        let started = Instant::now();
        let path = format!("/v1/groups/{group}/{path}");
        let answer = http::request(&cluster.node(4).http, "POST", &path, &[], body.as_bytes());
        let answer = answer.await.expect("an answer");
        (kind.to_owned(), answer.status, started.elapsed())
    };
    // The first that meet it may have to wait: nobody can know yet.
    eventually("others are asked first", async || {
        match ask("get", "query", "get first").await {
            (_, 200, _) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    for n in 0..10 {
        for (kind, path, body) in [
            ("put", "propose", format!("put k{n} v")),
            ("get", "query", format!("get k{n}")),
            ("stale get", "query?consistency=stale", format!("get k{n}")),
        ] {
            let (kind, status, took) = ask(kind, path, &body).await;
            assert_eq!(status, 200, "{kind}, leader {leader}");
            assert!(took < Duration::from_millis(1500), "{kind} took {took:?}");
        }
    }
    cluster.resume(1);
    cluster.caught_up(group, &[1, 2, 3]).await;
}
