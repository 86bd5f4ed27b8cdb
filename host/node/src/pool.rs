//! Threads that run machines: as many as there are processors while calls end or let others go first, and more as soon as some are
//! stuck. Who has used least runs first.

pub(crate) mod run_queue;

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use skep_types::shared::lock;

use crate::clock::Stopwatch;
use crate::pool::run_queue::{Account, RunQueue};

/// Stack of a machine thread, which native machines run on: guests have stacks of their own.
const STACK_BYTES: usize = skep_machine::wasm::APPLY_THREAD_STACK_BYTES;

/// Threads that the pool may grow to, that is, how many machines may be stuck at once before others wait for them. A stack
/// is only mapped, not used, so the cost of a thread that waits is a few pages.
const THREADS_MAX: usize = 512;

/// A task that waits this long without any task being started shows that all threads are stuck: in native machines, or in what a
/// guest does at one stroke. Far longer than a usual turn, far shorter than an election timeout.
const STALL: Duration = Duration::from_millis(5);

/// A thread above the base that finds nothing to do for this long ends.
const IDLE: Duration = Duration::from_secs(10);

type Task = Box<dyn FnOnce() + Send>;

/// An elastic thread pool. Dropping it does not wait; [`Pool::stop`] does.
pub(crate) struct Pool {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    work: Condvar,
    /// Tasks wait for threads, or the pool stops.
    pressure: Condvar,
    /// A thread has ended.
    ended: Condvar,
    /// Threads that the pool keeps, and may grow to.
    base: usize,
    most: usize,
    since: Stopwatch,
}

#[derive(Default)]
struct State {
    tasks: RunQueue<Task>,
    threads: usize,
    idle: usize,
    /// Counts tasks taken, so that the supervisor sees whether any was.
    taken: u64,
    /// The supervisor counts already, so it need not be woken.
    watching: bool,
    stopping: bool,
}

impl State {
    fn is_short(&self) -> bool {
        self.tasks.len() > self.idle
    }
}

impl Pool {
    /// A pool that keeps `base` threads and grows when they are stuck.
    pub(crate) fn start(base: usize) -> io::Result<Self> {
        Self::bounded(base.clamp(1, THREADS_MAX), THREADS_MAX)
    }

    /// A pool that grows to so many threads.
    pub(crate) fn bounded(base: usize, most: usize) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            work: Condvar::new(),
            pressure: Condvar::new(),
            ended: Condvar::new(),
            base,
            most,
            since: Stopwatch::start(),
        });
        let pool = Self { shared };
        for _ in 0..pool.shared.base {
            pool.shared.grow(&mut pool.shared.lock())?;
        }
        let supervised = Arc::clone(&pool.shared);
        std::thread::Builder::new()
            .name("skep-machines".into())
            .spawn(move || supervised.supervise())?;
        Ok(pool)
    }

    /// Queues a task of the host's own. A task that panics ends alone. After [`Pool::stop`] tasks are still taken, so that what
    /// was begun can be ended.
    pub(crate) fn run(&self, task: impl FnOnce() + Send + 'static) {
        self.shared.run(None, Box::new(task));
    }

    /// Queues the next turn of an actor, behind those that have used less; otherwise as [`Pool::run`].
    pub(crate) fn run_for(&self, account: &Account, turn: impl FnOnce() + Send + 'static) {
        self.shared.run(Some(account), Box::new(turn));
    }

    /// Lets queued tasks finish and waits for the threads to end, at most `limit`; answers how many are left, stuck in
    /// a machine.
    pub(crate) fn stop(&self, limit: Duration) -> usize {
        let mut state = self.shared.lock();
        state.stopping = true;
        self.shared.work.notify_all();
        self.shared.pressure.notify_all();
        let (state, _) = self
            .shared
            .ended
            .wait_timeout_while(state, limit, |state| state.threads > 0)
            .unwrap_or_else(PoisonError::into_inner);
        state.threads
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.stop(Duration::ZERO);
    }
}

