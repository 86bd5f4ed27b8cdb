//! Clusters of real `skep serve` processes on loopback, each with a data directory of its own.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use skep::GroupStatus;
use skep_client::{Client, ClientConfig, ComponentId, Consistency, GroupId, LogIndex, Outcome};
use skep_types::admin::GroupInfo;
use tempfile::TempDir;

use crate::clock::{PATIENCE, Stopwatch, eventually};
use crate::http::{self, Answer};
use crate::process::{self, Process};
use crate::proxy::Proxy;

/// How long a node that was told to stop may take.
pub const STOP_WITHIN: Duration = Duration::from_secs(15);

/// Lines of a node's log that a failing test shows.
const LOG_TAIL: usize = 40;

/// How a cluster is set up. The defaults are fast: elections take a third of a second.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Nodes, with the ids 1, 2, ….
    pub nodes: u64,
    /// The cluster's id.
    pub cluster: String,
    /// `raft.tick_ms`.
    pub tick_ms: u64,
    /// `raft.election_ticks`.
    pub election_ticks: u32,
    /// `raft.heartbeat_ticks`.
    pub heartbeat_ticks: u32,
    /// `raft.snapshot_entries`.
    pub snapshot_entries: u64,
    /// More of the configuration: sections that are not written here.
    pub more: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            nodes: 3,
            cluster: "test".to_owned(),
            tick_ms: 20,
            election_ticks: 15,
            heartbeat_ticks: 3,
            snapshot_entries: 8192,
            more: String::new(),
        }
    }
}

impl Settings {
    /// One node, with more of the configuration.
    pub fn one_node(more: &str) -> Self {
        Self {
            nodes: 1,
            more: more.to_owned(),
            ..Self::default()
        }
    }
}

/// Something to be dropped with a cluster.
pub trait Guard: std::fmt::Debug + Send {}

impl<T: std::fmt::Debug + Send> Guard for T {}

/// One node, running or not.
#[derive(Debug)]
pub struct Node {
    /// Its id.
    pub id: u64,
    /// `host:port` for other nodes.
    pub peer: String,
    /// `host:port` of the client protocol.
    pub client: String,
    /// `host:port` of HTTP.
    pub http: String,
    /// Its directory: `skep.toml`, `node.log`, `data`.
    pub home: PathBuf,
    /// What it finds in its environment when it is started next, beside the test's own.
    pub environment: Vec<(&'static str, PathBuf)>,
    /// How many descriptors it may have when it is started next, if not as many as the test.
    pub descriptors: Option<u64>,
    /// Where its log goes when it is started next, if not to `node.log`.
    pub stderr: Option<PathBuf>,
    process: Option<Process>,
}

impl Node {
    /// Its configuration file.
    pub fn config(&self) -> PathBuf {
        self.home.join("skep.toml")
    }

    /// Its data directory.
    pub fn data(&self) -> PathBuf {
        self.home.join("data")
    }

    /// The snapshot files of a group, by the index they are at. Each may be deleted at any moment.
    pub fn snapshots(&self, group: GroupId) -> BTreeMap<u64, PathBuf> {
        let prefix = format!("{group}-");
        let of_the_group = |path: PathBuf| {
            let name = path.file_name()?.to_str()?;
            // Behind the group: its life, the index and the term.
            let place = name.strip_prefix(&prefix)?.strip_suffix(".snap")?;
            let index = place.split('-').nth(1)?.parse().ok()?;
            Some((index, path))
        };
        std::fs::read_dir(self.data().join("snap"))
            .expect("a directory")
            .filter_map(|entry| of_the_group(entry.ok()?.path()))
            .collect()
    }

    /// Everything it has logged so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.log_path()).unwrap_or_default()).into_owned()
    }

    /// Whether it was started and has not ended.
    pub fn is_running(&mut self) -> bool {
        self.process
            .as_mut()
            .is_some_and(|process| process.ended().is_none())
    }

