//! The checks, one file each, and what they share.

mod answers;
mod barriers;
mod batch;
mod canonical;
mod crossing;
mod faults;
mod growth;
mod member;
mod queries;
mod reference;
mod rejections;
mod replicas;
mod time;

use skep_core::outcome::Outcome;

use crate::error::RehearsalError;
use crate::history::{Origin, escape};
use crate::lived::permuted;
use crate::report::{Check, CheckResult, Costs, Quantiles, Report, Severity, Verdict};
use crate::script::{Subject, cut};
use reference::Reference;

/// The most calls that one check makes, about: half a minute of a slow machine at most.
const CALLS_MAX: usize = 200_000;
/// Faults of a history after which it is not run on, because each costs a rebuild.
const FAULTS_MAX: usize = 64;
/// Replies of a generated history, of a hundred, below which it says little.
const COVERAGE_PERCENT: usize = 30;

pub(crate) fn run(mut subject: Subject) -> Result<Report, RehearsalError> {
    let whole = subject.script.once();
    let reference = Reference::take(&mut subject)?;
    let mut checks = vec![
        coverage(&subject, &reference, whole),
        replicas::check(&subject)?,
        canonical::check(&subject)?,
    ];
    let [mut barriers, round_trip, read_only] = barriers::check(&subject, &reference)?;
    crossing::check(&subject, &mut barriers)?;
    checks.extend([barriers, round_trip, read_only]);
    checks.push(faults::check(&subject, &reference)?);
    checks.push(rejections::check(&subject, &reference)?);
    checks.extend(batch::check(&subject, &reference)?);
    checks.extend(queries::check(&subject, &reference)?);
    checks.extend(answers::check(&subject)?);
    checks.push(time::check(&subject, &reference)?);
    let (growth, costs) = growth::check(&subject, &reference)?;
    checks.push(growth);
    let verdict = match checks.iter().filter_map(CheckResult::severity).max() {
        Some(Severity::Error) => Verdict::Fail,
        Some(Severity::Warning) => Verdict::Warnings,
        Some(Severity::Note) | None => Verdict::Pass,
    };
    let commands = |kind: fn(&Outcome) -> bool| {
        let commands = subject.script.commands();
        commands
            .filter(|event| kind(&reference.seen[*event].outcome))
            .count()
    };
    Ok(Report {
        verdict,
        origin: subject.script.origin,
        events: subject.script.once(),
        commands: commands(|_| true),
        replies: commands(|outcome| matches!(outcome, Outcome::Reply(_))),
        rejections: commands(|outcome| matches!(outcome, Outcome::Rejected { .. })),
        faults: commands(|outcome| matches!(outcome, Outcome::Fault(_))),
        checks,
        costs: costs_of(&subject, &reference, costs),
    })
}

fn coverage(subject: &Subject, reference: &Reference, whole: usize) -> CheckResult {
    let script = &subject.script;
    let compared = match script.rounds() {
        1 => format!("{} calls", script.once()),
        rounds => format!(
            "{} calls, and their commands again: {} calls in {rounds} rounds",
            script.once(),
            script.len()
        ),
    };
    let mut result = CheckResult::new(Check::Coverage, compared);
    if script.once() < whole {
        result.find(
            Severity::Warning,
            Some(script.place(script.len() - 1)),
            format!(
                "the history ends here: {FAULTS_MAX} commands have failed; what follows was not run"
            ),
        );
    }
    let (mut all, mut replies) = (0, 0);
    for event in script.commands() {
        all += 1;
        replies += usize::from(matches!(reference.seen[event].outcome, Outcome::Reply(_)));
    }
    if replies * 100 < all * COVERAGE_PERCENT {
        result.find(
            Severity::Warning,
            None,
            format!("only {replies} of {all} commands were answered with a reply, so little of the machine was seen: write requests that it takes (--requests)"),
        );
    } else if script.origin == Origin::Generated {
        result.find(
            Severity::Note,
            None,
            format!("the requests are guessed; {replies} of {all} were answered with a reply. A history of your own (--requests) sees more"),
        );
    }
    result
}

