//! Sessions: what strangers make a group keep, and what they can do to each other's.

use skep_client::GroupId;
use skep_core::allowance::{SESSIONS_AT_ONCE, SESSIONS_PER_SECOND};
use skep_core::state::BYTES_MAX;
use skep_core::status::Health;
use skep_tests::clock::{Stopwatch, eventually};
use skep_tests::cluster::{Cluster, Settings};
use skep_tests::http::{self, Answer};
use tokio::task::JoinSet;

const PROPOSE: &str = "/v1/groups/kv/propose";

/// Opens a session; its id as headers take it.
async fn open(cluster: &Cluster, node: u64) -> String {
    let answer = cluster
        .http(node, "POST", "/v1/groups/kv/sessions", "")
        .await;
    assert_eq!(answer.status, 201, "{}", answer.text());
    let id = &answer.json()["session"];
    id.as_str().expect("a string of digits").to_owned()
}

/// A command of a session, at an address.
async fn send(
    address: String,
    session: String,
    sequence: u64,
    acknowledged: u64,
    command: &'static str,
) -> Answer {
    let (sequence, acknowledged) = (sequence.to_string(), acknowledged.to_string());
    let headers = [
        ("skep-session", session.as_str()),
        ("skep-sequence", sequence.as_str()),
        ("skep-acknowledged", acknowledged.as_str()),
    ];
    http::request(&address, "POST", PROPOSE, &headers, command.as_bytes())
        .await
        .unwrap_or_else(|error| panic!("{command} at {address}: {error}"))
}

/// Snapshots the group and waits until all nodes have done so.
async fn snapshot_everywhere(cluster: &Cluster, group: GroupId) {
    let answer = cluster.http(1, "POST", "/v1/groups/kv/snapshot", "").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let commit = cluster.leader(group).await;
    let at = cluster.try_status(commit, group).await.expect("a status");
    for id in cluster.ids() {
        eventually(
            &format!("node {id} has a snapshot and is well"),
            async || {
                let replica = cluster.try_status(id, group).await?.replica;
                match replica.snapshot >= at.replica.snapshot && replica.health == Health::Healthy {
                    true => Ok(()),
                    false => Err(format!("{replica:?}")),
                }
            },
        )
        .await;
    }
}

/// 279 MB of answers of three sessions, none of them acknowledged: more than a snapshot may hold.
// P-5
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kept_answers_cost_no_group_its_snapshots() {
    const SESSIONS: usize = 3;
    const COMMANDS: u64 = 1500;
    const REPLY: usize = 62_000;
    let mut cluster = Cluster::start(&Settings::default()).await;
    let group = cluster.create_kv(1, "kv", &[1, 2, 3]).await;
    let put = format!("put big {}", "x".repeat(REPLY));
    assert_eq!(cluster.http(1, "POST", PROPOSE, put).await.status, 200);
    let leader = cluster.leader(group).await;
    let address = cluster.node(leader).http.clone();
    let mut sessions = Vec::new();
    for _ in 0..SESSIONS {
        sessions.push(open(&cluster, leader).await);
    }
    let before = cluster
        .ids()
        .into_iter()
        .map(|id| cluster.resident_bytes(id));
    let before = before.max().expect("nodes");
    let mut sent = JoinSet::new();
    for session in &sessions {
        for first in (1..=COMMANDS).step_by(100) {
            let (address, session) = (address.clone(), session.clone());
            sent.spawn(async move {
                for sequence in first..first + 100 {
                    let answer =
                        send(address.clone(), session.clone(), sequence, 0, "get big").await;
                    assert_eq!(answer.status, 200, "{}", answer.text());
                    assert_eq!(answer.body.len(), REPLY);
                }
            });
        }
    }
    while let Some(done) = sent.join_next().await {
        done.expect("all commands are answered");
    }
    snapshot_everywhere(&cluster, group).await;
    for id in cluster.ids() {
        let kept = cluster.try_status(id, group).await.expect("a status");
        assert!(kept.replica.session_bytes <= BYTES_MAX);
        let more = cluster.resident_bytes(id).saturating_sub(before);
        println!("node {id}: {} KiB more than before", more >> 10);
        assert!(more < 200 << 20, "node {id} holds {more} bytes more");
    }
    // The group goes on, and all replicas come back from what they wrote.
    for id in cluster.ids() {
        cluster.kill(id);
        cluster.restart(id).await;
    }
    eventually("the group takes commands", async || {
        let answer = cluster.http(2, "POST", PROPOSE, "put a 1").await;
        (answer.status == 200).then_some(()).ok_or(answer.text())
    })
    .await;
    // Nothing is applied again. What is kept is told, and of what is not it is said that it was applied.
    let address = cluster.node(3).http.clone();
    let last = send(address.clone(), sessions[0].clone(), COMMANDS, 0, "get big").await;
    assert_eq!((last.status, last.body.len()), (200, REPLY));
    let first = send(address, sessions[0].clone(), 1, 0, "put big gone").await;
    assert_eq!(
        (first.status, first.code().as_str()),
        (409, "answer-expired")
    );
    assert!(first.text().contains("was applied"), "{}", first.text());
    let answer = cluster.http(1, "POST", PROPOSE, "get big").await;
    assert_eq!(answer.body.len(), REPLY);
    cluster.assert_no_panic();
}

