//! `skep replay`: a stopped node's directory tells what its machines were told.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use skep_client::Outcome;
use skep_examples::KV;
use skep_rehearsal_tests::{HIDDEN_STATE, RANDOM};
use skep_tests::clock::until;
use skep_tests::cluster::{Cluster, Settings};
use skep_tests::process::{self, Ended};

use crate::load::{propose, text};

/// Every file below a directory, with its content.
fn everything(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                dirs.push(path);
            } else {
                let content = std::fs::read(&path).expect("a file");
                files.insert(path, content);
            }
        }
    }
    files
}

async fn replay(data: &Path, arguments: &[&str]) -> Ended {
    let data = data.to_str().expect("a plain path");
    let mut all = vec!["replay", "--data", data];
    all.extend(arguments);
    process::run(&all).await
}

async fn told(data: &Path, arguments: &[&str]) -> Value {
    let mut all = arguments.to_vec();
    all.extend(["-o", "json"]);
    let ended = replay(data, &all).await;
    assert_eq!(ended.code, Some(0), "{} {}", ended.stdout, ended.stderr);
    serde_json::from_str(&ended.stdout).expect("JSON")
}

/// The commands among the steps, with what was answered.
fn commands(told: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let steps = told["steps"].as_array().expect("steps");
    let pairs = steps
        .iter()
        .map(|step| (text(&step["request"]), text(&step["outcome"])));
    pairs
        .filter(|(request, _)| !request.starts_with('!'))
        .collect()
}

