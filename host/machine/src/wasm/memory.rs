//! Linear memories that the host owns.
//!
//! The bytes of a machine's memory are in a file in memory ([`arena`]), which the machine maps *shared*. So others can have the same
//! bytes without copying them: a *fork* maps the same file *private*, for reading; a page that it writes becomes its own at that
//! moment ([`faults`]), and is [copied again](Memory::follow) from the machine before the fork runs next. A fork's memory therefore
//! **is** the machine's, byte for byte, whenever it begins to run, whatever it did before.
//!
//! Nothing here knows of components: [`Creator`] makes a memory when wasmtime asks for one, and hands it to who
//! [collects](collecting) those of an instance.
//!
//! # Safety
//!
//! Addresses are mapped, unmapped and protected in `mapping` only, inside of reservations that this folder owns. Bytes are read and
//! written here only while no call runs in the memory: who holds an instance exclusively sees to that.

mod arena;
mod capture;
mod faults;
mod mapping;
mod own_pages;

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::sync::atomic::{
    AtomicPtr, AtomicUsize, Ordering::AcqRel, Ordering::Acquire, Ordering::Release,
};
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use skep_types::shared::lock;
use wasmtime::{LinearMemory, MemoryCreator, MemoryType};

#[cfg(test)]
mod tests;

pub(crate) use self::arena::Arena;
use self::arena::Region;
pub(crate) use self::capture::{BLOCK_BYTES, Capture, Captured, Keeper};
pub(crate) use self::faults::{Watched, install};
use self::mapping::{Access, Reservation, Sharing, page_bytes, protect, whole_pages};
use self::own_pages::OwnPages;

/// Pages of one memory that a fork may have for its own and know each of. Each parts a mapping in two.
const OWN_PAGES_MAX: usize = 512;

/// Pages of its own that a fork keeps, and has copied anew before each run, rather than give all back to be found again.
const OWN_PAGES_KEPT: usize = 64;

/// A linear memory.
#[derive(Debug)]
pub(crate) struct Memory {
    base: AtomicPtr<u8>,
    /// Bytes that the guest has.
    bytes: AtomicUsize,
    place: Mutex<Place>,
    own: OwnPages,
}

/// Where it is.
#[derive(Debug)]
struct Place {
    reservation: Reservation,
    shape: Shape,
    /// The bytes that can be mapped behind the first guard.
    capacity: usize,
    region: Arc<Region>,
    /// It is a fork, and so many bytes, in whole pages, are those of another memory.
    followed: Option<usize>,
    /// What it is being copied to.
    capture: Weak<Capture>,
}

/// A part of what a fork has of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Given {
    /// What it has written of the other's bytes.
    Written,
    /// What it has beyond them.
    Grown,
}

/// What surrounds it.
#[derive(Clone, Copy, Debug)]
struct Shape {
    guard_before: usize,
    guard_behind: usize,
    /// Reserved beyond what it needs when it moves; 0 if it never does.
    growth: usize,
}

impl Place {
    fn reserve(shape: Shape, capacity: usize) -> io::Result<Reservation> {
        Reservation::new(shape.guard_before + capacity + shape.guard_behind)
    }

    /// Maps `from..to`, as this memory does.
    fn map(&self, from: usize, to: usize) -> io::Result<()> {
        let (sharing, access, split) = match self.followed {
            None => (Sharing::Shared, Access::Write, to),
            Some(followed) => (Sharing::Private, Access::Read, followed.clamp(from, to)),
        };
        let base = self.shape.guard_before;
        (self.region).map(&self.reservation, base, from, split - from, sharing, access)?;
        // What a fork has beyond the other's is nobody else's.
        (self.reservation).map_zeroes(base + split, to - split)
    }

    /// Nothing is copied from these addresses any more.
    fn leave_capture(&self) -> io::Result<()> {
        match self.capture.upgrade() {
            Some(capture) => capture.leave(),
            None => Ok(()),
        }
    }
}

