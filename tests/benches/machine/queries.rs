//! What queries cost, beside commands and alone.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use bytes::Bytes;
use skep::StateMachine;
use skep::clock::Stopwatch;
use skep_core::outcome::Outcome;
use skep_machine::wasm::{APPLY_THREAD_STACK_BYTES, WasmMachine};
use skep_machine::{Reader, ToEnd};

use crate::{context, machine};

/// Commands of one entry.
const ENTRY: u64 = 16;

/// How long each case is measured.
const TIME: Duration = Duration::from_secs(2);

/// Prints commands and queries in a second, alone and together.
pub fn run() -> anyhow::Result<()> {
    println!("\nqueries: key-value guest, entries of {ENTRY} commands, one thread for each side");
    println!("                            commands/s    queries/s");
    let mut machine = machine()?;
    let mut index = 0;
    let alone = commands(&mut machine, &mut index)?;
    println!("commands, nobody asks     {alone:>12.0}            -");

    let mut reader = machine.wasm_reader();
    let watch = Stopwatch::start();
    ask(&mut reader)?;
    let first = watch.elapsed();
    let (mut asked, watch) = (0u64, Stopwatch::start());
    while watch.elapsed() < TIME {
        ask(&mut reader)?;
        asked += 1;
    }
    let rate = asked as f64 / watch.elapsed().as_secs_f64();
    println!("queries, nobody commands             - {rate:>12.0}");

    let (ended, asked) = (AtomicBool::new(false), AtomicU64::new(0));
    let (beside, rate) = std::thread::scope(|scope| -> anyhow::Result<_> {
        let asking = std::thread::Builder::new().stack_size(APPLY_THREAD_STACK_BYTES);
        let asking = asking.spawn_scoped(scope, || -> anyhow::Result<()> {
            while !ended.load(SeqCst) {
                ask(&mut reader)?;
                asked.fetch_add(1, SeqCst);
            }
            Ok(())
        })?;
        let watch = Stopwatch::start();
        let beside = commands(&mut machine, &mut index);
        let rate = asked.load(SeqCst) as f64 / watch.elapsed().as_secs_f64();
        ended.store(true, SeqCst);
        asking
            .join()
            .map_err(|_| anyhow::anyhow!("the reader panicked"))??;
        Ok((beside?, rate))
    })?;
    println!("both                      {beside:>12.0} {rate:>12.0}");
    println!(
        "the first query built the reader from {} entries in {:.0} ms; it was built {} times in all",
        index,
        first.as_secs_f64() * 1e3,
        reader.builds()
    );
    Ok(())
}

/// Commands in a second.
fn commands(machine: &mut WasmMachine, index: &mut u64) -> anyhow::Result<f64> {
    let watch = Stopwatch::start();
    let mut done = 0;
    while watch.elapsed() < TIME {
        *index += 1;
        let entry: Vec<_> = (0..ENTRY)
            .map(|ordinal| Bytes::from(format!("incr key-{} 1", (*index * ENTRY + ordinal) % 1000)))
            .collect();
        let applied = machine.apply(&context(*index), &entry).to_end()?;
        anyhow::ensure!(
            applied
                .outcomes
                .iter()
                .all(|outcome| matches!(outcome, Outcome::Reply(_)))
        );
        done += ENTRY;
        // As a host does, so that the journal does not grow for ever.
        if index.is_multiple_of(8192) {
            *index += 1;
            let mut bytes = Vec::new();
            machine.save(&context(*index), &mut bytes).to_end()?;
            machine
                .restore(&context(*index), machine.describe().schema, bytes.into())
                .to_end()?;
        }
    }
    Ok(done as f64 / watch.elapsed().as_secs_f64())
}

fn ask(reader: &mut dyn Reader) -> anyhow::Result<()> {
    let answer = reader.query(&Bytes::from_static(b"stats")).to_end()?;
    anyhow::ensure!(matches!(answer.outcome, Outcome::Reply(_)), "{answer:?}");
    Ok(())
}
