//! The only reader of time: waiting for a condition, with an end.

use std::time::{Duration, Instant};

/// Longest a condition may take that depends on elections, restarts and the compilation of a guest in three processes
/// that share a busy machine. Only a failing test ever waits this long.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Pause between two looks at a condition.
const POLL: Duration = Duration::from_millis(10);

/// Looks until the condition gives a value.
///
/// # Panics
/// After [`PATIENCE`], with what the condition said last.
pub async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Result<T, String>) -> T {
    let started = Instant::now();
    loop {
        match look().await {
            Ok(value) => return value,
            Err(seen) if started.elapsed() > PATIENCE => {
                panic!("{what}: not within {PATIENCE:?}; last seen: {seen}")
            }
            Err(_) => tokio::time::sleep(POLL).await,
        }
    }
}

/// As [`eventually`], for what can only be looked at without waiting.
///
/// # Panics
/// As [`eventually`].
pub async fn until(what: &str, mut look: impl FnMut() -> bool) {
    eventually(what, async || {
        if look() {
            Ok(())
        } else {
            Err("not yet".to_owned())
        }
    })
    .await;
}

/// The result of the future.
///
/// # Panics
/// If it takes longer than the limit.
pub async fn within<F: Future>(limit: Duration, what: &str, future: F) -> F::Output {
    match tokio::time::timeout(limit, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what}: not within {limit:?}"),
    }
}

/// What the future gives, or `None` if it takes longer than the limit.
pub async fn timeout<F: Future>(limit: Duration, future: F) -> Option<F::Output> {
    tokio::time::timeout(limit, future).await.ok()
}

/// Waits. For faults that last a given time; a test that waits for something waits for it with [`eventually`].
pub async fn pause(duration: Duration) {
    tokio::time::sleep(duration).await;
}

/// Measures how long something takes.
#[derive(Clone, Copy, Debug)]
pub struct Stopwatch(Instant);

impl Stopwatch {
    /// Begins now.
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Since the start.
    pub fn elapsed(self) -> Duration {
        self.0.elapsed()
    }
}

/// Blocks until the look gives a value or the limit has passed. For process ends, which are no futures here.
pub(crate) fn blocking_until<T>(limit: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let started = Instant::now();
    loop {
        if let Some(value) = look() {
            return Some(value);
        }
        if started.elapsed() > limit {
            return None;
        }
        std::thread::sleep(POLL);
    }
}
