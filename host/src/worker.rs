//! Runs the machine of one group: an actor with a queue of its own, so that a slow or stuck machine delays only its
//! own group.

use std::any::Any;
use std::collections::VecDeque;
use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use skep_core::deployment::Deployment;
use skep_core::effect::{Call, Work};
use skep_core::id::{ComponentId, GroupId, LogIndex, Term};
use skep_core::input::Input;
use skep_core::message::SnapshotName;
use skep_core::outcome::{EntryContext, Outcome};
use skep_core::proposal::ProposalError;
use skep_log::GroupKey;
use skep_machine::state_machine::{Applied, Descriptor, MachineError, StateMachine};
use tokio::sync::oneshot;

use crate::error::Error;
use crate::exchange::Exchange;
use crate::mailbox::{Asked, Completion, Event};
use crate::pool::Pool;
use crate::replica::Life;
use crate::router::Router;
use crate::status::QueryAnswer;
use crate::store::Disk;

/// Jobs a worker does before it lets other groups have its thread.
const TURN_MAX: usize = 256;

/// Outcomes collected before they are posted, so that one message carries many and none waits for a whole queue.
const POST_OUTCOMES: usize = 256;

/// Pause before a machine that could not be made is asked for again.
const MAKE_AGAIN: Duration = Duration::from_secs(1);

/// Code of the rejection of an activation.
pub(crate) const REFUSED: u32 = 422;

/// Something for the machine's thread, in order.
pub(crate) enum Job {
    /// Everything of [`Work`] but queries.
    Work(Work),
    Query {
        request: Bytes,
        index: LogIndex,
        term: Term,
        asked: Asked<QueryAnswer>,
    },
    /// A newer snapshot is durable in the log: delete the files before it. In the queue, so that no file goes that an
    /// earlier job still restores from.
    Prune(SnapshotName),
}

/// Who a machine belongs to.
#[derive(Clone, Debug)]
pub(crate) struct Owner {
    pub(crate) key: GroupKey,
    pub(crate) name: String,
    pub(crate) life: Life,
    pub(crate) component: ComponentId,
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
    queue: Mutex<Queue>,
    /// Locked only by the one task that runs.
    machine: Mutex<Option<Machine>>,
    exchange: Option<Exchange>,
    /// The actor was halted; wakes whoever waits until a machine can be made.
    halting: Condvar,
    running: Mutex<Running>,
}

struct Machine {
    machine: Box<dyn StateMachine>,
    /// What it runs; none for one that is never exchanged.
    deployment: Option<Deployment>,
    applied: LogIndex,
    /// It was given work.
    begun: bool,
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
    /// A task of the actor is queued or runs.
    scheduled: bool,
    halted: bool,
    erase: Option<Option<oneshot::Sender<Result<(), Error>>>>,
}

impl Machine {
    fn schema(&self) -> u32 {
        self.machine.describe().schema
    }

    fn component(&self, owner: &Owner) -> ComponentId {
        let deployment = self.deployment.as_ref();
        deployment.map_or(owner.component, |deployment| deployment.component)
    }
}

/// Why a machine can no longer be run.
struct Failed(String);

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
        let machine = Mutex::new(Some(Machine {
            machine,
            deployment: exchange.as_ref().map(|exchange| exchange.current.clone()),
            applied: LogIndex(0),
            begun: false,
        }));
        Self {
            actor: Arc::new(Actor {
                exchange,
                halting: Condvar::new(),
                running,
                owner,
                disk,
                router,
                pool,
                queue: Mutex::default(),
                machine,
            }),
        }
    }

    /// Queues a job; after [`Worker::halt`] it is dropped, and a query is answered so.
    pub(crate) fn push(&self, job: Job) {
        let mut queue = self.actor.lock();
        if queue.halted {
            drop(queue);
            self.actor.refuse(job);
            return;
        }
        queue.jobs.push_back(job);
        self.actor.schedule(queue);
    }

    /// Ends the actor: nothing queued is run any more, and the machine is dropped once its present call returns.
    pub(crate) fn halt(&self) {
        let mut queue = self.actor.lock();
        queue.halted = true;
        let jobs = std::mem::take(&mut queue.jobs);
        self.actor.halting.notify_all();
        self.actor.schedule(queue);
        for job in jobs {
            self.actor.refuse(job);
        }
    }

    /// What the group runs here.
    pub(crate) fn running(&self) -> Running {
        let running = self.actor.running.lock();
        running.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replicas of the group were found to differ.
    pub(crate) fn count_divergence(&self) {
        self.actor.router.divergences.fetch_add(1, Relaxed);
    }

    /// Deletes the snapshot files of the group, when its present call has returned; for a halted actor.
    pub(crate) fn erase(&self, done: Option<oneshot::Sender<Result<(), Error>>>) {
        let mut queue = self.actor.lock();
        queue.erase = Some(done);
        self.actor.schedule(queue);
    }
}

