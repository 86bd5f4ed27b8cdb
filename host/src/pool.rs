//! Threads that run machines: few while calls are short, more as soon as calls are stuck. Who has used least runs first, and who
//! takes long gives way.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Once, PoisonError};
use std::time::Duration;

use crate::clock::Stopwatch;
use crate::priority::Thread;
use crate::run_queue::{Account, LONG, Lane, RunQueue};

/// Stack of a machine thread: what the sandbox asks for, which native machines share.
const STACK_BYTES: usize = skep_machine::wasm::APPLY_THREAD_STACK_BYTES;

/// Threads each lane may grow to, that is, how many machines may be stuck at once before others wait for them. A stack
/// is only mapped, not used, so the cost of a thread that waits is a few pages.
const THREADS_MAX: usize = 512;

/// A task that waits this long without any task being started shows that all threads are in long calls. Far longer than
/// a usual call, far shorter than an election timeout.
const STALL: Duration = Duration::from_millis(5);

/// The same in the slow lane, in [`STALL`]s: a second. All calls there are long; a thread more makes none of them end sooner, and takes
/// from those that it gives way to. But a machine may block as well as compute, and then the others need a thread.
const SLOW_STALLS: u32 = 200;

/// A thread above the base that finds nothing to do for this long ends.
const IDLE: Duration = Duration::from_secs(10);

type Task = Box<dyn FnOnce() + Send>;

/// An elastic thread pool. Dropping it does not wait; [`Pool::stop`] does.
pub(crate) struct Pool {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    /// There is something to watch over, or the pool stops.
    pressure: Condvar,
    /// A thread has ended.
    ended: Condvar,
    quick_work: Condvar,
    slow_work: Condvar,
    /// Threads that the quick lane keeps, and that the slow one has without waiting for a stall.
    base: usize,
    since: Stopwatch,
}

#[derive(Default)]
struct State {
    quick: Threads,
    slow: Threads,
    /// What runs in the quick lane.
    busy: Vec<Busy>,
    /// The supervisor counts already, so it need not be woken.
    watching: bool,
    stopping: bool,
}

/// The threads of a lane, and what waits for them.
#[derive(Default)]
struct Threads {
    tasks: RunQueue<Task>,
    count: usize,
    idle: usize,
    /// Counts tasks taken, so that the supervisor sees whether any was.
    taken: u64,
    /// How often in a row the supervisor saw none taken while some waited.
    stalls: u32,
}

impl Threads {
    fn are_short(&self) -> bool {
        self.tasks.len() > self.idle
    }
}

/// A thread that runs a task of the quick lane.
struct Busy {
    thread: Thread,
    /// Beyond this processor time of the thread the task takes long.
    limit: Duration,
    /// It took long: the thread is one of the slow lane's now.
    slow: bool,
}

impl State {
    fn lane(&mut self, lane: Lane) -> &mut Threads {
        match lane {
            Lane::Quick => &mut self.quick,
            Lane::Slow => &mut self.slow,
        }
    }
}

