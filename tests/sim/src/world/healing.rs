//! Everything becomes well again when nothing goes wrong any more, or it never was.

use std::collections::BTreeMap;

use skep_core::id::{GroupId, NodeId};
use skep_core::input::Input;
use skep_core::proposal::Proposal;
use skep_core::status::{Health, Part, Status};
use skep_log::sim::Crash;

use super::World;
use super::event::Event;
use crate::invariant::Violation;
use crate::scenario::SECOND;

/// Time that everything has to become well again when nothing goes wrong any more.
const HEALING: u64 = 300 * SECOND;
/// Between two nodes that hear a rumour when all is well: longer than between two heartbeats, so that one follower at a time
/// follows nobody.
const RUMOUR: u64 = 7 * SECOND / 10;

/// The terms of the groups.
type Terms = BTreeMap<u64, u64>;

/// How it was when everybody began to rest.
pub(super) struct Calm {
    terms: Terms,
    /// How often each node had started. Where one has started since, something went wrong, and a leader may have gone with it.
    boots: BTreeMap<u64, u64>,
}

impl World {
    pub(super) fn heal(&mut self) {
        self.healing = true;
        // A network slower than the election timeout, or a disk, is a fault too; and where components come from.
        self.scenario.fetch_seconds = 2;
        self.scenario.unable = 0;
        self.scenario.delay = self.scenario.delay.min(5_000);
        self.scenario.disk = self.scenario.disk.min(5_000);
        self.scenario.loss = 0;
        self.trace.line(self.now, || "healing".to_owned());
        self.cuts.clear();
        self.slow.clear();
        self.paused.clear();
        self.full.clear();
        self.sick.clear();
        let mut down = Vec::new();
        for (id, node) in &self.nodes {
            node.vfs.limit_capacity(None);
            if !node.is_up() && !node.destroyed {
                down.push(*id);
            }
        }
        for id in down {
            self.after(SECOND, Event::Boot { node: id });
        }
        // What is armed strikes now or never.
        for (id, _) in std::mem::take(&mut self.armed) {
            self.crash(id, None);
        }
        self.replace_destroyed();
        self.after(SECOND, Event::Look);
    }

    /// Looks whether all is well, has everybody rest then, and judges: whether the run is over.
    pub(super) fn look(&mut self, end: u64) -> Result<bool, Violation> {
        self.check_calm()?;
        let rested = self.calm.as_ref().map(|calm| calm.boots == self.boots());
        let is_healed = match (self.is_healed(), rested) {
            (Ok(()), Some(true)) => return self.check_healed().map(|()| true),
            (Ok(()), Some(false)) if self.now > end + HEALING => {
                Err("nodes still end and start".to_owned())
            }
            (is_healed, _) => is_healed,
        };
        match is_healed {
            Ok(()) => {
                self.rest();
                Ok(false)
            }
            Err(why) if self.now > end + HEALING => Err(Violation {
                invariant: "liveness",
                text: format!(
                    "not healed {} s after the last fault: {why}",
                    HEALING / SECOND
                ),
            }),
            Err(_) => {
                self.after(SECOND, Event::Look);
                Ok(false)
            }
        }
    }

    /// Nothing happens for a while, but that one node after the other is told that the processes of all others have ended.
    fn rest(&mut self) {
        self.calm = Some(Calm {
            terms: self.terms(),
            boots: self.boots(),
        });
        let up = self.up();
        for (number, node) in (1..).zip(&up) {
            let boot = self.nodes[node].boots;
            for gone in up.iter().filter(|other| *other != node) {
                let (node, gone) = (*node, *gone);
                self.after(number * RUMOUR, Event::Gone { node, boot, gone });
            }
        }
        self.after((up.len() as u64 + 3) * RUMOUR, Event::Look);
    }

    /// Leaders stay while nothing goes wrong, whatever one follower hears.
    fn check_calm(&self) -> Result<(), Violation> {
        let boots = self.boots();
        let calm = self.calm.as_ref().filter(|calm| calm.boots == boots);
        let (Some(Calm { terms: before, .. }), now) = (calm, self.terms()) else {
            return Ok(());
        };
        match *before == now {
            true => Ok(()),
            false => Err(Violation {
                invariant: "calm",
                text: format!("the terms of the groups were {before:?}, and are {now:?}"),
            }),
        }
    }

    fn boots(&self) -> BTreeMap<u64, u64> {
        let boots = self.nodes.iter().map(|(id, node)| (*id, node.boots));
        boots.collect()
    }