// P-36, P-52
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_past_of_a_stopped_node_is_told_again_and_nothing_is_written() {
    let mut cluster = Cluster::start(&Settings::one_node("")).await;
    let group = cluster.create_kv(1, "kv", &[1]).await;
    let client = cluster.client().await;
    let mut expected = Vec::new();
    for at in 0..20 {
        let (command, reply) = (format!("put k{at} v"), format!("OK {}", at + 1));
        assert_eq!(text(propose(&client, group, &command).await), reply);
        expected.push((command, reply));
    }
    let session = client.session(group).await.expect("a session");
    drop(session);
    let busy = replay(&cluster.node(1).data(), &["--group", "kv"]).await;
    assert_eq!(busy.code, Some(1), "a directory in use: {}", busy.stdout);

    // A first stop behind which the whole log is there, then a barrier, and more.
    cluster.stop(1);
    let data = cluster.node(1).data();
    let before = everything(&data);
    let all = told(&data, &["--group", "kv", "--print", "--uncommitted"]).await;
    assert_eq!(all["first"], 0);
    assert_eq!(commands(&all), expected);
    // Any index: a prefix of the commands, and the state behind it.
    let steps = all["steps"].as_array().expect("steps");
    let tenth = steps.iter().find(|step| step["request"] == "put k9 v");
    let index = tenth.expect("the tenth command")["index"].to_string();
    let early = told(&data, &["--group", "kv", "--print", "--at", &index]).await;
    assert_eq!(commands(&early), expected[..10]);
    assert_ne!(early["state"], all["state"]);
    assert!(everything(&data) == before, "something was written");

    cluster.restart(1).await;
    let taken = cluster.http(1, "POST", "/v1/groups/kv/snapshot", "").await;
    assert_eq!(taken.status, 200, "{}", taken.text());
    let client = cluster.client().await;
    for at in 20..25 {
        let reply = text(propose(&client, group, &format!("put k{at} v")).await);
        assert_eq!(reply, format!("OK {}", at + 1));
    }
    cluster.kill(1);
    // With the log still behind the barrier, it is gone over again, and gives the very bytes of the node's snapshot.
    let all = told(&data, &["--group", "kv", "--print", "--uncommitted"]).await;
    let steps = all["steps"].as_array().expect("steps");
    let restored = steps[0]["request"].as_str().expect("text");
    assert!(restored.starts_with("!restored"), "{restored}");
    let last: Vec<_> = (20..25)
        .map(|at| (format!("put k{at} v"), format!("OK {}", at + 1)))
        .collect();
    assert_eq!(commands(&all), last);
    let early = replay(&data, &["--group", "kv", "--at", "1"]).await;
    assert_eq!(
        early.code,
        Some(0),
        "the whole log is kept: {}",
        early.stderr
    );
    let beyond = replay(&data, &["--group", "kv", "--at", "4000"]).await;
    assert_eq!(beyond.code, Some(1));
    assert!(
        beyond.stderr.contains("cannot be rebuilt"),
        "{}",
        beyond.stderr
    );

    let catalogue = told(&data, &["--group", "0", "--print", "--uncommitted"]).await;
    let created = commands(&catalogue);
    assert!(
        created
            .iter()
            .any(|(command, _)| command.contains("\"kv\"")),
        "{created:?}"
    );
    let unknown = replay(&data, &["--group", "nobody"]).await;
    assert!(unknown.stderr.contains("it knows kv"), "{}", unknown.stderr);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_components_are_compared_and_the_first_difference_is_named() {
    let mut cluster = Cluster::start(&Settings::one_node("")).await;
    let group = cluster.create_from(1, "pairs", HIDDEN_STATE, &[1]).await;
    let client = cluster.client().await;
    for command in ["put a 1", "put b 2", "get a", "ping"] {
        let outcome = propose(&client, group, command).await;
        assert!(matches!(outcome, Outcome::Reply(_)), "{outcome:?}");
    }
    assert_eq!(text(propose(&client, group, "count").await), "5");
    for command in ["put c 3", "ping"] {
        propose(&client, group, command).await;
    }
    cluster.stop(1);
    let data = cluster.node(1).data();
    let dir = tempfile::tempdir().expect("a directory");
    let file = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).expect("a file of the test");
        path.to_str().expect("a plain path").to_owned()
    };
    let (same, other, kv) = (
        file("same.wasm", HIDDEN_STATE),
        file("other.wasm", RANDOM),
        file("kv.wasm", KV),
    );
    let compare = async |component: &str| {
        let arguments = [
            "--group",
            "pairs",
            "--uncommitted",
            "--compare",
            component,
            "-o",
            "json",
        ];
        let ended = replay(&data, &arguments).await;
        let told: Value = serde_json::from_str(&ended.stdout).expect("JSON");
        (ended.code, told["differences"].clone())
    };
    let (code, differences) = compare(&same).await;
    let nothing = json!({"reply": null, "fuel": null, "state": null});
    assert_eq!((code, differences), (Some(0), nothing));
    // The other one keeps the same pairs and does not know `count`.
    let (code, differences) = compare(&other).await;
    assert_eq!(code, Some(1));
    assert_eq!(differences["reply"][0]["request"], "count");
    assert_eq!(differences["reply"][0]["outcome"], "5");
    assert_eq!(differences["state"], Value::Null);
    // This one answers a `put` otherwise at once, and saves other bytes from the start.
    let (code, differences) = compare(&kv).await;
    assert_eq!(code, Some(1));
    assert_eq!(differences["reply"][1]["outcome"], "OK 1");
    assert!(differences["state"].is_u64(), "{differences}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_past_ends_where_the_replica_stopped() {
    let mut cluster = Cluster::start(&Settings::one_node("")).await;
    let refused = json!({"name": "picky", "members": [1], "init": "more of everything"});
    let created = cluster.http(1, "POST", "/v1/groups", refused.to_string());
    let created = created.await;
    let words = "init refused the configuration of the group (code 0): kv takes no configuration";
    until("the replica has stopped", || {
        cluster.node(1).log().contains(words)
    })
    .await;
    assert!(created.text().contains("picky"), "{}", created.text());
    cluster.stop(1);
    let data = cluster.node(1).data();
    let ended = replay(&data, &["--group", "picky", "--uncommitted"]).await;
    assert_eq!(ended.code, Some(1), "{} {}", ended.stdout, ended.stderr);
    assert!(ended.stderr.contains(words), "{}", ended.stderr);
}
