//! How a log is laid out.

use crate::error::LogError;
use crate::frame::MAX_BODY;

/// How a log is laid out. `LogOptions::default()` suits a node; tests shrink the sizes.
#[derive(Clone, Debug)]
pub struct LogOptions {
    /// The store the log belongs to; segments of another one are refused.
    pub store: [u8; 16],
    /// When a segment is full, in bytes (4 KiB to 1 GiB). A larger record gets a segment of its own size.
    pub segment_bytes: u64,
    /// How many zeros are written ahead of the data at once, in bytes. Small enough that a fresh node of a test
    /// cluster writes little, large enough that few syncs write metadata.
    pub fill_step: u64,
    /// How many freed segments are kept to be written again.
    pub spare_segments: usize,
    /// The largest record, encoded, in bytes.
    pub max_record_bytes: u64,
    /// Collection copies nothing while the dead bytes of the log are fewer than this plus its live bytes. So at most
    /// every appended byte is written twice, and a small log is left alone.
    pub garbage_bytes: u64,
    /// A group with at most this many live bytes is copied forward; a larger one is asked to snapshot first.
    pub light_group_bytes: u64,
    /// Of the entries that a group's newest snapshot covers, recovery takes up about so many bytes, the newest; it passes over
    /// older ones that were kept for other members.
    pub recovered_behind_bytes: u64,
    /// After so many unanswered requests to snapshot, a large group is copied all the same, so that one stuck group
    /// cannot fill the disk of all.
    pub heavy_asks: u32,
}

impl Default for LogOptions {
    fn default() -> LogOptions {
        LogOptions {
            store: [0; 16],
            segment_bytes: 64 << 20,
            fill_step: 1 << 20,
            spare_segments: 2,
            max_record_bytes: MAX_BODY,
            garbage_bytes: 192 << 20,
            light_group_bytes: 256 << 10,
            recovered_behind_bytes: 8 << 20,
            heavy_asks: 4,
        }
    }
}

impl LogOptions {
    pub(crate) fn check(&self) -> Result<(), LogError> {
        let refuse = |reason: String| Err(LogError::InvalidOptions { reason });
        if !(4 << 10..=1 << 30).contains(&self.segment_bytes) {
            return refuse(format!(
                "segment_bytes is {}, allowed are 4 KiB to 1 GiB",
                self.segment_bytes
            ));
        }
        if !(512..=64 << 20).contains(&self.fill_step) {
            return refuse(format!(
                "fill_step is {}, allowed are 512 bytes to 64 MiB",
                self.fill_step
            ));
        }
        if !(1 << 10..=MAX_BODY).contains(&self.max_record_bytes) {
            return refuse(format!(
                "max_record_bytes is {}, allowed are 1 KiB to {MAX_BODY}",
                self.max_record_bytes
            ));
        }
        Ok(())
    }
}
