//! Exactly once across the deaths of leaders, through followers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use skep_client::{Client, GroupId};
use skep_tests::clock::eventually;
use skep_tests::cluster::{Cluster, Settings};
use skep_tests::http;

use crate::load::{Load, answer, text};

const DEATHS: usize = 5;
const WORKERS: usize = 6;
/// Commands that must be acknowledged before and after each death.
const BETWEEN: u64 = 150;

// P-4
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_increment_counts_once_while_leaders_die() {
    let mut cluster = Cluster::start(&Settings::default()).await;
    let group = cluster.create_kv(1, "kv", &[1, 2, 3]).await;
    let other = cluster.create_kv(1, "by-hand", &[1, 2, 3]).await;
    let leader = cluster.leader(group).await;
    // These clients are never told of the leader: they ask followers.
    let followers = cluster.others(&[leader]);
    let clients = [
        cluster
            .client_at(&[followers[0], followers[1], leader])
            .await,
        cluster
            .client_at(&[followers[1], followers[0], leader])
            .await,
    ];
    let load = Load::start(&clients, group, WORKERS).await;
    let stop = Arc::new(AtomicBool::new(false));
    let addresses = cluster
        .ids()
        .iter()
        .map(|id| cluster.node(*id).http.clone())
        .collect();
    let anonymous = tokio::spawn(without_a_session(
        clients[0].clone(),
        other,
        Arc::clone(&stop),
    ));

    let deaths = async {
        for _ in 0..DEATHS {
            load.more(BETWEEN).await;
            let leader = cluster.leader(group).await;
            cluster.kill(leader);
            load.more(BETWEEN).await;
            cluster.restart(leader).await;
        }
        stop.store(true, Ordering::SeqCst);
    };
    let (counted, ()) = tokio::join!(retry_by_hand(addresses, &stop), deaths);
    let (done, unknown) = anonymous.await.expect("the client without a session");
    let commands = load.verify(&cluster).await;
    let client = cluster.client().await;
    assert_eq!(
        answer(&client, other, "get http").await,
        counted.to_string()
    );
    let total: u64 = answer(&client, other, "get anonymous")
        .await
        .parse()
        .expect("a number");
    // Without a session an outcome may stay unknown, but what is known is right.
    assert!(
        (done..=done + unknown).contains(&total),
        "{total} of {done} done and {unknown} unknown"
    );
    println!(
        "{DEATHS} leaders died: {commands} commands in sessions, {counted} by HTTP, {done} (+{unknown} unknown) without"
    );
}

// P-13
#[tokio::test]
async fn a_follower_forwards_http() {
    let cluster = Cluster::start(&Settings::default()).await;
    let group = cluster.create_kv(2, "kv", &[1, 2, 3]).await;
    let leader = cluster.leader(group).await;
    for (number, follower) in (1..).zip(cluster.others(&[leader])) {
        let answer = cluster
            .http(follower, "POST", "/v1/groups/kv/propose", "incr n")
            .await;
        assert_eq!((answer.status, answer.text()), (200, number.to_string()));
        assert!(answer.header("skep-index").is_some());
        let answer = cluster
            .http(follower, "POST", "/v1/groups/kv/query", "get n")
            .await;
        assert_eq!((answer.status, answer.text()), (200, number.to_string()));
    }
}

/// Increments `http` in the group `by-hand` over HTTP, each under a name of its own, at whichever node answers; how often.
async fn retry_by_hand(addresses: Vec<String>, stop: &AtomicBool) -> u64 {
    let at = |turn: usize| addresses[turn % addresses.len()].as_str();
    let session = eventually("a session by HTTP", async || {
        let answer = http::request(at(0), "POST", "/v1/groups/by-hand/sessions", &[], b"").await;
        let answer = answer.map_err(|error| error.to_string())?;
        answer.json()["session"]
            .as_str()
            .map(str::to_owned)
            .ok_or_else(|| answer.text())
    })
    .await;
    let mut sequence = 0;
    while !stop.load(Ordering::SeqCst) {
        sequence += 1;
        let name = sequence.to_string();
        let headers = [
            ("skep-session", session.as_str()),
            ("skep-sequence", name.as_str()),
            ("skep-timeout-ms", "1000"),
        ];
        let mut turn = sequence as usize;
        let count = eventually("an increment by HTTP", async || {
            turn += 1;
            let answer = http::request(
                at(turn),
                "POST",
                "/v1/groups/by-hand/propose",
                &headers,
                b"incr http",
            )
            .await;
            match answer {
                Ok(answer) if answer.status == 200 => Ok(answer.text()),
                Ok(answer) if matches!(answer.status, 503 | 504 | 429) => Err(answer.text()),
                Ok(answer) => panic!("an answer that no retry mends: {answer:?}"),
                Err(error) => Err(error.to_string()),
            }
        })
        .await;
        assert_eq!(count, name, "each command was applied once, in its order");
    }
    sequence
}

/// Increments `anonymous` without a session; how often it certainly was done, and how often perhaps.
async fn without_a_session(client: Client, group: GroupId, stop: Arc<AtomicBool>) -> (u64, u64) {
    let (mut done, mut unknown) = (0, 0);
    while !stop.load(Ordering::SeqCst) {
        match client.propose_once(group, "incr anonymous".into()).await {
            Ok(response) => {
                text(response.outcome);
                done += 1;
            }
            Err(error) if error.is_unknown() => unknown += 1,
            Err(error) => panic!("{error} [{}]", error.code()),
        }
    }
    (done, unknown)
}
