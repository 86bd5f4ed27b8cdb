//! How a command is sent until it has an answer, and applied once. Whoever sends it brings the time and the way.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::id::{RequestId, SessionId};

/// The commands of one session: the names they are given, and which of them have no answer yet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Commands {
    session: SessionId,
    last: u64,
    unanswered: BTreeSet<u64>,
}

impl Commands {
    /// Those of a session that was just opened: none.
    pub fn new(session: SessionId) -> Self {
        Self {
            session,
            last: 0,
            unanswered: BTreeSet::new(),
        }
    }

    /// The session.
    pub fn session(&self) -> SessionId {
        self.session
    }

    /// Names the next command. All its tries bear the name, so that it is applied once.
    pub fn begin(&mut self) -> RequestId {
        self.last += 1;
        self.unanswered.insert(self.last);
        RequestId {
            session: self.session,
            sequence: self.last,
        }
    }

    /// Nobody sends the command any more. Says whether [`ahead`](Self::ahead) is less for it.
    pub fn settle(&mut self, command: RequestId) -> bool {
        let ahead = self.ahead();
        command.session == self.session
            && self.unanswered.remove(&command.sequence)
            && self.ahead() < ahead
    }

    /// Up to where all are settled, as this command tells the group. One of a former session knows nothing of these.
    pub fn acknowledged(&self, command: RequestId) -> u64 {
        match command.session == self.session {
            true => self.last - self.ahead(),
            false => 0,
        }
    }

    /// How many commands there are from the oldest unanswered one on. A group keeps the answers of the last 2048 commands
    /// of a session: below that, no answer that is still waited for is forgotten.
    pub fn ahead(&self) -> u64 {
        let oldest = self.unanswered.first().copied();
        oldest.map_or(0, |oldest| self.last + 1 - oldest)
    }
}

/// The pause after so many failures in a row: the first pause, which doubles from one to the next, and at most the longest.
pub fn doubled((first, longest): (Duration, Duration), failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    first.saturating_mul(1 << doublings).min(longest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_answered_is_acknowledged() {
        let mut commands = Commands::new(SessionId(9));
        let names = [commands.begin(), commands.begin(), commands.begin()];
        assert_eq!(names.map(|name| name.sequence), [1, 2, 3]);
        assert_eq!((commands.acknowledged(names[2]), commands.ahead()), (0, 3));
        assert!(!commands.settle(names[1]), "an older one has no answer");
        assert_eq!((commands.acknowledged(names[2]), commands.ahead()), (0, 3));
        assert!(commands.settle(names[0]));
        assert_eq!((commands.acknowledged(names[2]), commands.ahead()), (2, 1));
        assert!(!commands.settle(names[0]), "once is enough");
        assert!(commands.settle(names[2]));
        assert_eq!(commands.ahead(), 0);
    }

    #[test]
    fn a_command_of_a_former_session_changes_nothing() {
        let former = Commands::new(SessionId(9)).begin();
        let mut commands = Commands::new(SessionId(10));
        let here = commands.begin();
        commands.settle(here);
        let before = commands.clone();
        assert!(!commands.settle(former));
        assert_eq!((commands.acknowledged(former), commands), (0, before));
    }

    #[test]
    fn pauses_double_up_to_a_bound() {
        let bounds = (Duration::from_secs(1), Duration::from_secs(300));
        let seconds = |failures| doubled(bounds, failures).as_secs();
        assert_eq!(
            [1, 2, 3, 9, 10, u32::MAX].map(seconds),
            [1, 2, 4, 256, 300, 300]
        );
        assert_eq!(seconds(0), 1);
    }
}
