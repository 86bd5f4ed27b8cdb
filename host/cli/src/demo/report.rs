//! What the demonstration says: lines on stdout, progress on a terminal's stderr.

use std::sync::Mutex;
use std::time::Duration;

use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use skep_types::shared::lock;

/// A bar while something long goes on; nothing where stderr is no terminal.
pub struct Progress {
    bar: Mutex<Option<ProgressBar>>,
}

impl Progress {
    pub fn new() -> Self {
        Self {
            bar: Mutex::new(None),
        }
    }

    /// Prints a line, above the bar if there is one.
    pub fn say(&self, line: impl AsRef<str>) {
        let print = || println!("{}", line.as_ref());
        match &*lock(&self.bar) {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }

    /// Begins a bar.
    pub fn begin(&self, what: &'static str, total: usize) {
        let bar = ProgressBar::with_draw_target(
            Some(total as u64),
            ProgressDrawTarget::stderr_with_hz(10),
        );
        if let Ok(style) =
            ProgressStyle::with_template("{msg:12} {wide_bar} {pos}/{len} {per_sec} {eta}")
        {
            bar.set_style(style);
        }
        bar.set_message(what);
        *lock(&self.bar) = Some(bar);
    }

    /// How far it is.
    pub fn at(&self, position: usize) {
        if let Some(bar) = &*lock(&self.bar) {
            bar.set_position(position as u64);
        }
    }

    /// Ends the bar.
    pub fn end(&self) {
        if let Some(bar) = lock(&self.bar).take() {
            bar.finish_and_clear();
        }
    }
}

/// Millions.
pub fn mega(bytes: usize) -> f64 {
    bytes as f64 / 1e6
}

/// Microseconds, at least one.
pub fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros())
        .unwrap_or(u64::MAX)
        .max(1)
}

/// The usual quantiles, in milliseconds.
pub fn latencies(of: &Histogram<u64>) -> String {
    let at = |quantile: f64| of.value_at_quantile(quantile) as f64 / 1e3;
    format!(
        "p50 {:.1} ms, p99 {:.1} ms, p99.9 {:.1} ms, longest {:.1} ms",
        at(0.5),
        at(0.99),
        at(0.999),
        of.max() as f64 / 1e3
    )
}
