//! Which shard has which group: what callers, peers, the log and the machines post through.

use std::collections::HashMap;
use std::sync::atomic::{
    AtomicBool, AtomicU8, AtomicU64, Ordering::AcqRel, Ordering::Acquire, Ordering::Relaxed,
};
use std::sync::{Arc, Mutex};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use skep_core::id::{GroupId, NodeId};
use skep_core::input::{Input, Waiter};
use skep_core::message::{ArrivedSnapshot, Batch, PeerMessage, SnapshotName};
use skep_core::outcome::LeaderChanged;
use skep_log::{GroupKey, SnapshotFile, SnapshotReceiver};
use skep_types::shared::lock;
use tokio::sync::{broadcast, watch};

use crate::disk::store::{Disk, SNAPSHOT_BYTES_MAX};
use crate::error::Error;
use crate::shards::mailbox::{Completion, Event, FromPeer, Mailbox, Request};
use crate::shards::replica::Life;
use crate::shards::route::Route;
use crate::transport::{Inbound, Reporter, SnapshotRefusal, SnapshotStatus};

/// Snapshots a node receives at once, each from the disk of another; more only make all of them late.
pub(crate) const RECEIVING_MAX: usize = 4;

/// Ticks after which a transfer that neither arrived nor was offered again no longer holds its place: half a minute with
/// the default ticks. A transfer that takes longer goes on; only its place may be given to another.
const RECEIVING_TICKS: u64 = 300;

/// Changes of leader a slow watcher may fall behind by before it misses some.
const LEADER_CHANGES_MAX: usize = 1024;

/// Why a node cannot go on (the severity above a halted group): it acknowledges nothing any more.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("node {node} has failed: {reason}")]
pub struct NodeFault {
    /// The node.
    pub node: NodeId,
    /// What broke.
    pub reason: String,
}

/// The shared part of a node.
pub(crate) struct Router {
    pub(crate) node: NodeId,
    mailboxes: Box<[Mailbox]>,
    /// The only map that threads share.
    slots: DashMap<GroupId, Slot>,
    phase: AtomicU8,
    fault: watch::Sender<Option<NodeFault>>,
    leaders: broadcast::Sender<(GroupId, LeaderChanged)>,
    waiters: AtomicU64,
    lives: AtomicU64,
    ticks: AtomicU64,
    receiving: Mutex<HashMap<GroupId, Receiving>>,
    pub(crate) misdirected: AtomicU64,
    /// Barriers at which replicas of a group were found to differ.
    pub(crate) divergences: AtomicU64,
    /// Messages of other nodes that replicas did not believe.
    pub(crate) distrusted: AtomicU64,
    /// Commands that were given up.
    pub(crate) given_up: AtomicU64,
    /// Ticks in which commands or queries of a group waited for its quota of bytes, of all groups.
    pub(crate) quota_waits: AtomicU64,
    /// Ticks in which commands of a group waited for members that are behind, of all groups.
    pub(crate) catch_up_waits: AtomicU64,
    /// Members that were left behind, of all groups led here.
    pub(crate) left_behind: AtomicU64,
    pub(crate) dropped: AtomicU64,
}

enum Slot {
    /// Somebody brings the group up.
    Creating,
    Here(Arc<Route>),
    /// Its files are being deleted.
    Leaving(Life),
}

impl Slot {
    fn here(&self) -> Option<Arc<Route>> {
        match self {
            Self::Here(route) => Some(Arc::clone(route)),
            Self::Creating | Self::Leaving(_) => None,
        }
    }
}

#[derive(Clone, Copy)]
struct Receiving {
    offered: u64,
}

const RUNNING: u8 = 0;
const STOPPING: u8 = 1;

impl Router {
    pub(crate) fn new(node: NodeId, shards: usize) -> Self {
        Self {
            node,
            mailboxes: (0..shards).map(|_| Mailbox::default()).collect(),
            slots: DashMap::new(),
            phase: AtomicU8::new(RUNNING),
            fault: watch::Sender::new(None),
            leaders: broadcast::Sender::new(LEADER_CHANGES_MAX),
            waiters: AtomicU64::new(1),
            lives: AtomicU64::new(1),
            ticks: AtomicU64::new(0),
            receiving: Mutex::default(),
            misdirected: AtomicU64::new(0),
            divergences: AtomicU64::new(0),
            distrusted: AtomicU64::new(0),
            given_up: AtomicU64::new(0),
            quota_waits: AtomicU64::new(0),
            catch_up_waits: AtomicU64::new(0),
            left_behind: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
        }
    }

