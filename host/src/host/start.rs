//! Bringing a node up: store, transport, group 0, and the tasks that keep it in step with the catalogue.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use skep_core::id::NodeId;
use skep_log::{DiskVfs, LogError, PeerPins, Store, StoreId, Vfs};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::reconcile::blocking;
use super::{Host, Inner, reconcile};
use crate::catalog::command::Command;
use crate::catalog::machine::CatalogMachine;
use crate::catalog::{self, NodeRecord};
use crate::components::ComponentStore;
use crate::config::Config;
use crate::host_error::HostError;
use crate::machines::Machines;
use crate::metrics::Metrics;
use crate::peers::Peers;
use crate::transport::{PeerCheck, PeerRefused, TcpConfig, TcpLimits, TcpTransport};
use crate::{GroupConfig, Inbound, MultiNode, Peer, Ticker, Transport, clock};

pub(super) async fn start(config: Config) -> Result<Host, HostError> {
    let data = config.node.data_dir.clone();
    let (node, transport) = node(&config).await?;
    // From here on a failure must not leave the node running.
    let build = || async {
        let components = ComponentStore::open(data.join("components"))?;
        let machines = Machines::open(data.join("compiled"))?;
        let (machine, catalog) = CatalogMachine::new();
        let founders = config
            .cluster
            .nodes
            .iter()
            .map(|node| Peer::new(NodeId(node.id)))
            .collect();
        let group = GroupConfig::new(catalog::GROUP, "catalogue", Box::new(machine), founders);
        node.create_group(reconcile::tuned(&config, group)).await?;
        let peers = Peers::new(&config);
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
            catalog,
            components,
            machines,
            peers,
            metrics: Metrics::new(),
            hosted: Default::default(),
            changed: Notify::new(),
            stopping: CancellationToken::new(),
        }),
    };
    tokio::spawn(until_stopped(host.clone(), reconcile::run(host.clone())));
    tokio::spawn(until_stopped(host.clone(), register(host.clone())));
    Ok(host)
}

async fn until_stopped(host: Host, task: impl Future<Output = ()>) {
    tokio::select! {
        () = task => {}
        () = host.inner.stopping.cancelled() => {}
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
    };
    let mut attempt = 0;
    // A stale catalogue may say what is not so any more, so it is asked only after it was refreshed.
    while host.refresh().await.is_err()
        || host.catalog().node(record.id).map(|node| &**node) != Some(&record)
            && host
                .change_catalog(&Command::PutNode(record.clone()))
                .await
                .is_err()
    {
        clock::sleep(reconcile::backoff(attempt)).await;
        attempt += 1;
    }
}

/// The library's node on a transport of its own. The port comes first: a taken one must be found before the store is
/// touched.
async fn node(config: &Config) -> Result<(MultiNode, Arc<TcpTransport>), HostError> {
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
        check: Arc::new(Pins(Mutex::new(pins))),
        insecure_plaintext,
        limits: TcpLimits::default(),
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
    let mut transport = None;
    let send = |inbound: Arc<dyn Inbound>| {
        let started = TcpTransport::start(tcp, listener, inbound)?;
        transport = Some(Arc::clone(&started));
        Ok(started as Arc<dyn Transport>)
    };
    let started = MultiNode::start(settings, send).await;
    match (started, transport) {
        (Ok(node), Some(transport)) => Ok((node, transport)),
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

/// Remembers each node's store from the first time it was seen.
struct Pins(Mutex<PeerPins>);

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
