//! How many log lines one machine may write, in all of its instances together. Nothing of it comes back to a guest, so it may
//! follow the clock of this node.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use skep_core::id::GroupId;
use skep_types::shared::lock;

use crate::clock;

const SECOND: Duration = Duration::from_secs(1);

/// Whose machine it is, for log lines.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct MachineLabel {
    /// The group.
    pub group: GroupId,
    /// Name of the group or of the machine.
    pub name: String,
}

/// Shared by the instances of a machine, which come and go with every fault and every barrier.
#[derive(Debug)]
pub(crate) struct Logbook {
    pub(crate) label: MachineLabel,
    lines_per_second: u32,
    window: Mutex<Window>,
}

/// The second that lines are counted in. It begins with a line.
#[derive(Debug)]
struct Window {
    since: Instant,
    left: u32,
    dropped: u64,
}

impl Logbook {
    pub(crate) fn new(label: MachineLabel, lines_per_second: u32) -> Self {
        let window = Window {
            since: clock::now(),
            left: lines_per_second,
            dropped: 0,
        };
        Self {
            label,
            lines_per_second,
            window: Mutex::new(window),
        }
    }

    /// Whether one more line may be written. The first one of a new second tells how many were dropped before.
    pub(crate) fn admits_line(&self) -> bool {
        let (admitted, dropped) = self.take(clock::now());
        if let Some(dropped) = dropped {
            tracing::warn!(
                target: "skep::guest", group = %self.label.group, machine = %self.label.name, dropped,
                "log lines were dropped: the machine may write {} in a second (`log-lines-per-second` of its limits)",
                self.lines_per_second
            );
        }
        admitted
    }

    fn take(&self, now: Instant) -> (bool, Option<u64>) {
        let mut window = lock(&self.window);
        let mut told = None;
        if now.saturating_duration_since(window.since) >= SECOND {
            told = Some(window.dropped).filter(|dropped| *dropped > 0);
            *window = Window {
                since: now,
                left: self.lines_per_second,
                dropped: 0,
            };
        }
        match window.left.checked_sub(1) {
            Some(left) => {
                window.left = left;
                (true, told)
            }
            None => {
                window.dropped += 1;
                (false, told)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_bounded_in_a_second_and_what_was_dropped_is_told_once() {
        let book = Logbook::new(MachineLabel::default(), 2);
        let start = book.window.lock().unwrap().since;
        let at = |milliseconds| book.take(start + Duration::from_millis(milliseconds));
        assert_eq!([at(0), at(1)], [(true, None); 2]);
        assert_eq!([at(2), at(999)], [(false, None); 2]);
        assert_eq!(at(1000), (true, Some(2)));
        assert_eq!([at(1001), at(1002)], [(true, None), (false, None)]);
        assert_eq!(at(5000), (true, Some(1)));
        assert_eq!(at(9000), (true, None));
        let mute = Logbook::new(MachineLabel::default(), 0);
        assert!(!mute.admits_line());
    }
}
