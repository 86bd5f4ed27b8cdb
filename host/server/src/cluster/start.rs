//! Bringing a node up: store, transport, group 0, and the tasks that keep it in step with the catalogue.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use skep::DiskRoom;
use skep::transport::{PeerCheck, RequestHandler, TcpConfig, TcpLimits, TcpTransport};
use skep::{Inbound, MultiNode, Ticker, Transport, clock};
use skep_core::founders::Founding;
use skep_core::id::NodeId;
use skep_log::StoreId;
use skep_machine::wasm::Compiler;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::blocking;
use super::founding::Founded;
use super::roster::{Owner, Roster};
use super::{Host, Inner, collection, disk, nodes, reconcile, replicas, restarts, voters};
use crate::api::doors::Doors;
use crate::catalog::command::Command;
use crate::catalog::{Catalog, NodeRecord};
use crate::components::ComponentStore;
use crate::components::machines::Machines;
use crate::config::Config;
use crate::descriptors;
use crate::error::HostError;
use crate::metrics::Metrics;
use crate::peers::Peers;

/// How long a node waits for the catalogue before it tells others where it is.
const REFRESH_WITHIN: Duration = Duration::from_secs(1);

pub(super) async fn start(
    founded: Founded,
    compiler: Arc<dyn Compiler>,
) -> Result<Host, HostError> {
    let (config, founding) = (founded.config.clone(), founded.founding.clone());
    let supervisor = founded.supervisor.clone();
    let data = config.node.data_dir.clone();
    let (dir, reserve) = (data.clone(), config.limits.disk_reserve_bytes);
    // Before the log is opened, which needs some of it.
    let room = blocking(move || DiskRoom::open(&dir, reserve)).await?;
    let room = Arc::new(room.map_err(|source| skep::Error::Start {
        what: "a look at the disk",
        source,
    })?);
    let Started {
        node,
        transport,
        store,
        roster,
        owner,
    } = node(founded).await?;
    // From here on a failure must not leave the node running.
    let build = || async {
        let components = ComponentStore::open(data.join("components"))?
            .bounded(config.limits.uploads_bytes, Arc::clone(&room));
        let most = config.limits.machines();
        let room = Some(Arc::clone(&room));
        let machines = Machines::open(data.join("compiled"), compiler, room, most)?;
        let published = watch::Sender::new(Arc::new(Catalog::default()));
        node.create_group(restarts::catalogue(&config, &founding, &published))
            .await?;
        let peers = Peers::new(transport.clone(), supervisor.clone());
        Ok::<_, HostError>((components, machines, published, peers))
    };
    let (components, machines, published, peers) = match build().await {
        Ok(parts) => parts,
        Err(error) => {
            node.stop().await;
            transport.stop().await;
            return Err(error);
        }
    };
    let doors = Doors::new(&config);
    let host = Host {
        inner: Arc::new(Inner {
            config,
            founding,
            node,
            transport,
            store,
            roster,
            catalog: published.subscribe(),
            published,
            confirmed: AtomicBool::new(false),
            emptied: AtomicBool::new(false),
            components,
            room,
            announcing: Default::default(),
            storing: Default::default(),
            machines,
            peers,
            doors,
            metrics: Metrics::new(),
            supervisor,
            hosted: Default::default(),
            changed: Notify::new(),
            leaving: AtomicBool::new(false),
            handing_over: AtomicBool::new(false),
            under_replicated: Default::default(),
            stopping: CancellationToken::new(),
        }),
    };
    owner.started(&host);
    host.keep("reconciler", reconcile::run);
    host.keep("collector", collection::run);
    host.keep("restarts", restarts::run);
    host.keep("registration", register);
    host.keep("addresses", nodes::tell_the_silent);
    host.keep("voters", voters::run);
    host.keep("replicas", replicas::run);
    host.keep("disk", disk::look_after);
    host.keep("cut-off", Host::cut_off);
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
        labels: host.inner.config.node.labels.clone(),
        ..NodeRecord::default()
    };
    let mut attempt = 0;
    // A stale catalogue may say what is not so any more, so it is asked only after it was refreshed.
    loop {
        match announce(&host, &record).await {
            Ok(()) => return,
            Err(error @ HostError::Refused(_)) => {
                tracing::error!(%error, "this node is not registered");
            }
            Err(error) => {
                tracing::debug!(%error, "this node is not registered yet");
                // Nobody may know where this node is, and then it hears of no leader.
                host.tell_address(|_| true).await;
            }
        }
        clock::sleep(reconcile::backoff(attempt)).await;
        attempt += 1;
    }
}

