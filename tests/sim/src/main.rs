//! Runs simulations: one seed, many, or for a while.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use skep_sim::founding::Tally;
use skep_sim::scenario::SECOND;
use skep_sim::stores::{self, Flaw};
use skep_sim::{Failure, Scenario, soak};

/// Simulates clusters under faults, and checks what must always hold at every step.
#[derive(Parser)]
struct Arguments {
    /// Runs this seed twice, compares, and shows the end of the trace if it fails.
    #[arg(long)]
    seed: Option<u64>,
    /// Runs so many seeds.
    #[arg(long)]
    seeds: Option<u64>,
    /// Runs seeds for so many minutes.
    #[arg(long)]
    minutes: Option<u64>,
    /// The first of the seeds.
    #[arg(long, default_value_t = 1)]
    first: u64,
    /// Threads; a seed is one thread's.
    #[arg(long)]
    threads: Option<usize>,
    /// The gate of the project: 250 simulated hours without a broken promise, one seed twice with the same trace, and each
    /// defect that can be planted found.
    #[arg(long)]
    gate: bool,
    /// Founds clusters only, and looks for the defects of that.
    #[arg(long)]
    founding: bool,
    /// Looks for the smallest scenario in which the seed still fails.
    #[arg(long)]
    shrink: bool,
    /// Lines of the trace that are shown.
    #[arg(long, default_value_t = 200)]
    lines: usize,
    /// Switches a defect on; `all` measures each of them.
    #[cfg(feature = "planted")]
    #[arg(long)]
    planted: Option<String>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // The core catches panics of a replica; their words come back as a broken promise. Where one seed is looked at, the
    // place of the panic is of interest too.
    if arguments.seed.is_none() {
        std::panic::set_hook(Box::new(|_| {}));
    }
    #[cfg(feature = "planted")]
    if let Some(name) = &arguments.planted {
        return match planted(name, &arguments) {
            true => ExitCode::SUCCESS,
            false => ExitCode::FAILURE,
        };
    }
    let ok = match arguments.seed {
        Some(seed) => replay(seed, &arguments),
        None if arguments.founding => founding(arguments.first),
        None if arguments.gate => gate(&arguments),
        None => many(&arguments),
    };
    if ok {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Simulated hours of the gate.
const GATE_HOURS: f64 = 250.0;
/// Seeds in which the gate looks for a planted defect, at the most. The rarest was first found by the 87th.
#[cfg(feature = "planted")]
const GATE_SEEDS: u64 = 4000;

/// Everything that must hold before a change lands.
fn gate(arguments: &Arguments) -> bool {
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

    let start = Instant::now();
    let minutes = AtomicU64::new(0);
    let sum = soak::soak(
        arguments.first,
        threads(arguments),
        || {},
        Scenario::draw,
        |_, failures| failures == 0 && minutes.load(Relaxed) < (60.0 * GATE_HOURS) as u64,
        |sum| minutes.store((60.0 * sum.hours()) as u64, Relaxed),
    );
    report(arguments, &sum, start.elapsed());
    let mut ok = sum.failures.is_empty();
    let digests: Vec<_> = (0..2)
        .map(|_| digest(&soak::run(Scenario::draw(arguments.first), 0)))
        .collect();
    println!(
        "seed {} twice: trace {:016x} and {:016x}",
        arguments.first, digests[0], digests[1]
    );
    ok &= digests[0] == digests[1];
    #[cfg(feature = "planted")]
    for defect in skep_core::planted::Defect::ALL {
        let threads = threads(arguments);
        let hunt = skep_sim::planted::hunt(defect, arguments.first, threads, GATE_SEEDS, 1);
        show(&hunt);
        ok &= hunt.found > 0;
    }
    ok &= founding(arguments.first);
    ok &= stores(arguments.first);
    println!(
        "gate {} after {:.0} s",
        if ok { "passed" } else { "FAILED" },
        start.elapsed().as_secs_f64()
    );
    ok
}

/// Foundings of clusters that the gate runs.
const FOUNDINGS: u64 = 60_000;

/// Founds clusters; none may be broken, and each planted defect has to be found.
fn founding(first: u64) -> bool {
    let mut tally = Tally::default();
    let mut ok = true;
    for seed in first..first + FOUNDINGS {
        match skep_sim::founding::run(seed) {
            Ok(run) => tally.add(run),
            Err(broken) => {
                println!("founding {seed} FAILED: {broken}");
                ok = false;
            }
        }
    }
    println!("{tally:?}");
    #[cfg(feature = "planted")]
    for defect in skep_core::planted::Defect::OF_FOUNDERS {
        skep_core::planted::plant(Some(defect));
        let seeds = first..first + FOUNDINGS;
        let two = |seed: &u64| {
            let run = skep_sim::founding::run(*seed);
            run.is_err_and(|broken| broken.starts_with("two clusters"))
        };
        let found: Vec<_> = seeds.filter(two).collect();
        skep_core::planted::plant(None);
        println!(
            "{defect:?}: {} of {FOUNDINGS} seeds, the first {:?}",
            found.len(),
            found.first()
        );
        ok &= !found.is_empty();
    }
    ok
}

/// Clusters whose stores go back that the gate runs.
const STORES: u64 = 20_000;

/// Sets stores back; each that lacks something is found and no other, and so is each flaw of the finding.
fn stores(first: u64) -> bool {
    let mut tally = stores::Tally::default();
    let mut ok = true;
    for seed in first..first + STORES {
        match stores::run(seed, None) {
            Ok(run) => tally.add(run),
            Err(broken) => {
                println!("stores {seed} FAILED: {broken}");
                ok = false;
            }
        }
    }
    println!("{tally:?}");
    for flaw in Flaw::ALL {
        let mut seeds = first..first + STORES;
        let found = seeds.find(|seed| stores::run(*seed, Some(flaw)).is_err());
        println!("{flaw:?}: the first {found:?}");
        ok &= found.is_some();
    }
    ok
}

fn digest(result: &Result<skep_sim::Report, Box<Failure>>) -> u64 {
    match result {
        Ok(report) => report.digest,
        Err(failure) => failure.digest,
    }
}

fn replay(seed: u64, arguments: &Arguments) -> bool {
    let mut scenario = Scenario::draw(seed);
    if arguments.shrink {
        scenario = skep_sim::shrink::shrink(scenario, |scenario| println!("{}", scenario.short()));
    }
    println!("{}", scenario.short());
    let first = soak::run(scenario.clone(), arguments.lines);
    let second = soak::run(scenario, 0);
    println!(
        "trace {:016x}, again {:016x}",
        digest(&first),
        digest(&second)
    );
    let same = digest(&first) == digest(&second);
    match first {
        Ok(report) => {
            println!("{report:#?}");
            same
        }
        Err(failure) => {
            for line in &failure.lines {
                println!("{line}");
            }
            println!(
                "FAILED after {:.3} s: {}",
                failure.at as f64 / SECOND as f64,
                failure.violation
            );
            false
        }
    }
}

/// Measures how many seeds find a defect.
#[cfg(feature = "planted")]
fn planted(name: &str, arguments: &Arguments) -> bool {
    use skep_core::planted::{Defect, plant};
    let chosen: Vec<_> = Defect::ALL
        .into_iter()
        .filter(|defect| name == "all" || format!("{defect:?}") == name)
        .collect();
    if let (Some(seed), [defect]) = (arguments.seed, &chosen[..]) {
        plant(Some(*defect));
        return replay(seed, arguments);
    }
    if chosen.is_empty() {
        println!("no such defect; there are {:?}", Defect::ALL);
    }
    let mut all = !chosen.is_empty();
    for defect in chosen {
        let most = arguments.seeds.unwrap_or(1000);
        let hunt = skep_sim::planted::hunt(
            defect,
            arguments.first,
            threads(arguments),
            most,
            usize::MAX,
        );
        show(&hunt);
        all &= hunt.found > 0;
    }
    all
}

#[cfg(feature = "planted")]
fn show(hunt: &skep_sim::planted::Hunt) {
    println!(
        "{:28} {:6.0} ‰ ({} of {} seeds, the first {:?}) {:?}",
        format!("{:?}", hunt.defect),
        hunt.rate(),
        hunt.found,
        hunt.seeds,
        hunt.first,
        hunt.by
    );
}

fn threads(arguments: &Arguments) -> usize {
    arguments
        .threads
        .or_else(|| std::thread::available_parallelism().ok().map(usize::from))
        .unwrap_or(1)
}

fn many(arguments: &Arguments) -> bool {
    let start = Instant::now();
    let limit = arguments
        .minutes
        .map(|minutes| Duration::from_secs(60 * minutes));
    let seeds = match limit {
        Some(_) => u64::MAX,
        None => arguments.seeds.unwrap_or(100),
    };
    let sum = soak::soak(
        arguments.first,
        threads(arguments),
        || {},
        Scenario::draw,
        |begun, failures| {
            begun < seeds && failures < 10 && limit.is_none_or(|limit| start.elapsed() < limit)
        },
        |_| {},
    );
    report(arguments, &sum, start.elapsed());
    sum.failures.is_empty()
}

fn report(arguments: &Arguments, sum: &soak::Sum, elapsed: Duration) {
    for (seed, failure) in &sum.failures {
        println!(
            "seed {seed} FAILED after {:.3} s: {}",
            failure.at as f64 / SECOND as f64,
            failure
                .violation
                .to_string()
                .chars()
                .take(600)
                .collect::<String>()
        );
    }
    println!(
        "{} seeds from {} on, {:.1} simulated hours in {:.0} s; {} restarts, {:?}; {} messages; {:?}; {} failures",
        sum.seeds,
        arguments.first,
        sum.hours(),
        elapsed.as_secs_f64(),
        sum.restarts,
        sum.faults,
        sum.messages,
        sum.counts,
        sum.failures.len()
    );
}
