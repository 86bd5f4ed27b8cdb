//! The search for an order of one key's operations.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::history::Outcome;
use crate::model::{Model, OperationOf};
use crate::verdict::{Counterexample, Limits, SHOWN, Verdict};

use super::Timed;
use super::events::{At, Event, Events};
use super::unknown::{Class, Reached, Used, classes};

pub(super) struct Search<'a, M: Model> {
    model: &'a M,
    key: &'a M::Key,
    /// The answered operations, in order of their calls.
    answered: Vec<Answered<'a, M>>,
    unknown: Vec<Class<M::Input>>,
    /// By the place of their calls.
    unknown_operations: BTreeMap<At, &'a OperationOf<M>>,
    events: Events,
    /// The ranks of the answered operations, in order.
    ranked: Vec<u64>,
    /// Whether an operation is kept back by one that is called later and has a lower rank. No order can have it before, so
    /// this finds the same verdict sooner; but what fails then is not the operation that is to be blamed.
    looks_ahead: bool,
    placed: Placed,
    seen: HashMap<(Window, M::Kind), Reached<M::State>>,
    nodes: Vec<Node<M>>,
    trail: Vec<Trail>,
    best: Option<Best<M::State>>,
    steps: u64,
    limits: Limits,
}

struct Answered<'a, M: Model> {
    operation: &'a OperationOf<M>,
    /// When it was called and returned.
    interval: (u64, u64),
    output: &'a M::Output,
    rank: Option<u64>,
}

/// A situation of the search: some operations are placed, and some choices of the next one were tried.
struct Node<M: Model> {
    /// The operation whose placing led here, and where the trail tells of it; none led to the first node.
    placed: Option<(u32, usize)>,
    /// States that may be the present one, each with the unknown operations it takes. The first takes the fewest; the
    /// others follow when it leads nowhere.
    variants: Vec<(M::State, Used)>,
    /// The states reached by unknown operations; [`None`] before any was tried.
    reached: Option<HashMap<M::Kind, Reached<M::State>>>,
    /// The variant and the class of unknown operations to make the next variant of.
    from: (usize, usize),
    /// The variant in use, and the place in the list of what to try next.
    variant: usize,
    next: At,
    /// Which of those that may be next are tried now.
    pass: Pass,
    /// The lowest rank of those that may be next.
    lowest: Option<u64>,
    /// Nothing but the choice made last can lead on.
    settled: bool,
}

impl<M: Model> Node<M> {
    /// Adds one more state that the unknown operations called before `bound` can lead to, those with the fewest of them
    /// first. Whether there was one.
    fn add_variant(
        &mut self,
        model: &M,
        classes: &[Class<M::Input>],
        bound: At,
        steps: &mut u64,
    ) -> bool {
        let reached = self.reached.get_or_insert_with(|| {
            let mut reached: HashMap<M::Kind, Reached<M::State>> = HashMap::new();
            for (state, used) in &self.variants {
                let kind = reached.entry(model.kind(state)).or_default();
                kind.add(model, state, used);
            }
            reached
        });
        while let Some((state, used)) = self.variants.get(self.from.0) {
            let number = self.from.1;
            let Some(class) = classes.get(number).filter(|class| class.calls[0] < bound) else {
                self.from = (self.from.0 + 1, 0);
                continue;
            };
            self.from.1 += 1;
            let number = number as u32;
            let next = class.calls.get(used.of(number) as usize);
            if next.is_none_or(|&call| call > bound) {
                continue;
            }
            *steps += 1;
            let Some(after) = model.step(state, &class.input, None) else {
                continue;
            };
            // An operation that may be next would have to stand before this.
            if self.lowest.is_some() && model.passed(&after) >= self.lowest {
                continue;
            }
            let used = used.with(number);
            let kind = reached.entry(model.kind(&after)).or_default();
            if kind.add(model, &after, &used) {
                self.variants.push((after, used));
                return true;
            }
        }
        false
    }
}

