//! Tests of a machine's logic without Wasm and without a host.
//!
//! [`Harness`] drives one machine as a host would; [`replay_matches`] checks what replication needs of it.

use std::fmt;

use crate::{
    ConfChange, Context, LeaderChanged, Machine, Rejection, Sink, Source, StatusChange, entropy,
};

/// How far [`Context::now`] moves with each step: one millisecond.
const STEP_NANOS: u64 = 1_000_000;

/// The instant of a harness's first step: 2026-01-01T00:00:00Z.
const START_NANOS: u64 = 1_767_225_600_000_000_000;

/// Mixed with an entry's index into the seed of its entropy.
const ENTROPY_SEED: u64 = 0x736b_6570;

/// One machine, its place in an imagined log, and its entropy. Each step is an entry of its own.
pub struct Harness<M> {
    machine: M,
    context: Context,
}

impl<M: Machine> Default for Harness<M> {
    fn default() -> Self {
        Harness::new()
    }
}

impl<M: Machine> Harness<M> {
    /// A machine that has seen nothing, not even [`Machine::init`].
    pub fn new() -> Self {
        Harness {
            machine: M::default(),
            context: Context {
                index: 0,
                term: 1,
                now: START_NANOS,
            },
        }
    }

    /// A machine whose first entry is [`Machine::init`] with `config`.
    pub fn initialised(config: impl AsRef<[u8]>) -> Result<Self, Rejection> {
        let mut harness = Harness::<M>::new();
        harness.advance();
        harness.machine.init(&harness.context, config.as_ref())?;
        Ok(harness)
    }

    /// A machine read from saved bytes, which stands at `context`. All bytes must be read.
    pub fn restored(schema: u32, saved: &[u8], context: Context) -> Result<Self, Rejection> {
        entropy::seed(ENTROPY_SEED ^ context.index);
        let mut rest = saved;
        let mut read = |len: u32| {
            let (now, later) = rest.split_at(rest.len().min(len as usize));
            rest = later;
            now.to_vec()
        };
        let mut source = Source::new(saved.len() as u64, &mut read);
        let machine = M::restore(schema, &mut source)?;
        source.finish()?;
        Ok(Harness { machine, context })
    }

    /// Applies a command as the next entry.
    pub fn apply(&mut self, request: impl AsRef<[u8]>) -> Result<Vec<u8>, Rejection> {
        self.advance();
        self.machine.apply(&self.context, request.as_ref())
    }

    /// Answers a query at the last entry.
    pub fn query(&self, request: impl AsRef<[u8]>) -> Result<Vec<u8>, Rejection> {
        self.machine.query(&self.context, request.as_ref())
    }

    /// Tells of a change of configuration as the next entry.
    pub fn conf_change(&mut self, change: &ConfChange) -> Result<(), Rejection> {
        self.advance();
        self.machine.apply_conf_change(&self.context, change)
    }

    /// Tells of a new leader as the next entry, which is the first of its term.
    pub fn leader_changed(&mut self, change: LeaderChanged) {
        self.context.term = change.term;
        self.advance();
        self.machine
            .process_status_change(&self.context, &StatusChange::LeaderChanged(change));
    }

    /// Runs one step and returns its answer; an empty one where the call has none.
    pub fn step(&mut self, step: &Step) -> Result<Vec<u8>, Rejection> {
        match step {
            Step::Apply(request) => self.apply(request),
            Step::ConfChange(change) => self.conf_change(change).map(|()| Vec::new()),
            Step::LeaderChanged(change) => {
                self.leader_changed(*change);
                Ok(Vec::new())
            }
        }
    }

    /// The bytes that [`Machine::save`] writes now.
    pub fn save(&self) -> Result<Vec<u8>, Rejection> {
        let mut saved = Vec::new();
        let mut write = |chunk: &[u8]| saved.extend_from_slice(chunk);
        self.machine.save(&mut Sink::new(&mut write))?;
        Ok(saved)
    }

    /// The machine itself.
    pub fn machine(&self) -> &M {
        &self.machine
    }

    /// The context of the last step.
    pub fn context(&self) -> Context {
        self.context
    }

    fn advance(&mut self) {
        self.context.index += 1;
        self.context.now += STEP_NANOS;
        entropy::seed(ENTROPY_SEED ^ self.context.index);
    }
}

/// One entry of a test's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A command.
    Apply(Vec<u8>),
    /// A change of configuration.
    ConfChange(ConfChange),
    /// A new leader.
    LeaderChanged(LeaderChanged),
}

impl Step {
    /// A command.
    pub fn apply(request: impl AsRef<[u8]>) -> Self {
        Step::Apply(request.as_ref().to_vec())
    }
}

