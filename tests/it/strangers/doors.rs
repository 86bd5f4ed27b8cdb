//! The ports: connections that ask nothing, requests that never come whole, web pages, names that no path can hold.

use std::time::Duration;

use serde_json::json;
use skep_client::GroupId;
use skep_tests::clock::{PATIENCE, Stopwatch, eventually, until, within};
use skep_tests::cluster::{Cluster, Settings, files};
use skep_tests::http::{self, Answer};
use skep_tests::silent;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::load::{propose, text};

/// As many as a stranger opens: more than a process with the usual limit may have.
const STRANGERS: usize = 1060;

/// A connection that is kept and used again and again.
struct Kept {
    stream: TcpStream,
    host: String,
}

impl Kept {
    async fn open(address: &str) -> Self {
        Self {
            stream: TcpStream::connect(address).await.expect("it listens"),
            host: address.to_owned(),
        }
    }

    /// One request on the connection; its status and body.
    async fn ask(&mut self, method: &str, path: &str, body: &str) -> (u16, String) {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: {}\r\ncontent-length: {}\r\n\r\n{body}",
            self.host,
            body.len()
        );
        let exchange = async {
            self.stream
                .write_all(request.as_bytes())
                .await
                .expect("it reads");
            let mut bytes = Vec::new();
            loop {
                let seen = text_of(&bytes);
                if let Some((head, body)) = seen.split_once("\r\n\r\n") {
                    let head = head.to_ascii_lowercase();
                    let length = head
                        .lines()
                        .find_map(|line| line.strip_prefix("content-length: "))
                        .and_then(|length| length.parse::<usize>().ok())
                        .expect("a length");
                    if body.len() >= length {
                        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
                        return (status.expect("a status"), body.to_owned());
                    }
                }
                let read = self.stream.read_buf(&mut bytes).await.expect("it answers");
                assert!(read > 0, "it ended the connection: {seen}");
            }
        };
        within(PATIENCE, &format!("{method} {path}"), exchange).await
    }
}

/// Must show, C4 and case 3: silent connections to each HTTP port of nodes with the usual limit, and a snapshot due.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_ask_nothing_hurt_nobody() {
    assert!(
        skep_server::descriptors::raise().expect("a limit") > 4 * STRANGERS,
        "this test needs as many descriptors itself"
    );
    let mut cluster = Cluster::prepare(&Settings {
        snapshot_entries: 100,
        ..Settings::default()
    });
    for id in cluster.ids() {
        cluster.node_mut(id).descriptors = Some(1024);
    }
    cluster.start_all().await;
    let group = cluster.create_kv(1, "kv", &[1, 2, 3]).await;
    let client = cluster.client().await;
    propose(&client, group, "put a 0").await;
    let mut kept = Vec::new();
    for id in cluster.ids() {
        let mut connection = Kept::open(&cluster.node(id).http).await;
        assert_eq!(connection.ask("GET", "/livez", "").await.0, 200);
        kept.push(connection);
    }
    let mut strangers = Vec::new();
    for id in cluster.ids() {
        let address = cluster.node(id).http.clone();
        for _ in 0..STRANGERS {
            let stream = within(PATIENCE, "a connection", TcpStream::connect(&address)).await;
            strangers.push(stream.expect("the kernel takes it"));
        }
    }
    // Commands go on over the connections that were there, and snapshots fall due meanwhile.
    let before = snapshots(&cluster, group).await;
    for at in 1..=250 {
        propose(&client, group, &format!("put a {at}")).await;
    }
    for connection in &mut kept {
        let (status, body) = connection.ask("POST", "/v1/groups/kv/query", "get a").await;
        assert_eq!((status, body.as_str()), (200, "250"));
        assert_eq!(
            connection.ask("POST", "/v1/groups/kv/snapshot", "").await.0,
            200
        );
    }
    let after = snapshots(&cluster, group).await;
    assert!(after > before, "snapshots at {before} and {after}");
    // An operator comes in beside them.
    let watch = Stopwatch::start();
    for id in cluster.ids() {
        eventually("an operator has a way in", async || {
            let (address, path) = (&cluster.node(id).http, "/v1/groups/kv/status");
            match http::request(address, "GET", path, &[], b"").await {
                Ok(answer) if answer.status == 200 => Ok(()),
                Ok(answer) => Err(answer.text()),
                Err(error) => Err(error.to_string()),
            }
        })
        .await;
    }
    println!("an operator is in after {:?}", watch.elapsed());
    for id in cluster.ids() {
        let log = cluster.node(id).log();
        assert!(!log.contains("Too many open files"), "node {id}: {log}");
        let status = cluster.try_status(id, group).await.expect("a status");
        assert_eq!(status.halted, None, "node {id}");
    }
    drop(strangers);
    for id in cluster.ids() {
        cluster.ready(id).await;
        // The one that is kept, and the one that asks.
        eventually("the strangers have left", async || {
            match cluster.metric(id, "skep_http_connections").await {
                ..=2 => Ok(()),
                more => Err(format!("{more} connections")),
            }
        })
        .await;
    }
    propose(&client, group, "put a 251").await;
    cluster.caught_up(group, &[1, 2, 3]).await;
}