impl Actor {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn schedule(self: &Arc<Self>, mut queue: MutexGuard<'_, Queue>) {
        if !std::mem::replace(&mut queue.scheduled, true) {
            drop(queue);
            let actor = Arc::clone(self);
            self.pool.run(move || actor.turn());
        }
    }

    /// Works the queue off, for one turn.
    fn turn(self: Arc<Self>) {
        let mut cell = self.machine.lock().unwrap_or_else(PoisonError::into_inner);
        let mut post = Post {
            actor: &self,
            events: Vec::new(),
            outcomes: 0,
        };
        for _ in 0..TURN_MAX {
            let mut queue = self.lock();
            if queue.halted {
                let erase = queue.erase.take();
                drop(queue);
                *cell = None;
                if let Some(done) = erase {
                    self.erase(done);
                }
                queue = self.lock();
                if queue.erase.is_none() {
                    queue.scheduled = false;
                    return;
                }
                continue;
            }
            let Some(job) = queue.jobs.pop_front() else {
                // Before the flag is cleared: from then on another task may post, and results must not be overtaken.
                if post.is_empty() {
                    queue.scheduled = false;
                    return;
                }
                drop(queue);
                post.flush();
                continue;
            };
            drop(queue);
            match cell.as_mut() {
                Some(machine) => {
                    if let Err(Failed(reason)) = self.run(machine, job, &mut post) {
                        tracing::error!(group = self.owner.key.group, name = %self.owner.name, reason, "the machine of a group has failed on this node");
                        *cell = None;
                        post.push(Input::MachineFailed { reason });
                    }
                }
                None => self.refuse(job),
            }
        }
        post.flush();
        drop(post);
        drop(cell);
        let actor = Arc::clone(&self);
        self.pool.run(move || actor.turn());
    }

    fn run(&self, machine: &mut Machine, job: Job, post: &mut Post<'_>) -> Result<(), Failed> {
        match job {
            Job::Work(work) => {
                // A panic leaves the machine in no known state; it is dropped, so nothing broken is seen again.
                if let Some(input) = guarded(|| self.work(machine, work))? {
                    post.push(input);
                }
                Ok(())
            }
            Job::Query {
                request,
                index,
                term,
                asked,
            } => {
                let group = GroupId(self.owner.key.group);
                match guarded(|| Ok(machine.machine.query(&request).or_else(outcome_of))) {
                    Ok(Ok(outcome)) => {
                        asked.answer(Ok(QueryAnswer {
                            outcome,
                            index: machine.applied.max(index),
                            term,
                        }));
                        Ok(())
                    }
                    // Queries have an instance of their own, so what applies commands is untouched.
                    Ok(Err(Failed(reason))) => {
                        tracing::warn!(%group, name = %self.owner.name, reason, "a query could not be run on this node");
                        asked.answer(Err(Error::Proposal {
                            group,
                            source: ProposalError::Faulted,
                        }));
                        Ok(())
                    }
                    Err(failed) => {
                        asked.answer(Err(Error::Proposal {
                            group,
                            source: ProposalError::Faulted,
                        }));
                        Err(failed)
                    }
                }
            }
            Job::Prune(newest) => {
                if let Err(error) = self.disk.prune_snapshots(self.owner.key, newest.index) {
                    tracing::warn!(group = self.owner.key.group, %error, "old snapshots are not deleted; tried again at the next one");
                }
                Ok(())
            }
        }
    }

