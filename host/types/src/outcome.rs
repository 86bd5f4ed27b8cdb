//! What a machine is told about an entry, and what it answers.
//!
//! These types are the common words of the core, which replicates them, and of `skep-machine`, which runs them.

use bytes::Bytes;

use sha2::{Digest, Sha256};

use crate::id::{GroupId, Incarnation, LogIndex, NodeId, SessionId, Term};

/// What is known about the entry being applied; identical on every replica.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct EntryContext {
    /// Index of the entry.
    pub index: LogIndex,
    /// Term of the entry.
    pub term: Term,
    /// Nanoseconds since the Unix epoch: the proposing leader's stamp, made non-decreasing along the log.
    pub now: u64,
    /// Bytes the leader put into the entry; they key every random stream of the entry.
    pub entropy: [u8; 16],
}

/// What session ids are hashes under, so that nothing else that is made of an entry's entropy tells one.
const SESSION_LABEL: &[u8] = b"skep session 1";

impl SessionId {
    /// The session that the item at `place` of an entry opens. The entry's entropy is known to nobody before the entry is in
    /// the log, and the same on every replica; the life of the group keeps its ids apart from those of another.
    pub fn opened(
        group: GroupId,
        incarnation: Incarnation,
        context: &EntryContext,
        place: usize,
    ) -> Self {
        let mut hash = Sha256::new_with_prefix(SESSION_LABEL);
        for word in [group.0, incarnation.0, context.index.0, place as u64] {
            hash.update(word.to_le_bytes());
        }
        hash.update(context.entropy);
        let id: [u8; 16] = std::array::from_fn({
            let hash = hash.finalize();
            move |at| hash[at]
        });
        Self(u128::from_be_bytes(id))
    }
}

/// The answer to one command or query. The same on every replica.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The machine's reply.
    Reply(Bytes),
    /// The machine understood and refused; its state is unchanged.
    Rejected {
        /// The machine's own code; 0 is the SDK's "bad request".
        code: u32,
        /// The machine's own words.
        message: String,
    },
    /// A part of the host refused: its catalogue, or whoever exchanges a machine. Nothing has changed.
    Refused {
        /// What replicas agree on, and keep.
        code: u32,
        /// This node's words, for whoever asked here: another release may say it otherwise, so they are in no hash and no
        /// snapshot. Empty if they are gone.
        message: String,
    },
    /// The machine failed on this command, on every replica alike; its state is as if the command had never run.
    Fault(GuestFault),
}

impl Default for Outcome {
    /// An empty reply: what there is to say where the machine says nothing.
    fn default() -> Self {
        Self::Reply(Bytes::new())
    }
}

impl Outcome {
    /// Bytes of the machine's that it holds.
    pub fn size(&self) -> usize {
        match self {
            Self::Reply(reply) => reply.len(),
            Self::Rejected { message, .. } => message.len(),
            // Of the host's, and not the same everywhere.
            Self::Refused { .. } => 0,
            Self::Fault(_) => 0,
        }
    }
}

/// The closed list of deterministic failures. Only these may become an outcome; everything else is local to a replica
/// and stops it instead. The number is what is replicated: a code, never a text or a backtrace.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum GuestFault {
    /// `unreachable`: what a panic or an abort compiles to.
    Unreachable = 1,
    /// An access outside a linear memory.
    MemoryOutOfBounds = 2,
    /// An access outside a table, a call through a null or of another signature.
    BadCall = 3,
    /// Integer overflow, division by zero, or a conversion that has no result.
    Arithmetic = 4,
    /// The fuel of the call was used up.
    OutOfFuel = 5,
    /// The reply is longer than the group's limit.
    ReplyTooLarge = 6,
    /// A value broke the canonical ABI: a bad string, list, or discriminant.
    Malformed = 7,
    /// The machine called `exit`.
    Exit = 8,
    /// The machine called an import that is refused here, or would have waited for ever.
    ForbiddenImport = 9,
    /// A host limit of the group other than fuel and reply: handles, bytes moved in one call, snapshot size.
    Limit = 10,
    /// A trap of the closed list that has no code of its own: a component that enters itself again.
    Trap = 11,
    /// The machine failed in a call in which the group's limit of memory had refused it more.
    OutOfMemory = 12,
    /// Every member of the group stopped at the command, for what may have been a reason of its own node, and the group has
    /// given the command up.
    Unrunnable = 13,
}

