//! A replica's machine: an instance, and what is needed to have the same one again.

use std::io::Write;
use std::sync::Arc;

use bytes::Bytes;
use skep_core::id::LogIndex;
use skep_core::outcome::{ConfChange, EntryContext, GuestFault, LeaderChanged, Outcome};

use super::call::{Call, MAX_ENTRY_REPLY_BYTES, Ran, rejected};
use super::instance::Instance;
use super::journal::{Base, Journal, Record};
use super::reader::WasmReader;
use super::rebuild::{ATTEMPTS, Guest, Likeness, again, no_attempt, replay};
use crate::wasm::code::component::Component;
use crate::wasm::engine::budget::Purpose;
use crate::wasm::fault::Failure;
use crate::wasm::world::logbook::{Logbook, MachineLabel};
use crate::{Applied, Descriptor, MachineError, Memory, Reader, Running, StateMachine, ToEnd};
use skep_types::profile::Profile;

/// A state machine from a component. See [`StateMachine`] for its contract.
///
/// # Canonical states
///
/// The state is a function of a *base* (the start of the group, or the last restored bytes, with the context they were
/// restored under) and of the *journal*, the calls since that returned. Any instance can be dropped and built again from
/// the two, and is: after a fault, which ends a WebAssembly instance for good, and after a save. Replicas agree in
/// everything a guest can see, down to the addresses on its heap, because each of them gets there by these same calls.
/// A rebuilt instance that answers differently, or uses other fuel, than the first did is a failure of this node.
///
/// The journal shares the bytes of the commands and grows until the next [`restore`](StateMachine::restore): the host
/// bounds it by the distance of barriers, in fuel and in bytes of log.
///
/// # Queries
///
/// They run in other instances, fed from the same journal: see [`WasmReader`]. [`query`](StateMachine::query) is for
/// callers that have one thread; it uses a reader of the machine's own.
pub struct WasmMachine {
    guest: Arc<Guest>,
    journal: Arc<Journal>,
    live: Option<Instance>,
    /// The entry whose state was saved last, while nothing has come after it.
    saved: Option<LogIndex>,
    reader: Option<WasmReader>,
    /// The command at which the last entry stopped.
    stopped_at: Option<usize>,
    /// What the live instance held when there was one last.
    memory_bytes: u64,
}

impl WasmMachine {
    /// A machine at the start of its group. `genesis` is the context of the group's creation, the same on every replica;
    /// only its time and entropy reach the guest. It is started on the caller's thread, which may take as long as its fuel lasts.
    ///
    /// # Errors
    ///
    /// [`MachineError::Guest`] if the component cannot start under `profile`, [`MachineError::Local`] if this node
    /// cannot start it.
    pub fn new(
        component: Arc<Component>,
        profile: Profile,
        genesis: EntryContext,
        label: MachineLabel,
    ) -> Result<Self, MachineError> {
        Self::start(component, profile, genesis, label, Purpose::New)
    }

