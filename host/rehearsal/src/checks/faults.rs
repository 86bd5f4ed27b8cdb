//! Commands that a limit cuts off: the machine goes on as if they had never been made.

use skep_core::outcome::Outcome;
use skep_machine::wasm::Profile;

use super::member::Member;
use super::reference::Reference;
use super::{FAULTS_MAX, show};
use crate::error::RehearsalError;
use crate::report::{Check, CheckResult, Severity};
use crate::script::{Event, Subject};

/// Which of the dearest commands is the dearest one still allowed.
const ALLOWED: [usize; 3] = [1, 4, 16];

pub(crate) fn check(
    subject: &Subject,
    reference: &Reference,
) -> Result<CheckResult, RehearsalError> {
    let commands = subject.script.commands();
    let mut fuels: Vec<u64> = commands.map(|event| reference.seen[event].fuel).collect();
    fuels.sort_unstable();
    fuels.dedup();
    let mut profiles = Vec::new();
    for allowed in ALLOWED {
        if let Some(at) = fuels.len().checked_sub(allowed)
            && fuels[at] > 1
        {
            profiles.push(Profile {
                command_fuel: fuels[at] - 1,
                ..subject.profile.clone()
            });
        }
    }
    let memory = reference.memory.last().copied().unwrap_or(0);
    if memory > reference.memory_at_start {
        profiles.push(Profile {
            memory_bytes: (reference.memory_at_start + memory) / 2,
            ..subject.profile.clone()
        });
    }

    let mut result = CheckResult::new(Check::Faults, "");
    let mut faults = 0;
    for profile in &profiles {
        faults += cut_off(subject, profile, &mut result)?;
    }
    result.compared = format!("{faults} commands cut off by {} limits", profiles.len());
    Ok(result)
}

fn is_init(subject: &Subject, event: usize) -> bool {
    matches!(subject.script.events[event].1, Event::Init(_))
}

/// Runs the history under the limits, and again without the calls that they cut off; how many those are.
fn cut_off(
    subject: &Subject,
    profile: &Profile,
    result: &mut CheckResult,
) -> Result<usize, RehearsalError> {
    let mut cut = Member::start(subject, profile)?;
    let mut spared = Member::start(subject, profile)?;
    let (mut faults, mut end) = (0, 0);
    for event in 0..subject.script.len() {
        end = event + 1;
        let applied = match cut.apply(&(event..end)) {
            // No replica goes on without its configuration. The check goes on with one that was given none.
            Err(RehearsalError::Stopped(_)) if is_init(subject, event) => {
                cut = Member::start(subject, profile)?;
                faults += 1;
                continue;
            }
            applied => applied?,
        };
        if matches!(applied.outcomes[..], [Outcome::Fault(_)]) {
            faults += 1;
            if faults >= FAULTS_MAX {
                break;
            }
            continue;
        }
        let right = spared.apply(&(event..end))?;
        if applied != right {
            let what = match (applied.outcomes.first(), right.outcomes.first()) {
                (Some(one), Some(other)) if one != other => {
                    format!("answers {} instead of {}", show(one), show(other))
                }
                _ => format!("uses {} fuel instead of {}", applied.fuel, right.fuel),
            };
            let reason = format!(
                "after {faults} commands that a limit cut off, it {what}: a fault left a trace, which is a defect of the host; please report it with the component"
            );
            result.find(Severity::Error, Some(subject.script.place(event)), reason);
            return Ok(faults);
        }
    }
    if cut.save(end)? != spared.save(end)? {
        let reason = "the state after commands that a limit cut off is not the state without them: this is a defect of the host; please report it with the component";
        result.find(Severity::Error, None, reason);
    }
    Ok(faults)
}
