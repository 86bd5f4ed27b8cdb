//! Counters of a log, readable from any thread.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use skep_vfs::waits;

/// A reading of a log's counters. The counts begin when the log is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LogStats {
    /// Bytes of frames and headers in all segments now.
    pub bytes: u64,
    /// Bytes of those that recovery would still use, rounded up to whole frames.
    pub live_bytes: u64,
    /// Segment files now.
    pub segments: u64,
    /// `fdatasync` calls on segments.
    pub syncs: u64,
    /// Records appended by callers.
    pub records: u64,
    /// Bytes of frames appended by callers.
    pub appended_bytes: u64,
    /// Bytes of frames copied forward by collection.
    pub copied_bytes: u64,
    /// Segments given back by collection.
    pub freed_segments: u64,
    /// Groups with a record in the log.
    pub groups: u64,
    /// Times that opening or creating a file waited for a descriptor or memory. Of all logs of this process, since it began.
    pub waits: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) bytes: AtomicU64,
    pub(crate) live_bytes: AtomicU64,
    pub(crate) segments: AtomicU64,
    pub(crate) syncs: AtomicU64,
    pub(crate) records: AtomicU64,
    pub(crate) appended_bytes: AtomicU64,
    pub(crate) copied_bytes: AtomicU64,
    pub(crate) freed_segments: AtomicU64,
    pub(crate) groups: AtomicU64,
}

impl Counters {
    pub(crate) fn read(&self) -> LogStats {
        LogStats {
            bytes: self.bytes.load(Relaxed),
            live_bytes: self.live_bytes.load(Relaxed),
            segments: self.segments.load(Relaxed),
            syncs: self.syncs.load(Relaxed),
            records: self.records.load(Relaxed),
            appended_bytes: self.appended_bytes.load(Relaxed),
            copied_bytes: self.copied_bytes.load(Relaxed),
            freed_segments: self.freed_segments.load(Relaxed),
            groups: self.groups.load(Relaxed),
            waits: waits(),
        }
    }
}
