//! What a component does, takes and asks for harms its own group at the most, and nobody is accused of what a node lacks.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use futures::future::join_all;
use serde_json::{Value, json};
use skep_client::{GroupId, GuestFault, Outcome};
use skep_tests::clock::{self, Stopwatch, eventually};
use skep_tests::cluster::{Cluster, Settings};
use skep_tests::guests;
use skep_tests::http::Answer;

use crate::load::{answer, propose, text};

/// H2: recursion through sixty modules overflowed the native stack, and a parent that called a component inside it was
/// local trouble: one command, or one query, stopped every replica for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn poison_that_is_the_same_everywhere_is_an_outcome() {
    let mut cluster = Cluster::start(&Settings::default()).await;
    let client = cluster.client().await;
    let mut groups = Vec::new();
    for (guest, fault) in [
        ("recurses_across_modules", GuestFault::Unreachable),
        ("calls_its_child", GuestFault::Trap),
    ] {
        let component = guests::component(guest);
        let group = cluster.create_from(1, guest, &component, &[1, 2, 3]).await;
        assert_eq!(text(propose(&client, group, "add").await), "1");
        assert_eq!(propose(&client, group, "x").await, Outcome::Fault(fault));
        for id in cluster.ids() {
            // A query's trap is the query's: nobody says `group-faulted`.
            let path = format!("/v1/groups/{guest}/query?consistency=stale");
            let asked = cluster.http(id, "POST", &path, "x").await;
            assert_eq!(
                (asked.status, asked.code().as_str()),
                (422, "guest-fault"),
                "{guest} at node {id}: {}",
                asked.text()
            );
        }
        assert_eq!(text(propose(&client, group, "add").await), "2");
        groups.push(group);
    }
    // What a replica makes of it when it reads its log is what it made of it then.
    for id in cluster.ids() {
        cluster.kill(id);
        cluster.restart(id).await;
    }
    for group in groups {
        cluster.caught_up(group, &cluster.ids()).await;
        assert_eq!(answer(&client, group, "get").await, "2");
        let added = client.session(group).await.expect("a session");
        let added = added.propose("add".into()).await.expect("an answer");
        assert_eq!(text(added.outcome), "3");
        cluster.caught_up(group, &cluster.ids()).await;
        for id in cluster.ids() {
            let status = cluster.try_status(id, group).await.expect("a status");
            assert_eq!(status.halted, None, "node {id}");
        }
    }
    cluster.assert_no_panic();
}

async fn create(cluster: &Cluster, request: &Value) -> Answer {
    cluster
        .http(1, "POST", "/v1/groups", request.to_string())
        .await
}

/// Sets a limit on every node, and restarts them.
async fn configure(cluster: &mut Cluster, key: &'static str, value: u64) {
    cluster.set(key, value);
    for id in cluster.ids() {
        cluster.kill(id);
    }
    cluster.start_all().await;
}

/// H4: a profile could ask for anything, `command-fuel` of 2^64-1 among it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_asks_for_more_than_the_ceilings() {
    let mut cluster = Cluster::start(&Settings::default()).await;
    let group = cluster.create_kv(1, "before", &[1, 2, 3]).await;
    let refused = |asked: Answer, key: &str| {
        assert_eq!(
            (asked.status, asked.code().as_str()),
            (400, "above-ceiling"),
            "{}",
            asked.text()
        );
        let configured = format!("profile_{}", key.replace('-', "_"));
        let detail = asked.json()["detail"].as_str().expect("words").to_owned();
        assert!(
            detail.contains(key) && detail.contains(&configured),
            "{detail}"
        );
    };
    for key in ["command-fuel", "memory-bytes", "snapshot-fuel"] {
        let profile = json!({key: u64::MAX});
        let asked = create(&cluster, &json!({"name": "greedy", "profile": profile})).await;
        refused(asked, key);
        let body = json!({"profile": profile}).to_string();
        let path = "/v1/groups/before/upgrade";
        refused(cluster.http(2, "POST", path, body).await, key);
    }
    // A ceiling below what a group has: it goes on, after a restart too, and only new ones are refused.
    configure(&mut cluster, "SKEP_LIMITS__PROFILE_MEMORY_BYTES", 16 << 20).await;
    let client = cluster.client().await;
    text(propose(&client, group, "put a 1").await);
    let quota = json!({"quota": {"commands-per-second": 1000}}).to_string();
    let upgraded = cluster
        .http(1, "POST", "/v1/groups/before/upgrade", quota)
        .await;
    assert_eq!(upgraded.status, 200, "{}", upgraded.text());
    refused(
        create(&cluster, &json!({"name": "as-before"})).await,
        "memory-bytes",
    );
    let modest = json!({"name": "modest", "profile": {"memory-bytes": 16777216}});
    let created = create(&cluster, &modest).await;
    assert_eq!(created.status, 201, "{}", created.text());
}

