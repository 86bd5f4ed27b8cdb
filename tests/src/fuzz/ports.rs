//! Bytes at the ports of a running node: HTTP, the client protocol, the protocol between nodes.
//!
//! Byte 0 chooses the port and, at the framed ones, whether the rest is one sound frame's body or a stream. At the HTTP
//! port byte 1 chooses the request; its path may have a place, and the request some headers, which the first lines of the
//! rest fill; what follows is the body. One node serves all inputs of a process, and must serve on after each.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use bytes::BytesMut;
use prost::Message;
use skep_server::api::{client_port, server};
use skep_server::cluster::Host;
use skep_server::config::Config;
use skep_wire::codec::{Decoder, Encoder};
use skep_wire::proto::{self, client_frame, server_frame};
use skep_wire::{CLIENT_PROTOCOL, MAX_CLIENT_FRAME};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

use crate::clock::{until, within};

/// Every answer comes within this; the node gives requests up long before.
const ANSWER_WITHIN: Duration = Duration::from_secs(40);
/// Bytes of an answer at most, where it is an error: what came is not sent back at length.
const PROBLEM_BYTES: usize = 4 << 10;
/// Groups above this are removed again.
const GROUPS: usize = 4;

/// Every code that a request at a port may be answered with, whatever its bytes.
const CODES: [&str; 36] = [
    "invalid-request",
    "invalid-config",
    "no-such-group",
    "no-such-path",
    "method-not-allowed",
    "no-such-component",
    "not-found",
    "group-exists",
    "group-starting",
    "group-removed",
    "change-in-progress",
    "change-refused",
    "session-expired",
    "answer-expired",
    "too-many-sessions",
    "sequence-closed",
    "digest-mismatch",
    "not-wasm",
    "core-module",
    "component-truncated",
    "foreign-import",
    "missing-export",
    "invalid-component",
    "too-large",
    "busy",
    "rejected",
    "guest-fault",
    "no-leader",
    "timed-out",
    "outcome-unknown",
    "wrong-host",
    "cross-origin",
    "forbidden",
    "above-ceiling",
    "out-of-budget",
    "query-failed",
];

/// Requests at the HTTP port: method, path with a place, headers.
const REQUESTS: [(&str, &str, &[&str]); 16] = [
    ("POST", "/v1/groups", &[]),
    ("POST", "/v1/groups/{}/propose", &[]),
    (
        "POST",
        "/v1/groups/kv/propose",
        &[
            "skep-session",
            "skep-sequence",
            "skep-timeout-ms",
            "skep-acknowledged",
        ],
    ),
    ("POST", "/v1/groups/kv/query", &[]),
    ("POST", "/v1/groups/kv/query?consistency={}", &[]),
    ("POST", "/v1/groups/kv/sessions", &["skep-timeout-ms"]),
    ("POST", "/v1/groups/kv/transfer", &[]),
    ("POST", "/v1/groups/kv/members", &[]),
    ("DELETE", "/v1/groups/kv/members/{}", &[]),
    ("DELETE", "/v1/groups/{}", &[]),
    ("GET", "/v1/groups/{}/status", &[]),
    ("POST", "/v1/groups/{}/campaign", &[]),
    ("PUT", "/v1/components/{}", &[]),
    ("GET", "/v1/components/{}", &[]),
    ("GET", "/{}", &[]),
    ("POST", "/v1/groups/kv/snapshot", &[]),
];

/// Sends the bytes.
///
/// # Panics
/// If an answer does not come, has no stable code, or the node does not serve on.
pub fn run(data: &[u8]) {
    let Some((&port, rest)) = data.split_first() else {
        return;
    };
    let node = Node::running();
    node.runtime.block_on(async {
        match port % 5 {
            0 => node.web(rest).await,
            1 => node.client(rest, true).await,
            2 => node.client(rest, false).await,
            3 => node.peer(&super::frame::framed(rest)).await,
            _ => node.peer(rest).await,
        }
        node.serves_on().await;
    });
}

struct Node {
    runtime: Runtime,
    host: Host,
    http: SocketAddr,
    client: SocketAddr,
    peer: SocketAddr,
    /// Its data, for as long as the process lives.
    _home: tempfile::TempDir,
}

