//! The transport over TCP: who listens, who is dialled, what is bounded.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dashmap::DashMap;
use skep_core::id::{GroupId, NodeId};
use skep_core::message::{Batch, PeerMessage, Priority};
use skep_log::{Account, SnapshotFile, Store};
use skep_peer::Purpose;
use skep_types::code::Code;
use skep_types::founding::Founding;
use skep_types::shared::lock;
use tokio::net::{TcpListener, lookup_host};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::accept::{self, Introductions, Places};
use super::connection::Connection;
use super::handshake::{HandshakeError, Identity};
use super::lane::Lane;
use super::snapshot::{self, Throttle};
use super::stats::{TransportStats, add};
use super::{Inbound, PeerCheck, Reporter, RequestHandler, Transport};
use crate::clock::{Stopwatch, sleep};
use crate::supervisor::Supervisor;

/// Pause between two looks at whether everything is written.
const FLUSH_LOOK: Duration = Duration::from_millis(1);

/// How a node takes part in a cluster over TCP.
pub struct TcpConfig {
    /// The cluster; nodes of another one are refused, also of one with the same name.
    pub founding: Founding,
    /// This node. Not 0.
    pub node: NodeId,
    /// UUID of this node's store.
    pub store: [u8; 16],
    /// What this node's store says of itself.
    pub account: Arc<Account>,
    /// Where other nodes are, as `host:port`; see also [`TcpTransport::set_peer`].
    pub peers: Vec<(NodeId, String)>,
    /// Decides which nodes are spoken to.
    pub check: Arc<dyn PeerCheck>,
    /// Answers what other nodes ask on behalf of clients; without, such connections are refused.
    pub requests: Option<Arc<dyn RequestHandler>>,
    /// Allows addresses beyond the loopback, without encryption.
    pub insecure_plaintext: bool,
    /// Bounds.
    pub limits: TcpLimits,
    /// Who watches the transport's tasks.
    pub supervisor: Supervisor,
}

impl TcpConfig {
    /// The node of a store, with the defaults: it answers no requests of clients and stays on the loopback. Where the store
    /// belongs to no cluster that was founded, what counts is the cluster's name.
    pub fn new(store: &Store, peers: Vec<(NodeId, String)>, check: Arc<dyn PeerCheck>) -> Self {
        let identity = store.identity();
        let founding = identity.founding.clone();
        Self {
            founding: founding.unwrap_or_else(|| Founding::unfounded(&identity.cluster)),
            node: NodeId(identity.node),
            store: identity.store.0,
            account: store.account(),
            peers,
            check,
            requests: None,
            insecure_plaintext: false,
            limits: TcpLimits::default(),
            supervisor: Supervisor::default(),
        }
    }
}

/// What the transport may hold and use. The defaults suit a node of thousands of groups.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TcpLimits {
    /// Most bytes queued to one node with high priority. A heartbeat has some hundred bytes, so the default of 8 MiB is
    /// many rounds of them for thousands of groups: it is only reached by a node that takes nothing at all.
    pub high_queue: usize,
    /// Most bytes queued to one node with normal priority. 64 MiB by default: half a second of a 1 Gbit/s link.
    pub normal_queue: usize,
    /// Most snapshots on their way or waiting for their turn, to all nodes together: what travels with low priority. One more
    /// fails at once, and raft asks again. 64 by default; each holds an open file.
    pub low_queue: usize,
    /// Bytes of snapshots sent per second, to all nodes together. 100 MiB by default, so that a rejoining node does not
    /// take a whole link or disk.
    pub snapshot_rate: u64,
    /// Snapshots sent at once, to all nodes together; others wait. 4 by default.
    pub snapshots_at_once: usize,
    /// Connections accepted at once. 1024 by default: a hundred nodes have 200 lanes of batches.
    pub connections: usize,
}

impl Default for TcpLimits {
    fn default() -> Self {
        Self {
            high_queue: 8 << 20,
            normal_queue: 64 << 20,
            low_queue: 64,
            snapshot_rate: 100 << 20,
            snapshots_at_once: 4,
            connections: 1024,
        }
    }
}

