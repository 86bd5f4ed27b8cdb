//! Data directories that cannot be used: the node refuses to start, says which file and what to do, and is as it was
//! once the damage is undone.

use std::net::TcpListener;
use std::path::{Path, PathBuf};

use skep_tests::clock::eventually;
use skep_tests::cluster::{Cluster, Settings, files, free_port};
use skep_tests::process;

use crate::load::{answer, propose, text};

/// A node that was stopped after it had acknowledged some commands.
async fn used() -> Cluster {
    let mut cluster = Cluster::start(&Settings::one_node("")).await;
    let group = cluster.create_kv(1, "kv", &[1]).await;
    let client = cluster.client().await;
    for number in 0..200 {
        text(
            propose(
                &client,
                group,
                &format!("put k{number} {}", "v".repeat(500)),
            )
            .await,
        );
    }
    cluster.kill(1);
    cluster
}

async fn is_whole(cluster: &mut Cluster) {
    cluster.restart(1).await;
    let group = skep_client::GroupId(1);
    assert_eq!(answer(&cluster.client().await, group, "count").await, "200");
}

// P-55
#[tokio::test]
async fn a_corrupt_middle_of_the_log_is_named_and_nothing_is_lost() {
    let mut cluster = used().await;
    let (segment, bytes) = segment(&cluster.node(1).data());
    let end = bytes.iter().rposition(|byte| *byte != 0).expect("a log") + 1;
    for part in [4, 2] {
        let mut damaged = bytes.clone();
        damaged[end / part] ^= 0x10;
        std::fs::write(&segment, &damaged).expect("the segment");
        let (code, log) = cluster.refuses_to_start(1).await;
        assert_eq!(code, Some(1), "{log}");
        let name = segment
            .file_name()
            .and_then(|name| name.to_str())
            .expect("a plain name");
        let said = log
            .lines()
            .find(|line| line.starts_with("error:"))
            .unwrap_or_else(|| panic!("{log}"));
        assert!(
            said.contains(name) && said.contains("log-corrupt"),
            "{said}"
        );
        // The frame that holds the damaged byte begins at or before it.
        let offset = said
            .split("corrupt at byte ")
            .nth(1)
            .and_then(|rest| rest.split(':').next());
        let offset: usize = offset
            .and_then(|offset| offset.parse().ok())
            .unwrap_or_else(|| panic!("{said}"));
        assert!(
            offset <= end / part && offset + 8192 > end / part,
            "{said}: byte {}",
            end / part
        );
        assert_eq!(
            std::fs::read(&segment).expect("the segment"),
            damaged,
            "the evidence was changed"
        );
    }
    std::fs::write(&segment, &bytes).expect("the segment");
    is_whole(&mut cluster).await;
}

// P-55
#[tokio::test]
async fn a_torn_tail_that_was_never_synced_is_no_damage() {
    let mut cluster = used().await;
    let (segment, mut bytes) = segment(&cluster.node(1).data());
    let end = bytes.iter().rposition(|byte| *byte != 0).expect("a log") + 1;
    // The start of a frame that a death cut off.
    let (torn, room) = (bytes[4096..4096 + 100].to_vec(), bytes.len() - end);
    let at = end + 8;
    if room > 256 {
        bytes[at..at + torn.len()].copy_from_slice(&torn);
    } else {
        bytes.extend_from_slice(&torn);
    }
    std::fs::write(&segment, &bytes).expect("the segment");
    is_whole(&mut cluster).await;
}

#[tokio::test]
async fn a_damaged_identity_is_not_replaced() {
    let mut cluster = used().await;
    let path = cluster.node(1).data().join("identity");
    let whole = std::fs::read(&path).expect("an identity");
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    for damaged in [whole[..whole.len() / 2].to_vec(), flipped, Vec::new()] {
        std::fs::write(&path, &damaged).expect("the identity");
        refuses(&mut cluster, "store-bad-identity", "identity").await;
        assert_eq!(std::fs::read(&path).expect("an identity"), damaged);
    }
    std::fs::remove_file(&path).expect("the identity");
    refuses(&mut cluster, "store-bad-identity", "identity").await;
    assert!(!path.exists(), "a new identity was drawn over an old log");
    std::fs::write(&path, &whole).expect("the identity");
    is_whole(&mut cluster).await;
}

// P-60
#[tokio::test]
async fn a_lost_log_is_not_a_new_one() {
    let mut cluster = used().await;
    let wal = cluster.node(1).data().join("wal");
    let away = cluster.node(1).home.join("away");
    std::fs::rename(&wal, &away).expect("the log");
    refuses(&mut cluster, "log-missing-segment", "wal").await;
    if wal.exists() {
        std::fs::remove_dir_all(&wal).expect("what the refused start left");
    }
    std::fs::rename(&away, &wal).expect("the log");
    is_whole(&mut cluster).await;
}

#[tokio::test]
async fn a_data_dir_that_is_no_directory_is_named() {
    let mut cluster = Cluster::prepare(&Settings::one_node(""));
    let data = cluster.node(1).data();
    std::fs::write(&data, "not a directory").expect("a file");
    refuses(&mut cluster, "log-io", data.to_str().expect("a plain name")).await;
    std::fs::remove_file(&data).expect("the file");
    cluster.restart(1).await;
}

