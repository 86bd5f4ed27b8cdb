//! Processes of the `skep` binary: none outlives the test.

use std::fs::OpenOptions;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError, mpsc};
use std::time::Duration;

use crate::clock::{PATIENCE, blocking_until};

/// The `skep` binary of the profile that the tests were built with.
///
/// # Panics
/// If it was not built.
pub fn skep_binary() -> PathBuf {
    let own = std::env::current_exe().expect("a test knows its own file");
    // target/<profile>/deps/it-<hash> → target/<profile>/skep
    let profile = own
        .parent()
        .and_then(Path::parent)
        .expect("a test lies in target/<profile>/deps");
    let binary = profile.join(format!("skep{}", std::env::consts::EXE_SUFFIX));
    assert!(
        binary.is_file(),
        "{} is not there: run `cargo test --workspace`, or `cargo build` with the same profile first",
        binary.display()
    );
    binary
}

/// Bytes of memory that a process holds now; `None` if it has ended.
#[cfg(target_os = "linux")]
pub fn resident_bytes(process: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}

/// A running process. Killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
}

/// What a process that has ended said.
#[derive(Debug)]
pub struct Ended {
    /// Its exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Process {
    /// Starts `skep` with both outputs appended to files.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn start(arguments: &[&str], stdout: &Path, stderr: &Path) -> Self {
        Self::start_with(arguments, &[], None, stdout, stderr)
    }

    /// As [`start`](Self::start), with variables in its environment, and no more descriptors than this.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn start_with(
        arguments: &[&str],
        environment: &[(&str, &Path)],
        descriptors: Option<u64>,
        stdout: &Path,
        stderr: &Path,
    ) -> Self {
        let open = |path: &Path| {
            let file = OpenOptions::new().create(true).append(true).open(path);
            file.unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()))
        };
        let mut command = Command::new(skep_binary());
        command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(open(stdout))
            .stderr(open(stderr));
        command.env("SKEP_LOG", "info").env_remove("SKEP_AT");
        command.envs(environment.iter().copied());
        die_with_parent(&mut command);
        if let Some(most) = descriptors {
            limit_descriptors(&mut command, most);
        }
        let child = spawn(command)
            .unwrap_or_else(|error| panic!("cannot start skep {arguments:?}: {error}"));
        Self { child }
    }

    /// Its id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child can be waited for")
    }

    /// Sends a signal.
    pub fn signal(&self, signal: libc::c_int) {
        // SAFETY: `kill` takes two numbers and touches no memory of ours. The child is waited for only where it is given
        // up, so its id is its own.
        let sent = unsafe { libc::kill(self.child.id() as libc::pid_t, signal) };
        assert_eq!(
            sent,
            0,
            "signal {signal} to process {}: {}",
            self.id(),
            io::Error::last_os_error()
        );
    }

    /// From now on no file of the process may grow beyond this size: a write that would fails with `EFBIG`, as one on a
    /// full disk does with `ENOSPC`. `None` takes the limit away.
    #[cfg(target_os = "linux")]
    pub fn limit_files(&self, bytes: Option<u64>) {
        self.limit(libc::RLIMIT_FSIZE, bytes);
    }

    /// Changes how much of something the process may have from now on; `None` gives it as much as it may ever have.
    #[cfg(target_os = "linux")]
    pub fn limit(&self, resource: libc::__rlimit_resource_t, value: Option<u64>) {
        let pid = self.child.id() as libc::pid_t;
        let mut limit = libc::rlimit {
            rlim_cur: 0,
            rlim_max: 0,
        };
        // SAFETY: the old limit is written to a value that outlives the call, and no new one is given.
        let got = unsafe { libc::prlimit(pid, resource, std::ptr::null(), &mut limit) };
        assert_eq!(got, 0, "{}", io::Error::last_os_error());
        limit.rlim_cur = value.unwrap_or(limit.rlim_max).min(limit.rlim_max);
        // SAFETY: the new limit is a value that outlives the call, and the old one is not asked for.
        let set = unsafe { libc::prlimit(pid, resource, &limit, std::ptr::null_mut()) };
        assert_eq!(
            set,
            0,
            "a limit for process {}: {}",
            self.id(),
            io::Error::last_os_error()
        );
    }

    /// There is no such limit here.
    #[cfg(not(target_os = "linux"))]
    pub fn limit_files(&self, _: Option<u64>) {
        panic!("the size of a running process' files can only be limited on Linux");
    }

    /// Waits for its end; `None` if it does not come in time.
    pub fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        blocking_until(limit, || self.ended())
    }

    /// `kill -9`; returns once it is gone.
    pub fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        // It is gone already if this fails, which is all that is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

