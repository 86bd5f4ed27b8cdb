//! The key-value machine of `examples/kv`: what it is asked, what it answers, and whether a history of it is linearizable.
//!
//! Every request with one key is known, and `scan`, which is taken for a `gets` of each key that it covers and the history
//! knows. `count` and `stats` are not known: do not record them.

pub mod command;
pub mod parse;
pub mod register;
pub mod versions;

use std::fmt;

pub use command::{Command, Input, Output};
pub use register::Register;

use crate::error::CheckerError;
use crate::history::{Operation, Outcome, RawOperation, Via};
use crate::indexed::{self, IndexedVerdict};
use crate::verdict::{Limits, Verdict};
use crate::wgl;

/// An operation of the key-value machine.
pub type KvOperation = Operation<Input, Output>;

/// Judges a history by all checks. The group was empty at its begin, and only the history's clients changed it.
///
/// The check by index is made if every answer has a place.
///
/// # Errors
/// If the history makes no sense, contains what the model does not know, or an answer that the machine never gives.
pub fn check(history: &[RawOperation], limits: Limits) -> Result<Report, CheckerError> {
    let operations = parse::parse(history)?;
    let placed = operations
        .iter()
        .all(|operation| !matches!(operation.outcome, Outcome::Ok(_)) || operation.place.is_some());
    let indexed = placed
        .then(|| indexed::check(&Register, &operations, limits))
        .transpose()?;
    let fresh: Vec<_> = operations
        .into_iter()
        .filter(|operation| operation.via != Via::Stale)
        .collect();
    Ok(Report {
        blind: wgl::check(&Register, &fresh, limits),
        indexed,
        versions: versions::check(&fresh),
    })
}

/// What the checks came to.
#[derive(Clone, PartialEq, Eq, Debug)]
#[must_use]
pub struct Report {
    /// What the index-blind search found.
    pub blind: Verdict,
    /// What the check by index found, if it was made.
    pub indexed: Option<IndexedVerdict>,
    /// What is wrong with the order of the versions, if anything is.
    pub versions: Option<versions::Violation>,
}

impl Report {
    /// Whether every check that was made was passed. One that was given up was not.
    pub fn is_linearizable(&self) -> bool {
        self.blind.is_linearizable()
            && self
                .indexed
                .as_ref()
                .is_none_or(IndexedVerdict::is_linearizable)
            && self.versions.is_none()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "blind to indices: {}", self.blind)?;
        match &self.indexed {
            Some(indexed) => write!(f, "\nby index: {indexed}")?,
            None => write!(f, "\nby index: not checked, an answer has no index")?,
        }
        match &self.versions {
            Some(violation) => write!(f, "\nby version: {violation}"),
            None => write!(f, "\nby version: in order"),
        }
    }
}
