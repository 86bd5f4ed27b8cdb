//! Snapshots that cannot be written, read or used on this node, and what the replica does without them.
//!
//! The canonical point of a barrier is never skipped: a machine goes on from the bytes it saved, wherever they are. Only the
//! log is kept for as long as they are in no file.

use raft::eraftpb::{ConfChange as RaftChange, ConfChangeType, ConfState, Entry, HardState};

use crate::applying::Applying;
use crate::config::{ConfigError, GroupConfig};
use crate::effect::{Effect, Work};
use crate::form::Form;
use crate::founding::Recovered;
use crate::group::Group;
use crate::id::{LogIndex, ReplicaId, Term};
use crate::log_view::Snapshotted;
use crate::message::SnapshotName;
use crate::outcome::EntryContext;
use crate::proposal::ProposalError;
use crate::status::Health;

/// What a node's disk holds of a replica: enough to begin it again, with [`Group::recover`], as after a crash.
#[derive(Debug)]
pub struct Parked {
    /// Its raft id.
    pub replica: ReplicaId,
    /// Its hard state.
    pub hard_state: HardState,
    /// The entries in memory, contiguous, from the one after `before` on.
    pub entries: Vec<Entry>,
    /// What stands before these.
    pub before: (LogIndex, Term),
    /// Where the log that is needed starts. What lies between is in the files of the log only.
    pub start: (LogIndex, Term),
    /// The first entry that no life of it can have applied. The files do not say that: it is for a next life in the same process.
    pub untried_from: LogIndex,
    /// The newest snapshot that a record names, whatever its file is like.
    pub snapshot: Option<SnapshotName>,
}

/// The snapshot that a machine is to begin with.
#[derive(Debug)]
pub(crate) struct Beginning {
    context: EntryContext,
    snapshot: SnapshotName,
    /// The tick at which it is tried again, where it could not be done, and how many ticks that were.
    again: u64,
    pause: u64,
}

impl Beginning {
    pub(crate) fn at(context: EntryContext, snapshot: SnapshotName) -> Self {
        Self {
            context,
            snapshot,
            again: 0,
            pause: 0,
        }
    }
}

/// Keeps a leader from taking one snapshot after the other that come to nothing.
#[derive(Debug, Default)]
pub(crate) struct Restraint {
    /// The tick before which nobody's wish is reason enough for another.
    until: u64,
    /// How many ticks that were.
    pause: u64,
}

impl Group {
    /// A replica as its node's disk has it, but for its newest snapshot, whose file cannot be read. If the log holds
    /// everything, it is all that is needed. Otherwise the replica knows neither state nor members: it stores and votes, which
    /// is right whatever they are, and does nothing else before the leader has sent it the snapshot, or a newer one.
    ///
    /// # Errors
    /// As [`Group::recover`].
    pub fn recover_without_snapshot(
        config: GroupConfig,
        recovered: Recovered,
        lost: SnapshotName,
    ) -> Result<Self, ConfigError> {
        let recovered = Recovered {
            snapshot: None,
            ..recovered
        };
        if recovered.truncated.0 == LogIndex(0) || recovered.replica.0 == 0 {
            return Self::recover(config, recovered);
        }
        config.validate()?;
        let mut group = Self::empty(config);
        group.replica = recovered.replica;
        group.processed = lost.index;
        group.health = Health::Damaged { index: lost.index };
        group.storage.marked = Some(lost.clone());
        group.lost = Some(lost);
        group.begin(recovered, None)
    }

    /// What is on the disk now; none while a record is on its way there, or before there is a replica.
    pub fn parked(&self) -> Option<Parked> {
        self.raft.role()?;
        if self.has_ended() || self.storage.on_the_way() > 0 || self.storage.is_installing() {
            return None;
        }
        // What Raft holds beyond the log has left for nowhere, as it would be gone after a crash.
        let view = self.raft.log();
        let (before, entries) = view.resident();
        let snapshot = self.storage.marked.clone();
        let needed = snapshot.as_ref().map_or(LogIndex(0), |name| name.index);
        let start = needed.max(LogIndex(view.first().0 - 1)).min(before.0);
        Some(Parked {
            replica: self.replica,
            hard_state: self.storage.hard_state.clone(),
            entries,
            before,
            start: (start, view.known_term(start)),
            untried_from: self.untried_from(),
            snapshot,
        })
    }

    /// The barrier was passed, and the bytes that the machine goes on from are in no file yet.
    pub(crate) fn snapshot_unwritten(&mut self, snapshotted: Snapshotted, reason: String) {
        let index = snapshotted.name.index;
        self.unwritten = Some(snapshotted);
        self.snapshot_came_to_nothing();
        self.degrade(index, reason);
    }

    /// There is no file of the snapshot at this barrier.
    pub(crate) fn degrade(&mut self, index: LogIndex, reason: String) {
        if self.serves() {
            self.health = Health::Degraded { index, reason };
        }
    }

