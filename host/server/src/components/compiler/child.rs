//! The child's side: takes limits upon itself, reads a component, compiles it, answers, ends.

use std::io::{self, Read};
use std::process::ExitCode;

use skep_machine::wasm::{
    APPLY_THREAD_STACK_BYTES, CompileError, Compiler, Engine, InProcess, MAX_COMPONENT_BYTES,
};

use super::{Kind, write_answer};

/// The verb of the command line that runs this.
pub const VERB: &str = "compile-child";

/// Exit code of a child that could not begin.
pub(super) const EXIT_LOCAL: i32 = 3;
/// Rust's exit code of a program that panicked.
pub(super) const EXIT_PANIC: i32 = 101;

/// Address space beside the memory that counts: what is only reserved, and files that are mapped.
const ADDRESS_BYTES: u64 = 1 << 30;

/// What a child takes upon itself.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Process that it works for; without that it ends.
    pub parent: u32,
    /// Bytes of memory it may take.
    pub memory_bytes: u64,
    /// Seconds of processor time, of all its threads together.
    pub processor_seconds: u64,
}

/// Compiles what comes on stdin, and answers on stdout. To be called before there are threads.
pub fn run(limits: Limits) -> ExitCode {
    match confine(&limits).and_then(|()| work(&limits)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(EXIT_LOCAL as u8)
        }
    }
}

fn work(limits: &Limits) -> io::Result<()> {
    let mut component = Vec::new();
    io::stdin()
        .take(MAX_COMPONENT_BYTES as u64 + 1)
        .read_to_end(&mut component)?;
    let engine = Engine::new().map_err(io::Error::other)?;
    // From here on everything that is taken is taken for the component.
    limit_memory(limits.memory_bytes)?;
    let compile = || InProcess.compile(&engine, &component);
    // The compiler recurses on the calling thread; its stack is the same as it would be in a node.
    let made = std::thread::scope(|scope| -> io::Result<_> {
        let thread = std::thread::Builder::new()
            .stack_size(APPLY_THREAD_STACK_BYTES)
            .spawn_scoped(scope, compile)?;
        match thread.join() {
            Ok(made) => Ok(made),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    });
    let (kind, content) = match made? {
        Ok(code) => (Kind::Code, code),
        Err(CompileError::Invalid(why)) => (Kind::Invalid, why.into_bytes()),
        // In this process memory is all that can be short.
        Err(error) => (Kind::Memory, error.to_string().into_bytes()),
    };
    write_answer(
        &mut io::stdout().lock(),
        &engine.fingerprint(),
        kind,
        &content,
    )
}

/// Ends with the parent, and can do nothing but read, compute and write to the pipes it was given.
fn confine(limits: &Limits) -> io::Result<()> {
    end_with(limits.parent)?;
    close_inherited()?;
    limit(libc::RLIMIT_CORE, 0, 0)?;
    limit(libc::RLIMIT_FSIZE, 0, 0)?;
    // At the first the kernel says why, at the second it ends the process.
    let seconds = limits.processor_seconds;
    limit(libc::RLIMIT_CPU, seconds, seconds.saturating_add(1))?;
    give_way()
}

/// Has the kernel kill this process when the thread that started it ends.
#[cfg(target_os = "linux")]
fn end_with(parent: u32) -> io::Result<()> {
    // SAFETY: plain numbers.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) })?;
    // SAFETY: plain numbers. Nothing that this process starts, which is nothing, may gain rights.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })?;
    // It may have ended before that was asked for.
    if std::os::unix::process::parent_id() != parent {
        return Err(io::Error::other("the node that asked has ended"));
    }
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn end_with(_: u32) -> io::Result<()> {
    Err(io::Error::other(
        "compiling in a process of its own takes Linux",
    ))
}

/// Closes what the node's own parent may have left open in it.
#[cfg(target_os = "linux")]
fn close_inherited() -> io::Result<()> {
    // SAFETY: plain numbers. No descriptor but the three pipes was used by this process yet.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) };
    match closed {
        0 => Ok(()),
        _ => match io::Error::last_os_error() {
            // Before Linux 5.9. All that the node opens itself is closed already.
            error if error.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
            error => Err(error),
        },
    }
}

#[cfg(not(target_os = "linux"))]
fn close_inherited() -> io::Result<()> {
    Ok(())
}

/// Added to the niceness: a tenth of a core where the node and others leave nothing. With less an honest component would be
/// late on every busy node.
const NICER_BY: libc::c_int = 10;

fn give_way() -> io::Result<()> {
    // SAFETY: plain numbers. -1 is a niceness too, so there is no error to be told from it.
    let niceness = unsafe { libc::getpriority(libc::PRIO_PROCESS as _, 0) };
    // SAFETY: plain numbers.
    check(unsafe { libc::setpriority(libc::PRIO_PROCESS as _, 0, (niceness + NICER_BY).min(19)) })
}

/// Lets this process take so much more than it has. What counts is memory of its own that it may write to; the address space is
/// bounded too, in case some of that does not count.
#[cfg(target_os = "linux")]
fn limit_memory(bytes: u64) -> io::Result<()> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let has = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        kib.map(|kib| kib.saturating_mul(1024))
            .ok_or_else(|| io::Error::other(format!("no {name} in /proc/self/status")))
    };
    let data = has("VmData:")?.saturating_add(bytes);
    limit(libc::RLIMIT_DATA, data, data)?;
    let address = bytes.saturating_mul(2).saturating_add(ADDRESS_BYTES);
    let address = has("VmSize:")?.saturating_add(address);
    limit(libc::RLIMIT_AS, address, address)
}

#[cfg(not(target_os = "linux"))]
fn limit_memory(bytes: u64) -> io::Result<()> {
    let address = bytes.saturating_add(ADDRESS_BYTES);
    limit(libc::RLIMIT_AS, address, address)
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
type Resource = libc::__rlimit_resource_t;
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
type Resource = libc::c_int;

/// Sets both limits of a resource, or leaves them where they are lower.
fn limit(resource: Resource, soft: u64, hard: u64) -> io::Result<()> {
    let mut now = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: it writes to a value that outlives the call.
    check(unsafe { libc::getrlimit(resource, &mut now) })?;
    let limit = libc::rlimit {
        rlim_cur: now.rlim_cur.min(soft),
        rlim_max: now.rlim_max.min(hard),
    };
    // SAFETY: the limit outlives the call, which only reads it.
    check(unsafe { libc::setrlimit(resource, &limit) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
