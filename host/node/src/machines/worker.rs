//! Runs the machine of one group: an actor with a queue of its own, so that a slow or stuck machine delays only its
//! own group.

mod exercise;
mod guard;
mod in_hand;
mod owner;
mod recent;
mod rehearsal;
mod results;
mod snapshots;
mod supply;
#[cfg(test)]
mod tests;
mod turn;
mod watch;

use std::collections::VecDeque;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use bytes::Bytes;
use skep_core::allowance::Rates;
use skep_core::effect::Work;
use skep_core::id::{ComponentId, GroupId, LogIndex};
use skep_core::input::Input;
use skep_core::message::SnapshotName;
use skep_core::proposal::ProposalError;
use skep_core::status::HeldBack;
use skep_drive::{Descriptor, Done, Driver, Failed, StateMachine};
use skep_types::shared::lock;
use tokio::sync::oneshot;

use self::exercise::Exercise;
use self::recent::Recent;
use self::results::Results;
use self::snapshots::{Left, Passed, Unwritten};
use self::supply::Supply;
use self::turn::{Fuel, Hand, Machine};
use self::watch::Watch;
use crate::disk::store::Disk;
use crate::error::Error;
use crate::machines::exchange::Exchange;
use crate::machines::queries::{Queries, Query};
use crate::pool::Pool;
use crate::pool::run_queue::Account;
use crate::shards::mailbox::{Completion, Event};
use crate::shards::router::Router;
use crate::status::QueryAnswer;

pub(crate) use self::guard::{guarded, unless};
pub(crate) use self::in_hand::InHand;
pub(crate) use self::owner::Owner;
pub use self::recent::Rehearsable;
pub use self::rehearsal::Extent;
pub(crate) use self::snapshots::Saved;

/// Something for the machine's thread, in order.
pub(crate) enum Job {
    /// Everything of [`Work`] but queries.
    Work(Work),
    Query(Query),
    /// A newer snapshot is durable in the log: delete the files before it. In the queue, so that no file goes that an
    /// earlier job still restores from.
    Prune(SnapshotName),
}

impl Job {
    /// Whether queries behind it may have to see what it does. A barrier only changes where the state is kept.
    fn changes_state(&self) -> bool {
        matches!(
            self,
            Self::Work(Work::Apply { .. } | Work::Restore { .. } | Work::Decide { .. })
        )
    }
}

/// The handle of an actor; clones share it.
#[derive(Clone)]
pub(crate) struct Worker {
    actor: Arc<Actor>,
}

struct Actor {
    owner: Owner,
    disk: Arc<Disk>,
    router: Arc<Router>,
    pool: Arc<Pool>,
    account: Account,
    exchange: Option<Exchange>,
    queue: Mutex<Queue>,
    /// The actor was halted; wakes whoever waits until a machine can be made.
    halting: Condvar,
    results: Mutex<Results>,
    running: Mutex<Running>,
    recent: Mutex<Recent>,
    /// The machine has failed in a way that no other start of it mends.
    broken: AtomicBool,
    /// What the machine waits for, if it waits for something that this node lacks at the moment.
    waits: Mutex<Option<Arc<str>>>,
    exercise: Mutex<Exercise>,
    /// Locked only by the one task that runs.
    hand: Mutex<Hand>,
}

/// What a group runs on this node now.
#[derive(Clone, Debug)]
pub(crate) struct Running {
    pub(crate) component: ComponentId,
    pub(crate) descriptor: Descriptor,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    /// Answers queries, if the machine can have that done beside its commands.
    queries: Option<Queries>,
    /// Jobs that change the state and are not done: queued, or in hand.
    unapplied: usize,
    /// The machine waits for a snapshot that it can go on from.
    void: bool,
    /// Snapshots of barriers that are being made durable, each by a task of its own.
    settling: u32,
    /// The snapshot of the last barrier, if it could not be written.
    unwritten: Option<Unwritten>,
    /// The last barrier, or what the machine was restored from since.
    newest: LogIndex,
    /// A task of the actor is queued or runs.
    scheduled: bool,
    halted: bool,
    /// The machine of a halted actor was dropped.
    ended: bool,
    end: Option<End>,
}

impl Worker {
    pub(crate) fn new(
        owner: Owner,
        machine: Box<dyn StateMachine>,
        exchange: Option<Exchange>,
        disk: Arc<Disk>,
        router: Arc<Router>,
        pool: Arc<Pool>,
    ) -> Self {
        let running = Mutex::new(Running {
            component: owner.component,
            descriptor: machine.describe(),
        });
        let actor = Actor {
            owner,
            disk,
            router,
            pool,
            account: Account::default(),
            exchange,
            queue: Mutex::default(),
            halting: Condvar::new(),
            results: Mutex::default(),
            running,
            recent: Mutex::default(),
            broken: AtomicBool::new(false),
            waits: Mutex::default(),
            exercise: Mutex::default(),
            hand: Mutex::default(),
        };
        actor.lock().queries = actor.queries_of(&*machine);
        actor.owner.memory.set(&*machine);
        let machine = match &actor.exchange {
            None => Driver::new(machine),
            Some(exchange) => {
                let (founding, current) = (exchange.founding.clone(), exchange.current.clone());
                Driver::exchangeable(machine, founding, current)
            }
        };
        actor.hand().machine = Some(Box::new(machine));
        Self {
            actor: Arc::new(actor),
        }
    }

