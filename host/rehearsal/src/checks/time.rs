//! What the machine takes from the time and the chance in entries. Both are replicated, so it may; its author ought to
//! know.

use super::reference::Reference;
use crate::error::RehearsalError;
use crate::report::{Check, CheckResult, Severity};
use crate::script::Subject;
use crate::world::World;

/// A day, and an odd number of nanoseconds.
const LATER: u64 = 86_400_000_000_007;

pub(crate) fn check(
    subject: &Subject,
    reference: &Reference,
) -> Result<CheckResult, RehearsalError> {
    let mut result = CheckResult::new(
        Check::TimeAndChance,
        "the history on another day, and with other chance",
    );
    let world = World {
        later: LATER,
        slower: LATER / 1000,
        ..World::default()
    };
    let by_time = reference.others(subject, world)?;
    let by_chance = (0..reference.by_chance.len())
        .filter(|event| reference.by_chance[*event])
        .collect();
    for (what, events) in [("time", by_time), ("chance", by_chance)] {
        if let Some(first) = events.first() {
            let reason = format!(
                "{} replies depend on the {what} in entries; it is the same on every replica",
                events.len()
            );
            result.find(Severity::Note, Some(subject.script.place(*first)), reason);
        }
    }
    Ok(result)
}