    /// As [`new`](Self::new), for this purpose: the machine of a replica that is here already is not refused for want of
    /// budget.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn start(
        component: Arc<Component>,
        profile: Profile,
        genesis: EntryContext,
        label: MachineLabel,
        purpose: Purpose,
    ) -> Result<Self, MachineError> {
        let logbook = Arc::new(Logbook::new(label, profile.log_lines_per_second));
        let guest = Guest {
            component,
            profile,
            logbook,
        };
        let base = Base {
            context: genesis,
            snapshot: None,
        };
        let live = guest
            .start(&base, false, purpose)
            .to_end()
            .map_err(|failure| failure.into_error("instantiate"))?;
        Ok(Self {
            guest: Arc::new(guest),
            journal: Arc::new(Journal::new(base)),
            memory_bytes: live.memory_bytes(),
            live: Some(live),
            saved: None,
            reader: None,
            stopped_at: None,
        })
    }

    fn measure(&mut self) {
        if let Some(live) = &self.live {
            self.memory_bytes = live.memory_bytes();
        }
    }

    /// The code it runs.
    pub fn component(&self) -> &Arc<Component> {
        &self.guest.component
    }

    /// The limits it runs under.
    pub fn profile(&self) -> &Profile {
        &self.guest.profile
    }

    /// A reader of this machine: see [`StateMachine::reader`].
    pub fn wasm_reader(&self) -> WasmReader {
        WasmReader::new(Arc::clone(&self.guest), Arc::clone(&self.journal))
    }

    /// The instance that commands run in, built again if it was dropped.
    async fn take_live(&mut self) -> Result<Instance, Failure> {
        match self.live.take() {
            Some(live) => Ok(live),
            // Rare, and larger than what is not.
            None => Box::pin(self.rebuild()).await,
        }
    }

    async fn rebuild(&self) -> Result<Instance, Failure> {
        let (base, mut number) = self.journal.base();
        tracing::debug!(
            target: "skep::machine", group = %self.guest.logbook.label.group, base = %base.context.index,
            "rebuilding the machine's instance"
        );
        let mut instance = self
            .guest
            .start(&base, true, Purpose::Running)
            .await
            .map_err(again)?;
        loop {
            let records = self.journal.read(number);
            if records.is_empty() {
                break;
            }
            replay(&mut instance, &records, Likeness::Same).await?;
            number += records.len() as u64;
        }
        instance.mute(false);
        Ok(instance)
    }

    /// Runs one call of the log once.
    async fn attempt(&mut self, context: &EntryContext, call: &Call) -> Result<Ran, Failure> {
        let mut instance = self.take_live().await?;
        let ran = instance.run(context, call).await?;
        self.live = Some(instance);
        Ok(ran)
    }

    /// Runs one call of the log: its result, or the fault that every replica sees.
    async fn execute(
        &mut self,
        context: &EntryContext,
        call: Call,
    ) -> Result<Result<Ran, GuestFault>, MachineError> {
        self.saved = None;
        let name = call.name();
        let mut last = None;
        for _ in 0..ATTEMPTS {
            let ran = self.attempt(context, &call).await;
            let label = &self.guest.logbook.label;
            match ran {
                Ok(ran) => {
                    self.measure();
                    self.journal.push(Record::new(context, call, &ran));
                    return Ok(Ok(ran));
                }
                Err(Failure::Guest { fault, detail }) => {
                    if self.guest.logbook.admits_line() {
                        tracing::warn!(
                            target: "skep::machine", group = %label.group, machine = %label.name,
                            index = %context.index, call = name, %fault, "the machine failed; its state is kept: {detail}"
                        );
                    }
                    return Ok(Err(fault));
                }
                Err(Failure::Local { code, reason }) => {
                    tracing::error!(
                        target: "skep::machine", group = %label.group, machine = %label.name,
                        index = %context.index, call = name, code = code.name(),
                        "this node failed to run the machine: {reason}"
                    );
                    last = Some(Failure::Local { code, reason });
                }
            }
        }
        Err(last.unwrap_or_else(no_attempt).into_error(name))
    }

    /// A call with one outcome.
    async fn execute_one(
        &mut self,
        context: &EntryContext,
        call: Call,
    ) -> Result<Applied, MachineError> {
        let allowance = call.allowance(self.profile());
        Ok(match self.execute(context, call).await? {
            Ok(Ran { outcomes, fuel }) => Applied { outcomes, fuel },
            Err(fault) => Applied {
                outcomes: vec![Outcome::Fault(fault)],
                fuel: allowance,
            },
        })
    }

    /// The commands of one entry, all at once if the guest takes them so.
    async fn execute_all(
        &mut self,
        context: &EntryContext,
        commands: &[Bytes],
    ) -> Result<Applied, MachineError> {
        let mut applied = Applied {
            outcomes: Vec::with_capacity(commands.len()),
            fuel: 0,
        };
        if commands.len() > 1 && self.component().exports().apply_batch.is_some() {
            let call = Call::Batch(commands.into());
            let allowance = call.allowance(self.profile());
            match self.execute(context, call).await {
                Ok(Ok(Ran { outcomes, fuel })) => return Ok(Applied { outcomes, fuel }),
                // One of them fails: find out which, one by one.
                Ok(Err(_)) => applied.fuel = allowance,
                // Found out as well, and nothing else: this machine is dropped whatever the others do.
                Err(error) => {
                    let each = self.execute_each(context, commands, applied).await;
                    return Err(each.err().unwrap_or(error));
                }
            }
        }
        self.execute_each(context, commands, applied).await
    }

    /// The commands of one entry, one by one, with what they have cost so far.
    async fn execute_each(
        &mut self,
        context: &EntryContext,
        commands: &[Bytes],
        mut applied: Applied,
    ) -> Result<Applied, MachineError> {
        let mut reply_bytes = 0;
        for (ordinal, command) in commands.iter().enumerate() {
            if reply_bytes > MAX_ENTRY_REPLY_BYTES {
                applied.outcomes.push(Outcome::Fault(GuestFault::Limit));
                continue;
            }
            let call = Call::Apply(ordinal as u32, command.clone());
            let one = self.execute_one(context, call).await;
            let one = one.inspect_err(|_| self.stopped_at = Some(ordinal))?;
            reply_bytes += one.outcomes.iter().map(Outcome::size).sum::<usize>();
            applied.outcomes.extend(one.outcomes);
            applied.fuel = applied.fuel.saturating_add(one.fuel);
        }
        Ok(applied)
    }
}

