//! What clients, peers and operators may send that is wrong: each gets a stable code and is told what to do, and the
//! node serves on.

use std::time::Duration;

use bytes::BytesMut;
use serde_json::json;
use skep_client::{Client, ClientConfig, GroupId};
use skep_tests::clock::{eventually, within};
use skep_tests::cluster::{Cluster, Settings};
use skep_tests::process;
use skep_tests::seed::Seed;
use skep_wire::codec::{Decoder, Encoder};
use skep_wire::proto::{self, client_frame, request, response, server_frame};
use skep_wire::{CLIENT_PROTOCOL, MAX_CLIENT_FRAME, MAX_TIMEOUT_MS};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::load::{propose, text};

/// How long a node holds a stranger's connection at most.
const STRANGER: Duration = Duration::from_secs(15);

/// What a request must be answered with.
type Case<'a> = (&'a str, &'a str, &'a str, u16, &'a str, &'a str);

// P-13
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_requests_have_stable_codes_and_advice() {
    let cluster = Cluster::start(&Settings::default()).await;
    let group = cluster.create_kv(1, "kv", &[1, 2, 3]).await;
    let taken = json!({"name": "kv"}).to_string();
    let same_id = json!({"name": "other", "id": group}).to_string();
    let cases: &[Case<'_>] = &[
        // method, path, body, status, code, a word of the advice
        (
            "POST",
            "/v1/groups/nowhere/propose",
            "put a 1",
            404,
            "no-such-group",
            "skep group list",
        ),
        (
            "POST",
            "/v1/groups/77/query",
            "get a",
            404,
            "no-such-group",
            "77",
        ),
        (
            "DELETE",
            "/v1/groups/nowhere",
            "",
            404,
            "no-such-group",
            "nowhere",
        ),
        (
            "GET",
            "/v1/groups/nowhere/status",
            "",
            404,
            "no-such-group",
            "nowhere",
        ),
        ("POST", "/v1/groups", &taken, 409, "group-exists", "kv"),
        (
            "POST",
            "/v1/groups",
            &same_id,
            409,
            "group-exists",
            "exists",
        ),
        (
            "POST",
            "/v1/groups",
            r#"{"name": "z", "id": 0}"#,
            400,
            "invalid-request",
            "0",
        ),
        (
            "POST",
            "/v1/groups",
            r#"{"name": "z", "members": [0]}"#,
            404,
            "not-found",
            "0",
        ),
        (
            "POST",
            "/v1/groups",
            r#"{"name": "z", "members": []}"#,
            400,
            "invalid-request",
            "member",
        ),
        (
            "POST",
            "/v1/groups",
            r#"{"name": "z", "members": [9]}"#,
            404,
            "not-found",
            "9",
        ),
        (
            "POST",
            "/v1/groups",
            r#"{"name": "z", "replicas": 9}"#,
            400,
            "invalid-request",
            "9",
        ),
        (
            "POST",
            "/v1/groups",
            r#"{"name": "z z"}"#,
            400,
            "invalid-request",
            "z z",
        ),
        (
            "POST",
            "/v1/groups",
            r#"{"nam": "z"}"#,
            400,
            "invalid-request",
            "nam",
        ),
        (
            "POST",
            "/v1/groups",
            r#"{"name": "z""#,
            400,
            "invalid-request",
            "EOF",
        ),
        ("POST", "/v1/groups", "{}", 400, "invalid-request", "name"),
        (
            "POST",
            "/v1/groups/0/propose",
            "put a 1",
            404,
            "no-such-group",
            "skep group list",
        ),
        (
            "POST",
            "/v1/groups/kv/members",
            r#"{"node": 0}"#,
            404,
            "not-found",
            "0",
        ),
        (
            "POST",
            "/v1/groups/kv/members",
            r#"{"node": 9}"#,
            404,
            "not-found",
            "9",
        ),
        (
            "DELETE",
            "/v1/groups/kv/members/9",
            "",
            400,
            "invalid-request",
            "9",
        ),
        (
            "DELETE",
            "/v1/groups/kv/members/x",
            "",
            400,
            "invalid-request",
            "digits",
        ),
        (
            "POST",
            "/v1/groups/kv/transfer",
            r#"{"node": 9}"#,
            400,
            "invalid-request",
            "skep member list",
        ),
        (
            "POST",
            "/v1/groups/kv/query?consistency=perhaps",
            "get a",
            400,
            "invalid-request",
            "consistency",
        ),
        (
            "GET",
            "/v1/groups/kv/propose",
            "",
            405,
            "method-not-allowed",
            "method",
        ),
        ("GET", "/nowhere", "", 404, "no-such-path", "/v1"),
        (
            "POST",
            "/v1/groups/kv/propose",
            "frobnicate",
            422,
            "rejected",
            "",
        ),
        (
            "POST",
            "/v1/groups/kv/query",
            "put a 1",
            422,
            "rejected",
            "",
        ),
    ];
    for (method, path, body, status, code, word) in cases {
        let answer = cluster.http(2, method, path, body).await;
        let seen = (answer.status, answer.code());
        assert_eq!(
            seen,
            (*status, (*code).to_owned()),
            "{method} {path} {body}: {}",
            answer.text()
        );
        assert!(
            answer.text().contains(word),
            "{method} {path} {body}: {}",
            answer.text()
        );
    }
    for headers in [
        &[("skep-session", "7")][..],
        &[("skep-session", "0"), ("skep-sequence", "1")],
        &[("skep-timeout-ms", "soon")],
    ] {
        let answer = cluster
            .http_with(1, "POST", "/v1/groups/kv/propose", headers, "put a 1")
            .await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (400, "invalid-request"),
            "{headers:?}: {}",
            answer.text()
        );
    }
    let unknown = [("skep-session", "987654321"), ("skep-sequence", "1")];
    let answer = cluster
        .http_with(1, "POST", "/v1/groups/kv/propose", &unknown, "put a 1")
        .await;
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (409, "session-expired"),
        "{}",
        answer.text()
    );

    // Too large by one byte, at each door.
    let large = "x".repeat((1 << 20) + 1);
    let answer = cluster
        .http(3, "POST", "/v1/groups/kv/propose", &large)
        .await;
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (413, "too-large"),
        "{}",
        answer.text()
    );
    assert!(answer.text().contains("1048576"), "{}", answer.text());
    let client = cluster.client().await;
    let error = client
        .propose_once(group, large.into())
        .await
        .expect_err("too large");
    assert_eq!(error.code().name(), "too-large", "{error}");
    let error = client
        .propose_once(group, vec![b'x'; 128 << 20].into())
        .await
        .expect_err("too large");
    assert_eq!(error.code().name(), "too-large", "{error}");
    let error = client
        .propose_once(GroupId(77), "put a 1".into())
        .await
        .expect_err("no such group");
    assert_eq!(error.code().name(), "no-such-group", "{error}");
    let error = client
        .propose_once(GroupId(0), "put a 1".into())
        .await
        .expect_err("the catalogue");
    assert_eq!(error.code().name(), "invalid-request", "{error}");
    let error = client
        .call("no.such.method", &json!({}))
        .await
        .expect_err("no such method");
    assert_eq!(error.code().name(), "invalid-request", "{error}");
    // None of it was applied.
    assert_eq!(text(propose(&client, group, "put a 1").await), "OK 1");
}

