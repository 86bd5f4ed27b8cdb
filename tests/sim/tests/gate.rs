//! The short form of the gate, without planted defects.

use skep_sim::{Scenario, soak};

/// About two simulated hours.
const SEEDS: u64 = 16;

// P-15
#[test]
fn a_few_hours_break_no_promise() {
    let sum = soak::soak(
        1,
        2,
        || {},
        Scenario::draw,
        |begun, _| begun < SEEDS,
        |_| {},
    );
    for (seed, failure) in &sum.failures {
        println!("seed {seed}: {}", failure.violation);
    }
    assert!(sum.failures.is_empty());
    assert_eq!(sum.seeds, SEEDS);
    let counts = sum.counts;
    assert!(
        counts.acknowledged > 1000 && counts.reads > 100 && counts.elections > 50,
        "nothing happened: {counts:?}"
    );
    let saved = counts.snapshots - counts.images;
    assert!(
        saved > 100 && counts.images > 100,
        "barriers are of one form: {counts:?}"
    );
    assert!(
        sum.restarts > 20 && sum.faults.len() > 10,
        "{:?}",
        sum.faults
    );
}

#[test]
fn equal_seeds_give_equal_traces_and_others_do_not() {
    let digest = |seed| {
        soak::run(Scenario::draw(seed), 0)
            .map(|report| report.digest)
            .map_err(|failure| failure.violation.to_string())
    };
    assert_eq!(digest(3), digest(3));
    assert_ne!(digest(3), digest(4));
}
