//! Where replicas and leaders ought to be, and the next steps towards that: a function of what is known, without I/O.
//!
//! A group gets a new replica before it loses an old one, and each decision follows from what is seen now, so that whoever leads the
//! catalogue next goes on from wherever the one before it stopped.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt;

use skep_core::id::{GroupId, NodeId};

use crate::catalog::{MEMBERS_MAX, Moving};

/// Changes of members that are under way at once in a cluster.
pub(super) const CHANGES_AT_ONCE: usize = 16;
/// Leaders that are moved at once so that they are spread evenly, and so that a node is rid of them.
pub(super) const LEADERS_AT_ONCE: (usize, usize) = (4, 16);
/// Leaders are moved only where a node has so many more, or fewer, than the mean, or a fifth of the mean.
const LEADERS_APART: usize = 2;

/// All that is known.
#[derive(Clone, Default, Debug)]
pub(super) struct Cluster {
    pub nodes: BTreeMap<NodeId, Node>,
    /// Those whose leader has said how they are.
    pub groups: BTreeMap<GroupId, Group>,
}

/// Whether a node answers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Life {
    Answers,
    /// Not at the moment, as far as is known.
    Silent,
    /// For so long that its replicas are made anew.
    Dead,
}

/// What is known of a node.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub life: Life,
    /// It may get replicas, and has room for them.
    pub takes_replicas: bool,
    /// It may get leaders.
    pub takes_leaders: bool,
    /// Its replicas are to go.
    pub gives: bool,
    /// It is to be removed.
    pub ends: bool,
    /// Who is to take its replicas.
    pub successor: Option<NodeId>,
    pub zone: Option<String>,
    /// Replicas that the catalogue has put on it.
    pub replicas: usize,
}

/// What is known of a group.
#[derive(Clone, Debug)]
pub(super) struct Group {
    pub wanted: usize,
    pub leader: NodeId,
    pub moving: Option<Moving>,
    /// Something else is done to it.
    pub left_alone: bool,
    pub seats: BTreeMap<NodeId, Seat>,
}

/// A replica of a group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Seat {
    /// It votes; `close`: it has nearly all that the leader has, and may lead at once.
    Voter { close: bool },
    /// It learns, and will vote.
    Joining,
    /// The catalogue puts it here, and the group does not know it.
    Hosted,
    /// The group knows it, and the catalogue does not put it here: its node has deleted it, or will.
    Astray,
}

/// What is to be done to a group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
    Add(NodeId),
    Remove(NodeId),
    Lead(NodeId),
}

/// Why.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Reason {
    TooFew,
    TooMany,
    Asked,
    Dead,
    NodeGoes,
    Unfinished,
    Zones,
    Spread,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooFew => "the group has fewer replicas than it should on nodes that stay",
            Self::TooMany => "the group has more replicas than it should",
            Self::Asked => "somebody asked for the move",
            Self::Dead => "the node has been silent for too long, and others have its replicas",
            Self::NodeGoes => "the node is drained, or removed",
            Self::Unfinished => "a change of members was not finished",
            Self::Zones => "another zone has none, or fewer, of the group's replicas",
            Self::Spread => "other nodes lead fewer groups",
        })
    }
}

/// A step of a group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Order {
    pub group: GroupId,
    pub step: Step,
    pub why: Reason,
}

/// The next steps: at most one for a group, and of changes of members at most so many.
pub(super) fn orders(cluster: &Cluster, changes: usize) -> Vec<Order> {
    let mut work = Work {
        cluster,
        replicas: cluster
            .nodes
            .iter()
            .map(|(id, of)| (*id, of.replicas))
            .collect(),
        leaders: cluster.leaders(),
        orders: Vec::new(),
    };
    // Whoever has the fewest replicas left is in the greatest danger.
    let groups = cluster.groups.iter().filter(|(_, group)| !group.left_alone);
    let mut groups: Vec<_> = groups.collect();
    groups.sort_by_key(|(id, group)| (cluster.answering(group), **id));
    let (mut changed, mut handed) = (0, 0);
    for (id, group) in &groups {
        let order = if let Some(to) = work.leader_instead(group) {
            if handed == LEADERS_AT_ONCE.1 {
                continue;
            }
            handed += 1;
            work.leads(group.leader, to);
            (Step::Lead(to), Reason::NodeGoes)
        } else if let Some((step, why)) = work.change(group) {
            if changed == changes {
                continue;
            }
            changed += 1;
            if let Step::Add(node) = step {
                *work.replicas.entry(node).or_default() += 1;
            }
            (step, why)
        } else {
            continue;
        };
        let (group, (step, why)) = (**id, order);
        work.orders.push(Order { group, step, why });
    }
    work.spread_leaders();
    work.orders
}

impl Cluster {
    fn node_is(&self, id: NodeId, is: impl Fn(&Node) -> bool) -> bool {
        self.nodes.get(&id).is_some_and(is)
    }

    pub(super) fn answers(&self, id: NodeId) -> bool {
        self.node_is(id, |node| node.life == Life::Answers)
    }

