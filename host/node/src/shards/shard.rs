//! A thread that owns replicas: takes what is in its mailbox, lets the replicas act once, and carries out what they want.

use std::collections::HashMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::JoinHandle;

use skep_core::effect::Effect;
use skep_core::healing::Parked;
use skep_core::id::{GroupId, NodeId};
use skep_core::input::Input;
use tokio::sync::oneshot;

use crate::error::Error;
use crate::machines::worker::Job;
use crate::panics::panic_text;
use crate::pool::Pool;
use crate::shards::effects::{Out, Records};
use crate::shards::mailbox::{Completion, Event, FromPeer, Request, Round};
use crate::shards::outbox::Outbox;
use crate::shards::replica::{Replica, Waiting};
use crate::shards::router::Router;
use crate::transport::{Reporter, Transport};

pub(crate) struct Shard {
    index: usize,
    router: Arc<Router>,
    reporter: Arc<dyn Reporter>,
    transport: Arc<dyn Transport>,
    pool: Arc<Pool>,
    replicas: HashMap<GroupId, Replica>,
    /// Replicas that took something in and have not been polled since.
    touched: Vec<GroupId>,
    effects: Vec<Effect>,
    outbox: Outbox,
    records: Records,
}

impl Shard {
    /// Starts the thread; it ends when its mailbox is closed. A panic in here would be a bug of the host itself: it
    /// fails the node, so that nobody waits for ever.
    pub(crate) fn spawn(
        index: usize,
        router: Arc<Router>,
        transport: Arc<dyn Transport>,
        pool: Arc<Pool>,
    ) -> io::Result<JoinHandle<()>> {
        std::thread::Builder::new()
            .name(format!("skep-shard-{index}"))
            .spawn(move || {
                let outbox = Outbox::new(router.node);
                let reporter = Arc::clone(&router) as Arc<dyn Reporter>;
                let mut shard = Self {
                    index,
                    router: Arc::clone(&router),
                    reporter,
                    transport,
                    pool,
                    replicas: HashMap::new(),
                    touched: Vec::new(),
                    effects: Vec::new(),
                    outbox,
                    records: Vec::new(),
                };
                if let Err(panic) = catch_unwind(AssertUnwindSafe(|| shard.run())) {
                    router.fail(format!("shard {index} panicked: {}", panic_text(&*panic)));
                }
                // What waits in the mailbox of a shard that panicked must be answered too: dropping it does.
                while router.mailboxes()[index].take().is_some() {}
            })
    }

    fn run(&mut self) {
        let router = Arc::clone(&self.router);
        while let Some(round) = router.mailboxes()[self.index].take() {
            self.take_in(round);
            self.act();
        }
        self.end();
    }

    /// Takes in a round, the most urgent first.
    fn take_in(&mut self, round: Round) {
        if let Some(now) = round.tick {
            self.tick(now);
        }
        for node in round.gone {
            self.node_gone(node);
        }
        for message in round.high.into_iter().chain(round.normal) {
            self.message(message);
        }
        for completion in round.completions {
            self.completion(completion);
        }
        for request in round.requests {
            self.request(request);
        }
    }

    fn tick(&mut self, now: u64) {
        let (mut quota, mut catch_up, mut left_behind) = (0, 0, 0);
        for (group, replica) in &mut self.replicas {
            let waits = replica.tick(now);
            quota += u64::from(waits.quota);
            catch_up += u64::from(waits.catch_up);
            left_behind += waits.left_behind;
            touch(&mut self.touched, *group, replica);
        }
        // All shards count there, so it is done once, and seldom.
        let router = &self.router;
        for (count, more) in [
            (&router.quota_waits, quota),
            (&router.catch_up_waits, catch_up),
            (&router.left_behind, left_behind),
        ] {
            if more > 0 {
                count.fetch_add(more, Relaxed);
            }
        }
    }

    /// Every replica with a member on that node learns of it.
    fn node_gone(&mut self, node: NodeId) {
        for (group, replica) in &mut self.replicas {
            if replica.parking.is_none() && replica.route.members().contains(&node) {
                touch(&mut self.touched, *group, replica);
                replica.handle(Input::NodeGone { node });
            }
        }
    }

