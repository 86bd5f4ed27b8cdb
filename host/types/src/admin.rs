//! What administration asks and answers: JSON, the same over HTTP and over the client protocol.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::deployment::Quota;
use crate::form::Barriers;
use crate::id::{ComponentId, GroupId, Incarnation, LogIndex, NodeId, Term};
use crate::machine::{Descriptor, Memory};
use crate::node_status::Rehearsal;
use crate::profile::Profile;
use crate::record::NodeRecord;
use crate::status::Role;
use crate::trouble::Troubled;

/// The methods of the client protocol's `Call`. A body is JSON of the type beside it.
pub mod method {
    /// Nothing → [`NodeInfo`](super::NodeInfo).
    pub const STATUS: &str = "status";
    /// [`CreateGroup`](super::CreateGroup) → [`GroupInfo`](super::GroupInfo), or a list of them if it names a count.
    pub const GROUP_CREATE: &str = "group.create";
    /// Nothing or [`Page`](super::Page) → list of [`GroupInfo`](super::GroupInfo), by id, at most [`LIST_MAX`](super::LIST_MAX).
    pub const GROUP_LIST: &str = "group.list";
    /// [`OfGroup`](super::OfGroup) → [`GroupInfo`](super::GroupInfo).
    pub const GROUP_INFO: &str = "group.info";
    /// [`OfGroup`](super::OfGroup) → the status of a replica: of this node's where it hosts one.
    pub const GROUP_STATUS: &str = "group.status";
    /// [`OfGroup`](super::OfGroup) → [`GroupInfo`](super::GroupInfo) as it was.
    pub const GROUP_REMOVE: &str = "group.remove";
    /// [`OfGroup`](super::OfGroup) → [`Done`](super::Done).
    pub const GROUP_CAMPAIGN: &str = "group.campaign";
    /// [`OfGroupAndNode`](super::OfGroupAndNode) → [`Done`](super::Done).
    pub const GROUP_TRANSFER: &str = "group.transfer";
    /// [`SetReplicas`](super::SetReplicas) → [`GroupInfo`](super::GroupInfo).
    pub const GROUP_REPLICAS: &str = "group.replicas";
    /// [`MoveReplica`](super::MoveReplica) → [`GroupInfo`](super::GroupInfo).
    pub const GROUP_MOVE: &str = "group.move";
    /// [`OfGroup`](super::OfGroup) → [`Placed`](super::Placed).
    pub const GROUP_SNAPSHOT: &str = "group.snapshot";
    /// [`Upgrade`](super::Upgrade) → [`Upgraded`](super::Upgraded), or [`Rehearsed`](super::Rehearsed) if it is only tried.
    pub const GROUP_UPGRADE: &str = "group.upgrade";
    /// Between nodes: the group and what it is to run → [`Placed`](super::Placed).
    pub const GROUP_ACTIVATE: &str = "group.activate";
    /// [`OfGroup`](super::OfGroup) → [`Placed`](super::Placed).
    pub const GROUP_ABORT_UPGRADE: &str = "group.abort-upgrade";
    /// [`OfGroup`](super::OfGroup) → [`Placed`](super::Placed).
    pub const GROUP_RESUME: &str = "group.resume";
    /// [`OfGroupAndNode`](super::OfGroupAndNode) → [`Placed`](super::Placed).
    pub const GROUP_TRUST: &str = "group.trust";
    /// Between nodes: [`Prepare`](super::Prepare) → [`Prepared`](super::Prepared).
    pub const COMPONENT_PREPARE: &str = "component.prepare";
    /// [`OfGroupAndNode`](super::OfGroupAndNode) → [`GroupInfo`](super::GroupInfo).
    pub const MEMBER_ADD: &str = "member.add";
    /// [`OfGroupAndNode`](super::OfGroupAndNode) → [`GroupInfo`](super::GroupInfo).
    pub const MEMBER_REMOVE: &str = "member.remove";
    /// Nothing → list of [`NodeView`](super::NodeView), by id.
    pub const NODE_LIST: &str = "node.list";
    /// [`OfNode`](super::OfNode) → [`NodeView`](super::NodeView).
    pub const NODE_STATUS: &str = "node.status";
    /// [`InviteNode`](super::InviteNode) → [`Invited`](super::Invited).
    pub const NODE_INVITE: &str = "node.invite";
    /// [`JoinCluster`](super::JoinCluster) → [`Joined`](super::Joined). Whoever has the token may ask.
    pub const NODE_JOIN: &str = "node.join";
    /// [`OfNode`](super::OfNode) → [`NodeView`](super::NodeView).
    pub const NODE_REMOVE: &str = "node.remove";
    /// [`OfNode`](super::OfNode) → [`NodeView`](super::NodeView).
    pub const NODE_CORDON: &str = "node.cordon";
    /// [`OfNode`](super::OfNode) → [`NodeView`](super::NodeView).
    pub const NODE_UNCORDON: &str = "node.uncordon";
    /// [`OfNode`](super::OfNode) → [`NodeView`](super::NodeView).
    pub const NODE_DRAIN: &str = "node.drain";
    /// [`ReplaceNode`](super::ReplaceNode) → [`NodeView`](super::NodeView) of the node that goes.
    pub const NODE_REPLACE: &str = "node.replace";
    /// Between nodes: [`Page`](super::Page) → how the groups are that the node leads.
    pub const NODE_REPORT: &str = "node.report";
    /// Between nodes: [`NodeAt`](super::NodeAt) of the asking node → [`Done`](super::Done).
    pub const NODE_AT: &str = "node.at";
    /// Nothing → list of [`ComponentRecord`](crate::record::ComponentRecord).
    pub const COMPONENT_LIST: &str = "component.list";
    /// [`Collect`](super::Collect) → list of [`ComponentRecord`](crate::record::ComponentRecord), those removed.
    pub const COMPONENT_COLLECT: &str = "component.collect";
    /// Before a method: the asking node has no replica of the group, and this node must not hand the call on again.
    pub const LOCAL: &str = "local:";
}

