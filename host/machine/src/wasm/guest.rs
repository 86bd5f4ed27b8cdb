//! What the instances of one machine have in common, and how they come to a state again.

use std::sync::Arc;

use skep_core::id::GroupId;

use super::budget::Purpose;
use super::component::Component;
use super::ending::Ending;
use super::fault::Failure;
use super::instance::Instance;
use super::journal::{Base, Record};
use super::limits::Profile;
use super::logbook::Logbook;
use crate::LocalCode;

/// Runs of a call before a local failure of it is final: once, and once more in a rebuilt instance.
pub(super) const ATTEMPTS: usize = 2;

/// What is said where no attempt was made: [`ATTEMPTS`] is not 0.
pub(super) fn no_attempt() -> Failure {
    Failure::local(LocalCode::UnexpectedError, "it was not tried")
}

/// Whose machine it is, for log lines.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct MachineLabel {
    /// The group.
    pub group: GroupId,
    /// Name of the group or of the machine.
    pub name: String,
}

/// A component under its limits.
pub(super) struct Guest {
    pub(super) component: Arc<Component>,
    pub(super) profile: Profile,
    pub(super) logbook: Arc<Logbook>,
    pub(super) ending: Arc<Ending>,
}

impl Guest {
    /// An instance at `base`. A muted one writes no log lines: they were written when the calls ran first.
    pub(super) fn start(
        &self,
        base: &Base,
        muted: bool,
        purpose: Purpose,
    ) -> Result<Instance, Failure> {
        let mut instance = Instance::new(
            &self.component,
            &self.profile,
            &base.context,
            &self.logbook,
            &self.ending,
            purpose,
        )?;
        instance.mute(muted);
        if let Some((schema, bytes)) = &base.snapshot {
            instance.restore(&base.context, *schema, bytes.clone())?;
        }
        Ok(instance)
    }
}

/// How like the first run of a call another one must be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Likeness {
    /// In answers and fuel: every instance that came from the same base by the same calls.
    Same,
    /// In answers: an instance that has also answered queries, or has passed a barrier without being rebuilt there.
    Answers,
}

/// Runs calls that have run before; gives the fuel they used. Each of them has returned once, so a failure now, or
/// another answer, is no outcome.
pub(super) fn replay(
    instance: &mut Instance,
    records: &[Record],
    likeness: Likeness,
) -> Result<u64, Failure> {
    let mut fuel = 0u64;
    for record in records {
        let ran = instance.run(&record.context, &record.call).map_err(again)?;
        let alike = match likeness {
            Likeness::Same => record.is(&ran),
            Likeness::Answers => record.answered(&ran),
        };
        if !alike {
            return Err(Failure::local(
                LocalCode::Differs,
                format!(
                    "the replayed {} of entry {} did not do what it did at first",
                    record.call.name(),
                    record.context.index
                ),
            ));
        }
        fuel = fuel.saturating_add(ran.fuel);
    }
    Ok(fuel)
}

/// A call that succeeded before and fails now: whatever the failure says of itself, it is local.
pub(super) fn again(failure: Failure) -> Failure {
    match failure {
        Failure::Guest { fault, detail } => Failure::local(
            LocalCode::Differs,
            format!("a replayed call failed with {fault}, which it did not at first: {detail}"),
        ),
        local => local,
    }
}
