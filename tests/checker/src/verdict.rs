//! What a search for an order came to.

use std::fmt;

/// How much a search may cost.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Steps of the model for one key. A search remembers at most one state for each, so this bounds its memory, too.
    pub steps: u64,
}

impl Default for Limits {
    /// Some seconds and some hundred megabytes at worst, and a thousand times what a history without much overlap needs.
    fn default() -> Self {
        Self { steps: 5_000_000 }
    }
}

/// What a search came to.
#[derive(Clone, PartialEq, Eq, Debug)]
#[must_use]
pub enum Verdict {
    /// There is an order that explains every answer.
    Linearizable {
        /// How many answered operations were placed.
        operations: usize,
        /// How many steps of the model that took.
        steps: u64,
    },
    /// There is none.
    NotLinearizable(Box<Counterexample>),
    /// The search was given up. Other keys may or may not have been judged; none that was is at fault.
    Undecided {
        /// The key that was too much.
        key: String,
        /// How many operations it has.
        operations: usize,
        /// The limit that was reached.
        steps: u64,
    },
}

impl Verdict {
    /// Whether there is an order.
    pub fn is_linearizable(&self) -> bool {
        matches!(self, Self::Linearizable { .. })
    }
}

/// Why a key's history has no order: whatever order is tried, no search gets past the return of one operation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Counterexample {
    /// The key.
    pub key: String,
    /// The operations of one of the best orders found, by id. Everything that returned before `stuck` did is in it.
    pub order: Vec<u64>,
    /// The last operations of that order.
    pub last: Vec<String>,
    /// The state that they lead to.
    pub state: String,
    /// The first operation, by the time of its return, that cannot be placed.
    pub stuck: u64,
    /// The same, to be read.
    pub stuck_operation: String,
    /// Operations in flight when it returned that are not in the order either, and unknown ones called before.
    pub unplaced: Vec<String>,
}

/// How many operations a counterexample shows of each list: what explains a failure is near its end.
pub const SHOWN: usize = 12;

impl fmt::Display for Counterexample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "key {} is not linearizable. After", self.key)?;
        if self.order.len() > self.last.len() {
            writeln!(f, "    … {} others", self.order.len() - self.last.len())?;
        }
        for operation in &self.last {
            writeln!(f, "    {operation}")?;
        }
        writeln!(
            f,
            "  the state is {}, and this cannot be placed:",
            self.state
        )?;
        write!(f, "    {}", self.stuck_operation)?;
        if !self.unplaced.is_empty() {
            write!(
                f,
                "\n  nor can it with any of these, which are not placed yet:"
            )?;
        }
        for operation in self.unplaced.iter().take(SHOWN) {
            write!(f, "\n    {operation}")?;
        }
        if self.unplaced.len() > SHOWN {
            write!(f, "\n    … {} others", self.unplaced.len() - SHOWN)?;
        }
        Ok(())
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Linearizable { operations, steps } => {
                write!(f, "linearizable: {operations} operations, {steps} steps")
            }
            Self::NotLinearizable(why) => why.fmt(f),
            Self::Undecided {
                key,
                operations,
                steps,
            } => write!(
                f,
                "undecided: the {operations} operations of key {key} took more than {steps} steps; raise the limit, or \
                 let fewer clients use the key at once"
            ),
        }
    }
}
