//! Operators change memberships, until what they want is done or hopeless.

use bytes::Bytes;
use skep_core::id::{GroupId, NodeId};
use skep_core::input::{Input, Waiter};
use skep_core::proposal::{Change, ChangeRefusal, Proposal, ProposalError, Response};
use skep_core::status::Part;
use skep_log::GroupKey;

use super::clients::Who;
use super::event::Event;
use super::{PATIENCE, World};
use crate::invariant::Violation;
use crate::scenario::SECOND;

/// A change of membership that an operator wants done.
#[derive(Clone, Debug)]
pub(super) struct Task {
    pub(super) key: GroupKey,
    add: bool,
    /// It is to vote, when it is added.
    votes: bool,
    node: u64,
    waiting: Option<Waiter>,
    pub(super) turn: u64,
    /// Given up then, unless the node is gone for ever.
    until: u64,
}

impl World {
    fn wake_operator(&mut self, group: u64, delay: u64) {
        if let Some(task) = self.tasks.get_mut(&group) {
            task.turn += 1;
            let turn = task.turn;
            self.after(delay, Event::Operator { group, turn });
        }
    }

    /// Tells all nodes of the catalogue, sooner or later.
    pub(super) fn publish(&mut self) {
        for id in self.up() {
            let learns = self.random.around(SECOND);
            self.after(learns, Event::Reconcile { node: id });
        }
    }

    pub(super) fn begin_task(&mut self, group: u64, add: bool, node: u64) {
        let Some(key) = self.catalogue.key(group) else {
            return;
        };
        if self.tasks.contains_key(&group) {
            return;
        }
        self.trace.line(self.now, || {
            let verb = if add { "add" } else { "remove" };
            format!("operator: {verb} node {node} of {key}")
        });
        if add && let Some(record) = self.catalogue.groups.get_mut(&group) {
            record.hosts.insert(node);
            record.joiners.insert(node);
            self.publish();
        }
        let task = Task {
            key,
            add,
            votes: !self.random.one_in(3),
            node,
            waiting: None,
            // Turns of a former task must not be taken for one of this.
            turn: self.sequence,
            until: self.now + 120 * SECOND,
        };
        self.tasks.insert(group, task);
        self.wake_operator(group, SECOND);
    }

    pub(super) fn operate(&mut self, group: u64) -> Result<(), Violation> {
        let Some(task) = self.tasks.get(&group).cloned() else {
            return Ok(());
        };
        if self.catalogue.key(group) != Some(task.key) {
            self.tasks.remove(&group);
            return Ok(());
        }
        let gone = self.nodes.get(&task.node).is_none_or(|node| node.destroyed);
        if self.now > task.until && (task.add || !gone) {
            self.tasks.remove(&group);
            return Ok(());
        }
        if let Some(waiter) = task.waiting {
            self.waiters.remove(&waiter);
        }
        self.wake_operator(group, PATIENCE);
        // As the host does: a replica of a former life says nothing of this one's members.
        let Some(node) = self.a_host(task.key).filter(|node| {
            let node = self.nodes.get(node);
            node.is_some_and(|node| node.hosts(task.key))
        }) else {
            return Ok(());
        };
        let waiter = self.waiter(Who::Operator(group));
        if let Some(task) = self.tasks.get_mut(&group) {
            task.waiting = Some(waiter);
        }
        let (target, data) = (NodeId(task.node), Bytes::new());
        let change = match (task.add, task.votes) {
            (true, true) => Change::Add { node: target, data },
            (true, false) => Change::AddLearner { node: target, data },
            (false, _) => Change::Remove { node: target, data },
        };
        let proposal = Proposal::Change(change);
        self.request(node, GroupId(group), Input::Propose { waiter, proposal });
        Ok(())
    }

    pub(super) fn operated(&mut self, group: u64, result: &Result<Response, ProposalError>) {
        let Some(task) = self.tasks.get_mut(&group) else {
            return;
        };
        task.waiting = None;
        let done = match result {
            Ok(_) => true,
            Err(ProposalError::ChangeRefused(ChangeRefusal::AlreadyMember)) => task.add,
            Err(ProposalError::ChangeRefused(ChangeRefusal::NotMember)) => !task.add,
            Err(_) => false,
        };
        if !done {
            let pause = self.random.around(SECOND);
            self.wake_operator(group, pause);
            return;
        }
        let task = self.tasks.remove(&group).expect("seen above");
        self.trace.line(self.now, || {
            format!("operator: node {} of {} is done", task.node, task.key)
        });
        if !task.add
            && self.catalogue.key(group) == Some(task.key)
            && let Some(record) = self.catalogue.groups.get_mut(&group)
        {
            record.hosts.remove(&task.node);
            record.joiners.remove(&task.node);
            self.publish();
        }
    }

    /// Operators take nodes that are gone for ever out of their groups, and put others in.
    pub(super) fn replace_destroyed(&mut self) {
        let mut tasks = Vec::new();
        for (group, record) in &self.catalogue.groups {
            let gone = record
                .hosts
                .iter()
                .find(|node| self.nodes.get(node).is_none_or(|node| node.destroyed));
            tasks.extend(gone.map(|node| (*group, *node)));
        }
        for (group, node) in tasks {
            self.begin_task(group, false, node);
        }
    }

    /// A change that an operator gave up may be done later by a leader of then: operators undo it.
    pub(super) fn remove_strays(&mut self) {
        let mut tasks = Vec::new();
        for (group, record) in &self.catalogue.groups {
            let statuses = self.statuses(*group);
            let leader = statuses
                .iter()
                .find(|(_, status, _)| status.part == Part::Leader);
            let stray = leader.and_then(|(_, status, _)| {
                let mut members = status.members.iter();
                members.find(|member| !record.hosts.contains(&member.node.0))
            });
            tasks.extend(stray.map(|member| (*group, member.node.0)));
        }
        for (group, node) in tasks {
            self.begin_task(group, false, node);
        }
    }

    /// Adds or removes a member.
    pub(super) fn churn(&mut self, group: u64) -> bool {
        let Some(record) = self.catalogue.groups.get(&group) else {
            return false;
        };
        let hosts: Vec<u64> = record.hosts.iter().copied().collect();
        let mut others: Vec<u64> = self
            .nodes
            .values()
            .filter(|node| node.stays() && !record.hosts.contains(&node.id))
            .map(|node| node.id)
            .collect();
        if self.tasks.contains_key(&group) {
            return false;
        }
        let grow = hosts.len() < 3 || (hosts.len() < 7 && self.random.one_in(2));
        if grow {
            if others.is_empty() && (self.nodes.len() as u64) < self.scenario.nodes + 3 {
                others.extend(self.arrive());
            }
            let Some(node) = self.random.pick(&others).copied() else {
                return false;
            };
            self.begin_task(group, true, node);
        } else {
            let Some(node) = self.random.pick(&hosts).copied() else {
                return false;
            };
            self.begin_task(group, false, node);
        }
        true
    }
}
