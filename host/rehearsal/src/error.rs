//! Why there is no report.

use skep_machine::MachineError;

/// Why a rehearsal could not be held.
#[derive(Debug, thiserror::Error)]
pub enum RehearsalError {
    /// The machine does not start under this profile.
    #[error(
        "the machine cannot start: {0}; raise the limits of the profile, or mend what it does when it starts"
    )]
    Start(MachineError),
    /// This computer, not the machine, failed.
    #[error("the rehearsal could not go on here: {0}")]
    Local(MachineError),
}
