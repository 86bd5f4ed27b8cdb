//! Requests and replies of one key.

use std::fmt;
use std::sync::Arc;

use crate::blob::Blob;

/// A request.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Input {
    /// The key it reads or changes.
    pub key: Arc<str>,
    /// What it does there.
    pub command: Command,
}

/// What a request does with its key.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Command {
    /// Sets the value.
    Put(Blob),
    /// Sets the value if the key has the version; version 0 is that of an absent key.
    Cas {
        /// The version it must have.
        version: u64,
        /// The new value.
        value: Blob,
    },
    /// Removes the key.
    Delete,
    /// Adds to the number that the value is; an absent key counts from 0.
    Incr(i64),
    /// Reads the value.
    Get,
    /// Reads version and value.
    Gets,
}

/// A reply, or a rejection that says something about the key.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Output {
    /// `OK VERSION`: the version of the change.
    Changed(u64),
    /// The number after an `incr`.
    Number(i64),
    /// The value.
    Value(Blob),
    /// Version and value.
    Versioned(u64, Blob),
    /// 404: there is no such key.
    NotFound,
    /// 409: the key has this version, 0 for none, and not the one that `cas` expects.
    Mismatch(u64),
    /// 422: the value is no number, or the sum does not fit.
    NotANumber,
}

impl fmt::Display for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = &self.key;
        match &self.command {
            Command::Put(value) => write!(f, "put {key} {value}"),
            Command::Cas { version, value } => write!(f, "cas {key} {version} {value}"),
            Command::Delete => write!(f, "delete {key}"),
            Command::Incr(delta) => write!(f, "incr {key} {delta}"),
            Command::Get => write!(f, "get {key}"),
            Command::Gets => write!(f, "gets {key}"),
        }
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Changed(version) => write!(f, "-> OK {version}"),
            Self::Number(number) => write!(f, "-> {number}"),
            Self::Value(value) => write!(f, "-> {value}"),
            Self::Versioned(version, value) => write!(f, "-> {version} {value}"),
            Self::NotFound => write!(f, "!! 404 no such key"),
            Self::Mismatch(version) => write!(f, "!! 409 the version is {version}"),
            Self::NotANumber => write!(f, "!! 422 not a number, or too large"),
        }
    }
}
