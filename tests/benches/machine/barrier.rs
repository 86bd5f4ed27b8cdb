//! What a barrier costs, of either form, by the size of the state.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use skep::StateMachine;
use skep::clock::Stopwatch;
use skep_core::form::Form;
use skep_log::{DiskVfs, GroupKey, LogPosition, SnapshotMeta, SnapshotStore};
use skep_machine::ToEnd;
use skep_machine::wasm::WasmMachine;

use crate::queries::replies;
use crate::{context, machine};

/// Bytes of one value.
pub(crate) const VALUE: usize = 1 << 10;

/// Commands of one entry.
const ENTRY: usize = 64;

const ROUNDS: usize = 5;

const KEY: GroupKey = GroupKey {
    group: 1,
    incarnation: 1,
};

/// What one barrier took, of the saved form.
#[derive(Clone, Copy)]
struct Saved {
    save: Duration,
    restore: Duration,
    durable: Duration,
    bytes: u64,
}

/// What one barrier took that left an image.
#[derive(Clone, Copy)]
struct Imaged {
    pause: Duration,
    /// The longest entry that was applied while the image was taken.
    longest: Duration,
    durable: Duration,
    bytes: u64,
}

/// Prints the median of a few barriers for each size.
pub fn run(dir: &Path) -> anyhow::Result<()> {
    println!(
        "barriers: key-value guest, values of {VALUE} bytes, median of {ROUNDS}; entries of {ENTRY} puts while an image is taken"
    );
    println!(
        "            saved: pause (save + restore)  durable    file   | image: pause  longest entry  durable    file"
    );
    for mebibytes in [1usize, 16, 64, 200] {
        let dir = tempfile::tempdir_in(dir)?;
        let store = SnapshotStore::open_dir(Arc::new(DiskVfs), dir.path())?;
        let mut machine = machine()?;
        let values = (mebibytes << 20) / VALUE;
        let mut index = fill(&mut machine, values)?;
        let (mut saved, mut imaged) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            saved.push(save(&mut machine, &store, next(&mut index))?);
            put(&mut machine, next(&mut index), values)?;
            imaged.push(image(&mut machine, &store, &mut index, values)?);
        }
        println!(
            "{mebibytes:>4} MiB {:>16.1} ms ({:>5.1} + {:>6.1}) {:>6.0} ms {:>3} MiB   | {:>8.2} ms {:>11.2} ms {:>6.0} ms {:>3} MiB",
            ms(median(&saved, |one| one.save + one.restore)),
            ms(median(&saved, |one| one.save)),
            ms(median(&saved, |one| one.restore)),
            ms(median(&saved, |one| one.durable)),
            median(&saved, |one| one.bytes) >> 20,
            ms(median(&imaged, |one| one.pause)),
            ms(median(&imaged, |one| one.longest)),
            ms(median(&imaged, |one| one.durable)),
            median(&imaged, |one| one.bytes) >> 20,
        );
    }
    println!(
        "the machine stands still for a pause, and goes on beside the rest; durable: since the barrier began"
    );
    Ok(())
}

fn next(index: &mut u64) -> u64 {
    *index += 1;
    *index
}

/// An entry of commands that change values all over the memory.
fn put(machine: &mut WasmMachine, index: u64, values: usize) -> anyhow::Result<()> {
    let value = "y".repeat(VALUE);
    let key = |at: u64| index.wrapping_mul(0x9e37_79b9).wrapping_add(at * 7919) as usize % values;
    let commands: Vec<_> = (0..ENTRY as u64)
        .map(|at| Bytes::from(format!("put key-{} {value}", key(at))))
        .collect();
    let applied = machine.apply(&context(index), &commands).to_end()?;
    replies(applied.outcomes)
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
        replies(applied.outcomes)?;
    }
    Ok(index)
}

fn meta(machine: &WasmMachine, form: Form, index: u64) -> SnapshotMeta {
    SnapshotMeta {
        key: KEY,
        position: LogPosition { index, term: 1 },
        state: Bytes::new(),
        form,
        schema: machine.describe().schema,
        component: [0; 32],
    }
}

fn save(machine: &mut WasmMachine, store: &SnapshotStore, index: u64) -> anyhow::Result<Saved> {
    let meta = meta(machine, Form::Saved, index);
    let (schema, position) = (meta.schema, meta.position);
    let watch = Stopwatch::start();
    let mut saved = Vec::new();
    machine.save(&context(index), &mut saved).to_end()?;
    let saved = Bytes::from(saved);
    let save = watch.elapsed();
    machine
        .restore(&context(index), schema, saved.clone())
        .to_end()?;
    let restore = watch.elapsed() - save;
    let file = store.seal(meta, saved)?.place()?;
    let durable = watch.elapsed();
    store.remove(KEY, position)?;
    Ok(Saved {
        save,
        restore,
        durable,
        bytes: file.size(),
    })
}

fn image(
    machine: &mut WasmMachine,
    store: &SnapshotStore,
    index: &mut u64,
    values: usize,
) -> anyhow::Result<Imaged> {
    let meta = meta(machine, Form::Image, next(index));
    let position = meta.position;
    let watch = Stopwatch::start();
    let begun = machine.image(&context(*index)).to_end()?;
    let mut begun = begun.ok_or_else(|| anyhow::anyhow!("the machine has no image"))?;
    let pause = watch.elapsed();
    let mut longest = Duration::ZERO;
    let (bytes, durable) = std::thread::scope(|scope| {
        let taken = scope.spawn(|| -> anyhow::Result<_> {
            let file = store.seal(meta, begun.finish()?)?.place()?;
            Ok((file.size(), watch.elapsed()))
        });
        while !taken.is_finished() {
            let watch = Stopwatch::start();
            put(machine, next(index), values)?;
            longest = longest.max(watch.elapsed());
        }
        taken
            .join()
            .map_err(|_| anyhow::anyhow!("the image was not taken"))?
    })?;
    store.remove(KEY, position)?;
    Ok(Imaged {
        pause,
        longest,
        durable,
        bytes,
    })
}

fn median<T, V: Ord + Copy>(rounds: &[T], part: impl Fn(&T) -> V) -> V {
    let mut parts: Vec<_> = rounds.iter().map(part).collect();
    parts.sort_unstable();
    parts[parts.len() / 2]
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
