//! What happened, as one number that two equal runs share, and on demand as lines for people.

use std::collections::VecDeque;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};

/// A whole simulation in one number, and its last lines.
#[derive(Debug, Default)]
pub struct Trace {
    hasher: DefaultHasher,
    events: u64,
    /// How many lines are kept; 0 keeps none, and then none is made.
    keep: usize,
    lines: VecDeque<String>,
}

impl Trace {
    /// A trace that keeps its last `keep` lines.
    pub fn new(keep: usize) -> Self {
        Self {
            keep,
            ..Self::default()
        }
    }

    /// Adds an event to the number.
    pub fn hash(&mut self, event: impl Hash) {
        self.events += 1;
        event.hash(&mut self.hasher);
    }

    /// Adds a line, if lines are kept.
    pub fn line(&mut self, now: u64, text: impl FnOnce() -> String) {
        if self.keep == 0 {
            return;
        }
        if self.lines.len() == self.keep {
            self.lines.pop_front();
        }
        let (seconds, micros) = (now / 1_000_000, now % 1_000_000);
        self.lines
            .push_back(format!("{seconds:6}.{micros:06} {}", text()));
    }

    /// The number.
    pub fn digest(&self) -> u64 {
        self.hasher.finish()
    }

    /// Events in the number.
    pub fn events(&self) -> u64 {
        self.events
    }

    /// The lines kept.
    pub fn lines(&self) -> impl Iterator<Item = &str> {
        self.lines.iter().map(String::as_str)
    }
}

/// A digest of bytes and numbers, equal in every run.
pub fn digest(parts: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    parts.hash(&mut hasher);
    hasher.finish()
}

/// Writes a list in brackets.
pub fn list<T: fmt::Display>(items: impl IntoIterator<Item = T>) -> String {
    let items: Vec<_> = items.into_iter().map(|item| item.to_string()).collect();
    format!("[{}]", items.join(" "))
}
