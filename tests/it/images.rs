//! Snapshots that are images of a machine's memory: nobody stops for them, and whoever begins with one goes on as the others do.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::json;
use skep::trouble::Kind;
use skep_client::{Consistency, GroupId, Outcome};
use skep_tests::clock::eventually;
use skep_tests::cluster::{Cluster, Settings};
use skep_tests::guests;
#[cfg(target_os = "linux")]
use skep_tests::heap::Heap;

use crate::load::{Load, propose, reply};
use crate::upgrades::version;

const ALL: [u64; 3] = [1, 2, 3];

fn short_logs() -> Settings {
    Settings {
        snapshot_entries: 100,
        ..Settings::default()
    }
}

/// A group that leaves an image at every barrier at which it can have one.
async fn create(cluster: &Cluster, component: &[u8]) -> GroupId {
    let component = cluster.upload(1, component).await.to_string();
    let request =
        json!({"name": "images", "component": component, "members": ALL, "barriers": "image"});
    cluster.create(1, request).await
}

/// Whether the newest snapshot of a node is an image: the version of its file says so.
fn has_image(cluster: &Cluster, id: u64, group: GroupId) -> bool {
    let newest: BTreeMap<u64, PathBuf> = cluster.node(id).snapshots(group);
    newest.last_key_value().is_some_and(|(_, path)| {
        // It may be gone by now.
        std::fs::read(path).is_ok_and(|bytes| bytes.get(8..12) == Some(&2u32.to_le_bytes()))
    })
}

async fn until_images(cluster: &Cluster, group: GroupId, nodes: &[u64]) {
    for id in nodes {
        eventually(
            &format!("node {id} has an image"),
            async || match has_image(cluster, *id, group) {
                true => Ok(()),
                false => Err("not yet".to_owned()),
            },
        )
        .await;
    }
}

/// All replicas are well, and say the same of the newest barrier.
async fn until_verified(cluster: &Cluster, group: GroupId) {
    eventually("all replicas agree", async || {
        let leader = cluster.leader(group).await;
        let before = cluster.try_status(leader, group).await?;
        for id in ALL {
            let status = cluster.try_status(id, group).await?;
            if let Some(trouble) = status.trouble {
                return Err(format!("node {id}: {trouble}"));
            }
        }
        match before.replica.verified {
            verified if verified.0 > 0 && verified == before.replica.snapshot => Ok(()),
            verified => Err(format!(
                "verified {verified} of {}",
                before.replica.snapshot
            )),
        }
    })
    .await;
}

// P-21
#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_leaves_images_loses_and_doubles_nothing_whatever_happens_to_its_nodes() {
    let mut cluster = Cluster::start(&short_logs()).await;
    let group = create(&cluster, skep_examples::KV).await;
    let clients = [cluster.client().await];
    let load = Load::start(&clients, group, 8).await;
    load.more(400).await;
    until_images(&cluster, group, &ALL).await;
    let leader = cluster.leader(group).await;
    let follower = cluster.others(&[leader])[0];
    // One that was away for longer than the log is kept begins with an image of another node.
    cluster.kill(follower);
    load.more(1500).await;
    cluster.restart(follower).await;
    cluster.keeps_up(group, &ALL).await;
    // One that was killed begins with its own.
    cluster.kill(leader);
    load.more(300).await;
    cluster.restart(leader).await;
    cluster.keeps_up(group, &ALL).await;
    until_images(&cluster, group, &ALL).await;
    load.verify(&cluster).await;
    until_verified(&cluster, group).await;
    assert_eq!(cluster.metric(leader, "skep_divergences_total").await, 0);
    cluster.assert_no_panic();
}

