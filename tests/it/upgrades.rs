//! A group changes its code while it serves: nothing is lost or doubled, a refusal changes nothing, and who was away comes back
//! on the right version.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use serde_json::{Value, json};
use skep_client::{ComponentId, GroupId};
use skep_core::status::HeldBack;
use skep_tests::clock::eventually;
use skep_tests::cluster::{Cluster, Settings};
use skep_tests::guests;

use crate::load::{Load, answer};

/// Limits under which what never ends is over in seconds.
static QUICK: LazyLock<Value> = LazyLock::new(|| json!({"snapshot-fuel": 500_000_000_u64}));

/// The key-value machine under another digest: a custom section at its end says which version it is meant to be.
pub(crate) fn version(number: u8) -> Vec<u8> {
    let mut component = skep_examples::KV.to_vec();
    let name = b"release";
    component.extend([0, name.len() as u8 + 2, name.len() as u8]);
    component.extend(name);
    component.push(number);
    component
}

async fn upgrade(
    cluster: &Cluster,
    at: u64,
    group: GroupId,
    component: ComponentId,
) -> (u16, String) {
    upgrade_with(
        cluster,
        at,
        group,
        json!({"component": component.to_string()}),
    )
    .await
}

async fn upgrade_with(cluster: &Cluster, at: u64, group: GroupId, body: Value) -> (u16, String) {
    let body = body.to_string();
    let answer = cluster
        .http(at, "POST", &format!("/v1/groups/{group}/upgrade"), body)
        .await;
    (answer.status, answer.text())
}

async fn runs(cluster: &Cluster, id: u64, group: GroupId) -> Option<ComponentId> {
    let status = cluster.try_status(id, group).await.ok()?;
    (status.halted.is_none()).then_some(status.component)
}

async fn all_run(cluster: &Cluster, group: GroupId, component: ComponentId) {
    for id in cluster.ids() {
        does_run(cluster, id, group, component).await;
    }
}

/// A node that is ready may have some of the log before it yet.
async fn does_run(cluster: &Cluster, id: u64, group: GroupId, component: ComponentId) {
    eventually(&format!("node {id} runs {component}"), async || {
        let found = runs(cluster, id, group).await;
        (found == Some(component))
            .then_some(())
            .ok_or_else(|| format!("{found:?}"))
    })
    .await;
}

/// The catalogue says the same, to whoever joins later.
async fn is_known(cluster: &Cluster, id: u64, group: GroupId, component: ComponentId) {
    eventually("the catalogue knows", async || {
        let info = cluster
            .http(id, "GET", &format!("/v1/groups/{group}"), "")
            .await;
        let found = &info.json()["component"];
        (*found == component.to_string())
            .then_some(())
            .ok_or_else(|| found.to_string())
    })
    .await;
}

// P-24
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn code_changes_under_load_and_nothing_is_lost_or_doubled() {
    let mut cluster = Cluster::start(&Settings::default()).await;
    let group = cluster.create_kv(1, "kv", &[1, 2, 3]).await;
    let clients = [cluster.client().await, cluster.client().await];
    let load = Load::start(&clients, group, 4).await;
    load.more(200).await;
    for number in 1..=3_u8 {
        // By another node each time, whichever leads.
        let at = u64::from(number);
        let component = cluster.upload(at, &version(number)).await;
        let (status, text) = upgrade(&cluster, at, group, component).await;
        assert_eq!(status, 200, "{text}");
        load.more(200).await;
        all_run(&cluster, group, component).await;
        is_known(&cluster, at, group, component).await;
    }
    // Whoever restarts finds what runs, from its snapshot or its log.
    let latest = ComponentId::of(&version(3));
    for id in cluster.ids() {
        cluster.kill(id);
        cluster.restart(id).await;
        load.more(50).await;
        does_run(&cluster, id, group, latest).await;
    }
    load.verify(&cluster).await;
    cluster.assert_no_panic();
}

