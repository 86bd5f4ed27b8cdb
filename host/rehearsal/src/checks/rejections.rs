//! A rejected command leaves the state as it was.

use skep_core::outcome::Outcome;

use super::reference::Reference;
use super::{CALLS_MAX, parting, show};
use crate::error::RehearsalError;
use crate::lived::Lived;
use crate::report::{Check, CheckResult, Severity};
use crate::script::Subject;
use crate::world::World;

/// The most rejections that are looked at.
const REJECTIONS_MAX: usize = 48;

pub(crate) fn check(
    subject: &Subject,
    reference: &Reference,
) -> Result<CheckResult, RehearsalError> {
    let commands = subject.script.commands();
    let rejected: Vec<usize> = commands
        .filter(|event| matches!(reference.seen[*event].outcome, Outcome::Rejected { .. }))
        .collect();
    let most = (CALLS_MAX / (2 * subject.script.len().max(1))).clamp(4, REJECTIONS_MAX);
    let step = rejected.len().div_ceil(most).max(1);
    let looked: Vec<usize> = rejected.iter().copied().step_by(step).collect();
    let compared = format!(
        "the state around {} of {} rejections",
        looked.len(),
        rejected.len()
    );
    let mut result = CheckResult::new(Check::Rejections, compared);
    for event in looked {
        let state = |events| {
            let mut lived = Lived::start(subject, World::default())?;
            lived.run_all(0..events)?;
            // One barrier for both, so that nothing but the command differs.
            lived.save(event)
        };
        // A machine that cannot save is another check's.
        let (Ok(before), Ok(after)) = (state(event)?, state(event + 1)?) else {
            break;
        };
        if !before.is_as(&after) {
            let reason = format!(
                "is answered with {} and changes the state all the same ({}): validate first, change last",
                show(&reference.seen[event].outcome),
                parting(&before.bytes, &after.bytes)
            );
            result.find(Severity::Error, Some(subject.script.place(event)), reason);
            break;
        }
    }
    Ok(result)
}