    fn log_path(&self) -> PathBuf {
        self.home.join("node.log")
    }

    fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_TAIL)..].join("\n")
    }

    fn process(&self) -> &Process {
        self.process
            .as_ref()
            .unwrap_or_else(|| panic!("node {} does not run", self.id))
    }
}

/// The nodes of a cluster. Dropping it kills them; if the test fails, it shows the end of their logs first.
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<Node>,
    kept: Vec<Box<dyn Guard>>,
    _dir: TempDir,
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
        let cluster = Self::lay_out(settings);
        let addresses = cluster
            .nodes
            .iter()
            .map(|node| (node.id, node.peer.clone()))
            .collect();
        let proxy = Proxy::start(&addresses).await;
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
        let dir = tempfile::Builder::new()
            .prefix("skep-test-")
            .tempdir()
            .expect("a temporary directory");
        let address = || format!("127.0.0.1:{}", free_port());
        let nodes: Vec<Node> = (1..=settings.nodes)
            .map(|id| {
                let home = dir.path().join(format!("node-{id}"));
                std::fs::create_dir(&home).expect("a directory for the node");
                Node {
                    id,
                    peer: address(),
                    client: address(),
                    http: address(),
                    home,
                    environment: Vec::new(),
                    descriptors: None,
                    stderr: None,
                    process: None,
                }
            })
            .collect();
        Self {
            nodes,
            kept: Vec::new(),
            _dir: dir,
        }
    }

    /// Writes the configurations; `peer` says where one node finds another.
    fn configure(&self, settings: &Settings, peer: impl Fn(u64, &Node) -> String) {
        for node in &self.nodes {
            let text = toml(settings, &self.nodes, node.id, |other| peer(node.id, other));
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

    /// A client that knows every node.
    pub async fn client(&self) -> Client {
        self.client_at(&self.ids()).await
    }

    /// A client that knows only some nodes, and asks them in this order.
    pub async fn client_at(&self, ids: &[u64]) -> Client {
        let mut config = ClientConfig::new(ids.iter().map(|id| self.node(*id).client.clone()));
        config.request_timeout = PATIENCE;
        Client::connect(config)
            .await
            .unwrap_or_else(|error| panic!("a client of nodes {ids:?}: {error}"))
    }

    /// One HTTP request at a node.
    pub async fn http(&self, id: u64, method: &str, path: &str, body: impl AsRef<[u8]>) -> Answer {
        self.http_with(id, method, path, &[], body).await
    }

    /// One HTTP request with headers at a node.
    pub async fn http_with(
        &self,
        id: u64,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl AsRef<[u8]>,
    ) -> Answer {
        let answer = http::request(&self.node(id).http, method, path, headers, body.as_ref()).await;
        answer.unwrap_or_else(|error| panic!("{method} {path} at node {id}: {error}"))
    }

    /// Offers a component to a node, which may refuse it.
    pub async fn put_component(&self, id: u64, component: &[u8]) -> Answer {
        let path = format!("/v1/components/{}", ComponentId::of(component));
        self.http(id, "PUT", &path, component).await
    }

    /// Uploads a component at a node.
    pub async fn upload(&self, id: u64, component: &[u8]) -> ComponentId {
        let answer = self.put_component(id, component).await;
        assert_eq!(answer.status, 201, "{}", answer.text());
        ComponentId::of(component)
    }

    /// Creates a group of the built-in machine on these nodes; its id.
    pub async fn create_kv(&self, at: u64, name: &str, members: &[u64]) -> GroupId {
        self.create(at, json!({"name": name, "members": members}))
            .await
    }

    /// Creates a group of a component on these nodes; its id.
    pub async fn create_from(
        &self,
        at: u64,
        name: &str,
        component: &[u8],
        members: &[u64],
    ) -> GroupId {
        let component = self.upload(at, component).await.to_string();
        self.create(
            at,
            json!({"name": name, "component": component, "members": members}),
        )
        .await
    }

    async fn create(&self, at: u64, request: Value) -> GroupId {
        let answer = self
            .http(at, "POST", "/v1/groups", request.to_string())
            .await;
        assert_eq!(answer.status, 201, "{request}: {}", answer.text());
        let info: GroupInfo = serde_json::from_value(answer.json()).expect("a group");
        assert_eq!(info.problem, None, "{request}");
        info.id
    }

    /// What a node says of its replica of a group, or why it says nothing.
    ///
    /// # Errors
    /// The problem, in words.
    pub async fn try_status(&self, id: u64, group: GroupId) -> Result<GroupStatus, String> {
        let path = format!("/v1/groups/{group}/status");
        let answer = http::request(&self.node(id).http, "GET", &path, &[], b"").await;
        let answer = answer.map_err(|error| format!("node {id}: {error}"))?;
        if answer.status != 200 {
            return Err(format!("node {id}: {}", answer.text()));
        }
        let status: GroupStatus =
            serde_json::from_value(answer.json()).map_err(|error| error.to_string())?;
        match status.replica.node.0 {
            node if node == id => Ok(status),
            node => Err(format!(
                "node {id} has no replica of group {group}; node {node} answered"
            )),
        }
    }

    /// The leader of a group, as those of the given nodes agree who host it.
    pub async fn leader_among(&self, group: GroupId, nodes: &[u64]) -> u64 {
        eventually(
            &format!("nodes {nodes:?} agree on a leader of group {group} among them"),
            async || {
                let mut seen = Vec::new();
                for id in nodes {
                    let status = self.try_status(*id, group).await?;
                    seen.push((status.replica.term, status.replica.leader));
                }
                match seen.as_slice() {
                    [(_, Some(leader)), rest @ ..]
                        if nodes.contains(&leader.0)
                            && rest.iter().all(|other| other == &seen[0]) =>
                    {
                        Ok(leader.0)
                    }
                    _ => Err(format!("{seen:?}")),
                }
            },
        )
        .await
    }

    /// The leader of a group that all nodes host.
    pub async fn leader(&self, group: GroupId) -> u64 {
        self.leader_among(group, &self.ids()).await
    }

    /// Waits until the replicas on these nodes have applied everything that any of them has committed. Only for a group that
    /// nobody writes to: of one under load no two answers agree.
    pub async fn caught_up(&self, group: GroupId, nodes: &[u64]) {
        eventually(
            &format!("group {group} is the same on nodes {nodes:?}"),
            async || {
                let seen = self.progress(group, nodes).await?;
                let most = seen.iter().map(|(commit, _)| *commit).max();
                match seen.iter().all(|(_, applied)| Some(*applied) == most) {
                    true => Ok(()),
                    false => Err(format!("(commit, applied): {seen:?}")),
                }
            },
        )
        .await;
    }

    /// Waits until the replicas on these nodes have applied what was committed when this was asked, under load too.
    pub async fn keeps_up(&self, group: GroupId, nodes: &[u64]) {
        let what = format!("group {group} goes on on nodes {nodes:?}");
        let start = eventually(&what, async || {
            let seen = self.progress(group, nodes).await?;
            let most = seen.iter().map(|(commit, _)| *commit).max();
            most.ok_or_else(|| "no nodes".to_owned())
        })
        .await;
        eventually(&what, async || {
            let seen = self.progress(group, nodes).await?;
            match seen.iter().all(|(_, applied)| *applied >= start) {
                true => Ok(()),
                false => Err(format!("from {start:?} on, (commit, applied): {seen:?}")),
            }
        })
        .await;
    }

    /// The commit and applied index of the replicas on these nodes.
    async fn progress(
        &self,
        group: GroupId,
        nodes: &[u64],
    ) -> Result<Vec<(LogIndex, LogIndex)>, String> {
        let mut seen = Vec::new();
        for id in nodes {
            let replica = self.try_status(*id, group).await?.replica;
            seen.push((replica.commit, replica.applied));
        }
        Ok(seen)
    }

    /// What the machine of one node's own replica answers.
    pub async fn replica_answer(&self, id: u64, group: GroupId, query: &str) -> Outcome {
        let path = format!("/v1/groups/{group}/query?consistency=stale");
        // Only a node that hosts the group may answer here.
        let status = self.try_status(id, group).await;
        assert!(status.is_ok(), "{status:?}");
        let client = self.client_at(&[id]).await;
        let answer = client
            .query(group, query.to_owned().into(), Consistency::Stale)
            .await;
        answer
            .unwrap_or_else(|error| panic!("{path} at node {id}: {error}"))
            .outcome
    }

    /// A counter of a node's `/metrics`.
    pub async fn metric(&self, id: u64, name: &str) -> u64 {
        let text = self.http(id, "GET", "/metrics", "").await.text();
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        let value = line.and_then(|value| value.trim().parse::<f64>().ok());
        value.unwrap_or_else(|| panic!("no metric {name} in:\n{text}")) as u64
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
        } else {
            self.assert_no_panic();
        }
    }
}

