//! Which groups there are and who hosts them, as an omniscient stand-in for group 0: nodes see it late, never wrong.

use std::collections::{BTreeMap, BTreeSet};

use skep_log::GroupKey;

/// All groups, by id.
#[derive(Clone, Debug, Default)]
pub struct Catalogue {
    /// By group id.
    pub groups: BTreeMap<u64, GroupRecord>,
}

/// One group.
#[derive(Clone, Debug)]
pub struct GroupRecord {
    /// Its present life.
    pub incarnation: u64,
    /// The nodes it was created on.
    pub founders: Vec<u64>,
    /// The nodes that host a replica.
    pub hosts: BTreeSet<u64>,
    /// Those of them that joined later.
    pub joiners: BTreeSet<u64>,
}

impl Catalogue {
    /// Creates a group, or creates it anew.
    pub fn create(&mut self, group: u64, founders: Vec<u64>) {
        let incarnation = self
            .groups
            .get(&group)
            .map_or(1, |record| record.incarnation + 1);
        let record = GroupRecord {
            incarnation,
            hosts: founders.iter().copied().collect(),
            founders,
            joiners: BTreeSet::new(),
        };
        self.groups.insert(group, record);
    }

    /// The present life of a group.
    pub fn key(&self, group: u64) -> Option<GroupKey> {
        let incarnation = self.groups.get(&group)?.incarnation;
        Some(GroupKey { group, incarnation })
    }

    /// Whether a node is to host this life of a group.
    pub fn hosts(&self, key: GroupKey, node: u64) -> bool {
        self.groups.get(&key.group).is_some_and(|record| {
            record.incarnation == key.incarnation && record.hosts.contains(&node)
        })
    }
}
