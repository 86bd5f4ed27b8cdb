//! What it costs to notice that replicas differ: the rolling hash over what each entry did.

use bytes::Bytes;
use skep::StateMachine;
use skep::clock::Stopwatch;
use skep_core::attestation::{Chain, Deed};
use skep_core::id::LogIndex;
use skep_machine::ToEnd;

use crate::{context, machine};

/// Commands of one entry.
const ENTRY: usize = 64;

/// Bytes of one command.
const COMMAND: usize = 100;

const ENTRIES: u64 = 2_000;

/// Prints what the hash takes of the time that a replica spends on an entry.
pub fn run() -> anyhow::Result<()> {
    let mut machine = machine()?;
    let mut entries = Vec::new();
    let watch = Stopwatch::start();
    for index in 1..=ENTRIES {
        let commands: Vec<_> = (0..ENTRY)
            .map(|ordinal| {
                let put = format!("put key-{} ", (index as usize * ENTRY + ordinal) % 1000);
                Bytes::from(format!("{put:x<COMMAND$}"))
            })
            .collect();
        let applied = machine.apply(&context(index), &commands).to_end()?;
        entries.push((commands.concat(), applied));
    }
    let apply = watch.elapsed();
    let mut chain = Chain::default();
    let watch = Stopwatch::start();
    for (index, (bytes, applied)) in (1..).zip(&entries) {
        let deed = Deed::of(bytes, &applied.outcomes, applied.fuel);
        chain.extend(LogIndex(index), deed);
    }
    let hash = watch.elapsed();
    let per_command =
        |time: std::time::Duration| time.as_secs_f64() * 1e9 / (ENTRIES as f64 * ENTRY as f64);
    let link = chain.link().unwrap_or_default();
    println!(
        "\nthe detector: {ENTRIES} entries of {ENTRY} commands of {COMMAND} bytes, key-value guest ({:02x}{:02x}…)",
        link[0], link[1]
    );
    println!("apply            {:>8.0} ns a command", per_command(apply));
    println!("hash             {:>8.0} ns a command", per_command(hash));
    println!(
        "of the throughput {:>7.2} %",
        100.0 * hash.as_secs_f64() / (apply + hash).as_secs_f64()
    );
    Ok(())
}
