//! What an entry of the log holds. Prost messages, because the log outlives the binary that wrote it.
//!
//! A replica that meets a kind, a field or a number that it does not know stops (see [`crate::entry`]). So whoever adds one
//! raises the version of the peer protocol: nodes that do not know it then do not speak to those that write it.

use bytes::Bytes;
use prost::Message;

use crate::deployment::DeploymentRecord;
use crate::id::{RequestId, SessionId};
use crate::outcome::ChangeKind;
use crate::proposal::Command;

/// The data of a normal entry.
#[derive(Clone, PartialEq, Message)]
pub struct Payload {
    /// The leader's wall clock in nanoseconds since the Unix epoch.
    #[prost(fixed64, tag = "1")]
    pub now: u64,
    /// 16 bytes that key the random streams of the entry.
    #[prost(bytes = "bytes", tag = "2")]
    pub entropy: Bytes,
    /// What the entry does.
    #[prost(oneof = "Kind", tags = "3, 4, 5, 6, 7, 8, 9, 10, 11")]
    pub kind: Option<Kind>,
}

/// What an entry does.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Kind {
    /// Applies commands.
    #[prost(message, tag = "3")]
    Commands(Commands),
    /// The first entry of a leader's term.
    #[prost(message, tag = "4")]
    Elected(Elected),
    /// Every replica snapshots here.
    #[prost(message, tag = "5")]
    Barrier(Barrier),
    /// Replicas disagree.
    #[prost(message, tag = "6")]
    Verdict(Verdict),
    /// Commands are refused from here on, or taken again.
    #[prost(message, tag = "7")]
    Pause(Pause),
    /// Every replica prepares to go on with another deployment, and waits for a decision. See [`crate::activation`].
    #[prost(message, tag = "8")]
    Activate(DeploymentRecord),
    /// Every replica goes on with what it has prepared.
    #[prost(message, tag = "9")]
    Confirm(Confirm),
    /// Every replica goes on with what it ran.
    #[prost(message, tag = "10")]
    Abort(Abort),
    /// No member can run a command, it seems: who has not applied it waits for a decision. See [`crate::impasse`].
    #[prost(message, tag = "11")]
    Impasse(Impasse),
}

/// Many commands in one entry.
#[derive(Clone, PartialEq, Message)]
pub struct Commands {
    /// In the order they are applied.
    #[prost(message, repeated, tag = "1")]
    pub items: Vec<Item>,
}

/// One command, or the opening of a session.
#[derive(Clone, PartialEq, Message)]
pub struct Item {
    /// The session, 16 bytes; none is anonymous.
    #[prost(bytes = "bytes", tag = "1")]
    pub session: Bytes,
    /// Number within the session.
    #[prost(uint64, tag = "2")]
    pub sequence: u64,
    /// The client has the answers up to here.
    #[prost(uint64, tag = "3")]
    pub acknowledged: u64,
    /// The bytes for the machine.
    #[prost(bytes = "bytes", tag = "4")]
    pub data: Bytes,
    /// Opens a session; the other fields are empty.
    #[prost(bool, tag = "5")]
    pub open: bool,
}

/// The first entry of a leader's term.
#[derive(Clone, PartialEq, Message)]
pub struct Elected {
    /// The leader's node.
    #[prost(uint64, tag = "1")]
    pub node: u64,
    /// Bytes for `init`; used by the first such entry of the group only.
    #[prost(bytes = "bytes", tag = "2")]
    pub init: Bytes,
}

/// Every replica snapshots here.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct Barrier {
    /// A [`Form`](crate::form::Form).
    #[prost(uint32, tag = "1")]
    pub form: u32,
    /// Bytes of the last snapshot of the saved form, as the leader knew it; 0 if it knew none.
    #[prost(uint64, tag = "2")]
    pub saved_bytes: u64,
}

