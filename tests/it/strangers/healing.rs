//! Replicas that are ill by themselves, or whose files are, get well without anybody's help.

use std::path::{Path, PathBuf};

use hmac::{Hmac, Mac};
use sha2::Sha256;
use skep::GroupStatus;
use skep::trouble::Kind;
use skep_client::{ComponentId, GroupId, Outcome};
use skep_core::status::Health;
use skep_examples::KV;
use skep_tests::clock::{Stopwatch, eventually};
use skep_tests::cluster::{Cluster, Settings};

use crate::load::propose;

/// Another build of the key-value machine, which differs in one letter of one refusal: by no byte of its state.
fn odd_build() -> Vec<u8> {
    let (text, odd) = (b"there is no key", b"there is no kee");
    let mut build = KV.to_vec();
    let places: Vec<_> = (0..build.len() - text.len())
        .filter(|at| build[*at..].starts_with(text))
        .collect();
    assert!(!places.is_empty(), "the guest has other words for it");
    for at in places {
        build[at..at + odd.len()].copy_from_slice(odd);
    }
    build
}

/// Lets a stopped node run the compiled code of one component under the name of another, as a defect of a compiler would.
fn plant(data: &Path, right: ComponentId, wrong: ComponentId) {
    const MAGIC: &[u8] = b"skepcode";
    const SEAL: usize = 32;
    let compiled = data.join("compiled");
    let key = std::fs::read(compiled.join("key")).expect("the cache's key");
    let of = |id: ComponentId| {
        let name = std::fs::read_dir(&compiled)
            .expect("the cache")
            .map(|entry| entry.expect("a file").file_name())
            .find(|name| name.to_string_lossy().starts_with(&id.to_string()));
        name.expect("compiled").into_string().expect("a plain name")
    };
    let odd = std::fs::read(compiled.join(of(wrong))).expect("its code");
    let code = &odd[MAGIC.len() + SEAL..];
    let name = of(right);
    let mut seal = Hmac::<Sha256>::new_from_slice(&key).expect("any length");
    seal.update(&(name.len() as u64).to_le_bytes());
    seal.update(name.as_bytes());
    seal.update(code);
    let sealed = [MAGIC, &seal.finalize().into_bytes(), code].concat();
    std::fs::write(compiled.join(name), sealed).expect("the cache");
}

async fn status(cluster: &Cluster, id: u64, group: GroupId) -> GroupStatus {
    let status = cluster.try_status(id, group).await;
    status.unwrap_or_else(|error| panic!("{error}"))
}

/// Takes a snapshot on every replica; its index.
async fn snapshot(cluster: &Cluster, at: u64, group: GroupId) -> u64 {
    let path = format!("/v1/groups/{group}/snapshot");
    eventually("a snapshot", async || {
        let answer = cluster.http(at, "POST", &path, "").await;
        match answer.try_number("index") {
            Some(index) if answer.status == 200 => Ok(index),
            _ => Err(answer.text()),
        }
    })
    .await
}

/// Waits until the leader knows that a majority did the same up to this barrier, and all replicas are well.
async fn agreed(cluster: &Cluster, group: GroupId, index: u64) {
    eventually("all replicas are well and agree", async || {
        let mut verified = 0;
        for id in cluster.ids() {
            let status = cluster.try_status(id, group).await?;
            if status.replica.health != Health::Healthy {
                return Err(format!("node {id}: {:?}", status.trouble));
            }
            verified = verified.max(status.replica.verified.0);
        }
        match verified >= index {
            true => Ok(()),
            false => Err(format!("verified up to {verified} of {index}")),
        }
    })
    .await;
}

/// Asks for a key at one node, over and over, until told to stop; every answer must be the value.
async fn readers(cluster: &Cluster, at: u64, group: GroupId, stop: &tokio::sync::Notify) -> u64 {
    let path = format!("/v1/groups/{group}/query");
    let mut answers = 0;
    let stopped = stop.notified();
    tokio::pin!(stopped);
    loop {
        let answer = tokio::select! {
            answer = cluster.http(at, "POST", &path, "get k") => answer,
            () = &mut stopped => return answers,
        };
        assert_eq!((answer.status, answer.text().as_str()), (200, "v"));
        answers += 1;
    }
}

