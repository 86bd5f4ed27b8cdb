//! Why the host refused or failed a request.

use std::net::SocketAddr;

use skep::NoRoom;
use skep::transport::TransportError;
use skep_core::id::{ComponentId, GroupId, NodeId};
use skep_machine::MachineError;
use skep_machine::wasm::{ComponentError, OutOfBudget};
use skep_types::code::Code;

use crate::catalog::command::Refusal;
use crate::components::StoreError;
use crate::config::ConfigError;

/// Why a request to a [`Host`](crate::cluster::Host) failed. [`code`](Self::code) is stable.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HostError {
    /// The node or the group said so.
    #[error(transparent)]
    Node(#[from] skep::Error),
    /// Other nodes could not be listened to.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The catalogue refused.
    #[error("{0}")]
    Refused(Refusal),
    /// The request makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// The connection of a client was lost.
    #[error("the connection was lost: {0}")]
    Lost(#[source] std::io::Error),
    /// What only nodes ask of each other.
    #[error(
        "`{0}` is between nodes; clients ask for the whole, as with `group.upgrade`, and the node that is asked does the rest"
    )]
    BetweenNodes(String),
    /// The request is larger than this node takes.
    #[error("the request has {size} bytes, the limit is {limit}")]
    TooLarge {
        /// Bytes of the request.
        size: u64,
        /// The limit.
        limit: u64,
    },
    /// The process may open too few files and sockets.
    #[error(
        "this process may have {descriptors} files and connections open, and a node needs {floor} at least; raise the limit with `ulimit -n 4096`, or LimitNOFILE= of its unit"
    )]
    TooFewDescriptors {
        /// How many it may have.
        descriptors: usize,
        /// How many it needs.
        floor: usize,
    },
    /// The machines of this node hold as much as they may.
    #[error(transparent)]
    OutOfBudget(#[from] OutOfBudget),
    /// A profile asks for more than this node lets anybody have.
    #[error(
        "the profile's `{key}` is {value}, and this node allows at most {most}; ask for less, or raise [limits] profile_{} on the nodes", key.replace('-', "_")
    )]
    AboveCeiling {
        /// The setting.
        key: &'static str,
        /// What was asked for.
        value: u64,
        /// What may be.
        most: u64,
    },
    /// There is no room for it.
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
    /// No group of this name or id.
    #[error("there is no group `{0}`; see `skep group list`")]
    UnknownGroup(String),
    /// The group belongs on this node alone and does not run yet.
    #[error("group {group} is not running on node {node} yet{}; try again", .reason.as_deref().map(|reason| format!(" ({reason})")).unwrap_or_default())]
    Starting {
        /// The group.
        group: GroupId,
        /// This node.
        node: NodeId,
        /// Why the last attempt failed.
        reason: Option<String>,
    },
    /// The group has no replica here; a member is named.
    #[error("group {group} is not on this node; node {node} at {address} hosts it")]
    Elsewhere {
        /// The group.
        group: GroupId,
        /// A member.
        node: NodeId,
        /// Where clients reach it.
        address: String,
    },
    /// Another member does not lead although it was asked to.
    #[error(
        "node {to} does not lead group {group} yet: it is behind, or does not answer; see `skep group status {group}` and try again"
    )]
    NotTransferred {
        /// The group.
        group: GroupId,
        /// Who is to lead.
        to: NodeId,
    },
    /// The node is being stopped.
    #[error("node {node} stops and takes nothing new; ask another node")]
    Stops {
        /// The node.
        node: NodeId,
    },
    /// The node's data directory went back, so that what it holds may be old.
    #[error("node {node} takes no part any more: {said}")]
    WentBack {
        /// The node.
        node: NodeId,
        /// What another node says of it.
        said: String,
    },
    /// No component of this id.
    #[error(
        "component {0} is not known here; upload it with `PUT /v1/components/{0}` or `skep group create --component FILE`"
    )]
    UnknownComponent(ComponentId),
    /// The component cannot be a machine.
    #[error("the component cannot be used")]
    Component(#[from] ComponentError),
    /// Others were compiled before the component for as long as one may take.
    #[error(
        "component {component} is not compiled: others were before it for {milliseconds} ms; try again later"
    )]
    CompileLate {
        /// The component.
        component: ComponentId,
        /// The time waited.
        milliseconds: u64,
    },
    /// An instance of the component could not be made.
    #[error("the machine could not be started")]
    Machine(#[from] MachineError),
    /// A component could not be stored.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The new machine does not take the state of the group.
    #[error(
        "the group was not upgraded and goes on with what it ran: {0}; see the nodes' logs for the machine's own words"
    )]
    NotUpgraded(String),
    /// An upgrade was decided before it was to be given up.
    #[error("the upgrade is not given up: {0}")]
    NotAborted(String),
    /// The group has no snapshot that a machine could be tried on.
    #[error(
        "group {0} could not take a snapshot to try the machine on; see `skep group status {0}` and the node's log"
    )]
    NotRehearsed(GroupId),
    /// It took longer than the request allowed.
    #[error("no answer within {milliseconds} ms; it may have been applied")]
    TimedOut {
        /// The time allowed.
        milliseconds: u64,
    },
    /// There was no answer to what changes nothing.
    #[error("no answer within {milliseconds} ms; nothing was changed, try again")]
    Unanswered {
        /// The time allowed.
        milliseconds: u64,
    },
    /// The cluster that this node would join refused it.
    #[error("the cluster did not take this node in: {message}")]
    NotTakenIn {
        /// Its code.
        code: Code,
        /// Its words.
        message: String,
    },
    /// The node belongs to no cluster yet.
    #[error("node {node} belongs to no cluster yet; it waits for {waits}")]
    Unfounded {
        /// The node.
        node: NodeId,
        /// For whom it waits, and why.
        waits: String,
    },
    /// An address cannot be listened on.
    #[error(
        "cannot listen on {address} for {what}; stop what uses the port, or change it in [cluster.nodes] or [listen]"
    )]
    Listen {
        /// For whom.
        what: &'static str,
        /// The address as configured.
        address: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Another node that was asked for this answered with an error.
    #[error("node {node}: {message}")]
    Remote {
        /// The node.
        node: NodeId,
        /// Its stable code.
        code: Code,
        /// Its words.
        message: String,
        /// Whether the command may have been applied.
        unknown: bool,
        /// Whether a retry may succeed.
        retryable: bool,
    },
    /// The node ran into something that cannot happen.
    #[error("internal error: {0}; this is a defect of skep, please report it with the node's log")]
    Internal(String),
}

