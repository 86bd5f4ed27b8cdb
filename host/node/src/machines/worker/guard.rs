//! Panics of machines are caught where they are called: their threads are shared.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use skep_drive::Failed;

/// Runs a call into a machine, which may panic. The caller must not use again what the call may have left half done.
pub(crate) fn guarded<T>(call: impl FnOnce() -> Result<T, Failed>) -> Result<T, Failed> {
    catch_unwind(AssertUnwindSafe(call))
        .unwrap_or_else(|panic| Err(Failed::local(format!("panicked: {}", panic_text(&*panic)))))
}

/// What a panic said.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("(no text)")
}