/// What a machine did that would make replicas differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Divergence {
    /// Step number `step` (from 0) was rejected and changed the saved bytes all the same.
    RejectionChangedState {
        /// The step.
        step: usize,
    },
    /// A machine restored after `restored_after` steps answered step number `step` differently.
    Reply {
        /// How many steps the snapshot holds.
        restored_after: usize,
        /// The step.
        step: usize,
        /// The answer of the machine that ran from the start.
        expected: Result<Vec<u8>, Rejection>,
        /// The answer of the restored one.
        actual: Result<Vec<u8>, Rejection>,
    },
    /// A machine restored after `restored_after` steps saved other bytes after `steps` steps.
    Saved {
        /// How many steps the snapshot holds.
        restored_after: usize,
        /// How many steps were run when the bytes differed.
        steps: usize,
    },
    /// The machine refused to save, or to restore its own bytes, after `steps` steps.
    Refused {
        /// How many steps were run.
        steps: usize,
        /// What it said.
        rejection: Rejection,
    },
}

impl fmt::Display for Divergence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Divergence::RejectionChangedState { step } => {
                write!(
                    f,
                    "step {step} was rejected, and yet it changed what `save` writes; validate before mutating"
                )
            }
            Divergence::Reply {
                restored_after,
                step,
                expected,
                actual,
            } => write!(
                f,
                "restored after {restored_after} steps, the machine answers step {step} with {actual:?} instead of \
                 {expected:?}; does `save` write the whole state, and do answers depend on hash order or the clock?"
            ),
            Divergence::Saved {
                restored_after,
                steps,
            } => write!(
                f,
                "restored after {restored_after} steps, the machine saves other bytes after {steps}; `save` must \
                 write the same bytes for the same state (sort what comes from a hash map)"
            ),
            Divergence::Refused { steps, rejection } => {
                write!(
                    f,
                    "after {steps} steps the machine refuses to save or to restore its own bytes: {rejection}"
                )
            }
        }
    }
}

impl std::error::Error for Divergence {}

/// Checks what replication needs: a machine restored after any number of `steps` goes on exactly as the one that ran
/// from the start (same answers, same saved bytes after every step), and a rejected step leaves the saved bytes as
/// they were. Returns the answers, one per step.
///
/// The restored runs are also second runs of the same log, so a machine whose answers depend on hash order, on the
/// wall clock or on anything else outside the log is caught as well. Work grows with the square of the number of steps
/// and with the size of the state: a few hundred steps are a thorough test.
pub fn replay_matches<M: Machine>(
    steps: &[Step],
) -> Result<Vec<Result<Vec<u8>, Rejection>>, Divergence> {
    let reference = Reference::<M>::run(steps)?;
    for start in 0..=steps.len() {
        let Point { saved, context } = &reference.points[start];
        let mut replica =
            Harness::<M>::restored(M::describe().schema, saved, *context).map_err(|rejection| {
                Divergence::Refused {
                    steps: start,
                    rejection,
                }
            })?;
        compare(&replica, &reference, start, start)?;
        for (step, expected) in reference.replies.iter().enumerate().skip(start) {
            let actual = replica.step(&steps[step]);
            if actual != *expected {
                let expected = expected.clone();
                return Err(Divergence::Reply {
                    restored_after: start,
                    step,
                    expected,
                    actual,
                });
            }
            compare(&replica, &reference, start, step + 1)?;
        }
    }
    Ok(reference.replies)
}

/// The run from the start: a point before the first step and after each.
struct Reference<M> {
    points: Vec<Point>,
    replies: Vec<Result<Vec<u8>, Rejection>>,
    machine: std::marker::PhantomData<M>,
}

struct Point {
    saved: Vec<u8>,
    context: Context,
}

impl<M: Machine> Reference<M> {
    fn run(steps: &[Step]) -> Result<Self, Divergence> {
        let mut machine = Harness::<M>::new();
        let mut points = vec![point(&machine, 0)?];
        let mut replies = Vec::with_capacity(steps.len());
        for (number, step) in steps.iter().enumerate() {
            let reply = machine.step(step);
            let after = point(&machine, number + 1)?;
            if reply.is_err() && after.saved != points[number].saved {
                return Err(Divergence::RejectionChangedState { step: number });
            }
            points.push(after);
            replies.push(reply);
        }
        Ok(Reference {
            points,
            replies,
            machine: std::marker::PhantomData,
        })
    }
}

fn point<M: Machine>(machine: &Harness<M>, steps: usize) -> Result<Point, Divergence> {
    let saved = machine
        .save()
        .map_err(|rejection| Divergence::Refused { steps, rejection })?;
    Ok(Point {
        saved,
        context: machine.context(),
    })
}

