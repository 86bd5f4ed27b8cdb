//! What a fork writes to becomes its own, and what is captured is copied before it is written: the handler of the faults that these
//! writes are.

use std::cell::Cell;
use std::io;
use std::mem::MaybeUninit;
use std::ptr::{dangling, null, slice_from_raw_parts};
use std::sync::{Arc, OnceLock};

use super::{Capture, Memory};

/// What the code that runs may not write to at once.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Watched<'a> {
    /// Memories of a fork: a page becomes its own when it is written.
    pub(crate) forks: &'a [Arc<Memory>],
    /// Of a machine's memories: a block is copied before it is written.
    pub(crate) captures: &'a [Arc<Capture>],
}

/// As [`Watched`], for a signal handler.
#[derive(Clone, Copy)]
struct Running {
    forks: *const [Arc<Memory>],
    captures: *const [Arc<Capture>],
}

thread_local! {
    /// Of the instance that runs on this thread. A constant with no destructor, so a signal handler may read it.
    static RUNNING: Cell<Running> = const {
        Cell::new(Running {
            forks: slice_from_raw_parts(dangling(), 0),
            captures: slice_from_raw_parts(dangling(), 0),
        })
    };
}

/// Runs an instance's code.
pub(super) fn running<T>(watched: Watched<'_>, run: impl FnOnce() -> T) -> T {
    struct Restore(Running);
    impl Drop for Restore {
        fn drop(&mut self) {
            RUNNING.set(self.0);
        }
    }
    let Watched { forks, captures } = watched;
    let _restore = Restore(RUNNING.replace(Running { forks, captures }));
    run()
}

/// The handler that was there before: wasmtime's.
static FORMER: OnceLock<libc::sigaction> = OnceLock::new();

/// Puts the handler in front of wasmtime's, which must be there already.
pub(crate) fn install() -> io::Result<()> {
    static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
    let installed = INSTALLED.get_or_init(|| {
        let former = action(None).map_err(|error| error.raw_os_error().unwrap_or(0))?;
        // Set first: from the moment the handler is there it may be asked.
        let former = FORMER.get_or_init(|| former);
        let mut ours = *former;
        ours.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER | libc::SA_ONSTACK;
        ours.sa_sigaction = (on_fault as *const ()).addr();
        action(Some(&ours)).map_err(|error| error.raw_os_error().unwrap_or(0))?;
        Ok(())
    });
    installed.map_err(io::Error::from_raw_os_error)
}

/// Sets the action for a fault of memory, if there is one to set; gives the former one.
fn action(set: Option<&libc::sigaction>) -> io::Result<libc::sigaction> {
    let mut former = MaybeUninit::uninit();
    let set = set.map_or(null(), |set| set as *const _);
    // SAFETY: both pointers are to actions, or null.
    if unsafe { libc::sigaction(libc::SIGSEGV, set, former.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has succeeded, so it was written.
    Ok(unsafe { former.assume_init() })
}

extern "C" fn on_fault(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    let Running { forks, captures } = RUNNING.get();
    // SAFETY: the system hands over what it says. Slices that are set outlive the run that faulted, which is under them on the stack.
    let (address, forks, captures) = unsafe { ((*info).si_addr().addr(), &*forks, &*captures) };
    if forks.iter().any(|memory| memory.takes(address))
        || captures.iter().any(|capture| capture.takes(address))
    {
        return;
    }
    let Some(former) = FORMER.get() else { return };
    let handler = former.sa_sigaction;
    if handler == libc::SIG_DFL || handler == libc::SIG_IGN {
        // The fault comes again, and ends the process as it would have.
        // SAFETY: it is the action that was there before.
        unsafe { libc::sigaction(signal, former, std::ptr::null_mut()) };
    } else if former.sa_flags & libc::SA_SIGINFO != 0 {
        // SAFETY: with this flag it is a function of this kind.
        unsafe {
            let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                std::mem::transmute(handler);
            handler(signal, info, context);
        }
    } else {
        // SAFETY: without it it is one of this kind.
        unsafe {
            let handler: extern "C" fn(libc::c_int) = std::mem::transmute(handler);
            handler(signal);
        }
    }
}
