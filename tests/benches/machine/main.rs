//! What one machine costs beside its commands: how long a barrier holds it up, and what queries take from it.
//!
//! `cargo bench -p skep-tests --bench machine`; with a directory as its argument the snapshots go there, so that it can be
//! told which disk is measured. Figures are of one run on whatever machine runs it.

mod barrier;
mod queries;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, anyhow};
use skep::EntryContext;
use skep_core::id::LogIndex;
use skep_machine::wasm::{
    APPLY_THREAD_STACK_BYTES, Component, Engine, MachineLabel, Profile, WasmMachine,
};

fn main() -> anyhow::Result<()> {
    // `cargo bench` adds flags of its own.
    let dir = std::env::args().skip(1).find(|word| !word.starts_with('-'));
    let dir = match dir {
        Some(dir) => PathBuf::from(dir),
        None => std::env::temp_dir(),
    };
    let run = move || {
        barrier::run(&dir)?;
        queries::run()
    };
    let thread = std::thread::Builder::new().stack_size(APPLY_THREAD_STACK_BYTES);
    thread
        .spawn(run)
        .context("a thread")?
        .join()
        .map_err(|_| anyhow!("it panicked"))?
}

/// A key-value machine, in memory enough for the largest state that is measured.
fn machine() -> anyhow::Result<WasmMachine> {
    let component = Component::compile(&Engine::new()?, skep_examples::KV)?;
    let profile = Profile {
        memory_bytes: 1 << 30,
        ..Profile::default()
    };
    let label = MachineLabel::default();
    Ok(WasmMachine::new(
        Arc::new(component),
        profile,
        context(0),
        label,
    )?)
}

fn context(index: u64) -> EntryContext {
    EntryContext {
        index: LogIndex(index),
        ..EntryContext::default()
    }
}