fn costs_of(subject: &Subject, reference: &Reference, growth: Costs) -> Costs {
    let script = &subject.script;
    let (mut fuel, mut memory) = (Vec::new(), Vec::new());
    let mut before = reference.memory_at_start;
    for (event, seen) in reference.seen.iter().enumerate() {
        let after = reference.memory[event];
        if script.command(event).is_some() && !matches!(seen.outcome, Outcome::Fault(_)) {
            fuel.push(seen.fuel);
            memory.push(after.saturating_sub(before));
        }
        before = after;
    }
    Costs {
        command_fuel: Quantiles::of(fuel),
        command_memory: Quantiles::of(memory),
        memory_at_start: reference.memory_at_start,
        memory_at_end: before,
        snapshot_bytes: (reference.saved.as_ref()).map_or(0, |saved| saved.bytes.len() as u64),
        save_fuel: reference.saved.as_ref().map_or(0, |saved| saved.fuel),
        ..growth
    }
}

/// An outcome, for the reader.
fn show(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Reply(reply) => format!("`{}`", cut(escape(reply))),
        Outcome::Rejected { code, message } => {
            format!("rejection {code} `{}`", cut(escape(message.as_bytes())))
        }
        Outcome::Refused { code, .. } => format!("a refusal {code} of the host"),
        Outcome::Fault(fault) => format!("a fault ({fault})"),
    }
}

/// Whether two outcomes are the same words in another order.
fn reordered(one: &Outcome, other: &Outcome) -> bool {
    let words = |bytes: &[u8]| {
        let words = bytes.split(|byte| !byte.is_ascii_alphanumeric());
        let mut words: Vec<Vec<u8>> = words.map(<[u8]>::to_vec).collect();
        words.sort_unstable();
        words
    };
    let same = |one: &[u8], other: &[u8]| permuted(one, other) && words(one) == words(other);
    match (one, other) {
        (Outcome::Reply(one), Outcome::Reply(other)) => same(one, other),
        (
            Outcome::Rejected { code, message },
            Outcome::Rejected {
                code: other_code,
                message: other_message,
            },
        ) => code == other_code && same(message.as_bytes(), other_message.as_bytes()),
        _ => false,
    }
}

/// Where two byte strings part, for the reader.
fn parting(one: &[u8], other: &[u8]) -> String {
    let at = one
        .iter()
        .zip(other)
        .take_while(|(one, other)| one == other)
        .count();
    format!(
        "{} and {} bytes, different from byte {at} on",
        one.len(),
        other.len()
    )
}

/// About `count` numbers spread evenly over `1..=last`, both ends among them.
fn spread(last: usize, count: usize) -> Vec<usize> {
    let count = count.clamp(1, last.max(1));
    let mut numbers: Vec<usize> = (0..count)
        .map(|at| 1 + at * last.saturating_sub(1) / count.saturating_sub(1).max(1))
        .collect();
    numbers.dedup();
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_spread_over_the_whole() {
        assert_eq!(spread(1, 64), [1]);
        assert_eq!(spread(4, 64), [1, 2, 3, 4]);
        assert_eq!(spread(100, 3), [1, 50, 100]);
    }

    #[test]
    fn another_order_is_told_from_other_bytes() {
        assert!(permuted(b"k1 k2", b"k2 k1"));
        assert!(!permuted(b"k1 k2", b"k1 k3"));
        let reply = |text: &'static str| Outcome::Reply(text.into());
        assert!(reordered(&reply("k1 k2"), &reply("k2 k1")));
        assert!(!reordered(&reply("26"), &reply("62")));
        assert_eq!(
            parting(b"abc", b"abd"),
            "3 and 3 bytes, different from byte 2 on"
        );
    }
}
