//! What a group runs, as it is written down.

use bytes::Bytes;
use prost::Message;
pub use skep_types::deployment::{DEPLOYMENT_BYTES_MAX, Deployment, PROFILE_BYTES_MAX, Quota};

use crate::form::Barriers;
use crate::id::ComponentId;

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
    /// A [`Barriers`].
    #[prost(uint32, tag = "6")]
    pub barriers: u32,
}

impl From<&Deployment> for DeploymentRecord {
    fn from(deployment: &Deployment) -> Self {
        Self {
            component: Bytes::copy_from_slice(&deployment.component.0),
            profile: deployment.profile.clone(),
            commands_per_second: deployment.quota.commands_per_second,
            in_flight_bytes: deployment.quota.in_flight_bytes,
            bytes_per_second: deployment.quota.bytes_per_second,
            barriers: deployment.barriers.code(),
        }
    }
}

impl DeploymentRecord {
    /// What it says; none if the component's name has not 32 bytes, the profile has more than [`PROFILE_BYTES_MAX`], or the
    /// setting of its barriers is not known.
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
            barriers: Barriers::from_code(self.barriers)?,
        })
    }
}