/// H5: a component of 5 KB reserved the addresses of a whole node in 65 groups, and then honest uploads were called invalid.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_machines_reserve_has_a_budget() {
    // Four machines, and a description at times.
    let mut cluster = Cluster::start(&Settings::one_node(
        "[limits]\nmachines_address_bytes = 18000000000\n",
    ))
    .await;
    let many = many_memories(17);
    let asked = cluster.put_component(1, &many).await;
    assert_eq!(
        (asked.status, asked.code().as_str()),
        (422, "too-large"),
        "{}",
        asked.text()
    );
    assert!(
        asked.text().contains("component_memories"),
        "{}",
        asked.text()
    );
    let reserves = guests::component("memories_reserve");
    let reserves = cluster.upload(1, &reserves).await.to_string();
    let mut groups = Vec::new();
    let refused = loop {
        let name = format!("group-{}", groups.len());
        let request = json!({"name": name, "component": reserves, "members": [1]});
        let created = create(&cluster, &request).await;
        if created.status != 201 {
            break created;
        }
        assert_eq!(created.json()["problem"], Value::Null, "{}", created.text());
        groups.push(GroupId(created.number("id")));
        assert!(groups.len() < 20, "nothing bounds them");
    };
    let out_of_budget = |asked: &Answer| {
        assert_eq!(
            (asked.status, asked.code().as_str()),
            (507, "out-of-budget"),
            "{}",
            asked.text()
        );
        let text = asked.text();
        assert!(text.contains("machines_address_bytes"), "{text}");
    };
    assert!(groups.len() >= 3, "{}", groups.len());
    out_of_budget(&refused);
    // An honest upload is not called invalid for what the node lacks.
    out_of_budget(&cluster.put_component(1, guests::TRAPS).await);
    // Whoever was there goes on, fails and is rebuilt.
    let client = cluster.client().await;
    for group in &groups {
        assert_eq!(text(propose(&client, *group, "add").await), "1");
        let fault = Outcome::Fault(GuestFault::MemoryOutOfBounds);
        assert_eq!(propose(&client, *group, "x").await, fault);
        assert_eq!(text(propose(&client, *group, "add").await), "2");
    }
    // And there is room again when one has gone.
    for name in ["group-0", "group-1"] {
        let removed = cluster
            .http(1, "DELETE", &format!("/v1/groups/{name}"), "")
            .await;
        assert_eq!(removed.status, 200, "{}", removed.text());
    }
    eventually("there is room again", async || {
        let asked = cluster.put_component(1, guests::TRAPS).await;
        match asked.status {
            201 => Ok(()),
            _ => Err(asked.text()),
        }
    })
    .await;
    // After a restart they go on as well, in whatever order they come up, although there is room for none of them any more.
    configure(
        &mut cluster,
        "SKEP_LIMITS__MACHINES_ADDRESS_BYTES",
        1_000_000_000,
    )
    .await;
    let client = cluster.client().await;
    for group in &groups[2..] {
        assert_eq!(text(propose(&client, *group, "add").await), "3");
    }
    out_of_budget(&cluster.put_component(1, guests::NOISY).await);
    cluster.assert_no_panic();
}

/// A counter with so many memories.
fn many_memories(memories: usize) -> Vec<u8> {
    let own = memories - 1;
    guests::of_text("many", &format!("⟨module⟩ ⟦{own}|(memory $m# 0)⟧\n"))
}

