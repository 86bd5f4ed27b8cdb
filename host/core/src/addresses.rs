//! Where replicas are that the membership does not know: not yet, or not any more.

use std::collections::BTreeMap;

use crate::config::MEMBERS_MAX;
use crate::id::{NodeId, ReplicaId};

/// Addresses that are kept: of as many members as there may be, for a joiner who knows nobody yet, and of as many former
/// ones. In a long life a group has many of those.
const ADDRESSES_MAX: usize = 2 * MEMBERS_MAX;

/// The nodes of replicas that have spoken to this one, or were removed before its eyes.
#[derive(Debug, Default)]
pub(crate) struct Addresses {
    nodes: BTreeMap<ReplicaId, NodeId>,
}

impl Addresses {
    /// Remembers where a replica is. If there are too many, the replica with the lowest id is forgotten: it is the most likely to
    /// be gone.
    pub(crate) fn note(&mut self, replica: ReplicaId, node: NodeId) {
        self.nodes.insert(replica, node);
        if self.nodes.len() > ADDRESSES_MAX {
            self.nodes.pop_first();
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (ReplicaId, NodeId)> + '_ {
        self.nodes.iter().map(|(replica, node)| (*replica, *node))
    }

    /// Where a replica was last.
    pub(crate) fn of(&self, replica: ReplicaId) -> Option<NodeId> {
        self.nodes.get(&replica).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_replica_is_forgotten_first() {
        let mut addresses = Addresses::default();
        let most = ADDRESSES_MAX as u64;
        for id in 1..=most {
            addresses.note(ReplicaId(id), NodeId(id));
            addresses.note(ReplicaId(id), NodeId(id + 1));
        }
        assert_eq!(addresses.of(ReplicaId(1)), Some(NodeId(2)));
        addresses.note(ReplicaId(most + 1), NodeId(1));
        assert_eq!(addresses.of(ReplicaId(1)), None);
        assert_eq!(addresses.of(ReplicaId(2)), Some(NodeId(3)));
        assert_eq!(addresses.nodes.len(), ADDRESSES_MAX);
    }
}