impl Shared {
    /// Nanoseconds since the pool started.
    fn now(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn run(self: &Arc<Self>, account: Option<&Account>, task: Task) {
        let mut state = self.lock();
        match account {
            Some(account) => state.tasks.push(self.now(), account, task),
            None => state.tasks.push_free(self.now(), task),
        }
        if state.idle > 0 {
            self.work.notify_one();
        }
        if !state.is_short() {
            return;
        }
        // After the pool has stopped this task may be the last of a machine: it must still be run by somebody.
        if state.stopping && state.threads == 0 {
            self.try_grow(&mut state);
        }
        if !state.watching {
            self.pressure.notify_one();
        }
    }

    fn try_grow(self: &Arc<Self>, state: &mut State) {
        if let Err(error) = self.grow(state) {
            tracing::error!(%error, "no thread for a machine; it waits for the others");
        }
    }

    fn grow(self: &Arc<Self>, state: &mut State) -> io::Result<()> {
        let shared = Arc::clone(self);
        std::thread::Builder::new()
            .name("skep-machine".into())
            .stack_size(STACK_BYTES)
            .spawn(move || shared.serve())?;
        state.threads += 1;
        Ok(())
    }

    /// What a thread does.
    fn serve(&self) {
        let mut state = self.lock();
        loop {
            if let Some((taken, task)) = state.tasks.pop(self.now()) {
                state.taken += 1;
                drop(state);
                if catch_unwind(AssertUnwindSafe(task)).is_err() {
                    tracing::error!("a machine task panicked");
                }
                state = self.lock();
                state.tasks.ended(taken);
                continue;
            }
            if state.stopping {
                break;
            }
            state.idle += 1;
            let (woken, waited) = self
                .work
                .wait_timeout(state, IDLE)
                .unwrap_or_else(PoisonError::into_inner);
            state = woken;
            state.idle -= 1;
            if waited.timed_out() && state.tasks.is_empty() && state.threads > self.base {
                break;
            }
        }
        state.threads -= 1;
        self.ended.notify_all();
    }

    /// Adds threads where none takes what waits.
    fn supervise(self: &Arc<Self>) {
        let mut state = self.lock();
        while !state.stopping || !state.tasks.is_empty() {
            if !state.is_short() {
                state = self
                    .pressure
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let taken = state.taken;
            state.watching = true;
            (state, _) = self
                .pressure
                .wait_timeout(state, STALL)
                .unwrap_or_else(PoisonError::into_inner);
            state.watching = false;
            let is_stuck = state.taken == taken && state.is_short();
            if is_stuck && state.threads < self.most {
                self.try_grow(&mut state);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn stuck_tasks_delay_no_others() {
        let pool = Pool::start(1).expect("threads start");
        let (release, released) = channel::<()>();
        let released = Arc::new(Mutex::new(released));
        for _ in 0..3 {
            let released = Arc::clone(&released);
            pool.run(move || drop(released.lock().map(|end| end.recv())));
        }
        let (done, dones) = channel();
        pool.run(move || done.send(()).expect("the test waits"));
        dones
            .recv_timeout(Duration::from_secs(20))
            .expect("the pool grows past the stuck tasks");
        drop(release);
        assert_eq!(pool.stop(Duration::from_secs(20)), 0);
    }

    #[test]
    fn a_panic_ends_only_its_task() {
        let pool = Pool::start(1).expect("threads start");
        pool.run(|| panic!("on purpose"));
        let (done, dones) = channel();
        pool.run(move || done.send(()).expect("the test waits"));
        dones
            .recv_timeout(Duration::from_secs(20))
            .expect("the thread lives on");
        assert_eq!(pool.stop(Duration::from_secs(20)), 0);
    }

    #[test]
    fn stop_does_not_wait_for_the_stuck_for_ever() {
        let pool = Pool::start(1).expect("threads start");
        let (release, released) = channel::<()>();
        let (begun, begins) = channel();
        pool.run(move || {
            begun.send(()).expect("the test waits");
            released.recv().expect_err("the test only drops its end");
        });
        begins.recv().expect("the task begins");
        assert_eq!(pool.stop(Duration::from_millis(10)), 1);
        drop(release);
        assert_eq!(pool.stop(Duration::from_secs(20)), 0);
    }
}
