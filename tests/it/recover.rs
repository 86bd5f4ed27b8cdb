//! A majority that is lost for good is survived on purpose, offline: `skep recover`.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;
use skep_tests::clock::{eventually, pause};
use skep_tests::cluster::{Cluster, Settings};
use skep_tests::http::{self, Answer};
use skep_tests::process::{self, Ended, Process};

use crate::nodes::{catalogue_is, listed, members};

fn five() -> Settings {
    Settings {
        nodes: 5,
        ..Settings::default()
    }
}

/// `skep recover`, with these arguments and the data directories of these nodes.
async fn recover(cluster: &Cluster, arguments: &[&str], nodes: &[u64]) -> Ended {
    let dirs: Vec<_> = nodes.iter().map(|id| cluster.node(*id).data()).collect();
    let mut all = vec!["recover"];
    all.extend(arguments);
    for dir in &dirs {
        all.extend(["--data-dir", dir.to_str().expect("a plain path")]);
    }
    process::run(&all).await
}

async fn done(cluster: &Cluster, arguments: &[&str], nodes: &[u64]) -> String {
    let ended = recover(cluster, arguments, nodes).await;
    assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
    ended.stdout
}

/// It is refused for this reason, and the directories are as they were.
async fn refused(cluster: &Cluster, arguments: &[&str], nodes: &[u64], why: &[&str]) {
    let identity = |id: &u64| std::fs::read(cluster.node(*id).data().join("identity")).ok();
    let before: Vec<_> = nodes.iter().map(identity).collect();
    let ended = recover(cluster, arguments, nodes).await;
    assert_eq!(ended.code, Some(1), "{}{}", ended.stdout, ended.stderr);
    for word in why {
        assert!(ended.stderr.contains(word), "{word}: {}", ended.stderr);
    }
    assert_eq!(before, nodes.iter().map(identity).collect::<Vec<_>>());
}

/// A file beside the data directory of a node.
fn beside(cluster: &Cluster, name: &str) -> (PathBuf, String) {
    let path = cluster.node(1).home.join(name);
    let text = path.to_str().expect("a plain path").to_owned();
    (path, text)
}

/// A command of a session.
async fn send(cluster: &Cluster, at: u64, session: &str, sequence: u64, command: &str) -> Answer {
    let sequence = sequence.to_string();
    let headers = [("skep-session", session), ("skep-sequence", &*sequence)];
    let path = "/v1/groups/kv/propose";
    cluster.http_with(at, "POST", path, &headers, command).await
}

/// A command is applied, as soon as the group takes one.
async fn put(cluster: &Cluster, at: u64, group: &str, command: &str) {
    let path = format!("/v1/groups/{group}/propose");
    let what = format!("{group} takes `{command}`");
    eventually(&what, async || {
        let address = &cluster.node(at).http;
        let answer = http::request(address, "POST", &path, &[], command.as_bytes()).await;
        match answer.map_err(|error| error.to_string())? {
            answer if answer.status == 200 => Ok(()),
            answer => Err(answer.text()),
        }
    })
    .await;
}

async fn get(cluster: &Cluster, at: u64, group: &str, key: &str) -> String {
    let path = format!("/v1/groups/{group}/query");
    let answer = cluster.http(at, "POST", &path, format!("get {key}")).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.text()
}

