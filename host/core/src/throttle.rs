//! How much less a leader takes of its clients for the sake of members that do not catch up otherwise.

/// All of it, in thousandths.
const WHOLE: u64 = 1000;

/// By so much less is taken when a member has not come nearer.
const STEP: (u64, u64) = (2, 3);

/// Bytes in a tick that are taken in any case: a group that does so little keeps nobody from catching up.
const LEAST_BYTES: u64 = 64 << 10;

/// Ticks over which what is usual is averaged.
const USUAL_TICKS: u64 = 16;

/// What a leader takes of its clients, in bytes of commands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Throttle {
    /// Thousandths of what is usual.
    share: u64,
    /// Bytes in a tick while nothing is held back.
    usual: u64,
    /// Ticks that this is the average of.
    known: u64,
    taken: u64,
    /// Bytes that may be taken until the next tick; what was taken beyond them is made up for.
    left: i64,
}

impl Default for Throttle {
    fn default() -> Self {
        Self {
            share: WHOLE,
            usual: 0,
            known: 0,
            taken: 0,
            left: 0,
        }
    }
}

impl Throttle {
    /// Commands of so many bytes were taken.
    pub(crate) fn take(&mut self, bytes: u64) {
        self.taken += bytes;
        self.left = self.left.saturating_sub_unsigned(bytes);
    }

    pub(crate) fn tick(&mut self) {
        let taken = std::mem::take(&mut self.taken);
        if self.is_open() {
            self.known = (self.known + 1).min(USUAL_TICKS);
            self.usual = (self.usual * (self.known - 1) + taken) / self.known;
            self.left = 0;
            return;
        }
        let more = (self.usual * self.share / WHOLE).max(LEAST_BYTES);
        let more = i64::try_from(more).unwrap_or(i64::MAX);
        self.left = self.left.saturating_add(more).min(more);
    }

    /// Takes less from now on, but not less than this share, in percent. `false` if it has come to that already, or if it is
    /// not known yet what is usual: a share of it might be nothing.
    pub(crate) fn tighten(&mut self, least_percent: u64) -> bool {
        if self.known < USUAL_TICKS {
            return false;
        }
        let least = (least_percent * WHOLE / 100).clamp(1, WHOLE);
        let before = self.share;
        self.share = (self.share * STEP.0 / STEP.1).max(least);
        self.share < before
    }

    /// Takes all again.
    pub(crate) fn open(&mut self) {
        self.share = WHOLE;
    }

    /// Whether nothing is held back.
    pub(crate) fn is_open(&self) -> bool {
        self.share == WHOLE
    }

    /// Whether commands have to wait for the next tick.
    pub(crate) fn holds_back(&self) -> bool {
        !self.is_open() && self.left <= 0
    }

    /// The share that is taken, in percent.
    pub(crate) fn percent(&self) -> u8 {
        (self.share * 100 / WHOLE) as u8
    }

    /// Bytes in a tick while nothing was held back.
    pub(crate) fn usual(&self) -> u64 {
        self.usual
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes as much as it may, in commands of 8 KiB, for so many ticks.
    fn taken(throttle: &mut Throttle, wanted: u64, ticks: u64) -> u64 {
        let mut sum = 0;
        for _ in 0..ticks {
            throttle.tick();
            let mut here = 0;
            while here < wanted && !throttle.holds_back() {
                throttle.take(8 << 10);
                here += 8 << 10;
            }
            sum += here;
        }
        sum
    }

    #[test]
    fn the_share_of_the_usual_is_taken_and_no_less() {
        let mut throttle = Throttle::default();
        let wanted = 8 << 20;
        let whole = taken(&mut throttle, wanted, 100);
        assert_eq!(whole, 100 * wanted);
        while throttle.tighten(25) {}
        assert_eq!(throttle.percent(), 25);
        let part = taken(&mut throttle, wanted, 100);
        assert!((23..=26).contains(&(part * 100 / whole)), "{part}");
        throttle.open();
        assert_eq!(taken(&mut throttle, wanted, 10), 10 * wanted);
        // A new leader does not know yet what is usual.
        let mut new = Throttle::default();
        taken(&mut new, wanted, USUAL_TICKS - 1);
        assert!(!new.tighten(25) && new.is_open());
        taken(&mut new, wanted, 1);
        assert!(new.tighten(25));
        assert!(new.usual() > wanted * 9 / 10, "{}", new.usual());
        // Who takes next to nothing is not held back below that.
        let mut idle = Throttle::default();
        taken(&mut idle, 8 << 10, 100);
        while idle.tighten(1) {}
        assert_eq!(taken(&mut idle, 8 << 10, 100), 100 * (8 << 10));
    }
}
