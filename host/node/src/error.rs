//! Why a call of the library failed.

use std::io;

use skep_core::config::ConfigError;
use skep_core::id::{GroupId, Incarnation, NodeId};
use skep_core::proposal::ProposalError;
use skep_log::LogError;
use skep_types::code::Code;

/// Why a call of a [`MultiNode`](crate::MultiNode) failed. [`Error::code`] is stable; the texts are for people.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The node has stopped (`ErrStopped` of the seed package). Nothing was done.
    #[error("node {node} has stopped")]
    Stopped {
        /// The node.
        node: NodeId,
    },
    /// The node stopped while the request was in flight.
    #[error("node {node} stopped while the request was in flight; it may have been applied")]
    StoppedInFlight {
        /// The node.
        node: NodeId,
    },
    /// The node cannot go on; it acknowledges nothing any more and must be restarted.
    #[error("node {node} has failed: {reason}")]
    NodeFailed {
        /// The node.
        node: NodeId,
        /// What broke.
        reason: String,
    },
    /// A node does not answer (`ErrUnreachable` of the seed package).
    #[error("node {node} is not reachable; check that it runs and that its address is right")]
    Unreachable {
        /// The node.
        node: NodeId,
    },
    /// The group is on this node already (`ErrGroupExists` of the seed package). Its storage was not touched.
    #[error("group {group} exists on this node already")]
    GroupExists {
        /// The group.
        group: GroupId,
    },
    /// This node has no replica of the group (`ErrNoSuchGroup` of the seed package).
    #[error("group {group} is not on node {node}")]
    NoSuchGroup {
        /// The group.
        group: GroupId,
        /// The node that was asked.
        node: NodeId,
    },
    /// The node's replica of this life of the group was removed for ever.
    #[error(
        "incarnation {incarnation} of group {group} was removed from this node; let the node join again with empty members, or \
         create the group under a higher incarnation"
    )]
    GroupRemoved {
        /// The group.
        group: GroupId,
        /// The life that is over.
        incarnation: Incarnation,
    },
    /// The replica of the group on this node has failed and is halted; other groups are not concerned.
    #[error("the replica of group {group} on this node is halted: {reason}")]
    GroupHalted {
        /// The group.
        group: GroupId,
        /// What broke.
        reason: String,
    },
    /// This node could not run a query; the replica and its group are not concerned.
    #[error(
        "node trouble: a query of group {group} could not be run here: {reason}; ask again or ask another node, and see this node's log"
    )]
    QueryFailed {
        /// The group.
        group: GroupId,
        /// What happened here.
        reason: String,
    },
    /// A field of a configuration or an argument is wrong; nothing was changed.
    #[error("`{field}` is wrong: {reason}")]
    InvalidConfig {
        /// The field or argument.
        field: &'static str,
        /// What is wrong with it, and what is allowed.
        reason: String,
    },
    /// The node holds as many unanswered requests as it may; nothing was proposed.
    #[error(
        "node {node} has too many requests in flight; nothing was applied, slow down and try again"
    )]
    Busy {
        /// The node.
        node: NodeId,
    },
    /// The data directory cannot be used.
    #[error(transparent)]
    Storage(#[from] LogError),
    /// A thread or a transport could not be started.
    #[error("cannot start {what}: {source}")]
    Start {
        /// What.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// Code that was called for this panicked: a machine of the embedding program, or this library.
    #[error(
        "node {node} panicked: {reason}; this is a defect of the machine or of skep, see the node's log"
    )]
    Panicked {
        /// The node.
        node: NodeId,
        /// What the panic said.
        reason: String,
    },
    /// The group answered that it did not do what was proposed, or that it does not know.
    #[error("group {group}: {source}")]
    Proposal {
        /// The group.
        group: GroupId,
        /// Its answer.
        source: ProposalError,
    },
}

impl Error {
    /// The stable code, for programs and for documentation.
    pub fn code(&self) -> Code {
        match self {
            Self::Stopped { .. } | Self::StoppedInFlight { .. } => Code::Stopped,
            Self::NodeFailed { .. } => Code::NodeFailed,
            Self::Unreachable { .. } => Code::Unreachable,
            Self::GroupExists { .. } => Code::GroupExists,
            Self::NoSuchGroup { .. } => Code::NoSuchGroup,
            Self::GroupRemoved { .. } => Code::GroupRemoved,
            Self::GroupHalted { .. } => Code::GroupFaulted,
            Self::QueryFailed { .. } => Code::QueryFailed,
            Self::InvalidConfig { .. } => Code::InvalidConfig,
            Self::Busy { .. } => Code::Busy,
            Self::Storage(error) => error.code(),
            Self::Start { .. } => Code::CannotStart,
            Self::Panicked { .. } => Code::Internal,
            Self::Proposal { source, .. } => source.code(),
        }
    }

    /// Whether what was asked for may have been done, or may yet be. Every other error means that this call changed
    /// nothing.
    pub fn is_unknown(&self) -> bool {
        // A node that stopped says so by one code, whether or not it had begun.
        matches!(self, Self::StoppedInFlight { .. }) || self.code().is_unknown()
    }

    /// Whether the same request may succeed on this node if it is sent again (under the same request id).
    pub fn is_retryable(&self) -> bool {
        self.code().is_retryable()
    }

    pub(crate) fn proposal(group: GroupId, source: ProposalError) -> Self {
        Self::Proposal { group, source }
    }

    pub(crate) fn invalid(field: &'static str, reason: impl Into<String>) -> Self {
        Self::InvalidConfig {
            field,
            reason: reason.into(),
        }
    }
}

impl From<ConfigError> for Error {
    fn from(error: ConfigError) -> Self {
        Self::InvalidConfig {
            field: error.field,
            reason: error.reason,
        }
    }
}
