//! What the catalogue is asked, and what it answers; JSON in group 0's log.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use skep_core::deployment::Quota;
use skep_core::form::Barriers;
use skep_core::id::{ComponentId, GroupId, Incarnation, LogIndex, NodeId};
use skep_machine::wasm::Profile;
use skep_types::code::Code;

use super::{ComponentRecord, Deployed, GroupRecord, NodeRecord};

/// One change of the catalogue.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Command {
    /// A node is part of the cluster, at these addresses.
    PutNode(NodeRecord),
    /// A component exists.
    PutComponent(ComponentRecord),
    /// Creates a group.
    CreateGroup(NewGroup),
    /// Creates groups, all or none.
    CreateGroups {
        /// What they have in common: all but the name and the members, which are those of none of them, and no id.
        like: NewGroup,
        /// The first voters of each, by its name.
        each: BTreeMap<String, BTreeSet<NodeId>>,
    },
    /// A group is about to be asked to run a component: from here on its log may name it.
    Deploying {
        /// The group.
        group: GroupId,
        /// The life of it that is meant.
        incarnation: Incarnation,
        /// The component.
        component: ComponentId,
    },
    /// Removes the components that no group uses or ever did.
    Collect {
        /// Only those uploaded before this, by the wall clock in nanoseconds.
        before: u64,
    },
    /// A group runs something else since an entry of its own log.
    Deployed {
        /// The group.
        group: GroupId,
        /// The life of it that is meant.
        incarnation: Incarnation,
        /// Index of that entry.
        index: LogIndex,
        /// What it runs.
        deployed: Deployed,
    },
    /// Removes a group with all its data.
    RemoveGroup {
        /// The group.
        group: GroupId,
    },
    /// A node is to host a replica, as one that joins. Nothing changes if it does already.
    AddMember {
        /// The group.
        group: GroupId,
        /// The life of it that is meant.
        incarnation: Incarnation,
        /// The node.
        node: NodeId,
    },
    /// The group refused a node as a member, for certain: it is to host no replica, unless somebody asked for it again since.
    TakeBackMember {
        /// The group.
        group: GroupId,
        /// The life of it that is meant.
        incarnation: Incarnation,
        /// The node.
        node: NodeId,
        /// Index of the command that put it here.
        added: LogIndex,
    },
    /// A node is to host no replica any more. Nothing changes if it does not.
    RemoveMember {
        /// The group.
        group: GroupId,
        /// The life of it that is meant: what a replica of a former one said of its members is no reason.
        incarnation: Incarnation,
        /// The node.
        node: NodeId,
    },
}

/// A group to create.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct NewGroup {
    /// Its id; the catalogue chooses if absent.
    pub id: Option<GroupId>,
    /// Its name.
    pub name: String,
    /// The component of its machine.
    pub component: ComponentId,
    /// Its first voters.
    pub members: BTreeSet<NodeId>,
    /// Bytes for the machine's `init`.
    #[serde(with = "super::hex")]
    pub init: Vec<u8>,
    /// What its machine may use.
    pub profile: Profile,
    /// What it takes of its clients.
    #[serde(default)]
    pub quota: Quota,
    /// Which form its barriers have.
    #[serde(default)]
    pub barriers: Barriers,
}

/// What a command did.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// It is done.
    Done,
    /// The group as it is now, or was before it was removed.
    Group(Arc<GroupRecord>),
    /// The ids of groups that were created, in the order of their names. Not the groups: an answer is kept for a retry.
    Created(Vec<GroupId>),
    /// The components that were removed.
    Collected(Vec<ComponentRecord>),
}

/// Why a command was refused; nothing changed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// The command makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// It names something that does not exist.
    #[error("{0}")]
    NotFound(String),
    /// It creates something that exists.
    #[error("{0}")]
    Exists(String),
    /// A limit of the catalogue is reached.
    #[error("{0}")]
    Full(String),
}

impl Refusal {
    /// The stable code, for programs and for documentation.
    pub fn code(&self) -> Code {
        match self {
            Self::Invalid(_) => Code::InvalidRequest,
            Self::NotFound(_) => Code::NotFound,
            Self::Exists(_) => Code::GroupExists,
            Self::Full(_) => Code::CatalogueFull,
        }
    }

    /// The number that is replicated as the rejection's code.
    pub fn number(&self) -> u32 {
        match self {
            Self::Invalid(_) => 400,
            Self::NotFound(_) => 404,
            Self::Exists(_) => 409,
            Self::Full(_) => 507,
        }
    }

    /// The refusal of a replicated number. The words are those of the node that answered; they are not replicated, so they may be
    /// gone.
    pub fn from_number(number: u32, message: String) -> Self {
        let message = if message.is_empty() {
            let what = match number {
                404 => "what it names does not exist",
                409 => "what it creates exists",
                507 => "a limit of the catalogue is reached",
                _ => "it makes no sense",
            };
            format!(
                "the catalogue refused the command: {what} (an earlier try was answered with the details, which are not kept)"
            )
        } else {
            message
        };
        match number {
            404 => Self::NotFound(message),
            409 => Self::Exists(message),
            507 => Self::Full(message),
            _ => Self::Invalid(message),
        }
    }
}
