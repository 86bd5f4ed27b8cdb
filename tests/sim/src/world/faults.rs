//! What goes wrong, and how it ends.

use std::collections::BTreeSet;
use std::io;

use bytes::Bytes;
use skep_core::deployment::{Deployment, Quota};
use skep_core::id::{ComponentId, GroupId, NodeId};
use skep_core::input::Input;
use skep_core::proposal::Proposal;
use skep_core::state::Role;
use skep_core::status::Part;
use skep_log::sim::Crash;

use super::event::{Event, Mend};
use super::{NODES_MAX, World};
use crate::invariant::Violation;
use crate::machine::Nature;
use crate::nemesis::Fault;
use crate::node::Node;
use crate::scenario::SECOND;
use crate::trace::list;

impl World {
    /// Whether it could be done.
    pub(super) fn strike(&mut self, fault: Fault) -> Result<bool, Violation> {
        let up = self.up();
        let groups: Vec<u64> = self.catalogue.groups.keys().copied().collect();
        let group = *self.random.pick(&groups).expect("there are groups");
        let Some(id) = self.random.pick(&up).copied() else {
            return Ok(false);
        };
        self.trace
            .line(self.now, || format!("fault: {fault:?} (node {id})"));
        match fault {
            Fault::Crash => self.crash(id, None),
            Fault::Kill => self.crash(id, Some(Crash::ProcessOnly)),
            Fault::Flap => {
                let times = self.random.range(2, 8);
                self.after(1, Event::Flap { node: id, times });
            }
            Fault::PowerCut => {
                let last = self.nodes[&id].vfs.calls() + self.random.below(40);
                self.nodes[&id].vfs.cut_power_after(last);
                self.armed.insert(id, last);
            }
            Fault::DiskError => {
                let number = self.nodes[&id].vfs.calls() + 1 + self.random.below(40);
                self.nodes[&id].vfs.fail_call(number, io::ErrorKind::Other);
            }
            Fault::DiskFull => {
                let used: usize = self.used(id);
                let free = self.random.below(64 << 10);
                self.nodes[&id].vfs.limit_capacity(Some(used as u64 + free));
                self.full.insert(id);
                let lasts = self.random.around(10 * SECOND);
                self.after(lasts, Event::Mend(Mend::Full(id)));
            }
            Fault::DiskSlow => {
                self.slow.insert(id);
                let lasts = self.random.around(20 * SECOND);
                self.after(lasts, Event::Mend(Mend::Slow(id)));
            }
            Fault::BitRot => return Ok(self.rot(id)),
            Fault::Wipe => {
                if !self.may_lose(id) {
                    return Ok(false);
                }
                self.destroy(id);
            }
            Fault::Pause => {
                let id = self.victim(group, id);
                let lasts = self.random.around(3 * SECOND);
                self.paused.insert(id, self.now + lasts);
                if self.random.one_in(2) {
                    let pairs = self.pairs_of(&BTreeSet::from([id]));
                    let lasts = lasts + self.random.below(SECOND / 2);
                    self.cut(pairs, lasts);
                }
            }
            Fault::Partition => {
                let all: Vec<u64> = self.nodes.keys().copied().collect();
                let side: BTreeSet<u64> = match self.random.one_in(2) {
                    true => BTreeSet::from([self.victim(group, id)]),
                    false => all
                        .iter()
                        .copied()
                        .filter(|_| self.random.one_in(2))
                        .collect(),
                };
                let pairs = self.pairs_of(&side);
                let lasts = self.random.around(5 * SECOND);
                self.cut(pairs, lasts);
            }
            Fault::OneWay => {
                let all: Vec<u64> = self.nodes.keys().copied().collect();
                let to = *self.random.pick(&all).expect("there are nodes");
                if to == id {
                    return Ok(false);
                }
                let lasts = self.random.around(5 * SECOND);
                self.cut(vec![(id, to)], lasts);
            }
            Fault::Stale => {
                let Some((from, to, message)) = self.random.pick(&self.stale).cloned() else {
                    return Ok(false);
                };
                let deliver = Event::Deliver {
                    from,
                    to,
                    boot: None,
                    message,
                };
                self.after(1, deliver);
            }
            Fault::Membership => return Ok(self.churn(group)),
            Fault::Join => return Ok(self.join(group)),
            Fault::Retire => return Ok(self.retire(id, false)),
            Fault::Replace => return Ok(self.retire(id, true)),
            Fault::Rumour => {
                let Some(gone) = self.random.pick(&up).copied() else {
                    return Ok(false);
                };
                let boot = self.nodes[&id].boots;
                let node = id;
                self.after(1, Event::Gone { node, boot, gone });
            }
            Fault::Transfer => {
                let all: Vec<u64> = self.nodes.keys().copied().collect();
                let to = *self.random.pick(&all).expect("there are nodes");
                self.request(id, GroupId(group), Input::Transfer { to: NodeId(to) });
            }
            Fault::Campaign => self.request(id, GroupId(group), Input::Campaign),
            Fault::Snapshot => {
                let proposal = Proposal::Barrier;
                let waiter = 0;
                self.request(id, GroupId(group), Input::Propose { waiter, proposal });
            }
            Fault::Upgrade => self.upgrade(id, group),
            Fault::Sick => {
                let ids = match self.random.one_in(2) {
                    true => self.nodes.keys().copied().collect(),
                    false => BTreeSet::from([id]),
                };
                self.sick.extend(&ids);
                let lasts = self.random.around(60 * SECOND);
                self.after(lasts, Event::Mend(Mend::Sick(ids)));
            }
            Fault::Wrong => return Ok(self.go_wrong(id, group)),
            Fault::Recreate => {
                let founders = self.draw_founders();
                self.trace.line(self.now, || {
                    format!("group {group} is created anew on {}", list(&founders))
                });
                if let Some(former) = self.catalogue.key(group) {
                    self.checker.ended(former);
                }
                self.catalogue.create(group, founders);
                self.tasks.remove(&group);
                self.publish();
            }
            Fault::Clock => {
                let seconds = self.random.below(600) as i64 - 300;
                if let Some(node) = self.nodes.get_mut(&id) {
                    node.skew = seconds * SECOND as i64;
                }
            }
        }
        Ok(true)
    }

