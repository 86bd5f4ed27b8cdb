//! What each replica has asked of its disk, and what of it is durable: the model that the real log is compared with.

use std::collections::{BTreeMap, VecDeque};

use raft::eraftpb::Entry;
use skep_core::Recovered;
use skep_core::effect::Persist;

use crate::trace::digest;

/// Term and digest of an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mark {
    /// Term of the entry.
    pub term: u64,
    /// Of all that is in it.
    pub digest: u64,
}

impl Mark {
    /// Of an entry.
    pub fn of(entry: &Entry) -> Self {
        Self {
            term: entry.term,
            digest: digest((entry.entry_type as i32, &entry.data[..], &entry.context[..])),
        }
    }
}

/// The sum of some records of a replica.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Image {
    /// The replica's raft id.
    pub replica: u64,
    /// Hard state: term, vote, commit.
    pub hard: (u64, u64, u64),
    /// What stands before the first entry: index and term.
    pub truncated: (u64, u64),
    /// The log.
    pub entries: BTreeMap<u64, Mark>,
    /// Index and term of the newest snapshot.
    pub snapshot: Option<(u64, u64)>,
}

impl Image {
    /// Index of the last entry.
    pub fn last(&self) -> u64 {
        self.entries
            .last_key_value()
            .map_or(self.truncated.0, |(index, _)| *index)
    }

    /// Term at an index, if the log or what stands before it knows.
    pub fn term(&self, index: u64) -> Option<u64> {
        if index == self.truncated.0 {
            return Some(self.truncated.1);
        }
        self.entries.get(&index).map(|mark| mark.term)
    }

    /// Whether the entry of this term is stored at the index, or a snapshot holds it.
    pub fn holds(&self, index: u64, term: u64) -> bool {
        self.truncated.0 >= index
            || self.snapshot.is_some_and(|snapshot| snapshot.0 >= index)
            || self.term(index) == Some(term)
    }

    fn add(&mut self, record: &Written) {
        let record = record.clone();
        self.replica = record.replica;
        self.hard = record.hard;
        if record.reset {
            self.entries.clear();
            self.truncated = record.truncated.unwrap_or_default();
        }
        if let Some((first, _)) = record.entries.first() {
            self.entries.split_off(first);
            self.entries.extend(record.entries);
        }
        if let Some(truncated) = record.truncated
            && truncated.0 > self.truncated.0
        {
            self.truncated = truncated;
            self.entries = self.entries.split_off(&(truncated.0 + 1));
        }
        if record.snapshot.is_some() {
            self.snapshot = record.snapshot;
        }
    }

    fn of(recovered: &Recovered) -> Self {
        let hard = &recovered.hard_state;
        Self {
            replica: recovered.replica.0,
            hard: (hard.term, hard.vote, hard.commit),
            truncated: (recovered.truncated.0.0, recovered.truncated.1.0),
            entries: recovered
                .entries
                .iter()
                .map(|entry| (entry.index, Mark::of(entry)))
                .collect(),
            snapshot: recovered
                .snapshot
                .as_ref()
                .map(|(name, _)| (name.index.0, name.term.0)),
        }
    }

    /// Whether recovery may make `found` of this: the whole of it, but for entries that the snapshot covers.
    fn is_taken_up_as(&self, found: &Self) -> bool {
        let covered = self.snapshot.map_or(0, |snapshot| snapshot.0);
        let passed = found.truncated.0 > self.truncated.0 && found.truncated.0 <= covered;
        if !passed || self.term(found.truncated.0) != Some(found.truncated.1) {
            return self == found;
        }
        let mut whole = self.clone();
        whole.truncated = found.truncated;
        whole.entries = whole.entries.split_off(&(found.truncated.0 + 1));
        whole.settled() == *found
    }

    /// As recovery gives it back: what is truncated was committed.
    fn settled(mut self) -> Self {
        self.hard.2 = self.hard.2.max(self.truncated.0);
        self
    }
}

/// What one record says.
#[derive(Clone, Debug)]
struct Written {
    number: u64,
    replica: u64,
    hard: (u64, u64, u64),
    entries: Vec<(u64, Mark)>,
    truncated: Option<(u64, u64)>,
    snapshot: Option<(u64, u64)>,
    reset: bool,
}

/// One replica's disk.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    /// What is durable.
    pub durable: Image,
    /// What will be, once all records are.
    pub written: Image,
    on_the_way: VecDeque<Written>,
}

impl Ledger {
    /// The replica wants a record durable.
    pub fn persists(&mut self, persist: &Persist) {
        let hard = persist
            .hard_state
            .as_ref()
            .map_or(self.written.hard, |hard| {
                (hard.term, hard.vote, hard.commit)
            });
        let record = Written {
            number: persist.number,
            replica: persist.replica.0,
            hard,
            entries: persist
                .entries
                .iter()
                .map(|entry| (entry.index, Mark::of(entry)))
                .collect(),
            truncated: persist.truncated.map(|(index, term)| (index.0, term.0)),
            snapshot: persist
                .snapshot
                .as_ref()
                .map(|name| (name.index.0, name.term.0)),
            reset: persist.reset,
        };
        self.written.add(&record);
        self.on_the_way.push_back(record);
    }

    /// The record of this number and all before it are durable. Answers the entries in them, each with the term of the
    /// one before.
    pub fn durable(&mut self, number: u64) -> Vec<(u64, Mark, Option<u64>)> {
        let mut entries = Vec::new();
        while let Some(record) = self
            .on_the_way
            .pop_front_if(|record| record.number <= number)
        {
            self.durable.add(&record);
            let durable = &self.durable;
            let with_previous =
                |(index, mark): &(u64, Mark)| (*index, *mark, durable.term(index - 1));
            entries.extend(record.entries.iter().map(with_previous));
        }
        entries
    }

    /// After a crash: the recovered state must be what was durable, or that and the first of what was on the way.
    /// Numbers begin anew.
    pub fn recovered(&mut self, recovered: &Recovered) -> Result<(), String> {
        let found = Image::of(recovered).settled();
        let mut image = self.durable.clone();
        let mut candidates = 0;
        loop {
            let settled = image.clone().settled();
            if settled.is_taken_up_as(&found) {
                self.durable = found.clone();
                self.written = found;
                self.on_the_way.clear();
                return Ok(());
            }
            candidates += 1;
            match self.on_the_way.pop_front() {
                Some(record) => image.add(&record),
                None => {
                    return Err(format!(
                        "recovery gives {}; durable was {}; {} more records were on the way",
                        found.short(),
                        self.durable.clone().settled().short(),
                        candidates - 1
                    ));
                }
            }
        }
    }
}

impl Image {
    /// In one line.
    pub fn short(&self) -> String {
        let terms: BTreeMap<u64, (u64, u64)> =
            self.entries
                .iter()
                .fold(BTreeMap::new(), |mut terms, (index, mark)| {
                    let range = terms.entry(mark.term).or_insert((*index, *index));
                    range.1 = *index;
                    terms
                });
        format!(
            "replica {} term/vote/commit {:?} truncated {:?} snapshot {:?} entries by term {terms:?}",
            self.replica, self.hard, self.truncated, self.snapshot
        )
    }
}
