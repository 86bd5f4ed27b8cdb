//! Who is part of the cluster, as this node knows, and by which store each of them is known.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, OnceLock, Weak};
use std::time::Duration;

use futures::future::BoxFuture;
use skep::clock::{self, Stopwatch};
use skep::transport::{PeerCheck, PeerRefused, RequestHandler};
use skep_core::id::NodeId;
use skep_log::{Heard, LogError, PeerPins, StoreId};
use skep_types::code::Code;
use skep_types::past::Past;
use skep_types::shared::lock;
use skep_wire::proto;
use tokio::sync::Notify;

use super::{Host, Inner};
use crate::api::call::Caller;
use crate::api::requests::answer;
use crate::catalog::Catalog;

/// How long the other nodes are asked for the catalogue because of a stranger.
const INQUIRY_WITHIN: Duration = Duration::from_secs(2);
/// Between two such questions, however many strangers come: one answer holds for all of them.
const INQUIRY_PAUSE: Duration = Duration::from_secs(1);

/// The node that a transport belongs to, which is started after it.
#[derive(Default)]
pub(super) struct Owner(OnceLock<Weak<Inner>>);

impl Owner {
    /// The node has started.
    pub(super) fn started(&self, host: &Host) {
        // There is one node for each transport.
        let _ = self.0.set(std::sync::Arc::downgrade(&host.inner));
    }

    fn host(&self) -> Option<Host> {
        let inner = self.0.get()?.upgrade()?;
        Some(Host { inner })
    }
}

/// Who is let in: the nodes of the configuration and those of the catalogue. Each one's store is remembered from the first
/// time it was seen, or named by the catalogue; nothing is remembered of anybody else.
pub(super) struct Roster {
    configured: BTreeSet<NodeId>,
    pins: Mutex<PeerPins>,
    owner: std::sync::Arc<Owner>,
    /// When the others were last asked.
    inquired: tokio::sync::Mutex<Option<Stopwatch>>,
    /// Who said that this node was removed, or given up.
    dismissed: Mutex<Option<(NodeId, Code)>>,
    /// What another node says of this one's store, if it went back.
    own_went_back: Mutex<Option<String>>,
    /// Somebody says so.
    pub(super) cut_off: Notify,
    /// Nodes that were refused when they were last met, because their stores went back.
    went_back: Mutex<BTreeSet<NodeId>>,
    /// Where nodes said that they are, in this life of the process.
    said: Mutex<BTreeMap<NodeId, String>>,
}

impl Roster {
    pub(super) fn new(
        configured: BTreeSet<NodeId>,
        pins: PeerPins,
        owner: std::sync::Arc<Owner>,
    ) -> Self {
        Self {
            configured,
            pins: Mutex::new(pins),
            owner,
            inquired: tokio::sync::Mutex::default(),
            dismissed: Mutex::default(),
            own_went_back: Mutex::default(),
            cut_off: Notify::new(),
            went_back: Mutex::default(),
            said: Mutex::default(),
        }
    }

    /// That this node is none of the cluster's any more and what to do, if that is so.
    pub(super) fn dismissed(&self) -> Option<String> {
        let (by, code) = (*lock(&self.dismissed))?;
        let how = match code {
            Code::NodeGivenUp => "given up in a forced recovery of the cluster",
            _ => "removed from the cluster for ever",
        };
        Some(format!(
            "nothing: this node was {how}, as node {by} says; stop it, and have it join as a new node, with an empty data directory and \
             a token of `skep node invite`"
        ))
    }

    /// What another node says of this one's store and what to do, if it went back.
    pub(super) fn own_went_back(&self) -> Option<String> {
        lock(&self.own_went_back).clone()
    }

    /// The nodes that are refused because their stores went back.
    pub(super) fn went_back(&self) -> BTreeSet<NodeId> {
        lock(&self.went_back).clone()
    }

    /// Somebody says that this node's store went back. From now on it speaks to nobody.
    fn note_went_back(&self, by: NodeId, text: &str) {
        let mut said = lock(&self.own_went_back);
        if said.is_none() {
            let text = format!("as node {by} says, {text}");
            tracing::error!(
                code = Code::StoreWentBack.name(),
                "this node takes no part any more: {text}"
            );
            *said = Some(text);
            self.cut_off.notify_one();
        }
    }

    /// Where a node says that it is. It was let in, so it is one of those that are known.
    pub(super) fn address(&self, node: NodeId) -> Option<String> {
        lock(&self.said).get(&node).cloned()
    }

    /// A node says where it is; whether that is news.
    pub(super) fn note_address(&self, node: NodeId, address: String) -> bool {
        let former = lock(&self.said).insert(node, address.clone());
        former != Some(address)
    }

    /// Somebody says that this node was removed, or given up.
    fn note_dismissal(&self, by: NodeId, code: Code) {
        let is_new = lock(&self.dismissed).replace((by, code)).is_none();
        if is_new && let Some(dismissed) = self.dismissed() {
            tracing::error!("this node waits for {dismissed}");
        }
    }

    /// Pins the stores that the catalogue names: those of nodes this one has never met too.
    pub(super) fn learn(&self, own: NodeId, catalog: &Catalog) {
        if catalog.removed_node(own).is_some() {
            self.note_dismissal(own, Code::NodeRemoved);
        }
        for removed in catalog.removed_nodes() {
            // Its id is never given again.
            lock(&self.went_back).remove(&removed.id);
            let forgotten = lock(&self.pins).forget(removed.id.0);
            if let Err(error) = forgotten {
                tracing::warn!(node = %removed.id, %error, "the store of a removed node is not forgotten");
            }
        }
        for node in catalog.nodes().filter(|node| node.id != own) {
            let Some(store) = StoreId::parse(&node.store) else {
                continue;
            };
            if let Err(error) = lock(&self.pins).check(node.id.0, store) {
                tracing::warn!(node = node.id.0, %error, "the catalogue knows a node with another store");
            }
        }
    }
}

