//! What threads share. A panic in one of them is a defect of Skep that is told elsewhere: the others go on with what is there.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Takes what is shared, even if whoever had it panicked.
pub fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits as long as this holds of what is shared, likewise.
pub fn wait_while<'a, T>(
    changed: &Condvar,
    mut shared: MutexGuard<'a, T>,
    holds: impl Fn(&T) -> bool,
) -> MutexGuard<'a, T> {
    while holds(&shared) {
        let woken = changed.wait(shared);
        shared = woken.unwrap_or_else(PoisonError::into_inner);
    }
    shared
}
