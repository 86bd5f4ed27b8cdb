//! A past told to the machines: the core decides, the driver does, a visitor listens.

use skep::MachineFactory;
use skep_core::activation::Decision;
use skep_core::deployment::Deployment;
use skep_core::effect::{Call, Effect, Work};
use skep_core::form::Form;
use skep_core::group::Group;
use skep_core::id::{ComponentId, LogIndex};
use skep_core::input::Input;
use skep_core::message::SnapshotName;
use skep_core::outcome::EntryContext;
use skep_drive::{
    Applied, CanonicalPoint, Done, Driver, Failed, Lack, Listener, MachineError, Source,
    StateMachine, Stored, ToEnd, no_image,
};

use super::{Digested, Happened, Past, ReplayError, What};

/// A group that applies, the driver of its machine, and somebody who watches.
pub(super) struct Telling<'a> {
    pub(super) past: &'a Past<'a>,
    pub(super) group: Group,
    pub(super) driver: Driver<Box<dyn StateMachine>>,
    pub(super) shelf: Shelf<'a>,
    pub(super) teller: Teller<'a>,
}

impl Telling<'_> {
    pub(super) fn run(mut self) -> Result<Box<dyn StateMachine>, ReplayError> {
        let mut effects = Vec::new();
        loop {
            self.group.poll(&mut effects);
            if effects.is_empty() {
                return Ok(self.driver.into_machine());
            }
            for effect in effects.drain(..) {
                let input = match effect {
                    // There is no disk behind it.
                    Effect::Persist(record) => Input::Persisted {
                        number: record.number,
                    },
                    Effect::Machine(work) => match self.work(work)? {
                        Some(input) => input,
                        None => continue,
                    },
                    Effect::Halt { reason } => {
                        let group = self.past.group();
                        return Err(ReplayError::Halted { group, reason });
                    }
                    // Nobody listens, and nobody asked.
                    _ => continue,
                };
                self.group.handle(input);
            }
        }
    }

    fn work(&mut self, work: Work) -> Result<Option<Input>, ReplayError> {
        let index = index_of(&work);
        let is_decision = matches!(work, Work::Decide { .. });
        let stopped = |source: Failed| ReplayError::Machine { index, source };
        let done = self
            .driver
            .drive(work, &mut self.shelf, &mut self.teller)
            .to_end()
            .map_err(stopped)?;
        Ok(match done {
            // What a node would wait for does not come any more.
            Done::Tell(Input::Prepared { .. }) if is_decision => {
                return Err(stopped(Failed::local(
                    self.teller.lack.take().unwrap_or_default(),
                )));
            }
            Done::Tell(Input::NotResumed { .. }) => {
                return Err(stopped(Failed::local(
                    self.teller.lack.take().unwrap_or_default(),
                )));
            }
            Done::Tell(input) => Some(input),
            Done::Passed { point, .. } => Some(self.passed(&point)),
            Done::Imaging { mut image, .. } => {
                let index = image.index();
                Some(match image.finish() {
                    Ok(point) => self.passed(&point),
                    Err(error) => no_image(index, &error),
                })
            }
            Done::Answer { .. } => None,
        })
    }

    /// The machine has passed a barrier. There is no file for it: what a snapshot would hold is compared with the node's own.
    fn passed(&mut self, point: &CanonicalPoint) -> Input {
        let CanonicalPoint {
            context,
            form,
            guest,
            ..
        } = point;
        let saved = Digested::of(guest);
        let on_disk = self.past.on_disk(context.index, context.term);
        let as_on_disk = on_disk.map(|file| file.guest().is_ok_and(|on_disk| on_disk == *guest));
        self.teller.tell(
            context,
            0,
            What::Barrier {
                form: *form,
                saved: Ok(saved),
                as_on_disk,
            },
        );
        Input::Snapshotted {
            index: context.index,
            snapshot: Some(SnapshotName {
                index: context.index,
                term: context.term,
                digest: saved.sha256,
                size: saved.bytes,
            }),
            memory: None,
        }
    }
}

fn index_of(work: &Work) -> LogIndex {
    match work {
        Work::Apply { context, .. }
        | Work::Barrier { context, .. }
        | Work::Restore { context, .. }
        | Work::Prepare { context, .. }
        | Work::Decide { context, .. } => context.index,
        Work::Query { index, .. } => *index,
    }
}