impl Pool {
    /// A pool that keeps `base` threads and grows when they are stuck.
    pub(crate) fn start(base: usize) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            pressure: Condvar::new(),
            ended: Condvar::new(),
            quick_work: Condvar::new(),
            slow_work: Condvar::new(),
            base: base.clamp(1, THREADS_MAX),
            since: Stopwatch::start(),
        });
        let pool = Self { shared };
        for _ in 0..pool.shared.base {
            pool.shared.grow(Lane::Quick, &mut pool.shared.lock())?;
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
        self.shared.quick_work.notify_all();
        self.shared.slow_work.notify_all();
        self.shared.pressure.notify_all();
        let threads = |state: &State| state.quick.count + state.slow.count;
        let (state, _) = self
            .shared
            .ended
            .wait_timeout_while(state, limit, |state| threads(state) > 0)
            .unwrap_or_else(PoisonError::into_inner);
        threads(&state)
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
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the threads of a lane wait.
    fn work(&self, lane: Lane) -> &Condvar {
        match lane {
            Lane::Quick => &self.quick_work,
            Lane::Slow => &self.slow_work,
        }
    }

    fn run(self: &Arc<Self>, account: Option<&Account>, task: Task) {
        let lane = account.map_or(Lane::Quick, Account::lane);
        let mut state = self.lock();
        let threads = state.lane(lane);
        match account {
            Some(account) => threads.tasks.push(self.now(), account.used(lane), task),
            None => threads.tasks.push_free(self.now(), task),
        }
        if threads.idle > 0 {
            self.work(lane).notify_one();
        }
        if !threads.are_short() {
            return;
        }
        // The slow lane has no threads until it needs some. And if the pool has stopped this task may be the last of a machine: it
        // must still be run by somebody.
        if threads.count == 0 || (lane == Lane::Slow && threads.count < self.base) {
            self.try_grow(lane, &mut state);
        }
        self.watch(&state);
    }

    /// Wakes the supervisor if it sleeps.
    fn watch(&self, state: &State) {
        if !state.watching {
            self.pressure.notify_one();
        }
    }

    fn try_grow(self: &Arc<Self>, lane: Lane, state: &mut State) {
        if let Err(error) = self.grow(lane, state) {
            tracing::error!(%error, "no thread for a machine; it waits for the others");
        }
    }

    fn grow(self: &Arc<Self>, lane: Lane, state: &mut State) -> io::Result<()> {
        let shared = Arc::clone(self);
        std::thread::Builder::new()
            .name("skep-machine".into())
            .stack_size(STACK_BYTES)
            .spawn(move || shared.serve(lane))?;
        state.lane(lane).count += 1;
        Ok(())
    }

    /// What a thread does.
    fn serve(&self, mut lane: Lane) {
        let thread = Thread::current();
        if lane == Lane::Slow {
            give_way(thread);
        }
        let mut used = thread.used();
        let mut state = self.lock();
        loop {
            if let Some((taken, task)) = state.lane(lane).tasks.pop(self.now()) {
                state.lane(lane).taken += 1;
                if lane == Lane::Quick {
                    state.busy.push(Busy {
                        thread,
                        limit: used + LONG,
                        slow: false,
                    });
                    self.watch(&state);
                }
                drop(state);
                if catch_unwind(AssertUnwindSafe(task)).is_err() {
                    tracing::error!("a machine task panicked");
                }
                used = thread.used();
                state = self.lock();
                state.lane(lane).tasks.ended(taken);
                if lane == Lane::Quick && state.leave(thread) {
                    lane = Lane::Slow;
                    // The slow lane did not ask for it.
                    if state.slow.count > self.base {
                        break;
                    }
                }
                continue;
            }
            if state.stopping {
                break;
            }
            state.lane(lane).idle += 1;
            let (woken, waited) = self
                .work(lane)
                .wait_timeout(state, IDLE)
                .unwrap_or_else(PoisonError::into_inner);
            state = woken;
            // Those of the slow lane take the stacks with them that deep guests have touched.
            let kept = if lane == Lane::Quick { self.base } else { 0 };
            let threads = state.lane(lane);
            threads.idle -= 1;
            if waited.timed_out() && threads.tasks.is_empty() && threads.count > kept {
                break;
            }
        }
        state.lane(lane).count -= 1;
        self.ended.notify_all();
    }

    /// While anything runs or waits: makes threads give way that take long, and adds threads where none takes what waits.
    fn supervise(self: &Arc<Self>) {
        let mut state = self.lock();
        while !state.stopping || !state.quick.tasks.is_empty() || !state.slow.tasks.is_empty() {
            if state.busy.is_empty() && !state.quick.are_short() && !state.slow.are_short() {
                state = self
                    .pressure
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let taken = [Lane::Quick, Lane::Slow].map(|lane| state.lane(lane).taken);
            state.watching = true;
            (state, _) = self
                .pressure
                .wait_timeout(state, STALL)
                .unwrap_or_else(PoisonError::into_inner);
            state.watching = false;
            state.slow_down();
            for (lane, taken) in [Lane::Quick, Lane::Slow].into_iter().zip(taken) {
                let stopping = state.stopping;
                let threads = state.lane(lane);
                let stuck = threads.taken == taken && threads.are_short();
                threads.stalls = if stuck { threads.stalls + 1 } else { 0 };
                let grows = match lane {
                    Lane::Quick => threads.stalls > 0 || (threads.count < self.base && !stopping),
                    Lane::Slow => threads.stalls >= SLOW_STALLS,
                };
                if grows && threads.count < THREADS_MAX {
                    threads.stalls = 0;
                    self.try_grow(lane, &mut state);
                }
            }
        }
    }
}

impl State {
    /// Moves threads that are in long calls to the slow lane.
    fn slow_down(&mut self) {
        for busy in &mut self.busy {
            if !busy.slow && busy.thread.used() >= busy.limit {
                give_way(busy.thread);
                busy.slow = true;
                self.quick.count -= 1;
                self.slow.count += 1;
            }
        }
    }

    /// The thread has ended its task of the quick lane; answers whether it belongs to the slow one now.
    fn leave(&mut self, thread: Thread) -> bool {
        let place = self.busy.iter().position(|busy| busy.thread == thread);
        place.is_some_and(|place| self.busy.swap_remove(place).slow)
    }
}

fn give_way(thread: Thread) {
    // Told once: what forbids it does so for every long call.
    static TOLD: Once = Once::new();
    if let Err(error) = thread.give_way() {
        TOLD.call_once(|| {
            tracing::warn!(%error, "threads in long calls keep their priority; other groups may wait for them");
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;
    use crate::run_queue::{Meter, SLOW_TURNS};

    #[cfg(target_os = "linux")]
    #[test]
    fn who_takes_long_gives_way_for_some_turns_and_nobody_else_does() {
        let pool = Pool::start(1).expect("threads start");
        let usual = Thread::current().niceness();
        let turn = |account: &Arc<Account>, work: fn(i32)| {
            let (done, dones) = channel();
            let paying = Arc::clone(account);
            pool.run_for(account, move || {
                let meter = Meter::start();
                work(usual);
                paying.charge(&meter);
                done.send(Thread::current().niceness())
                    .expect("the test waits");
            });
            dones
                .recv_timeout(Duration::from_secs(20))
                .expect("the turn ends")
        };
        let (long, short) = (Arc::default(), Arc::default());
        assert_eq!(turn(&long, |_| ()), usual);
        let computes = |usual| while Thread::current().niceness() == usual {};
        assert!(turn(&long, computes) > usual);
        for _ in 0..SLOW_TURNS {
            assert!(turn(&long, |_| ()) > usual);
            assert_eq!(turn(&short, |_| ()), usual);
        }
        assert_eq!(turn(&long, |_| ()), usual);
        assert_eq!(pool.stop(Duration::from_secs(20)), 0);
    }

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
