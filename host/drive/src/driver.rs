//! The one interpreter of the work of a log.

use bytes::Bytes;
use skep_core::attestation::Deed;
use skep_core::deployment::Deployment;
use skep_core::effect::Work;
use skep_core::form::Form;
use skep_core::id::LogIndex;
use skep_core::input::{Input, Waiter};
use skep_core::outcome::Outcome;

use crate::activation::Successor;
use crate::barrier::{CanonicalPoint, Imaging, no_image};
use crate::failed::Failed;
use crate::listener::Listener;
use crate::source::{Source, Stored};
use crate::state_machine::{Applied, Costs, MachineError, StateMachine};

/// A machine, and how far it is in the log of its group.
#[derive(Debug)]
pub struct Driver<M> {
    pub(crate) machine: M,
    pub(crate) runs: Option<Runs>,
    pub(crate) applied: LogIndex,
    /// Another machine that is prepared, or is to be.
    pub(crate) successor: Option<Successor<M>>,
    /// It was given work.
    begun: bool,
    /// The snapshot whose image the machine could not go on from: before it has another, it does nothing.
    void: Option<LogIndex>,
    /// Of the machine, when it was looked at last.
    costs: Costs,
}

/// What a group runs whose machine can be exchanged.
#[derive(Debug)]
pub(crate) struct Runs {
    /// At the first entry of its log.
    founding: Deployment,
    /// Now.
    pub(crate) current: Deployment,
}

/// What is to be done behind a piece of work.
#[derive(Debug)]
pub enum Done {
    /// Tell the core.
    Tell(Input),
    /// The machine has passed a barrier: make the snapshot durable, then tell the core.
    Passed {
        /// What the machine goes on from.
        point: CanonicalPoint,
        /// The host's section of the snapshot.
        state: Bytes,
        /// Bytes of the memory that an image of the machine would be of, for the core.
        memory: Option<u64>,
    },
    /// The machine leaves an image at a barrier, and goes on: take it to its end beside what the machine does, make the snapshot
    /// durable, then tell the core.
    Imaging {
        /// What is begun.
        image: Imaging,
        /// The host's section of the snapshot.
        state: Bytes,
        /// Bytes of the memory that an image of the machine would be of, for the core.
        memory: Option<u64>,
    },
    /// Answer a query.
    Answer {
        /// Who waits.
        waiter: Waiter,
        /// The outcome. The error concerns this query alone.
        answer: Result<Outcome, MachineError>,
        /// The answer is from the state after this entry.
        index: LogIndex,
    },
}

impl<M: StateMachine> Driver<M> {
    /// Drives a machine that is never exchanged, from its beginning.
    pub fn new(machine: M) -> Self {
        Self {
            machine,
            runs: None,
            applied: LogIndex(0),
            successor: None,
            begun: false,
            void: None,
            costs: Costs::default(),
        }
    }

    /// Drives the machine of a group that was founded with one deployment, for ever the same on every replica. The machine that
    /// is given is of the other: if the log says that the group runs something else, the source is asked for that.
    pub fn exchangeable(machine: M, founding: Deployment, current: Deployment) -> Self {
        Self {
            runs: Some(Runs { founding, current }),
            ..Self::new(machine)
        }
    }

    /// The machine.
    pub fn machine(&self) -> &M {
        &self.machine
    }

    /// The machine, to be asked and not to be changed.
    pub fn machine_mut(&mut self) -> &mut M {
        &mut self.machine
    }

    /// The machine, which is driven no more.
    pub fn into_machine(self) -> M {
        self.machine
    }

    /// What the group runs here now, if its machine can be exchanged.
    pub fn deployment(&self) -> Option<&Deployment> {
        self.runs.as_ref().map(|runs| &runs.current)
    }

    /// The last entry that the machine is behind.
    pub fn applied(&self) -> LogIndex {
        self.applied
    }

