//! What clients did and saw, and when.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::blob::Blob;

/// One request of a client and what became of it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Operation<I, O> {
    /// Names the operation within its history, from 1.
    pub id: u64,
    /// Who asked. Only for people: a client may have several requests in flight.
    pub client: u64,
    /// How it was asked.
    pub via: Via,
    /// What was asked.
    pub input: I,
    /// When it was asked, in any unit that the whole history shares. An operation that returned at the very time at
    /// which another was called is taken to overlap it.
    pub call: u64,
    /// When the outcome arrived; of an unknown outcome, when the client gave up, which says nothing about its effect.
    pub ret: u64,
    /// What became of it.
    pub outcome: Outcome<O>,
    /// Where in the log, as the answer said. Only answers say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<Place>,
}

/// An operation as it went over the wire.
pub type RawOperation = Operation<Blob, Reply>;

/// How a request reaches the machine.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Via {
    /// Proposed: it is in the log.
    Log,
    /// A linearizable query.
    Read,
    /// A query that any replica answers as it is. Not part of what must be linearizable; by its index its reply can be
    /// checked nevertheless.
    Stale,
}

/// What became of a request.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome<O> {
    /// The machine answered; a rejection is an answer, too.
    Ok(O),
    /// It was certainly not applied and never will be.
    Failed,
    /// It may have been applied, may be at any later time, or never.
    Unknown,
}

/// Where in the log a command stands, or which state of the log a query saw.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Place {
    /// Log index of the entry; of a query the last index in the state that answered.
    pub index: u64,
    /// Which command of the entry, from 0, where that is known: one entry packs several commands, and an answer says
    /// only the index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset: Option<u32>,
}

impl Place {
    /// A place of which only the index is known.
    pub fn of_index(index: u64) -> Self {
        Self {
            index,
            offset: None,
        }
    }

    /// The place of the command at `offset` of the entry at `index`.
    pub fn new(index: u64, offset: u32) -> Self {
        Self {
            index,
            offset: Some(offset),
        }
    }
}

/// What a machine answers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// The reply's bytes.
    Ok(Blob),
    /// The machine refused and its state is unchanged.
    Rejected {
        /// The machine's own code.
        code: u32,
        /// The machine's own words.
        message: String,
    },
}

impl Reply {
    /// A reply of these bytes.
    pub fn ok(bytes: impl Into<Blob>) -> Self {
        Self::Ok(bytes.into())
    }

    /// A rejection.
    pub fn rejected(code: u32, message: impl Into<String>) -> Self {
        Self::Rejected {
            code,
            message: message.into(),
        }
    }
}

/// Notes operations of many tasks or threads at once. Clones share one history.
///
/// There is no clock inside: times come from the caller, and need to be monotonic across all its clients.
#[derive(Clone, Debug, Default)]
pub struct History(Arc<Mutex<Vec<RawOperation>>>);

impl History {
    /// An empty history.
    pub fn new() -> Self {
        Self::default()
    }

    /// Notes a request. Take the time *before* it is sent.
    pub fn call(&self, client: u64, via: Via, request: impl Into<Blob>, at: u64) -> Pending {
        let mut operations = locked(&self.0);
        let place = operations.len();
        operations.push(Operation {
            id: place as u64 + 1,
            client,
            via,
            input: request.into(),
            call: at,
            ret: at,
            outcome: Outcome::Unknown,
            place: None,
        });
        Pending {
            history: Arc::clone(&self.0),
            place,
        }
    }

    /// What happened so far, in the order of the calls. An operation that has not returned yet has an unknown outcome.
    pub fn operations(&self) -> Vec<RawOperation> {
        locked(&self.0).clone()
    }

    /// How many operations were called so far.
    pub fn len(&self) -> usize {
        locked(&self.0).len()
    }

    /// Whether nothing was called yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// An operation that was called. It ends by one of its methods; dropped, its outcome is unknown, as is right for a task
/// that was cancelled.
#[derive(Debug)]
pub struct Pending {
    history: Arc<Mutex<Vec<RawOperation>>>,
    place: usize,
}

impl Pending {
    /// The machine answered. Take the time *after* the answer has arrived.
    pub fn returned(self, reply: Reply, place: Option<Place>, at: u64) {
        self.end(Outcome::Ok(reply), place, at);
    }

    /// It was certainly not applied, and no try of it is still under way.
    pub fn failed(self, at: u64) {
        self.end(Outcome::Failed, None, at);
    }

    /// Nobody knows.
    pub fn unknown(self, at: u64) {
        self.end(Outcome::Unknown, None, at);
    }

    fn end(self, outcome: Outcome<Reply>, place: Option<Place>, at: u64) {
        let operation = &mut locked(&self.history)[self.place];
        operation.outcome = outcome;
        operation.place = place;
        operation.ret = at;
    }
}

/// Nothing is left half done under the lock, so a panic elsewhere leaves the list whole.
fn locked(operations: &Mutex<Vec<RawOperation>>) -> MutexGuard<'_, Vec<RawOperation>> {
    operations.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<I: fmt::Display, O: fmt::Display> fmt::Display for Operation<I, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "#{} {} {}..{} {}",
            self.id, self.client, self.call, self.ret, self.via
        )?;
        if let Some(place) = self.place {
            write!(f, "{place}")?;
        }
        write!(f, " {}", self.input)?;
        match &self.outcome {
            Outcome::Ok(output) => write!(f, " {output}"),
            Outcome::Failed => write!(f, " xx"),
            Outcome::Unknown => write!(f, " ??"),
        }
    }
}

impl fmt::Display for Via {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Log => "log",
            Self::Read => "read",
            Self::Stale => "stale",
        })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "@{}", self.index)?;
        match self.offset {
            Some(offset) => write!(f, ".{offset}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ok(bytes) => write!(f, "-> {bytes}"),
            Self::Rejected { code, message } => write!(f, "!! {code} {message}"),
        }
    }
}
