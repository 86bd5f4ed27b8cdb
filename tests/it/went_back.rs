//! Data directories that are set back to an older copy, or used twice: the others notice, and nothing that was acknowledged is lost.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use skep_client::GroupId;
use skep_core::past::{Durable, Known};
use skep_log::{DiskVfs, LogOptions, PeerPins, ReadOnlyVfs, Store, Vfs};
use skep_tests::clock::eventually;
use skep_tests::cluster::{Cluster, Settings, free_port};
use skep_tests::http;
use skep_tests::process::Process;

use crate::load::{answer, text};

/// Commands that are acknowledged behind a copy.
const WRITES: u64 = 30;

async fn write(cluster: &Cluster, at: &[u64], group: GroupId, name: &str) {
    let client = cluster.client_at(at).await;
    let session = client.session(group).await.expect("a session");
    for number in 0..WRITES {
        let command = format!("put {name}{number} v");
        let response = session.propose(command.into()).await.expect("applied");
        assert!(text(response.outcome).starts_with("OK"));
    }
}

async fn is_whole(cluster: &Cluster, at: &[u64], group: GroupId, name: &str) {
    let client = cluster.client_at(at).await;
    for number in 0..WRITES {
        let query = format!("get {name}{number}");
        assert_eq!(answer(&client, group, &query).await, "v", "{query}");
    }
}

/// A copy of the data directory of a node that writes nothing meanwhile.
fn copy(cluster: &Cluster, id: u64, name: &str) -> PathBuf {
    let copy = cluster.node(id).home.join(name);
    duplicate(&cluster.node(id).data(), &copy);
    copy
}

fn put_back(cluster: &Cluster, id: u64, copy: &Path) {
    let data = cluster.node(id).data();
    std::fs::remove_dir_all(&data).expect("the data of the node");
    duplicate(copy, &data);
}

fn duplicate(from: &Path, to: &Path) {
    let done = Command::new("cp").arg("-a").arg(from).arg(to).status();
    assert!(
        done.expect("cp").success(),
        "{} is not copied",
        from.display()
    );
}

/// Where the log of a copy ends.
fn end(copy: &Path) -> Durable {
    let look: Arc<dyn Vfs> = Arc::new(ReadOnlyVfs::new());
    let store = Store::open(&look, copy, "test", 3).expect("a store");
    let opened = store.open_log(&look, LogOptions::default());
    drop(opened.expect("a log"));
    let past = store.account().past();
    past.present().expect("a life").began
}

/// What a node remembers of another, durably.
fn known(cluster: &Cluster, at: u64, of: u64) -> Option<Known> {
    let pins = PeerPins::open(Arc::new(DiskVfs), &cluster.node(at).data());
    pins.expect("pins").known(of)
}

/// Waits until a node is told that its directory went back, and says so wherever somebody looks.
async fn is_told(cluster: &Cluster, id: u64, by: u64) {
    let said = eventually(&format!("node {id} says that it went back"), async || {
        let answer = http::request(&cluster.node(id).http, "GET", "/readyz", &[], b"").await;
        let answer = answer.map_err(|error| error.to_string())?;
        match (answer.status, answer.text()) {
            (503, said) if said.contains("store-went-back") => Ok(said),
            (_, said) => Err(said),
        }
    })
    .await;
    assert!(
        said.contains("skep node remove") && said.contains("skep node invite"),
        "the next step: {said}"
    );
    let log = cluster.node(id).log();
    assert!(log.contains("takes no part any more"), "{log}");
    assert_eq!(cluster.metric(id, "skep_store_went_back").await, 1);
    let refused = cluster.http(id, "GET", "/v1/groups/kv", "").await;
    assert_eq!(refused.code(), "store-went-back", "{}", refused.text());
    eventually(&format!("node {by} reports it"), async || {
        let refused = cluster.metric(by, "skep_peers_went_back").await;
        let log = cluster.node(by).log();
        match refused == 1 && log.contains("store-went-back") {
            true => Ok(()),
            false => Err(format!("{refused} went back: {log}")),
        }
    })
    .await;
}

