//! The commands of an entry in one call, and one by one.

use bytes::Bytes;

use super::member::entries;
use super::reference::Reference;
use super::{parting, reordered, show};
use crate::error::RehearsalError;
use crate::lived::Lived;
use crate::report::{Check, CheckResult, Severity};
use crate::script::Subject;
use crate::world::World;

/// Nothing for machines that take no batches.
pub(crate) fn check(
    subject: &Subject,
    reference: &Reference,
) -> Result<Option<CheckResult>, RehearsalError> {
    if !subject.component.inspection().interfaces.batch {
        return Ok(None);
    }
    let script = &subject.script;
    let mut together = Lived::start(subject, World::default())?;
    let mut one_by_one = Lived::start(subject, World::default())?;
    let mut result = CheckResult::new(Check::Batch, "");
    let mut batches = 0;
    for entry in entries(subject, 5) {
        let commands: Vec<Bytes> = entry
            .clone()
            .filter_map(|event| script.command(event).cloned())
            .collect();
        if commands.is_empty() {
            together.run(entry.start)?;
            one_by_one.run(entry.start)?;
            continue;
        }
        let single = |lived: &mut Lived<'_>| {
            let ordinals = (0..).zip(&commands);
            ordinals
                .map(|(ordinal, command)| lived.one_of(entry.start, ordinal, command))
                .collect::<Result<Vec<_>, _>>()
        };
        let right = single(&mut one_by_one)?;
        let answers = match together.batch(entry.start, &commands)? {
            Some(answers) => {
                batches += 1;
                answers
            }
            // As the host does it: find out which one fails.
            None => single(&mut together)?,
        };
        for (at, (one, other)) in right.iter().zip(&answers).enumerate() {
            let event = entry.start + at;
            // The chance of a call is keyed by the call.
            if one == other || reference.by_chance[event] || !result.findings.is_empty() {
                continue;
            }
            let severity = match reordered(one, other) || reference.seeded[event] {
                true => Severity::Warning,
                false => Severity::Error,
            };
            let reason = format!(
                "`apply-batch` answers {} where `apply` answers {}, as command {} of {} in its entry: how commands are packed into entries must not show",
                show(other),
                show(one),
                at + 1,
                commands.len()
            );
            result.find(severity, Some(script.place(event)), reason);
        }
    }
    result.compared = format!("{batches} batches");
    let by_chance = reference.by_chance.contains(&true);
    if let (Ok(one), Ok(other)) = (one_by_one.save(script.len())?, together.save(script.len())?)
        && !one.is_as(&other)
        && !by_chance
        && result.findings.is_empty()
    {
        let reason = format!(
            "the states after batches and after single commands differ ({})",
            parting(&one.bytes, &other.bytes)
        );
        result.find(Severity::Error, None, reason);
    }
    Ok(Some(result))
}
