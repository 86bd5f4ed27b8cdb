//! Whether the simulator finds defects: each is switched on in turn, and the first seeds are run with it.

use std::collections::BTreeMap;

use skep_core::planted::{Defect, plant};

use crate::nemesis::Fault;
use crate::scenario::{SECOND, Scenario};
use crate::soak::{Sum, soak};

/// How one defect fared.
#[derive(Debug)]
pub struct Hunt {
    /// Which.
    pub defect: Defect,
    /// Seeds run.
    pub seeds: u64,
    /// Seeds that found it.
    pub found: usize,
    /// By which promises, with how many seeds each.
    pub by: BTreeMap<&'static str, usize>,
    /// The first seed that found it.
    pub first: Option<u64>,
}

impl Hunt {
    /// Seeds of a thousand that find it.
    pub fn rate(&self) -> f64 {
        1000.0 * self.found as f64 / self.seeds.max(1) as f64
    }
}

/// Runs seeds from `first` on with the defect until `enough` have found it, or `most` have run.
pub fn hunt(defect: Defect, first: u64, threads: usize, most: u64, enough: usize) -> Hunt {
    let sum: Sum = soak(
        first,
        threads,
        || plant(Some(defect)),
        |seed| directed(defect, seed),
        |begun, failures| begun < most && failures < enough,
        |_| {},
    );
    let mut by = BTreeMap::new();
    for failure in sum.failures.values() {
        *by.entry(failure.violation.invariant).or_default() += 1;
    }
    Hunt {
        defect,
        seeds: sum.seeds + sum.failures.len() as u64,
        found: sum.failures.len(),
        first: sum.failures.keys().next().copied(),
        by,
    }
}

/// Some defects need a meeting of rare events. Their scenarios are what a seed draws, with the odds of those events raised.
fn directed(defect: Defect, seed: u64) -> Scenario {
    let mut scenario = Scenario::draw(seed);
    // Lives so short that two of them hand on equally many requests, and answers slow enough to come to the next.
    if defect == Defect::TokensRepeat {
        scenario.nodes = 3;
        scenario.groups = 1;
        scenario.voters = 3;
        scenario.clients = 8;
        scenario.think = SECOND / 10;
        scenario.disk = 150_000;
        scenario.delay = 5_000;
        scenario.fault = 2 * SECOND;
        scenario.faults = vec![Fault::Flap, Fault::DiskSlow, Fault::OneWay];
    }
    // Two decisions on their way to the log at once, and nodes that see more of the log than others when they look.
    if defect == Defect::LastDecisionCounts {
        scenario.nodes = 3;
        scenario.groups = 1;
        scenario.voters = 3;
        scenario.delay = 5_000;
        scenario.disk = 30_000;
        scenario.fault = SECOND;
        scenario.faults = vec![Fault::Upgrade, Fault::Kill, Fault::Campaign, Fault::OneWay];
    }
    // Nodes that cannot run what others can, all of them now and then, and processes that end after one of them could.
    if matches!(
        defect,
        Defect::GivesUpByMajority | Defect::VouchesForFormerLives
    ) {
        scenario.nodes = 3;
        scenario.groups = 1;
        scenario.voters = 3;
        scenario.clients = 4;
        scenario.think = SECOND;
        scenario.delay = 2_000;
        scenario.disk = 2_000;
        scenario.loss = 0;
        scenario.fault = 3 * SECOND;
        scenario.snapshot_entries = 60;
        scenario.faults = vec![Fault::Sick, Fault::Kill];
    }
    // Members that come and go, and nodes away while they go: the one that is removed hears of it late.
    if defect == Defect::RemovedLeaderServes {
        scenario.nodes = 5;
        scenario.groups = 2;
        scenario.voters = 3;
        scenario.fault = SECOND;
        scenario.faults = vec![
            Fault::Membership,
            Fault::Campaign,
            Fault::Transfer,
            Fault::Partition,
        ];
    }
    scenario
}
