//! A machine is tried on the state of a group, beside the one that runs.

use skep_core::effect::Call;
use skep_core::outcome::{EntryContext, Outcome};
use skep_drive::{Applied, Driver, Failed, Listener, LocalCode, MachineError, StateMachine, ToEnd};

use super::recent::{Past, Rehearsable};
use crate::status::{Rehearsal, Verdict};

/// How far a rehearsal goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Extent {
    /// The machine takes the state, and passes a barrier: it can save the state again, and takes what it has saved.
    State,
    /// It also applies what was applied since.
    Replay,
}

impl Rehearsable {
    /// What a call of another machine says of it: a verdict is what every replica would see too.
    ///
    /// # Errors
    /// [`MachineError::Local`].
    pub fn refusal<T>(called: Result<T, MachineError>) -> Result<Option<Verdict>, MachineError> {
        match called {
            Ok(_) => Ok(None),
            Err(MachineError::Guest {
                call,
                fault,
                detail,
            }) => Ok(Some(Verdict::Refuses {
                call: call.to_owned(),
                fault,
                detail,
            })),
            Err(local) => Err(local),
        }
    }

    /// Tries a machine that is as before a group's first entry. Takes as long as its calls do, at most their fuel.
    ///
    /// # Errors
    /// [`MachineError::Local`]: this node could not run the machine. That it does not take the state is a verdict.
    pub fn run(
        self,
        made: Box<dyn StateMachine>,
        extent: Extent,
    ) -> Result<Rehearsal, MachineError> {
        let Self {
            base,
            entries,
            whole,
        } = self;
        let mut report = Rehearsal {
            snapshot: base.context.index,
            restored_bytes: base.guest.len() as u64,
            ..Rehearsal::default()
        };
        let mut driver = Driver::new(made);
        if let Some(refused) = Self::refusal(driver.restore(&base, &mut ()).to_end())? {
            report.verdict = refused;
            return Ok(report);
        }
        let mut last = base.context;
        if extent == Extent::Replay {
            report.whole = whole;
            for past in &entries {
                let calls = past.calls.clone();
                let applied = driver
                    .apply(&past.context, calls, &mut ())
                    .to_end()
                    .map_err(not_run)?;
                compare(past, &applied, &mut report);
                last = past.context;
            }
        }
        let mut saved = SavedBytes(0);
        let passed = driver.pass_barrier(&last, &mut saved).to_end();
        report.saved_bytes = saved.0;
        report.verdict = match Self::refusal(passed)? {
            Some(refused) => refused,
            None if report.differing > 0 => Verdict::Differs,
            None => Verdict::Takes,
        };
        Ok(report)
    }
}

/// Counts what an entry did, beside what it did when clients waited for it.
fn compare(past: &Past, now: &Applied, report: &mut Rehearsal) {
    report.entries += 1;
    report.commands += commands(&past.calls);
    report.fuel += now.fuel;
    report.former_fuel += past.fuel;
    report.faults += faults(&now.outcomes);
    report.former_faults += faults(&past.outcomes);
    let pairs = now.outcomes.iter().zip(&past.outcomes);
    let differing = pairs.filter(|(now, then)| now != then).count() as u64;
    if differing > 0 {
        report.differing += differing;
        report.first_differing.get_or_insert(past.context.index);
    }
}

fn commands(calls: &[Call]) -> u64 {
    let of = |call: &Call| match call {
        Call::Commands(commands) => commands.len() as u64,
        _ => 0,
    };
    calls.iter().map(of).sum()
}

fn faults(outcomes: &[Outcome]) -> u64 {
    let faults = outcomes
        .iter()
        .filter(|outcome| matches!(outcome, Outcome::Fault(_)));
    faults.count() as u64
}

fn not_run(failed: Failed) -> MachineError {
    MachineError::Local {
        call: "apply",
        code: LocalCode::UnexpectedError,
        reason: failed.reason,
    }
}

/// Bytes that the machine saved, which nobody keeps.
struct SavedBytes(u64);

impl Listener<Box<dyn StateMachine>> for SavedBytes {
    fn saved(&mut self, _: &EntryContext, bytes: usize) {
        self.0 = bytes as u64;
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use bytes::Bytes;
    use skep_core::form::Form;
    use skep_core::outcome::GuestFault;
    use skep_drive::{CanonicalPoint, Descriptor};
    use skep_machine::native::{Native, NativeMachine, Rejection};

    use super::*;

    /// Takes what its former version has saved, and not what it saves itself.
    struct Forgetful;

    impl NativeMachine for Forgetful {
        fn describe(&self) -> Descriptor {
            Descriptor {
                schema: 2,
                oldest_schema: 1,
                ..Descriptor::default()
            }
        }

        fn apply(&mut self, _: &EntryContext, _: &Bytes) -> Result<Bytes, Rejection> {
            Ok(Bytes::new())
        }

        fn save(&self, to: &mut dyn Write) -> std::io::Result<()> {
            to.write_all(b"new")
        }

        fn restore(&self, schema: u32, _: &Bytes) -> Result<Self, Rejection> {
            match schema {
                1 => Ok(Self),
                _ => Err(Rejection::new(0, "it does not know its own words")),
            }
        }
    }

    // P-27
    #[test]
    fn a_machine_that_could_not_pass_its_first_barrier_is_found_out() {
        let past = Rehearsable {
            base: CanonicalPoint {
                context: EntryContext::default(),
                form: Form::Saved,
                schema: 1,
                guest: Bytes::from_static(b"old"),
            },
            entries: Vec::new(),
            whole: true,
        };
        let machine = Box::new(Native::new(Forgetful));
        let report = past.run(machine, Extent::State).expect("it can be run");
        let Verdict::Refuses { call, fault, .. } = report.verdict else {
            panic!("{report:?}");
        };
        assert_eq!((&call[..], fault), ("restore", GuestFault::Trap));
        assert_eq!((report.restored_bytes, report.saved_bytes), (3, 3));
    }
}