fn toml(settings: &Settings, nodes: &[Node], id: u64, peer_of: impl Fn(&Node) -> String) -> String {
    let Settings {
        cluster,
        tick_ms,
        election_ticks,
        heartbeat_ticks,
        snapshot_entries,
        more,
        ..
    } = settings;
    let mut text = format!(
        "[node]\nid = {id}\ndata_dir = \"data\"\n\n[raft]\ntick_ms = {tick_ms}\nelection_ticks = {election_ticks}\n\
         heartbeat_ticks = {heartbeat_ticks}\nsnapshot_entries = {snapshot_entries}\n\n[cluster]\nid = \"{cluster}\"\n"
    );
    for node in nodes {
        let peer = peer_of(node);
        let Node {
            id, client, http, ..
        } = node;
        text.push_str(&format!(
            "\n[[cluster.nodes]]\nid = {id}\npeer = \"{peer}\"\nclient = \"{client}\"\nhttp = \"{http}\"\n"
        ));
    }
    text.push('\n');
    text.push_str(more);
    text
}

/// A port nobody listens on, never handed out twice by this process. It lies below the range that the kernel takes
/// outgoing connections' ports from: those would otherwise take the port of a node that is down, or connect to
/// themselves on it.
pub fn free_port() -> u16 {
    const FIRST: u16 = 10_000;
    const COUNT: u16 = 20_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Two test processes begin in different places.
    let start = (std::process::id() % 400) as u16 * 50;
    for _ in 0..COUNT {
        let port = FIRST + (start + NEXT.fetch_add(1, Ordering::Relaxed)) % COUNT;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no port from {FIRST} on is free");
}

/// The files under a directory, with their sizes, largest first. What a running node removes meanwhile is not among them.
pub fn files(dir: &Path) -> Vec<(PathBuf, u64)> {
    assert!(dir.is_dir(), "{} is no directory", dir.display());
    let mut found = Vec::new();
    let mut pending = vec![dir.to_owned()];
    while let Some(dir) = pending.pop() {
        for entry in there_still(std::fs::read_dir(&dir)).into_iter().flatten() {
            let Some(entry) = there_still(entry) else {
                continue;
            };
            let Some(metadata) = there_still(entry.metadata()) else {
                continue;
            };
            if metadata.is_dir() {
                pending.push(entry.path());
            } else {
                found.push((entry.path(), metadata.len()));
            }
        }
    }
    found.sort_by_key(|(_, size)| std::cmp::Reverse(*size));
    found
}

fn there_still<T>(found: std::io::Result<T>) -> Option<T> {
    match found {
        Ok(found) => Some(found),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => panic!("the files of a node: {error}"),
    }
}