impl StateMachine for WasmMachine {
    fn describe(&self) -> Descriptor {
        self.component().descriptor().clone()
    }

    fn init<'a>(
        &'a mut self,
        context: &'a EntryContext,
        config: &'a Bytes,
    ) -> Running<'a, Applied> {
        Box::pin(async move {
            let takes_one = self.component().exports().init.is_some();
            let applied = match takes_one {
                true => {
                    self.execute_one(context, Call::Init(config.clone()))
                        .await?
                }
                false => without_initializer(config),
            };
            self.journal.publish(context);
            Ok(applied)
        })
    }

    fn apply<'a>(
        &'a mut self,
        context: &'a EntryContext,
        commands: &'a [Bytes],
    ) -> Running<'a, Applied> {
        Box::pin(async move {
            self.stopped_at = None;
            let applied = self.execute_all(context, commands).await?;
            self.journal.publish(context);
            Ok(applied)
        })
    }

    fn apply_conf_change<'a>(
        &'a mut self,
        context: &'a EntryContext,
        change: &'a ConfChange,
    ) -> Running<'a, Applied> {
        Box::pin(async move {
            let call = Call::ConfChange(change.clone());
            let applied = self.execute_one(context, call).await?;
            self.journal.publish(context);
            Ok(applied)
        })
    }

    fn process_status_change<'a>(
        &'a mut self,
        context: &'a EntryContext,
        event: &'a LeaderChanged,
    ) -> Running<'a, Applied> {
        Box::pin(async move {
            let call = Call::StatusChange(*event);
            let applied = self.execute_one(context, call).await?;
            self.journal.publish(context);
            Ok(Applied {
                outcomes: Vec::new(),
                ..applied
            })
        })
    }

    fn stopped_at(&self) -> Option<usize> {
        self.stopped_at
    }

    fn query<'a>(&'a mut self, request: &'a Bytes) -> Running<'a, Outcome> {
        Box::pin(async move {
            let mut reader = match self.reader.take() {
                Some(reader) => reader,
                None => self.wasm_reader(),
            };
            let answer = reader.query(request).await;
            self.reader = Some(reader);
            Ok(answer?.outcome)
        })
    }

    fn memory(&self) -> Option<Memory> {
        Some(Memory {
            used_bytes: self.memory_bytes,
            limit_bytes: self.profile().memory_bytes,
        })
    }

    fn reader(&self) -> Option<Box<dyn Reader>> {
        Some(Box::new(self.wasm_reader()))
    }

    fn save<'a>(
        &'a mut self,
        context: &'a EntryContext,
        to: &'a mut (dyn Write + Send),
    ) -> Running<'a, ()> {
        Box::pin(async move {
            self.saved = None;
            let saved = match self.take_live().await {
                Ok(instance) => instance.save(context, to).await,
                Err(failure) => Err(failure),
            };
            saved.map_err(|failure| failure.into_error("save"))?;
            self.saved = Some(context.index);
            Ok(())
        })
    }

    fn restore<'a>(
        &'a mut self,
        context: &'a EntryContext,
        schema: u32,
        from: Bytes,
    ) -> Running<'a, ()> {
        Box::pin(async move {
            let Descriptor {
                schema: newest,
                oldest_schema: oldest,
                ..
            } = *self.component().descriptor();
            if !(oldest..=newest).contains(&schema) {
                let detail = format!(
                    "it reads the schemas {oldest} to {newest}, and the snapshot was written under {schema}"
                );
                return Err(Failure::guest(GuestFault::Trap, detail).into_error("restore"));
            }
            let base = Base {
                context: *context,
                snapshot: Some((schema, from)),
            };
            let mut last = None;
            for _ in 0..ATTEMPTS {
                match self.guest.start(&base, false, Purpose::Running).await {
                    Ok(instance) => {
                        // Bytes that this machine has just written are the state that readers are on their way to.
                        let follows = self.saved.take() == Some(context.index);
                        self.journal.rebase(base, follows);
                        self.live = Some(instance);
                        self.measure();
                        return Ok(());
                    }
                    Err(local @ Failure::Local { .. }) => last = Some(local),
                    Err(guest) => return Err(guest.into_error("restore")),
                }
            }
            Err(last.unwrap_or_else(no_attempt).into_error("restore"))
        })
    }
}

