//! The trait a guest implements, and the values it is called with.

use std::fmt;
use std::io;

use crate::{Sink, Source};

/// A replicated state machine.
///
/// # Concurrency
///
/// One instance is called by one caller at a time; calls never nest. A host holds several instances of the same
/// machine (one per replica, forks of it for queries, short-lived ones to describe it), and none sees what another writes.
///
/// # Failure
///
/// - `Err(Rejection)` is an ordinary answer: the client gets it, and **the state must be what it was before the
///   call**.
/// - A panic, like any other trap (out of fuel, out of memory), poisons the instance. The host throws it away and
///   rebuilds the state from the last snapshot and the commands since, without this one: it is as if the command never
///   ran. The client gets a fault code; the panic's message goes to the host's log. Panic for what cannot happen,
///   reject what a client may send.
///
/// # Determinism
///
/// Replies, rejections and saved bytes must be functions of the calls made so far. [`Context::now`], the standard
/// library's clocks and [`entropy`](crate::entropy) are part of the log entry on a host, so they are safe; nothing
/// else from outside exists. Hash seeds, addresses and the order of a hash map are the same on every replica until the next
/// snapshot, which makes others on all of them.
pub trait Machine: Default + 'static {
    /// Who this machine is, and which snapshots it writes and reads. Called in a scratch instance when the component is
    /// deployed; must always answer the same.
    fn describe() -> Descriptor;

    /// Sets up a new group with the bytes its creator gave, as its first entry. Called once in the life of a group, on
    /// a [`Default`] machine, never after a restore. A rejection is recorded as the outcome of the group's creation.
    fn init(&mut self, ctx: &Context, config: &[u8]) -> Result<(), Rejection> {
        let _ = (ctx, config);
        Ok(())
    }

    /// Applies one committed command and answers it.
    fn apply(&mut self, ctx: &Context, request: &[u8]) -> Result<Vec<u8>, Rejection>;

    /// Answers a read-only request that is not in the log; `ctx` is that of the last entry. It sees the machine exactly as the
    /// commands left it, down to the order of a hash map. Whatever it changes is gone when it ends, so a cache that it fills is
    /// empty again for the next one.
    fn query(&self, ctx: &Context, request: &[u8]) -> Result<Vec<u8>, Rejection> {
        let _ = (ctx, request);
        Err(Rejection::bad_request(
            "this machine answers no queries; propose the request instead",
        ))
    }

    /// Writes the whole state, the same bytes for the same state (mind the iteration order of hash maps).
    fn save(&self, to: &mut Sink<'_>) -> Result<(), Rejection>;

    /// Reads what [`save`](Machine::save) wrote under [`Descriptor::schema`] `schema`. A rejection says that these
    /// bytes cannot be read: while changing to a new version of the machine it aborts the change, and the old version
    /// goes on.
    fn restore(schema: u32, from: &mut Source<'_>) -> Result<Self, Rejection>;

    /// Hears that the group's configuration changed. The change is committed and a rejection does not undo it; whoever
    /// asked for the change is told.
    fn apply_conf_change(&mut self, ctx: &Context, change: &ConfChange) -> Result<(), Rejection> {
        let _ = (ctx, change);
        Ok(())
    }

    /// Hears of a new leader, at the same place in the log on every replica.
    fn process_status_change(&mut self, ctx: &Context, event: &StatusChange) {
        let _ = (ctx, event);
    }

    // `export!` names this function in a native build, so that a missing implementation is a compile error there too.
    #[doc(hidden)]
    fn __exported() -> Self {
        Self::default()
    }
}

/// What is known about the entry being applied; identical on every replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Context {
    /// The entry's place in the group's log. Several commands may share one entry.
    pub index: u64,
    /// The leader's term.
    pub term: u64,
    /// Nanoseconds since the Unix epoch: the proposing leader's clock, made non-decreasing along the log.
    pub now: u64,
}

/// A command that was understood and refused: an ordinary reply, the same bytes on every replica.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Rejection {
    /// The machine's own number for the reason; 0 is [`BAD_REQUEST`](Rejection::BAD_REQUEST).
    pub code: u32,
    /// For people: what was wrong and what to do instead.
    pub message: String,
}

impl Rejection {
    /// The code this crate uses for its own refusals: no queries, snapshot bytes that cannot be read.
    pub const BAD_REQUEST: u32 = 0;

    /// A rejection under the machine's own `code`.
    pub fn new(code: u32, message: impl Into<String>) -> Self {
        Rejection {
            code,
            message: message.into(),
        }
    }

    /// A rejection under [`BAD_REQUEST`](Rejection::BAD_REQUEST).
    pub fn bad_request(message: impl Into<String>) -> Self {
        Rejection::new(Rejection::BAD_REQUEST, message)
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (code {})", self.message, self.code)
    }
}

impl std::error::Error for Rejection {}

/// Lets `save` and `restore` use `?` on [`io::Write`] and [`io::Read`].
impl From<io::Error> for Rejection {
    fn from(error: io::Error) -> Self {
        Rejection::bad_request(error.to_string())
    }
}

/// Who a machine is. The host reads it once, when the component is deployed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Descriptor {
    /// A short name for people, such as `kv`.
    pub name: &'static str,
    /// The machine's own version, such as `env!("CARGO_PKG_VERSION")`.
    pub version: &'static str,
    /// The version of the bytes that [`Machine::save`] writes.
    pub schema: u32,
    /// The oldest version of those bytes that [`Machine::restore`] still reads.
    pub oldest_schema: u32,
}

/// A committed change of the group's configuration.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ConfChange {
    /// What happened to the node's replica.
    pub kind: ChangeKind,
    /// The node.
    pub node: u64,
    /// The application's bytes given with the change.
    pub data: Vec<u8>,
}

/// What a [`ConfChange`] does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChangeKind {
    /// The node's replica votes from now on.
    AddVoter,
    /// The node's replica receives the log and does not vote.
    AddLearner,
    /// The node's replica was a learner and votes from now on.
    Promote,
    /// The node's replica left the group.
    Remove,
}

/// Something that happened to the group, told at the same place of the log on every replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StatusChange {
    /// Another node leads.
    LeaderChanged(LeaderChanged),
}

/// A change of leader, taken from the new leader's first committed entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LeaderChanged {
    /// The leader before, 0 for a group's first leader.
    pub old: u64,
    /// The leader from here on.
    pub new: u64,
    /// Its term; it only grows, so it can fence.
    pub term: u64,
}
