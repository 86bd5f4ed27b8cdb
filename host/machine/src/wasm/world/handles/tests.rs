use std::collections::HashSet;

use super::*;
use crate::wasm::world::resources::{OutputStream, Pollable};

/// The import that gives what keeps a place.
const KEEPER: u32 = 7;

/// A table as wasmtime has it, after its source.
#[derive(Default)]
struct Wasmtimes {
    next: usize,
    slots: Vec<Result<(u32, u32), usize>>,
}

impl Wasmtimes {
    fn give(&mut self, number: u32, origin: u32) -> u32 {
        let at = self.next;
        if at == self.slots.len() {
            self.slots.push(Err(at + 1));
        }
        self.next = std::mem::replace(&mut self.slots[at], Ok((number, origin))).unwrap_err();
        at as u32
    }

    fn take_back(&mut self, at: u32, origin: u32) {
        let former = std::mem::replace(&mut self.slots[at as usize], Err(self.next));
        assert_eq!(former.unwrap().1, origin, "another type");
        self.next = at as usize;
    }

    fn find(&self, number: u32) -> (u32, u32) {
        let at = self
            .slots
            .iter()
            .position(|slot| matches!(slot, Ok((one, _)) if *one == number));
        let at = at.unwrap();
        (at as u32, self.slots[at].unwrap().1)
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Give { origin, number, at } => assert_eq!(self.give(number, origin), at),
            Step::TakeBack { origin, at } => self.take_back(at, origin),
        }
    }

    /// What is where, and the places that the next handles will be given.
    fn seen(&self) -> (Vec<Option<(u32, u32)>>, Vec<usize>) {
        let mut live = self.slots.iter().map(|slot| slot.ok()).collect::<Vec<_>>();
        while live.last() == Some(&None) {
            live.pop();
        }
        let mut next = vec![self.next];
        while next.len() < 64 {
            let last = next[next.len() - 1];
            next.push(
                self.slots
                    .get(last)
                    .map_or(last + 1, |slot| slot.unwrap_err()),
            );
        }
        (live, next)
    }
}

/// An instance: what the host knows, and what wasmtime has.
#[derive(Default)]
struct Guest {
    known: Handles,
    has: Wasmtimes,
}

impl Guest {
    fn give(&mut self, origin: u32) -> u32 {
        let number = self.known.give::<Pollable>(origin, 0).rep();
        self.has.give(number, origin);
        number
    }

    fn take_back(&mut self, number: u32) {
        let (at, origin) = self.has.find(number);
        self.has.take_back(at, origin);
        self.known.take_back(number);
    }

    fn follow(&mut self, of: &Self) -> usize {
        let steps = self.known.steps_to(&of.known, KEEPER);
        let count = steps.len();
        steps.into_iter().for_each(|step| self.has.step(step));
        self.known = of.known.clone();
        assert_eq!(self.has.seen(), of.has.seen());
        count
    }
}

/// Numbers that look like chance.
fn chance(seed: &mut u64) -> usize {
    *seed = seed
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407);
    (*seed >> 33) as usize
}

#[test]
fn any_table_becomes_any_other_to_the_order_of_its_free_places() {
    let mut seed = 1;
    for _ in 0..2_000 {
        let (mut machine, mut fork) = (Guest::default(), Guest::default());
        // From one start they go apart, and the fork follows again and again.
        for _ in 0..4 {
            for guest in [&mut machine, &mut fork] {
                for _ in 0..chance(&mut seed) % 12 {
                    let alive = guest.known.order.len();
                    match chance(&mut seed) % 5 {
                        0..3 if alive < 20 => {
                            guest.give(chance(&mut seed) as u32 % 3);
                        }
                        _ if alive > 0 => {
                            let number = guest.known.order[chance(&mut seed) % alive];
                            guest.take_back(number);
                        }
                        _ => {}
                    }
                }
            }
            fork.follow(&machine);
            assert_eq!(fork.follow(&machine), 0);
        }
    }
}

#[test]
fn what_a_query_took_is_taken_back_and_no_more() {
    let (mut machine, mut fork) = (Guest::default(), Guest::default());
    let given = (0..500).map(|_| machine.give(1)).collect::<Vec<_>>();
    given
        .iter()
        .step_by(3)
        .for_each(|number| machine.take_back(*number));
    assert!(fork.follow(&machine) >= 500);
    for _ in 0..3 {
        fork.give(0);
        fork.give(2);
    }
    assert_eq!(fork.follow(&machine), 6);
}

#[test]
fn no_two_handles_that_are_alive_have_one_number() {
    let mut handles = Handles::default();
    let numbers = [1, 1, 2].map(|thing| handles.give::<OutputStream>(0, thing).rep());
    assert_eq!(numbers.into_iter().collect::<HashSet<_>>().len(), 3);
    assert_eq!(handles.take_back(numbers[1]), Some(1));
    assert_eq!(handles.take_back(numbers[1]), None);
    let again = handles.give::<OutputStream>(0, 2);
    assert_eq!((again.rep(), handles.thing(&again)), (numbers[1], Some(2)));
}

