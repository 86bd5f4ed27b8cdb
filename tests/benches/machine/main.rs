//! What one machine costs beside its commands: how long a barrier holds it up, what queries and commands that fail take from
//! it, and what it takes to notice that replicas differ.
//!
//! `cargo bench -p skep-tests --bench machine`; the names of parts choose some of them (`barrier`, `queries`, `poison`,
//! `detector`), and a directory as an argument takes the snapshots, so that it can be told which disk is measured. Figures are of one run on whatever machine runs it.

mod barrier;
mod detector;
mod first_fault;
mod poison;
mod queries;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, anyhow};
use skep::EntryContext;
use skep_core::id::LogIndex;
use skep_machine::wasm::{
    APPLY_THREAD_STACK_BYTES, Component, Engine, MachineLabel, Profile, WasmMachine,
};

const PARTS: [&str; 4] = ["barrier", "queries", "poison", "detector"];

fn main() -> anyhow::Result<()> {
    // `cargo bench` adds flags of its own.
    let words = std::env::args()
        .skip(1)
        .filter(|word| !word.starts_with('-'));
    let (parts, dirs): (Vec<_>, Vec<_>) = words.partition(|word| PARTS.contains(&word.as_str()));
    let dir = dirs.first().map_or_else(std::env::temp_dir, PathBuf::from);
    let run = move || {
        let is_chosen = |part: &str| parts.is_empty() || parts.iter().any(|chosen| chosen == part);
        for part in PARTS.into_iter().filter(|part| is_chosen(part)) {
            match part {
                "barrier" => barrier::run(&dir)?,
                "queries" => queries::run()?,
                "poison" => {
                    poison::run(&component()?)?;
                    first_fault::run()?;
                }
                _ => detector::run()?,
            }
        }
        Ok(())
    };
    let thread = std::thread::Builder::new().stack_size(APPLY_THREAD_STACK_BYTES);
    thread
        .spawn(run)
        .context("a thread")?
        .join()
        .map_err(|_| anyhow!("it panicked"))?
}

fn component() -> anyhow::Result<Arc<Component>> {
    let component = Component::compile(&Engine::new()?, skep_examples::KV)?;
    Ok(Arc::new(component))
}

/// A key-value machine, in memory enough for the largest state that is measured.
fn machine() -> anyhow::Result<WasmMachine> {
    let profile = Profile {
        memory_bytes: 1 << 30,
        ..Profile::default()
    };
    let label = MachineLabel::default();
    Ok(WasmMachine::new(component()?, profile, context(0), label)?)
}

fn context(index: u64) -> EntryContext {
    EntryContext {
        index: LogIndex(index),
        ..EntryContext::default()
    }
}
