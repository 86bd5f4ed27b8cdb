//! A machine that lived through the events one by one in one instance, which nothing but a fault ever ends.

use bytes::Bytes;
use skep_core::outcome::{EntryContext, GuestFault, Outcome};
use skep_machine::wasm::Probe;
use skep_machine::{Applied, MachineError};

use crate::error::RehearsalError;
use crate::script::{Event, Subject};
use crate::world::World;

/// What an event did.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Seen {
    pub(crate) outcome: Outcome,
    /// 0 for a fault.
    pub(crate) fuel: u64,
}

/// What a save gave.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Saved {
    pub(crate) bytes: Bytes,
    pub(crate) fuel: u64,
}

/// One call of the log.
enum Call {
    /// An event of the script, as if it were the one of this number.
    Event { event: usize, number: usize },
    /// One of several commands of the entry of this number.
    OneOf {
        number: usize,
        ordinal: u32,
        command: Bytes,
    },
    /// All commands of the entry of this number.
    Batch { number: usize, commands: Vec<Bytes> },
}

/// An instance, and how it came to be.
pub(crate) struct Lived<'a> {
    subject: &'a Subject,
    world: World,
    /// Where it starts: behind these events, from these bytes; else at the start of the group.
    base: Option<(usize, Bytes)>,
    /// Calls that returned since.
    journal: Vec<Call>,
    /// Gone after a fault.
    probe: Option<Probe>,
}

impl Saved {
    /// Whether this is the same state: the same bytes, if in another order.
    pub(crate) fn is_as(&self, other: &Self) -> bool {
        self.bytes == other.bytes || permuted(&self.bytes, &other.bytes)
    }
}

impl<'a> Lived<'a> {
    pub(crate) fn start(subject: &'a Subject, world: World) -> Result<Self, RehearsalError> {
        let lived = Self::begun(subject, world, None);
        lived.map_err(RehearsalError::Start)
    }

    /// Restored at a barrier behind the first `events` events; or what the machine said to the bytes.
    pub(crate) fn restored(
        subject: &'a Subject,
        world: World,
        events: usize,
        bytes: Bytes,
    ) -> Result<Result<Self, String>, RehearsalError> {
        words_of(Self::begun(subject, world, Some((events, bytes))))
    }

    fn begun(
        subject: &'a Subject,
        world: World,
        base: Option<(usize, Bytes)>,
    ) -> Result<Self, MachineError> {
        let mut lived = Self {
            subject,
            world,
            base,
            journal: Vec::new(),
            probe: None,
        };
        lived.probe = Some(lived.begin()?);
        Ok(lived)
    }

    pub(crate) fn run(&mut self, event: usize) -> Result<Seen, RehearsalError> {
        self.run_as(event, event)
    }

    /// Runs one event as if it were the `number`-th.
    pub(crate) fn run_as(&mut self, event: usize, number: usize) -> Result<Seen, RehearsalError> {
        Ok(match self.execute(Call::Event { event, number })? {
            Ok(applied) => Seen {
                fuel: applied.fuel,
                outcome: only(applied),
            },
            Err(fault) => Seen {
                outcome: Outcome::Fault(fault),
                fuel: 0,
            },
        })
    }

    pub(crate) fn run_all(
        &mut self,
        events: std::ops::Range<usize>,
    ) -> Result<Vec<Seen>, RehearsalError> {
        events.map(|event| self.run(event)).collect()
    }

    /// Saves at a barrier behind the first `events` events, in this instance; or says why the machine would not.
    pub(crate) fn save(&mut self, events: usize) -> Result<Result<Saved, String>, RehearsalError> {
        let mut probe = self.take()?;
        let mut bytes = Vec::new();
        let saved = probe.save(&self.world.barrier(events), &mut bytes);
        words_of(saved.map(|fuel| {
            self.probe = Some(probe);
            let bytes = bytes.into();
            Saved { bytes, fuel }
        }))
    }

    /// Asks in this very instance.
    pub(crate) fn query(
        &mut self,
        context: &EntryContext,
        query: &Bytes,
    ) -> Result<Outcome, RehearsalError> {
        let mut probe = self.take()?;
        match probe.query(context, query) {
            Ok(outcome) => {
                self.probe = Some(probe);
                Ok(outcome)
            }
            Err(error) => fault(error).map(Outcome::Fault),
        }
    }

