//! What can happen, at its time.

use std::collections::BTreeSet;

use bytes::Bytes;
use skep_core::id::GroupId;
use skep_core::input::Input;
use skep_core::message::{PeerMessage, SnapshotName};

/// Something that happens.
#[derive(Debug)]
pub(super) enum Event {
    Tick {
        node: u64,
        boot: u64,
    },
    Deliver {
        from: u64,
        to: u64,
        /// The receiver's start that its connection belongs to.
        boot: Option<u64>,
        message: PeerMessage,
    },
    Snapshot {
        from: u64,
        from_boot: u64,
        to: u64,
        message: PeerMessage,
        name: SnapshotName,
        file: Bytes,
        /// The sender waits to hear of this one; of a copy nobody does.
        reported: bool,
    },
    SnapshotSent {
        node: u64,
        boot: u64,
        group: GroupId,
        to: u64,
        arrived: bool,
    },
    Unreachable {
        node: u64,
        boot: u64,
        group: GroupId,
        to: u64,
    },
    /// The system of a node tells it that another's process has ended, which may run again by now.
    Gone {
        node: u64,
        boot: u64,
        gone: u64,
    },
    /// A client's request.
    Request {
        node: u64,
        boot: u64,
        group: GroupId,
        input: Input,
    },
    Sync {
        node: u64,
        boot: u64,
    },
    Work {
        node: u64,
        boot: u64,
        group: GroupId,
        life: u64,
    },
    /// A replica whose machine has failed is started again.
    StartAgain {
        node: u64,
        boot: u64,
        group: GroupId,
        life: u64,
    },
    Boot {
        node: u64,
    },
    Reconcile {
        node: u64,
    },
    Client {
        client: usize,
        /// Only its last appointment counts.
        turn: u64,
    },
    Operator {
        group: u64,
        turn: u64,
    },
    /// Operators see to the nodes that are to go.
    Dismiss,
    /// A node that nobody needs any more is thrown away.
    Discard {
        node: u64,
    },
    Fault,
    /// A process that has just started ends, so many more times.
    Flap {
        node: u64,
        times: u64,
    },
    /// A fault is over.
    Mend(Mend),
    Look,
}

/// A fault that ends by itself.
#[derive(Clone, Debug)]
pub(super) enum Mend {
    Cut(Vec<(u64, u64)>),
    Full(u64),
    Slow(u64),
    Sick(BTreeSet<u64>),
}

impl Event {
    /// The node it happens at; nothing happens at a node that is paused.
    pub(super) fn node(&self) -> Option<u64> {
        match self {
            Self::Tick { node, .. }
            | Self::SnapshotSent { node, .. }
            | Self::Unreachable { node, .. }
            | Self::Gone { node, .. }
            | Self::Request { node, .. }
            | Self::Sync { node, .. }
            | Self::Work { node, .. }
            | Self::StartAgain { node, .. }
            | Self::Reconcile { node } => Some(*node),
            Self::Deliver { to, .. } | Self::Snapshot { to, .. } => Some(*to),
            Self::Boot { .. }
            | Self::Client { .. }
            | Self::Operator { .. }
            | Self::Dismiss
            | Self::Discard { .. }
            | Self::Fault
            | Self::Flap { .. }
            | Self::Mend(_)
            | Self::Look => None,
        }
    }

    pub(super) fn tag(&self) -> u8 {
        match self {
            Self::Tick { .. } => 0,
            Self::Deliver { .. } => 1,
            Self::Snapshot { .. } => 2,
            Self::SnapshotSent { .. } => 3,
            Self::Unreachable { .. } => 4,
            Self::Sync { .. } => 5,
            Self::Work { .. } => 6,
            Self::Boot { .. } => 7,
            Self::Reconcile { .. } => 8,
            Self::Client { .. } => 9,
            Self::Operator { .. } => 10,
            Self::Fault => 11,
            Self::Mend(_) => 12,
            Self::Look => 13,
            Self::Request { .. } => 14,
            Self::Flap { .. } => 15,
            Self::StartAgain { .. } => 16,
            Self::Gone { .. } => 17,
            Self::Dismiss => 18,
            Self::Discard { .. } => 19,
        }
    }
}
