//! The clock of this node, read nowhere else in this crate. Nothing of it reaches a guest: it may pace log lines only.

use std::time::Instant;

/// The present moment.
pub(crate) fn now() -> Instant {
    Instant::now()
}
