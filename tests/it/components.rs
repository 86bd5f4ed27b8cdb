//! Components that cannot be machines are refused, by name of what is wrong, before any node depends on them.

use serde_json::json;
use skep_client::ComponentId;
use skep_examples::KV;
use skep_tests::cluster::{Cluster, Settings};
use skep_tests::process;

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

#[tokio::test]
async fn no_wrong_component_is_taken_in() {
    let cluster = Cluster::start(&Settings {
        nodes: 1,
        ..Settings::default()
    })
    .await;
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