/// Asks for a new group.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CreateGroup {
    /// Its name; `group-<id>` if only an id is given.
    pub name: Option<String>,
    /// Its id; chosen if absent.
    pub id: Option<GroupId>,
    /// So many groups, all or none, at most [`GROUPS_AT_ONCE`]: `NAME-0001`, `NAME-0002` and so on.
    pub count: Option<usize>,
    /// `kv`, the machine built in, or the sha256 of a component that was uploaded. Default `kv`.
    pub component: Option<String>,
    /// Its members. Default: as many as `replicas` says, on the nodes with the fewest replicas.
    pub members: Option<BTreeSet<NodeId>>,
    /// How many members. Default 3, or all nodes where there are fewer.
    pub replicas: Option<usize>,
    /// Configuration for the machine's `init`, as text.
    pub init: Option<String>,
    /// What the machine may use.
    pub profile: Profile,
    /// What the group takes of its clients.
    pub quota: Quota,
    /// Which form its barriers have: `auto`, `saved` or `image`.
    pub barriers: Barriers,
}

/// Asks for another component, profile, quota or form of barriers of a group; what is absent stays.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Upgrade {
    /// The group's name, or its id in digits.
    pub group: String,
    /// `kv`, the machine built in, or the sha256 of a component that was uploaded.
    pub component: Option<String>,
    /// What the machine may use.
    pub profile: Option<Profile>,
    /// What the group takes of its clients.
    pub quota: QuotaChange,
    /// Which form its barriers have: `auto`, `saved` or `image`.
    pub barriers: Option<Barriers>,
    /// Only try it, on the node that is asked, and change nothing.
    pub dry_run: bool,
}

/// A change of a [`Quota`]; what is absent stays.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct QuotaChange {
    /// Commands in a second; 0 is no limit.
    pub commands_per_second: Option<u32>,
    /// Bytes of commands that may wait; 0 leaves it to the nodes.
    pub in_flight_bytes: Option<u64>,
    /// Bytes of commands and replies in a second; 0 leaves it to the nodes.
    pub bytes_per_second: Option<u64>,
}

