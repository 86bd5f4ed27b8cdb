//! Linearizable queries by ReadIndex (Raft thesis 6.4): a round with a quorum fixes an index; a query is answered from
//! a state that has it.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use crate::effect::{Effect, Work};
use crate::group::Group;
use crate::id::LogIndex;
use crate::input::Waiter;
use crate::planted::{self, Defect};
use crate::proposal::ProposalError;

/// Rounds in flight; queries that come meanwhile share the next one.
const ROUNDS_MAX: usize = 4;

#[derive(Debug)]
struct Asked {
    waiter: Waiter,
    request: Bytes,
    deadline: u64,
}

#[derive(Debug)]
struct Round {
    id: u64,
    asked_at: u64,
    queries: Vec<Asked>,
}

/// Queries that wait.
#[derive(Debug, Default)]
pub(crate) struct Reads {
    /// For a round.
    asked: VecDeque<Asked>,
    /// For a round's index.
    rounds: VecDeque<Round>,
    next_round: u64,
    /// For the machine's work up to an index to be handed over.
    indexed: BTreeMap<LogIndex, Vec<Asked>>,
    waiting: usize,
}

impl Group {
    pub(crate) fn query(&mut self, waiter: Waiter, request: Bytes, linearizable: bool) {
        let error = match () {
            () if !self.serves() => Some(ProposalError::Faulted),
            () if self.reads.waiting >= self.config.limits.queued_queries => {
                Some(ProposalError::Busy)
            }
            () => None,
        };
        if let Some(error) = error {
            self.effects.push(Effect::QueryFailed { waiter, error });
            return;
        }
        self.reads.waiting += 1;
        let deadline = self.ticks + u64::from(self.config.limits.request_ticks);
        let asked = Asked {
            waiter,
            request,
            deadline,
        };
        if linearizable {
            self.reads.asked.push_back(asked);
        } else {
            self.reads
                .indexed
                .entry(LogIndex(0))
                .or_default()
                .push(asked);
        }
    }

    /// Starts a round for everything that was asked since the last one.
    pub(crate) fn ask_reads(&mut self) {
        if self.reads.asked.is_empty()
            || self.reads.rounds.len() >= ROUNDS_MAX
            || self.leader_replica().is_none()
            || self.raft.leads_without_progress()
        {
            return;
        }
        let queries = self.reads.asked.drain(..).collect();
        self.begin_round(queries);
    }

    fn begin_round(&mut self, queries: Vec<Asked>) {
        self.reads.next_round += 1;
        // Raft-rs swallows a context it has pending already, also one of a former life of this replica.
        let words = [self.replica.0, self.reads.next_round, self.now];
        let id = self.secret(b"skep read", words);
        self.reads.rounds.push_back(Round {
            id,
            asked_at: self.ticks,
            queries,
        });
        // What it drops is asked again: see `expire_reads`.
        self.raft.read_index(id.to_le_bytes().to_vec());
    }

    /// A round has fixed its index; every query asked before it began, in this or an earlier round, may use it.
    pub(crate) fn read_index(&mut self, context: &[u8], index: LogIndex) {
        let Ok(id) = context.try_into().map(u64::from_le_bytes) else {
            return;
        };
        let Some(place) = self.reads.rounds.iter().position(|round| round.id == id) else {
            return;
        };
        for round in self.reads.rounds.drain(..=place) {
            self.reads
                .indexed
                .entry(index)
                .or_default()
                .extend(round.queries);
        }
    }

    /// Hands queries to the machine, behind the work whose effects they must see.
    pub(crate) fn serve_reads(&mut self) {
        while let Some(entry) = self.reads.indexed.first_entry() {
            if *entry.key() > self.processed && !planted::has(Defect::ReadBeforeApplied) {
                break;
            }
            let queries = entry.remove();
            self.reads.waiting -= queries.len();
            let (index, term) = (self.settled_through(), self.term());
            self.effects.extend(queries.into_iter().map(
                |Asked {
                     waiter, request, ..
                 }| {
                    Effect::Machine(Work::Query {
                        waiter,
                        request,
                        index,
                        term,
                    })
                },
            ));
        }
    }

    /// Begins again what Raft dropped, and gives up what is too late.
    pub(crate) fn expire_reads(&mut self) {
        let ticks = self.ticks;
        let patience = 2 * u64::from(self.config.heartbeat_ticks) + 1;
        let mut lost = Vec::new();
        let mut late: Vec<Asked> = Vec::new();
        let rounds = std::mem::take(&mut self.reads.rounds);
        for mut round in rounds {
            late.extend(
                round
                    .queries
                    .extract_if(.., |query| query.deadline <= ticks),
            );
            if round.asked_at + patience <= ticks {
                lost.extend(round.queries);
            } else {
                self.reads.rounds.push_back(round);
            }
        }
        for asked in lost.into_iter().rev() {
            self.reads.asked.push_front(asked);
        }
        let error = match self.leader_node() {
            Some(_) => ProposalError::Busy,
            None => ProposalError::NoLeader,
        };
        let asked = std::mem::take(&mut self.reads.asked);
        for query in asked {
            if query.deadline <= ticks {
                late.push(query)
            } else {
                self.reads.asked.push_back(query)
            }
        }
        for queries in self.reads.indexed.values_mut() {
            late.extend(queries.extract_if(.., |query| query.deadline <= ticks));
        }
        self.reads.indexed.retain(|_, queries| !queries.is_empty());
        self.fail_reads(late, &error);
    }

    pub(crate) fn refuse_reads(&mut self, error: &ProposalError) {
        let reads = &mut self.reads;
        let mut all: Vec<_> = reads.asked.drain(..).collect();
        all.extend(reads.rounds.drain(..).flat_map(|round| round.queries));
        all.extend(std::mem::take(&mut reads.indexed).into_values().flatten());
        self.fail_reads(all, error);
    }

    fn fail_reads(&mut self, queries: Vec<Asked>, error: &ProposalError) {
        self.reads.waiting -= queries.len();
        self.effects
            .extend(queries.into_iter().map(|query| Effect::QueryFailed {
                waiter: query.waiter,
                error: error.clone(),
            }));
    }
}
