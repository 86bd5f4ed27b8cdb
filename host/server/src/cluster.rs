//! One node of a cluster as the binary runs it: a [`MultiNode`], its transport, the catalogue, and the groups the
//! catalogue puts on it.

mod collection;
mod disk;
mod founding;
mod groups;
mod leaving;
mod listing;
mod machines;
mod members;
mod nodes;
mod placement;
mod reconcile;
mod replicas;
mod requests;
mod restarts;
mod roster;
mod silence;
mod start;
mod upgrades;
mod voters;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use skep::DiskRoom;
use skep::MultiNode;
use skep::Supervisor;
use skep::clock::{self, Stopwatch};
use skep::status::Consistency;
use skep::transport::TcpTransport;
use skep::trouble::{Kind, Trouble, Troubled};
use skep_core::founders::Founding;
use skep_core::id::{GroupId, Incarnation, LogIndex, NodeId};
use skep_core::outcome::Outcome;
use skep_log::StoreId;
use skep_machine::wasm::{Compiler, InProcess, MachineBudget};
use skep_types::admin::{LIST_MAX, NodeInfo, Page};
use skep_types::code::Code;
use skep_types::shared::lock;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::api::doors::Doors;
use crate::catalog::command::{Command, Refusal, Reply};
use crate::catalog::{self, Catalog, GroupRecord};
use crate::components::ComponentStore;
use crate::components::machines::Machines;
use crate::config::Config;
use crate::error::HostError;
use crate::metrics::Metrics;
use crate::peers::Peers;

pub use founding::{Beginning, Founded, Waiting, init};
pub use requests::{Place, Reach};
pub use upgrades::Activate;

/// How long one attempt to change the catalogue may take; an election fits into it several times.
const CATALOG_ATTEMPT: Duration = Duration::from_secs(5);
/// How long a group that fails to come up holds back a node's readiness, from its first failure on. One that fails for longer
/// is trouble of that group alone, and no reason to send clients of all others away.
const PATIENCE: Duration = Duration::from_secs(6);
/// Attempts to change the catalogue after the first one, all under one request id.
const CATALOG_RETRIES: u32 = 2;

/// Reasons why a node is not ready, and groups in trouble, that it names in one answer.
const REASONS_MAX: usize = 64;

/// A running node. Cheap to clone; all clones are the same node.
#[derive(Clone)]
pub struct Host {
    inner: Arc<Inner>,
}

struct Inner {
    config: Config,
    /// How the cluster was founded that this node belongs to.
    founding: Founding,
    node: MultiNode,
    transport: Arc<TcpTransport>,
    store: StoreId,
    roster: Arc<roster::Roster>,
    catalog: watch::Receiver<Arc<Catalog>>,
    /// Where the catalogue's machine shows its states.
    published: watch::Sender<Arc<Catalog>>,
    /// Whether a majority has confirmed the catalogue since this node started. Until then groups may be missing in it that
    /// were put here long ago.
    confirmed: AtomicBool,
    /// Groups have gone whose memory the allocator still keeps.
    emptied: AtomicBool,
    components: ComponentStore,
    room: Arc<DiskRoom>,
    /// Held while a component is weighed, stored and announced, so that what all may have together is not given twice.
    announcing: tokio::sync::Mutex<()>,
    /// Held while a component is stored and announced, and alone while those that nothing names are deleted.
    storing: tokio::sync::RwLock<()>,
    machines: Machines,
    peers: Peers,
    doors: Doors,
    metrics: Metrics,
    supervisor: Supervisor,
    /// What becomes of each group that the catalogue has put here, or had.
    hosted: Mutex<BTreeMap<GroupId, Hosted>>,
    /// Something changed that the reconciler ought to look at.
    changed: Notify,
    /// The node is to be stopped: it takes nothing new, and answers what it has.
    leaving: AtomicBool,
    /// It hands its leadership over, and is not to get any back.
    handing_over: AtomicBool,
    /// The groups that have fewer replicas than they should, where this node leads the catalogue.
    under_replicated: Mutex<Option<BTreeSet<GroupId>>>,
    stopping: CancellationToken,
}

