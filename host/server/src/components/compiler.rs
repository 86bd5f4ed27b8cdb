//! Compiling in a child process of this very program, so that no component holds a thread or the memory of the node.
//!
//! ```text
//! ChildCompiler ── stdin: the component ──▶ skep compile-child (its own limits, lowest claim to the processors)
//!      ◀── stdout: magic, fingerprint of the engine, kind, length, what it is ──
//! ```
//!
//! The child is started through `/proc/self/exe`, which is the file this process runs from even after an upgrade has put
//! another in its place: so both have the same engine, and the fingerprint makes sure of it. What it answers is machine
//! code that will be run; it is believed as this process' own compiler would be, since the child is the same program, and
//! nobody else holds the pipe.
//!
//! There are no orphans: the child is killed at the deadline, and by the kernel when the thread that waits for it is gone,
//! with the node or without.

pub mod child;

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use skep::clock::Stopwatch;
use skep_machine::wasm::{Allowance, CompileError, Compiler, Engine, InProcess};

/// What an answer begins with.
const MAGIC: &[u8; 8] = b"skepwork";
/// Magic, fingerprint, kind, length.
const HEAD_BYTES: usize = MAGIC.len() + 32 + 1 + 8;

/// Threads of the compiler. More of them need more memory at a time.
const THREADS: usize = 4;
/// What of the child's complaints is kept, in bytes.
const COMPLAINT_BYTES: u64 = 4096;
/// Machine code for each byte of a component, and some for the smallest: far more than honest ones become.
const CODE_PER_BYTE: u64 = 16;
const CODE_BYTES: u64 = 16 << 20;
/// How long a child may take to end once it has said everything.
const ENDS_WITHIN: Duration = Duration::from_secs(2);
/// Pause between two looks at whether it has.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// What a server has its components compiled by: a child process of this program, where there can be one.
pub fn of_this_program(allowance: Allowance) -> Arc<dyn Compiler> {
    if cfg!(target_os = "linux") {
        Arc::new(ChildCompiler::new(allowance))
    } else {
        tracing::warn!(
            "components are compiled in this process, where nothing bounds it: a process of its own takes Linux"
        );
        Arc::new(InProcess)
    }
}

/// Has components compiled by a child process.
#[derive(Clone, Debug)]
struct ChildCompiler {
    program: PathBuf,
    arguments: Vec<OsString>,
    allowance: Allowance,
}

/// What a child has to say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
enum Kind {
    /// Machine code.
    Code = 0,
    /// Why the component is no machine code.
    Invalid = 1,
    /// That memory was short.
    Memory = 2,
}

impl ChildCompiler {
    /// Has this program do it: `skep compile-child`.
    fn new(allowance: Allowance) -> Self {
        Self {
            program: "/proc/self/exe".into(),
            arguments: vec![child::VERB.into()],
            allowance,
        }
    }

    /// What a component of this size may take: an eighth of what is allowed, and the more the larger it is. Honest ones take less
    /// than half of it; a small one that takes as much as a large one is none.
    fn memory(&self, size: usize) -> u64 {
        let most = self.allowance.memory_bytes;
        let by_size = (most >> 24).saturating_mul(size as u64);
        (most / 8).saturating_add(by_size).min(most)
    }

    fn spawn(&self, memory: u64) -> Result<Running, CompileError> {
        // The deadline is this process' to keep. The child's own is for when it does not run.
        let seconds = (self.allowance.milliseconds / 1000 + 1).saturating_mul(THREADS as u64);
        let options = [
            ("--parent", u64::from(std::process::id())),
            ("--memory", memory),
            ("--processor-seconds", seconds),
        ];
        let mut command = Command::new(&self.program);
        command.arg0("skep").args(&self.arguments);
        for (option, value) in options {
            command.arg(option).arg(value.to_string());
        }
        command
            .env_clear()
            .env("RAYON_NUM_THREADS", THREADS.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        let child = command.spawn().map_err(|error| {
            CompileError::Local(format!("no process for the compiler: {error}"))
        })?;
        Ok(Running { child, ended: None })
    }
}

// SAFETY: the child is this program, and says that its engine is the same.
unsafe impl Compiler for ChildCompiler {
    fn compile(&self, engine: &Engine, component: &[u8]) -> Result<Vec<u8>, CompileError> {
        let begun = Stopwatch::start();
        let memory = self.memory(component.len());
        let mut child = self.spawn(memory)?;
        let (stdin, stdout, stderr) = child.pipes()?;
        let most = CODE_BYTES.saturating_add(CODE_PER_BYTE.saturating_mul(component.len() as u64));
        let fingerprint = engine.fingerprint();
        std::thread::scope(|scope| {
            let named = |name: &str| std::thread::Builder::new().name(name.to_owned());
            let no_thread = |error: io::Error| {
                CompileError::Local(format!("no thread for the compiler's pipes: {error}"))
            };
            let (said, answer) = mpsc::channel();
            // They end with the child, which does not outlive `child`; dropped before the scope waits for them.
            let mut child = child;
            named("skep-compile-in")
                .spawn_scoped(scope, move || {
                    let mut stdin = stdin;
                    // A child that takes no more has a reason, which it says elsewhere.
                    let _ = stdin.write_all(component);
                })
                .map_err(no_thread)?;
            let complaint = named("skep-compile-err")
                .spawn_scoped(scope, move || complaint(stderr))
                .map_err(no_thread)?;
            named("skep-compile-out")
                .spawn_scoped(scope, move || {
                    // Nobody waits any more if this cannot be sent.
                    let _ = said.send(read_answer(stdout, &fingerprint, most));
                })
                .map_err(no_thread)?;
            let answer = match answer.recv_timeout(self.allowance.time()) {
                Ok(answer) => answer,
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    child.kill();
                    return Err(CompileError::Late {
                        milliseconds: self.allowance.milliseconds,
                    });
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => Err(Unread::Nothing),
            };
            let ended = child.end();
            let complaint = complaint.join().unwrap_or_default();
            tracing::debug!(
                bytes = component.len(),
                milliseconds = begun.elapsed().as_millis(),
                "compiled"
            );
            self.weigh(memory, answer, ended, &complaint)
        })
    }

