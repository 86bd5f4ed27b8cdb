//! Calls of machines: panics are caught where they are called, since their threads are shared, and nobody waits for what nobody wants.

use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::task::Poll;

use skep_drive::Failed;

use crate::panics::panic_text;

/// Runs a call into a machine, which may panic. The caller must not use again what the call may have left half done.
pub(crate) async fn guarded<T>(call: impl Future<Output = Result<T, Failed>>) -> Result<T, Failed> {
    let mut call = pin!(call);
    poll_fn(|cx| {
        let poll = AssertUnwindSafe(|| call.as_mut().poll(cx));
        catch_unwind(poll).unwrap_or_else(|panic| {
            let reason = format!("panicked: {}", panic_text(&*panic));
            Poll::Ready(Err(Failed::local(reason)))
        })
    })
    .await
}

/// Runs a call to its end; or lets it go between two of its slices, once it is over for whoever asked for it.
pub(crate) async fn unless<T>(
    is_over: impl Fn() -> bool,
    call: impl Future<Output = T>,
) -> Option<T> {
    let mut call = pin!(call);
    poll_fn(|cx| match call.as_mut().poll(cx) {
        Poll::Ready(ran) => Poll::Ready(Some(ran)),
        Poll::Pending if is_over() => Poll::Ready(None),
        Poll::Pending => Poll::Pending,
    })
    .await
}
