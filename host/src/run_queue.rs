//! Who runs next: the actor that has used least.
//!
//! This is start-time fair queueing. Each actor has an account of what it has used, in units of fuel. A task starts at its
//! actor's account, and the task that starts lowest runs first. The clock is the start of the task that was taken last; an
//! account that is below it is raised to it when a task is queued. So nobody saves up a credit by being idle, and nobody who
//! is new waits for others to be caught up with.
//!
//! For any two actors that have tasks all the time, what they have used never differs by more than the dearest turn of the one
//! and the dearest turn of the other together. With A actors that want to run, each so gets 1/A of what there is to use.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::clock::Stopwatch;

/// After using this much an actor lets others have its thread; about two milliseconds. So with a hundred actors on two threads
/// it is 0.1 s until each has had its turn, and taking turns costs well below a thousandth of it.
pub(crate) const TURN_COST: u64 = 2_000_000;

/// What one actor has used.
#[derive(Debug, Default)]
pub(crate) struct Account(AtomicU64);

impl Account {
    /// Adds the cost of a turn; before the actor is queued again.
    pub(crate) fn charge(&self, cost: u64) {
        self.0.fetch_add(cost, Relaxed);
    }

    /// Where the next task starts.
    fn start(&self, clock: u64) -> u64 {
        self.0.fetch_max(clock, Relaxed).max(clock)
    }
}

/// Measures the cost of a turn.
pub(crate) struct Meter {
    since: Stopwatch,
    fuel: u64,
}

impl Meter {
    pub(crate) fn start() -> Self {
        Self {
            since: Stopwatch::start(),
            fuel: 0,
        }
    }

    pub(crate) fn add(&mut self, fuel: u64) {
        self.fuel = self.fuel.saturating_add(fuel);
    }

    /// The fuel used, or the nanoseconds passed if they are more: a unit of fuel takes about one. Time counts what has no
    /// fuel, which is native machines, rebuilding after a fault, and the disk at a barrier.
    pub(crate) fn cost(&self) -> u64 {
        let nanoseconds = self.since.elapsed().as_nanos();
        self.fuel
            .max(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    }
}

/// Tasks that wait for a thread.
pub(crate) struct RunQueue<T> {
    waiting: BinaryHeap<Reverse<Waiting<T>>>,
    clock: u64,
    /// Tasks queued so far: of two that start alike the earlier runs first.
    queued: u64,
}

struct Waiting<T> {
    start: u64,
    number: u64,
    task: T,
}

impl<T> RunQueue<T> {
    /// Queues the one task that an actor has.
    pub(crate) fn push(&mut self, account: &Account, task: T) {
        self.push_at(account.start(self.clock), task);
    }

    /// Queues a task that no actor pays for; it runs before those that have used more than the least.
    pub(crate) fn push_free(&mut self, task: T) {
        self.push_at(self.clock, task);
    }

    pub(crate) fn pop(&mut self) -> Option<T> {
        let Reverse(Waiting { start, task, .. }) = self.waiting.pop()?;
        self.clock = self.clock.max(start);
        Some(task)
    }

    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    fn push_at(&mut self, start: u64, task: T) {
        self.queued += 1;
        let number = self.queued;
        self.waiting.push(Reverse(Waiting {
            start,
            number,
            task,
        }));
    }
}

impl<T> Default for RunQueue<T> {
    fn default() -> Self {
        Self {
            waiting: BinaryHeap::new(),
            clock: 0,
            queued: 0,
        }
    }
}

impl<T> Ord for Waiting<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.start, self.number).cmp(&(other.start, other.number))
    }
}

impl<T> PartialOrd for Waiting<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> PartialEq for Waiting<T> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl<T> Eq for Waiting<T> {}

#[cfg(test)]
mod tests {
    use super::*;

    /// A command that runs to the end of its fuel.
    const DEAREST: u64 = 500_000_000;

    /// A model of a pool: so many threads, each busy until its turn's cost has passed.
    struct Model {
        queue: RunQueue<usize>,
        accounts: Vec<Account>,
        used: Vec<u64>,
        /// Who runs until when.
        threads: Vec<Option<(u64, usize, u64)>>,
        now: u64,
    }

    impl Model {
        fn new(threads: usize, actors: usize) -> Self {
            let mut model = Self {
                queue: RunQueue::default(),
                accounts: Vec::new(),
                used: Vec::new(),
                threads: vec![None; threads],
                now: 0,
            };
            (0..actors).for_each(|_| model.join());
            model
        }

        fn join(&mut self) {
            self.accounts.push(Account::default());
            self.used.push(0);
            self.wake(self.accounts.len() - 1);
        }

        fn wake(&mut self, actor: usize) {
            self.queue.push(&self.accounts[actor], actor);
        }

        /// Fills the threads, then lets the turn end that ends first; answers whose it was. The actor is not queued again.
        fn step(&mut self, mut cost: impl FnMut(usize) -> u64) -> Option<usize> {
            for thread in &mut self.threads {
                if thread.is_none()
                    && let Some(actor) = self.queue.pop()
                {
                    let cost = cost(actor);
                    *thread = Some((self.now + cost, actor, cost));
                }
            }
            let first = self.threads.iter_mut().filter(|thread| thread.is_some());
            let first = first.min_by_key(|thread| thread.map(|(end, ..)| end))?;
            let (end, actor, cost) = first.take()?;
            self.now = end;
            self.accounts[actor].charge(cost);
            self.used[actor] += cost;
            Some(actor)
        }
    }