    /// Whether replicas on it stay there.
    fn stays(&self, id: NodeId) -> bool {
        self.node_is(id, |node| node.life != Life::Dead && !node.gives)
    }

    fn takes_replicas(&self, id: NodeId) -> bool {
        self.stays(id) && self.node_is(id, |node| node.takes_replicas && node.life == Life::Answers)
    }

    fn takes_leaders(&self, id: NodeId) -> bool {
        self.stays(id) && self.node_is(id, |node| node.takes_leaders && node.life == Life::Answers)
    }

    fn zone(&self, id: NodeId) -> Option<&str> {
        self.nodes.get(&id)?.zone.as_deref()
    }

    /// Voters of a group on nodes that answer.
    pub(super) fn answering(&self, group: &Group) -> usize {
        group.voters().filter(|node| self.answers(*node)).count()
    }

    /// How many groups each node leads that may lead.
    fn leaders(&self) -> BTreeMap<NodeId, usize> {
        let voters = self.groups.values().flat_map(Group::voters);
        let mut leaders: BTreeMap<_, _> = voters
            .filter(|node| self.takes_leaders(*node))
            .map(|node| (node, 0))
            .collect();
        for group in self.groups.values() {
            if let Some(leads) = leaders.get_mut(&group.leader) {
                *leads += 1;
            }
        }
        leaders
    }

    /// Whether the group goes on without a voter, and can decide that it goes.
    fn spares(&self, group: &Group, node: NodeId) -> bool {
        let voters = group.voters().count() + group.with(Seat::Astray).count();
        let answering = self.answering(group);
        let is_known = matches!(
            group.seats.get(&node),
            Some(Seat::Voter { .. } | Seat::Astray)
        );
        let rest = voters - usize::from(is_known);
        let rest_answering = answering - usize::from(group.votes(node) && self.answers(node));
        answering > voters / 2 && rest_answering > rest / 2
    }
}

impl Group {
    fn voters(&self) -> impl Iterator<Item = NodeId> {
        let votes =
            |(node, seat): (&NodeId, &Seat)| matches!(seat, Seat::Voter { .. }).then_some(*node);
        self.seats.iter().filter_map(votes)
    }

    fn votes(&self, node: NodeId) -> bool {
        matches!(self.seats.get(&node), Some(Seat::Voter { .. }))
    }

    fn with(&self, seat: Seat) -> impl Iterator<Item = NodeId> {
        let has = move |(node, of): (&NodeId, &Seat)| (*of == seat).then_some(*node);
        self.seats.iter().filter_map(has)
    }
}

/// Steps that are being decided on, and what they will change.
struct Work<'a> {
    cluster: &'a Cluster,
    replicas: BTreeMap<NodeId, usize>,
    leaders: BTreeMap<NodeId, usize>,
    orders: Vec<Order>,
}