async fn snapshots(cluster: &Cluster, group: GroupId) -> u64 {
    let status = cluster.try_status(1, group).await.expect("a status");
    status.replica.snapshot.0
}

/// With fewer descriptors than a node's own work needs there is no node, and the next step is said.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_with_too_few_descriptors_does_not_start() {
    let mut cluster = Cluster::prepare(&Settings::one_node(""));
    cluster.node_mut(1).descriptors = Some(256);
    let (code, log) = cluster.refuses_to_start(1).await;
    assert_eq!(code, Some(1));
    assert!(
        log.contains("too-few-descriptors") && log.contains("ulimit -n"),
        "{log}"
    );
    cluster.node_mut(1).descriptors = Some(512);
    cluster.restart(1).await;
}

/// Heads, bodies and connections that never end are ended; what comes in time is served.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_never_comes_whole_is_given_up() {
    let cluster = Cluster::start(&Settings::one_node(
        "[http]\nheader_ms = 400\nbody_ms = 500\nidle_ms = 1500\n[limits]\nframe_ms = 400\nclient_idle_ms = 1500\n",
    ))
    .await;
    cluster.create_kv(1, "kv", &[1]).await;
    let address = &cluster.node(1).http;
    let ended = async |what: &str, sent: &str| -> (Duration, String) {
        let mut stream = TcpStream::connect(address).await.expect("it listens");
        stream.write_all(sent.as_bytes()).await.expect("it reads");
        let watch = Stopwatch::start();
        let mut seen = Vec::new();
        let read = within(PATIENCE, what, stream.read_to_end(&mut seen)).await;
        read.unwrap_or_default();
        (watch.elapsed(), text_of(&seen))
    };
    for (what, sent, answer) in [
        ("nothing at all", "", ""),
        (
            "half a head",
            "GET /livez HTTP/1.1\r\nhost: localhost\r\n",
            "",
        ),
        (
            "half a body",
            "POST /v1/groups/kv/propose HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: 100\r\n\r\nput a",
            "body-late",
        ),
        (
            "a request and then nothing",
            "GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n",
            "alive",
        ),
    ] {
        let (took, seen) = ended(what, sent).await;
        assert!(seen.contains(answer), "{what}: {seen}");
        assert!(took < Duration::from_secs(20), "{what}: {took:?}");
    }
    // The same for the client protocol: silence after the hello, and half a frame, which ends although silence may last ten minutes.
    ends_after(&cluster, b"").await;
    assert_eq!(cluster.http(1, "GET", "/livez", "").await.status, 200);
    let patient = Cluster::start(&Settings::one_node("[limits]\nframe_ms = 400\n")).await;
    let whole = silent::hello();
    ends_after(&patient, &whole[..whole.len() - 1]).await;
    assert_eq!(patient.http(1, "GET", "/livez", "").await.status, 200);
}

/// The node ends a connection of a client that was let in, sends this, and then nothing.
async fn ends_after(cluster: &Cluster, sent: &[u8]) {
    let mut stream = silent::client(&cluster.node(1).client).await;
    stream.write_all(sent).await.expect("it reads");
    let mut seen = Vec::new();
    let read = within(PATIENCE, "the end", stream.read_to_end(&mut seen)).await;
    read.unwrap_or_default();
}

