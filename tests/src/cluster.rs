//! Clusters of real `skep serve` processes on loopback, each with a data directory of its own.

mod asked;
mod files;
mod node;
mod port;
mod settings;

use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use tempfile::TempDir;

use crate::clock::{Stopwatch, eventually};
use crate::http;
use crate::process::{self, Process};
use crate::proxy::Proxy;
use crate::reason;
use settings::{joining, toml};

pub use files::files;
pub use node::Node;
pub use port::free_port;
pub use settings::Settings;

/// How long a node that was told to stop may take.
pub const STOP_WITHIN: Duration = Duration::from_secs(15);

/// Something to be dropped with a cluster.
pub trait Guard: std::fmt::Debug + Send {}

impl<T: std::fmt::Debug + Send> Guard for T {}

/// The nodes of a cluster. Dropping it kills them; if the test fails, it shows the end of their logs first.
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<Node>,
    /// Nodes that will come: they have addresses, and nothing else.
    expected: Vec<Node>,
    fixed_addresses: bool,
    kept: Vec<Box<dyn Guard>>,
    dir: TempDir,
}

impl Cluster {
    /// Writes the configurations; starts nothing.
    pub fn prepare(settings: &Settings) -> Self {
        let cluster = Self::lay_out(settings);
        cluster.configure(settings, |_, to| to.peer.clone());
        cluster
    }

    /// As [`prepare`](Self::prepare), and what nodes say to each other goes through a proxy: each is told that the
    /// others are where the proxy listens for it.
    pub async fn prepare_behind_proxy(settings: &Settings) -> (Self, Proxy) {
        let mut cluster = Self::lay_out(settings);
        let addresses = cluster
            .nodes
            .iter()
            .map(|node| (node.id, node.peer.clone()))
            .collect();
        let proxy = Proxy::start(&addresses).await;
        // What nodes say of their own addresses would lead around the proxy.
        cluster.fixed_addresses = true;
        cluster.configure(settings, |from, to| {
            if from == to.id {
                to.peer.clone()
            } else {
                proxy.address(from, to.id).to_owned()
            }
        });
        (cluster, proxy)
    }

    /// Directories and addresses for the nodes.
    fn lay_out(settings: &Settings) -> Self {
        reason::remember();
        let dir = tempfile::Builder::new()
            .prefix("skep-test-")
            .tempdir()
            .expect("a temporary directory");
        let nodes = (1..=settings.nodes).map(|id| Node::lay_out(dir.path(), id));
        Self {
            nodes: nodes.collect(),
            expected: Vec::new(),
            fixed_addresses: false,
            kept: Vec::new(),
            dir,
        }
    }

    /// Where the clients' port of a node will be that is yet to come as a [`newcomer`](Self::newcomer).
    pub fn expect(&mut self, id: u64) -> String {
        let node = Node::lay_out(self.dir.path(), id);
        let address = node.client.clone();
        self.expected.push(node);
        address
    }

    /// Adds a node that is none of those the cluster starts with, and joins it by these, with a token that it finds in its
    /// environment. The cluster will give it this id.
    pub fn newcomer(&mut self, settings: &Settings, id: u64, by: &[u64], token: &str) {
        let expected = self.expected.iter().position(|node| node.id == id);
        let mut node = match expected {
            Some(at) => self.expected.swap_remove(at),
            None => Node::lay_out(self.dir.path(), id),
        };
        let by = by.iter().map(|id| self.node(*id).client.as_str());
        let text = joining(settings, &node, &by.collect::<Vec<_>>());
        std::fs::write(node.config(), text).expect("a configuration");
        node.environment.push(("SKEP_JOIN_TOKEN", token.into()));
        self.nodes.push(node);
    }

    /// A node of this id joins by these, and is ready.
    pub async fn join(&mut self, settings: &Settings, id: u64, by: &[u64]) {
        let token = self.invited(by[0]).await;
        self.newcomer(settings, id, by, &token);
        self.restart(id).await;
    }

    /// A node is gone for ever, and its directory with it.
    pub fn discard(&mut self, id: u64) {
        if self.node(id).process.is_some() {
            self.kill(id);
        }
        self.assert_no_panic();
        std::fs::remove_dir_all(&self.node(id).home).expect("its directory goes");
        self.nodes.retain(|node| node.id != id);
    }

    /// Gives a node that does not run other addresses, of which only its own configuration says anything.
    pub fn moves(&mut self, id: u64) {
        let node = self.node_mut(id);
        assert!(node.process.is_none(), "node {id} runs");
        let mut text = std::fs::read_to_string(node.config()).expect("a configuration");
        for address in [&mut node.peer, &mut node.client, &mut node.http] {
            let another = port::free_address();
            text = text.replace(address.as_str(), &another);
            *address = another;
        }
        std::fs::write(node.config(), text).expect("a configuration");
    }