    fn allowance(&self) -> Allowance {
        self.allowance
    }
}

impl ChildCompiler {
    /// What a child's answer, its end and its complaints come to.
    fn weigh(
        &self,
        memory: u64,
        answer: Result<(Kind, Vec<u8>), Unread>,
        ended: io::Result<ExitStatus>,
        complaint: &str,
    ) -> Result<Vec<u8>, CompileError> {
        let memory = || CompileError::Memory { limit: memory };
        let failure = match answer {
            Ok((Kind::Code, code)) => return Ok(code),
            Ok((Kind::Invalid, why)) => {
                return Err(CompileError::Invalid(
                    String::from_utf8_lossy(&why).into_owned(),
                ));
            }
            Ok((Kind::Memory, _)) => return Err(memory()),
            Err(Unread::Engine) => {
                return Err(CompileError::Local(
                    "the compiler's engine is another than this node's; restart the node".into(),
                ));
            }
            Err(Unread::TooLong(bytes)) => {
                return Err(CompileError::Invalid(format!(
                    "it would become {bytes} bytes of machine code, far more than code of its size does"
                )));
            }
            Err(failure) => failure,
        };
        let ended = ended.map_err(|error| {
            CompileError::Local(format!("the compiler's end is not known: {error}"))
        })?;
        match ended.signal() {
            // Rust's own word for an allocation that failed, and how it ends then.
            Some(libc::SIGABRT) if complaint.contains("memory allocation of") => Err(memory()),
            Some(libc::SIGXCPU) => Err(CompileError::Late {
                milliseconds: self.allowance.milliseconds,
            }),
            Some(libc::SIGKILL | libc::SIGTERM | libc::SIGINT | libc::SIGHUP) => {
                Err(CompileError::Local(
                    "the compiler was killed; by the kernel, if the machine is short of memory"
                        .into(),
                ))
            }
            Some(signal) => Err(CompileError::Crashed(format!(
                "the compiler ended with signal {signal}: {complaint:?}"
            ))),
            None if ended.code() == Some(child::EXIT_LOCAL) => Err(CompileError::Local(format!(
                "the compiler could not begin: {complaint:?}"
            ))),
            None if is_refused_a_thread(ended, complaint) => Err(CompileError::Local(format!(
                "the compiler was refused a thread: {complaint:?}; raise the limit of processes of the node's user or unit"
            ))),
            None if ended.code() == Some(child::EXIT_PANIC) => Err(CompileError::Crashed(format!(
                "the compiler panicked: {complaint:?}"
            ))),
            None => Err(CompileError::Local(format!(
                "the compiler ended with {ended} and {failure}: {complaint:?}"
            ))),
        }
    }
}

/// Whether the compiler's threads could not be started, at which its pool panics.
fn is_refused_a_thread(ended: ExitStatus, complaint: &str) -> bool {
    ended.code() == Some(child::EXIT_PANIC) && complaint.contains("ThreadPoolBuildError")
}

/// A child that is never left behind.
struct Running {
    child: Child,
    ended: Option<ExitStatus>,
}

type Pipes = (
    std::process::ChildStdin,
    std::process::ChildStdout,
    std::process::ChildStderr,
);

impl Running {
    fn pipes(&mut self) -> Result<Pipes, CompileError> {
        let pipes = (
            self.child.stdin.take(),
            self.child.stdout.take(),
            self.child.stderr.take(),
        );
        match pipes {
            (Some(stdin), Some(stdout), Some(stderr)) => Ok((stdin, stdout, stderr)),
            _ => Err(CompileError::Local("the compiler has no pipes".into())),
        }
    }

