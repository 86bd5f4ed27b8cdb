//! Queries as a replica answers them, against the state that its log has made.
//!
//! A replica asks a fork of the machine, and then nothing can be found here but a defect of the host. A machine that cannot be
//! forked has a second instance: it runs the same commands, keeps what earlier queries left in it, and is not rebuilt at
//! barriers. Each answer is compared with that of the same query, under the same context, in a copy of the instance that
//! applied the commands. Memory cannot be copied from one instance to another, but all time and chance come from the
//! entries: an instance that starts at the same barrier and makes the same calls *is* such a copy. It answers one query and
//! is thrown away.

use bytes::Bytes;
use skep_core::outcome::{EntryContext, Outcome};

use super::member::Member;
use super::{CALLS_MAX, reordered, show, spread};
use crate::error::RehearsalError;
use crate::history::escape;
use crate::lived::Lived;
use crate::report::{Check, CheckResult, Class, Severity};
use crate::script::{Subject, cut};
use crate::world::{Random, World};

/// The most replicas, each with its barrier at another place; one more has none.
const BARRIERS_MAX: usize = 16;
/// The most answers that are compared. Each costs the calls since the barrier once more.
const COPIES_MAX: usize = 256;
/// Failed queries after which a replica is asked nothing on the way: each costs a rebuild of what answers.
const FAULTS_MAX: usize = 16;

/// Nothing for machines that answer no queries.
pub(crate) fn check(subject: &Subject) -> Result<Option<CheckResult>, RehearsalError> {
    if subject.script.queries.is_empty() {
        return Ok(None);
    }
    let len = subject.script.len();
    let most = (CALLS_MAX / (8 * len.max(1))).clamp(2, BARRIERS_MAX);
    let barriers = spread(len, most);
    let copies = (CALLS_MAX / (2 * len.max(1))).min(COPIES_MAX);
    let mut asking = Asking {
        subject,
        each: (copies / (barriers.len() + 1)).max(4),
        compared: 0,
        other: None,
        order: None,
    };
    for barrier in std::iter::once(None).chain(barriers.iter().copied().map(Some)) {
        if asking.other.is_none() {
            asking.replica(barrier)?;
        }
    }
    asking.finish(barriers.len()).map(Some)
}

struct Asking<'a> {
    subject: &'a Subject,
    /// Answers that are compared at each replica, about.
    each: usize,
    compared: usize,
    /// The first answer that is not the copy's.
    other: Option<Difference>,
    /// The first that is the copy's in another order.
    order: Option<Difference>,
}

struct Difference {
    /// Behind so many events.
    events: usize,
    /// The barrier before that.
    barrier: Option<usize>,
    context: EntryContext,
    query: Bytes,
    replica: Outcome,
    copy: Outcome,
    /// It was answered in a fork.
    forked: bool,
}