/// What a machine says to its configuration that takes none.
fn without_initializer(config: &Bytes) -> Applied {
    let outcome = match config.is_empty() {
        true => Outcome::Reply(Bytes::new()),
        false => rejected(
            "this machine takes no configuration: it does not export skep:machine/initializer",
        ),
    };
    Applied {
        outcomes: vec![outcome],
        fuel: 0,
    }
}

#[cfg(test)]
mod images;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::LocalCode;
    use crate::wasm::{APPLY_THREAD_STACK_BYTES, Engine};

    pub(super) fn guest() -> Vec<u8> {
        let text = include_str!("../../../tests/machine/guest.wat")
            .replace("⟨optional⟩", "")
            .replace("⟨describe⟩", "")
            .replace("⟨too-many⟩", "0");
        wat::parse_str(text).unwrap()
    }

    /// As the host runs machines.
    pub(super) fn on_apply_thread(test: impl FnOnce() + Send + 'static) {
        let thread = std::thread::Builder::new()
            .stack_size(APPLY_THREAD_STACK_BYTES)
            .spawn(test)
            .unwrap();
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    }

    #[test]
    fn how_memories_are_laid_out_shows_in_no_outcome_and_no_fuel() {
        on_apply_thread(|| {
            let engine = Engine::new().unwrap();
            let context = EntryContext::default();
            let profile = Profile {
                memory_bytes: 80 << 20,
                command_fuel: 50_000_000,
                ..Profile::default()
            };
            let mut machines = [1, 16].map(|memories| {
                let component = Component::compile_as(&engine, &guest(), memories).unwrap();
                let label = MachineLabel::default();
                WasmMachine::new(Arc::new(component), profile.clone(), context, label).unwrap()
            });
            let [roomy, compact] = [0, 1].map(|at| machines[at].component().layout());
            assert_ne!(roomy, compact);
            for command in [
                "add",
                "get",
                "loop",
                "recurse",
                "divide",
                "out of bounds",
                "past memory",
                // Grows until it is refused: out of the small reservation, into another place.
                "memory",
                "add",
                "handles",
                "x",
                "get",
            ] {
                let [one, other] = machines.each_mut().map(|machine| {
                    machine
                        .apply(&context, &[Bytes::from_static(command.as_bytes())])
                        .to_end()
                });
                assert_eq!(one.unwrap(), other.unwrap(), "{command}");
            }
            let [one, other] = machines.each_mut().map(|machine| {
                let mut saved = Vec::new();
                machine.save(&context, &mut saved).to_end().unwrap();
                saved
            });
            assert_eq!(one, other);
        });
    }

    // P-33
    #[test]
    fn a_stack_that_really_overflows_is_no_outcome_but_local() {
        on_apply_thread(|| {
            let component =
                Component::compile_uncounted(&Engine::new().unwrap(), &guest()).unwrap();
            let context = EntryContext::default();
            let label = MachineLabel::default();
            let mut machine =
                WasmMachine::new(Arc::new(component), Profile::default(), context, label).unwrap();
            let apply = |machine: &mut WasmMachine, command: &'static str| {
                machine
                    .apply(&context, &[Bytes::from_static(command.as_bytes())])
                    .to_end()
            };
            let number = |n: u64| [Outcome::Reply(Bytes::copy_from_slice(&n.to_le_bytes()))];
            assert_eq!(apply(&mut machine, "add").unwrap().outcomes, number(1));
            let error = apply(&mut machine, "recurse").unwrap_err();
            assert!(
                matches!(
                    &error,
                    MachineError::Local { call: "apply", code: LocalCode::StackOverflow, reason }
                        if reason.contains("stack")
                ),
                "{error}"
            );
            assert_eq!(machine.stopped_at(), Some(0));
            // Which one it was is found among many, too.
            let many = ["add", "get", "recurse", "add"]
                .map(|command| Bytes::from_static(command.as_bytes()));
            // Nothing of it stays, should the host go on after all.
            assert_eq!(apply(&mut machine, "add").unwrap().outcomes, number(2));
            machine.apply(&context, &many).to_end().unwrap_err();
            assert_eq!(machine.stopped_at(), Some(2));
        });
    }
}