impl Memory {
    fn new(arena: &Arena, shape: Shape, capacity: usize, bytes: usize) -> io::Result<Self> {
        let capacity = whole_pages(capacity.max(bytes));
        let place = Place {
            reservation: Place::reserve(shape, capacity)?,
            shape,
            capacity,
            region: Arc::new(arena.take()?),
            followed: None,
            capture: Weak::new(),
        };
        place.map(0, whole_pages(bytes))?;
        Ok(Self {
            base: AtomicPtr::new(place.reservation.at(shape.guard_before)),
            bytes: AtomicUsize::new(bytes),
            place: Mutex::new(place),
            own: OwnPages::with_room(OWN_PAGES_MAX),
        })
    }

    /// The instance has all its memories, so what was kept from its other memories can be given back. Only where no memory of the
    /// instance will ever move there, and only of a memory that the rewriting added: those are reached by constant addresses, and
    /// each access is checked.
    pub(crate) fn settle(&self) -> io::Result<()> {
        let mut place = self.place();
        if place.shape.guard_before > 0 {
            return Ok(());
        }
        let bytes = place.capacity + page_bytes();
        place.reservation.truncate(bytes)
    }

    fn place(&self) -> MutexGuard<'_, Place> {
        lock(&self.place)
    }

    fn base(&self) -> *mut u8 {
        self.base.load(Acquire)
    }

    /// Bytes that the guest has.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Acquire)
    }

    fn grow(&self, to: usize) -> io::Result<()> {
        let mut place = self.place();
        let (from, until) = (whole_pages(self.bytes()), whole_pages(to));
        if until > place.capacity {
            self.move_to(&mut place, until)?;
        }
        // Only what is new: the rest may be protected, or a fork's own.
        place.map(from, until)?;
        self.bytes.store(to, Release);
        if place.followed.is_some() && self.own.may_be_any() {
            protect(self.base().wrapping_add(from), until - from, Access::Write)?;
        }
        Ok(())
    }

    /// Any page may be its own from now on. Fit for a signal handler.
    fn own_any(&self) -> io::Result<()> {
        self.own.note_any();
        protect(self.base(), whole_pages(self.bytes()), Access::Write)
    }

    /// Finds other addresses for it, where it has room to grow.
    fn move_to(&self, place: &mut Place, bytes: usize) -> io::Result<()> {
        place.leave_capture()?;
        let capacity = whole_pages(bytes + place.shape.growth);
        let has = whole_pages(self.bytes());
        let moved = Place::reserve(place.shape, capacity)?;
        let former = std::mem::replace(&mut place.reservation, moved);
        let to = place.reservation.at(place.shape.guard_before);
        let filled = match place.followed {
            None => place.map(0, has),
            // Rare, and simple: it has all pages for its own from now on, until it follows again.
            Some(_) => (place.reservation)
                .map_zeroes(place.shape.guard_before, has)
                .map(|()| {
                    let from = former.at(place.shape.guard_before);
                    // SAFETY: both are so long, apart from each other, and no call runs in them but the one that asks to grow.
                    unsafe { std::ptr::copy_nonoverlapping(from, to, has) };
                    self.own.note_any();
                }),
        };
        if let Err(error) = filled {
            // It stays where it was: `base` still says so.
            place.reservation = former;
            return Err(error);
        }
        place.capacity = capacity;
        self.base.store(to, Release);
        Ok(())
    }

    /// Makes this memory a fork of another one.
    ///
    /// # Errors
    /// The system gives no mapping. The fork must be dropped then.
    pub(crate) fn fork_of(&self, of: &Self) -> io::Result<()> {
        let mut place = self.place();
        place.region = Arc::clone(&of.place().region);
        place.followed = Some(whole_pages(of.bytes()));
        self.shrink(&place, of.bytes())?;
        self.map_anew(&place)
    }

    /// Gives this fork the bytes that the other has now, but for what the other has grown by: the fork must grow by as much. What
    /// the fork has grown by itself is gone.
    ///
    /// An instance that has the fork must learn its size by a `memory.grow` before it reads or writes: see
    /// [`shrink`](Self::shrink).
    ///
    /// # Errors
    /// As [`fork_of`](Self::fork_of); or it is a fork of another memory.
    pub(crate) fn follow(&self, of: &Self) -> io::Result<()> {
        let mut place = self.place();
        if !Arc::ptr_eq(&place.region, &of.place().region) {
            return Err(io::Error::other("it is a fork of another memory"));
        }
        let others = whole_pages(of.bytes());
        let followed = place.followed.replace(others).unwrap_or_default();
        self.shrink(&place, of.bytes())?;
        let Some(pages) = self.own.known() else {
            return self.map_anew(&place);
        };
        // Both have grown so far. What the fork has there is its own, and was never noted.
        let has = whole_pages(self.bytes());
        if has > followed {
            place.map(followed, has)?;
        }
        match pages.len() <= OWN_PAGES_KEPT {
            true => {
                pages.for_each(|page| self.copy_page(of, page));
                Ok(())
            }
            false => {
                let pages = pages.collect();
                self.give_back(&place, pages)
            }
        }
    }

    /// Gives back what it has beyond so many bytes, as if it had never grown that far: there is nothing any more, and should it
    /// grow again, there are zeroes.
    ///
    /// # Safety of what runs in it
    ///
    /// Wasmtime keeps the size of a memory in the instance, where compiled code finds it, and looks at
    /// [`byte_size`](LinearMemory::byte_size) for it whenever the instance executes `memory.grow`, even by nothing. No code is in
    /// the middle of something that it began with the former size: no call runs, and none is suspended, because who calls this has
    /// the instance for himself and drops one whose call did not end. The next code to run is what [thaws](crate::wasm::code) the
    /// instance, and begins with a `memory.grow` where the size that it knows is not the one to be. Should anything run before, it
    /// would fault and trap: behind the bytes that a memory has nothing is ever mapped.
    fn shrink(&self, place: &Place, to: usize) -> io::Result<()> {
        let (least, has) = (whole_pages(to), whole_pages(self.bytes()));
        if has > least {
            let beyond = place.shape.guard_before + least;
            place.reservation.unmap(beyond, has - least)?;
        }
        self.bytes.fetch_min(to, AcqRel);
        Ok(())
    }

    /// Gives up the pages of its own; all others stay as they are, where the system has found them already.
    fn give_back(&self, place: &Place, mut pages: Vec<usize>) -> io::Result<()> {
        pages.sort_unstable();
        for run in pages.chunk_by(|one, next| one + 1 == *next) {
            let (first, last) = (run[0], run[run.len() - 1]);
            place.map(first * page_bytes(), (last + 1) * page_bytes())?;
        }
        self.own.clear();
        Ok(())
    }

    /// Gives the other memory what this fork of it has written since it last followed: that of its pages which the other has, or
    /// that which it has grown by, once the other has grown as far.
    ///
    /// # Errors
    /// The other is captured, and the system does not let it be written again.
    pub(crate) fn give(&self, to: &Self, what: Given) -> io::Result<()> {
        let place = self.place();
        let page = |bytes: usize| whole_pages(bytes) / page_bytes();
        let capture = to.place().capture.upgrade();
        let give = |page: usize| -> io::Result<()> {
            if let Some(capture) = &capture {
                capture.open_at(page * page_bytes())?;
            }
            to.copy_page(self, page);
            Ok(())
        };
        let followed = place.followed.unwrap_or_default() / page_bytes();
        match (what, self.own.known()) {
            (Given::Grown, _) => (followed..page(self.bytes())).try_for_each(give),
            (Given::Written, Some(mut pages)) => pages.try_for_each(give),
            // Any may be its own: those are that differ.
            (Given::Written, None) => (0..followed.min(page(to.bytes())))
                .filter(|page| self.page(*page) != to.page(*page))
                .try_for_each(give),
        }
    }

    fn page(&self, page: usize) -> &[u8] {
        let base = self.base().wrapping_add(page * page_bytes());
        // SAFETY: callers name pages that it has; nobody writes them, because no call runs in it.
        unsafe { std::slice::from_raw_parts(base, page_bytes()) }
    }

    /// Copies a page that both have, and that may be written here. No call runs in either.
    fn copy_page(&self, from: &Self, page: usize) {
        let offset = page * page_bytes();
        let [from, to] = [from, self].map(|memory| memory.base().wrapping_add(offset));
        // SAFETY: as said; they are apart, because a fork's own page is not the other's.
        unsafe { std::ptr::copy_nonoverlapping(from, to, page_bytes()) };
    }

    /// Begins a copy of it as it is now. No call runs in it, and every later call [watches](Watched) the capture. Nobody can go back
    /// to a former one any more.
    ///
    /// # Errors
    /// The system gives no mapping; or it is a fork, of which nobody wants a copy.
    pub(crate) fn capture(self: &Arc<Self>) -> io::Result<Captured> {
        let mut place = self.place();
        if place.followed.is_some() {
            return Err(io::Error::other("a fork is not captured"));
        }
        let former = place.capture.upgrade();
        if let Some(former) = former.as_deref().filter(|former| former.is_read()) {
            former.finish()?;
        }
        let (base, bytes) = (self.base(), self.bytes());
        let capture = Capture::begin(self, base, bytes, former.as_deref())?;
        place.capture = Arc::downgrade(&capture);
        Ok(Captured::new(capture))
    }

    /// Goes over to what another memory was. Nobody uses that one any more, and no call runs in this one, which is as at its start.
    ///
    /// An instance that has this memory must learn its size, and grow as far as the other had grown, by `memory.grow`, before it
    /// reads or writes: see [`shrink`](Self::shrink).
    ///
    /// # Errors
    /// More was written than is kept; or the system gives no mapping. This memory must be dropped then.
    pub(crate) fn take_over(&self, was: &Keeper) -> io::Result<()> {
        let (other, bytes) = was.put_back()?;
        let mut place = self.place();
        let region = Arc::clone(&other.place().region);
        // What it has grown by since is as if it had never been.
        region.clear(whole_pages(bytes))?;
        place.region = region;
        self.shrink(&place, bytes)?;
        place.map(0, whole_pages(self.bytes()))
    }

    /// Writes bytes that another memory had, into this one. No call runs in it. False if it is too small for them.
    pub(crate) fn put(&self, offset: usize, bytes: &[u8]) -> bool {
        let end = offset.checked_add(bytes.len());
        let fits = end.is_some_and(|end| end <= whole_pages(self.bytes()));
        if !fits || !self.open_for(offset, bytes.len()) {
            return false;
        }
        let to = self.base().wrapping_add(offset);
        // SAFETY: so many bytes are mapped for writing there, and nobody else looks at them.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
        true
    }

    /// Prepares these bytes for being written, should they be captured.
    fn open_for(&self, offset: usize, bytes: usize) -> bool {
        let Some(capture) = self.place().capture.upgrade() else {
            return true;
        };
        let blocks = offset / BLOCK_BYTES..(offset + bytes).div_ceil(BLOCK_BYTES);
        let mut opened = blocks.map(|block| capture.open_at(block * BLOCK_BYTES));
        opened.all(|opened| opened.is_ok())
    }

    /// The bytes of a block that it has, while no call runs in it.
    pub(crate) fn read_block<T>(&self, block: usize, read: impl FnOnce(&[u8]) -> T) -> T {
        self.read(|bytes| {
            let from = (block * BLOCK_BYTES).min(bytes.len());
            let to = (from + BLOCK_BYTES).min(bytes.len());
            read(&bytes[from..to])
        })
    }

    fn map_anew(&self, place: &Place) -> io::Result<()> {
        place.map(0, whole_pages(self.bytes()))?;
        self.own.clear();
        Ok(())
    }

    /// Makes every page of this fork its own: from now on the other may change.
    ///
    /// # Errors
    /// There is no memory for it.
    pub(crate) fn detach(&self) -> io::Result<()> {
        let place = self.place();
        let (start, has) = (place.shape.guard_before, whole_pages(self.bytes()));
        place.reservation.populate(start, has)?;
        self.own.note_any();
        Ok(())
    }

    /// Whether a fault at the address is the first write of this fork to a page that it may write. The page is then its own. Called
    /// from a signal handler.
    fn takes(&self, address: usize) -> bool {
        let base = self.base();
        let mapped = whole_pages(self.bytes());
        let Some(offset) = address
            .checked_sub(base.addr())
            .filter(|offset| *offset < mapped)
        else {
            return false;
        };
        if self.own.may_be_any() {
            return false;
        }
        let page = offset / page_bytes();
        let place = base.wrapping_add(page * page_bytes());
        if self.own.note(page as u32) && protect(place, page_bytes(), Access::Write).is_ok() {
            return true;
        }
        // There is no room to note it, or no mapping more for it.
        self.own_any().is_ok()
    }

    /// Whether it has the same bytes as another one, if that is not too much to look at. No call runs in either.
    pub(crate) fn is_like(&self, other: &Self) -> bool {
        const LOOKED_AT: usize = 16 << 20;
        self.bytes().max(other.bytes()) > LOOKED_AT
            || self.read(|own| other.read(|others| own == others))
    }

    /// Its bytes, while no call runs in it.
    fn read<T>(&self, read: impl FnOnce(&[u8]) -> T) -> T {
        let _place = self.place();
        // SAFETY: so many bytes are mapped for reading; they neither move nor change, because no call runs.
        read(unsafe { std::slice::from_raw_parts(self.base(), self.bytes()) })
    }
}

