//! What the catalogue says of nodes and components.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::id::{ComponentId, NodeId};

/// A node and where it is reached.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Its id.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// `host:port` for other nodes.
    pub peer: String,
    /// `host:port` of its client protocol.
    pub client: String,
    /// `host:port` of its HTTP interface.
    pub http: String,
    /// The id of its store, 32 hexadecimal digits. It never changes: a node with another store has forgotten what it
    /// voted for and stored.
    pub store: String,
    /// What may be put on it.
    #[serde(default)]
    pub state: NodeState,
    /// What it says of where it stands, as `zone = a`: replicas of a group are put into different zones.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// The node that takes its replicas before it is removed, if somebody named one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub successor: Option<NodeId>,
}

/// The label that says in which zone a node stands.
pub const ZONE: &str = "zone";

impl NodeRecord {
    /// The zone that it says it stands in.
    pub fn zone(&self) -> Option<&str> {
        self.labels.get(ZONE).map(String::as_str)
    }
}

/// What a node is to its cluster.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NodeState {
    /// A node like any other.
    #[default]
    Member,
    /// It keeps its replicas and gets no new ones.
    Cordoned,
    /// It gets no new replicas, and those that it has are to go.
    Draining,
    /// It is removed from the cluster as soon as it hosts nothing.
    Removing,
    /// It was removed, for ever.
    Removed,
}

impl NodeState {
    /// Whether new replicas may be put on it.
    pub fn takes_replicas(self) -> bool {
        self == Self::Member
    }

    /// Whether its replicas are to go to other nodes.
    pub fn gives_replicas_away(self) -> bool {
        matches!(self, Self::Draining | Self::Removing)
    }
}

impl fmt::Display for NodeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Member => "member",
            Self::Cordoned => "cordoned",
            Self::Draining => "draining",
            Self::Removing => "removing",
            Self::Removed => "removed",
        })
    }
}

/// A component every member of a group that uses it keeps on its disk.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ComponentRecord {
    /// sha256 of its bytes.
    pub id: ComponentId,
    /// Its bytes.
    pub size: u64,
    /// Name of the machine in it.
    pub name: String,
    /// Wall clock of the node that took it, in nanoseconds, when it was uploaded last.
    #[serde(default)]
    pub uploaded: u64,
}
