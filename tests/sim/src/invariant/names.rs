//! The id of a replica names one replica of its group for ever: none is given again, on whatever node.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use skep_core::status::Status;
use skep_log::GroupKey;

use super::Place;

/// Who was seen under which name.
#[derive(Debug, Default)]
pub struct Names {
    nodes: HashMap<GroupKey, BTreeMap<u64, u64>>,
    /// By who sees them: the members, and those that were members.
    seen: HashMap<Place, Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    present: BTreeSet<u64>,
    removed: BTreeSet<u64>,
}

impl Names {
    /// A replica begins anew, perhaps behind what it has seen.
    pub fn began(&mut self, place: Place) {
        self.seen.remove(&place);
    }

    /// A replica was seen with these members.
    pub fn check(&mut self, place: Place, status: &Status) -> Result<(), String> {
        let nodes = self.nodes.entry(place.key).or_default();
        let seen = self.seen.entry(place).or_default();
        let present = status.members.iter().map(|member| member.replica.0);
        if present.clone().eq(seen.present.iter().copied()) {
            return Ok(());
        }
        for member in &status.members {
            let (replica, node) = (member.replica.0, member.node.0);
            let former = *nodes.entry(replica).or_insert(node);
            if former != node {
                return Err(format!(
                    "replica {replica} is on node {node}, and was on node {former}"
                ));
            }
            if seen.removed.contains(&replica) {
                return Err(format!(
                    "replica {replica} on node {node} was removed, and is a member"
                ));
            }
        }
        let present: BTreeSet<u64> = present.collect();
        seen.removed.extend(seen.present.difference(&present));
        seen.present = present;
        Ok(())
    }
}
