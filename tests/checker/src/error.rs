//! The one error type of the crate. A history that is not linearizable is no error but a verdict.

use std::io;

/// Why a history could not be read or judged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckerError {
    /// A file operation failed.
    #[error("cannot read or write the history: {0}")]
    Io(#[from] io::Error),
    /// A line of a history file is not one of its format.
    #[error("line {line} of the history is malformed: {reason}")]
    Line {
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// A request that the model does not know. Do not record it, or send one that the model knows.
    #[error("operation {id} asks what the model does not know: {reason}")]
    Request {
        /// The operation.
        id: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// The machine never answers so, in whatever state: this is a defect of the machine or of what is between it and
    /// the client.
    #[error("operation {id} got an answer that no state explains: {reason}")]
    Reply {
        /// The operation.
        id: u64,
        /// The answer and what was expected.
        reason: String,
    },
    /// Time ran backwards.
    #[error(
        "operation {id} returned at {ret}, before it was called at {call}; the clock of the test is not monotonic"
    )]
    Interval {
        /// The operation.
        id: u64,
        /// When it was called.
        call: u64,
        /// When it returned.
        ret: u64,
    },
    /// The answer did not say where in the log.
    #[error(
        "operation {id} was answered without a log index, and the check by index needs one of every answer"
    )]
    Unplaced {
        /// The operation.
        id: u64,
    },
    /// A history too large to be judged.
    #[error("the history has too many {what}: the limit is {limit}; record fewer operations")]
    TooLarge {
        /// What there is too much of.
        what: &'static str,
        /// How much is allowed.
        limit: usize,
    },
}
