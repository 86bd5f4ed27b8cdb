//! Which pages of a fork are its own.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::Relaxed};

/// Pages that a fork has written, and that differ for that from the memory it was forked from. Written by a signal handler, in the
/// thread that runs the fork, so there are atomics, and no lock and no allocation; read by who holds the fork, when it does not run.
#[derive(Debug)]
pub(super) struct OwnPages {
    pages: Box<[AtomicU32]>,
    count: AtomicUsize,
    /// There were too many: any page may be its own.
    any: AtomicBool,
}

impl OwnPages {
    pub(super) fn with_room(pages: usize) -> Self {
        Self {
            pages: (0..pages).map(|_| AtomicU32::new(0)).collect(),
            count: AtomicUsize::new(0),
            any: AtomicBool::new(false),
        }
    }

    /// Notes a page. False if there is no room for it.
    pub(super) fn note(&self, page: u32) -> bool {
        let count = self.count.load(Relaxed);
        let Some(place) = self.pages.get(count) else {
            return false;
        };
        place.store(page, Relaxed);
        self.count.store(count + 1, Relaxed);
        true
    }

    pub(super) fn note_any(&self) {
        self.any.store(true, Relaxed);
    }

    /// Each of them, if they are known.
    pub(super) fn known(&self) -> Option<impl ExactSizeIterator<Item = usize>> {
        let known = self.pages[..self.count.load(Relaxed)].iter();
        (!self.may_be_any()).then(|| known.map(|page| page.load(Relaxed) as usize))
    }

    pub(super) fn may_be_any(&self) -> bool {
        self.any.load(Relaxed)
    }

    pub(super) fn clear(&self) {
        self.count.store(0, Relaxed);
        self.any.store(false, Relaxed);
    }
}
