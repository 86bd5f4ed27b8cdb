//! Threads that run machines: few while calls are short, more as soon as calls are stuck. Who has used least runs first, and who
//! takes long gives way.

pub mod priority;
pub(crate) mod run_queue;

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Once, PoisonError};
use std::time::Duration;

use crate::clock::Stopwatch;
use crate::pool::priority::{Claim, Thread, Usual};
use crate::pool::run_queue::{Account, LONG, Lane, RunQueue};

/// Stack of a machine thread, which native machines run on: guests have stacks of their own.
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

/// A thread of the slow lane that got less than a fiftieth of a processor for so long is starved.
const STARVES: Duration = Duration::from_millis(100);

/// For so long a thread that was starved keeps its claim to a tenth: what takes everything now will not soon leave more.
const INSISTS: Duration = Duration::from_millis(250);

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
    usual: Usual,
}

#[derive(Default)]
struct State {
    quick: Threads,
    slow: Threads,
    /// What runs.
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

/// A thread that runs a task.
struct Busy {
    thread: Thread,
    /// In the quick lane, if it is still there: beyond this processor time of the thread the task takes long.
    limit: Duration,
    /// In the slow lane, where a task that takes long is moved with its thread.
    slow: Option<Slow>,
}

/// A thread that has given way.
#[derive(Clone, Copy)]
struct Slow {
    claim: Claim,
    /// When its processor time was looked at last, or when it was given its claim: nanoseconds since the pool started.
    at: u64,
    used: Duration,
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
            usual: Usual::of_this_thread(),
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
        // must still be run by somebody. Otherwise the supervisor sees to the quick lane: a thread starts with the precedence of
        // the one that starts it, and this one may have given way.
        let wanted = match lane {
            Lane::Quick => state.stopping && state.quick.count == 0,
            Lane::Slow => state.slow.count < self.base,
        };
        if wanted {
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
        let mut slow = (lane == Lane::Slow).then(|| self.give_way(thread));
        let mut used = thread.used();
        let mut state = self.lock();
        loop {
            if let Some((taken, task)) = state.lane(lane).tasks.pop(self.now()) {
                state.lane(lane).taken += 1;
                slow = slow.map(|slow| self.go_on(thread, slow));
                state.busy.push(Busy {
                    thread,
                    limit: used + LONG,
                    slow,
                });
                self.watch(&state);
                drop(state);
                if catch_unwind(AssertUnwindSafe(task)).is_err() {
                    tracing::error!("a machine task panicked");
                }
                used = thread.used();
                state = self.lock();
                state.lane(lane).tasks.ended(taken);
                slow = state.leave(thread);
                if lane == Lane::Quick && slow.is_some() {
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
            self.look(&mut state);
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

    /// Moves threads that are in long calls to the slow lane, and sees to it that those there get a little.
    fn look(&self, state: &mut State) {
        let now = self.now();
        let mut moved = 0;
        for busy in &mut state.busy {
            match &mut busy.slow {
                None if busy.thread.used() >= busy.limit => {
                    busy.slow = Some(self.give_way(busy.thread));
                    moved += 1;
                }
                None => {}
                Some(slow) if slow.claim == Claim::None && slow.is_due(now, STARVES) => {
                    let used = busy.thread.used();
                    if used < slow.used + STARVES / 50 {
                        told(busy.thread.insist(&self.usual));
                        slow.claim = Claim::Little;
                    }
                    (slow.at, slow.used) = (now, used);
                }
                Some(slow) if slow.claim == Claim::Little && slow.is_due(now, INSISTS) => {
                    *slow = self.give_way(busy.thread);
                }
                Some(_) => {}
            }
        }
        state.quick.count -= moved;
        state.slow.count += moved;
    }

    /// Lets others run before the thread.
    fn give_way(&self, thread: Thread) -> Slow {
        Slow {
            claim: told(thread.give_way(&self.usual)).unwrap_or(Claim::Little),
            at: self.now(),
            used: thread.used(),
        }
    }

    /// The thread takes another task of the slow lane.
    fn go_on(&self, thread: Thread, slow: Slow) -> Slow {
        match slow.claim {
            Claim::None => Slow {
                at: self.now(),
                used: thread.used(),
                ..slow
            },
            Claim::Little if slow.is_due(self.now(), INSISTS) => self.give_way(thread),
            Claim::Little => slow,
        }
    }
}

impl Slow {
    fn is_due(&self, now: u64, after: Duration) -> bool {
        u128::from(now.saturating_sub(self.at)) >= after.as_nanos()
    }
}

impl State {
    /// The thread has ended its task; answers what it has if it belongs to the slow lane now.
    fn leave(&mut self, thread: Thread) -> Option<Slow> {
        let place = self.busy.iter().position(|busy| busy.thread == thread)?;
        self.busy.swap_remove(place).slow
    }
}

fn told<T>(result: io::Result<T>) -> Option<T> {
    // Told once: the same reason forbids it for every long call.
    static TOLD: Once = Once::new();
    result
        .inspect_err(|error| {
            TOLD.call_once(|| {
                tracing::warn!(%error, "threads in long calls keep their priority; other groups may wait for them");
            });
        })
        .ok()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;
    use crate::pool::run_queue::{Meter, SLOW_TURNS};

    // P-43
    #[cfg(target_os = "linux")]
    #[test]
    fn who_takes_long_gives_way_for_some_turns_and_nobody_else_does() {
        let pool = Pool::start(1).expect("threads start");
        let usual = pool.shared.usual;
        let turn = |account: &Arc<Account>, work: fn(&Usual)| {
            let (done, dones) = channel();
            let paying = Arc::clone(account);
            pool.run_for(account, move || {
                let meter = Meter::start();
                work(&usual);
                paying.charge(&meter);
                done.send(Thread::current().claim(&usual))
                    .expect("the test waits");
            });
            dones
                .recv_timeout(Duration::from_secs(20))
                .expect("the turn ends")
        };
        let (long, short) = (Arc::default(), Arc::default());
        assert_eq!(turn(&long, |_| ()), None);
        let computes = |usual: &Usual| while Thread::current().claim(usual).is_none() {};
        assert!(turn(&long, computes).is_some());
        for _ in 0..SLOW_TURNS {
            assert!(turn(&long, |_| ()).is_some());
            assert_eq!(turn(&short, |_| ()), None);
        }
        assert_eq!(turn(&long, |_| ()), None);
        // One that has no processor looks as one that gets none.
        turn(&long, computes);
        let starves = |usual: &Usual| {
            while Thread::current().claim(usual) != Some(Claim::Little) {
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        assert_eq!(turn(&long, starves), Some(Claim::Little));
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