fn text_of(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// M2: connections of the client protocol that are introduced and silent shut nobody out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_clients_make_room_for_others() {
    let cluster = Cluster::start(&Settings::one_node("[limits]\nclient_connections = 4\n")).await;
    let group = cluster.create_kv(1, "kv", &[1]).await;
    let mut silent = Vec::new();
    for _ in 0..4 {
        silent.push(silent::client(&cluster.node(1).client).await);
    }
    eventually("a client gets a place", async || {
        let address = cluster.node(1).client.clone();
        let asked = skep_client::ClientConfig::new([address]);
        let client = skep_client::Client::connect(asked)
            .await
            .map_err(|error| error.to_string())?;
        let answered = client.propose_once(group, "put a 1".into()).await;
        answered.map(drop).map_err(|error| error.to_string())
    })
    .await;
    assert!(
        cluster
            .metric(1, "skep_client_connections_turned_out_total")
            .await
            > 0
    );
}

/// M1: bodies that do not come whole take no more memory than there is for all of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_that_do_not_come_whole_have_a_budget() {
    // What the bodies hold is measured here, so they are not late on a busy machine.
    let patient = "[http]\nbody_ms = 600000\nidle_ms = 600000\n";
    let cluster = Cluster::start(&Settings::one_node(patient)).await;
    cluster.create_kv(1, "kv", &[1]).await;
    let component = "0".repeat(64);
    // Eight of them leave no room for one byte more than they lack.
    let body = vec![b'x'; (32 << 20) - 1];
    let before = cluster.resident_bytes(1);
    let mut strangers = Vec::new();
    for sent_before in 0..12 {
        let mut stream = TcpStream::connect(&cluster.node(1).http)
            .await
            .expect("it listens");
        let head = format!(
            "PUT /v1/components/{component} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n",
            32 << 20
        );
        stream.write_all(head.as_bytes()).await.expect("it reads");
        // What is refused in the middle is not taken to its end.
        let sent = within(PATIENCE, "a body", stream.write_all(&body)).await;
        sent.unwrap_or_default();
        strangers.push(stream);
        // The kernel has taken it; the next one must not find room that is this one's.
        until_held(&cluster, body.len() * (sent_before + 1).min(8)).await;
    }
    let held = cluster.resident_bytes(1).saturating_sub(before) >> 20;
    println!("12 bodies of 32 MiB: {held} MiB more");
    assert!(held < 340, "{held} MiB");
    until_held(&cluster, body.len() * 8).await;
    // Who asks for little is served beside them.
    let command = format!("put a {}", "x".repeat(1000));
    let answer = cluster
        .http(1, "POST", "/v1/groups/kv/propose", command)
        .await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    // So is who asks for a component: what is sent has memory of its own, so that slow readers shut out no upload.
    let listed = cluster.http(1, "GET", "/v1/components", "").await.json();
    let id = listed[0]["id"].as_str().expect("the group's component");
    until_held(&cluster, body.len() * 8).await;
    let path = format!("/v1/components/{id}");
    let answer = cluster.http(1, "GET", &path, "").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    drop(strangers);
    // A digest that is none is refused before anything of the body is read: here it never comes.
    let mut stream = TcpStream::connect(&cluster.node(1).http)
        .await
        .expect("it listens");
    let head =
        "PUT /v1/components/nonsense HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n";
    stream.write_all(head.as_bytes()).await.expect("it reads");
    let mut status = [0; 12];
    let read = within(PATIENCE, "an answer", stream.read_exact(&mut status)).await;
    read.expect("a line of status");
    assert_eq!(text_of(&status), "HTTP/1.1 400");
}

/// So many bytes of bodies are held.
async fn until_held(cluster: &Cluster, bytes: usize) {
    eventually("bodies are held", async || {
        match cluster.metric(1, "skep_http_bodies_bytes").await {
            held if held >= bytes as u64 => Ok(()),
            held => Err(format!("{held} of {bytes} bytes")),
        }
    })
    .await;
}

