//! Clients that propose as fast as they are answered.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use hdrhistogram::Histogram;
use skep::Outcome;
use skep::clock::{Stopwatch, timeout};
use skep_tests::seed::Seed;
use tokio::task::JoinSet;

use crate::subject::{Client, Subject};

/// Clients that write every key before anything is measured.
const FILLING: usize = 64;
/// Values are random numbers below this, written with [`VALUE_BYTES`] digits. Not more than [`Seed`] has bits.
const VALUES: u64 = 1 << 53;
/// Length of each value.
const VALUE_BYTES: usize = 100;
/// Decimal digits that latencies are kept with: an error of a thousandth.
const DIGITS: u8 = 3;

/// What clients do, and for how long.
pub struct Workload {
    /// Distinct keys.
    pub keys: u64,
    /// Time before anything is measured.
    pub warm_up: Duration,
    /// Time that is measured.
    pub measured: Duration,
}

/// What was measured with one number of clients.
pub struct Cell {
    /// Latencies of the commands that began in the measured time, in microseconds.
    pub latencies: Histogram<u64>,
    /// From the beginning of the measured time to the acknowledgement of the last of those commands. So a command that
    /// hangs makes the rate worse, not better.
    pub elapsed: Duration,
    /// Syncs of the leader's log in that time.
    pub syncs: u64,
    /// All acknowledged commands, those before the measured time too.
    pub acknowledged: u64,
}

const WARMING_UP: u8 = 0;
const MEASURING: u8 = 1;
const ENDING: u8 = 2;

impl Workload {
    /// Writes every key once, so that every cell works on a state of the same size. Says how many commands that took.
    pub async fn fill(&self, subject: &impl Subject) -> anyhow::Result<u64> {
        let mut tasks = JoinSet::new();
        for (client, first) in subject.clients(FILLING).await?.into_iter().zip(0..) {
            let keys = (first..self.keys).step_by(FILLING);
            tasks.spawn(async move {
                for key in keys {
                    put(&client, key, 0).await?;
                }
                anyhow::Ok(())
            });
        }
        while let Some(task) = tasks.join_next().await {
            task.context("a client failed")??;
        }
        Ok(self.keys)
    }

    /// Runs one cell.
    pub async fn run<S: Subject>(&self, subject: &S, clients: usize) -> anyhow::Result<Cell> {
        let leader = subject.leader().await?;
        let phase = Arc::new(AtomicU8::new(WARMING_UP));
        let mut tasks = JoinSet::new();
        for (client, number) in subject.clients(clients).await?.into_iter().zip(1..) {
            let seed = Seed::new(number);
            tasks.spawn(work(client, seed, self.keys, Arc::clone(&phase)));
        }
        for_a_time(self.warm_up, &mut tasks).await?;
        let syncs = subject.syncs(leader).await?;
        let watch = Stopwatch::start();
        phase.store(MEASURING, Relaxed);
        for_a_time(self.measured, &mut tasks).await?;
        phase.store(ENDING, Relaxed);

        let mut latencies = Histogram::new(DIGITS)?;
        let mut acknowledged = 0;
        while let Some(task) = tasks.join_next().await {
            let done = task.context("a client failed")??;
            latencies.add(done.latencies)?;
            acknowledged += done.acknowledged;
        }
        let elapsed = watch.elapsed();
        let syncs = subject.syncs(leader).await? - syncs;
        let now = subject.leader().await?;
        ensure!(
            now == leader,
            "node {leader} led and then node {now}: the machine is too busy to measure anything"
        );
        Ok(Cell {
            latencies,
            elapsed,
            syncs,
            acknowledged,
        })
    }
}

/// What one client did.
struct Done {
    latencies: Histogram<u64>,
    acknowledged: u64,
}

async fn work(
    client: impl Client,
    mut seed: Seed,
    keys: u64,
    phase: Arc<AtomicU8>,
) -> anyhow::Result<Done> {
    let mut done = Done {
        latencies: Histogram::new(DIGITS)?,
        acknowledged: 0,
    };
    loop {
        let began_in = phase.load(Relaxed);
        if began_in == ENDING {
            return Ok(done);
        }
        let (key, value) = (seed.below(keys), seed.below(VALUES));
        let watch = Stopwatch::start();
        put(&client, key, value).await?;
        let latency = watch.elapsed();
        done.acknowledged += 1;
        if began_in == MEASURING {
            let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
            done.latencies.record(micros.max(1))?;
        }
    }
}

async fn put(client: &impl Client, key: u64, value: u64) -> anyhow::Result<()> {
    let command = Bytes::from(format!("put key-{key:05} {value:0VALUE_BYTES$}"));
    match client.propose(command).await? {
        Outcome::Reply(_) => Ok(()),
        other => bail!("the machine did not store a value: {other:?}"),
    }
}

/// Lets clients work for a time. One that ends before it was told to has failed.
async fn for_a_time(
    time: Duration,
    tasks: &mut JoinSet<anyhow::Result<Done>>,
) -> anyhow::Result<()> {
    match timeout(time, tasks.join_next()).await {
        None => Ok(()),
        Some(Some(ended)) => {
            ended.context("a client failed")??;
            bail!("a client ended by itself")
        }
        Some(None) => bail!("there are no clients"),
    }
}