/// The order of trying. What fits in few states comes before what fits in many, because its chance may not come again.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pass {
    /// Operations that change nothing.
    Same,
    /// Changes without a rank, whose answers depend on the state.
    Change,
    /// Changes with a rank, of which one at most may be next.
    Ranked,
}

impl Pass {
    const FIRST: Self = Self::Same;

    fn next(self) -> Option<Self> {
        match self {
            Self::Same => Some(Self::Change),
            Self::Change => Some(Self::Ranked),
            Self::Ranked => None,
        }
    }
}

/// A choice that was made once. All are kept, so that the way to the best situation can be told in the end.
struct Trail {
    before: Option<usize>,
    operation: u32,
    /// The unknown operations used until then.
    used: Used,
}

/// The situation in which the search got furthest.
struct Best<S> {
    at: At,
    stuck: u32,
    way: Option<usize>,
    state: S,
}

impl<'a, M: Model> Search<'a, M> {
    pub(super) fn new(
        model: &'a M,
        key: &'a M::Key,
        operations: Vec<Timed<'a, M>>,
        limits: Limits,
    ) -> Self {
        let mut answered = Vec::new();
        let mut unanswered = Vec::new();
        for Timed {
            operation,
            call,
            ret,
        } in operations
        {
            match &operation.outcome {
                Outcome::Ok(output) => answered.push(Answered {
                    operation,
                    interval: (call, ret),
                    output,
                    rank: model.rank(&operation.input, output),
                }),
                Outcome::Unknown => unanswered.push((call, operation)),
                Outcome::Failed => {}
            }
        }
        // The list is in this order, too, so that the placed operations are nearly a prefix.
        answered.sort_by_key(|answered| answered.interval);
        let intervals: Vec<_> = answered.iter().map(|answered| answered.interval).collect();
        let calls: Vec<_> = unanswered.iter().map(|(call, _)| *call).collect();
        let (events, places) = Events::new(&intervals, &calls);
        let unknown_operations: BTreeMap<_, _> = places
            .into_iter()
            .zip(unanswered.into_iter().map(|(_, operation)| operation))
            .collect();
        let unknown = classes(
            unknown_operations
                .iter()
                .map(|(at, operation)| (*at, operation.input.clone()))
                .collect(),
        );
        Self {
            model,
            key,
            ranked: {
                let ranks = answered.iter().filter_map(|answered| answered.rank);
                let mut ranks: Vec<_> = ranks.collect();
                ranks.sort_unstable();
                ranks
            },
            looks_ahead: true,
            placed: Placed::new(answered.len()),
            answered,
            unknown,
            unknown_operations,
            events,
            seen: HashMap::new(),
            nodes: Vec::new(),
            trail: Vec::new(),
            best: None,
            steps: 0,
            limits,
        }
    }

    pub(super) fn run(mut self) -> Verdict {
        match self.search() {
            Verdict::NotLinearizable(why) if !self.ranked.is_empty() => {
                // Once more, for a better explanation, if that does not take too long.
                self.looks_ahead = false;
                self.seen.clear();
                self.trail.clear();
                self.best = None;
                match self.search() {
                    Verdict::Undecided { .. } => Verdict::NotLinearizable(why),
                    better => better,
                }
            }
            verdict => verdict,
        }
    }

    fn search(&mut self) -> Verdict {
        let until = self.steps.saturating_add(self.limits.steps);
        let total = self.answered.len();
        self.enter(None, self.model.initial(self.key), Used::default());
        loop {
            if self.events.left() == 0 {
                return Verdict::Linearizable {
                    operations: total,
                    steps: self.steps,
                };
            }
            if self.steps > until {
                return Verdict::Undecided {
                    key: self.key.to_string(),
                    operations: total,
                    steps: self.limits.steps,
                };
            }
            let Some(node) = self.nodes.last() else {
                return Verdict::NotLinearizable(Box::new(self.counterexample()));
            };
            match self.events.event(node.next) {
                Event::Call(operation) if !node.settled => self.try_next(operation),
                Event::Call(_) | Event::Return(_) | Event::Other => self.next_pass(),
            }
        }
    }