    /// Runs several commands in one call; what each answered, or that one of them failed.
    pub(crate) fn batch(
        &mut self,
        number: usize,
        commands: &[Bytes],
    ) -> Result<Option<Vec<Outcome>>, RehearsalError> {
        let commands = commands.to_vec();
        let ran = self.execute(Call::Batch { number, commands })?;
        Ok(ran.ok().map(|applied| applied.outcomes))
    }

    /// Runs one command as the `ordinal`-th of the entry of event `number`.
    pub(crate) fn one_of(
        &mut self,
        number: usize,
        ordinal: u32,
        command: &Bytes,
    ) -> Result<Outcome, RehearsalError> {
        let command = command.clone();
        let ran = self.execute(Call::OneOf {
            number,
            ordinal,
            command,
        })?;
        Ok(ran.map_or_else(Outcome::Fault, only))
    }

    /// Bytes of its memory now; 0 right after a fault.
    pub(crate) fn memory(&self) -> u64 {
        self.probe.as_ref().map_or(0, Probe::memory_bytes)
    }

    fn execute(&mut self, call: Call) -> Result<Result<Applied, GuestFault>, RehearsalError> {
        let mut probe = self.take()?;
        match self.call(&mut probe, &call) {
            Ok(applied) => {
                self.probe = Some(probe);
                self.journal.push(call);
                Ok(Ok(applied))
            }
            Err(error) => fault(error).map(Err),
        }
    }

    fn take(&mut self) -> Result<Probe, RehearsalError> {
        if let Some(probe) = self.probe.take() {
            return Ok(probe);
        }
        // All of this has succeeded once.
        let mut probe = self.begin().map_err(not_here)?;
        for call in &self.journal {
            self.call(&mut probe, call).map_err(not_here)?;
        }
        Ok(probe)
    }

    fn begin(&self) -> Result<Probe, MachineError> {
        let Subject {
            component, profile, ..
        } = self.subject;
        match &self.base {
            None => Probe::start(component, profile, &self.world.genesis()),
            Some((events, bytes)) => {
                let schema = component.descriptor().schema;
                let barrier = self.world.barrier(*events);
                Probe::restored(component, profile, &barrier, schema, bytes.clone())
            }
        }
    }

    fn call(&self, probe: &mut Probe, call: &Call) -> Result<Applied, MachineError> {
        let (event, number) = match call {
            Call::Event { event, number } => (*event, *number),
            Call::OneOf {
                number,
                ordinal,
                command,
            } => return probe.apply(&self.world.event(*number), *ordinal, command),
            Call::Batch { number, commands } => {
                return probe.apply_batch(&self.world.event(*number), commands);
            }
        };
        let context = self.world.event(number);
        match &self.subject.script.events[event].1 {
            Event::Init(config) => probe.init(&context, config),
            Event::Command(command) => probe.apply(&context, 0, command),
            Event::Change(change) => probe.apply_conf_change(&context, change),
            Event::Leader(change) => probe.process_status_change(&context, change),
        }
    }
}

/// The one outcome of a call; hooks have none.
fn only(applied: Applied) -> Outcome {
    applied.outcomes.into_iter().next().unwrap_or_default()
}

fn fault(error: MachineError) -> Result<GuestFault, RehearsalError> {
    match error {
        MachineError::Guest { fault, .. } => Ok(fault),
        local @ MachineError::Local { .. } => Err(not_here(local)),
    }
}

/// What succeeded before has failed, or this computer has.
pub(crate) fn not_here(error: MachineError) -> RehearsalError {
    RehearsalError::Local(error.into())
}

/// What a call gave, or the words of a machine that will not save or restore.
pub(crate) fn words_of<T>(
    called: Result<T, MachineError>,
) -> Result<Result<T, String>, RehearsalError> {
    match called {
        Ok(given) => Ok(Ok(given)),
        Err(guest @ MachineError::Guest { .. }) => Ok(Err(guest.to_string())),
        Err(local @ MachineError::Local { .. }) => Err(not_here(local)),
    }
}

/// Whether these are the same bytes in another order: what the order of a hash map makes of a snapshot.
pub(crate) fn permuted(one: &[u8], other: &[u8]) -> bool {
    let count = |bytes: &[u8]| {
        let mut counts = [0usize; 256];
        for byte in bytes {
            counts[usize::from(*byte)] += 1;
        }
        counts
    };
    one.len() == other.len() && count(one) == count(other)
}
