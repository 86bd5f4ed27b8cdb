//! Histories made by chance: good ones, good ones with a lie in them, and small ones judged by brute force as well.

use skep_checker::indexed::IndexedVerdict;
use skep_checker::kv::{self, Register, parse};
use skep_checker::{Limits, Outcome, Place, RawOperation, Reply, Verdict, Via, indexed, text, wgl};

use crate::brute_force;
use crate::simulate::Simulation;
use crate::xorshift::Xorshift;

fn printed(history: &[RawOperation]) -> String {
    let lines: Vec<_> = history.iter().map(ToString::to_string).collect();
    lines.join("\n")
}

fn any_simulation(random: &mut Xorshift, operations: usize) -> Simulation {
    Simulation {
        clients: 1 + random.below(12) as usize,
        keys: 1 + random.below(6),
        values: 1 + random.below(50),
        operations,
        unknown: random.below(15),
        all_kinds: true,
    }
}

#[test]
fn good_histories_are_accepted() {
    let mut answered = 0;
    for seed in 0..400 {
        let random = &mut Xorshift::new(seed);
        let mut history = any_simulation(random, 250).run(random);
        // Clients are told only the index.
        if seed % 2 == 0 {
            for place in history
                .iter_mut()
                .filter_map(|operation| operation.place.as_mut())
            {
                place.offset = None;
            }
        }
        let report = kv::check(&history, Limits::default()).unwrap();
        assert!(
            report.is_linearizable(),
            "seed {seed}: {report}\n{}",
            printed(&history)
        );
        assert!(report.indexed.is_some(), "seed {seed}");
        answered += history
            .iter()
            .filter(|operation| is_answered(operation))
            .count();
    }
    assert!(answered > 60_000, "{answered}");
}

/// A third of all answers is lost, and that on one key. Such a history may be too much, but it is not rejected.
#[test]
fn a_history_full_of_holes_is_not_rejected() {
    let mut decided = 0;
    for seed in 0..100 {
        let random = &mut Xorshift::new(seed);
        let history = Simulation {
            unknown: 20,
            keys: 1,
            ..any_simulation(random, 250)
        }
        .run(random);
        let report = kv::check(&history, Limits { steps: 200_000 }).unwrap();
        let undecided = |verdict: &Verdict| matches!(verdict, Verdict::Undecided { .. });
        let by_index = match report.indexed.as_ref() {
            Some(IndexedVerdict::Ordered(verdict)) => verdict,
            other => panic!("seed {seed}: {other:?}"),
        };
        assert!(
            [&report.blind, by_index]
                .iter()
                .all(|verdict| verdict.is_linearizable() || undecided(verdict)),
            "seed {seed}: {report}\n{}",
            printed(&history)
        );
        decided += usize::from(report.blind.is_linearizable());
    }
    println!("decided {decided} of 100");
    assert!(decided >= 80, "{decided}");
}

fn is_answered(operation: &RawOperation) -> bool {
    matches!(operation.outcome, Outcome::Ok(_))
}

#[test]
fn one_lie_in_a_good_history_is_found() {
    let mut lies = [0; LIES.len()];
    for seed in 0..400 {
        let random = &mut Xorshift::new(seed);
        let mut history = Simulation {
            unknown: 3,
            keys: 20 + random.below(20),
            values: 1000,
            ..any_simulation(random, 150)
        }
        .run(random);
        let lie = seed as usize % LIES.len();
        let (name, tell) = LIES[lie];
        let Some(operation) = tell(&mut history, random) else {
            continue;
        };
        let report = kv::check(&history, Limits::default()).unwrap();
        assert!(
            !report.is_linearizable(),
            "seed {seed}: {name} in {operation} was not found\n{}",
            printed(&history)
        );
        lies[lie] += 1;
    }
    assert!(lies.iter().all(|told| *told > 15), "{lies:?}");
}

/// Changes an answer so that no order explains it any more, and says which.
type Lie = fn(&mut [RawOperation], &mut Xorshift) -> Option<String>;