    fn enter(&mut self, placed: Option<u32>, state: M::State, used: Used) {
        let rank = |operation: u32| self.answered[operation as usize].rank;
        let lowest = match self.ranked.get(self.placed.ranked) {
            Some(lowest) if self.looks_ahead => Some(*lowest),
            _ => self.events.candidates().filter_map(rank).min(),
        };
        let before = self.way();
        let placed = placed.map(|operation| {
            self.trail.push(Trail {
                before,
                operation,
                used: used.clone(),
            });
            (operation, self.trail.len() - 1)
        });
        self.nodes.push(Node {
            placed,
            variants: vec![(state, used)],
            reached: None,
            from: (0, 0),
            variant: 0,
            next: self.events.first(),
            pass: Pass::FIRST,
            lowest,
            settled: false,
        });
    }

    /// Places the operation if it fits and leads where the search was not yet.
    fn try_next(&mut self, operation: u32) {
        let Some(node) = self.nodes.last_mut() else {
            return;
        };
        node.next = self.events.after(node.next);
        let answered = &self.answered[operation as usize];
        let ranked = answered.rank.is_some();
        if ranked != (node.pass == Pass::Ranked) || (ranked && answered.rank > node.lowest) {
            return;
        }
        self.steps += 1;
        let (state, used) = &node.variants[node.variant];
        let input = &answered.operation.input;
        let Some(after) = self.model.step(state, input, Some(answered.output)) else {
            return;
        };
        if (node.pass == Pass::Same) != (!ranked && after == *state) {
            return;
        }
        // Only of the first variant: the others are among what could follow it.
        node.settled = node.variant == 0 && after == *state;
        let used = used.clone();
        self.events.take(operation);
        self.placed.add(operation, ranked);
        let situation = (self.placed.window(), self.model.kind(&after));
        let reached = self.seen.entry(situation).or_default();
        if reached.add(self.model, &after, &used) {
            self.enter(Some(operation), after, used);
        } else {
            self.placed.remove(operation, ranked);
            self.events.give_back(operation);
        }
    }

    /// Goes on with what is tried later.
    fn next_pass(&mut self) {
        let first = self.events.first();
        if let Some(node) = self.nodes.last_mut()
            && !node.settled
            && let Some(pass) = node.pass.next()
        {
            node.pass = pass;
            node.next = first;
        } else {
            self.next_variant();
        }
    }

    /// Goes on with another state that unknown operations explain, or back.
    fn next_variant(&mut self) {
        self.note_stuck();
        let (first, bound) = (self.events.first(), self.events.bound());
        let Some(node) = self.nodes.last_mut() else {
            return;
        };
        node.variant += 1;
        node.next = first;
        node.pass = Pass::FIRST;
        let classes = &self.unknown;
        if !node.settled && node.add_variant(self.model, classes, bound, &mut self.steps) {
            return;
        }
        if let Some((operation, _)) = node.placed {
            let ranked = self.answered[operation as usize].rank.is_some();
            self.placed.remove(operation, ranked);
            self.events.give_back(operation);
        }
        self.nodes.pop();
    }

    /// Remembers how far the search got: to the first return in the list, which nothing may pass.
    fn note_stuck(&mut self) {
        let Some(node) = self.nodes.last() else {
            return;
        };
        let at = self.events.bound();
        if self.best.as_ref().is_some_and(|best| best.at >= at) {
            return;
        }
        if let Event::Return(stuck) = self.events.event(at) {
            self.best = Some(Best {
                at,
                stuck,
                way: self.way(),
                state: node.variants[node.variant].0.clone(),
            });
        }
    }

