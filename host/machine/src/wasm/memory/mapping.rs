//! The system calls behind linear memories. Every `unsafe` of this folder that concerns addresses alone is here.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::ptr::{NonNull, null_mut};
use std::sync::OnceLock;

/// What may be done with a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Access {
    None = libc::PROT_NONE as isize,
    Read = libc::PROT_READ as isize,
    Write = (libc::PROT_READ | libc::PROT_WRITE) as isize,
}

/// Who sees what is written to a mapped file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Sharing {
    /// Everybody who maps it.
    Shared = libc::MAP_SHARED as isize,
    /// This mapping alone: a page that is written becomes its own.
    Private = libc::MAP_PRIVATE as isize,
}

/// A mapping of no file, which takes no memory until something is written.
const NOTHING: libc::c_int = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;

/// Bytes of a page of this system.
pub(super) fn page_bytes() -> usize {
    static BYTES: OnceLock<usize> = OnceLock::new();
    *BYTES.get_or_init(|| {
        // SAFETY: it takes no pointer.
        let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        usize::try_from(bytes).unwrap_or(4096)
    })
}

/// `bytes` in whole pages.
pub(super) fn whole_pages(bytes: usize) -> usize {
    bytes.next_multiple_of(page_bytes())
}

/// A file without a name, in memory, of no length.
#[cfg(target_os = "linux")]
pub(super) fn memory_file() -> io::Result<File> {
    // SAFETY: the name is a string that ends with a zero.
    let file = unsafe { libc::memfd_create(c"skep-memories".as_ptr(), libc::MFD_CLOEXEC) };
    if file < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it was just opened, and nobody else has it.
    Ok(unsafe { File::from_raw_fd(file) })
}

/// Elsewhere nothing of the kind was tried: there memories are wasmtime's own.
#[cfg(not(target_os = "linux"))]
pub(super) fn memory_file() -> io::Result<File> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Gives the system back what a part of a file holds; it reads as zeroes from then on.
#[cfg(target_os = "linux")]
pub(super) fn punch(file: &File, offset: u64, bytes: u64) -> io::Result<()> {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: it takes no pointer.
    let done = unsafe {
        libc::fallocate(
            file.as_raw_fd(),
            mode,
            offset as libc::off_t,
            bytes as libc::off_t,
        )
    };
    checked(done)
}

/// Nobody has a file to give back.
#[cfg(not(target_os = "linux"))]
pub(super) fn punch(_: &File, _: u64, _: u64) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Addresses of this process that nobody else uses. Given back when dropped.
#[derive(Debug)]
pub(super) struct Reservation {
    base: NonNull<u8>,
    bytes: usize,
}

// SAFETY: addresses belong to no thread; what is at them is the business of who reads and writes there.
unsafe impl Send for Reservation {}
// SAFETY: as above.
unsafe impl Sync for Reservation {}