const LIES: [(&str, Lie); 6] = [
    ("a value that was never written", |history, random| {
        tell(history, random, "get ", |reply| {
            matches!(reply, Reply::Ok(_)).then(|| Reply::ok("never written"))
        })
    }),
    ("a version that was never given", |history, random| {
        tell(history, random, "gets ", |reply| {
            matches!(reply, Reply::Ok(_)).then(|| Reply::ok("999999 5"))
        })
    }),
    ("a number off by a million", |history, random| {
        tell(history, random, "incr ", |reply| {
            let Reply::Ok(bytes) = reply else {
                return None;
            };
            let number: i64 = str::from_utf8(bytes.as_slice()).ok()?.parse().ok()?;
            Some(Reply::ok((number + 1_000_000).to_string()))
        })
    }),
    ("a change acknowledged twice", |history, random| {
        let reply = some(history, random, changed)?;
        let reply = history[reply].outcome.clone();
        let other = some(history, random, |operation| {
            changed(operation) && operation.outcome != reply
        })?;
        history[other].outcome = reply;
        Some(history[other].to_string())
    }),
    ("an index before the begin", |history, random| {
        let at = some(history, random, |operation| {
            changed(operation) && operation.call > 100
        })?;
        history[at].place = Some(Place::new(1, 0));
        Some(history[at].to_string())
    }),
    ("a missing key", |history, random| {
        let at = some(history, random, |operation| {
            operation.input.as_slice().starts_with(b"get ")
                && operation.via != Via::Stale
                && matches!(operation.outcome, Outcome::Ok(Reply::Ok(_)))
            // The key was set before, and nobody deletes it.
        })?;
        let key = history[at].input.as_slice()[4..].to_vec();
        let deletes = |operation: &RawOperation| {
            operation.input.as_slice() == [b"delete ", &key[..]].concat()
        };
        if history.iter().any(deletes) {
            return None;
        }
        let set = history.iter().any(|operation| {
            changed(operation) && operation.ret < history[at].call && {
                let mut words = operation.input.as_slice().split(|byte| *byte == b' ');
                words.nth(1) == Some(&key)
            }
        });
        history[at].outcome = Outcome::Ok(Reply::rejected(404, "there is no such key"));
        set.then(|| history[at].to_string())
    }),
];

fn changed(operation: &RawOperation) -> bool {
    matches!(&operation.outcome, Outcome::Ok(Reply::Ok(bytes)) if bytes.as_slice().starts_with(b"OK "))
}

fn some(
    history: &[RawOperation],
    random: &mut Xorshift,
    wanted: impl Fn(&RawOperation) -> bool,
) -> Option<usize> {
    let fitting: Vec<_> = (0..history.len())
        .filter(|at| wanted(&history[*at]))
        .collect();
    let bound = fitting.len() as u64;
    (bound != 0).then(|| fitting[random.below(bound) as usize])
}

fn tell(
    history: &mut [RawOperation],
    random: &mut Xorshift,
    verb: &str,
    lie: impl Fn(&Reply) -> Option<Reply>,
) -> Option<String> {
    let lie = |operation: &RawOperation| match &operation.outcome {
        Outcome::Ok(reply) if operation.input.as_slice().starts_with(verb.as_bytes()) => lie(reply),
        _ => None,
    };
    let at = some(history, random, |operation| lie(operation).is_some())?;
    history[at].outcome = Outcome::Ok(lie(&history[at])?);
    Some(history[at].to_string())
}

/// Small histories of one key, most of them with something exchanged.
fn small(seed: u64) -> Vec<RawOperation> {
    let random = &mut Xorshift::new(seed);
    let mut history = Simulation {
        clients: 2 + random.below(4) as usize,
        keys: 1,
        values: 1 + random.below(3),
        operations: 2 + random.below(6) as usize,
        unknown: random.below(40),
        all_kinds: false,
    }
    .run(random);
    let vague = random.percent(50);
    for _ in 0..random.below(8) {
        let len = history.len() as u64;
        let one = random.below(len) as usize;
        let other = random.below(len) as usize;
        let ([one, other], true) = ([one, other], one != other) else {
            continue;
        };
        match random.below(6) {
            0 => {
                let outcome = history[one].outcome.clone();
                if is_answered(&history[one]) == is_answered(&history[other]) {
                    history[one].outcome = history[other].outcome.clone();
                    history[other].outcome = outcome;
                }
            }
            1 => {
                let place = history[one].place;
                if is_answered(&history[one]) && is_answered(&history[other]) {
                    history[one].place = history[other].place;
                    history[other].place = place;
                }
            }
            2 => {
                let call = history[one].call;
                if history[other].ret >= call && history[one].ret >= history[other].call {
                    history[one].call = history[other].call;
                    history[other].call = call;
                }
            }
            3 => {
                // It returns sooner, which takes orders away.
                let (call, ret) = (history[one].call, history[one].ret);
                history[one].ret = call + random.below(ret - call + 1);
            }
            4 => {
                let shift = random.below(6);
                history[one].call += shift;
                history[one].ret += shift;
            }
            _ => {
                if let Outcome::Ok(Reply::Ok(bytes)) = &mut history[one].outcome {
                    let text = String::from_utf8_lossy(bytes.as_slice());
                    let digit = char::from(b'0' + random.below(6) as u8);
                    let text = text.replace(|char: char| char.is_ascii_digit(), &digit.to_string());
                    *bytes = text.into();
                }
            }
        }
    }
    if vague {
        for place in history
            .iter_mut()
            .filter_map(|operation| operation.place.as_mut())
        {
            place.offset = None;
        }
    }
    history
}

