//! What large histories cost, in steps of the model.

use skep_checker::kv::{self, Register, parse};
use skep_checker::{Limits, Outcome, RawOperation, Reply, Verdict, Via, wgl};

use crate::simulate::Simulation;
use crate::xorshift::Xorshift;

fn steps(verdict: &Verdict) -> (usize, u64) {
    match verdict {
        Verdict::Linearizable { operations, steps } => (*operations, *steps),
        other => panic!("{other}"),
    }
}

fn costs_at_most(steps_per_operation: u64, simulation: Simulation, seed: u64) {
    let history = simulation.run(&mut Xorshift::new(seed));
    let report = kv::check(&history, Limits::default()).unwrap();
    assert!(report.is_linearizable(), "seed {seed}: {report}");
    let (operations, taken) = steps(&report.blind);
    println!("{operations} operations, {taken} steps");
    assert!(
        taken <= steps_per_operation * operations as u64,
        "{operations} operations, {taken} steps"
    );
}

#[test]
fn many_keys_and_clients_cost_little() {
    let simulation = Simulation {
        clients: 64,
        keys: 100,
        values: 1_000_000,
        operations: 100_000,
        unknown: 1,
        all_kinds: false,
    };
    costs_at_most(20, simulation, 1);
}

#[test]
fn one_key_and_one_client_cost_two_steps_an_operation() {
    let simulation = Simulation {
        clients: 1,
        keys: 1,
        values: 1_000_000,
        operations: 100_000,
        unknown: 0,
        all_kinds: false,
    };
    costs_at_most(2, simulation, 2);
}

#[test]
fn sixty_four_clients_on_one_key_are_decided() {
    for seed in 0..5 {
        let simulation = Simulation {
            clients: 64,
            keys: 1,
            values: 1_000_000,
            operations: 5_000,
            unknown: 0,
            all_kinds: false,
        };
        costs_at_most(400, simulation, seed);
    }
}

#[test]
fn many_unknown_outcomes_are_decided() {
    for seed in 0..5 {
        let simulation = Simulation {
            clients: 8,
            keys: 10,
            values: 1_000_000,
            operations: 3_000,
            unknown: 8,
            all_kinds: false,
        };
        costs_at_most(2_000, simulation, seed);
    }
}

/// A thousand increments of unknown outcome, and a reader that sees some of them happen.
#[test]
fn equal_unknown_operations_are_counted_and_not_told_apart() {
    let mut history: Vec<RawOperation> = Vec::new();
    let mut note = |via, input: &str, call, ret, outcome| {
        let id = history.len() as u64 + 1;
        history.push(RawOperation {
            id,
            client: id,
            via,
            input: input.to_owned().into(),
            call,
            ret,
            outcome,
            place: None,
        });
    };
    for at in 0..1000 {
        note(Via::Log, "incr a", at, at, Outcome::Unknown);
    }
    for (at, seen) in [3, 3, 500, 501, 1000].into_iter().enumerate() {
        let time = 2000 + 2 * at as u64;
        let seen = Outcome::Ok(Reply::ok(format!("{seen}")));
        note(Via::Read, "get a", time, time + 1, seen);
    }
    let report = kv::check(&history, Limits::default()).unwrap();
    assert!(report.is_linearizable(), "{report}");
    if let Some(last) = history.last_mut() {
        last.outcome = Outcome::Ok(Reply::ok("1001"));
    }
    let report = kv::check(&history, Limits::default()).unwrap();
    assert!(
        matches!(report.blind, Verdict::NotLinearizable(_)),
        "{report}"
    );
}

#[test]
fn a_search_that_is_too_long_is_given_up_and_says_so() {
    let simulation = Simulation {
        clients: 20,
        keys: 1,
        values: 2,
        operations: 400,
        unknown: 0,
        all_kinds: false,
    };
    let history = simulation.run(&mut Xorshift::new(7));
    let operations = parse::parse(&history).unwrap();
    let verdict = wgl::check(&Register, &operations, Limits { steps: 100 });
    assert!(
        matches!(verdict, Verdict::Undecided { steps: 100, .. }),
        "{verdict}"
    );
    assert!(verdict.to_string().contains("raise the limit"), "{verdict}");
}
