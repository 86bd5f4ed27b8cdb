//! Calls of machines run to their end, on a thread that has nothing else to do.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

/// Runs what a machine does to its end on this thread: for replays, rehearsals and tests.
pub trait ToEnd: Future + Sized {
    /// Polls until it is over; lets other threads go first wherever it is pending. What it waits
    /// for must not be this thread's to do.
    fn to_end(self) -> Self::Output {
        let mut running = pin!(self);
        let mut context = Context::from_waker(Waker::noop());
        loop {
            match running.as_mut().poll(&mut context) {
                Poll::Ready(output) => return output,
                Poll::Pending => std::thread::yield_now(),
            }
        }
    }
}

impl<F: Future> ToEnd for F {}
