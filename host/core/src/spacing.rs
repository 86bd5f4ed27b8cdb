//! How far the barriers of a group are apart, by its log.

use crate::config::Limits;
use crate::group::SinceBarrier;

/// Bytes of log between two barriers are as many as the snapshot has, but not more than this many times
/// [`Limits::barrier_log_bytes_max`]: the machine keeps the commands in memory.
const LARGE_STATE: u64 = 4;

/// Between two barriers that the length of the log asks for there is this many times what the last one took, unless the log
/// is twice as long by then. What it took ends with the file: an image stops nobody, but to write one after the other would keep
/// the disk busy.
const REST: u64 = 4;

/// So much log is worth a barrier. The machine stands still for it, so that barriers of a large state are further apart: by bytes
/// of log, and by the time that the last one took.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Spacing {
    bytes: u64,
    entries: u64,
}

impl Spacing {
    /// For a state whose snapshot has so many bytes.
    pub(crate) fn of(limits: &Limits, entries: u64, snapshot: u64) -> Self {
        let most = limits.barrier_log_bytes_max;
        let most = snapshot.clamp(most, most.saturating_mul(LARGE_STATE));
        let least = limits.barrier_log_bytes_min.min(most);
        Self {
            bytes: snapshot.saturating_mul(4).clamp(least, most),
            entries,
        }
    }

    /// Whether the log is so long, and the machine has rested, or twice as long.
    pub(crate) fn is_reached(self, since: &SinceBarrier, ticks: u64) -> bool {
        let has_rested = ticks >= since.began + REST * since.took;
        self.is_passed(since, 1) && has_rested || self.is_passed(since, 2)
    }

    fn is_passed(self, since: &SinceBarrier, times: u64) -> bool {
        since.bytes >= self.bytes.saturating_mul(times)
            || since.entries >= self.entries.saturating_mul(times)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_larger_state_has_more_log_between_barriers_within_bounds() {
        let limits = Limits::default();
        for (snapshot, bytes) in [
            (0, 4 * MIB),
            (MIB, 4 * MIB),
            (3 * MIB, 12 * MIB),
            (16 * MIB, 64 * MIB),
            (64 * MIB, 64 * MIB),
            (100 * MIB, 100 * MIB),
            (256 * MIB, 256 * MIB),
            (4096 * MIB, 256 * MIB),
            (u64::MAX, 256 * MIB),
        ] {
            let expected = Spacing { bytes, entries: 8 };
            assert_eq!(Spacing::of(&limits, 8, snapshot), expected, "{snapshot}");
        }
        // The lower bound may be the higher one; then it counts for nothing.
        let odd = Limits {
            barrier_log_bytes_min: 2 * MIB,
            barrier_log_bytes_max: MIB,
            ..limits
        };
        assert_eq!(Spacing::of(&odd, 8, 0).bytes, MIB);
    }

    #[test]
    fn a_barrier_waits_four_times_what_the_last_one_took_or_for_twice_the_log() {
        let spacing = Spacing {
            bytes: 100,
            entries: 10,
        };
        let reached = |bytes, entries, ticks| {
            let since = SinceBarrier {
                bytes,
                entries,
                began: 50,
                took: 5,
                ..SinceBarrier::default()
            };
            spacing.is_reached(&since, ticks)
        };
        assert!(!reached(99, 9, 1000));
        assert!(!reached(100, 0, 69) && reached(100, 0, 70));
        assert!(!reached(0, 10, 69) && reached(0, 10, 70));
        assert!(!reached(199, 19, 69));
        assert!(reached(200, 0, 51) && reached(0, 20, 51));
    }
}
