//! A node: the replicas of many groups behind one set of threads, one log and one transport.

mod leaving;

use std::fmt;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;
use skep_core::deployment::Deployment;
use skep_core::id::{GroupId, Incarnation, NodeId, RequestId};
use skep_core::input::{Input, Waiter};
use skep_core::message::Batch;
use skep_core::outcome::LeaderChanged;
use skep_core::proposal::{Change, Command, Proposal, Response};
use skep_log::LogStats;
use skep_machine::state_machine::Memory;
use skep_store::convert;
use tokio::sync::{broadcast, oneshot};

use crate::error::Error;
use crate::group_config::GroupConfig;
use crate::machines::worker::Rehearsable;
use crate::node::{Node, blocking};
use crate::node_config::Config;
use crate::shards::mailbox::{Asked, Request};
use crate::shards::replica::Replica;
use crate::shards::route::Route;
use crate::shards::router::{NodeFault, Router};
use crate::status::{Consistency, GroupStatus, NodeStatus, QueryAnswer};
use crate::transport::{Inbound, Reporter, SnapshotStatus, Transport};
use crate::trouble::{Trouble, Troubled};

/// A node hosting replicas of many groups (`MultiNode` of the seed package).
///
/// *Concurrency*: clones share the node; every method may be called from any thread, and none waits for another group.
/// The futures may be dropped at any time; what they asked for may happen nevertheless. *Failure*: see [`Error`]; after
/// [`MultiNode::stop`] every call answers [`Error::Stopped`], and after a fault of the node [`Error::NodeFailed`].
///
/// Dropping the last clone stops the node too, without waiting.
#[derive(Clone)]
pub struct MultiNode {
    pub(crate) inner: Arc<Node>,
}

impl MultiNode {
    /// Opens the data directory and starts the node's threads. `send` makes the transport (`SendFunc` of the seed
    /// package), given where to deliver; it is called once. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`]; [`Error::Storage`] if the data directory is locked, damaged, or another node's;
    /// [`Error::Start`] if `send` fails or the system refuses a thread. Nothing is left running then.
    pub async fn start(
        config: Config,
        send: impl FnOnce(Arc<dyn Inbound>) -> io::Result<Arc<dyn Transport>>,
    ) -> Result<Self, Error> {
        Ok(Self {
            inner: Node::start(config, send).await?,
        })
    }

    /// This node.
    pub fn id(&self) -> NodeId {
        self.inner.router.node
    }

    /// Brings up the replica of a group on this node: a new one, or the one that the log recovered. It decides by the
    /// log, so an embedder calls this at each start for each of its groups.
    ///
    /// # Errors
    /// [`Error::GroupExists`] before anything is touched, also while what a removed replica stored is being deleted;
    /// [`Error::InvalidConfig`]; [`Error::GroupRemoved`] if this node's replica of this life was removed and the new one
    /// would not join with empty `members`, or if a later life was here; [`Error::Storage`] if its data cannot be read.
    pub async fn create_group(&self, config: GroupConfig) -> Result<(), Error> {
        let reservation = self.inner.router.reserve(config.id)?;
        let inner = Arc::clone(&self.inner);
        // In one piece on a thread of its own, so that a dropped future leaves no half of a group.
        blocking(self.id(), move || inner.bring_up(config, reservation)).await
    }

    /// Brings a replica up again, from its files, whose machine stopped for a reason of this node, as a restart of the process
    /// would; `config` brings another machine. Waits until nothing is on the replica's way to the disk.
    ///
    /// # Errors
    /// [`Error::NoSuchGroup`]; [`Error::Busy`] if the replica did not stop so, or has not joined its group yet;
    /// otherwise as [`MultiNode::create_group`], which brings it up if this could not.
    pub async fn restart_group(&self, config: GroupConfig) -> Result<(), Error> {
        let group = config.id;
        self.ask(group, |done| Request::Park { group, done })
            .await?;
        self.create_group(config).await
    }

    /// What is wrong with this node's replica of a group, if there is one and anything is.
    pub fn trouble(&self, group: GroupId) -> Option<Trouble> {
        let trouble = self.inner.router.route(group).ok()?.trouble()?;
        Some(Trouble::clone(&trouble))
    }

