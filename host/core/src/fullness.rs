//! A machine without room: what a leader refuses while it lasts.
//!
//! A command that fails for want of memory costs every replica a rebuild of the whole state, and whoever sent it sends the next
//! one. Sources of such commands are suspects already (see [`crate::suspects`]), but where all sources are (twelve ordinary
//! writers at the limit), what they still could do, delete and write what is small, would wait behind what cannot succeed. So a
//! suspect's commands as large as one that found no room are refused at once, with the reason; one is let through from time to
//! time to find out whether there is room again. Nothing of this is replicated: it decides only what is proposed.

use std::ops::RangeFrom;

/// Commands below this are never refused: somebody may be making room.
const SMALL_BYTES: u64 = 256;

/// Ticks from a failure to the next trial, at least: five seconds at the default ticks.
const TRIAL_TICKS: u64 = 50;
/// The same, as a multiple of what the failing entry took: what trials cost is a tenth of the time at most.
const TRIAL_FACTOR: u64 = 10;

/// What is known of a machine that had no room lately.
#[derive(Debug, Default)]
pub(crate) struct Fullness {
    full: Option<Full>,
}

#[derive(Debug)]
struct Full {
    /// Sizes for which there was no room.
    sizes: RangeFrom<u64>,
    /// The tick from which on one may try.
    trial_at: u64,
}

impl Fullness {
    /// A command of this size failed for want of memory, in an entry that took so many ticks.
    pub(crate) fn note_failure(&mut self, bytes: u64, ticks: u64, took: u64) {
        let known = self.full.as_ref().map_or(u64::MAX, |full| full.sizes.start);
        self.full = Some(Full {
            sizes: bytes.max(SMALL_BYTES).min(known)..,
            trial_at: ticks + TRIAL_TICKS.max(TRIAL_FACTOR * took),
        });
    }

    /// A command of this size was applied.
    pub(crate) fn note_success(&mut self, bytes: u64) {
        self.full.take_if(|full| full.sizes.contains(&bytes));
    }

    /// Whether a suspect's command is refused now. One that is let through as a trial has until `lapse` ticks from now to show
    /// what came of it.
    pub(crate) fn refuses(&mut self, bytes: u64, ticks: u64, lapse: u64) -> bool {
        let Some(full) = &mut self.full else {
            return false;
        };
        if !full.sizes.contains(&bytes) {
            return false;
        }
        if ticks < full.trial_at {
            return true;
        }
        full.trial_at = ticks + lapse;
        false
    }

    /// As [`refuses`](Self::refuses), of what waits already: none of it is a trial.
    pub(crate) fn is_hopeless(&self, bytes: u64) -> bool {
        self.full
            .as_ref()
            .is_some_and(|full| full.sizes.contains(&bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_found_no_room_is_refused_until_a_trial_finds_some() {
        let mut fullness = Fullness::default();
        assert!(!fullness.refuses(1000, 0, 100));
        fullness.note_failure(1000, 10, 2);
        assert!(fullness.refuses(1000, 11, 100));
        assert!(fullness.refuses(5000, 59, 100));
        assert!(!fullness.refuses(999, 11, 100), "smaller ones may fit");
        // One tries, and no other beside it.
        assert!(!fullness.refuses(1000, 60, 100));
        assert!(fullness.refuses(1000, 61, 100));
        // Smaller ones that are applied say nothing of larger ones.
        fullness.note_success(999);
        assert!(fullness.refuses(1000, 62, 100));
        fullness.note_success(1000);
        assert!(!fullness.refuses(1000, 63, 100));
    }

    #[test]
    fn trials_take_a_tenth_of_the_time_and_one_that_is_lost_is_repeated() {
        let mut fullness = Fullness::default();
        fullness.note_failure(1000, 0, 30);
        assert!(fullness.refuses(1000, 299, 100));
        assert!(!fullness.refuses(1000, 300, 100));
        assert!(fullness.refuses(1000, 399, 100));
        assert!(!fullness.refuses(1000, 400, 100));
    }

    #[test]
    fn small_commands_always_pass() {
        let mut fullness = Fullness::default();
        fullness.note_failure(5, 0, 1);
        assert!(!fullness.refuses(SMALL_BYTES - 1, 1, 100));
        assert!(fullness.refuses(SMALL_BYTES, 1, 100));
        assert!(fullness.is_hopeless(SMALL_BYTES) && !fullness.is_hopeless(5));
    }
}
