//! The calls of a log into a machine, and what comes of them.

use std::sync::Arc;

use bytes::Bytes;
use skep_core::outcome::{ConfChange, LeaderChanged, Outcome};

use skep_types::profile::Profile;

/// Code of a rejection that the host makes for a machine that lacks an optional interface. The number the SDK uses for
/// a bad request.
pub const REJECTED_BY_HOST: u32 = 0;

/// Bytes of all replies of one entry together; what is left of the entry after that is not run.
pub(crate) const MAX_ENTRY_REPLY_BYTES: usize = 64 << 20;

/// The allowances of single commands that a batch may use together. A batch that needs more is run one by one, so an
/// endless command costs this many allowances and its own.
const BATCH_ALLOWANCES: u64 = 4;

/// A call that belongs to the log: what an instance's state is made of.
#[derive(Clone, Debug)]
pub(crate) enum Call {
    Init(Bytes),
    /// One command, and which of its entry it is.
    Apply(u32, Bytes),
    /// All commands of an entry.
    Batch(Arc<[Bytes]>),
    ConfChange(ConfChange),
    StatusChange(LeaderChanged),
}

impl Call {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Init(_) => "init",
            Self::Apply(..) => "apply",
            Self::Batch(_) => "apply-batch",
            Self::ConfChange(_) => "apply-conf-change",
            Self::StatusChange(_) => "process-status-change",
        }
    }

    /// Bytes that it holds.
    pub(crate) fn bytes(&self) -> u64 {
        let len = |bytes: &Bytes| bytes.len() as u64;
        match self {
            Self::Init(bytes) | Self::Apply(_, bytes) => len(bytes),
            Self::Batch(commands) => {
                commands.iter().map(len).sum::<u64>() + size_of_val(&commands[..]) as u64
            }
            Self::ConfChange(change) => len(&change.data),
            Self::StatusChange(_) => 0,
        }
    }

    /// The fuel it may use; what it costs if it faults.
    pub(crate) fn allowance(&self, profile: &Profile) -> u64 {
        match self {
            Self::Batch(commands) => profile
                .command_fuel
                .saturating_mul(BATCH_ALLOWANCES.min(commands.len() as u64)),
            _ => profile.command_fuel,
        }
    }
}

/// What a call did.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) outcomes: Vec<Outcome>,
    pub(crate) fuel: u64,
}

/// What is answered for a machine that lacks an optional interface.
pub(crate) fn rejected(message: &str) -> Outcome {
    Outcome::Rejected {
        code: REJECTED_BY_HOST,
        message: message.into(),
    }
}
