//! The contract between the host and a state machine, native or in a sandbox.

use std::io::{self, Write};
use std::pin::Pin;

use bytes::Bytes;
use skep_core::activation::Refusal;
use skep_core::id::LogIndex;
use skep_core::outcome::{ConfChange, EntryContext, GuestFault, LeaderChanged, Outcome};
use skep_types::code::Code;
pub use skep_types::machine::{Descriptor, Memory};

/// What one entry did.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Applied {
    /// One outcome for each command, in order.
    pub outcomes: Vec<Outcome>,
    /// Fuel used by the entry, the same on every replica; 0 for native machines.
    pub fuel: u64,
}

/// What a machine has cost its node, beyond what every replica counts alike. Barriers are paced by it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Costs {
    /// How often its instance was built again, because a command had failed in it.
    pub rebuilds: u64,
    /// Fuel of the calls that have succeeded: what is run again when an instance is built again.
    pub fuel: u64,
}

/// What one query was answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    /// The outcome.
    pub outcome: Outcome,
    /// Index of the last entry that the answering state reflects.
    pub index: LogIndex,
    /// Fuel used, with what it took to come to that state. Not the same on every replica.
    pub fuel: u64,
}

/// What kind of trouble a replica had with a call: few words with stable numbers, so that replicas can tell whether
/// they had the same. It says nothing of whether it *is* the same everywhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum LocalCode {
    /// The native stack ended before the counted one.
    StackOverflow = 1,
    /// The system gave no memory or no address space.
    Memory = 2,
    /// The node's budget for machines is used up.
    OutOfBudget = 3,
    /// The engine interrupted the call.
    Interrupted = 4,
    /// No thread could be started.
    Thread = 5,
    /// What was to be read or written could not be.
    Io = 6,
    /// A call that was run again did not do what it did at first.
    Differs = 7,
    /// A trap that no machine can cause.
    UnexpectedTrap = 8,
    /// Something that the engine says and this host does not know.
    UnexpectedError = 9,
    /// What the call needs is not there: a component, an export.
    Missing = 10,
}

impl LocalCode {
    /// Every code, in the order of its number.
    pub const ALL: [Self; 10] = [
        Self::StackOverflow,
        Self::Memory,
        Self::OutOfBudget,
        Self::Interrupted,
        Self::Thread,
        Self::Io,
        Self::Differs,
        Self::UnexpectedTrap,
        Self::UnexpectedError,
        Self::Missing,
    ];

    /// The number, which is what replicas compare.
    pub fn code(self) -> u8 {
        self as u8
    }

    /// The code of a number, if there is one.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.code() == code)
    }

    /// The stable name, as in logs and answers.
    pub fn name(self) -> &'static str {
        match self {
            Self::StackOverflow => "stack-overflow",
            Self::Memory => "memory",
            Self::OutOfBudget => "out-of-budget",
            Self::Interrupted => "interrupted",
            Self::Thread => "thread",
            Self::Io => "io",
            Self::Differs => "differs",
            Self::UnexpectedTrap => "unexpected-trap",
            Self::UnexpectedError => "unexpected-error",
            Self::Missing => "missing",
        }
    }

    /// The code of a request that fails for it.
    pub fn refusal(self) -> Code {
        match self {
            Self::OutOfBudget => Code::OutOfBudget,
            _ => Code::MachineFailed,
        }
    }
}

/// Why a call into a machine has no outcome.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The machine failed or refused, on every replica alike (only from `save`, `restore` and the hooks: a failing
    /// command is an [`Outcome::Fault`]).
    #[error("the machine failed in {call}: {fault}{}", detail.as_deref().map(|text| format!(" ({text})")).unwrap_or_default())]
    Guest {
        /// The call that failed.
        call: &'static str,
        /// Its code.
        fault: GuestFault,
        /// The machine's own words, for the operator only; never replicated.
        detail: Option<String>,
    },
    /// This replica alone could not run the machine: it must stop applying, and never record this as a result.
    #[error("this node could not run the machine in {call}: {reason}")]
    Local {
        /// The call that failed.
        call: &'static str,
        /// What kind of trouble it was: what replicas compare.
        code: LocalCode,
        /// What happened here, for the operator.
        reason: String,
    },
}

