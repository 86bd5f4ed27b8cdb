//! How many commands three local nodes take, and how long each waits.
//!
//! ```sh
//! cargo bench -p skep-tests --bench cluster -- --seconds 3 --clients 1,64,256 --only wasm
//! ```
//!
//! The same commands, `put KEY VALUE` with values of 100 bytes and random keys, go to three machines:
//!
//! * `native`: the key-value machine as Rust in the host, on three `MultiNode`s in this process;
//! * `wasm`: the same source as a component, on the same three `MultiNode`s. The difference between the two is the sandbox;
//! * `served`: the component in three `skep serve` processes, asked over the client protocol. The difference from `wasm`
//!   is what clients, their port and the catalogue cost.
//!
//! Nodes speak TCP on loopback, and every acknowledged command is on the disk of a majority: set `TMPDIR` to choose the
//! disk. A client has one command in flight at a time. When a machine has done its cells, every replica must have applied
//! exactly the commands that were acknowledged, and hold the same state; otherwise the figures are worth nothing and the
//! program fails.
//!
//! Without `--bench`, which `cargo bench` passes, or with `--test`, all this is only tried out for a moment.

mod build;
mod load;
mod native_kv;
mod nodes;
mod place;
mod report;
mod served;
mod subject;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::{Parser, ValueEnum};

use load::Workload;
use nodes::Nodes;
use served::Served;
use subject::Subject;

/// Distinct keys of the whole benchmark.
const KEYS: u64 = 10_000;
/// Clients at once: a node accepts a thousand connections, and a client of `served` has one.
const CLIENTS_MAX: usize = 1000;
/// Longest cell. Clients keep their histograms in memory, and nobody waits for more.
const SECONDS_MAX: f64 = 3600.0;

/// Commands per second and latencies of three local nodes.
#[derive(Parser, Debug)]
struct Arguments {
    /// Seconds that each cell is measured
    #[arg(long, default_value = "3", value_parser = seconds)]
    seconds: Duration,
    /// Seconds that each cell runs before it is measured
    #[arg(long, default_value = "1", value_parser = seconds)]
    warm_up: Duration,
    /// Concurrent clients, one cell for each number
    #[arg(long, default_value = "1,64,256", value_delimiter = ',', value_parser = clients)]
    clients: Vec<usize>,
    /// Machines to measure; all by default
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Machine>,
    /// Passed by `cargo bench`: measure
    #[arg(long, hide = true)]
    bench: bool,
    /// Try it out for a moment instead of measuring
    #[arg(long)]
    test: bool,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum Machine {
    Native,
    Wasm,
    Served,
}

/// What is measured.
struct Plan {
    machines: Vec<Machine>,
    clients: Vec<usize>,
    workload: Workload,
}

fn main() -> ExitCode {
    let plan = Arguments::parse().plan();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let measured = match runtime {
        Ok(runtime) => runtime.block_on(plan.run()),
        Err(error) => Err(anyhow::Error::new(error).context("cannot start the async runtime")),
    };
    match measured {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

impl Arguments {
    fn plan(self) -> Plan {
        if self.test || !self.bench {
            return Plan::smoke(self.only);
        }
        let every = || vec![Machine::Native, Machine::Wasm, Machine::Served];
        Plan {
            machines: if self.only.is_empty() {
                every()
            } else {
                self.only
            },
            clients: self.clients,
            workload: Workload {
                keys: KEYS,
                warm_up: self.warm_up,
                measured: self.seconds,
            },
        }
    }
}

impl Plan {
    /// Long enough to find out that it works. Without processes unless asked for, because their binary would have to be
    /// built first.
    fn smoke(only: Vec<Machine>) -> Self {
        const MOMENT: Duration = Duration::from_millis(100);
        Self {
            machines: if only.is_empty() {
                vec![Machine::Native, Machine::Wasm]
            } else {
                only
            },
            clients: vec![4],
            workload: Workload {
                keys: 100,
                warm_up: MOMENT,
                measured: MOMENT,
            },
        }
    }

    async fn run(&self) -> anyhow::Result<()> {
        if self.machines.contains(&Machine::Served) {
            build::skep()?;
        }
        report::header(&place::describe()?);
        for machine in &self.machines {
            let measured = match machine {
                Machine::Native => self.measure("native", Nodes::native().await?).await,
                Machine::Wasm => self.measure("wasm", Nodes::wasm().await?).await,
                Machine::Served => self.measure("served", Served::start().await?).await,
            };
            measured.with_context(|| format!("measuring the machine {machine:?}"))?;
        }
        Ok(())
    }

    async fn measure(&self, name: &str, subject: impl Subject) -> anyhow::Result<()> {
        let mut acknowledged = self.workload.fill(&subject).await?;
        for clients in &self.clients {
            let cell = self.workload.run(&subject, *clients).await?;
            acknowledged += cell.acknowledged;
            report::row(name, *clients, &cell);
        }
        verify(&subject.replicas().await?, acknowledged)?;
        subject.stop().await
    }
}

/// Every replica has applied what was acknowledged, once, and all are the same.
fn verify(replicas: &[String], acknowledged: u64) -> anyhow::Result<()> {
    for stats in replicas {
        let applied: u64 = stats
            .lines()
            .find_map(|line| line.strip_prefix("applied "))
            .and_then(|count| count.parse().ok())
            .with_context(|| format!("the machine does not say what it applied:\n{stats}"))?;
        ensure!(
            applied == acknowledged,
            "{acknowledged} commands were acknowledged, and a replica applied {applied}"
        );
        ensure!(
            *stats == replicas[0],
            "replicas differ:\n{}\n{stats}",
            replicas[0]
        );
    }
    println!(
        "  {} replicas are the same; each applied all {acknowledged} acknowledged commands once",
        replicas.len()
    );
    Ok(())
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    match Duration::try_from_secs_f64(seconds) {
        Ok(duration) if !duration.is_zero() && seconds <= SECONDS_MAX => Ok(duration),
        _ => Err(format!(
            "must be more than 0 and at most {SECONDS_MAX} seconds"
        )),
    }
}

fn clients(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(clients) if (1..=CLIENTS_MAX).contains(&clients) => Ok(clients),
        _ => Err(format!("must be a number from 1 to {CLIENTS_MAX}")),
    }
}
