//! A replica's machine: an instance, and what is needed to have the same one again.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use bytes::Bytes;
use skep_core::id::LogIndex;
use skep_core::outcome::{ConfChange, EntryContext, GuestFault, LeaderChanged, Outcome};

use super::base::{Base, Origin};
use super::call::{Call, MAX_ENTRY_REPLY_BYTES, Ran, rejected};
use super::fork::Fork;
use super::guard::Guard;
use super::image::Image;
use super::instance::Instance;
use super::journal::{Journal, Record};
use super::present::Present;
use super::reader::WasmReader;
use super::rebuild::{ATTEMPTS, Guest, again, no_attempt};
use super::taking::Taking;
use crate::clock;
use crate::wasm::code::component::Component;
use crate::wasm::engine::budget::Purpose;
use crate::wasm::fault::Failure;
use crate::wasm::world::logbook::{Logbook, MachineLabel};
use crate::{
    Applied, Costs, Descriptor, ImageTaken, MachineError, Memory, ReadImage, Reader, Running,
    StateMachine, ToEnd,
};
use skep_types::profile::Profile;

/// A state machine from a component. See [`StateMachine`] for its contract.
///
/// # Canonical states
///
/// The state is a function of a *base* (the start of the group, or the last restored bytes, with the context they were
/// restored under) and of the *journal*, the calls since that returned. Any instance can be dropped and built again from
/// the two, and is after a fault, which ends a WebAssembly instance for good. Replicas agree in
/// everything a guest can see, down to the addresses on its heap, because each of them gets there by these same calls.
/// A rebuilt instance that answers differently, or uses other fuel, than the first did is a failure of this node.
///
/// After a fault that is not all run again: the machine goes back to its newest checkpoint, if there is one, which
/// is what it was when it had run a part of the journal.
///
/// The journal shares the bytes of the commands and grows until the next [`restore`](StateMachine::restore): the host
/// bounds it by the distance of barriers, in fuel and in bytes of log.
///
/// # Forks
///
/// Queries run in a fork of the instance: see [`WasmReader`]. So does `save`, which then costs the machine nothing; and so do
/// commands for a while after one of them has failed, so that the next failure ends the fork and not the instance. A call in a fork
/// has the outcome and the fuel that it would have in the instance. [`query`](StateMachine::query) is for callers that have one
/// thread; it uses a reader of the machine's own.
pub struct WasmMachine {
    present: Arc<Present>,
    /// The present instance, while an entry has it.
    live: Option<Instance>,
    guard: Guard,
    /// Where guarded calls run.
    fork: Option<Fork>,
    /// The entry whose state was saved last, while nothing has come after it.
    saved: Option<LogIndex>,
    reader: Option<WasmReader>,
    /// The command at which the last entry stopped.
    stopped_at: Option<usize>,
    /// What the live instance held when there was one last.
    memory_bytes: u64,
    /// Whether it could have an image then.
    can_have_image: bool,
    /// Of the calls that have succeeded.
    fuel: u64,
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
            forks: AtomicU64::new(0),
        };
        let base = Base {
            context: genesis,
            origin: Origin::Founding,
        };
        let live = guest
            .start(&base, false, purpose)
            .to_end()
            .map_err(|failure| failure.into_error("instantiate"))?;
        Ok(Self {
            memory_bytes: live.memory_bytes(),
            can_have_image: live.can_be_forked(),
            present: Arc::new(Present::new(guest, Journal::new(base), live)),
            live: None,
            guard: Guard::default(),
            fork: None,
            saved: None,
            reader: None,
            stopped_at: None,
            fuel: 0,
        })
    }

    /// The code it runs.
    pub fn component(&self) -> &Arc<Component> {
        &self.present.guest.component
    }

    /// The limits it runs under.
    pub fn profile(&self) -> &Profile {
        &self.present.guest.profile
    }

    /// Has a checkpoint taken now: a fault sends the machine back to it, and what came since runs again. A machine does so by itself
    /// where that costs little; this is for those who test it.
    ///
    /// # Errors
    /// [`MachineError::Local`]: the machine must be dropped.
    pub async fn keep(&mut self) -> Result<(), MachineError> {
        let mut present = self.present.writing().await;
        let place = present.get_mut();
        let Some(instance) = place else {
            return Ok(());
        };
        let kept = self.present.keep(instance).await;
        let kept = kept.inspect_err(|_| *place = None);
        kept.map_err(|failure| failure.into_error("keep"))
    }

    /// How often a fault has sent it back to a checkpoint, and not to its base.
    pub fn returns(&self) -> u64 {
        self.present.returns()
    }

    /// A reader of this machine: see [`StateMachine::reader`].
    pub fn wasm_reader(&self) -> WasmReader {
        WasmReader::new(Arc::clone(&self.present))
    }

    /// Runs the calls of one entry. Readers see all of them or none.
    async fn entry<T>(
        &mut self,
        context: &EntryContext,
        calls: impl AsyncFnOnce(&mut Self) -> Result<T, MachineError>,
    ) -> Result<T, MachineError> {
        let mut present = self.present.writing().await;
        self.live = present.get_mut().take();
        let ran = calls(self).await;
        let mut live = self.live.take();
        if let Some(live) = &live {
            self.note(live);
        }
        if ran.is_ok() {
            let now = self.present.journal.publish(context);
            if let Some(instance) = live.take() {
                live = self.present.pass(now, instance).await;
            }
        }
        *present.get_mut() = live;
        ran
    }

    /// The instance that commands run in, built again if it was dropped.
    async fn take_live(&mut self) -> Result<Instance, Failure> {
        if let Some(live) = self.live.take() {
            return Ok(live);
        }
        let began = clock::now();
        let rebuilt = self.present.rebuild().await?;
        self.guard.raise(began.elapsed());
        Ok(rebuilt)
    }

    /// Goes on from another base. If it `follows`, it is the state that the machine has. After an error the machine is as it was.
    async fn begin_again(&mut self, base: Base, follows: bool) -> Result<(), Failure> {
        let mut last = None;
        for _ in 0..ATTEMPTS {
            let guest = &self.present.guest;
            match guest.start(&base, false, Purpose::Running).await {
                Ok(mut instance) => {
                    let mut present = self.present.writing().await;
                    self.present.journal.rebase(base, follows);
                    self.note(&instance);
                    self.fork = None;
                    let begun = self.present.begin(&mut instance).await;
                    // Otherwise it is built from the base again.
                    *present.get_mut() = begun.is_ok().then_some(instance);
                    return Ok(());
                }
                Err(local @ Failure::Local { .. }) => last = Some(local),
                Err(guest) => return Err(guest),
            }
        }
        Err(last.unwrap_or_else(no_attempt))
    }

    /// What can be asked of the machine while an entry has its instance.
    fn note(&mut self, instance: &Instance) {
        self.memory_bytes = instance.memory_bytes();
        self.can_have_image = instance.can_be_forked();
    }

    /// Runs one call of the log once.
    async fn attempt(&mut self, context: &EntryContext, call: &Call) -> Result<Ran, Failure> {
        let mut instance = self.take_live().await?;
        let is_guarded = self.guard.take();
        if !is_guarded {
            self.fork = None;
        }
        if is_guarded
            && instance.can_be_forked()
            && let Some(ran) = self.attempt_in_fork(&mut instance, context, call).await
        {
            self.live = Some(instance);
            return ran;
        }
        let ran = instance.run(context, call).await?;
        self.live = Some(instance);
        Ok(ran)
    }

    /// Runs it in a fork of the instance. None if that cannot be done. Then nothing was; or the instance was given a part of what the
    /// fork did, and is dead: the next call of it fails, and it is built again.
    async fn attempt_in_fork(
        &mut self,
        instance: &mut Instance,
        context: &EntryContext,
        call: &Call,
    ) -> Option<Result<Ran, Failure>> {
        let start = self.present.journal.start();
        let (fork, guest) = (self.fork.take(), &self.present.guest);
        let mut fork = Fork::current(fork, instance, guest, &start).await.ok()?;
        match fork.run(instance, context, call).await {
            Ok(ran) => {
                self.fork = Some(fork);
                ran.map(Ok)
            }
            Err(failure @ Failure::Guest { .. }) => {
                self.guard.renew();
                Some(Err(failure))
            }
            Err(Failure::Local { .. }) => None,
        }
    }

    /// Saves, in a fork of the instance, beside queries; or in the instance itself, which ends with it.
    async fn save_in_fork(
        &self,
        context: &EntryContext,
        to: &mut (dyn Write + Send),
    ) -> Result<(), Failure> {
        // A fork that cannot be had is no reason to fail.
        if let Ok(Some((fork, _reading))) = self.present.forked(None).await {
            return fork.save(context, to).await;
        }
        let instance = self.present.writing().await.get_mut().take();
        match instance {
            Some(instance) => instance.save(context, to).await,
            None => Err(no_attempt()),
        }
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
            let logbook = &self.present.guest.logbook;
            let label = &logbook.label;
            match ran {
                Ok(ran) => {
                    self.fuel = self.fuel.saturating_add(ran.fuel);
                    self.present.journal.push(Record::new(context, call, &ran));
                    return Ok(Ok(ran));
                }
                Err(Failure::Guest { fault, detail }) => {
                    if logbook.admits_line() {
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
        Box::pin(self.entry(context, async |machine: &mut Self| {
            match machine.component().exports().init.is_some() {
                true => {
                    let call = Call::Init(config.clone());
                    machine.execute_one(context, call).await
                }
                false => Ok(without_initializer(config)),
            }
        }))
    }

    fn apply<'a>(
        &'a mut self,
        context: &'a EntryContext,
        commands: &'a [Bytes],
    ) -> Running<'a, Applied> {
        Box::pin(self.entry(context, async |machine: &mut Self| {
            machine.stopped_at = None;
            machine.execute_all(context, commands).await
        }))
    }

    fn apply_conf_change<'a>(
        &'a mut self,
        context: &'a EntryContext,
        change: &'a ConfChange,
    ) -> Running<'a, Applied> {
        Box::pin(self.entry(context, async |machine: &mut Self| {
            let call = Call::ConfChange(change.clone());
            machine.execute_one(context, call).await
        }))
    }

    fn process_status_change<'a>(
        &'a mut self,
        context: &'a EntryContext,
        event: &'a LeaderChanged,
    ) -> Running<'a, Applied> {
        Box::pin(self.entry(context, async |machine: &mut Self| {
            let applied = machine
                .execute_one(context, Call::StatusChange(*event))
                .await?;
            Ok(Applied {
                outcomes: Vec::new(),
                ..applied
            })
        }))
    }

    fn stopped_at(&self) -> Option<usize> {
        self.stopped_at
    }

    fn costs(&self) -> Option<Costs> {
        Some(Costs {
            rebuilds: self.present.rebuilds(),
            fuel: self.fuel,
        })
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
            let saved = self.save_in_fork(context, to).await;
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
                origin: Origin::Saved(schema, from),
            };
            // Bytes that this machine has just written are the state that readers are on their way to.
            let follows = self.saved.take() == Some(context.index);
            let begun = self.begin_again(base, follows).await;
            begun.map_err(|failure| failure.into_error("restore"))
        })
    }

    fn image_bytes(&self) -> Option<u64> {
        self.can_have_image.then_some(self.memory_bytes)
    }

    fn image<'a>(
        &'a mut self,
        context: &'a EntryContext,
    ) -> Running<'a, Option<Box<dyn ImageTaken>>> {
        Box::pin(async move {
            // Queries are asked behind the barrier, with an image and without.
            self.present.journal.publish(context);
            let taking = Taking::begin(&self.present, context).await;
            let taking = taking.map_err(|failure| failure.into_error("image"))?;
            Ok(taking.map(|taking| Box::new(taking) as Box<dyn ImageTaken>))
        })
    }

    fn resume<'a>(&'a mut self, context: &'a EntryContext, image: Bytes) -> Running<'a, ()> {
        Box::pin(async move {
            let resumed = match Image::read(self.component().id(), image) {
                Ok(image) => {
                    let base = Base {
                        context: *context,
                        origin: Origin::Image(image),
                    };
                    self.saved = None;
                    self.begin_again(base, false).await.map_err(again)
                }
                Err(failure) => Err(failure),
            };
            resumed.map_err(|failure| failure.into_error("resume"))
        })
    }

    fn image_kept(&mut self, read: ReadImage) {
        self.present.journal.keep_base_elsewhere(read);
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
mod checkpoints;

#[cfg(test)]
mod handles;

#[cfg(test)]
mod images;

#[cfg(test)]
mod tests;
