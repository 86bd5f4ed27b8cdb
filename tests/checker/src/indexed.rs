//! The check by log index. Answers say where in the log, so there is little to search: the order is given, and three
//! things remain to be seen.
//!
//! 1. No two commands have one position.
//! 2. The order agrees with real time: what was called after another operation had returned stands behind it, and what
//!    a linearizable query saw is not older than anything that had returned before it was called.
//! 3. Answers are those of the commands taken one by one in that order.
//!
//! The third is [`wgl::check`](crate::wgl::check) over another time, in which each position of the log is a moment: where all outcomes are
//! known it has no choice but between commands of one entry. A command of unknown outcome stands behind all
//! that had returned before it was called, or nowhere.
//!
//! This sees what the index-blind check cannot, such as a reply that belongs to another index; and it trusts the indices,
//! which that one does not.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

use crate::error::CheckerError;
use crate::history::{Operation, Outcome, Place, Via};
use crate::model::{Model, OperationOf};
use crate::verdict::{Limits, Verdict};
use crate::wgl::{Timed, check_timed};

/// What the check by index came to.
#[derive(Clone, PartialEq, Eq, Debug)]
#[must_use]
pub enum IndexedVerdict {
    /// The log's order explains every answer, unless the answers were not decided.
    Ordered(Verdict),
    /// Two commands have one position.
    SamePosition {
        /// The position.
        place: Place,
        /// Both operations, to be read.
        operations: [String; 2],
    },
    /// The order of the log is not that of real time.
    Reordered {
        /// What returned first.
        earlier: String,
        /// What was called only then, and does not stand behind it or did not see it.
        later: String,
    },
}

impl IndexedVerdict {
    /// Whether the log's order explains everything.
    pub fn is_linearizable(&self) -> bool {
        matches!(self, Self::Ordered(verdict) if verdict.is_linearizable())
    }
}

impl fmt::Display for IndexedVerdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ordered(Verdict::NotLinearizable(why)) => {
                write!(
                    f,
                    "the order of the log does not explain the answers: {why}"
                )
            }
            Self::Ordered(verdict) => verdict.fmt(f),
            Self::SamePosition {
                place,
                operations: [one, other],
            } => write!(
                f,
                "two commands have the position {place}:\n    {one}\n    {other}"
            ),
            Self::Reordered { earlier, later } => write!(
                f,
                "what was called later does not stand behind what had returned, or did not see it:\n    {earlier}\n    \
                 {later}"
            ),
        }
    }
}

/// Whether the order of the log explains every answer.
///
/// Operations with the same id count as one that was answered once: a scan that a model takes for many reads.
///
/// # Errors
/// [`CheckerError::Unplaced`] if an answer says no index.
pub fn check<M: Model>(
    model: &M,
    operations: &[OperationOf<M>],
    limits: Limits,
) -> Result<IndexedVerdict, CheckerError> {
    let mut placed = Vec::new();
    let mut unknown = Vec::new();
    for operation in operations {
        match (&operation.outcome, operation.place) {
            (Outcome::Ok(_), Some(place)) => placed.push((place, operation)),
            (Outcome::Ok(_), None) => return Err(CheckerError::Unplaced { id: operation.id }),
            (Outcome::Unknown, _) => unknown.push(operation),
            (Outcome::Failed, _) => {}
        }
    }
    if let Some(wrong) = same_position(&placed).or_else(|| reordered(&placed)) {
        return Ok(wrong);
    }
    let log = in_log_time(model, &placed, unknown);
    let timed = log.iter().map(|(call, ret, operation)| Timed {
        operation,
        call: *call,
        ret: *ret,
    });
    let verdict = check_timed(&AtOnce(model), timed, limits);
    Ok(IndexedVerdict::Ordered(verdict))
}

type Placed<'a, I, O> = (Place, &'a Operation<I, O>);

