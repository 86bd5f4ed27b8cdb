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
    /// Rounds begun in this life.
    begun: u64,
    /// For the machine's work up to an index to be handed over.
    indexed: BTreeMap<LogIndex, Vec<Asked>>,
}

impl Reads {
    /// A query waits: for a round, or for nothing but its turn.
    pub(crate) fn ask(&mut self, asker: AskerId, request: Bytes, linearizable: bool) {
        let asked = Asked { asker, request };
        match linearizable {
            true => self.asked.push_back(asked),
            false => self.indexed.entry(LogIndex(0)).or_default().push(asked),
        }
    }

    /// The number of the next round, if one is to begin.
    pub(crate) fn next_round(&self) -> Option<u64> {
        let is_due = !self.asked.is_empty() && self.rounds.len() < ROUNDS_MAX;
        is_due.then_some(self.begun + 1)
    }

    /// Begins a round for everything that was asked since the last one.
    pub(crate) fn begin_round(&mut self, id: u64, ticks: u64) {
        self.begun += 1;
        self.rounds.push_back(Round {
            id,
            asked_at: ticks,
            queries: self.asked.drain(..).collect(),
        });
    }

    /// A round has fixed its index; every query asked before it began, in this or an earlier round, may use it.
    pub(crate) fn fix(&mut self, id: u64, index: LogIndex) {
        let Some(place) = self.rounds.iter().position(|round| round.id == id) else {
            return;
        };
        let rounds = self.rounds.drain(..=place);
        let queries = rounds.flat_map(|round| round.queries);
        self.indexed.entry(index).or_default().extend(queries);
    }

    /// Queries that may be handed to the machine behind the work up to an index.
    pub(crate) fn take_due(&mut self, processed: LogIndex) -> Vec<(AskerId, Bytes)> {
        let mut due = Vec::new();
        while let Some(entry) = self.indexed.first_entry() {
            if *entry.key() > processed && !planted::has(Defect::ReadBeforeApplied) {
                break;
            }
            let queries = entry.remove().into_iter();
            due.extend(queries.map(|asked| (asked.asker, asked.request)));
        }
        due
    }

    /// Asks again what Raft dropped in rounds that began at this tick, or before.
    pub(crate) fn ask_again(&mut self, through: Option<u64>) {
        let dropped = |round: &Round| through.is_some_and(|through| round.asked_at <= through);
        let dropped = self.rounds.partition_point(dropped);
        let rounds = self.rounds.drain(..dropped);
        let mut lost: VecDeque<_> = rounds.flat_map(|round| round.queries).collect();
        lost.append(&mut self.asked);
        self.asked = lost;
    }

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
        let is_full = self.pending.readers() >= self.config.limits.queued_queries;
        let error = match () {
            () if !self.serves() => ProposalError::Faulted,
            () if is_full => ProposalError::Busy,
            () => {
                let deadline = self.ticks + u64::from(self.config.limits.request_ticks);
                let asker = self
                    .pending
                    .admit(Who::Reader(waiter), self.ticks, deadline);
                return self.reads.ask(asker, request, linearizable);
            }
        };
        self.out.push(Effect::QueryFailed { waiter, error });
    }

    /// Starts a round, if somebody waits for one and it can come to something.
    pub(crate) fn ask_reads(&mut self) {
        if self.leader_replica().is_none() || self.raft.leads_without_progress() {
            return;
        }
        let Some(number) = self.reads.next_round() else {
            return;
        };
        // Raft-rs swallows a context it has pending already, also one of a former life of this replica.
        let id = self.secret(b"skep read", [self.replica.0, number, self.now]);
        self.reads.begin_round(id, self.ticks);
        // What it drops is asked again with a later tick.
        self.raft.read_index(id.to_le_bytes().to_vec());
    }

    /// Raft gives the index of a round.
    pub(crate) fn read_index(&mut self, context: &[u8], index: LogIndex) {
        if let Ok(id) = context.try_into() {
            self.reads.fix(u64::from_le_bytes(id), index);
        }
    }

    /// Hands queries to the machine, behind the work whose effects they must see.
    pub(crate) fn serve_reads(&mut self) {
        for (asker, request) in self.reads.take_due(self.processed) {
            let asker = self.pending.take(asker).map(|asker| asker.who);
            if let Some(Who::Reader(waiter)) = asker {
                self.out.machine(Work::Query {
                    waiter,
                    request,
                    index: self.settled_through(),
                    term: self.term(),
                });
            }
        }
    }

    /// Begins again what Raft has dropped: a round takes no longer than two heartbeats.
    pub(crate) fn ask_dropped_reads(&mut self) {
        let patience = 2 * u64::from(self.config.heartbeat_ticks) + 1;
        self.reads.ask_again(self.ticks.checked_sub(patience));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pending::Pending;

    #[test]
    fn a_round_answers_for_itself_and_for_all_before_it() {
        let (mut pending, mut reads) = (Pending::default(), Reads::default());
        let mut ask = |reads: &mut Reads| {
            let asker = pending.admit(Who::Reader(0), 0, 100);
            reads.ask(asker, Bytes::new(), true);
            asker
        };
        let mut asked = Vec::new();
        for (number, tick) in (1..).zip([1, 2, 9]) {
            asked.push(ask(&mut reads));
            assert_eq!(reads.next_round(), Some(number));
            reads.begin_round(number * 10, tick);
        }
        reads.fix(20, LogIndex(7));
        assert!(reads.take_due(LogIndex(6)).is_empty());
        let due = reads.take_due(LogIndex(7));
        let due: Vec<_> = due.into_iter().map(|(asker, _)| asker).collect();
        assert_eq!(due, asked[..2]);
        // The third was dropped, and shares the next round with whoever came meanwhile.
        reads.ask_again(Some(8));
        assert_eq!(reads.next_round(), None);
        asked.push(ask(&mut reads));
        reads.ask_again(Some(9));
        reads.begin_round(40, 10);
        reads.fix(30, LogIndex(7));
        assert!(reads.take_due(LogIndex(7)).is_empty(), "that round is over");
        reads.fix(40, LogIndex(8));
        let due = reads.take_due(LogIndex(8));
        let due: Vec<_> = due.into_iter().map(|(asker, _)| asker).collect();
        assert_eq!(due, asked[2..]);
    }

    #[test]
    fn rounds_in_flight_are_few_and_who_is_gone_is_not_asked_for() {
        let (mut pending, mut reads) = (Pending::default(), Reads::default());
        let gone = pending.admit(Who::Reader(1), 0, 100);
        reads.ask(gone, Bytes::new(), false);
        for round in 1..=ROUNDS_MAX as u64 {
            reads.ask(gone, Bytes::new(), true);
            reads.begin_round(round, 1);
        }
        reads.ask(gone, Bytes::new(), true);
        assert_eq!(reads.next_round(), None, "it waits for one of them to end");
        pending.take(gone);
        reads.retain(|asker| pending.waits(asker));
        reads.fix(ROUNDS_MAX as u64, LogIndex(1));
        assert!(reads.take_due(LogIndex(1)).is_empty());
        assert_eq!(reads.next_round(), None, "nobody waits");
    }
}
