//! Answers the queries of one group beside its commands: an actor with a queue of its own, so that a slow query delays only
//! other queries of its group.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use skep_core::allowance::{Allowance, Rates};
use skep_core::id::{GroupId, LogIndex, Term};
use skep_core::outcome::Outcome;
use skep_core::proposal::ProposalError;
use skep_drive::{Answer, Failed, MachineError, Reader};
use skep_types::shared::lock;

use crate::error::Error;
use crate::machines::worker::{InHand, Owner, guarded, unless};
use crate::pool::Pool;
use crate::pool::run_queue::{Account, Meter, TURN_COST};
use crate::shards::mailbox::Asked;
use crate::shards::router::Router;
use crate::status::QueryAnswer;

/// Queries that wait for a reader. At the quickest, some microseconds each, it has them answered in a tenth of a second; at
/// the slowest nobody waits for the last of them any more.
const QUEUE_MAX: usize = 16_384;

/// Ticks without a query after which a reader is released: a minute at the default tick. A fork takes addresses, and some pages.
/// The second instance of a component without images takes as much memory as the machine, and building it again as long as the
/// commands since the last barrier.
pub(crate) const IDLE_TICKS: u32 = 600;

/// A query whose turn has come: everything up to `index` was applied.
pub(crate) struct Query {
    pub(crate) request: Bytes,
    pub(crate) index: LogIndex,
    pub(crate) term: Term,
    pub(crate) asked: Asked<QueryAnswer>,
}

/// The handle of an actor; clones share it.
#[derive(Clone)]
pub(crate) struct Queries {
    actor: Arc<Actor>,
}

struct Actor {
    owner: Owner,
    router: Arc<Router>,
    pool: Arc<Pool>,
    account: Account,
    queue: Mutex<Queue>,
    /// Until the reader is released; 0 when it is.
    ticks_left: AtomicU32,
    /// Locked only by the one task that runs.
    hand: Mutex<Hand>,
}

/// What the actor has: its reader, or a query that has it.
#[derive(Default)]
struct Hand {
    reader: Option<Box<dyn Reader>>,
    call: Option<InHand<Asking>>,
}

/// A query that is over: answered, or let go.
struct Asking {
    reader: Box<dyn Reader>,
    query: Query,
    answer: Option<Result<Answer, Failed>>,
}

#[derive(Default)]
struct Queue {
    queries: VecDeque<Query>,
    /// A task of the actor is queued or runs.
    scheduled: bool,
    release: bool,
    halted: bool,
    /// The group's, as of the last tick.
    rates: Rates,
    /// What is left of its bytes for queries on this node.
    allowance: Allowance,
}

impl Queue {
    fn take_bytes(&mut self, request: &Bytes, outcome: &Outcome) {
        for length in [request.len(), outcome.size()] {
            self.allowance.take_bytes(self.rates, length);
        }
    }

    /// Whether there is a query that may be answered now.
    fn is_due(&self) -> bool {
        !self.queries.is_empty() && !self.allowance.owes_bytes(self.rates)
    }

    fn wait_for_bytes(&self) -> bool {
        !self.queries.is_empty() && !self.is_due()
    }
}

impl Queries {
    pub(crate) fn new(
        owner: Owner,
        reader: Box<dyn Reader>,
        router: Arc<Router>,
        pool: Arc<Pool>,
    ) -> Self {
        Self {
            actor: Arc::new(Actor {
                owner,
                router,
                pool,
                account: Account::default(),
                queue: Mutex::default(),
                ticks_left: AtomicU32::new(0),
                hand: Mutex::new(Hand {
                    reader: Some(reader),
                    call: None,
                }),
            }),
        }
    }

    /// Queues a query. It is refused if too many wait.
    pub(crate) fn push(&self, query: Query) {
        let actor = &self.actor;
        let mut queue = actor.lock();
        let error = match () {
            () if queue.halted => Some(None),
            () if queue.queries.len() >= QUEUE_MAX => Some(Some(ProposalError::Busy)),
            () => None,
        };
        match error {
            None => {
                queue.queries.push_back(query);
                actor.ticks_left.store(IDLE_TICKS, Relaxed);
                if queue.is_due() {
                    actor.schedule(queue);
                }
            }
            Some(reason) => {
                drop(queue);
                actor.refuse(query, reason);
            }
        }
    }

    /// Time passes: a reader that nobody asks is released, and queries that waited for the quota may go on. Tells whether some
    /// waited.
    pub(crate) fn tick(&self, now: u64, rates: Rates) -> bool {
        let before = self
            .actor
            .ticks_left
            .fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1));
        if before.is_err() {
            return false;
        }
        let mut queue = self.actor.lock();
        let waited = queue.wait_for_bytes();
        if waited {
            queue.queries.retain(|query| !query.asked.is_abandoned());
        }
        queue.rates = rates;
        queue.allowance.refill(rates, now);
        queue.release |= before == Ok(1);
        if queue.release || queue.is_due() {
            self.actor.schedule(queue);
        }
        waited
    }

    /// Whether some wait until the bytes that others have used are made up for.
    pub(crate) fn wait_for_bytes(&self) -> bool {
        self.actor.lock().wait_for_bytes()
    }

    /// Ends the actor: nothing queued is answered any more, and the reader is dropped once its present call returns.
    pub(crate) fn halt(&self) {
        let mut queue = self.actor.lock();
        if std::mem::replace(&mut queue.halted, true) {
            return;
        }
        let queries = std::mem::take(&mut queue.queries);
        self.actor.schedule(queue);
        for query in queries {
            self.actor.refuse(query, None);
        }
    }
}

