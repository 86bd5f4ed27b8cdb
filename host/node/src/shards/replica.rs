//! One replica on its shard: the pure value of the core, and what of the host belongs to it.

use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use skep_core::activation::Overdue;
use skep_core::effect::Effect;
use skep_core::group::Group;
use skep_core::healing::Parked;
use skep_core::id::{GroupId, LogIndex, NodeId, ReplicaId};
use skep_core::input::{Input, Waiter};
use skep_core::message::SnapshotName;
use skep_core::proposal::{ProposalError, Response};
use skep_core::status::{CatchUpStatus, Health, Status};
use skep_log::GroupKey;
use tokio::sync::oneshot;

use crate::disk::store::Disk;
use crate::error::Error;
use crate::machines::worker::Worker;
use crate::shards::mailbox::Asked;
use crate::shards::route::Route;
use crate::shards::router::{Router, TransferReporter};
use crate::status::{GroupStatus, QueryAnswer};
use crate::trouble::{Kind, Trouble};

/// Ticks until a snapshot that could not be sent for want of something is asked for again.
const SEND_AGAIN: u64 = 10;

/// What waited for what when a tick began.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Waits {
    /// Commands or queries for the group's quota.
    pub(crate) quota: bool,
    /// Commands for members that are behind.
    pub(crate) catch_up: bool,
    /// Members that were left behind with this tick.
    pub(crate) left_behind: u64,
}

/// Numbers the replicas a node brings up, so that what was begun for one never reaches its successor.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Life(pub(crate) u64);

/// Who waits for an answer of this replica.
pub(crate) enum Waiting {
    Response(Asked<Response>),
    Answer(Asked<QueryAnswer>),
}

impl Waiting {
    pub(crate) fn fail(self, error: Error) {
        match self {
            Self::Response(asked) => asked.answer(Err(error)),
            Self::Answer(asked) => asked.answer(Err(error)),
        }
    }
}

pub(crate) struct Replica {
    pub(crate) key: GroupKey,
    pub(crate) life: Life,
    pub(crate) route: Arc<Route>,
    pub(crate) worker: Worker,
    pub(crate) disk: Arc<Disk>,
    pub(crate) waiters: HashMap<Waiter, Waiting>,
    /// Snapshots whose record is not durable yet, with its number.
    pub(crate) marks: VecDeque<(u64, SnapshotName)>,
    /// The newest snapshot whose record became durable in this round.
    pub(crate) durable: Option<SnapshotName>,
    /// Snapshots that could not be sent for now, each with the tick at which Raft learns of it.
    unsent: Vec<(u64, TransferReporter)>,
    ticks: u64,
    /// It is to be given up as soon as nothing is on its way to the disk; takes nothing in meanwhile.
    pub(crate) parking: Option<oneshot::Sender<Result<(), Error>>>,
    /// Stands in the shard's list of what is to be polled.
    pub(crate) touched: bool,
    /// How it was when it was brought up.
    first: Box<Status>,
    /// What was last told of its health.
    shown: Shown,
    state: State,
}

/// What was told of a replica's health.
struct Shown {
    health: Health,
    is_paused: bool,
    upgrade: Option<Overdue>,
    waits: Option<Arc<str>>,
}

impl Default for Shown {
    fn default() -> Self {
        Self {
            health: Health::Healthy,
            is_paused: false,
            upgrade: None,
            waits: None,
        }
    }
}

enum State {
    Running(Box<Group>),
    Halted { reason: String, status: Box<Status> },
}

impl Replica {
    pub(crate) fn new(
        key: GroupKey,
        life: Life,
        group: Group,
        route: Arc<Route>,
        worker: Worker,
        disk: Arc<Disk>,
    ) -> Self {
        Self {
            key,
            life,
            route,
            worker,
            disk,
            waiters: HashMap::new(),
            marks: VecDeque::new(),
            durable: None,
            unsent: Vec::new(),
            ticks: 0,
            parking: None,
            touched: false,
            first: Box::new(group.status()),
            shown: Shown::default(),
            state: State::Running(Box::new(group)),
        }
    }

    pub(crate) fn group(&self) -> GroupId {
        GroupId(self.key.group)
    }

    /// Why the replica is halted, if it is.
    pub(crate) fn halted(&self) -> Option<Error> {
        match &self.state {
            State::Running(_) => None,
            State::Halted { reason, .. } => Some(Error::GroupHalted {
                group: self.group(),
                reason: reason.clone(),
            }),
        }
    }

    /// A snapshot could not be sent for want of something that may be there again soon. Raft, which asks again as soon as it
    /// learns of it, learns of it a little later.
    pub(crate) fn not_sent(&mut self, reporter: TransferReporter) {
        self.unsent.push((self.ticks + SEND_AGAIN, reporter));
    }