/// It does not come back, whoever is there to be asked, and comes back as another node.
async fn comes_back_as_another(cluster: &mut Cluster, settings: &Settings, group: GroupId) {
    cluster.kill(3);
    let (code, log) = cluster.refuses_to_start(3).await;
    assert_eq!(code, Some(1), "{log}");
    let said = log.lines().find(|line| line.starts_with("error:"));
    let said = said.unwrap_or_else(|| panic!("{log}"));
    assert!(
        said.contains("store-went-back") && said.contains("skep node remove"),
        "{said}"
    );
    let removed = cluster.http(1, "DELETE", "/v1/nodes/3", "").await;
    assert_eq!(removed.status, 200, "{}", removed.text());
    cluster.join(settings, 4, &[1, 2]).await;
    let added = cluster
        .http(1, "POST", "/v1/groups/kv/members", r#"{"node":4}"#)
        .await;
    assert_eq!(added.status, 200, "{}", added.text());
    cluster.caught_up(group, &[1, 2, 4]).await;
}

/// The copy is of a former life. Thirty of thirty acknowledged writes were lost by this before anybody remembered the lives of others.
// P-94
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_of_a_former_life_is_refused_and_nothing_is_lost() {
    let settings = Settings::default();
    let mut cluster = Cluster::start(&settings).await;
    let group = cluster.create_kv(1, "kv", &[1, 2, 3]).await;
    write(&cluster, &[1], group, "before").await;
    cluster.stop(3);
    let old = copy(&cluster, 3, "old");
    cluster.restart(3).await;
    cluster.caught_up(group, &[1, 2, 3]).await;
    cluster.kill(2);
    write(&cluster, &[1], group, "after").await;
    cluster.kill_at_once(&[1, 3]);
    put_back(&cluster, 3, &old);
    // Node 2 has not got what was written, and knows all the same that node 3 had another life.
    cluster.spawn(2);
    cluster.spawn(3);
    is_told(&cluster, 3, 2).await;
    cluster.restart(1).await;
    cluster.ready(2).await;
    is_whole(&cluster, &[1, 2], group, "after").await;
    write(&cluster, &[1, 2], group, "more").await;
    comes_back_as_another(&mut cluster, &settings, group).await;
    is_whole(&cluster, &[4], group, "before").await;
}

/// The copy is of the very life that goes on: only the place in the log tells, which the others note now and then.
// P-94
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_of_the_same_life_is_refused_by_peers_that_started_again() {
    let settings = Settings::default();
    let mut cluster = Cluster::start(&settings).await;
    let group = cluster.create_kv(1, "kv", &[1, 2, 3]).await;
    write(&cluster, &[1], group, "before").await;
    cluster.caught_up(group, &[1, 2, 3]).await;
    cluster.pause(3);
    let old = copy(&cluster, 3, "old");
    cluster.resume(3);
    let end = end(&old);
    write(&cluster, &[1], group, "after").await;
    cluster.caught_up(group, &[1, 2, 3]).await;
    for id in [1, 2] {
        let what = format!("node {id} has noted how far node 3 was");
        eventually(&what, async || match known(&cluster, id, 3) {
            Some(known) if known.durable > end => Ok(()),
            known => Err(format!("{known:?}, the copy ends at {end}")),
        })
        .await;
    }
    // All of a sudden, so that nobody has time to note anything more.
    cluster.kill_at_once(&[1, 2, 3]);
    put_back(&cluster, 3, &old);
    for id in [2, 3] {
        cluster.spawn(id);
    }
    is_told(&cluster, 3, 2).await;
    cluster.restart(1).await;
    cluster.ready(2).await;
    is_whole(&cluster, &[1, 2], group, "after").await;
    comes_back_as_another(&mut cluster, &settings, group).await;
}

/// Two processes with copies of one directory: the others know one of them.
// P-94
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_directory_that_is_used_twice_the_second_is_refused() {
    let mut cluster = Cluster::start(&Settings::default()).await;
    let group = cluster.create_kv(1, "kv", &[1, 2, 3]).await;
    cluster.stop(3);
    let twin = copy(&cluster, 3, "twin");
    cluster.restart(3).await;
    cluster.caught_up(group, &[1, 2, 3]).await;
    // The same node, elsewhere.
    let config = cluster.node(3).config();
    let mut text = std::fs::read_to_string(&config).expect("a configuration");
    let at = |text: &mut String, address: &str| {
        let own = format!("127.0.0.1:{}", free_port());
        *text = text.replace(address, &own);
        own
    };
    let node = cluster.node(3);
    at(&mut text, &node.peer);
    at(&mut text, &node.client);
    let http = at(&mut text, &node.http);
    let elsewhere = format!("data_dir = \"{}\"", twin.display());
    text = text.replace("data_dir = \"data\"", &elsewhere);
    let second = config.with_file_name("twin.toml");
    std::fs::write(&second, text).expect("a configuration");
    let log = cluster.node(3).home.join("twin.log");
    let arguments = ["serve", "--config", second.to_str().expect("a plain name")];
    let process = Process::start_with(&arguments, &[], None, &log, &log);
    let said = eventually("the second says that it went back", async || {
        let answer = http::request(&http, "GET", "/readyz", &[], b"").await;
        let answer = answer.map_err(|error| error.to_string())?;
        match answer.text().contains("store-went-back") {
            true => Ok(answer.text()),
            false => Err(answer.text()),
        }
    })
    .await;
    assert!(said.contains("is it used twice?"), "{said}");
    process.kill();
    // The first goes on as if nothing had been, also over its next start.
    write(&cluster, &[3], group, "on").await;
    cluster.stop(3);
    cluster.restart(3).await;
    cluster.caught_up(group, &[1, 2, 3]).await;
    is_whole(&cluster, &[3], group, "on").await;
    assert_eq!(cluster.metric(3, "skep_store_went_back").await, 0);
}

/// All nodes at once are set back to copies that were made while all of them were stopped: they agree, and go on from there. From copies of
/// different times they do not, until somebody says that it is meant.
// P-94
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_whole_cluster_may_be_set_back_on_purpose() {
    let mut cluster = Cluster::start(&Settings::default()).await;
    let group = cluster.create_kv(1, "kv", &[1, 2, 3]).await;
    write(&cluster, &[1], group, "first").await;
    cluster.caught_up(group, &[1, 2, 3]).await;
    let ids = [1, 2, 3];
    let stop = |cluster: &mut Cluster| ids.map(|id| cluster.stop(id));
    stop(&mut cluster);
    let first = ids.map(|id| copy(&cluster, id, "first"));
    cluster.start_all().await;
    write(&cluster, &[1], group, "second").await;
    cluster.caught_up(group, &[1, 2, 3]).await;
    stop(&mut cluster);
    let second = ids.map(|id| copy(&cluster, id, "second"));
    for id in ids {
        put_back(&cluster, id, &first[id as usize - 1]);
    }
    cluster.start_all().await;
    is_whole(&cluster, &ids, group, "first").await;
    stop(&mut cluster);
    // Node 3 knows lives of the others that these have not had.
    for (id, copies) in [(1, &first), (2, &first), (3, &second)] {
        put_back(&cluster, id, &copies[id as usize - 1]);
        cluster.spawn(id);
    }
    let said = eventually("one of them is told, and what can be done", async || {
        let mut said = String::new();
        for id in [1, 2] {
            let answer = http::request(&cluster.node(id).http, "GET", "/readyz", &[], b"").await;
            said.push_str(&answer.map_err(|error| error.to_string())?.text());
        }
        match said.contains("store-went-back") {
            true => Ok(said),
            false => Err(said),
        }
    })
    .await;
    assert!(
        said.contains("`peers` and `went-back`"),
        "the way out: {said}"
    );
    for id in ids {
        cluster.kill(id);
        for file in ["peers", "went-back"] {
            match std::fs::remove_file(cluster.node(id).data().join(file)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => panic!("{error}"),
                _ => {}
            }
        }
    }
    cluster.start_all().await;
    cluster.caught_up(group, &[1, 2, 3]).await;
    is_whole(&cluster, &ids, group, "first").await;
}
