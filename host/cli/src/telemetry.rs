//! Log lines, on stderr.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::panic::PanicHookInfo;
use std::time::Duration;

use skep_server::log_lines::LogLines;
use tracing_subscriber::EnvFilter;

/// The variable that filters log lines, as in `SKEP_LOG=skep=debug,warn`.
pub const FILTER: &str = "SKEP_LOG";

/// How long the last lines may take to be written when the process ends.
const LAST_LINES: Duration = Duration::from_secs(1);

/// Log lines of this process.
pub struct Telemetry {
    /// Where they go.
    pub lines: LogLines,
    /// What is shown where neither the environment nor a configuration says so.
    default: &'static str,
    refilter: Box<dyn Fn(EnvFilter) -> Result<(), String> + Send + Sync>,
}

impl Telemetry {
    /// Sends log lines to stderr: warnings by default, more with each `-v`. A node says more of itself than the other verbs.
    ///
    /// # Errors
    /// If the system gives no thread or no descriptor.
    pub fn start(verbose: u8, is_node: bool) -> io::Result<Self> {
        let default = match verbose + u8::from(is_node) {
            0 => "warn",
            1 => "info",
            2 => "skep=debug,info",
            _ => "trace",
        };
        let filter = EnvFilter::try_from_env(FILTER).unwrap_or_else(|_| EnvFilter::new(default));
        // A descriptor of its own: `io::stderr` has a lock, which a line that waits would hold against everybody.
        let stderr = File::from(io::stderr().as_fd().try_clone_to_owned()?);
        let coloured = stderr.is_terminal() && std::env::var_os("NO_COLOR").is_none();
        let lines = LogLines::start(stderr, coloured)?;
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(move || writer.clone())
            // It would say so on stderr, and panic if that fails.
            .log_internal_errors(false)
            .with_ansi(coloured)
            .with_filter_reloading();
        let handle = subscriber.reload_handle();
        subscriber.init();
        if is_node {
            std::panic::set_hook(Box::new(log_panic));
        }
        Ok(Self {
            lines,
            default,
            refilter: Box::new(move |filter| {
                handle.reload(filter).map_err(|error| error.to_string())
            }),
        })
    }

    /// Shows what the filter of a configuration says, or the default if it says nothing. Whether it counts: the environment
    /// beats it.
    ///
    /// # Errors
    /// What is wrong with the filter.
    pub fn filter(&self, configured: Option<&str>) -> Result<bool, String> {
        if std::env::var_os(FILTER).is_some_and(|filter| !filter.is_empty()) {
            return Ok(false);
        }
        let filter = EnvFilter::try_new(configured.unwrap_or(self.default))
            .map_err(|error| error.to_string())?;
        (self.refilter)(filter)?;
        Ok(true)
    }

    /// Waits a little until the lines so far are written.
    pub fn flush(&self) {
        self.lines.flush(LAST_LINES);
    }

    /// Says something behind the lines so far, as they are said: a node must not stay because nobody reads.
    pub fn say(&self, text: &str) {
        for line in text.lines() {
            // It never fails.
            let _ = self.lines.clone().write_all(line.as_bytes());
        }
    }
}

/// Whatever ends the process, its last lines are written.
impl Drop for Telemetry {
    fn drop(&mut self) {
        self.flush();
    }
}

/// A panic is a line like any other: the usual hook writes to stderr itself, and waits where nobody reads.
fn log_panic(panic: &PanicHookInfo<'_>) {
    let thread = std::thread::current();
    let place = panic
        .location()
        .map_or_else(String::new, ToString::to_string);
    let text = panic.payload_as_str().unwrap_or("(no text)");
    tracing::error!(
        target: "skep::panic",
        thread = thread.name().unwrap_or("(no name)"),
        place,
        "{text}"
    );
}

/// As `eprintln!`, but nothing depends on who reads: it may be gone.
macro_rules! say {
    ($($words:tt)*) => {
        $crate::telemetry::say(&format!("{}\n", format_args!($($words)*)))
    };
}

/// Says something on stderr, beside the log. Who reads may be gone; nothing depends on it.
pub fn say(text: &str) {
    // There is nowhere left to say that it failed.
    let _ = io::stderr().write_all(text.as_bytes());
}
