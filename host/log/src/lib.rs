//! The write-ahead log that all groups of a node share, and its snapshot files.
//!
//! One [`Log`] per node holds the raft entries and hard states of every group, so that one `fdatasync` makes the
//! work of many groups durable at once. [`LogWriter`] is the thread that owns it. [`SnapshotStore`] holds the
//! snapshot files that let the log be truncated, and [`Store`] is the data directory around both: its lock and the
//! identity that keeps a wiped or foreign disk from posing as this node's.
//!
//! The crate knows nothing of raft: a [`Record`] is what one group must make durable at once, and recovery gives
//! back, for each group, the sum of its records. All file access goes through [`Vfs`], so [`SimVfs`] can lose, tear
//! and fail any of it. FORMAT.md beside the sources describes the files byte by byte.

mod account;
mod error;
mod frame;
mod gc;
mod identity;
mod log;
mod options;
mod pins;
mod read_only;
mod reader;
mod record;
mod recovery;
mod segment;
mod snapshot;
mod stats;
mod storage;
mod table;
mod writer;

pub use account::{Account, note_went_back};
pub use error::LogError;
pub use gc::Collected;
pub use identity::{Identity, Store, StoreId};
pub use log::Log;
pub use options::LogOptions;
pub use pins::{Heard, PeerPins, Pin};
pub use read_only::ReadOnlyVfs;
pub use reader::LogReader;
pub use record::{EVERY_REPLICA, Entry, GroupKey, HardState, LogPosition, Record, SnapshotMark};
pub use recovery::{Recovered, RecoveredGroup};
pub use skep_vfs::{self as vfs, DiskVfs, SimVfs, Vfs, VfsFile, VfsLock, sim};
pub use snapshot::{
    MAX_STATE, SealedSnapshot, SnapshotFile, SnapshotMeta, SnapshotName, SnapshotReceiver,
    SnapshotStore,
};
pub use stats::LogStats;
pub use storage::{DiskStorage, OpenedStorage, open_storage, open_storage_with};
pub use writer::{LogHandle, LogWriter, Stopped, WriterEvent, WriterOptions};
