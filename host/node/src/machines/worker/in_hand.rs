//! A call that an actor has in hand, from its first slice to its last, whatever other actors do between them.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::task::{Context, Poll, Wake, Waker};

use skep_drive::SLICE;

use crate::pool::run_queue::Meter;

/// A call under way. It owns what it is a call of, and gives that back at its end.
pub(crate) struct InHand<T> {
    running: Pin<Box<dyn Future<Output = T> + Send>>,
    /// Fuel of the slices that are over.
    metered: u64,
    alarm: Arc<Alarm>,
}

/// Says when a call may go on that is pending: at once, if that was the end of a slice.
struct Alarm {
    is_due: AtomicBool,
    /// Has the actor take its next turn.
    wake: Box<dyn Fn() + Send + Sync>,
}

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // Before the actor is looked at: if it is about to sleep, it sees this.
        self.is_due.store(true, SeqCst);
        (self.wake)();
    }
}

impl<T> InHand<T> {
    /// A call that has not begun. Where it waits for others, `wake` has its actor take a turn when the wait is over.
    pub(crate) fn new(
        call: impl Future<Output = T> + Send + 'static,
        wake: impl Fn() + Send + Sync + 'static,
    ) -> Self {
        Self {
            running: Box::pin(call),
            metered: 0,
            alarm: Arc::new(Alarm {
                is_due: AtomicBool::new(false),
                wake: Box::new(wake),
            }),
        }
    }

    /// Runs its next slice; answers what it gives if that is the last. Those before it are metered.
    pub(crate) fn go_on(&mut self, meter: &mut Meter) -> Option<T> {
        self.alarm.is_due.store(false, SeqCst);
        let waker = Waker::from(Arc::clone(&self.alarm));
        match self.running.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(ended) => Some(ended),
            Poll::Pending => {
                if !self.waits() {
                    meter.add(SLICE);
                    self.metered = self.metered.saturating_add(SLICE);
                }
                None
            }
        }
    }

    /// Whether it waits for others: an entry for queries, a query for an entry. Asked under the lock by which the actor is woken.
    pub(crate) fn waits(&self) -> bool {
        !self.alarm.is_due.load(SeqCst)
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
        let slices = poll_fn(move |context: &mut Context<'_>| {
            left -= 1;
            context.waker().wake_by_ref();
            match left {
                0 => Poll::Ready("ended"),
                _ => Poll::Pending,
            }
        });
        let mut call = InHand::new(slices, || {});
        let whole = u64::MAX / 2;
        let mut meters = [0; 3].map(|_| Meter::start());
        let ended = meters.each_mut().map(|meter| call.go_on(meter));
        assert_eq!(ended, [None, None, Some("ended")]);
        let [first, second, last] = &mut meters;
        assert!(first.cost() >= SLICE && second.cost() >= SLICE);
        call.settle(whole, last);
        assert_eq!(last.cost(), whole - 2 * SLICE);
    }

    #[test]
    fn a_call_that_waits_is_not_metered_and_wakes_its_actor_once_it_may_go_on() {
        let (lock, woken) = (
            Arc::new(tokio::sync::Mutex::new(())),
            Arc::new(AtomicBool::new(false)),
        );
        let held = lock.clone().try_lock_owned().unwrap();
        let mut call = {
            let woken = Arc::clone(&woken);
            InHand::new(lock.lock_owned(), move || woken.store(true, SeqCst))
        };
        let mut meter = Meter::start();
        assert!(call.go_on(&mut meter).is_none() && call.waits() && meter.cost() < SLICE);
        assert!(!woken.load(SeqCst));
        drop(held);
        assert!(woken.load(SeqCst) && !call.waits());
        assert!(call.go_on(&mut meter).is_some());
    }
}