/// F8: at the limit nobody said "memory", and ordinary writers got stuck for minutes behind rebuilds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_finds_no_room_says_so_and_others_go_on() {
    const LIMIT: u64 = 24 << 20;
    let cluster = Cluster::start(&Settings::default()).await;
    let profile = json!({"memory-bytes": LIMIT});
    let created = create(&cluster, &json!({"name": "kv", "profile": profile})).await;
    assert_eq!(created.status, 201, "{}", created.text());
    let group = GroupId(created.number("id"));
    // The others compile the machine first, in the background: on a busy computer that takes longer than a request waits.
    cluster.leader(group).await;
    let value = "v".repeat(32 << 10);
    let write = async |id: u64, key: String| {
        let command = format!("put {key} {value}");
        cluster
            .http(id, "POST", "/v1/groups/kv/propose", command)
            .await
    };
    let mut written = 0;
    let full = loop {
        let answer = write(1, format!("first-{written}")).await;
        if answer.status != 200 {
            break answer;
        }
        written += 1;
    };
    assert_eq!(
        (full.status, full.json()["fault"].as_str()),
        (422, Some("out-of-memory")),
        "{}",
        full.text()
    );
    let detail = full.json()["detail"].as_str().expect("words").to_owned();
    assert!(detail.contains("memory-bytes"), "{detail}");

    // It is seen: in the status, in the list and in the metrics of every node.
    cluster.caught_up(group, &cluster.ids()).await;
    for id in cluster.ids() {
        let memory = cluster
            .try_status(id, group)
            .await
            .expect("a status")
            .memory
            .expect("it has a memory");
        assert_eq!(memory.limit_bytes, LIMIT, "node {id}");
        assert!(
            (LIMIT / 2..=LIMIT).contains(&memory.used_bytes),
            "node {id}: {memory:?}"
        );
        let metrics = cluster.http(id, "GET", "/metrics", "").await.text();
        for (name, bytes) in [
            ("skep_machine_memory_bytes", memory.used_bytes),
            ("skep_machine_memory_limit_bytes", LIMIT),
        ] {
            let line = format!("{name}{{group=\"{group}\"}} {bytes}");
            assert!(metrics.contains(&line), "node {id} has no `{line}`");
        }
        let listed = cluster.http(id, "GET", "/v1/groups", "").await.json();
        let listed = listed["groups"].as_array().or(listed.as_array()).cloned();
        let kv = listed
            .expect("a list")
            .into_iter()
            .find(|info| info["name"] == "kv")
            .expect("the group");
        assert_eq!(kv["memory"]["limit_bytes"], LIMIT, "node {id}: {kv}");
    }

    // Twelve writers who do not give up, at all three nodes. At first some fail, each by itself; then all are told.
    let (enough, told_at) = (AtomicBool::new(false), [const { AtomicUsize::new(0) }; 3]);
    let writers = (0..12_usize).map(|writer| {
        let (cluster, value, enough, told_at) = (&cluster, &value, &enough, &told_at);
        async move {
            let mut answers = Vec::new();
            while !enough.load(Relaxed) {
                let command = format!("put more-{writer}-{} {value}", answers.len());
                let node = 1 + writer as u64 % 3;
                let asked = cluster.http(node, "POST", "/v1/groups/kv/propose", command);
                let answer = asked.await;
                if answer.status == 507 {
                    told_at[writer % 3].fetch_add(1, Relaxed);
                }
                answers.push(answer);
                // As an ordinary program does that is told to make room.
                clock::pause(Duration::from_millis(20)).await;
            }
            answers
        }
    });
    let others = async {
        eventually("writers at every node are told", async || {
            let counts = told_at.each_ref().map(|told| told.load(Relaxed));
            if counts.iter().all(|count| *count >= 4) {
                Ok(())
            } else {
                Err(format!("{counts:?}"))
            }
        })
        .await;
        let (watch, mut slowest, mut done) = (Stopwatch::start(), Duration::ZERO, 0);
        while watch.elapsed() < Duration::from_secs(8) {
            for id in 1..=3 {
                let began = Stopwatch::start();
                let path = "/v1/groups/kv/propose";
                // Those that fail before all are told cost a rebuild each, which takes long on a busy machine.
                let patient = [("skep-timeout-ms", "60000")];
                let answer = cluster.http_with(id, "POST", path, &patient, "get first-0");
                let answer = answer.await;
                assert_eq!(answer.status, 200, "{}", answer.text());
                slowest = slowest.max(began.elapsed());
                done += 1;
            }
        }
        enough.store(true, Relaxed);
        (done, slowest)
    };
    let (answers, (done, slowest)) = futures::future::join(join_all(writers), others).await;
    let answers: Vec<_> = answers.into_iter().flatten().collect();
    let count = |status: u16, code: &str| {
        let like =
            |answer: &&Answer| answer.status == status && (status == 200 || answer.code() == code);
        answers.iter().filter(like).count()
    };
    let (went, failed, told) = (
        count(200, ""),
        count(422, "guest-fault"),
        count(507, "out-of-memory"),
    );
    eprintln!(
        "{} writes: {went} went, {failed} failed, {told} were refused; {done} small commands, the slowest in {slowest:?}",
        answers.len()
    );
    assert!(
        failed + told + went + count(429, "busy") == answers.len(),
        "{:?}",
        answers
            .iter()
            .find(|answer| ![200, 422, 429, 507].contains(&answer.status))
            .map(Answer::text)
    );
    assert!(told > failed, "they are told, and do not fail one by one");
    assert!(done >= 20, "{done} gets in 8 s, the slowest in {slowest:?}");

    // What raises the limit heals it.
    let body = json!({"profile": {"memory-bytes": 4 * LIMIT}}).to_string();
    let upgraded = cluster.http(1, "POST", "/v1/groups/kv/upgrade", body).await;
    assert_eq!(upgraded.status, 200, "{}", upgraded.text());
    for id in cluster.ids() {
        let answer = write(id, format!("after-{id}")).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    let client = cluster.client().await;
    assert_eq!(answer(&client, group, "get after-1").await, value);
    cluster.assert_no_panic();
}

