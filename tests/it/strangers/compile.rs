//! No component holds a thread or the memory of a node that compiles it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use skep_client::{Client, ComponentId, GroupId};
use skep_tests::bombs;
use skep_tests::clock::{Stopwatch, eventually};
use skep_tests::cluster::{Cluster, Settings};
use skep_tests::{http, process};

use crate::load::{propose, text};

/// How much more memory a node may hold while it has a bomb compiled, its compiler included.
const MORE_BYTES: u64 = 300 << 20;

/// How long a bomb is sent that is refused without being compiled.
const SENT_FOR: Duration = Duration::from_secs(3);

/// Lets a compiler have so much memory that something else ends it.
const MUCH_MEMORY: &str = "[limits]\ncompile_memory_bytes = 68719476736\n";

/// The processes that compile for a process, with the bytes of memory that they hold.
fn compilers(node: u32) -> Vec<(u32, u64)> {
    let processes = std::fs::read_dir("/proc").expect("the processes");
    let ids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    ids.filter_map(|id: u32| {
        // One that has ended meanwhile is none.
        let status = std::fs::read_to_string(format!("/proc/{id}/status")).ok()?;
        let line = std::fs::read(format!("/proc/{id}/cmdline")).ok()?;
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
        let compiles = String::from_utf8_lossy(&line).contains("compile-child");
        (compiles && parent.trim() == node.to_string())
            .then(|| (id, process::resident_bytes(id).unwrap_or(0)))
    })
    .collect()
}

/// Watches a node until it is told to stop: the most memory that it and its compilers held, and how long clients of another
/// group waited.
struct Watch {
    stop: Arc<AtomicBool>,
    most: tokio::task::JoinHandle<u64>,
    waited: tokio::task::JoinHandle<Vec<Duration>>,
}

/// How long commands took.
struct Waited(Vec<Duration>);

impl Waited {
    fn longest(&self) -> Duration {
        self.0.last().copied().unwrap_or_default()
    }

    /// 99 of 100 took no longer.
    fn p99(&self) -> Duration {
        let place = (self.0.len() * 99 / 100).min(self.0.len().saturating_sub(1));
        self.0.get(place).copied().unwrap_or_default()
    }
}

impl Watch {
    async fn start(cluster: &Cluster, client: Client, group: GroupId) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let node = cluster.process_id(1);
        let stopped = stop.clone();
        let looked = Arc::new(AtomicU64::new(0));
        let looking = looked.clone();
        let most = tokio::task::spawn_blocking(move || {
            let mut most = 0;
            while !stopped.load(Ordering::Relaxed) {
                let of_compilers: u64 = compilers(node).iter().map(|(_, bytes)| bytes).sum();
                most = most.max(process::resident_bytes(node).expect("it runs") + of_compilers);
                looking.fetch_add(1, Ordering::Relaxed);
                // It samples, and waits for nothing: no condition ends this, and a pause leaves the processors to the node.
                std::thread::sleep(Duration::from_millis(2));
            }
            most
        });
        let stopped = stop.clone();
        let waited = tokio::spawn(async move {
            let mut waited = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                let watch = Stopwatch::start();
                assert!(text(propose(&client, group, "put a 1").await).starts_with("OK"));
                waited.push(watch.elapsed());
            }
            waited
        });
        skep_tests::clock::until("memory is looked at", || looked.load(Ordering::Relaxed) > 0)
            .await;
        Self { stop, most, waited }
    }

    async fn end(self) -> (u64, Waited) {
        self.stop.store(true, Ordering::Relaxed);
        let most = self.most.await.expect("it looked");
        let mut waited = self.waited.await.expect("every command was answered");
        waited.sort_unstable();
        (most, Waited(waited))
    }
}

