//! What a node shows of the memory of a group's machine.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use skep_machine::state_machine::{Memory, StateMachine};

/// The memory of one machine as it was after its last call, for whoever asks; 0 of 0 for one that keeps none in a sandbox.
#[derive(Debug, Default)]
pub(crate) struct MemoryGauge {
    used: AtomicU64,
    limit: AtomicU64,
}

impl MemoryGauge {
    pub(crate) fn set(&self, machine: &dyn StateMachine) {
        let memory = machine.memory().unwrap_or_default();
        self.used.store(memory.used_bytes, Relaxed);
        self.limit.store(memory.limit_bytes, Relaxed);
    }

    pub(crate) fn get(&self) -> Option<Memory> {
        let memory = Memory {
            used_bytes: self.used.load(Relaxed),
            limit_bytes: self.limit.load(Relaxed),
        };
        (memory.limit_bytes != 0).then_some(memory)
    }
}