// P-13
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_line_has_stable_exit_codes() {
    let mut cluster = Cluster::start(&Settings::default()).await;
    let group = cluster.create_kv(1, "kv", &[1, 2, 3]).await;
    let at = cluster.node(2).client.clone();
    let ended = process::run(&["propose", "--at", &at, "kv", "put a 1"]).await;
    assert_eq!(
        (ended.code, ended.stdout.trim_end()),
        (Some(0), "OK 1"),
        "{ended:?}"
    );
    for (arguments, code, word) in [
        (&["propose", "nowhere", "put a 1"][..], 1, "no-such-group"),
        (&["query", "kv", "get b"], 5, "rejected 404"),
        (&["propose", "kv", "frobnicate"], 5, "rejected 400"),
        (&["group", "create", "kv"], 1, "group-exists"),
        (&["member", "add", "kv", "9"], 1, "not-found"),
        (&["group", "frobnicate"], 2, "frobnicate"),
    ] {
        let mut line = arguments.to_vec();
        if code != 2 {
            line.extend(["--at", &at]);
        }
        let ended = process::run(&line).await;
        assert_eq!(ended.code, Some(code), "{line:?}: {ended:?}");
        assert!(ended.stderr.contains(word), "{line:?}: {ended:?}");
        assert!(ended.stdout.is_empty(), "{line:?}: {ended:?}");
    }
    // No leader: a majority is gone. Nobody at all: the node is gone.
    let leader = cluster.leader(group).await;
    cluster.kill_at_once(&cluster.others(&[leader]));
    let alone = cluster.node(leader).client.clone();
    let ended = process::run(&["query", "--timeout", "2", "--at", &alone, "kv", "get a"]).await;
    assert_eq!(ended.code, Some(3), "{ended:?}");
    let answer = cluster
        .http_with(
            leader,
            "POST",
            "/v1/groups/1/query",
            &[("skep-timeout-ms", "1000")],
            "get a",
        )
        .await;
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (503, "no-leader"),
        "{}",
        answer.text()
    );
    assert_eq!(answer.header("retry-after"), Some("1"));
    cluster.kill(leader);
    let ended = process::run(&["query", "--timeout", "2", "--at", &alone, "kv", "get a"]).await;
    assert_eq!(ended.code, Some(3), "{ended:?}");
    assert!(
        ended.stderr.contains("unreachable") && ended.stderr.contains(&alone),
        "{ended:?}"
    );
}