impl Node {
    fn running() -> &'static Self {
        static NODE: OnceLock<Node> = OnceLock::new();
        NODE.get_or_init(|| {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .expect("a runtime");
            let home = tempfile::tempdir().expect("a directory");
            let (host, http, client, peer) = runtime.block_on(start(home.path()));
            Node {
                runtime,
                host,
                http,
                client,
                peer,
                _home: home,
            }
        })
    }

    async fn web(&self, data: &[u8]) {
        let Some((&request, mut rest)) = data.split_first() else {
            return;
        };
        let (method, path, headers) = REQUESTS[usize::from(request) % REQUESTS.len()];
        let mut line = || {
            let end = rest
                .iter()
                .position(|byte| *byte == b'\n')
                .unwrap_or(rest.len());
            let line = &rest[..end];
            rest = rest.get(end + 1..).unwrap_or_default();
            line
        };
        let path = match path.contains("{}") {
            true => path.replace("{}", &escaped(line())),
            false => path.to_owned(),
        };
        let mut head =
            format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n");
        for header in headers {
            let visible = |byte: &&u8| (b' '..=b'~').contains(*byte);
            let value: String = line()
                .iter()
                .filter(visible)
                .map(|byte| *byte as char)
                .collect();
            if !value.is_empty() {
                head.push_str(&format!("{header}: {value}\r\n"));
            }
        }
        head.push_str(&format!("content-length: {}\r\n\r\n", rest.len()));
        let mut stream = TcpStream::connect(self.http).await.expect("it listens");
        stream.write_all(head.as_bytes()).await.expect("it reads");
        // A body that is refused need not be read to its end.
        let _ = stream.write_all(rest).await;
        let mut answer = Vec::new();
        let read = within(ANSWER_WITHIN, "an answer", stream.read_to_end(&mut answer)).await;
        read.expect("an answer");
        check_answer(&answer, &head);
    }

    /// A client that introduces itself and then sends the bytes.
    async fn client(&self, data: &[u8], framed: bool) {
        let data = if framed {
            super::frame::framed(data)
        } else {
            data.to_vec()
        };
        let mut stream = TcpStream::connect(self.client).await.expect("it listens");
        let mut sent = BytesMut::new();
        let hello = client_frame::Body::Hello(proto::ClientHello {
            protocol: CLIENT_PROTOCOL,
            cluster: String::new(),
        });
        let hello = proto::ClientFrame { body: Some(hello) };
        Encoder::new(MAX_CLIENT_FRAME)
            .put(&hello, &mut sent)
            .expect("a hello");
        sent.extend_from_slice(&data);
        // A connection that is closed for what came first need not read the rest.
        let _ = stream.write_all(&sent).await;

        let (asked, ends_well) = asked(&data);
        if ends_well {
            // What is whole is answered whole, before this side ends the connection.
            let answers = within(
                ANSWER_WITHIN,
                "answers",
                read(&mut stream, Some(asked.len() + 1)),
            );
            let answers = answers.await;
            assert_eq!(answers.len(), asked.len() + 1, "a request has no answer");
            let mut expected: Vec<_> = asked;
            for answer in &answers[1..] {
                let place = expected.iter().position(|id| *id == answer_id(answer));
                expected.swap_remove(place.expect("the answer to a request"));
            }
        } else {
            let _ = stream.shutdown().await;
            let answers = within(ANSWER_WITHIN, "its end", read(&mut stream, None)).await;
            assert!(answers.len() <= asked.len() + 1);
        }
    }

    /// Somebody at the port of the nodes, who is no node.
    async fn peer(&self, data: &[u8]) {
        let mut stream = TcpStream::connect(self.peer).await.expect("it listens");
        let _ = stream.write_all(data).await;
        let _ = stream.shutdown().await;
        let mut answer = Vec::new();
        // Whether it says why or just ends the connection, it holds none.
        let _ = within(ANSWER_WITHIN, "its end", stream.read_to_end(&mut answer)).await;
        let mut buffer = BytesMut::from(&answer[..]);
        let decoder = &mut Decoder::<proto::PeerFrame>::new(MAX_CLIENT_FRAME);
        while let Some(frame) = decoder.take_last(&mut buffer).expect("sound frames") {
            assert!(frame.body.is_some());
        }
    }

    async fn serves_on(&self) {
        let status = self.host.node().node_status();
        assert_eq!(status.fault, None);
        let catalog = self.host.catalog();
        for group in catalog.groups().skip(GROUPS) {
            self.host
                .remove_group(&group.id.to_string())
                .await
                .expect("it may be removed");
        }
        if catalog.find("kv").is_none() {
            create(&self.host).await;
        }
    }
}

