//! Groups that are created serve when the answer comes, one or many.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use skep_client::Outcome;
use skep_tests::clock::Stopwatch;
use skep_tests::cluster::{Cluster, Settings};
use skep_types::admin::GROUPS_AT_ONCE;

use crate::load::{propose, text};

/// Elections take longer than any disk: whatever is done sooner waited for none.
fn slow_elections() -> Settings {
    Settings {
        tick_ms: 100,
        election_ticks: 400,
        ..Settings::default()
    }
}

/// The shortest timeout with [`slow_elections`].
const TIMEOUT: Duration = Duration::from_secs(40);

// P-92
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_serves_when_its_creation_returns() {
    let cluster = Cluster::start(&slow_elections()).await;
    // What is uploaded and compiled once is not what is looked at.
    cluster.create_kv(1, "first", &[1, 2, 3]).await;
    let client = cluster.client().await;
    let mut leaders = BTreeMap::<String, usize>::new();
    for number in 0..12 {
        let at = number % 3 + 1;
        let watch = Stopwatch::start();
        let name = format!("group-{number}");
        let request = json!({"name": name, "members": [1, 2, 3]}).to_string();
        let created = cluster.http(at, "POST", "/v1/groups", request).await;
        let took = watch.elapsed();
        assert_eq!(created.status, 201, "{}", created.text());
        assert!(
            took < TIMEOUT,
            "{name} took {took:?}: it waited for an election"
        );
        let info = created.json();
        *leaders.entry(info["leader"].to_string()).or_default() += 1;
        let id: u64 = info["id"]
            .as_str()
            .and_then(|id| id.parse().ok())
            .expect("an id");
        assert_eq!(text(propose(&client, id.into(), "put a 1").await), "OK 1");
    }
    assert_eq!(leaders.len(), 3, "the members take turns: {leaders:?}");
    assert!(leaders.values().all(|led| *led == 4), "{leaders:?}");
}

/// The founder that was to lead first is dead: an election makes another one lead.
// P-92
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_whose_first_leader_is_dead_gets_another() {
    let mut cluster = Cluster::start(&Settings::default()).await;
    cluster.create_kv(1, "first", &[1, 2, 3]).await;
    cluster.kill(3);
    for name in ["a", "b", "c"] {
        let group = cluster.create_kv(1, name, &[1, 2, 3]).await;
        assert!([1, 2].contains(&cluster.leader_among(group, &[1, 2]).await));
    }
}

// P-92
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_groups_are_created_by_one_request_or_none() {
    const COUNT: usize = 30;
    let cluster = Cluster::start(&slow_elections()).await;
    cluster.create_kv(1, "first", &[1, 2, 3]).await;
    let create = async |request: Value| {
        cluster
            .http(2, "POST", "/v1/groups", request.to_string())
            .await
    };
    for (wrong, code) in [
        (json!({"name": "many", "count": 0}), "invalid-request"),
        (
            json!({"name": "many", "count": GROUPS_AT_ONCE + 1}),
            "invalid-request",
        ),
        (
            json!({"name": "many", "count": 2, "id": "7"}),
            "invalid-request",
        ),
        (
            json!({"name": "many", "count": 2, "members": [9]}),
            "not-found",
        ),
        (json!({"count": 2}), "invalid-request"),
    ] {
        let refused = create(wrong.clone()).await;
        assert_eq!(refused.code(), code, "{wrong}: {}", refused.text());
    }
    let watch = Stopwatch::start();
    let created = create(json!({"name": "many", "count": COUNT})).await;
    let took = watch.elapsed();
    assert_eq!(created.status, 201, "{}", created.text());
    assert!(
        took < TIMEOUT,
        "they took {took:?}: they waited for an election"
    );
    let groups = created.json();
    let groups = groups.as_array().expect("a list");
    assert_eq!(groups.len(), COUNT);
    let client = cluster.client().await;
    for (number, group) in (1..).zip(groups) {
        assert_eq!(group["name"], format!("many-{number:04}"));
        assert_eq!(
            (&group["problem"], group["leader"].is_null()),
            (&Value::Null, false)
        );
        let id: u64 = group["id"]
            .as_str()
            .and_then(|id| id.parse().ok())
            .expect("an id");
        assert!(matches!(
            propose(&client, id.into(), "put a 1").await,
            Outcome::Reply(_)
        ));
    }
    // One of the names is taken: then none of the others is.
    let removed = cluster.http(1, "DELETE", "/v1/groups/many-0001", "").await;
    assert_eq!(removed.status, 200, "{}", removed.text());
    let refused = create(json!({"name": "many", "count": COUNT})).await;
    assert_eq!(
        (refused.status, refused.code().as_str()),
        (409, "group-exists")
    );
    let missing = cluster.http(1, "GET", "/v1/groups/many-0001", "").await;
    assert_eq!(missing.status, 404, "{}", missing.text());
}

/// How long so many groups take, one after another by one client and at once. Prints seconds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement of minutes: set SKEP_CREATE_GROUPS"]
async fn so_many_groups_take_so_long() {
    let count = std::env::var("SKEP_CREATE_GROUPS").ok();
    let count: usize = count.and_then(|count| count.parse().ok()).unwrap_or(100);
    let settings = Settings {
        tick_ms: 100,
        election_ticks: 10,
        heartbeat_ticks: 2,
        ..Settings::default()
    };
    let cluster = Cluster::start(&settings).await;
    cluster.create_kv(1, "first", &[1, 2, 3]).await;
    let (whole, mut longest) = (Stopwatch::start(), Duration::ZERO);
    for number in 0..count {
        let one = Stopwatch::start();
        cluster
            .create_kv(1, &format!("one-{number}"), &[1, 2, 3])
            .await;
        longest = longest.max(one.elapsed());
    }
    println!(
        "{count} one after another: {:?}, the longest {longest:?}",
        whole.elapsed()
    );
    let whole = Stopwatch::start();
    let mut left = count;
    for batch in 0.. {
        let some = left.min(GROUPS_AT_ONCE);
        if some == 0 {
            break;
        }
        let request = json!({"name": format!("batch-{batch}"), "count": some});
        let created = cluster
            .http(1, "POST", "/v1/groups", request.to_string())
            .await;
        assert_eq!(created.status, 201, "{}", created.text());
        let groups = created.json();
        let groups = groups.as_array().expect("a list");
        let led = groups
            .iter()
            .filter(|group| !group["leader"].is_null())
            .count();
        println!("{led} of {some} have a leader");
        left -= some;
    }
    println!("{count} at once: {:?}", whole.elapsed());
}
