//! A call that an actor has in hand, from its first slice to its last, whatever other actors do between them.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use skep_drive::SLICE;

use crate::pool::run_queue::Meter;

/// A call under way. It owns what it is a call of, and gives that back at its end.
pub(crate) struct InHand<T> {
    running: Pin<Box<dyn Future<Output = T> + Send>>,
    /// Fuel of the slices that are over.
    metered: u64,
}

impl<T> InHand<T> {
    /// A call that has not begun.
    pub(crate) fn new(call: impl Future<Output = T> + Send + 'static) -> Self {
        Self {
            running: Box::pin(call),
            metered: 0,
        }
    }

    /// Runs its next slice; answers what it gives if that is the last. Those before it are metered.
    pub(crate) fn go_on(&mut self, meter: &mut Meter) -> Option<T> {
        let mut context = Context::from_waker(Waker::noop());
        match self.running.as_mut().poll(&mut context) {
            Poll::Ready(ended) => Some(ended),
            Poll::Pending => {
                meter.add(SLICE);
                self.metered = self.metered.saturating_add(SLICE);
                None
            }
        }
    }

    /// Meters what a call that has ended used beyond its whole slices.
    pub(crate) fn settle(self, fuel: u64, meter: &mut Meter) {
        meter.add(fuel.saturating_sub(self.metered));
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    #[test]
    fn a_call_is_metered_slice_by_slice_and_its_fuel_is_counted_once() {
        let mut left = 3;
        let mut call = InHand::new(poll_fn(move |_| {
            left -= 1;
            match left {
                0 => Poll::Ready("ended"),
                _ => Poll::Pending,
            }
        }));
        let whole = u64::MAX / 2;
        let mut meters = [0; 3].map(|_| Meter::start());
        let ended = meters.each_mut().map(|meter| call.go_on(meter));
        assert_eq!(ended, [None, None, Some("ended")]);
        let [first, second, last] = &mut meters;
        assert!(first.cost() >= SLICE && second.cost() >= SLICE);
        call.settle(whole, last);
        assert_eq!(last.cost(), whole - 2 * SLICE);
    }
}
