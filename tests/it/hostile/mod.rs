//! Components that attack, beside groups that work: whoever attacks gets its error, everybody else goes on. `table.rs` says what
//! each guest comes to, `machines.rs` and `cluster.rs` see to it, `neighbours.rs` measures; the tests here look closer at some.

mod cluster;
mod machines;
#[cfg(target_os = "linux")]
mod neighbours;
mod table;

use std::time::Duration;

use serde_json::json;
use skep_client::{GroupId, GuestFault, Outcome};
use skep_tests::clock::{Stopwatch, eventually, within};
use skep_tests::cluster::{Cluster, Settings};
use skep_tests::guests;

use crate::load::{Load, answer, propose, text};

/// How long an attack may keep its own client waiting: its fuel is half a second of work, here on a busy machine.
const BOUNDED: Duration = Duration::from_secs(20);
/// Commands of a clockwork at once.
const TICKS: usize = 5;
/// Memory of a hostile guest, so that three replicas of a hoarder fit a small machine.
const MEMORY_BYTES: u64 = 64 << 20;

// P-31
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn traps_in_each_export_stay_in_their_group() {
    let mut cluster = Cluster::start(&Settings {
        nodes: 4,
        ..Settings::default()
    })
    .await;
    let members = [1, 2, 3];
    let kv = cluster.create_kv(1, "kv", &members).await;
    let load = Load::start(&[cluster.client().await], kv, 2).await;
    let client = cluster.client().await;
    let component = cluster.upload(1, guests::TRAPS).await.to_string();
    let request = json!({"name": "traps", "component": component, "members": members});
    let created = cluster
        .http(1, "POST", "/v1/groups", request.to_string())
        .await;
    assert_eq!(created.status, 201, "{}", created.text());
    let group = GroupId(created.number("id"));

    // apply and query
    let mut counted = 0;
    for (command, fault) in [
        ("trap", GuestFault::Unreachable),
        ("panic", GuestFault::Unreachable),
        ("oob", GuestFault::MemoryOutOfBounds),
    ] {
        assert_eq!(
            propose(&client, group, command).await,
            Outcome::Fault(fault),
            "{command}"
        );
        counted += 1;
        assert_eq!(
            text(propose(&client, group, "add").await),
            counted.to_string(),
            "after {command}"
        );
    }
    let asked = client
        .query(group, "trap".into(), skep_client::Consistency::Linearizable)
        .await;
    assert_eq!(
        asked.expect("an answer").outcome,
        Outcome::Fault(GuestFault::Unreachable)
    );
    assert_eq!(answer(&client, group, "get").await, counted.to_string());
    // The same over HTTP, with its stable code.
    let trapped = cluster
        .http(2, "POST", "/v1/groups/traps/propose", "trap")
        .await;
    assert_eq!(
        (trapped.status, trapped.code().as_str()),
        (422, "guest-fault"),
        "{}",
        trapped.text()
    );
    assert_eq!(trapped.json()["fault"], "unreachable");

    // save and restore: the snapshot fails, the group goes on, and says so
    for arm in ["trap-save", "trap-restore"] {
        assert_eq!(text(propose(&client, group, arm).await), "armed");
        cluster
            .http(1, "POST", "/v1/groups/traps/snapshot", "")
            .await;
        counted += 1;
        assert_eq!(
            text(propose(&client, group, "add").await),
            counted.to_string(),
            "after {arm}"
        );
        let status = cluster.try_status(1, group).await.expect("a status");
        assert_eq!(status.halted, None, "{arm}");
        assert_eq!(text(propose(&client, group, "disarm").await), "disarmed");
    }
    let snapshot = cluster
        .http(1, "POST", "/v1/groups/traps/snapshot", "")
        .await;
    assert_eq!(snapshot.status, 200, "{}", snapshot.text());

    // process-status-change
    assert_eq!(text(propose(&client, group, "trap-status").await), "armed");
    let leader = cluster.leader_among(group, &members).await;
    let other = if leader == 1 { 2 } else { 1 };
    let moved = cluster
        .http(
            1,
            "POST",
            "/v1/groups/traps/transfer",
            json!({"node": other}).to_string(),
        )
        .await;
    assert_eq!(moved.status, 200, "{}", moved.text());
    counted += 1;
    assert_eq!(
        text(propose(&client, group, "add").await),
        counted.to_string(),
        "after a change of leader"
    );
    assert_eq!(text(propose(&client, group, "disarm").await), "disarmed");

    // apply-conf-change
    assert_eq!(text(propose(&client, group, "trap-conf").await), "armed");
    let added = cluster
        .http(
            1,
            "POST",
            "/v1/groups/traps/members",
            json!({"node": 4}).to_string(),
        )
        .await;
    assert_eq!(added.status, 200, "{}", added.text());
    counted += 1;
    assert_eq!(
        text(propose(&client, group, "add").await),
        counted.to_string(),
        "after a change of members"
    );
    assert_eq!(text(propose(&client, group, "disarm").await), "disarmed");

    cluster.caught_up(group, &[1, 2, 3, 4]).await;
    for id in cluster.ids() {
        assert_eq!(
            text(cluster.replica_answer(id, group, "get").await),
            counted.to_string(),
            "node {id}"
        );
    }
    // What a replica holds after all this is also what it finds on its disk.
    cluster.kill_at_once(&[1, 2, 3, 4]);
    cluster.start_all().await;
    assert_eq!(answer(&client, group, "get").await, counted.to_string());

    // init: whoever creates such a group is told, nobody can use it, and all others do not notice
    let request =
        json!({"name": "unborn", "component": component, "members": members, "init": "trap-init"});
    let created = cluster.http(1, "POST", "/v1/groups", request.to_string());
    let created = within(Duration::from_secs(45), "the answer", created).await;
    assert!(
        created.text().contains("init failed"),
        "{} {}",
        created.status,
        created.text()
    );
    let used = cluster.http(1, "POST", "/v1/groups/unborn/propose", "ping");
    let used = within(BOUNDED, "the answer", used).await;
    assert_eq!(
        (used.status, used.code().as_str()),
        (503, "group-faulted"),
        "{}",
        used.text()
    );
    let status = cluster.http(1, "GET", "/v1/groups/unborn/status", "").await;
    assert!(status.text().contains("init failed"), "{}", status.text());
    let removed = cluster.http(1, "DELETE", "/v1/groups/unborn", "").await;
    assert_eq!(removed.status, 200, "{}", removed.text());
    counted += 1;
    assert_eq!(
        text(propose(&client, group, "add").await),
        counted.to_string()
    );
    load.verify(&cluster).await;
}

