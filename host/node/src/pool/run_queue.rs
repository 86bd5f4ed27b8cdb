//! Who runs next: the actor that has used least.
//!
//! This is fair queueing as operating systems do it. Each actor has an account of the fuel that it has used. The waiting task
//! whose actor has used least runs first. The clock is the lowest account of all actors that wait or run now; an account below
//! the clock is raised to it when its task is queued. So an idle actor saves up no credit, and a new actor does not keep others
//! waiting until it has caught up. A running task uses one unit in a nanosecond, so that a stuck task does not stop the clock.
//!
//! For any two actors that have tasks all the time, what they have used never differs by more than two of the dearest turns of
//! each. So with A actors that want to run, each gets 1/A of what there is to use.
//!
//! A guest's call that goes on for long runs in slices, and its actor waits in the queue between its turns as any other.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::clock::Stopwatch;

/// After using this much an actor lets others have its thread, also in the middle of a guest's call; about two milliseconds. So with
/// a hundred actors on two threads it is 0.1 s until each has had its turn, and taking turns costs well below a thousandth of it.
pub(crate) const TURN_COST: u64 = 2_000_000;

/// What one actor has used.
#[derive(Debug, Default)]
pub(crate) struct Account(AtomicU64);

impl Account {
    /// Adds what a turn has used; before the actor is queued again.
    pub(crate) fn charge(&self, meter: &Meter) {
        self.add(meter.cost());
    }

    fn add(&self, cost: u64) {
        self.0.fetch_add(cost, Relaxed);
    }

    /// Where the next task starts.
    fn start(&self, clock: u64) -> u64 {
        self.0.fetch_max(clock, Relaxed).max(clock)
    }
}

/// Measures a turn.
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

/// Tasks that wait for a thread, and what is known of those that have one. Times are nanoseconds since any fixed moment.
pub(crate) struct RunQueue<T> {
    waiting: BinaryHeap<Reverse<Waiting<T>>>,
    running: Vec<Running>,
    clock: u64,
    /// Tasks queued so far: of two that start alike the earlier runs first.
    queued: u64,
}

struct Waiting<T> {
    start: u64,
    number: u64,
    task: T,
}

struct Running {
    number: u64,
    start: u64,
    since: u64,
}

/// A task that has a thread; for [`RunQueue::ended`].
#[derive(Debug)]
pub(crate) struct Taken(u64);

impl<T> RunQueue<T> {
    /// Queues the one task that an actor has.
    pub(crate) fn push(&mut self, now: u64, account: &Account, task: T) {
        self.advance(now);
        self.push_at(account.start(self.clock), task);
    }

    /// Queues a task that no actor pays for: it runs as soon as that of the one who has used least.
    pub(crate) fn push_free(&mut self, now: u64, task: T) {
        self.advance(now);
        self.push_at(self.clock, task);
    }

    /// The task to run next.
    pub(crate) fn pop(&mut self, now: u64) -> Option<(Taken, T)> {
        let Reverse(Waiting {
            start,
            number,
            task,
        }) = self.waiting.pop()?;
        self.running.push(Running {
            number,
            start,
            since: now,
        });
        Some((Taken(number), task))
    }

    /// The task has ended; its actor was charged, and queued again if it wants to be, before.
    pub(crate) fn ended(&mut self, Taken(number): Taken) {
        self.running.retain(|running| running.number != number);
    }

    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    fn advance(&mut self, now: u64) {
        let waiting = self.waiting.peek().map(|Reverse(first)| first.start);
        let running = self.running.iter().map(|running| {
            let passed = now.saturating_sub(running.since);
            running.start.saturating_add(passed)
        });
        if let Some(least) = running.chain(waiting).min() {
            self.clock = self.clock.max(least);
        }
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
            running: Vec::new(),
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
        threads: Vec<Option<Turn>>,
        /// The turn that ended last.
        ended: Option<Taken>,
        now: u64,
    }

    struct Turn {
        taken: Taken,
        actor: usize,
        cost: u64,
        end: u64,
    }

