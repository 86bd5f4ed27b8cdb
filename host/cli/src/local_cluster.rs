//! A cluster of real nodes on this machine: child processes of this binary, each with its own data directory. What
//! `skep dev` and `skep demo` stand on.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use skep::clock;
use skep_server::config::{
    ClusterNode, ClusterSection, Config, ListenSection, NodeSection, RaftSection,
    replace_after_seconds, replace_voter_seconds,
};

/// How long a node may take to be ready: it elects, and compiles what its groups run.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// How long a node may take to stop before it is killed.
const STOP_WITHIN: Duration = Duration::from_secs(10);
/// The configuration of a node, in its directory.
const CONFIG: &str = "skep.toml";
/// Lines of a node's log that are shown when it fails.
const LOG_TAIL: usize = 12;

/// The nodes of a cluster on this machine. Dropping it kills them all.
pub struct LocalCluster {
    nodes: Vec<LocalNode>,
}

/// One node, running or not.
pub struct LocalNode {
    /// Its id.
    pub id: u64,
    /// Its addresses.
    pub addresses: ClusterNode,
    /// Its configuration file.
    pub config: PathBuf,
    /// Where its log lines go.
    pub log: PathBuf,
    running: Option<Running>,
}

struct Running {
    child: Child,
    /// Kept open, so that the node can always write to it.
    stdout: Lines<BufReader<ChildStdout>>,
}

/// The ports of a cluster: node `i` of `n` listens on `peer + i`, `client + i`, `http + i`.
#[derive(Clone, Debug)]
pub struct Ports(Vec<[u16; 3]>);

impl Ports {
    /// `base + i` for peers, `base + 100 + i` for clients, `base + 200 + i` for HTTP; an error if one is taken.
    pub fn from_base(base: u16, nodes: usize) -> anyhow::Result<Self> {
        let mut ports = Vec::new();
        for at in 0..nodes as u16 {
            let of = |offset: u16| {
                base.checked_add(offset + at)
                    .with_context(|| format!("port {base} is too high"))
            };
            ports.push([of(0)?, of(100)?, of(200)?]);
        }
        for port in ports.iter().flatten() {
            TcpListener::bind(("127.0.0.1", *port)).with_context(|| {
                format!("port {port} is taken; stop what listens there or give --base-port")
            })?;
        }
        Ok(Self(ports))
    }

    /// Ports nobody listens on now.
    pub fn free(nodes: usize) -> anyhow::Result<Self> {
        // All are held at once, so that no port is handed out twice.
        let bind =
            |_| TcpListener::bind(("127.0.0.1", 0)).context("cannot find a free port on 127.0.0.1");
        let listeners = (0..nodes * 3)
            .map(bind)
            .collect::<anyhow::Result<Vec<_>>>()?;
        let ports = listeners
            .iter()
            .map(|listener| Ok(listener.local_addr()?.port()))
            .collect::<std::io::Result<Vec<_>>>()
            .context("cannot find a free port on 127.0.0.1")?;
        Ok(Self(
            ports
                .chunks_exact(3)
                .map(|ports| [ports[0], ports[1], ports[2]])
                .collect(),
        ))
    }
}

impl LocalCluster {
    /// Writes a configuration for each node under `dir`.
    pub fn prepare(
        dir: &Path,
        name: &str,
        ports: &Ports,
        raft: &RaftSection,
    ) -> anyhow::Result<Self> {
        let address = |port: u16| format!("127.0.0.1:{port}");
        let cluster: Vec<ClusterNode> = (1..)
            .zip(&ports.0)
            .map(|(id, [peer, client, http])| ClusterNode {
                id,
                peer: address(*peer),
                client: address(*client),
                http: address(*http),
            })
            .collect();
        let mut nodes = Vec::new();
        for addresses in &cluster {
            let id = addresses.id;
            let home = dir.join(format!("node-{id}"));
            std::fs::create_dir_all(&home)
                .with_context(|| format!("cannot create {}", home.display()))?;
            let config = Config {
                node: NodeSection {
                    id,
                    name: None,
                    data_dir: "data".into(),
                    peer: None,
                    client: None,
                    http: None,
                    labels: Default::default(),
                },
                cluster: ClusterSection {
                    id: name.to_owned(),
                    nodes: cluster.clone(),
                    join: Vec::new(),
                    join_token_file: None,
                    fixed_addresses: false,
                    replace_voter_seconds: replace_voter_seconds(),
                    replace_after_seconds: replace_after_seconds(),
                },
                listen: ListenSection::default(),
                raft: raft.clone(),
                limits: Default::default(),
                http: Default::default(),
                log: Default::default(),
            };
            let path = home.join(CONFIG);
            let text = toml::to_string(&config).context("cannot write a configuration")?;
            std::fs::write(&path, text)
                .with_context(|| format!("cannot write {}", path.display()))?;
            nodes.push(LocalNode::at(&home, addresses.clone()));
        }
        Ok(Self { nodes })
    }

