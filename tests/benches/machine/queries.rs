//! What queries cost, alone and beside commands, by the size of the state.

use std::time::Duration;

use bytes::Bytes;
use skep::StateMachine;
use skep::clock::Stopwatch;
use skep_core::outcome::Outcome;
use skep_machine::wasm::WasmMachine;
use skep_machine::{Reader, ToEnd};

use crate::barrier::{VALUE, fill};
use crate::{context, machine};

/// Rounds of each case.
const ROUNDS: u64 = 2000;

/// Queries, or commands, that come at once.
const MANY: u64 = 64;

/// Prints the median cost of a query and of a command for each size, with everything on one thread.
pub fn run() -> anyhow::Result<()> {
    println!(
        "\nqueries: key-value guest, values of {VALUE} bytes, medians of {ROUNDS}, microseconds each"
    );
    println!(
        "   state   {:>10} {:>14} {:>14} {:>16} {:>14}",
        "get alone", "get after put", "64 after 64", "scan 100", "put, 64 a time"
    );
    for mebibytes in [1usize, 16, 200] {
        let keys = (mebibytes << 20) / VALUE;
        let mut machine = machine()?;
        let mut index = fill(&mut machine, keys)?;
        barrier(&mut machine, &mut index)?;
        let mut reader = machine.wasm_reader();
        let put = |machine: &mut WasmMachine, round: u64, index: &mut u64, count: u64| {
            *index += 1;
            let value = "x".repeat(VALUE);
            let commands = (0..count)
                .map(|n| {
                    Bytes::from(format!(
                        "put key-{} {value}",
                        (round * 7919 + n * 104_729) % keys as u64
                    ))
                })
                .collect::<Vec<_>>();
            replies(
                machine
                    .apply(&context(*index), &commands)
                    .to_end()?
                    .outcomes,
            )
        };
        let get = |round: u64| format!("get key-{}", round * 31_337 % keys as u64);

        let alone = median(|round| {
            let watch = Stopwatch::start();
            ask(&mut reader, &get(round))?;
            Ok(watch.elapsed())
        })?;
        let after_put = median(|round| {
            put(&mut machine, round, &mut index, 1)?;
            let watch = Stopwatch::start();
            ask(&mut reader, &get(round))?;
            Ok(watch.elapsed())
        })?;
        let many = median(|round| {
            put(&mut machine, round, &mut index, MANY)?;
            let watch = Stopwatch::start();
            (0..MANY).try_for_each(|n| ask(&mut reader, &get(round + n)))?;
            Ok(watch.elapsed() / MANY as u32)
        })?;
        let scan = median(|round| {
            put(&mut machine, round, &mut index, 1)?;
            let watch = Stopwatch::start();
            ask(&mut reader, "scan key-5 100")?;
            Ok(watch.elapsed())
        })?;
        let puts = median(|round| {
            let watch = Stopwatch::start();
            put(&mut machine, round, &mut index, MANY)?;
            Ok(watch.elapsed() / MANY as u32)
        })?;
        println!(
            "{mebibytes:>4} MiB   {alone:>10.1} {after_put:>14.1} {many:>14.1} {scan:>16.1} {puts:>14.1}"
        );
    }
    Ok(())
}

/// The median of what the rounds say, in microseconds.
fn median(mut round: impl FnMut(u64) -> anyhow::Result<Duration>) -> anyhow::Result<f64> {
    let mut rounds = (0..ROUNDS).map(&mut round).collect::<Result<Vec<_>, _>>()?;
    rounds.sort_unstable();
    Ok(rounds[rounds.len() / 2].as_secs_f64() * 1e6)
}

/// As a host has them, so that there is not much to replay.
fn barrier(machine: &mut WasmMachine, index: &mut u64) -> anyhow::Result<()> {
    *index += 1;
    let mut bytes = Vec::new();
    machine.save(&context(*index), &mut bytes).to_end()?;
    let schema = machine.describe().schema;
    machine
        .restore(&context(*index), schema, bytes.into())
        .to_end()?;
    Ok(())
}

fn ask(reader: &mut dyn Reader, request: &str) -> anyhow::Result<()> {
    let answer = reader
        .query(&Bytes::copy_from_slice(request.as_bytes()))
        .to_end()?;
    replies(vec![answer.outcome])
}

pub(crate) fn replies(outcomes: Vec<Outcome>) -> anyhow::Result<()> {
    let refused = outcomes
        .iter()
        .find(|outcome| !matches!(outcome, Outcome::Reply(_)));
    anyhow::ensure!(refused.is_none(), "{refused:?}");
    Ok(())
}
