//! Linearizable queries by ReadIndex (Raft thesis 6.4): a round with a quorum fixes an index; a query is answered from
//! a state that has it.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use crate::effect::{Effect, Work};
use crate::group::Group;
use crate::id::LogIndex;
use crate::input::Waiter;
use crate::pending::{AskerId, Who};
use crate::planted::{self, Defect};
use crate::proposal::ProposalError;

/// Rounds in flight; queries that come meanwhile share the next one.
const ROUNDS_MAX: usize = 4;

#[derive(Debug)]
struct Asked {
    asker: AskerId,
    request: Bytes,
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
}

impl Reads {
    /// Keeps what somebody waits for.
    pub(crate) fn retain(&mut self, waits: impl Fn(AskerId) -> bool) {
        let waits = |asked: &Asked| waits(asked.asker);
        self.asked.retain(waits);
        for round in &mut self.rounds {
            round.queries.retain(waits);
        }
        self.indexed.retain(|_, queries| {
            queries.retain(waits);
            !queries.is_empty()
        });
    }
}

impl Group {
    pub(crate) fn query(&mut self, waiter: Waiter, request: Bytes, linearizable: bool) {
        let error = match () {
            () if !self.serves() => Some(ProposalError::Faulted),
            () if self.pending.readers() >= self.config.limits.queued_queries => {
                Some(ProposalError::Busy)
            }
            () => None,
        };
        if let Some(error) = error {
            self.out.push(Effect::QueryFailed { waiter, error });
            return;
        }
        let deadline = self.ticks + u64::from(self.config.limits.request_ticks);
        let asker = self.pending.admit(Who::Reader(waiter), deadline);
        let asked = Asked { asker, request };
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
        // What it drops is asked again: see `ask_again`.
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
            let (index, term) = (self.settled_through(), self.term());
            for Asked { asker, request } in queries {
                if let Some(Who::Reader(waiter)) = self.pending.take(asker).map(|asker| asker.who) {
                    self.out.machine(Work::Query {
                        waiter,
                        request,
                        index,
                        term,
                    });
                }
            }
        }
    }

    /// Begins again what Raft dropped.
    pub(crate) fn ask_again(&mut self) {
        let patience = 2 * u64::from(self.config.heartbeat_ticks) + 1;
        let (ticks, reads) = (self.ticks, &mut self.reads);
        let dropped = |round: &Round| round.asked_at + patience <= ticks;
        let dropped = reads.rounds.partition_point(dropped);
        let rounds = reads.rounds.drain(..dropped);
        let mut lost: VecDeque<_> = rounds.flat_map(|round| round.queries).collect();
        lost.append(&mut reads.asked);
        reads.asked = lost;
    }
}