impl Asking<'_> {
    /// Asks a replica now and then, compares its answers from its barrier on, and stops at the first that differs.
    fn replica(&mut self, barrier: Option<usize>) -> Result<(), RehearsalError> {
        let script = &self.subject.script;
        let len = script.len();
        let from = barrier.unwrap_or(1);
        let moments: Vec<usize> = spread(len + 1 - from, self.each)
            .into_iter()
            .map(|at| from - 1 + at)
            .collect();
        let queries = (self.each / moments.len()).clamp(1, script.queries.len());
        let mut random = Random::new(17 + from as u64);
        let mut member = Member::start(self.subject, &self.subject.profile)?;
        let mut base = None;
        let mut faults = 0;
        for events in 1..=len {
            if faults < FAULTS_MAX {
                let answer = member.query(random.pick(&script.queries))?;
                faults += usize::from(matches!(answer, Outcome::Fault(_)));
            }
            member.apply(&(events - 1..events))?;
            if barrier == Some(events) {
                // What the machine says against it is another check's.
                let Ok(bytes) = member.pass_barrier(events)? else {
                    return Ok(());
                };
                base = Some((events, bytes));
            }
            if !moments.contains(&events) {
                continue;
            }
            let first = random.below(script.queries.len());
            for at in first..first + queries {
                let query = &script.queries[at % script.queries.len()];
                let replica = member.query(query)?;
                let asked = (query, replica, member.is_forked());
                self.compare(base.as_ref(), events, asked)?;
                if self.other.is_some() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn compare(
        &mut self,
        base: Option<&(usize, Bytes)>,
        events: usize,
        (query, replica, forked): (&Bytes, Outcome, bool),
    ) -> Result<(), RehearsalError> {
        let world = World::default();
        let barrier = base.map(|(barrier, _)| *barrier);
        let context = match barrier == Some(events) {
            true => world.barrier(events),
            false => world.event(events - 1),
        };
        let mut copy = match base {
            None => Lived::start(self.subject, world)?,
            Some((barrier, bytes)) => {
                let restored = Lived::restored(self.subject, world, *barrier, bytes.clone())?;
                match restored {
                    Ok(copy) => copy,
                    // It succeeded in the replica, so this is another check's.
                    Err(_) => return Ok(()),
                }
            }
        };
        copy.run_all(barrier.unwrap_or(0)..events)?;
        let copy = copy.query(&context, query)?;
        self.compared += 1;
        if replica != copy {
            let first = match reordered(&replica, &copy) {
                true => &mut self.order,
                false => &mut self.other,
            };
            first.get_or_insert(Difference {
                events,
                barrier,
                context,
                query: query.clone(),
                replica,
                copy,
                forked,
            });
        }
        Ok(())
    }

    fn finish(self, barriers: usize) -> Result<CheckResult, RehearsalError> {
        let compared = format!(
            "{} answers, each with that of a throw-away copy of the instance that applied, around {barriers} barriers",
            self.compared
        );
        let mut result = CheckResult::new(Check::Answers, compared);
        let script = &self.subject.script;
        let found = self.other.as_ref().or(self.order.as_ref());
        let Some(found) = found else {
            return Ok(result);
        };
        let place = Some(script.place(found.events - 1));
        let told = told(found);
        if found.forked {
            let reason = format!(
                "{told}: this is a defect of the host; please report it with the component"
            );
            result.find(Severity::Error, place, reason);
        } else if self.other.is_none() {
            let reason = format!(
                "{told}: the same words in another order, which differs between nodes. Sort what a query lists, if anybody may look at the order"
            );
            result.find_of(Class::Seeded, Severity::Warning, place, reason);
        } else {
            let (class, advice) = self.advice(found)?;
            let reason =
                format!("{told}: a query may answer what no replica's state says. {advice}");
            result.find_of(class, Severity::Error, place, reason);
        }
        Ok(result)
    }

    /// What an answer of a second instance depends on, and what to do about it.
    fn advice(&self, found: &Difference) -> Result<(Class, String), RehearsalError> {
        if !self.is_of_barrier(found)? {
            let advice = "What was asked before shows: a query must change nothing that an answer or a command looks at, not a cache, a generator, or where the next allocation lies";
            return Ok((Class::QueryWrites, advice.to_owned()));
        }
        let barrier = found.barrier.unwrap_or(1);
        let advice = format!(
            "The barrier behind {} shows it: something depends on more than `save` writes, such as the order of a hash map or set, chance drawn when the instance started, or what is kept beside the state. Take ordered maps, or decide by sorted keys; draw chance in the command; save what is kept",
            self.subject.script.place(barrier - 1)
        );
        Ok((Class::Unsaved, advice))
    }

    /// Whether an instance that nobody has asked anything answers otherwise than the copy as well: then the barrier, which it
    /// has lived through, makes the difference.
    fn is_of_barrier(&self, found: &Difference) -> Result<bool, RehearsalError> {
        if found.barrier.is_none() {
            return Ok(false);
        }
        let mut lived = Lived::start(self.subject, World::default())?;
        lived.run_all(0..found.events)?;
        Ok(lived.query(&found.context, &found.query)? != found.copy)
    }
}

fn told(found: &Difference) -> String {
    format!(
        "the query `{}` is answered with {} by a replica after this, and with {} by a copy of the instance that applied the commands",
        cut(escape(&found.query)),
        show(&found.replica),
        show(&found.copy)
    )
}
