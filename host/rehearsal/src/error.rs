//! Why there is no report.

use skep_drive::{Failed, MachineError};

/// Why a rehearsal could not be held.
#[derive(Debug, thiserror::Error)]
pub enum RehearsalError {
    /// The machine does not start under this profile.
    #[error(
        "the machine cannot start: {0}; raise the limits of the profile, or mend what it does when it starts"
    )]
    Start(MachineError),
    /// No replica of a group of it would go on.
    #[error(
        "every replica of a group of it would stop: {0}; write what it takes as configuration into a line `!init …`, or mend it"
    )]
    Stopped(Failed),
    /// This computer, not the machine, failed.
    #[error("the rehearsal could not go on here: {0}")]
    Local(Failed),
}

impl From<Failed> for RehearsalError {
    fn from(failed: Failed) -> Self {
        match failed.is_broken {
            true => Self::Stopped(failed),
            false => Self::Local(failed),
        }
    }
}
