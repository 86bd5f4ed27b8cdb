//! Panics of machines are caught where they are called: their threads are shared.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use skep_drive::Failed;

use crate::panics::panic_text;

/// Runs a call into a machine, which may panic. The caller must not use again what the call may have left half done.
pub(crate) fn guarded<T>(call: impl FnOnce() -> Result<T, Failed>) -> Result<T, Failed> {
    catch_unwind(AssertUnwindSafe(call))
        .unwrap_or_else(|panic| Err(Failed::local(format!("panicked: {}", panic_text(&*panic)))))
}

/// Runs a call to its end, unless nobody waits for it any more.
pub(crate) fn unless<T>(
    is_over: impl Fn() -> bool,
    call: impl Future<Output = T>,
) -> Result<T, Failed> {
    let mut call = pin!(call);
    let mut context = Context::from_waker(Waker::noop());
    loop {
        if let Poll::Ready(ran) = call.as_mut().poll(&mut context) {
            return Ok(ran);
        }
        if is_over() {
            return Err(Failed::local("nobody waits for it any more"));
        }
    }
}
