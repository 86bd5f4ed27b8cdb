//! Replicas that are ill by themselves, or whose files are, get well without anybody's help.

use std::path::Path;

use hmac::{Hmac, Mac};
use sha2::Sha256;
use skep::GroupStatus;
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
