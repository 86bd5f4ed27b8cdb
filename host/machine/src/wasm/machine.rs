//! A replica's machine: an instance, and what is needed to have the same one again.

use std::io::Write;
use std::sync::Arc;

use bytes::Bytes;
use skep_core::id::GroupId;
use skep_core::outcome::{ConfChange, EntryContext, GuestFault, LeaderChanged, Outcome};

use super::component::Component;
use super::fault::Failure;
use super::instance::{Call, Instance, MAX_ENTRY_REPLY_BYTES, Ran};
use super::limits::Profile;
use crate::{Applied, Descriptor, MachineError, StateMachine};

/// Code of a rejection that the host makes for a machine that lacks an optional interface. The number the SDK uses for
/// a bad request.
pub const REJECTED_BY_HOST: u32 = 0;

/// Runs of a call before a local failure of it is final: once, and once more in a rebuilt instance.
const ATTEMPTS: usize = 2;

/// Whose machine it is, for log lines.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct MachineLabel {
    /// The group.
    pub group: GroupId,
    /// Name of the group or of the machine.
    pub name: String,
}

/// A state machine from a component. See [`StateMachine`] for its contract.
///
/// # Canonical states
///
/// The state is a function of a *base* (the start of the group, or the last restored bytes, with the context they were
/// restored under) and of the *journal*, the calls since that returned. Any instance can be dropped and built again from
/// the two, and is: after a fault, which ends a WebAssembly instance for good, and after a save. Replicas agree in
/// everything a guest can see, down to the addresses on its heap, because each of them gets there by these same calls.
///
/// The journal shares the bytes of the commands and grows until the next [`restore`](StateMachine::restore): the host
/// bounds it by the distance of barriers, in fuel and in bytes of log.
///
/// # Queries
///
/// They run in a second instance, fed from the same journal, so that nothing they do can show in the log's outcomes. It
/// is made by the first query and dropped with the base, after a fault, or by [`release_reader`](Self::release_reader).
///
/// # Threads
///
/// Call it on threads with a stack of [`APPLY_THREAD_STACK_BYTES`](super::APPLY_THREAD_STACK_BYTES).
pub struct WasmMachine {
    component: Arc<Component>,
    profile: Profile,
    label: Arc<MachineLabel>,
    base: Base,
    journal: Vec<Record>,
    /// Context of the last entry.
    last: EntryContext,
    live: Option<Instance>,
    reader: Option<Reader>,
}

/// Where the journal starts.
struct Base {
    context: EntryContext,
    /// Schema and bytes; none at the start of the group.
    snapshot: Option<(u32, Bytes)>,
}

/// A call that returned.
struct Record {
    context: EntryContext,
    call: Call,
}

/// The instance that queries run in.
struct Reader {
    instance: Instance,
    /// Records of the journal it has seen.
    fed: usize,
}

