//! What is committed: only what a majority of disks holds, and for ever. With it, that a new leader has all of it (leader
//! completeness) and that no two replicas take different entries for committed.

use std::collections::{BTreeMap, HashMap};

use skep_core::state::Role;
use skep_core::status::{Part, Status};
use skep_log::GroupKey;

use super::Place;
use super::ledger::{Ledger, Mark};

/// What is committed in each life of each group.
#[derive(Debug, Default)]
pub struct Commits {
    groups: HashMap<GroupKey, Committed>,
    /// The voters each replica knew when it was last seen.
    voters: HashMap<Place, Vec<(u64, u64)>>,
    /// How far each replica was seen to know.
    known: HashMap<Place, u64>,
}

#[derive(Debug, Default)]
struct Committed {
    entries: BTreeMap<u64, Mark>,
    last: u64,
    over: bool,
}

impl Commits {
    /// Entries up to here are committed as far as anybody knows.
    pub fn last(&self, key: GroupKey) -> u64 {
        self.groups.get(&key).map_or(0, |group| group.last)
    }

    /// A life of a group is over.
    pub fn ended(&mut self, key: GroupKey) {
        self.groups.entry(key).or_default().over = true;
    }

    /// A replica begins anew.
    pub fn began(&mut self, place: Place) {
        self.known.remove(&place);
        self.voters.remove(&place);
    }

    /// A replica was seen to know `status.commit`.
    pub fn check(
        &mut self,
        place: Place,
        status: &Status,
        ledgers: &BTreeMap<Place, Ledger>,
    ) -> Result<(), String> {
        let commit = status.commit.0;
        let known = self.known.insert(place, commit).unwrap_or(0);
        let voters: Vec<(u64, u64)> = status
            .members
            .iter()
            .filter(|member| member.role == Role::Voter)
            .map(|member| (member.node.0, member.replica.0))
            .collect();
        let before = self.voters.get(&place);
        let result = if commit > known {
            let group = self.groups.entry(place.key).or_default();
            group.learn(place, status, known, [before, Some(&voters)], ledgers)
        } else {
            Ok(())
        };
        if before != Some(&voters) {
            self.voters.insert(place, voters);
        }
        result
    }

    /// A replica begins to lead: every committed entry must be in its log.
    pub fn check_leader(&self, place: Place, ledger: &Ledger) -> Result<(), String> {
        let Some(group) = self.groups.get(&place.key) else {
            return Ok(());
        };
        let log = &ledger.written;
        for (index, mark) in group.entries.range(log.truncated.0 + 1..) {
            if group.over {
                break;
            }
            if log.entries.get(index) != Some(mark) {
                return Err(format!(
                    "the new leader on node {} lacks committed entry {index} of term {}; it has {}",
                    place.node,
                    mark.term,
                    log.short()
                ));
            }
        }
        Ok(())
    }
}

impl Committed {
    fn learn(
        &mut self,
        place: Place,
        status: &Status,
        known: u64,
        voters: [Option<&Vec<(u64, u64)>>; 2],
        ledgers: &BTreeMap<Place, Ledger>,
    ) -> Result<(), String> {
        let commit = status.commit.0;
        let log = &ledgers[&place].written;
        for (index, mark) in log.entries.range(known + 1..=commit) {
            match self.entries.get(index) {
                Some(committed) if committed != mark => {
                    return Err(format!(
                        "node {} takes entry {index} of term {} for committed, where {committed:?} is",
                        place.node, mark.term
                    ));
                }
                Some(_) => {}
                None => {
                    self.entries.insert(*index, *mark);
                }
            }
        }
        if commit <= self.last {
            return Ok(());
        }
        let first = self.last == 0;
        self.last = commit;
        // The founders' entries are the same on all of them before any is in touch with another.
        if first && log.term(commit) == Some(1) && status.term.0 <= 1 {
            return Ok(());
        }
        if self.over {
            return Ok(());
        }
        if status.part != Part::Leader {
            // A replica that found its own commit index on disk may know it before it is seen to lead.
            return Err(format!(
                "node {} knows entry {commit} to be committed, and no leader has committed it",
                place.node
            ));
        }
        let term = log.term(commit).unwrap_or(0);
        let holds = |(node, replica): &(u64, u64)| {
            let place = Place {
                node: *node,
                key: place.key,
            };
            ledgers.get(&place).is_some_and(|ledger| {
                ledger.durable.replica == *replica && ledger.durable.holds(commit, term)
            })
        };
        // A change that was committed in the same step has changed whose majority counts from here on.
        let mut majorities = voters.into_iter().flatten().map(|voters| {
            let stored = voters.iter().filter(|voter| holds(voter)).count();
            stored > voters.len() / 2
        });
        if majorities.any(|majority| majority) {
            return Ok(());
        }
        Err(format!(
            "node {} commits entry {commit} of term {term}, which no majority of {:?} holds on disk",
            place.node, voters[1]
        ))
    }
}
