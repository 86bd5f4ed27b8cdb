//! A cluster in one process, over the real transport, whose messages can be lost, and a machine whose inside can be watched.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::future::Future;
use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use skep::transport::{
    Inbound, PeerCheck, PeerRefused, Reporter, SnapshotRefusal, SnapshotStatus, TcpConfig,
    TcpLimits, TcpTransport, Transport,
};
use skep::{
    Batch, ConfChange, Config, Consistency, EntryContext, Error, GroupConfig, GroupId,
    LeaderChanged, MachineError, MultiNode, NodeId, Outcome, Peer, Running, StateMachine, Ticker,
};
use skep_core::founders::Founding;
use skep_core::message::{PeerMessage, SnapshotName};
use skep_core::past::Past;
use skep_log::{SnapshotFile, SnapshotReceiver};
use skep_machine::state_machine::{Applied, Descriptor, LocalCode};
use tempfile::TempDir;

/// Nothing in these tests takes this long unless it hangs.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub const GROUP: GroupId = GroupId(7);

/// Fails the test if the future hangs.
pub async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(output) => output,
        Err(_) => panic!("{what}: hangs"),
    }
}

/// Asks again until it is so.
pub async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut ask: impl FnMut() -> F) -> T {
    soon(what, async {
        loop {
            if let Some(found) = ask().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
}

/// What a machine did, seen from outside, and the ways to make it misbehave.
#[derive(Default)]
pub struct Probe {
    pub conf_changes: Mutex<Vec<ConfChange>>,
    pub leaders: Mutex<Vec<LeaderChanged>>,
    pub restores: AtomicU64,
    pub entered: AtomicU64,
    gate: Mutex<bool>,
    opened: Condvar,
}

impl Probe {
    fn block(&self) {
        self.entered.fetch_add(1, SeqCst);
        let open = self.gate.lock().expect("no panic");
        drop(
            self.opened
                .wait_while(open, |open| !*open)
                .expect("no panic"),
        );
    }

    /// Lets blocked machines go on, now and in future.
    pub fn open(&self) {
        *self.gate.lock().expect("no panic") = true;
        self.opened.notify_all();
    }
}

/// Counts: `add KEY` answers the new count; `block`, `panic` and `refuse` do so; a query is a key.
#[derive(Default)]
pub struct Counters {
    counts: BTreeMap<String, u64>,
    probe: Arc<Probe>,
}

impl Counters {
    pub fn machine(probe: &Arc<Probe>) -> Box<dyn StateMachine> {
        Box::new(Self {
            counts: BTreeMap::new(),
            probe: Arc::clone(probe),
        })
    }

    fn command(&mut self, command: &Bytes) -> Outcome {
        let text = String::from_utf8_lossy(command);
        match text.split_once(' ') {
            Some(("add", key)) => {
                let count = self.counts.entry(key.to_owned()).or_default();
                *count += 1;
                Outcome::Reply(Bytes::from(count.to_string()))
            }
            _ if text == "block" => {
                self.probe.block();
                Outcome::Reply(Bytes::new())
            }
            _ if text == "compute" => {
                let begun = Instant::now();
                while begun.elapsed() < Duration::from_millis(50) {
                    std::hint::spin_loop();
                }
                Outcome::Reply(Bytes::new())
            }
            _ if text == "panic" => panic!("on purpose"),
            _ => Outcome::Rejected {
                code: 1,
                message: format!("no such command: {text}"),
            },
        }
    }
}

impl StateMachine for Counters {
    fn describe(&self) -> Descriptor {
        Descriptor {
            name: "counters".into(),
            version: "1".into(),
            schema: 1,
            oldest_schema: 1,
        }
    }

    fn init<'a>(&'a mut self, _: &EntryContext, config: &'a Bytes) -> Running<'a, Applied> {
        Box::pin(async {
            let outcome = match &config[..] {
                b"refuse" => Outcome::Rejected {
                    code: 2,
                    message: "refused on purpose".into(),
                },
                _ => Outcome::Reply(Bytes::new()),
            };
            Ok(Applied {
                outcomes: vec![outcome],
                fuel: 0,
            })
        })
    }

    fn apply<'a>(&'a mut self, _: &EntryContext, commands: &'a [Bytes]) -> Running<'a, Applied> {
        Box::pin(async {
            Ok(Applied {
                outcomes: commands
                    .iter()
                    .map(|command| self.command(command))
                    .collect(),
                fuel: 0,
            })
        })
    }

    fn apply_conf_change<'a>(
        &'a mut self,
        _: &EntryContext,
        change: &'a ConfChange,
    ) -> Running<'a, Applied> {
        Box::pin(async {
            self.probe
                .conf_changes
                .lock()
                .expect("no panic")
                .push(change.clone());
            Ok(Applied {
                outcomes: vec![Outcome::Reply(change.data.clone())],
                fuel: 0,
            })
        })
    }

    fn process_status_change<'a>(
        &'a mut self,
        _: &EntryContext,
        event: &'a LeaderChanged,
    ) -> Running<'a, Applied> {
        Box::pin(async {
            self.probe.leaders.lock().expect("no panic").push(*event);
            Ok(Applied::default())
        })
    }

    fn query<'a>(&'a mut self, request: &'a Bytes) -> Running<'a, Outcome> {
        Box::pin(async {
            let count = self
                .counts
                .get(&*String::from_utf8_lossy(request))
                .copied()
                .unwrap_or(0);
            Ok(Outcome::Reply(Bytes::from(count.to_string())))
        })
    }

    fn save<'a>(&'a mut self, _: &EntryContext, to: &'a mut (dyn Write + Send)) -> Running<'a, ()> {
        Box::pin(async {
            for (key, count) in &self.counts {
                writeln!(to, "{count} {key}").map_err(|error| MachineError::Local {
                    call: "save",
                    code: LocalCode::Io,
                    reason: error.to_string(),
                })?;
            }
            Ok(())
        })
    }

    fn restore(&mut self, _: &EntryContext, _: u32, from: Bytes) -> Running<'_, ()> {
        Box::pin(async move {
            self.probe.restores.fetch_add(1, SeqCst);
            let text = String::from_utf8_lossy(&from);
            self.counts = text
                .lines()
                .map(|line| {
                    let (count, key) = line.split_once(' ').expect("what save wrote");
                    (key.to_owned(), count.parse().expect("what save wrote"))
                })
                .collect();
            Ok(())
        })
    }
}