// P-13
#[tokio::test]
async fn a_quarantined_replica_is_cured_by_itself_and_its_clients_notice_nothing() {
    let mut cluster = Cluster::start(&Settings::default()).await;
    let group = cluster.create_kv(1, "kv", &[1, 2, 3]).await;
    cluster
        .create_from(1, "odd", &odd_build(), &[1, 2, 3])
        .await;
    let client = cluster.client().await;
    assert!(matches!(
        propose(&client, group, "put k v").await,
        Outcome::Reply(_)
    ));
    let leader = cluster.leader(group).await;
    let sick = cluster.others(&[leader])[0];
    cluster.stop(sick);
    let data = cluster.node(sick).data();
    plant(&data, ComponentId::of(KV), ComponentId::of(&odd_build()));
    cluster.restart(sick).await;
    cluster.caught_up(group, &cluster.ids()).await;

    let stop = tokio::sync::Notify::new();
    let story = async {
        let refused = propose(&client, group, "get nothing").await;
        assert!(matches!(refused, Outcome::Rejected { .. }), "{refused:?}");
        let watch = Stopwatch::start();
        let barrier = snapshot(&cluster, leader, group).await;
        eventually("the difference is noticed", async || {
            match cluster.metric(sick, "skep_divergences_total").await {
                0 => Err("not yet".to_owned()),
                _ => Ok(()),
            }
        })
        .await;
        let noticed = watch.elapsed();
        let next = snapshot(&cluster, leader, group).await;
        assert!(next > barrier);
        agreed(&cluster, group, next).await;
        println!(
            "planted on node {sick}: noticed {noticed:?} after the barrier, cured and verified again after {:?}",
            watch.elapsed()
        );
        stop.notify_one();
    };
    let (answers, ()) = tokio::join!(readers(&cluster, sick, group, &stop), story);
    assert!(answers > 0, "nobody asked");
    let log = cluster.node(sick).log();
    assert!(log.contains("it is quarantined"), "{log}");
    assert_eq!(status(&cluster, sick, group).await.trouble, None);
    assert_eq!(cluster.metric(sick, "skep_halted_groups").await, 0);
    cluster.assert_no_panic();
}

/// A cluster whose logs do not reach back to the first entry: a snapshot every hundred entries.
fn short_logs() -> Settings {
    Settings {
        snapshot_entries: 100,
        ..Settings::default()
    }
}

/// The snapshot file of a group on a node that runs, when no other one is due or being written.
async fn settled_snapshot(
    cluster: &Cluster,
    id: u64,
    group: GroupId,
    settings: &Settings,
) -> PathBuf {
    let what = format!("node {id} has one snapshot of group {group}, and none is due");
    eventually(&what, async || {
        let replica = cluster.try_status(id, group).await?.replica;
        let snapshot = replica.snapshot.0;
        let is_due = replica.applied.0 - snapshot >= settings.snapshot_entries;
        let files = cluster.node(id).snapshots(group);
        match files.get(&snapshot) {
            Some(path) if files.len() == 1 && !is_due => Ok(path.clone()),
            _ => Err(format!("{files:?}, {replica:?}")),
        }
    })
    .await
}

/// What may happen to a file.
#[derive(Clone, Copy, Debug)]
enum Damage {
    Bit,
    Empty,
    Gone,
}

fn damage(path: &Path, how: Damage) {
    match how {
        Damage::Bit => {
            let mut content = std::fs::read(path).expect("the file");
            let middle = content.len() / 2;
            content[middle] ^= 0x10;
            std::fs::write(path, content).expect("the file");
        }
        // The same inode, as a careless `>` leaves it.
        Damage::Empty => std::fs::OpenOptions::new()
            .write(true)
            .open(path)
            .and_then(|file| file.set_len(0))
            .expect("the file"),
        Damage::Gone => std::fs::remove_file(path).expect("the file"),
    }
}

async fn put(cluster: &Cluster, group: GroupId, keys: std::ops::Range<u32>) {
    let client = cluster.client().await;
    for key in keys {
        let reply = propose(&client, group, &format!("put k{key} {key}")).await;
        assert!(matches!(reply, Outcome::Reply(_)), "{reply:?}");
    }
}

/// Waits until the replicas are in no trouble and hold the same.
async fn healed(cluster: &Cluster, group: GroupId, ids: &[u64]) {
    eventually("no replica is in trouble", async || {
        for id in ids {
            if let Some(trouble) = cluster.try_status(*id, group).await?.trouble {
                return Err(format!("node {id}: {trouble}"));
            }
        }
        Ok(())
    })
    .await;
    cluster.caught_up(group, ids).await;
}

