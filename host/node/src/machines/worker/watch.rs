//! Watches the driver of a group's machine: log lines, what the node shows of the group, who answers its queries, and what a
//! dry run could begin with.

use std::time::Duration;

use skep_core::activation::Decision;
use skep_core::deployment::Deployment;
use skep_core::effect::{Call, Work};
use skep_core::outcome::{EntryContext, Outcome};
use skep_drive::{Applied, CanonicalPoint, Lack, Listener, MachineError, StateMachine};
use skep_types::shared::lock;

use super::{Actor, Running};
use crate::clock::Stopwatch;

/// One piece of work, watched.
pub(super) struct Watch<'a> {
    actor: &'a Actor,
    /// Of a barrier: no clock is read for an entry.
    watch: Option<Stopwatch>,
    /// Bytes of a save at a barrier, and how long it took.
    saved: Option<(usize, Duration)>,
}

impl<'a> Watch<'a> {
    pub(super) fn start(actor: &'a Actor, work: &Work) -> Self {
        Self {
            actor,
            watch: matches!(work, Work::Barrier { .. }).then(Stopwatch::start),
            saved: None,
        }
    }

    /// Since the barrier's work began.
    fn elapsed(&self) -> Duration {
        self.watch
            .as_ref()
            .map_or(Duration::ZERO, Stopwatch::elapsed)
    }

    fn group(&self) -> u64 {
        self.actor.owner.key.group
    }

    fn name(&self) -> &str {
        &self.actor.owner.name
    }
}

impl Listener<Box<dyn StateMachine>> for Watch<'_> {
    fn called(&mut self, context: &EntryContext, call: &Call, said: &Applied) {
        if let (Call::StatusChange(_), Some(fault @ Outcome::Fault(_))) =
            (call, said.outcomes.first())
        {
            tracing::warn!(
                index = context.index.0,
                ?fault,
                "the machine failed on a change of leader; nothing changed"
            );
        }
    }

    fn replaced(&mut self, deployment: &Deployment, machine: &Box<dyn StateMachine>) {
        let actor = self.actor;
        let running = Running {
            component: deployment.component,
            descriptor: machine.describe(),
        };
        *lock(&actor.running) = running;
        // The former reader answers what was handed to it, from the state before.
        let queries = actor.queries_of(&**machine);
        let mut queue = actor.lock();
        if !queue.halted {
            queue.queries = queries;
        }
    }

    fn saved(&mut self, _: &EntryContext, bytes: usize) {
        self.saved = Some((bytes, self.elapsed()));
    }

    fn goes_on_from(&mut self, point: Option<&CanonicalPoint>) {
        let Some(point) = point else {
            self.actor.recent().forget();
            return;
        };
        self.actor.recent().begin(point.clone());
        if let Some((bytes, save)) = self.saved {
            let (group, index) = (self.group(), point.context.index.0);
            let restore = self.elapsed().saturating_sub(save);
            tracing::debug!(
                group,
                index,
                bytes,
                ?save,
                ?restore,
                "the machine has passed a barrier"
            );
        }
    }

    fn no_snapshot(&mut self, context: &EntryContext, error: &MachineError) {
        let (group, name, index) = (self.group(), self.name(), context.index.0);
        tracing::error!(group, name, index, %error, "no snapshot: the log of the group cannot be compacted");
    }

    fn no_image(&mut self, context: &EntryContext, error: &MachineError) {
        let (group, name, index) = (self.group(), self.name(), context.index.0);
        tracing::warn!(group, name, index, reason = %error, "no image of the machine at a barrier: the group goes on, this node keeps its log, and the next snapshot is of what the machine saves");
    }

    fn not_resumed(&mut self, context: &EntryContext, error: &MachineError) {
        let (group, name, index) = (self.group(), self.name(), context.index.0);
        tracing::warn!(group, name, index, reason = %error, "the machine cannot go on from the image in its snapshot: this replica waits for the next snapshot, which is of what the machine saves");
    }

    fn prepared(&mut self, context: &EntryContext, deployment: &Deployment) {
        let (group, name, index) = (self.group(), self.name(), context.index.0);
        tracing::info!(group, name, index, component = %deployment.component, "the new machine has the state, and waits for the decision");
    }

    fn lacks(&mut self, context: &EntryContext, deployment: &Deployment, lack: &Lack) {
        let (group, name, index) = (self.group(), self.name(), context.index.0);
        let component = deployment.component;
        match lack {
            Lack::Refused(refusal, error) => {
                let detail = error.as_ref().and_then(MachineError::detail);
                tracing::warn!(group, name, index, %component, %refusal, detail, "the new machine cannot be had");
            }
            Lack::Local(error) => {
                tracing::warn!(group, name, index, %component, reason = %error, "this node has not got the new machine yet; it tries again");
            }
        }
    }

    fn decided(&mut self, context: &EntryContext, deployment: &Deployment, decision: Decision) {
        if let (Decision::Confirmed, Some(exchange)) = (decision, &self.actor.exchange) {
            let (group, name, index) = (self.group(), self.name(), context.index.0);
            tracing::info!(group, name, index, component = %deployment.component, "upgraded");
            exchange.factory.activated(context.index, deployment);
        }
    }

    fn not_rebuilt(&mut self, context: &EntryContext, error: &MachineError) {
        let (group, name, index) = (self.group(), self.name(), context.index.0);
        tracing::error!(group, name, index, %error, "the machine does not take what it saved, and goes on without");
    }

    fn waits_to_go_on(&mut self, context: &EntryContext, error: &MachineError) {
        let (group, name, index) = (self.group(), self.name(), context.index.0);
        tracing::warn!(group, name, index, reason = %error, "the group waits until its machine can go on as it was");
    }
}