/// In the memory of the machine that answers, and in nothing else: not in the log, which every replica has alike.
// P-22
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn one_bit_that_flips_in_the_memory_of_a_machine_is_found_and_mended() {
    const VALUE: &str = "a-value-that-stands-nowhere-else";
    let cluster = Cluster::start(&short_logs()).await;
    let group = create(&cluster, skep_examples::KV).await;
    let client = cluster.client().await;
    // A leader that is quarantined does not know what becomes of what it has taken.
    let session = client.session(group).await.expect("a session");
    let put = async |key: &str| {
        reply(&session, &format!("put {key} {VALUE}-{key}")).await;
    };
    let until_a_barrier = async || {
        for number in 0..250 {
            put(&format!("key-{number}")).await;
        }
    };
    put("ray").await;
    until_a_barrier().await;
    until_images(&cluster, group, &ALL).await;
    let leader = cluster.leader(group).await;
    for victim in [cluster.others(&[leader])[0], leader] {
        let divergences = async || {
            let mut found = 0;
            for id in ALL {
                found += cluster.metric(id, "skep_divergences_total").await;
            }
            found
        };
        let before = divergences().await;
        let asked = cluster.client_at(&[victim]).await;
        // While it is quarantined it answers nothing.
        let read = async || {
            let query = asked.query(group, "get ray".into(), Consistency::Stale);
            query.await.map(|answer| answer.outcome)
        };
        let right = read().await.expect("a healthy replica answers");
        eventually("a bit of what it answers is turned over", async || {
            // The mappings change while captures begin and end, and may be read in between. The bytes also stand where the guest
            // keeps nothing any more.
            let places =
                Heap::of(cluster.process_id(victim)).find(format!("{VALUE}-ray").as_bytes());
            for at in &places {
                at.flip();
                if read().await.expect("nothing was compared yet") != right {
                    return Ok(());
                }
                at.flip();
            }
            Err(format!("it answers from none of {} places", places.len()))
        })
        .await;
        until_a_barrier().await;
        eventually("the replica is mended", async || match read().await {
            Ok(answer) if answer == right => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
        assert!(divergences().await > before, "node {victim}");
    }
    until_a_barrier().await;
    until_verified(&cluster, group).await;
    cluster.assert_no_panic();
}

// P-27
#[tokio::test(flavor = "multi_thread")]
async fn other_code_goes_on_from_what_a_group_that_leaves_images_saves() {
    let cluster = Cluster::start(&short_logs()).await;
    let group = create(&cluster, skep_examples::KV).await;
    let clients = [cluster.client().await];
    let load = Load::start(&clients, group, 4).await;
    load.more(400).await;
    until_images(&cluster, group, &ALL).await;
    let component = cluster.upload(2, &version(7)).await;
    let path = format!("/v1/groups/{group}/upgrade");
    for dry_run in [true, false] {
        let body = json!({"component": component.to_string(), "dry_run": dry_run}).to_string();
        let answer = cluster.http(1, "POST", &path, body).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    load.more(400).await;
    for id in ALL {
        eventually("it runs the new code", async || {
            let runs = cluster.try_status(id, group).await?.component;
            match runs == component {
                true => Ok(()),
                false => Err(runs.to_string()),
            }
        })
        .await;
    }
    load.verify(&cluster).await;
    until_verified(&cluster, group).await;
}

// P-27
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_can_no_longer_be_restored_is_degraded_although_its_group_leaves_images() {
    let cluster = Cluster::start(&Settings {
        snapshot_entries: 20,
        ..Settings::default()
    })
    .await;
    let group = create(&cluster, &guests::component("restore_refuses")).await;
    let client = cluster.client().await;
    for _ in 0..100 {
        let answer = propose(&client, group, "anything").await;
        assert!(matches!(answer, Outcome::Reply(_)), "{answer:?}");
    }
    until_images(&cluster, group, &ALL).await;
    for id in ALL {
        eventually("it says so", async || {
            let trouble = cluster.try_status(id, group).await?.trouble;
            let trouble = trouble.ok_or("it is well")?;
            let text = trouble.to_string();
            match trouble.kind == Kind::Degraded && text.contains("saved and restored") {
                true => Ok(()),
                false => Err(text),
            }
        })
        .await;
    }
}