async fn holds(cluster: &Cluster, id: u64, group: GroupId, keys: u32) {
    // A replica that has just started learns a little later what is committed.
    eventually(&format!("node {id} holds {keys} keys"), async || {
        let count = cluster.replica_answer(id, group, "count").await;
        match crate::load::text(count) {
            count if count == keys.to_string() => Ok(()),
            count => Err(count),
        }
    })
    .await;
}

// P-57
#[tokio::test]
async fn a_follower_whose_snapshot_is_damaged_takes_the_leaders() {
    let settings = short_logs();
    let mut cluster = Cluster::start(&settings).await;
    let group = cluster.create_kv(1, "kv", &[1, 2, 3]).await;
    put(&cluster, group, 0..150).await;
    let leader = cluster.leader(group).await;
    let follower = cluster.others(&[leader])[0];
    for how in [Damage::Bit, Damage::Empty, Damage::Gone] {
        cluster.caught_up(group, &[1, 2, 3]).await;
        let file = settled_snapshot(&cluster, follower, group, &settings).await;
        cluster.stop(follower);
        damage(&file, how);
        let before = cluster.node(follower).log().len();
        let watch = Stopwatch::start();
        cluster.restart(follower).await;
        let ready = watch.elapsed();
        healed(&cluster, group, &[1, 2, 3]).await;
        println!(
            "a follower's snapshot, {how:?}: ready after {ready:?}, healed after {:?}",
            watch.elapsed()
        );
        let log = cluster.node(follower).log().split_off(before);
        assert!(
            log.contains("the snapshot of a group cannot be read"),
            "{log}"
        );
        holds(&cluster, follower, group, 150).await;
    }
    cluster.assert_no_panic();
}

// P-57
#[tokio::test]
async fn a_leader_whose_snapshot_is_damaged_takes_a_new_one_for_a_follower_that_is_behind() {
    let settings = short_logs();
    let mut cluster = Cluster::start(&settings).await;
    let group = cluster.create_kv(1, "kv", &[1, 2, 3]).await;
    put(&cluster, group, 0..50).await;
    for how in [Damage::Bit, Damage::Empty, Damage::Gone] {
        let leader = cluster.leader(group).await;
        let follower = cluster.others(&[leader])[0];
        cluster.stop(follower);
        put(&cluster, group, 0..350).await;
        let before = cluster.node(leader).log().len();
        damage(
            &settled_snapshot(&cluster, leader, group, &settings).await,
            how,
        );
        let watch = Stopwatch::start();
        cluster.restart(follower).await;
        healed(&cluster, group, &[1, 2, 3]).await;
        println!(
            "the leader's snapshot, {how:?}: healed after {:?}",
            watch.elapsed()
        );
        let log = cluster.node(leader).log().split_off(before);
        let complaints = log.matches("a snapshot cannot be sent").count();
        assert!((1..=3).contains(&complaints), "{complaints}: {log}");
        holds(&cluster, follower, group, 350).await;
    }
    cluster.assert_no_panic();
}

// P-57
#[tokio::test]
async fn a_node_whose_catalogue_is_damaged_starts_and_takes_the_others() {
    let settings = Settings {
        snapshot_entries: 8,
        ..Settings::default()
    };
    let mut cluster = Cluster::start(&settings).await;
    let mut group = GroupId(0);
    for name in ["a", "b", "c", "d", "e", "f"] {
        group = cluster.create_kv(1, name, &[1, 2, 3]).await;
    }
    put(&cluster, group, 0..20).await;
    let leader = cluster.leader(GroupId(0)).await;
    let node = cluster.others(&[leader])[0];
    for how in [Damage::Bit, Damage::Empty, Damage::Gone] {
        cluster.caught_up(GroupId(0), &[1, 2, 3]).await;
        let file = settled_snapshot(&cluster, node, GroupId(0), &settings).await;
        cluster.stop(node);
        damage(&file, how);
        let watch = Stopwatch::start();
        cluster.restart(node).await;
        let ready = watch.elapsed();
        healed(&cluster, GroupId(0), &[1, 2, 3]).await;
        println!(
            "the catalogue's snapshot, {how:?}: ready after {ready:?}, healed after {:?}",
            watch.elapsed()
        );
        healed(&cluster, group, &[1, 2, 3]).await;
        holds(&cluster, node, group, 20).await;
    }
    // It may lead, which it could not without knowing its members.
    let path = format!("/v1/groups/{group}/transfer");
    let transfer = cluster
        .http(leader, "POST", &path, format!("{{\"node\": {node}}}"))
        .await;
    assert_eq!(transfer.status, 200, "{}", transfer.text());
    cluster.assert_no_panic();
}