    /// The cluster whose configurations an earlier [`prepare`](Self::prepare) wrote under `dir`, if there is one.
    pub fn existing(dir: &Path) -> anyhow::Result<Option<Self>> {
        let mut nodes = Vec::new();
        for id in 1.. {
            let home = dir.join(format!("node-{id}"));
            let path = home.join(CONFIG);
            if !path.exists() {
                break;
            }
            let config = Config::load(&path, [])?;
            nodes.push(LocalNode::at(&home, config.own().clone()));
        }
        Ok((!nodes.is_empty()).then_some(Self { nodes }))
    }

    /// Starts every node and waits until all are ready.
    pub async fn start_all(&mut self) -> anyhow::Result<()> {
        for node in &mut self.nodes {
            node.spawn()?;
        }
        for node in &mut self.nodes {
            node.ready().await?;
        }
        Ok(())
    }

    /// Starts one node and waits until it is ready.
    pub async fn start(&mut self, id: u64) -> anyhow::Result<()> {
        let node = self.node_mut(id)?;
        node.spawn()?;
        node.ready().await
    }

    /// `kill -9`; returns once the process is gone.
    pub async fn kill(&mut self, id: u64) -> anyhow::Result<()> {
        let node = self.node_mut(id)?;
        let Some(mut running) = node.running.take() else {
            bail!("node {id} does not run")
        };
        running
            .child
            .kill()
            .await
            .with_context(|| format!("cannot kill node {id}"))
    }

    /// `kill -9` for every node; returns once they are gone.
    pub async fn kill_all(&mut self) {
        for node in &mut self.nodes {
            if let Some(mut running) = node.running.take() {
                // The process is gone already if this fails, which is all that is wanted.
                let _ = running.child.kill().await;
            }
        }
    }

    /// Asks every node to stop, and kills those that do not.
    pub async fn stop(&mut self) {
        for node in &self.nodes {
            node.terminate();
        }
        for node in &mut self.nodes {
            let Some(mut running) = node.running.take() else {
                continue;
            };
            if clock::timeout(STOP_WITHIN, running.child.wait())
                .await
                .is_none()
            {
                // The process is gone already if this fails, which is all that is wanted.
                let _ = running.child.kill().await;
            }
        }
    }

    /// Waits until a node ends by itself, which none should; tells which and why.
    pub async fn any_ended(&mut self) -> anyhow::Error {
        let ends = self.nodes.iter_mut().filter_map(|node| {
            let running = node.running.as_mut()?;
            Some(Box::pin(async {
                let status = running.child.wait().await;
                (
                    node.id,
                    status.map_or_else(|error| error.to_string(), |status| status.to_string()),
                    node.log.clone(),
                )
            }))
        });
        let ends: Vec<_> = ends.collect();
        if ends.is_empty() {
            return std::future::pending().await;
        }
        let ((id, status, log), ..) = futures::future::select_all(ends).await;
        anyhow::anyhow!(
            "node {id} ended by itself ({status}); the end of {}:\n{}",
            log.display(),
            tail(&log)
        )
    }