#[tokio::test]
async fn a_wrong_configuration_is_explained() {
    let cluster = Cluster::prepare(&Settings::default());
    let path = cluster.node(1).config();
    let own = std::fs::read_to_string(&path).expect("a configuration");
    let path = path.to_str().expect("a plain name");
    for (from, to, word) in [
        ("tick_ms", "tik_ms", "did you mean `tick_ms`?"),
        ("[raft]", "[rafft]", "did you mean `raft`?"),
        ("id = 1\ndata_dir", "id = 0\ndata_dir", "node.id"),
        ("id = 1\ndata_dir", "id = 9\ndata_dir", "cluster.nodes"),
        ("tick_ms = 20", "tick_ms = \"soon\"", "tick_ms"),
        ("tick_ms = 20", "tick_ms = 0", "raft.tick_ms"),
        ("[node]", "[node", "line 1"),
    ] {
        let wrong = own.replacen(from, to, 1);
        assert_ne!(wrong, own, "{from}");
        std::fs::write(path, wrong).expect("a configuration");
        for line in [&["serve", "--config", path][..], &["config", "check", path]] {
            let ended = process::run(line).await;
            assert_eq!(ended.code, Some(1), "{line:?} {to}: {ended:?}");
            assert!(ended.stderr.contains(word), "{line:?} {to}: {ended:?}");
        }
    }
    let ended = process::run(&["serve", "--config", "/nowhere/skep.toml"]).await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("/nowhere/skep.toml"), "{ended:?}");
    std::fs::write(path, own).expect("a configuration");
    assert_eq!(process::run(&["config", "check", path]).await.code, Some(0));
}