    fn message(&mut self, FromPeer { from, message }: FromPeer) {
        if let Some(replica) = self.replicas.get_mut(&message.group)
            && replica.parking.is_none()
        {
            touch(&mut self.touched, message.group, replica);
            replica.handle(Input::Message { from, message });
        }
    }

    fn completion(&mut self, Completion { group, life, event }: Completion) {
        let Some(replica) = self
            .replicas
            .get_mut(&group)
            .filter(|replica| replica.life == life)
        else {
            return;
        };
        touch(&mut self.touched, group, replica);
        match event {
            Event::Input(input) => replica.handle(input),
            Event::Persisted { number } => replica.persisted(number),
            Event::Broken { reason } => replica.halt(reason),
            Event::NotSent(reporter) => replica.not_sent(reporter),
            Event::Heavy => replica.handle(Input::LogCrowded),
        }
    }

    fn request(&mut self, request: Request) {
        match request {
            Request::Install(replica) => {
                let group = replica.group();
                let replica = self.replicas.entry(group).insert_entry(*replica).into_mut();
                touch(&mut self.touched, group, replica);
            }
            Request::Propose {
                group,
                waiter,
                proposal,
                asked,
            } => match self.running(group) {
                Ok(replica) => {
                    replica.waiters.insert(waiter, Waiting::Response(asked));
                    replica.handle(Input::Propose { waiter, proposal });
                }
                Err(error) => asked.answer(Err(error)),
            },
            Request::Query {
                group,
                waiter,
                request,
                linearizable,
                asked,
            } => match self.running(group) {
                Ok(replica) => {
                    replica.waiters.insert(waiter, Waiting::Answer(asked));
                    replica.handle(Input::Query {
                        waiter,
                        request,
                        linearizable,
                    });
                }
                Err(error) => asked.answer(Err(error)),
            },
            Request::Forget { group, waiter } => {
                if let Ok(replica) = self.running(group)
                    && replica.waiters.remove(&waiter).is_some()
                {
                    replica.handle(Input::Forget { waiter });
                }
            }
            Request::Act(group, act) => act(self.running(group)),
            Request::Look(group, look) => {
                let node = self.router.node;
                let replica = self.replicas.get(&group);
                look(replica.ok_or(Error::NoSuchGroup { group, node }));
            }
            Request::Park { group, done } => self.park(group, done),
            Request::Remove { group, done } => match self.replicas.remove(&group) {
                Some(replica) => self.remove(replica, Some(done)),
                None => drop(done.send(Err(self.absent(group)))),
            },
        }
    }

    /// Why a replica is not among this shard's: it is nowhere, or in hand until its files have been read.
    fn absent(&self, group: GroupId) -> Error {
        let node = self.router.node;
        match self.router.route(group) {
            Ok(_) => Error::Busy { node },
            Err(gone) => gone,
        }
    }

    /// The replica, if it is here and not halted; it will be polled.
    fn running(&mut self, group: GroupId) -> Result<&mut Replica, Error> {
        self.router.running()?;
        let node = self.router.node;
        let replica = self
            .replicas
            .get_mut(&group)
            .ok_or(Error::NoSuchGroup { group, node })?;
        if let Some(halted) = replica.halted() {
            return Err(halted);
        }
        touch(&mut self.touched, group, replica);
        Ok(replica)
    }