fn same_position<I: fmt::Display, O: fmt::Display>(
    placed: &[Placed<'_, I, O>],
) -> Option<IndexedVerdict> {
    let mut positions = HashMap::new();
    for &(place, operation) in placed {
        if operation.via != Via::Log || place.offset.is_none() {
            continue;
        }
        let other = *positions.entry(place).or_insert(operation);
        if other.id != operation.id {
            return Some(IndexedVerdict::SamePosition {
                place,
                operations: [other.to_string(), operation.to_string()],
            });
        }
    }
    None
}

/// Goes through time and compares each call with what had returned before.
///
/// A command called after another one, or a query, had returned is in a later entry than that: entries are committed
/// before anything of them is answered.
fn reordered<I: fmt::Display, O: fmt::Display>(
    placed: &[Placed<'_, I, O>],
) -> Option<IndexedVerdict> {
    let mut calls: Vec<_> = placed.iter().collect();
    let mut returns = calls.clone();
    calls.sort_by_key(|(_, operation)| operation.call);
    returns.sort_by_key(|(_, operation)| operation.ret);
    let mut returns = returns.into_iter().peekable();
    let mut latest: Option<&Placed<'_, I, O>> = None;
    for called in calls {
        let (place, operation) = called;
        while let Some(returned) = returns.next_if(|(_, other)| other.ret < operation.call) {
            if latest.is_none_or(|(place, _)| place.index < returned.0.index) {
                latest = Some(returned);
            }
        }
        let Some((before, earlier)) = latest else {
            continue;
        };
        let fits = match operation.via {
            Via::Log => before.index < place.index,
            Via::Read => before.index <= place.index,
            Via::Stale => true,
        };
        if !fits {
            return Some(IndexedVerdict::Reordered {
                earlier: earlier.to_string(),
                later: operation.to_string(),
            });
        }
    }
    None
}

/// A moment of the log: a command where its offset is known, all commands of an entry where they are not, or what
/// queries see behind it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Moment {
    index: u64,
    query: bool,
    offset: u32,
}

impl Moment {
    /// Before everything at an index.
    fn first_of(index: u64) -> Self {
        Self {
            index,
            query: false,
            offset: 0,
        }
    }
}

/// A model of inputs that all see one state: nothing, and no command of unknown outcome either, comes between them.
struct AtOnce<'a, M>(&'a M);

/// One or more of something.
#[derive(Clone, PartialEq, Eq, Hash)]
struct All<T>(Vec<T>);

impl<T: fmt::Display> fmt::Display for All<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, one) in self.0.iter().enumerate() {
            let separator = if number == 0 { "" } else { " & " };
            write!(f, "{separator}{one}")?;
        }
        Ok(())
    }
}

impl<M: Model> Model for AtOnce<'_, M> {
    type Key = M::Key;
    type Input = All<M::Input>;
    type Output = All<M::Output>;
    type State = M::State;
    type Kind = M::Kind;

    fn key(&self, inputs: &Self::Input) -> M::Key {
        self.0.key(&inputs.0[0])
    }

    fn initial(&self, key: &M::Key) -> M::State {
        self.0.initial(key)
    }

    fn step(
        &self,
        state: &M::State,
        inputs: &Self::Input,
        outputs: Option<&Self::Output>,
    ) -> Option<M::State> {
        let Some(outputs) = outputs else {
            return self.0.step(state, &inputs.0[0], None);
        };
        let mut answered = inputs.0.iter().zip(&outputs.0);
        answered.try_fold(state.clone(), |state, (input, output)| {
            self.0.step(&state, input, Some(output))
        })
    }

    fn rank(&self, inputs: &Self::Input, outputs: &Self::Output) -> Option<u64> {
        match (&inputs.0[..], &outputs.0[..]) {
            ([input], [output]) => self.0.rank(input, output),
            _ => None,
        }
    }

    fn kind(&self, state: &M::State) -> M::Kind {
        self.0.kind(state)
    }

    fn covers(&self, wider: &M::State, narrower: &M::State) -> bool {
        self.0.covers(wider, narrower)
    }

    fn passed(&self, state: &M::State) -> Option<u64> {
        self.0.passed(state)
    }
}

