//! Where log lines go: through a bounded queue to a thread that writes them, so that who logs never waits.
//!
//! Whoever reads the lines may hang, its disk may be full, it may be gone. Then lines are dropped and counted, and the
//! node works. A line is one line, whatever a stranger wrote into it.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use skep_core::printable::printable;
use skep_types::shared::{lock, wait_while};

/// Bytes of lines that wait to be written, and are being written.
const QUEUE_BYTES: usize = 4 << 20;
/// Bytes of one line; the rest of a longer one is cut off.
const LINE_BYTES: usize = 64 << 10;
/// Pause when the reader takes nothing just now and writing does not block.
const FULL_PAUSE: Duration = Duration::from_millis(20);

/// A sink of log lines; clones are the same. One write is one line.
#[derive(Clone)]
pub struct LogLines {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    /// There is something to write.
    work: Condvar,
    /// Everything is written.
    idle: Condvar,
    dropped: AtomicU64,
    /// Lines may have colours: what makes the lines spells out those of strangers.
    coloured: bool,
}

#[derive(Default)]
struct State {
    lines: Vec<Vec<u8>>,
    /// Bytes that wait or are being written.
    bytes: usize,
}

impl LogLines {
    /// Starts the thread that writes to the sink.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn start(sink: impl Write + Send + 'static, coloured: bool) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            work: Condvar::new(),
            idle: Condvar::new(),
            dropped: AtomicU64::new(0),
            coloured,
        });
        let writer = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("skep-log-lines".into())
            .spawn(move || writer.run(sink))?;
        Ok(Self { shared })
    }

    /// Lines that were dropped, because nobody took them or they could not be written.
    pub fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }

    /// Waits until all lines so far are written or dropped, at most `limit`; whether they are.
    pub fn flush(&self, limit: Duration) -> bool {
        let waits = |state: &mut State| state.bytes > 0;
        let (_state, waited) = self
            .shared
            .idle
            .wait_timeout_while(lock(&self.shared.state), limit, waits)
            .unwrap_or_else(PoisonError::into_inner);
        !waited.timed_out()
    }
}

/// Takes one line; never waits and never fails.
impl Write for LogLines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.shared.put(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Shared {
    fn put(&self, line: &[u8]) {
        let line = one_line(line, self.coloured);
        let mut state = lock(&self.state);
        if state.bytes + line.len() > QUEUE_BYTES {
            self.drop_lines(1);
            return;
        }
        state.bytes += line.len();
        state.lines.push(line);
        self.work.notify_one();
    }

    fn run(&self, mut sink: impl Write) {
        let mut told = 0;
        loop {
            let is_idle = |state: &State| state.lines.is_empty();
            let mut state = wait_while(&self.work, lock(&self.state), is_idle);
            let lines = std::mem::take(&mut state.lines);
            drop(state);
            let mut written = false;
            for line in lines {
                match write(&mut sink, &line) {
                    Ok(()) => written = true,
                    Err(_) => self.drop_lines(1),
                }
                let mut state = lock(&self.state);
                state.bytes -= line.len();
                if state.bytes == 0 {
                    self.idle.notify_all();
                }
            }
            let dropped = self.dropped.load(Ordering::Relaxed);
            if written && dropped > told {
                // It is a line like any other, and may be lost like any other.
                tracing::warn!(
                    lines = dropped - told,
                    "log lines were dropped: nobody took them in time, or they could not be written"
                );
                told = dropped;
            }
        }
    }

    fn drop_lines(&self, lines: u64) {
        self.dropped.fetch_add(lines, Ordering::Relaxed);
    }
}

/// Writes a line in as many steps as it takes. The sink may not block although nobody reads: it is shared with others, and
/// one of them may have said so.
fn write(sink: &mut impl Write, mut line: &[u8]) -> io::Result<()> {
    while !line.is_empty() {
        match sink.write(line) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => line = &line[written..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                std::thread::sleep(FULL_PAUSE)
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// What was written as one line, as one line.
fn one_line(bytes: &[u8], coloured: bool) -> Vec<u8> {
    let line = String::from_utf8_lossy(bytes.strip_suffix(b"\n").unwrap_or(bytes));
    let mut end = line.len().min(LINE_BYTES);
    while !line.is_char_boundary(end) {
        end -= 1;
    }
    let (line, cut) = (&line[..end], end < line.len());
    let mut shown = match coloured {
        // Between the colours.
        true => line
            .split('\u{1b}')
            .map(printable)
            .collect::<Vec<_>>()
            .join("\u{1b}"),
        false => printable(line).into_owned(),
    };
    shown.push_str(if cut { "…\n" } else { "\n" });
    shown.into_bytes()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);

    /// Writes when it is let.
    struct Gate {
        pass: Receiver<io::Result<()>>,
        written: Sender<Vec<u8>>,
    }

    impl Write for Gate {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            match self.pass.recv() {
                Ok(result) => result?,
                Err(_) => return Err(io::ErrorKind::BrokenPipe.into()),
            }
            // The test may have seen enough.
            let _ = self.written.send(bytes.to_vec());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn gated() -> (LogLines, Sender<io::Result<()>>, Receiver<Vec<u8>>) {
        let (let_pass, pass) = channel();
        let (written, lines) = channel();
        let sink = LogLines::start(Gate { pass, written }, false).expect("a thread");
        (sink, let_pass, lines)
    }

    #[test]
    fn who_logs_never_waits_and_what_is_too_much_is_counted() {
        let (mut sink, let_pass, lines) = gated();
        let line = vec![b'x'; 60 << 10];
        for _ in 0..100 {
            sink.write_all(&line).expect("a line is never refused");
        }
        let dropped = sink.dropped();
        assert!(
            (30..40).contains(&dropped),
            "{dropped} of 100 lines of 60 KiB"
        );
        assert!(!sink.flush(Duration::from_millis(1)));
        for _ in 0..100 - dropped {
            let_pass.send(Ok(())).expect("the thread runs");
            lines.recv_timeout(LIMIT).expect("a line");
        }
        assert!(sink.flush(LIMIT));
        assert_eq!(sink.dropped(), dropped);
    }

    #[test]
    fn a_line_that_cannot_be_written_is_counted_and_the_next_is_tried() {
        let (mut sink, let_pass, lines) = gated();
        sink.write_all(b"one\n").expect("never refused");
        let_pass
            .send(Err(io::ErrorKind::StorageFull.into()))
            .expect("the thread runs");
        assert!(sink.flush(LIMIT));
        assert_eq!(sink.dropped(), 1);
        sink.write_all(b"two\n").expect("never refused");
        for _ in 0..2 {
            let_pass
                .send(Err(io::ErrorKind::WouldBlock.into()))
                .expect("the thread runs");
        }
        let_pass.send(Ok(())).expect("the thread runs");
        assert_eq!(lines.recv_timeout(LIMIT).expect("a line"), b"two\n");
        drop(let_pass);
        sink.write_all(b"three\n").expect("never refused");
        assert!(sink.flush(LIMIT));
        assert_eq!(sink.dropped(), 2);
    }

    #[test]
    fn a_line_is_one_line() {
        assert_eq!(
            one_line(b"a\nERROR b\x1b[2J\n", false),
            b"a\\nERROR b\\u{1b}[2J\n"
        );
        assert_eq!(
            one_line(b"\x1b[31ma\nb\x1b[0m\n", true),
            b"\x1b[31ma\\nb\x1b[0m\n"
        );
        let long = one_line(&vec![b'x'; LINE_BYTES + 1], false);
        assert!(long.ends_with("x…\n".as_bytes()) && long.len() < LINE_BYTES + 10);
    }
}