fn compare<M: Machine>(
    replica: &Harness<M>,
    reference: &Reference<M>,
    restored_after: usize,
    steps: usize,
) -> Result<(), Divergence> {
    let Point { saved, .. } = point(replica, steps)?;
    if saved == reference.points[steps].saved {
        Ok(())
    } else {
        Err(Divergence::Saved {
            restored_after,
            steps,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::Descriptor;

    static SAVES: AtomicU64 = AtomicU64::new(0);

    /// A sum with one fault to choose.
    #[derive(Default)]
    struct Sum<const FAULT: u8> {
        total: u64,
        forgotten: u64,
    }

    const NONE: u8 = 0;
    const FORGETS: u8 = 1;
    const MUTATES_THEN_REJECTS: u8 = 2;
    const SAVES_NOISE: u8 = 3;
    const REFUSES: u8 = 4;

    impl<const FAULT: u8> Machine for Sum<FAULT> {
        fn describe() -> Descriptor {
            Descriptor {
                name: "sum",
                version: "1",
                schema: 3,
                oldest_schema: 3,
            }
        }

        fn apply(&mut self, ctx: &Context, request: &[u8]) -> Result<Vec<u8>, Rejection> {
            if FAULT == MUTATES_THEN_REJECTS {
                self.total += 1;
            }
            if request == b"reject" {
                return Err(Rejection::new(9, "as asked"));
            }
            self.total += request.len() as u64;
            self.forgotten += 1;
            let forgotten = if FAULT == FORGETS { self.forgotten } else { 0 };
            Ok(format!(
                "{} {} {} {forgotten}",
                self.total,
                ctx.now,
                entropy::next_u64()
            )
            .into_bytes())
        }

        fn save(&self, to: &mut Sink<'_>) -> Result<(), Rejection> {
            to.put_u64(self.total);
            if FAULT == SAVES_NOISE {
                to.put_u64(SAVES.fetch_add(1, Ordering::Relaxed));
            }
            Ok(())
        }

        fn restore(schema: u32, from: &mut Source<'_>) -> Result<Self, Rejection> {
            assert_eq!(schema, 3);
            if FAULT == REFUSES {
                return Err(Rejection::bad_request("no"));
            }
            let total = from.take_u64()?;
            if FAULT == SAVES_NOISE {
                from.take_u64()?;
            }
            Ok(Sum {
                total,
                forgotten: 0,
            })
        }
    }

    fn steps() -> Vec<Step> {
        let leader = LeaderChanged {
            old: 0,
            new: 1,
            term: 4,
        };
        vec![
            Step::apply("a"),
            Step::apply("reject"),
            Step::LeaderChanged(leader),
            Step::apply("bcd"),
        ]
    }

    #[test]
    fn a_sound_machine_passes() {
        let replies = replay_matches::<Sum<NONE>>(&steps()).unwrap();
        assert_eq!(replies.len(), 4);
        assert_eq!(replies[1].as_ref().unwrap_err().code, 9);
    }

    #[test]
    fn state_left_out_of_the_snapshot_is_found() {
        let divergence = replay_matches::<Sum<FORGETS>>(&steps()).unwrap_err();
        assert!(
            matches!(
                divergence,
                Divergence::Reply {
                    restored_after: 1,
                    step: 3,
                    ..
                }
            ),
            "{divergence}"
        );
    }

    #[test]
    fn a_rejection_that_changes_state_is_found() {
        let divergence = replay_matches::<Sum<MUTATES_THEN_REJECTS>>(&steps()).unwrap_err();
        assert_eq!(divergence, Divergence::RejectionChangedState { step: 1 });
    }

    #[test]
    fn unstable_snapshot_bytes_are_found() {
        let divergence = replay_matches::<Sum<SAVES_NOISE>>(&[Step::apply("a")]).unwrap_err();
        assert_eq!(
            divergence,
            Divergence::Saved {
                restored_after: 0,
                steps: 0
            }
        );
    }

    #[test]
    fn a_refused_restore_is_found() {
        let divergence = replay_matches::<Sum<REFUSES>>(&steps()).unwrap_err();
        assert!(
            matches!(divergence, Divergence::Refused { steps: 0, .. }),
            "{divergence}"
        );
    }

    #[test]
    fn the_log_moves_with_each_step() {
        let mut harness = Harness::<Sum<NONE>>::initialised("config").unwrap();
        let before = harness.context();
        harness.apply("x").unwrap();
        assert_eq!(harness.context().index, before.index + 1);
        assert_eq!(harness.context().now, before.now + STEP_NANOS);
        assert_eq!(harness.query("x").unwrap_err().code, Rejection::BAD_REQUEST);
        assert_eq!(harness.machine().total, 1);
    }
}
