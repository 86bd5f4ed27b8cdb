//! The machine of a group is exchanged for another one, at the same entry on every replica: prepared first, and exchanged when
//! the log says so. Nothing here waits for what this node lacks: the replica asks again.

use std::sync::PoisonError;
use std::time::Duration;

use bytes::Bytes;
use skep_core::activation::{Readiness, Refusal};
use skep_core::deployment::Deployment;
use skep_core::effect::Work;
use skep_core::outcome::{EntryContext, GuestFault};
use skep_machine::state_machine::{MachineError, StateMachine};

use super::calls::{Failed, Machine, failed};
use super::{Actor, Running, memory};
use crate::exchange::Exchange;

/// Pause before a machine that could not be made is asked for again.
const MAKE_AGAIN: Duration = Duration::from_secs(1);

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
            self.may_interrupt(&*made);
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
            match exchange.factory.make_again(deployment) {
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

    /// Makes another machine that has the state, and keeps it beside the one that runs. Asked again, it goes on where it could
    /// not before.
    pub(super) fn prepare(
        &self,
        machine: &mut Machine,
        context: &EntryContext,
        deployment: Deployment,
    ) -> Readiness {
        let successor = machine
            .successor
            .take_if(|successor| successor.context.index == context.index);
        let mut successor = successor.unwrap_or_else(|| {
            // Whichever machine goes on, it does so from bytes that nobody keeps.
            self.recent().forget();
            Successor {
                context: *context,
                deployment,
                saved: None,
                made: None,
                refusal: None,
            }
        });
        let (group, name, index) = (self.owner.key.group, &self.owner.name, context.index.0);
        let component = successor.deployment.component;
        let had = successor.made.is_some();
        let readiness = match self.make_successor(machine, &mut successor) {
            Ok(()) if had => Readiness::Prepared,
            Ok(()) => {
                tracing::info!(group, name, index, %component, "the new machine has the state, and waits for the decision");
                Readiness::Prepared
            }
            Err(Lack::Refused(refusal, detail)) => {
                tracing::warn!(group, name, index, %component, %refusal, detail, "the new machine cannot be had");
                successor.refusal = Some(refusal);
                Readiness::Refused(refusal)
            }
            Err(Lack::Local(reason)) => {
                tracing::warn!(group, name, index, %component, reason, "this node has not got the new machine yet; it tries again");
                Readiness::NotYet
            }
        };
        machine.successor = Some(successor);
        readiness
    }

    fn make_successor(&self, machine: &mut Machine, successor: &mut Successor) -> Result<(), Lack> {
        if let Some(refusal) = successor.refusal {
            return Err(Lack::Refused(refusal, None));
        }
        if successor.made.is_some() {
            return Ok(());
        }
        let exchange = self
            .exchange
            .as_ref()
            .ok_or(Lack::Refused(Refusal::Fixed, None))?;
        let saved = save(machine, successor)?;
        let mut made = exchange
            .factory
            .make(&successor.deployment)
            .map_err(|error| Lack::of(error, Refusal::Start))?;
        self.may_interrupt(&*made);
        made.restore(&successor.context, machine.schema(), saved)
            .map_err(|error| Lack::of(error, Refusal::Restore))?;
        successor.made = Some(made);
        Ok(())
    }

    /// Does what was decided; or says how far this node is, if it cannot.
    pub(super) fn exchange(
        &self,
        machine: &mut Machine,
        context: &EntryContext,
        confirmed: bool,
    ) -> Result<Result<(), Readiness>, Failed> {
        let Some(deployment) = machine
            .successor
            .as_ref()
            .filter(|successor| successor.context.index == context.index)
            .map(|successor| successor.deployment.clone())
        else {
            return Err(Failed::broken(format!(
                "nothing was prepared for the activation at {}",
                context.index
            )));
        };
        if confirmed {
            let readiness = self.prepare(machine, context, deployment);
            if readiness != Readiness::Prepared {
                return Ok(Err(readiness));
            }
        }
        let Some(mut successor) = machine.successor.take() else {
            return Ok(Err(Readiness::NotYet));
        };
        if let (true, Some(made), Some(exchange)) =
            (confirmed, successor.made.take(), &self.exchange)
        {
            let (group, name, index) = (self.owner.key.group, &self.owner.name, context.index.0);
            let deployment = successor.deployment;
            tracing::info!(group, name, index, component = %deployment.component, "upgraded");
            exchange.factory.activated(context.index, &deployment);
            // The former one is dropped here, where its instances cost nobody else time.
            drop(self.replace(machine, made, deployment));
        } else if let Err(reason) = self.keep_old(machine, &mut successor) {
            let (group, name, index) = (self.owner.key.group, &self.owner.name, context.index.0);
            tracing::warn!(
                group,
                name,
                index,
                reason,
                "the group waits until its machine can go on as it was"
            );
            machine.successor = Some(successor);
            return Ok(Err(Readiness::NotYet));
        }
        machine.applied = context.index;
        Ok(Ok(()))
    }

    /// What ran goes on as it does after every save: from its bytes, in a fresh instance. So do the others, whether or not
    /// they had got as far as that.
    fn keep_old(&self, machine: &mut Machine, successor: &mut Successor) -> Result<(), String> {
        // The memory that it takes may be what the one that ran needs.
        successor.made = None;
        if self.exchange.is_none() {
            return Ok(());
        }
        let saved = match save(machine, successor) {
            Ok(saved) => saved,
            // It did so on every replica.
            Err(Lack::Refused(..)) => return Ok(()),
            Err(Lack::Local(reason)) => return Err(reason),
        };
        let schema = machine.schema();
        match machine.machine.restore(&successor.context, schema, saved) {
            Ok(()) => Ok(()),
            Err(MachineError::Guest { fault, detail, .. }) => {
                let (group, name) = (self.owner.key.group, &self.owner.name);
                tracing::error!(group, name, index = successor.context.index.0, %fault, detail, "the machine does not take what it saved, and goes on without");
                Ok(())
            }
            Err(local) => Err(local.to_string()),
        }
    }
}

/// Another machine for the group, on its way.
pub(super) struct Successor {
    context: EntryContext,
    deployment: Deployment,
    /// What the machine that runs has saved.
    saved: Option<Bytes>,
    made: Option<Box<dyn StateMachine>>,
    /// It can never be had.
    refusal: Option<Refusal>,
}

/// Why there is no other machine.
enum Lack {
    /// The same on every replica. With the words of the machine, for this node's log lines only.
    Refused(Refusal, Option<String>),
    /// Of this node.
    Local(String),
}

impl Lack {
    fn of(error: MachineError, refusal: impl Fn(GuestFault) -> Refusal) -> Self {
        match error {
            MachineError::Guest { fault, detail, .. } => Self::Refused(refusal(fault), detail),
            local => Self::Local(local.to_string()),
        }
    }
}

/// The bytes of the machine that runs. It is saved once: the bytes are what all go on from.
fn save(machine: &mut Machine, successor: &mut Successor) -> Result<Bytes, Lack> {
    if let Some(saved) = &successor.saved {
        return Ok(saved.clone());
    }
    if let Some(refusal @ Refusal::Save(_)) = successor.refusal {
        return Err(Lack::Refused(refusal, None));
    }
    let saved = memory::saved(&mut *machine.machine, &successor.context)
        .ok_or_else(|| Lack::Local("there is no memory for its state".into()))?
        .map_err(|error| Lack::of(error, Refusal::Save))?;
    Ok(successor.saved.insert(saved).clone())
}
