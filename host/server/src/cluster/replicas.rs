//! Keeps the number of replicas of each group, and spreads leaders.
//!
//! Whoever leads the catalogue asks every node how the groups are that it leads, decides by that (`placement.rs`), and has a few
//! steps carried out at a time, by the ordinary changes of members. It keeps nothing: whoever leads next looks and decides anew.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::StreamExt;
use futures::future::{BoxFuture, join_all};
use futures::stream::FuturesUnordered;
use serde::{Deserialize, Serialize};
use skep::clock::{self, Stopwatch};
use skep::status::GroupStatus;
use skep_core::id::{GroupId, Incarnation, NodeId};
use skep_types::admin::{
    GroupInfo, LIST_MAX, MoveReplica, OfGroupAndNode, Page, SetReplicas, method,
};
use skep_types::shared::lock;
use skep_types::status::Role;

use super::members::ANSWERS_WITHIN;
use super::placement::{self, Cluster, Group, Life, Node, Order, Seat, Step};
use super::requests::Reach;
use super::silence::Silence;
use super::{Host, catalog};
use crate::catalog::command::Command;
use crate::catalog::{Catalog, GroupRecord, Moving, NodeRecord, NodeState};
use crate::error::HostError;

/// How often it is looked although nothing is known to have changed, and how soon after the last look at the earliest.
const LOOK: Duration = Duration::from_secs(1);
const SOONEST: Duration = Duration::from_millis(50);
/// A look is followed by a pause of so many times its length, so that many groups cost no more than few.
const PAUSES: u32 = 9;
/// How long a node may take to say how its groups are.
const SAY_WITHIN: Duration = Duration::from_secs(1);
/// How long a replica may be in the catalogue and not in its group before nobody is taken to be at it any more.
const BEGUN_WITHIN: Duration = Duration::from_secs(5);
/// How long whoever moves a replica waits for the end of it. It goes on without anybody who waits.
const MOVED_WITHIN: Duration = Duration::from_secs(7);
/// Entries that a voter may lack and still be asked to lead: little enough to be sent at once.
const CLOSE: u64 = 64;

/// What a node says of itself and of the groups that it leads.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NodeReport {
    /// It has room for replicas.
    has_room: bool,
    /// It may get leaders: its disk takes commands, and it is not about to stop.
    takes_leaders: bool,
    /// The groups that it leads, by id, at most [`LIST_MAX`] behind the one that was asked for.
    led: Vec<Led>,
    /// Where the next of them begin, if there may be more.
    more_after: Option<GroupId>,
}

/// A group, as its leader has it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Led {
    group: GroupId,
    incarnation: Incarnation,
    /// It goes through something that no change of members should disturb.
    busy: bool,
    members: Vec<Member>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Member {
    node: NodeId,
    votes: bool,
    close: bool,
}

impl Led {
    fn of(status: &GroupStatus) -> Self {
        let replica = &status.replica;
        let member = |of: &skep_types::status::MemberStatus| {
            let lacks = of
                .matched
                .map(|matched| replica.last.0.saturating_sub(matched.0));
            Member {
                node: of.node,
                votes: of.role == Role::Voter,
                close: of.active != Some(false) && lacks.is_some_and(|lacks| lacks <= CLOSE),
            }
        };
        Self {
            group: replica.group,
            incarnation: replica.incarnation,
            busy: replica.activation.is_some()
                || status
                    .trouble
                    .as_ref()
                    .is_some_and(|of| of.kind.waits_for_somebody()),
            members: replica.members.iter().map(member).collect(),
        }
    }
}

impl Host {
    /// How the groups are that this node leads.
    pub async fn report(&self, page: Page) -> Result<NodeReport, HostError> {
        let (node, own) = (&self.inner.node, self.id());
        let led = node.groups().into_iter().filter(|group| {
            *group != catalog::GROUP
                && page.after.is_none_or(|after| *group > after)
                && matches!(node.leader(*group), Ok(Some(leader)) if leader == own)
        });
        let limit = page.limit.unwrap_or(LIST_MAX).min(LIST_MAX);
        let led: Vec<GroupId> = led.take(limit).collect();
        let asked = led.iter().map(|group| node.status(*group));
        // One that has gone meanwhile leads nothing.
        let statuses = join_all(asked).await.into_iter().flatten();
        let has_room = self.inner.room.check(0).is_ok() && self.machine_budget().has_room().is_ok();
        let goes = self.is_leaving() || self.inner.handing_over.load(Ordering::Acquire);
        Ok(NodeReport {
            has_room,
            takes_leaders: !goes && self.inner.room.check_command().is_ok(),
            led: statuses.map(|status| Led::of(&status)).collect(),
            more_after: led.last().copied().filter(|_| led.len() == limit),
        })
    }

