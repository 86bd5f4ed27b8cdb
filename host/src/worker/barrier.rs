//! A barrier: the machine is saved, and restored from the bytes it wrote.

use std::io::{self, Write};

use bytes::Bytes;
use skep_core::outcome::EntryContext;
use skep_log::SealedSnapshot;
use skep_machine::state_machine::MachineError;

use super::Owner;
use super::calls::{Failed, Machine, failed};
use crate::clock::Stopwatch;
use crate::store::Disk;

/// Saves the machine and rebuilds it. The file is written and not durable yet; there is none if the machine cannot save or
/// read back what it saved, which it then does on every replica alike: it goes on without.
pub(super) fn pass(
    machine: &mut Machine,
    owner: &Owner,
    disk: &Disk,
    context: &EntryContext,
    state: Bytes,
) -> Result<Option<SealedSnapshot>, Failed> {
    let local = |error: &dyn std::fmt::Display| {
        Failed::local(format!(
            "the snapshot at {} was not written: {error}",
            context.index
        ))
    };
    let schema = machine.schema();
    let watch = Stopwatch::start();
    let writer = disk
        .create_snapshot(
            owner.key,
            (context.index, context.term),
            state,
            schema,
            machine.component(owner.component),
        )
        .map_err(|error| local(&error))?;
    let mut writer = Watched {
        writer,
        error: None,
    };
    let saved = machine.machine.save(context, &mut writer);
    if let Some(error) = writer.error {
        return Err(local(&error));
    }
    machine.applied = context.index;
    if let Err(error) = saved {
        return degraded(owner, context, error).map(|()| None);
    }
    let sealed = writer.writer.seal().map_err(|error| local(&error))?;
    let save = watch.elapsed();
    if let Err(error) = machine.machine.restore(context, schema, sealed.guest()) {
        return degraded(owner, context, error).map(|()| None);
    }
    let restore = watch.elapsed().saturating_sub(save);
    let (group, index, bytes) = (owner.key.group, context.index.0, sealed.mark().size);
    tracing::debug!(
        group,
        index,
        bytes,
        ?save,
        ?restore,
        "the machine has passed a barrier"
    );
    Ok(Some(sealed))
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

/// Notes an I/O error that the machine might report as its own failure: a full disk here is no outcome elsewhere.
struct Watched<W> {
    writer: W,
    error: Option<io::Error>,
}

impl<W: Write> Watched<W> {
    fn note<T>(&mut self, result: io::Result<T>) -> io::Result<T> {
        result.map_err(|error| {
            let copy = io::Error::new(error.kind(), error.to_string());
            self.error.get_or_insert(error);
            copy
        })
    }
}

impl<W: Write> Write for Watched<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.writer.write(bytes);
        self.note(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        let flushed = self.writer.flush();
        self.note(flushed)
    }
}