/// A memory in the hands of wasmtime.
struct Held(Arc<Memory>);

// SAFETY: `bytes` bytes behind `base` are mapped for reading; a write to one of them succeeds, after a fault that the handler of
// `faults` answers where the memory is a fork's. Behind the capacity there is the guard that was asked for. The base moves only
// in `grow`, beyond the capacity. The size becomes smaller only in `shrink`, which says why nobody is deceived.
unsafe impl LinearMemory for Held {
    fn byte_size(&self) -> usize {
        self.0.bytes()
    }

    fn byte_capacity(&self) -> usize {
        self.0.place().capacity
    }

    fn grow_to(&mut self, bytes: usize) -> wasmtime::Result<()> {
        Ok(self.0.grow(bytes)?)
    }

    fn as_ptr(&self) -> *mut u8 {
        self.0.base()
    }
}

/// Makes the memories of an engine.
pub(crate) struct Creator {
    pub(crate) arena: Arc<Arena>,
    /// Reserved beyond what a memory needs when it moves.
    pub(crate) growth: usize,
}

thread_local! {
    /// The memories of an instance that is being made on this thread.
    static MADE: RefCell<Option<Vec<Arc<Memory>>>> = const { RefCell::new(None) };
}

/// Makes an instance, and adds its memories to these, in the order in which they are made.
pub(crate) async fn collecting<F: Future>(memories: &mut Vec<Arc<Memory>>, make: F) -> F::Output {
    let mut make = pin!(make);
    poll_fn(|context| {
        let outer = MADE.replace(Some(std::mem::take(memories)));
        let polled = make.as_mut().poll(context);
        *memories = MADE.replace(outer).unwrap_or_default();
        polled
    })
    .await
}