// P-57
#[tokio::test]
async fn a_snapshot_that_is_shortened_under_a_running_node_does_not_end_it() {
    let settings = short_logs();
    let mut cluster = Cluster::start(&settings).await;
    let group = cluster.create_kv(1, "kv", &[1, 2, 3]).await;
    put(&cluster, group, 0..150).await;
    let leader = cluster.leader(group).await;
    let file = settled_snapshot(&cluster, leader, group, &settings).await;
    damage(&file, Damage::Empty);
    let path = format!("/v1/groups/{group}/query");
    for _ in 0..3 {
        let answer = cluster.http(leader, "POST", &path, "get k7").await;
        assert_eq!((answer.status, answer.text().as_str()), (200, "7"));
    }
    // Commands go on likewise.
    put(&cluster, group, 150..160).await;
    assert!(cluster.node_mut(leader).is_running());
    holds(&cluster, leader, group, 160).await;
    cluster.assert_no_panic();
}

#[tokio::test]
async fn the_only_replica_of_a_group_says_that_its_snapshot_is_lost_and_what_to_do() {
    let settings = short_logs();
    let mut cluster = Cluster::start(&settings).await;
    let group = cluster.create_kv(1, "alone", &[2]).await;
    let other = cluster.create_kv(1, "other", &[1, 2, 3]).await;
    put(&cluster, group, 0..150).await;
    let file = settled_snapshot(&cluster, 2, group, &settings).await;
    cluster.stop(2);
    let whole = std::fs::read(&file).expect("the file");
    damage(&file, Damage::Bit);
    cluster.restart(2).await;
    let trouble = eventually("it says so", async || {
        let status = cluster.try_status(2, group).await?;
        status.trouble.ok_or_else(|| "no trouble".to_owned())
    })
    .await;
    assert_eq!(trouble.kind, Kind::Lost, "{trouble}");
    assert!(
        trouble
            .to_string()
            .contains("put the file back from a backup"),
        "{trouble}"
    );
    let ready = cluster.http(2, "GET", "/readyz", "").await;
    assert_eq!(ready.status, 200, "{}", ready.text());
    assert!(
        ready.text().contains("group 1 (alone) is lost"),
        "{}",
        ready.text()
    );
    assert_eq!(cluster.metric(2, "skep_halted_groups").await, 1);
    let list = cluster.http(2, "GET", "/v1/groups", "").await.text();
    assert!(list.contains("lost: its snapshot"), "{list}");
    put(&cluster, other, 0..5).await;
    // The advice can be followed.
    cluster.stop(2);
    std::fs::write(&file, whole).expect("the file");
    cluster.restart(2).await;
    healed(&cluster, group, &[2]).await;
    holds(&cluster, 2, group, 150).await;
    assert_eq!(cluster.metric(2, "skep_halted_groups").await, 0);
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_barrier_without_a_descriptor_costs_nothing_but_its_file_for_a_while() {
    let cluster = Cluster::start(&short_logs()).await;
    let group = cluster.create_kv(1, "kv", &[1, 2, 3]).await;
    let client = cluster.client().await;
    let put = async |keys: std::ops::Range<u32>| {
        for key in keys {
            let reply = propose(&client, group, &format!("put k{key} {key}")).await;
            assert!(matches!(reply, Outcome::Reply(_)), "{reply:?}");
        }
    };
    put(0..50).await;
    // A node that is still compiling would want descriptors for that.
    cluster.caught_up(group, &[1, 2, 3]).await;
    for id in cluster.ids() {
        cluster.starve_of_descriptors(id, true);
    }
    // Over a barrier, on all three at once.
    put(50..170).await;
    let unwritten = "a snapshot is in no file yet";
    eventually("everybody wants a file", async || {
        for id in cluster.ids() {
            let log = cluster.node(id).log();
            if !(log.contains(unwritten) && log.contains("is degraded: ")) {
                return Err(format!("node {id}"));
            }
            assert!(log.contains("Too many open files"), "{log}");
        }
        Ok(())
    })
    .await;
    put(170..180).await;
    for id in cluster.ids() {
        cluster.starve_of_descriptors(id, false);
    }
    let watch = Stopwatch::start();
    healed(&cluster, group, &[1, 2, 3]).await;
    println!(
        "no descriptor at a barrier: healed {:?} after there were some",
        watch.elapsed()
    );
    for id in cluster.ids() {
        let status = status(&cluster, id, group).await;
        assert!(status.replica.snapshot.0 > 0, "node {id}: {status:?}");
        assert_eq!(status.replica.health, Health::Healthy);
        holds(&cluster, id, group, 180).await;
    }
    let verified = snapshot(&cluster, 1, group).await;
    agreed(&cluster, group, verified).await;
    cluster.assert_no_panic();
}

// P-33
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_machine_that_finds_no_memory_for_its_snapshot_starts_again_by_itself() {
    let cluster = Cluster::start(&Settings::default()).await;
    let group = cluster.create_kv(1, "kv", &[1, 2, 3]).await;
    let client = cluster.client().await;
    let value = "v".repeat(900 << 10);
    for key in 0..64 {
        let reply = propose(&client, group, &format!("put large{key} {value}")).await;
        assert!(matches!(reply, Outcome::Reply(_)), "{reply:?}");
    }
    let leader = cluster.leader(group).await;
    let poor = cluster.others(&[leader])[0];
    cluster.caught_up(group, &[1, 2, 3]).await;
    // Enough for everything but the 56 MiB that the machine saves.
    cluster.limit_addresses(poor, Some(20 << 20));
    snapshot(&cluster, leader, group).await;
    let trouble = eventually("its machine stops", async || {
        let status = cluster.try_status(poor, group).await?;
        status.trouble.ok_or_else(|| "no trouble".to_owned())
    })
    .await;
    assert_eq!(trouble.kind, Kind::Faulted, "{trouble}");
    // Others go on, and this node passes on what it is asked.
    put(&cluster, group, 50..60).await;
    let path = format!("/v1/groups/{group}/query");
    let answer = cluster.http(poor, "POST", &path, "get k55").await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "55"));
    // Not while it is just being started again.
    eventually("its trouble is told", async || {
        let ready = cluster.http(poor, "GET", "/readyz", "").await;
        match ready.status == 200 && ready.text().contains("is faulted") {
            true => Ok(()),
            false => Err(ready.text()),
        }
    })
    .await;
    cluster.limit_addresses(poor, None);
    let watch = Stopwatch::start();
    healed(&cluster, group, &[1, 2, 3]).await;
    println!(
        "no memory for a snapshot: at work again {:?} after there was some",
        watch.elapsed()
    );
    holds(&cluster, poor, group, 74).await;
    let verified = snapshot(&cluster, leader, group).await;
    agreed(&cluster, group, verified).await;
    cluster.assert_no_panic();
}