impl QuotaChange {
    /// What becomes of a quota.
    pub fn of(self, quota: Quota) -> Quota {
        Quota {
            commands_per_second: self
                .commands_per_second
                .unwrap_or(quota.commands_per_second),
            in_flight_bytes: self.in_flight_bytes.unwrap_or(quota.in_flight_bytes),
            bytes_per_second: self.bytes_per_second.unwrap_or(quota.bytes_per_second),
        }
    }
}

/// What would become of an upgrade.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Rehearsed {
    /// The group.
    pub group: GroupId,
    /// The node that tried it.
    pub node: NodeId,
    /// The component.
    pub component: ComponentId,
    /// What the machine says of itself.
    pub machine: Descriptor,
    /// What it did.
    #[serde(flatten)]
    pub rehearsal: Rehearsal,
}

/// What a group runs since an entry of its log.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Upgraded {
    /// The group.
    pub group: GroupId,
    /// The component.
    pub component: ComponentId,
    /// What the machine says of itself.
    pub machine: Descriptor,
    /// Index of the entry.
    pub index: LogIndex,
    /// Term of the entry.
    pub term: Term,
}

/// Asks a node to have a component ready.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prepare {
    /// The component.
    pub component: ComponentId,
}

/// Asks for the removal of components that no group uses, or ever did.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Collect {
    /// Only those uploaded longer ago than this. Default an hour.
    pub older_than_seconds: Option<u64>,
}

/// Most groups that one request creates: all of them are in its answer.
pub const GROUPS_AT_ONCE: usize = 1024;

/// Most groups in one answer: what a client that does not read holds of a node's memory is this for each of its requests.
pub const LIST_MAX: usize = 1024;

/// Which part of the list of groups.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Page {
    /// Those behind this id; from the first one on if absent.
    pub after: Option<GroupId>,
    /// So many; [`LIST_MAX`] if absent, and at most.
    pub limit: Option<usize>,
    /// Only those that have fewer replicas than they should on nodes that answer.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub under_replicated: bool,
}

/// How far a node is with a component.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Prepared {
    /// What the machine says of itself; absent while it is fetched and compiled.
    pub machine: Option<Descriptor>,
}

/// Names a group.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OfGroup {
    /// Its name, or its id in digits.
    pub group: String,
}

impl From<GroupId> for OfGroup {
    fn from(id: GroupId) -> Self {
        Self {
            group: id.to_string(),
        }
    }
}

/// Names a group and a node.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OfGroupAndNode {
    /// The group's name, or its id in digits.
    pub group: String,
    /// The node.
    pub node: NodeId,
    /// Application bytes for the machine's `apply-conf-change`, as text; of a membership change only.
    #[serde(default)]
    pub data: String,
}

impl OfGroupAndNode {
    /// Without bytes for the machine.
    pub fn new(group: impl ToString, node: NodeId) -> Self {
        Self {
            group: group.to_string(),
            node,
            data: String::new(),
        }
    }
}

/// Names a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OfNode {
    /// The node.
    pub node: NodeId,
}

/// Asks that one node takes the place of another.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReplaceNode {
    /// The node that goes.
    pub node: NodeId,
    /// The node that takes its replicas.
    pub by: NodeId,
}

/// Asks for another number of replicas.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetReplicas {
    /// The group's name, or its id in digits.
    pub group: String,
    /// How many it is to have.
    pub replicas: usize,
}

/// Asks that a replica goes from one node to another.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MoveReplica {
    /// The group's name, or its id in digits.
    pub group: String,
    /// The node that gives it.
    pub from: NodeId,
    /// The node that takes it.
    pub to: NodeId,
}

/// Where the node that speaks is reached.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeAt {
    /// `host:port` for other nodes.
    pub peer: String,
}

/// A node, as the leader of the catalogue sees it where it can be asked.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct NodeView {
    /// What the catalogue says of it.
    pub node: NodeRecord,
    /// How it takes part in the catalogue; absent while it does not.
    pub role: Option<Role>,
    /// Whether it answers; absent where nobody knows.
    pub alive: Option<bool>,
    /// Replicas of groups that it hosts, or is to.
    pub replicas: usize,
    /// The groups of the first of these, by their names.
    #[serde(default)]
    pub groups: Vec<String>,
}

