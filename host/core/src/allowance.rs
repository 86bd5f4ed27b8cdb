//! What is left of a quota.

use crate::deployment::Quota;
pub use crate::proposal::{SESSIONS_AT_ONCE, SESSIONS_PER_SECOND};

/// A message that costs nothing where a group has no quota of bytes. Up to this length the processor is given away between
/// two of them often enough; one of a megabyte keeps what comes behind it waiting for milliseconds.
pub const SHORT: u64 = 64 << 10;

/// What a group may have in a second; 0 is no limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Rates {
    commands: u64,
    bytes: u64,
    /// Messages up to this length cost no bytes.
    spared: u64,
}

impl Rates {
    /// Those of a group on a node: of its own quota of bytes, or of `long_bytes` in messages longer than [`SHORT`].
    pub fn of(quota: Quota, long_bytes: u64) -> Self {
        let (bytes, spared) = match quota.bytes_per_second {
            0 => (long_bytes, SHORT),
            bytes => (bytes, 0),
        };
        Self {
            commands: quota.commands_per_second.into(),
            bytes,
            spared,
        }
    }
}

/// What may be taken now: a token bucket for each.
#[derive(Clone, Copy, Debug, Default)]
pub struct Allowance {
    sessions: Bucket,
    commands: Bucket,
    bytes: Bucket,
    /// Wall clock at the last refill.
    at: u64,
}

impl Allowance {
    /// Refills all. A clock that jumps gives no more than a second's worth, and takes nothing.
    pub fn refill(&mut self, rates: Rates, now: u64) {
        let passed = now.saturating_sub(self.at).min(SECOND);
        self.at = now;
        let full = SESSIONS_AT_ONCE * SECOND / SESSIONS_PER_SECOND;
        self.sessions.refill(SESSIONS_PER_SECOND, passed, full);
        self.commands.refill(rates.commands, passed, SECOND);
        self.bytes.refill(rates.bytes, passed, BURST);
    }

    /// Takes the opening of a session out. `false` if there is none left.
    pub fn take_session(&mut self) -> bool {
        let taken = self.sessions.has(1);
        if taken {
            self.sessions.take(1);
        }
        taken
    }

    /// Takes one command out. `false` if there is none left.
    pub fn take_command(&mut self, rates: Rates) -> bool {
        if self.owes_command(rates) {
            return false;
        }
        if rates.commands != 0 {
            self.commands.take(1);
        }
        true
    }

    /// Whether a command is refused until there is one left again.
    pub fn owes_command(&self, rates: Rates) -> bool {
        rates.commands != 0 && !self.commands.has(1)
    }

    /// Takes what a command, a query or an answer of so many bytes costs, which may be more than there is: how long an answer is
    /// shows when it is there.
    pub fn take_bytes(&mut self, rates: Rates, length: usize) {
        let length = length as u64;
        if rates.bytes != 0 && length > rates.spared {
            self.bytes.take(length);
        }
    }

    /// Whether a command has to wait until what was taken is made up for.
    pub fn owes_bytes(&self, rates: Rates) -> bool {
        rates.bytes != 0 && !self.bytes.has(1)
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
