//! What strangers bring has its bounds, and a disk that is full does not take the node with it.

use std::path::PathBuf;

use serde_json::json;
use skep_client::{ComponentId, Consistency, GroupId};
use skep_examples::KV;
use skep_tests::clock::eventually;
use skep_tests::cluster::{Cluster, Settings};
use skep_tests::http::Answer;
use skep_tests::process;
use skep_tests::small_disk::{self, SmallDisk};

/// The built-in machine under another name: a custom section of so many bytes says nothing.
fn padded(bytes: usize, with: u8) -> Vec<u8> {
    let mut size = Vec::new();
    let mut left = bytes + 2;
    while left >= 0x80 {
        size.push(left as u8 | 0x80);
        left >>= 7;
    }
    size.push(left as u8);
    [KV, &[0], &size, &[1, b'x'], &vec![with; bytes]].concat()
}

async fn create(cluster: &Cluster, name: &str, init: &str) -> Answer {
    let body = json!({"name": name, "init": init}).to_string();
    cluster.http(1, "POST", "/v1/groups", body).await
}

async fn put_value(cluster: &Cluster, group: GroupId, bytes: usize) -> Answer {
    put_value_at(cluster, 1, group, bytes).await
}

async fn put_value_at(cluster: &Cluster, node: u64, group: GroupId, bytes: usize) -> Answer {
    let path = format!("/v1/groups/{group}/propose");
    let command = format!("put a {}", "v".repeat(bytes));
    cluster.http(node, "POST", &path, command).await
}

fn is_out_of(answer: &Answer, key: &str) {
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (507, "out-of-budget"),
        "{}",
        answer.text()
    );
    assert!(answer.text().contains(key), "{}", answer.text());
}

/// M3: 16 uploads that nobody went on with kept everybody else from uploading until a restart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_that_nobody_goes_on_with_do_not_keep_others_out() {
    let cluster = Cluster::start(&Settings::one_node("")).await;
    let client = cluster.client().await;
    for stranger in 0..16_u8 {
        client
            .component_write(ComponentId::of(&[stranger]), 0, 1000, "a".into())
            .await
            .expect("a piece is taken");
    }
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("machine.wasm");
    std::fs::write(&file, padded(10, 0)).expect("a file");
    let at = cluster.node(1).client.clone();
    let arguments = [
        "component",
        "put",
        file.to_str().expect("a plain name"),
        "--at",
        &at,
    ];
    eventually("somebody else uploads", async || {
        let ended = process::run(&arguments).await;
        match ended.code {
            Some(0) => Ok(()),
            _ => Err(format!("{ended:?}")),
        }
    })
    .await;
    cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beyond_a_budget_nothing_is_proposed_and_the_key_is_named() {
    let kv = KV.len() as u64;
    let mut cluster = Cluster::start(&Settings::one_node(&format!(
        "[limits]\ncomponents_total_bytes = {}\ngroups = 3\ninit_total_bytes = 10\n",
        2 * kv + 2000
    )))
    .await;
    assert_eq!(cluster.put_component(1, KV).await.status, 201);
    let padding = cluster.put_component(1, &padded(1000, 1)).await;
    assert_eq!(padding.status, 201);
    let more = cluster.put_component(1, &padded(1000, 2)).await;
    is_out_of(&more, "components_total_bytes");
    let client = cluster.client().await;
    let another = ComponentId::of(b"another");
    let refused = client
        .component_write(another, 0, 100_000, "a".into())
        .await;
    let refused = refused.expect_err("there is no room").to_string();
    assert!(refused.contains("components_total_bytes"), "{refused}");
    // What is here already takes no more.
    assert_eq!(cluster.put_component(1, KV).await.status, 201);

    // The built-in machine takes no `init`, so a group that is created with some has a problem, and is one.
    assert_eq!(create(&cluster, "a", "").await.status, 201);
    is_out_of(
        &create(&cluster, "b", "elf zeichen").await,
        "init_total_bytes",
    );
    assert_eq!(create(&cluster, "b", "").await.status, 201);
    assert_eq!(create(&cluster, "c", "").await.status, 201);
    is_out_of(&create(&cluster, "d", "").await, "[limits] groups");
    let at = cluster.node(1).client.clone();
    let ended = process::run(&["group", "create", "d", "--at", &at]).await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("[out-of-budget]"), "{ended:?}");
    // Nothing of it is in the catalogue's log, and deleting makes room.
    let deleted = cluster.http(1, "DELETE", "/v1/groups/c", "").await;
    assert_eq!(deleted.status, 200, "{}", deleted.text());
    assert_eq!(create(&cluster, "d", "").await.status, 201);
    // M9: a list has a bound too, and goes on where it ended.
    let names = async |query: &str| {
        let path = format!("/v1/groups{query}");
        let answer = cluster.http(1, "GET", &path, "").await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let groups = answer.json().as_array().expect("a list").clone();
        let name = |group: &serde_json::Value| group["name"].as_str().map(str::to_owned);
        groups.iter().filter_map(name).collect::<Vec<_>>().concat()
    };
    assert_eq!(names("").await, "abd");
    assert_eq!(names("?limit=2").await, "ab");
    assert_eq!(names("?after=2&limit=999999").await, "d");
    let wrong = cluster.http(1, "GET", "/v1/groups?limit=all", "").await;
    assert_eq!(
        (wrong.status, wrong.code().as_str()),
        (400, "invalid-request")
    );
    let listed = process::run(&["group", "list", "-o", "json", "--at", &at]).await;
    assert_eq!(
        listed.stdout.matches("\"incarnation\"").count(),
        3,
        "{listed:?}"
    );
    cluster.kill(1);
    cluster.restart(1).await;
    cluster.assert_no_panic();
}

