//! Which lives of groups a data directory holds or held.
//!
//! A replica that was removed never comes back: it would have forgotten what it voted for. Its *node* may join the same
//! life of the group again, as another, later replica; the tombstone in the log says up to which replica all are gone.

use std::collections::BTreeMap;

use skep_core::id::{GroupId, LogIndex, ReplicaId};
use skep_log::{GroupKey, Record, Recovered, RecoveredGroup, SnapshotName};

/// What a directory holds or held.
///
/// *Concurrency*: one owner. *Failure*: nothing in here touches the disk; the records it gives out must be made durable.
#[derive(Debug, Default)]
pub struct Lives {
    /// Recovered and not brought up yet.
    recovered: BTreeMap<GroupKey, RecoveredGroup>,
    /// What no life of a replica that was given up can have applied, where such a one is to be brought up again: the first index.
    untried: BTreeMap<GroupKey, LogIndex>,
    /// The last replica removed of each life of a group.
    removed_through: BTreeMap<GroupKey, ReplicaId>,
    /// The highest incarnation of each group that was ever here.
    newest: BTreeMap<u64, u64>,
}

/// How a replica begins.
#[derive(Debug)]
pub struct Begin {
    /// What the log holds of it; `None` if it is new.
    pub recovered: Option<RecoveredGroup>,
    /// The first entry that no life of it can have applied, if it had one in this process.
    pub untried_from: Option<LogIndex>,
    /// Replicas of this node that were removed from this life of the group, up to here.
    pub removed_through: ReplicaId,
    /// Former lives of the group that are still in the log, to be buried.
    pub former: Vec<GroupKey>,
}

/// This life of the group is over on this node.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{key} was removed from this node for ever")]
pub struct Ended {
    /// Which life.
    pub key: GroupKey,
}

impl Lives {
    /// From what the log recovered.
    pub fn new(recovered: Recovered) -> Self {
        let mut lives = Self::default();
        let every = recovered
            .tombstones
            .into_iter()
            .map(|key| (key, skep_log::EVERY_REPLICA));
        for (key, replica) in every.chain(recovered.removed_replicas) {
            lives.seen(key);
            lives.removed_through.insert(key, ReplicaId(replica));
        }
        for group in recovered.groups {
            lives.seen(group.key);
            lives.recovered.insert(group.key, group);
        }
        lives
    }

    /// How a replica of this life of a group begins. `joins` if it would be a new member of a group that exists.
    ///
    /// # Errors
    /// [`Ended`] if this node's replica of this life was removed and the new one would not join, or if a later life was
    /// here.
    pub fn begin(&mut self, key: GroupKey, joins: bool) -> Result<Begin, Ended> {
        let removed_through = self.removed_through.get(&key).copied().unwrap_or_default();
        let newest = self.newest.get(&key.group).copied().unwrap_or(0);
        let recovered = self.recovered.get(&key).cloned();
        // As a founder it would be a replica again that was removed, without its memory.
        let founds_again = recovered.is_none() && removed_through.0 > 0 && !joins;
        if newest > key.incarnation || removed_through.0 == skep_log::EVERY_REPLICA || founds_again
        {
            return Err(Ended { key });
        }
        let former = self
            .of_group(GroupId(key.group))
            .into_iter()
            .filter(|former| *former != key)
            .collect();
        self.seen(key);
        Ok(Begin {
            recovered,
            untried_from: self.untried.get(&key).copied(),
            removed_through,
            former,
        })
    }

    /// The replica is up: what was recovered of it need not be kept.
    pub fn began(&mut self, key: GroupKey) {
        self.untried.remove(&key);
        self.recovered.remove(&key);
    }

    /// A replica was given up, to begin again from what is on the disk. No life of it can have applied what stands from
    /// `untried_from` on.
    pub fn park(&mut self, group: RecoveredGroup, untried_from: LogIndex) {
        self.untried.insert(group.key, untried_from);
        self.recovered.insert(group.key, group);
    }

    /// Ends a replica; answers the record that makes it so.
    pub fn bury(&mut self, key: GroupKey, replica: ReplicaId) -> Option<Record> {
        self.recovered.remove(&key);
        self.untried.remove(&key);
        self.seen(key);
        if replica.0 == 0 {
            // A joiner that nobody contacted has stored nothing and voted for nobody.
            return None;
        }
        self.removed_through.insert(key, replica);
        Some(Record::replica_removed(key, replica.0))
    }