    /// Writes the configurations; `peer` says where one node finds another.
    fn configure(&self, settings: &Settings, peer: impl Fn(u64, &Node) -> String) {
        for node in &self.nodes {
            let text = toml(
                settings,
                self.fixed_addresses,
                &self.nodes,
                node.id,
                |other| peer(node.id, other),
            );
            std::fs::write(node.config(), text).expect("a configuration");
        }
    }

    /// A running cluster whose nodes are all ready.
    pub async fn start(settings: &Settings) -> Self {
        let mut cluster = Self::prepare(settings);
        cluster.start_all().await;
        cluster
    }

    /// Starts every node that does not run and waits until all are ready.
    pub async fn start_all(&mut self) {
        let ids = self.ids();
        for id in &ids {
            if self.node(*id).process.is_none() {
                self.spawn(*id);
            }
        }
        for id in ids {
            self.ready(id).await;
        }
    }

    /// What every node finds in its environment from its next start on, over its configuration: `SKEP_SECTION__KEY`.
    pub fn set(&mut self, key: &'static str, value: u64) {
        for node in &mut self.nodes {
            let value = PathBuf::from(value.to_string());
            node.environment.push((key, value));
        }
    }

    /// Starts a node without waiting for anything.
    pub fn spawn(&mut self, id: u64) {
        let node = self.node_mut(id);
        assert!(node.process.is_none(), "node {id} runs already");
        let config = node.config();
        let config = config
            .to_str()
            .expect("temporary directories have plain names");
        let environment: Vec<_> = node
            .environment
            .iter()
            .map(|(name, value)| (*name, value.as_path()))
            .collect();
        let process = Process::start_with(
            &["serve", "--config", config],
            &environment,
            node.descriptors,
            &node.home.join("stdout"),
            node.stderr.as_deref().unwrap_or(&node.log_path()),
        );
        node.process = Some(process);
    }

    /// Waits until the node says that it is ready.
    pub async fn ready(&mut self, id: u64) {
        let node = self.node_mut(id);
        eventually(&format!("node {id} is ready"), async || {
            if let Some(status) = node.process.as_mut().and_then(Process::ended) {
                panic!(
                    "node {id} ended ({status}) instead of getting ready:\n{}",
                    node.log_tail()
                );
            }
            match http::request(&node.http, "GET", "/readyz", &[], b"").await {
                Ok(answer) if answer.status == 200 => Ok(()),
                Ok(answer) => Err(answer.text()),
                Err(error) => Err(error.to_string()),
            }
        })
        .await;
    }

    /// Starts a node that does not run, and waits until it is ready.
    pub async fn restart(&mut self, id: u64) {
        self.spawn(id);
        self.ready(id).await;
    }

    /// `kill -9`; returns once the process is gone.
    pub fn kill(&mut self, id: u64) {
        self.take(id).kill();
    }

    /// SIGKILL, while somebody else uses the cluster; [`kill`](Self::kill) waits for the end of it.
    pub fn strike(&self, id: u64) {
        self.node(id).process().signal(libc::SIGKILL);
    }

    /// `kill -9` for several nodes in this order, all before the first is waited for.
    pub fn kill_at_once(&mut self, ids: &[u64]) {
        for id in ids {
            self.node(*id).process().signal(libc::SIGKILL);
        }
        for id in ids {
            self.kill(*id);
        }
    }

    /// SIGTERM; how the process ended, and after how long.
    ///
    /// # Panics
    /// If it does not end within [`STOP_WITHIN`].
    pub fn stop(&mut self, id: u64) -> (ExitStatus, Duration) {
        let watch = Stopwatch::start();
        let mut process = self.take(id);
        process.signal(libc::SIGTERM);
        match process.wait(STOP_WITHIN) {
            Some(status) => (status, watch.elapsed()),
            None => panic!(
                "node {id} did not stop within {STOP_WITHIN:?}:\n{}",
                self.node(id).log_tail()
            ),
        }
    }

    /// Waits until a running node has ended by itself; its exit code, and its log.
    pub async fn ends(&mut self, id: u64) -> (Option<i32>, String) {
        let status = eventually(&format!("node {id} ends by itself"), async || {
            let process = self.node_mut(id).process.as_mut().expect("it was spawned");
            process.ended().ok_or_else(|| "it still runs".to_owned())
        })
        .await;
        self.node_mut(id).process = None;
        (status.code(), self.node(id).log())
    }

    /// Drops this when all nodes have ended, before their directories go.
    pub fn keep(&mut self, guard: impl Guard + 'static) {
        self.kept.push(Box::new(guard));
    }

    /// From now on no file of the node may grow beyond this size; `None` takes the limit away.
    pub fn limit_files(&self, id: u64, bytes: Option<u64>) {
        self.node(id).process().limit_files(bytes);
    }

