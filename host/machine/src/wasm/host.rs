//! What the host keeps beside one instance: its limits, its virtual time and randomness, its log lines, and the ends
//! of the snapshot that is being moved.

use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use bytes::Bytes;
use skep_core::outcome::{EntryContext, GuestFault};
use wasmtime::{StoreContextMut, Trap};

use super::ending::Ending;
use super::fault::Stop;
use super::limits::{Limits, Profile};
use super::logbook::Logbook;
use super::random::{CallKey, Random};
use super::wasi::io::Pollables;
use crate::LocalCode;

/// Fuel of one call of an import, so that a guest cannot make the host work for nothing.
const FUEL_PER_IMPORT: u64 = 100;

/// Bytes the host moves or prints for one unit of fuel.
const BYTES_PER_FUEL: u64 = 4;

/// The longest log line, in bytes; the rest of it is dropped.
const MAX_LINE_BYTES: usize = 1024;

/// Bytes of a snapshot that are handed to its writer together, at least.
const CHUNK_WORTH_SENDING: usize = 64 << 10;

/// A virtual time that no pollable waits for: the year 2262. A guest that would have to wait longer would wait for ever.
pub(super) const END_OF_TIME: u64 = u64::MAX / 2;

pub(super) type Guest<'a> = StoreContextMut<'a, Host>;

/// The data of a guest's store.
#[derive(Debug)]
pub(super) struct Host {
    ending: Arc<Ending>,
    pub(super) limits: Limits,
    pub(super) clock: Clock,
    pub(super) random: Random,
    pub(super) seed: (u64, u64),
    pub(super) log: Log,
    pub(super) pollables: Pollables,
    pub(super) sink: Option<Sink>,
    pub(super) source: Option<Bytes>,
}

impl Host {
    /// A host for an instance that starts at `context`.
    pub(super) fn new(
        limits: Limits,
        profile: &Profile,
        context: &EntryContext,
        logbook: Arc<Logbook>,
        ending: Arc<Ending>,
    ) -> Self {
        let key = CallKey::new(context, "instantiate", 0);
        let mut clock = Clock::default();
        clock.enter(context.now);
        Self {
            ending,
            limits,
            clock,
            random: Random::new(key),
            seed: key.seed(),
            log: Log::new(logbook, profile.log_bytes as usize),
            pollables: Pollables::default(),
            sink: None,
            source: None,
        }
    }

    /// Before each call into the guest.
    pub(super) fn enter(&mut self, context: &EntryContext, call: &'static str, ordinal: u32) {
        self.limits.enter();
        self.clock.enter(context.now);
        self.random = Random::new(CallKey::new(context, call, ordinal));
    }

    /// After each call, however it ended.
    pub(super) fn leave(&mut self) {
        self.log.finish();
        self.sink = None;
        self.source = None;
    }
}

/// Takes the fuel of one import that moves `bytes`.
pub(super) fn charge(guest: &mut Guest<'_>, bytes: u64) -> wasmtime::Result<()> {
    spend(guest, bytes / BYTES_PER_FUEL)
}

/// Takes the fuel of one import, and as much more as what it does is worth.
pub(super) fn spend(guest: &mut Guest<'_>, more: u64) -> wasmtime::Result<()> {
    guest.data().ending.look()?;
    let cost = FUEL_PER_IMPORT.saturating_add(more);
    match guest.get_fuel()?.checked_sub(cost) {
        Some(left) => guest.set_fuel(left),
        None => {
            guest.set_fuel(0)?;
            Err(Trap::OutOfFuel.into())
        }
    }
}

/// The guest's clock: the stamp of the entry being applied, a nanosecond more at each reading, and never back. It does
/// not start at 0, where some runtimes refuse to start.
#[derive(Debug, Default)]
pub(super) struct Clock {
    now: u64,
}

impl Clock {
    fn enter(&mut self, stamp: u64) {
        self.now = self.now.max(stamp).max(1);
    }