/// Why the transport does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// The address is in use.
    #[error(
        "cannot listen on {address}: another process listens there; stop it or choose another port"
    )]
    AddressInUse {
        /// The address.
        address: String,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// Others could read and change what is sent.
    #[error(
        "{address} is not a loopback address, and what is sent is not encrypted; listen on 127.0.0.1, or set insecure_plaintext on a network that you trust"
    )]
    Plaintext {
        /// The address.
        address: SocketAddr,
    },
    /// Node 0 names nothing.
    #[error("node id 0 names no node; choose another")]
    ZeroNode,
    /// There is no tokio runtime to run on.
    #[error("the TCP transport must be started within a tokio runtime")]
    NoRuntime,
}

impl TransportError {
    /// The stable code.
    pub fn code(&self) -> Code {
        match self {
            Self::AddressInUse { .. } => Code::AddressInUse,
            Self::Listen { .. } => Code::CannotListen,
            Self::Plaintext { .. } => Code::PlaintextRefused,
            Self::ZeroNode => Code::ZeroId,
            Self::NoRuntime => Code::NoRuntime,
        }
    }
}

impl From<TransportError> for io::Error {
    fn from(error: TransportError) -> Self {
        Self::other(error)
    }
}

/// Nodes that speak over TCP. Batches of high and of normal priority have one connection each to a peer: the sender dials
/// it when it first has something to say, keeps it for good, and dials again when it is lost. What has low priority are
/// snapshots: each has a connection of its own for as long as it is on its way.
///
/// While a peer cannot be reached, what is sent to it is dropped and reported at once. Dropping the last handle stops the
/// transport.
pub struct TcpTransport {
    shared: Arc<Shared>,
    peers: DashMap<NodeId, Peer>,
    address: SocketAddr,
}

/// What the tasks of a transport share.
pub(super) struct Shared {
    pub identity: Identity,
    pub limits: TcpLimits,
    pub inbound: Arc<dyn Inbound>,
    pub stats: Arc<TransportStats>,
    pub complaints: Complaints,
    pub places: Places,
    /// Ends the connection of requests that a node has, when it makes another.
    pub requesters: DashMap<NodeId, CancellationToken>,
    pub requests: Option<Arc<dyn RequestHandler>>,
    pub introductions: Introductions,
    pub connections: Arc<Semaphore>,
    pub transfers: Semaphore,
    pub transfers_waiting: AtomicUsize,
    pub throttle: Throttle,
    pub tasks: TaskTracker,
    pub supervisor: Supervisor,
    pub stop: CancellationToken,
    runtime: Handle,
}

struct Peer {
    addresses: watch::Sender<Vec<String>>,
    gone: CancellationToken,
    high: Arc<Lane>,
    normal: Arc<Lane>,
}