impl MachineError {
    /// Asked for another machine, where the machine of a group is never exchanged.
    pub fn fixed() -> Self {
        Self::missing(Refusal::Fixed.to_string())
    }

    /// Another machine cannot be had here, for this reason.
    pub fn missing(reason: String) -> Self {
        Self::Local {
            call: "start",
            code: LocalCode::Missing,
            reason,
        }
    }

    /// The machine waits for a snapshot that it can go on from.
    pub(crate) fn without_state() -> Self {
        Self::Local {
            call: "query",
            code: LocalCode::Missing,
            reason: "the machine waits for a snapshot that it can go on from".to_owned(),
        }
    }

    /// The machine's own words, if it had any.
    pub fn detail(&self) -> Option<&str> {
        match self {
            Self::Guest { detail, .. } => detail.as_deref(),
            Self::Local { .. } => None,
        }
    }

    /// The stable code of a request that fails for it.
    pub fn code(&self) -> Code {
        match self {
            Self::Guest { .. } => Code::GuestFault,
            Self::Local { code, .. } => code.refusal(),
        }
    }
}

/// Fuel that a guest uses before its call is pending, about a millisecond: a tenth of it would cost nothing either.
pub const SLICE: u64 = 1_000_000;

/// A call of a machine under way.
///
/// It is polled to its end, or dropped. A guest's call is pending each time it has used a [`SLICE`] of fuel, so that others may run:
/// it wakes its waker at once, and is polled again when its turn has come. It waits for one thing else: an entry waits for the
/// queries that read its machine, and a query for the entry in hand. Then the waker is woken by the other's
/// end. A thread of its own can poll it in a loop ([`ToEnd`](crate::ToEnd)). The call of a machine in Rust is over when it is polled first.
pub type Running<'a, T> = Pin<Box<dyn Future<Output = Result<T, MachineError>> + Send + 'a>>;

/// Reads an image again that was kept somewhere.
pub type ReadImage = Box<dyn Fn() -> io::Result<Bytes> + Send + Sync>;

/// An image that a machine has begun to take. Dropped before it is finished, it is not taken.
pub trait ImageTaken: Send {
    /// Takes the rest of it, beside what the machine does. Blocks its thread, for as long as it takes to copy the machine's memory
    /// and to find out what is in it. To be called once.
    ///
    /// # Errors
    /// [`MachineError::Local`]: this node cannot take it; the machine knows nothing of it.
    fn finish(&mut self) -> Result<Bytes, MachineError>;

    /// The image can be read elsewhere from now on, until there is a newer one or the machine is restored: so the machine need not
    /// keep it in memory.
    fn kept(self: Box<Self>, read: ReadImage);
}

/// The image of a machine that writes it down at once.
impl ImageTaken for Bytes {
    fn finish(&mut self) -> Result<Bytes, MachineError> {
        Ok(self.clone())
    }

    fn kept(self: Box<Self>, _: ReadImage) {}
}

/// A replicated state machine (`StateMachine` of the seed package).
///
/// # Concurrency
///
/// The host makes one call at a time, in the order of the log, and polls it from one thread at a time; successive polls, and
/// successive calls, may come from different threads. A poll may block its thread; other groups run on other threads. The machine's
/// [`Reader`](Self::reader), if it has one, is called at the same time from other threads.
///
/// # Calls that are dropped
///
/// A [`Running`] call that is dropped before its end leaves the machine in no known state: the host drops the machine too.
///
/// # Determinism
///
/// After [`restore`](Self::restore) (or creation) the answers, and the bytes of [`save`](Self::save), are a function of
/// the restored bytes and the entries applied since. Nothing else may show: no clock, no randomness but
/// [`EntryContext`], no iteration order of a seeded map, no query that was asked before.
///
/// # Queries
///
/// A machine has one of two ways to answer them. One that can be in two places, like a guest in a sandbox, hands out a
/// [`Reader`](Self::reader): the host then asks that, on a thread of its own, and a query delays no command. One that has
/// its state only once, like most native machines, has none: the host calls [`query`](Self::query) between entries, and
/// commands wait for it.
///
/// # Failure
///
/// A command that fails deterministically yields [`Outcome::Fault`] and leaves the state as if it had never run. A
/// [`MachineError::Local`] means that this replica's copy is no longer trustworthy: the host drops the machine; but from
/// [`query`](Self::query) it means that this query alone could not be run, and nothing has changed.
pub trait StateMachine: Send {
    /// What the machine says of itself.
    fn describe(&self) -> Descriptor;

