//! What the transport counts.

use std::sync::atomic::{AtomicU64, Ordering};

use skep_core::message::Priority;

/// Counters of one transport since it started. Each is exact; together they are no consistent picture.
#[derive(Debug, Default)]
pub struct TransportStats {
    lanes: [LaneStats; 3],
    /// Snapshots that arrived at their receiver.
    pub snapshots_sent: AtomicU64,
    /// Snapshots that arrived here.
    pub snapshots_received: AtomicU64,
    /// Connections accepted, whatever became of them.
    pub accepted: AtomicU64,
    /// Connections refused here: by the handshake, for too many of them, or for bytes that are no frame.
    pub refused: AtomicU64,
    /// Connections that another node refused.
    pub refused_by_peer: AtomicU64,
    /// Dials that failed, refused ones included.
    pub dial_failures: AtomicU64,
    /// Processes of other nodes that were found to have ended; each lane finds it for itself.
    pub gone: AtomicU64,
    /// Messages and frames that made no sense.
    pub malformed: AtomicU64,
    /// Batches whose sender, receiver or priority is not that of their connection.
    pub misaddressed: AtomicU64,
    /// Requests of other nodes, on behalf of their clients.
    pub requests_in: AtomicU64,
    /// Batches that no lane takes: their node has no known address, or their priority is low.
    pub without_lane: AtomicU64,
}

/// Counters of the lanes of one priority, to and from all nodes. Those of low priority carry snapshots: each on a connection
/// of its own, one message each, and their bytes are those of the frames with parts of the file.
#[derive(Debug, Default)]
pub struct LaneStats {
    /// Bytes written.
    pub bytes_out: AtomicU64,
    /// Bytes read.
    pub bytes_in: AtomicU64,
    /// Frames written.
    pub frames_out: AtomicU64,
    /// Frames read.
    pub frames_in: AtomicU64,
    /// Messages dropped: the queue was full, the node could not be reached or refused, or the connection was lost.
    pub dropped: AtomicU64,
    /// Connections made; of batches, all but the first to each node are reconnects.
    pub connects: AtomicU64,
    /// Connections lost; those of snapshots end when the snapshot has arrived, and are lost before.
    pub disconnects: AtomicU64,
}

impl TransportStats {
    /// Counters of the lanes of one priority.
    pub fn lane(&self, priority: Priority) -> &LaneStats {
        &self.lanes[priority as usize]
    }
}

pub(super) fn add(counter: &AtomicU64, count: usize) {
    counter.fetch_add(count as u64, Ordering::Relaxed);
}
