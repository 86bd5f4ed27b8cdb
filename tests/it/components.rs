//! Components that cannot be machines are refused, by name of what is wrong, before any node depends on them.

use serde_json::json;
use skep_client::ComponentId;
use skep_examples::KV;
use skep_tests::clock::eventually;
use skep_tests::cluster::{Cluster, Settings};
use skep_tests::guests;
use skep_tests::process;

use crate::upgrades::version;

/// Whether a node has a component on its disk, and its compiled code.
fn on_disk(cluster: &Cluster, id: u64, component: ComponentId) -> (bool, bool) {
    let name = component.to_string();
    let has = |directory: &str| {
        let files =
            std::fs::read_dir(cluster.node(id).data().join(directory)).expect("a directory");
        files
            .map(|file| file.expect("an entry").file_name())
            .any(|file| file.to_string_lossy().starts_with(&name))
    };
    (has("components"), has("compiled"))
}

// P-28
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn components_that_nothing_uses_are_collected_and_their_files_deleted() {
    let mut cluster = Cluster::start(&Settings::default()).await;
    let (waits, leaves) = (version(10), version(11));
    let (runs, ran) = (guests::component("restore_refuses"), KV.to_vec());
    let waiting = cluster.upload(1, &waits).await;
    let group = cluster.create_kv(1, "stays", &[1, 2, 3]).await;
    let leaving = cluster.create_from(2, "leaves", &leaves, &[1, 2, 3]).await;
    let [left, ran, tried] = [&leaves, &ran, &runs].map(|bytes| ComponentId::of(bytes));
    // A group was asked to run it, which it refused: its log names it all the same.
    cluster.upload(1, &runs).await;
    let body = json!({"component": tried.to_string()}).to_string();
    let path = format!("/v1/groups/{group}/upgrade");
    let answer = cluster.http(1, "POST", &path, body).await;
    assert_eq!(answer.status, 422, "{}", answer.text());
    let removed = cluster
        .http(1, "DELETE", &format!("/v1/groups/{leaving}"), "")
        .await;
    assert_eq!(removed.status, 200, "{}", removed.text());

    let collect = async |at, body: &str| {
        let answer = cluster
            .http(at, "POST", "/v1/components/collect", body)
            .await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let mut found: Vec<_> = answer.json().as_array().expect("a list").clone();
        found.sort_by_key(|of| of["id"].to_string());
        found
            .iter()
            .map(|of| of["id"].as_str().expect("an id").to_owned())
            .collect::<Vec<_>>()
    };
    // They are new, and somebody may be about to use them.
    assert_eq!(collect(2, "{}").await, [] as [&str; 0]);
    assert_eq!(on_disk(&cluster, 1, waiting), (true, true));
    let mut expected = [waiting.to_string(), left.to_string()];
    expected.sort();
    assert_eq!(collect(3, r#"{"older_than_seconds": 0}"#).await, expected);
    for id in cluster.ids() {
        for gone in [waiting, left] {
            eventually(&format!("node {id} deletes {gone}"), async || {
                let found = on_disk(&cluster, id, gone);
                (found == (false, false))
                    .then_some(())
                    .ok_or_else(|| format!("{found:?}"))
            })
            .await;
        }
        assert_eq!(on_disk(&cluster, id, ran), (true, true));
    }
    assert_eq!(on_disk(&cluster, 1, tried), (true, true));
    let body = json!({"name": "late", "component": waiting.to_string()}).to_string();
    let late = cluster.http(1, "POST", "/v1/groups", body).await;
    assert_eq!(late.status, 404, "{}", late.text());
    // Uploaded again, it is as new; and what stays comes up again.
    cluster.create_from(2, "again", &waits, &[1, 2, 3]).await;
    cluster.kill(2);
    cluster.restart(2).await;
    let status = cluster.try_status(2, group).await.expect("it runs");
    assert_eq!((status.component, status.halted), (ran, None));
    cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn components_are_put_listed_and_collected_from_the_command_line() {
    let cluster = Cluster::start(&Settings::default()).await;
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("machine.wasm");
    std::fs::write(&path, guests::component("loops")).expect("a file");
    let id = ComponentId::of(&guests::component("loops")).to_string();
    let at = cluster.node(1).client.clone();
    let file = path.to_str().expect("text");
    let run = async |arguments: &[&str]| {
        let ended = process::run(&[arguments, &["--at", &at]].concat()).await;
        assert_eq!(ended.code, Some(0), "{arguments:?}: {}", ended.stderr);
        ended.stdout
    };
    assert_eq!(run(&["component", "put", file]).await.trim(), id);
    assert!(run(&["component", "list"]).await.contains(&id));
    assert!(!run(&["component", "collect"]).await.contains(&id));
    assert!(
        run(&["component", "collect", "--older-than", "0"])
            .await
            .contains(&id)
    );
    assert!(!run(&["component", "list"]).await.contains(&id));
}

/// A file that is no machine, the stable code of why, and a word the message must have.
fn wrong() -> Vec<(&'static str, Vec<u8>, &'static str, &'static str)> {
    let component = |text: &str| wat::parse_str(text).expect("valid text");
    vec![
        (
            "no Wasm at all",
            b"#!/bin/sh\nexit 0\n".to_vec(),
            "not-wasm",
            "component",
        ),
        ("nothing", Vec::new(), "not-wasm", "component"),
        (
            "a core module",
            component("(module)"),
            "core-module",
            "component",
        ),
        (
            "a truncated component",
            KV[..KV.len() / 2].to_vec(),
            "component-truncated",
            "in the middle",
        ),
        (
            "no export",
            component("(component)"),
            "missing-export",
            "skep:machine/state-machine",
        ),
        (
            "a foreign import",
            component(r#"(component (import "wasi:http/outgoing-handler@0.2.0" (instance)))"#),
            "foreign-import",
            "wasi:http/outgoing-handler",
        ),
    ]
}

// P-35
#[tokio::test]
async fn no_wrong_component_is_taken_in() {
    let cluster = Cluster::start(&Settings::one_node("")).await;
    for (what, bytes, code, word) in wrong() {
        let path = format!("/v1/components/{}", ComponentId::of(&bytes));
        let answer = cluster.http(1, "PUT", &path, &bytes).await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (422, code),
            "{what}: {}",
            answer.text()
        );
        let detail = answer.json()["detail"]
            .as_str()
            .expect("a detail")
            .to_owned();
        assert!(detail.contains(word), "{what}: {detail}");
        assert_eq!(
            cluster.http(1, "GET", &path, "").await.status,
            404,
            "{what} was kept"
        );
    }
    let other = ComponentId::of(b"other");
    let answer = cluster
        .http(1, "PUT", &format!("/v1/components/{other}"), KV)
        .await;
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (400, "digest-mismatch"),
        "{}",
        answer.text()
    );
    let answer = cluster.http(1, "PUT", "/v1/components/abc", KV).await;
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (400, "invalid-request"),
        "{}",
        answer.text()
    );
    let request = json!({"name": "x", "component": other.to_string()}).to_string();
    let answer = cluster.http(1, "POST", "/v1/groups", request).await;
    assert_eq!(answer.status, 404, "{}", answer.text());
    assert!(
        answer.text().contains(&other.to_string()),
        "{}",
        answer.text()
    );
    // The node goes on.
    let group = cluster.create_kv(1, "kv", &[1]).await;
    assert_eq!(cluster.leader(group).await, 1);
}

#[test]
fn every_machine_here_is_all_in_its_memory_but_those_that_write_to_tables() {
    let mut refused = Vec::new();
    let mut taken = 0;
    for name in guests::names() {
        // Those that are no machines are refused for what they are.
        match skep_machine::wasm::inspect(&guests::component(name)) {
            Ok(found) => match found.no_image {
                Some(why) => refused.push((name, why.name())),
                None => taken += 1,
            },
            Err(_) => continue,
        }
    }
    assert_eq!(
        refused,
        [
            ("grows_table", "written-table"),
            ("grows_table_again", "written-table"),
        ]
    );
    assert!(taken > 100, "{taken}");
    let kv = skep_machine::wasm::inspect(KV).expect("a machine");
    assert_eq!(kv.no_image, None);
}

#[tokio::test]
async fn the_command_line_says_what_is_wrong_with_a_file() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    for (what, bytes, code, word) in wrong() {
        let path = dir.path().join("machine.wasm");
        std::fs::write(&path, &bytes).expect("a file");
        let path = path.to_str().expect("a plain name");
        let ended = process::run(&["inspect", path]).await;
        assert_eq!(ended.code, Some(1), "{what}: {ended:?}");
        assert!(
            ended.stderr.contains(word) && ended.stderr.contains(code),
            "{what}: {}",
            ended.stderr
        );
        assert!(
            !ended.stderr.contains("panicked"),
            "{what}: {}",
            ended.stderr
        );
    }
    let path = dir.path().join("kv.wasm");
    std::fs::write(&path, KV).expect("a file");
    let ended = process::run(&["inspect", path.to_str().expect("a plain name")]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(
        ended.stdout.contains(&ComponentId::of(KV).to_string()),
        "{ended:?}"
    );
}