/// Requests whose bodies do not go on make room for others, as connections do that ask nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_that_stall_shut_nobody_out() {
    let cluster = Cluster::start(&Settings::one_node(
        "[http]\nconnections = 4\nbody_ms = 600000\nidle_ms = 600000\n",
    ))
    .await;
    cluster.create_kv(1, "kv", &[1]).await;
    let head = "POST /v1/groups/kv/propose HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\nput a";
    let mut stalled = Vec::new();
    for _ in 0..4 {
        let mut kept = Kept::open(&cluster.node(1).http).await;
        // It is known, and no newcomer that says nothing.
        assert_eq!(kept.ask("GET", "/livez", "").await.0, 200);
        kept.stream
            .write_all(head.as_bytes())
            .await
            .expect("it reads");
        stalled.push(kept);
    }
    eventually("an operator has a way in", async || {
        let asked = http::request(&cluster.node(1).http, "GET", "/v1/status", &[], b"").await;
        match asked {
            Ok(answer) if answer.status == 200 => Ok(()),
            Ok(answer) => Err(answer.text()),
            Err(error) => Err(error.to_string()),
        }
    })
    .await;
}

/// H1: what a browser sends for a page of somebody else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_web_page_cannot_use_a_node() {
    let cluster = Cluster::start(&Settings::one_node("")).await;
    let group = cluster.create_kv(1, "kv", &[1]).await;
    let propose_at = "/v1/groups/kv/propose";
    let form = r#"name={"name":"form-made","init":""}"#;
    let evil = [("origin", "http://evil.example")];
    let fetched = [
        ("sec-fetch-site", "cross-site"),
        ("content-type", "text/plain"),
    ];
    for (method, path, body) in [
        ("POST", propose_at, "put a evil"),
        ("POST", "/v1/groups", r#"{"name":"evil"}"#),
        ("POST", "/v1/groups", form),
        ("POST", "/v1/components/collect", "{}"),
        ("DELETE", "/v1/groups/kv", ""),
        ("GET", "/v1/status", ""),
    ] {
        for headers in [&evil[..], &fetched[..]] {
            let answer = cluster.http_with(1, method, path, headers, body).await;
            assert_eq!(
                (answer.status, answer.code().as_str()),
                (403, "cross-origin"),
                "{method} {path} {headers:?}"
            );
        }
        // A name of the page's own that leads here.
        let answer = rebound(&cluster.node(1).http, method, path, body).await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (421, "wrong-host"),
            "{method} {path}"
        );
    }
    let own = format!("http://{}", cluster.node(1).http);
    let headers = [("origin", own.as_str()), ("sec-fetch-site", "same-origin")];
    let answer = cluster
        .http_with(1, "POST", propose_at, &headers, "put a own")
        .await;
    assert_eq!(answer.text(), "OK 1");
    let client = cluster.client().await;
    assert_eq!(text(propose(&client, group, "get a").await), "own");
}

/// As a browser sends it to `evil.example`, which leads to the loopback.
async fn rebound(address: &str, method: &str, path: &str, body: &str) -> Answer {
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: evil.example:7501\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream
        .write_all(request.as_bytes())
        .await
        .expect("it reads");
    let mut bytes = Vec::new();
    let read = within(PATIENCE, "an answer", stream.read_to_end(&mut bytes)).await;
    read.expect("an answer");
    http::parse(&bytes).expect("an answer of HTTP")
}

/// Case 21 and what is like it: names and paths that cannot be what they seem.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_that_no_path_or_command_line_can_hold_are_refused() {
    let cluster = Cluster::start(&Settings::one_node("")).await;
    for name in [".", "..", "-x", "-"] {
        let asked = json!({"name": name}).to_string();
        let answer = cluster.http(1, "POST", "/v1/groups", asked).await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (400, "invalid-request"),
            "{name}"
        );
    }
    for name in ["a.b", "x-", "_", "..."] {
        let asked = json!({"name": name}).to_string();
        let answer = cluster.http(1, "POST", "/v1/groups", asked).await;
        assert_eq!(answer.status, 201, "{name}: {}", answer.text());
    }
    for path in [
        "/v1/groups/%ff",
        "/v1/groups/%ff/propose",
        "/v1/components/%c3%28",
    ] {
        let answer = cluster.http(1, "GET", path, "").await;
        assert!([400, 405].contains(&answer.status), "{path}");
        assert!(!answer.code().is_empty(), "{path}: {}", answer.text());
    }
}

