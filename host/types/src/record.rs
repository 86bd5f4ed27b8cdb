//! What the catalogue says of nodes and components.

use serde::{Deserialize, Serialize};

use crate::id::{ComponentId, NodeId};

/// A node and where it is reached.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
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
