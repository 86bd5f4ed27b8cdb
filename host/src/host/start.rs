//! Bringing a node up: store, transport, group 0, and the tasks that keep it in step with the catalogue.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use skep_core::id::NodeId;
use skep_log::{DiskVfs, LogError, PeerPins, Store, StoreId, Vfs};
use skep_machine::wasm::Compiler;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::reconcile::blocking;
use super::{Host, Inner, collection, reconcile};
use crate::catalog::command::Command;
use crate::catalog::machine::CatalogMachine;
use crate::catalog::{self, Catalog, NodeRecord};
use crate::components::ComponentStore;
use crate::config::Config;
use crate::host_error::HostError;
use crate::machines::Machines;
use crate::metrics::Metrics;
use crate::peers::Peers;
use crate::supervisor::Supervisor;
use crate::transport::{PeerCheck, PeerRefused, TcpConfig, TcpLimits, TcpTransport};
use crate::{GroupConfig, Inbound, MultiNode, Peer, Ticker, Transport, clock};

pub(super) async fn start(config: Config, compiler: Arc<dyn Compiler>) -> Result<Host, HostError> {
    let supervisor = Supervisor::default();
    let data = config.node.data_dir.clone();
    let Started {
        node,
        transport,
        store,
        pins,
    } = node(&config, &supervisor).await?;
    // From here on a failure must not leave the node running.
    let build = || async {
        let components = ComponentStore::open(data.join("components"))?;
        let machines = Machines::open(data.join("compiled"), compiler)?;
        let (machine, catalog) = CatalogMachine::new();
        let founders = config
            .cluster
            .nodes
            .iter()
            .map(|node| Peer::new(NodeId(node.id)))
            .collect();
        let group = GroupConfig::new(catalog::GROUP, "catalogue", Box::new(machine), founders);
        node.create_group(reconcile::tuned(&config, group)).await?;
        let peers = Peers::new(&config, supervisor.clone());
        Ok::<_, HostError>((components, machines, catalog, peers))
    };
    let (components, machines, catalog, peers) = match build().await {
        Ok(parts) => parts,
        Err(error) => {
            node.stop().await;
            transport.stop().await;
            return Err(error);
        }
    };
    let host = Host {
        inner: Arc::new(Inner {
            config,
            node,
            transport,
            store,
            pins,
            catalog,
            confirmed: AtomicBool::new(false),
            emptied: AtomicBool::new(false),
            components,
            storing: Default::default(),
            machines,
            peers,
            metrics: Metrics::new(),
            supervisor,
            hosted: Default::default(),
            changed: Notify::new(),
            stopping: CancellationToken::new(),
        }),
    };
    host.keep("reconciler", reconcile::run);
    host.keep("collector", collection::run);
    host.keep("registration", register);
    Ok(host)
}

impl Host {
    /// Runs a task of the node until it ends by itself or the node stops, again after a panic.
    pub(super) fn keep<F: Future<Output = ()> + Send + 'static>(
        &self,
        name: &'static str,
        make: impl Fn(Self) -> F + Send + Sync + 'static,
    ) {
        let host = self.clone();
        tokio::spawn(async move {
            let kept = host.inner.supervisor.keep(name, || make(host.clone()));
            host.inner.stopping.run_until_cancelled(kept).await;
        });
    }
}

/// Tells the catalogue where this node is reached, as often as it takes.
async fn register(host: Host) {
    let own = host.inner.config.own();
    let record = NodeRecord {
        id: NodeId(own.id),
        name: host.inner.config.node_name(),
        peer: own.peer.clone(),
        client: own.client.clone(),
        http: own.http.clone(),
        store: host.inner.store.to_string(),
    };
    let mut attempt = 0;
    // A stale catalogue may say what is not so any more, so it is asked only after it was refreshed.
    loop {
        match announce(&host, &record).await {
            Ok(()) => return,
            Err(error @ HostError::Refused(_)) => {
                tracing::error!(%error, "this node is not registered");
            }
            Err(error) => tracing::debug!(%error, "this node is not registered yet"),
        }
        clock::sleep(reconcile::backoff(attempt)).await;
        attempt += 1;
    }
}

async fn announce(host: &Host, record: &NodeRecord) -> Result<(), HostError> {
    host.refresh().await?;
    if host.catalog().node(record.id).map(|node| &**node) != Some(record) {
        host.change_catalog(&Command::PutNode(record.clone()))
            .await?;
    }
    Ok(())
}

/// A node that runs, and what it knows of stores.
struct Started {
    node: MultiNode,
    transport: Arc<TcpTransport>,
    store: StoreId,
    pins: Arc<Pins>,
}

