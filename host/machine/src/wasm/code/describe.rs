//! Asks a component once what machine it is.

use std::sync::Arc;

use skep_core::outcome::EntryContext;

use super::linked::Linked;
use super::started::{CALL_OVERHEAD, Started};
use crate::wasm::engine::budget::Purpose;
use crate::wasm::error::ComponentError;
use crate::wasm::fault::Failure;
use crate::wasm::world::logbook::{Logbook, MachineLabel};
use crate::wasm::world::types;
use crate::{Descriptor, ToEnd};
use skep_types::profile::Profile;

/// Fuel of the start of an instance that only says what it is: about a second, where the slowest interpreter that was
/// tried needs a few milliseconds. A group's own limit is for restored states; an upload must not hold a core that long.
const SCRATCH_START_FUEL: u64 = 1_000_000_000;

/// Characters of a machine's name, and of its version: they stand in log lines, in answers and on terminals.
const MAX_NAME_CHARS: usize = 200;

/// Starts the component once, which also shows that its exports have the right types.
pub(super) fn describe(linked: &Linked, purpose: Purpose) -> Result<Descriptor, ComponentError> {
    let profile = Profile {
        snapshot_fuel: SCRATCH_START_FUEL,
        ..Profile::default()
    };
    let label = MachineLabel::default();
    let logbook = Arc::new(Logbook::new(label, profile.log_lines_per_second));
    let context = EntryContext::default();
    let mut scratch = Started::new(linked, &profile, &context, &logbook, purpose)
        .to_end()
        .map_err(failed)?;
    scratch
        .check_types()
        .map_err(|error| ComponentError::Mismatch(format!("{error:#}")))?;
    let (descriptor,): (types::Descriptor,) = scratch
        .enter(&context, "describe", 0, profile.command_fuel, CALL_OVERHEAD)
        .and_then(|()| scratch.call(scratch.functions().describe, ()).to_end())
        .map_err(failed)?;
    checked(descriptor.into())
}

/// What a machine says of itself, if it makes sense.
fn checked(descriptor: Descriptor) -> Result<Descriptor, ComponentError> {
    for (what, text) in [("name", &descriptor.name), ("version", &descriptor.version)] {
        if text.chars().any(char::is_control) || text.chars().nth(MAX_NAME_CHARS).is_some() {
            return Err(ComponentError::Describe(format!(
                "its {what} has control characters or more than {MAX_NAME_CHARS} characters"
            )));
        }
    }
    let Descriptor {
        schema,
        oldest_schema: oldest,
        ..
    } = descriptor;
    if oldest > schema {
        return Err(ComponentError::Describe(format!(
            "it writes snapshots of schema {schema} and reads only those from {oldest} on, so it could never go on from one"
        )));
    }
    Ok(descriptor)
}

fn failed(failure: Failure) -> ComponentError {
    match failure {
        Failure::Guest { fault, detail } => ComponentError::Describe(format!("{fault}: {detail}")),
        Failure::Local { code, reason } => ComponentError::Local { code, reason },
    }
}