impl Work<'_> {
    /// The next change of a group's members.
    fn change(&self, group: &Group) -> Option<(Step, Reason)> {
        let cluster = self.cluster;
        if let Some(node) = group.with(Seat::Joining).next() {
            // It is waited for, unless it will be of no use.
            return (!cluster.stays(node)).then_some((Step::Remove(node), Reason::NodeGoes));
        }
        let is_spared = |node: &NodeId| cluster.spares(group, *node);
        if let Some(node) = group.with(Seat::Astray).find(is_spared) {
            return Some((Step::Remove(node), Reason::Unfinished));
        }
        let moving = group.moving.filter(|moving| {
            let has_it = group.votes(moving.to) && cluster.stays(moving.to);
            let can_take = has_it || cluster.takes_replicas(moving.to);
            group.votes(moving.from) && can_take
        });
        if let Some(Moving { to, .. }) = moving
            && !group.votes(to)
            && group.voters().count() < MEMBERS_MAX
        {
            return Some((Step::Add(to), Reason::Asked));
        }
        let (mut good, mut bad): (Vec<_>, Vec<_>) =
            group.voters().partition(|node| cluster.stays(*node));
        // Whoever gives its replica away keeps it until there are enough others.
        if let Some(Moving { from, .. }) = moving
            && good.len() > group.wanted
            && let Some(at) = good.iter().position(|node| *node == from)
        {
            bad.push(good.remove(at));
        }
        if good.len() < group.wanted {
            if group.voters().count() < MEMBERS_MAX
                && let Some(node) = self.place(group, &good, &bad)
            {
                return Some((Step::Add(node), Reason::TooFew));
            }
            let ends = bad.iter().copied().find(|node| {
                cluster.nodes.get(node).is_none_or(|node| node.ends) && cluster.spares(group, *node)
            });
            return ends.map(|node| (Step::Remove(node), Reason::NodeGoes));
        }
        // Who votes and does not answer is the first to go.
        bad.sort_by_key(|node| (cluster.answers(*node), *node));
        if let Some(node) = bad.into_iter().find(is_spared) {
            let why = match cluster.nodes.get(&node) {
                Some(known) if known.life == Life::Dead => Reason::Dead,
                Some(known) if !known.gives => Reason::Asked,
                _ => Reason::NodeGoes,
            };
            return Some((Step::Remove(node), why));
        }
        if let Some(node) = group.with(Seat::Hosted).next() {
            return Some((Step::Remove(node), Reason::Unfinished));
        }
        if good.len() > group.wanted {
            let worst = good.iter().copied().filter(is_spared).max_by_key(|node| {
                let zone = self.in_zone(&good, *node);
                (
                    !cluster.answers(*node),
                    zone,
                    self.replicas.get(node),
                    *node,
                )
            });
            return worst.map(|node| (Step::Remove(node), Reason::TooMany));
        }
        self.better_zone(group, &good)
            .map(|node| (Step::Add(node), Reason::Zones))
    }

    /// How many of these nodes stand in the zone of a node; one that says nothing stands alone.
    fn in_zone(&self, nodes: &[NodeId], node: NodeId) -> usize {
        let Some(zone) = self.cluster.zone(node) else {
            return 0;
        };
        let same = nodes
            .iter()
            .filter(|other| self.cluster.zone(**other) == Some(zone));
        same.count()
    }

    /// Where another replica is best put, beside those that stay.
    fn place(&self, group: &Group, good: &[NodeId], bad: &[NodeId]) -> Option<NodeId> {
        let cluster = self.cluster;
        // What was begun is finished.
        let can_go_on = |node: &NodeId| cluster.stays(*node) && cluster.answers(*node);
        if let Some(node) = group.with(Seat::Hosted).find(can_go_on) {
            return Some(node);
        }
        let free = |node: &NodeId| cluster.takes_replicas(*node) && !group.seats.contains_key(node);
        let mut successors = bad
            .iter()
            .filter_map(|node| cluster.nodes.get(node)?.successor);
        successors.find(free).or_else(|| {
            let nodes = cluster.nodes.keys().copied().filter(free);
            nodes.min_by_key(|node| (self.in_zone(good, *node), self.replicas.get(node), *node))
        })
    }

    /// A node in a zone that has so few of these replicas that one of them is better there.
    fn better_zone(&self, group: &Group, good: &[NodeId]) -> Option<NodeId> {
        let cluster = self.cluster;
        let crowded = good.iter().map(|node| self.in_zone(good, *node)).max()?;
        let free = |node: &NodeId| {
            // A node that says nothing of its zone may stand in any of them.
            cluster.takes_replicas(*node)
                && !group.seats.contains_key(node)
                && cluster.zone(*node).is_some()
        };
        let nodes = cluster.nodes.keys().copied().filter(free);
        nodes
            .map(|node| (self.in_zone(good, node), self.replicas.get(&node), node))
            .min()
            .filter(|(there, ..)| there + 1 < crowded)
            .map(|(.., node)| node)
    }

    /// Who is to lead a group whose leader's node goes.
    fn leader_instead(&self, group: &Group) -> Option<NodeId> {
        let goes = self.cluster.node_is(group.leader, |node| node.gives);
        goes.then(|| self.best_leader(group)).flatten()
    }

    /// The voter that may lead at once and whose node leads least.
    fn best_leader(&self, group: &Group) -> Option<NodeId> {
        let others = group.with(Seat::Voter { close: true });
        others
            .filter(|node| *node != group.leader)
            .filter_map(|node| Some((*self.leaders.get(&node)?, node)))
            .min()
            .map(|(_, node)| node)
    }

    fn leads(&mut self, from: NodeId, to: NodeId) {
        if let Some(leads) = self.leaders.get_mut(&from) {
            *leads = leads.saturating_sub(1);
        }
        *self.leaders.entry(to).or_default() += 1;
    }

    /// Whether some node leads so many more or fewer groups than the mean that it is worth a transfer.
    fn is_uneven(&self) -> bool {
        let (nodes, all) = (self.leaders.len(), self.leaders.values().sum::<usize>());
        let apart = (LEADERS_APART * nodes).max(all / 5);
        self.leaders
            .values()
            .any(|leads| (leads * nodes).abs_diff(all) > apart)
    }

    fn spread_leaders(&mut self) {
        let mut busy: Vec<GroupId> = self.orders.iter().map(|order| order.group).collect();
        for _ in 0..LEADERS_AT_ONCE.0 {
            if !self.is_uneven() {
                return;
            }
            let mut nodes: Vec<_> = self
                .leaders
                .iter()
                .map(|(node, leads)| (*leads, *node))
                .collect();
            nodes.sort_by_key(|(leads, node)| (Reverse(*leads), *node));
            let moved = nodes.into_iter().find_map(|(leads, from)| {
                let led = self.cluster.groups.iter();
                let led = led.filter(|(id, group)| {
                    group.leader == from && !group.left_alone && !busy.contains(id)
                });
                led.filter_map(|(id, group)| {
                    let to = self.best_leader(group)?;
                    Some((*self.leaders.get(&to)?, *id, from, to))
                })
                .min()
                // After less than that the two would have changed places.
                .filter(|(least, ..)| least + 2 <= leads)
            });
            let Some((_, group, from, to)) = moved else {
                return;
            };
            busy.push(group);
            self.leads(from, to);
            let (step, why) = (Step::Lead(to), Reason::Spread);
            self.orders.push(Order { group, step, why });
        }
    }
}

#[cfg(test)]
mod tests;
