//! What can be wrong with bytes from the network.

use std::io;

use skep_types::code::Code;

/// Why a frame could not be written or read, or a message not be understood. After an error of a stream's decoder the
/// stream has lost its place: close the connection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// A message without any content, which no sender has a reason to send.
    #[error("the frame holds an empty message")]
    EmptyMessage,
    /// The stream ended inside a frame.
    #[error("the stream ended inside a frame: at least {missing} more bytes were expected")]
    NotEnoughData {
        /// Bytes that were still to come, as far as it could be told.
        missing: usize,
    },
    /// The frame is larger than the limit of this connection.
    #[error("a frame of {size} bytes is over the limit of {limit}")]
    FrameTooLarge {
        /// Bytes of the body.
        size: usize,
        /// The limit.
        limit: usize,
    },
    /// The checksum does not match.
    #[error("the frame is corrupt: its checksum is {found:#010x}, its bytes give {computed:#010x}")]
    Corrupt {
        /// The checksum in the header.
        found: u32,
        /// The checksum of what was received.
        computed: u32,
    },
    /// The bytes are not a frame: the other end does not speak this protocol.
    #[error(
        "not a Skep frame: it begins with {found:02x?}; does the address belong to another service?"
    )]
    BadMagic {
        /// What stands where the magic should.
        found: [u8; 2],
    },
    /// The frame has a layout of another version.
    #[error(
        "frame layout version {found} is not supported, this is version {supported}; run the same release on both ends"
    )]
    UnsupportedVersion {
        /// The version of the frame.
        found: u8,
        /// The version spoken here.
        supported: u8,
    },
    /// The body is not the message that was expected.
    #[error("the message cannot be parsed: {0}")]
    Malformed(#[from] prost::DecodeError),
    /// A part that every such message has is not there.
    #[error("the message has no {0}")]
    Missing(&'static str),
    /// A number that names nothing.
    #[error("{value} is not a known {what}")]
    UnknownValue {
        /// What it should name.
        what: &'static str,
        /// The number.
        value: i64,
    },
    /// An id or a term is 0 where 0 names nothing.
    #[error("{0} is 0")]
    Zero(&'static str),
    /// A field of fixed size has another size.
    #[error("{what} has {found} bytes instead of {expected}")]
    BadLength {
        /// The field.
        what: &'static str,
        /// Bytes it has.
        found: usize,
        /// Bytes it must have.
        expected: usize,
    },
    /// A message stands where it has no business.
    #[error("{0}")]
    Misplaced(&'static str),
    /// The entries of an append do not follow each other.
    #[error(
        "an append after index {after} holds an entry with index {found} where {expected} should be"
    )]
    EntriesNotContiguous {
        /// Index the append follows.
        after: u64,
        /// Index that was found.
        found: u64,
        /// Index that should have been there.
        expected: u64,
    },
    /// The connection failed.
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
}

impl WireError {
    /// A number that is none of what it should name.
    pub fn unknown(what: &'static str, value: impl Into<i64>) -> Self {
        let value = value.into();
        Self::UnknownValue { what, value }
    }

    /// The stable code, as in logs and metrics.
    pub fn code(&self) -> Code {
        match self {
            Self::EmptyMessage => Code::EmptyMessage,
            Self::NotEnoughData { .. } => Code::NotEnoughData,
            Self::FrameTooLarge { .. } => Code::FrameTooLarge,
            Self::Corrupt { .. } => Code::FrameCorrupt,
            Self::BadMagic { .. } => Code::NotAFrame,
            Self::UnsupportedVersion { .. } => Code::FrameVersion,
            Self::Malformed(_) => Code::MalformedMessage,
            Self::Missing(_) => Code::MessageIncomplete,
            Self::UnknownValue { .. } => Code::UnknownValue,
            Self::Zero(_) => Code::ZeroId,
            Self::BadLength { .. } => Code::BadLength,
            Self::Misplaced(_) => Code::MisplacedMessage,
            Self::EntriesNotContiguous { .. } => Code::EntriesNotContiguous,
            Self::Io(_) => Code::ConnectionFailed,
        }
    }
}
