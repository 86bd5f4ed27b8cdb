//! A replica on a node that runs, and its machine.

use std::collections::VecDeque;

use bytes::Bytes;
use skep_core::activation::Decision;
use skep_core::deployment::Deployment;
use skep_core::effect::{Call, Effect, Work};
use skep_core::group::Group;
use skep_core::id::{GroupId, LogIndex};
use skep_core::input::Input;
use skep_core::message::SnapshotName;
use skep_core::outcome::EntryContext;
use skep_core::proposal::ProposalError;
use skep_drive::{
    CanonicalPoint, Done, Driver, Failed, Imaging, Listener, LocalCode, MachineError, Source,
    Stored, ToEnd, no_image,
};
use skep_log::{LogPosition, SealedSnapshot, SnapshotMeta, SnapshotStore};
use skep_store::convert;

use super::{Context, Out, violation};
use crate::invariant::{Place, Queues, Violation};
use crate::machine::{Applied, Machine, Nature, local, state_in};
use crate::trace::digest;

/// A replica, its machine, and what that still has to do.
pub(super) struct Replica {
    pub(super) place: Place,
    pub(super) life: u64,
    pub(super) group: Group,
    /// Of its machine, until that fails.
    pub(super) driver: Option<Driver<Machine>>,
    pub(super) work: VecDeque<Work>,
    pub(super) working: bool,
    /// Snapshots whose record is not durable yet.
    pub(super) marks: VecDeque<(u64, SnapshotName)>,
    pub(super) snapshot: LogIndex,
    /// The snapshot of the last barrier, if it could not be written.
    pub(super) unwritten: Option<(LogIndex, SealedSnapshot)>,
    /// The image that its machine leaves at a barrier, while it is taken.
    pub(super) imaging: Option<Taking>,
    /// Numbers of the last record asked for, and of the last known here to be durable.
    pub(super) records: (u64, u64),
}

/// An image on its way into a file.
pub(super) struct Taking {
    image: Imaging,
    state: Bytes,
    component: [u8; 32],
    memory: Option<u64>,
}

impl Replica {
    /// Shows the checker what this step has made of the replica.
    pub(super) fn check(
        &self,
        effects: &[Effect],
        context: &mut Context<'_>,
    ) -> Result<(), Violation> {
        let place = self.place;
        let status = self.group.status();
        let restores = |work: &Work| matches!(work, Work::Restore { .. });
        let restoring = self.driver.is_none()
            || self.work.iter().any(restores)
            || effects
                .iter()
                .any(|effect| matches!(effect, Effect::Machine(work) if restores(work)));
        let queues = Queues {
            records: (self.records.0 - self.records.1) as usize,
            work: self.work.len(),
            restoring,
        };
        let limits = self.group.config().limits;
        let elected = context.checker.stepped(place, &status, &limits, queues)?;
        if elected {
            context.trace.line(context.now, || {
                format!(
                    "node {}: {} is led by replica {} in term {}",
                    place.node, place.key, status.replica, status.term
                )
            });
        }
        context.trace.hash((
            place.node,
            place.key.group,
            status.term.0,
            status.commit.0,
            status.applied.0,
            status.last.0,
        ));
        Ok(())
    }

    /// Tries again to write a snapshot that could not be written.
    pub(super) fn write_again(&mut self) -> Option<Input> {
        let (index, sealed) = self.unwritten.as_ref()?;
        let index = *index;
        sealed.place().ok()?;
        self.unwritten = None;
        Some(Input::Written { index })
    }

    pub(super) fn request_work(&mut self, context: &mut Context<'_>) {
        let has_work = !self.work.is_empty() || self.imaging.is_some();
        if has_work && !self.working {
            self.working = true;
            context.out.push(Out::Work {
                group: GroupId(self.place.key.group),
                life: self.life,
            });
        }
    }

