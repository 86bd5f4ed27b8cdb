//! Members that are behind: what of the log is kept for them, what is held back for their sake, and when they are left behind.
//!
//! Behind a snapshot a little of the log stays in any case. More stays while somebody needs it: a member that answers, from
//! the snapshot on that it was sent; and one that is silent, as long as the log is cheaper for it than the snapshot. It stays
//! in the files, within [`Limits::log_retained_bytes`](crate::Limits). Beyond that the member needs a snapshot.
//!
//! While a member does not come nearer this leader takes less of its clients. One that does not come nearer for
//! [`Limits::catch_up_ticks`](crate::Limits) even so is left behind: nothing is kept for it and no snapshot is sent to it for a
//! while, each time for longer. Nothing of this is replicated.

use std::collections::{BTreeMap, BTreeSet};

use raft::ProgressState;

use crate::changes::PROMOTION_LAG;
use crate::effect::Persist;
use crate::group::Group;
use crate::id::{LogIndex, ReplicaId};
use crate::status::{CatchUpStatus, CatchingUp};
use crate::throttle::Throttle;

/// Bytes that a member may lack and be taken for caught up: what is on its way at any time.
const CAUGHT_UP_BYTES: u64 = 1 << 20;

/// Bytes of log that nobody needs any more for which no record of their own is written.
const RELEASE_BYTES: u64 = 1 << 20;

/// Ticks after which it is looked whether a member has come nearer.
const WINDOW_TICKS: u64 = 10;

/// The part of what it lacks that a member is to come nearer by in that time, so that it is there after some ten times that.
const WINDOW_PART: u64 = 8;

/// Bytes of a snapshot for which a member has a tick more: a tenth of what the transport sends.
const SNAPSHOT_TICK_BYTES: u64 = 1 << 20;

/// Snapshots that arrive at a member which needs yet another; then it is left behind. One is needed, and another if the budget did
/// not do.
const SNAPSHOTS_MAX: u32 = 3;

/// A member that was left behind is tried again after so many times what it had, twice as many each time.
const RETRIES: std::ops::RangeInclusive<u64> = 1..=8;

/// Who needs entries of the log that the snapshot covers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Needer {
    /// A member that has less than this leader keeps in any case.
    Member(ReplicaId),
}

/// Who needs what of the log, and who is behind.
#[derive(Debug, Default)]
pub(crate) struct CatchUp {
    /// Entries after these places are needed.
    needs: BTreeMap<Needer, LogIndex>,
    behind: BTreeMap<ReplicaId, Behind>,
    left: BTreeMap<ReplicaId, Left>,
    pub(crate) throttle: Throttle,
    /// Members that were left behind by this replica, in all.
    pub(crate) left_in_all: u64,
    /// Ticks that began with commands waiting for the sake of members that are behind.
    pub(crate) waits: u64,
}

/// A member that is catching up.
#[derive(Clone, Copy, Debug)]
struct Behind {
    /// The log is kept for it from here on.
    from: LogIndex,
    /// Bytes that it lacks.
    lacks: u64,
    /// The snapshot that is on its way to it.
    snapshot: Option<LogIndex>,
    /// One was offered to it since the last that arrived.
    is_offered: bool,
    /// Snapshots that arrived.
    snapshots: u32,
    /// Bytes that it lacked at the least, and the tick since when it has not come nearer.
    least: u64,
    since: u64,
    /// The tick since when it is behind.
    begun: u64,
    /// Bytes that it lacked when this window of time began.
    before: u64,
}

/// A member that was left behind.
#[derive(Clone, Copy, Debug)]
struct Left {
    /// Until this tick nothing is done for it.
    until: u64,
    /// How long that is, in times of what it had.
    times: u64,
    /// What was usual then: with half of it or nothing, it is tried at once.
    usual: u64,
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

    fn is_left(&self, replica: ReplicaId, ticks: u64) -> bool {
        let left = self.left.get(&replica);
        left.is_some_and(|left| ticks < left.until)
    }

    fn note(&mut self, seen: Seen, from: LogIndex, lacks: u64, ticks: u64) {
        let behind = self.behind.entry(seen.replica).or_insert(Behind {
            from,
            lacks,
            snapshot: None,
            is_offered: false,
            snapshots: 0,
            least: lacks,
            since: ticks,
            begun: ticks,
            before: lacks,
        });
        // While a snapshot is on its way more and more is lacking, and what counts is that it arrives. One that is refused again
        // and again brings the member no nearer.
        let is_on_its_way = seen.snapshot.is_some();
        let is_first = is_on_its_way && !std::mem::replace(&mut behind.is_offered, true);
        if is_first || lacks + behind.least / 32 < behind.least {
            behind.since = ticks;
        }
        behind.least = match is_on_its_way {
            true => lacks,
            false => behind.least.min(lacks),
        };
        (behind.from, behind.lacks, behind.snapshot) = (from, lacks, seen.snapshot);
    }