    /// The replica that a recovered life was.
    pub fn replica_of(&self, key: GroupKey) -> ReplicaId {
        let recovered = self.recovered.get(&key);
        ReplicaId(recovered.map_or(0, |group| group.replica))
    }

    /// The lives of a group that were recovered and not brought up.
    pub fn of_group(&self, group: GroupId) -> Vec<GroupKey> {
        let of = |incarnation| GroupKey {
            group: group.0,
            incarnation,
        };
        let lives = self.recovered.range(of(0)..=of(u64::MAX));
        lives.map(|(key, _)| *key).collect()
    }

    /// All lives that were recovered and not brought up.
    pub fn dormant(&self) -> impl Iterator<Item = GroupKey> {
        self.recovered.keys().copied()
    }

    /// The snapshots that recovered lives need.
    pub fn snapshots(&self) -> Vec<SnapshotName> {
        let name = |(key, group): (&GroupKey, &RecoveredGroup)| {
            let position = group.snapshot.as_ref()?.position;
            Some(SnapshotName {
                key: *key,
                position,
            })
        };
        self.recovered.iter().filter_map(name).collect()
    }

    fn seen(&mut self, key: GroupKey) {
        let newest = self.newest.entry(key.group).or_default();
        *newest = key.incarnation.max(*newest);
    }
}

#[cfg(test)]
mod tests {
    use skep_log::{HardState, LogPosition};

    use super::*;

    const FIRST: GroupKey = GroupKey {
        group: 7,
        incarnation: 3,
    };

    fn lives(groups: Vec<RecoveredGroup>, removed_replicas: Vec<(GroupKey, u64)>) -> Lives {
        Lives::new(Recovered {
            groups,
            removed_replicas,
            tombstones: Vec::new(),
            torn_bytes: 0,
            segments: 1,
            frames: 1,
            created: false,
        })
    }

    fn recovered(key: GroupKey, replica: u64) -> RecoveredGroup {
        RecoveredGroup {
            key,
            replica,
            hard_state: HardState::default(),
            snapshot: None,
            truncated: LogPosition::default(),
            entries: Vec::new(),
        }
    }

    fn refused(begin: Result<Begin, Ended>) -> bool {
        begin.is_err()
    }

    // P-68
    #[test]
    fn a_removed_replica_comes_back_only_as_another_one() {
        let mut here = Lives::default();
        here.begin(FIRST, false).expect("nothing was here");
        let stone = here.bury(FIRST, ReplicaId(2)).expect("it was a member");
        assert!(stone.removed && stone.replica == 2);
        for mut here in [here, lives(Vec::new(), vec![(FIRST, 2)])] {
            assert!(refused(here.begin(FIRST, false)));
            let again = here.begin(FIRST, true).expect("as a joiner");
            assert_eq!(again.removed_through, ReplicaId(2));
        }
    }

    #[test]
    fn a_joiner_that_was_never_contacted_leaves_nothing() {
        let mut here = Lives::default();
        here.begin(FIRST, true).expect("nothing was here");
        assert_eq!(here.bury(FIRST, ReplicaId(0)), None);
        let again = here.begin(FIRST, true).expect("as if new");
        assert_eq!(again.removed_through, ReplicaId(0));
    }

    #[test]
    fn a_recovered_rejoiner_needs_no_promise_to_join() {
        let mut here = lives(vec![recovered(FIRST, 4)], Vec::new());
        let begin = here.begin(FIRST, false).expect("its log knows");
        assert!(begin.recovered.is_some());
    }

    #[test]
    fn a_newer_life_ends_the_former() {
        let newer = GroupKey {
            incarnation: 4,
            ..FIRST
        };
        let mut here = lives(vec![recovered(FIRST, 1)], Vec::new());
        let begin = here.begin(newer, false).expect("another life");
        assert_eq!(begin.former, [FIRST]);
        assert!(refused(here.begin(FIRST, false)));
    }

    #[test]
    fn a_life_that_is_over_takes_no_replica_at_all() {
        let mut here = lives(Vec::new(), vec![(FIRST, skep_log::EVERY_REPLICA)]);
        assert!(refused(here.begin(FIRST, true)));
    }
}