    /// Whether the machine waits for a snapshot that it can go on from.
    pub fn waits_for_snapshot(&self) -> bool {
        self.void.is_some()
    }

    /// Version of the bytes that the machine saves.
    pub(crate) fn schema(&self) -> u32 {
        self.machine.describe().schema
    }

    /// Does a piece of work.
    ///
    /// # Errors
    /// [`Failed`]: the machine can no longer be run, and must be dropped.
    pub async fn drive(
        &mut self,
        work: Work,
        source: &mut impl Source<M>,
        listener: &mut impl Listener<M>,
    ) -> Result<Done, Failed> {
        if let (Some(index), false) = (self.void, matches!(work, Work::Restore { .. })) {
            return Ok(match work {
                Work::Query { waiter, index, .. } => Done::Answer {
                    waiter,
                    answer: Err(MachineError::without_state()),
                    index,
                },
                _ => Done::Tell(Input::NotResumed { index }),
            });
        }
        self.begin(&work, source, listener)?;
        Ok(match work {
            Work::Apply {
                context,
                entry,
                calls,
            } => {
                let applied = self.apply(&context, calls, listener).await?;
                let deed = Deed::of(&entry, &applied.outcomes, applied.fuel);
                let costs = self.costs(&applied);
                Done::Tell(Input::Applied {
                    index: context.index,
                    outcomes: applied.outcomes,
                    fuel: applied.fuel,
                    rebuilds: costs.rebuilds,
                    replay_fuel: costs.fuel,
                    deed,
                })
            }
            Work::Barrier {
                context,
                state,
                form: Form::Saved,
            } => match self.pass_barrier(&context, listener).await {
                Ok(point) => Done::Passed {
                    point,
                    state,
                    memory: self.machine.image_bytes(),
                },
                Err(MachineError::Guest { .. }) => Done::Tell(Input::Snapshotted {
                    index: context.index,
                    snapshot: None,
                    memory: self.machine.image_bytes(),
                }),
                Err(local) => return Err(local.into()),
            },
            Work::Barrier {
                context,
                state,
                form: Form::Image,
            } => match self.take_image(&context, listener).await {
                Ok(image) => Done::Imaging {
                    image,
                    state,
                    memory: self.machine.image_bytes(),
                },
                Err(error) => Done::Tell(no_image(context.index, &error)),
            },
            Work::Restore {
                context, snapshot, ..
            } => {
                let index = snapshot.index;
                let Stored {
                    form,
                    schema,
                    guest,
                } = source.snapshot(&snapshot)?;
                let point = CanonicalPoint {
                    context,
                    form,
                    schema,
                    guest,
                };
                let restored = self.restore(&point, listener).await;
                if let (Form::Image, Err(error @ MachineError::Local { .. })) = (form, &restored) {
                    listener.not_resumed(&point.context, error);
                    self.void = Some(index);
                    return Ok(Done::Tell(Input::NotResumed { index }));
                }
                restored.map_err(|error| {
                    let failed = Failed::from(error);
                    let reason = format!("snapshot {index} is not taken: {}", failed.reason);
                    Failed { reason, ..failed }
                })?;
                if form == Form::Image
                    && let Some(read) = source.read_again(&snapshot)
                {
                    self.machine.image_kept(read);
                }
                let memory = self.machine.image_bytes();
                Done::Tell(Input::Restored { index, memory })
            }
            Work::Prepare {
                context,
                deployment,
            } => {
                let readiness = self.prepare(&context, deployment, source, listener).await;
                Done::Tell(Input::Prepared {
                    index: context.index,
                    readiness,
                })
            }
            Work::Decide { context, decision } => {
                let index = context.index;
                let decided = self.decide(&context, decision, source, listener).await?;
                Done::Tell(match decided {
                    Ok(()) => Input::Exchanged { index },
                    Err(readiness) => Input::Prepared { index, readiness },
                })
            }
            Work::Query {
                waiter,
                request,
                index,
                ..
            } => Done::Answer {
                waiter,
                answer: self.query(&request).await,
                index: self.applied.max(index),
            },
        })
    }

