//! The end of a machine.

use skep_core::input::{Input, Stopped};

use crate::state_machine::MachineError;

/// Why a machine can no longer be run. Whoever drives it drops it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{reason}")]
pub struct Failed {
    /// For the operator.
    pub reason: String,
    /// However often the machine is started, it fails again.
    pub is_broken: bool,
    /// The command that the machine could not run, if it was one.
    pub at: Option<Stopped>,
}

impl Failed {
    /// For a reason of this node, or of this moment: another start may do better.
    pub fn local(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            is_broken: false,
            at: None,
        }
    }

    /// For a reason that lies in the machine, the log or the host itself.
    pub fn broken(reason: impl Into<String>) -> Self {
        Self {
            is_broken: true,
            ..Self::local(reason)
        }
    }

    /// What the core is told.
    pub fn input(self) -> Input {
        Input::MachineFailed {
            reason: self.reason,
            at: self.at,
        }
    }
}

impl From<MachineError> for Failed {
    fn from(error: MachineError) -> Self {
        match error {
            MachineError::Guest { .. } => Self::broken(error.to_string()),
            MachineError::Local { .. } => Self::local(error.to_string()),
        }
    }
}
