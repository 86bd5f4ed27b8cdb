//! Whether a machine could be saved and restored, tried on an image of it.
//!
//! A group whose barriers leave images calls `save` and `restore` of its machine only when the machine is exchanged, or when somebody
//! asks for a snapshot. A defect in them would show when it is least welcome. So now and then they are called beside the group.

use std::sync::{Arc, Mutex, TryLockError};

use skep_core::deployment::Deployment;
use skep_core::form::Form;
use skep_drive::{CanonicalPoint, Driver, MachineError, ToEnd};
use skep_types::shared::lock;

use super::Actor;
use crate::machines::exchange::Exchange;

/// An image is tried that comes so many after the one that was tried last. What a saved snapshot costs a group at each barrier, this
/// costs a node as often, beside its groups.
const IMAGES: u32 = 10;

/// Held while one is tried: each takes as much memory as its machine and more, so a node tries one at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// When the next image is to be tried, and what came of the last one.
#[derive(Default)]
pub(super) struct Exercise {
    images_left: u32,
    /// What is wrong with the machine.
    defect: Option<Arc<str>>,
}

impl Actor {
    /// Why the machine could be exchanged no more, if that was found out.
    pub(super) fn defect(&self) -> Option<Arc<str>> {
        lock(&self.exercise).defect.clone()
    }

    /// The machine has just been saved and restored, for all to see.
    pub(super) fn was_exercised(&self) {
        *lock(&self.exercise) = Exercise {
            images_left: IMAGES,
            defect: None,
        };
    }

    /// Tries an image of a machine of this deployment, if that is due.
    pub(super) fn exercise_if_due(&self, deployment: &Deployment, image: &CanonicalPoint) {
        let Some(exchange) = &self.exchange else {
            return;
        };
        {
            let mut exercise = lock(&self.exercise);
            exercise.images_left = exercise.images_left.saturating_sub(1);
            if exercise.images_left > 0 {
                return;
            }
        }
        let _one = match ONE_AT_A_TIME.try_lock() {
            Err(TryLockError::WouldBlock) => return,
            locked => locked,
        };
        match refusal(exchange, deployment, image) {
            Ok(None) => self.was_exercised(),
            Ok(Some(refusal)) => {
                let defect = format!(
                    "its machine cannot be saved and restored, so it can go on with no other code: {refusal}"
                );
                *lock(&self.exercise) = Exercise {
                    images_left: IMAGES,
                    defect: Some(defect.into()),
                };
            }
            // The next one is tried.
            Err(error) => {
                let (group, name) = (self.owner.key.group, &self.owner.name);
                tracing::debug!(group, name, %error, "an image of the machine is not tried: this node cannot do it now");
            }
        }
    }
}

/// What a machine that goes on from an image says when it is saved, or what another says that is restored from that.
fn refusal(
    exchange: &Exchange,
    deployment: &Deployment,
    image: &CanonicalPoint,
) -> Result<Option<String>, MachineError> {
    let saved = {
        let mut machine = Driver::new(exchange.factory.make(deployment)?);
        machine.restore(image, &mut ()).to_end()?;
        match machine.save(&image.context).to_end() {
            Ok(saved) => saved,
            Err(error) => return words(error),
        }
    };
    let point = CanonicalPoint {
        context: image.context,
        form: Form::Saved,
        schema: image.schema,
        guest: saved,
    };
    let mut machine = Driver::new(exchange.factory.make(deployment)?);
    match machine.restore(&point, &mut ()).to_end() {
        Ok(()) => Ok(None),
        Err(error) => words(error),
    }
}

/// What the machine itself is to blame for.
fn words(error: MachineError) -> Result<Option<String>, MachineError> {
    match error {
        guest @ MachineError::Guest { .. } => Ok(Some(guest.to_string())),
        local @ MachineError::Local { .. } => Err(local),
    }
}