/// Threads of a node that run a machine at this moment.
#[cfg(target_os = "linux")]
fn busy_machines(process: u32) -> usize {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).expect("threads");
    let stats = tasks.filter_map(|task| {
        // It may end meanwhile.
        std::fs::read_to_string(task.ok()?.path().join("stat")).ok()
    });
    stats
        .filter(|stat| stat.contains(" (skep-machine) R "))
        .count()
}

/// A machine that takes its time is not a group without a leader.
#[tokio::test]
async fn a_query_without_an_answer_in_time_says_so() {
    let cluster = Cluster::start(&Settings {
        nodes: 1,
        ..Settings::default()
    })
    .await;
    let component = cluster.upload(1, &guests::component("query_loops")).await;
    let group = json!({
        "name": "slow",
        "component": component.to_string(),
        "profile": {"query-fuel": 100_000_000_000_u64},
    });
    let created = create(&cluster, &group).await;
    assert_eq!(created.status, 201, "{}", created.text());
    let path = "/v1/groups/slow/query";
    let asked = cluster
        .http_with(1, "POST", path, &[("skep-timeout-ms", "1000")], "x")
        .await;
    assert_eq!(
        (asked.status, asked.code().as_str()),
        (503, "timed-out"),
        "{}",
        asked.text()
    );
    let problem = asked.json();
    assert_eq!(
        (&problem["outcome_unknown"], &problem["retryable"]),
        (&json!(false), &json!(true))
    );
    let removed = cluster.http(1, "DELETE", "/v1/groups/slow", "").await;
    assert_eq!(removed.status, 200, "{}", removed.text());
    cluster.assert_no_panic();
}

/// A command, or a query, could loop on for as long as its fuel lasted, minutes at the ceiling, after its group was deleted.
// P-41
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn loops_end_when_their_group_is_deleted() {
    let cluster = Cluster::start(&Settings {
        nodes: 1,
        ..Settings::default()
    })
    .await;
    let most: u64 = 100_000_000_000;
    let process = cluster.process_id(1);
    for (guest, verb) in [("apply_loops", "propose"), ("query_loops", "query")] {
        let component = cluster.upload(1, &guests::component(guest)).await;
        let group = json!({
            "name": guest,
            "component": component.to_string(),
            "profile": {"command-fuel": most, "query-fuel": most},
        });
        let created = create(&cluster, &group).await;
        assert_eq!(created.status, 201, "{}", created.text());
        let path = format!("/v1/groups/{guest}/{verb}");
        let asked = cluster.http(1, "POST", &path, "x");
        let removed = async {
            clock::until("it loops", || busy_machines(process) > 0).await;
            let since = Stopwatch::start();
            let path = format!("/v1/groups/{guest}");
            let removed = cluster.http(1, "DELETE", &path, "").await;
            assert_eq!(removed.status, 200, "{}", removed.text());
            clock::until("its thread is free", || busy_machines(process) == 0).await;
            since.elapsed()
        };
        let (asked, took) = futures::future::join(asked, removed).await;
        assert!(took < Duration::from_secs(10), "{guest}: {took:?}");
        assert!(asked.status >= 400, "{}", asked.text());
    }
    cluster.assert_no_panic();
}