impl GuestFault {
    /// Every fault, in the order of its code.
    pub const ALL: [Self; 13] = [
        Self::Unreachable,
        Self::MemoryOutOfBounds,
        Self::BadCall,
        Self::Arithmetic,
        Self::OutOfFuel,
        Self::ReplyTooLarge,
        Self::Malformed,
        Self::Exit,
        Self::ForbiddenImport,
        Self::Limit,
        Self::Trap,
        Self::OutOfMemory,
        Self::Unrunnable,
    ];

    /// The number that is replicated and sent.
    pub fn code(self) -> u8 {
        self as u8
    }

    /// The fault of a number, if there is one.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|fault| fault.code() == code)
    }

    /// The stable name, as in logs and in HTTP answers.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::MemoryOutOfBounds => "memory-out-of-bounds",
            Self::BadCall => "bad-call",
            Self::Arithmetic => "arithmetic",
            Self::OutOfFuel => "out-of-fuel",
            Self::ReplyTooLarge => "reply-too-large",
            Self::Malformed => "malformed",
            Self::Exit => "exit",
            Self::ForbiddenImport => "forbidden-import",
            Self::Limit => "limit",
            Self::Trap => "trap",
            Self::OutOfMemory => "out-of-memory",
            Self::Unrunnable => "unrunnable",
        }
    }

    /// The setting of the group's profile that raises the limit which was reached, where there is one.
    pub fn profile_key(self) -> Option<&'static str> {
        match self {
            Self::OutOfFuel => Some("command-fuel"),
            Self::ReplyTooLarge => Some("reply-bytes"),
            Self::OutOfMemory => Some("memory-bytes"),
            _ => None,
        }
    }
}

impl std::fmt::Display for GuestFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// How a configuration changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum ChangeKind {
    /// A voter was added at once: only the members a group is created with.
    AddVoter = 0,
    /// A learner was added, or a voter became one. Whether it is promoted when it has caught up, the log says.
    AddLearner = 1,
    /// A learner became a voter.
    Promote = 2,
    /// A member was removed.
    Remove = 3,
}

/// A committed configuration change, as the machine is told of it (`ApplyConfChange`, with `GroupNode.Data`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConfChange {
    /// What changed.
    pub kind: ChangeKind,
    /// The node it changed for.
    pub node: NodeId,
    /// The application's own bytes given with the change.
    pub data: Bytes,
}

/// The leader of the group changed. Derived from the new leader's first committed entry, so it comes at the same place
/// with the same values on every replica, and the term fences.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct LeaderChanged {
    /// The leader before; 0 for the first.
    pub old: NodeId,
    /// The leader from here on.
    pub new: NodeId,
    /// Its term.
    pub term: Term,
}

#[cfg(test)]
mod tests {
    use super::*;

    // P-7
    #[test]
    fn a_session_is_named_by_what_nobody_knows_before_and_by_its_life() {
        let context = EntryContext {
            entropy: [7; 16],
            index: LogIndex(4),
            ..EntryContext::default()
        };
        let other = EntryContext {
            entropy: [8; 16],
            ..context
        };
        let (group, life) = (GroupId(3), Incarnation(2));
        let id = SessionId::opened(group, life, &context, 0);
        assert_eq!(SessionId::opened(group, life, &context, 0), id);
        let ids = std::collections::BTreeSet::from([
            id,
            SessionId::opened(group, life, &context, 1),
            SessionId::opened(group, life, &other, 0),
            SessionId::opened(group, Incarnation(3), &context, 0),
            SessionId::opened(GroupId(4), life, &context, 0),
        ]);
        assert_eq!(ids.len(), 5);
    }

    #[test]
    fn every_fault_has_its_own_code_and_name() {
        for fault in GuestFault::ALL {
            assert_eq!(GuestFault::from_code(fault.code()), Some(fault));
            assert_eq!(
                GuestFault::ALL
                    .iter()
                    .filter(|other| other.name() == fault.name())
                    .count(),
                1
            );
        }
        assert_eq!(GuestFault::from_code(0), None);
        assert_eq!(GuestFault::from_code(14), None);
    }
}