async fn start(home: &Path) -> (Host, SocketAddr, SocketAddr, SocketAddr) {
    let bind = async || TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let (web, clients, peers) = (bind().await, bind().await, bind().await);
    let address = |listener: &TcpListener| listener.local_addr().expect("it is bound");
    let (http, client, peer) = (address(&web), address(&clients), address(&peers));
    // The node binds it itself.
    drop(peers);
    let text = format!(
        "[node]\nid = 1\ndata_dir = {home:?}\n[cluster]\nid = \"fuzz\"\n\
         [[cluster.nodes]]\nid = 1\npeer = \"{peer}\"\nclient = \"{client}\"\nhttp = \"{http}\"\n\
         [raft]\ntick_ms = 10\n[limits]\nrequest_timeout_ms = 2000\n"
    );
    let config = Config::parse(&text, Path::new("skep.toml"), []).expect("a good configuration");
    let host = Host::start(config).await.expect("it starts");
    let stop = host.stopping();
    let (front, ends) = (host.clone(), stop.clone());
    tokio::spawn(async move { client_port::serve(front, &clients, ends).await });
    let front = host.clone();
    tokio::spawn(async move { server::serve(front, &web, stop).await });
    until("the node is ready", || host.waiting_for().is_empty()).await;
    create(&host).await;
    (host, http, client, peer)
}

