//! A machine is tried on the state of a group, beside the one that runs.

use std::io::{self, Write};

use skep_core::effect::Call;
use skep_core::outcome::Outcome;
use skep_machine::state_machine::{LocalCode, MachineError, StateMachine};

use super::calls::{Failed, Machine};
use super::recent::Rehearsable;
use crate::status::{Rehearsal, Verdict};

/// How far a rehearsal goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Extent {
    /// The machine takes the state, and can save it again.
    State,
    /// It also applies what was applied since.
    Replay,
}

impl Rehearsable {
    /// Tries a machine that is as before a group's first entry. Takes as long as its calls do, at most their fuel.
    ///
    /// # Errors
    /// [`MachineError::Local`]: this node could not run the machine. That it does not take the state is a verdict.
    pub(crate) fn run(
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
        let mut machine = Machine::new(made, None);
        let restored = machine
            .machine
            .restore(&base.context, base.schema, base.guest);
        if let Some(refused) = refusal(restored)? {
            report.verdict = refused;
            return Ok(report);
        }
        let mut last = base.context;
        if extent == Extent::Replay {
            report.whole = whole;
            for past in &entries {
                let mut outcomes = Vec::with_capacity(past.outcomes.len());
                for call in &past.calls {
                    let applied = machine.call(&past.context, call.clone()).map_err(
                        |Failed { reason, .. }| local("apply", LocalCode::UnexpectedError, reason),
                    )?;
                    report.fuel += applied.fuel;
                    outcomes.extend(applied.outcomes);
                    report.commands += match call {
                        Call::Commands(commands) => commands.len() as u64,
                        _ => 0,
                    };
                }
                report.entries += 1;
                report.former_fuel += past.fuel;
                report.former_faults += faults(&past.outcomes);
                report.faults += faults(&outcomes);
                let differing = outcomes.iter().zip(&past.outcomes);
                let differing = differing.filter(|(now, then)| now != then).count() as u64;
                if differing > 0 {
                    report.differing += differing;
                    report.first_differing.get_or_insert(past.context.index);
                }
                last = past.context;
            }
        }
        let mut saved = Counted(0);
        let saving = machine.machine.save(&last, &mut saved);
        report.saved_bytes = saved.0;
        report.verdict = match refusal(saving)? {
            Some(refused) => refused,
            None if report.differing > 0 => Verdict::Differs,
            None => Verdict::Takes,
        };
        Ok(report)
    }
}

fn faults(outcomes: &[Outcome]) -> u64 {
    let faults = outcomes
        .iter()
        .filter(|outcome| matches!(outcome, Outcome::Fault(_)));
    faults.count() as u64
}

/// What every replica would see too.
pub(crate) fn refusal(called: Result<(), MachineError>) -> Result<Option<Verdict>, MachineError> {
    match called {
        Ok(()) => Ok(None),
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

fn local(call: &'static str, code: LocalCode, reason: String) -> MachineError {
    MachineError::Local { call, code, reason }
}

/// Counts bytes, and keeps none.
struct Counted(u64);

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