// P-24, P-27
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn code_that_does_not_take_the_state_is_refused_and_the_old_goes_on() {
    let cluster = Cluster::start(&Settings::default()).await;
    let group = cluster.create_kv(1, "kv", &[1, 2, 3]).await;
    let client = cluster.client().await;
    let load = Load::start(&[cluster.client().await], group, 2).await;
    load.more(100).await;
    let before = runs(&cluster, 1, group).await.expect("it runs");
    for name in [
        "restore_refuses",
        "restore_traps",
        "restore_loops",
        // Another machine, whose state looks otherwise.
        "loops",
    ] {
        let component = cluster.upload(2, &guests::component(name)).await;
        let body = json!({"component": component.to_string(), "profile": QUICK.clone()});
        let (status, text) = upgrade_with(&cluster, 2, group, body).await;
        assert_eq!(status, 422, "{name}: {text}");
        assert!(text.contains("not-upgraded"), "{name}: {text}");
        // Not even the group's log has heard of it, so it waited for nothing.
        assert!(text.contains("Nothing was proposed"), "{name}: {text}");
        load.more(50).await;
        for id in cluster.ids() {
            assert_eq!(runs(&cluster, id, group).await, Some(before), "{name}");
        }
    }
    let (status, text) = upgrade(&cluster, 1, group, ComponentId([7; 32])).await;
    assert!(status == 400 || status == 404, "{status} {text}");
    assert!(answer(&client, group, "stats").await.contains("revision"));
    load.verify(&cluster).await;
    cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_itself_refuses_what_no_node_could_try() {
    let cluster = Cluster::start(&Settings::default()).await;
    let group = cluster.create_kv(1, "kv", &[1, 2]).await;
    let load = Load::start(&[cluster.client_at(&[1, 2]).await], group, 2).await;
    load.more(50).await;
    let before = runs(&cluster, 1, group).await.expect("it runs");
    for name in ["restore_refuses", "restore_traps", "restore_loops"] {
        let component = cluster.upload(3, &guests::component(name)).await;
        let body = json!({"component": component.to_string(), "profile": QUICK.clone()});
        let (status, text) = upgrade_with(&cluster, 3, group, body).await;
        assert_eq!(status, 422, "{name}: {text}");
        assert!(!text.contains("Nothing was proposed"), "{name}: {text}");
        load.more(20).await;
        for id in [1, 2] {
            assert_eq!(runs(&cluster, id, group).await, Some(before), "{name}");
        }
    }
    load.verify(&cluster).await;
    cluster.assert_no_panic();
}

// P-27
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dry_run_says_what_would_become_of_it_and_changes_nothing() {
    let cluster = Cluster::start(&Settings::default()).await;
    let group = cluster.create_kv(1, "kv", &[1, 2, 3]).await;
    let client = cluster.client().await;
    let before = runs(&cluster, 1, group).await.expect("it runs");
    let dry = async |at, mut body: Value| {
        body["dry_run"] = json!(true);
        let (status, text) = upgrade_with(&cluster, at, group, body).await;
        assert_eq!(status, 200, "{text}");
        serde_json::from_str::<Value>(&text).expect("JSON")
    };
    let put = async |n: u64| {
        let command = format!("put key{n} {}", "x".repeat(10));
        crate::load::propose(&client, group, &command).await;
    };
    for n in 0..20 {
        put(n).await;
    }
    let same = cluster.upload(1, &version(1)).await.to_string();
    // There is no snapshot yet: the group takes one, and nothing has been applied since.
    let first = dry(2, json!({"component": same.clone()})).await;
    assert_eq!(first["verdict"], "takes", "{first}");
    assert_eq!(first["commands"], 0, "{first}");
    assert_eq!(first["whole"], true, "{first}");
    assert_eq!(first["restored_bytes"], first["saved_bytes"], "{first}");
    let index = |value: &Value| value.as_str().and_then(|digits| digits.parse::<u64>().ok());
    let snapshot = index(&first["snapshot"]).expect("an index");
    for n in 0..30 {
        put(n).await;
    }
    let caught_up = async || {
        let second = dry(2, json!({"component": same.clone()})).await;
        (second["commands"] == 30)
            .then_some(second.clone())
            .ok_or_else(|| second.to_string())
    };
    let second = eventually("node 2 has applied all", caught_up).await;
    assert_eq!(second["verdict"], "takes", "{second}");
    assert_eq!(index(&second["snapshot"]), Some(snapshot), "{second}");
    assert_eq!(second["differing"], 0, "{second}");
    // The same code under another name uses the same fuel.
    assert_eq!(second["fuel"], second["former_fuel"], "{second}");
    assert!(second["fuel"].as_u64() > Some(0), "{second}");
    let short = dry(2, json!({"profile": {"reply-bytes": 0}})).await;
    assert_eq!(short["verdict"], "differs", "{short}");
    assert_eq!(short["faults"], 30, "{short}");
    assert_eq!(short["former_faults"], 0, "{short}");
    assert!(index(&short["first_differing"]) > Some(snapshot), "{short}");
    for name in ["restore_refuses", "restore_traps", "restore_loops"] {
        let component = cluster.upload(2, &guests::component(name)).await;
        let body = json!({"component": component.to_string(), "profile": QUICK.clone()});
        let refused = dry(2, body).await;
        assert_eq!(
            refused["verdict"]["refuses"]["call"], "restore",
            "{refused}"
        );
    }
    for id in cluster.ids() {
        assert_eq!(runs(&cluster, id, group).await, Some(before));
    }
    // What was applied before an exchange says nothing of the machine that goes on after it.
    let (status, text) = upgrade_with(&cluster, 2, group, json!({"component": same.clone()})).await;
    assert_eq!(status, 200, "{text}");
    put(1).await;
    let after = dry(2, json!({"component": same.clone()})).await;
    assert_eq!(after["verdict"], "takes", "{after}");
    assert!(index(&after["snapshot"]) > Some(snapshot), "{after}");
    cluster.assert_no_panic();
}

// P-24
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_killed_in_the_middle_comes_back_on_the_right_version() {
    let mut cluster = Cluster::start(&Settings::default()).await;
    let group = cluster.create_kv(1, "kv", &[1, 2, 3]).await;
    let load = Load::start(&[cluster.client_at(&[1, 2]).await], group, 2).await;
    load.more(100).await;
    let mut latest = runs(&cluster, 1, group).await.expect("it runs");
    for number in 1..=4_u8 {
        let component = cluster.upload(1, &version(number)).await;
        // It dies while the others ask it, while it activates, or just after.
        let (answered, ()) = tokio::join!(upgrade(&cluster, 1, group, component), async {
            load.more(u64::from(number) * 5).await;
            cluster.strike(3);
        });
        // Otherwise it was refused before anything was proposed, since a member could not say that it is ready; or what
        // became of it is unknown.
        if answered.0 == 200 {
            assert_eq!(runs(&cluster, 1, group).await, Some(component));
        }
        load.more(50).await;
        cluster.kill(3);
        cluster.restart(3).await;
        let decided = runs(&cluster, 1, group).await.expect("it runs");
        assert!(
            decided == latest || decided == component,
            "{answered:?}: {decided}"
        );
        latest = decided;
        all_run(&cluster, group, latest).await;
    }
    load.verify(&cluster).await;
    cluster.assert_no_panic();
}

// P-46
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_change_through_the_log() {
    let cluster = Cluster::start(&Settings::default()).await;
    let group = cluster.create_kv(1, "kv", &[1, 2, 3]).await;
    let client = cluster.client().await;
    let path = format!("/v1/groups/{group}/upgrade");
    let quota = json!({"quota": {"commands-per-second": 5}}).to_string();
    let answered = cluster.http(2, "POST", &path, quota).await;
    assert_eq!(answered.status, 200, "{}", answered.text());
    let busy = async || {
        let answer = cluster
            .http(1, "POST", &format!("/v1/groups/{group}/propose"), "put a 1")
            .await;
        (answer.status == 429)
            .then_some(())
            .ok_or_else(|| answer.text())
    };
    eventually("the quota is held", busy).await;
    let profile =
        json!({"quota": {"commands-per-second": 0}, "profile": {"reply-bytes": 100}}).to_string();
    let answered = cluster.http(3, "POST", &path, profile).await;
    assert_eq!(answered.status, 200, "{}", answered.text());
    let put = format!("put long {}", "x".repeat(300));
    crate::load::propose(&client, group, &put).await;
    let asked = client.query(
        group,
        "get long".into(),
        skep_client::Consistency::Linearizable,
    );
    let outcome = asked.await.expect("an answer").outcome;
    assert_eq!(
        outcome,
        skep_client::Outcome::Fault(skep_client::GuestFault::ReplyTooLarge)
    );
    let wrong = json!({"profile": {"no-such-limit": 1}}).to_string();
    let answered = cluster.http(1, "POST", &path, wrong).await;
    assert_eq!(answered.status, 400, "{}", answered.text());
}

/// Commands and queries beyond the quota of bytes wait, and none of them is refused.
// P-46
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_beyond_the_quota_wait() {
    const REPLY: usize = 100_000;
    const QUOTA: u64 = 200_000;
    let cluster = Cluster::start(&Settings::default()).await;
    let group = cluster.create_kv(1, "kv", &[1, 2, 3]).await;
    let client = cluster.client().await;
    let put = format!("put long {}", "x".repeat(REPLY));
    crate::load::propose(&client, group, &put).await;
    let path = format!("/v1/groups/{group}/upgrade");
    let quota = json!({"quota": {"bytes-per-second": QUOTA, "commands-per-second": 1000}});
    let answered = cluster.http(2, "POST", &path, quota.to_string()).await;
    assert_eq!(answered.status, 200, "{}", answered.text());
    let waits = async || {
        let mut sum = 0;
        for id in cluster.ids() {
            sum += cluster.metric(id, "skep_quota_waits_total").await;
        }
        sum
    };
    let kinds: [&'static [u8]; 2] = [b"query", b"command"];
    for kind in kinds {
        let before = waits().await;
        let mut rounds = 0;
        let reason = match kind == b"query" {
            true => HeldBack::QueryBytes,
            false => HeldBack::BytesPerSecond,
        };
        let is_shown = AtomicBool::new(false);
        // The first of them may come before a tick has told the quota to who answers.
        while waits().await == before || !is_shown.load(Relaxed) {
            rounds += 1;
            assert!(rounds <= 10, "nobody waits");
            let mut asked = tokio::task::JoinSet::new();
            for _ in 0..5 {
                let (client, put) = (client.clone(), put.clone());
                asked.spawn(async move {
                    if kind == b"query" {
                        let consistency = skep_client::Consistency::Linearizable;
                        let answer = client.query(group, "get long".into(), consistency).await;
                        answer.expect("an answer").outcome
                    } else {
                        crate::load::propose(&client, group, &put).await
                    }
                });
            }
            let answered = async {
                while let Some(outcome) = asked.join_next().await {
                    let outcome = outcome.expect("no panic");
                    assert!(
                        matches!(outcome, skep_client::Outcome::Reply(_)),
                        "{outcome:?}"
                    );
                }
            };
            // Meanwhile the status says why they wait.
            let look = async {
                loop {
                    for id in cluster.ids() {
                        let status = cluster.try_status(id, group).await;
                        let held_back = status.map(|status| status.replica.held_back);
                        if held_back.is_ok_and(|held| held.contains(&reason)) {
                            is_shown.store(true, Relaxed);
                        }
                    }
                }
            };
            tokio::select! {
                () = answered => {}
                () = look => {}
            }
        }
    }
    // What is absent stays: the other half of the quota is as it was.
    let free = json!({"quota": {"bytes-per-second": 0}}).to_string();
    let answered = cluster.http(3, "POST", &path, free).await;
    assert_eq!(answered.status, 200, "{}", answered.text());
    eventually("only what was named has changed", async || {
        let quota = cluster.try_status(1, group).await?.replica.quota;
        (quota.commands_per_second == 1000 && quota.bytes_per_second != QUOTA)
            .then_some(())
            .ok_or_else(|| format!("{quota:?}"))
    })
    .await;
}
