//! A replica as a host runs it, over entries of several commands.

use std::ops::Range;

use bytes::Bytes;
use skep_core::id::GroupId;
use skep_core::outcome::Outcome;
use skep_machine::wasm::{MachineLabel, Profile, WasmMachine};
use skep_machine::{Applied, MachineError, StateMachine};

use crate::error::RehearsalError;
use crate::lived::refusal;
use crate::script::{Event, Subject};
use crate::world::{Random, World};

/// The most commands of one entry.
const ENTRY_COMMANDS: usize = 8;

pub(crate) struct Member<'a> {
    subject: &'a Subject,
    world: World,
    machine: WasmMachine,
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
            machine,
        })
    }

    /// Applies the events of one entry.
    pub(crate) fn apply(&mut self, entry: &Range<usize>) -> Result<Applied, RehearsalError> {
        let context = self.world.event(entry.start);
        let events = &self.subject.script.events;
        let applied = match &events[entry.start].1 {
            Event::Init(config) => self.machine.init(&context, config),
            Event::Change(change) => self.machine.apply_conf_change(&context, change),
            Event::Leader(change) => self.machine.process_status_change(&context, change),
            Event::Command(_) => {
                let script = &self.subject.script;
                let commands: Vec<Bytes> = entry
                    .clone()
                    .filter_map(|event| script.command(event).cloned())
                    .collect();
                self.machine.apply(&context, &commands)
            }
        };
        applied.map_err(RehearsalError::Local)
    }

    pub(crate) fn query(&mut self, query: &Bytes) -> Result<Outcome, RehearsalError> {
        self.machine.query(query).map_err(RehearsalError::Local)
    }

    /// Saves at a barrier behind the first `events` events; or what the machine said.
    pub(crate) fn save(&mut self, events: usize) -> Result<Result<Bytes, String>, RehearsalError> {
        let mut bytes = Vec::new();
        match self.machine.save(&self.world.barrier(events), &mut bytes) {
            Ok(()) => Ok(Ok(bytes.into())),
            Err(error) => refusal(error).map(Err),
        }
    }

    pub(crate) fn restore(
        &mut self,
        events: usize,
        bytes: Bytes,
    ) -> Result<Result<(), String>, RehearsalError> {
        let schema = self.subject.component.descriptor().schema;
        let barrier = self.world.barrier(events);
        let restored: Result<(), MachineError> = self.machine.restore(&barrier, schema, bytes);
        match restored {
            Ok(()) => Ok(Ok(())),
            Err(error) => refusal(error).map(Err),
        }
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
