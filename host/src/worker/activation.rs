//! The machine of a group is exchanged for another one, at the same entry on every replica.

use std::sync::PoisonError;
use std::time::Duration;

use bytes::Bytes;
use skep_core::deployment::Deployment;
use skep_core::effect::Work;
use skep_core::outcome::{EntryContext, Outcome};
use skep_machine::state_machine::{Applied, MachineError, StateMachine};

use super::calls::{Failed, Machine, failed};
use super::{Actor, Running};
use crate::exchange::Exchange;

/// Pause before a machine that could not be made is asked for again.
const MAKE_AGAIN: Duration = Duration::from_secs(1);

/// Code of the rejection of an activation.
pub(crate) const REFUSED: u32 = 422;

impl Actor {
    /// Makes sure that the machine is of what the group runs at this place of its log, whatever it was brought up with.
    pub(super) fn begin(&self, machine: &mut Machine, work: &Work) -> Result<(), Failed> {
        let first = !std::mem::replace(&mut machine.begun, true);
        let Some(exchange) = &self.exchange else {
            return Ok(());
        };
        let wanted = match work {
            Work::Restore {
                deployment: Some(deployment),
                ..
            } => deployment,
            _ if first => &exchange.founding,
            _ => return Ok(()),
        };
        if machine.deployment.as_ref() != Some(wanted) {
            let made = self.make(exchange, wanted)?.map_err(failed)?;
            self.replace(machine, made, wanted.clone());
        }
        Ok(())
    }

    /// Asks for a machine until there is one, or it is certain that there can be none.
    fn make(
        &self,
        exchange: &Exchange,
        deployment: &Deployment,
    ) -> Result<Result<Box<dyn StateMachine>, MachineError>, Failed> {
        loop {
            match exchange.factory.make(deployment) {
                Err(MachineError::Local { reason, .. }) => {
                    let (group, name) = (self.owner.key.group, &self.owner.name);
                    tracing::warn!(group, name, component = %deployment.component, reason, "the group waits for its machine");
                    self.wait(MAKE_AGAIN, &format!("it waits for its machine: {reason}"))?;
                }
                made => {
                    self.waits_for(None);
                    return Ok(made);
                }
            }
        }
    }

    fn replace(
        &self,
        machine: &mut Machine,
        made: Box<dyn StateMachine>,
        deployment: Deployment,
    ) -> Box<dyn StateMachine> {
        let running = Running {
            component: deployment.component,
            descriptor: made.describe(),
        };
        *self.running.lock().unwrap_or_else(PoisonError::into_inner) = running;
        machine.deployment = Some(deployment);
        // The former reader answers what was handed to it, from the state before.
        let queries = self.queries_of(&*made);
        let mut queue = self.lock();
        if !queue.halted {
            queue.queries = queries;
        }
        drop(queue);
        std::mem::replace(&mut machine.machine, made)
    }

    /// Goes on with another machine from the state of this one. What is answered is the same on every replica: only codes,
    /// never the words of a guest or of this node.
    pub(super) fn activate(
        &self,
        machine: &mut Machine,
        context: &EntryContext,
        deployment: Deployment,
    ) -> Result<Applied, Failed> {
        let answer = |outcome| Applied {
            outcomes: vec![outcome],
            fuel: 0,
        };
        let refused = |message: String| {
            answer(Outcome::Refused {
                code: REFUSED,
                message,
            })
        };
        let Some(exchange) = &self.exchange else {
            return Ok(refused(
                "the machine of this group cannot be exchanged".into(),
            ));
        };
        let (group, name, index) = (self.owner.key.group, &self.owner.name, context.index.0);
        // Whichever machine goes on, it does so from bytes that nobody keeps.
        self.recent().forget();
        let schema = machine.schema();
        let mut saved = Vec::new();
        match machine.machine.save(context, &mut saved) {
            Ok(()) => {}
            Err(MachineError::Guest { fault, detail, .. }) => {
                tracing::warn!(group, name, index, %fault, detail, "not upgraded: the running machine failed in save");
                return Ok(refused(format!(
                    "the running machine failed in save: {fault}"
                )));
            }
            Err(local) => return Err(failed(local)),
        }
        let saved = Bytes::from(saved);
        let taken = self.make(exchange, &deployment)?.and_then(|mut made| {
            made.restore(context, schema, saved.clone())?;
            Ok(made)
        });
        match taken {
            Ok(made) => {
                tracing::info!(group, name, index, component = %deployment.component, "upgraded");
                exchange.factory.activated(context.index, &deployment);
                // The former one is dropped here, where its instances cost nobody else time.
                drop(self.replace(machine, made, deployment));
                Ok(answer(Outcome::Reply(Bytes::new())))
            }
            Err(MachineError::Guest {
                call,
                fault,
                detail,
            }) => {
                tracing::warn!(group, name, index, component = %deployment.component, call, %fault, detail, "not upgraded: the new machine does not take the state");
                // What ran goes on as it does after every save: from its bytes, in a fresh instance.
                machine
                    .machine
                    .restore(context, schema, saved)
                    .map_err(failed)?;
                Ok(refused(format!(
                    "the new machine failed in {call}: {fault}"
                )))
            }
            Err(local) => Err(failed(local)),
        }
    }
}