    /// The configuration bytes given at the creation of the group; called once in the group's life, never on restore.
    fn init<'a>(&'a mut self, context: &'a EntryContext, config: &'a Bytes)
    -> Running<'a, Applied>;

    /// Applies the commands of one entry, in order; answers each.
    fn apply<'a>(
        &'a mut self,
        context: &'a EntryContext,
        commands: &'a [Bytes],
    ) -> Running<'a, Applied>;

    /// A committed configuration change. The one outcome is reported to whoever asked for the change.
    fn apply_conf_change<'a>(
        &'a mut self,
        context: &'a EntryContext,
        change: &'a ConfChange,
    ) -> Running<'a, Applied>;

    /// The leader changed. There is no outcome; a fault in here is an outcome nobody waits for.
    fn process_status_change<'a>(
        &'a mut self,
        context: &'a EntryContext,
        event: &'a LeaderChanged,
    ) -> Running<'a, Applied>;

    /// Which of its commands, counted from 0, the last [`apply`](Self::apply) could not run, after a
    /// [`MachineError::Local`]; none if that is not known.
    fn stopped_at(&self) -> Option<usize> {
        None
    }

    /// What it has cost this node since it is there; none if that is not known.
    fn costs(&self) -> Option<Costs> {
        None
    }

    /// Answers a read-only request from the state after the last applied entry. Must not change anything that a later
    /// `apply` or `save` could show.
    fn query<'a>(&'a mut self, request: &'a Bytes) -> Running<'a, Outcome>;

    /// Bytes of memory that an [`image`](Self::image) would be of; none if the machine can have none now, or never.
    fn image_bytes(&self) -> Option<u64> {
        None
    }

    /// Begins an image of the machine as it is: all of it, down to the addresses on its heap, where [`save`](Self::save) writes what
    /// the machine thinks worth keeping. The machine stands still for a moment only, and goes on while the image is taken. None if
    /// it can have no image. Nothing of it shows in any later call.
    ///
    /// # Errors
    /// [`MachineError::Local`]: this node cannot take it, which is no reason to drop the machine.
    fn image<'a>(
        &'a mut self,
        context: &'a EntryContext,
    ) -> Running<'a, Option<Box<dyn ImageTaken>>> {
        let _ = context;
        Box::pin(async { Ok(None) })
    }

    /// Drops the state and becomes what an image is of, that a machine of the same code and limits has taken at this entry. After an error
    /// the machine still has its former state.
    ///
    /// # Errors
    /// [`MachineError::Local`]: this node, or this release, cannot use it.
    fn resume<'a>(&'a mut self, context: &'a EntryContext, image: Bytes) -> Running<'a, ()> {
        let _ = (context, image);
        Box::pin(async {
            Err(MachineError::Local {
                call: "resume",
                code: LocalCode::Missing,
                reason: "this machine has no images".into(),
            })
        })
    }

    /// What it was [resumed](Self::resume) from just now can be read again, so it need not keep that in memory.
    fn image_kept(&mut self, read: ReadImage) {
        drop(read);
    }

    /// The memory it has and may have, if it keeps its state in a sandbox. Asked between calls.
    fn memory(&self) -> Option<Memory> {
        None
    }

    /// What answers queries beside the commands, if the machine can have that. Asked once, before the first call.
    fn reader(&self) -> Option<Box<dyn Reader>> {
        None
    }

    /// Writes the whole state. The same bytes for the same state. After [`MachineError::Guest`] the machine is as if
    /// `save` had not been called.
    fn save<'a>(
        &'a mut self,
        context: &'a EntryContext,
        to: &'a mut (dyn Write + Send),
    ) -> Running<'a, ()>;

    /// Drops the state and builds it anew from bytes that `save` wrote under `schema`, in a fresh instance, under the
    /// context of the barrier entry the bytes belong to. The bytes may be a mapped file. After
    /// [`MachineError::Guest`] the machine still has its former state.
    fn restore<'a>(
        &'a mut self,
        context: &'a EntryContext,
        schema: u32,
        from: Bytes,
    ) -> Running<'a, ()>;
}

