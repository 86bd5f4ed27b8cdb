//! What the tests share: an engine, contexts, chance from a seed.

use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use skep_core::id::{GroupId, LogIndex, Term};
use skep_core::outcome::EntryContext;
use skep_machine::wasm::{
    APPLY_THREAD_STACK_BYTES, Component, Engine, MachineLabel, Profile, WasmMachine,
};
use skep_machine::{StateMachine, ToEnd};

pub static ENGINE: LazyLock<Engine> = LazyLock::new(|| Engine::new().unwrap());

pub fn compile(bytes: &[u8]) -> Arc<Component> {
    Arc::new(Component::compile(&ENGINE, bytes).unwrap())
}

/// SplitMix64: small, and the same on every platform.
pub struct Random(pub u64);

impl Random {
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.word() % bound
    }
}

/// The context of the entry at `index`, the same for every replica.
pub fn context(index: u64) -> EntryContext {
    let mut entropy = [0; 16];
    let mut random = Random(index);
    entropy[..8].copy_from_slice(&random.word().to_le_bytes());
    entropy[8..].copy_from_slice(&random.word().to_le_bytes());
    EntryContext {
        index: LogIndex(index),
        term: Term(1),
        now: 1_800_000_000_000_000_000 + index * 1_000_000,
        entropy,
    }
}

pub fn machine(component: &Arc<Component>, profile: &Profile) -> WasmMachine {
    let label = MachineLabel {
        group: GroupId(7),
        name: "test".into(),
    };
    WasmMachine::new(component.clone(), profile.clone(), context(0), label).unwrap()
}

/// What the machine saves.
pub fn save(machine: &mut WasmMachine, context: &EntryContext) -> Bytes {
    let mut bytes = Vec::new();
    machine.save(context, &mut bytes).to_end().unwrap();
    bytes.into()
}

/// The image of the machine; none if it can have none.
pub fn image(machine: &mut WasmMachine, context: &EntryContext) -> Option<Bytes> {
    let begun = machine.image(context).to_end().unwrap();
    begun.map(|mut begun| begun.finish().unwrap())
}

/// Runs `test` on a stack as large as the host gives machines.
pub fn on_apply_thread<T: Send + 'static>(test: impl FnOnce() -> T + Send + 'static) -> T {
    let thread = std::thread::Builder::new().stack_size(APPLY_THREAD_STACK_BYTES);
    thread
        .spawn(test)
        .unwrap()
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