/// The network of one cluster: the real transport over TCP, which this can only keep from delivering.
#[derive(Default)]
pub struct Net {
    nodes: Mutex<HashMap<NodeId, Arc<TcpTransport>>>,
    cut: Mutex<HashSet<NodeId>>,
    /// Every so many batches, one is lost; 0 loses none.
    pub lose_one_in: AtomicU64,
    sent: AtomicU64,
    pub snapshots: AtomicU64,
    /// Snapshots do not get through.
    pub lose_snapshots: AtomicBool,
}

impl Net {
    /// Separates a node from all others.
    pub fn cut(&self, node: NodeId) {
        self.cut.lock().expect("no panic").insert(node);
    }

    pub fn mend(&self, node: NodeId) {
        self.cut.lock().expect("no panic").remove(&node);
    }

    fn leave(&self, node: NodeId) -> Option<Arc<TcpTransport>> {
        self.nodes.lock().expect("no panic").remove(&node)
    }

    fn is_cut(&self, from: NodeId, to: NodeId) -> bool {
        let cut = self.cut.lock().expect("no panic");
        cut.contains(&from) || cut.contains(&to)
    }

    /// The transport of a node; from here on others reach it.
    pub fn join(self: &Arc<Self>, node: NodeId, inbound: Arc<dyn Inbound>) -> Arc<dyn Transport> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.set_nonblocking(true).expect("a socket");
        let listener = tokio::net::TcpListener::from_std(listener).expect("a runtime");
        let mut nodes = self.nodes.lock().expect("no panic");
        let known = nodes.iter().filter(|(other, _)| **other != node);
        let config = TcpConfig {
            founding: Founding::unfounded("test"),
            node,
            store: [1; 16],
            account: Arc::default(),
            peers: known
                .map(|(other, transport)| (*other, transport.address().to_string()))
                .collect(),
            check: Arc::new(Trusting),
            requests: None,
            insecure_plaintext: false,
            limits: TcpLimits::default(),
            supervisor: Default::default(),
        };
        let gate = Gate {
            net: Arc::downgrade(self),
            node,
            inbound,
        };
        let tcp = TcpTransport::start(config, listener, Arc::new(gate)).expect("a transport");
        for transport in nodes.values() {
            transport.set_peer(node, tcp.address().to_string());
        }
        nodes.insert(node, Arc::clone(&tcp));
        Arc::new(Wire {
            net: Arc::clone(self),
            node,
            tcp,
        })
    }
}