    /// Now they are.
    pub(crate) fn snapshot_written(&mut self, index: LogIndex) {
        let is_it = |unwritten: &mut Snapshotted| unwritten.name.index == index;
        let Some(written) = self.unwritten.take_if(is_it) else {
            return;
        };
        self.compact(written);
        if matches!(&self.health, Health::Degraded { index: degraded, .. } if *degraded == index) {
            self.health = Health::Healthy;
        }
    }

    /// The file of the newest snapshot cannot be read any more. The machine has the state, so a new one is taken.
    pub(crate) fn snapshot_unreadable(&mut self, index: LogIndex, reason: String) {
        if self.snapshot_name().is_none_or(|name| name.index != index) {
            return;
        }
        self.raft.log_mut().distrust_snapshot();
        self.since_barrier.wanted = true;
        self.snapshot_came_to_nothing();
        self.degrade(index, reason);
    }

    /// The machine is to begin with a snapshot.
    pub(crate) fn restore(&mut self, beginning: Beginning) {
        let Beginning {
            context, snapshot, ..
        } = &beginning;
        self.applying.push_back(Applying::restore(*context));
        self.out.push(Effect::Machine(Work::Restore {
            context: *context,
            snapshot: snapshot.clone(),
            deployment: self.state.deployment.clone(),
        }));
        self.beginning = Some(beginning);
    }

    /// This node's machine cannot go on from the image that its newest snapshot is. The log and the image are right, so the
    /// replica stores and votes, tries again later, and asks for a later snapshot: as long as it does, barriers are of the
    /// saved form.
    pub(crate) fn machine_not_resumed(&mut self, index: LogIndex) {
        if !self.is_restoring(index) {
            return;
        }
        self.health = Health::Damaged { index };
        self.stop_applying();
        if let Some(beginning) = &mut self.beginning {
            let first = u64::from(self.config.election_ticks);
            beginning.pause = (2 * beginning.pause).clamp(first, 64 * first);
            beginning.again = self.ticks + beginning.pause;
        }
    }

    /// Whether the machine is to begin with an image: if it cannot, nothing behind it must have been taken for done.
    pub(crate) fn begins_with_image(&self) -> bool {
        self.beginning.is_some() && self.state.form == Form::Image
    }

    /// Lets a machine try again that could not go on from an image: what this node lacked, it may have by now.
    pub(crate) fn try_to_resume(&mut self) {
        let waits = self.applying.is_empty() && self.lost.is_none();
        let is_damaged = matches!(self.health, Health::Damaged { .. });
        let ticks = self.ticks;
        let is_due = |beginning: &mut Beginning| ticks >= beginning.again;
        if waits
            && is_damaged
            && let Some(beginning) = self.beginning.take_if(is_due)
        {
            self.restore(beginning);
        }
    }

    /// The machine is of no use before it begins with another snapshot.
    pub(crate) fn stop_applying(&mut self) {
        self.unwritten = None;
        self.abandon_applying();
        self.refuse_reads(&ProposalError::Faulted);
        self.ask_for_snapshot();
    }

    /// As much work as a snapshot is, and nobody has one: the next one is taken later.
    pub(crate) fn snapshot_came_to_nothing(&mut self) {
        let first = u64::from(self.config.election_ticks);
        let restraint = &mut self.restraint;
        let is_long_ago = self.ticks > restraint.until + 8 * restraint.pause;
        restraint.pause = match is_long_ago {
            true => first,
            false => (2 * restraint.pause).clamp(first, 64 * first),
        };
        restraint.until = self.ticks + restraint.pause;
    }

    /// Whether somebody's wish is reason enough for another snapshot now.
    pub(crate) fn may_take_another_snapshot(&self) -> bool {
        self.ticks >= self.restraint.until
    }

    /// Which snapshot this replica needs of the leader: one behind this index. None if it has what it needs.
    pub(crate) fn needs_snapshot_after(&self) -> Option<LogIndex> {
        match &self.health {
            Health::Quarantined { .. } => Some(self.processed),
            // The lost one will do; but not an image that the machine cannot go on from.
            Health::Damaged { index } if self.lost.is_some() => Some(LogIndex(index.0 - 1)),
            Health::Damaged { .. } => Some(self.processed),
            _ => None,
        }
    }

    /// Tells Raft the members, which a replica without its snapshot did not know.
    pub(crate) fn adopt_members(&mut self, members: &ConfState) {
        let voters = members
            .voters
            .iter()
            .map(|id| (ConfChangeType::AddNode, id));
        let learners = members.learners.iter();
        let learners = learners.map(|id| (ConfChangeType::AddLearnerNode, id));
        for (change_type, id) in voters.chain(learners) {
            let change = RaftChange {
                change_type,
                node_id: *id,
                ..RaftChange::default()
            };
            if let Some(Err(error)) = self.raft.change(&change) {
                self.halt(format!(
                    "Raft refused the members of an arrived snapshot: {error}"
                ));
                return;
            }
        }
    }
}
