//! The machine of a group is exchanged for another one, at the same entry on every replica: prepared first, and exchanged when
//! the log says so. Nothing here waits for what a node lacks: the replica asks again.

use bytes::Bytes;
use skep_core::activation::{Decision, Readiness, Refusal};
use skep_core::deployment::Deployment;
use skep_core::outcome::{EntryContext, GuestFault};

use crate::driver::Driver;
use crate::failed::Failed;
use crate::listener::Listener;
use crate::source::Source;
use crate::state_machine::{MachineError, StateMachine};

/// Another machine for a group, on its way.
#[derive(Debug)]
pub(crate) struct Successor<M> {
    /// The entry that activates it.
    pub(crate) context: EntryContext,
    deployment: Deployment,
    /// What the machine that runs has saved.
    saved: Option<Bytes>,
    made: Option<M>,
    /// It can never be had.
    refusal: Option<Refusal>,
}

/// Why there is no other machine.
#[derive(Debug)]
pub enum Lack {
    /// The same on every replica. With what the machine said, the first time.
    Refused(Refusal, Option<MachineError>),
    /// Of this node.
    Local(MachineError),
}

impl Lack {
    fn of(error: MachineError, refusal: impl Fn(GuestFault) -> Refusal) -> Self {
        match &error {
            MachineError::Guest { fault, .. } => Self::Refused(refusal(*fault), Some(error)),
            MachineError::Local { .. } => Self::Local(error),
        }
    }

    fn readiness(&self) -> Readiness {
        match self {
            Self::Refused(refusal, _) => Readiness::Refused(*refusal),
            Self::Local(_) => Readiness::NotYet,
        }
    }
}

impl<M: StateMachine> Driver<M> {
    /// Makes another machine that has the state, and keeps it beside the one that runs. Asked again, it goes on where it could
    /// not before.
    pub(crate) async fn prepare(
        &mut self,
        context: &EntryContext,
        deployment: Deployment,
        source: &mut impl Source<M>,
        listener: &mut impl Listener<M>,
    ) -> Readiness {
        let successor = self
            .successor
            .take_if(|successor| successor.context.index == context.index);
        let mut successor = successor.unwrap_or_else(|| {
            // Whichever machine goes on, it does so from bytes that nobody keeps.
            listener.goes_on_from(None);
            Successor {
                context: *context,
                deployment,
                saved: None,
                made: None,
                refusal: None,
            }
        });
        let had = successor.made.is_some();
        let made = self.make_successor(&mut successor, source).await;
        let readiness = match made {
            Ok(()) => {
                if !had {
                    listener.prepared(context, &successor.deployment);
                }
                Readiness::Prepared
            }
            Err(lack) => {
                listener.lacks(context, &successor.deployment, &lack);
                if let Lack::Refused(refusal, _) = &lack {
                    successor.refusal = Some(*refusal);
                }
                lack.readiness()
            }
        };
        self.successor = Some(successor);
        readiness
    }

    async fn make_successor(
        &mut self,
        successor: &mut Successor<M>,
        source: &mut impl Source<M>,
    ) -> Result<(), Lack> {
        if let Some(refusal) = successor.refusal {
            return Err(Lack::Refused(refusal, None));
        }
        if successor.made.is_some() {
            return Ok(());
        }
        if self.runs.is_none() {
            return Err(Lack::Refused(Refusal::Fixed, None));
        }
        let saved = self.save_for(successor).await?;
        let mut made = source
            .successor(&successor.deployment)
            .map_err(|error| Lack::of(error, Refusal::Start))?;
        made.restore(&successor.context, self.schema(), saved)
            .await
            .map_err(|error| Lack::of(error, Refusal::Restore))?;
        successor.made = Some(made);
        Ok(())
    }

    /// The bytes of the machine that runs. It is saved once: the bytes are what all go on from.
    async fn save_for(&mut self, successor: &mut Successor<M>) -> Result<Bytes, Lack> {
        if let Some(saved) = &successor.saved {
            return Ok(saved.clone());
        }
        if let Some(refusal @ Refusal::Save(_)) = successor.refusal {
            return Err(Lack::Refused(refusal, None));
        }
        let saved = self
            .save(&successor.context)
            .await
            .map_err(|error| Lack::of(error, Refusal::Save))?;
        Ok(successor.saved.insert(saved).clone())
    }

    /// Does what was decided; or says how far this node is, if it cannot.
    pub(crate) async fn decide(
        &mut self,
        context: &EntryContext,
        decision: Decision,
        source: &mut impl Source<M>,
        listener: &mut impl Listener<M>,
    ) -> Result<Result<(), Readiness>, Failed> {
        let Some(deployment) = self
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
        let is_confirmed = decision == Decision::Confirmed;
        if is_confirmed {
            let readiness = self
                .prepare(context, deployment.clone(), source, listener)
                .await;
            if readiness != Readiness::Prepared {
                return Ok(Err(readiness));
            }
        }
        let Some(mut successor) = self.successor.take() else {
            return Ok(Err(Readiness::NotYet));
        };
        match successor.made.take().filter(|_| is_confirmed) {
            // The former one is dropped here, where its instances cost nobody else time.
            Some(made) => drop(self.replace(made, deployment.clone(), listener)),
            None => {
                if let Err(error) = self.keep_old(&mut successor, listener).await {
                    listener.waits_to_go_on(context, &error);
                    self.successor = Some(successor);
                    return Ok(Err(Readiness::NotYet));
                }
            }
        }
        self.applied = context.index;
        listener.decided(context, &deployment, decision);
        Ok(Ok(()))
    }

    /// What ran goes on as it does after every save: from its bytes, in a fresh instance. So do the others, whether or not
    /// they had got as far as that. The other machine is dropped before: the memory that it takes may be what is needed.
    async fn keep_old(
        &mut self,
        successor: &mut Successor<M>,
        listener: &mut impl Listener<M>,
    ) -> Result<(), MachineError> {
        if self.runs.is_none() {
            return Ok(());
        }
        let saved = match self.save_for(successor).await {
            Ok(saved) => saved,
            // It did so on every replica.
            Err(Lack::Refused(..)) => return Ok(()),
            Err(Lack::Local(error)) => return Err(error),
        };
        let schema = self.schema();
        let restored = self.machine.restore(&successor.context, schema, saved);
        match restored.await {
            Err(error @ MachineError::Guest { .. }) => {
                listener.not_rebuilt(&successor.context, &error);
                Ok(())
            }
            restored => restored,
        }
    }
}