    impl Model {
        fn new(threads: usize, actors: usize) -> Self {
            let mut model = Self {
                queue: RunQueue::default(),
                accounts: Vec::new(),
                used: Vec::new(),
                threads: (0..threads).map(|_| None).collect(),
                ended: None,
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
            self.queue.push(self.now, &self.accounts[actor], actor);
        }

        fn is_waiting(&self, actor: usize) -> bool {
            let mut waiting = self.queue.waiting.iter();
            waiting.any(|Reverse(waiting)| waiting.task == actor)
        }

        /// Fills the threads, then lets the turn end that ends first; answers whose it was. The actor is not queued again.
        fn step(&mut self, mut cost: impl FnMut(usize) -> u64) -> Option<usize> {
            if let Some(taken) = self.ended.take() {
                self.queue.ended(taken);
            }
            for thread in &mut self.threads {
                if thread.is_none()
                    && let Some((taken, actor)) = self.queue.pop(self.now)
                {
                    let cost = cost(actor);
                    *thread = Some(Turn {
                        taken,
                        actor,
                        cost,
                        end: self.now + cost,
                    });
                }
            }
            let busy = self.threads.iter_mut().filter(|thread| thread.is_some());
            let first = busy.min_by_key(|thread| thread.as_ref().map(|turn| turn.end))?;
            let turn = first.take()?;
            self.now = turn.end;
            self.accounts[turn.actor].add(turn.cost);
            self.used[turn.actor] += turn.cost;
            self.ended = Some(turn.taken);
            Some(turn.actor)
        }

        /// Steps so often, everybody whose turn ends wanting another.
        fn run(&mut self, steps: usize, mut cost: impl FnMut(usize) -> u64) {
            for _ in 0..steps {
                let actor = self.step(&mut cost).expect("some want to run");
                self.wake(actor);
            }
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

    // P-42
    #[test]
    fn a_group_at_its_limit_gets_its_share_and_no_more() {
        for threads in [1, 2, 4] {
            // One uses half a second in each turn; the others share what it leaves.
            let mut model = Model::new(threads, 8);
            let mut worst = 0;
            for _ in 0..200_000 {
                model.run(1, |actor| if actor == 0 { DEAREST } else { TURN_COST });
                let least = model.used.iter().min().expect("there are eight");
                let most = model.used.iter().max().expect("there are eight");
                worst = worst.max(most - least);
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

    // P-42
    #[test]
    fn shares_are_equal_whatever_turns_cost() {
        for seed in 0..60 {
            let mut state = seed;
            let actors = 2 + (random(&mut state) % 20) as usize;
            let threads = 1 + (random(&mut state) % actors as u64) as usize;
            let dearest: Vec<_> = (0..actors)
                .map(|_| 1 + random(&mut state) % (1 << (random(&mut state) % 30)))
                .collect();
            let mut model = Model::new(threads, actors);
            for _ in 0..4_000 {
                let mut draw = state;
                model.run(1, |actor| 1 + random(&mut draw) % dearest[actor]);
                state = draw;
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
    fn a_light_actor_beside_heavy_ones_loses_nothing_of_its_share() {
        // It is in its own short turn when a thread looks for another task and finds only those who have used much.
        let mut model = Model::new(2, 3);
        model.run(100_000, |actor| if actor == 0 { 1_000 } else { DEAREST });
        for heavy in 1..3 {
            let difference = model.used[0].abs_diff(model.used[heavy]);
            assert!(difference <= 2 * (DEAREST + 1_000), "{difference}");
        }
    }

    #[test]
    fn who_has_slept_runs_soon_and_has_saved_up_nothing() {
        let mut model = Model::new(1, 4);
        // The first runs once and sleeps for a thousand turns.
        assert_eq!(model.step(|_| 10), Some(0));
        model.run(1000, |_| TURN_COST);
        let before = model.used.clone();
        model.wake(0);
        let mut waited = 0;
        loop {
            let actor = model.step(|_| TURN_COST).expect("all want to run");
            model.wake(actor);
            if actor == 0 {
                break;
            }
            waited += 1;
        }
        assert!(waited <= 3, "{waited} turns");
        model.run(4000, |_| TURN_COST);
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
        model.run(1000, |_| TURN_COST);
        let before = model.used.clone();
        model.join();
        model.run(1000, |_| TURN_COST);
        let joined = model.used[3];
        for (used, before) in model.used.iter().zip(before) {
            let since = used - before;
            assert!(
                since.abs_diff(joined) <= 3 * TURN_COST,
                "{since} and {joined}"
            );
        }
    }

    // P-42
    #[test]
    fn one_that_is_stuck_gives_no_credit_to_those_who_wake() {
        let mut model = Model::new(2, 5);
        let cost = |actor| if actor == 0 { 1 << 60 } else { TURN_COST };
        // One is stuck on its thread, one sleeps, three share the other thread.
        while model.step(cost) != Some(4) {}
        for actor in 1..4 {
            if !model.is_waiting(actor) {
                model.wake(actor);
            }
        }
        model.run(10_000, cost);
        assert_eq!(model.used[0], 0);
        let before = model.used.clone();
        model.wake(4);
        model.run(4_000, cost);
        let since = |actor: usize| model.used[actor] - before[actor];
        // The clock stands where the one that uses least does.
        assert!(
            since(4).abs_diff(since(1)) <= 4 * TURN_COST,
            "{} and {}",
            since(4),
            since(1)
        );
    }

    #[test]
    fn alike_tasks_run_in_the_order_they_came() {
        let mut queue = RunQueue::default();
        let accounts: Vec<_> = (0..10).map(|_| Account::default()).collect();
        for (number, account) in accounts.iter().enumerate() {
            queue.push(0, account, number);
        }
        queue.push_free(0, 10);
        assert_eq!(queue.len(), 11);
        assert_eq!(order(&mut queue), (0..11).collect::<Vec<_>>());
        assert!(queue.is_empty());
    }

    #[test]
    fn what_nobody_pays_for_waits_for_no_debtor() {
        let mut queue = RunQueue::default();
        let (debtor, other) = (Account::default(), Account::default());
        debtor.add(DEAREST);
        queue.push(0, &other, "other");
        queue.push(0, &debtor, "debtor");
        queue.push_free(0, "free");
        assert_eq!(order(&mut queue), ["other", "free", "debtor"]);
    }

    fn order<T>(queue: &mut RunQueue<T>) -> Vec<T> {
        std::iter::from_fn(|| queue.pop(0).map(|(_, task)| task)).collect()
    }

    #[test]
    fn fuel_counts_where_it_is_more_than_time() {
        let mut meter = Meter::start();
        meter.add(u64::MAX - 5);
        meter.add(10);
        assert_eq!(meter.cost(), u64::MAX);
    }
}