/// The state of one group on this node.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Hosted {
    /// It is being brought up. It fails since then; `reason` is why the last of the attempts failed.
    Starting {
        incarnation: Incarnation,
        fails: Option<Stopwatch>,
        reason: Option<String>,
    },
    /// It runs.
    Running { incarnation: Incarnation },
    /// It is being removed.
    Stopping {
        incarnation: Incarnation,
        reason: Option<String>,
    },
}

impl Host {
    /// Starts the node of a configuration: opens its store and its port for other nodes, founds its cluster with those that the
    /// configuration lists unless it belongs to one, and opens its group 0. Groups come up in the background as the catalogue
    /// names them. Waits for the other founders as long as it takes; see [`Beginning`].
    ///
    /// # Errors
    ///
    /// [`HostError`] naming the directory, port or setting that is in the way; nothing runs then.
    pub async fn start(config: Config) -> Result<Self, HostError> {
        Self::start_with(config, Arc::new(InProcess)).await
    }

    /// As [`start`](Self::start), with a compiler other than the one in this process, whose work nothing ends.
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn start_with(
        config: Config,
        compiler: Arc<dyn Compiler>,
    ) -> Result<Self, HostError> {
        let founded = Beginning::open(config).await?.founded().await?;
        Self::start_founded(founded, compiler).await
    }

