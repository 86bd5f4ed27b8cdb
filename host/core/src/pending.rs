//! Everybody who waits for an answer of this replica, in one table.
//!
//! Queues, entries and rounds of reads hold only the key of whoever waits. Whatever forgets a key costs nobody an answer: the
//! table gives it when the deadline has passed, and when the replica ends.

use std::collections::BTreeSet;

use slotmap::{SlotMap, new_key_type};

use crate::id::{NodeId, ReplicaId};
use crate::input::Waiter;

new_key_type! {
    /// Somebody who waits. A key that was answered stays so: it is never somebody else's.
    pub(crate) struct AskerId;
}

/// Who waits, and for how long.
#[derive(Debug, Clone)]
pub(crate) struct Asker {
    pub(crate) who: Who,
    /// The tick at which it was asked.
    pub(crate) since: u64,
    /// The tick after which there is an answer in any case.
    pub(crate) deadline: u64,
    /// Whether what was asked may be applied, if nothing more is heard of it.
    pub(crate) may_apply: bool,
}

/// Where an answer goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Who {
    /// To a client of this node, who proposed something.
    Local(Waiter),
    /// To a client of this node, who asked a query.
    Reader(Waiter),
    /// To a replica that forwarded a proposal.
    Remote {
        replica: ReplicaId,
        node: NodeId,
        token: u64,
    },
}

#[derive(Debug, Default)]
pub(crate) struct Pending {
    askers: SlotMap<AskerId, Asker>,
    readers: usize,
    /// Waiters whose clients are gone. Many go at once, so they are looked for together.
    gone: BTreeSet<Waiter>,
}

impl Pending {
    /// Somebody waits from now on.
    pub(crate) fn admit(&mut self, who: Who, since: u64, deadline: u64) -> AskerId {
        self.readers += usize::from(is_reader(who));
        self.askers.insert(Asker {
            who,
            since,
            deadline,
            may_apply: false,
        })
    }

    /// Takes whoever waits, to be answered.
    pub(crate) fn take(&mut self, asker: AskerId) -> Option<Asker> {
        let asker = self.askers.remove(asker)?;
        self.readers -= usize::from(is_reader(asker.who));
        Some(asker)
    }

    /// Where the answer goes; none if there was one.
    pub(crate) fn who(&self, asker: AskerId) -> Option<Who> {
        self.askers.get(asker).map(|asker| asker.who)
    }

    pub(crate) fn waits(&self, asker: AskerId) -> bool {
        self.askers.contains_key(asker)
    }

    /// Queries that wait.
    pub(crate) fn readers(&self) -> usize {
        self.readers
    }

    /// What was asked is in a log or on its way there, or certainly in none.
    pub(crate) fn note(&mut self, asker: AskerId, may_apply: bool) {
        if let Some(asker) = self.askers.get_mut(asker) {
            asker.may_apply = may_apply;
        }
    }

    /// Nobody reads the answer of a waiter any more.
    pub(crate) fn forget(&mut self, waiter: Waiter) {
        self.gone.insert(waiter);
    }

    /// Drops those who are gone and whose proposals are in no log. `true` if there were any.
    pub(crate) fn drop_forgotten(&mut self) -> bool {
        if self.gone.is_empty() {
            return false;
        }
        let gone = std::mem::take(&mut self.gone);
        let is_gone = |who| matches!(who, Who::Local(waiter) if gone.contains(&waiter));
        let dropped = self.extract(|asker| !asker.may_apply && is_gone(asker.who));
        !dropped.is_empty()
    }

    /// Takes those for whom something holds.
    pub(crate) fn extract(&mut self, such: impl Fn(&Asker) -> bool) -> Vec<Asker> {
        let found = self.askers.iter().filter(|(_, asker)| such(asker));
        let found: Vec<_> = found.map(|(id, _)| id).collect();
        found.into_iter().filter_map(|id| self.take(id)).collect()
    }

    /// Takes those whose deadline has passed, and those who have waited so long, if that is said.
    pub(crate) fn late(&mut self, ticks: u64, patience: Option<u64>) -> Vec<Asker> {
        let has_waited = |asker: &Asker| {
            patience.is_some_and(|patience| asker.since.saturating_add(patience) <= ticks)
        };
        self.extract(|asker| asker.deadline <= ticks || has_waited(asker))
    }

    /// Whether nobody waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.askers.is_empty()
    }

    /// Takes all queries.
    pub(crate) fn take_readers(&mut self) -> Vec<Asker> {
        self.extract(|asker| is_reader(asker.who))
    }
}

fn is_reader(who: Who) -> bool {
    matches!(who, Who::Reader(_))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_is_taken_once() {
        let mut pending = Pending::default();
        let early = pending.admit(Who::Local(1), 0, 5);
        let reader = pending.admit(Who::Reader(2), 3, 9);
        assert_eq!(pending.readers(), 1);
        assert_eq!(pending.late(4, None).len(), 0);
        assert_eq!(pending.late(5, None).len(), 1);
        assert!(!pending.waits(early) && pending.take(early).is_none());
        // The place is used again; the key is not.
        let next = pending.admit(Who::Local(3), 3, 9);
        assert!(next != early && pending.who(early).is_none());
        // Where nobody waits longer than so many ticks, deadlines count for nothing.
        assert_eq!(pending.late(8, Some(6)).len(), 0);
        let mut impatient = Pending::default();
        impatient.admit(Who::Local(4), 3, 99);
        assert_eq!(impatient.late(8, Some(5)).len(), 1);
        assert_eq!(pending.take_readers().len(), 1);
        assert_eq!((pending.readers(), pending.waits(reader)), (0, false));
        assert!(pending.waits(next));
    }

    #[test]
    fn only_what_is_in_no_log_is_forgotten() {
        let mut pending = Pending::default();
        let asker = pending.admit(Who::Local(1), 0, 5);
        pending.note(asker, true);
        pending.forget(1);
        assert!(!pending.drop_forgotten() && pending.waits(asker));
        pending.note(asker, false);
        pending.forget(1);
        assert!(pending.drop_forgotten() && !pending.waits(asker));
        assert!(!pending.drop_forgotten());
    }
}