impl TcpTransport {
    /// Listens on `address` (`host:port`; port 0 chooses one).
    ///
    /// # Errors
    /// [`TransportError::AddressInUse`], [`TransportError::Listen`], [`TransportError::Plaintext`].
    pub async fn bind(
        address: &str,
        insecure_plaintext: bool,
    ) -> Result<TcpListener, TransportError> {
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => TransportError::AddressInUse {
                address: address.to_owned(),
            },
            _ => TransportError::Listen {
                address: address.to_owned(),
                source,
            },
        };
        for address in lookup_host(address).await.map_err(failed)? {
            plaintext_allowed(address, insecure_plaintext)?;
        }
        TcpListener::bind(address).await.map_err(failed)
    }

    /// Starts to accept and to dial. Must be called within a tokio runtime, on which everything then runs.
    ///
    /// # Errors
    /// [`TransportError::Plaintext`], [`TransportError::ZeroNode`], [`TransportError::NoRuntime`].
    pub fn start(
        config: TcpConfig,
        listener: TcpListener,
        inbound: Arc<dyn Inbound>,
    ) -> Result<Arc<Self>, TransportError> {
        let runtime = Handle::try_current().map_err(|_| TransportError::NoRuntime)?;
        let address = listener
            .local_addr()
            .map_err(|source| TransportError::Listen {
                address: "its listener".to_owned(),
                source,
            })?;
        plaintext_allowed(address, config.insecure_plaintext)?;
        if config.node.0 == 0 {
            return Err(TransportError::ZeroNode);
        }
        let limits = config.limits;
        let shared = Arc::new(Shared {
            identity: Identity {
                cluster: config.founding.identity(),
                founding: config.founding,
                node: config.node,
                store: config.store,
                account: config.account,
                peers: config.check,
                heard: Arc::default(),
                insecure_plaintext: config.insecure_plaintext,
            },
            limits,
            inbound,
            stats: Arc::default(),
            complaints: Complaints::default(),
            places: Places::default(),
            requesters: DashMap::new(),
            requests: config.requests,
            introductions: Introductions::default(),
            connections: Arc::new(Semaphore::new(limits.connections)),
            transfers: Semaphore::new(limits.snapshots_at_once),
            transfers_waiting: AtomicUsize::new(0),
            throttle: Throttle::new(limits.snapshot_rate),
            tasks: TaskTracker::new(),
            supervisor: config.supervisor,
            stop: CancellationToken::new(),
            runtime,
        });
        shared.spawn(accept::run(Arc::clone(&shared), listener));
        let heard = Arc::clone(&shared);
        shared.spawn(async move {
            let identity = &heard.identity;
            let keep = || Arc::clone(&identity.heard).keep(Arc::clone(&identity.peers));
            let kept = heard.supervisor.keep("hearsay", keep);
            heard.stop.run_until_cancelled(kept).await;
            identity.heard.settle(&identity.peers).await;
        });
        let transport = Self {
            shared,
            peers: DashMap::new(),
            address,
        };
        for (node, address) in config.peers {
            transport.set_peer(node, address);
        }
        Ok(Arc::new(transport))
    }

    /// Says where a node is (`host:port`), now or from now on. Connections to its former address are given up.
    pub fn set_peer(&self, node: NodeId, address: String) {
        self.set_addresses(node, vec![address]);
    }

    /// As [`set_peer`](Self::set_peer), with several addresses, which are tried in this order. A connection is given up when the
    /// first of them is another.
    pub fn set_addresses(&self, node: NodeId, addresses: Vec<String>) {
        if node == self.shared.identity.node || self.shared.stop.is_cancelled() {
            return;
        }
        match self.peers.entry(node) {
            dashmap::Entry::Occupied(peer) => {
                peer.get().addresses.send_if_modified(|known| {
                    let has_moved = known.first() != addresses.first();
                    *known = addresses;
                    has_moved
                });
            }
            dashmap::Entry::Vacant(place) => {
                place.insert(Peer::start(&self.shared, node, addresses));
            }
        }
    }

    /// Forgets a node and closes every connection with it, in both directions. Whether it may come again is for [`PeerCheck`] to
    /// say.
    pub fn remove_peer(&self, node: NodeId) {
        if let Some((_, peer)) = self.peers.remove(&node) {
            peer.gone.cancel();
        }
        for priority in [Priority::High, Priority::Normal] {
            if let Some((_, place)) = self.shared.places.remove(&(node, priority)) {
                place.close();
            }
        }
        if let Some((_, requests)) = self.shared.requesters.remove(&node) {
            requests.cancel();
        }
        self.shared.identity.heard.forget(node);
    }

    /// Makes a connection for requests to a node, at its address or, if that is not known here, at another.
    pub async fn open_requests(
        &self,
        node: NodeId,
        otherwise: &str,
    ) -> Result<Connection, HandshakeError> {
        let known = self.peers.get(&node);
        let known = known.map(|peer| peer.addresses.borrow().clone());
        let addresses = known.unwrap_or_else(|| vec![otherwise.to_owned()]);
        let identity = &self.shared.identity;
        identity.dial(node, &addresses, Purpose::Requests).await
    }

    /// Where this node listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Counters, which go on after the transport has stopped.
    pub fn stats(&self) -> Arc<TransportStats> {
        Arc::clone(&self.shared.stats)
    }

    /// Waits until what was sent so far is written, at most so long. What cannot be is lost, as with [`stop`](Self::stop).
    pub async fn flush(&self, within: Duration) {
        let watch = Stopwatch::start();
        let is_written = |peer: &Peer| peer.high.is_empty() && peer.normal.is_empty();
        while watch.elapsed() < within && !self.peers.iter().all(|peer| is_written(&peer)) {
            sleep(FLUSH_LOOK).await;
        }
    }

    /// Closes every connection and waits for all tasks. What is queued is dropped and reported, as is what is sent
    /// later. May be called more than once.
    pub async fn stop(&self) {
        self.shared.stop.cancel();
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }
}