/// Everybody is who he says.
struct Trusting;

impl PeerCheck for Trusting {
    fn check(&self, _: NodeId, _: [u8; 16], _: &Past) -> Result<(), PeerRefused> {
        Ok(())
    }
}

struct Wire {
    net: Arc<Net>,
    node: NodeId,
    tcp: Arc<TcpTransport>,
}

impl Transport for Wire {
    fn send(&self, batch: Batch, reporter: &Arc<dyn Reporter>) {
        let every = self.net.lose_one_in.load(SeqCst);
        let lost = every > 0 && self.net.sent.fetch_add(1, SeqCst).is_multiple_of(every);
        if !lost && !self.net.is_cut(self.node, batch.to) {
            self.tcp.send(batch, reporter);
            return;
        }
        for group in batch.messages.keys() {
            // Fails where the group was removed meanwhile, or the receiver is no member (any more).
            drop(reporter.report_unreachable(*group, batch.to));
        }
    }

    fn send_snapshot(
        &self,
        to: NodeId,
        message: PeerMessage,
        file: Arc<SnapshotFile>,
        reporter: &Arc<dyn Reporter>,
    ) {
        if self.net.lose_snapshots.load(SeqCst) || self.net.is_cut(self.node, to) {
            drop(reporter.report_snapshot(message.group, to, SnapshotStatus::Failure));
        } else {
            self.tcp.send_snapshot(to, message, file, reporter);
        }
    }
}

/// Keeps out what was on its way when its sender or receiver was cut off.
struct Gate {
    net: Weak<Net>,
    node: NodeId,
    inbound: Arc<dyn Inbound>,
}

impl Gate {
    fn is_cut(&self, from: NodeId) -> bool {
        let net = self.net.upgrade();
        net.is_none_or(|net| net.is_cut(from, self.node))
    }
}

impl Inbound for Gate {
    fn step_batch(&self, batch: Batch) {
        if !self.is_cut(batch.from) {
            self.inbound.step_batch(batch);
        }
    }

    fn offer_snapshot(
        &self,
        from: NodeId,
        message: &PeerMessage,
        name: &SnapshotName,
    ) -> Result<SnapshotReceiver, SnapshotRefusal> {
        if self.is_cut(from) {
            return Err(SnapshotRefusal::Stopped);
        }
        self.inbound.offer_snapshot(from, message, name)
    }

    fn snapshot_arrived(&self, from: NodeId, message: PeerMessage, file: SnapshotFile) {
        if self.is_cut(from) {
            return;
        }
        if let Some(net) = self.net.upgrade() {
            net.snapshots.fetch_add(1, SeqCst);
        }
        self.inbound.snapshot_arrived(from, message, file);
    }
}

/// Up to a few nodes, each with a directory that outlives it.
pub struct Cluster {
    pub net: Arc<Net>,
    dirs: BTreeMap<NodeId, TempDir>,
    nodes: BTreeMap<NodeId, MultiNode>,
    probes: HashMap<(NodeId, GroupId), Arc<Probe>>,
}

impl Cluster {
    /// Nodes 1 to `size`, without groups.
    pub async fn start(size: u64) -> Self {
        let mut cluster = Self {
            net: Arc::default(),
            dirs: BTreeMap::new(),
            nodes: BTreeMap::new(),
            probes: HashMap::new(),
        };
        for node in 1..=size {
            cluster.start_node(NodeId(node)).await;
        }
        cluster
    }

