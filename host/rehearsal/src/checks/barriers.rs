//! A snapshot at every prefix: what a barrier there would change, whether the bytes survive a round trip, and whether
//! `save` leaves the machine alone.

use skep_core::outcome::Outcome;

use super::reference::Reference;
use super::{CALLS_MAX, parting, permuted, reordered, show, spread};
use crate::error::RehearsalError;
use crate::lived::{Lived, Saved, Seen};
use crate::report::{Check, CheckResult, Class, Severity};
use crate::script::Subject;
use crate::world::World;

/// The most prefixes at which a snapshot is taken.
const PREFIXES_MAX: usize = 64;
/// Runs through the history for each prefix, about.
const RUNS: usize = 3;
/// Other seeds under which an instance is restored, to tell an order from a loss.
const SEEDS: u64 = 3;

pub(crate) fn check(
    subject: &Subject,
    reference: &Reference,
) -> Result<[CheckResult; 3], RehearsalError> {
    let len = subject.script.len();
    let prefixes = spread(
        len,
        (CALLS_MAX / (RUNS * len.max(1))).clamp(4, PREFIXES_MAX),
    );
    let compared = match prefixes.len() == len {
        true => "a snapshot after every call".to_owned(),
        false => format!("a snapshot at {} places", prefixes.len()),
    };
    let new = |check| CheckResult::new(check, compared.clone());
    let mut seen = Seeing {
        subject,
        reference,
        lost: None,
        lost_count: 0,
        order: None,
        order_count: 0,
        fuel: 0,
        state: None,
        seeded_state: None,
        barriers: new(Check::Barriers),
        round_trip: new(Check::RoundTrip),
        read_only: new(Check::SaveIsReadOnly),
    };
    for prefix in prefixes {
        seen.prefix(prefix)?;
    }
    Ok(seen.finish())
}

struct Seeing<'a> {
    subject: &'a Subject,
    reference: &'a Reference,
    /// The first event that shows a loss, the prefix of the barrier, and what it answers then.
    lost: Option<(usize, usize, Outcome)>,
    lost_count: usize,
    order: Option<(usize, usize, Outcome)>,
    order_count: usize,
    fuel: usize,
    /// The first prefix behind which the state at the end is another one.
    state: Option<(usize, String)>,
    /// The same, if that is another one under other seeds, too.
    seeded_state: Option<usize>,
    barriers: CheckResult,
    round_trip: CheckResult,
    read_only: CheckResult,
}