    /// How it ended. One that goes on although it has said everything is killed.
    fn end(&mut self) -> io::Result<ExitStatus> {
        let since = Stopwatch::start();
        while self.ended.is_none() && since.elapsed() < ENDS_WITHIN {
            match self.child.try_wait()? {
                Some(status) => self.ended = Some(status),
                None => std::thread::sleep(LOOK_AGAIN),
            }
        }
        self.kill();
        self.ended
            .ok_or_else(|| io::Error::other("it could not be waited for"))
    }

    /// Kills it with all that it may have started, and waits for its end.
    fn kill(&mut self) {
        if self.ended.is_some() {
            return;
        }
        if let Ok(group) = libc::pid_t::try_from(self.child.id()) {
            // SAFETY: two plain numbers. The child leads its group and was not waited for, so the id is no other's.
            unsafe { libc::kill(-group, libc::SIGKILL) };
        }
        self.ended = self.child.wait().ok();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Why an answer was not read.
#[derive(Debug, thiserror::Error)]
enum Unread {
    #[error("no whole answer")]
    Nothing,
    #[error("an answer that is none")]
    Garbage,
    #[error("an answer of another engine")]
    Engine,
    #[error("an answer of {0} bytes")]
    TooLong(u64),
    #[error("an answer that could not be read ({0})")]
    Failed(io::Error),
}

impl From<io::Error> for Unread {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Nothing,
            _ => Self::Failed(error),
        }
    }
}

fn write_answer(
    to: &mut impl Write,
    fingerprint: &[u8; 32],
    kind: Kind,
    content: &[u8],
) -> io::Result<()> {
    to.write_all(MAGIC)?;
    to.write_all(fingerprint)?;
    to.write_all(&[kind as u8])?;
    to.write_all(&(content.len() as u64).to_le_bytes())?;
    to.write_all(content)?;
    to.flush()
}

/// Reads an answer of at most so many bytes.
fn read_answer(
    mut from: impl Read,
    fingerprint: &[u8; 32],
    most: u64,
) -> Result<(Kind, Vec<u8>), Unread> {
    let mut head = [0; HEAD_BYTES];
    from.read_exact(&mut head)?;
    let rest = head.strip_prefix(MAGIC).ok_or(Unread::Garbage)?;
    let (engine, rest) = rest.split_first_chunk::<32>().ok_or(Unread::Garbage)?;
    let (kind, length) = rest.split_first().ok_or(Unread::Garbage)?;
    let length = length.first_chunk().ok_or(Unread::Garbage)?;
    if engine != fingerprint {
        return Err(Unread::Engine);
    }
    let kind = [Kind::Code, Kind::Invalid, Kind::Memory]
        .into_iter()
        .find(|known| *known as u8 == *kind)
        .ok_or(Unread::Garbage)?;
    let length = u64::from_le_bytes(*length);
    if length > most {
        return Err(Unread::TooLong(length));
    }
    let mut content = vec![0; length as usize];
    from.read_exact(&mut content)?;
    Ok((kind, content))
}

/// The beginning of what a child complains of. The rest is read too, so that the child does not wait for it.
fn complaint(from: impl Read) -> String {
    let mut kept = Vec::new();
    let mut from = from;
    // A pipe that breaks has said all that it will.
    let _ = Read::by_ref(&mut from)
        .take(COMPLAINT_BYTES)
        .read_to_end(&mut kept);
    let _ = io::copy(&mut from, &mut io::sink());
    String::from_utf8_lossy(&kept).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const ALLOWED: Allowance = Allowance {
        memory_bytes: 1 << 30,
        milliseconds: 60_000,
    };

    /// A compiler whose child does what a shell script says.
    fn scripted(script: &str, allowance: Allowance) -> ChildCompiler {
        ChildCompiler {
            program: "/bin/sh".into(),
            arguments: ["-c", script, "sh"].map(Into::into).into(),
            allowance,
        }
    }

    fn compile(script: &str) -> Result<Vec<u8>, CompileError> {
        scripted(script, ALLOWED).compile(&Engine::new().unwrap(), skep_examples::KV)
    }

    fn answer_in(dir: &Path, fingerprint: &[u8; 32], kind: Kind, content: &[u8]) -> String {
        let mut answer = Vec::new();
        write_answer(&mut answer, fingerprint, kind, content).unwrap();
        let path = dir.join("answer");
        std::fs::write(&path, answer).unwrap();
        format!("cat > /dev/null; cat {}", path.display())
    }

    #[test]
    fn what_a_child_answers_is_the_code_although_it_complains_at_length() {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::new().unwrap();
        let code = InProcess.compile(&engine, skep_examples::KV).unwrap();
        let answer = answer_in(dir.path(), &engine.fingerprint(), Kind::Code, &code);
        let script = format!("head -c 1000000 /dev/zero >&2; {answer}");
        assert!(compile(&script).unwrap() == code);
        // One that goes on although it has said everything is not waited for.
        let script = format!("{answer}; exec 1>&-; sleep 1000");
        assert!(compile(&script).unwrap() == code);
    }

    #[test]
    fn a_child_of_another_engine_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let script = answer_in(dir.path(), &[7; 32], Kind::Code, b"code");
        let refused = compile(&script).unwrap_err();
        assert!(
            matches!(&refused, CompileError::Local(why) if why.contains("engine")),
            "{refused}"
        );
    }

