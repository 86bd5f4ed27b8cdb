//! The guest of `guest.wat`, and how the tests talk to it.

use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use skep_core::id::{GroupId, LogIndex, Term};
use skep_core::outcome::{EntryContext, Outcome};
use skep_machine::wasm::{
    Component, Engine, Holdings, MachineLabel, Profile, Purpose, WasmMachine,
};
use skep_machine::{StateMachine, ToEnd};

/// One engine for all tests, as in a node.
pub static ENGINE: LazyLock<Engine> = LazyLock::new(|| Engine::new().unwrap());

/// With `initializer`, `queries` and `batch`.
pub static FULL: LazyLock<Arc<Component>> = LazyLock::new(|| compile(&full()));
/// As [`FULL`], and with a table that it might write to: so the host cannot have images of it.
pub static IMAGELESS: LazyLock<Arc<Component>> = LazyLock::new(|| {
    let text = full();
    let writes = "(table $t 1 funcref) (func (table.set $t (i32.const 0) (ref.null func)))";
    let memory = "(memory (export \"memory\") 2)";
    assert!(text.contains(memory));
    compile(&text.replacen(memory, &format!("{writes} {memory}"), 1))
});
/// With none of them.
pub static PLAIN: LazyLock<Arc<Component>> = LazyLock::new(|| compile(&text(&[], "", "0")));

const OPTIONAL: [&str; 3] = [
    "(instance $i (export \"init\" (func $init))) (export \"skep:machine/initializer@0.1.0\" (instance $i))",
    "(instance $q (export \"query\" (func $query))) (export \"skep:machine/queries@0.1.0\" (instance $q))",
    "(instance $b (export \"apply-batch\" (func $apply-batch))) (export \"skep:machine/batch@0.1.0\" (instance $b))",
];

/// The guest's text, with optional exports, first instructions of `describe`, and a number of answers too many.
pub fn text(optional: &[&str], describe: &str, too_many: &str) -> String {
    include_str!("guest.wat")
        .replace("⟨optional⟩", &optional.concat())
        .replace("⟨describe⟩", describe)
        .replace("⟨too-many⟩", too_many)
}

/// The text of [`FULL`].
pub fn full() -> String {
    text(&OPTIONAL, "", "0")
}

/// The text of a guest whose batches have the wrong number of answers.
pub fn miscounting() -> String {
    text(&OPTIONAL, "", "1")
}

pub fn compile(text: &str) -> Arc<Component> {
    compile_for(&ENGINE, text)
}

pub fn compile_for(engine: &Engine, text: &str) -> Arc<Component> {
    Arc::new(Component::compile(engine, &wat::parse_str(text).unwrap()).unwrap())
}

/// Limits small enough for every attack to end at once.
pub fn profile() -> Profile {
    Profile {
        command_fuel: 2_000_000,
        query_fuel: 2_000_000,
        snapshot_fuel: 10_000_000,
        memory_bytes: 64 << 20,
        snapshot_bytes: 4 << 20,
        ..Profile::default()
    }
}

pub fn context(index: u64) -> EntryContext {
    let mut entropy = [0x5a; 16];
    entropy[..8].copy_from_slice(&index.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    EntryContext {
        index: LogIndex(index),
        term: Term(3),
        now: 1_700_000_000_000_000_000 + index * 1_000_000,
        entropy,
    }
}

pub fn machine(component: &Arc<Component>) -> WasmMachine {
    let label = MachineLabel {
        group: GroupId(7),
        name: "test".into(),
    };
    // Whatever the budget is of the engine that it is for.
    let purpose = Purpose::Running;
    WasmMachine::start(component.clone(), profile(), context(0), label, purpose).unwrap()
}

/// An engine whose machines may copy nothing, so that there are no checkpoints to go back to.
pub fn without_checkpoints() -> Engine {
    let most = Holdings {
        mappings: 1,
        ..Holdings::of_this_system()
    };
    Engine::with_budget(most)
        .unwrap()
        .made_for(Purpose::Running)
}

/// Applies an entry of these commands.
pub fn apply(machine: &mut dyn StateMachine, index: u64, commands: &[&str]) -> Vec<Outcome> {
    let commands = commands
        .iter()
        .map(|command| Bytes::copy_from_slice(command.as_bytes()))
        .collect::<Vec<_>>();
    machine
        .apply(&context(index), &commands)
        .to_end()
        .unwrap()
        .outcomes
}

pub fn number(n: u64) -> Outcome {
    Outcome::Reply(Bytes::copy_from_slice(&n.to_le_bytes()))
}

pub fn query(machine: &mut dyn StateMachine, request: &str) -> Outcome {
    machine
        .query(&Bytes::copy_from_slice(request.as_bytes()))
        .to_end()
        .unwrap()
}

pub fn save(machine: &mut dyn StateMachine, index: u64) -> Bytes {
    let mut bytes = Vec::new();
    machine.save(&context(index), &mut bytes).to_end().unwrap();
    bytes.into()
}

/// Runs `test` on a stack as large as the host gives machines.
pub fn on_apply_thread(test: impl FnOnce() + Send + 'static) {
    let thread =
        std::thread::Builder::new().stack_size(skep_machine::wasm::APPLY_THREAD_STACK_BYTES);
    if let Err(panic) = thread.spawn(test).unwrap().join() {
        std::panic::resume_unwind(panic);
    }
}