#[tokio::test]
async fn one_group_that_cannot_be_brought_up_takes_no_node_away() {
    let mut cluster = Cluster::start(&Settings::default()).await;
    let other = cluster.create_kv(1, "other", &[1, 2, 3]).await;
    let build = odd_build();
    let lost = cluster
        .create_from(1, "destroyed", &build, &[1, 2, 3])
        .await;
    let name = ComponentId::of(&build).to_string();
    for id in cluster.ids() {
        cluster.stop(id);
        // Its code is nowhere any more.
        for dir in ["components", "compiled"] {
            let dir = cluster.node(id).data().join(dir);
            for entry in std::fs::read_dir(&dir).expect("a directory") {
                let path = entry.expect("a file").path();
                if path.to_string_lossy().contains(&name) {
                    std::fs::remove_file(path).expect("the file");
                }
            }
        }
    }
    cluster.start_all().await;
    put(&cluster, other, 0..10).await;
    for id in cluster.ids() {
        let ready = cluster.http(id, "GET", "/readyz", "").await;
        assert_eq!(ready.status, 200, "{}", ready.text());
        let text = ready.text();
        assert!(
            text.contains(&format!("group {lost} (destroyed) is starting: ")),
            "{text}"
        );
        let metrics = cluster.http(id, "GET", "/metrics", "").await.text();
        let named = format!("skep_group_trouble{{group=\"{lost}\",trouble=\"starting\"}} 1");
        assert!(metrics.contains(&named), "{metrics}");
        let list = cluster.http(id, "GET", "/v1/groups", "").await.text();
        assert!(list.contains("starting: "), "{list}");
    }
    cluster.assert_no_panic();
}