#[tokio::test]
async fn a_data_dir_of_another_node_or_cluster_is_refused() {
    let mut cluster = used().await;
    let config = cluster.node(1).config();
    let own = std::fs::read_to_string(&config).expect("a configuration");
    std::fs::write(&config, own.replace("id = \"test\"", "id = \"elsewhere\""))
        .expect("a configuration");
    refuses(&mut cluster, "store-wrong-cluster", "elsewhere").await;
    std::fs::write(&config, own.replace("id = 1\n", "id = 2\n")).expect("a configuration");
    refuses(&mut cluster, "store-wrong-node", "identity").await;
    std::fs::write(&config, own).expect("a configuration");
    is_whole(&mut cluster).await;
}

// P-63
#[tokio::test]
async fn a_data_dir_in_use_is_left_alone() {
    let cluster = Cluster::start(&Settings::one_node("")).await;
    let config = cluster.node(1).config();
    let mut own = std::fs::read_to_string(&config).expect("a configuration");
    // The same node at other ports.
    let node = cluster.node(1);
    for address in [&node.peer, &node.client, &node.http] {
        own = own.replace(address.as_str(), &format!("127.0.0.1:{}", free_port()));
    }
    let second = config.with_file_name("second.toml");
    std::fs::write(&second, own).expect("a configuration");
    let ended = process::run(&["serve", "--config", second.to_str().expect("a plain name")]).await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(
        ended.stderr.contains("store-locked") && ended.stderr.contains("in use by another process"),
        "{ended:?}"
    );
    let group = cluster.create_kv(1, "kv", &[1]).await;
    assert_eq!(
        text(propose(&cluster.client().await, group, "put a 1").await),
        "OK 1"
    );
}

// P-63
#[tokio::test]
async fn a_busy_port_is_named_before_the_store_is_touched() {
    let mut cluster = Cluster::prepare(&Settings::one_node(""));
    let node = cluster.node(1);
    for address in [node.peer.clone(), node.client.clone(), node.http.clone()] {
        let holder = TcpListener::bind(&address).expect("a free port");
        let (code, log) = cluster.refuses_to_start(1).await;
        assert_eq!(code, Some(1), "{log}");
        assert!(log.contains(&address) && log.contains("cannot"), "{log}");
        assert!(!cluster.node(1).data().exists(), "the store was touched");
        drop(holder);
    }
    cluster.restart(1).await;
}

/// A wiped node has forgotten its votes and its entries: its peers do not take it for the old one, not even one that
/// never led it or was led by it. If they did, the two would elect one of them without the entry that only the leader,
/// dead by now, and the wiped node had acknowledged.
// P-59
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_node_is_not_let_back_in() {
    let mut cluster = Cluster::start(&Settings::default()).await;
    let group = cluster.create_kv(1, "kv", &[1, 2, 3]).await;
    let leader = cluster.leader(group).await;
    let [other, wiped] = cluster.others(&[leader])[..] else {
        unreachable!("three nodes")
    };
    let client = cluster.client_at(&[leader]).await;
    cluster.pause(other);
    assert_eq!(text(propose(&client, group, "put a 1").await), "OK 1");
    cluster.kill_at_once(&[wiped, leader]);
    cluster.resume(other);
    std::fs::remove_dir_all(cluster.node(wiped).data()).expect("the data of the wiped node");
    let before = cluster.node(wiped).log().len();
    cluster.spawn(wiped);
    eventually("the wiped node is told why it is refused", async || {
        let log = cluster.node(wiped).log()[before..].to_owned();
        if log.contains("known here with another store") {
            Ok(())
        } else {
            Err(log)
        }
    })
    .await;
    // It knows nothing and is asked nothing.
    let ready = cluster.http(wiped, "GET", "/readyz", "").await;
    assert_eq!(
        (ready.status, ready.code().as_str()),
        (503, "not-ready"),
        "{}",
        ready.text()
    );
    // The others go on without it, with all that was acknowledged.
    cluster.restart(leader).await;
    let client = cluster.client_at(&[other, leader]).await;
    assert_eq!(answer(&client, group, "gets a").await, "1 1");
    assert_eq!(text(propose(&client, group, "put a 2").await), "OK 2");
}

async fn refuses(cluster: &mut Cluster, code: &str, word: &str) {
    let (exit, log) = cluster.refuses_to_start(1).await;
    assert_eq!(exit, Some(1), "{log}");
    let said = log
        .lines()
        .find(|line| line.starts_with("error:"))
        .unwrap_or_else(|| panic!("{log}"));
    assert!(
        said.contains(code) && said.contains(word),
        "{code}, {word}: {said}"
    );
}

/// The segment of the log that holds the most, and its content.
fn segment(data: &Path) -> (PathBuf, Vec<u8>) {
    let is_segment = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "wal");
    let segments = files(&data.join("wal"))
        .into_iter()
        .map(|(path, _)| path)
        .filter(is_segment);
    let read = segments.map(|path| (path.clone(), std::fs::read(path).expect("a segment")));
    let used = |bytes: &[u8]| bytes.iter().rposition(|byte| *byte != 0);
    read.max_by_key(|(_, bytes)| used(bytes))
        .expect("a log has segments")
}
