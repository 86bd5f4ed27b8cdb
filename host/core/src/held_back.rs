//! What holds commands of clients back on this replica, for its status.

use crate::group::Group;
use crate::status::HeldBack;

/// A refusal is shown for so many ticks.
const SHOWN_TICKS: u64 = 10;

impl Group {
    pub(crate) fn held_back(&self) -> Vec<HeldBack> {
        let rates = self.rates();
        let bytes = match self.quota().bytes_per_second {
            0 => HeldBack::LongBytesPerSecond,
            _ => HeldBack::BytesPerSecond,
        };
        let was_full = |at: u64| self.ticks <= at + SHOWN_TICKS;
        [
            (self.state.paused, HeldBack::Paused),
            (self.awaits_decision(), HeldBack::Upgrade),
            (self.proposals.suspects.len() > 0, HeldBack::Suspects),
            (
                self.leads() && self.allowance.owes_command(rates),
                HeldBack::CommandsPerSecond,
            ),
            (self.waits_for_quota(), bytes),
            (
                self.proposals.full_at.is_some_and(was_full),
                HeldBack::BytesInFlight,
            ),
            (
                self.catch_up_status().share_percent < 100,
                HeldBack::CatchUp,
            ),
        ]
        .into_iter()
        .filter_map(|(holds, what)| holds.then_some(what))
        .collect()
    }
}
