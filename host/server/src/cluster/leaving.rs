//! The end of a node that is told to stop: nobody should notice.
//!
//! Others lead what it leads while it still serves; then it takes nothing new, says so to whoever asks, and answers what it
//! has; and only then its ports are closed. Each step is bounded: a node that cannot hand over stops all the same, as if it
//! had crashed.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use skep::clock;
use skep_core::id::{GroupId, NodeId};
use skep_log::{DiskVfs, Vfs, note_went_back};

use super::{Host, blocking};
use crate::catalog::NodeRecord;
use crate::error::HostError;

/// How long others may take to lead. A transfer takes milliseconds; one that comes to nothing is given up after an election
/// timeout, and then another member is asked.
const HAND_OVER_WITHIN: Duration = Duration::from_secs(3);
/// How long what is in flight may take to be answered.
const SETTLE_WITHIN: Duration = Duration::from_secs(5);
/// How long whoever asks is told to ask elsewhere before connections are closed: a request on a connection that is closed
/// meanwhile would have an unknown outcome.
const LINGER: Duration = Duration::from_millis(100);
/// How long the last messages may take to be written.
const FLUSH_WITHIN: Duration = Duration::from_millis(500);

impl Host {
    /// Makes this node one that nobody needs. Nothing to do for a node that is alone, or leaves already.
    pub(super) async fn leave(&self) {
        let is_alone = self.catalog().nodes().len() <= 1;
        if is_alone || self.inner.stopping.is_cancelled() || self.is_leaving() {
            return;
        }
        self.inner.handing_over.store(true, Ordering::Release);
        let led = self.inner.node.hand_over_all(HAND_OVER_WITHIN).await;
        if led > 0 {
            tracing::warn!(
                groups = led,
                "no other member leads in the place of this node"
            );
        }
        self.inner.leaving.store(true, Ordering::Release);
        if !self.inner.node.settle(SETTLE_WITHIN).await {
            tracing::warn!("the node stops with requests in flight");
        }
        clock::sleep(LINGER).await;
        self.inner.transport.flush(FLUSH_WITHIN).await;
    }

    pub(super) fn is_leaving(&self) -> bool {
        self.inner.leaving.load(Ordering::Acquire)
    }

    /// Refuses what is new to a node that leaves, or whose data directory went back.
    pub(crate) fn check_stays(&self) -> Result<(), HostError> {
        let node = self.id();
        match (self.is_leaving(), self.inner.roster.own_went_back()) {
            (true, _) => Err(HostError::Stops { node }),
            (false, Some(said)) => Err(HostError::WentBack { node, said }),
            (false, None) => Ok(()),
        }
    }

    /// Takes no part any more once another node has said that this one's store went back: it may have forgotten what it
    /// acknowledged, and those who have not heard of that would believe it.
    pub(super) async fn cut_off(self) {
        let roster = &self.inner.roster;
        roster.cut_off.notified().await;
        self.inner.transport.stop().await;
        let Some(said) = roster.own_went_back() else {
            return;
        };
        let dir = self.inner.config.node.data_dir.clone();
        let noted = blocking(move || {
            let vfs: Arc<dyn Vfs> = Arc::new(DiskVfs);
            note_went_back(&vfs, &dir, &said)
        });
        let noted = noted.await.and_then(|noted| {
            let noted = noted.map_err(skep::Error::Storage);
            noted.map_err(HostError::from)
        });
        if let Err(error) = noted {
            tracing::error!(%error, "that the data directory went back is not noted in it; do not start the node again");
        }
    }

    /// Where to go instead of to this node: a member of the group, or any node if it is not one of the catalogue's groups.
    pub(crate) fn instead(&self, group: GroupId) -> Option<Arc<NodeRecord>> {
        let (catalog, own) = (self.catalog(), self.id());
        let is_other = |node: &NodeId| *node != own;
        let other = match catalog.group(group) {
            Some(record) => record.members.iter().copied().find(is_other),
            None => catalog.nodes().map(|node| node.id).find(is_other),
        };
        catalog.node(other?).cloned()
    }
}
