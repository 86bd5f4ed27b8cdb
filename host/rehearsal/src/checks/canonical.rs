//! Replicas that were restored at a barrier, and one that lived through all of them.

use super::member::{Member, entries};
use super::{parting, show, spread};
use crate::error::RehearsalError;
use crate::report::{Check, CheckResult, Severity};
use crate::script::Subject;
use bytes::Bytes;
use skep_drive::Applied;

/// Barriers in the history, and so replicas that join at one.
const BARRIERS: usize = 6;

/// What a replica did from one place of the log on.
#[derive(Default)]
struct Course {
    applied: Vec<Applied>,
    /// The bytes of each barrier, by the entries before it.
    barriers: Vec<(usize, Bytes)>,
}

pub(crate) fn check(subject: &Subject) -> Result<CheckResult, RehearsalError> {
    let entries = entries(subject, 3);
    let barriers = spread(entries.len().saturating_sub(1), BARRIERS);
    let compared = format!("{} barriers in {} entries", barriers.len(), entries.len());
    let mut result = CheckResult::new(Check::CanonicalPoints, compared);

    let mut veteran = Member::start(subject, &subject.profile)?;
    let mut lived = Course::default();
    for (at, entry) in entries.iter().enumerate() {
        if barriers.contains(&at) && !cross(&mut veteran, entry.start, at, &mut lived, &mut result)?
        {
            return Ok(result);
        }
        lived.applied.push(veteran.apply(entry)?);
    }

    for (joined, bytes) in lived.barriers.clone() {
        let mut newcomer = Member::start(subject, &subject.profile)?;
        if let Err(words) = newcomer.restore(entries[joined].start, bytes)? {
            result.find(
                Severity::Error,
                None,
                format!("`restore` failed on the same bytes a second time: {words}"),
            );
            return Ok(result);
        }
        let mut course = Course::default();
        for (at, entry) in entries.iter().enumerate().skip(joined) {
            if at > joined
                && barriers.contains(&at)
                && !cross(&mut newcomer, entry.start, at, &mut course, &mut result)?
            {
                return Ok(result);
            }
            course.applied.push(newcomer.apply(entry)?);
        }
        let joined_at = subject.script.place(entries[joined].start);
        let pairs = lived.applied[joined..].iter().zip(&course.applied);
        if let Some((at, (one, other))) = pairs.enumerate().find(|(_, (one, other))| one != other) {
            let parted = one
                .outcomes
                .iter()
                .zip(&other.outcomes)
                .find(|(one, other)| one != other);
            let what = match parted {
                Some((one, other)) => format!("answer {} and {}", show(one), show(other)),
                None => format!("use {} and {} fuel", one.fuel, other.fuel),
            };
            let reason = format!(
                "a replica that joined at {joined_at} and one that was always there {what}: this is a defect of the host; please report it with the component"
            );
            result.find(
                Severity::Error,
                Some(subject.script.place(entries[joined + at].start)),
                reason,
            );
            return Ok(result);
        }
        for (at, bytes) in &course.barriers {
            let other = lived.barriers.iter().find(|(other, _)| other == at);
            if let Some((_, other)) = other.filter(|(_, other)| other != bytes) {
                let reason = format!(
                    "a replica that joined at {joined_at} saves other bytes than one that was always there ({}): this is a defect of the host; please report it with the component",
                    parting(bytes, other)
                );
                result.find(
                    Severity::Error,
                    Some(subject.script.place(entries[*at].start)),
                    reason,
                );
                return Ok(result);
            }
        }
    }
    Ok(result)
}

/// Takes a replica over a barrier; `false` if the machine fails there.
fn cross(
    member: &mut Member<'_>,
    events: usize,
    at: usize,
    course: &mut Course,
    result: &mut CheckResult,
) -> Result<bool, RehearsalError> {
    match member.pass_barrier(events)? {
        Ok(bytes) => {
            course.barriers.push((at, bytes));
            Ok(true)
        }
        Err(words) => {
            let reason = format!(
                "no snapshot can be taken here, and the group's log would grow for ever: {words}"
            );
            result.find(Severity::Error, None, reason);
            Ok(false)
        }
    }
}
