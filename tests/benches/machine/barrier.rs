//! The pause of a barrier, by the size of the state.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use skep::StateMachine;
use skep::clock::Stopwatch;
use skep_core::form::Form;
use skep_core::outcome::Outcome;
use skep_log::{DiskVfs, GroupKey, LogPosition, SnapshotMeta, SnapshotStore};
use skep_machine::ToEnd;
use skep_machine::wasm::WasmMachine;

use crate::{context, machine};

/// Bytes of one value.
pub(crate) const VALUE: usize = 1 << 10;

/// Commands of one entry.
const ENTRY: usize = 64;

const ROUNDS: usize = 5;

/// What the parts of one barrier took.
#[derive(Default, Clone, Copy)]
struct Parts {
    save: Duration,
    restore: Duration,
    sync: Duration,
}

/// Prints the median of a few barriers for each size.
pub fn run(dir: &Path) -> anyhow::Result<()> {
    println!(
        "the pause of a barrier: key-value guest, values of {VALUE} bytes, median of {ROUNDS}"
    );
    println!("   state      save   restore     pause   |      sync   all in a row");
    for mebibytes in [1usize, 16, 256] {
        let dir = tempfile::tempdir_in(dir)?;
        let store = SnapshotStore::open_dir(Arc::new(DiskVfs), dir.path())?;
        let mut machine = machine()?;
        let mut index = fill(&mut machine, (mebibytes << 20) / VALUE)?;
        let mut rounds = Vec::new();
        let mut bytes = 0;
        for _ in 0..ROUNDS {
            index += 1;
            let parts;
            (parts, bytes) = barrier(&mut machine, &store, index)?;
            rounds.push(parts);
            index += 1;
            let applied = machine
                .apply(&context(index), &[Bytes::from_static(b"incr n 1")])
                .to_end()?;
            anyhow::ensure!(matches!(applied.outcomes[..], [Outcome::Reply(_)]));
        }
        let Parts {
            save,
            restore,
            sync,
        } = Parts {
            save: median(&rounds, |parts| parts.save),
            restore: median(&rounds, |parts| parts.restore),
            sync: median(&rounds, |parts| parts.sync),
        };
        println!(
            "{:>4} MiB {:>6.1} ms {:>6.1} ms {:>6.1} ms   | {:>6.1} ms      {:>6.1} ms",
            bytes >> 20,
            ms(save),
            ms(restore),
            ms(save + restore),
            ms(sync),
            ms(save + restore + sync)
        );
    }
    println!("the machine stands still for the pause; the sync goes on beside it");
    Ok(())
}

pub(crate) fn fill(machine: &mut WasmMachine, values: usize) -> anyhow::Result<u64> {
    let value = "x".repeat(VALUE);
    let mut index = 0;
    for first in (0..values).step_by(ENTRY) {
        index += 1;
        let commands: Vec<_> = (first..values.min(first + ENTRY))
            .map(|key| Bytes::from(format!("put key-{key} {value}")))
            .collect();
        let applied = machine.apply(&context(index), &commands).to_end()?;
        let refused = applied
            .outcomes
            .iter()
            .find(|outcome| !matches!(outcome, Outcome::Reply(_)));
        anyhow::ensure!(refused.is_none(), "a command failed: {refused:?}");
    }
    Ok(index)
}

fn barrier(
    machine: &mut WasmMachine,
    store: &SnapshotStore,
    index: u64,
) -> anyhow::Result<(Parts, u64)> {
    let schema = machine.describe().schema;
    let key = GroupKey {
        group: 1,
        incarnation: 1,
    };
    let position = LogPosition { index, term: 1 };
    let meta = SnapshotMeta {
        key,
        position,
        state: Bytes::new(),
        form: Form::Saved,
        schema,
        component: [0; 32],
    };
    let watch = Stopwatch::start();
    let mut saved = Vec::new();
    machine.save(&context(index), &mut saved).to_end()?;
    let sealed = store.seal(meta, saved.into())?;
    let save = watch.elapsed();
    machine
        .restore(&context(index), schema, sealed.guest())
        .to_end()?;
    let restore = watch.elapsed() - save;
    let watch = Stopwatch::start();
    let file = sealed.place()?;
    let sync = watch.elapsed();
    store.remove(key, position)?;
    let parts = Parts {
        save,
        restore,
        sync,
    };
    Ok((parts, file.size()))
}

fn median(rounds: &[Parts], part: impl Fn(&Parts) -> Duration) -> Duration {
    let mut times: Vec<_> = rounds.iter().map(part).collect();
    times.sort_unstable();
    times[times.len() / 2]
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
