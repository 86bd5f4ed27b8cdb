//! Stands between a process and the C library (`LD_PRELOAD`): a clock that is wrong and a disk that fails, when the test
//! says so. `tests/src/shim.rs` says it, through four words of a shared file that `SKEP_PRELOAD_WORDS` names.
//!
//! The build script compiles this file by itself, so it has no dependencies. Nothing here may allocate or lock: it runs
//! inside whatever calls the clock.

use std::ffi::{c_char, c_int, c_long, c_void};
use std::ptr;
use std::sync::atomic::{AtomicI64, AtomicPtr, Ordering};

/// Nanoseconds to add to the wall clock; an error number for `fdatasync`, or 0; one for `pwrite64`, or 0; nanoseconds that
/// `fdatasync` takes longer.
type Words = [AtomicI64; 4];

#[cfg(target_arch = "x86_64")]
mod number {
    pub const CLOCK_GETTIME: i64 = 228;
    pub const FDATASYNC: i64 = 75;
    pub const PWRITE64: i64 = 18;
    pub const NANOSLEEP: i64 = 35;
}
#[cfg(target_arch = "aarch64")]
mod number {
    pub const CLOCK_GETTIME: i64 = 113;
    pub const FDATASYNC: i64 = 83;
    pub const PWRITE64: i64 = 68;
    pub const NANOSLEEP: i64 = 101;
}

const CLOCK_REALTIME: c_int = 0;
const O_RDONLY: c_int = 0;
const PROT_READ: c_int = 1;
const MAP_SHARED: c_int = 1;
const NANOS: i64 = 1_000_000_000;

#[repr(C)]
pub struct Timespec {
    seconds: i64,
    nanos: i64,
}

unsafe extern "C" {
    fn syscall(number: c_long, ...) -> c_long;
    fn getenv(name: *const c_char) -> *const c_char;
    fn open(path: *const c_char, flags: c_int, ...) -> c_int;
    fn mmap(
        at: *mut c_void,
        len: usize,
        protection: c_int,
        flags: c_int,
        file: c_int,
        offset: i64,
    ) -> *mut c_void;
    fn __errno_location() -> *mut c_int;
}

/// What is said when nobody says anything.
static SOUND: Words = [const { AtomicI64::new(0) }; 4];
static WORDS: AtomicPtr<Words> = AtomicPtr::new(ptr::null_mut());

fn words() -> &'static Words {
    let mut known = WORDS.load(Ordering::Acquire);
    if known.is_null() {
        // Two threads may both do this at first; either mapping will do.
        known = map().unwrap_or(ptr::from_ref(&SOUND).cast_mut());
        WORDS.store(known, Ordering::Release);
    }
    // SAFETY: it points to a static or to a mapping that is never undone; both hold four aligned words, and all zeros
    // or whatever else is there are valid ones.
    unsafe { &*known }
}

fn map() -> Option<*mut Words> {
    // SAFETY: the name ends with a zero; what `getenv` gives is not kept.
    let file = unsafe {
        let path = getenv(c"SKEP_PRELOAD_WORDS".as_ptr());
        if path.is_null() {
            return None;
        }
        open(path, O_RDONLY)
    };
    if file < 0 {
        return None;
    }
    // SAFETY: a new mapping of a file that is as long as the words and is not shortened.
    let at = unsafe { mmap(ptr::null_mut(), size_of::<Words>(), PROT_READ, MAP_SHARED, file, 0) };
    (at as isize != -1).then_some(at.cast())
}

fn fail(error: i64) {
    // SAFETY: the thread's own errno.
    unsafe { *__errno_location() = error as c_int };
}

/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: c_int, time: *mut Timespec) -> c_int {
    // SAFETY: the caller's pointer, as for the C library.
    let result = unsafe { syscall(number::CLOCK_GETTIME, clock, time) };
    let shift = words()[0].load(Ordering::Relaxed);
    if result == 0 && clock == CLOCK_REALTIME && shift != 0 {
        // SAFETY: the kernel has just written there.
        let time = unsafe { &mut *time };
        let nanos = time.nanos + shift % NANOS;
        time.seconds += shift / NANOS + nanos.div_euclid(NANOS);
        time.nanos = nanos.rem_euclid(NANOS);
    }
    result as c_int
}

/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fdatasync(file: c_int) -> c_int {
    let longer = words()[3].load(Ordering::Relaxed);
    if longer > 0 {
        let time = Timespec {
            seconds: longer / NANOS,
            nanos: longer % NANOS,
        };
        // SAFETY: a time that outlives the call, and nowhere to write what is left of it.
        unsafe { syscall(number::NANOSLEEP, &time, ptr::null_mut::<Timespec>()) };
    }
    match words()[1].load(Ordering::Relaxed) {
        // SAFETY: a plain number.
        0 => unsafe { syscall(number::FDATASYNC, file) as c_int },
        error => {
            fail(error);
            -1
        }
    }
}

/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pwrite64(
    file: c_int,
    bytes: *const c_void,
    len: usize,
    offset: i64,
) -> isize {
    match words()[2].load(Ordering::Relaxed) {
        // SAFETY: the caller's pointer and length, as for the C library.
        0 => unsafe { syscall(number::PWRITE64, file, bytes, len, offset) as isize },
        error => {
            fail(error);
            -1
        }
    }
}