    pub(crate) fn tick(&mut self, now: u64) -> Waits {
        let State::Running(group) = &self.state else {
            return Waits::default();
        };
        self.ticks += 1;
        self.unsent.retain(|(due, _)| *due > self.ticks);
        let (rates, commands_waited) = (group.rates(), group.waits_for_quota());
        let before = group.catch_up_status();
        self.handle(Input::Tick { now });
        let quota = self.worker.tick(now, rates) || commands_waited;
        let State::Running(group) = &self.state else {
            return Waits::default();
        };
        let after = group.catch_up_status();
        self.tell_of_catch_up(&before, &after);
        Waits {
            quota,
            catch_up: after.waits > before.waits,
            left_behind: after.left_behind - before.left_behind,
        }
    }

    fn tell_of_catch_up(&self, before: &CatchUpStatus, after: &CatchUpStatus) {
        let (group, name) = (self.key.group, &self.route.name);
        if after.left_behind > before.left_behind {
            tracing::warn!(
                group,
                name,
                "a member does not catch up with what is written and is left behind for a while; it is tried again, at once if less is \
                 written (`skep group status` shows which)"
            );
        }
        let (share, was) = (after.share_percent, before.share_percent);
        match share == 100 {
            _ if share == was => {}
            true => tracing::info!(
                group,
                name,
                "commands are no longer held back for members that are behind"
            ),
            false => tracing::info!(
                group,
                name,
                share,
                "a member is behind and does not come nearer: commands wait, and this share in percent of what is usual is taken"
            ),
        }
    }

    pub(crate) fn handle(&mut self, input: Input) {
        if let State::Running(group) = &mut self.state {
            group.handle(input);
        }
    }

    /// Starts a transfer of leadership, if it can come to anything.
    pub(crate) fn transfer(&mut self, to: NodeId) -> Result<(), Error> {
        let group = self.group();
        let members = self.status().replica.members;
        let Some(member) = members.iter().find(|member| member.node == to) else {
            return Err(Error::invalid(
                "to",
                format!("node {to} is not a member of group {group}"),
            ));
        };
        if self.leader().is_none() {
            return Err(Error::proposal(group, ProposalError::NoLeader));
        }
        if member.active == Some(false) {
            return Err(Error::Unreachable { node: to });
        }
        self.handle(Input::Transfer { to });
        Ok(())
    }

    /// Lets the member lead that is best fit for it. Whether leadership is on its way to one.
    pub(crate) fn hand_over(&mut self) -> bool {
        self.handle(Input::HandOver);
        match &self.state {
            State::Running(group) => group.hands_over(),
            State::Halted { .. } => false,
        }
    }

    /// Whether somebody waits for an answer of this replica, here or at another node.
    pub(crate) fn owes_answers(&self) -> bool {
        match &self.state {
            State::Running(group) => !self.waiters.is_empty() || group.owes_answers(),
            State::Halted { .. } => false,
        }
    }

    /// The record of this number, and so all before it, is durable.
    pub(crate) fn persisted(&mut self, number: u64) {
        while self.marks.front().is_some_and(|(of, _)| *of <= number) {
            self.durable = self.marks.pop_front().map(|(_, snapshot)| snapshot);
        }
        self.handle(Input::Persisted { number });
    }

    /// Gives out what is to be done.
    pub(crate) fn poll(&mut self, effects: &mut Vec<Effect>) {
        if let State::Running(group) = &mut self.state {
            group.poll(effects);
        }
    }

    /// Whether its machine stopped for a reason of this node, and nothing else is broken. Not before it has joined its group:
    /// it has nothing to begin again from, and a deaf one would never join.
    pub(crate) fn may_be_parked(&self) -> bool {
        match &self.state {
            State::Running(group) => {
                matches!(group.health(), Health::Faulted { .. })
                    && !self.worker.is_broken()
                    && group.replica().0 != 0
            }
            State::Halted { .. } => false,
        }
    }

    /// What is on its disk; none while a record is on its way.
    pub(crate) fn parked(&self) -> Option<Parked> {
        match &self.state {
            State::Running(group) => group.parked(),
            State::Halted { .. } => None,
        }
    }

