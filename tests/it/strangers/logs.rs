//! Whoever reads a node's log lines may hang, end, or have a full disk; signals that are none of a node's business come.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use skep_client::GroupId;
use skep_tests::clock::{Stopwatch, eventually, until};
use skep_tests::cluster::{Cluster, Settings};
use skep_tests::forger::{Claim, Forger};
use skep_types::founding::Founding;
use skep_wire::proto::Lane;

use crate::load::propose;

/// A pipe with a name. Opened for both directions it has a reader, who need not read.
fn pipe(path: &Path) -> File {
    let name = CString::new(path.as_os_str().as_bytes()).expect("a plain name");
    // SAFETY: the name outlives the call.
    let made = unsafe { libc::mkfifo(name.as_ptr(), 0o600) };
    assert_eq!(made, 0, "{}", std::io::Error::last_os_error());
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .expect("a pipe")
}

/// The reading end alone: when it is dropped, nobody reads.
fn reader(path: &Path) -> File {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .expect("a pipe")
}

/// What becomes of a node's log lines.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Lines {
    /// The disk is full.
    Full,
    /// The reader has ended.
    Closed,
    /// The reader does not read.
    Undrained,
}

/// Starts node 1 so, and all others as usual. What is returned must live as long as the node.
async fn start(cluster: &mut Cluster, lines: Lines) -> Option<File> {
    let path = cluster.node(1).home.join("stderr");
    let mut kept = None;
    match lines {
        Lines::Full => cluster.node_mut(1).stderr = Some(PathBuf::from("/dev/full")),
        Lines::Closed | Lines::Undrained => {
            kept = Some(pipe(&path));
            cluster.node_mut(1).stderr = Some(path.clone());
        }
    }
    let ending = (lines == Lines::Closed).then(|| reader(&path));
    cluster.start_all().await;
    if lines == Lines::Closed {
        // The process has its own end; with ours the last reader goes.
        kept = None;
        drop(ending);
    }
    if lines == Lines::Undrained {
        fill(&path);
    }
    kept
}

/// Leaves no room in a pipe.
fn fill(path: &Path) {
    use std::io::Write;
    let mut writer = OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .expect("a pipe");
    let block = [b'.'; 512];
    while writer.write_all(&block).is_ok() {}
    for byte in block {
        if writer.write_all(&[byte]).is_err() {
            break;
        }
    }
}

/// Some lines at one node: a group that comes up is one.
async fn make_lines(cluster: &Cluster, id: u64) {
    for at in 0..8 {
        let group = format!("line-{at}");
        cluster.create_kv(id, &group, &[1, 2, 3]).await;
    }
}

