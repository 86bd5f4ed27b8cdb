//! Members that are behind, and what of the log is kept for them.
//!
//! Behind a snapshot a little of the log stays in any case. More stays while somebody needs it: a member that answers, from
//! the snapshot on that it was sent; and one that is silent, as long as the log is cheaper for it than the snapshot. It stays
//! in the files, within [`Limits::log_retained_bytes`](crate::Limits). Beyond that the member needs a snapshot.

use std::collections::BTreeMap;

use raft::ProgressState;

use crate::changes::PROMOTION_LAG;
use crate::effect::Persist;
use crate::group::{Group, Raft};
use crate::id::{LogIndex, ReplicaId};

/// Bytes that a member may lack and be taken for caught up: what is on its way at any time.
const CAUGHT_UP_BYTES: u64 = 1 << 20;

/// Bytes of log that nobody needs any more for which no record of their own is written.
const RELEASE_BYTES: u64 = 1 << 20;

/// Who needs entries of the log that the snapshot covers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Needer {
    /// A member that has less than this leader keeps in any case.
    Member(ReplicaId),
}

/// Who needs what of the log.
#[derive(Debug, Default)]
pub(crate) struct CatchUp {
    /// Entries after these places are needed.
    needs: BTreeMap<Needer, LogIndex>,
    /// Members that are catching up: from where on the log is kept for each.
    behind: BTreeMap<ReplicaId, LogIndex>,
}

/// A member as Raft sees it.
#[derive(Clone, Copy, Debug)]
struct Seen {
    replica: ReplicaId,
    matched: LogIndex,
    /// The snapshot that is on its way to it.
    snapshot: Option<LogIndex>,
}

impl CatchUp {
    /// The first entry that somebody needs follows this one.
    fn floor(&self) -> Option<LogIndex> {
        self.needs.values().min().copied()
    }
}

impl Group {
    /// Looks after members that are behind, once in a tick.
    pub(crate) fn follow_members(&mut self) {
        self.note_needs();
        self.release_log();
    }

    /// Finds out who needs what of the log now.
    pub(crate) fn note_needs(&mut self) {
        self.catch_up.needs.clear();
        if !self.leads() {
            self.catch_up = CatchUp::default();
            return;
        }
        let members = self.seen_members();
        let known = |replica: &ReplicaId| members.iter().any(|seen| seen.replica == *replica);
        self.catch_up.behind.retain(|replica, _| known(replica));
        for seen in members {
            if let Some(from) = self.needed_by(seen) {
                let needer = Needer::Member(seen.replica);
                self.catch_up.needs.insert(needer, from);
            }
        }
        self.keep_within_budget();
    }

    fn seen_members(&self) -> Vec<Seen> {
        let Some(Raft(node)) = &self.raft else {
            return Vec::new();
        };
        let others = node
            .raft
            .prs()
            .iter()
            .filter(|(id, _)| **id != node.raft.id);
        others
            .map(|(id, progress)| Seen {
                replica: ReplicaId(*id),
                matched: LogIndex(progress.matched),
                snapshot: (progress.state == ProgressState::Snapshot
                    && progress.pending_snapshot > 0)
                    .then_some(LogIndex(progress.pending_snapshot)),
            })
            .collect()
    }

    /// From where on a member needs the log, if it is to have what it lacks from there.
    fn needed_by(&mut self, seen: Seen) -> Option<LogIndex> {
        let Seen {
            replica,
            matched,
            snapshot,
        } = seen;
        let tracked = self.catch_up.behind.get(&replica).copied();
        let active = self.is_active(replica);
        let cheap = self.snapshot_name().map_or(0, |name| name.size);
        let Some(Raft(node)) = &mut self.raft else {
            return None;
        };
        let view = node.mut_store();
        let from = matched
            .max(snapshot.unwrap_or_default())
            .max(tracked.unwrap_or_default());
        let lacks = view.bytes_after(from);
        let has_caught_up = snapshot.is_none()
            && matched >= from
            && matched.0 >= view.evicted()
            && (lacks <= CAUGHT_UP_BYTES || matched.0 + PROMOTION_LAG >= view.last().0);
        let is_known = matched.0 > 0 || snapshot.is_some();
        let catches_up = is_known
            && !has_caught_up
            && (snapshot.is_some() || active && (tracked.is_some() || matched.0 < view.evicted()));
        if catches_up {
            self.catch_up.behind.insert(replica, from);
        } else {
            self.catch_up.behind.remove(&replica);
        }
        let is_there = from.0 + 1 >= view.first().0 && from.0 >= view.read_back().lost();
        (is_known && is_there && (active || catches_up || lacks <= cheap)).then_some(from)
    }

    /// Drops the needs of those who lack most, until what is kept for the others is within its bounds.
    fn keep_within_budget(&mut self) {
        let most = self.config.limits.log_retained_bytes;
        let Some(Raft(node)) = &self.raft else { return };
        let view = node.store();
        while let Some(floor) = self.catch_up.floor()
            && view.bytes_behind_snapshot_after(floor) > most
        {
            self.catch_up.needs.retain(|_, from| *from != floor);
        }
    }

    /// The last entry at or below a snapshot that nobody needs.
    pub(crate) fn unneeded_through(&self, snapshot: LogIndex) -> LogIndex {
        let limits = &self.config.limits;
        let Some(Raft(node)) = &self.raft else {
            return LogIndex(0);
        };
        let kept = self.config.snapshot_entries / 4;
        let last = (node.store()).compaction(snapshot, kept, limits.log_kept_bytes);
        self.catch_up.floor().map_or(last, |floor| last.min(floor))
    }

    /// Forgets what was kept for somebody who does not need it any more.
    fn release_log(&mut self) {
        let Some(snapshot) = self.snapshot_name().map(|name| name.index) else {
            return;
        };
        let last = self.unneeded_through(snapshot);
        let Some(Raft(node)) = &mut self.raft else {
            return;
        };
        let view = node.mut_store();
        let kept = view.bytes_behind_snapshot();
        let free = kept - view.bytes_behind_snapshot_after(last).min(kept);
        // While somebody moves along a record for every step would be many.
        let is_due = self.catch_up.floor() != Some(last) || free >= RELEASE_BYTES;
        if self.storage.is_installing() || last < view.first() || !is_due {
            return;
        }
        let truncated = view.truncate(last);
        let record = Persist {
            truncated: Some(truncated),
            ..Persist::default()
        };
        self.persist(record, 0);
    }
}