    /// Does one piece of work, as a host's worker does it.
    pub(super) fn run(
        &mut self,
        work: Work,
        snapshots: &SnapshotStore,
        context: &mut Context<'_>,
    ) -> Result<Option<Input>, Violation> {
        let place = self.place;
        let Some(driver) = &mut self.driver else {
            if let Work::Query { waiter, .. } = work {
                context.out.push(Out::Answer {
                    place,
                    waiter,
                    result: Err(ProposalError::Faulted),
                });
            }
            return Ok(None);
        };
        let machine = driver.machine_mut();
        machine.sick = context.sick;
        let chance = digest((place.node, place.key.group, context.now));
        machine.unable = chance % 1000 < context.unable;
        if matches!(work, Work::Restore { .. }) {
            self.imaging = None;
        }
        let barrier = match &work {
            Work::Barrier { context, form, .. } => Some((context.index, *form)),
            _ => None,
        };
        let mut shelf = Shelf {
            place,
            now: context.now,
            fetch_seconds: context.fetch_seconds,
            snapshots,
        };
        let mut watch = Watch::of(&work);
        let done = match driver.drive(work, &mut shelf, &mut watch).to_end() {
            Ok(done) => done,
            // No fault of a node makes a machine fail so.
            Err(failed) if failed.is_broken => {
                return Err(violation("machines go on", place, failed.reason));
            }
            Err(failed) => {
                self.driver = None;
                return Ok(Some(failed.input()));
            }
        };
        if let Some((index, form)) = barrier {
            let state = driver.machine().state();
            context.checker.passed(place, index.0, form, state)?;
        }
        match done {
            Done::Tell(input) => {
                watch.show(&input, place, driver.machine().state(), context)?;
                Ok(Some(input))
            }
            Done::Passed {
                point,
                state,
                memory,
            } => {
                let component = driver.deployment().map_or([0; 32], |it| it.component.0);
                self.settle(point, state, (component, memory), snapshots, context)
                    .map(Some)
            }
            Done::Imaging {
                image,
                state,
                memory,
            } => {
                let component = driver.deployment().map_or([0; 32], |it| it.component.0);
                self.imaging = Some(Taking {
                    image,
                    state,
                    component,
                    memory,
                });
                Ok(None)
            }
            Done::Answer {
                waiter,
                answer,
                index,
            } => {
                if answer.is_err() && driver.waits_for_snapshot() {
                    context.out.push(Out::Answer {
                        place,
                        waiter,
                        result: Err(ProposalError::Faulted),
                    });
                    return Ok(None);
                }
                let answer = answer.map_err(|error| error.to_string());
                let state = answer.as_ref().ok().and_then(state_in);
                let state = state.ok_or_else(|| {
                    violation("queries are answered", place, format!("{answer:?}"))
                })?;
                context.out.push(Out::Answer {
                    place,
                    waiter,
                    result: Ok((index, state)),
                });
                Ok(None)
            }
        }
    }

    /// Takes an image to its end now and then, beside what the machine does.
    pub(super) fn finish_image(
        &mut self,
        snapshots: &SnapshotStore,
        context: &mut Context<'_>,
    ) -> Result<Option<Input>, Violation> {
        let chance = digest((self.place.node, context.now, "image"));
        let is_done = self.driver.is_none() || chance.is_multiple_of(4);
        let Some(taking) = self.imaging.take_if(|_| is_done) else {
            return Ok(None);
        };
        let Taking {
            mut image,
            state,
            component,
            memory,
        } = taking;
        // Nobody asks any more for what a machine did that has failed.
        if self.driver.is_none() {
            return Ok(None);
        }
        let index = image.index();
        match image.finish() {
            Ok(point) => self
                .settle(point, state, (component, memory), snapshots, context)
                .map(Some),
            Err(error) => Ok(Some(no_image(index, &error))),
        }
    }

