//! Operations of unknown outcome, and how many of them an order has used.

use std::collections::HashMap;
use std::hash::Hash;

use crate::model::Model;

use super::events::At;

/// The unknown operations with one input. They are interchangeable, and the one called first is used first, because it
/// could stand wherever a later one stands.
pub(super) struct Class<I> {
    pub(super) input: I,
    /// Where in the list they are called, in order.
    pub(super) calls: Vec<At>,
}

/// Sorts calls of unknown outcome into classes, in order of their first calls.
pub(super) fn classes<I: Clone + Eq + Hash>(calls: Vec<(At, I)>) -> Vec<Class<I>> {
    let mut calls = calls;
    calls.sort_by_key(|(at, _)| *at);
    let mut classes: Vec<Class<I>> = Vec::new();
    let mut known: HashMap<I, usize> = HashMap::new();
    for (at, input) in calls {
        let class = *known.entry(input.clone()).or_insert(classes.len());
        match classes.get_mut(class) {
            Some(class) => class.calls.push(at),
            None => classes.push(Class {
                input,
                calls: vec![at],
            }),
        }
    }
    classes
}

/// How many operations of each class were used: pairs of class and count, in order of the class, without zeros.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(super) struct Used(Vec<(u32, u32)>);

impl Used {
    /// How many of a class.
    pub(super) fn of(&self, class: u32) -> u32 {
        match self.0.binary_search_by_key(&class, |&(class, _)| class) {
            Ok(at) => self.0[at].1,
            Err(_) => 0,
        }
    }

    /// The classes of which any is used, with how many.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, u32)> {
        self.0.iter().copied()
    }

    /// One more of a class.
    pub(super) fn with(&self, class: u32) -> Self {
        let mut used = self.0.clone();
        match used.binary_search_by_key(&class, |&(class, _)| class) {
            Ok(at) => used[at].1 += 1,
            Err(at) => used.insert(at, (class, 1)),
        }
        Self(used)
    }

    /// Whether it uses of no class more than another does.
    pub(super) fn within(&self, other: &Self) -> bool {
        self.0.len() <= other.0.len()
            && self
                .0
                .iter()
                .all(|&(class, count)| count <= other.of(class))
    }
}

/// The widest states of one kind that were reached, each with the least uses that led to it.
pub(super) struct Reached<S>(Vec<(S, Used)>);

impl<S> Default for Reached<S> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<S: Clone> Reached<S> {
    /// Whether the state with these uses is not covered by one that was added before; adds it, if so.
    pub(super) fn add<M: Model<State = S>>(&mut self, model: &M, state: &S, used: &Used) -> bool {
        let covers = |wider: &(S, Used), narrower: (&S, &Used)| {
            wider.1.within(narrower.1) && model.covers(&wider.0, narrower.0)
        };
        if self.0.iter().any(|known| covers(known, (state, used))) {
            return false;
        }
        let new = (state.clone(), used.clone());
        self.0.retain(|known| !covers(&new, (&known.0, &known.1)));
        self.0.push(new);
        true
    }
}
