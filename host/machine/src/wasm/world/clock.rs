//! The virtual time of one instance.

use skep_core::outcome::GuestFault;

use crate::wasm::fault::Stop;

/// A virtual time that no pollable waits for: the year 2262. A guest that would have to wait longer would wait for ever.
pub(crate) const END_OF_TIME: u64 = u64::MAX / 2;

/// The guest's clock: the stamp of the entry being applied, a nanosecond more at each reading, and never back. It does
/// not start at 0, where some runtimes refuse to start.
#[derive(Clone, Debug, Default)]
pub(crate) struct Clock {
    now: u64,
}

impl Clock {
    pub(super) fn enter(&mut self, stamp: u64) {
        self.now = self.now.max(stamp).max(1);
    }

    /// As another clock was that showed this.
    pub(super) fn resume(&mut self, now: u64) {
        self.now = now;
    }

    pub(crate) fn read(&mut self) -> u64 {
        self.now = self.now.saturating_add(1);
        self.now
    }

    pub(crate) fn peek(&self) -> u64 {
        self.now
    }

    /// Sleeps: time passes at once.
    pub(crate) fn advance_to(&mut self, instant: u64) -> Result<(), Stop> {
        if instant > END_OF_TIME {
            return Err(Stop::Fault(GuestFault::ForbiddenImport));
        }
        self.now = self.now.max(instant);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_never_goes_back_and_never_starts_at_zero() {
        let mut clock = Clock::default();
        clock.enter(0);
        assert_eq!(clock.read(), 2);
        clock.enter(100);
        assert_eq!((clock.read(), clock.read()), (101, 102));
        clock.advance_to(500).unwrap();
        clock.enter(200);
        assert_eq!(clock.read(), 501);
        assert!(clock.advance_to(u64::MAX).is_err());
        clock.enter(u64::MAX);
        assert_eq!(clock.read(), u64::MAX);
    }
}