/// Where the driver of a past gets machines, and the one snapshot that it begins with.
pub(super) struct Shelf<'a> {
    pub(super) snapshot: Option<Stored>,
    pub(super) factory: Option<&'a dyn MachineFactory>,
}

impl Shelf<'_> {
    fn make(&self, deployment: &Deployment) -> Result<Box<dyn StateMachine>, MachineError> {
        let factory = self.factory.ok_or_else(MachineError::fixed)?;
        factory.make(deployment)
    }
}

impl Source<Box<dyn StateMachine>> for Shelf<'_> {
    fn current(&mut self, deployment: &Deployment) -> Result<Box<dyn StateMachine>, Failed> {
        Ok(self.make(deployment)?)
    }

    fn successor(
        &mut self,
        deployment: &Deployment,
    ) -> Result<Box<dyn StateMachine>, MachineError> {
        self.make(deployment)
    }

    fn snapshot(&mut self, name: &SnapshotName) -> Result<Stored, Failed> {
        let missing = || Failed::broken(format!("snapshot {} is not at hand", name.index));
        self.snapshot.take().ok_or_else(missing)
    }
}

/// Tells a visitor what the driver does.
pub(super) struct Teller<'a> {
    /// The component that wrote the snapshot in the beginning.
    pub(super) wrote: ComponentId,
    /// Why the other machine of an activation is not to be had, or an image cannot be used.
    pub(super) lack: Option<String>,
    pub(super) visit: &'a mut dyn FnMut(Happened),
}

impl Teller<'_> {
    fn no_bytes(&mut self, context: &EntryContext, form: Form, error: &MachineError) {
        let barrier = What::Barrier {
            form,
            saved: Err(error.to_string()),
            as_on_disk: None,
        };
        self.tell(context, 0, barrier);
    }

    fn tell(&mut self, context: &EntryContext, fuel: u64, what: What) {
        (self.visit)(Happened {
            context: *context,
            what,
            fuel,
        });
    }
}

impl Listener<Box<dyn StateMachine>> for Teller<'_> {
    fn called(&mut self, context: &EntryContext, call: &Call, said: &Applied) {
        let outcome = || said.outcomes.first().cloned().unwrap_or_default();
        let what = match call {
            Call::Init(config) => What::Init {
                config: config.clone(),
                outcome: outcome(),
            },
            Call::Commands(commands) => {
                let pairs = commands.iter().cloned().zip(said.outcomes.iter().cloned());
                What::Commands(pairs.collect())
            }
            Call::ConfChange(change) => What::Change {
                change: change.clone(),
                outcome: outcome(),
            },
            Call::StatusChange(event) => What::Leader(*event),
        };
        self.tell(context, said.fuel, what);
    }

    fn restored(&mut self, point: &CanonicalPoint) {
        let (bytes, component) = (point.guest.len() as u64, self.wrote);
        let restored = What::Restored {
            form: point.form,
            bytes,
            component,
        };
        self.tell(&point.context, 0, restored);
    }

    fn no_snapshot(&mut self, context: &EntryContext, error: &MachineError) {
        self.no_bytes(context, Form::Saved, error);
    }

    fn no_image(&mut self, context: &EntryContext, error: &MachineError) {
        self.no_bytes(context, Form::Image, error);
    }

    fn not_resumed(&mut self, _: &EntryContext, error: &MachineError) {
        self.lack = Some(error.to_string());
    }

    fn lacks(&mut self, _: &EntryContext, _: &Deployment, lack: &Lack) {
        self.lack = Some(match lack {
            Lack::Refused(_, Some(error)) | Lack::Local(error) => error.to_string(),
            // It was told before.
            Lack::Refused(refusal, None) => self.lack.take().unwrap_or_else(|| refusal.to_string()),
        });
    }

    fn decided(&mut self, context: &EntryContext, deployment: &Deployment, decision: Decision) {
        let told = What::Activated {
            component: deployment.component,
            outcome: decision.outcome(),
        };
        self.tell(context, 0, told);
    }

    fn waits_to_go_on(&mut self, _: &EntryContext, error: &MachineError) {
        self.lack = Some(error.to_string());
    }
}
