//! How long the commands of a machine run in a fork, after one of them has failed.

use std::time::Duration;

/// What a call costs more in a fork: about as much as this.
const COST: Duration = Duration::from_micros(5);

/// Calls at least: who fails once may fail again soon.
const CALLS_MIN: u32 = 1_000;

/// Whether calls run in a fork that is thrown away if they fail.
///
/// A call that fails in the machine's own instance ends it, and to build it again takes as long as the state is large. A call that
/// fails in a fork costs a fork, but every call costs a little more. So calls are guarded for as long as that costs no more than
/// the rebuild it may spare. Nothing that a guest can see depends on it, so this may follow the clock of the node.
#[derive(Debug, Default)]
pub(crate) struct Guard {
    calls_left: u32,
}

impl Guard {
    /// A call has failed in the machine's own instance, and it took so long to have the machine again.
    pub(crate) fn raise(&mut self, rebuilt: Duration) {
        let calls = rebuilt.as_nanos() / COST.as_nanos();
        self.keep(u32::try_from(calls).unwrap_or(u32::MAX));
    }

    /// A call has failed in a fork.
    pub(crate) fn renew(&mut self) {
        self.keep(CALLS_MIN);
    }

    fn keep(&mut self, calls: u32) {
        self.calls_left = self.calls_left.max(calls).max(CALLS_MIN);
    }

    /// Whether the next call is guarded.
    pub(crate) fn take(&mut self) -> bool {
        let is_up = self.calls_left > 0;
        self.calls_left = self.calls_left.saturating_sub(1);
        is_up
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_guarded_for_as_long_as_that_costs_no_more_than_a_rebuild() {
        let mut guard = Guard::default();
        assert!(!guard.take());
        let mut guarded = |raise: &dyn Fn(&mut Guard)| {
            raise(&mut guard);
            (0..).take_while(|_| guard.take()).count()
        };
        assert_eq!(guarded(&|guard| guard.raise(Duration::ZERO)), 1_000);
        assert_eq!(
            guarded(&|guard| guard.raise(Duration::from_secs(1))),
            200_000
        );
        assert_eq!(guarded(&|guard| guard.renew()), 1_000);
    }
}
