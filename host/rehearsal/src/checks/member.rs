//! A replica as a host runs it, over entries of several commands.

use std::ops::Range;

use bytes::Bytes;
use skep_core::effect::Call;
use skep_core::form::Form;
use skep_core::id::GroupId;
use skep_core::outcome::Outcome;
use skep_drive::{Applied, CanonicalPoint, Driver, ToEnd};
use skep_machine::wasm::{MachineLabel, Profile, WasmMachine, WasmReader};
use skep_machine::{MachineError, Reader};

use crate::error::RehearsalError;
use crate::lived::{not_here, words_of};
use crate::script::{Event, Subject};
use crate::world::{Random, World};

const ENTRY_COMMANDS: usize = 8;

pub(crate) struct Member<'a> {
    subject: &'a Subject,
    world: World,
    driver: Driver<WasmMachine>,
    reader: WasmReader,
}

impl<'a> Member<'a> {
    pub(crate) fn start(subject: &'a Subject, profile: &Profile) -> Result<Self, RehearsalError> {
        let world = World::default();
        let label = MachineLabel {
            group: GroupId(1),
            name: subject.component.descriptor().name.clone(),
        };
        let (component, genesis) = (subject.component.clone(), world.genesis());
        let machine = WasmMachine::new(component, profile.clone(), genesis, label)
            .map_err(RehearsalError::Start)?;
        Ok(Self {
            subject,
            world,
            reader: machine.wasm_reader(),
            driver: Driver::new(machine),
        })
    }

    /// Applies the events of one entry.
    pub(crate) fn apply(&mut self, entry: &Range<usize>) -> Result<Applied, RehearsalError> {
        let script = &self.subject.script;
        let call = match &script.events[entry.start].1 {
            Event::Init(config) => Call::Init(config.clone()),
            Event::Change(change) => Call::ConfChange(change.clone()),
            Event::Leader(change) => Call::StatusChange(*change),
            Event::Command(_) => {
                let commands = entry.clone().filter_map(|event| script.command(event));
                Call::Commands(commands.cloned().collect())
            }
        };
        let context = self.world.event(entry.start);
        Ok(self.driver.apply(&context, vec![call], &mut ()).to_end()?)
    }

    pub(crate) fn query(&mut self, query: &Bytes) -> Result<Outcome, RehearsalError> {
        match self.reader.query(query).to_end() {
            Ok(answer) => Ok(answer.outcome),
            Err(MachineError::Guest { fault, .. }) => Ok(Outcome::Fault(fault)),
            Err(local) => Err(not_here(local)),
        }
    }

    /// Whether all that was asked so far was answered in forks of the machine, not in a second instance.
    pub(crate) fn is_forked(&self) -> bool {
        self.reader.builds() == 0
    }

    /// Saves at a barrier behind the first `events` events; or what the machine said.
    pub(crate) fn save(&mut self, events: usize) -> Result<Result<Bytes, String>, RehearsalError> {
        let barrier = self.world.barrier(events);
        words_of(self.driver.save(&barrier).to_end())
    }

    /// Passes a barrier behind the first `events` events; the bytes, or what the machine said.
    pub(crate) fn pass_barrier(
        &mut self,
        events: usize,
    ) -> Result<Result<Bytes, String>, RehearsalError> {
        let barrier = self.world.barrier(events);
        let passed = self.driver.pass_barrier(&barrier, &mut ()).to_end();
        words_of(passed.map(|point| point.guest))
    }

    pub(crate) fn restore(
        &mut self,
        events: usize,
        guest: Bytes,
    ) -> Result<Result<(), String>, RehearsalError> {
        let point = CanonicalPoint {
            context: self.world.barrier(events),
            form: Form::Saved,
            schema: self.subject.component.descriptor().schema,
            guest,
        };
        words_of(self.driver.restore(&point, &mut ()).to_end())
    }
}

/// The script cut into entries: neighbouring commands share one, as they do under load.
pub(crate) fn entries(subject: &Subject, seed: u64) -> Vec<Range<usize>> {
    let mut random = Random::new(seed);
    let script = &subject.script;
    let mut entries = Vec::new();
    let mut start = 0;
    while start < script.len() {
        let mut end = start + 1;
        if script.command(start).is_some() {
            let wanted = start + 1 + random.below(ENTRY_COMMANDS);
            while end < wanted.min(script.len()) && script.command(end).is_some() {
                end += 1;
            }
        }
        entries.push(start..end);
        start = end;
    }
    entries
}
