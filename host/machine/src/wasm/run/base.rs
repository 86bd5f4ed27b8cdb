//! What the instances of a machine start from.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use skep_core::id::ComponentId;
use skep_core::outcome::EntryContext;

use super::image::Image;
use crate::wasm::fault::Failure;
use crate::{LocalCode, ReadImage};

/// Where a journal starts.
#[derive(Clone, Debug)]
pub(crate) struct Base {
    /// The entry whose state it is.
    pub(crate) context: EntryContext,
    pub(crate) origin: Origin,
}

/// What an instance comes to the state of a base from.
#[derive(Clone, Debug)]
pub(crate) enum Origin {
    /// Nothing: the group begins.
    Founding,
    /// What a machine has saved, under this schema.
    Saved(u32, Bytes),
    Image(Image),
    /// An image that is kept elsewhere.
    Kept(Arc<Kept>),
}

/// An image that can be read again.
pub(crate) struct Kept {
    component: ComponentId,
    start: EntryContext,
    read: ReadImage,
}

impl Kept {
    pub(crate) fn new(image: &Image, read: ReadImage) -> Self {
        Self {
            component: image.component(),
            start: image.start(),
            read,
        }
    }

    pub(crate) fn read(&self) -> Result<Image, Failure> {
        let bytes = (self.read)().map_err(|error| {
            let reason = format!("the newest image of the machine cannot be read: {error}");
            Failure::local(LocalCode::Io, reason)
        })?;
        Image::read(self.component, bytes)
    }
}

impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kept").finish_non_exhaustive()
    }
}

impl Base {
    /// The context under which its instance starts.
    pub(crate) fn start(&self) -> EntryContext {
        match &self.origin {
            Origin::Founding | Origin::Saved(..) => self.context,
            Origin::Image(image) => image.start(),
            Origin::Kept(kept) => kept.start,
        }
    }
}

impl Base {
    /// The image that it is is kept elsewhere.
    pub(super) fn keep_elsewhere(&mut self, read: ReadImage) {
        if let Origin::Image(image) = &self.origin {
            self.origin = Origin::Kept(Arc::new(Kept::new(image, read)));
        }
    }
}
