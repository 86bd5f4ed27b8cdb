//! What each session holds of something, and which one holds most.

use std::collections::BTreeSet;

use crate::id::SessionId;

/// Weighs sessions. Who holds most is known in whole units only, so that the little that nearly every session has, and
/// that changes with each command, costs nothing to keep in order.
#[derive(Debug)]
pub(super) struct Weights {
    unit: u64,
    total: u64,
    /// Sessions that hold a unit or more, by how many.
    heavy: BTreeSet<(u64, SessionId)>,
}

impl Weights {
    pub(super) fn of_units(unit: u64) -> Self {
        Self {
            unit,
            total: 0,
            heavy: BTreeSet::new(),
        }
    }

    /// What all hold.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    /// A session holds another amount than before.
    pub(super) fn change(&mut self, session: SessionId, before: u64, after: u64) {
        self.total = self.total - before + after;
        let (from, to) = (before / self.unit, after / self.unit);
        if from != to {
            self.heavy.remove(&(from, session));
            if to > 0 {
                self.heavy.insert((to, session));
            }
        }
    }

    /// Who holds most; of several the one with the highest id. None if nobody holds a whole unit.
    pub(super) fn heaviest(&self) -> Option<SessionId> {
        self.heavy.last().map(|(_, session)| *session)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_holds_most_is_known_whatever_changed_before() {
        let mut weights = Weights::of_units(10);
        assert_eq!(weights.heaviest(), None);
        weights.change(SessionId(1), 0, 9);
        assert_eq!((weights.heaviest(), weights.total()), (None, 9));
        weights.change(SessionId(1), 9, 25);
        weights.change(SessionId(2), 0, 29);
        // Equal in whole units.
        assert_eq!(weights.heaviest(), Some(SessionId(2)));
        weights.change(SessionId(1), 25, 30);
        assert_eq!(weights.heaviest(), Some(SessionId(1)));
        weights.change(SessionId(1), 30, 0);
        weights.change(SessionId(2), 29, 5);
        assert_eq!((weights.heaviest(), weights.total()), (None, 5));
    }
}
