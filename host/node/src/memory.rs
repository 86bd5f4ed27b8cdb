//! Memory that is kept for later, and given back.

use bytes::BytesMut;

/// What the buffer of a client's connection keeps between bursts: there may be thousands of them.
pub const KEPT_BY_CLIENT: usize = 64 << 10;

/// Empties a buffer that is filled again and again; after a burst larger than `kept` its memory goes.
pub fn empty(buffer: &mut BytesMut, kept: usize) {
    buffer.clear();
    if buffer.capacity() > kept {
        *buffer = BytesMut::new();
    }
}

/// Gives what the allocator keeps back to the system, as far as the allocator can. It looks through all that is allocated, and others wait for it
/// meanwhile: for once in a while, on a thread that may block.
pub fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it takes a number and may be called at any time on any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}