fn is_known(catalog: &Catalog, record: &NodeRecord) -> bool {
    catalog.node(record.id).is_some_and(|known| {
        // Its state is not its own to say.
        let said = NodeRecord {
            state: known.state,
            successor: known.successor,
            ..record.clone()
        };
        said == **known
    })
}

async fn announce(host: &Host, record: &NodeRecord) -> Result<(), HostError> {
    let refreshed = clock::timeout(REFRESH_WITHIN, host.refresh()).await;
    refreshed.unwrap_or(Err(HostError::Unanswered {
        milliseconds: REFRESH_WITHIN.as_millis() as u64,
    }))?;
    if !is_known(&host.catalog(), record) {
        host.change_catalog(&Command::PutNode(record.clone()))
            .await?;
    }
    Ok(())
}

/// A node that runs, and whom it knows.
struct Started {
    node: MultiNode,
    transport: Arc<TcpTransport>,
    store: StoreId,
    roster: Arc<Roster>,
    owner: Arc<Owner>,
}

/// The library's node on a transport of its own.
async fn node(founded: Founded) -> Result<Started, HostError> {
    let Founded {
        config,
        supervisor,
        listener,
        store,
        pins,
        founding,
    } = founded;
    let descriptors = descriptors::allowed().map_err(|source| skep::Error::Start {
        what: "a look at how many files may be open",
        source,
    })?;
    let id = config.node_id();
    let own_store = store.identity().store;
    let owner = Arc::<Owner>::default();
    let known = known(&config, &founding);
    let peers = addresses(&config, &known);
    let roster = Arc::new(Roster::new(known, pins, owner.clone()));
    let check = Arc::clone(&roster) as Arc<dyn PeerCheck>;
    let tcp = TcpConfig {
        requests: Some(Arc::clone(&owner) as Arc<dyn RequestHandler>),
        insecure_plaintext: config.listen.insecure_plaintext,
        limits: TcpLimits {
            connections: descriptors::room_for_peers(config.cluster.nodes.len(), descriptors),
            ..TcpLimits::default()
        },
        supervisor: supervisor.clone(),
        ..TcpConfig::new(&store, peers, check)
    };
    let mut settings = skep::Config::new(
        id,
        config.node_name(),
        &config.cluster.id,
        &config.node.data_dir,
    );
    settings.fsync_delay = Duration::from_millis(config.raft.fsync_delay_ms);
    settings.ticker = Ticker::Every(config.tick());
    settings.shards = config.raft.shards;
    settings.store = Some(store);
    settings.disk_reserve = config.limits.disk_reserve_bytes;
    settings.supervisor = supervisor;
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
            roster,
            owner,
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

/// Where the other founders are, as far as the file says so. Whoever else it names is none of the cluster's for that.
fn addresses(config: &Config, known: &BTreeSet<NodeId>) -> Vec<(NodeId, String)> {
    let named = config.cluster.nodes.iter();
    named
        .map(|node| (NodeId(node.id), node.peer.clone()))
        .filter(|(node, _)| known.contains(node))
        .collect()
}

/// Whom this node knows before it has a catalogue: the founders, and where it joined those that it was told of then.
fn known(config: &Config, founding: &Founding) -> BTreeSet<NodeId> {
    let named = config.cluster.nodes.iter().map(|node| NodeId(node.id));
    let told = named.filter(|_| config.joins());
    founding.founders.keys().copied().chain(told).collect()
}