    /// Where the trail tells how the search came here.
    fn way(&self) -> Option<usize> {
        self.nodes.last()?.placed.map(|(_, way)| way)
    }

    /// What to tell when every choice was tried.
    fn counterexample(&self) -> Counterexample {
        // The first node gets stuck at the first return if nothing else does, and a key without answers is linearizable.
        let best = self
            .best
            .as_ref()
            .expect("a search that failed got stuck somewhere");
        let stuck = self.answered[best.stuck as usize].operation;
        let order = self.order(best.way);
        let placed: HashSet<u64> = order.iter().map(|operation| operation.id).collect();
        let returned = self.answered[best.stuck as usize].interval.1;
        let overlapping = self
            .answered
            .iter()
            .filter(|answered| answered.interval.0 <= returned)
            .map(|answered| answered.operation);
        let unknown = self.unknown_operations.range(..best.at);
        let unplaced = overlapping
            .chain(unknown.map(|(_, operation)| *operation))
            .filter(|operation| operation.id != stuck.id && !placed.contains(&operation.id));
        Counterexample {
            key: self.key.to_string(),
            order: order.iter().map(|operation| operation.id).collect(),
            last: order[order.len().saturating_sub(SHOWN)..]
                .iter()
                .map(ToString::to_string)
                .collect(),
            state: best.state.to_string(),
            stuck: stuck.id,
            stuck_operation: stuck.to_string(),
            unplaced: unplaced.map(ToString::to_string).collect(),
        }
    }

    /// The operations along a way, the unknown ones before the one that they made possible.
    fn order(&self, way: Option<usize>) -> Vec<&'a OperationOf<M>> {
        let mut way = way;
        let mut choices = Vec::new();
        while let Some(choice) = way.and_then(|way| self.trail.get(way)) {
            choices.push(choice);
            way = choice.before;
        }
        let mut order = Vec::new();
        let mut used = &Used::default();
        for choice in choices.into_iter().rev() {
            for (class, count) in choice.used.iter() {
                let calls = &self.unknown[class as usize].calls;
                let new = &calls[used.of(class) as usize..count as usize];
                order.extend(
                    new.iter()
                        .filter_map(|call| self.unknown_operations.get(call)),
                );
            }
            used = &choice.used;
            order.push(self.answered[choice.operation as usize].operation);
        }
        order
    }
}

/// The set of placed operations. In order of their calls it is a prefix and a few beyond, and only the few are compared: a
/// history with a hundred thousand operations of one key would otherwise remember as many sets of that size.
struct Placed {
    bits: Vec<u64>,
    /// Every bit before this word is set.
    full: usize,
    /// No bit from this word on is set.
    end: usize,
    /// How many of the operations have a rank.
    ranked: usize,
}

/// A set of placed operations, comparable with others of the same search.
#[derive(PartialEq, Eq, Hash)]
struct Window {
    full: usize,
    bits: Box<[u64]>,
}

impl Placed {
    fn new(operations: usize) -> Self {
        Self {
            bits: vec![0; operations.div_ceil(64)],
            full: 0,
            end: 0,
            ranked: 0,
        }
    }

    fn add(&mut self, operation: u32, ranked: bool) {
        self.ranked += usize::from(ranked);
        let word = operation as usize / 64;
        self.bits[word] |= 1 << (operation % 64);
        self.end = self.end.max(word + 1);
        while self.bits.get(self.full) == Some(&u64::MAX) {
            self.full += 1;
        }
    }

    fn remove(&mut self, operation: u32, ranked: bool) {
        self.ranked -= usize::from(ranked);
        let word = operation as usize / 64;
        self.bits[word] &= !(1 << (operation % 64));
        self.full = self.full.min(word);
        while self.end > 0 && self.bits[self.end - 1] == 0 {
            self.end -= 1;
        }
    }

    fn window(&self) -> Window {
        Window {
            full: self.full,
            bits: self.bits[self.full.min(self.end)..self.end].into(),
        }
    }
}