/// M7: nothing in a data directory is for others, although it was open before and the process was started so.
#[cfg(unix)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_node_keeps_is_for_its_user_alone() {
    use std::os::unix::fs::PermissionsExt;
    let mut cluster = Cluster::prepare(&Settings::one_node(""));
    let data = cluster.node(1).data();
    for dir in [data.clone(), data.join("components"), data.join("compiled")] {
        std::fs::create_dir(&dir).expect("a directory");
        std::fs::set_permissions(&dir, PermissionsExt::from_mode(0o755)).expect("its mode");
    }
    cluster.start_all().await;
    let group = cluster.create_kv(1, "kv", &[1]).await;
    propose(&cluster.client().await, group, "put a 1").await;
    cluster.http(1, "POST", "/v1/groups/kv/snapshot", "").await;
    until("the machine is compiled", || {
        files(&data.join("compiled"))
            .iter()
            .any(|(path, _)| path.extension().is_some_and(|kind| kind == "code"))
    })
    .await;
    let mode = |path: &std::path::Path| {
        let metadata = std::fs::metadata(path).ok()?;
        Some(metadata.permissions().mode() & 0o7777)
    };
    let found = files(&data);
    // A file may go meanwhile, for a newer one.
    let modes = found
        .iter()
        .filter_map(|(path, _)| Some((path, mode(path)?)));
    let modes: Vec<_> = modes.collect();
    assert!(modes.len() > 3, "{found:?}");
    for (path, mode) in modes {
        assert_eq!(mode & 0o077, 0, "{}", path.display());
    }
    for dir in ["", "components", "compiled", "wal", "snap"] {
        assert_eq!(mode(&data.join(dir)), Some(0o700), "{dir}");
    }
}

/// The lines of README that a newcomer types, typed.
// P-7
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_curl_lines_of_readme_work() {
    let cluster = Cluster::start(&Settings::default()).await;
    cluster.create_kv(1, "kv", &[1, 2, 3]).await;
    let readme = include_str!("../../../README.md");
    let lines: Vec<String> = readme
        .lines()
        .filter(|line| line.starts_with("curl ") || line.starts_with("S=$(curl "))
        .map(|line| line.replace("127.0.0.1:7502", &cluster.node(2).http))
        // Another node may be a little behind, and says so.
        .map(|line| match line.contains("stale") {
            true => format!(
                "told=\nfor _ in $(seq 600); do\nif\n{line}\nthen told=1; break; fi\nsleep 0.1\ndone\ntest \"$told\""
            ),
            false => line,
        })
        .collect();
    assert!(lines.len() >= 11, "{lines:#?}");
    // Each fails on an answer that is an error, but for the text of the answers they stand as they are.
    let script = format!(
        "set -euo pipefail\n\
         curl() {{ command curl --fail-with-body --silent --show-error \"$@\" && echo; }}\n\
         N=http://{}\n{}",
        cluster.node(1).http,
        lines.join("\n")
    );
    let run = tokio::task::spawn_blocking(move || {
        std::process::Command::new("bash")
            .args(["-c", &script])
            .output()
            .expect("this test needs bash and curl")
    });
    let output = run.await.expect("it ran");
    let said = text_of(&output.stdout);
    assert!(
        output.status.success(),
        "{said}\n{}",
        text_of(&output.stderr)
    );
    let answers: Vec<&str> = said.lines().filter(|line| !line.is_empty()).collect();
    assert_eq!(answers[..2], ["OK 1", "hello, world"], "{said}");
    // The other node has it too.
    let told = answers.iter().filter(|line| **line == "hello, world");
    assert_eq!(told.count(), 2, "{said}");
    // A command that is sent twice in a session is applied once.
    let visits = answers.iter().filter(|line| **line == "1").count();
    assert_eq!(
        (visits, &answers[answers.len() - 2..]),
        (2, &["1", "1"][..]),
        "{said}"
    );
}