    /// Tells whoever asks without the shard how the replica is.
    pub(crate) fn show(&mut self) {
        let State::Running(group) = &self.state else {
            return;
        };
        let (health, is_paused, upgrade) = (group.health(), group.is_paused(), group.overdue());
        let waits = self.worker.waits().or_else(|| self.worker.defect());
        let shown = &self.shown;
        if &shown.health == health
            && shown.is_paused == is_paused
            && shown.upgrade == upgrade
            && shown.waits == waits
        {
            return;
        }
        let is_broken = self.worker.is_broken();
        let trouble = Trouble::of(health, is_paused, upgrade, is_broken, waits.as_deref());
        let (group, name) = (self.key.group, &self.route.name);
        match &trouble {
            Some(trouble) => tracing::warn!(group, name, "the replica is {trouble}"),
            None => tracing::info!(group, name, "the replica is healthy again"),
        }
        self.shown = Shown {
            health: health.clone(),
            is_paused,
            upgrade,
            waits,
        };
        self.route.set_trouble(trouble);
    }

    /// Stops for good, keeping the files; every waiter learns of it.
    pub(crate) fn halt(&mut self, reason: String) {
        let State::Running(group) = &self.state else {
            return;
        };
        // What panicked once may panic again.
        let mut status = catch_unwind(AssertUnwindSafe(|| group.status()))
            .unwrap_or_else(|_| Status::clone(&self.first));
        status.health = Health::Faulted {
            reason: reason.clone(),
        };
        tracing::error!(group = self.key.group, name = %self.route.name, reason, "the replica of a group is halted; other groups go on");
        self.state = State::Halted {
            reason: reason.clone(),
            status: Box::new(status),
        };
        self.route.set_halted();
        self.route
            .set_trouble(Some(Trouble::new(Kind::Halted, reason.clone())));
        self.worker.halt();
        let group = self.group();
        self.fail_all(|waiting| match waiting {
            // What was in flight may be committed by the other replicas.
            Waiting::Response(_) => Error::proposal(group, ProposalError::Unknown),
            Waiting::Answer(_) => Error::GroupHalted {
                group,
                reason: reason.clone(),
            },
        });
    }

    /// Replicas disagree; the status says what becomes of this one.
    pub(crate) fn diverged(&self, index: LogIndex, decided: bool, here: bool) {
        let (group, name, index) = (self.key.group, &self.route.name, index.0);
        match (decided, here) {
            (true, true) => tracing::error!(
                group,
                name,
                index,
                "this replica's machine differs from those of the majority: it is quarantined, and goes on from their snapshot"
            ),
            (true, false) => tracing::error!(
                group,
                name,
                index,
                "another replica's machine differs from those of the majority, and is quarantined"
            ),
            (false, _) => tracing::error!(
                group,
                name,
                index,
                "the replicas of the group differ and none of them has a majority: the group is suspended until more of them answer, or an operator decides (`skep group trust`)"
            ),
        }
        self.worker.count_divergence();
    }

    /// The raft id; 0 while it is not known.
    pub(crate) fn replica(&self) -> ReplicaId {
        match &self.state {
            State::Running(group) => group.replica(),
            State::Halted { status, .. } => status.replica,
        }
    }

    /// The leader, if one is known now.
    pub(crate) fn leader(&self) -> Option<NodeId> {
        match &self.state {
            State::Running(group) => group.leader_node(),
            State::Halted { .. } => None,
        }
    }

    pub(crate) fn status(&self) -> GroupStatus {
        let running = self.worker.running();
        let (halted, replica) = match &self.state {
            State::Running(group) => {
                let mut status = group.status();
                status.held_back.extend(self.worker.held_back());
                (None, status)
            }
            State::Halted { reason, status } => (Some(reason.clone()), Status::clone(status)),
        };
        GroupStatus {
            name: self.route.name.clone(),
            component: running.component,
            machine: running.descriptor,
            memory: self.route.memory.get(),
            halted,
            trouble: self.route.trouble().as_deref().cloned(),
            replica,
        }
    }

    /// Answers a proposal; whoever has left is not missed.
    pub(crate) fn reply(&mut self, waiter: Waiter, result: Result<Response, ProposalError>) {
        let group = self.group();
        if let Some(Waiting::Response(asked)) = self.waiters.remove(&waiter) {
            asked.answer(result.map_err(|source| Error::proposal(group, source)));
        }
    }

    /// Stops a replica that leaves this node's groups, and answers everybody.
    pub(crate) fn leave(&mut self, router: &Router) {
        let (group, node) = (self.group(), router.node);
        router.leave(group, self.life);
        self.fail_all(|waiting| match waiting {
            Waiting::Response(_) => Error::proposal(group, ProposalError::Unknown),
            Waiting::Answer(_) => Error::NoSuchGroup { group, node },
        });
        self.worker.halt();
    }

    /// Answers everybody.
    pub(crate) fn fail_all(&mut self, error: impl Fn(&Waiting) -> Error) {
        for (_, waiting) in self.waiters.drain() {
            let error = error(&waiting);
            waiting.fail(error);
        }
    }
}
