//! What can happen to a replica, and how bytes say it.

use bytes::{BufMut, Bytes};
use skep_core::id::{NodeId, RequestId, SessionId};
use skep_core::proposal::{Change, Command, Proposal};

/// One thing that happens to the replica.
#[derive(Clone, Debug)]
pub(super) enum Op {
    /// The body of a `PeerFrame` arrives.
    Frame(Bytes),
    /// A snapshot arrives whole: the body of its offer, and the host's section of the file.
    Snapshot(Bytes, Bytes),
    Tick(u8),
    /// So many records become durable.
    Sync(u8),
    /// The machine does so much work.
    Work(u8),
    Propose {
        kind: u8,
        number: u8,
        data: Bytes,
    },
    Query(bool),
    Forget(u8),
    Campaign,
    Transfer(u8),
    Unreachable(u8),
    SnapshotSent(u8, bool),
    /// The process dies and comes back with what its disk had synced.
    Restart,
    MachineFails,
    NodeGone(u8),
}

impl Op {
    pub(super) fn decode(from: &mut &[u8]) -> Option<Self> {
        let byte = |from: &mut &[u8]| from.split_off_first().copied();
        let bytes = |from: &mut &[u8]| {
            let len = usize::from(byte(from)?) | usize::from(byte(from)?) << 8;
            let taken = from.split_off(..len.min(from.len()))?;
            Some(Bytes::copy_from_slice(taken))
        };
        Some(match byte(from)? % 15 {
            0 => Self::Frame(bytes(from)?),
            1 => Self::Snapshot(bytes(from)?, bytes(from)?),
            2 => Self::Tick(byte(from)?),
            3 => Self::Sync(byte(from)?),
            4 => Self::Work(byte(from)?),
            5 => Self::Propose {
                kind: byte(from)?,
                number: byte(from)?,
                data: bytes(from)?,
            },
            6 => Self::Query(byte(from)? & 1 == 1),
            7 => Self::Forget(byte(from)?),
            8 => Self::Campaign,
            9 => Self::Transfer(byte(from)?),
            10 => Self::Unreachable(byte(from)?),
            11 => Self::SnapshotSent(byte(from)?, byte(from)? & 1 == 1),
            12 => Self::Restart,
            13 => Self::MachineFails,
            _ => Self::NodeGone(byte(from)?),
        })
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let bytes = |out: &mut Vec<u8>, bytes: &Bytes| {
            out.put_u16_le(u16::try_from(bytes.len()).expect("recorded frames are short"));
            out.put_slice(bytes);
        };
        match self {
            Self::Frame(frame) => {
                out.push(0);
                bytes(out, frame);
            }
            Self::Snapshot(offer, state) => {
                out.push(1);
                bytes(out, offer);
                bytes(out, state);
            }
            Self::Tick(ticks) => out.extend([2, *ticks]),
            Self::Sync(records) => out.extend([3, *records]),
            Self::Work(pieces) => out.extend([4, *pieces]),
            Self::Propose { kind, number, data } => {
                out.extend([5, *kind, *number]);
                bytes(out, data);
            }
            Self::Query(linearizable) => out.extend([6, u8::from(*linearizable)]),
            Self::Forget(waiter) => out.extend([7, *waiter]),
            Self::Campaign => out.push(8),
            Self::Transfer(node) => out.extend([9, *node]),
            Self::Unreachable(node) => out.extend([10, *node]),
            Self::SnapshotSent(node, arrived) => out.extend([11, *node, u8::from(*arrived)]),
            Self::Restart => out.push(12),
            Self::MachineFails => out.push(13),
            Self::NodeGone(node) => out.extend([14, *node]),
        }
    }
}

pub(super) fn id(byte: u8) -> NodeId {
    NodeId(u64::from(byte) % 6)
}

pub(super) fn proposal(kind: u8, number: u8, data: Bytes) -> Proposal {
    let node = id(number);
    match kind % 9 {
        0 => Proposal::Command(Command {
            request: RequestId::ANONYMOUS,
            acknowledged: 0,
            data,
        }),
        1 => Proposal::Command(Command {
            request: RequestId {
                session: SessionId(u128::from(number >> 4) + 1),
                sequence: u64::from(number & 15) + 1,
            },
            acknowledged: u64::from(number & 15) / 2,
            data,
        }),
        2 => Proposal::OpenSession,
        3 => Proposal::Barrier,
        4 => Proposal::Change(Change::Add { node, data }),
        5 => Proposal::Change(Change::AddLearner { node, data }),
        6 => Proposal::Change(Change::Remove { node, data }),
        7 => Proposal::Change(Change::Promote { node }),
        _ => Proposal::Change(Change::Demote { node }),
    }
}