// P-51
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn noise_is_tamed_in_the_logs() {
    let cluster = Cluster::start(&Settings::default()).await;
    let group = create(&cluster, "noisy", guests::NOISY).await;
    let client = cluster.client().await;
    assert_eq!(text(propose(&client, group, "noise 1000").await), "quiet");
    assert_eq!(
        text(propose(&client, group, "noise-line 100000").await),
        "quiet"
    );
    // More than one call may hand to the host at all.
    assert_eq!(
        propose(&client, group, "noise-line 3000000").await,
        Outcome::Fault(GuestFault::Limit)
    );
    assert_eq!(text(propose(&client, group, "add").await), "1");
    cluster.caught_up(group, &cluster.ids()).await;
    for id in cluster.ids() {
        let log = cluster.node(id).log();
        assert!(log.contains("forged line"), "node {id} dropped all of it");
        // Three calls of at most 16 KiB each, escaped, with what surrounds each line.
        assert!(
            log.len() < 1 << 20,
            "the log of node {id} has {} bytes",
            log.len()
        );
        let forged = |line: &&str| line.starts_with("2026-01-01T00:00:00Z");
        assert_eq!(log.lines().find(forged), None, "node {id}");
        let control = |c: &char| c.is_control() && *c != '\n' || *c == '\u{202e}';
        assert_eq!(log.chars().find(control), None, "node {id}");
    }
}

/// What the host says of a machine's faults, and what the machine says, is bounded in a second however many commands fail.
// P-51
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faults_do_not_flood_the_logs() {
    const LINES: usize = 3;
    let cluster = Cluster::start(&Settings::default()).await;
    let component = cluster.upload(1, guests::TRAPS).await.to_string();
    let profile = json!({"log-lines-per-second": LINES});
    let request = json!({"name": "traps", "component": component, "profile": profile});
    let created = cluster
        .http(1, "POST", "/v1/groups", request.to_string())
        .await;
    assert_eq!(created.status, 201, "{}", created.text());
    let group = GroupId(created.number("id"));
    let client = cluster.client().await;
    let watch = Stopwatch::start();
    let poison = async || {
        let outcome = propose(&client, group, "trap").await;
        assert_eq!(outcome, Outcome::Fault(GuestFault::Unreachable));
    };
    for _ in 0..100 {
        poison().await;
    }
    // The first line of another second tells what became of the others.
    eventually("every node tells", async || {
        poison().await;
        let silent = |id: &u64| !cluster.node(*id).log().contains("log lines were dropped");
        match cluster.ids().into_iter().find(silent) {
            None => Ok(()),
            Some(id) => Err(format!("node {id} does not")),
        }
    })
    .await;
    for id in cluster.ids() {
        let log = cluster.node(id).log();
        // A second that begins with each line, and the one that is not over.
        let seconds = watch.elapsed().as_secs() as usize + 2;
        let lines = log.matches("the machine failed").count();
        assert!(
            (1..=LINES * seconds).contains(&lines),
            "node {id}: {lines} lines in {seconds} s"
        );
    }
}

