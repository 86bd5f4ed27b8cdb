//! What the catalogue is asked, and what it answers; JSON in group 0's log.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use skep_core::deployment::Quota;
use skep_core::form::Barriers;
use skep_core::id::{ComponentId, GroupId, Incarnation, LogIndex, NodeId};
use skep_machine::wasm::Profile;
use skep_types::code::Code;

use super::{ComponentRecord, Deployed, GroupRecord, Moving, NodeRecord, TokenDigest};

/// One change of the catalogue.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Command {
    /// A node is part of the cluster, at these addresses. Its state is the catalogue's own.
    PutNode(NodeRecord),
    /// Whoever has this token may join once, as long as it is good.
    Invite {
        /// What the token hashes to.
        token: TokenDigest,
        /// For how long, from the time stamp of the entry on.
        seconds: u32,
    },
    /// A node joins.
    Join(Join),
    /// A node is to get no new replicas.
    Cordon {
        /// The node.
        node: NodeId,
    },
    /// A node may get new replicas again, and is not to be removed.
    Uncordon {
        /// The node.
        node: NodeId,
    },
    /// A node is to be removed, as soon as it hosts nothing.
    Retire {
        /// The node.
        node: NodeId,
    },
    /// The replicas of a node are to go to other nodes; it stays part of the cluster.
    Drain {
        /// The node.
        node: NodeId,
    },
    /// A node is to be removed as soon as another one has its replicas.
    Replace {
        /// The node that goes.
        node: NodeId,
        /// The node that takes its replicas.
        by: NodeId,
    },
    /// A node that hosts nothing is removed, for ever.
    RemoveNode {
        /// The node.
        node: NodeId,
    },
    /// A recovery was forced, after nodes were lost for good with the majority of the catalogue, of groups, or both. Stands in the
    /// log that it made, and is proposed by nobody.
    Recover(Recover),
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
        /// The group is to have as many replicas as before: somebody who sees to that number asks, and not a person who wants
        /// one more.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        keeps_wanted: bool,
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
        /// As for [`AddMember`](Self::AddMember).
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        keeps_wanted: bool,
    },
    /// A node is to host no replica any more. Nothing changes if it does not.
    RemoveMember {
        /// The group.
        group: GroupId,
        /// The life of it that is meant: what a replica of a former one said of its members is no reason.
        incarnation: Incarnation,
        /// The node.
        node: NodeId,
        /// As for [`AddMember`](Self::AddMember).
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        keeps_wanted: bool,
    },
    /// A group is to have so many replicas.
    SetReplicas {
        /// The group.
        group: GroupId,
        /// The life of it that is meant.
        incarnation: Incarnation,
        /// How many.
        replicas: usize,
    },
    /// A replica is to go from one node to another. What was asked for before is forgotten.
    MoveReplica {
        /// The group.
        group: GroupId,
        /// The life of it that is meant.
        incarnation: Incarnation,
        /// From where to where.
        moving: Moving,
    },
}

/// A node that joins.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Join {
    /// What its token hashes to.
    pub token: TokenDigest,
    /// The id of its store, 32 hexadecimal digits. Whoever repeats a join with the same store gets the same id.
    pub store: String,
    /// Its name; made from its id if absent.
    pub name: Option<String>,
    /// `host:port` for other nodes.
    pub peer: String,
    /// `host:port` of its client protocol.
    pub client: String,
    /// `host:port` of its HTTP interface.
    pub http: String,
    /// Its id is above this: a founder may be slow to say that it is there.
    pub above: NodeId,
}

/// What a forced recovery does to the catalogue.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Recover {
    /// The nodes that are lost. They are removed like any dead node, as soon as no group names them.
    pub lost: BTreeSet<NodeId>,
    /// The groups that went on without their majority, and the nodes whose replicas are left.
    pub members: BTreeMap<GroupId, BTreeSet<NodeId>>,
    /// The groups of which nothing is left.
    pub gone: BTreeSet<GroupId>,
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
    /// The node as it is now, or was before it was removed.
    Node(Arc<NodeRecord>),
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
    /// The node, or the store, was removed for ever.
    #[error("{0}")]
    Removed(String),
    /// Groups need the node.
    #[error("{0}")]
    Needed(String),
    /// Nobody was invited with this token.
    #[error("{0}")]
    NotInvited(String),
    /// The invitation is too old.
    #[error("{0}")]
    InvitationExpired(String),
    /// Another node came with this token.
    #[error("{0}")]
    InvitationUsed(String),
}

/// What follows from each kind of refusal: the number that is replicated, the code, and what is said where the words are gone.
type Kind = (u32, Code, &'static str, fn(String) -> Refusal);

#[rustfmt::skip]
const KINDS: [Kind; 9] = [
    (400, Code::InvalidRequest, "it makes no sense", Refusal::Invalid),
    (404, Code::NotFound, "what it names does not exist", Refusal::NotFound),
    (409, Code::GroupExists, "what it creates exists", Refusal::Exists),
    (507, Code::CatalogueFull, "a limit of the catalogue is reached", Refusal::Full),
    (410, Code::NodeRemoved, "the node was removed for ever", Refusal::Removed),
    (412, Code::NodeNeeded, "groups need the node", Refusal::Needed),
    (401, Code::NotInvited, "nobody was invited with this token", Refusal::NotInvited),
    (403, Code::InvitationExpired, "the invitation has expired", Refusal::InvitationExpired),
    (423, Code::InvitationUsed, "another node came with this token", Refusal::InvitationUsed),
];

impl Refusal {
    fn kind(&self) -> &'static Kind {
        let at = match self {
            Self::Invalid(_) => 0,
            Self::NotFound(_) => 1,
            Self::Exists(_) => 2,
            Self::Full(_) => 3,
            Self::Removed(_) => 4,
            Self::Needed(_) => 5,
            Self::NotInvited(_) => 6,
            Self::InvitationExpired(_) => 7,
            Self::InvitationUsed(_) => 8,
        };
        &KINDS[at]
    }

    /// The stable code, for programs and for documentation.
    pub fn code(&self) -> Code {
        self.kind().1
    }

    /// The number that is replicated as the rejection's code.
    pub fn number(&self) -> u32 {
        self.kind().0
    }

    /// The refusal of a replicated number. The words are those of the node that answered; they are not replicated, so they may be
    /// gone.
    pub fn from_number(number: u32, message: String) -> Self {
        let known = KINDS.iter().find(|(known, ..)| *known == number);
        let (_, _, what, make) = known.unwrap_or(&KINDS[0]);
        if !message.is_empty() {
            return make(message);
        }
        make(format!(
            "the catalogue refused the command: {what} (an earlier try was answered with the details, which are not kept)"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_found_by_its_number() {
        for (number, code, _, make) in KINDS {
            let refusal = make("why".into());
            assert_eq!((refusal.number(), refusal.code()), (number, code));
            assert_eq!(Refusal::from_number(number, "why".into()), refusal);
            let bare = Refusal::from_number(number, String::new());
            assert_eq!(bare.code(), code, "{bare}");
        }
        let other = Refusal::from_number(999, String::new());
        assert_eq!(other.code(), Code::InvalidRequest);
    }
}
