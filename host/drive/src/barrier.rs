//! A barrier: the machine is saved, and restored from the bytes it wrote; or its memory is written down as it is.

use std::fmt;
use std::io::{self, Write};

use bytes::Bytes;
use skep_core::form::Form;
use skep_core::id::LogIndex;
use skep_core::input::Input;
use skep_core::outcome::EntryContext;

use crate::driver::Driver;
use crate::listener::Listener;
use crate::state_machine::{ImageTaken, LocalCode, MachineError, ReadImage, StateMachine};

/// A machine at a barrier: what every replica goes on from at this entry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CanonicalPoint {
    /// The barrier entry.
    pub context: EntryContext,
    /// What the bytes are. The machine was rebuilt from those that it saved, and from no image.
    pub form: Form,
    /// Version of bytes that a machine saves.
    pub schema: u32,
    /// What the machine wrote, or its image.
    pub guest: Bytes,
}

/// An image of a machine at a barrier that is not taken to its end. The machine goes on meanwhile.
pub struct Imaging {
    context: EntryContext,
    schema: u32,
    taken: Box<dyn ImageTaken>,
}

impl Imaging {
    /// The barrier.
    pub fn index(&self) -> LogIndex {
        self.context.index
    }

    /// Takes the rest of it. Blocks its thread.
    ///
    /// # Errors
    /// Whatever is in the way is of this node: the core is told [`no_image`].
    pub fn finish(&mut self) -> Result<CanonicalPoint, MachineError> {
        Ok(CanonicalPoint {
            context: self.context,
            form: Form::Image,
            schema: self.schema,
            guest: self.taken.finish()?,
        })
    }

    /// The image can be read elsewhere from now on, until a later barrier.
    pub fn kept(self, read: ReadImage) {
        self.taken.kept(read);
    }
}

impl fmt::Debug for Imaging {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Imaging");
        shown
            .field("context", &self.context)
            .finish_non_exhaustive()
    }
}

/// What the core is told of a barrier at which this node can take no image.
pub fn no_image(index: LogIndex, error: &MachineError) -> Input {
    let reason = format!(
        "this node has no image of the machine, and keeps the log until the next snapshot: {error}"
    );
    Input::NoImage { index, reason }
}

impl<M: StateMachine> Driver<M> {
    /// Saves the machine and rebuilds it from the bytes, which are in memory: whether a disk takes them is another matter, and
    /// no reason to go on with the old heap.
    ///
    /// # Errors
    /// [`MachineError::Guest`]: the machine cannot save, or does not take what it has saved, on every replica alike. It goes on
    /// as it is. [`MachineError::Local`]: it must be dropped.
    pub async fn pass_barrier(
        &mut self,
        context: &EntryContext,
        listener: &mut impl Listener<M>,
    ) -> Result<CanonicalPoint, MachineError> {
        let passed = self.rebuild(context, listener).await;
        self.applied = context.index;
        match &passed {
            Ok(point) => listener.goes_on_from(Some(point)),
            Err(error @ MachineError::Guest { .. }) => {
                listener.no_snapshot(context, error);
                listener.goes_on_from(None);
            }
            Err(MachineError::Local { .. }) => {}
        }
        passed
    }

    async fn rebuild(
        &mut self,
        context: &EntryContext,
        listener: &mut impl Listener<M>,
    ) -> Result<CanonicalPoint, MachineError> {
        let schema = self.schema();
        let guest = self.save(context).await?;
        listener.saved(context, guest.len());
        self.machine.restore(context, schema, guest.clone()).await?;
        Ok(CanonicalPoint {
            context: *context,
            form: Form::Saved,
            schema,
            guest,
        })
    }

    /// Begins to write the machine's memory down. The machine goes on as it is, with an image or without.
    ///
    /// # Errors
    /// Whatever is in the way is of this node.
    pub(crate) async fn take_image(
        &mut self,
        context: &EntryContext,
        listener: &mut impl Listener<M>,
    ) -> Result<Imaging, MachineError> {
        let schema = self.schema();
        let begun = self.machine.image(context).await;
        self.applied = context.index;
        let none = || MachineError::Local {
            call: "image",
            code: LocalCode::Missing,
            reason: "the machine can have none".to_owned(),
        };
        match begun.and_then(|taken| taken.ok_or_else(none)) {
            Ok(taken) => Ok(Imaging {
                context: *context,
                schema,
                taken,
            }),
            Err(error) => {
                listener.no_image(context, &error);
                Err(error)
            }
        }
    }

    /// The whole state, in memory.
    ///
    /// # Errors
    /// [`MachineError::Local`] also if this node has no memory for it, whatever the machine made of that: what a node lacks is
    /// no outcome elsewhere.
    pub async fn save(&mut self, context: &EntryContext) -> Result<Bytes, MachineError> {
        let mut room = Room::default();
        let saved = self.machine.save(context, &mut room).await;
        if room.is_exhausted {
            return Err(MachineError::Local {
                call: "save",
                code: LocalCode::Memory,
                reason: format!("there is no memory for the state at {}", context.index),
            });
        }
        saved.map(|()| room.bytes.into())
    }
}

/// Takes bytes, and notes a want of memory.
#[derive(Default)]
struct Room {
    bytes: Vec<u8>,
    is_exhausted: bool,
}

impl Write for Room {
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