impl Reservation {
    /// So many bytes of addresses, at which there is nothing.
    pub(super) fn new(bytes: usize) -> io::Result<Self> {
        let access = Access::None as libc::c_int;
        // SAFETY: the system chooses addresses that are free.
        let base = unsafe { libc::mmap(null_mut(), bytes, access, NOTHING, -1, 0) };
        match NonNull::new(base.cast::<u8>()) {
            Some(base) if base.as_ptr() as *mut libc::c_void != libc::MAP_FAILED => {
                Ok(Self { base, bytes })
            }
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Gives back all addresses but so many.
    pub(super) fn truncate(&mut self, bytes: usize) -> io::Result<()> {
        let place = self.at(bytes);
        // SAFETY: nothing is mapped there, and nobody uses the addresses.
        checked(unsafe { libc::munmap(place.cast(), self.bytes - bytes) })?;
        self.bytes = bytes;
        Ok(())
    }

    /// The address so many bytes behind the first.
    pub(super) fn at(&self, offset: usize) -> *mut u8 {
        self.base.as_ptr().wrapping_add(self.inside(offset, 0))
    }

    /// Puts a part of a file there, in the place of what was there.
    pub(super) fn map(
        &self,
        offset: usize,
        bytes: usize,
        file: &File,
        from: u64,
        sharing: Sharing,
        access: Access,
    ) -> io::Result<()> {
        let flags = sharing as libc::c_int | libc::MAP_FIXED;
        self.put(offset, bytes, flags, access, file.as_raw_fd(), from)
    }

    /// Puts zeroes there, in the place of what was there.
    pub(super) fn map_zeroes(&self, offset: usize, bytes: usize) -> io::Result<()> {
        let flags = NOTHING | libc::MAP_FIXED;
        self.put(offset, bytes, flags, Access::Write, -1, 0)
    }

    /// Leaves nothing there, as at first: whoever reads or writes there faults.
    pub(super) fn unmap(&self, offset: usize, bytes: usize) -> io::Result<()> {
        let flags = NOTHING | libc::MAP_FIXED;
        self.put(offset, bytes, flags, Access::None, -1, 0)
    }

    fn put(
        &self,
        offset: usize,
        bytes: usize,
        flags: libc::c_int,
        access: Access,
        file: libc::c_int,
        from: u64,
    ) -> io::Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        let place = self.at(self.inside(offset, bytes));
        // SAFETY: the place lies within these addresses, which nobody else uses. Who holds references to what was there is the
        // business of `Memory`, whose calls do not run meanwhile.
        let base = unsafe {
            let access = access as libc::c_int;
            libc::mmap(
                place.cast(),
                bytes,
                access,
                flags,
                file,
                from as libc::off_t,
            )
        };
        match base == libc::MAP_FAILED {
            true => Err(io::Error::last_os_error()),
            false => Ok(()),
        }
    }

    /// Has the system find memory for zeroes there at once, and not page by page. Fit for a signal handler.
    #[cfg(target_os = "linux")]
    pub(super) fn find(&self, offset: usize, bytes: usize) {
        let base = self.at(self.inside(offset, bytes));
        // SAFETY: the range is within these addresses; its contents stay as they are. Where it fails, pages are found when they are
        // written.
        unsafe { libc::madvise(base.cast(), bytes, libc::MADV_POPULATE_WRITE) };
    }

    /// Pages are found when they are written.
    #[cfg(not(target_os = "linux"))]
    pub(super) fn find(&self, _: usize, _: usize) {}

    /// Writes a copy of every page there that is still a file's, so that it is this mapping's own.
    pub(super) fn populate(&self, offset: usize, bytes: usize) -> io::Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        let base = self.at(self.inside(offset, bytes));
        protect(base, bytes, Access::Write)?;
        #[cfg(target_os = "linux")]
        {
            // SAFETY: the range is within these addresses; its contents stay as they are.
            let done = unsafe { libc::madvise(base.cast(), bytes, libc::MADV_POPULATE_WRITE) };
            match checked(done) {
                // A Linux before 5.14 does not know it.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
                done => return done,
            }
        }
        // Writing a byte of each page does the same.
        for page in (0..bytes).step_by(page_bytes()) {
            let place = base.wrapping_add(page);
            // SAFETY: the page can be read and written, and no call runs in this memory.
            unsafe { place.write_volatile(place.read_volatile()) };
        }
        Ok(())
    }

    /// The offset, if so many bytes from there on are inside.
    fn inside(&self, offset: usize, bytes: usize) -> usize {
        let fits = offset
            .checked_add(bytes)
            .is_some_and(|end| end <= self.bytes);
        assert!(fits, "{bytes} bytes at {offset} of {}", self.bytes);
        offset
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        // SAFETY: who dropped this uses the addresses no more.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

/// Says what may be done with mapped pages. Fit for a signal handler.
pub(super) fn protect(base: *mut u8, bytes: usize, access: Access) -> io::Result<()> {
    // SAFETY: contents stay as they are; callers name pages of a `Reservation` that they hold.
    checked(unsafe { libc::mprotect(base.cast(), bytes, access as libc::c_int) })
}

fn checked(done: libc::c_int) -> io::Result<()> {
    match done {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