/// A machine in a box is a machine.
impl<M: StateMachine + ?Sized> StateMachine for Box<M> {
    fn describe(&self) -> Descriptor {
        (**self).describe()
    }

    fn init<'a>(
        &'a mut self,
        context: &'a EntryContext,
        config: &'a Bytes,
    ) -> Running<'a, Applied> {
        (**self).init(context, config)
    }

    fn apply<'a>(
        &'a mut self,
        context: &'a EntryContext,
        commands: &'a [Bytes],
    ) -> Running<'a, Applied> {
        (**self).apply(context, commands)
    }

    fn apply_conf_change<'a>(
        &'a mut self,
        context: &'a EntryContext,
        change: &'a ConfChange,
    ) -> Running<'a, Applied> {
        (**self).apply_conf_change(context, change)
    }

    fn process_status_change<'a>(
        &'a mut self,
        context: &'a EntryContext,
        event: &'a LeaderChanged,
    ) -> Running<'a, Applied> {
        (**self).process_status_change(context, event)
    }

    fn stopped_at(&self) -> Option<usize> {
        (**self).stopped_at()
    }

    fn costs(&self) -> Option<Costs> {
        (**self).costs()
    }

    fn query<'a>(&'a mut self, request: &'a Bytes) -> Running<'a, Outcome> {
        (**self).query(request)
    }

    fn image_bytes(&self) -> Option<u64> {
        (**self).image_bytes()
    }

    fn image<'a>(
        &'a mut self,
        context: &'a EntryContext,
    ) -> Running<'a, Option<Box<dyn ImageTaken>>> {
        (**self).image(context)
    }

    fn resume<'a>(&'a mut self, context: &'a EntryContext, image: Bytes) -> Running<'a, ()> {
        (**self).resume(context, image)
    }

    fn image_kept(&mut self, read: ReadImage) {
        (**self).image_kept(read);
    }

    fn memory(&self) -> Option<Memory> {
        (**self).memory()
    }

    fn reader(&self) -> Option<Box<dyn Reader>> {
        (**self).reader()
    }

    fn save<'a>(
        &'a mut self,
        context: &'a EntryContext,
        to: &'a mut (dyn Write + Send),
    ) -> Running<'a, ()> {
        (**self).save(context, to)
    }

    fn restore<'a>(
        &'a mut self,
        context: &'a EntryContext,
        schema: u32,
        from: Bytes,
    ) -> Running<'a, ()> {
        (**self).restore(context, schema, from)
    }
}

/// Answers the queries of one [`StateMachine`] while it applies commands.
///
/// # Concurrency
///
/// Asked one query at a time, polled from one thread at a time, at any moment of any call into its machine, also of `save` and
/// `restore`; successive polls may come from different threads. A query may wait for the entry in
/// hand, and an entry for a moment of a query, but no query waits for a barrier, and no entry for a query to end.
///
/// # Order
///
/// An answer is read from the state after some whole entry, and that is the last one whose calls had returned when
/// [`query`](Self::query) was called, or a later one. So answers never go back: neither behind what was acknowledged before
/// the query was asked, nor behind an earlier answer of the same reader.
///
/// # Isolation
///
/// Nothing a query does, or fails at, shows in any later call into the machine: not in outcomes, not in fuel, not in the
/// bytes of `save`.
///
/// # Failure
///
/// A query that fails deterministically is answered [`Outcome::Fault`]. A [`MachineError::Local`] concerns this query only;
/// the next one may be asked. A panic is the host's to catch; the reader can be asked again after it, and after a query that was
/// dropped before its end.
pub trait Reader: Send {
    /// Answers a read-only request.
    fn query<'a>(&'a mut self, request: &'a Bytes) -> Running<'a, Answer>;

    /// Frees what the next query can make again, for a machine that is no longer asked.
    fn release(&mut self);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_local_code_has_its_own_number_and_name() {
        let mut names = std::collections::BTreeSet::new();
        for (number, code) in (1..).zip(LocalCode::ALL) {
            assert_eq!(code.code(), number);
            assert_eq!(LocalCode::from_code(number), Some(code));
            assert!(names.insert(code.name()));
        }
        assert_eq!(LocalCode::from_code(0), None);
        assert_eq!(LocalCode::from_code(11), None);
    }
}