    /// A snapshot has arrived at a member.
    pub(crate) fn snapshot_arrived(&mut self, replica: ReplicaId, ticks: u64) {
        if let Some(behind) = self.behind.get_mut(&replica) {
            behind.snapshots += 1;
            behind.is_offered = false;
            behind.since = ticks;
        }
    }
}

impl Group {
    /// Looks after members that are behind, once in a tick.
    pub(crate) fn follow_members(&mut self) {
        self.catch_up.waits += u64::from(self.waits_for_members());
        self.catch_up.throttle.tick();
        self.note_needs();
        self.leave_behind();
        if self.ticks.is_multiple_of(WINDOW_TICKS) {
            self.hold_back();
        }
        let ticks = self.ticks;
        let barred: BTreeSet<_> = (self.catch_up.left.iter())
            .filter(|(_, left)| ticks < left.until)
            .map(|(replica, _)| replica.0)
            .collect();
        self.raft.log_mut().bar(barred);
        self.release_log();
    }

    /// Whether commands wait here for the sake of members that are behind.
    fn waits_for_members(&self) -> bool {
        self.leads() && self.proposals.len() > 0 && self.catch_up.throttle.holds_back()
    }

    /// What is done for members that are behind.
    pub fn catch_up_status(&self) -> CatchUpStatus {
        CatchUpStatus {
            share_percent: self.catch_up.throttle.percent(),
            waits: self.catch_up.waits,
            left_behind: self.catch_up.left_in_all,
        }
    }

    /// How a member is catching up, if it is.
    pub(crate) fn catching_up(&self, replica: ReplicaId) -> Option<CatchingUp> {
        if self.catch_up.is_left(replica, self.ticks) {
            return Some(CatchingUp::LeftBehind);
        }
        let behind = self.catch_up.behind.get(&replica)?;
        Some(match behind.snapshot {
            Some(_) => CatchingUp::Snapshot,
            None => CatchingUp::Log {
                lacks: behind.lacks,
            },
        })
    }

    /// Finds out who needs what of the log now.
    pub(crate) fn note_needs(&mut self) {
        self.catch_up.needs.clear();
        if !self.leads() {
            let CatchUp {
                left_in_all, waits, ..
            } = self.catch_up;
            self.catch_up = CatchUp {
                left_in_all,
                waits,
                ..CatchUp::default()
            };
            return;
        }
        let members = self.seen_members();
        let known = |replica: &ReplicaId| members.iter().any(|seen| seen.replica == *replica);
        self.catch_up.behind.retain(|replica, _| known(replica));
        self.catch_up.left.retain(|replica, _| known(replica));
        for seen in members {
            if let Some(from) = self.needed_by(seen) {
                let needer = Needer::Member(seen.replica);
                self.catch_up.needs.insert(needer, from);
            }
        }
        self.keep_within_budget();
    }

