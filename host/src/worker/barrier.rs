//! A barrier: the machine is saved, and restored from the bytes it wrote.

use bytes::Bytes;
use skep_core::outcome::EntryContext;
use skep_machine::state_machine::MachineError;

use super::calls::{Failed, Machine, failed};
use super::{Owner, memory};
use crate::clock::Stopwatch;

/// Saves the machine and rebuilds it from the bytes, which are in memory: whether a disk takes them is another matter, and no
/// reason to go on with the old heap. None if the machine cannot save or read back what it saved, which it then does on
/// every replica alike: it goes on without.
pub(super) fn pass(
    machine: &mut Machine,
    owner: &Owner,
    context: &EntryContext,
) -> Result<Option<Bytes>, Failed> {
    let schema = machine.schema();
    let watch = Stopwatch::start();
    let saved = memory::saved(&mut *machine.machine, context).ok_or_else(|| {
        let index = context.index;
        Failed::local(format!("there is no memory for the snapshot at {index}"))
    })?;
    machine.applied = context.index;
    let guest = match saved {
        Ok(guest) => guest,
        Err(error) => return degraded(owner, context, error).map(|()| None),
    };
    let save = watch.elapsed();
    if let Err(error) = machine.machine.restore(context, schema, guest.clone()) {
        return degraded(owner, context, error).map(|()| None);
    }
    let restore = watch.elapsed().saturating_sub(save);
    let (group, index, bytes) = (owner.key.group, context.index.0, guest.len());
    tracing::debug!(
        group,
        index,
        bytes,
        ?save,
        ?restore,
        "the machine has passed a barrier"
    );
    Ok(Some(guest))
}

fn degraded(owner: &Owner, context: &EntryContext, error: MachineError) -> Result<(), Failed> {
    match error {
        error @ MachineError::Guest { .. } => {
            let (group, name, index) = (owner.key.group, &owner.name, context.index.0);
            tracing::error!(group, name, index, %error, "no snapshot: the log of the group cannot be compacted");
            Ok(())
        }
        error @ MachineError::Local { .. } => Err(failed(error)),
    }
}
