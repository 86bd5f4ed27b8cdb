//! Why a request has no answer.

use skep_types::code::Code;
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
        code: Code,
        /// Its words.
        message: String,
    },
    /// The cluster refused the request.
    #[error("{message}")]
    Rejected {
        /// Its code.
        code: Code,
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
    /// The stable code, for programs and for documentation.
    pub fn code(&self) -> Code {
        match self {
            Self::Config(_) => Code::InvalidConfig,
            Self::Unreachable(_) => Code::Unreachable,
            Self::Refused { code, .. } | Self::Rejected { code, .. } => *code,
            Self::SessionExpired => Code::SessionExpired,
            Self::AnswerExpired => Code::AnswerExpired,
            Self::Unknown(_) => Code::OutcomeUnknown,
            Self::TooLarge { .. } => Code::TooLarge,
            Self::BadAnswer(_) => Code::BadAnswer,
            Self::WrongComponent(_) => Code::WrongComponent,
        }
    }

    /// Whether the command may have been applied, or may yet be.
    pub fn is_unknown(&self) -> bool {
        self.code().is_unknown()
    }

    /// Whether the same request may succeed later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Rejected { retryable, .. } => *retryable,
            // Without a session it would be done twice.
            Self::Unknown(_) => false,
            error => error.code().is_retryable(),
        }
    }

    pub(crate) fn of(error: proto::Error) -> Self {
        if error.unknown {
            return Self::Unknown(error.message);
        }
        match error.code() {
            Code::SessionExpired => Self::SessionExpired,
            Code::AnswerExpired => Self::AnswerExpired,
            code => Self::Rejected {
                code,
                retryable: error.retryable,
                message: error.words(),
            },
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
