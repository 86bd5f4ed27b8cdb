//! What is left of a quota.

use crate::deployment::Quota;

/// What may be taken now under a [`Quota`]: two token buckets.
#[derive(Clone, Copy, Debug, Default)]
pub struct Allowance {
    commands: Bucket,
    bytes: Bucket,
    /// Wall clock at the last refill.
    at: u64,
}

impl Allowance {
    /// Refills both. A clock that jumps gives no more than a second's worth, and takes nothing.
    pub fn refill(&mut self, quota: Quota, now: u64) {
        let passed = now.saturating_sub(self.at).min(SECOND);
        self.at = now;
        let commands = u64::from(quota.commands_per_second);
        self.commands.refill(commands, passed, SECOND);
        self.bytes.refill(quota.bytes_per_second, passed, BURST);
    }

    /// Takes one command out. `false` if there is none left.
    pub fn take_command(&mut self, quota: Quota) -> bool {
        if quota.commands_per_second == 0 {
            return true;
        }
        let taken = self.commands.has(1);
        if taken {
            self.commands.take(1);
        }
        taken
    }

    /// Takes bytes out, which may be more than there are: how long a reply is shows when it is there.
    pub fn take_bytes(&mut self, quota: Quota, bytes: u64) {
        if quota.bytes_per_second != 0 {
            self.bytes.take(bytes);
        }
    }

    /// Whether a command has to wait until what was taken is made up for.
    pub fn owes_bytes(&self, quota: Quota) -> bool {
        quota.bytes_per_second != 0 && !self.bytes.has(1)
    }
}

const SECOND: u64 = 1_000_000_000;

/// What a group may save up of its bytes, in nanoseconds: little enough that its neighbours hardly notice when it is used.
const BURST: u64 = SECOND / 4;

/// What a group may owe, in nanoseconds: replies that are longer than was thought must not keep it out of service for long.
const DEBT: u64 = 4 * SECOND;

/// A token bucket.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    /// In billionths, so that a tick of any length refills it exactly. Below zero is what is owed.
    left: i128,
}

impl Default for Bucket {
    /// Full, whatever its rate will be.
    fn default() -> Self {
        Self {
            left: i128::MAX / 2,
        }
    }
}

impl Bucket {
    /// Adds what `rate` a second gives in `passed` nanoseconds, up to what it gives in `full`.
    fn refill(&mut self, rate: u64, passed: u64, full: u64) {
        let worth = |time: u64| i128::from(rate) * i128::from(time);
        let owed = self.left.max(-worth(DEBT));
        self.left = (owed + worth(passed)).min(worth(full.max(passed)));
    }

    fn has(&self, count: u64) -> bool {
        self.left >= i128::from(count) * i128::from(SECOND)
    }

    fn take(&mut self, count: u64) {
        self.left -= i128::from(count) * i128::from(SECOND);
    }
}