/// Garbage on the ports that speak frames: the connection is closed, within bounds, and nothing else happens.
// P-50
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_frames_close_their_connection_and_nothing_else() {
    let cluster = Cluster::start(&Settings::default()).await;
    let group = cluster.create_kv(1, "kv", &[1, 2, 3]).await;
    let mut seed = Seed::new(11);
    let mut garbage = vec![
        b"GET / HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(),
        vec![0; 64 << 10],
        vec![0xff; 64 << 10],
        // Less than a frame, and then nothing.
        vec![b'S'],
    ];
    for length in [16, 1000, 100_000] {
        garbage.push((0..length).map(|_| seed.below(256) as u8).collect());
    }
    for id in cluster.ids() {
        for address in [&cluster.node(id).peer, &cluster.node(id).client] {
            for bytes in &garbage {
                let mut stream = TcpStream::connect(address)
                    .await
                    .expect("the port takes connections");
                // The node may close while we still write.
                let _ = stream.write_all(bytes).await;
                let closed = async {
                    let mut rest = Vec::new();
                    // Closed in order or by a reset: both are what is wanted.
                    let _ = stream.read_to_end(&mut rest).await;
                };
                within(
                    STRANGER,
                    &format!("{address} closes on {} bytes", bytes.len()),
                    closed,
                )
                .await;
            }
        }
    }
    let client = cluster.client().await;
    assert_eq!(text(propose(&client, group, "put a 1").await), "OK 1");
    cluster.caught_up(group, &cluster.ids()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_cluster_is_refused_at_both_doors() {
    let cluster = Cluster::start(&Settings::one_node("")).await;
    let group = cluster.create_kv(1, "kv", &[1]).await;
    let config = ClientConfig::new([cluster.node(1).client.clone()]);
    let config = ClientConfig {
        cluster: Some("elsewhere".to_owned()),
        ..config
    };
    let Err(error) = Client::connect(config).await else {
        panic!("a client of another cluster was let in")
    };
    assert_eq!(error.code().name(), "wrong-cluster", "{error}");
    // What it should have been called is for those to say who know.
    assert!(!error.to_string().contains("`test`"), "{error}");

    // Node 1 of another cluster takes ours for its own node 2.
    let mut other = Cluster::prepare(&Settings {
        nodes: 2,
        cluster: "elsewhere".to_owned(),
        ..Settings::default()
    });
    let path = other.node(1).config();
    let text_of = std::fs::read_to_string(&path).expect("a configuration");
    let mistaken = text_of.replace(&other.node(2).peer, &cluster.node(1).peer);
    std::fs::write(&path, mistaken).expect("a configuration");
    other.spawn(1);
    eventually(
        "the stranger is told that this is another cluster",
        async || {
            let log = other.node(1).log();
            if log.contains("another cluster") {
                Ok(())
            } else {
                Err(log)
            }
        },
    )
    .await;
    assert!(
        cluster
            .metric(1, "skep_peer_connections_refused_total")
            .await
            >= 1
    );
    assert_eq!(
        text(propose(&cluster.client().await, group, "put a 1").await),
        "OK 1"
    );
}

/// A node keeps a request as long as its asker may wait; so nobody may say that he waits for weeks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadline_of_weeks_is_refused() {
    let settings = Settings::one_node("");
    let cluster = Cluster::start(&settings).await;
    let group = cluster.create_kv(1, "kv", &[1]).await;
    cluster.leader(group).await;
    let address = cluster.node(1).client.clone();
    for (timeout_ms, is_refused) in [
        (0, false),
        (MAX_TIMEOUT_MS, false),
        (MAX_TIMEOUT_MS + 1, true),
        (u32::MAX, true),
    ] {
        let bodies = [
            request::Body::Propose(proto::Propose {
                data: "put a 1".into(),
                timeout_ms,
                ..Default::default()
            }),
            request::Body::Query(proto::Query {
                data: "get a".into(),
                timeout_ms,
                ..Default::default()
            }),
            request::Body::OpenSession(proto::OpenSession { timeout_ms }),
        ];
        for body in bodies {
            let answer = ask(&address, group, body.clone()).await;
            let refusal = match &answer {
                response::Body::Error(error) => Some((error.code.as_str(), error.retryable)),
                _ => None,
            };
            let expected = is_refused.then_some(("invalid-request", false));
            assert_eq!(refusal, expected, "{body:?}: {answer:?}");
        }
    }
}

/// Asks as no client does that knows the rules.
async fn ask(address: &str, group: GroupId, body: request::Body) -> response::Body {
    let hello = client_frame::Body::Hello(proto::ClientHello {
        protocol: CLIENT_PROTOCOL,
        ..Default::default()
    });
    let request = client_frame::Body::Request(proto::Request {
        id: 1,
        group: group.0,
        body: Some(body),
    });
    let mut sent = BytesMut::new();
    for body in [hello, request] {
        let frame = proto::ClientFrame { body: Some(body) };
        let put = Encoder::new(MAX_CLIENT_FRAME).put(&frame, &mut sent);
        put.expect("a small frame");
    }
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    stream.write_all(&sent).await.expect("it reads");
    let mut decoder = Decoder::<proto::ServerFrame>::new(MAX_CLIENT_FRAME);
    let mut received = BytesMut::new();
    loop {
        while let Some(frame) = decoder.take(&mut received).expect("sound frames") {
            if let Some(server_frame::Body::Response(response)) = frame.body {
                return response.body.expect("an answer");
            }
        }
        let read = within(STRANGER, "an answer", stream.read_buf(&mut received)).await;
        assert!(read.expect("it answers") > 0, "it ended the connection");
    }
}
