//! What a group runs: which code, and within which limits. Replicated, and changed by an entry of the log.

use bytes::Bytes;

use crate::form::Barriers;
use crate::id::ComponentId;

/// Bytes of a machine's limits. They are a few numbers.
pub const PROFILE_BYTES_MAX: usize = 64 << 10;

/// Bytes of a deployment in a snapshot, at the most.
pub const DEPLOYMENT_BYTES_MAX: usize = PROFILE_BYTES_MAX + 128;

/// What a group runs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Deployment {
    /// The component; all zero for a machine that is part of the host.
    pub component: ComponentId,
    /// The machine's limits, as the host encodes them; the core only carries them.
    pub profile: Bytes,
    /// What the group takes from its clients.
    pub quota: Quota,
    /// Which form its barriers have.
    pub barriers: Barriers,
}

/// What a group takes from its clients. Held by its leader.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Quota {
    /// Commands in a second; 0 is no limit. Bursts of one second's worth are taken.
    pub commands_per_second: u32,
    /// Bytes of commands that wait to be put into the log; 0 leaves it to the node.
    pub in_flight_bytes: u64,
    /// Bytes of commands and of what the machine answers to them, in a second, above which commands wait; each node has as many for
    /// queries. 0 leaves it to the node.
    pub bytes_per_second: u64,
}

impl Deployment {
    /// Bytes it holds.
    pub fn size(&self) -> usize {
        self.component.0.len() + self.profile.len()
    }
}