    /// Starts a node that belongs to its cluster.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    pub async fn start_founded(
        founded: Founded,
        compiler: Arc<dyn Compiler>,
    ) -> Result<Self, HostError> {
        start::start(founded, compiler).await
    }

    /// Stops everything in order: others lead, what is in flight is answered, and only then nobody is let in any more. Idempotent;
    /// afterwards every request is answered `stopped`.
    pub async fn stop(&self) {
        self.leave().await;
        self.inner.stopping.cancel();
        self.inner.node.stop().await;
        self.inner.transport.stop().await;
    }

    /// Resolves, with the reason, if the node fails in a way that only a restart can mend.
    pub async fn failed(&self) -> String {
        self.inner.node.on_fatal().await.reason
    }

    /// Cancelled when [`stop`](Self::stop) begins.
    pub fn stopping(&self) -> CancellationToken {
        self.inner.stopping.clone()
    }

    /// Takes from a configuration what can change while the node runs; see [`Config::take_reloadable`].
    pub fn reload(&self, config: &Config) {
        self.inner.doors.set(config);
    }

    /// The ports for clients.
    pub fn doors(&self) -> &Doors {
        &self.inner.doors
    }

    /// The configuration it was started with.
    pub fn config(&self) -> &Config {
        &self.inner.config
    }

    /// Who watches the node's tasks.
    pub fn supervisor(&self) -> &Supervisor {
        &self.inner.supervisor
    }

    /// The library's node.
    pub fn node(&self) -> &MultiNode {
        &self.inner.node
    }

    /// What the machines of this node hold together, and may.
    pub fn machine_budget(&self) -> &MachineBudget {
        self.inner.machines.budget()
    }

    /// What is counted.
    pub fn metrics(&self) -> &Metrics {
        &self.inner.metrics
    }

    /// The transport between the nodes.
    pub fn transport(&self) -> &Arc<TcpTransport> {
        &self.inner.transport
    }

    /// The components on this node's disk.
    pub fn components(&self) -> &ComponentStore {
        &self.inner.components
    }

    /// The catalogue as this node has it.
    pub fn catalog(&self) -> Arc<Catalog> {
        self.inner.catalog.borrow().clone()
    }

    /// Why the node cannot serve yet; empty if it can. A group in trouble is no reason: the node serves the others, and passes
    /// on what it is asked for that one. See [`troubled`](Self::troubled).
    pub fn waiting_for(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        let roster = &self.inner.roster;
        reasons.extend(roster.dismissed());
        let went_back = roster.own_went_back();
        reasons.extend(went_back.map(|said| format!("nothing ({}): {said}", Code::StoreWentBack)));
        match self.inner.node.leader(catalog::GROUP) {
            Ok(Some(_)) => {}
            Ok(None) => reasons.push("a leader of the catalogue".to_owned()),
            Err(error) => reasons.push(format!("the catalogue: {error}")),
        }
        let (catalog, own) = (self.catalog(), self.id());
        if self.is_leaving() {
            reasons.push("its end: it is being stopped".to_owned());
        }
        if !self.inner.confirmed.load(Ordering::Acquire) {
            reasons.push("a majority to confirm the catalogue".to_owned());
        }
        if catalog.node(own).is_none() {
            reasons.push("this node's entry in the catalogue".to_owned());
        }
        let hosted = self.hosted();
        let to_be_begun = catalog
            .groups()
            .filter(|record| record.members.contains(&own) && !hosted.contains_key(&record.id));
        reasons.extend(to_be_begun.map(|record| format!("group {}", record.id)));
        for (group, hosted) in hosted.iter() {
            if let Hosted::Starting { reason, fails, .. } = hosted
                && fails.is_none_or(|since| since.elapsed() < PATIENCE)
            {
                let reason = reason
                    .as_deref()
                    .map(|reason| format!(" ({reason})"))
                    .unwrap_or_default();
                reasons.push(format!("group {group}{reason}"));
            }
        }
        reasons.extend(self.inner.supervisor.missing());
        the_first(reasons.into_iter())
    }

    /// What another node says of this one's data directory, if it went back; then the node takes no part any more.
    pub fn own_went_back(&self) -> Option<String> {
        self.inner.roster.own_went_back()
    }

    /// How many nodes are refused here because their data directories went back.
    pub fn peers_went_back(&self) -> usize {
        self.inner.roster.went_back().len()
    }

    /// The groups that this node ought to serve and cannot, or not as it should, in the order of their ids.
    pub fn troubled(&self) -> Vec<Troubled> {
        let mut troubled = self.inner.node.node_status().troubled;
        for Troubled { group, trouble, .. } in &mut troubled {
            *trouble = self.judged(*group, trouble.clone());
        }
        let catalog = self.catalog();
        let starting = self.hosted();
        troubled.extend(starting.iter().filter_map(|(group, hosted)| {
            let Hosted::Starting {
                reason: Some(reason),
                ..
            } = hosted
            else {
                return None;
            };
            // While a replica is here it speaks for itself.
            if self.inner.node.exists(*group) {
                return None;
            }
            let name = catalog.group(*group)?.name.clone();
            Some(Troubled {
                group: *group,
                name,
                trouble: Trouble::new(Kind::Starting, reason.clone()),
            })
        }));
        troubled.sort_by_key(|troubled| troubled.group);
        troubled
    }

    /// What is wrong with a replica, in the light of who else has one.
    pub(super) fn judged(&self, group: GroupId, trouble: Trouble) -> Trouble {
        let catalog = self.catalog();
        let is_the_only_one = match catalog.group(group) {
            Some(record) => record.members.iter().all(|node| *node == self.id()),
            None => group == catalog::GROUP && self.is_alone(),
        };
        match is_the_only_one {
            true => trouble.of_the_only_one(),
            false => trouble,
        }
    }

    /// The node as it sees itself and its cluster.
    pub async fn info(&self) -> Result<NodeInfo, HostError> {
        let waiting_for = self.waiting_for();
        let catalog = self.catalog();
        let status = self.inner.node.node_status();
        let mut troubled = self.troubled();
        troubled.truncate(LIST_MAX);
        let log = self.inner.node.log_stats();
        Ok(NodeInfo {
            id: self.id(),
            name: self.inner.config.node_name(),
            cluster: self.inner.config.cluster.id.clone(),
            identity: Some(self.inner.founding.identity().to_string()),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ready: waiting_for.is_empty(),
            waiting_for,
            troubled,
            replicas: status.groups,
            leading: status.leading,
            snapshots_received: self
                .inner
                .transport
                .stats()
                .snapshots_received
                .load(Ordering::Relaxed),
            nodes: catalog.nodes().map(|node| (**node).clone()).collect(),
            groups: self.group_infos(&catalog, Page::default()).await,
            group_count: catalog.groups().len(),
            log: serde_json::json!({
                "bytes": log.bytes,
                "segments": log.segments,
                "records": log.records,
                "syncs": log.syncs,
                "appended_bytes": log.appended_bytes,
            }),
        })
    }

    /// The group of a name or id. Asks the other nodes if this one does not know it, so that a group that was just
    /// created elsewhere is found.
    pub async fn find(&self, group: &str) -> Result<Arc<GroupRecord>, HostError> {
        if let Some(record) = self.catalog().find(group) {
            return Ok(record.clone());
        }
        self.refresh().await?;
        let unknown = || HostError::UnknownGroup(group.chars().take(catalog::NAME_MAX).collect());
        self.catalog().find(group).cloned().ok_or_else(unknown)
    }

    /// Whether the cluster is this node, as far as is known here.
    fn is_alone(&self) -> bool {
        let nodes = self.catalog().nodes().len();
        nodes.max(self.inner.founding.founders.len()) == 1
    }

    fn id(&self) -> NodeId {
        self.inner.config.node_id()
    }

    fn hosted(&self) -> std::sync::MutexGuard<'_, BTreeMap<GroupId, Hosted>> {
        lock(&self.inner.hosted)
    }

    /// Makes sure that the catalogue here holds everything that was acknowledged anywhere before.
    async fn refresh(&self) -> Result<(), HostError> {
        self.inner
            .node
            .query(
                catalog::GROUP,
                Bytes::from_static(b"version"),
                Consistency::Linearizable,
            )
            .await?;
        Ok(())
    }

    /// Changes the catalogue, exactly once, and waits until the change is visible here.
    async fn change_catalog(&self, command: &Command) -> Result<Reply, HostError> {
        self.change_catalog_at(command)
            .await
            .map(|(reply, _)| reply)
    }

    /// As [`change_catalog`](Self::change_catalog), with the index of the command.
    async fn change_catalog_at(&self, command: &Command) -> Result<(Reply, LogIndex), HostError> {
        let bytes =
            serde_json::to_vec(command).map_err(|error| HostError::Internal(error.to_string()))?;
        let retry = self.inner.node.propose_retry(
            catalog::GROUP,
            bytes.into(),
            CATALOG_ATTEMPT,
            Some(CATALOG_RETRIES),
        );
        let response = retry.await?;
        let reply = match response.outcome {
            Outcome::Reply(reply) => serde_json::from_slice(&reply)
                .map_err(|error| HostError::Internal(error.to_string()))?,
            Outcome::Refused { code, message } => {
                return Err(HostError::Refused(Refusal::from_number(code, message)));
            }
            Outcome::Rejected { code, message } => {
                return Err(HostError::Internal(format!(
                    "the catalogue rejected a command ({code}): {message}"
                )));
            }
            Outcome::Fault(fault) => {
                return Err(HostError::Internal(format!(
                    "the catalogue failed: {fault}"
                )));
            }
        };
        let mut states = self.inner.catalog.clone();
        let seen = states.wait_for(|catalog| catalog.version >= response.index);
        // The change is made; that this node is slow to see it is no reason to call it failed.
        let _ = clock::timeout(CATALOG_ATTEMPT, seen).await;
        Ok((reply, response.index))
    }
}

/// The first of these reasons, and how many more there are.
pub(crate) fn the_first(reasons: impl ExactSizeIterator<Item = String>) -> Vec<String> {
    let more = reasons.len().saturating_sub(REASONS_MAX);
    let mut first: Vec<String> = reasons.take(REASONS_MAX).collect();
    if more > 0 {
        first.push(format!("{more} more"));
    }
    first
}

/// Runs what blocks on the disk away from the async threads.
pub(super) async fn blocking<T: Send + 'static>(
    run: impl FnOnce() -> T + Send + 'static,
) -> Result<T, HostError> {
    tokio::task::spawn_blocking(run)
        .await
        .map_err(|error| HostError::Internal(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_names_so_many_reasons_and_counts_the_rest() {
        let named = |reasons: usize| the_first((0..reasons).map(|at| at.to_string()));
        assert_eq!(named(REASONS_MAX).len(), REASONS_MAX);
        let many = named(REASONS_MAX + 7);
        assert_eq!(many.len(), REASONS_MAX + 1);
        assert_eq!(many.last().map(String::as_str), Some("7 more"));
    }
}