    /// Stops the replica of a group on this node and deletes what it stored, for ever. The node can be a member of the
    /// same life of the group again only as a joiner, with empty `members`, and as another replica. Also removes what is on disk of a group that was not brought up. Answers when the
    /// removal is durable and the machine's present call has returned. The group's other members are not told; see
    /// [`MultiNode::remove_node_from_group`].
    ///
    /// # Errors
    /// [`Error::NoSuchGroup`]; [`Error::Stopped`]; [`Error::Storage`] if files are left, which the next start deletes.
    pub async fn remove_group(&self, group: GroupId) -> Result<(), Error> {
        let router = &self.inner.router;
        match router.route(group) {
            Ok(route) => {
                let (done, removed) = oneshot::channel();
                router.request(route.shard, Request::Remove { group, done })?;
                removed.await.map_err(|_| self.inner.why_stopped())?
            }
            Err(Error::NoSuchGroup { .. }) => self.inner.remove_dormant(group).await,
            Err(error) => Err(error),
        }
    }

    /// Adds a node to a group: as a learner first, promoted when it has caught up; answers then. The new node must have
    /// brought up the group with empty `members`.
    ///
    /// # Errors
    /// [`Error::Proposal`] with `ChangeInProgress` or `ChangeRefused`, or as [`MultiNode::propose`].
    pub async fn add_node_to_group(
        &self,
        group: GroupId,
        node: NodeId,
        data: Bytes,
    ) -> Result<Response, Error> {
        self.change_members(group, Change::Add { node, data }).await
    }

    /// Removes a node from a group; if it leads, it hands over first. The removed replica deletes itself when it hears.
    ///
    /// # Errors
    /// As [`MultiNode::add_node_to_group`].
    pub async fn remove_node_from_group(
        &self,
        group: GroupId,
        node: NodeId,
        data: Bytes,
    ) -> Result<Response, Error> {
        let change = Change::Remove { node, data };
        self.change_members(group, change).await
    }

    /// Changes who is a member of a group, or who votes.
    ///
    /// # Errors
    /// As [`MultiNode::add_node_to_group`].
    pub async fn change_members(&self, group: GroupId, change: Change) -> Result<Response, Error> {
        self.submit(group, Proposal::Change(change)).await
    }

    /// Lets this node's replica stand for election now. Answers when it does, not when it has won.
    ///
    /// # Errors
    /// [`Error::NoSuchGroup`], [`Error::GroupHalted`], [`Error::Stopped`].
    pub async fn campaign(&self, group: GroupId) -> Result<(), Error> {
        self.act(group, |replica| replica.handle(Input::Campaign))
            .await
    }

    /// Asks the group to let a member lead. Answers when that is begun, not when it is done.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] if the node is not a member, [`Error::Unreachable`] if the leader knows it to be silent,
    /// [`Error::Proposal`] with `NoLeader` if nobody leads, or as [`MultiNode::campaign`].
    pub async fn transfer_leader(&self, group: GroupId, to: NodeId) -> Result<(), Error> {
        self.act(group, move |replica| replica.transfer(to)).await?
    }

    /// Whether the group is up on this node; `false` once it has stopped.
    pub fn exists(&self, group: GroupId) -> bool {
        self.inner.router.route(group).is_ok()
    }

    /// Which life of the group this node's replica is of, if there is one here.
    pub fn incarnation(&self, group: GroupId) -> Option<Incarnation> {
        let route = self.inner.router.route(group).ok()?;
        Some(Incarnation(route.key.incarnation))
    }

    /// What this node's replica of the group says of itself.
    ///
    /// # Errors
    /// [`Error::NoSuchGroup`], [`Error::Stopped`].
    pub async fn status(&self, group: GroupId) -> Result<GroupStatus, Error> {
        self.look(group, Replica::status).await
    }

    /// What another machine can be tried on as the group's next one; none if the machine did not go on from a snapshot, or
    /// failed.
    pub async fn rehearsable(&self, group: GroupId) -> Result<Option<Rehearsable>, Error> {
        self.look(group, |replica| replica.worker.rehearsable())
            .await
    }

    /// The groups that are up on this node, in the order of their ids.
    pub fn groups(&self) -> Vec<GroupId> {
        let mut groups: Vec<_> = self
            .inner
            .router
            .routes()
            .iter()
            .map(|route| GroupId(route.key.group))
            .collect();
        groups.sort_unstable();
        groups
    }

