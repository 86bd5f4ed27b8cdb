//! A node on its way into its cluster: its store and its port for nodes are open, and it takes part in nothing before it
//! belongs to a cluster, durably.

use std::sync::{Arc, Mutex};

use skep::Supervisor;
use skep::transport::{FoundingConfig, TcpTransport, found, look_around};
use skep_core::founders::{Founders, Founding};
use skep_core::id::NodeId;
use skep_log::{DiskVfs, LogError, PeerPins, Store, Vfs};
use skep_types::admin::NodeInfo;
use skep_types::shared::lock;
use tokio::net::TcpListener;

use super::{blocking, the_first};
use crate::api::doors::Doors;
use crate::config::Config;
use crate::error::HostError;
use crate::metrics::Metrics;

/// A node whose store is open, and which may belong to no cluster yet.
pub struct Beginning {
    waiting: Waiting,
    listener: TcpListener,
    store: Store,
    pins: PeerPins,
}

/// A node that belongs to a cluster, and does not run yet.
pub struct Founded {
    pub(super) config: Config,
    pub(super) supervisor: Supervisor,
    pub(super) listener: TcpListener,
    pub(super) store: Store,
    pub(super) pins: PeerPins,
    pub(super) founding: Founding,
}

/// What a node has to say that belongs to no cluster yet. Cheap to clone.
#[derive(Clone)]
pub struct Waiting {
    inner: Arc<Inner>,
}

struct Inner {
    config: Config,
    doors: Doors,
    metrics: Metrics,
    supervisor: Supervisor,
    founders: Mutex<Founders>,
    founding: FoundingConfig,
}

impl Beginning {
    /// Opens the port for nodes and the store. The port comes first: a taken one must be found before the store is touched.
    ///
    /// # Errors
    /// [`HostError`] naming the port, the directory or the file that is in the way.
    pub async fn open(config: Config) -> Result<Self, HostError> {
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
            // Nobody founds with a log: who has one has been in a cluster.
            if store.identity().founding.is_none() && store.has_log(&*vfs)? {
                let file = dir.join("identity");
                return Err(LogError::Unfounded { file });
            }
            let pins = PeerPins::open(vfs, &dir)?;
            Ok((store, pins))
        });
        let (store, pins) = opened.await?.map_err(skep::Error::Storage)?;
        let peers = config.cluster.nodes.iter();
        let peers = peers.map(|node| (NodeId(node.id), node.peer.clone()));
        let founding = FoundingConfig {
            insecure_plaintext,
            ..FoundingConfig::new(&store, peers.collect())
        };
        let inner = Inner {
            doors: Doors::new(&config),
            metrics: Metrics::new(),
            supervisor: Supervisor::default(),
            founders: Mutex::new(founding.founders()),
            founding,
            config,
        };
        Ok(Self {
            waiting: Waiting {
                inner: Arc::new(inner),
            },
            listener,
            store,
            pins,
        })
    }

    /// What the node has to say meanwhile.
    pub fn waiting(&self) -> Waiting {
        self.waiting.clone()
    }

    /// Whether the node belongs to a cluster already, so that [`founded`](Self::founded) waits for nobody.
    pub fn is_founded(&self) -> bool {
        self.store.identity().founding.is_some()
    }

    /// Waits until the node belongs to a cluster, durably.
    ///
    /// # Errors
    /// [`HostError`] if that cannot be noted.
    pub async fn founded(self) -> Result<Founded, HostError> {
        let Self {
            waiting,
            listener,
            mut store,
            mut pins,
        } = self;
        let inner = &waiting.inner;
        let founding = match store.identity().founding.clone() {
            Some(founding) => founding,
            None => {
                let founding = found(&inner.founding, &inner.founders, &listener).await;
                let (noted, adopted) = (
                    founding.clone(),
                    blocking(move || {
                        let vfs: Arc<dyn Vfs> = Arc::new(DiskVfs);
                        store.found(&vfs, &founding).map(|()| store)
                    })
                    .await?,
                );
                store = adopted.map_err(skep::Error::Storage)?;
                tracing::info!(
                    identity = %noted.identity().short(),
                    founders = noted.founders.len(),
                    "the cluster is founded"
                );
                noted
            }
        };
        let (founders, own) = (founding.founders.clone(), inner.config.node_id());
        // Whom the founding names is known by the store that it had then, whether or not it was ever met.
        pins = blocking(move || {
            for (node, known) in founders.iter().filter(|(node, _)| **node != own) {
                if pins.pinned(node.0).is_none() {
                    pins.check(node.0, skep_log::StoreId(*known))?;
                }
            }
            Ok::<_, LogError>(pins)
        })
        .await?
        .map_err(skep::Error::Storage)?;
        Ok(Founded {
            config: inner.config.clone(),
            supervisor: inner.supervisor.clone(),
            listener,
            store,
            pins,
            founding,
        })
    }
}