    /// Makes the snapshot of a barrier durable, or keeps it for later.
    fn settle(
        &mut self,
        point: CanonicalPoint,
        state: Bytes,
        (component, memory): ([u8; 32], Option<u64>),
        snapshots: &SnapshotStore,
        context: &mut Context<'_>,
    ) -> Result<Input, Violation> {
        let place = self.place;
        let (index, form) = (point.context.index, point.form);
        // Only a new barrier makes it needless.
        self.unwritten = None;
        let meta = SnapshotMeta {
            key: place.key,
            position: LogPosition {
                index: index.0,
                term: point.context.term.0,
            },
            state,
            form: point.form,
            schema: point.schema,
            component,
        };
        let sealed = snapshots
            .seal(meta, point.guest)
            .map_err(|error| violation("snapshots are taken", place, error.to_string()))?;
        let name = convert::name(sealed.mark());
        context
            .checker
            .snapshotted(place, index.0, form, name.digest)?;
        Ok(match sealed.place() {
            Ok(_) => Input::Snapshotted {
                index,
                snapshot: Some(name),
                memory,
            },
            Err(error) => {
                self.unwritten = Some((index, sealed));
                Input::Unwritten {
                    index,
                    snapshot: name,
                    memory,
                    reason: error.to_string(),
                }
            }
        })
    }
}

/// Where the driver of a replica gets what its node has.
struct Shelf<'a> {
    place: Place,
    now: u64,
    fetch_seconds: u64,
    snapshots: &'a SnapshotStore,
}

impl Source<Machine> for Shelf<'_> {
    /// Whoever lacks it waits, and has it in the end.
    fn current(&mut self, deployment: &Deployment) -> Result<Machine, Failed> {
        Ok(Machine::new(deployment.component))
    }

    fn successor(&mut self, deployment: &Deployment) -> Result<Machine, MachineError> {
        let component = deployment.component;
        if Nature::of(component).is_at_hand(self.place.node, self.now, self.fetch_seconds) {
            return Ok(Machine::new(component));
        }
        let reason = "the component is not here yet";
        Err(local("start", LocalCode::Missing, reason))
    }

    fn snapshot(&mut self, name: &SnapshotName) -> Result<Stored, Failed> {
        let read = self.snapshots.read(self.place.key, &convert::mark(name));
        let (meta, guest) = read.map_err(|error| Failed::local(error.to_string()))?;
        Ok(Stored {
            form: meta.form,
            schema: meta.schema,
            guest,
        })
    }
}

/// Sees what a piece of work tells a machine, for the checker.
struct Watch {
    applied: Applied,
    decided: Option<Decision>,
}

impl Watch {
    fn of(work: &Work) -> Self {
        let context = match work {
            Work::Apply { context, .. } | Work::Decide { context, .. } => *context,
            _ => EntryContext::default(),
        };
        Self {
            applied: Applied::at(&context),
            decided: None,
        }
    }

    /// Shows the checker what was done.
    fn show(
        self,
        input: &Input,
        place: Place,
        state: u64,
        context: &mut Context<'_>,
    ) -> Result<(), Violation> {
        let Context {
            checker,
            trace,
            now,
            ..
        } = context;
        match input {
            Input::Applied {
                index, outcomes, ..
            } => {
                let applied = Applied {
                    outcomes: outcomes.clone(),
                    ..self.applied
                };
                checker.applied(place, index.0, &applied, state)
            }
            Input::Exchanged { index } => {
                trace.line(*now, || {
                    format!(
                        "node {}: {} goes on behind the activation at {index}: {:?}",
                        place.node, place.key, self.decided
                    )
                });
                checker.applied(place, index.0, &self.applied, state)
            }
            Input::Restored { index, .. } => checker.restored(place, index.0, state),
            _ => Ok(()),
        }
    }
}

impl Listener<Machine> for Watch {
    fn called(&mut self, _: &EntryContext, call: &Call, _: &skep_drive::Applied) {
        self.applied.called(call);
    }

    fn decided(&mut self, _: &EntryContext, deployment: &Deployment, decision: Decision) {
        self.applied.decided(deployment.component, decision);
        self.decided = Some(decision);
    }
}
