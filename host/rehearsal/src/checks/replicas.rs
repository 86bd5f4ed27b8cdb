//! Two replicas of one log: one is left in peace, the other is queried, saved and rebuilt between entries.

use super::member::{Member, entries};
use super::show;
use crate::error::RehearsalError;
use crate::report::{Check, CheckResult, Severity};
use crate::script::Subject;
use crate::world::Random;

/// Saves of the noisy replica; each drops its instance, which is rebuilt from all calls so far.
const REBUILDS: usize = 16;

pub(crate) fn check(subject: &Subject) -> Result<CheckResult, RehearsalError> {
    let entries = entries(subject, 1);
    let (mut quiet, mut noisy) = (
        Member::start(subject, &subject.profile)?,
        Member::start(subject, &subject.profile)?,
    );
    let mut random = Random::new(2);
    let (mut queries, mut rebuilds) = (0, 0);
    let mut difference = None;
    for entry in &entries {
        if !subject.script.queries.is_empty() && random.below(3) == 0 {
            noisy.query(random.pick(&subject.script.queries))?;
            queries += 1;
        }
        if random.below(entries.len().div_ceil(REBUILDS)) == 0 {
            // What the machine says to it is another check's.
            let _ = noisy.save(entry.start)?;
            rebuilds += 1;
        }
        let (one, other) = (quiet.apply(entry)?, noisy.apply(entry)?);
        if one != other && difference.is_none() {
            difference = Some((entry.clone(), one, other));
        }
    }
    let snapshots = (
        quiet.save(subject.script.len())?,
        noisy.save(subject.script.len())?,
    );
    let compared = format!(
        "{} entries, {queries} queries and {rebuilds} rebuilds on one side",
        entries.len()
    );
    let mut result = CheckResult::new(Check::Replicas, compared);
    if let Some((entry, one, other)) = difference {
        let parted = one
            .outcomes
            .iter()
            .zip(&other.outcomes)
            .position(|(one, other)| one != other);
        let what = match parted {
            Some(at) => format!(
                "answer {} and {}",
                show(&one.outcomes[at]),
                show(&other.outcomes[at])
            ),
            None => format!("use {} and {} fuel", one.fuel, other.fuel),
        };
        let at = entry.start + parted.unwrap_or(0);
        let reason = format!(
            "two replicas {what}: this is a defect of the host; please report it with the component"
        );
        result.find(Severity::Error, Some(subject.script.place(at)), reason);
    } else if snapshots.0 != snapshots.1 {
        let reason = "two replicas save different bytes: this is a defect of the host; please report it with the component";
        result.find(Severity::Error, None, reason);
    }
    Ok(result)
}
