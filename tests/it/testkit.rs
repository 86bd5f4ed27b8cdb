//! `skep test` and `skep inspect`: what people who write machines use, as they use it.

use std::path::Path;

use serde_json::Value;
use skep_examples::KV;
use skep_rehearsal_tests::{COUNTER, DISPATCHER, HIDDEN_STATE, imageless};
use skep_tests::process::{self, Ended};

/// A file in a directory of its own.
fn file(dir: &Path, name: &str, content: &[u8]) -> String {
    let path = dir.join(name);
    std::fs::write(&path, content).expect("a file of the test");
    path.to_str().expect("a plain path").to_owned()
}

fn json(ended: &Ended) -> Value {
    serde_json::from_str(&ended.stdout)
        .unwrap_or_else(|error| panic!("{error}: {} {}", ended.stdout, ended.stderr))
}

#[tokio::test]
async fn a_good_machine_passes_and_the_report_says_what_it_costs() {
    let dir = tempfile::tempdir().expect("a directory");
    let component = file(dir.path(), "kv.wasm", KV);
    let requests = "# keys\nput a 1\nput b \\x00\\n\n?get a\nincr n\nincr n 2\nscan\nget none\ndelete a\n!leader 2\n!empty\n";
    let requests = file(dir.path(), "requests.txt", requests.as_bytes());
    let ended = process::run(&["test", &component, "--requests", &requests, "--strict"]).await;
    assert_eq!(ended.code, Some(0), "{} {}", ended.stdout, ended.stderr);
    for word in [
        "machine    kv",
        "verdict: pass\n",
        "round-trip",
        "fuel of a command",
        "2 rejections",
    ] {
        assert!(ended.stdout.contains(word), "{word}: {}", ended.stdout);
    }

    let ended = process::run(&["test", &component, "--requests", &requests, "-o", "json"]).await;
    let report = json(&ended);
    assert_eq!(report["verdict"], "pass");
    assert_eq!(
        report["component"]["id"],
        skep_client::ComponentId::of(KV).to_string()
    );
    assert_eq!(
        (&report["commands"], &report["replies"]),
        (&8.into(), &6.into())
    );
    assert!(
        report["costs"]["command-fuel"]["max"].as_u64() > Some(1000),
        "{report}"
    );
    let checks = report["checks"].as_array().expect("checks");
    assert_eq!(checks.len(), 13, "{report}");
}