    pub(super) fn read(&mut self) -> u64 {
        self.now = self.now.saturating_add(1);
        self.now
    }

    pub(super) fn peek(&self) -> u64 {
        self.now
    }

    /// Sleeps: time passes at once.
    pub(super) fn advance_to(&mut self, instant: u64) -> Result<(), Stop> {
        if instant > END_OF_TIME {
            return Err(Stop::Fault(GuestFault::ForbiddenImport));
        }
        self.now = self.now.max(instant);
        Ok(())
    }
}

/// Where `save` writes: to the thread that holds the writer, in chunks that are worth waking it for. A guest may write byte
/// by byte, and pays for that less than handing each over would cost.
#[derive(Debug)]
pub(super) struct Sink {
    chunks: SyncSender<Vec<u8>>,
    pending: Vec<u8>,
    left: u64,
}

impl Sink {
    pub(super) fn new(chunks: SyncSender<Vec<u8>>, limit: u64) -> Self {
        Self {
            chunks,
            pending: Vec::new(),
            left: limit,
        }
    }

    pub(super) fn write(&mut self, chunk: Vec<u8>) -> Result<(), Stop> {
        self.left = self
            .left
            .checked_sub(chunk.len() as u64)
            .ok_or(Stop::Fault(GuestFault::Limit))?;
        if self.pending.is_empty() && chunk.len() >= CHUNK_WORTH_SENDING {
            return self.send(chunk);
        }
        self.pending.extend_from_slice(&chunk);
        if self.pending.len() < CHUNK_WORTH_SENDING {
            return Ok(());
        }
        let full = std::mem::take(&mut self.pending);
        self.send(full)
    }

    fn send(&self, chunk: Vec<u8>) -> Result<(), Stop> {
        self.chunks.send(chunk).map_err(|_| Stop::Local {
            code: LocalCode::Io,
            reason: "the snapshot's writer failed".into(),
        })
    }
}

/// The rest follows when the call of `save` is over.
impl Drop for Sink {
    fn drop(&mut self) {
        let rest = std::mem::take(&mut self.pending);
        if !rest.is_empty() {
            // If nobody receives it the writer has failed, which its own end reports.
            let _ = self.send(rest);
        }
    }
}

/// A level of the guest's own choice. Whether it is enabled is never told to the guest: the answer differs by node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Severity {
    Trace,
    Debug,
    Info,
    Warn,
    Error,
}

impl Severity {
    fn is_enabled(self) -> bool {
        use tracing::{Level, enabled};
        match self {
            Self::Trace => enabled!(target: "skep::guest", Level::TRACE),
            Self::Debug => enabled!(target: "skep::guest", Level::DEBUG),
            Self::Info => enabled!(target: "skep::guest", Level::INFO),
            Self::Warn => enabled!(target: "skep::guest", Level::WARN),
            Self::Error => enabled!(target: "skep::guest", Level::ERROR),
        }
    }
}

/// The guest's log lines, on their way to tracing. Nothing of them comes back to the guest.
#[derive(Debug)]
pub(super) struct Log {
    logbook: Arc<Logbook>,
    /// Replayed calls have logged before.
    muted: bool,
    limit: usize,
    left: usize,
    dropped: bool,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl Log {
    fn new(logbook: Arc<Logbook>, limit: usize) -> Self {
        Self {
            logbook,
            muted: false,
            limit,
            left: limit,
            dropped: false,
            stdout: Vec::new(),
            stderr: Vec::new(),
        }
    }

    pub(super) fn mute(&mut self, muted: bool) {
        self.muted = muted;
    }

    /// One line; longer ones and lines over the call's allowance are cut.
    pub(super) fn line(&mut self, severity: Severity, line: &[u8]) {
        if self.muted || line.is_empty() {
            return;
        }
        let len = line.len().min(MAX_LINE_BYTES);
        if len > self.left {
            self.dropped = true;
            return;
        }
        self.left -= len;
        self.emit(severity, &printable(&line[..len]));
    }

    /// Bytes of standard output; each line of them is a log line.
    pub(super) fn stdout(&mut self, bytes: &[u8]) {
        let mut pending = std::mem::take(&mut self.stdout);
        self.stream(Severity::Info, &mut pending, bytes);
        self.stdout = pending;
    }

    /// Bytes of standard error.
    pub(super) fn stderr(&mut self, bytes: &[u8]) {
        let mut pending = std::mem::take(&mut self.stderr);
        self.stream(Severity::Error, &mut pending, bytes);
        self.stderr = pending;
    }

    fn stream(&mut self, severity: Severity, pending: &mut Vec<u8>, bytes: &[u8]) {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            let line = part.strip_suffix(b"\n").unwrap_or(part);
            let room = MAX_LINE_BYTES.saturating_sub(pending.len());
            pending.extend_from_slice(&line[..line.len().min(room)]);
            if line.len() < part.len() {
                self.line(severity, pending);
                pending.clear();
            }
        }
    }