    pub(crate) fn mailboxes(&self) -> &[Mailbox] {
        &self.mailboxes
    }

    pub(crate) fn next_waiter(&self) -> Waiter {
        self.waiters.fetch_add(1, Relaxed)
    }

    pub(crate) fn next_life(&self) -> Life {
        Life(self.lives.fetch_add(1, Relaxed))
    }

    /// The shard of a group: the same for the life of the node.
    pub(crate) fn shard_of(&self, group: GroupId) -> usize {
        // Group ids are often consecutive or multiples; the finaliser of splitmix64 spreads either.
        let mut hash = group.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((hash ^ (hash >> 31)) % self.mailboxes.len() as u64) as usize
    }

    // What callers ask.

    /// Whether the node takes requests.
    pub(crate) fn running(&self) -> Result<(), Error> {
        if let Some(fault) = self.fault.borrow().as_ref() {
            return Err(Error::NodeFailed {
                node: self.node,
                reason: fault.reason.clone(),
            });
        }
        if self.phase.load(Acquire) != RUNNING {
            return Err(Error::Stopped { node: self.node });
        }
        Ok(())
    }

    pub(crate) fn route(&self, group: GroupId) -> Result<Arc<Route>, Error> {
        self.running()?;
        self.here(group).ok_or(Error::NoSuchGroup {
            group,
            node: self.node,
        })
    }

    /// As [`Router::route`], of a node that may have stopped.
    pub(crate) fn here(&self, group: GroupId) -> Option<Arc<Route>> {
        self.slots.get(&group)?.here()
    }

    pub(crate) fn routes(&self) -> Vec<Arc<Route>> {
        self.slots.iter().filter_map(|slot| slot.here()).collect()
    }

    /// Takes the group's name before anything else is done for it; given back unless it is [`Reservation::fill`]ed.
    pub(crate) fn reserve(self: &Arc<Self>, group: GroupId) -> Result<Reservation, Error> {
        self.running()?;
        match self.slots.entry(group) {
            Entry::Occupied(_) => Err(Error::GroupExists { group }),
            Entry::Vacant(vacant) => {
                vacant.insert(Slot::Creating);
                Ok(Reservation {
                    router: Arc::clone(self),
                    group,
                    filled: false,
                })
            }
        }
    }

    /// The replica of this life is gone; its name stays taken until its files are too.
    pub(crate) fn leave(&self, group: GroupId, life: Life) {
        if let Some(mut slot) = self.slots.get_mut(&group)
            && matches!(&*slot, Slot::Here(route) if route.life == life)
        {
            *slot = Slot::Leaving(life);
        }
    }

    /// Nothing of the life is left.
    pub(crate) fn vacate(&self, group: GroupId, life: Life) {
        self.slots.remove_if(
            &group,
            |_, slot| matches!(slot, Slot::Leaving(left) if *left == life),
        );
    }

    pub(crate) fn request(&self, shard: usize, request: Request) -> Result<(), Error> {
        self.mailboxes[shard].request(request).map_err(|_| {
            self.running()
                .err()
                .unwrap_or(Error::Stopped { node: self.node })
        })
    }

    // What threads of the node post.

    pub(crate) fn tick(&self, now: u64) {
        self.ticks.fetch_add(1, Relaxed);
        for mailbox in &self.mailboxes {
            mailbox.tick(now);
        }
    }

    pub(crate) fn complete(
        &self,
        group: GroupId,
        completions: impl IntoIterator<Item = Completion>,
    ) {
        self.mailboxes[self.shard_of(group)].complete(completions);
    }

    /// Tells the replica of a group something, if it still lives this life.
    pub(crate) fn input(&self, group: GroupId, life: Life, input: Input) {
        let event = Event::Input(input);
        self.complete(group, [Completion { group, life, event }]);
    }

    /// Completions of many groups, with one message for each shard.
    pub(crate) fn complete_all(&self, completions: Vec<Completion>) {
        if let [mailbox] = &*self.mailboxes {
            return mailbox.complete(completions);
        }
        let mut of_shards: Vec<Vec<_>> = self.mailboxes.iter().map(|_| Vec::new()).collect();
        for completion in completions {
            of_shards[self.shard_of(completion.group)].push(completion);
        }
        for (mailbox, completions) in self.mailboxes.iter().zip(of_shards) {
            if !completions.is_empty() {
                mailbox.complete(completions);
            }
        }
    }

