//! The files with which people run Skep: a unit of systemd, alerts, a dashboard.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use skep_client::Outcome;
use skep_tests::clock::{eventually, pause};
use skep_tests::cluster::{Cluster, Settings};
use skep_tests::process::Process;

use crate::load::{answer, propose};

const UNIT: &str = include_str!("../../host/deploy/skep.service");
const ALERTS: &str = include_str!("../../host/deploy/alerts.yml");
const DASHBOARD: &str = include_str!("../../host/deploy/dashboard.json");
const DOCKERFILE: &str = include_str!("../../host/deploy/Dockerfile");

/// How soon the watchdog of the test wants to hear from the node.
const WATCHDOG: Duration = Duration::from_secs(3);

/// What the node has told systemd since this was asked last.
fn told(socket: &UnixDatagram) -> BTreeSet<String> {
    let mut told = BTreeSet::new();
    let mut message = [0; 4096];
    loop {
        match socket.recv(&mut message) {
            Ok(length) => {
                let text = String::from_utf8_lossy(&message[..length]);
                told.extend(text.lines().map(str::to_owned));
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return told,
            Err(error) => panic!("{error}"),
        }
    }
}

async fn until_told(socket: &UnixDatagram, word: &str) {
    eventually(&format!("systemd is told {word}"), async || {
        let told = told(socket);
        match told.contains(word) {
            true => Ok(()),
            false => Err(format!("{told:?}")),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn systemd_is_told_that_a_node_is_ready_that_it_lives_and_that_it_stops() {
    let mut cluster = Cluster::prepare(&Settings::default());
    let path = cluster.node(1).home.join("notify");
    let socket = UnixDatagram::bind(&path).expect("a socket in an empty directory");
    socket.set_nonblocking(true).expect("a socket can be so");
    let watchdog = WATCHDOG.as_micros().to_string();
    let environment = &mut cluster.node_mut(1).environment;
    environment.push(("NOTIFY_SOCKET", path));
    environment.push(("WATCHDOG_USEC", watchdog.into()));
    cluster.start_all().await;
    until_told(&socket, "READY=1").await;
    until_told(&socket, "WATCHDOG=1").await;
    // One that hangs is not said to live.
    cluster.pause(1);
    told(&socket);
    pause(WATCHDOG).await;
    assert_eq!(told(&socket), BTreeSet::new());
    cluster.resume(1);
    until_told(&socket, "WATCHDOG=1").await;
    let (status, _) = cluster.stop(1);
    assert!(status.success(), "{status}");
    assert!(told(&socket).contains("STOPPING=1"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn systemd_is_told_for_whom_a_node_waits_that_has_no_cluster_yet() {
    let mut cluster = Cluster::prepare(&Settings::default());
    let path = cluster.node(1).home.join("notify");
    let socket = UnixDatagram::bind(&path).expect("a socket in an empty directory");
    socket.set_nonblocking(true).expect("a socket can be so");
    let environment = &mut cluster.node_mut(1).environment;
    environment.push(("NOTIFY_SOCKET", path));
    cluster.spawn(1);
    eventually("its status names whom it waits for", async || {
        let told = told(&socket);
        let waits =
            |line: &String| line.starts_with("STATUS=waiting for ") && line.contains("node 2");
        match told.iter().any(waits) {
            true => Ok(()),
            false => Err(format!("{told:?}")),
        }
    })
    .await;
}

/// The commands that the unit and the image start, with a configuration and a directory that are there.
#[tokio::test(flavor = "multi_thread")]
async fn the_unit_and_the_image_start_a_node() {
    let unit = UNIT
        .lines()
        .find_map(|line| line.strip_prefix("ExecStart="));
    let unit = unit.expect("a unit starts something").to_owned();
    let list = |key: &str| -> Vec<String> {
        let line = DOCKERFILE.lines().find_map(|line| line.strip_prefix(key));
        serde_json::from_str(line.expect("an image starts something")).expect("the exec form")
    };
    let image = [list("ENTRYPOINT "), list("CMD ")].concat().join(" ");
    for line in [unit, image] {
        let cluster = Cluster::prepare(&Settings::one_node(""));
        let home = &cluster.node(1).home;
        let (config, data) = (home.join("skep.toml"), home.join("elsewhere"));
        let here = |word: &str| match word {
            "/etc/skep/skep.toml" => config.display().to_string(),
            "/var/lib/skep" => data.display().to_string(),
            word => word.to_owned(),
        };
        let words: Vec<String> = line.split(' ').map(here).collect();
        let (program, arguments) = words.split_first().expect("a program");
        assert_eq!(program, "/usr/local/bin/skep");
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let (out, err) = (home.join("out"), home.join("err"));
        let _process = Process::start(&arguments, &out, &err);
        eventually("it is ready", async || {
            let said = std::fs::read_to_string(&out).unwrap_or_default();
            match said.starts_with("ready node=1") {
                true => Ok(()),
                false => Err(std::fs::read_to_string(&err).unwrap_or_default()),
            }
        })
        .await;
        assert!(data.join("identity").is_file());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn alerts_and_the_dashboard_ask_for_what_is_counted() {
    let cluster = Cluster::start(&Settings::one_node("")).await;
    // Counters by outcome are there once there was one.
    let group = cluster.create_kv(1, "kv", &[1]).await;
    let client = cluster.client().await;
    let put = propose(&client, group, "put a 1").await;
    assert!(matches!(put, Outcome::Reply(_)), "{put:?}");
    answer(&client, group, "get a").await;
    let metrics = cluster.http(1, "GET", "/metrics", "").await.text();
    let counted = |name: &str| {
        let name = name.strip_suffix("_bucket").unwrap_or(name);
        let family = name.strip_suffix("_total").unwrap_or(name);
        metrics.contains(&format!("# TYPE {family} "))
    };
    let dashboard: Value = serde_json::from_str(DASHBOARD).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array());
    let asked = targets.flatten().map(|target| target["expr"].as_str());
    let mut asked: Vec<&str> = asked.map(|asked| asked.expect("a question")).collect();
    asked.extend(
        ALERTS
            .lines()
            .filter_map(|line| line.trim().strip_prefix("expr: ")),
    );
    let names = asked.iter().flat_map(|asked| {
        let words = asked.split(|of: char| !of.is_ascii_alphanumeric() && of != '_');
        words.filter(|word| word.starts_with("skep_"))
    });
    let names: BTreeSet<&str> = names.collect();
    assert!(names.len() > 20, "{names:?}");
    let unknown: Vec<_> = names.iter().filter(|name| !counted(name)).collect();
    assert!(unknown.is_empty(), "{unknown:?} in\n{metrics}");
}

#[test]
fn each_alert_names_a_page_that_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let alerts = ALERTS.matches("- alert: ").count();
    let pages: Vec<&str> = ALERTS
        .lines()
        .filter_map(|line| line.trim().strip_prefix("page: "))
        .collect();
    assert_eq!(pages.len(), alerts);
    for page in pages {
        assert!(root.join(page).is_file(), "{page}");
    }
}