/// What replicas said of one barrier. See [`crate::attestation`].
#[derive(Clone, PartialEq, Message)]
pub struct Verdict {
    /// Index of the barrier.
    #[prost(uint64, tag = "1")]
    pub index: u64,
    /// What each replica said.
    #[prost(message, repeated, tag = "2")]
    pub reports: Vec<Report>,
    /// The replica that an operator trusts; 0 leaves it to the majority.
    #[prost(uint64, tag = "3")]
    pub trusted: u64,
}

/// What one replica said.
#[derive(Clone, PartialEq, Message)]
pub struct Report {
    /// The replica.
    #[prost(uint64, tag = "1")]
    pub replica: u64,
    /// sha256 of its snapshot file, or nothing.
    #[prost(bytes = "bytes", tag = "2")]
    pub snapshot: Bytes,
    /// Its chain, or nothing.
    #[prost(bytes = "bytes", tag = "3")]
    pub chain: Bytes,
    /// What it does not say, it does not know for a reason of its node's.
    #[prost(bool, tag = "4")]
    pub unable: bool,
}

/// Commands are refused from here on, or taken again.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct Pause {
    /// Refused from here on.
    #[prost(bool, tag = "1")]
    pub on: bool,
}

/// No member can run a command, it seems.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct Impasse {
    /// Index of the command's entry.
    #[prost(uint64, tag = "1")]
    pub index: u64,
    /// Which command of the entry it is, counted from 0.
    #[prost(uint32, tag = "2")]
    pub item: u32,
    /// What the members' machines had in common.
    #[prost(uint32, tag = "3")]
    pub code: u32,
}

/// An activation is done, or the command of an impasse has failed. Of two decisions the first in the log counts.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct Confirm {
    /// Index of the activation, or of the impasse.
    #[prost(uint64, tag = "1")]
    pub index: u64,
}

/// An activation is given up, or an impasse: members try the command again. Of two decisions the first in the log counts.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct Abort {
    /// Index of the activation, or of the impasse.
    #[prost(uint64, tag = "1")]
    pub index: u64,
    /// An [`AbortReason`](crate::activation::AbortReason).
    #[prost(uint32, tag = "2")]
    pub code: u32,
}

/// The context of a configuration change entry.
#[derive(Clone, PartialEq, Message)]
pub struct ChangeRecord {
    /// A [`ChangeKind`].
    #[prost(uint32, tag = "1")]
    pub kind: u32,
    /// The node it is about.
    #[prost(uint64, tag = "2")]
    pub node: u64,
    /// The replica id it is about.
    #[prost(uint64, tag = "3")]
    pub replica: u64,
    /// Application bytes.
    #[prost(bytes = "bytes", tag = "4")]
    pub data: Bytes,
    /// An added learner is to be promoted once it has caught up.
    #[prost(bool, tag = "5")]
    pub promote: bool,
    /// The leader's wall clock.
    #[prost(fixed64, tag = "6")]
    pub now: u64,
    /// As in [`Payload::entropy`].
    #[prost(bytes = "bytes", tag = "7")]
    pub entropy: Bytes,
}

impl ChangeRecord {
    /// The kind, if its number is known.
    pub fn change_kind(&self) -> Option<ChangeKind> {
        [
            ChangeKind::AddVoter,
            ChangeKind::AddLearner,
            ChangeKind::Promote,
            ChangeKind::Remove,
        ]
        .into_iter()
        .find(|kind| *kind as u32 == self.kind)
    }
}

impl From<Command> for Item {
    fn from(command: Command) -> Self {
        Self {
            session: command.request.session.to_bytes(),
            sequence: command.request.sequence,
            acknowledged: command.acknowledged,
            data: command.data,
            open: false,
        }
    }
}

impl Item {
    /// The name of the command; none if that of its session has not 16 bytes.
    pub fn request(&self) -> Option<RequestId> {
        Some(RequestId {
            session: SessionId::from_bytes(&self.session)?,
            sequence: self.sequence,
        })
    }
}