    /// The log asks these groups to snapshot.
    pub(crate) fn heavy(&self, keys: &[GroupKey]) {
        let asked = keys.iter().filter_map(|key| {
            let route = self
                .here(GroupId(key.group))
                .filter(|route| route.key == *key)?;
            Some(Completion {
                group: GroupId(key.group),
                life: route.life,
                event: Event::Heavy,
            })
        });
        self.complete_all(asked.collect());
    }

    pub(crate) fn leader_changed(&self, route: &Route, change: LeaderChanged) {
        // Nobody may be watching.
        drop(self.leaders.send((GroupId(route.key.group), change)));
    }

    pub(crate) fn leader_changes(&self) -> broadcast::Receiver<(GroupId, LeaderChanged)> {
        self.leaders.subscribe()
    }

    // The end.

    /// The node cannot go on. The first reason stays.
    pub(crate) fn fail(&self, reason: String) {
        let first = self.fault.send_if_modified(|fault| {
            let first = fault.is_none();
            if first {
                tracing::error!(
                    node = self.node.0,
                    reason,
                    "the node has failed and acknowledges nothing any more; restart it"
                );
                *fault = Some(NodeFault {
                    node: self.node,
                    reason,
                });
            }
            first
        });
        if first {
            self.close();
        }
    }

    pub(crate) fn fault(&self) -> watch::Receiver<Option<NodeFault>> {
        self.fault.subscribe()
    }

    /// Takes no more requests; answers whether this was the first call.
    pub(crate) fn begin_stop(&self) -> bool {
        self.phase.swap(STOPPING, AcqRel) == RUNNING
    }

    /// Lets the shards end.
    pub(crate) fn close(&self) {
        for mailbox in &self.mailboxes {
            mailbox.close();
        }
    }

    /// Forgets all groups; for a node whose shards have ended.
    pub(crate) fn clear(&self) {
        self.slots.clear();
    }

    // Arriving snapshots.

    pub(crate) fn receiving(&self) -> usize {
        let now = self.ticks.load(Relaxed);
        let receiving = lock(&self.receiving);
        receiving.values().filter(|place| place.holds(now)).count()
    }

    fn unreported(&self, group: GroupId, node: NodeId) -> Result<Arc<Route>, Error> {
        let route = self.route(group)?;
        if !route.members().contains(&node) {
            return Err(Error::invalid(
                "node",
                format!("node {node} is not a member of group {group}"),
            ));
        }
        Ok(route)
    }
}

impl Receiving {
    fn holds(self, now: u64) -> bool {
        now.saturating_sub(self.offered) < RECEIVING_TICKS
    }
}

impl Inbound for Router {
    fn step_batch(&self, batch: Batch) {
        if batch.to != self.node {
            self.misdirected.fetch_add(batch.len() as u64, Relaxed);
            return;
        }
        let mut of_shards: Vec<Vec<FromPeer>> = self.mailboxes.iter().map(|_| Vec::new()).collect();
        for (group, messages) in batch.messages {
            let route = self.here(group);
            for message in messages {
                match &route {
                    Some(route) if message.group == group => {
                        of_shards[route.shard].push(FromPeer {
                            from: batch.from,
                            message,
                        });
                    }
                    _ => drop(self.misdirected.fetch_add(1, Relaxed)),
                }
            }
        }
        for (mailbox, messages) in self.mailboxes.iter().zip(of_shards) {
            if !messages.is_empty() {
                let dropped = mailbox.deliver(batch.priority, messages);
                self.dropped.fetch_add(dropped as u64, Relaxed);
            }
        }
    }

    fn node_gone(&self, node: NodeId) {
        for mailbox in &self.mailboxes {
            mailbox.gone(node);
        }
    }