/// The same clock, the same randomness, the same order of a hash map on every replica, whether it applied the entries in
/// one life or began anew from its disk in between. The answers are compared on all replicas: a group keeps those of a
/// session with its state, so they are in each replica's snapshot, which must be the same to the byte.
// P-21
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_see_the_same_clock_and_chance() {
    let mut cluster = Cluster::start(&Settings::default()).await;
    let group = create(&cluster, "clockwork", guests::CLOCKWORK).await;
    let session = cluster
        .client()
        .await
        .session(group)
        .await
        .expect("a session");
    let mut ticks = Vec::new();
    for round in 0..3 {
        let slept = session.propose("sleep 3600".into());
        let slept = within(BOUNDED, "an hour's sleep", slept)
            .await
            .expect("a sleep");
        assert_eq!(text(slept.outcome), "awake");
        // The group keeps an answer until a later command says that it has arrived: all of them are sent before one is looked
        // at, which tasks of their own would not be on a busy machine.
        let asked = (0..TICKS).map(|_| session.propose("tick".into()));
        for ticked in futures::future::join_all(asked).await {
            ticks.push(text(ticked.expect("a tick").outcome));
        }
        cluster.caught_up(group, &cluster.ids()).await;
        if round < 2 {
            let follower = cluster.others(&[cluster.leader(group).await])[round];
            // Queries must leave no trace in what is applied later, on the one node that is asked.
            let seen = text(cluster.replica_answer(follower, group, "tick").await);
            assert!(seen.contains("order=["), "{seen}");
            cluster.kill(follower);
            cluster.restart(follower).await;
        }
        same_snapshots(&cluster, group).await;
    }
    for tick in &ticks {
        assert!(
            tick.contains("environment=[]") && tick.contains("arguments=[]"),
            "{tick}"
        );
    }
    ticks.sort();
    ticks.dedup();
    assert_eq!(
        ticks.len(),
        3 * TICKS,
        "each tick has its own time and chance"
    );
}

/// Makes every replica take a snapshot at one index and compares the files. The group may take another one meanwhile, and
/// each replica drops the older one when it has that: they are compared once all hold the same.
async fn same_snapshots(cluster: &Cluster, group: GroupId) {
    let taken = cluster
        .http(1, "POST", &format!("/v1/groups/{group}/snapshot"), "")
        .await;
    assert_eq!(taken.status, 200, "{}", taken.text());
    let index = taken.number("index");
    let mut compared = None;
    eventually(
        &format!("every node has the same snapshot, at {index} or later"),
        async || {
            let mut newest = Vec::new();
            for id in cluster.ids() {
                let at = cluster.try_status(id, group).await?.replica.snapshot;
                if at.0 < index {
                    return Err(format!("the last one of node {id} is at {at}"));
                }
                let file = newest_snapshot(cluster, id, group);
                newest.push(file.ok_or_else(|| format!("node {id} has no file"))?);
            }
            let indices: Vec<_> = newest.iter().map(|(index, _)| index).collect();
            if indices.iter().any(|index| *index != indices[0]) {
                return Err(format!("{indices:?}"));
            }
            compared = Some(newest);
            Ok(())
        },
    )
    .await;
    let snapshots = compared.expect("they were found");
    let (index, bytes) = &snapshots[0];
    let kept = bytes.windows(6).filter(|six| six == b"order=").count();
    assert_eq!(kept, TICKS, "answers in the snapshot at {index}");
    for (id, (_, same)) in (1..).zip(&snapshots) {
        assert!(
            same == bytes,
            "the snapshot at {index} on node {id} differs from node 1's"
        );
    }
}

/// The last snapshot of a group on a node, and its index. Its file may be deleted at any moment.
fn newest_snapshot(cluster: &Cluster, id: u64, group: GroupId) -> Option<(u64, Vec<u8>)> {
    let (index, path) = cluster.node(id).snapshots(group).pop_last()?;
    Some((index, std::fs::read(path).ok()?))
}

/// A group of a hostile component on all nodes.
async fn create(cluster: &Cluster, name: &str, component: &[u8]) -> GroupId {
    let component = cluster.upload(1, component).await.to_string();
    let profile = json!({"memory-bytes": MEMORY_BYTES});
    let request = json!({"name": name, "component": component, "profile": profile});
    let answer = cluster
        .http(1, "POST", "/v1/groups", request.to_string())
        .await;
    assert_eq!(answer.status, 201, "{}", answer.text());
    let group = GroupId(answer.number("id"));
    // All three replicas, so that each attack meets all of them.
    eventually(&format!("group {name} is up on every node"), async || {
        for id in cluster.ids() {
            cluster.try_status(id, group).await?;
        }
        Ok(())
    })
    .await;
    group
}