    /// Queues a job; after [`Worker::halt`] it is dropped, and a query is answered so. A query that has nothing to wait for
    /// is handed on at once: it does not wait for a barrier.
    pub(crate) fn push(&self, job: Job) {
        let actor = &self.actor;
        let mut queue = actor.lock();
        if queue.halted {
            drop(queue);
            actor.refuse(job);
            return;
        }
        match (job, &queue.queries) {
            (Job::Query(query), Some(queries)) if queue.unapplied == 0 && !queue.void => {
                queries.push(query)
            }
            (job, _) => {
                queue.unapplied += usize::from(job.changes_state());
                queue.jobs.push_back(job);
                actor.schedule(queue);
            }
        }
    }

    /// Time passes: what is not used is let go. Tells whether queries waited for the quota.
    pub(crate) fn tick(&self, now: u64, rates: Rates) -> bool {
        let queue = self.actor.lock();
        let queries = queue.queries.as_ref();
        let waited = queries.is_some_and(|queries| queries.tick(now, rates));
        self.actor.write_again_if_due(queue);
        waited
    }

    /// What the group runs here.
    pub(crate) fn running(&self) -> Running {
        lock(&self.actor.running).clone()
    }

    /// What another machine can be tried on; none if it is not known which bytes this one goes on from.
    pub(crate) fn rehearsable(&self) -> Option<Rehearsable> {
        self.actor.recent().rehearsable()
    }

    /// Whether the machine would fail again however often it is started.
    pub(crate) fn is_broken(&self) -> bool {
        self.actor.broken.load(Acquire)
    }

    /// What the machine waits for, if it waits for something that this node lacks at the moment.
    pub(crate) fn waits(&self) -> Option<Arc<str>> {
        lock(&self.actor.waits).clone()
    }

    /// Why the machine could be exchanged no more, if that was found out.
    pub(crate) fn defect(&self) -> Option<Arc<str>> {
        self.actor.defect()
    }

    /// What holds back its commands and queries, beside what the replica knows of.
    pub(crate) fn held_back(&self) -> Option<HeldBack> {
        let queries = self.actor.lock().queries.clone();
        let wait = queries.is_some_and(|queries| queries.wait_for_bytes());
        wait.then_some(HeldBack::QueryBytes)
    }

    /// Replicas of the group were found to differ.
    pub(crate) fn count_divergence(&self) {
        self.actor.router.divergences.fetch_add(1, Relaxed);
    }

    /// Ends the actor: nothing queued is run any more, and the machine is dropped once its present call returns. That of a guest
    /// ends with its slice.
    pub(crate) fn halt(&self) {
        let mut queue = self.actor.lock();
        queue.halted = true;
        queue.unwritten = None;
        let jobs = std::mem::take(&mut queue.jobs);
        let queries = queue.queries.take();
        self.actor.halting.notify_all();
        self.actor.schedule(queue);
        for job in jobs {
            self.actor.refuse(job);
        }
        if let Some(queries) = queries {
            queries.halt();
        }
    }

    /// Deletes the snapshot files of the group, when its present call has returned; for a halted actor.
    pub(crate) fn erase(&self, done: Option<oneshot::Sender<Result<(), Error>>>) {
        self.end(End::Erase(done));
    }

    /// Lets the files of the group go to a successor, when the present call has returned; for a halted actor.
    pub(crate) fn release(&self, done: oneshot::Sender<Result<(), Error>>) {
        self.end(End::Release(done));
    }

    fn end(&self, end: End) {
        let mut queue = self.actor.lock();
        queue.end = Some(end);
        self.actor.schedule(queue);
    }
}

/// What becomes of a halted actor when its present call has returned and no file of it is being written.
enum End {
    /// The snapshot files of the group are deleted.
    Erase(Option<oneshot::Sender<Result<(), Error>>>),
    /// They stay, for its successor.
    Release(oneshot::Sender<Result<(), Error>>),
}

