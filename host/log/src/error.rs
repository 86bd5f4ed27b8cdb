//! The one error type of the crate.

use std::io;
use std::path::{Path, PathBuf};

use skep_types::code::Code;
use skep_types::past::{ADVICE, WentBack};
use skep_vfs::{FileError, is_want};

use crate::record::GroupKey;

/// Everything that can go wrong with a data directory. [`LogError::code`] is stable, the texts are not.
///
/// A *node* error ends the use of the store it came from (an I/O failure, corruption, a wrong disk); a *record* error
/// ([`LogError::is_record_error`]) is the caller's mistake about one group and changed nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// A file operation failed. A full disk has its own code.
    #[error("cannot {action} {}: {source}{}", .path.display(), advice(.source))]
    Io {
        /// What was attempted, as a verb.
        action: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
    /// Acknowledged data is damaged, so the log cannot be trusted.
    #[error(
        "{} is corrupt at byte {offset}: {reason}. Acknowledged data is damaged; do not delete the file. Restore this \
         node's data directory, or wipe it and let the node rejoin as a new replica",
        .file.display()
    )]
    Corrupt {
        /// The damaged file.
        file: PathBuf,
        /// The first byte of the damaged part.
        offset: u64,
        /// What was found there.
        reason: String,
    },
    /// A segment that the log still needs is not there.
    #[error("the log segment {} is missing. Restore it, or wipe this node and let it rejoin as a new replica", .file.display())]
    MissingSegment {
        /// The file that ought to exist.
        file: PathBuf,
    },
    /// The file was written by a version of Skep this one does not know.
    #[error("{} has format version {found}; this program reads version {supported}. Use the version of Skep that wrote it", .file.display())]
    UnsupportedFormat {
        /// The file.
        file: PathBuf,
        /// The version in it.
        found: u32,
        /// The version this program writes.
        supported: u32,
    },
    /// The file belongs to another store, for instance because a backup was mixed in.
    #[error("{} belongs to another store than this data directory. Move it away, or restore the whole directory from one backup", .file.display())]
    WrongStore {
        /// The file.
        file: PathBuf,
    },
    /// An earlier write or sync failed, so nothing further may be acknowledged.
    #[error(
        "the log stopped after a failed write and accepts nothing more until the node is restarted: {cause}"
    )]
    Poisoned {
        /// The first failure.
        cause: String,
    },
    /// A record contradicts what the log already holds of its group.
    #[error("a record of {key} was refused: {reason}")]
    InvalidRecord {
        /// Whose record.
        key: GroupKey,
        /// The contradiction.
        reason: String,
    },
    /// A record does not fit into one frame.
    #[error(
        "a record of {key} has {size} bytes, the limit is {limit}: write its entries in several records"
    )]
    RecordTooLarge {
        /// Whose record.
        key: GroupKey,
        /// Its encoded size in bytes.
        size: u64,
        /// The largest size in bytes.
        limit: u64,
    },
    /// A record of an incarnation that has a tombstone.
    #[error("{key} was removed from this node; create it again under a new incarnation")]
    Removed {
        /// The removed incarnation.
        key: GroupKey,
    },
    /// Options out of their range.
    #[error("bad log options: {reason}")]
    InvalidOptions {
        /// Which, and what is allowed.
        reason: String,
    },
    /// Another process uses the data directory.
    #[error("the data directory is in use by another process (lock file {}). Stop that process, or choose another directory", .path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// The data directory belongs to another cluster.
    #[error("{} belongs to cluster '{found}', not '{expected}'. Check the cluster id and the data directory in the configuration", .file.display())]
    WrongCluster {
        /// The identity file.
        file: PathBuf,
        /// The configured cluster.
        expected: String,
        /// The directory's cluster.
        found: String,
    },
    /// The data directory belongs to another node.
    #[error("{} belongs to node {found}, not node {expected}. Check the node id and the data directory in the configuration", .file.display())]
    WrongNode {
        /// The identity file.
        file: PathBuf,
        /// The configured node.
        expected: u64,
        /// The directory's node.
        found: u64,
    },
    /// The data directory holds another group.
    #[error("{} holds group {found}, not group {expected}. Check the group's data directory", .dir.display())]
    WrongGroup {
        /// The data directory.
        dir: PathBuf,
        /// The group asked for.
        expected: u64,
        /// The group found.
        found: u64,
    },
    /// The identity file or the file of pinned peers cannot be understood.
    #[error("{} is damaged: {reason}. Restore it from a backup; deleting it would let a wiped disk pose as this node", .file.display())]
    BadIdentity {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The data directory belongs to a cluster already.
    #[error("{} says that the data directory has been used for a cluster already. Choose an empty directory for another one", .file.display())]
    Founded {
        /// The identity file.
        file: PathBuf,
    },
    /// The data directory has a log and belongs to no cluster.
    #[error(
        "{} belongs to no cluster, but there is a log: it was written before clusters had an identity, which no release did. Begin with an empty directory", .file.display()
    )]
    Unfounded {
        /// The identity file.
        file: PathBuf,
    },
    /// A forced recovery was begun here and not ended.
    #[error(
        "{} says that a forced recovery of this data directory was begun and not ended. Run `skep recover apply` with the same plan again: it goes on where it stopped", .file.display()
    )]
    Recovering {
        /// The identity file.
        file: PathBuf,
    },
    /// A cluster id or node id that cannot be stored.
    #[error("bad identity: {reason}")]
    InvalidIdentity {
        /// Which, and what is allowed.
        reason: String,
    },
    /// A peer's disk is not the one seen first.
    #[error(
        "node {node} came back with another store ({found}, pinned {pinned}): its disk was wiped or replaced. Remove the \
         node from its groups, then forget its pin, and let it rejoin as a new replica"
    )]
    PeerChanged {
        /// The peer.
        node: u64,
        /// The store seen first.
        pinned: String,
        /// The store it shows now.
        found: String,
    },
    /// A peer's data directory was set back to an older copy, or is used twice.
    #[error("node {node} went back: {why}. It may have forgotten what it acknowledged; {ADVICE}")]
    PeerWentBack {
        /// The peer.
        node: u64,
        /// How that shows.
        why: WentBack,
    },
    /// This data directory was set back to an older copy, or is used twice, as another node found.
    #[error("{} says that the data directory went back: {why}", .file.display())]
    WentBack {
        /// The note.
        file: PathBuf,
        /// What the other node said, and what to do.
        why: String,
    },
    /// Too many peers to remember.
    #[error("more than {limit} peers are pinned in {}; forget the ones that left the cluster", .file.display())]
    TooManyPeers {
        /// The file of pins.
        file: PathBuf,
        /// The limit.
        limit: usize,
    },
    /// A snapshot file is damaged or is not the expected one.
    #[error("the snapshot {} cannot be used: {reason}. It must be fetched again from another replica", .file.display())]
    BadSnapshot {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A snapshot is larger than allowed.
    #[error("the snapshot {} would have {size} bytes, the limit is {limit}", .file.display())]
    SnapshotTooLarge {
        /// The file.
        file: PathBuf,
        /// Its size in bytes, as far as known.
        size: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// A chunk of an incoming snapshot does not continue it.
    #[error("a chunk for {} starts at byte {offset}, but {received} bytes are there; restart the transfer at that byte", .file.display())]
    SnapshotChunk {
        /// The file being received.
        file: PathBuf,
        /// Where the chunk starts.
        offset: u64,
        /// How much has been received.
        received: u64,
    },
}

impl LogError {
    /// The stable code, for programs and for documentation.
    pub fn code(&self) -> Code {
        match self {
            LogError::Io { source, .. } if is_full(source) => Code::DiskFull,
            LogError::Io { .. } => Code::LogIo,
            LogError::Corrupt { .. } => Code::LogCorrupt,
            LogError::MissingSegment { .. } => Code::LogMissingSegment,
            LogError::UnsupportedFormat { .. } => Code::LogFormat,
            LogError::WrongStore { .. } => Code::LogWrongStore,
            LogError::Poisoned { .. } => Code::LogPoisoned,
            LogError::InvalidRecord { .. } => Code::LogInvalidRecord,
            LogError::RecordTooLarge { .. } => Code::LogRecordTooLarge,
            LogError::Removed { .. } => Code::GroupRemoved,
            LogError::InvalidOptions { .. } => Code::LogOptions,
            LogError::Locked { .. } => Code::StoreLocked,
            LogError::WrongCluster { .. } => Code::StoreWrongCluster,
            LogError::WrongNode { .. } => Code::StoreWrongNode,
            LogError::WrongGroup { .. } => Code::StoreWrongGroup,
            LogError::BadIdentity { .. } => Code::StoreBadIdentity,
            LogError::Founded { .. } => Code::StoreFounded,
            LogError::Unfounded { .. } => Code::StoreUnfounded,
            LogError::Recovering { .. } => Code::StoreRecovering,
            LogError::InvalidIdentity { .. } => Code::StoreInvalidIdentity,
            LogError::PeerChanged { .. } => Code::PeerStoreChanged,
            LogError::PeerWentBack { .. } | LogError::WentBack { .. } => Code::StoreWentBack,
            LogError::TooManyPeers { .. } => Code::PeerLimit,
            LogError::BadSnapshot { .. } => Code::SnapshotCorrupt,
            LogError::SnapshotTooLarge { .. } => Code::SnapshotTooLarge,
            LogError::SnapshotChunk { .. } => Code::SnapshotChunk,
        }
    }

    /// Whether the system had no room for it at the moment: descriptors, memory, threads, space outside the log. The same may
    /// succeed a little later.
    pub fn is_transient(&self) -> bool {
        matches!(self, LogError::Io { source, .. } if is_transient(source))
    }

    /// Whether a finished snapshot turned out to be damaged, gone, or not to be read: another replica has to give it again.
    pub fn is_lost_snapshot(&self) -> bool {
        match self {
            LogError::BadSnapshot { .. } => true,
            LogError::Io { source, .. } => !is_transient(source),
            _ => false,
        }
    }

    /// Whether only the offending record was refused and the log goes on.
    pub fn is_record_error(&self) -> bool {
        matches!(
            self,
            LogError::InvalidRecord { .. }
                | LogError::RecordTooLarge { .. }
                | LogError::Removed { .. }
        )
    }

    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LogError {
        move |source| LogError::Io {
            action,
            path: path.to_path_buf(),
            source,
        }
    }

    pub(crate) fn corrupt(file: &Path, offset: u64, reason: impl Into<String>) -> LogError {
        LogError::Corrupt {
            file: file.to_path_buf(),
            offset,
            reason: reason.into(),
        }
    }

    pub(crate) fn bad_snapshot(file: &Path, reason: impl Into<String>) -> LogError {
        LogError::BadSnapshot {
            file: file.to_path_buf(),
            reason: reason.into(),
        }
    }
}

impl From<FileError> for LogError {
    fn from(failed: FileError) -> LogError {
        LogError::io(failed.action, &failed.path)(failed.source)
    }
}

/// See [`LogError::is_transient`].
pub(crate) fn is_transient(error: &io::Error) -> bool {
    match error.raw_os_error() {
        Some(number) => is_want(error) || matches!(number, libc::ENOSPC | libc::EDQUOT),
        None => {
            is_full(error)
                || matches!(
                    error.kind(),
                    io::ErrorKind::OutOfMemory
                        | io::ErrorKind::WouldBlock
                        | io::ErrorKind::Interrupted
                )
        }
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

fn advice(error: &io::Error) -> &'static str {
    if is_full(error) {
        ". Free some space on this disk: a snapshot is then written again by itself, and a node that has ended has to be started"
    } else if error.kind() == io::ErrorKind::PermissionDenied {
        ". Let the node's user read and write its data directory"
    } else {
        ""
    }
}
