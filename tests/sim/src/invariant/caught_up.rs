//! Who joins votes when it has nearly all of the log, and not before: a majority with it would wait until it has.

use std::collections::HashMap;

use skep_core::state::Role;
use skep_core::status::{Part, Status};

use super::Place;
use super::ledger::Image;

/// Entries that a joiner may lack when it is promoted.
const LAG: u64 = 64;

/// The voters that each replica knew when it was last seen, and how much of the log its machine had applied then.
#[derive(Debug, Default)]
pub struct CaughtUp(HashMap<Place, (Vec<(u64, u64)>, u64)>);

impl CaughtUp {
    /// A replica begins anew.
    pub fn began(&mut self, place: Place) {
        self.0.remove(&place);
    }

    /// A replica was seen with these voters; `stored` says what of the log is durable at one.
    pub fn check<'a>(
        &mut self,
        place: Place,
        status: &Status,
        stored: impl Fn(Place, u64) -> Option<&'a Image>,
    ) -> Result<(), String> {
        let voters = status.members.iter();
        let voters = voters.filter(|member| member.role == Role::Voter);
        let voters: Vec<_> = voters
            .map(|voter| (voter.node.0, voter.replica.0))
            .collect();
        let before = self.0.insert(place, (voters.clone(), status.applied.0));
        let Some((before, applied)) = before.filter(|_| status.part == Part::Leader) else {
            return Ok(());
        };
        for (node, replica) in voters.iter().filter(|voter| !before.contains(voter)) {
            let key = place.key;
            let image = stored(Place { node: *node, key }, *replica);
            let last = image.map(Image::last);
            // The promotion stands behind all that was applied before it was.
            if last.is_none_or(|last| last == 0 || last + LAG < applied) {
                return Err(format!(
                    "replica {replica} on node {node} votes, has the log up to {last:?} and others had applied {applied}"
                ));
            }
        }
        Ok(())
    }
}