impl Actor {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        lock(&self.queue)
    }

    fn hand(&self) -> MutexGuard<'_, Hand> {
        lock(&self.hand)
    }

    fn results(&self) -> MutexGuard<'_, Results> {
        lock(&self.results)
    }

    fn recent(&self) -> MutexGuard<'_, Recent> {
        lock(&self.recent)
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

    async fn work(self: &Arc<Self>, machine: &mut Machine, work: Work) -> Result<Fuel, Failed> {
        let kept = match &work {
            Work::Apply { context, calls, .. } => {
                self.recent().keep(calls).map(|calls| (*context, calls))
            }
            _ => None,
        };
        let (mut supply, mut watch) = (Supply(self), Watch::start(self, &work));
        let driven = machine.drive(work, &mut supply, &mut watch);
        let done = unless(|| self.is_halted(), driven).await;
        match done.ok_or_else(|| Failed::local("its group has gone from this node"))?? {
            Done::Tell(input) => {
                let mut used = 0;
                match &input {
                    Input::Applied { outcomes, fuel, .. } => {
                        used = *fuel;
                        if let Some((context, calls)) = kept {
                            self.recent().add(context, calls, outcomes, *fuel);
                        }
                    }
                    Input::Restored { index, .. } => {
                        self.supersede_unwritten(*index);
                        self.lock().void = false;
                    }
                    Input::NotResumed { .. } => self.lock().void = true,
                    _ => {}
                }
                self.push(input);
                Ok(used)
            }
            Done::Passed {
                point,
                state,
                memory,
            } => {
                let left = Left::Saved(point);
                self.settle_barrier(machine, left, state, memory);
                Ok(0)
            }
            Done::Imaging {
                image,
                state,
                memory,
            } => {
                self.recent().let_go();
                let left = Left::Image(image);
                self.settle_barrier(machine, left, state, memory);
                Ok(0)
            }
            Done::Answer { .. } => Err(Failed::broken("a query came without its waiter")),
        }
    }

    /// The machine has passed a barrier.
    fn settle_barrier(
        self: &Arc<Self>,
        machine: &Machine,
        left: Left,
        state: Bytes,
        memory: Option<u64>,
    ) {
        self.settle(Passed {
            left,
            state,
            deployment: machine.deployment().cloned(),
            memory,
        });
    }

    /// The actor that answers queries of a machine beside it.
    fn queries_of(&self, machine: &dyn StateMachine) -> Option<Queries> {
        machine.reader().map(|reader| {
            Queries::new(
                self.owner.clone(),
                reader,
                Arc::clone(&self.router),
                Arc::clone(&self.pool),
            )
        })
    }

    /// Answers a query between entries, from the one state that the machine has.
    async fn query(&self, machine: &mut Machine, query: Query) -> Result<Fuel, Failed> {
        let Query {
            request,
            index,
            term,
            asked,
        } = query;
        let group = GroupId(self.owner.key.group);
        let faulted = || Error::Proposal {
            group,
            source: ProposalError::Faulted,
        };
        let answer = guarded(async {
            let answer = unless(|| self.is_halted(), machine.query(&request)).await;
            answer.ok_or_else(|| Failed::local("its group has gone from this node"))
        });
        match answer.await {
            Ok(Ok(outcome)) => {
                asked.answer(Ok(QueryAnswer {
                    outcome,
                    index: machine.applied().max(index),
                    term,
                }));
                Ok(0)
            }
            // The query alone could not be run: nothing has changed.
            Ok(Err(error)) => {
                let reason = error.to_string();
                tracing::warn!(%group, name = %self.owner.name, reason = %reason, "a query could not be run on this node");
                asked.answer(Err(Error::QueryFailed { group, reason }));
                Ok(0)
            }
            Err(failed) => {
                asked.answer(Err(faulted()));
                Err(failed)
            }
        }
    }

    /// A machine can no longer be run, and is gone: says so if anybody wants it.
    fn let_go(&self, failed: Failed) {
        if self.is_halted() {
            return;
        }
        self.broken.store(failed.is_broken, Release);
        tracing::error!(group = self.owner.key.group, name = %self.owner.name, reason = failed.reason, "the machine of a group has failed on this node");
        self.recent().forget();
        // Not taken away: it refuses queries that come from now on.
        if let Some(queries) = &self.lock().queries {
            queries.halt();
        }
        self.push(failed.input());
    }

    /// Drops a job; if somebody waits for it, says why.
    fn refuse(&self, job: Job) {
        if let Job::Query(query) = job {
            query.asked.answer(Err(self.owner.refusal(&self.router)));
        }
    }

    fn finish(&self, end: End) {
        let (done, result) = match end {
            End::Erase(done) => (
                done,
                self.disk
                    .remove_snapshots(self.owner.key)
                    .map_err(Error::from),
            ),
            End::Release(done) => (Some(done), Ok(())),
        };
        if let Err(error) = &result {
            tracing::warn!(group = self.owner.key.group, %error, "snapshots of a removed group are not deleted; tried again at the next start");
        }
        self.router
            .vacate(GroupId(self.owner.key.group), self.owner.life);
        if let Some(done) = done {
            drop(done.send(result));
        }
    }

    fn push(&self, input: Input) {
        let many = {
            let mut results = self.results();
            results.push(input);
            results.is_many()
        };
        if many {
            self.post();
        }
    }

    /// Posts the results that may be.
    fn post(&self) {
        let Owner { key, life, .. } = self.owner;
        let group = GroupId(key.group);
        // Locked until they are in the mailbox, so that none overtakes another.
        let mut results = self.results();
        let inputs = results.take();
        if !inputs.is_empty() {
            let completions = inputs.into_iter().map(|input| Completion {
                group,
                life,
                event: Event::Input(input),
            });
            self.router.complete(group, completions);
        }
    }
}