    /// The machine of one replica goes wrong. Which state its group agrees on is not judged from then on: who was behind may
    /// take it from the one that is wrong, before anybody knows.
    fn go_wrong(&mut self, id: u64, group: u64) -> bool {
        let Some(key) = self.catalogue.key(group) else {
            return false;
        };
        let node = self.nodes.get_mut(&id);
        let spoils = node.is_some_and(|node| node.go_wrong(key));
        if spoils {
            self.checker.went_wrong(key);
            self.trace.line(self.now, || {
                format!("node {id}: the machine of {key} goes wrong")
            });
        }
        spoils
    }

    /// Somebody wants another component, of any nature; and often somebody else wants to give it up at about the time at which
    /// it is decided.
    fn upgrade(&mut self, node: u64, group: u64) {
        let mut component = [0; 32];
        component[..8].copy_from_slice(&self.random.word().to_le_bytes());
        let deployment = Deployment {
            component: ComponentId(component),
            profile: Bytes::new(),
            quota: Quota {
                bytes_per_second: self.scenario.bytes_per_second,
                ..Quota::default()
            },
            barriers: self.scenario.barriers,
        };
        self.trace.line(self.now, || {
            let nature = Nature::of(deployment.component);
            format!("group {group} is to go on with another component: {nature:?}")
        });
        let (waiter, proposal) = (0, Proposal::Activate(deployment));
        self.request(node, GroupId(group), Input::Propose { waiter, proposal });
        for _ in 0..self.random.below(3) {
            let Some(node) = self.catalogue.key(group).and_then(|key| self.a_host(key)) else {
                return;
            };
            let after = self
                .random
                .around(8 * self.scenario.delay + self.scenario.disk);
            let boot = self.nodes[&node].boots;
            let (waiter, proposal) = (0, Proposal::AbortActivation);
            let abort = Event::Request {
                node,
                boot,
                group: GroupId(group),
                input: Input::Propose { waiter, proposal },
            };
            self.after(after, abort);
        }
    }

    pub(super) fn draw_founders(&mut self) -> Vec<u64> {
        let mut all: Vec<u64> = self
            .nodes
            .values()
            .filter(|node| node.stays() && !self.rotten.contains(&node.id))
            .map(|node| node.id)
            .collect();
        // A group needs three to lose one.
        let count = match self.random.below(6) {
            0 => 1,
            1 => self.random.range(1, self.scenario.voters),
            _ => self.scenario.voters,
        };
        let mut founders = Vec::new();
        while founders.len() < count as usize && !all.is_empty() {
            let at = self.random.below(all.len() as u64) as usize;
            founders.push(all.swap_remove(at));
        }
        founders.sort_unstable();
        founders
    }