    /// From now on a group is to have so many replicas. Others are made, or some go, a little later.
    pub async fn set_replicas(&self, request: SetReplicas) -> Result<GroupInfo, HostError> {
        let record = self.find(&request.group).await?;
        let (group, incarnation, replicas) = (record.id, record.incarnation, request.replicas);
        let nodes = self.catalog().nodes().len();
        if replicas > nodes.max(record.wanted) {
            return Err(HostError::Invalid(format!(
                "{replicas} replicas need {replicas} nodes; the cluster has {nodes}"
            )));
        }
        let command = Command::SetReplicas {
            group,
            incarnation,
            replicas,
        };
        let record = self.change_group(&command).await?;
        tracing::info!(%group, replicas, "a group is to have another number of replicas");
        Ok(self.group_info(&record).await)
    }

    /// Has a replica go from one node to another. Answers when that is done, or after a while, when it goes on.
    pub async fn move_replica(&self, request: MoveReplica) -> Result<GroupInfo, HostError> {
        let record = self.find(&request.group).await?;
        let (group, incarnation) = (record.id, record.incarnation);
        let MoveReplica { from, to, .. } = request;
        let taker = self.node_record(to)?;
        if to != self.id() {
            self.inner.peers.look(&taker, ANSWERS_WITHIN).await?;
        }
        let moving = Moving { from, to };
        let command = Command::MoveReplica {
            group,
            incarnation,
            moving,
        };
        self.change_group(&command).await?;
        tracing::info!(%group, %from, %to, "a replica is to go to another node");
        let mut states = self.inner.catalog.clone();
        let moved = states.wait_for(|catalog| {
            let record = catalog.group(group);
            record.is_none_or(|record| record.moving != Some(moving))
        });
        let _ = clock::timeout(MOVED_WITHIN, moved).await;
        let catalog = self.catalog();
        Ok(self
            .group_info(catalog.group(group).unwrap_or(&record))
            .await)
    }

    /// The groups that have fewer replicas on nodes that answer than they should; nothing where another node leads the catalogue.
    pub fn under_replicated(&self) -> Option<BTreeSet<GroupId>> {
        lock(&self.inner.under_replicated).clone()
    }

    async fn report_of(&self, node: &NodeRecord) -> Result<NodeReport, HostError> {
        let (mut page, mut led) = (Page::default(), Vec::new());
        loop {
            let mut report: NodeReport = if node.id == self.id() {
                self.report(page).await?
            } else {
                let asked = self.ask(node, method::NODE_REPORT, &page);
                let late = HostError::Unanswered {
                    milliseconds: SAY_WITHIN.as_millis() as u64,
                };
                clock::timeout(SAY_WITHIN, asked)
                    .await
                    .unwrap_or(Err(late))?
            };
            led.append(&mut report.led);
            page.after = report.more_after;
            if page.after.is_none() {
                return Ok(NodeReport { led, ..report });
            }
        }
    }
}

/// What whoever keeps the number of replicas remembers from look to look. It can be lost at any time.
#[derive(Default)]
struct Keeper {
    silence: Silence,
    /// Since when replicas have been in the catalogue that their groups do not know.
    hosted: BTreeMap<(GroupId, NodeId), Stopwatch>,
    /// Groups to which something is done.
    busy: BTreeSet<GroupId>,
}

/// Steps that are being carried out.
type UnderWay<'a> = FuturesUnordered<BoxFuture<'a, GroupId>>;