/// 40 commands of one session at once, at three nodes, in no order.
// P-6
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_commands_of_one_session_may_be_in_flight_over_http() {
    const COMMANDS: u64 = 40;
    let cluster = Cluster::start(&Settings::default()).await;
    cluster.create_kv(1, "kv", &[1, 2, 3]).await;
    let session = open(&cluster, 1).await;
    let address = |turn: u64| cluster.node(1 + turn % 3).http.clone();
    let all = async |turn: u64| {
        let mut flight = JoinSet::new();
        for place in 0..COMMANDS {
            // Each number once, far from its neighbours.
            let sequence = 1 + place * 17 % COMMANDS;
            let (address, session) = (address(place + turn), session.clone());
            flight.spawn(async move {
                let answer = send(address, session, sequence, 0, "incr n").await;
                assert_eq!(answer.status, 200, "{sequence}: {}", answer.text());
                (sequence, answer.text())
            });
        }
        let mut answers: Vec<(u64, String)> = flight.join_all().await;
        answers.sort();
        answers
    };
    let first = all(0).await;
    let counted: std::collections::BTreeSet<_> = first.iter().map(|(_, count)| count).collect();
    assert_eq!(counted.len() as u64, COMMANDS, "{first:?}");
    // Again, each at another node: each was applied once, and says so again.
    assert_eq!(all(1).await, first);
    let n = cluster
        .http(2, "POST", "/v1/groups/kv/query", "get n")
        .await;
    assert_eq!(n.text(), COMMANDS.to_string());

    // What is acknowledged is closed, and nothing else.
    let next = send(address(0), session.clone(), COMMANDS + 2, 20, "incr n").await;
    assert_eq!(next.text(), (COMMANDS + 1).to_string());
    let closed = send(address(1), session.clone(), 20, 0, "incr n").await;
    assert_eq!(
        (closed.status, closed.code().as_str()),
        (409, "sequence-closed")
    );
    for sequence in [21, COMMANDS + 1] {
        let answer = send(address(2), session.clone(), sequence, 0, "incr n").await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    let wrong = send(address(0), session.clone(), 60, 60, "incr n").await;
    assert_eq!(
        (wrong.status, wrong.code().as_str()),
        (400, "invalid-request")
    );
    // No number ends the session.
    for sequence in [u64::MAX, 70] {
        let answer = send(address(0), session.clone(), sequence, 0, "incr n").await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
}

/// A stranger opens sessions by the thousand and tries what ids might be another's.
// P-8
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_take_no_session_away() {
    const OPENS: usize = 5000;
    // A new leader begins to count anew: this one leads to the end, however busy the machine is.
    let cluster = Cluster::start(&Settings {
        election_ticks: 50,
        ..Settings::default()
    })
    .await;
    cluster.create_kv(1, "kv", &[1, 2, 3]).await;
    let watch = Stopwatch::start();
    let victim = open(&cluster, 1).await;
    let address = cluster.node(2).http.clone();
    let first = send(address.clone(), victim.clone(), 1, 0, "incr n").await;
    assert_eq!(first.text(), "1");
    let mut strangers = JoinSet::new();
    for of in 0..25 {
        let address = cluster.node(1 + of % 3).http.clone();
        strangers.spawn(async move {
            let mut opened = Vec::new();
            for _ in 0..OPENS / 25 {
                let path = "/v1/groups/kv/sessions";
                let answer = http::request(&address, "POST", path, &[], b"").await;
                let answer = answer.unwrap_or_else(|error| panic!("{path}: {error}"));
                match answer.status {
                    201 => opened.push(answer.json()["session"].as_str().unwrap().to_owned()),
                    _ => {
                        let code = answer.code();
                        assert_eq!((answer.status, code.as_str()), (429, "too-many-sessions"));
                    }
                }
            }
            opened
        });
    }
    let opened = strangers.join_all().await.concat();
    let seconds = watch.elapsed().as_secs() + 1;
    println!("{} of {OPENS} sessions were opened", opened.len());
    assert!(opened.len() > 1000, "some are opened at once");
    assert!(opened.len() < OPENS, "and no group opens any number");
    let most = SESSIONS_AT_ONCE + SESSIONS_PER_SECOND * seconds;
    assert!(
        opened.len() as u64 <= most,
        "{} within {seconds} s",
        opened.len()
    );

    // Whoever uses a session has it still.
    let again = send(address.clone(), victim.clone(), 1, 0, "incr n").await;
    assert_eq!((again.status, again.text()), (200, "1".to_owned()));
    let next = send(address.clone(), victim.clone(), 2, 1, "incr n").await;
    assert_eq!((next.status, next.text()), (200, "2".to_owned()));

    // Nobody meets another's session by counting.
    let own: Vec<u128> = opened.iter().map(|id| id.parse().unwrap()).collect();
    let mut halves: Vec<u64> = own
        .iter()
        .flat_map(|id| [(id >> 64) as u64, *id as u64])
        .collect();
    halves.sort_unstable();
    halves.dedup();
    assert_eq!(halves.len(), 2 * own.len(), "all bits are drawn");
    let victim: u128 = victim.parse().unwrap();
    for near in [own[0], own[own.len() - 1], victim] {
        for guess in [near.wrapping_add(1), near.wrapping_sub(1)] {
            let stolen = send(address.clone(), guess.to_string(), 1, 0, "incr n").await;
            assert_eq!(
                (stolen.status, stolen.code().as_str()),
                (409, "session-expired"),
                "{guess}"
            );
        }
    }
}