    /// The lives of groups that are on this node's disk and were not brought up since its start: candidates for
    /// [`MultiNode::create_group`] or [`MultiNode::remove_group`]. Groups with a directory of their own are not among
    /// them.
    pub fn dormant_groups(&self) -> Vec<(GroupId, Incarnation)> {
        self.inner.disk.all_dormant()
    }

    /// Whether this node has a replica of this life of a group, up or on its disk only.
    pub fn carries(&self, group: GroupId, incarnation: Incarnation) -> bool {
        let dormant = self.inner.disk.dormant(group);
        self.incarnation(group) == Some(incarnation)
            || dormant.contains(&convert::key(group, incarnation))
    }

    /// The leader of the group as this node sees it.
    ///
    /// # Errors
    /// [`Error::NoSuchGroup`], [`Error::Stopped`].
    pub fn leader(&self, group: GroupId) -> Result<Option<NodeId>, Error> {
        let leader = self.inner.router.route(group)?.leader();
        Ok((leader.0 != 0).then_some(leader))
    }

    /// Proposes a command once, without a session, and answers what the machine made of it. A follower passes it on to
    /// the leader. The deadline is `limits.request_ticks` of the group.
    ///
    /// # Errors
    /// [`Error::NoSuchGroup`], [`Error::Busy`], [`Error::GroupHalted`], [`Error::Stopped`]: not proposed.
    /// [`Error::Proposal`]: the group's answer. [`Error::is_unknown`] tells whether it may have been applied.
    pub async fn propose(&self, group: GroupId, command: Bytes) -> Result<Response, Error> {
        let command = Command {
            request: RequestId::ANONYMOUS,
            acknowledged: 0,
            data: command,
        };
        self.propose_as(group, command).await
    }

    /// Proposes a command of a client's session: the machine applies it once, however often it is proposed.
    ///
    /// # Errors
    /// As [`MultiNode::propose`].
    pub async fn propose_as(&self, group: GroupId, command: Command) -> Result<Response, Error> {
        self.submit(group, Proposal::Command(command)).await
    }

    /// Opens a session for a client; its id is [`Response::session`].
    ///
    /// # Errors
    /// As [`MultiNode::propose`].
    pub async fn open_session(&self, group: GroupId) -> Result<Response, Error> {
        self.submit(group, Proposal::OpenSession).await
    }

    /// Asks the machine something without changing it.
    ///
    /// # Errors
    /// As [`MultiNode::propose`]; a query is always safe to repeat.
    pub async fn query(
        &self,
        group: GroupId,
        request: Bytes,
        consistency: Consistency,
    ) -> Result<QueryAnswer, Error> {
        let linearizable = consistency == Consistency::Linearizable;
        self.wait(group, request.len(), |waiter, asked| Request::Query {
            group,
            waiter,
            request,
            linearizable,
            asked,
        })
        .await
    }

    /// Takes a snapshot on every replica, at one index: the answer's.
    ///
    /// # Errors
    /// As [`MultiNode::propose`].
    pub async fn snapshot(&self, group: GroupId) -> Result<Response, Error> {
        self.submit(group, Proposal::Barrier).await
    }

    /// Exchanges what the group runs, at one entry on every replica, once a majority of the voters has prepared it; a rejection
    /// in the response says why it was given up, and then everybody goes on as before. Needs [`GroupConfig::exchange`] on every member.
    ///
    /// # Errors
    /// As [`MultiNode::propose`].
    pub async fn activate(
        &self,
        group: GroupId,
        deployment: Deployment,
    ) -> Result<Response, Error> {
        self.submit(group, Proposal::Activate(deployment)).await
    }

    /// Gives up the activation that a group waits for; its replicas go on with what they ran. A rejection in the response says
    /// that it was confirmed before.
    ///
    /// # Errors
    /// As [`MultiNode::propose`]; [`ProposalError::NotNeeded`](skep_core::proposal::ProposalError::NotNeeded) if the group
    /// waits for none.
    pub async fn abort_activation(&self, group: GroupId) -> Result<Response, Error> {
        self.submit(group, Proposal::AbortActivation).await
    }

