//! The same commands again and again: what grows then, grows for ever.

use skep_core::outcome::Outcome;

use super::reference::Reference;
use crate::error::RehearsalError;
use crate::lived::Lived;
use crate::report::{Check, CheckResult, Costs, Severity};
use crate::script::Subject;
use crate::world::World;

/// Calls that show a leak of a few bytes, which takes whole pages of memory to be seen.
const CALLS: usize = 6_000;
/// The fewest times a history is repeated. The first half is not looked at: caches fill, heaps find their size.
const ROUNDS_MIN: usize = 8;
/// Bytes of state that each command must leave behind to be called growth. Numbers become longer, too.
const STATE_BYTES: f64 = 0.5;
/// The same for memory, and the pages that it must be in all.
const MEMORY_BYTES: f64 = 8.0;
const MEMORY_MIN: u64 = 128 << 10;

/// Only the growth is set in the costs.
pub(crate) fn check(
    subject: &Subject,
    reference: &Reference,
) -> Result<(CheckResult, Costs), RehearsalError> {
    let script = &subject.script;
    // A fault costs a rebuild, and leaves nothing that could grow.
    let commands = script.commands();
    let repeated: Vec<usize> = commands
        .filter(|event| !matches!(reference.seen[*event].outcome, Outcome::Fault(_)))
        .collect();
    let quarters = (CALLS / repeated.len().max(1)).div_ceil(ROUNDS_MIN).max(1);
    let rounds = quarters * ROUNDS_MIN;
    let mut result = CheckResult::new(Check::Growth, format!("the history {rounds} times over"));
    let mut lived = Lived::start(subject, World::default())?;
    let first = (0..script.len()).take_while(|event| script.command(*event).is_none());
    for event in first {
        lived.run(event)?;
    }
    let mut number = script.len();
    let mut marks = Vec::new();
    for round in 1..=rounds {
        for event in &repeated {
            let seen = lived.run_as(*event, number)?;
            number += 1;
            if let Outcome::Fault(fault) = seen.outcome {
                let reason = format!(
                    "fails with {fault} in repetition {round} of the history, as it did not at first: the machine has grown to a limit"
                );
                result.find(Severity::Warning, Some(script.place(*event)), reason);
                return Ok((result, Costs::default()));
            }
        }
        if round >= rounds / 2 && round % quarters == 0 {
            let Ok(saved) = lived.save(number)? else {
                return Ok((result, Costs::default()));
            };
            marks.push((saved.bytes.len() as u64, lived.memory()));
        }
    }
    let (Some(first), Some(last)) = (marks.first(), marks.last()) else {
        return Ok((result, Costs::default()));
    };
    let calls = (repeated.len() * quarters * (marks.len() - 1)).max(1) as f64;
    let costs = Costs {
        snapshot_growth: last.0.saturating_sub(first.0) as f64 / calls,
        memory_growth: last.1.saturating_sub(first.1) as f64 / calls,
        ..Costs::default()
    };
    let always = marks.windows(2).all(|pair| pair[0].0 < pair[1].0);
    let steps = marks
        .windows(2)
        .filter(|pair| pair[0].1 < pair[1].1)
        .count();
    if always && costs.snapshot_growth >= STATE_BYTES {
        let limit = subject
            .profile
            .snapshot_bytes
            .min(subject.profile.memory_bytes);
        let reason = format!(
            "the state grows by {:.1} bytes with each command though they are always the same: after about {} million commands it meets its limit. If it is meant to keep everything, let old things be removed",
            costs.snapshot_growth,
            (limit as f64 / costs.snapshot_growth / 1e6).ceil()
        );
        result.find(Severity::Warning, None, reason);
    } else if steps >= 2 && costs.memory_growth >= MEMORY_BYTES && last.1 - first.1 >= MEMORY_MIN {
        let reason = format!(
            "the memory grows by {:.1} bytes with each command though the state does not: a leak. Only a saved barrier frees it, on every replica",
            costs.memory_growth
        );
        result.find(Severity::Warning, None, reason);
    }
    Ok((result, costs))
}