#[test]
fn small_histories_are_judged_as_by_brute_force() {
    let mut blind = [0; 2];
    let mut by_index = [0; 2];
    let mut unknown = 0;
    for seed in 0..40_000 {
        let history = small(seed);
        // What was exchanged may be an answer to something else.
        let Ok(operations) = parse::parse(&history) else {
            continue;
        };
        let expected = brute_force::linearizable(&operations);
        let verdict = wgl::check(&Register, &operations, Limits::default());
        assert_eq!(
            verdict.is_linearizable(),
            expected,
            "seed {seed}: brute force says {expected}; {verdict}\n{}",
            printed(&history)
        );
        assert!(!matches!(verdict, Verdict::Undecided { .. }));
        blind[usize::from(expected)] += 1;

        let expected = brute_force::linearizable_by_index(&operations);
        let verdict = indexed::check(&Register, &operations, Limits::default()).unwrap();
        assert_eq!(
            verdict.is_linearizable(),
            expected,
            "seed {seed}: brute force says {expected} by index; {verdict}\n{}",
            printed(&history)
        );
        by_index[usize::from(expected)] += 1;
        unknown += operations
            .iter()
            .filter(|operation| operation.outcome == Outcome::Unknown)
            .count();
    }
    println!("[bad, good]: blind {blind:?}, by index {by_index:?}; {unknown} unknown operations");
    assert!(
        blind.iter().chain(&by_index).all(|judged| *judged > 4000),
        "{blind:?} {by_index:?}"
    );
    assert!(unknown > 10_000, "{unknown}");
}

/// The operation that is named is the first that nothing can be said for: without what returned later the history is still
/// bad, and without its own return it is good.
#[test]
fn the_operation_that_is_named_is_the_first_that_cannot_be_placed() {
    let mut named = 0;
    for seed in 0..60_000 {
        let history = small(seed);
        let Ok(operations) = parse::parse(&history) else {
            continue;
        };
        let Verdict::NotLinearizable(why) = wgl::check(&Register, &operations, Limits::default())
        else {
            continue;
        };
        let stuck = operations
            .iter()
            .find(|operation| operation.id == why.stuck);
        let stuck = stuck.expect("an operation of the history");
        // What has not returned by then may take effect, and has the answer that it will get.
        let until = |included: bool| {
            let mut until: Vec<_> = operations.clone();
            until.retain(|operation| operation.call <= stuck.ret);
            for operation in &mut until {
                let answered = matches!(operation.outcome, Outcome::Ok(_));
                let late = operation.ret > stuck.ret || (!included && operation.id == stuck.id);
                if answered && late {
                    operation.ret = u64::MAX;
                }
            }
            until
        };
        assert!(
            !brute_force::linearizable(&until(true)),
            "seed {seed}: {why}\n{}",
            printed(&history)
        );
        assert!(why.order.iter().all(|id| *id != why.stuck));
        named += 1;
    }
    assert!(named > 2000, "{named}");
}

#[test]
fn a_history_survives_being_printed() {
    for seed in 0..50 {
        let random = &mut Xorshift::new(seed);
        let history = Simulation {
            all_kinds: false,
            ..any_simulation(random, 60)
        }
        .run(random);
        assert_eq!(text::parse(&printed(&history)).unwrap(), history);
    }
}