impl HostError {
    /// The stable code, for programs and for documentation.
    pub fn code(&self) -> Code {
        match self {
            Self::Node(error) => error.code(),
            Self::Transport(error) => error.code(),
            Self::Config(error) => error.code(),
            Self::Refused(refusal) => refusal.code(),
            Self::Invalid(_) => Code::InvalidRequest,
            Self::Lost(_) => Code::ConnectionFailed,
            Self::BetweenNodes(_) => Code::Forbidden,
            Self::TooLarge { .. } => Code::TooLarge,
            Self::TooFewDescriptors { .. } => Code::TooFewDescriptors,
            Self::AboveCeiling { .. } => Code::AboveCeiling,
            Self::OutOfBudget(_) | Self::NoRoom(_) => Code::OutOfBudget,
            Self::UnknownGroup(_) => Code::NoSuchGroup,
            Self::Starting { .. } => Code::GroupStarting,
            Self::Elsewhere { .. } => Code::GroupElsewhere,
            Self::NotTransferred { .. } => Code::NotTransferred,
            Self::Stops { .. } => Code::NodeStops,
            Self::WentBack { .. } => Code::StoreWentBack,
            Self::UnknownComponent(_) => Code::NoSuchComponent,
            Self::NotUpgraded(_) => Code::NotUpgraded,
            Self::NotAborted(_) => Code::NotAborted,
            Self::NotRehearsed(_) => Code::NotRehearsed,
            Self::CompileLate { .. } => Code::CompileLate,
            Self::Component(error) => error.code(),
            Self::Machine(error) => error.code(),
            Self::Store(error) => error.code(),
            Self::TimedOut { .. } => Code::OutcomeUnknown,
            Self::Unanswered { .. } => Code::TimedOut,
            Self::Unfounded { .. } => Code::Unfounded,
            Self::Listen { .. } => Code::CannotListen,
            Self::Remote { code, .. } | Self::NotTakenIn { code, .. } => *code,
            Self::Internal(_) => Code::Internal,
        }
    }

    /// Whether what was asked for may have been done, or may yet be.
    pub fn is_unknown(&self) -> bool {
        match self {
            Self::Node(error) => error.is_unknown(),
            Self::Remote { unknown, .. } => *unknown,
            error => error.code().is_unknown(),
        }
    }

    /// Whether the same request may succeed if it is sent again.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Remote { retryable, .. } => *retryable,
            error => error.code().is_retryable(),
        }
    }

    /// The whole chain of causes in one line.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            let line = error.to_string();
            // A transparent variant repeats its source.
            if !text.ends_with(&line) {
                text.push_str(": ");
                text.push_str(&line);
            }
            cause = error.source();
        }
        text
    }
}

/// Resolves and binds an address; the port may be 0, so the one taken is returned.
pub async fn listen(
    what: &'static str,
    address: &str,
) -> Result<(tokio::net::TcpListener, SocketAddr), HostError> {
    let bound = async {
        let listener = tokio::net::TcpListener::bind(address).await?;
        let bound = listener.local_addr()?;
        Ok((listener, bound))
    };
    bound.await.map_err(|source| HostError::Listen {
        what,
        address: address.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use skep_machine::wasm::CompileError;

    use super::*;

    #[test]
    fn what_only_this_node_could_not_do_is_worth_another_attempt() {
        for (error, retryable) in [
            (ComponentError::Code("no memory".to_owned()), true),
            (
                ComponentError::NotCompiled(CompileError::Local("no process".to_owned())),
                true,
            ),
            (
                ComponentError::NotCompiled(CompileError::Invalid("no".to_owned())),
                false,
            ),
            (ComponentError::NotWasm, false),
        ] {
            let error = HostError::Component(error);
            assert_eq!(error.is_retryable(), retryable, "{error}");
        }
    }
}