    /// The highest term of each group, but of those where a machine went wrong: they may still find out that it did.
    fn terms(&self) -> Terms {
        let groups = self.catalogue.groups.keys();
        let is_sound = |group: &&u64| {
            let key = self.catalogue.key(**group);
            key.is_some_and(|key| !self.checker.may_differ(key))
        };
        let term = |group: &u64| {
            let statuses = self.statuses(*group).into_iter();
            statuses
                .map(|(_, status, _)| status.term.0)
                .max()
                .unwrap_or(0)
        };
        groups
            .filter(is_sound)
            .map(|group| (*group, term(group)))
            .collect()
    }

    /// Whether every group has one leader whom all its members follow, all in one state, and every client its answer.
    fn is_healed(&mut self) -> Result<(), String> {
        let faulted: Vec<u64> = self
            .nodes
            .values()
            .filter(|node| node.is_faulted())
            .map(|node| node.id)
            .collect();
        for id in faulted {
            // An operator starts a node anew whose machine failed.
            self.crash(id, Some(Crash::ProcessOnly));
        }
        self.replace_destroyed();
        self.remove_strays();
        self.mend_wrong();
        if let Some(leaver) = self.leaving.iter().next() {
            return Err(format!("it still counts on {leaver:?}"));
        }
        if let Some(task) = self.tasks.values().next() {
            return Err(format!(
                "an operator is at {task:?}: {:#?}",
                self.statuses(task.key.group)
            ));
        }
        if let Some(client) = self
            .clients
            .iter()
            .find(|client| client.operation.is_some())
        {
            return Err(format!(
                "client {client:?} has no answer: {:#?}",
                self.statuses(client.key.group)
            ));
        }
        for (group, record) in &self.catalogue.groups {
            let statuses = self.statuses(*group);
            let leaders: Vec<_> = statuses
                .iter()
                .filter(|(_, status, _)| status.part == Part::Leader)
                .collect();
            let [(_, leader, state)] = leaders[..] else {
                return Err(format!(
                    "group {group} has {} leaders: {statuses:#?}",
                    leaders.len()
                ));
            };
            // Whoever was removed has been told, and is gone.
            for (place, status, _) in &statuses {
                let is_member = leader
                    .members
                    .iter()
                    .any(|member| member.replica == status.replica);
                // One that was never told anything knows nobody to ask, once it was restarted; the next that is added in its
                // place takes it.
                let is_blank = status.members.is_empty();
                if !is_member && !is_blank {
                    return Err(format!(
                        "group {group}: node {} still holds a removed replica: {status:#?}",
                        place.node
                    ));
                }
            }
            for member in &leader.members {
                if !record.hosts.contains(&member.node.0) {
                    return Err(format!(
                        "{} is a member of group {group} and hosts nothing: {leader:#?}",
                        member.node
                    ));
                }
                let same = statuses.iter().any(|(place, status, other)| {
                    place.node == member.node.0
                        && status.replica == member.replica
                        && status.applied == leader.last
                        && status.leader == leader.leader
                        && other == state
                        && other.is_some()
                });
                if !same {
                    return Err(format!(
                        "group {group}: node {} is not where the leader is: {statuses:#?}",
                        member.node
                    ));
                }
            }
        }
        Ok(())
    }

    /// Where a machine went wrong a barrier shows it, and if no state has a majority an operator trusts one.
    fn mend_wrong(&mut self) {
        let groups: Vec<u64> = self.catalogue.groups.keys().copied().collect();
        for group in groups {
            let mut wrong = self.statuses(group);
            wrong.retain(|(place, ..)| self.checker.may_differ(place.key));
            let suspended = |status: &Status| matches!(status.health, Health::Suspended { .. });
            // One that has said nothing of the barrier cannot be trusted; then the next is tried.
            let picked = self.random.pick(&wrong).map(|(place, ..)| *place);
            let Some(place) = picked else { continue };
            let proposal = match wrong.iter().any(|(_, status, _)| suspended(status)) {
                true => Proposal::Trust {
                    node: NodeId(place.node),
                },
                false => Proposal::Barrier,
            };
            let input = Input::Propose {
                waiter: 0,
                proposal,
            };
            self.request(place.node, GroupId(group), input);
        }
    }

    fn check_healed(&self) -> Result<(), Violation> {
        for group in self.catalogue.groups.keys() {
            let applied = self
                .statuses(*group)
                .into_iter()
                .map(|(_, status, _)| status.applied.0)
                .max();
            if let (Some(key), Some(applied)) = (self.catalogue.key(*group), applied) {
                self.checker.healed(key, applied)?;
            }
        }
        Ok(())
    }
}
