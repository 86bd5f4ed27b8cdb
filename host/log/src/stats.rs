//! Counters of a log, readable from any thread.

use std::sync::Mutex;

use skep_types::shared::lock;
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

/// All but the waits, which are those of the process.
#[derive(Debug, Default)]
pub(crate) struct Counters(Mutex<LogStats>);

impl Counters {
    pub(crate) fn count(&self, count: impl FnOnce(&mut LogStats)) {
        count(&mut lock(&self.0));
    }

    pub(crate) fn read(&self) -> LogStats {
        LogStats {
            waits: waits(),
            ..*lock(&self.0)
        }
    }
}