    /// Lets a group take commands again that was paused because its machine failed on many in a row.
    ///
    /// # Errors
    /// As [`MultiNode::propose`].
    pub async fn resume(&self, group: GroupId) -> Result<Response, Error> {
        self.submit(group, Proposal::Resume).await
    }

    /// Decides for a suspended group that the replica of `node` is right; the others take its state.
    ///
    /// # Errors
    /// As [`MultiNode::propose`]; [`ProposalError::NotNeeded`](skep_core::proposal::ProposalError::NotNeeded) if the group is
    /// not suspended, or nothing is known of that replica.
    pub async fn trust(&self, group: GroupId, node: NodeId) -> Result<Response, Error> {
        self.submit(group, Proposal::Trust { node }).await
    }

    /// Takes in a batch from a peer; messages for groups that are not here are dropped and counted. For embedders with a
    /// transport of their own that does not keep the [`Inbound`] it was given.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub fn step_batch(&self, batch: Batch) -> Result<(), Error> {
        self.inner.router.running()?;
        self.inner.router.step_batch(batch);
        Ok(())
    }

    /// Says that the last message of a group to a node did not arrive (`Reporter` of the seed package).
    ///
    /// # Errors
    /// [`Error::NoSuchGroup`]; [`Error::InvalidConfig`] if the node is not a member of the group; [`Error::Stopped`].
    pub fn report_unreachable(&self, group: GroupId, node: NodeId) -> Result<(), Error> {
        self.inner.router.report_unreachable(group, node)
    }

    /// Says how the sending of a snapshot ended (`Reporter` of the seed package).
    ///
    /// # Errors
    /// As [`MultiNode::report_unreachable`].
    pub fn report_snapshot(
        &self,
        group: GroupId,
        node: NodeId,
        status: SnapshotStatus,
    ) -> Result<(), Error> {
        self.inner.router.report_snapshot(group, node, status)
    }

    /// Changes of leader from now on, as this node sees them, of all groups. A watcher that falls behind by more than
    /// 1024 misses some, and is told.
    pub fn leader_changes(&self) -> broadcast::Receiver<(GroupId, LeaderChanged)> {
        self.inner.router.leader_changes()
    }

    /// The linear memory of each machine in a sandbox on this node.
    pub fn machine_memory(&self) -> Vec<(GroupId, Memory)> {
        let mut all: Vec<_> = self
            .inner
            .router
            .routes()
            .iter()
            .filter_map(|route| Some((GroupId(route.key.group), route.memory.get()?)))
            .collect();
        all.sort_unstable_by_key(|(group, _)| *group);
        all
    }

    /// What the node says of itself. Works on a stopped node too.
    pub fn node_status(&self) -> NodeStatus {
        let router = &self.inner.router;
        let routes = router.routes();
        let troubled = troubled(&routes);
        NodeStatus {
            id: router.node,
            name: self.inner.name.clone(),
            groups: routes.len(),
            leading: routes
                .iter()
                .filter(|route| route.leader() == router.node)
                .count(),
            halted: troubled
                .iter()
                .filter(|troubled| troubled.trouble.kind.waits_for_somebody())
                .count(),
            troubled,
            shards: router.mailboxes().len(),
            requests: router
                .mailboxes()
                .iter()
                .map(|mailbox| mailbox.held())
                .sum(),
            misdirected_messages: router.misdirected.load(Relaxed),
            divergences: router.divergences.load(Relaxed),
            distrusted_messages: router.distrusted.load(Relaxed),
            given_up_commands: router.given_up.load(Relaxed),
            quota_waits: router.quota_waits.load(Relaxed),
            catch_up_waits: router.catch_up_waits.load(Relaxed),
            left_behind: router.left_behind.load(Relaxed),
            dropped_messages: router.dropped.load(Relaxed),
            receiving_snapshots: router.receiving(),
            stopped: *self.inner.stopped.borrow(),
            fault: router
                .fault()
                .borrow()
                .as_ref()
                .map(|fault| fault.reason.clone()),
        }
    }

    /// Counters of the node's log.
    pub fn log_stats(&self) -> LogStats {
        self.inner.disk.stats()
    }

    /// Waits for a fault of the node, after which it acknowledges nothing and the process should end. Never ends on a
    /// healthy node, nor once it has stopped.
    pub fn on_fatal(&self) -> impl Future<Output = NodeFault> + Send + 'static {
        let mut fault = self.inner.router.fault();
        async move {
            loop {
                if let Some(fault) = fault.borrow_and_update().clone() {
                    return fault;
                }
                if fault.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        }
    }

    /// Stops the node: takes no more requests, answers those in flight, lets machines finish their present call (for at
    /// most ten seconds), flushes and closes the log, ends all threads. Safe to call again and from several places; each
    /// call answers when the node has stopped.
    pub async fn stop(&self) {
        let mut stopped = self.inner.stopped.subscribe();
        self.inner.begin_stop();
        // The sender lives in `self`, so the wait ends.
        drop(stopped.wait_for(|stopped| *stopped).await);
    }

    async fn submit(&self, group: GroupId, proposal: Proposal) -> Result<Response, Error> {
        self.wait(group, proposal.size(), |waiter, asked| Request::Propose {
            group,
            waiter,
            proposal,
            asked,
        })
        .await
    }

    /// Sends a request with a waiter, and waits.
    async fn wait<T>(
        &self,
        group: GroupId,
        bytes: usize,
        request: impl FnOnce(Waiter, Asked<T>) -> Request,
    ) -> Result<T, Error> {
        let router = &self.inner.router;
        let route = router.route(group)?;
        let permit = router.mailboxes()[route.shard]
            .admit(bytes)
            .ok_or(Error::Busy { node: router.node })?;
        let waiter = router.next_waiter();
        let (answer, answered) = oneshot::channel();
        router.request(
            route.shard,
            request(
                waiter,
                Asked {
                    answer,
                    _permit: permit,
                },
            ),
        )?;
        let mut pending = Pending {
            router,
            shard: route.shard,
            group,
            waiter,
            answered,
            open: true,
        };
        let answer = (&mut pending.answered).await;
        pending.open = false;
        answer.unwrap_or_else(|_| Err(Error::StoppedInFlight { node: router.node }))
    }

    /// Does something with the replica, on its shard.
    async fn act<T: Send + 'static>(
        &self,
        group: GroupId,
        act: impl FnOnce(&mut Replica) -> T + Send + 'static,
    ) -> Result<T, Error> {
        self.ask(group, |done| Request::act(group, act, done)).await
    }

    /// Looks at the replica, on its shard.
    async fn look<T: Send + 'static>(
        &self,
        group: GroupId,
        look: impl FnOnce(&Replica) -> T + Send + 'static,
    ) -> Result<T, Error> {
        self.ask(group, |done| Request::look(group, look, done))
            .await
    }

    /// Sends a request that the shard answers at once.
    async fn ask<T>(
        &self,
        group: GroupId,
        request: impl FnOnce(oneshot::Sender<Result<T, Error>>) -> Request,
    ) -> Result<T, Error> {
        let route = self.inner.router.route(group)?;
        let (done, answered) = oneshot::channel();
        self.inner.router.request(route.shard, request(done))?;
        answered.await.map_err(|_| self.inner.why_stopped())?
    }
}

impl fmt::Display for MultiNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node {} ({})", self.inner.router.node, self.inner.name)
    }
}

impl fmt::Debug for MultiNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A request in flight; tells the replica if nobody waits any more.
struct Pending<'a, T> {
    router: &'a Router,
    shard: usize,
    group: GroupId,
    waiter: Waiter,
    answered: oneshot::Receiver<T>,
    open: bool,
}

impl<T> Drop for Pending<'_, T> {
    fn drop(&mut self) {
        if self.open {
            // A node that has stopped has answered it.
            drop(self.router.request(
                self.shard,
                Request::Forget {
                    group: self.group,
                    waiter: self.waiter,
                },
            ));
        }
    }
}

/// The groups among these whose replica is in trouble, in the order of their ids.
fn troubled(routes: &[Arc<Route>]) -> Vec<Troubled> {
    let mut troubled: Vec<_> = routes
        .iter()
        .filter_map(|route| {
            let trouble = Trouble::clone(&*route.trouble()?);
            Some(Troubled {
                group: GroupId(route.key.group),
                name: route.name.clone(),
                trouble,
            })
        })
        .collect();
    troubled.sort_unstable_by_key(|troubled| troubled.group);
    troubled
}
