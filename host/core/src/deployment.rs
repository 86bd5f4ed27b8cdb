//! What a group runs: which code, and within which limits. Replicated, and changed by an entry of the log.

use bytes::Bytes;
use prost::Message;

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

/// A [`Deployment`] in the log and in snapshots.
#[derive(Clone, PartialEq, Message)]
pub struct DeploymentRecord {
    /// 32 bytes.
    #[prost(bytes = "bytes", tag = "1")]
    pub component: Bytes,
    /// As the host encodes it.
    #[prost(bytes = "bytes", tag = "2")]
    pub profile: Bytes,
    /// See [`Quota`].
    #[prost(uint32, tag = "3")]
    pub commands_per_second: u32,
    /// See [`Quota`].
    #[prost(uint64, tag = "4")]
    pub in_flight_bytes: u64,
    /// See [`Quota`].
    #[prost(uint64, tag = "5")]
    pub bytes_per_second: u64,
}

impl From<&Deployment> for DeploymentRecord {
    fn from(deployment: &Deployment) -> Self {
        Self {
            component: Bytes::copy_from_slice(&deployment.component.0),
            profile: deployment.profile.clone(),
            commands_per_second: deployment.quota.commands_per_second,
            in_flight_bytes: deployment.quota.in_flight_bytes,
            bytes_per_second: deployment.quota.bytes_per_second,
        }
    }
}

impl DeploymentRecord {
    /// What it says; none if the component's name has not 32 bytes, or the profile more than [`PROFILE_BYTES_MAX`].
    pub fn read(self) -> Option<Deployment> {
        if self.profile.len() > PROFILE_BYTES_MAX {
            return None;
        }
        Some(Deployment {
            component: ComponentId(self.component[..].try_into().ok()?),
            // Not a piece of the entry or the file that it came in, which would be held for it.
            profile: Bytes::copy_from_slice(&self.profile),
            quota: Quota {
                commands_per_second: self.commands_per_second,
                in_flight_bytes: self.in_flight_bytes,
                bytes_per_second: self.bytes_per_second,
            },
        })
    }
}