    fn work(&self, machine: &mut Machine, work: Work) -> Result<Option<Input>, Failed> {
        self.begin(machine, &work)?;
        match work {
            Work::Apply { context, calls } => {
                let applied = self.apply(machine, &context, calls)?;
                machine.applied = context.index;
                Ok(Some(Input::Applied {
                    index: context.index,
                    outcomes: applied.outcomes,
                    fuel: applied.fuel,
                }))
            }
            Work::Barrier { context, state } => {
                let snapshot = self.barrier(machine, &context, state)?;
                machine.applied = context.index;
                Ok(Some(Input::Snapshotted {
                    index: context.index,
                    snapshot,
                }))
            }
            Work::Restore {
                context, snapshot, ..
            } => {
                let file = self
                    .disk
                    .open_snapshot(self.owner.key, &snapshot)
                    .map_err(|error| Failed(error.to_string()))?;
                let schema = file.meta().schema;
                machine
                    .machine
                    .restore(&context, schema, file.guest())
                    .map_err(|error| {
                        Failed(format!("snapshot {} is not taken: {error}", snapshot.index))
                    })?;
                machine.applied = snapshot.index;
                Ok(Some(Input::Restored {
                    index: snapshot.index,
                }))
            }
            Work::Query { .. } => Err(Failed("a query came without its waiter".into())),
        }
    }

    /// Makes sure that the machine is of what the group runs at this place of its log, whatever it was brought up with.
    fn begin(&self, machine: &mut Machine, work: &Work) -> Result<(), Failed> {
        let first = !std::mem::replace(&mut machine.begun, true);
        let Some(exchange) = &self.exchange else {
            return Ok(());
        };
        let wanted = match work {
            Work::Restore {
                deployment: Some(deployment),
                ..
            } => deployment,
            _ if first => &exchange.founding,
            _ => return Ok(()),
        };
        if machine.deployment.as_ref() != Some(wanted) {
            let made = self.make(exchange, wanted)?.map_err(failed)?;
            self.replace(machine, made, wanted.clone());
        }
        Ok(())
    }

    /// Asks for a machine until there is one, or it is certain that there can be none.
    fn make(
        &self,
        exchange: &Exchange,
        deployment: &Deployment,
    ) -> Result<Result<Box<dyn StateMachine>, MachineError>, Failed> {
        loop {
            match exchange.factory.make(deployment) {
                Err(MachineError::Local { reason, .. }) => {
                    let (group, name) = (self.owner.key.group, &self.owner.name);
                    tracing::warn!(group, name, component = %deployment.component, reason, "the group waits for its machine");
                    let queue = self.lock();
                    let waited = self
                        .halting
                        .wait_timeout_while(queue, MAKE_AGAIN, |queue| !queue.halted);
                    let (queue, _) = waited.unwrap_or_else(PoisonError::into_inner);
                    if queue.halted {
                        return Err(Failed(format!("it was stopped while it waited: {reason}")));
                    }
                }
                made => return Ok(made),
            }
        }
    }

    fn replace(
        &self,
        machine: &mut Machine,
        made: Box<dyn StateMachine>,
        deployment: Deployment,
    ) -> Box<dyn StateMachine> {
        let running = Running {
            component: deployment.component,
            descriptor: made.describe(),
        };
        *self.running.lock().unwrap_or_else(PoisonError::into_inner) = running;
        machine.deployment = Some(deployment);
        std::mem::replace(&mut machine.machine, made)
    }

    /// Goes on with another machine from the state of this one. What is answered is the same on every replica: only codes,
    /// never the words of a guest or of this node.
    fn activate(
        &self,
        machine: &mut Machine,
        context: &EntryContext,
        deployment: Deployment,
    ) -> Result<Applied, Failed> {
        let answer = |outcome| Applied {
            outcomes: vec![outcome],
            fuel: 0,
        };
        let refused = |message: String| {
            answer(Outcome::Rejected {
                code: REFUSED,
                message,
            })
        };
        let Some(exchange) = &self.exchange else {
            return Ok(refused(
                "the machine of this group cannot be exchanged".into(),
            ));
        };
        let (group, name, index) = (self.owner.key.group, &self.owner.name, context.index.0);
        let schema = machine.schema();
        let mut saved = Vec::new();
        match machine.machine.save(context, &mut saved) {
            Ok(()) => {}
            Err(MachineError::Guest { fault, detail, .. }) => {
                tracing::warn!(group, name, index, %fault, detail, "not upgraded: the running machine failed in save");
                return Ok(refused(format!(
                    "the running machine failed in save: {fault}"
                )));
            }
            Err(local) => return Err(failed(local)),
        }
        let saved = Bytes::from(saved);
        let taken = self.make(exchange, &deployment)?.and_then(|mut made| {
            made.restore(context, schema, saved.clone())?;
            Ok(made)
        });
        match taken {
            Ok(made) => {
                tracing::info!(group, name, index, component = %deployment.component, "upgraded");
                // The former one is dropped here, where its instances cost nobody else time.
                drop(self.replace(machine, made, deployment));
                Ok(answer(Outcome::Reply(Bytes::new())))
            }
            Err(MachineError::Guest {
                call,
                fault,
                detail,
            }) => {
                tracing::warn!(group, name, index, component = %deployment.component, call, %fault, detail, "not upgraded: the new machine does not take the state");
                // What ran goes on as it does after every save: from its bytes, in a fresh instance.
                machine
                    .machine
                    .restore(context, schema, saved)
                    .map_err(failed)?;
                Ok(refused(format!(
                    "the new machine failed in {call}: {fault}"
                )))
            }
            Err(local) => Err(failed(local)),
        }
    }

