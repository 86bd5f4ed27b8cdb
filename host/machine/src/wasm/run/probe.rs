//! One bare instance, without the machinery that keeps replicas equal: for those who test machines.

use std::io::Write;
use std::sync::Arc;

use bytes::Bytes;
use skep_core::outcome::{ConfChange, EntryContext, LeaderChanged, Outcome};

use super::call::Call;
use super::instance::Instance;
use crate::wasm::code::component::Component;
use crate::wasm::engine::budget::Purpose;
use crate::wasm::world::logbook::{Logbook, MachineLabel};
use crate::{Applied, MachineError, ToEnd};
use skep_types::profile::Profile;

/// An instance of a component that nobody rebuilds: what it has seen, it has seen, so a caller can find out what a
/// machine would do without journal, read instance and canonical points. Its calls run to their end on the caller's thread.
///
/// # Failure
///
/// After any error of a call the instance is dead, as WebAssembly has it: every further call fails with
/// [`MachineError::Local`].
pub struct Probe {
    instance: Instance,
}

impl Probe {
    /// An instance at the start of a group.
    ///
    /// # Errors
    ///
    /// [`MachineError::Guest`] if the component cannot start under `profile`.
    pub fn start(
        component: &Component,
        profile: &Profile,
        genesis: &EntryContext,
    ) -> Result<Self, MachineError> {
        let logbook = Arc::new(Logbook::new(MachineLabel::default(), 0));
        let mut instance = Instance::new(component, profile, genesis, &logbook, Purpose::New)
            .to_end()
            .map_err(|failure| failure.into_error("instantiate"))?;
        instance.mute(true);
        Ok(Self { instance })
    }

    /// An instance restored from what a save under `schema` wrote, as at a barrier of this context.
    ///
    /// # Errors
    ///
    /// [`MachineError::Guest`] if the machine refuses the bytes or fails on them.
    pub fn restored(
        component: &Component,
        profile: &Profile,
        barrier: &EntryContext,
        schema: u32,
        from: Bytes,
    ) -> Result<Self, MachineError> {
        let mut probe = Self::start(component, profile, barrier)?;
        probe
            .instance
            .restore(barrier, schema, from)
            .to_end()
            .map_err(|failure| failure.into_error("restore"))?;
        Ok(probe)
    }

    /// `init`; only for components that export it.
    ///
    /// # Errors
    ///
    /// [`MachineError::Guest`] with the fault.
    pub fn init(
        &mut self,
        context: &EntryContext,
        config: &Bytes,
    ) -> Result<Applied, MachineError> {
        self.run(context, &Call::Init(config.clone()))
    }

    /// One command, the `ordinal`-th of its entry.
    ///
    /// # Errors
    ///
    /// [`MachineError::Guest`] with the fault.
    pub fn apply(
        &mut self,
        context: &EntryContext,
        ordinal: u32,
        command: &Bytes,
    ) -> Result<Applied, MachineError> {
        self.run(context, &Call::Apply(ordinal, command.clone()))
    }

    /// All commands of an entry in one call; only for components that export `batch`.
    ///
    /// # Errors
    ///
    /// [`MachineError::Guest`] with the fault of any of them.
    pub fn apply_batch(
        &mut self,
        context: &EntryContext,
        commands: &[Bytes],
    ) -> Result<Applied, MachineError> {
        self.run(context, &Call::Batch(commands.into()))
    }

    /// A change of the configuration.
    ///
    /// # Errors
    ///
    /// [`MachineError::Guest`] with the fault.
    pub fn apply_conf_change(
        &mut self,
        context: &EntryContext,
        change: &ConfChange,
    ) -> Result<Applied, MachineError> {
        self.run(context, &Call::ConfChange(change.clone()))
    }

    /// A change of the leader; there is no outcome.
    ///
    /// # Errors
    ///
    /// [`MachineError::Guest`] with the fault.
    pub fn process_status_change(
        &mut self,
        context: &EntryContext,
        event: &LeaderChanged,
    ) -> Result<Applied, MachineError> {
        self.run(context, &Call::StatusChange(*event))
    }

    /// A query, in this very instance; only for components that export it.
    ///
    /// # Errors
    ///
    /// [`MachineError::Guest`] with the fault.
    pub fn query(
        &mut self,
        context: &EntryContext,
        request: &Bytes,
    ) -> Result<Outcome, MachineError> {
        self.instance
            .query(context, request)
            .to_end()
            .map(|(outcome, _fuel)| outcome)
            .map_err(|failure| failure.into_error("query"))
    }

    /// Writes the state; answers the fuel it took. The instance lives on, with whatever the save did to it.
    ///
    /// # Errors
    ///
    /// [`MachineError::Guest`] if the machine fails or refuses, [`MachineError::Local`] if `to` does.
    pub fn save(
        &mut self,
        context: &EntryContext,
        to: &mut (dyn Write + Send),
    ) -> Result<u64, MachineError> {
        self.instance
            .save_and_live(context, to)
            .to_end()
            .map_err(|failure| failure.into_error("save"))
    }

    /// Bytes of its linear memories; they never shrink.
    pub fn memory_bytes(&self) -> u64 {
        self.instance.memory_bytes()
    }

    fn run(&mut self, context: &EntryContext, call: &Call) -> Result<Applied, MachineError> {
        let ran = self
            .instance
            .run(context, call)
            .to_end()
            .map_err(|failure| failure.into_error(call.name()))?;
        Ok(Applied {
            outcomes: ran.outcomes,
            fuel: ran.fuel,
        })
    }
}