    fn used(&self, id: u64) -> usize {
        let vfs = &self.nodes[&id].vfs;
        vfs.files()
            .iter()
            .filter_map(|file| vfs.content(file))
            .map(|content| content.len())
            .sum()
    }

    /// Half the time the node that leads the group, because leaders have the most to lose.
    fn victim(&mut self, group: u64, otherwise: u64) -> u64 {
        let leader = self
            .statuses(group)
            .into_iter()
            .find(|(_, status, _)| status.part == Part::Leader)
            .map(|(place, _, _)| place.node);
        leader
            .filter(|_| self.random.one_in(2))
            .unwrap_or(otherwise)
    }

    pub(super) fn mend(&mut self, mend: Mend) {
        match mend {
            Mend::Cut(pairs) => {
                for pair in pairs {
                    if let Some(count) = self.cuts.get_mut(&pair) {
                        *count -= 1;
                        if *count == 0 {
                            self.cuts.remove(&pair);
                        }
                    }
                }
            }
            Mend::Full(id) => {
                self.full.remove(&id);
                self.nodes[&id].vfs.limit_capacity(None);
            }
            Mend::Slow(id) => {
                self.slow.remove(&id);
            }
            Mend::Sick(ids) => self.sick.retain(|id| !ids.contains(id)),
        }
    }

    /// Whether no group would lose its majority, for ever, with this node's disk.
    fn may_lose(&self, id: u64) -> bool {
        let free = self.nodes.len() as u64;
        // Members that no longer are hosts, and joiners that are none yet, make the count uncertain.
        let groups_stand = self.catalogue.groups.values().all(|record| {
            !record.hosts.contains(&id) || (record.hosts.len() >= 3 && record.joiners.is_empty())
        });
        free < NODES_MAX
            && self.is_whole()
            && self.tasks.is_empty()
            && groups_stand
            && self.settled(id)
    }

    /// Whether no disk is lost that a group still counts on, and no node is on its way out.
    pub(super) fn is_whole(&self) -> bool {
        let is_host = |id: &u64| {
            let mut groups = self.catalogue.groups.values();
            groups.any(|record| record.hosts.contains(id))
        };
        // What has rotted may turn out to be lost at the next start.
        let is_lost = |node: &Node| node.destroyed || self.rotten.contains(&node.id);
        let mut nodes = self.nodes.values();
        self.leaving.is_empty() && !nodes.any(|node| is_lost(node) && is_host(&node.id))
    }

    /// Whether each group that the node hosts has the members that the catalogue says, as its leader sees it: then a
    /// single disk can be lost.
    fn settled(&self, id: u64) -> bool {
        self.catalogue.groups.iter().all(|(group, record)| {
            if !record.hosts.contains(&id) {
                return true;
            }
            let leader = self
                .statuses(*group)
                .into_iter()
                .filter(|(_, status, _)| status.part == Part::Leader)
                .max_by_key(|(_, status, _)| status.term);
            leader.is_some_and(|(_, status, _)| {
                let members: BTreeSet<u64> =
                    status.members.iter().map(|member| member.node.0).collect();
                members == record.hosts
                    && status
                        .members
                        .iter()
                        .all(|member| member.role == Role::Voter)
            })
        })
    }

    /// A process ends, and a byte on its disk changes, where its log or a snapshot can tell.
    fn rot(&mut self, id: u64) -> bool {
        if !self.may_lose(id) {
            return false;
        }
        self.crash(id, Some(Crash::ProcessOnly));
        let vfs = self.nodes[&id].vfs.clone();
        let mut files: Vec<_> = vfs
            .files()
            .into_iter()
            .filter(|file| {
                let name = file.to_string_lossy().into_owned();
                name.contains("/wal/") || name.ends_with(".snap")
            })
            .collect();
        // The last segment's tail looks like a torn write; what it holds is known to be synced only by what follows.
        let newest = files
            .iter()
            .filter(|file| file.to_string_lossy().contains("/wal/"))
            .max()
            .cloned();
        files.retain(|file| Some(file) != newest.as_ref());
        let Some(file) = self.random.pick(&files).cloned() else {
            return false;
        };
        let Some(mut content) = vfs.content(&file).filter(|content| !content.is_empty()) else {
            return false;
        };
        let at = self.random.below(content.len() as u64) as usize;
        content[at] ^= 1 << self.random.below(8);
        self.trace.line(self.now, || {
            format!("node {id}: {} rots at {at}", file.display())
        });
        vfs.plant(&file, content);
        self.rotten.insert(id);
        true
    }
}