    fn apply(
        &self,
        machine: &mut Machine,
        context: &EntryContext,
        calls: Vec<Call>,
    ) -> Result<Applied, Failed> {
        let mut sum = Applied::default();
        for call in calls {
            let applied = match call {
                Call::Init(config) => {
                    // Every replica sees the same refusal. A machine without its configuration must never serve.
                    let applied = machine.machine.init(context, &config).map_err(failed)?;
                    match applied
                        .outcomes
                        .iter()
                        .find(|outcome| !matches!(outcome, Outcome::Reply(_)))
                    {
                        None => Applied {
                            outcomes: Vec::new(),
                            fuel: applied.fuel,
                        },
                        Some(Outcome::Rejected { code, message }) => {
                            return Err(Failed(format!(
                                "init refused the configuration of the group (code {code}): {message}"
                            )));
                        }
                        Some(outcome) => {
                            return Err(Failed(format!(
                                "init failed on the configuration of the group: {outcome:?}"
                            )));
                        }
                    }
                }
                Call::Commands(commands) => {
                    let applied = machine.machine.apply(context, &commands).map_err(failed)?;
                    if applied.outcomes.len() != commands.len() {
                        let (outcomes, commands) = (applied.outcomes.len(), commands.len());
                        return Err(Failed(format!(
                            "apply gave {outcomes} outcomes for {commands} commands"
                        )));
                    }
                    applied
                }
                Call::ConfChange(change) => {
                    match machine.machine.apply_conf_change(context, &change) {
                        Ok(mut applied) => {
                            applied.outcomes.truncate(1);
                            if applied.outcomes.is_empty() {
                                applied.outcomes.push(Outcome::Reply(Bytes::new()));
                            }
                            applied
                        }
                        Err(error) => Applied {
                            outcomes: vec![outcome_of(error)?],
                            fuel: 0,
                        },
                    }
                }
                Call::Activate(deployment) => self.activate(machine, context, deployment)?,
                Call::StatusChange(event) => {
                    let fuel = match machine.machine.process_status_change(context, &event) {
                        Ok(applied) => applied.fuel,
                        Err(error) => {
                            let fault = outcome_of(error)?;
                            tracing::warn!(
                                group = self.owner.key.group,
                                ?fault,
                                "the machine failed on a change of leader; nothing changed"
                            );
                            0
                        }
                    };
                    Applied {
                        outcomes: Vec::new(),
                        fuel,
                    }
                }
            };
            sum.outcomes.extend(applied.outcomes);
            sum.fuel = sum.fuel.saturating_add(applied.fuel);
        }
        Ok(sum)
    }

    fn barrier(
        &self,
        machine: &mut Machine,
        context: &EntryContext,
        state: Bytes,
    ) -> Result<Option<SnapshotName>, Failed> {
        let local = |error: &dyn std::fmt::Display| {
            Failed(format!(
                "the snapshot at {} was not written: {error}",
                context.index
            ))
        };
        let owner = &self.owner;
        let writer = self
            .disk
            .create_snapshot(
                owner.key,
                (context.index, context.term),
                state,
                machine.schema(),
                machine.component(owner),
            )
            .map_err(|error| local(&error))?;
        let mut writer = Watched {
            writer,
            error: None,
        };
        let saved = machine.machine.save(context, &mut writer);
        if let Some(error) = writer.error {
            return Err(local(&error));
        }
        if let Err(error) = saved {
            return self.degraded(context, error).map(|()| None);
        }
        let file = writer.writer.finish().map_err(|error| local(&error))?;
        let name = Disk::snapshot_name(&file);
        if let Err(error) = machine
            .machine
            .restore(context, machine.schema(), file.guest())
        {
            drop(file);
            self.disk
                .remove_snapshot(owner.key, &name)
                .map_err(|error| local(&error))?;
            return self.degraded(context, error).map(|()| None);
        }
        Ok(Some(name))
    }