/// Asks for an invitation of one node.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct InviteNode {
    /// For how many seconds it is good. Default an hour.
    pub seconds: Option<u32>,
}

/// An invitation of one node. The token is shown once, here, and kept nowhere.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Invited {
    /// What the node has to show.
    pub token: String,
    /// For how many seconds it is good.
    pub seconds: u32,
    /// Client address of a node that takes it in; any other does too.
    pub join: String,
}

/// A node that would join.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinCluster {
    /// Its token.
    pub token: String,
    /// The id of its store, 32 hexadecimal digits.
    pub store: String,
    /// Its name; made from its id if absent.
    pub name: Option<String>,
    /// Name of the cluster that it means to join; any if absent.
    pub cluster: Option<String>,
    /// `host:port` for other nodes.
    pub peer: String,
    /// `host:port` of its client protocol.
    pub client: String,
    /// `host:port` of its HTTP interface.
    pub http: String,
}

/// What a node that joins is told.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Joined {
    /// Its id.
    pub node: NodeId,
    /// Name of the cluster.
    pub cluster: String,
    /// Which life of the cluster this is.
    pub incarnation: u64,
    /// Who founded it, and the stores that they had, each 32 hexadecimal digits: what makes the cluster itself.
    pub founders: BTreeMap<NodeId, String>,
    /// All nodes of the cluster, itself among them.
    pub nodes: Vec<NodeRecord>,
    /// sha256 of the plan of the forced recovery that this life began with, 64 hexadecimal digits; none in the first life.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<String>,
    /// The identities that the cluster had in its former lives, the latest last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub former: Vec<String>,
}

/// What was asked for was begun or is done; there is nothing to say about it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Done {
    /// Always true.
    pub done: bool,
}

impl Done {
    /// The one value.
    pub const DONE: Self = Self { done: true };
}

/// Where something stands in a group's log.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Placed {
    /// Index.
    pub index: LogIndex,
    /// Term.
    pub term: Term,
}

/// A group as the catalogue has it, and who leads it as far as the answering node knows.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct GroupInfo {
    /// Its id.
    pub id: GroupId,
    /// Its name.
    pub name: String,
    /// Which life of the id this is.
    pub incarnation: Incarnation,
    /// The component of its machine.
    pub component: ComponentId,
    /// The nodes that host a replica.
    pub members: BTreeSet<NodeId>,
    /// How many replicas it is to have; 0 where an old node answers.
    #[serde(default)]
    pub wanted: usize,
    /// The leader's node; absent where none is known.
    pub leader: Option<NodeId>,
    /// The term, where this node hosts a replica.
    pub term: Option<Term>,
    /// The linear memory of its machine, where this node hosts a replica of one in a sandbox.
    #[serde(default)]
    pub memory: Option<Memory>,
    /// What is wrong with this node's replica, and what comes next.
    pub problem: Option<String>,
}

/// A node, as it sees itself and its cluster.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct NodeInfo {
    /// Its id.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// The name of its cluster.
    pub cluster: String,
    /// The identity of its cluster, once it belongs to one.
    #[serde(default)]
    pub identity: Option<String>,
    /// Version of the program.
    pub version: String,
    /// Whether it can serve: the catalogue has a leader, and every group that belongs here was brought up, or is in trouble.
    pub ready: bool,
    /// What it waits for; empty if ready.
    pub waiting_for: Vec<String>,
    /// Groups whose replica here is in trouble, at most [`LIST_MAX`].
    #[serde(default)]
    pub troubled: Vec<Troubled>,
    /// Replicas on this node, the catalogue's included.
    pub replicas: usize,
    /// Those of them that lead.
    pub leading: usize,
    /// Snapshots that came from other nodes since this one started.
    pub snapshots_received: u64,
    /// All nodes of the cluster.
    pub nodes: Vec<NodeRecord>,
    /// The first groups of the cluster by their ids, at most [`LIST_MAX`]; the others are in the list of groups.
    pub groups: Vec<GroupInfo>,
    /// How many groups the cluster has.
    #[serde(default)]
    pub group_count: usize,
    /// The log of this node.
    pub log: serde_json::Value,
}