/// Runs a call of an instance with these memories.
pub(crate) async fn running<F: Future>(watched: Watched<'_>, call: F) -> F::Output {
    let mut call = pin!(call);
    poll_fn(|context| faults::running(watched, || call.as_mut().poll(context))).await
}

// SAFETY: see `Held`; a memory of page size 1 has no reservation to speak of, and needs none: wasmtime checks every access to it.
unsafe impl MemoryCreator for Creator {
    fn new_memory(
        &self,
        ty: MemoryType,
        minimum: usize,
        _maximum: Option<usize>,
        reserved: Option<usize>,
        guard: usize,
    ) -> Result<Box<dyn LinearMemory>, String> {
        let reserved = reserved.unwrap_or(minimum);
        // Wasmtime takes it that so many addresses behind every memory of an instance are no other memory's of that instance.
        let (guard_before, guard_behind, growth, capacity) = match ty.page_size() {
            1 => (0, reserved + guard, 0, minimum),
            _ => (guard, guard, self.growth, reserved),
        };
        let shape = Shape {
            guard_before,
            guard_behind,
            growth,
        };
        let memory = Memory::new(&self.arena, shape, capacity, minimum)
            .map_err(|error| format!("a linear memory cannot be mapped: {error}"))?;
        let memory = Arc::new(memory);
        MADE.with_borrow_mut(|made| {
            if let Some(made) = made {
                made.push(Arc::clone(&memory));
            }
        });
        Ok(Box::new(Held(memory)))
    }
}