    fn seen_members(&self) -> Vec<Seen> {
        let others = self.raft.others();
        others
            .map(|(replica, progress)| Seen {
                replica,
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
        let ticks = self.ticks;
        let tracked = self.catch_up.behind.get(&replica).map(|behind| behind.from);
        let is_waited_for = self.is_active(replica) && !self.catch_up.is_left(replica, ticks);
        let cheap = self.snapshot_name().map_or(0, |name| name.size);
        let view = self.raft.log_mut();
        let from = matched
            .max(snapshot.unwrap_or_default())
            .max(tracked.unwrap_or_default());
        let lacks = view.bytes_after(from);
        let has_caught_up = snapshot.is_none()
            && matched >= from
            && matched.0 >= view.evicted()
            && (lacks <= CAUGHT_UP_BYTES || matched.0 + PROMOTION_LAG >= view.last().0);
        let is_known = matched.0 > 0 || snapshot.is_some();
        let is_on_its_way = snapshot.is_some() && !self.catch_up.is_left(replica, ticks);
        let is_behind = tracked.is_some() || matched.0 < view.evicted();
        if is_known && !has_caught_up && (is_on_its_way || is_waited_for && is_behind) {
            self.catch_up.note(seen, from, lacks, ticks);
        } else {
            self.catch_up.behind.remove(&replica);
        }
        if has_caught_up {
            self.catch_up.left.remove(&replica);
        }
        let is_there = from.0 + 1 >= view.first().0 && from.0 >= view.read_back().lost();
        let is_needed = is_waited_for || is_on_its_way || lacks <= cheap;
        (is_known && is_there && is_needed).then_some(from)
    }

    /// Gives up on members that do not come nearer.
    fn leave_behind(&mut self) {
        let ticks = self.ticks;
        let usual = self.catch_up.throttle.usual();
        if self.catch_up.throttle.is_open() {
            let lull = |left: &Left| usual <= left.usual / 2;
            let left = self.catch_up.left.values_mut();
            left.filter(|left| lull(left))
                .for_each(|left| left.until = ticks);
        }
        let size = self.snapshot_name().map_or(0, |name| name.size);
        let patience = u64::from(self.config.limits.catch_up_ticks);
        let patience = patience + size / SNAPSHOT_TICK_BYTES;
        let needs_another =
            |behind: &Behind| behind.snapshots >= SNAPSHOTS_MAX && behind.snapshot.is_some();
        let is_late = |behind: &Behind| ticks - behind.since > patience || needs_another(behind);
        let late: Vec<_> = (self.catch_up.behind.iter())
            .filter(|(_, behind)| is_late(behind))
            .map(|(replica, _)| *replica)
            .collect();
        for replica in late {
            let before = self.catch_up.left.get(&replica);
            let longer = |left: &Left| (left.times * 2).min(*RETRIES.end());
            let times = before.map_or(*RETRIES.start(), longer);
            let left = Left {
                until: ticks + patience * times,
                times,
                usual,
            };
            self.catch_up.left.insert(replica, left);
            self.catch_up.behind.remove(&replica);
            self.catch_up.needs.remove(&Needer::Member(replica));
            self.catch_up.left_in_all += 1;
        }
    }

    /// Takes less of the clients if a member has not come nearer, and all again when nobody is behind.
    fn hold_back(&mut self) {
        let limits = &self.config.limits;
        let half = limits.log_retained_bytes / 2;
        let (mut is_due, ticks) = (false, self.ticks);
        for behind in self.catch_up.behind.values_mut() {
            // Of less than a whole window nothing can be said.
            if ticks < behind.begun + WINDOW_TICKS {
                continue;
            }
            is_due |= match behind.snapshot {
                // There must be something left to catch up with when it is restored.
                Some(_) => behind.lacks > half,
                None => {
                    behind.lacks > CAUGHT_UP_BYTES
                        && behind.lacks > behind.before - behind.before / WINDOW_PART
                }
            };
            behind.before = behind.lacks;
        }
        if self.catch_up.behind.is_empty() {
            self.catch_up.throttle.open();
        } else if is_due {
            let share = u64::from(limits.catch_up_share_percent);
            self.catch_up.throttle.tighten(share);
        }
    }

    /// Drops the needs of those who lack most, until what is kept for the others is within its bounds.
    fn keep_within_budget(&mut self) {
        let most = self.config.limits.log_retained_bytes;
        let view = self.raft.log();
        while let Some(floor) = self.catch_up.floor()
            && view.bytes_behind_snapshot_after(floor) > most
        {
            self.catch_up.needs.retain(|_, from| *from != floor);
        }
    }

    /// Forgets what is kept for members, even if they need it: the log's files hold too much for its sake, and it would be copied
    /// forward whole otherwise. Who needed it is sent a snapshot.
    /// A leader also takes a snapshot: of what it keeps before that.
    pub(crate) fn log_crowded(&mut self) {
        self.catch_up.needs.clear();
        self.release_log();
        self.since_barrier.wanted |= self.leads();
    }

    /// The last entry at or below a snapshot that nobody needs.
    pub(crate) fn unneeded_through(&self, snapshot: LogIndex) -> LogIndex {
        let limits = &self.config.limits;
        let kept = self.config.snapshot_entries / 4;
        let last = (self.raft.log()).compaction(snapshot, kept, limits.log_kept_bytes);
        self.catch_up.floor().map_or(last, |floor| last.min(floor))
    }

    /// Forgets what was kept for somebody who does not need it any more.
    fn release_log(&mut self) {
        let Some(snapshot) = self.snapshot_name().map(|name| name.index) else {
            return;
        };
        let last = self.unneeded_through(snapshot);
        let view = self.raft.log_mut();
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
