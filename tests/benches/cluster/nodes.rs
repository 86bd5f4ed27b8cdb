//! Three `MultiNode`s in this process, with disks and TCP of their own.

use std::sync::{Arc, Mutex};

use anyhow::{Context, anyhow, bail};
use bytes::Bytes;
use skep::transport::{TcpConfig, TcpTransport};
use skep::{
    ComponentId, Config, Consistency, EntryContext, GroupConfig, GroupId, MultiNode, NodeId,
    Outcome, Peer, StateMachine, Transport,
};
use skep_log::{DiskVfs, PeerPins, Store, Vfs};
use skep_machine::native::Native;
use skep_machine::wasm::{
    APPLY_THREAD_STACK_BYTES, Component, Engine, MachineLabel, Profile, WasmMachine,
};
use skep_tests::clock::eventually;
use tempfile::TempDir;
use tokio::net::TcpListener;

use crate::native_kv::NativeKv;
use crate::subject::{self, Subject, caught_up};

const CLUSTER: &str = "bench";
const GROUP: GroupId = GroupId(1);
const NODES: [NodeId; 3] = [NodeId(1), NodeId(2), NodeId(3)];

/// A cluster of the library.
pub struct Nodes {
    nodes: Vec<Node>,
}

struct Node {
    node: MultiNode,
    transport: Arc<TcpTransport>,
    _dir: TempDir,
}

impl Nodes {
    /// With the key-value machine as Rust.
    pub async fn native() -> anyhow::Result<Self> {
        let machine = || Ok(Box::new(Native::new(NativeKv::default())) as Box<dyn StateMachine>);
        Self::start(ComponentId::default(), machine).await
    }

    /// With the key-value machine as a component.
    pub async fn wasm() -> anyhow::Result<Self> {
        let compile = || Component::compile(&Engine::new()?, skep_examples::KV);
        let component = Arc::new(on_guest_stack(compile)??);
        let machine = || {
            let component = Arc::clone(&component);
            let label = MachineLabel {
                group: GROUP,
                name: "wasm".to_owned(),
            };
            let start = || {
                WasmMachine::new(
                    component,
                    Profile::default(),
                    EntryContext::default(),
                    label,
                )
            };
            Ok(Box::new(on_guest_stack(start)??) as Box<dyn StateMachine>)
        };
        Self::start(component.id(), machine).await
    }

    async fn start(
        component: ComponentId,
        machine: impl Fn() -> anyhow::Result<Box<dyn StateMachine>>,
    ) -> anyhow::Result<Self> {
        let mut listeners = Vec::new();
        let mut addresses = Vec::new();
        for node in NODES {
            let listener = TcpTransport::bind("127.0.0.1:0", false).await?;
            addresses.push((node, listener.local_addr()?.to_string()));
            listeners.push(listener);
        }
        let mut nodes = Vec::new();
        for (id, listener) in NODES.into_iter().zip(listeners) {
            let node = Node::start(id, listener, addresses.clone()).await?;
            let mut group =
                GroupConfig::new(GROUP, "bench", machine()?, NODES.map(Peer::new).to_vec());
            group.component = component;
            node.node.create_group(group).await?;
            nodes.push(node);
        }
        Ok(Self { nodes })
    }

    fn node(&self, id: u64) -> anyhow::Result<&MultiNode> {
        let node = self.nodes.iter().find(|node| node.node.id().0 == id);
        Ok(&node.with_context(|| format!("there is no node {id}"))?.node)
    }
}

impl Node {
    /// As `skep serve` puts a node together, with the same defaults.
    async fn start(
        id: NodeId,
        listener: TcpListener,
        peers: Vec<(NodeId, String)>,
    ) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("skep-bench-").tempdir()?;
        let vfs: Arc<dyn Vfs> = Arc::new(DiskVfs);
        let store = Store::open(&vfs, dir.path(), CLUSTER, id.0)?;
        let pins = PeerPins::open(vfs, dir.path())?;
        let tcp = TcpConfig::new(&store, peers, Arc::new(Mutex::new(pins)));
        let mut config = Config::new(id, format!("bench-{id}"), CLUSTER, dir.path());
        config.store = Some(store);
        let mut transport = None;
        let node = MultiNode::start(config, |inbound| {
            let started = TcpTransport::start(tcp, listener, inbound)?;
            transport = Some(Arc::clone(&started));
            Ok(started as Arc<dyn Transport>)
        })
        .await?;
        Ok(Self {
            node,
            transport: transport.context("the node started without a transport")?,
            _dir: dir,
        })
    }
}

impl Subject for Nodes {
    type Client = MultiNode;

    async fn leader(&self) -> anyhow::Result<u64> {
        Ok(eventually("the nodes agree on a leader", async || {
            let mut seen = Vec::new();
            for Node { node, .. } in &self.nodes {
                seen.push(node.leader(GROUP).map_err(|error| error.to_string())?);
            }
            match seen[..] {
                [Some(leader), ..] if seen.iter().all(|other| *other == Some(leader)) => {
                    Ok(leader.0)
                }
                _ => Err(format!("{seen:?}")),
            }
        })
        .await)
    }

    async fn clients(&self, count: usize) -> anyhow::Result<Vec<MultiNode>> {
        let leader = self.node(self.leader().await?)?;
        Ok(vec![leader.clone(); count])
    }

    async fn syncs(&self, node: u64) -> anyhow::Result<u64> {
        Ok(self.node(node)?.log_stats().syncs)
    }

    async fn replicas(&self) -> anyhow::Result<Vec<String>> {
        eventually("the replicas have applied everything", async || {
            let mut statuses = Vec::new();
            for Node { node, .. } in &self.nodes {
                let status = node.status(GROUP).await;
                statuses.push(status.map_err(|error| error.to_string())?);
            }
            caught_up(&statuses)
        })
        .await;
        let mut replicas = Vec::new();
        for Node { node, .. } in &self.nodes {
            let stats = node
                .query(GROUP, "stats".into(), Consistency::Stale)
                .await?;
            match stats.outcome {
                Outcome::Reply(text) => replicas.push(String::from_utf8(text.into())?),
                other => bail!("node {} does not answer: {other:?}", node.id()),
            }
        }
        Ok(replicas)
    }

    async fn stop(self) -> anyhow::Result<()> {
        for node in &self.nodes {
            node.node.stop().await;
        }
        for node in &self.nodes {
            node.transport.stop().await;
        }
        Ok(())
    }
}

impl subject::Client for MultiNode {
    async fn propose(&self, command: Bytes) -> anyhow::Result<Outcome> {
        Ok(MultiNode::propose(self, GROUP, command).await?.outcome)
    }
}

/// Runs what may enter a guest on a thread whose stack is as large as a guest's may grow.
fn on_guest_stack<T: Send>(run: impl FnOnce() -> T + Send) -> anyhow::Result<T> {
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .stack_size(APPLY_THREAD_STACK_BYTES)
            .spawn_scoped(scope, run)
            .context("cannot start a thread for a machine")?
            .join()
            .map_err(|_| anyhow!("the thread of a machine panicked"))
    })
}