    /// Lets each replica that took something in act once, then hands on what they want, for all of them at once.
    fn act(&mut self) {
        let (mut removed, mut given_up) = (Vec::new(), Vec::new());
        let mut effects = std::mem::take(&mut self.effects);
        for group in std::mem::take(&mut self.touched) {
            let Some(replica) = self.replicas.get_mut(&group) else {
                continue;
            };
            replica.touched = false;
            replica.poll(&mut effects);
            replica.route.set_leader(replica.leader());
            replica.show();
            let mut out = Out {
                router: &self.router,
                transport: &self.transport,
                pool: &self.pool,
                outbox: &mut self.outbox,
                records: &mut self.records,
            };
            let mut is_removed = false;
            for effect in effects.drain(..) {
                is_removed |= out.carry_out(replica, effect);
            }
            // Behind the work of this poll, which may still need the older files.
            if let Some(newest) = replica.durable.take() {
                replica.route.snapshotted(newest.index);
                replica.worker.push(Job::Prune(newest));
            }
            if is_removed {
                removed.push(group);
            } else if replica.parking.is_some()
                && let Some(parked) = replica.parked()
            {
                given_up.push((group, parked));
            }
        }
        self.effects = effects;
        // Sending never blocks; handing records to a log that is behind may, and heartbeats must not wait for it.
        self.outbox.flush(&*self.transport, &self.reporter);
        for (disk, records) in self.records.drain(..) {
            if disk.submit(records).is_err() {
                // It acknowledges nothing any more, so nothing unsafe can follow.
                tracing::debug!(
                    shard = self.index,
                    "records are not written: the log has stopped"
                );
            }
        }
        for (group, parked) in given_up {
            self.give_up(group, parked);
        }
        for group in removed {
            if let Some(replica) = self.replicas.remove(&group) {
                tracing::info!(group = group.0, name = %replica.route.name, "this replica was removed from its group; deleting it");
                self.remove(replica, None);
            }
        }
    }

    /// Stops a replica for ever; its files go once its tombstone is durable.
    fn remove(&mut self, mut replica: Replica, done: Option<oneshot::Sender<Result<(), Error>>>) {
        let group = replica.group();
        replica.leave(&self.router);
        let worker = replica.worker.clone();
        if replica
            .disk
            .bury(replica.key, replica.replica(), move || worker.erase(done))
            .is_err()
        {
            // `done` is dropped with the closure, which its waiter understands.
            tracing::warn!(
                group = group.0,
                "a removed group is still on disk: the log has stopped"
            );
        }
    }

    /// Gives up a replica whose machine stopped for a reason of this node, as soon as nothing is on its way to its disk. Until
    /// then it is deaf, so that this comes.
    fn park(&mut self, group: GroupId, done: oneshot::Sender<Result<(), Error>>) {
        let node = self.router.node;
        let refused = match self.replicas.get_mut(&group) {
            Some(replica) if replica.may_be_parked() => {
                replica.parking = Some(done);
                touch(&mut self.touched, group, replica);
                return;
            }
            Some(_) => Error::Busy { node },
            None => Error::NoSuchGroup { group, node },
        };
        drop(done.send(Err(refused)));
    }

    /// Its files stay, and what is in them is kept for whoever brings it up again. What is in no memory is read elsewhere, for the
    /// disk is slow. The replica is in nobody's hands meanwhile, so that nothing is appended: at most it is here again if that
    /// fails.
    fn give_up(&mut self, group: GroupId, parked: Parked) {
        let Some(mut replica) = self.replicas.remove(&group) else {
            return;
        };
        let Some(done) = replica.parking.take() else {
            return;
        };
        let (router, shard) = (Arc::clone(&self.router), self.index);
        self.pool.run(move || {
            if let Err(error) = replica.disk.park(replica.key, parked) {
                let worker = replica.worker.clone();
                let back = Request::Install(Box::new(replica));
                if router.request(shard, back).is_err() {
                    // The node stops.
                    worker.halt();
                }
                drop(done.send(Err(error.into())));
                return;
            }
            replica.leave(&router);
            replica.worker.release(done);
        });
    }

    /// The node stops: everybody is answered, every machine let go.
    fn end(&mut self) {
        let node = self.router.node;
        for (_, mut replica) in self.replicas.drain() {
            replica.fail_all(|waiting| match waiting {
                Waiting::Response(_) => Error::StoppedInFlight { node },
                Waiting::Answer(_) => Error::Stopped { node },
            });
            replica.worker.halt();
        }
    }
}

fn touch(touched: &mut Vec<GroupId>, group: GroupId, replica: &mut Replica) {
    if !std::mem::replace(&mut replica.touched, true) {
        touched.push(group);
    }
}