impl WasmMachine {
    /// A machine at the start of its group. `genesis` is the context of the group's creation, the same on every replica;
    /// only its time and entropy reach the guest.
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
        let base = Base {
            context: genesis,
            snapshot: None,
        };
        let mut machine = Self {
            component,
            profile,
            label: Arc::new(label),
            base,
            journal: Vec::new(),
            last: genesis,
            live: None,
            reader: None,
        };
        machine.live = Some(
            machine
                .start(&machine.base, false)
                .map_err(|failure| failure.into_error("instantiate"))?,
        );
        Ok(machine)
    }

    /// The code it runs.
    pub fn component(&self) -> &Arc<Component> {
        &self.component
    }

    /// The limits it runs under.
    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    /// Drops the instance that queries run in; the next query makes another. For groups that are no longer asked.
    pub fn release_reader(&mut self) {
        self.reader = None;
    }

    /// An instance at `base`.
    fn start(&self, base: &Base, muted: bool) -> Result<Instance, Failure> {
        let mut instance =
            Instance::new(&self.component, &self.profile, &base.context, &self.label)?;
        instance.mute(muted);
        if let Some((schema, bytes)) = &base.snapshot {
            instance.restore(&base.context, *schema, bytes.clone())?;
        }
        Ok(instance)
    }

    /// Brings `instance` up to date. Each of these calls has returned once, so a failure now is this node's.
    fn feed(&self, instance: &mut Instance, from: usize) -> Result<(), Failure> {
        instance.mute(true);
        for record in &self.journal[from..] {
            instance.run(&record.context, &record.call).map_err(again)?;
        }
        instance.mute(false);
        Ok(())
    }

    /// The instance that commands run in, built again if it was dropped.
    fn take_live(&mut self) -> Result<Instance, Failure> {
        if let Some(live) = self.live.take() {
            return Ok(live);
        }
        tracing::debug!(
            target: "skep::machine", group = %self.label.group, calls = self.journal.len(),
            "rebuilding the machine's instance"
        );
        let mut instance = self.start(&self.base, true).map_err(again)?;
        self.feed(&mut instance, 0)?;
        Ok(instance)
    }

    /// Runs one call of the log: its result, or the fault that every replica sees.
    fn execute(
        &mut self,
        context: &EntryContext,
        call: Call,
    ) -> Result<Result<Ran, GuestFault>, MachineError> {
        let name = call.name();
        let mut reason = String::new();
        for _ in 0..ATTEMPTS {
            let ran = self.take_live().and_then(|mut instance| {
                let ran = instance.run(context, &call)?;
                self.live = Some(instance);
                Ok(ran)
            });
            match ran {
                Ok(ran) => {
                    self.journal.push(Record {
                        context: *context,
                        call,
                    });
                    return Ok(Ok(ran));
                }
                Err(Failure::Guest { fault, detail }) => {
                    tracing::warn!(
                        target: "skep::machine", group = %self.label.group, machine = %self.label.name,
                        index = %context.index, call = name, %fault, "the machine failed; its state is kept: {detail}"
                    );
                    return Ok(Err(fault));
                }
                Err(Failure::Local(why)) => {
                    tracing::error!(
                        target: "skep::machine", group = %self.label.group, machine = %self.label.name,
                        index = %context.index, call = name, "this node failed to run the machine: {why}"
                    );
                    reason = why;
                }
            }
        }
        Err(MachineError::Local { call: name, reason })
    }

    /// A call with one outcome.
    fn execute_one(&mut self, context: &EntryContext, call: Call) -> Result<Applied, MachineError> {
        let allowance = call.allowance(&self.profile);
        Ok(match self.execute(context, call)? {
            Ok(Ran { outcomes, fuel }) => Applied { outcomes, fuel },
            Err(fault) => Applied {
                outcomes: vec![Outcome::Fault(fault)],
                fuel: allowance,
            },
        })
    }

    /// The reader, up to date, if the one there is can be brought so.
    fn take_reader(&mut self) -> Result<Instance, Failure> {
        if let Some(Reader { mut instance, fed }) = self.reader.take()
            && self.feed(&mut instance, fed).is_ok()
        {
            return Ok(instance);
        }
        // Either there was none, or queries had used up what the log's calls need: a fresh one has room for them.
        let mut instance = self.start(&self.base, true).map_err(again)?;
        self.feed(&mut instance, 0)?;
        Ok(instance)
    }
}

/// A call that succeeded before and fails now: whatever the failure says of itself, it is local.
fn again(failure: Failure) -> Failure {
    match failure {
        Failure::Guest { fault, detail } => Failure::Local(format!(
            "a replayed call failed with {fault}, which it did not at first: {detail}"
        )),
        local => local,
    }
}

impl StateMachine for WasmMachine {
    fn describe(&self) -> Descriptor {
        self.component.descriptor().clone()
    }

    fn init(&mut self, context: &EntryContext, config: &Bytes) -> Result<Applied, MachineError> {
        self.last = *context;
        if self.component.exports().init.is_some() {
            return self.execute_one(context, Call::Init(config.clone()));
        }
        let outcome = if config.is_empty() {
            Outcome::Reply(Bytes::new())
        } else {
            rejected(
                "this machine takes no configuration: it does not export skep:machine/initializer",
            )
        };
        Ok(Applied {
            outcomes: vec![outcome],
            fuel: 0,
        })
    }

    fn apply(
        &mut self,
        context: &EntryContext,
        commands: &[Bytes],
    ) -> Result<Applied, MachineError> {
        self.last = *context;
        let mut applied = Applied {
            outcomes: Vec::with_capacity(commands.len()),
            fuel: 0,
        };
        if commands.len() > 1 && self.component.exports().apply_batch.is_some() {
            let call = Call::Batch(commands.to_vec());
            let allowance = call.allowance(&self.profile);
            match self.execute(context, call)? {
                Ok(Ran { outcomes, fuel }) => return Ok(Applied { outcomes, fuel }),
                // One of them fails: find out which, one by one.
                Err(_) => applied.fuel = allowance,
            }
        }
        let mut reply_bytes = 0;
        for (ordinal, command) in commands.iter().enumerate() {
            if reply_bytes > MAX_ENTRY_REPLY_BYTES {
                applied.outcomes.push(Outcome::Fault(GuestFault::Limit));
                continue;
            }
            let one = self.execute_one(context, Call::Apply(ordinal as u32, command.clone()))?;
            reply_bytes += one.outcomes.iter().map(size).sum::<usize>();
            applied.outcomes.extend(one.outcomes);
            applied.fuel = applied.fuel.saturating_add(one.fuel);
        }
        Ok(applied)
    }