impl Actor {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        lock(&self.queue)
    }

    fn is_halted(&self) -> bool {
        self.lock().halted
    }

    fn schedule(self: &Arc<Self>, mut queue: MutexGuard<'_, Queue>) {
        if !std::mem::replace(&mut queue.scheduled, true) {
            drop(queue);
            let actor = Arc::clone(self);
            self.pool.run_for(&self.account, move || actor.turn());
        }
    }

    /// Works the queue off, for one turn. A query that is not answered by then goes on in the next one.
    fn turn(self: Arc<Self>) {
        let mut hand = lock(&self.hand);
        let mut meter = Meter::start();
        while meter.cost() < TURN_COST {
            if let Some(call) = hand.call.take() {
                self.go_on(&mut hand, call, &mut meter);
                if self.sleeps_on(&hand, &meter) {
                    return;
                }
                continue;
            }
            let mut queue = self.lock();
            if queue.halted && hand.reader.is_some() {
                drop(queue);
                // May unmap much memory, so not under the lock.
                hand.reader = None;
                continue;
            }
            let release = std::mem::take(&mut queue.release);
            let query = if queue.is_due() {
                queue.queries.pop_front()
            } else {
                None
            };
            if !release && query.is_none() {
                // Before the flag is cleared: from then on the next turn may be queued.
                self.account.charge(&meter);
                queue.scheduled = false;
                return;
            }
            drop(queue);
            let Some(mut reader) = hand.reader.take() else {
                if let Some(query) = query {
                    self.refuse(query, None);
                }
                continue;
            };
            match query {
                // Somebody still waits.
                Some(query) if !query.asked.is_abandoned() => {
                    let (actor, woken) = (Arc::clone(&self), Arc::clone(&self));
                    let call = InHand::new(actor.ask(reader, query), move || {
                        woken.schedule(woken.lock());
                    });
                    self.go_on(&mut hand, call, &mut meter);
                    if self.sleeps_on(&hand, &meter) {
                        return;
                    }
                }
                Some(_) => hand.reader = Some(reader),
                None => {
                    reader.release();
                    hand.reader = Some(reader);
                }
            }
        }
        self.account.charge(&meter);
        let goes_on = hand.call.is_some();
        drop(hand);
        let actor = Arc::clone(&self);
        self.pool.run_for(&self.account, move || actor.turn());
        if goes_on {
            // Shards and the log want little, and much waits for it.
            std::thread::yield_now();
        }
    }

    /// Asks; until the actor is halted, or whoever asked is gone or late.
    async fn ask(self: Arc<Self>, mut reader: Box<dyn Reader>, query: Query) -> Asking {
        let is_over = || self.is_halted() || query.asked.is_abandoned();
        let answer = guarded(async {
            match reader.query(&query.request).await {
                Ok(answer) => Ok(answer),
                Err(MachineError::Guest { fault, .. }) => Ok(Answer {
                    outcome: Outcome::Fault(fault),
                    index: query.index,
                    fuel: 0,
                }),
                Err(local @ MachineError::Local { .. }) => Err(local.into()),
            }
        });
        let answer = unless(is_over, answer).await;
        Asking {
            reader,
            query,
            answer,
        }
    }

    /// Whether the query in hand waits for an entry; then there is no turn until it is woken, or something is queued.
    fn sleeps_on(&self, hand: &Hand, meter: &Meter) -> bool {
        let Some(call) = &hand.call else { return false };
        let mut queue = self.lock();
        if !call.waits() {
            return false;
        }
        self.account.charge(meter);
        queue.scheduled = false;
        true
    }

    /// Runs the next slice of a query.
    fn go_on(&self, hand: &mut Hand, mut call: InHand<Asking>, meter: &mut Meter) {
        let Some(asking) = call.go_on(meter) else {
            hand.call = Some(call);
            return;
        };
        hand.reader = Some(asking.reader);
        let fuel = match &asking.answer {
            Some(Ok(answer)) => answer.fuel,
            _ => 0,
        };
        call.settle(fuel, meter);
        self.answer(asking.query, asking.answer);
    }

    fn answer(&self, query: Query, answer: Option<Result<Answer, Failed>>) {
        match answer {
            Some(Ok(Answer { outcome, index, .. })) => {
                self.lock().take_bytes(&query.request, &outcome);
                query.asked.answer(Ok(QueryAnswer {
                    outcome,
                    // Entries that the machine has no part in do not move its index.
                    index: index.max(query.index),
                    term: query.term,
                }));
            }
            // It was let go, or might as well have been.
            _ if self.is_halted() => self.refuse(query, None),
            // Nobody waits any more: late, or gone.
            None => {}
            // What applies commands is untouched, and so is the reader: the query failed, and not its group.
            Some(Err(Failed { reason, .. })) => {
                let (group, name) = (self.owner.key.group, &self.owner.name);
                tracing::warn!(group, %name, reason = %reason, "a query could not be run on this node");
                let group = GroupId(group);
                query
                    .asked
                    .answer(Err(Error::QueryFailed { group, reason }));
            }
        }
    }

    /// Answers that there is no answer: for this reason, or because the actor has ended.
    fn refuse(&self, query: Query, reason: Option<ProposalError>) {
        let error = match reason {
            Some(source) => Error::Proposal {
                group: GroupId(self.owner.key.group),
                source,
            },
            None => self.owner.refusal(&self.router),
        };
        query.asked.answer(Err(error));
    }
}