/// The library's node on a transport of its own. The port comes first: a taken one must be found before the store is
/// touched.
async fn node(config: &Config, supervisor: &Supervisor) -> Result<Started, HostError> {
    let insecure_plaintext = config.listen.insecure_plaintext;
    let listener = TcpTransport::bind(config.listen_peer(), insecure_plaintext).await?;
    let (dir, cluster, id) = (
        config.node.data_dir.clone(),
        config.cluster.id.clone(),
        config.node_id(),
    );
    let opened = blocking(move || {
        let vfs: Arc<dyn Vfs> = Arc::new(DiskVfs);
        let store = Store::open(&vfs, &dir, &cluster, id.0)?;
        let pins = PeerPins::open(vfs, &dir)?;
        Ok((store, pins))
    });
    let (store, pins) = opened.await?.map_err(crate::Error::Storage)?;
    let own_store = store.identity().store;
    let pins = Arc::new(Pins(Mutex::new(pins)));
    let tcp = TcpConfig {
        cluster: config.cluster.id.clone(),
        node: id,
        store: store.identity().store.0,
        peers: config
            .cluster
            .nodes
            .iter()
            .map(|node| (NodeId(node.id), node.peer.clone()))
            .collect(),
        check: Arc::clone(&pins) as Arc<dyn PeerCheck>,
        insecure_plaintext,
        limits: TcpLimits::default(),
        supervisor: supervisor.clone(),
    };
    let mut settings = crate::Config::new(
        id,
        config.node_name(),
        &config.cluster.id,
        &config.node.data_dir,
    );
    settings.fsync_tick = Duration::from_millis(config.raft.fsync_delay_ms);
    settings.ticker = Ticker::Every(config.tick());
    settings.shards = config.raft.shards;
    settings.store = Some(store);
    settings.supervisor = supervisor.clone();
    let mut transport = None;
    let send = |inbound: Arc<dyn Inbound>| {
        let started = TcpTransport::start(tcp, listener, inbound)?;
        transport = Some(Arc::clone(&started));
        Ok(started as Arc<dyn Transport>)
    };
    let started = MultiNode::start(settings, send).await;
    match (started, transport) {
        (Ok(node), Some(transport)) => Ok(Started {
            node,
            transport,
            store: own_store,
            pins,
        }),
        (Err(error), transport) => {
            if let Some(transport) = transport {
                transport.stop().await;
            }
            Err(error.into())
        }
        (Ok(_), None) => Err(HostError::Internal(
            "the node started without a transport".into(),
        )),
    }
}

/// Remembers each node's store from the first time it was seen, or named by the catalogue.
pub(super) struct Pins(Mutex<PeerPins>);

impl Pins {
    /// Pins the stores that the catalogue names: those of nodes this one has never met too.
    pub(super) fn learn(&self, own: NodeId, catalog: &Catalog) {
        for node in catalog.nodes().filter(|node| node.id != own) {
            let Some(store) = StoreId::parse(&node.store) else {
                continue;
            };
            if let Err(refused) = self.check(node.id, store.0) {
                tracing::warn!(node = node.id.0, %refused, "the catalogue knows a node with another store");
            }
        }
    }
}

impl PeerCheck for Pins {
    fn check(&self, node: NodeId, store: [u8; 16]) -> Result<(), PeerRefused> {
        let mut pins = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match pins.check(node.0, StoreId(store)) {
            Ok(_) => Ok(()),
            Err(LogError::PeerChanged { .. }) => Err(PeerRefused::WrongStore { node }),
            Err(error) => Err(PeerRefused::CheckFailed {
                node,
                reason: error.to_string(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use skep_core::id::LogIndex;
    use skep_log::SimVfs;

    use super::*;

    #[test]
    fn a_store_that_the_catalogue_names_is_known_before_its_node_was_met() {
        let vfs: Arc<dyn Vfs> = Arc::new(SimVfs::new(1));
        let dir = Path::new("/data");
        vfs.create_dir_all(dir).expect("a directory");
        let pins = Pins(Mutex::new(PeerPins::open(vfs, dir).expect("no pins yet")));
        let (own, other) = (NodeId(1), NodeId(2));
        let mut catalog = Catalog::default();
        for (id, store) in [(own, [1; 16]), (other, [2; 16])] {
            let record = NodeRecord {
                id,
                name: format!("node-{id}"),
                peer: String::new(),
                client: String::new(),
                http: String::new(),
                store: StoreId(store).to_string(),
            };
            catalog
                .apply(LogIndex(1), Command::PutNode(record))
                .expect("taken");
        }
        pins.learn(own, &catalog);
        assert!(pins.check(other, [2; 16]).is_ok());
        let refused = pins.check(other, [3; 16]).expect_err("another store");
        assert!(matches!(refused, PeerRefused::WrongStore { node } if node == other));
    }
}