    fn offer_snapshot(
        &self,
        from: NodeId,
        message: &PeerMessage,
        name: &SnapshotName,
    ) -> Result<SnapshotReceiver, SnapshotRefusal> {
        self.running().map_err(|_| SnapshotRefusal::Stopped)?;
        let group = message.group;
        let route = self
            .here(group)
            .filter(|route| route.key.incarnation == message.incarnation.0 && !route.is_halted())
            .ok_or(SnapshotRefusal::NoSuchGroup(group))?;
        if name.index <= route.snapshot() {
            let input = Input::SnapshotOutdated {
                from,
                message: message.clone(),
                name: name.clone(),
            };
            self.input(group, route.life, input);
            return Err(SnapshotRefusal::Outdated);
        }
        if name.size > SNAPSHOT_BYTES_MAX {
            return Err(SnapshotRefusal::TooLarge {
                size: name.size,
                limit: SNAPSHOT_BYTES_MAX,
            });
        }
        {
            let now = self.ticks.load(Relaxed);
            let mut places = lock(&self.receiving);
            places.retain(|_, place| place.holds(now));
            // A group that is offered another takes its own place again: the former transfer has failed.
            if places.len() >= RECEIVING_MAX && !places.contains_key(&group) {
                return Err(SnapshotRefusal::Busy);
            }
            places.insert(group, Receiving { offered: now });
        }
        route
            .disk
            .receive_snapshot(route.key, name)
            .map_err(|error| {
                lock(&self.receiving).remove(&group);
                SnapshotRefusal::Storage(error.to_string())
            })
    }

    fn snapshot_arrived(&self, from: NodeId, message: PeerMessage, file: SnapshotFile) {
        let group = message.group;
        lock(&self.receiving).remove(&group);
        let Some(route) = self
            .here(group)
            .filter(|route| route.key == file.meta().key)
        else {
            self.misdirected.fetch_add(1, Relaxed);
            return;
        };
        let snapshot = ArrivedSnapshot {
            message,
            name: Disk::snapshot_name(&file),
            state: file.meta().state.clone(),
        };
        let input = Input::SnapshotArrived { from, snapshot };
        self.input(group, route.life, input);
    }
}

impl Reporter for Router {
    fn report_unreachable(&self, group: GroupId, node: NodeId) -> Result<(), Error> {
        let route = self.unreported(group, node)?;
        let input = Input::Unreachable { node };
        self.input(group, route.life, input);
        Ok(())
    }

    fn report_snapshot(
        &self,
        group: GroupId,
        node: NodeId,
        status: SnapshotStatus,
    ) -> Result<(), Error> {
        let route = self.unreported(group, node)?;
        let arrived = status == SnapshotStatus::Finish;
        let input = Input::SnapshotSent { node, arrived };
        self.input(group, route.life, input);
        Ok(())
    }
}

/// The reporter of one snapshot transfer: whatever its transport does, the group learns of its end once, and only if it
/// still lives the same life.
pub(crate) struct TransferReporter {
    router: Arc<Router>,
    node: NodeId,
    group: GroupId,
    life: Life,
    reported: AtomicBool,
}

impl TransferReporter {
    pub(crate) fn new(router: Arc<Router>, node: NodeId, group: GroupId, life: Life) -> Self {
        Self {
            router,
            node,
            group,
            life,
            reported: AtomicBool::new(false),
        }
    }

    fn report(&self, arrived: bool) {
        if !self.reported.swap(true, AcqRel) {
            let node = self.node;
            let input = Input::SnapshotSent { node, arrived };
            self.router.input(self.group, self.life, input);
        }
    }
}

impl Reporter for TransferReporter {
    fn report_unreachable(&self, group: GroupId, node: NodeId) -> Result<(), Error> {
        self.router.report_unreachable(group, node)
    }

    fn report_snapshot(
        &self,
        group: GroupId,
        node: NodeId,
        status: SnapshotStatus,
    ) -> Result<(), Error> {
        if (group, node) != (self.group, self.node) {
            return self.router.report_snapshot(group, node, status);
        }
        self.report(status == SnapshotStatus::Finish);
        Ok(())
    }
}

impl Drop for TransferReporter {
    fn drop(&mut self) {
        self.report(false);
    }
}

/// A group's name, taken while the group is brought up.
pub(crate) struct Reservation {
    router: Arc<Router>,
    group: GroupId,
    filled: bool,
}

impl Reservation {
    /// The group is here.
    pub(crate) fn fill(mut self, route: Arc<Route>) {
        self.filled = true;
        self.router.slots.insert(self.group, Slot::Here(route));
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if !self.filled {
            self.router
                .slots
                .remove_if(&self.group, |_, slot| matches!(slot, Slot::Creating));
        }
    }
}
