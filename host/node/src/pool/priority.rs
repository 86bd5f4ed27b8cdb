//! The right of way among a node's threads: one that has used the processor for long lets the others pass.

#[cfg(target_os = "linux")]
pub use self::linux::{Thread, Usual};
#[cfg(not(target_os = "linux"))]
pub use self::other::{Thread, Usual};

/// What a thread that has given way can still claim of the processors.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Claim {
    /// The time that others leave. A thread that wakes up interrupts it at once.
    None,
    /// A ninth of the others' weight. A thread that wakes up interrupts it at once, or at the next tick of the kernel where this
    /// thread has had less than its share.
    Little,
}

#[cfg(target_os = "linux")]
mod linux {
    use std::io;
    use std::time::Duration;

    use super::Claim;
    use crate::clock::ThreadClock;

    /// Added to the niceness of a thread with a claim to little: its weight is a ninth of the others'. So it gets a tenth of a core even
    /// if they leave nothing; whoever waits for a lock that it holds waits so much longer at most.
    const NICER_BY: libc::c_int = 10;
    /// How long it would like to run at a time. A thread that wakes up and wants less (the kernel's default is a few milliseconds)
    /// interrupts it soon; since Linux 6.12, which calls this the slice.
    const SLICE: Duration = Duration::from_millis(100);
    /// The most there is.
    const NICEST: libc::c_int = 19;

    /// What threads have that have not given way.
    #[derive(Clone, Copy, Debug)]
    pub struct Usual {
        niceness: libc::c_int,
        /// A thread without any claim may be given one again. It takes a privilege: `CAP_SYS_NICE`, or an `RLIMIT_NICE` of 10.
        comes_back: bool,
    }

    impl Usual {
        /// What the calling thread has, which has not given way.
        pub fn of_this_thread() -> Self {
            let niceness = Thread::current().niceness();
            let mut usual = Self {
                niceness,
                comes_back: true,
            };
            // A thread tries it out, since more than one thing can forbid it.
            let tried = std::thread::Builder::new()
                .name("skep-machine".into())
                .spawn(move || {
                    let thread = Thread::current();
                    let sets = |claim| thread.set(claim, &usual).is_ok();
                    thread.policy() == libc::SCHED_OTHER && sets(Claim::None) && sets(Claim::Little)
                });
            let tried = tried.ok().and_then(|thread| thread.join().ok());
            usual.comes_back = tried == Some(true);
            usual
        }
    }

    /// A thread of this process. Use it only while the thread runs: its id may be another's afterwards.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Thread {
        id: libc::id_t,
        clock: ThreadClock,
    }

    impl Thread {
        /// The calling thread.
        pub fn current() -> Self {
            // SAFETY: it takes nothing and cannot fail.
            let id = unsafe { libc::gettid() };
            Self {
                id: id.cast_unsigned(),
                clock: ThreadClock::current(),
            }
        }

        /// The processor time that it has used so far.
        pub fn used(&self) -> Duration {
            self.clock.used()
        }

        /// How the kernel schedules it.
        fn policy(&self) -> libc::c_int {
            // SAFETY: it takes a plain number.
            unsafe { libc::sched_getscheduler(self.id.cast_signed()) }
        }

        /// How far it lets others go first.
        pub(super) fn niceness(&self) -> libc::c_int {
            // SAFETY: it takes plain numbers. -1 is a niceness too, and the thread exists, so there is no error to be told from it.
            unsafe { libc::getpriority(libc::PRIO_PROCESS as _, self.id) }
        }

        /// What it has a claim to, if it has given way.
        pub fn claim(&self, usual: &Usual) -> Option<Claim> {
            match self.policy() {
                libc::SCHED_IDLE => Some(Claim::None),
                _ if self.niceness() > usual.niceness => Some(Claim::Little),
                _ => None,
            }
        }

        /// Lets it run behind threads that have not given way; answers what it can still claim. There is no way back to the
        /// usual: a process may need a privilege to take the right of way.
        pub fn give_way(&self, usual: &Usual) -> io::Result<Claim> {
            let claim = match usual.comes_back {
                true => Claim::None,
                false => Claim::Little,
            };
            self.set(claim, usual).map(|()| claim)
        }

        /// Gives a thread without a claim a little again: others leave it nothing, and somebody may wait for it.
        pub fn insist(&self, usual: &Usual) -> io::Result<()> {
            self.set(Claim::Little, usual)
        }

        /// Leaves it a claim to little for as long as it lives: for a thread of its own that does something long, for nobody who
        /// has the right of way.
        pub fn step_back(&self) -> io::Result<()> {
            let usual = Usual {
                niceness: self.niceness(),
                comes_back: false,
            };
            self.set(Claim::Little, &usual)
        }

        fn set(&self, claim: Claim, usual: &Usual) -> io::Result<()> {
            let niceness = (usual.niceness + NICER_BY).min(NICEST);
            let attributes = libc::sched_attr {
                size: size_of::<libc::sched_attr>() as u32,
                sched_policy: match claim {
                    Claim::None => libc::SCHED_IDLE as u32,
                    Claim::Little => libc::SCHED_OTHER as u32,
                },
                sched_flags: 0,
                sched_nice: niceness,
                sched_priority: 0,
                sched_runtime: SLICE.as_nanos() as u64,
                sched_deadline: 0,
                sched_period: 0,
            };
            // SAFETY: the attributes outlive the call, which only reads them. On Linux it is for a single thread.
            let mut set = unsafe {
                libc::syscall(libc::SYS_sched_setattr, self.id, &raw const attributes, 0)
            };
            if set != 0 && claim == Claim::Little && self.policy() != libc::SCHED_IDLE {
                // A sandbox may know only the older call, which sets the niceness alone.
                // SAFETY: plain numbers.
                set =
                    unsafe { libc::setpriority(libc::PRIO_PROCESS as _, self.id, niceness) }.into();
            }
            match set {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        }
    }
}

/// Elsewhere nobody gives way.
#[cfg(not(target_os = "linux"))]
mod other {
    use std::io;
    use std::time::Duration;

    use super::Claim;

    /// There is nothing else.
    #[derive(Clone, Copy, Debug)]
    pub struct Usual;

    impl Usual {
        /// What all threads have.
        pub fn of_this_thread() -> Self {
            Self
        }
    }

    /// A thread of this process.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Thread;

    impl Thread {
        /// The calling thread.
        pub fn current() -> Self {
            Self
        }

        /// Nothing is known of it.
        pub fn used(&self) -> Duration {
            Duration::ZERO
        }

        /// Does nothing.
        pub fn give_way(&self, _usual: &Usual) -> io::Result<Claim> {
            Ok(Claim::Little)
        }

        /// Does nothing.
        pub fn insist(&self, _usual: &Usual) -> io::Result<()> {
            Ok(())
        }

        /// Does nothing.
        pub fn step_back(&self) -> io::Result<()> {
            Ok(())
        }
    }
}
