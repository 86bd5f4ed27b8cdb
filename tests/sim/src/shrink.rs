//! From a scenario that fails to a smaller one that fails in the same way.

use crate::scenario::{SECOND, Scenario};
use crate::soak::run;

/// Takes away what the failure does not need: time, groups, clients, kinds of faults, the roughness of network and disk.
/// Each step is kept if the same promise is still broken. `progress` hears of each smaller scenario.
///
/// Draws of chance shift when something is taken away, so the smaller run is another run; that it fails alike is all that
/// can be said.
pub fn shrink(scenario: Scenario, progress: impl Fn(&Scenario)) -> Scenario {
    let Err(failure) = run(scenario.clone(), 0) else {
        return scenario;
    };
    let invariant = failure.violation.invariant;
    let mut best = scenario;
    loop {
        let smaller = candidates(&best).into_iter().find(|candidate| {
            run(candidate.clone(), 0).is_err_and(|failure| failure.violation.invariant == invariant)
        });
        match smaller {
            Some(smaller) => {
                progress(&smaller);
                best = smaller;
            }
            None => return best,
        }
    }
}

/// Smaller scenarios, the smallest first.
fn candidates(scenario: &Scenario) -> Vec<Scenario> {
    let mut candidates = Vec::new();
    let mut offer = |change: &dyn Fn(&mut Scenario)| {
        let mut candidate = scenario.clone();
        change(&mut candidate);
        candidates.push(candidate);
    };
    if scenario.seconds > 10 {
        offer(&|smaller| smaller.seconds /= 2);
    }
    if scenario.groups > 1 {
        offer(&|smaller| smaller.groups = 1);
        offer(&|smaller| smaller.groups /= 2);
    }
    if scenario.clients > 1 {
        offer(&|smaller| smaller.clients = 1);
        offer(&|smaller| smaller.clients /= 2);
    }
    for at in 0..scenario.faults.len() {
        offer(&|smaller| {
            smaller.faults.remove(at);
        });
    }
    if scenario.nodes > 3 {
        offer(&|smaller| {
            smaller.nodes = 3;
            smaller.voters = smaller.voters.min(3);
        });
    }
    if scenario.loss > 0 {
        offer(&|smaller| smaller.loss = 0);
    }
    if scenario.duplicates > 0 {
        offer(&|smaller| smaller.duplicates = 0);
    }
    if scenario.unable > 0 {
        offer(&|smaller| smaller.unable = 0);
    }
    if scenario.delay > 1000 {
        offer(&|smaller| smaller.delay = 1000);
    }
    if scenario.disk > 1000 {
        offer(&|smaller| smaller.disk = 1000);
    }
    if scenario.seconds > 10 && scenario.seconds * SECOND > 20 * scenario.fault {
        offer(&|smaller| smaller.seconds = smaller.seconds * 3 / 4);
    }
    candidates
}