    #[test]
    fn a_child_that_is_late_is_killed_with_all_that_it_started() {
        let dir = tempfile::tempdir().unwrap();
        let pids = dir.path().join("pids");
        let script = format!(
            "sleep 1000 & echo $! $$ > {0}.new; mv {0}.new {0}; wait",
            pids.display()
        );
        let allowance = Allowance {
            milliseconds: 5000,
            ..ALLOWED
        };
        let compiler = scripted(&script, allowance);
        let refused = compiler
            .compile(&Engine::new().unwrap(), skep_examples::KV)
            .unwrap_err();
        assert_eq!(refused, CompileError::Late { milliseconds: 5000 });
        let pids = std::fs::read_to_string(&pids).unwrap();
        for pid in pids.split_whitespace() {
            let gone = || match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
                Err(_) => true,
                // Whoever inherits it has not waited for it yet.
                Ok(stat) => stat
                    .rsplit(") ")
                    .next()
                    .is_some_and(|rest| rest.starts_with('Z')),
            };
            let watch = Stopwatch::start();
            while !gone() {
                assert!(watch.elapsed() < Duration::from_secs(30), "{pid} lives on");
                std::thread::yield_now();
            }
        }
    }

    #[test]
    fn how_a_child_ends_says_whose_fault_it_is() {
        let kinds = |script: &str| match compile(script).unwrap_err() {
            CompileError::Invalid(_) => "invalid",
            CompileError::Memory { .. } => "memory",
            CompileError::Late { .. } => "late",
            CompileError::Crashed(_) => "crashed",
            CompileError::Local(_) => "local",
        };
        let dir = tempfile::tempdir().unwrap();
        let fingerprint = Engine::new().unwrap().fingerprint();
        let memory = answer_in(dir.path(), &fingerprint, Kind::Memory, b"");
        assert_eq!(kinds(&memory), "memory");
        let invalid = answer_in(dir.path(), &fingerprint, Kind::Invalid, b"a word");
        assert_eq!(kinds(&invalid), "invalid");
        let long = CODE_BYTES + CODE_PER_BYTE * skep_examples::KV.len() as u64 + 1;
        let head = [&MAGIC[..], &fingerprint, &[0], &long.to_le_bytes()].concat();
        std::fs::write(dir.path().join("answer"), head).unwrap();
        assert_eq!(kinds(&invalid), "invalid");
        for (script, kind) in [
            (
                "echo memory allocation of 8 bytes failed >&2; kill -ABRT $$",
                "memory",
            ),
            ("kill -ABRT $$", "crashed"),
            ("kill -SEGV $$", "crashed"),
            ("kill -XCPU $$", "late"),
            ("kill -KILL $$", "local"),
            ("exit 101", "crashed"),
            ("echo ThreadPoolBuildError >&2; exit 101", "local"),
            ("exit 3", "local"),
            ("true", "local"),
            ("exec 0<&-; head -c 100000 /dev/zero", "local"),
            ("head -c 20 /dev/zero", "local"),
        ] {
            assert_eq!(kinds(script), kind, "{script}");
        }
        let nowhere = ChildCompiler {
            program: dir.path().join("nothing"),
            arguments: Vec::new(),
            allowance: ALLOWED,
        };
        let failed = nowhere.compile(&Engine::new().unwrap(), b"").unwrap_err();
        assert!(matches!(failed, CompileError::Local(_)), "{failed}");
    }

    #[test]
    fn small_components_may_take_less_and_large_ones_what_is_allowed() {
        let compiler = ChildCompiler::new(ALLOWED);
        assert_eq!(compiler.memory(0), 128 << 20);
        assert_eq!(compiler.memory(1 << 20), (128 + 64) << 20);
        assert_eq!(compiler.memory(64 << 20), 1 << 30);
    }
}