async fn a_node_works_although(lines: Lines) {
    let settings = Settings::default();
    let mut cluster = Cluster::prepare(&settings);
    let _kept = start(&mut cluster, lines).await;
    let group = cluster.create_kv(1, "kv", &[1, 2, 3]).await;
    let client = cluster.client().await;
    propose(&client, group, "put a 1").await;
    make_lines(&cluster, 1).await;
    cluster.ready(1).await;

    // Another node restarts, and is long enough away that node 1 has something to say of it.
    let follower = 3;
    let failures = async || cluster.metric(1, "skep_peer_dial_failures_total").await;
    let before = failures().await;
    cluster.strike(follower);
    eventually("node 1 misses it", async || match failures().await {
        now if now > before => Ok(()),
        now => Err(format!("{now} dials failed")),
    })
    .await;
    cluster.kill(follower);
    // It may have led: sent again until it is known.
    let session = client.session(group).await.expect("a session");
    let put = session.propose("put a 2".into()).await;
    put.unwrap_or_else(|error| panic!("{lines:?}: {error}"));
    cluster.restart(follower).await;
    cluster.caught_up(group, &[1, 2, 3]).await;
    eventually("node 2 leads", async || {
        let path = format!("/v1/groups/{group}/transfer");
        cluster.http(2, "POST", &path, r#"{"node": 2}"#).await;
        match cluster.leader(group).await {
            2 => Ok(()),
            other => Err(format!("node {other} leads")),
        }
    })
    .await;

    // Nodes 1 and 3 are a majority: a leader within two election timeouts, which are up to twice the ticks.
    let watch = Stopwatch::start();
    cluster.kill(2);
    leads_again(&cluster, group).await;
    let took = watch.elapsed();
    let timeouts = u64::from(2 * 2 * settings.election_ticks) * settings.tick_ms;
    println!("{lines:?}: a leader after {took:?}, two election timeouts are up to {timeouts} ms");
    assert!(
        took.as_millis() <= u128::from(timeouts) + 1500,
        "{lines:?}: {took:?}, the limit is {timeouts} ms and what a busy machine adds"
    );
    propose(&cluster.client_at(&[1, 3]).await, group, "put a 3").await;
    if lines != Lines::Undrained {
        assert!(cluster.metric(1, "skep_log_lines_dropped_total").await > 0);
    }
    let (status, _) = cluster.stop(1);
    assert_eq!(status.code(), Some(0), "{lines:?}");
}

async fn leads_again(cluster: &Cluster, group: GroupId) {
    cluster.leader_among(group, &[1, 3]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_works_although_the_disk_of_its_log_lines_is_full() {
    a_node_works_although(Lines::Full).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_works_although_the_reader_of_its_log_lines_has_ended() {
    a_node_works_although(Lines::Closed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_works_although_nobody_reads_its_log_lines() {
    a_node_works_although(Lines::Undrained).await;
}

/// The reader hung for a while: lines that waited come as soon as it reads again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lines_go_on_when_they_are_read_again() {
    let mut cluster = Cluster::prepare(&Settings::one_node(""));
    let mut kept = start(&mut cluster, Lines::Undrained).await.expect("a pipe");
    cluster.create_kv(1, "late", &[1]).await;
    let reading = std::thread::spawn(move || {
        let (mut seen, mut block) = (Vec::new(), [0; 4096]);
        while !String::from_utf8_lossy(&seen).contains("name=late") {
            let read = kept.read(&mut block).expect("lines");
            seen.extend_from_slice(&block[..read]);
        }
    });
    until("the line that waited is read", || reading.is_finished()).await;
    reading.join().expect("it was read");
}

/// Who started a node does not read what it says on stdout: it serves, and ends when it is told to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_serves_although_nobody_reads_that_it_is_ready() {
    let mut cluster = Cluster::prepare(&Settings::one_node(""));
    let path = cluster.node(1).home.join("stdout");
    let _unread = pipe(&path);
    fill(&path);
    cluster.start_all().await;
    until("the node has said that it is ready", || {
        cluster.node(1).log().contains("node is ready")
    })
    .await;
    let (status, _) = cluster.stop(1);
    assert_eq!(status.code(), Some(0));
}

/// A node that cannot start says why where nobody reads, and ends all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_ends_although_nobody_reads_why() {
    let mut cluster = Cluster::prepare(&Settings::one_node(""));
    let path = cluster.node(1).home.join("stderr");
    let _unread = pipe(&path);
    fill(&path);
    let node = cluster.node_mut(1);
    (node.stderr, node.descriptors) = (Some(path), Some(256));
    let (code, _) = cluster.refuses_to_start(1).await;
    assert_eq!(code, Some(1));
}

/// Case 24: SIGHUP reads the configuration again, and no signal of users ends a node.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn signals_of_users_never_end_a_node() {
    let mut cluster = Cluster::prepare(&Settings::one_node("[log]\nfilter = \"info\"\n"));
    // The environment would beat the configuration.
    cluster.node_mut(1).environment = vec![("SKEP_LOG", PathBuf::new())];
    cluster.start_all().await;
    let group = cluster.create_kv(1, "kv", &[1]).await;
    for signal in [
        libc::SIGUSR1,
        libc::SIGUSR2,
        libc::SIGPIPE,
        libc::SIGALRM,
        libc::SIGHUP,
    ] {
        cluster.signal(1, signal);
    }
    until("the node says that it has read its configuration", || {
        cluster
            .node(1)
            .log()
            .contains("the configuration was read again")
    })
    .await;
    let config = cluster.node(1).config();
    let written = std::fs::read_to_string(&config).expect("a configuration");
    let changed = written
        .replace("filter = \"info\"", "filter = \"skep=debug,info\"")
        .replace("snapshot_entries = 8192", "snapshot_entries = 100");
    std::fs::write(&config, changed).expect("a configuration");
    cluster.signal(1, libc::SIGHUP);
    until("the node says what has changed", || {
        let log = cluster.node(1).log();
        log.contains("changed=\"log.filter\"") && log.contains("keys=\"raft.snapshot_entries\"")
    })
    .await;
    std::fs::write(&config, "nonsense").expect("a configuration");
    cluster.signal(1, libc::SIGHUP);
    until("a wrong configuration is named", || {
        cluster
            .node(1)
            .log()
            .contains("the configuration was not read again")
    })
    .await;
    propose(&cluster.client().await, group, "put a 1").await;
    std::fs::write(&config, written).expect("a configuration");
    let (status, _) = cluster.stop(1);
    assert_eq!(status.code(), Some(0));
}

/// M4: a stranger's first frame names a cluster with a line of its own and marks that turn what follows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_writes_no_log_lines() {
    let cluster = Cluster::start(&Settings::one_node("")).await;
    let forged =
        "x\n2026-01-01T00:00:00Z ERROR skep::router: the node has failed \u{202e}\u{1b}[2J";
    let claim = Claim {
        cluster: forged.to_owned(),
        node: 2,
        store: [7; 16],
        identity: Founding::unfounded(forged).identity(),
        past: Default::default(),
    };
    let refused = Forger::introduce(&cluster.node(1).peer, &claim, 1, Lane::High).await;
    refused.expect_err("another cluster");
    until("the refusal is a line of the log", || {
        cluster.node(1).log().contains("was not accepted")
    })
    .await;
    let log = cluster.node(1).log();
    let line = log
        .lines()
        .find(|line| line.contains("was not accepted"))
        .expect("it was there");
    // Nothing of it is said again; what else strangers may say is one line, see `log_lines.rs`.
    assert!(!line.contains("the node has failed"), "{line}");
    assert!(
        !log.lines()
            .any(|line| line.starts_with("2026-01-01T00:00:00Z"))
    );
    assert!(!log.contains(['\u{202e}', '\u{1b}']), "{log}");
}
