//! Queries on both sides of a barrier: in the instance that lived on, and in one that was restored from what it saved.
//!
//! Nothing is commanded at a barrier, so both must answer the same there. At the end of the history, after the same commands, they
//! differ where a command decides by what `save` does not write. Whether that is the seeds of the instance is found out by
//! restoring it under others.

use bytes::Bytes;
use skep_core::outcome::{EntryContext, Outcome};

use super::{CALLS_MAX, reordered, show, spread};
use crate::error::RehearsalError;
use crate::history::escape;
use crate::lived::Lived;
use crate::report::{CheckResult, Class, Severity};
use crate::script::{Subject, cut};
use crate::world::World;

/// The most barriers that are crossed.
const BARRIERS_MAX: usize = 16;
/// Runs through the history for each, about.
const RUNS: usize = 4;
/// Queries that fail after which an instance is asked no more: each costs a rebuild.
const FAULTS_MAX: usize = 4;
/// Other seeds that are tried. A hash set of two decides the same under all of them once in 65,536 times.
const SEEDS: u64 = 16;

/// Adds to what barriers change what they change for queries.
pub(crate) fn check(subject: &Subject, barriers: &mut CheckResult) -> Result<(), RehearsalError> {
    let len = subject.script.len();
    if subject.script.queries.is_empty() || len == 0 {
        return Ok(());
    }
    let mut lived = Lived::start(subject, World::default())?;
    lived.run_all(0..len)?;
    let mut crossing = Crossing {
        subject,
        end: ask(subject, &mut lived, &World::default().event(len - 1))?,
        compared: 0,
        at: None,
        behind: None,
    };
    let most = (CALLS_MAX / (RUNS * len)).clamp(2, BARRIERS_MAX);
    for prefix in spread(len, most) {
        crossing.cross(prefix)?;
    }
    crossing.finish(barriers);
    Ok(())
}

/// Asks every query, one after the other.
fn ask(
    subject: &Subject,
    lived: &mut Lived<'_>,
    context: &EntryContext,
) -> Result<Vec<Outcome>, RehearsalError> {
    let mut answers = Vec::new();
    let mut faults = 0;
    for query in &subject.script.queries {
        let answer = lived.query(context, query)?;
        faults += usize::from(matches!(answer, Outcome::Fault(_)));
        answers.push(answer);
        if faults >= FAULTS_MAX {
            break;
        }
    }
    Ok(answers)
}

struct Crossing<'a> {
    subject: &'a Subject,
    /// Answers at the end of the history, without a barrier.
    end: Vec<Outcome>,
    compared: usize,
    /// The worst difference at a barrier.
    at: Option<Difference>,
    /// The first difference at the end of the history.
    behind: Option<Difference>,
}

struct Difference {
    why: Why,
    prefix: usize,
    query: usize,
    lived: Outcome,
    restored: Outcome,
}

/// Why two answers differ, the worst last.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Why {
    /// They are the same words in another order.
    Order,
    /// They depend on the seeds of the instance.
    Seeds,
    /// They depend on something else that is not saved.
    Unsaved,
}

