//! How the C library's allocator is to treat this process.

/// What the end of an arena keeps when memory is freed, and the size from which an allocation has pages of its own that go back to
/// the system with it. The longest messages are about half of it: they are frequent, and fresh pages cost more than they do.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const KEPT: libc::c_int = 2 << 20;

/// Bounds what freed memory the process keeps. To be called before there are threads.
///
/// By default glibc makes up to eight arenas for each processor, and learns from the first large allocation that is freed to take
/// such ones from the arenas and to keep twice as much, up to 64 MiB, at the end of each. A burst of replies of a megabyte then
/// leaves some on every thread that saw one of them, for as long as the process lives: `malloc_trim` does not look there.
/// One arena for each processor is enough for as many threads as run at a time.
pub fn bound() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let arenas = libc::c_int::try_from(processors).unwrap_or(libc::c_int::MAX);
        for (parameter, value) in [
            (libc::M_ARENA_MAX, arenas),
            (libc::M_MMAP_THRESHOLD, KEPT),
            (libc::M_TRIM_THRESHOLD, KEPT),
        ] {
            // SAFETY: it takes two numbers, and no other thread exists that might allocate meanwhile.
            let taken = unsafe { libc::mallopt(parameter, value) };
            debug_assert_eq!(taken, 1, "glibc takes {value} for parameter {parameter}");
        }
    }
}