    /// Leaves a running node not one file descriptor more than it has; `false` gives it back what it had.
    #[cfg(target_os = "linux")]
    pub fn starve_of_descriptors(&self, id: u64, starve: bool) {
        let process = self.node(id).process();
        let free = starve.then(|| {
            let open = std::fs::read_dir(format!("/proc/{}/fd", process.id()));
            let open: std::collections::BTreeSet<u64> = open
                .expect("a running process has descriptors")
                .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
                .collect();
            (0..).find(|number| !open.contains(number)).unwrap_or(0)
        });
        process.limit(libc::RLIMIT_NOFILE, free);
    }

    /// Leaves a running node so many bytes of addresses beyond what it has; `None` gives it all back.
    #[cfg(target_os = "linux")]
    pub fn limit_addresses(&self, id: u64, more: Option<u64>) {
        let process = self.node(id).process();
        let limit = more.map(|more| {
            let path = format!("/proc/{}/statm", process.id());
            let statm = std::fs::read_to_string(&path).expect("a running process has one");
            let pages: u64 = statm
                .split(' ')
                .next()
                .and_then(|pages| pages.parse().ok())
                .expect("pages");
            pages * 4096 + more
        });
        process.limit(libc::RLIMIT_AS, limit);
    }

    /// The process of a running node.
    pub fn process_id(&self, id: u64) -> u32 {
        self.node(id).process().id()
    }

    /// Bytes of memory that a running node holds now.
    #[cfg(target_os = "linux")]
    pub fn resident_bytes(&self, id: u64) -> u64 {
        process::resident_bytes(self.process_id(id)).expect("a running process has memory")
    }

    /// Sends a signal to a running node.
    pub fn signal(&self, id: u64, signal: libc::c_int) {
        self.node(id).process().signal(signal);
    }

    /// SIGSTOP: the node lives, and does nothing.
    pub fn pause(&self, id: u64) {
        self.node(id).process().signal(libc::SIGSTOP);
    }

    /// SIGCONT.
    pub fn resume(&self, id: u64) {
        self.node(id).process().signal(libc::SIGCONT);
    }

    /// Waits until a node that should not start has ended by itself; its exit code, and what it logged since it was
    /// spawned.
    pub async fn refuses_to_start(&mut self, id: u64) -> (Option<i32>, String) {
        let before = self.node(id).log().len();
        self.spawn(id);
        let status = eventually(&format!("node {id} refuses to start"), async || {
            let process = self.node_mut(id).process.as_mut().expect("it was spawned");
            process.ended().ok_or_else(|| "it still runs".to_owned())
        })
        .await;
        self.node_mut(id).process = None;
        let log = self.node(id).log();
        (status.code(), log.get(before..).unwrap_or(&log).to_owned())
    }

    /// The node of an id.
    pub fn node(&self, id: u64) -> &Node {
        self.nodes
            .iter()
            .find(|node| node.id == id)
            .unwrap_or_else(|| panic!("there is no node {id}"))
    }

    /// The node of an id.
    pub fn node_mut(&mut self, id: u64) -> &mut Node {
        self.nodes
            .iter_mut()
            .find(|node| node.id == id)
            .unwrap_or_else(|| panic!("there is no node {id}"))
    }

    /// All ids.
    pub fn ids(&self) -> Vec<u64> {
        self.nodes.iter().map(|node| node.id).collect()
    }

    /// The ids without some.
    pub fn others(&self, but: &[u64]) -> Vec<u64> {
        self.ids()
            .into_iter()
            .filter(|id| !but.contains(id))
            .collect()
    }

    /// No node has panicked, whatever was done to it.
    ///
    /// # Panics
    /// With the lines, if one has.
    pub fn assert_no_panic(&self) {
        for node in &self.nodes {
            let log = node.log();
            // After time and level; a guest's own panic has another target. Before the log begins it is as Rust says it.
            let host = |line: &&str| {
                line.split_whitespace().nth(2) == Some("skep::panic:")
                    || line.starts_with("thread '") && line.contains("panicked at")
            };
            if let Some(line) = log.lines().find(host) {
                panic!("node {} panicked: {line}\n{}", node.id, node.log_tail());
            }
        }
    }

    fn take(&mut self, id: u64) -> Process {
        self.node_mut(id)
            .process
            .take()
            .unwrap_or_else(|| panic!("node {id} does not run"))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            node.process = None;
        }
        if std::thread::panicking() {
            for node in &self.nodes {
                eprintln!(
                    "--- the end of the log of node {}\n{}",
                    node.id,
                    node.log_tail()
                );
            }
            if let Some(reason) = reason::last() {
                eprintln!("--- {reason}");
            }
        } else {
            self.assert_no_panic();
        }
    }
}
