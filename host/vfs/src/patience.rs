//! Patience with a system that has no descriptor or memory to give at the moment.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread::sleep;
use std::time::Duration;

/// The first and the longest pause between two tries.
const PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// Pauses after which the want is taken to last: some half a minute in all.
const TRIES: u32 = 35;

/// How often this process has waited, whatever for. What is wanting is the whole process's, so it is counted for all logs.
static WAITS: AtomicU64 = AtomicU64::new(0);

/// How often this process has waited so far for the system to give it a descriptor or memory.
pub fn waits() -> u64 {
    WAITS.load(Relaxed)
}

/// Tries again while the system says that it has too many open files or too little memory. Only for calls that have had no
/// effect when they say so: opening and creating files. A full disk is no such thing.
pub fn patiently<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let mut pause = PAUSE.0;
    for attempt in 0..TRIES {
        match call() {
            Err(error) if is_want(&error) => {
                if attempt == 0 {
                    WAITS.fetch_add(1, Relaxed);
                    tracing::warn!(%error, "the log waits for the system; if this lasts the node stops: raise its limit of open files, or free memory");
                }
                sleep(pause);
                pause = (2 * pause).min(PAUSE.1);
            }
            done => return done,
        }
    }
    call()
}

/// Whether the system has no descriptor or memory to give, or was interrupted.
pub fn is_want(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::EAGAIN | libc::EINTR)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_want_that_passes_is_waited_for_and_anything_else_is_not() {
        let mut wants = 3;
        let before = waits();
        let opened = patiently(|| match wants {
            0 => Ok("open"),
            _ => {
                wants -= 1;
                Err(io::Error::from_raw_os_error(libc::EMFILE))
            }
        });
        assert_eq!((opened.unwrap(), wants), ("open", 0));
        assert!(waits() > before);
        let mut calls = 0;
        let failed = patiently(|| -> io::Result<()> {
            calls += 1;
            Err(io::Error::from_raw_os_error(libc::ENOSPC))
        });
        assert_eq!(failed.unwrap_err().raw_os_error(), Some(libc::ENOSPC));
        assert_eq!(calls, 1);
    }
}
