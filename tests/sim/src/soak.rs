//! Many simulations on several threads.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::invariant::{Counts, Violation};
use crate::nemesis::Fault;
use crate::scenario::{SECOND, Scenario};
use crate::world::{Failure, Report, World};

/// The sum of many runs.
#[derive(Debug, Default)]
pub struct Sum {
    /// Seeds that ran to their end.
    pub seeds: u64,
    /// Virtual microseconds.
    pub elapsed: u64,
    /// Starts of nodes that had run before.
    pub restarts: u64,
    /// How often each fault happened.
    pub faults: BTreeMap<Fault, u64>,
    /// What was counted.
    pub counts: Counts,
    /// Messages delivered.
    pub messages: u64,
    /// Seeds whose run broke a promise, with it.
    pub failures: BTreeMap<u64, Box<Failure>>,
}

impl Sum {
    /// Virtual hours.
    pub fn hours(&self) -> f64 {
        self.elapsed as f64 / SECOND as f64 / 3600.0
    }

    fn add(&mut self, report: &Report) {
        self.seeds += 1;
        self.elapsed += report.elapsed;
        self.restarts += report.restarts;
        self.messages += report.messages;
        for (fault, count) in &report.faults {
            *self.faults.entry(*fault).or_default() += count;
        }
        let (sum, more) = (&mut self.counts, &report.counts);
        sum.steps += more.steps;
        sum.elections += more.elections;
        sum.applies += more.applies;
        sum.commands += more.commands;
        sum.acknowledged += more.acknowledged;
        sum.reads += more.reads;
        sum.snapshots += more.snapshots;
        sum.images += more.images;
        sum.read_back += more.read_back;
        sum.given_up += more.given_up;
    }
}

/// Runs one scenario; a panic outside the core is a broken promise too.
pub fn run(scenario: Scenario, lines: usize) -> Result<Report, Box<Failure>> {
    catch_unwind(AssertUnwindSafe(|| World::new(scenario, lines).run())).unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
            .unwrap_or_default();
        Err(Box::new(Failure {
            violation: Violation {
                invariant: "no panic",
                text,
            },
            at: 0,
            digest: 0,
            lines: Vec::new(),
        }))
    })
}

/// Runs the seeds from `first` on while `go_on` says so (it is told how many have begun and how many failed).
/// `prepare` is called on each thread before it begins, `draw` makes a scenario of a seed.
pub fn soak(
    first: u64,
    threads: usize,
    prepare: impl Fn() + Sync,
    draw: impl Fn(u64) -> Scenario + Sync,
    go_on: impl Fn(u64, usize) -> bool + Sync,
    progress: impl Fn(&Sum) + Sync,
) -> Sum {
    let next = AtomicU64::new(0);
    let sum = Mutex::new(Sum::default());
    let lock = || sum.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                prepare();
                loop {
                    let failures = lock().failures.len();
                    let begun = next.fetch_add(1, Relaxed);
                    if !go_on(begun, failures) {
                        return;
                    }
                    let seed = first + begun;
                    let result = run(draw(seed), 0);
                    let mut sum = lock();
                    match result {
                        Ok(report) => sum.add(&report),
                        Err(failure) => {
                            sum.failures.insert(seed, failure);
                        }
                    }
                    progress(&sum);
                }
            });
        }
    });
    sum.into_inner()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}