impl Crossing<'_> {
    fn cross(&mut self, prefix: usize) -> Result<(), RehearsalError> {
        let (subject, world) = (self.subject, World::default());
        let lived = || {
            let mut lived = Lived::start(subject, world)?;
            lived.run_all(0..prefix)?;
            Ok::<_, RehearsalError>(lived)
        };
        // What the machine says to a save or a restore is another check's.
        let Ok(saved) = lived()?.save(prefix)? else {
            return Ok(());
        };
        if self.at.as_ref().is_none_or(|at| at.why < Why::Unsaved) {
            // The instance that saved is not asked: a save may leave its traces.
            let lived = ask(subject, &mut lived()?, &world.barrier(prefix))?;
            let worst = self.worst(prefix, &saved.bytes, prefix, &lived)?;
            if let Some(worst) = worst
                && self.at.as_ref().is_none_or(|at| at.why < worst.why)
            {
                self.at = Some(worst);
            }
        }
        if self.behind.is_none() {
            let end = std::mem::take(&mut self.end);
            self.behind = self.worst(prefix, &saved.bytes, subject.script.len(), &end)?;
            self.end = end;
        }
        Ok(())
    }

    /// The worst difference between these answers and those of an instance that was restored behind `prefix`, behind `events`.
    fn worst(
        &mut self,
        prefix: usize,
        bytes: &Bytes,
        events: usize,
        lived: &[Outcome],
    ) -> Result<Option<Difference>, RehearsalError> {
        let restored = |world| self.restored(world, prefix, bytes, events);
        let Some(restored) = restored(World::default())? else {
            return Ok(None);
        };
        let pairs = || lived.iter().zip(&restored);
        self.compared += pairs().count();
        if pairs().all(|(one, other)| one == other) {
            return Ok(None);
        }
        let seeded = self.seeded(prefix, bytes, events, &restored)?;
        let mut worst = None::<Difference>;
        for (query, (one, other)) in pairs().enumerate() {
            let why = match () {
                () if one == other => continue,
                () if reordered(one, other) => Why::Order,
                () if seeded[query] => Why::Seeds,
                () => Why::Unsaved,
            };
            if worst.as_ref().is_none_or(|worst| worst.why < why) {
                worst = Some(Difference {
                    why,
                    prefix,
                    query,
                    lived: one.clone(),
                    restored: other.clone(),
                });
            }
        }
        Ok(worst)
    }

    /// Which of the answers are others under other seeds. Behind the barrier all are, if one is: what a command decided may
    /// show in each.
    fn seeded(
        &self,
        prefix: usize,
        bytes: &Bytes,
        events: usize,
        answers: &[Outcome],
    ) -> Result<Vec<bool>, RehearsalError> {
        let mut seeded = vec![false; answers.len()];
        for seed in 1..=SEEDS {
            let Some(others) = self.restored(World::seeded(seed), prefix, bytes, events)? else {
                continue;
            };
            for (query, (one, other)) in answers.iter().zip(&others).enumerate() {
                seeded[query] |= one != other;
            }
        }
        if events > prefix && seeded.contains(&true) {
            seeded.fill(true);
        }
        Ok(seeded)
    }

    /// What an instance that was restored behind `prefix` answers behind `events`, if the machine takes the bytes.
    fn restored(
        &self,
        world: World,
        prefix: usize,
        bytes: &Bytes,
        events: usize,
    ) -> Result<Option<Vec<Outcome>>, RehearsalError> {
        let Ok(mut restored) = Lived::restored(self.subject, world, prefix, bytes.clone())? else {
            return Ok(None);
        };
        restored.run_all(prefix..events)?;
        // The seeds alone differ, not what the query is told.
        let context = match events == prefix {
            true => World::default().barrier(prefix),
            false => World::default().event(events - 1),
        };
        ask(self.subject, &mut restored, &context).map(Some)
    }

    fn finish(self, barriers: &mut CheckResult) {
        barriers.compared += &format!("; {} answers to queries on both sides", self.compared);
        if let Some(found) = &self.at {
            let told = self.told(found, "at a barrier behind this");
            let (class, severity, advice) = match found.why {
                Why::Order => (
                    Class::Seeded,
                    Severity::Note,
                    "the same words in another order, that of a hash map. That is safe: every replica lists in the same order, but each barrier makes another one",
                ),
                Why::Seeds => (
                    Class::Seeded,
                    Severity::Warning,
                    "it shows the order of a hash map, or what the instance drew when it started. Every replica answers the same, but each barrier draws anew: sort, or save what must stay",
                ),
                Why::Unsaved => (
                    Class::Unsaved,
                    Severity::Error,
                    "it is answered by what the machine keeps outside of its saved state, such as a static, a cache or an address, and a barrier takes that away, on every replica: save it, or make it from what is saved",
                ),
            };
            self.find(
                barriers,
                found,
                class,
                severity,
                format!("{told}: {advice}"),
            );
        }
        if let Some(found) = &self.behind {
            let told = self.told(
                found,
                "at the end of the history if there is a barrier behind this",
            );
            let (class, severity, advice) = match found.why {
                Why::Order | Why::Seeds => (
                    Class::Seeded,
                    Severity::Note,
                    "a command decides by the order of a hash map, or by what its instance drew when it started. That is safe: every replica decides the same, and queries show exactly that; each barrier draws anew",
                ),
                Why::Unsaved => (
                    Class::Unsaved,
                    Severity::Warning,
                    "a command decides by what the machine keeps outside of its saved state, such as a static, a cache or an address. Every replica decides the same, and queries show exactly that; but a barrier takes it away",
                ),
            };
            self.find(
                barriers,
                found,
                class,
                severity,
                format!("{told}: {advice}"),
            );
        }
    }

    fn told(&self, found: &Difference, when: &str) -> String {
        format!(
            "the query `{}` is answered with {} by the machine that went on and with {} by one that was restored, {when}",
            cut(escape(&self.subject.script.queries[found.query])),
            show(&found.lived),
            show(&found.restored)
        )
    }

    /// Adds it, if nothing else of the kind was found.
    fn find(
        &self,
        barriers: &mut CheckResult,
        found: &Difference,
        class: Class,
        severity: Severity,
        reason: String,
    ) {
        if !barriers.has(class) {
            let place = self.subject.script.place(found.prefix - 1);
            barriers.find_of(class, severity, Some(place), reason);
        }
    }
}
