//! A replica on a node that runs, and its machine.

use std::collections::VecDeque;

use bytes::Bytes;
use skep_core::activation::{Decision, Readiness};
use skep_core::attestation::Deed;
use skep_core::effect::{Call, Effect, Work};
use skep_core::group::Group;
use skep_core::id::{ComponentId, GroupId, LogIndex};
use skep_core::input::{Input, Stopped};
use skep_core::message::SnapshotName;
use skep_core::proposal::ProposalError;
use skep_log::{LogError, LogPosition, SealedSnapshot, SnapshotMeta, SnapshotStore};
use skep_store::convert;

use super::{Context, Out, violation};
use crate::invariant::{Place, Queues, Violation};
use crate::machine::{Machine, Nature, is_too_much};

/// A replica, its machine, and what that still has to do.
pub(super) struct Replica {
    pub(super) place: Place,
    pub(super) life: u64,
    pub(super) group: Group,
    pub(super) machine: Option<Machine>,
    /// What it is to go on with, since which entry, and whether it could.
    pub(super) successor: Option<(LogIndex, ComponentId, Readiness)>,
    pub(super) work: VecDeque<Work>,
    pub(super) working: bool,
    /// Snapshots whose record is not durable yet.
    pub(super) marks: VecDeque<(u64, SnapshotName)>,
    pub(super) snapshot: LogIndex,
    /// The snapshot of the last barrier, if it could not be written.
    pub(super) unwritten: Option<(LogIndex, SealedSnapshot)>,
    /// Numbers of the last record asked for, and of the last known here to be durable.
    pub(super) records: (u64, u64),
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
        let restoring = self.machine.is_none()
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
        if !self.work.is_empty() && !self.working {
            self.working = true;
            context.out.push(Out::Work {
                group: GroupId(self.place.key.group),
                life: self.life,
            });
        }
    }

    pub(super) fn run(
        &mut self,
        work: Work,
        snapshots: &SnapshotStore,
        context: &mut Context<'_>,
    ) -> Result<Option<Input>, Violation> {
        let place = self.place;
        let Some(machine) = &mut self.machine else {
            if let Work::Query { waiter, .. } = work {
                context.out.push(Out::Answer {
                    place,
                    waiter,
                    result: Err(ProposalError::Faulted),
                });
            }
            return Ok(None);
        };
        let failed = |error: LogError| Input::MachineFailed {
            reason: error.to_string(),
            at: None,
        };
        let goes_on = match &work {
            Work::Apply { context, .. } | Work::Barrier { context, .. } => Some(context.index),
            _ => None,
        };
        if let (Some(index), Some((undecided, ..))) = (goes_on, &self.successor) {
            return Err(violation(
                "nothing behind what is undecided",
                place,
                format!("{index} follows the activation at {undecided}, which is undecided"),
            ));
        }
        let stops = |commands: &[Bytes]| commands.iter().position(|bytes| is_too_much(bytes));
        match work {
            Work::Apply {
                context: at, calls, ..
            } if context.sick
                && let Some(place) = calls.iter().find_map(|call| match call {
                    Call::Commands(commands) => stops(commands),
                    _ => None,
                }) =>
            {
                self.machine = None;
                let index = at.index;
                Ok(Some(Input::MachineFailed {
                    reason: format!("command {place} of entry {index} is too much for this node"),
                    at: Some(Stopped {
                        index,
                        place,
                        code: 1,
                    }),
                }))
            }
            Work::Prepare {
                context: at,
                deployment,
            } => {
                let component = deployment.component;
                let readiness =
                    Nature::of(component).readiness(place.node, context.now, context.fetch_seconds);
                self.successor = Some((at.index, component, readiness));
                Ok(Some(Input::Prepared {
                    index: at.index,
                    readiness,
                }))
            }
            Work::Decide {
                context: at,
                decision,
            } => {
                let index = at.index;
                let Some((_, component, readiness)) =
                    self.successor.take().filter(|(of, ..)| *of == index)
                else {
                    let text = format!("{index} is decided and was not prepared");
                    return Err(violation("a decision follows an activation", place, text));
                };
                let readiness = match readiness {
                    Readiness::NotYet => Nature::of(component).readiness(
                        place.node,
                        context.now,
                        context.fetch_seconds,
                    ),
                    known => known,
                };
                if decision == Decision::Confirmed && readiness != Readiness::Prepared {
                    self.successor = Some((index, component, readiness));
                    return Ok(Some(Input::Prepared { index, readiness }));
                }
                let exchanged = machine.exchange(&at, component, decision);
                context
                    .checker
                    .applied(place, index.0, &exchanged, machine.state())?;
                context.trace.line(context.now, || {
                    format!(
                        "node {}: {} goes on behind the activation at {index}: {decision:?}",
                        place.node, place.key
                    )
                });
                Ok(Some(Input::Exchanged { index }))
            }
            Work::Apply {
                context: at,
                entry,
                calls,
            } => {
                let applied = machine.apply(&at, calls);
                context
                    .checker
                    .applied(place, at.index.0, &applied, machine.state())?;
                Ok(Some(Input::Applied {
                    index: at.index,
                    deed: Deed::of(&entry, &applied.outcomes, 1),
                    outcomes: applied.outcomes,
                    fuel: 1,
                }))
            }
            Work::Barrier {
                context: entry,
                state,
            } => {
                let position = LogPosition {
                    index: entry.index.0,
                    term: entry.term.0,
                };
                // Only a new barrier makes it needless.
                self.unwritten = None;
                let meta = SnapshotMeta {
                    key: place.key,
                    position,
                    state,
                    schema: 1,
                    component: [0; 32],
                };
                let sealed = match snapshots.seal(meta, machine.save()) {
                    Ok(sealed) => sealed,
                    Err(error) => {
                        self.machine = None;
                        return Ok(Some(failed(error)));
                    }
                };
                let name = convert::name(sealed.mark());
                context
                    .checker
                    .snapshotted(place, entry.index.0, name.digest)?;
                *machine = restored(place, entry.index, sealed.guest())?;
                let index = entry.index;
                Ok(Some(match sealed.place() {
                    Ok(_) => Input::Snapshotted {
                        index,
                        snapshot: Some(name),
                    },
                    Err(error) => {
                        self.unwritten = Some((index, sealed));
                        Input::Unwritten {
                            index,
                            snapshot: name,
                            reason: error.to_string(),
                        }
                    }
                }))
            }
            Work::Restore { snapshot, .. } => {
                self.successor = None;
                match snapshots.read(place.key, &convert::mark(&snapshot)) {
                    Ok((_, guest)) => {
                        *machine = restored(place, snapshot.index, guest)?;
                        context
                            .checker
                            .restored(place, snapshot.index.0, machine.state())?;
                        Ok(Some(Input::Restored {
                            index: snapshot.index,
                        }))
                    }
                    Err(error) => {
                        self.machine = None;
                        Ok(Some(failed(error)))
                    }
                }
            }
            Work::Query { waiter, .. } => {
                context.out.push(Out::Answer {
                    place,
                    waiter,
                    result: Ok(machine.query()),
                });
                Ok(None)
            }
        }
    }
}

fn restored(place: Place, index: LogIndex, guest: Bytes) -> Result<Machine, Violation> {
    Machine::restore(index, guest).ok_or_else(|| {
        violation(
            "true snapshots",
            place,
            format!("the file at {index} is strange"),
        )
    })
}
