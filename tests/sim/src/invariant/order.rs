//! Purged ≤ snapshot ≤ applied ≤ commit ≤ last, and none of term, commit and applied ever goes back while a replica runs.

use std::collections::HashMap;

use skep_core::status::{Health, Part, Status};

use super::Place;
use super::ledger::Image;

/// How far each replica was.
#[derive(Debug, Default)]
pub struct Order {
    seen: HashMap<Place, Seen>,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    replica: u64,
    term: u64,
    commit: u64,
    applied: u64,
}

impl Order {
    /// A replica begins anew.
    pub fn began(&mut self, place: Place) {
        self.seen.remove(&place);
    }

    /// `restoring` while a snapshot is on its way into the machine, or may come to be, because the replicas differ.
    pub fn check(&mut self, place: Place, status: &Status, restoring: bool) -> Result<(), String> {
        if status.part == Part::Stopped || status.part == Part::Uninitialized {
            return Ok(());
        }
        let purged = status.first.0.saturating_sub(1);
        let (snapshot, applied) = (status.snapshot.0, status.applied.0);
        let (commit, last) = (status.commit.0, status.last.0);
        // Its machine cannot go on from the image.
        let is_damaged = matches!(status.health, Health::Damaged { .. });
        // An entry can be applied before its commit index is recorded, never before it is known.
        let in_order = (purged <= snapshot || has_lost(status) || (restoring && snapshot == 0))
            && (snapshot <= applied || restoring || is_damaged)
            && applied <= commit
            && snapshot <= commit
            && commit <= last;
        if !in_order {
            return Err(format!(
                "purged {purged} ≤ snapshot {snapshot} ≤ applied {applied} ≤ commit {commit} ≤ last {last} does not \
                 hold on node {}",
                place.node
            ));
        }
        let now = Seen {
            replica: status.replica.0,
            term: status.term.0,
            commit,
            applied,
        };
        if let Some(before) = self.seen.insert(place, now) {
            let back = now.term < before.term
                || now.commit < before.commit
                || now.applied < before.applied
                || now.replica != before.replica;
            if back {
                return Err(format!(
                    "node {} went back: {before:?}, {now:?}",
                    place.node
                ));
            }
        }
        Ok(())
    }
}

/// Whether the replica's snapshot turned out to be damaged or wrong, so that it offers none.
fn has_lost(status: &Status) -> bool {
    let says_so = matches!(
        status.health,
        Health::Damaged { .. }
            | Health::Degraded { .. }
            | Health::Quarantined { .. }
            | Health::Faulted { .. }
    );
    status.snapshot.0 == 0 && says_so
}

/// The log in memory ends where the one that was written does.
pub fn check_last(status: &Status, written: &Image) -> Result<(), String> {
    if status.part == Part::Stopped || status.last.0 == written.last() {
        return Ok(());
    }
    Err(format!(
        "the log on node {} ends at {}, what was written at {}",
        status.node,
        status.last,
        written.last()
    ))
}
