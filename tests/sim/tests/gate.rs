//! The short form of the gate, without planted defects.

use skep_sim::founding::{self, Tally};
use skep_sim::stores::{self, Flaw};
use skep_sim::{Fault, Scenario, soak};

/// About two simulated hours.
const SEEDS: u64 = 16;
/// Foundings of clusters.
const FOUNDINGS: u64 = 1000;
/// Clusters whose stores go back.
const STORES: u64 = 2000;

// P-15, P-65, P-68
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
    let of_nodes = [Fault::Join, Fault::Retire, Fault::Replace, Fault::Rumour];
    assert!(
        of_nodes.iter().all(|fault| sum.faults.contains_key(fault)),
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

/// Never two clusters over one list, whatever happens meanwhile; and in quiet times whoever can be in a cluster is.
// P-74
#[test]
fn a_founding_is_whole_or_is_none() {
    let mut tally = Tally::default();
    for seed in 0..FOUNDINGS {
        match founding::run(seed) {
            Ok(run) => tally.add(run),
            Err(broken) => panic!("seed {seed}: {broken}"),
        }
    }
    assert_eq!(tally.runs, FOUNDINGS);
    let happened = [
        tally.foundings,
        tally.half_way,
        tally.wiped,
        tally.put_back,
        tally.differing,
        tally.waiting,
    ];
    assert!(happened.iter().all(|count| *count > 50), "{tally:?}");
}

/// Whoever remembers more of a store than it has refuses it, and nobody refuses one that only went on.
// P-94
#[test]
fn a_store_that_went_back_is_found_and_no_other() {
    let mut tally = stores::Tally::default();
    for seed in 0..STORES {
        match stores::run(seed, None) {
            Ok(run) => tally.add(run),
            Err(broken) => panic!("seed {seed}: {broken}"),
        }
    }
    let happened = [
        tally.cuts,
        tally.told,
        tally.put_back,
        tally.twins,
        tally.refused,
        tally.collected,
    ];
    assert!(happened.iter().all(|count| *count > 50), "{tally:?}");
    for flaw in Flaw::ALL {
        let found = (0..STORES).any(|seed| stores::run(seed, Some(flaw)).is_err());
        assert!(found, "{flaw:?} is not found");
    }
}