    /// The node of an id.
    pub fn node(&self, id: u64) -> anyhow::Result<&LocalNode> {
        self.nodes
            .iter()
            .find(|node| node.id == id)
            .with_context(|| format!("there is no node {id}"))
    }

    /// Where clients reach the nodes.
    pub fn client_addresses(&self) -> Vec<String> {
        let addresses = self.nodes.iter().map(|node| &node.addresses.client);
        addresses.cloned().collect()
    }

    /// All nodes.
    pub fn nodes(&self) -> &[LocalNode] {
        &self.nodes
    }

    fn node_mut(&mut self, id: u64) -> anyhow::Result<&mut LocalNode> {
        self.nodes
            .iter_mut()
            .find(|node| node.id == id)
            .with_context(|| format!("there is no node {id}"))
    }
}

impl LocalNode {
    /// A node whose files are here; it does not run.
    fn at(home: &Path, addresses: ClusterNode) -> Self {
        Self {
            id: addresses.id,
            addresses,
            config: home.join(CONFIG),
            log: home.join("node.log"),
            running: None,
        }
    }

    fn spawn(&mut self) -> anyhow::Result<()> {
        let program = std::env::current_exe().context("cannot find this program's own file")?;
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log);
        let log = log.with_context(|| format!("cannot write {}", self.log.display()))?;
        let mut command = Command::new(program);
        command
            .arg("serve")
            .arg("--config")
            .arg(&self.config)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            // In a process group of its own: Ctrl-C is for the parent, which then stops its nodes in order.
            .process_group(0);
        die_with_parent(&mut command);
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot start node {}", self.id))?;
        let stdout = child.stdout.take().context("the node has no stdout")?;
        self.running = Some(Running {
            child,
            stdout: BufReader::new(stdout).lines(),
        });
        Ok(())
    }

    /// `skep serve` prints one line once it serves.
    async fn ready(&mut self) -> anyhow::Result<()> {
        let id = self.id;
        let Some(running) = &mut self.running else {
            bail!("node {id} does not run")
        };
        let line = clock::timeout(READY_WITHIN, running.stdout.next_line()).await;
        match line {
            Some(Ok(Some(_))) => Ok(()),
            Some(_) => {
                let status = running
                    .child
                    .wait()
                    .await
                    .map_or_else(|e| e.to_string(), |status| status.to_string());
                bail!(
                    "node {id} did not start ({status}); the end of {}:\n{}",
                    self.log.display(),
                    tail(&self.log)
                )
            }
            None => bail!(
                "node {id} was not ready within {} s; the end of {}:\n{}",
                READY_WITHIN.as_secs(),
                self.log.display(),
                tail(&self.log)
            ),
        }
    }

    fn terminate(&self) {
        if let Some(id) = self.running.as_ref().and_then(|running| running.child.id()) {
            terminate(id);
        }
    }
}

fn tail(log: &Path) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_TAIL)..]
        .iter()
        .map(|line| format!("    {line}\n"))
        .collect()
}

/// SIGTERM, which a node takes as the request to stop.
fn terminate(id: u32) {
    // SAFETY: `kill` takes two numbers and touches no memory of ours. The child was not waited for, so its id is its own.
    unsafe { libc::kill(id as libc::pid_t, libc::SIGTERM) };
}

/// A parent that is killed cannot kill its children, so the kernel is asked to. It does when the *thread* that started
/// them ends; nodes are therefore started on the main thread only.
#[cfg(target_os = "linux")]
fn die_with_parent(command: &mut Command) {
    let parent = std::process::id();
    let ask = move || {
        // SAFETY: both calls are async-signal-safe and take plain numbers.
        unsafe {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(std::io::Error::last_os_error());
            }
            // The parent may have died before the kernel was asked.
            if libc::getppid() as u32 != parent {
                return Err(std::io::Error::other("the parent has ended"));
            }
        }
        Ok(())
    };
    // SAFETY: `ask` runs between fork and exec and only makes the two system calls above; it allocates nothing unless
    // it fails.
    unsafe { command.pre_exec(ask) };
}

#[cfg(not(target_os = "linux"))]
fn die_with_parent(_: &mut Command) {}