/// A disk that is kept free, whatever there is of it: so nothing that strangers bring is taken.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_below_its_reserve_takes_nothing_new() {
    let mut cluster = Cluster::start(&Settings::one_node("")).await;
    let group = cluster.create_kv(1, "old", &[1]).await;
    assert_eq!(put_value(&cluster, group, 1).await.status, 200);
    cluster.kill(1);
    cluster.set("SKEP_LIMITS__DISK_RESERVE_BYTES", 1 << 62);
    cluster.restart(1).await;
    let key = "disk_reserve_bytes";
    is_out_of(&cluster.put_component(1, &padded(10, 0)).await, key);
    is_out_of(&create(&cluster, "new", "").await, key);
    eventually("commands are refused", async || {
        let answer = put_value(&cluster, group, 1).await;
        match answer.code().as_str() {
            "out-of-budget" => Ok(()),
            _ => Err(answer.text()),
        }
    })
    .await;
    let client = cluster.client().await;
    let answer = client.query(group, "get a".into(), Consistency::Linearizable);
    answer.await.expect("queries go on");
    let deleted = cluster.http(1, "DELETE", "/v1/groups/old", "").await;
    assert_eq!(deleted.status, 200, "{}", deleted.text());
    cluster.assert_no_panic();
}

/// H6: seven uploads filled a disk of 220 MiB, the next command ended the node, and it could not start again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_and_commands_fill_no_disk_and_a_full_one_is_started_on_and_emptied() {
    let mut cluster = Cluster::prepare(&Settings::one_node(
        "[limits]\ndisk_reserve_bytes = 67108864\n",
    ));
    let data = cluster.node(1).data();
    match SmallDisk::mount(&data, 220 << 20) {
        Ok(disk) => cluster.keep(disk),
        Err(error) => {
            println!(
                "no small disk ({error}): `a_disk_below_its_reserve_takes_nothing_new` tests what it can"
            );
            return;
        }
    }
    cluster.start_all().await;
    let reserve = data.join("reserve");
    let is_kept = async |what: &str| {
        eventually(what, async || match reserve.exists() {
            true => Ok(()),
            false => Err(format!("no {}", reserve.display())),
        })
        .await;
    };
    is_kept("a reserve is made").await;
    let group = cluster.create_kv(1, "group", &[1]).await;
    let mut taken = 0;
    let refused = loop {
        let answer = cluster.put_component(1, &padded(20 << 20, taken)).await;
        if answer.status != 201 {
            break answer;
        }
        taken += 1;
    };
    is_out_of(&refused, "disk_reserve_bytes");
    assert!((4..8).contains(&taken), "{taken} uploads");
    // Commands go on until there is a quarter of the reserve.
    let mut commands = 0;
    let refused = loop {
        let answer = put_value(&cluster, group, 500_000).await;
        if answer.status != 200 {
            break answer;
        }
        commands += 1;
    };
    is_out_of(&refused, "disk_reserve_bytes");
    assert!(commands > 20, "{commands} commands");

    // Somebody else fills it. The node ends sooner or later, and begins again.
    small_disk::fill(&data);
    cluster.kill(1);
    cluster.restart(1).await;
    let log = cluster.node(1).log();
    assert!(log.contains("the reserve is given up"), "{log}");
    assert!(!reserve.exists());
    let deleted = cluster.http(1, "DELETE", "/v1/groups/group", "").await;
    assert_eq!(deleted.status, 200, "{}", deleted.text());
    let all = r#"{"older_than_seconds": 0}"#;
    let collected = cluster.http(1, "POST", "/v1/components/collect", all).await;
    assert_eq!(collected.status, 200, "{}", collected.text());
    let collected = collected.json().as_array().expect("a list").len();
    assert!(collected >= usize::from(taken), "{collected} of {taken}");
    small_disk::clear(&data);
    is_kept("the reserve is made again").await;
    let again = cluster.put_component(1, &padded(20 << 20, 100)).await;
    assert_eq!(again.status, 201, "{}", again.text());
    let group = cluster.create_kv(1, "another", &[1]).await;
    assert_eq!(put_value(&cluster, group, 1).await.status, 200);
    cluster.assert_no_panic();
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_disk_is_nearly_full_has_others_lead() {
    let mut cluster = Cluster::prepare(&Settings::default());
    let reserve = PathBuf::from((64_u64 << 20).to_string());
    let first = cluster.node_mut(1);
    first
        .environment
        .push(("SKEP_LIMITS__DISK_RESERVE_BYTES", reserve));
    let data = first.data();
    match SmallDisk::mount(&data, 220 << 20) {
        Ok(disk) => cluster.keep(disk),
        Err(error) => {
            println!("no small disk ({error}): nothing is tested");
            return;
        }
    }
    cluster.start_all().await;
    let group = cluster.create_kv(1, "group", &[1, 2, 3]).await;
    eventually("node 1 leads", async || {
        let path = format!("/v1/groups/{group}/transfer");
        cluster.http(1, "POST", &path, r#"{"node": 1}"#).await;
        match cluster.leader(group).await {
            1 => Ok(()),
            other => Err(format!("node {other} leads")),
        }
    })
    .await;
    assert_eq!(put_value(&cluster, group, 1).await.status, 200);

    // Less than a quarter of the reserve, and enough to follow.
    small_disk::fill_but(&data, 12 << 20);
    eventually("another node leads", async || {
        match cluster.leader(group).await {
            1 => Err("node 1 leads".to_owned()),
            _ => Ok(()),
        }
    })
    .await;
    is_out_of(&put_value(&cluster, group, 1).await, "disk_reserve_bytes");
    assert_eq!(put_value_at(&cluster, 2, group, 1).await.status, 200);
    cluster.caught_up(group, &[1, 2, 3]).await;
    assert!(cluster.node_mut(1).is_running());
    cluster.assert_no_panic();
}
