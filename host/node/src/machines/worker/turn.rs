//! One turn of an actor on a thread of the pool: jobs, and slices of calls.

use std::sync::Arc;

use skep_drive::{Driver, Failed, StateMachine};

use super::guard::guarded;
use super::in_hand::InHand;
use super::{Actor, End, Job};
use crate::pool::run_queue::{Meter, TURN_COST};

pub(super) type Machine = Box<Driver<Box<dyn StateMachine>>>;

/// What the actor has: its machine, or a call that has it.
#[derive(Default)]
pub(super) struct Hand {
    pub(super) machine: Option<Machine>,
    call: Option<Call>,
}

/// A call of the machine that is under way.
struct Call {
    in_hand: InHand<(Machine, Result<Fuel, Failed>)>,
    changes_state: bool,
}

/// Fuel that a piece of work used.
pub(super) type Fuel = u64;

/// What a turn does next.
enum Next {
    Job(Job),
    /// The actor was halted.
    End(Option<End>),
    /// Nothing, until something is queued.
    Sleep,
}

impl Actor {
    /// Works the queue off, for one turn. A call that is not over by then goes on in the next one.
    pub(super) fn turn(self: Arc<Self>) {
        let mut hand = self.hand();
        let mut meter = Meter::start();
        while meter.cost() < TURN_COST {
            if let Some(call) = hand.call.take() {
                self.go_on(&mut hand, call, &mut meter);
                if self.sleeps_on(&hand, &meter) {
                    return;
                }
                continue;
            }
            match self.next(&meter) {
                Next::Job(job) => match hand.machine.take() {
                    Some(machine) => {
                        if let Some(call) = self.take_up(&mut hand, machine, job) {
                            self.go_on(&mut hand, call, &mut meter);
                            if self.sleeps_on(&hand, &meter) {
                                return;
                            }
                        }
                    }
                    None => {
                        let changes_state = job.changes_state();
                        self.refuse(job);
                        self.done(changes_state);
                    }
                },
                Next::End(end) => {
                    hand.machine = None;
                    self.recent().forget();
                    self.results().clear();
                    if let Some(end) = end {
                        self.finish(end);
                    }
                }
                Next::Sleep => return,
            }
        }
        self.post();
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

    /// Runs the next slice of a call.
    fn go_on(&self, hand: &mut Hand, mut call: Call, meter: &mut Meter) {
        let Some((machine, ran)) = call.in_hand.go_on(meter) else {
            hand.call = Some(call);
            return;
        };
        self.owner.memory.set(&**machine.machine());
        match ran {
            Ok(fuel) => {
                call.in_hand.settle(fuel, meter);
                hand.machine = Some(machine);
            }
            Err(failed) => {
                drop(machine);
                self.let_go(failed);
            }
        }
        self.done(call.changes_state);
    }

    /// Whether the call in hand waits for others; then there is no turn until it is woken, or something is queued.
    fn sleeps_on(&self, hand: &Hand, meter: &Meter) -> bool {
        let Some(call) = &hand.call else { return false };
        let mut queue = self.lock();
        if !call.in_hand.waits() {
            return false;
        }
        self.post();
        self.account.charge(meter);
        queue.scheduled = false;
        true
    }

    /// A job is over.
    fn done(&self, changes_state: bool) {
        if changes_state {
            self.lock().unapplied -= 1;
        }
    }

    /// Decides under the lock of the queue, so that whoever changes it afterwards finds the actor asleep and wakes it.
    fn next(&self, meter: &Meter) -> Next {
        let mut queue = self.lock();
        if queue.halted {
            // A snapshot that becomes durable after the others were deleted would stay.
            let end = if queue.settling > 0 {
                None
            } else {
                queue.end.take()
            };
            if end.is_some() || !queue.ended {
                queue.ended = true;
                return Next::End(end);
            }
        } else if !(queue.settling > 0 && self.results().is_full())
            && let Some(job) = queue.jobs.pop_front()
        {
            return Next::Job(job);
        }
        self.post();
        self.account.charge(meter);
        queue.scheduled = false;
        Next::Sleep
    }

    /// Does a job; or answers the call that it takes, which has the machine.
    fn take_up(self: &Arc<Self>, hand: &mut Hand, mut machine: Machine, job: Job) -> Option<Call> {
        let changes_state = job.changes_state();
        let (actor, woken) = (Arc::clone(self), Arc::clone(self));
        let wake = move || woken.schedule(woken.lock());
        let in_hand = match job {
            Job::Work(work) => {
                let call = async move {
                    // A panic leaves the machine in no known state; it is dropped, so nothing broken is seen again.
                    let worked = guarded(actor.work(&mut machine, work)).await;
                    (machine, worked)
                };
                InHand::new(call, wake)
            }
            Job::Query(query) => {
                let queries = {
                    let queue = self.lock();
                    queue.queries.clone().filter(|_| !queue.void)
                };
                if let Some(queries) = queries {
                    queries.push(query);
                    hand.machine = Some(machine);
                    return None;
                }
                let call = async move {
                    let asked = actor.query(&mut machine, query).await;
                    (machine, asked)
                };
                InHand::new(call, wake)
            }
            Job::Prune(newest) => {
                if let Err(error) = self.disk.prune_snapshots(self.owner.key, newest.index) {
                    tracing::warn!(group = self.owner.key.group, %error, "old snapshots are not deleted; tried again at the next one");
                }
                hand.machine = Some(machine);
                return None;
            }
        };
        Some(Call {
            in_hand,
            changes_state,
        })
    }
}
