//! Why a request has no answer.

use skep_wire::proto;

/// Why a request has no answer. Unless [`ClientError::is_unknown`], a command was certainly not applied, or, if it is
/// [`ClientError::AnswerExpired`], certainly was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The configuration makes no sense.
    #[error("the client is configured wrongly: {0}")]
    Config(&'static str),
    /// No node could be reached in time.
    #[error("no node could be reached ({0}); check the addresses and that the nodes run")]
    Unreachable(String),
    /// The node and this client do not belong together.
    #[error("the node at {address} refused the connection: {message}")]
    Refused {
        /// The node's address.
        address: String,
        /// Its code.
        code: String,
        /// Its words.
        message: String,
    },
    /// The cluster refused the request.
    #[error("{message}")]
    Rejected {
        /// Its code.
        code: String,
        /// Its words.
        message: String,
        /// Whether the same request may succeed later.
        retryable: bool,
    },
    /// The session is not known any more; open another one. This command was not applied.
    #[error("the session has expired; reopen it and propose again")]
    SessionExpired,
    /// An earlier try of the command was applied, and its answer is no longer kept.
    #[error("an earlier try of the command was applied, and its answer is no longer kept")]
    AnswerExpired,
    /// The command may have been applied, or may yet be.
    #[error("the outcome is unknown, the command may have been applied: {0}")]
    Unknown(String),
    /// The request is larger than a frame may be.
    #[error("the request has {size} bytes, the limit is {limit}")]
    TooLarge {
        /// Its bytes.
        size: usize,
        /// The limit.
        limit: usize,
    },
    /// A node answered something that makes no sense.
    #[error("the node's answer makes no sense: {0}; run the same release on both ends")]
    BadAnswer(String),
    /// A component's bytes are not those of its name.
    #[error("the bytes received are not those of component {0}")]
    WrongComponent(skep_types::id::ComponentId),
}

impl ClientError {
    /// Stable name.
    pub fn code(&self) -> &str {
        match self {
            Self::Config(_) => "invalid-config",
            Self::Unreachable(_) => "unreachable",
            Self::Refused { code, .. } | Self::Rejected { code, .. } => code,
            Self::SessionExpired => "session-expired",
            Self::AnswerExpired => "answer-expired",
            Self::Unknown(_) => "outcome-unknown",
            Self::TooLarge { .. } => "too-large",
            Self::BadAnswer(_) => "bad-answer",
            Self::WrongComponent(_) => "wrong-component",
        }
    }

    /// Whether the command may have been applied, or may yet be.
    pub fn is_unknown(&self) -> bool {
        matches!(self, Self::Unknown(_))
    }

    /// Whether the same request may succeed later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Unreachable(_) => true,
            Self::Rejected { retryable, .. } => *retryable,
            _ => false,
        }
    }

    pub(crate) fn of(error: proto::Error) -> Self {
        if error.unknown {
            return Self::Unknown(error.message);
        }
        match error.code.as_str() {
            "session-expired" => return Self::SessionExpired,
            "answer-expired" => return Self::AnswerExpired,
            _ => {}
        }
        Self::Rejected {
            code: error.code,
            message: error.message,
            retryable: error.retryable,
        }
    }

    /// As this attempt's error, after an earlier one whose outcome is unknown.
    pub(crate) fn after(self, unknown: Option<String>) -> Self {
        match unknown {
            Some(_) if self.is_unknown() || self == Self::AnswerExpired => self,
            Some(earlier) => Self::Unknown(format!("{self}; before that, {earlier}")),
            None => self,
        }
    }
}