    /// The machine cannot save or read back what it saved, on every replica alike: it goes on without a snapshot.
    fn degraded(&self, context: &EntryContext, error: MachineError) -> Result<(), Failed> {
        match error {
            error @ MachineError::Guest { .. } => {
                let (group, name, index) =
                    (self.owner.key.group, &self.owner.name, context.index.0);
                tracing::error!(group, name, index, %error, "no snapshot: the log of the group cannot be compacted");
                Ok(())
            }
            error @ MachineError::Local { .. } => Err(failed(error)),
        }
    }

    /// Drops a job; if somebody waits for it, says why.
    fn refuse(&self, job: Job) {
        if let Job::Query { asked, .. } = job {
            let group = GroupId(self.owner.key.group);
            let error = match self.router.route(group) {
                Ok(route) if route.life == self.owner.life => Error::Proposal {
                    group,
                    source: ProposalError::Faulted,
                },
                Ok(_) => Error::NoSuchGroup {
                    group,
                    node: self.router.node,
                },
                Err(gone) => gone,
            };
            asked.answer(Err(error));
        }
    }

    fn erase(&self, done: Option<oneshot::Sender<Result<(), Error>>>) {
        let result = self
            .disk
            .remove_snapshots(self.owner.key)
            .map_err(Error::from);
        if let Err(error) = &result {
            tracing::warn!(group = self.owner.key.group, %error, "snapshots of a removed group are not deleted; tried again at the next start");
        }
        self.router
            .vacate(GroupId(self.owner.key.group), self.owner.life);
        if let Some(done) = done {
            drop(done.send(result));
        }
    }
}

/// Results on their way to the shard.
struct Post<'a> {
    actor: &'a Actor,
    events: Vec<Event>,
    outcomes: usize,
}

impl Post<'_> {
    fn push(&mut self, input: Input) {
        if let Input::Applied { outcomes, .. } = &input {
            self.outcomes += outcomes.len();
        }
        self.events.push(Event::Input(input));
        if self.outcomes >= POST_OUTCOMES {
            self.flush();
        }
    }

    fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    fn flush(&mut self) {
        let Owner { key, life, .. } = self.actor.owner;
        let group = GroupId(key.group);
        let completions = self
            .events
            .drain(..)
            .map(|event| Completion { group, life, event });
        self.actor.router.complete(group, completions);
        self.outcomes = 0;
    }
}

/// Notes an I/O error that the machine might report as its own failure: a full disk here is no outcome elsewhere.
struct Watched<W> {
    writer: W,
    error: Option<io::Error>,
}

impl<W: Write> Watched<W> {
    fn note<T>(&mut self, result: io::Result<T>) -> io::Result<T> {
        result.map_err(|error| {
            let copy = io::Error::new(error.kind(), error.to_string());
            self.error.get_or_insert(error);
            copy
        })
    }
}

impl<W: Write> Write for Watched<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.writer.write(bytes);
        self.note(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        let flushed = self.writer.flush();
        self.note(flushed)
    }
}

/// The outcome of a deterministic failure; a local one has none.
fn outcome_of(error: MachineError) -> Result<Outcome, Failed> {
    match error {
        MachineError::Guest { fault, .. } => Ok(Outcome::Fault(fault)),
        error @ MachineError::Local { .. } => Err(failed(error)),
    }
}

fn failed(error: MachineError) -> Failed {
    Failed(error.to_string())
}

/// Runs a call into a machine, which may panic.
fn guarded<T>(call: impl FnOnce() -> Result<T, Failed>) -> Result<T, Failed> {
    catch_unwind(AssertUnwindSafe(call))
        .unwrap_or_else(|panic| Err(Failed(format!("panicked: {}", panic_text(&*panic)))))
}

/// What a panic said.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("(no text)")
}