/// An operation with the times of its moment.
type InLogTime<M> = (u64, u64, Operation<All<Input<M>>, All<Output<M>>>);
type Input<M> = <M as Model>::Input;
type Output<M> = <M as Model>::Output;

/// The operations with the moments of the log for their times: moment n is from 2n to 2n + 1. All queries that saw one
/// state of a key are one operation.
fn in_log_time<M: Model>(
    model: &M,
    placed: &[Placed<'_, Input<M>, Output<M>>],
    unknown: Vec<&OperationOf<M>>,
) -> Vec<InLogTime<M>> {
    // One command without an offset may stand anywhere in its entry, and so the others' offsets say nothing of it.
    let vague: HashSet<u64> = placed
        .iter()
        .filter(|(place, operation)| operation.via == Via::Log && place.offset.is_none())
        .map(|(place, _)| place.index)
        .collect();
    let moment = |&(place, operation): &Placed<'_, Input<M>, Output<M>>| {
        let offset = place.offset.filter(|_| !vague.contains(&place.index));
        let query = operation.via != Via::Log;
        Moment {
            index: place.index,
            query,
            offset: if query { 0 } else { offset.unwrap_or(0) },
        }
    };
    let mut moments: BTreeMap<Moment, u64> =
        placed.iter().map(|placed| (moment(placed), 0)).collect();
    for (time, number) in moments.values_mut().zip(0..) {
        *time = 2 * number;
    }

    let mut log: Vec<InLogTime<M>> = Vec::with_capacity(placed.len() + unknown.len());
    let mut queries: HashMap<(u64, M::Key), usize> = HashMap::new();
    for one in placed {
        let operation = one.1;
        let Outcome::Ok(output) = &operation.outcome else {
            continue;
        };
        let time = moments[&moment(one)];
        if operation.via != Via::Log {
            let at = queries
                .entry((time, model.key(&operation.input)))
                .or_insert(log.len());
            if let Some((_, _, first)) = log.get_mut(*at) {
                first.join(&operation.input, output);
                continue;
            }
        }
        let outcome = Outcome::Ok(All(vec![output.clone()]));
        log.push((time, time + 1, alone(operation, outcome)));
    }

    // An unknown command is behind the whole entry of whatever had returned when it was called.
    let mut returns: Vec<_> = placed
        .iter()
        .map(|(place, operation)| (operation.ret, place.index))
        .collect();
    returns.sort_unstable();
    let mut latest = 0;
    for (_, index) in &mut returns {
        latest = latest.max(*index);
        *index = latest;
    }
    log.extend(unknown.into_iter().map(|operation| {
        let before = returns.partition_point(|(ret, _)| *ret < operation.call);
        let behind = before
            .checked_sub(1)
            .map_or(0, |last| returns[last].1.saturating_add(1));
        let time = moments
            .range(Moment::first_of(behind)..)
            .next()
            .map_or(2 * moments.len() as u64, |(_, time)| *time);
        (time, time, alone(operation, Outcome::Unknown))
    }));
    log
}

fn alone<I: Clone, O>(
    operation: &Operation<I, O>,
    outcome: Outcome<All<O>>,
) -> Operation<All<I>, All<O>> {
    Operation {
        id: operation.id,
        client: operation.client,
        via: operation.via,
        input: All(vec![operation.input.clone()]),
        call: operation.call,
        ret: operation.ret,
        outcome,
        place: operation.place,
    }
}

impl<I: Clone + PartialEq, O: Clone + PartialEq> Operation<All<I>, All<O>> {
    /// Adds another query of the same state, if it says anything new.
    fn join(&mut self, input: &I, output: &O) {
        let Outcome::Ok(outputs) = &mut self.outcome else {
            return;
        };
        let mut known = self.input.0.iter().zip(&outputs.0);
        if !known.any(|known| known == (input, output)) {
            self.input.0.push(input.clone());
            outputs.0.push(output.clone());
        }
    }
}