/// Runs `skep` to its end.
///
/// # Panics
/// If it does not end within [`PATIENCE`].
pub async fn run(arguments: &[&str]) -> Ended {
    let arguments: Vec<String> = arguments
        .iter()
        .map(|argument| (*argument).to_owned())
        .collect();
    let run = move || {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (stdout, stderr) = (dir.path().join("stdout"), dir.path().join("stderr"));
        let mut process = Process::start(&arguments, &stdout, &stderr);
        let status = process.wait(PATIENCE);
        let read = |path: &Path| {
            String::from_utf8_lossy(&std::fs::read(path).expect("its output")).into_owned()
        };
        let (stdout, stderr) = (read(&stdout), read(&stderr));
        let Some(status) = status else {
            panic!(
                "skep {arguments:?} did not end within {PATIENCE:?}\nstdout: {stdout}\nstderr: {stderr}"
            )
        };
        Ended {
            code: status.code(),
            stdout,
            stderr,
        }
    };
    tokio::task::spawn_blocking(run)
        .await
        .expect("skep was run")
}

/// A request to start a process, and where the answer goes.
type Job = (Command, mpsc::Sender<io::Result<Child>>);

/// Starts the command on a thread that lives as long as the test program: the kernel kills a child when the *thread*
/// that started it ends, and a test's own thread may end before its cluster does.
fn spawn(command: Command) -> io::Result<Child> {
    static KEEPER: OnceLock<Mutex<mpsc::Sender<Job>>> = OnceLock::new();
    let keeper = KEEPER.get_or_init(|| {
        let (jobs, queue) = mpsc::channel::<Job>();
        std::thread::spawn(move || {
            for (mut command, answer) in queue {
                // Whoever asked has given up if this fails; the child is dropped and the kernel ends it with us.
                let _ = answer.send(command.spawn());
            }
        });
        Mutex::new(jobs)
    });
    let (answer, started) = mpsc::channel();
    let sent = keeper
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .send((command, answer));
    sent.expect("the keeper never ends");
    started.recv().expect("the keeper answers")
}

/// A test that is killed cannot kill its children, so the kernel is asked to.
#[cfg(target_os = "linux")]
fn die_with_parent(command: &mut Command) {
    use std::os::unix::process::CommandExt;
    let ask = || {
        // A file that may not grow is to be an error, not the end of the process; see `Process::limit_files`.
        // SAFETY: `signal` and `prctl` are async-signal-safe and take plain numbers here.
        unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
        match unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    // SAFETY: `ask` runs between fork and exec and only makes the system calls above; it allocates nothing.
    unsafe { command.pre_exec(ask) };
}

/// As `ulimit -n`, for both limits: the process can give itself no more.
fn limit_descriptors(command: &mut Command, most: u64) {
    use std::os::unix::process::CommandExt;
    let limit = libc::rlimit {
        rlim_cur: most,
        rlim_max: most,
    };
    let set = move || {
        // SAFETY: `setrlimit` is async-signal-safe and reads a value that outlives the call.
        match unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    // SAFETY: `set` runs between fork and exec and only makes the system call above; it allocates nothing.
    unsafe { command.pre_exec(set) };
}

#[cfg(not(target_os = "linux"))]
fn die_with_parent(_: &mut Command) {}