    /// As [`Cluster::start`], with [`GROUP`] on all of them.
    pub async fn with_group(size: u64) -> Self {
        let mut cluster = Self::start(size).await;
        cluster.create(GROUP, &cluster.ids()).await;
        cluster
    }

    pub fn ids(&self) -> Vec<NodeId> {
        self.nodes.keys().copied().collect()
    }

    pub fn config(&mut self, node: NodeId) -> Config {
        let dir = self
            .dirs
            .entry(node)
            .or_insert_with(|| TempDir::new().expect("a directory"));
        Config {
            ticker: Ticker::Every(Duration::from_millis(20)),
            shards: 2,
            seed: Some(node.0),
            ..Config::new(node, format!("name-{node}"), "test", dir.path())
        }
    }

    pub async fn start_node(&mut self, node: NodeId) {
        let config = self.config(node);
        self.start_with(config).await;
    }

    pub async fn start_with(&mut self, config: Config) {
        let (net, node) = (Arc::clone(&self.net), config.id);
        let started = MultiNode::start(config, |inbound| Ok(net.join(node, inbound)))
            .await
            .expect("the node starts");
        self.nodes.insert(node, started);
    }

    /// Stops a node and takes it off the network.
    pub async fn stop_node(&mut self, node: NodeId) {
        let transport = self.net.leave(node);
        if let Some(stopped) = self.nodes.remove(&node) {
            soon("stop", stopped.stop()).await;
        }
        if let Some(transport) = transport {
            soon("the transport stops", transport.stop()).await;
        }
    }

    pub fn node(&self, node: u64) -> &MultiNode {
        &self.nodes[&NodeId(node)]
    }

    pub fn dir(&self, node: u64) -> &std::path::Path {
        self.dirs[&NodeId(node)].path()
    }

    pub fn probe(&mut self, node: NodeId, group: GroupId) -> Arc<Probe> {
        Arc::clone(self.probes.entry((node, group)).or_default())
    }

    /// The configuration of a group on a node, with a probed machine.
    pub fn group(&mut self, node: NodeId, group: GroupId, members: &[NodeId]) -> GroupConfig {
        let voters = members
            .iter()
            .map(|member| Peer {
                node: *member,
                data: Bytes::from(format!("address-{member}")),
            })
            .collect();
        GroupConfig::new(
            group,
            format!("group-{group}"),
            Counters::machine(&self.probe(node, group)),
            voters,
        )
    }

    /// Brings a group up on its members.
    pub async fn create(&mut self, group: GroupId, members: &[NodeId]) {
        for node in members {
            let config = self.group(*node, group, members);
            self.nodes[node]
                .create_group(config)
                .await
                .expect("the group is created");
        }
    }

    /// The node that leads, once all members on running nodes agree.
    pub async fn leader(&self, group: GroupId) -> NodeId {
        until("a leader", || async {
            let mut leaders = HashSet::new();
            for node in self.nodes.values().filter(|node| node.exists(group)) {
                leaders.insert(node.leader(group).ok()??);
            }
            let mut leaders = leaders.into_iter();
            let leader = leaders.next()?;
            (leaders.next().is_none() && self.nodes.get(&leader)?.exists(group)).then_some(leader)
        })
        .await
    }

    /// The count of a key as a node has it.
    pub async fn count(
        &self,
        node: u64,
        group: GroupId,
        key: &str,
        consistency: Consistency,
    ) -> Result<u64, Error> {
        let answer = self
            .node(node)
            .query(group, Bytes::from(key.to_owned()), consistency)
            .await?;
        Ok(number(&answer.outcome))
    }
}

pub fn add(key: &str) -> Bytes {
    Bytes::from(format!("add {key}"))
}

pub fn number(outcome: &Outcome) -> u64 {
    match outcome {
        Outcome::Reply(reply) => String::from_utf8_lossy(reply).parse().expect("a count"),
        other => panic!("not a count: {other:?}"),
    }
}
