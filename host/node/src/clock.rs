//! The only reader of time: the wall clock that stamps entries, the node's ticks, and how long a caller waits.

use std::future::Future;
use std::io;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

pub use skep_types::retry::doubled;

/// The wall clock in nanoseconds since the Unix epoch; 0 on a machine whose clock stands before it. Only a stamp: the
/// core makes the stamps of a log non-decreasing.
pub fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| {
            u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
        })
}

/// What the future gives, or `None` if it takes longer than `limit`. Needs a tokio runtime with time enabled.
pub async fn timeout<F: Future>(limit: Duration, future: F) -> Option<F::Output> {
    tokio::time::timeout(limit, future).await.ok()
}

/// Waits. Needs a tokio runtime with time enabled.
pub async fn sleep(duration: Duration) {
    tokio::time::sleep(duration).await;
}

/// Measures how long something takes. Where a test has stopped tokio's clock it shows that one's time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stopwatch(tokio::time::Instant);

impl Stopwatch {
    /// Starts to measure.
    pub fn start() -> Self {
        Self(tokio::time::Instant::now())
    }

    /// Since the start.
    pub fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
}

/// A thread that ticks until it is dropped. Ticks that are late are left out, never caught up with: raft's timeouts
/// count ticks, and a burst of old ones would expire them all at once.
pub(crate) struct Metronome {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Metronome {
    /// Calls `tick` every `period`.
    pub(crate) fn start(
        period: Duration,
        mut tick: impl FnMut() + Send + 'static,
    ) -> io::Result<Self> {
        let (stop, stopped) = channel();
        let thread = std::thread::Builder::new()
            .name("skep-ticker".into())
            .spawn(move || {
                let mut next = Instant::now() + period;
                loop {
                    match stopped.recv_timeout(next.saturating_duration_since(Instant::now())) {
                        Err(RecvTimeoutError::Timeout) => tick(),
                        Ok(()) | Err(RecvTimeoutError::Disconnected) => return,
                    }
                    next = (next + period).max(Instant::now());
                }
            })?;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for Metronome {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != std::thread::current().id()
            && thread.join().is_err()
        {
            tracing::error!("the ticker thread panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metronome_ticks_until_it_is_dropped() {
        let (ticked, ticks) = channel();
        let metronome = Metronome::start(Duration::from_millis(1), move || {
            // The test may have its ticks already.
            ticked.send(()).unwrap_or_default();
        })
        .expect("a thread starts");
        for _ in 0..3 {
            ticks.recv().expect("ticks come");
        }
        drop(metronome);
        // The thread is joined, so its sender is gone and the channel ends.
        while ticks.try_recv().is_ok() {}
        assert!(ticks.recv().is_err());
    }
}