impl PeerCheck for Roster {
    fn check(&self, node: NodeId, store: [u8; 16], past: &Past) -> Result<(), PeerRefused> {
        if self.own_went_back().is_some() {
            let reason = "this node's own store went back, and it takes no part".to_owned();
            return Err(PeerRefused::CheckFailed { node, reason });
        }
        let catalog = self.owner.host().map(|host| host.catalog());
        let removed = catalog
            .as_ref()
            .and_then(|catalog| catalog.removed_node(node));
        if removed.is_some() {
            return Err(PeerRefused::Removed { node });
        }
        let record = catalog.as_ref().and_then(|catalog| catalog.node(node));
        if record.is_none() && !self.configured.contains(&node) {
            return Err(PeerRefused::UnknownNode { node });
        }
        // A node that was not met yet is known by the store that the catalogue names. Where it was met with another one, nobody
        // can say which of them is right, and it is let in with neither.
        if let Some(named) = record.and_then(|record| StoreId::parse(&record.store)) {
            let pinned = lock(&self.pins).check(node.0, named);
            pinned.map_err(|error| PeerRefused::of(node, error))?;
        }
        let met = self.pins.check(node, store, past);
        let mut went_back = lock(&self.went_back);
        match &met {
            Err(PeerRefused::WentBack { .. }) => went_back.insert(node),
            _ => went_back.remove(&node),
        };
        met
    }

    fn remember(&self, heard: &BTreeMap<u64, Heard>) -> Result<(), LogError> {
        self.pins.remember(heard)
    }

    fn refused_by(&self, node: NodeId, code: Code, text: &str) {
        match code {
            Code::NodeRemoved | Code::NodeGivenUp => self.note_dismissal(node, code),
            Code::StoreWentBack => self.note_went_back(node, text),
            _ => {}
        }
    }

    fn inquire(&self, node: NodeId) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let Some(host) = self.owner.host() else {
                return;
            };
            // One at a time: whoever waits here finds the answer that another one got.
            let mut inquired = self.inquired.lock().await;
            if inquired.is_some_and(|watch| watch.elapsed() < INQUIRY_PAUSE) {
                return;
            }
            let asked = clock::timeout(INQUIRY_WITHIN, host.refresh()).await;
            *inquired = Some(Stopwatch::start());
            if !matches!(asked, Some(Ok(()))) {
                tracing::debug!(%node, "nobody could say whether a node is part of the cluster");
            }
        })
    }
}

impl RequestHandler for Owner {
    fn answer(&self, from: NodeId, request: proto::Request) -> BoxFuture<'static, proto::Response> {
        let host = self.host();
        Box::pin(async move {
            match host {
                Some(host) => answer(&host, Caller::Node(from), request).await,
                None => {
                    tracing::debug!(node = %from, "a node asks before this one has started");
                    let error = proto::Error {
                        retryable: true,
                        ..proto::Error::new(Code::Busy, "the node is starting; ask again")
                    };
                    proto::Response {
                        id: request.id,
                        body: Some(proto::response::Body::Error(error)),
                        leader: 0,
                    }
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use skep_core::id::LogIndex;
    use skep_log::{SimVfs, Vfs};

    use super::*;
    use crate::catalog::command::Command;
    use crate::catalog::{At, NodeRecord};

    fn roster(configured: &[u64]) -> Roster {
        let vfs: Arc<dyn Vfs> = Arc::new(SimVfs::new(1));
        let dir = Path::new("/data");
        vfs.create_dir_all(dir).expect("a directory");
        let pins = PeerPins::open(vfs, dir).expect("no pins yet");
        let configured = configured.iter().copied().map(NodeId).collect();
        Roster::new(configured, pins, Arc::default())
    }

    #[test]
    fn a_store_that_the_catalogue_names_is_known_before_its_node_was_met() {
        let roster = roster(&[1, 2]);
        let (own, other) = (NodeId(1), NodeId(2));
        let mut catalog = Catalog::default();
        for (id, store) in [(own, [1; 16]), (other, [2; 16])] {
            let record = NodeRecord {
                id,
                name: format!("node-{id}"),
                store: StoreId(store).to_string(),
                ..NodeRecord::default()
            };
            let at = At {
                index: LogIndex(1),
                now: 0,
            };
            catalog.apply(at, Command::PutNode(record)).expect("taken");
        }
        roster.learn(own, &catalog);
        let past = Past::default();
        assert!(roster.check(other, [2; 16], &past).is_ok());
        let refused = roster
            .check(other, [3; 16], &past)
            .expect_err("another store");
        assert!(matches!(refused, PeerRefused::WrongStore { node } if node == other));
    }

    /// Four thousand forged ids filled the file, and then no node was let in any more.
    #[test]
    fn nothing_is_remembered_of_nodes_that_nobody_named() {
        let roster = roster(&[1, 2]);
        for id in 3..10_000 {
            let refused = roster
                .check(NodeId(id), [9; 16], &Past::default())
                .expect_err("unknown");
            assert!(matches!(refused, PeerRefused::UnknownNode { node } if node == NodeId(id)));
        }
        let pins = roster.pins.lock().expect("no panic");
        assert!((3..10_000).all(|id| pins.pinned(id).is_none()));
        drop(pins);
        assert!(roster.check(NodeId(2), [2; 16], &Past::default()).is_ok());
    }
}