/// Nodes 3, 4 and 5 are lost with their directories, and with them the majority of the catalogue and of most groups.
// P-111, P-112
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_of_five_nodes_go_on_with_what_they_have() {
    let settings = five();
    let mut cluster = Cluster::start(&settings).await;
    catalogue_is(&cluster, 1, &[1, 2, 3, 4, 5], &[]).await;
    let kv = cluster.create_kv(1, "kv", &[1, 2, 3, 4, 5]).await;
    let held = cluster.create_kv(1, "held", &[1, 2, 3]).await;
    let single = cluster.create_kv(1, "single", &[2, 4, 5]).await;
    cluster.create_kv(1, "nowhere", &[3, 4, 5]).await;
    for group in ["kv", "held", "single"] {
        put(&cluster, 1, group, "put k before").await;
    }
    let opened = cluster
        .http(2, "POST", "/v1/groups/kv/sessions", "")
        .await
        .json();
    let session = opened["session"].as_str().expect("digits").to_owned();
    let counted = send(&cluster, 1, &session, 1, "incr n").await;
    assert_eq!(counted.status, 200, "{}", counted.text());
    // Half of the groups begin with a snapshot.
    let snapshot = cluster.http(1, "POST", "/v1/groups/kv/snapshot", "").await;
    assert_eq!(snapshot.status, 200, "{}", snapshot.text());
    put(&cluster, 1, "kv", "put k2 behind the snapshot").await;
    cluster.caught_up(kv, &[1, 2, 3, 4, 5]).await;
    cluster.caught_up(held, &[1, 2, 3]).await;
    cluster.caught_up(single, &[2, 4, 5]).await;
    cluster.kill_at_once(&[5, 4, 3, 2, 1]);
    // That of node 3 turns up again later.
    for id in [4, 5] {
        std::fs::remove_dir_all(cluster.node(id).data()).expect("a directory");
    }

    let (plan_file, plan) = beside(&cluster, "plan.json");
    let lost = ["plan", "--out", &plan, "--lost"];
    let with = |named: &'static str| [&lost[..], &[named]].concat();
    refused(
        &cluster,
        &with("4,5"),
        &[1, 2],
        &["recovery-refused", "3, 4, 5"],
    )
    .await;
    refused(
        &cluster,
        &with("3,4,5"),
        &[1, 2],
        &["nowhere", "--give-up-groups"],
    )
    .await;
    assert!(!plan_file.exists());
    let give_up = [&with("3,4,5")[..], &["--give-up-groups"]].concat();
    let said = done(&cluster, &give_up, &[1, 2]).await;
    for words in [
        "group 0 catalogue: starts from node",
        "kv: starts from node",
        "MAY BE LOST",
        "held: has its majority, loses nothing",
        "nowhere: LOST",
        "given up for ever: node 3",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
    // From descriptions that travel it is the same plan.
    let mut travels = vec!["plan".to_owned()];
    for id in [1, 2] {
        let described = done(&cluster, &["describe"], &[id]).await;
        let (file, name) = beside(&cluster, &format!("{id}.json"));
        std::fs::write(file, described).expect("a file");
        travels.extend(["--description".to_owned(), name]);
    }
    let (other_file, other) = beside(&cluster, "other.json");
    travels.extend(["--out", &other, "--lost", "5,4,3", "--give-up-groups"].map(str::to_owned));
    let travels: Vec<_> = travels.iter().map(String::as_str).collect();
    done(&cluster, &travels, &[]).await;
    let read = |file: &PathBuf| std::fs::read(file).expect("a plan");
    assert_eq!(read(&plan_file), read(&other_file));

    // One after the other, as on two machines; again; and with a plan that somebody improved.
    let carry_out = ["apply", "--plan", &plan];
    let said = done(&cluster, &carry_out, &[1]).await;
    assert!(said.contains("is carried out"), "{said}");
    let said = done(&cluster, &carry_out, &[1]).await;
    assert!(said.contains("carried out before"), "{said}");
    let improved = String::from_utf8(read(&plan_file)).expect("text");
    std::fs::write(&other_file, improved.replace("node-4", "node-6")).expect("a file");
    let tampered = ["apply", "--plan", &other];
    refused(&cluster, &tampered, &[2], &["was changed since"]).await;
    // Whoever is left and has not heard of it is told what to do, and is no part of it.
    cluster.spawn(1);
    cluster.spawn(2);
    eventually("node 2 is told of the plan", async || {
        let log = cluster.node(1).log();
        match log.contains("skep recover apply") && log.contains("node-given-up") {
            true => Ok(()),
            false => Err(log),
        }
    })
    .await;
    cluster.kill(2);
    cluster.kill(1);
    done(&cluster, &carry_out, &[2, 1]).await;
    cluster.restart(1).await;
    cluster.restart(2).await;

    // What reached a survivor is there, and what was sent twice is done once.
    assert_eq!(get(&cluster, 2, "kv", "k").await, "before");
    assert_eq!(get(&cluster, 1, "kv", "k2").await, "behind the snapshot");
    assert_eq!(get(&cluster, 1, "single", "k").await, "before");
    assert_eq!(get(&cluster, 1, "held", "k").await, "before");
    let again = send(&cluster, 2, &session, 1, "incr n").await;
    assert_eq!((again.status, again.text()), (200, counted.text()));
    assert_eq!(get(&cluster, 1, "kv", "n").await, "1");
    let next = send(&cluster, 1, &session, 2, "incr n").await;
    assert_eq!(
        (next.status, next.text()),
        (200, "2".to_owned()),
        "{}",
        counted.text()
    );
    let gone = cluster.http(1, "GET", "/v1/groups/nowhere", "").await;
    assert_eq!(gone.status, 404, "{}", gone.text());
    // Both vote, and the lost ones leave by themselves; also the group that kept its majority.
    catalogue_is(&cluster, 1, &[1, 2], &[]).await;
    eventually("the lost nodes are removed", async || {
        let nodes = listed(&cluster, 1).await?;
        match nodes
            .iter()
            .filter(|of| of["node"]["state"] != json!("removed"))
            .count()
        {
            2 => Ok(()),
            _ => Err(format!("{nodes:?}")),
        }
    })
    .await;
    // Each keeps as many replicas as there are nodes for.
    for group in ["kv", "held", "single"] {
        eventually(&format!("{group} is on both"), async || {
            match members(&cluster, 1, group).await {
                both if both == json!(["1", "2"]) => Ok(()),
                others => Err(others.to_string()),
            }
        })
        .await;
    }
    cluster.caught_up(kv, &[1, 2]).await;
    for group in ["kv", "held", "single"] {
        put(&cluster, 2, group, "put k after").await;
    }

    // Node 3 was not lost after all: it is refused, and told.
    cluster.spawn(3);
    let said = eventually("node 3 says that it was given up", async || {
        let answer = http::request(&cluster.node(3).http, "GET", "/readyz", &[], b"").await;
        let said = answer.map_err(|error| error.to_string())?.text();
        match said.contains("given up in a forced recovery") {
            true => Ok(said),
            false => Err(said),
        }
    })
    .await;
    assert!(said.contains("skep node invite"), "the next step: {said}");
    assert!(cluster.node(1).log().contains("node-given-up"));
    cluster.kill(3);

    // Others come, and the groups are what they were.
    cluster.join(&settings, 6, &[1, 2]).await;
    cluster.join(&settings, 7, &[2]).await;
    catalogue_is(&cluster, 1, &[1, 2, 6], &[7]).await;
    for node in [6, 7] {
        // The cluster may do so by itself at the same time.
        eventually(&format!("kv is on node {node}"), async || {
            let known = members(&cluster, 1, "kv").await;
            if known.to_string().contains(&format!("\"{node}\"")) {
                return Ok(());
            }
            let add = json!({ "node": node }).to_string();
            let added = cluster.http(1, "POST", "/v1/groups/kv/members", add).await;
            Err(added.text())
        })
        .await;
    }
    cluster.caught_up(kv, &[1, 2, 6, 7]).await;
    cluster.kill(1);
    put(&cluster, 7, "kv", "put k without node 1").await;
    assert_eq!(get(&cluster, 6, "kv", "k").await, "without node 1");
    assert_eq!(get(&cluster, 6, "kv", "n").await, "2");
    // A later start is like any other.
    cluster.kill_at_once(&[2, 6, 7]);
    for id in [1, 2, 6, 7] {
        cluster.spawn(id);
    }
    for id in [1, 2, 6, 7] {
        cluster.ready(id).await;
    }
    assert_eq!(get(&cluster, 1, "kv", "k").await, "without node 1");
}

/// Whoever answers is not lost; and whoever runs is not touched.
// P-112
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_forced_while_somebody_answers() {
    let mut cluster = Cluster::start(&Settings::default()).await;
    cluster.create_kv(1, "kv", &[1, 2, 3]).await;
    let (_, plan) = beside(&cluster, "plan.json");
    let make = ["plan", "--lost", "2,3", "--out", &plan];
    refused(&cluster, &make, &[1], &["store-locked"]).await;
    cluster.kill(1);
    refused(&cluster, &make, &[1], &["node 2", "node 3", "is not lost"]).await;
    cluster.kill(2);
    // It takes connections, and says nothing.
    cluster.pause(3);
    refused(&cluster, &make, &[1], &["node 3", "is not lost"]).await;
    cluster.resume(3);
    cluster.kill(3);
    done(&cluster, &make, &[1]).await;
    // A node that came back after the plan was made, or a directory in which something happened.
    let apply = ["apply", "--plan", &plan];
    cluster.spawn(3);
    eventually("node 3 listens", async || {
        let listens = http::request(&cluster.node(3).http, "GET", "/livez", &[], b"").await;
        listens.map(|_| ()).map_err(|error| error.to_string())
    })
    .await;
    refused(&cluster, &apply, &[1], &["node 3", "is not lost"]).await;
    cluster.kill(3);
    let two = cluster.ids().into_iter().filter(|id| *id != 3);
    for id in two {
        cluster.spawn(id);
    }
    put(&cluster, 1, "kv", "put k later").await;
    cluster.kill_at_once(&[1, 2]);
    refused(
        &cluster,
        &apply,
        &[1],
        &["recovery-refused", "is not as it was"],
    )
    .await;
    // With a majority there is nothing to force.
    let make = ["plan", "--lost", "3"];
    refused(&cluster, &make, &[1, 2], &["nothing has to be forced"]).await;
    // The directories are what they were, so the cluster is too.
    cluster.start_all().await;
    assert_eq!(get(&cluster, 3, "kv", "k").await, "later");
}

/// Killed again and again, it is carried out in the end; and no node starts on what is half done.
// P-110
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recovery_that_is_killed_goes_on() {
    let mut cluster = Cluster::start(&Settings::default()).await;
    cluster.create_kv(1, "kv", &[1, 2, 3]).await;
    put(&cluster, 1, "kv", "put k v").await;
    eventually("node 1 has it", async || {
        match cluster
            .replica_answer(1, skep_client::GroupId(1), "get k")
            .await
        {
            skep_client::Outcome::Reply(reply) if reply == "v" => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    cluster.kill_at_once(&[3, 2, 1]);
    let (_, plan) = beside(&cluster, "plan.json");
    done(&cluster, &["plan", "--lost", "2,3", "--out", &plan], &[1]).await;
    let dir = cluster.node(1).data();
    let dir = dir.to_str().expect("a plain path").to_owned();
    let (out, _) = beside(&cluster, "out");
    let mut ended_by_itself = 0;
    for wait in 0..60 {
        let arguments = ["recover", "apply", "--plan", &plan, "--data-dir", &dir];
        let mut process = Process::start(&arguments, &out, &out);
        pause(Duration::from_millis(3 * wait)).await;
        ended_by_itself += u64::from(process.ended().is_some());
        process.kill();
    }
    println!("{ended_by_itself} of 60 were not killed");
    let said = done(&cluster, &["apply", "--plan", &plan], &[1]).await;
    assert!(said.contains("carried out"), "{said}");
    cluster.restart(1).await;
    assert_eq!(get(&cluster, 1, "kv", "k").await, "v");
    catalogue_is(&cluster, 1, &[1], &[]).await;
    put(&cluster, 1, "kv", "put k w").await;
}