async fn create(host: &Host) {
    let request = serde_json::from_str(r#"{"name":"kv","replicas":1}"#).expect("a request");
    host.create_group(request).await.expect("a group");
}

/// The ids of the requests in the stream, and whether it is nothing but requests to its end.
fn asked(data: &[u8]) -> (Vec<u64>, bool) {
    let mut decoder = Decoder::<proto::ClientFrame>::new(MAX_CLIENT_FRAME);
    let (mut buffer, mut ids) = (BytesMut::from(data), Vec::new());
    loop {
        match decoder.take_last(&mut buffer) {
            Ok(Some(proto::ClientFrame {
                body: Some(client_frame::Body::Request(request)),
            })) => ids.push(request.id),
            Ok(None) => return (ids, true),
            Ok(Some(_)) | Err(_) => return (ids, false),
        }
    }
}

/// So many frames of the node, or all up to the end of the connection.
async fn read(stream: &mut TcpStream, most: Option<usize>) -> Vec<proto::ServerFrame> {
    let mut decoder = Decoder::<proto::ServerFrame>::new(MAX_CLIENT_FRAME);
    let (mut buffer, mut frames) = (BytesMut::new(), Vec::new());
    loop {
        while let Some(frame) = decoder.take(&mut buffer).expect("sound frames") {
            check_frame(&frame, frames.is_empty());
            frames.push(frame);
        }
        if Some(frames.len()) == most || !matches!(stream.read_buf(&mut buffer).await, Ok(1..)) {
            return frames;
        }
    }
}

fn check_frame(frame: &proto::ServerFrame, first: bool) {
    match &frame.body {
        Some(server_frame::Body::Hello(hello)) => assert!(first && hello.refused.is_none()),
        Some(server_frame::Body::Response(response)) => {
            let body = response.body.as_ref().expect("an answer");
            if let proto::response::Body::Error(error) = body {
                known(&error.code, &error.message);
                assert!(
                    frame.encoded_len() <= PROBLEM_BYTES,
                    "{} bytes",
                    frame.encoded_len()
                );
            }
        }
        None => panic!("an empty frame"),
    }
}

fn answer_id(frame: &proto::ServerFrame) -> u64 {
    match &frame.body {
        Some(server_frame::Body::Response(response)) => response.id,
        other => panic!("no answer: {other:?}"),
    }
}

fn check_answer(answer: &[u8], head: &str) {
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n");
    let (headers, body) = answer.split_at(end.unwrap_or_else(|| panic!("no answer to {head}")) + 4);
    let headers = String::from_utf8_lossy(headers).to_lowercase();
    let status: u16 = headers[9..12].parse().expect("a status");
    // What is not even HTTP, or no path, never reaches the node's own code.
    if (200..300).contains(&status) || !headers.contains("application/problem+json") {
        assert!(status < 500, "{head}: {headers}");
        return;
    }
    let problem: serde_json::Value = serde_json::from_slice(body).expect("a problem in JSON");
    let (code, detail) = (problem["code"].as_str(), problem["detail"].as_str());
    let (code, detail) = (code.expect("a code"), detail.expect("a detail"));
    known(code, detail);
    assert_eq!(problem["status"], status);
    assert!(
        body.len() <= PROBLEM_BYTES,
        "{} bytes of {code}",
        body.len()
    );
}

fn known(code: &str, detail: &str) {
    assert!(CODES.contains(&code), "`{code}`: {detail}");
    assert!(!detail.is_empty(), "{code}");
}

fn escaped(text: &[u8]) -> String {
    text.iter().map(|byte| format!("%{byte:02x}")).collect()
}

/// Requests at each port that are right, nearly right, and senseless.
pub fn seeds() -> Vec<(String, Vec<u8>)> {
    let web = |name: &str, request: u8, rest: &str| {
        let data = [&[0, request][..], rest.as_bytes()].concat();
        (format!("http-{name}"), data)
    };
    let mut seeds = vec![
        web("create-exists", 0, r#"{"name":"kv"}"#),
        web("create-nowhere", 0, r#"{"name":"orders","members":[1,9]}"#),
        web(
            "create-unknown-code",
            0,
            r#"{"name":"orders","component":"00"}"#,
        ),
        web(
            "create-both",
            0,
            r#"{"name":"z","members":[1],"replicas":1}"#,
        ),
        web(
            "create-long-key",
            0,
            &format!(r#"{{"{}":1}}"#, "k".repeat(8 << 10)),
        ),
        web(
            "query-long-word",
            4,
            &format!("{}\nget a", "k".repeat(8 << 10)),
        ),
        web("create-cut", 0, r#"{"name":"z""#),
        web("propose", 1, "kv\nput a 1"),
        web("propose-nowhere", 1, "no/where\nput a 1"),
        web("propose-rejected", 1, "kv\nfrobnicate"),
        web("propose-in-session", 2, "1\n2\n500\n1\nput a 1"),
        web("propose-half-named", 2, "1\n\n\n\nput a 1"),
        web("query", 3, "get a"),
        web("query-stale", 4, "stale\nget a"),
        web("query-perhaps", 4, "perhaps\nget a"),
        web("session", 5, "500\n"),
        web("transfer", 6, r#"{"node":1}"#),
        web("transfer-nowhere", 6, r#"{"node":9}"#),
        web("member-add", 7, r#"{"node":9,"data":"x"}"#),
        web("member-remove", 8, "1\n"),
        web("member-remove-words", 8, "one\n"),
        web("remove-nowhere", 9, "nowhere\n"),
        web("status", 10, "0\n"),
        web("campaign", 11, "kv\n"),
        web("component-garbage", 12, "00\n#!/bin/sh"),
        web("component-unknown", 13, &format!("{}\n", "0".repeat(64))),
        web("no-path", 14, "v2/é\n"),
        web("snapshot", 15, ""),
    ];
    let call = proto::request::Body::Call(proto::Call {
        method: "group.create".into(),
        body: format!(r#"{{"{}":1}}"#, "k".repeat(8 << 10)).into(),
        timeout_ms: 0,
    });
    let call = skep_wire::client::request_frame(1, 0, call).encode_to_vec();
    seeds.push((
        "port-client-call-long-key".into(),
        [&[1][..], &call].concat(),
    ));
    // The frames of the frame target: whole ones of clients and peers, at the port of each.
    for (name, data) in super::frame::seeds() {
        let port = match data[0] & 7 {
            5 => 1,
            4 => 3,
            _ => continue,
        };
        seeds.push((format!("port-{name}"), [&[port][..], &data[1..]].concat()));
    }
    seeds
}
