//! How long a machine stands still for its first fault since a barrier, and what it has paid for that before.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use skep::clock::Stopwatch;
use skep::{Outcome, StateMachine};
use skep_machine::ToEnd;
use skep_machine::wasm::{
    Component, Engine, Holdings, MachineLabel, Profile, Purpose, WasmMachine,
};

use crate::context;

/// Bytes of one value.
const VALUE: usize = 1 << 10;

/// Entries between the barrier and the fault, of one command each.
const ENTRIES: u64 = 5_000;

/// Entries of a machine that works for a while and does not fail.
const MANY: u64 = 200_000;

/// An answer that is longer fails.
const REPLY_MAX: u32 = 4 << 10;

/// What is put.
#[derive(Clone, Copy)]
enum Load {
    NewKeys,
    OldKeys,
}

impl Load {
    fn command(self, n: u64, keys: u64) -> Bytes {
        let key = match self {
            Self::NewKeys => return format!("put new-{n} {n}").into(),
            // All over the state.
            Self::OldKeys => n.wrapping_mul(0x9e37_79b9_7f4a_7c15) % keys,
        };
        format!("put key-{key} {}", "y".repeat(VALUE)).into()
    }
}

/// Prints what a fault takes at once, and what entries take, without checkpoints and with them.
pub fn run() -> anyhow::Result<()> {
    let components = [without_room()?, Engine::new()?].map(|engine| {
        Component::compile(&engine.made_for(Purpose::Running), skep_examples::KV).map(Arc::new)
    });
    let [without, with] = components;
    let components = [("without", without?), ("with", with?)];
    println!("\nfirst fault {ENTRIES} entries after an image");
    println!("   state  load      checkpoints     entry     pause    gone back");
    for mebibytes in [16, 200] {
        for (name, load) in [("new keys", Load::NewKeys), ("old keys", Load::OldKeys)] {
            for (kind, component) in &components {
                let mut machine = Loaded::start(component, mebibytes << 20)?;
                machine.barrier()?;
                let each = machine.work(load, ENTRIES)?;
                let pause = machine.fail()?;
                let returns = machine.machine.returns();
                println!(
                    "{mebibytes:>4} MiB  {name:<9} {kind:<9} {:>8.2} µs {:>6.1} ms {returns:>9}",
                    each.as_secs_f64() * 1e6,
                    pause.as_secs_f64() * 1e3,
                );
            }
        }
    }
    println!("\nno fault: an entry of {MANY}");
    println!("   state  load      without    with");
    for mebibytes in [1, 16, 200] {
        for (name, load) in [("new keys", Load::NewKeys), ("old keys", Load::OldKeys)] {
            let machines = [0, 1].map(|at| Loaded::start(&components[at].1, mebibytes << 20));
            let [one, two] = machines;
            let mut machines = [one?, two?];
            let mut took = [Duration::ZERO; 2];
            // By turns, because the computer has other things to do as well.
            for turn in 0..20 {
                for at in [turn % 2, 1 - turn % 2] {
                    took[at] += machines[at].work(load, MANY / 20)? / 20;
                }
            }
            let [without, with] = took.map(|took| took.as_secs_f64() * 1e6);
            println!("{mebibytes:>4} MiB  {name:<9} {without:>6.2} µs {with:>6.2} µs");
        }
    }
    Ok(())
}

/// Machines of this engine may hold no copies, so there are no checkpoints of them.
fn without_room() -> anyhow::Result<Engine> {
    let most = Holdings {
        mappings: 1,
        ..Holdings::of_this_system()
    };
    Ok(Engine::with_budget(most)?)
}

struct Loaded {
    machine: WasmMachine,
    keys: u64,
    index: u64,
    put: u64,
}

impl Loaded {
    /// A machine with so many bytes of values, and one that is too long to be read.
    fn start(component: &Arc<Component>, bytes: usize) -> anyhow::Result<Self> {
        let profile = Profile {
            memory_bytes: 1 << 30,
            reply_bytes: REPLY_MAX,
            ..Profile::default()
        };
        let label = MachineLabel::default();
        let component = Arc::clone(component);
        let machine = WasmMachine::start(component, profile, context(0), label, Purpose::Running);
        let mut loaded = Self {
            machine: machine?,
            keys: (bytes / VALUE) as u64,
            index: 0,
            put: 0,
        };
        let value = "x".repeat(VALUE);
        for first in (0..loaded.keys).step_by(512) {
            let puts = first..(first + 512).min(loaded.keys);
            let puts = puts.map(|key| format!("put key-{key} {value}").into());
            loaded.apply(&puts.collect::<Vec<_>>())?;
        }
        let long = "x".repeat(2 * REPLY_MAX as usize);
        loaded.apply(&[format!("put long {long}").into()])?;
        Ok(loaded)
    }

    fn apply(&mut self, commands: &[Bytes]) -> anyhow::Result<Vec<Outcome>> {
        self.index += 1;
        let applied = self.machine.apply(&context(self.index), commands).to_end();
        Ok(applied?.outcomes)
    }

    /// The machine leaves an image, which is kept in a file, as a node does it.
    fn barrier(&mut self) -> anyhow::Result<()> {
        let begun = self.machine.image(&context(self.index)).to_end()?;
        let mut begun = begun.ok_or_else(|| anyhow::anyhow!("it has no image"))?;
        let file = tempfile::NamedTempFile::new()?;
        std::fs::write(file.path(), begun.finish()?)?;
        begun.kept(Box::new(move || Ok(std::fs::read(file.path())?.into())));
        Ok(())
    }

    /// What one entry takes.
    fn work(&mut self, load: Load, entries: u64) -> anyhow::Result<Duration> {
        let puts = (self.put..self.put + entries).map(|n| load.command(n, self.keys));
        let puts = puts.collect::<Vec<_>>();
        self.put += entries;
        let watch = Stopwatch::start();
        for put in puts {
            let outcomes = self.apply(&[put])?;
            anyhow::ensure!(matches!(outcomes[..], [Outcome::Reply(_)]), "{outcomes:?}");
        }
        Ok(watch.elapsed() / entries as u32)
    }

    /// One command fails, and another one comes behind it: what both take.
    fn fail(&mut self) -> anyhow::Result<Duration> {
        let watch = Stopwatch::start();
        let failed = self.apply(&[Bytes::from_static(b"get long")])?;
        let next = self.apply(&[Bytes::from_static(b"incr n 1")])?;
        let took = watch.elapsed();
        anyhow::ensure!(
            matches!(
                (&failed[..], &next[..]),
                ([Outcome::Fault(_)], [Outcome::Reply(_)])
            ),
            "{failed:?}, {next:?}"
        );
        Ok(took)
    }
}