#[test]
fn what_is_given_back_the_last_first_leaves_nothing() {
    let mut handles = Handles::default();
    assert!(handles.are_none() && handles.can_be_had(|_| false));
    let [one, other] = [1, 2].map(|thing| handles.give::<OutputStream>(0, thing).rep());
    assert!(!handles.are_none() && !handles.can_be_had(|_| false) && handles.can_be_had(|_| true));
    handles.take_back(other);
    handles.take_back(one);
    assert!(handles.are_none());
    // Another order is seen in what comes after.
    let [one, other] = [1, 2].map(|thing| handles.give::<OutputStream>(0, thing).rep());
    handles.take_back(one);
    handles.take_back(other);
    assert!(!handles.are_none() && handles.can_be_had(|_| true));
}

/// A call that a handle is lent for: its events, and before which of them it goes.
fn lend(guest: &mut Guest, gives: &[bool], goes: usize) {
    guest.known.lend();
    let lent = guest.has.give(LENT, 9);
    for (at, gives) in gives.iter().enumerate() {
        if at == goes {
            guest.has.take_back(lent, 9);
        }
        match guest.known.order.first().copied() {
            Some(number) if !gives => guest.take_back(number),
            _ => {
                guest.give(1);
            }
        }
    }
    if goes >= gives.len() {
        guest.has.take_back(lent, 9);
    }
    guest.known.end_call();
}

#[test]
fn what_is_given_beside_a_lent_handle_is_found_out() {
    let (mut found, mut lost) = (0, 0);
    for before in 0..4 {
        for gives in 0..32_u32 {
            for events in 0..5 {
                for goes in 0..=events {
                    let mut machine = Guest::default();
                    (0..before).for_each(|_| {
                        machine.give(1);
                    });
                    let gives = (0..events)
                        .map(|at| gives >> at & 1 == 1)
                        .collect::<Vec<_>>();
                    lend(&mut machine, &gives, goes);
                    if let Some(count) = machine.known.unsettled() {
                        assert!(!machine.known.can_be_had(|_| true));
                        let seen = machine.has.seen();
                        let places = (0..count)
                            .map(|_| machine.has.give(0, KEEPER))
                            .collect::<Vec<_>>();
                        places
                            .iter()
                            .rev()
                            .for_each(|at| machine.has.take_back(*at, KEEPER));
                        assert_eq!(machine.has.seen(), seen);
                        machine.known.found(&places);
                    }
                    // What is not found out is never taken for known.
                    if machine.known.can_be_had(|_| true) {
                        Guest::default().follow(&machine);
                        found += 1;
                    } else {
                        // What is lent is given back at the end, unless somebody writes that by hand.
                        assert!(goes < events, "{gives:?} beside {before}");
                        lost += 1;
                    }
                }
            }
        }
    }
    assert!(found > 3 * lost, "{found} {lost}");
}

#[test]
fn what_a_handle_is_lent_for_and_nothing_else_leaves_no_trace() {
    let mut handles = Handles::default();
    handles.lend();
    handles.end_call();
    assert!(handles.are_none());
    // With anything beside it, nobody knows at first.
    handles.lend();
    let number = handles.give::<Pollable>(0, 0).rep();
    handles.take_back(number);
    handles.end_call();
    assert!(!handles.are_none() && !handles.can_be_had(|_| true));
    handles.found(&[7]);
    assert!(!handles.can_be_had(|_| true));
}

#[test]
fn what_is_noted_beside_a_lent_handle_is_bounded() {
    let mut handles = Handles::default();
    handles.lend();
    for _ in 0..10_000 {
        let number = handles.give::<Pollable>(0, 0).rep();
        handles.take_back(number);
    }
    let noted = handles.lent.as_ref().map(|lent| lent.beside.len());
    assert_eq!(noted, Some(MAX_BESIDE + 1));
    handles.end_call();
    assert!(handles.unsettled().is_none() && !handles.can_be_had(|_| true));
}

#[test]
fn handles_come_back_from_what_was_kept_of_them() {
    let mut seed = 5;
    for _ in 0..200 {
        let mut machine = Guest::default();
        for _ in 0..chance(&mut seed) % 30 {
            let alive = machine.known.order.len();
            match chance(&mut seed) % 3 {
                2 if alive > 0 => {
                    let number = machine.known.order[chance(&mut seed) % alive];
                    machine.take_back(number);
                }
                _ => {
                    machine.give(chance(&mut seed) as u32 % 3);
                }
            }
        }
        assert_eq!(Handles::resumed(&machine.known.keep()), machine.known);
    }
}