    fn apply_conf_change(
        &mut self,
        context: &EntryContext,
        change: &ConfChange,
    ) -> Result<Applied, MachineError> {
        self.last = *context;
        self.execute_one(context, Call::ConfChange(change.clone()))
    }

    fn process_status_change(
        &mut self,
        context: &EntryContext,
        event: &LeaderChanged,
    ) -> Result<Applied, MachineError> {
        self.last = *context;
        let applied = self.execute_one(context, Call::StatusChange(*event))?;
        Ok(Applied {
            outcomes: Vec::new(),
            ..applied
        })
    }

    fn query(&mut self, request: &Bytes) -> Result<Outcome, MachineError> {
        if self.component.exports().query.is_none() {
            return Ok(rejected(
                "this machine answers no queries: it does not export skep:machine/queries",
            ));
        }
        let mut reason = String::new();
        for _ in 0..ATTEMPTS {
            let context = self.last;
            let answered = self.take_reader().and_then(|mut instance| {
                let outcome = instance.query(&context, request)?;
                self.reader = Some(Reader {
                    instance,
                    fed: self.journal.len(),
                });
                Ok(outcome)
            });
            match answered {
                Ok(outcome) => return Ok(outcome),
                Err(Failure::Guest { fault, detail }) => {
                    tracing::warn!(
                        target: "skep::machine", group = %self.label.group, machine = %self.label.name,
                        index = %context.index, %fault, "the machine failed on a query: {detail}"
                    );
                    return Ok(Outcome::Fault(fault));
                }
                Err(Failure::Local(why)) => reason = why,
            }
        }
        Err(MachineError::Local {
            call: "query",
            reason,
        })
    }

    fn save(&mut self, context: &EntryContext, to: &mut dyn Write) -> Result<(), MachineError> {
        self.take_live()
            .and_then(|instance| instance.save(context, to))
            .map_err(|failure| failure.into_error("save"))
    }

    fn restore(
        &mut self,
        context: &EntryContext,
        schema: u32,
        from: Bytes,
    ) -> Result<(), MachineError> {
        let Descriptor {
            schema: newest,
            oldest_schema: oldest,
            ..
        } = *self.component.descriptor();
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
        let mut reason = String::new();
        for _ in 0..ATTEMPTS {
            match self.start(&base, false) {
                Ok(instance) => {
                    self.base = base;
                    self.journal = Vec::new();
                    self.last = *context;
                    self.live = Some(instance);
                    self.reader = None;
                    return Ok(());
                }
                Err(Failure::Local(why)) => reason = why,
                Err(guest) => return Err(guest.into_error("restore")),
            }
        }
        Err(MachineError::Local {
            call: "restore",
            reason,
        })
    }
}

fn rejected(message: &str) -> Outcome {
    Outcome::Rejected {
        code: REJECTED_BY_HOST,
        message: message.into(),
    }
}

fn size(outcome: &Outcome) -> usize {
    match outcome {
        Outcome::Reply(reply) => reply.len(),
        Outcome::Rejected { message, .. } => message.len(),
        Outcome::Fault(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wasm::{APPLY_THREAD_STACK_BYTES, Engine};

    #[test]
    fn a_stack_that_really_overflows_is_no_outcome_but_local() {
        let text = include_str!("../../tests/machine/guest.wat")
            .replace("⟨optional⟩", "")
            .replace("⟨describe⟩", "")
            .replace("⟨too-many⟩", "0");
        let test = move || {
            let component = Component::compile_uncounted(
                &Engine::new().unwrap(),
                &wat::parse_str(text).unwrap(),
            )
            .unwrap();
            let context = EntryContext::default();
            let label = MachineLabel::default();
            let mut machine =
                WasmMachine::new(Arc::new(component), Profile::default(), context, label).unwrap();
            let mut apply = |command: &'static str| {
                machine.apply(&context, &[Bytes::from_static(command.as_bytes())])
            };
            let number = |n: u64| [Outcome::Reply(Bytes::copy_from_slice(&n.to_le_bytes()))];
            assert_eq!(apply("add").unwrap().outcomes, number(1));
            let error = apply("recurse").unwrap_err();
            assert!(
                matches!(&error, MachineError::Local { call: "apply", reason } if reason.contains("stack")),
                "{error}"
            );
            // Nothing of it stays, should the host go on after all.
            assert_eq!(apply("add").unwrap().outcomes, number(2));
        };
        let thread = std::thread::Builder::new()
            .stack_size(APPLY_THREAD_STACK_BYTES)
            .spawn(test)
            .unwrap();
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    }
}
