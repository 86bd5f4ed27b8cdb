//! Nodes start, act and end.

use skep_core::id::GroupId;
use skep_core::input::Input;
use skep_log::LogError;
use skep_log::sim::Crash;

use super::World;
use super::event::Event;
use crate::invariant::Violation;
use crate::nemesis::Fault;
use crate::node::{Context, Node, Out, Stop};
use crate::scenario::{SECOND, Scenario};

impl World {
    pub(super) fn runs(&self, node: u64, boot: u64) -> bool {
        self.nodes
            .get(&node)
            .is_some_and(|node| node.boots == boot && node.is_up())
    }

    pub(super) fn up(&self) -> Vec<u64> {
        let up = self.nodes.values().filter(|node| node.is_up());
        up.map(|node| node.id).collect()
    }

    /// Lets a node do something, then does what it wants; if its disk fails it, it ends.
    pub(super) fn step(
        &mut self,
        id: u64,
        work: impl FnOnce(&mut Node, &Scenario, &mut Context<'_>) -> Result<(), Stop>,
    ) -> Result<(), Violation> {
        let mut out = Vec::new();
        let Some(node) = self.nodes.get_mut(&id) else {
            return Ok(());
        };
        let mut context = Context {
            now: self.now,
            checker: &mut self.checker,
            trace: &mut self.trace,
            out: &mut out,
            sick: self.sick.contains(&id),
            unable: self.scenario.unable,
            fetch_seconds: self.scenario.fetch_seconds,
        };
        let result = work(node, &self.scenario, &mut context);
        let boot = node.boots;
        match result {
            Ok(()) => {
                self.carry_out(id, boot, out)?;
                // A machine that cannot write its snapshot reports its failure itself; a node without power does not.
                if self.power_has_failed(id) {
                    self.crash(id, None);
                }
                Ok(())
            }
            Err(Stop::Violation(violation)) => Err(violation),
            Err(Stop::Disk(error)) => {
                // What it wanted before its disk failed it may have left; a process does not end between two lines.
                self.carry_out(id, boot, out)?;
                self.disk_failed(id, error)
            }
        }
    }

    fn power_has_failed(&self, id: u64) -> bool {
        self.armed
            .get(&id)
            .is_some_and(|last| self.nodes[&id].vfs.calls() > *last)
    }

    fn disk_failed(&mut self, id: u64, error: LogError) -> Result<(), Violation> {
        if self.power_has_failed(id) {
            self.crash(id, None);
            return Ok(());
        }
        self.trace
            .line(self.now, || format!("node {id} ends: {error}"));
        let is_damage = !matches!(error, LogError::Io { .. } | LogError::Poisoned { .. });
        if is_damage && self.rotten.contains(&id) {
            self.destroy(id);
            return Ok(());
        }
        if is_damage {
            return Err(Violation {
                invariant: "recovery",
                text: format!("node {id} cannot use its own disk: {error}"),
            });
        }
        // The process ends by itself; the system keeps what it wrote.
        self.crash(id, Some(Crash::ProcessOnly));
        Ok(())
    }

    pub(super) fn crash(&mut self, id: u64, crash: Option<Crash>) {
        let crash = crash.unwrap_or_else(|| match self.random.below(4) {
            0 => Crash::LoseAll,
            1 => Crash::TearLast(self.random.word()),
            _ => Crash::Subset(self.random.word()),
        });
        self.armed.remove(&id);
        self.paused.remove(&id);
        self.trace
            .line(self.now, || format!("node {id} is down: {crash:?}"));
        if let Some(node) = self.nodes.get_mut(&id) {
            node.crash(crash);
        }
        // Some come back before anybody has noticed.
        let down = match self.random.one_in(3) {
            true => self.random.around(SECOND / 20),
            false => self.random.around(3 * SECOND),
        };
        self.after(down, Event::Boot { node: id });
        let others = self
            .nodes
            .iter()
            .filter(|(other, node)| **other != id && node.is_up());
        let others: Vec<_> = others.map(|(other, node)| (*other, node.boots)).collect();
        for (node, boot) in others {
            // Where the system closes no connection the process is missed like any that is silent.
            if self.scenario.notices && self.random.one_in(2) {
                let delay = self.random.around(SECOND / 20);
                self.after(
                    delay,
                    Event::Gone {
                        node,
                        boot,
                        gone: id,
                    },
                );
            }
        }
    }

    /// A node's disk is lost for ever; operators will replace it.
    pub(super) fn destroy(&mut self, id: u64) {
        self.trace
            .line(self.now, || format!("node {id} is lost for ever"));
        self.armed.remove(&id);
        self.paused.remove(&id);
        let mut is_missed = false;
        if let Some(node) = self.nodes.get_mut(&id) {
            node.crash(Crash::LoseAll);
            node.destroyed = true;
            is_missed = !node.leaves;
        }
        let is_replaced = is_missed && self.scenario.faults.contains(&Fault::Replace);
        if is_replaced && self.random.one_in(2) {
            self.retire(id, true);
        }
        self.replace_destroyed();
    }

    pub(super) fn boot(&mut self, id: u64) -> Result<(), Violation> {
        let Some(node) = self.nodes.get(&id) else {
            return Ok(());
        };
        if node.is_up() || node.destroyed {
            return Ok(());
        }
        if node.boots > 0 {
            self.restarts += 1;
        } else {
            let catalogue = self.catalogue.clone();
            if let Some(node) = self.nodes.get_mut(&id) {
                node.catalogue = catalogue;
            }
        }
        self.trace.line(self.now, || format!("node {id} starts"));
        self.step(id, Node::boot)?;
        let boot = self.nodes[&id].boots;
        if self.runs(id, boot) {
            let first = self.random.below(self.scenario.tick);
            self.after(first, Event::Tick { node: id, boot });
            let learns = self.random.around(SECOND);
            self.after(learns, Event::Reconcile { node: id });
        }
        Ok(())
    }

    /// Something happens to a replica.
    pub(super) fn input(
        &mut self,
        node: u64,
        group: GroupId,
        input: Input,
    ) -> Result<(), Violation> {
        self.step(node, |node, _, context| node.handle(group, input, context))
    }

    /// Has a replica started again after so long whose machine has failed.
    pub(super) fn start_again(
        &mut self,
        node: u64,
        boot: u64,
        (group, life): (GroupId, u64),
        after: u64,
    ) {
        let start = Event::StartAgain {
            node,
            boot,
            group,
            life,
        };
        self.after(after, start);
    }

    fn carry_out(&mut self, node: u64, boot: u64, out: Vec<Out>) -> Result<(), Violation> {
        for out in out {
            match out {
                Out::Send { to, message } => self.send(node, boot, to, message),
                Out::Snapshot {
                    to,
                    message,
                    name,
                    file,
                } => self.send_snapshot(node, boot, to, message, name, file),
                Out::Sync => {
                    let mut time = self.random.around(self.scenario.disk);
                    if self.slow.contains(&node) {
                        time *= 50;
                    }
                    self.after(time, Event::Sync { node, boot });
                }
                Out::Work { group, life } => {
                    let time = self.random.around(self.scenario.apply);
                    let work = Event::Work {
                        node,
                        boot,
                        group,
                        life,
                    };
                    self.after(time, work);
                }
                Out::Failed { group, life } => {
                    let time = self.random.around(3 * SECOND);
                    self.start_again(node, boot, (group, life), time);
                }
                Out::Reply {
                    place,
                    waiter,
                    result,
                } => self.replied(place, waiter, &result)?,
                Out::Answer {
                    place,
                    waiter,
                    result,
                } => self.read(place, waiter, result)?,
            }
        }
        Ok(())
    }
}