/// Runs until it is dropped.
pub(super) async fn run(host: Host) {
    let mut states = host.inner.catalog.clone();
    let mut keeper = Keeper::default();
    let mut under_way = UnderWay::new();
    loop {
        states.mark_unchanged();
        let watch = Stopwatch::start();
        let leads = host.inner.node.leader(catalog::GROUP);
        if matches!(leads, Ok(Some(leader)) if leader == host.id()) {
            let touched = keeper.busy.clone();
            let look = look(&host, &mut keeper.silence);
            let seen = beside(look, &mut under_way, &mut keeper.busy).await;
            match seen {
                Ok(seen) => {
                    for order in keeper.decide(&host, &seen, &touched) {
                        keeper.busy.insert(order.group);
                        under_way.push(Box::pin(carry_out(&host, order)));
                    }
                }
                Err(error) => {
                    tracing::debug!(error = %error.chain(), "it is not known yet how the groups are")
                }
            }
        } else {
            keeper = Keeper::default();
            under_way.clear();
            *lock(&host.inner.under_replicated) = None;
        }
        let pauses = if under_way.is_empty() { PAUSES } else { 1 };
        let pause = clock::sleep((watch.elapsed() * pauses).max(SOONEST));
        beside(pause, &mut under_way, &mut keeper.busy).await;
        tokio::select! {
            Some(group) = under_way.next() => { keeper.busy.remove(&group); }
            changed = states.changed() => if changed.is_err() { return },
            () = clock::sleep(LOOK) => {}
        }
    }
}

/// Does one thing while the steps go on that are under way.
async fn beside<T>(
    does: impl Future<Output = T>,
    under_way: &mut UnderWay<'_>,
    busy: &mut BTreeSet<GroupId>,
) -> T {
    let mut does = std::pin::pin!(does);
    loop {
        tokio::select! {
            done = &mut does => return done,
            Some(group) = under_way.next() => { busy.remove(&group); }
        }
    }
}

/// What was seen.
struct Seen {
    catalog: std::sync::Arc<Catalog>,
    lives: BTreeMap<NodeId, Life>,
    reports: BTreeMap<NodeId, NodeReport>,
}

async fn look(host: &Host, silence: &mut Silence) -> Result<Seen, HostError> {
    let members = host.catalogue_members().await?;
    silence.heard(&members);
    let dead = match host.inner.config.cluster.replace_after_seconds {
        0 => BTreeSet::new(),
        seconds => silence.longer_than(Duration::from_secs(seconds)),
    };
    let life = |node: NodeId| {
        let active = members.iter().find(|member| member.node == node);
        match active.and_then(|member| member.active) {
            _ if node == host.id() => Life::Answers,
            Some(true) => Life::Answers,
            _ if dead.contains(&node) => Life::Dead,
            _ => Life::Silent,
        }
    };
    let catalog = host.catalog();
    let lives: BTreeMap<_, _> = catalog
        .nodes()
        .map(|node| (node.id, life(node.id)))
        .collect();
    let answering = catalog
        .nodes()
        .filter(|node| lives.get(&node.id) == Some(&Life::Answers));
    let reports = answering.map(|node| async { (node.id, host.report_of(node).await) });
    let reports = join_all(reports).await.into_iter();
    let reports = reports.filter_map(|(node, report)| match report {
        Ok(report) => Some((node, report)),
        Err(error) => {
            tracing::debug!(%node, error = %error.chain(), "a node does not say how its groups are");
            None
        }
    });
    let reports = reports.collect();
    // After the reports: whoever is a member by then stands in the catalogue.
    host.refresh().await?;
    let catalog = host.catalog();
    end_nodes(host, &catalog).await?;
    Ok(Seen {
        catalog,
        lives,
        reports,
    })
}

/// Removes the nodes from the cluster that are to be removed and host nothing any more.
async fn end_nodes(host: &Host, catalog: &Catalog) -> Result<(), HostError> {
    let leaving = catalog.nodes();
    let leaving = leaving.filter(|node| node.state == NodeState::Removing);
    for node in leaving.map(|node| node.id) {
        if catalog.groups_on(node).next().is_none() {
            host.change_catalog(&Command::RemoveNode { node }).await?;
            tracing::info!(%node, "the node is removed from the cluster");
        }
    }
    Ok(())
}

impl Keeper {
    /// What is to be done next to groups to which nothing was done while it was looked.
    fn decide(&mut self, host: &Host, seen: &Seen, touched: &BTreeSet<GroupId>) -> Vec<Order> {
        let (mut cluster, lacking) = seen.cluster();
        *lock(&host.inner.under_replicated) = Some(lacking);
        let hosted = cluster.groups.iter().flat_map(|(id, group)| {
            let hosted = group
                .seats
                .iter()
                .filter(|(_, seat)| **seat == Seat::Hosted);
            hosted.map(move |(node, _)| (*id, *node))
        });
        let since = |of| {
            self.hosted
                .get(&of)
                .copied()
                .unwrap_or_else(Stopwatch::start)
        };
        self.hosted = hosted.map(|of| (of, since(of))).collect();
        for ((group, _), since) in &self.hosted {
            if since.elapsed() < BEGUN_WITHIN
                && let Some(group) = cluster.groups.get_mut(group)
            {
                group.left_alone = true;
            }
        }
        for group in self.busy.iter().chain(touched) {
            if let Some(group) = cluster.groups.get_mut(group) {
                group.left_alone = true;
            }
        }
        let changes = placement::CHANGES_AT_ONCE.saturating_sub(self.busy.len());
        placement::orders(&cluster, changes)
    }
}

