//! What a machine saves, in memory.

use std::io::{self, Write};

use bytes::Bytes;
use skep_core::outcome::EntryContext;
use skep_machine::state_machine::{MachineError, StateMachine};

/// Saves a machine. None if this node has no memory for that, whatever the machine made of it: what a node lacks is no outcome
/// elsewhere.
pub(super) fn saved(
    machine: &mut dyn StateMachine,
    context: &EntryContext,
) -> Option<Result<Bytes, MachineError>> {
    let mut memory = Memory::default();
    let saved = machine.save(context, &mut memory);
    (!memory.is_exhausted).then(|| saved.map(|()| memory.bytes.into()))
}

/// Takes bytes, and notes a want of memory.
#[derive(Default)]
struct Memory {
    bytes: Vec<u8>,
    is_exhausted: bool,
}

impl Write for Memory {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // A vector that grows by itself ends the process where there is no memory.
        if self.bytes.try_reserve(bytes.len()).is_err() {
            self.is_exhausted = true;
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
