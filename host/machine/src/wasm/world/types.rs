//! The records of `wit/skep.wit` as they cross into the guest and back.

use skep_core::outcome::{ChangeKind, ConfChange, EntryContext, LeaderChanged};
use wasmtime::component::{ComponentType, Lift, Lower};

/// `types.context`.
#[derive(Clone, Copy, ComponentType, Lower)]
#[component(record)]
pub(crate) struct Context {
    index: u64,
    term: u64,
    now: u64,
}

impl From<&EntryContext> for Context {
    fn from(context: &EntryContext) -> Self {
        Self {
            index: context.index.0,
            term: context.term.0,
            now: context.now,
        }
    }
}

/// `types.rejection`.
#[derive(Clone, Debug, ComponentType, Lift)]
#[component(record)]
pub(crate) struct Rejection {
    pub(crate) code: u32,
    pub(crate) message: String,
}

/// What most exports return.
pub(crate) type Answer<T> = (Result<T, Rejection>,);

/// `types.descriptor`.
#[derive(Clone, ComponentType, Lift)]
#[component(record)]
pub(crate) struct Descriptor {
    name: String,
    version: String,
    schema: u32,
    #[component(name = "oldest-schema")]
    oldest_schema: u32,
}

impl From<Descriptor> for crate::Descriptor {
    fn from(descriptor: Descriptor) -> Self {
        let Descriptor {
            name,
            version,
            schema,
            oldest_schema,
        } = descriptor;
        Self {
            name,
            version,
            schema,
            oldest_schema,
        }
    }
}

/// `types.change-kind`.
#[derive(Clone, Copy, ComponentType, Lower)]
#[component(enum)]
#[repr(u8)]
pub(crate) enum Kind {
    #[component(name = "add-voter")]
    AddVoter,
    #[component(name = "add-learner")]
    AddLearner,
    #[component(name = "promote")]
    Promote,
    #[component(name = "remove")]
    Remove,
}

/// `types.conf-change`.
#[derive(Clone, ComponentType, Lower)]
#[component(record)]
pub(crate) struct Change {
    kind: Kind,
    node: u64,
    data: Vec<u8>,
}

impl From<&ConfChange> for Change {
    fn from(change: &ConfChange) -> Self {
        let kind = match change.kind {
            ChangeKind::AddVoter => Kind::AddVoter,
            ChangeKind::AddLearner => Kind::AddLearner,
            ChangeKind::Promote => Kind::Promote,
            ChangeKind::Remove => Kind::Remove,
        };
        Self {
            kind,
            node: change.node.0,
            data: change.data.to_vec(),
        }
    }
}

/// `types.leader-changed`.
#[derive(Clone, Copy, ComponentType, Lower)]
#[component(record)]
pub(crate) struct Leader {
    old: u64,
    new: u64,
    term: u64,
}

/// `types.status-change`.
#[derive(Clone, Copy, ComponentType, Lower)]
#[component(variant)]
pub(crate) enum StatusChange {
    #[component(name = "leader-changed")]
    LeaderChanged(Leader),
}

impl From<&LeaderChanged> for StatusChange {
    fn from(event: &LeaderChanged) -> Self {
        Self::LeaderChanged(Leader {
            old: event.old.0,
            new: event.new.0,
            term: event.term.0,
        })
    }
}
