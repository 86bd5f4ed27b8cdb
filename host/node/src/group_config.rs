//! How a group is set up on a node.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use skep_core::config::{GroupConfig as CoreConfig, Limits, Member};
use skep_core::id::{ComponentId, GroupId, Incarnation, NodeId, ReplicaId};
use skep_machine::state_machine::StateMachine;

use crate::clock;
use crate::error::Error;
use crate::machines::exchange::Exchange;

/// Bytes of a group's name; it stands in every log line of the group.
pub const NAME_BYTES_MAX: usize = 256;

/// A node and the group it is a member of (`GroupNode` of the seed package): what a change of membership is about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GroupNode {
    /// The group.
    pub group: GroupId,
    /// The member's node.
    pub node: NodeId,
    /// The application's own bytes, given to `apply-conf-change`; an address, for instance.
    pub data: Bytes,
}

impl GroupNode {
    /// The initial member this is.
    pub fn peer(&self) -> Peer {
        Peer {
            node: self.node,
            data: self.data.clone(),
        }
    }
}

/// One initial voter of a group (`Peer` of the seed package).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Peer {
    /// Its node.
    pub node: NodeId,
    /// Application bytes for `apply-conf-change`.
    pub data: Bytes,
}

impl Peer {
    /// A voter without application bytes.
    pub fn new(node: NodeId) -> Self {
        Self {
            node,
            data: Bytes::new(),
        }
    }
}

/// The configuration of one group on one node (`GroupConfig` of the seed package). All initial members must be given the
/// same `id`, `incarnation`, `members`, `init` and machine; timing and limits ought to agree.
pub struct GroupConfig {
    /// The group. 0 is the host's catalogue.
    pub id: GroupId,
    /// For people: log lines and status. At most 256 bytes.
    pub name: String,
    /// The machine, in its initial state.
    pub machine: Box<dyn StateMachine>,
    /// The component the machine runs; zero for a native machine. Written into snapshots.
    pub component: ComponentId,
    /// What lets the group go on with another machine. Default none.
    pub exchange: Option<Exchange>,
    /// The initial voters. Empty on a node that joins later and waits to be contacted by the leader. Ignored when the
    /// replica is recovered from disk: its log knows.
    #[doc(alias = "peers")]
    pub members: Vec<Peer>,
    /// The initial voter that stands for election as soon as the group is founded, so that the group has a leader at once; the
    /// same on each of them. Default none: the first timeout to end decides.
    pub first_leader: Option<NodeId>,
    /// So many of the initial members vote, those with the lowest ids of nodes; the others begin as learners. Default 63, the
    /// most there may be.
    pub founding_voters: usize,
    /// The life of the group id; a group that is removed and created again needs a higher one. Default 1.
    pub incarnation: Incarnation,
    /// Bytes for the machine's `init`, called once in the group's life. Default empty.
    pub init: Bytes,
    /// A directory with a log of its own for this group; default is the node's log, which all groups share and so
    /// share each sync of.
    pub data_dir: Option<PathBuf>,
    /// Entries after a snapshot that make the leader ask for the next one. Default 8192.
    #[doc(alias = "snap_count", alias = "SnapCount")]
    pub snapshot_entries: u64,
    /// How long the log waits for more records before it syncs, where `data_dir` gives the group its own log. It delays
    /// acknowledgements and never acknowledges early. Default 0.
    #[doc(alias = "fsync_tick", alias = "FsyncTick")]
    pub fsync_delay: Duration,
    /// Ticks without a leader before a replica campaigns; the real timeout lies between this and twice this. Default 10.
    pub election_ticks: u32,
    /// Ticks between heartbeats of a leader. Default 2.
    pub heartbeat_ticks: u32,
    /// Append messages in flight to one follower. Default 256.
    #[doc(alias = "max_in_flights", alias = "MaxInFlights")]
    pub max_in_flight: usize,
    /// Bytes of entries in one append message. Default 1 MiB.
    #[doc(alias = "max_msg_size", alias = "MaxMsgSize")]
    pub max_message_bytes: u64,
    /// What the group refuses to hold more of.
    pub limits: Limits,
}

impl GroupConfig {
    /// A group with the defaults.
    pub fn new(
        id: GroupId,
        name: impl Into<String>,
        machine: Box<dyn StateMachine>,
        members: Vec<Peer>,
    ) -> Self {
        let core = CoreConfig::new(id, Incarnation(1), NodeId(1));
        Self {
            id,
            name: name.into(),
            machine,
            component: ComponentId::default(),
            exchange: None,
            members,
            first_leader: None,
            founding_voters: core.founding_voters,
            incarnation: core.incarnation,
            init: core.init,
            data_dir: None,
            snapshot_entries: core.snapshot_entries,
            fsync_delay: Duration::ZERO,
            election_ticks: core.election_ticks,
            heartbeat_ticks: core.heartbeat_ticks,
            max_in_flight: core.max_in_flight,
            max_message_bytes: core.max_message_bytes,
            limits: core.limits,
        }
    }

    /// What the core needs to know, checked. `seed` is the node's.
    pub(crate) fn to_core(&self, node: NodeId, seed: u64) -> Result<CoreConfig, Error> {
        if self.name.len() > NAME_BYTES_MAX {
            return Err(Error::invalid(
                "name",
                format!(
                    "has {} bytes, the limit is {NAME_BYTES_MAX}",
                    self.name.len()
                ),
            ));
        }
        if self.max_message_bytes == 0 {
            return Err(Error::invalid(
                "max_message_bytes",
                "must be at least 1 byte",
            ));
        }
        let config = CoreConfig {
            removed_through: ReplicaId(0),
            group: self.id,
            incarnation: self.incarnation,
            node,
            members: self
                .members
                .iter()
                .map(|peer| Member {
                    node: peer.node,
                    data: peer.data.clone(),
                })
                .collect(),
            first_leader: self.first_leader,
            founding_voters: self.founding_voters,
            init: self.init.clone(),
            deployment: self
                .exchange
                .as_ref()
                .map(|exchange| exchange.founding.clone()),
            election_ticks: self.election_ticks,
            heartbeat_ticks: self.heartbeat_ticks,
            max_in_flight: self.max_in_flight,
            max_message_bytes: self.max_message_bytes,
            snapshot_entries: self.snapshot_entries,
            seed,
            now: clock::now(),
            limits: self.limits,
        };
        config.validate()?;
        Ok(config)
    }
}

impl fmt::Debug for GroupConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GroupConfig")
            .field("id", &self.id)
            .field("name", &self.name)
            .field("incarnation", &self.incarnation)
            .field("members", &self.members)
            .finish_non_exhaustive()
    }
}