impl Seeing<'_> {
    fn prefix(&mut self, prefix: usize) -> Result<(), RehearsalError> {
        let len = self.subject.script.len();
        let mut walker = Lived::start(self.subject, World::default())?;
        walker.run_all(0..prefix)?;
        let place = self.subject.script.place(prefix - 1);
        let saved = match walker.save(prefix)? {
            Ok(saved) => saved,
            Err(words) => {
                if self.barriers.findings.is_empty() {
                    let reason = format!("no snapshot can be taken after this: {words}");
                    self.barriers.find(Severity::Error, Some(place), reason);
                }
                return Ok(());
            }
        };
        self.save_again(prefix, &mut walker, &saved)?;

        let restored =
            Lived::restored(self.subject, World::default(), prefix, saved.bytes.clone())?;
        let mut restored = match restored {
            Ok(restored) => restored,
            Err(words) => {
                if self.barriers.findings.is_empty() {
                    let reason =
                        format!("what `save` wrote after this cannot be restored: {words}");
                    self.barriers.find(Severity::Error, Some(place), reason);
                }
                return Ok(());
            }
        };
        // The save of one instance must not be part of the course of another.
        let again = Lived::restored(self.subject, World::default(), prefix, saved.bytes.clone())?;
        if let Ok(mut again) = again {
            self.compare_round_trip(prefix, &saved, again.save(prefix)?);
        }
        let rest = restored.run_all(prefix..len)?;
        self.compare(prefix, &saved, &rest)?;
        let end = restored.save(len)?;
        if let (Ok(end), Ok(right)) = (&end, &self.reference.saved)
            && !end.is_as(right)
            && self.state.is_none()
            && self.seeded_state.is_none()
        {
            match self.state_varies(prefix, &saved, end)? {
                true => self.seeded_state = Some(prefix),
                false => self.state = Some((prefix, parting(&right.bytes, &end.bytes))),
            }
        }
        Ok(())
    }

    /// Whether the state at the end depends on the seeds an instance is restored under.
    fn state_varies(
        &self,
        prefix: usize,
        saved: &Saved,
        end: &Saved,
    ) -> Result<bool, RehearsalError> {
        let len = self.subject.script.len();
        for seed in 1..=SEEDS {
            let world = World::seeded(seed);
            let Ok(mut other) = Lived::restored(self.subject, world, prefix, saved.bytes.clone())?
            else {
                continue;
            };
            other.run_all(prefix..len)?;
            if let Ok(other) = other.save(len)?
                && !other.is_as(end)
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn save_again(
        &mut self,
        prefix: usize,
        walker: &mut Lived<'_>,
        saved: &Saved,
    ) -> Result<(), RehearsalError> {
        if !self.read_only.findings.is_empty() {
            return Ok(());
        }
        let place = self.subject.script.place(prefix - 1);
        let reason = match walker.save(prefix)? {
            Ok(again) if again.bytes == saved.bytes => {
                let rest = walker.run_all(prefix..self.subject.script.len())?;
                let pairs = self.reference.seen[prefix..].iter().zip(&rest).enumerate();
                let parted = pairs.map(|(at, (one, other))| (prefix + at, one, other));
                let Some((at, one, other)) = parted
                    .into_iter()
                    .find(|(_, one, other)| one.outcome != other.outcome)
                else {
                    return Ok(());
                };
                format!(
                    "after a save here, {} is answered with {} where it was {}",
                    self.subject.script.place(at),
                    show(&other.outcome),
                    show(&one.outcome)
                )
            }
            Ok(again) => format!(
                "a second save writes other bytes than the first ({})",
                parting(&saved.bytes, &again.bytes)
            ),
            Err(words) => format!("a second save fails: {words}"),
        };
        let reason = format!(
            "{reason}: `save` changes the machine. A host drops the instance after it, so the change itself is lost; the bytes must be the same for the same state"
        );
        self.read_only
            .find_of(Class::SaveWrites, Severity::Error, Some(place), reason);
        Ok(())
    }

    fn compare_round_trip(&mut self, prefix: usize, saved: &Saved, again: Result<Saved, String>) {
        if !self.round_trip.findings.is_empty() {
            return;
        }
        let place = Some(self.subject.script.place(prefix - 1));
        match again {
            Ok(again) if again.bytes == saved.bytes => {}
            Ok(again) if permuted(&saved.bytes, &again.bytes) => self.round_trip.find_of(
                Class::Seeded,
                Severity::Warning,
                place,
                "a restored machine saves the same bytes in another order: `save` follows the order of a hash map. Replicas agree all the same, because each is rebuilt from the same bytes; sort before writing, so that equal states have equal snapshots",
            ),
            Ok(again) => self.round_trip.find_of(
                Class::RoundTrip,
                Severity::Error,
                place,
                format!(
                    "a restored machine saves other bytes than it was restored from ({}): `restore` or `save` drops or changes something",
                    parting(&saved.bytes, &again.bytes)
                ),
            ),
            Err(words) => self.round_trip.find(Severity::Error, place, format!("a restored machine cannot be saved: {words}")),
        }
    }

    fn compare(
        &mut self,
        prefix: usize,
        saved: &Saved,
        rest: &[Seen],
    ) -> Result<(), RehearsalError> {
        let mut varying = None;
        for (at, other) in rest.iter().enumerate() {
            let event = prefix + at;
            let one = &self.reference.seen[event];
            if one.outcome == other.outcome {
                self.fuel += usize::from(one.fuel != other.fuel);
                continue;
            }
            let mut order = self.reference.seeded[event] || reordered(&one.outcome, &other.outcome);
            if !order && self.reference.is_seeded() {
                if varying.is_none() {
                    varying = Some(self.varying(prefix, saved, rest)?);
                }
                order = varying.as_ref().is_some_and(|varying| varying[at]);
            }
            let (first, count) = match order {
                true => (&mut self.order, &mut self.order_count),
                false => (&mut self.lost, &mut self.lost_count),
            };
            *count += 1;
            if first.as_ref().is_none_or(|(before, ..)| event < *before) {
                *first = Some((event, prefix, other.outcome.clone()));
            }
        }
        Ok(())
    }

    /// Which outcomes behind the prefix depend on the seeds an instance is restored under.
    fn varying(
        &self,
        prefix: usize,
        saved: &Saved,
        rest: &[Seen],
    ) -> Result<Vec<bool>, RehearsalError> {
        let mut varying = vec![false; rest.len()];
        for seed in 1..=SEEDS {
            let world = World::seeded(seed);
            let Ok(mut other) = Lived::restored(self.subject, world, prefix, saved.bytes.clone())?
            else {
                continue;
            };
            let other = other.run_all(prefix..self.subject.script.len())?;
            for (at, (one, other)) in rest.iter().zip(&other).enumerate() {
                varying[at] |= one.outcome != other.outcome;
            }
        }
        Ok(varying)
    }

    fn finish(mut self) -> [CheckResult; 3] {
        let script = &self.subject.script;
        let told = |(event, prefix, outcome): &(usize, usize, Outcome)| {
            format!(
                "answers {}, and {} if there was a barrier behind {}",
                show(&self.reference.seen[*event].outcome),
                show(outcome),
                script.place(prefix - 1)
            )
        };
        if let Some(lost) = &self.lost {
            let reason = format!(
                "{}: the machine loses something at a barrier, on every replica: `save` leaves it out or `restore` drops it ({} such answers)",
                told(lost),
                self.lost_count
            );
            let place = Some(script.place(lost.0));
            self.barriers
                .find_of(Class::Unsaved, Severity::Error, place, reason);
        } else if let Some((prefix, parted)) = &self.state {
            let reason = format!(
                "a barrier behind this leaves another state at the end of the history ({parted}), though no answer shows it: `save` leaves something out or changes it, or `restore` does"
            );
            let place = Some(script.place(prefix - 1));
            self.barriers
                .find_of(Class::Unsaved, Severity::Error, place, reason);
        }
        if let Some(order) = &self.order {
            let reason = format!(
                "{}: the order of a hash map, or another use of the instance's seeds, shows in {} answers. Replicas agree all the same, because each is rebuilt at each barrier; but the order changes there",
                told(order),
                self.order_count
            );
            let place = Some(script.place(order.0));
            self.barriers
                .find_of(Class::Seeded, Severity::Warning, place, reason);
        } else if let Some(prefix) = self.seeded_state {
            let reason = "a barrier behind this leaves another state at the end of the history, because a command decides by what its instance drew when it started, such as the order of a hash map or a generator. That is safe: every replica decides the same, and queries show exactly that. But each barrier draws anew: save what must stay";
            let place = Some(script.place(prefix - 1));
            self.barriers
                .find_of(Class::Seeded, Severity::Note, place, reason);
        }
        if self.fuel > 0 {
            let reason = format!(
                "{} calls use other fuel in a machine that was restored than in one that was not; barriers make it equal on all replicas",
                self.fuel
            );
            self.barriers
                .find_of(Class::Fuel, Severity::Note, None, reason);
        }
        [self.barriers, self.round_trip, self.read_only]
    }
}
