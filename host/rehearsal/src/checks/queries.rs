//! Queries in the very instance that applies: what they leave there.
//!
//! A host asks in a fork of the machine, where it is thrown away; so it is only worth a note. Of a machine that cannot be forked
//! it asks a second instance, where later answers depend on it.

use bytes::Bytes;
use skep_core::outcome::Outcome;

use super::member::Member;
use super::reference::Reference;
use super::{parting, show};
use crate::error::RehearsalError;
use crate::history::escape;
use crate::lived::Lived;
use crate::report::{Check, CheckResult, Class, Place, Severity};
use crate::script::{Subject, cut};
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
    let mut asking = Asking {
        lived: Lived::start(subject, World::default())?,
        member: Member::start(subject, &subject.profile)?,
        asked: 0,
        traces: None,
    };
    let mut fuel = 0;
    for event in 0..script.len() {
        for _ in 0..2 {
            let query = random.pick(&script.queries);
            if let Some(reason) = asking.ask(event, query)? {
                asking.trace(Some(script.place(event)), reason);
            }
        }
        asking.member.apply(&(event..event + 1))?;
        let (one, other) = (&reference.seen[event], asking.lived.run(event)?);
        if one.outcome != other.outcome {
            let reason = format!(
                "answers {} if nothing was asked before, and {} after {} queries in the same instance",
                show(&one.outcome),
                show(&other.outcome),
                asking.asked
            );
            asking.trace(Some(script.place(event)), reason);
        }
        fuel += usize::from(one.outcome == other.outcome && one.fuel != other.fuel);
    }
    if let (Ok(end), Ok(right)) = (asking.lived.save(script.len())?, &reference.saved)
        && !end.is_as(right)
    {
        let reason = format!(
            "queries in the same instance change what `save` writes ({})",
            parting(&right.bytes, &end.bytes)
        );
        asking.trace(None, reason);
    }
    Ok(Some(asking.finish(script.len(), fuel)))
}

struct Asking<'a> {
    /// What is asked in the instance itself.
    lived: Lived<'a>,
    /// What is asked as a host asks.
    member: Member<'a>,
    asked: usize,
    /// The first trace of a query.
    traces: Option<(Option<Place>, String)>,
}

impl Asking<'_> {
    /// Asks before an event; what shows that a query has left something.
    fn ask(&mut self, event: usize, query: &Bytes) -> Result<Option<String>, RehearsalError> {
        let context = World::default().event(event.saturating_sub(1));
        let answers: [Outcome; 2] = [
            self.lived.query(&context, query)?,
            self.lived.query(&context, query)?,
        ];
        self.asked += 2;
        let told = |one: &Outcome, how: &str, other: &Outcome, and: &str| {
            format!(
                "the query `{}` was answered with {} {how}, and with {} {and}",
                cut(escape(query)),
                show(one),
                show(other)
            )
        };
        if answers[0] != answers[1] {
            let reason = told(
                &answers[0],
                "before this",
                &answers[1],
                "when it was asked again",
            );
            return Ok(Some(reason));
        }
        // Before the first event nobody has told the replica what time it is.
        if event == 0 {
            return Ok(None);
        }
        let answer = self.member.query(query)?;
        let differs = self.member.is_forked() && answer != answers[0];
        Ok(differs.then(|| {
            let after = "in the instance in which all others were asked";
            told(&answer, "in a fork of the machine", &answers[0], after)
        }))
    }

    fn trace(&mut self, at: Option<Place>, reason: String) {
        self.traces.get_or_insert((at, reason));
    }

    fn finish(self, events: usize, fuel: usize) -> CheckResult {
        let compared = format!("{} queries between {events} calls", self.asked);
        let mut result = CheckResult::new(Check::Queries, compared);
        let forked = self.member.is_forked();
        if let Some((at, reason)) = self.traces {
            let (severity, advice) = match forked {
                true => (
                    Severity::Note,
                    "a query changes the machine. A host asks in a fork of the machine: what a query writes is thrown away when it ends, so it is as slow as the first time and harms nobody",
                ),
                false => (
                    Severity::Error,
                    "a query changes the machine. This machine cannot be forked, so a host asks in a second instance: commands never see the change, but answers depend on what was asked at that node",
                ),
            };
            let reason = format!("{reason}: {advice}");
            result.find_of(Class::QueryWrites, severity, at, reason);
        }
        if fuel > 0 {
            let reason = format!(
                "{fuel} calls use other fuel after queries in the same instance; a host asks elsewhere, so replicas agree"
            );
            result.find_of(Class::Fuel, Severity::Note, None, reason);
        }
        result
    }
}
