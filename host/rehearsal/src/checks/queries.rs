//! Queries in the very instance that applies: nothing they do may show.

use super::reference::Reference;
use super::{parting, show};
use crate::error::RehearsalError;
use crate::lived::Lived;
use crate::report::{Check, CheckResult, Severity};
use crate::script::Subject;
use crate::world::{Random, World};

/// Nothing for machines that answer no queries.
pub(crate) fn check(
    subject: &Subject,
    reference: &Reference,
) -> Result<Option<CheckResult>, RehearsalError> {
    let script = &subject.script;
    if script.queries.is_empty() {
        return Ok(None);
    }
    let mut random = Random::new(9);
    let mut lived = Lived::start(subject, World::default())?;
    let mut result = CheckResult::new(Check::Queries, "");
    let (mut asked, mut fuel) = (0, 0);
    for event in 0..script.len() {
        let context = World::default().event(event.saturating_sub(1));
        for _ in 0..2 {
            let query = random.pick(&script.queries);
            let answers = (lived.query(&context, query)?, lived.query(&context, query)?);
            asked += 2;
            if answers.0 != answers.1 && result.findings.is_empty() {
                let reason = format!(
                    "the query `{}` was answered with {} before this, and with {} when it was asked again: a query changes the machine",
                    crate::history::escape(query),
                    show(&answers.0),
                    show(&answers.1)
                );
                result.find(Severity::Error, Some(script.place(event)), reason);
            }
        }
        let (one, other) = (&reference.seen[event], lived.run(event)?);
        if one.outcome != other.outcome && result.findings.is_empty() {
            let reason = format!(
                "answers {} if nothing was asked before, and {} after {asked} queries: a query changes the machine. A host asks in an instance of its own, so commands never see it; but answers depend on what was asked at that node",
                show(&one.outcome),
                show(&other.outcome)
            );
            result.find(Severity::Error, Some(script.place(event)), reason);
        }
        fuel += usize::from(one.outcome == other.outcome && one.fuel != other.fuel);
    }
    if let (Ok(end), Ok(right)) = (lived.save(script.len())?, &reference.saved)
        && !end.is_as(right)
        && result.findings.is_empty()
    {
        let reason = format!(
            "queries change what `save` writes ({}); a host asks in an instance of its own, where the change is lost",
            parting(&right.bytes, &end.bytes)
        );
        result.find(Severity::Error, None, reason);
    }
    if fuel > 0 {
        let reason = format!(
            "{fuel} calls use other fuel after queries; a host asks in an instance of its own, so replicas agree"
        );
        result.find(Severity::Note, None, reason);
    }
    result.compared = format!("{asked} queries between {} calls", script.len());
    Ok(Some(result))
}