#[tokio::test]
async fn a_limit_that_is_met_shows_and_a_mistake_fails() {
    let dir = tempfile::tempdir().expect("a directory");
    let component = file(dir.path(), "kv.wasm", KV);
    let text = format!(
        "put a {}\nget a\nput b 1\nget b\n?get b\n",
        "v".repeat(2000)
    );
    let requests = file(dir.path(), "requests.txt", text.as_bytes());
    let profile = file(dir.path(), "profile.json", br#"{"reply-bytes": 1000}"#);
    let arguments = [
        "test",
        &component,
        "--requests",
        &requests,
        "--profile",
        &profile,
        "-o",
        "json",
    ];
    let report = json(&process::run(&arguments).await);
    assert_eq!(report["faults"], 1, "{report}");
    assert_eq!(report["verdict"], "pass", "{report}");

    let component = file(dir.path(), "hidden.wasm", HIDDEN_STATE);
    let requests = file(dir.path(), "count.txt", b"count\ncount\ncount\n");
    let ended = process::run(&["test", &component, "--requests", &requests]).await;
    assert_eq!(ended.code, Some(1), "{} {}", ended.stdout, ended.stderr);
    assert!(ended.stdout.contains("verdict: FAIL\n"), "{}", ended.stdout);
    assert!(ended.stdout.contains("loses something"), "{}", ended.stdout);
    assert!(
        ended.stderr.contains("[rehearsal-failed]"),
        "{}",
        ended.stderr
    );
}

/// The dispatcher of a newcomer: every reply is `ok` whoever got the job, and no snapshot is in another order.
#[tokio::test]
async fn a_query_that_contradicts_the_state_fails_and_the_readmes_counter_passes() {
    let dir = tempfile::tempdir().expect("a directory");
    let requests = "?show\nwork w1\nwork w2\nwork w3\nwork w4\nwork w5\nwork w6\nwork w7\njob j1\njob j2\njob j3\n";
    let requests = file(dir.path(), "requests.txt", requests.as_bytes());
    // Where queries run in the machine's own memory, they contradict nothing.
    let component = file(dir.path(), "dispatcher.wasm", DISPATCHER);
    let ended = process::run(&["test", &component, "--requests", &requests]).await;
    assert_eq!(ended.code, Some(0), "{} {}", ended.stdout, ended.stderr);
    let component = file(dir.path(), "imageless.wasm", &imageless(DISPATCHER));
    let ended = process::run(&["test", &component, "--requests", &requests]).await;
    assert_eq!(ended.code, Some(1), "{} {}", ended.stdout, ended.stderr);
    for words in [
        "FAIL  answers ",
        "error: line ",
        "the query `show` is answered with",
        "verdict: FAIL\n",
    ] {
        assert!(ended.stdout.contains(words), "{words}: {}", ended.stdout);
    }

    let component = file(dir.path(), "counter.wasm", COUNTER);
    for arguments in [
        vec!["test", &component, "--strict", "--requests", &requests],
        vec!["test", &component, "--strict"],
    ] {
        let ended = process::run(&arguments).await;
        assert_eq!(ended.code, Some(0), "{} {}", ended.stdout, ended.stderr);
        assert!(ended.stdout.contains("ok    answers "), "{}", ended.stdout);
    }
}

#[tokio::test]
async fn wrong_input_is_named() {
    let dir = tempfile::tempdir().expect("a directory");
    let component = file(dir.path(), "kv.wasm", KV);
    let wrong = file(dir.path(), "wrong.txt", b"put a 1\n!frobnicate\n");
    let not_json = file(dir.path(), "profile.json", b"{\"command-feul\": 1}");
    for (arguments, words) in [
        (vec!["test", &wrong], "not-wasm"),
        (vec!["test", "/nowhere/m.wasm"], "/nowhere/m.wasm"),
        (vec!["test", &component, "--requests", &wrong], "line 2"),
        (
            vec!["test", &component, "--profile", &not_json],
            "command-feul",
        ),
    ] {
        let ended = process::run(&arguments).await;
        assert_eq!(
            (ended.code, ended.stdout.as_str()),
            (Some(1), ""),
            "{arguments:?}"
        );
        assert!(
            ended.stderr.contains(words),
            "{arguments:?}: {}",
            ended.stderr
        );
    }
}

#[tokio::test]
async fn inspect_says_whether_a_machine_is_all_in_its_memory_and_why_not() {
    let dir = tempfile::tempdir().expect("a directory");
    let kv = file(dir.path(), "kv.wasm", KV);
    let tables = file(
        dir.path(),
        "tables.wasm",
        &skep_tests::guests::component("grows_table"),
    );
    let text = async |component: &str| process::run(&["inspect", component]).await.stdout;
    assert!(text(&kv).await.contains("\nimage      yes\n"));
    let no = text(&tables).await;
    assert!(
        no.contains("\nimage      no: it writes to its tables") && no.contains("(written-table)"),
        "{no}"
    );
    let found = async |component: &str| {
        let ended = process::run(&["inspect", component, "-o", "json"]).await;
        json(&ended)["no-image"].clone()
    };
    assert!(found(&kv).await.is_null());
    let why = found(&tables).await;
    assert_eq!(why["name"], "written-table");
    assert!(
        why["reason"].as_str().is_some_and(|why| no.contains(why)),
        "{why}"
    );
}

#[tokio::test]
async fn inspect_shows_the_world_as_wit() {
    let dir = tempfile::tempdir().expect("a directory");
    let component = file(dir.path(), "kv.wasm", KV);
    let ended = process::run(&["inspect", &component, "--wit"]).await;
    for word in [
        "world root {",
        "export skep:machine/state-machine@0.1.0;",
        "package skep:machine@0.1.0 {",
        "apply: func(ctx: context, request: list<u8>) -> result<list<u8>, rejection>;",
    ] {
        assert!(ended.stdout.contains(word), "{word}: {}", ended.stdout);
    }
    let found = json(&process::run(&["inspect", &component, "-o", "json"]).await);
    assert_eq!(found["id"], skep_client::ComponentId::of(KV).to_string());
    assert_eq!(found["wit"].as_str(), Some(ended.stdout.as_str()));
}