impl Transport for TcpTransport {
    fn send(&self, batch: Batch, reporter: &Arc<dyn Reporter>) {
        let lane = self
            .peers
            .get(&batch.to)
            .and_then(|peer| peer.lane(batch.priority).cloned());
        if let Some(lane) = lane {
            lane.push(batch, reporter, &self.shared);
        } else {
            let stats = &self.shared.stats;
            add(&stats.without_lane, 1);
            add(&stats.lane(batch.priority).dropped, batch.len());
            report(batch.to, batch.messages.into_keys(), reporter);
        }
    }

    fn send_snapshot(
        &self,
        to: NodeId,
        message: PeerMessage,
        file: Arc<SnapshotFile>,
        reporter: &Arc<dyn Reporter>,
    ) {
        let address = self.peers.get(&to).map(|peer| peer.addresses.subscribe());
        snapshot::send(&self.shared, to, address, message, file, reporter);
    }
}

impl Drop for TcpTransport {
    fn drop(&mut self) {
        self.shared.stop.cancel();
    }
}

impl Shared {
    /// Runs a task that [`TcpTransport::stop`] waits for.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn_on(task, &self.runtime);
    }
}

impl Peer {
    fn start(shared: &Arc<Shared>, node: NodeId, addresses: Vec<String>) -> Self {
        let addresses = watch::Sender::new(addresses);
        let gone = shared.stop.child_token();
        let lane = |priority, queue_bytes| {
            let lane = Arc::new(Lane::new(node, priority, queue_bytes));
            let (shared_too, gone) = (Arc::clone(shared), gone.clone());
            let run = Arc::clone(&lane).run(shared_too, addresses.subscribe(), gone);
            shared.spawn(run);
            lane
        };
        Self {
            high: lane(Priority::High, shared.limits.high_queue),
            normal: lane(Priority::Normal, shared.limits.normal_queue),
            addresses,
            gone,
        }
    }

    /// The lane that batches of a priority travel on. None has low priority: snapshots have, and they are no batches.
    fn lane(&self, priority: Priority) -> Option<&Arc<Lane>> {
        match priority {
            Priority::High => Some(&self.high),
            Priority::Normal => Some(&self.normal),
            Priority::Low => None,
        }
    }
}

/// Reports messages that will not arrive, once for each run of the same group.
pub(super) fn report(
    node: NodeId,
    groups: impl IntoIterator<Item = GroupId>,
    reporter: &Arc<dyn Reporter>,
) {
    let mut last = None;
    for group in groups {
        if last.replace(group) != Some(group)
            && let Err(error) = reporter.report_unreachable(group, node)
        {
            tracing::debug!(%node, %group, %error, "an unreachable node was reported in vain");
        }
    }
}

/// What is wrong with whom, so that it is logged once and not at each attempt.
#[derive(Default)]
pub(super) struct Complaints(Mutex<HashMap<String, Code>>);

/// Most subjects remembered. More than a cluster has nodes; a crowd of strangers only makes some lines repeat.
const MAX_COMPLAINTS: usize = 256;

impl Complaints {
    /// Logs the text as a warning if `code` is not what was wrong with the subject before.
    pub(super) fn raise(&self, subject: String, code: Code, text: &dyn std::fmt::Display) {
        let mut known = lock(&self.0);
        if known.get(&subject) == Some(&code) {
            tracing::debug!(%subject, code = code.name(), "{text}");
            return;
        }
        tracing::warn!(%subject, code = code.name(), "{text}");
        if known.len() >= MAX_COMPLAINTS {
            known.clear();
        }
        known.insert(subject, code);
    }

    /// All is well with the subject.
    pub(super) fn settle(&self, subject: &str) {
        let mut known = lock(&self.0);
        if known.remove(subject).is_some() {
            tracing::info!(%subject, "connected again");
        }
    }
}

fn plaintext_allowed(address: SocketAddr, insecure_plaintext: bool) -> Result<(), TransportError> {
    if address.ip().is_loopback() || insecure_plaintext {
        Ok(())
    } else {
        Err(TransportError::Plaintext { address })
    }
}