/// Founds a cluster of this node alone, in a directory that was never used: no other founding can name its store.
///
/// # Errors
/// [`HostError`] if the directory was used or cannot be written, or if another node of the list answers: it has a cluster,
/// founds one, or waits to. One that does not answer cannot be asked.
pub async fn init(config: Config) -> Result<Founding, HostError> {
    let Beginning {
        waiting,
        listener,
        mut store,
        ..
    } = Beginning::open(config).await?;
    if !store.created() {
        let file = store.dir().join("identity");
        return Err(skep::Error::Storage(LogError::Founded { file }).into());
    }
    let (inner, own) = (&waiting.inner, waiting.inner.config.node_id());
    let founding = &inner.founding;
    // Its list names nobody else, so that nobody founds with it meanwhile.
    let alone = Founders::new(&founding.cluster, own, founding.store, [own].into());
    let alone = Mutex::new(alone);
    let others = look_around(founding, &alone, &listener).await;
    if let Some((node, said)) = others.first() {
        let why = match &said.founded {
            Some(founded) => format!(
                "node {node} belongs to a cluster already ({}); add this node to it instead of founding another one",
                founded.identity().short()
            ),
            None if said.list.contains(&own) => format!(
                "node {node} waits to found a cluster with this node; start this one with `skep serve`, or stop that one first"
            ),
            None => format!(
                "node {node} founds a cluster of its own right now; found one of the two, and add the other node to it"
            ),
        };
        return Err(HostError::Invalid(why));
    }
    let decided = lock(&alone).decide();
    let founding = decided.ok_or_else(|| {
        HostError::Invalid(
            "another node waits to found a cluster with this one; start this one with `skep serve`, or stop that one first"
                .into(),
        )
    })?;
    let noted = founding.clone();
    blocking(move || {
        let vfs: Arc<dyn Vfs> = Arc::new(DiskVfs);
        store.found(&vfs, &noted)
    })
    .await?
    .map_err(skep::Error::Storage)?;
    Ok(founding)
}

impl Waiting {
    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.inner.config
    }

    /// Who watches the node's tasks.
    pub fn supervisor(&self) -> &Supervisor {
        &self.inner.supervisor
    }

    pub(crate) fn doors(&self) -> &Doors {
        &self.inner.doors
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.inner.metrics
    }

    /// For whom, and why; never empty.
    pub fn waiting_for(&self) -> Vec<String> {
        let waits = lock(&self.inner.founders).waits();
        let mut reasons = the_first(waits.iter().map(ToString::to_string));
        if reasons.is_empty() {
            reasons.push("the founding of its cluster".to_owned());
        }
        reasons
    }

    /// What it answers to whatever needs a cluster.
    pub fn unfounded(&self) -> HostError {
        HostError::Unfounded {
            node: self.inner.config.node_id(),
            waits: self.waiting_for().join("; "),
        }
    }

    /// The node as it sees itself.
    pub fn info(&self) -> NodeInfo {
        let config = &self.inner.config;
        NodeInfo {
            id: config.node_id(),
            name: config.node_name(),
            cluster: config.cluster.id.clone(),
            identity: None,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ready: false,
            waiting_for: self.waiting_for(),
            troubled: Vec::new(),
            replicas: 0,
            leading: 0,
            snapshots_received: 0,
            nodes: Vec::new(),
            groups: Vec::new(),
            group_count: 0,
            log: serde_json::json!({}),
        }
    }
}
