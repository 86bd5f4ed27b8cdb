//! The log lines of one instance, on their way to tracing.

use std::sync::Arc;

use super::logbook::Logbook;

/// The longest log line, in bytes; the rest of it is dropped.
const MAX_LINE_BYTES: usize = 1024;

/// A level of the guest's own choice. Whether it is enabled is never told to the guest: the answer differs by node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Severity {
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
pub(crate) struct Log {
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
    pub(super) fn new(logbook: Arc<Logbook>, limit: usize) -> Self {
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

    pub(crate) fn mute(&mut self, muted: bool) {
        self.muted = muted;
    }

    /// One line; longer ones and lines over the call's allowance are cut.
    pub(crate) fn line(&mut self, severity: Severity, line: &[u8]) {
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
    pub(crate) fn stdout(&mut self, bytes: &[u8]) {
        let mut pending = std::mem::take(&mut self.stdout);
        self.stream(Severity::Info, &mut pending, bytes);
        self.stdout = pending;
    }

    /// Bytes of standard error.
    pub(crate) fn stderr(&mut self, bytes: &[u8]) {
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
    pub(super) fn finish(&mut self) {
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