    /// What the machine has cost since this was asked last, with this entry. Where nobody knows, each command that failed has cost
    /// a rebuild.
    fn costs(&mut self, applied: &Applied) -> Costs {
        let Some(costs) = self.machine.costs() else {
            let failed = |outcome: &&Outcome| matches!(outcome, Outcome::Fault(_));
            return Costs {
                rebuilds: applied.outcomes.iter().filter(failed).count() as u64,
                fuel: applied.fuel,
            };
        };
        let before = std::mem::replace(&mut self.costs, costs);
        Costs {
            rebuilds: costs.rebuilds.saturating_sub(before.rebuilds),
            fuel: costs.fuel.saturating_sub(before.fuel),
        }
    }

    /// Rebuilds the machine from bytes that it, or one before it, has saved, or from an image of it.
    ///
    /// # Errors
    /// [`MachineError::Guest`]: the machine does not take the bytes, and has its former state. [`MachineError::Local`]: this
    /// node cannot do it.
    pub async fn restore(
        &mut self,
        point: &CanonicalPoint,
        listener: &mut impl Listener<M>,
    ) -> Result<(), MachineError> {
        let (context, guest) = (&point.context, point.guest.clone());
        match point.form {
            Form::Saved => self.machine.restore(context, point.schema, guest).await?,
            Form::Image => self.machine.resume(context, guest).await?,
        }
        self.applied = point.context.index;
        (self.successor, self.void) = (None, None);
        listener.restored(point);
        listener.goes_on_from(Some(point).filter(|point| point.form == Form::Saved));
        Ok(())
    }

    /// Answers a read-only request from the state that the machine has. A query that fails on every replica alike is answered
    /// so.
    ///
    /// # Errors
    /// [`MachineError::Local`]: this query alone could not be run, and nothing has changed.
    pub async fn query(&mut self, request: &Bytes) -> Result<Outcome, MachineError> {
        if self.void.is_some() {
            return Err(MachineError::without_state());
        }
        match self.machine.query(request).await {
            Err(MachineError::Guest { fault, .. }) => Ok(Outcome::Fault(fault)),
            answer => answer,
        }
    }

    /// Makes sure that the machine is of what the group runs at this place of its log, whatever it was brought up with; and
    /// that nothing is applied behind an activation before it is decided.
    fn begin(
        &mut self,
        work: &Work,
        source: &mut impl Source<M>,
        listener: &mut impl Listener<M>,
    ) -> Result<(), Failed> {
        if let (Some(successor), Work::Apply { context, .. } | Work::Barrier { context, .. }) =
            (&self.successor, work)
        {
            return Err(Failed::broken(format!(
                "{} is behind the activation at {}, which is not decided",
                context.index, successor.context.index
            )));
        }
        let is_first = !std::mem::replace(&mut self.begun, true);
        let Some(runs) = &self.runs else {
            return Ok(());
        };
        let wanted = match work {
            Work::Restore {
                deployment: Some(deployment),
                ..
            } => deployment,
            _ if is_first => &runs.founding,
            _ => return Ok(()),
        };
        if runs.current != *wanted {
            let wanted = wanted.clone();
            let machine = source.current(&wanted)?;
            drop(self.replace(machine, wanted, listener));
        }
        Ok(())
    }

    /// Puts another machine in the place of the one that ran, which it answers.
    pub(crate) fn replace(
        &mut self,
        machine: M,
        deployment: Deployment,
        listener: &mut impl Listener<M>,
    ) -> M {
        listener.replaced(&deployment, &machine);
        self.costs = Costs::default();
        if let Some(runs) = &mut self.runs {
            runs.current = deployment;
        }
        std::mem::replace(&mut self.machine, machine)
    }
}
