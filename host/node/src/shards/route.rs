//! Where a group is, and what is told of it without asking its shard.

use std::sync::atomic::{
    AtomicBool, AtomicU64, Ordering::AcqRel, Ordering::Acquire, Ordering::Relaxed,
};
use std::sync::{Arc, PoisonError, RwLock};

use skep_core::id::{GroupId, LogIndex, NodeId};
use skep_log::GroupKey;

use crate::disk::store::Disk;
use crate::machines::gauge::MemoryGauge;
use crate::machines::worker::Owner;
use crate::session::NodeSession;
use crate::shards::replica::Life;
use crate::shards::router::Router;
use crate::trouble::Trouble;

/// Where a group is, and what is told of it without asking its shard.
pub(crate) struct Route {
    pub(crate) shard: usize,
    pub(crate) key: GroupKey,
    pub(crate) life: Life,
    pub(crate) name: String,
    pub(crate) disk: Arc<Disk>,
    pub(crate) session: NodeSession,
    /// What its machine holds here.
    pub(crate) memory: Arc<MemoryGauge>,
    leader: AtomicU64,
    snapshot: AtomicU64,
    halted: AtomicBool,
    trouble: RwLock<Option<Arc<Trouble>>>,
    members: RwLock<Arc<[NodeId]>>,
}

impl Route {
    /// `snapshot` is the newest durable one; `members` are those known at the start.
    pub(crate) fn new(
        router: &Router,
        owner: &Owner,
        disk: Arc<Disk>,
        snapshot: LogIndex,
        members: Arc<[NodeId]>,
    ) -> Self {
        Self {
            shard: router.shard_of(GroupId(owner.key.group)),
            key: owner.key,
            life: owner.life,
            name: owner.name.clone(),
            disk,
            session: NodeSession::new(),
            memory: Arc::clone(&owner.memory),
            leader: AtomicU64::new(0),
            snapshot: AtomicU64::new(snapshot.0),
            halted: AtomicBool::new(false),
            trouble: RwLock::default(),
            members: RwLock::new(members),
        }
    }

    /// The leader as this node sees it; 0 if none is known.
    pub(crate) fn leader(&self) -> NodeId {
        NodeId(self.leader.load(Relaxed))
    }

    pub(crate) fn set_leader(&self, leader: Option<NodeId>) {
        self.leader.store(leader.unwrap_or_default().0, Relaxed);
    }

    pub(crate) fn set_halted(&self) {
        self.leader.store(0, Relaxed);
        self.halted.store(true, Relaxed);
    }

    pub(crate) fn is_halted(&self) -> bool {
        self.halted.load(Relaxed)
    }

    /// What is wrong with the replica, if anything is.
    pub(crate) fn trouble(&self) -> Option<Arc<Trouble>> {
        let trouble = self.trouble.read();
        trouble.unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set_trouble(&self, trouble: Option<Trouble>) {
        let mut shown = self.trouble.write().unwrap_or_else(PoisonError::into_inner);
        *shown = trouble.map(Arc::new);
    }

    /// A snapshot at this index is durable, so none before it need arrive.
    pub(crate) fn snapshotted(&self, index: LogIndex) {
        self.snapshot.fetch_max(index.0, AcqRel);
    }

    pub(crate) fn members(&self) -> Arc<[NodeId]> {
        Arc::clone(&self.members.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn set_members(&self, members: Arc<[NodeId]>) {
        *self.members.write().unwrap_or_else(PoisonError::into_inner) = members;
    }

    /// Index of the newest durable snapshot; 0 if there is none.
    pub(crate) fn snapshot(&self) -> LogIndex {
        LogIndex(self.snapshot.load(Acquire))
    }
}
