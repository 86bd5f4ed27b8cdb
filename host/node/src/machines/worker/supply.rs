//! Where the driver of a group's machine gets other machines and snapshots: from the node, which may have to be waited for.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use skep_core::deployment::Deployment;
use skep_core::message::SnapshotName;
use skep_drive::{Failed, MachineError, ReadImage, Source, StateMachine, Stored};
use skep_types::shared::lock;

use super::Actor;

/// Pause before a machine that could not be made is asked for again.
const MAKE_AGAIN: Duration = Duration::from_secs(1);

/// The first and the longest pause before something that the system had no room for is tried again.
const WAIT: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// The node, for the driver of one group.
pub(super) struct Supply<'a>(pub(super) &'a Actor);

impl Source<Box<dyn StateMachine>> for Supply<'_> {
    /// Asks for a machine until there is one, or it is certain that there can be none.
    fn current(&mut self, deployment: &Deployment) -> Result<Box<dyn StateMachine>, Failed> {
        let actor = self.0;
        let Some(exchange) = &actor.exchange else {
            return Err(Failed::from(MachineError::fixed()));
        };
        loop {
            match exchange.factory.make_again(deployment) {
                Err(MachineError::Local { reason, .. }) => {
                    let (group, name) = (actor.owner.key.group, &actor.owner.name);
                    tracing::warn!(group, name, component = %deployment.component, reason, "the group waits for its machine");
                    actor.wait(MAKE_AGAIN, &format!("it waits for its machine: {reason}"))?;
                }
                made => {
                    actor.waits_for(None);
                    return Ok(made?);
                }
            }
        }
    }

    fn successor(
        &mut self,
        deployment: &Deployment,
    ) -> Result<Box<dyn StateMachine>, MachineError> {
        let exchange = self.0.exchange.as_ref().ok_or_else(MachineError::fixed)?;
        exchange.factory.make(deployment)
    }

    fn read_again(&mut self, name: &SnapshotName) -> Option<ReadImage> {
        Some(self.0.image_in(name))
    }

    /// What the system has no room for now is asked for again; a file that is damaged or gone is the end of this start of the
    /// machine.
    fn snapshot(&mut self, name: &SnapshotName) -> Result<Stored, Failed> {
        let actor = self.0;
        let mut pause = WAIT.0;
        loop {
            match actor.disk.read_snapshot(actor.owner.key, name) {
                Err(error) if error.is_transient() => {
                    actor.wait(pause, &format!("it waits for its snapshot: {error}"))?;
                    pause = (2 * pause).min(WAIT.1);
                }
                read => {
                    actor.waits_for(None);
                    return read.map_err(|error| Failed::local(error.to_string()));
                }
            }
        }
    }
}

impl Actor {
    /// Waits before something is tried again, and says what for meanwhile. An error if the actor is halted.
    fn wait(&self, pause: Duration, reason: &str) -> Result<(), Failed> {
        self.waits_for(Some(reason));
        let queue = self.lock();
        let waited = self
            .halting
            .wait_timeout_while(queue, pause, |queue| !queue.halted);
        let (queue, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if queue.halted {
            return Err(Failed::local(format!(
                "it was stopped while it waited: {reason}"
            )));
        }
        Ok(())
    }

    /// What the machine waits for, for whoever asks.
    fn waits_for(&self, reason: Option<&str>) {
        let mut waits = lock(&self.waits);
        if waits.as_deref() != reason {
            *waits = reason.map(Arc::from);
        }
    }
}
