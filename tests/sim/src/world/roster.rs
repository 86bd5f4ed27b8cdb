//! Nodes come to the cluster, and go for ever.

use std::collections::BTreeSet;

use skep_core::state::Role;
use skep_core::status::Part;
use skep_log::GroupKey;

use super::event::Event;
use super::{NODES_MAX, World};
use crate::node::Node;
use crate::scenario::SECOND;

/// Between two looks at who is to go.
const LOOK: u64 = 2 * SECOND;

/// Nodes that stay, where nobody takes the place of one that goes: no operator ends a cluster node by node.
const STAY: usize = 3;

/// A node that is to go for ever.
#[derive(Clone, Debug)]
pub(super) struct Leaver {
    /// Who takes its places.
    heir: Option<u64>,
    /// The groups that have still to do without it.
    groups: BTreeSet<GroupKey>,
}

impl World {
    /// A node comes that nobody knew, with an id that no other had, and an empty disk.
    pub(super) fn arrive(&mut self) -> Option<u64> {
        let node = self.nodes.len() as u64 + 1;
        if node > NODES_MAX {
            return None;
        }
        self.trace.line(self.now, || format!("node {node} is new"));
        self.nodes.insert(node, Node::new(node, &self.scenario));
        self.after(1, Event::Boot { node });
        Some(node)
    }

    /// A node comes, and is added to a group.
    pub(super) fn join(&mut self, group: u64) -> bool {
        let has_room = |hosts: &BTreeSet<u64>| hosts.len() < 7;
        let record = self.catalogue.groups.get(&group);
        if self.tasks.contains_key(&group) || !record.is_some_and(|record| has_room(&record.hosts))
        {
            return false;
        }
        let newcomer = self.arrive();
        newcomer
            .map(|node| self.begin_task(group, true, node))
            .is_some()
    }

    /// A node is to go for ever, or has lost its disk; a new one may take its places. One at a time, so that no group has to do
    /// without its majority.
    pub(super) fn retire(&mut self, id: u64, is_replaced: bool) -> bool {
        let is_lost = self.nodes[&id].destroyed;
        if self.healing || !self.leaving.is_empty() || !(is_lost || self.is_whole()) {
            return false;
        }
        let others = self.nodes.values().filter(|node| node.id != id);
        let others = others.filter(|node| node.stays()).count();
        if !is_replaced && others < STAY {
            return false;
        }
        let heir = is_replaced.then(|| self.arrive()).flatten();
        if is_replaced && heir.is_none() {
            return false;
        }
        self.trace.line(self.now, || {
            format!("operator: node {id} is to go, its heir is {heir:?}")
        });
        let groups = self.catalogue.groups.iter();
        let groups = groups.filter(|(_, record)| record.hosts.contains(&id));
        let groups = groups.filter_map(|(group, _)| self.catalogue.key(*group));
        let groups = groups.collect();
        if let Some(node) = self.nodes.get_mut(&id) {
            node.leaves = true;
        }
        self.leaving.insert(id, Leaver { heir, groups });
        self.after(LOOK, Event::Dismiss);
        true
    }

    /// Operators do the next thing for each node that is to go, and throw away those that no group counts on any more.
    pub(super) fn dismiss(&mut self) {
        for (id, mut leaver) in self.leaving.clone() {
            leaver
                .groups
                .retain(|key| !self.does_without(*key, id, leaver.heir));
            for key in &leaver.groups {
                self.take_out(*key, id, leaver.heir);
            }
            if leaver.groups.is_empty() {
                self.leaving.remove(&id);
                // Its process may go on for a while, and does not know that it is no member.
                let lives = self.random.around(5 * SECOND);
                self.after(lives, Event::Discard { node: id });
            } else {
                self.leaving.insert(id, leaver);
            }
        }
        if !self.leaving.is_empty() {
            self.after(LOOK, Event::Dismiss);
        }
    }

    /// Whether a group has nothing to do with a node any more, and all to do with its heir.
    fn does_without(&self, key: GroupKey, id: u64, heir: Option<u64>) -> bool {
        let record = self.catalogue.groups.get(&key.group);
        let Some(record) = record.filter(|record| record.incarnation == key.incarnation) else {
            return true;
        };
        let has_heir =
            heir.is_none_or(|heir| self.roles(key).iter().any(|(node, _)| *node == heir));
        !record.hosts.contains(&id) && !self.tasks.contains_key(&key.group) && has_heir
    }

    /// The next step on the way of a group to do without a node: somebody is added first where it has to be.
    fn take_out(&mut self, key: GroupKey, id: u64, heir: Option<u64>) {
        let roles = self.roles(key);
        if self.tasks.contains_key(&key.group) || roles.is_empty() {
            return;
        }
        let stays = |node: &u64| self.nodes.get(node).is_some_and(Node::stays);
        let is_member = |heir: &u64| roles.iter().any(|(node, _)| node == heir);
        let another_votes = roles
            .iter()
            .any(|(node, role)| *role == Role::Voter && *node != id && stays(node));
        let missing = heir.filter(|heir| !is_member(heir));
        if let Some(heir) = missing {
            self.begin_task(key.group, true, heir);
        } else if another_votes {
            self.begin_task(key.group, false, id);
        } else {
            let mut free = self.nodes.values();
            let rotten = &self.rotten;
            let may_host = |id: &u64| !is_member(id) && !rotten.contains(id);
            let free = free.find(|node| node.stays() && may_host(&node.id));
            let newcomer = free.map(|node| node.id).or_else(|| self.arrive());
            if let Some(node) = newcomer {
                self.begin_task(key.group, true, node);
            }
        }
    }

    /// The members of a group as its leader sees them; none while nobody leads.
    fn roles(&self, key: GroupKey) -> Vec<(u64, Role)> {
        let leads = self
            .statuses(key.group)
            .into_iter()
            .filter(|(_, status, _)| status.part == Part::Leader)
            .max_by_key(|(_, status, _)| status.term);
        let members = leads
            .map(|(_, status, _)| status.members)
            .unwrap_or_default();
        members
            .iter()
            .map(|member| (member.node.0, member.role))
            .collect()
    }
}
