//! Memory that the allocator keeps for later.

/// Gives it back to the system, as far as the allocator can. It looks through all that is allocated, and others wait for it
/// meanwhile: for once in a while, on a thread that may block.
pub(crate) fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it takes a number and may be called at any time on any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}
