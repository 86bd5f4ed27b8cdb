//! Since when nodes are silent, as the leader of the catalogue sees them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use skep::clock::Stopwatch;
use skep_core::id::NodeId;
use skep_types::status::MemberStatus;

/// Since when each member is silent.
#[derive(Default)]
pub(super) struct Silence(BTreeMap<NodeId, Stopwatch>);

impl Silence {
    /// Takes note of who answers now.
    pub(super) fn heard(&mut self, members: &[MemberStatus]) {
        self.0
            .retain(|node, _| members.iter().any(|member| member.node == *node));
        for member in members {
            match member.active {
                Some(false) => {
                    self.0.entry(member.node).or_insert_with(Stopwatch::start);
                }
                // A leader that is new does not know yet.
                None => {}
                Some(true) => {
                    self.0.remove(&member.node);
                }
            }
        }
    }

    /// Those that have been silent for so long.
    pub(super) fn longer_than(&self, patience: Duration) -> BTreeSet<NodeId> {
        let long = self
            .0
            .iter()
            .filter(|(_, since)| since.elapsed() >= patience);
        long.map(|(node, _)| *node).collect()
    }
}