    /// A small generator; its seed is printed by what fails.
    fn random(state: &mut u64) -> u64 {
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = *state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    #[test]
    fn a_group_at_its_limit_gets_its_share_and_no_more() {
        for threads in [1, 2, 4] {
            // One uses half a second in each turn; the others share what it leaves.
            let mut model = Model::new(threads, 8);
            let mut worst = 0;
            for _ in 0..200_000 {
                let actor = model.step(|actor| if actor == 0 { DEAREST } else { TURN_COST });
                let actor = actor.expect("all want to run");
                let least = model.used.iter().min().expect("there are eight");
                let most = model.used.iter().max().expect("there are eight");
                worst = worst.max(most - least);
                model.wake(actor);
            }
            assert!(
                worst <= DEAREST + TURN_COST,
                "{worst} with {threads} threads"
            );
            let all: u64 = model.used.iter().sum();
            let share = model.used[0] as f64 / all as f64;
            assert!(
                (share - 0.125).abs() < 0.01,
                "{share} with {threads} threads"
            );
        }
    }

    #[test]
    fn shares_are_equal_whatever_turns_cost() {
        for seed in 0..200 {
            let mut state = seed;
            let actors = 2 + (random(&mut state) % 20) as usize;
            let threads = 1 + (random(&mut state) % actors as u64) as usize;
            let dearest: Vec<_> = (0..actors)
                .map(|_| 1 + random(&mut state) % (1 << (random(&mut state) % 30)))
                .collect();
            let mut model = Model::new(threads, actors);
            for _ in 0..20_000 {
                let mut draw = state;
                let actor = model.step(|actor| 1 + random(&mut draw) % dearest[actor]);
                state = draw;
                model.wake(actor.expect("all want to run"));
                // What runs now is counted when it ends, so with several threads each may lack a turn of its own.
                for one in 0..actors {
                    for other in 0..one {
                        let difference = model.used[one].abs_diff(model.used[other]);
                        let bound = 2 * (dearest[one] + dearest[other]);
                        assert!(
                            difference <= bound,
                            "seed {seed}: {one} and {other} differ by {difference}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn who_has_slept_runs_soon_and_has_saved_up_nothing() {
        let mut model = Model::new(1, 4);
        let cost = |actor| if actor == 0 { 10 } else { TURN_COST };
        // The first runs once and sleeps for a thousand turns.
        assert_eq!(model.step(cost), Some(0));
        for _ in 0..1000 {
            let actor = model.step(cost).expect("three want to run");
            model.wake(actor);
        }
        let before = model.used.clone();
        model.wake(0);
        // It is next but for those that start where it does.
        let mut waited = 0;
        while model.step(cost) != Some(0) {
            waited += 1;
        }
        assert!(waited <= 3, "{waited} turns");
        // From now on it is as costly as the others, and gets as much as they do.
        for actor in 0..4 {
            if model
                .queue
                .waiting
                .iter()
                .all(|Reverse(waiting)| waiting.task != actor)
            {
                model.wake(actor);
            }
        }
        for _ in 0..4000 {
            let actor = model.step(|_| TURN_COST).expect("all want to run");
            model.wake(actor);
        }
        let since = |actor: usize| model.used[actor] - before[actor];
        assert!(
            since(0).abs_diff(since(1)) <= 3 * TURN_COST,
            "{} and {}",
            since(0),
            since(1)
        );
    }

    #[test]
    fn who_is_new_neither_waits_nor_overtakes_for_long() {
        let mut model = Model::new(2, 3);
        for _ in 0..1000 {
            let actor = model.step(|_| TURN_COST).expect("all want to run");
            model.wake(actor);
        }
        let before = model.used.clone();
        model.join();
        for _ in 0..1000 {
            let actor = model.step(|_| TURN_COST).expect("all want to run");
            model.wake(actor);
        }
        for actor in 0..3 {
            let since = model.used[actor] - before[actor];
            assert!(
                since.abs_diff(model.used[3]) <= 3 * TURN_COST,
                "{since} and {}",
                model.used[3]
            );
        }
    }

    #[test]
    fn alike_tasks_run_in_the_order_they_came() {
        let mut queue = RunQueue::default();
        let accounts: Vec<_> = (0..10).map(|_| Account::default()).collect();
        for (number, account) in accounts.iter().enumerate() {
            queue.push(account, number);
        }
        queue.push_free(10);
        assert_eq!(queue.len(), 11);
        let order: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!(order, (0..11).collect::<Vec<_>>());
        assert!(queue.is_empty());
    }

    #[test]
    fn what_nobody_pays_for_waits_for_no_debtor() {
        let mut queue = RunQueue::default();
        let (debtor, other) = (Account::default(), Account::default());
        debtor.charge(DEAREST);
        queue.push(&debtor, "debtor");
        queue.push(&other, "other");
        queue.push_free("free");
        let order: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!(order, ["other", "free", "debtor"]);
    }

    #[test]
    fn fuel_counts_where_it_is_more_than_time() {
        let mut meter = Meter::start();
        meter.add(u64::MAX - 5);
        meter.add(10);
        assert_eq!(meter.cost(), u64::MAX);
    }
}
