//! What is committed: only what a majority of disks holds, and for ever. With it, that a new leader has all of it (leader
//! completeness) and that no two replicas take different entries for committed.

use std::collections::{BTreeMap, HashMap};

use skep_core::state::Role;
use skep_core::status::{Part, Status};
use skep_log::GroupKey;

use super::Place;
use super::ledger::{Image, Ledger, Mark};

/// What is committed in each life of each group.
#[derive(Debug, Default)]
pub struct Commits {
    groups: HashMap<GroupKey, Committed>,
    /// The voters each replica knew when it was last seen.
    voters: HashMap<Place, Vec<(u64, u64)>>,
    /// The term in which each replica was last seen to lead.
    led: HashMap<Place, u64>,
    /// What replicas that were removed had stored: their word counts still in the majority of the members before.
    graves: HashMap<(Place, u64), Image>,
    /// How far each replica was seen to know.
    known: HashMap<Place, u64>,
}

#[derive(Debug, Default)]
struct Committed {
    /// With the term of the leader that committed it, which is not always that of the entry.
    entries: BTreeMap<u64, (Mark, u64)>,
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

    /// A replica's disk space was given back.
    pub fn buried(&mut self, place: Place, stored: Image) {
        self.graves.insert((place, stored.replica), stored);
    }

    /// A replica begins anew.
    pub fn began(&mut self, place: Place) {
        self.known.remove(&place);
        self.led.remove(&place);
        self.voters.remove(&place);
    }

    /// What of a replica's log is durable, or was when it was removed.
    pub fn stored<'a>(
        &'a self,
        ledgers: &'a BTreeMap<Place, Ledger>,
        place: Place,
        replica: u64,
    ) -> Option<&'a Image> {
        let graves = &self.graves;
        Stored { ledgers, graves }.of(place, replica)
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
        let term = status.term.0;
        // It may have committed and stepped down in one step.
        let leads = status.part == Part::Leader || self.led.get(&place) == Some(&term);
        if status.part == Part::Leader {
            self.led.insert(place, term);
        }
        let result = if commit > known {
            let group = self.groups.entry(place.key).or_default();
            let voters = [before, Some(&voters)];
            let stored = Stored {
                ledgers,
                graves: &self.graves,
            };
            group.learn(place, status, leads, known, voters, stored)
        } else {
            Ok(())
        };
        if before != Some(&voters) {
            self.voters.insert(place, voters);
        }
        result
    }

    /// A replica begins to lead: every committed entry must be in its log.
    pub fn check_leader(&self, place: Place, term: u64, ledger: &Ledger) -> Result<(), String> {
        let Some(group) = self.groups.get(&place.key) else {
            return Ok(());
        };
        let log = &ledger.written;
        for (index, (mark, committed)) in group.entries.range(log.truncated.0 + 1..) {
            if group.over {
                break;
            }
            // A leader of an older term, elected before and late to know, need not have it.
            if *committed < term && log.entries.get(index) != Some(mark) {
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

/// What is and was on disks.
#[derive(Clone, Copy)]
struct Stored<'a> {
    ledgers: &'a BTreeMap<Place, Ledger>,
    graves: &'a HashMap<(Place, u64), Image>,
}

impl<'a> Stored<'a> {
    fn of(&self, place: Place, replica: u64) -> Option<&'a Image> {
        let durable = self.ledgers.get(&place).map(|ledger| &ledger.durable);
        durable
            .filter(|image| image.replica == replica)
            .or_else(|| self.graves.get(&(place, replica)))
    }
}

impl Committed {
    fn learn(
        &mut self,
        place: Place,
        status: &Status,
        leads: bool,
        known: u64,
        voters: [Option<&Vec<(u64, u64)>>; 2],
        stored: Stored<'_>,
    ) -> Result<(), String> {
        let commit = status.commit.0;
        let log = &stored.ledgers[&place].written;
        for (index, mark) in log.entries.range(known + 1..=commit) {
            match self.entries.get(index) {
                Some((committed, _)) if committed != mark => {
                    return Err(format!(
                        "node {} takes entry {index} of term {} for committed, where {committed:?} is",
                        place.node, mark.term
                    ));
                }
                Some(_) => {}
                None => {
                    self.entries.insert(*index, (*mark, status.term.0));
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
        if !leads {
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
            let holds = |image: &Image| image.holds(commit, term);
            stored.of(place, *replica).is_some_and(holds)
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