    /// The end of a call: unfinished lines are lines.
    fn finish(&mut self) {
        let (stdout, stderr) = (
            std::mem::take(&mut self.stdout),
            std::mem::take(&mut self.stderr),
        );
        self.line(Severity::Info, &stdout);
        self.line(Severity::Error, &stderr);
        if self.dropped {
            self.emit(
                Severity::Warn,
                "(more lines of this call were dropped: over the machine's log limit)",
            );
        }
        self.left = self.limit;
        self.dropped = false;
    }

    fn emit(&self, severity: Severity, line: &str) {
        // What nobody sees takes nothing from what somebody does.
        if !severity.is_enabled() || !self.logbook.admits_line() {
            return;
        }
        let (group, machine) = (self.logbook.label.group, &self.logbook.label.name);
        match severity {
            Severity::Trace => tracing::trace!(target: "skep::guest", %group, %machine, "{line}"),
            Severity::Debug => tracing::debug!(target: "skep::guest", %group, %machine, "{line}"),
            Severity::Info => tracing::info!(target: "skep::guest", %group, %machine, "{line}"),
            Severity::Warn => tracing::warn!(target: "skep::guest", %group, %machine, "{line}"),
            Severity::Error => tracing::error!(target: "skep::guest", %group, %machine, "{line}"),
        }
    }
}

/// Text of a guest, fit for a log line.
fn printable(line: &[u8]) -> String {
    skep_core::printable::printable(&String::from_utf8_lossy(line)).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_cannot_move_the_terminal() {
        assert_eq!(
            printable(b"a\x1b[2Jb\r\nc\xff\t"),
            "a\\u{1b}[2Jb\\r\\nc\u{fffd}\\t"
        );
        assert_eq!(printable("x\u{202e}y é".as_bytes()), "x\\u{202e}y é");
    }

    #[test]
    fn time_never_goes_back_and_never_starts_at_zero() {
        let mut clock = Clock::default();
        clock.enter(0);
        assert_eq!(clock.read(), 2);
        clock.enter(100);
        assert_eq!((clock.read(), clock.read()), (101, 102));
        clock.advance_to(500).unwrap();
        clock.enter(200);
        assert_eq!(clock.read(), 501);
        assert!(clock.advance_to(u64::MAX).is_err());
        clock.enter(u64::MAX);
        assert_eq!(clock.read(), u64::MAX);
    }

    #[test]
    fn log_lines_are_bounded_in_a_call() {
        let mut log = Log::new(Arc::new(Logbook::new(Default::default(), 5)), 10);
        log.line(Severity::Info, b"12345678");
        log.line(Severity::Info, b"12345678");
        assert!(log.dropped);
        assert_eq!(log.left, 2);
        log.stdout(&[b'x'; 10_000]);
        assert_eq!(log.stdout.len(), MAX_LINE_BYTES);
        log.finish();
        assert_eq!((log.left, log.dropped, log.stdout.len()), (10, false, 0));
    }
}