/// H7: 100 KB took a node 20 s and 2.4 GB, 6.7 MB 44 s and 2.5 GB, each time that somebody asked, and at each restart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_component_that_the_compiler_chokes_on_costs_a_node_little_and_only_once() {
    let mut cluster = Cluster::start(&Settings::one_node("")).await;
    let group = cluster.create_kv(1, "neighbour", &[1]).await;
    let client = cluster.client().await;
    let before = cluster.resident_bytes(1);
    let watch = Watch::start(&cluster, client.clone(), group).await;
    skep_tests::clock::pause(Duration::from_secs(2)).await;
    let (_, alone) = watch.end().await;
    let (small, large) = (bombs::phi(100_000, 400), bombs::br_tables(6_700_000));
    // What can be told by counting, and what only the compiler finds out.
    for (bomb, compiled) in [
        (bombs::phi(100_000, 3000), false),
        (large, false),
        (small.clone(), true),
    ] {
        let watch = Watch::start(&cluster, client.clone(), group).await;
        let under_way = Stopwatch::start();
        let mut answer = cluster.put_component(1, &bomb).await;
        // What is told by counting is told in no time: it is sent again and again, or a handful of commands would be all that is seen.
        while !compiled && under_way.elapsed() < SENT_FOR {
            answer = cluster.put_component(1, &bomb).await;
        }
        let (most, waited) = watch.end().await;
        let (commands, longest) = (waited.0.len(), waited.longest());
        let seen = format!(
            "{} MiB more, {commands} commands, p99 {:?} (alone {:?}), {longest:?} at the most",
            most.saturating_sub(before) >> 20,
            waited.p99(),
            alone.p99()
        );
        println!("{seen}: {}", answer.text());
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (422, "compile-too-costly"),
            "{}",
            answer.text()
        );
        let words = if compiled {
            "compile_memory_bytes"
        } else {
            "no toolchain makes"
        };
        assert!(answer.text().contains(words), "{}", answer.text());
        assert!(most < before + MORE_BYTES, "{seen}");
        assert!(commands > 0 && longest < Duration::from_secs(5), "{seen}");
    }
    // It is known now, whoever asks, and after a restart too.
    for _ in 0..2 {
        let answer = cluster.put_component(1, &small).await;
        assert_eq!(answer.code(), "compile-too-costly", "{}", answer.text());
        cluster.kill(1);
        cluster.restart(1).await;
    }
    let attempts = cluster
        .node(1)
        .log()
        .matches("a component is not compiled")
        .count();
    assert_eq!(attempts, 1);
    assert!(text(propose(&client, group, "put b 1").await).starts_with("OK"));
    cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compiler_that_is_late_is_ended_and_others_are_compiled_after_it() {
    let cluster = Cluster::start(&Settings::one_node(&format!(
        "{MUCH_MEMORY}compile_timeout_ms = 8000\n"
    )))
    .await;
    let node = cluster.process_id(1);
    let late = cluster.put_component(1, &bombs::phi(100_000, 500)).await;
    assert_eq!(
        (late.status, late.code().as_str()),
        (503, "compile-late"),
        "{}",
        late.text()
    );
    assert_eq!(compilers(node), []);
    let good = cluster
        .upload(1, &skep_tests::guests::component("loops"))
        .await;
    assert_ne!(good, ComponentId::of(skep_examples::KV));
    cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compiler_ends_with_its_node_however_that_ends() {
    let mut cluster = Cluster::start(&Settings::one_node(MUCH_MEMORY)).await;
    for kill in [true, false] {
        let node = cluster.process_id(1);
        let (http, bomb) = (
            cluster.node(1).http.clone(),
            bombs::phi(100_000, 400 + u32::from(kill)),
        );
        let path = format!("/v1/components/{}", ComponentId::of(&bomb));
        // There is no answer, since there is no node any more.
        let asked = tokio::spawn(async move {
            drop(http::request(&http, "PUT", &path, &[], &bomb).await);
        });
        let compiler = eventually("a compiler runs", async || {
            match compilers(node).as_slice() {
                [(compiler, _)] => Ok(*compiler),
                others => Err(format!("{others:?}")),
            }
        })
        .await;
        match kill {
            true => cluster.kill(1),
            false => drop(cluster.stop(1)),
        }
        eventually(
            "the compiler is gone",
            async || match std::fs::read_to_string(format!("/proc/{compiler}/status")) {
                Ok(status) if !status.contains("State:\tZ") => Err(status),
                _ => Ok(()),
            },
        )
        .await;
        asked.await.expect("the client ends");
        cluster.restart(1).await;
    }
    cluster.assert_no_panic();
}
