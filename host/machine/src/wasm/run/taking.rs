//! An image on its way.

use std::sync::Arc;

use bytes::Bytes;
use skep_core::outcome::EntryContext;

use super::base::{Base, Origin};
use super::checkpoint::is_large;
use super::image::Image;
use super::journal::Moment;
use super::present::Present;
use crate::wasm::engine::budget::Purpose;
use crate::wasm::fault::Failure;
use crate::wasm::memory::Captured;
use crate::wasm::world::kept::Kept;
use crate::{ImageTaken, LocalCode, MachineError, ReadImage, ToEnd};

/// The memories of a machine as they were at an entry, while the machine goes on.
pub(crate) struct Taking {
    present: Arc<Present>,
    context: EntryContext,
    /// When it was as it is here.
    moment: Moment,
    /// The context under which its instance was started.
    start: EntryContext,
    /// None once it is taken.
    captured: Option<(Vec<Captured>, Kept)>,
}

impl Taking {
    /// Of a machine that is behind this entry; none if it can have no image.
    pub(crate) async fn begin(
        present: &Arc<Present>,
        context: &EntryContext,
    ) -> Result<Option<Self>, Failure> {
        let mut writing = present.writing().await;
        let place = writing.get_mut();
        let instance = match place {
            Some(instance) => instance,
            None => place.insert(present.rebuild().await?),
        };
        if !instance.can_be_forked() {
            return Ok(None);
        }
        let stays = is_large(instance);
        let captured = present.capture(instance, stays).await;
        let (moment, captured, kept) = captured.inspect_err(|_| *place = None)?;
        Ok(Some(Self {
            present: Arc::clone(present),
            context: *context,
            moment,
            start: present.journal.start(),
            captured: Some((captured, kept)),
        }))
    }

    fn take(&mut self) -> Result<Bytes, Failure> {
        let (captured, kept) = (self.captured.take())
            .ok_or_else(|| Failure::local(LocalCode::Missing, "the image was taken before"))?;
        let guest = &self.present.guest;
        let fresh = (guest.instance(&self.start, Purpose::Running).to_end())
            .map_err(Failure::made_local)?;
        let component = guest.component.id();
        let image = Image::write(component, captured, fresh.memories(), &self.start, kept)?;
        drop(fresh);
        let bytes = image.bytes().clone();
        let base = Base {
            context: self.context,
            origin: Origin::Image(image),
        };
        self.present.journal.rebase_at(self.moment, base);
        self.present.settle();
        Ok(bytes)
    }
}

impl ImageTaken for Taking {
    fn finish(&mut self) -> Result<Bytes, MachineError> {
        self.take().map_err(|failure| failure.into_error("image"))
    }

    fn kept(self: Box<Self>, read: ReadImage) {
        self.present.journal.keep_elsewhere(self.moment, read);
    }
}
