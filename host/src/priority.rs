//! The right of way among a node's threads: one that has used the processor for long lets the others pass.

#[cfg(target_os = "linux")]
pub(crate) use self::linux::Thread;
#[cfg(not(target_os = "linux"))]
pub(crate) use self::other::Thread;

#[cfg(target_os = "linux")]
mod linux {
    use std::io;
    use std::time::Duration;

    use crate::clock::ThreadClock;

    /// Added to the niceness of a thread that gives way: its weight is a ninth of the others'. So it gets what they leave, and a
    /// tenth of a core even if they leave nothing; whoever waits for a lock that it holds waits so much longer at most.
    const NICER_BY: libc::c_int = 10;
    /// How long it would like to run at a time. A thread that wakes up and wants less (the kernel's default is a few milliseconds)
    /// interrupts it at once, instead of at the next tick of the kernel; since Linux 6.12, which calls this the slice.
    const SLICE: Duration = Duration::from_millis(100);
    /// The most there is.
    const NICEST: libc::c_int = 19;

    /// A thread of this process. Use it only while the thread runs: its id may be another's afterwards.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub(crate) struct Thread {
        id: libc::id_t,
        clock: ThreadClock,
    }

    impl Thread {
        /// The calling thread.
        pub(crate) fn current() -> Self {
            // SAFETY: it takes nothing and cannot fail.
            let id = unsafe { libc::gettid() };
            Self {
                id: id.cast_unsigned(),
                clock: ThreadClock::current(),
            }
        }

        /// The processor time that it has used so far.
        pub(crate) fn used(&self) -> Duration {
            self.clock.used()
        }

        /// How far it lets others go first.
        #[cfg(test)]
        pub(crate) fn niceness(&self) -> libc::c_int {
            // SAFETY: as in `give_way`.
            unsafe { libc::getpriority(libc::PRIO_PROCESS as _, self.id) }
        }

        /// Lets it run behind threads that have not given way, and with it the threads that it starts from now on. There is no
        /// way back: a process may need a privilege to take the right of way.
        pub(crate) fn give_way(&self) -> io::Result<()> {
            let (which, id) = (libc::PRIO_PROCESS as _, self.id);
            // SAFETY: it takes plain numbers and touches no memory of ours. -1 is a niceness too, and the thread exists, so there
            // is no error to be told from it.
            let niceness = unsafe { libc::getpriority(which, id) };
            let attributes = libc::sched_attr {
                size: size_of::<libc::sched_attr>() as u32,
                sched_policy: libc::SCHED_OTHER as u32,
                sched_flags: 0,
                sched_nice: (niceness + NICER_BY).min(NICEST),
                sched_priority: 0,
                sched_runtime: SLICE.as_nanos() as u64,
                sched_deadline: 0,
                sched_period: 0,
            };
            // SAFETY: the attributes outlive the call, which only reads them. On Linux it is for a single thread.
            let mut set =
                unsafe { libc::syscall(libc::SYS_sched_setattr, id, &raw const attributes, 0) };
            if set != 0 {
                // A sandbox may know only the older call.
                // SAFETY: plain numbers.
                set = unsafe { libc::setpriority(which, id, attributes.sched_nice) }.into();
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

    /// A thread of this process.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub(crate) struct Thread;

    impl Thread {
        /// The calling thread.
        pub(crate) fn current() -> Self {
            Self
        }

        /// Nothing is known of it.
        pub(crate) fn used(&self) -> Duration {
            Duration::ZERO
        }

        /// Does nothing.
        pub(crate) fn give_way(&self) -> io::Result<()> {
            Ok(())
        }
    }
}