impl Seen {
    /// What placement decides by, and the groups that have fewer replicas than they should on nodes that answer.
    fn cluster(&self) -> (Cluster, BTreeSet<GroupId>) {
        let mut replicas: BTreeMap<NodeId, usize> = BTreeMap::new();
        for node in self.catalog.groups().flat_map(|group| &group.members) {
            *replicas.entry(*node).or_default() += 1;
        }
        let node = |record: &NodeRecord| {
            let report = self.reports.get(&record.id);
            Node {
                life: self.lives.get(&record.id).copied().unwrap_or(Life::Silent),
                takes_replicas: record.state.takes_replicas()
                    && report.is_some_and(|of| of.has_room),
                takes_leaders: report.is_some_and(|of| of.takes_leaders),
                gives: record.state.gives_replicas_away(),
                ends: record.state == NodeState::Removing,
                successor: record.successor,
                zone: record.zone().map(str::to_owned),
                replicas: replicas.get(&record.id).copied().unwrap_or_default(),
            }
        };
        let nodes = self.catalog.nodes().map(|record| (record.id, node(record)));
        let mut cluster = Cluster {
            nodes: nodes.collect(),
            groups: BTreeMap::new(),
        };
        let mut led: BTreeMap<GroupId, (NodeId, &Led)> = BTreeMap::new();
        for (leader, report) in &self.reports {
            led.extend(report.led.iter().map(|of| (of.group, (*leader, of))));
        }
        let mut lacking = BTreeSet::new();
        for record in self.catalog.groups() {
            let known = led.get(&record.id);
            let known = known.filter(|(_, of)| of.incarnation == record.incarnation);
            let group = known.map(|(leader, of)| group(record, *leader, of));
            let answering = match &group {
                Some(group) => cluster.answering(group),
                None => record
                    .members
                    .iter()
                    .filter(|node| cluster.answers(**node))
                    .count(),
            };
            if answering < record.wanted {
                lacking.insert(record.id);
            }
            if let Some(group) = group {
                cluster.groups.insert(record.id, group);
            }
        }
        (cluster, lacking)
    }
}

fn group(record: &GroupRecord, leader: NodeId, led: &Led) -> Group {
    let hosted = record.members.iter().map(|node| (*node, Seat::Hosted));
    let mut seats: BTreeMap<NodeId, Seat> = hosted.collect();
    for member in &led.members {
        let seat = match (record.members.contains(&member.node), member.votes) {
            (false, _) => Seat::Astray,
            (true, true) => Seat::Voter {
                close: member.close || member.node == leader,
            },
            (true, false) => Seat::Joining,
        };
        seats.insert(member.node, seat);
    }
    Group {
        wanted: record.wanted,
        leader,
        moving: record.moving,
        left_alone: led.busy,
        seats,
    }
}

/// Carries out one step; whatever becomes of it, the next look shows.
async fn carry_out(host: &Host, order: Order) -> GroupId {
    let Order { group, step, why } = order;
    let done = match step {
        Step::Add(node) => {
            tracing::info!(%group, %node, %why, "a replica is made");
            let asked = OfGroupAndNode::new(group, node);
            host.add_replica(&asked, true).await.map(drop)
        }
        Step::Remove(node) => {
            tracing::info!(%group, %node, %why, "a replica is removed");
            let asked = OfGroupAndNode::new(group, node);
            host.remove_replica(&asked, true).await.map(drop)
        }
        Step::Lead(node) => {
            tracing::info!(%group, %node, %why, "another node is to lead");
            let group = group.to_string();
            host.transfer_leader(&group, node, Reach::Cluster)
                .await
                .map(drop)
        }
    };
    if let Err(error) = done {
        tracing::debug!(%group, ?step, error = %error.chain(), "a step towards better places was not done");
    }
    group
}
