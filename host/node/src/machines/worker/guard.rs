//! Panics of machines are caught where they are called: their threads are shared.

use std::panic::{AssertUnwindSafe, catch_unwind};

use skep_drive::Failed;

use crate::panics::panic_text;

/// Runs a call into a machine, which may panic. The caller must not use again what the call may have left half done.
pub(crate) fn guarded<T>(call: impl FnOnce() -> Result<T, Failed>) -> Result<T, Failed> {
    catch_unwind(AssertUnwindSafe(call))
        .unwrap_or_else(|panic| Err(Failed::local(format!("panicked: {}", panic_text(&*panic)))))
}
