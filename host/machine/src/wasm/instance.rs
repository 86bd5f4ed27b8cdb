//! One running instance of a component, and the calls into it.

use std::io::Write;
use std::sync::Arc;
use std::sync::mpsc;

use bytes::Bytes;
use skep_core::outcome::{ConfChange, EntryContext, GuestFault, LeaderChanged, Outcome};
use wasmtime::Store;
use wasmtime::component::{ComponentExportIndex, ComponentNamedList, Func, Lift, Lower, Resource};

use super::budget::Purpose;
use super::component::Component;
use super::ending::Ending;
use super::fault::Failure;
use super::host::Host;
use super::host::Sink as HostSink;
use super::imports::{MAX_CHUNK_BYTES, Sink, Source};
use super::limits::{Limits, Profile};
use super::logbook::Logbook;
use super::types::{Change, Context, Descriptor, Rejection, StatusChange};
use crate::LocalCode;

/// Handles of resources alive at once in one instance.
const MAX_HANDLES: usize = 1024;

/// Bytes of all replies of one entry together; what is left of the entry after that is not run.
pub(super) const MAX_ENTRY_REPLY_BYTES: usize = 64 << 20;

/// The allowances of single commands that a batch may use together. A batch that needs more is run one by one, so an
/// endless command costs this many allowances and its own.
const BATCH_ALLOWANCES: u64 = 4;

/// Bytes that a reply takes beside its contents, on its way out of the guest.
const REPLY_OVERHEAD: usize = 64;

/// Bytes that any call may give back, or pass to an import, beside a reply: twice what an output stream takes at once.
const CALL_OVERHEAD: usize = 128 << 10;

/// Chunks of a snapshot between the guest that writes them and the writer.
const CHUNKS_IN_FLIGHT: usize = 4;

/// A call that belongs to the log: what an instance's state is made of.
#[derive(Clone, Debug)]
pub(super) enum Call {
    Init(Bytes),
    /// One command, and which of its entry it is.
    Apply(u32, Bytes),
    /// All commands of an entry.
    Batch(Arc<[Bytes]>),
    ConfChange(ConfChange),
    StatusChange(LeaderChanged),
}

impl Call {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Init(_) => "init",
            Self::Apply(..) => "apply",
            Self::Batch(_) => "apply-batch",
            Self::ConfChange(_) => "apply-conf-change",
            Self::StatusChange(_) => "process-status-change",
        }
    }

    /// Bytes that it holds.
    pub(super) fn bytes(&self) -> u64 {
        let len = |bytes: &Bytes| bytes.len() as u64;
        match self {
            Self::Init(bytes) | Self::Apply(_, bytes) => len(bytes),
            Self::Batch(commands) => {
                commands.iter().map(len).sum::<u64>() + size_of_val(&commands[..]) as u64
            }
            Self::ConfChange(change) => len(&change.data),
            Self::StatusChange(_) => 0,
        }
    }

    /// The fuel it may use; what it costs if it faults.
    pub(super) fn allowance(&self, profile: &Profile) -> u64 {
        match self {
            Self::Batch(commands) => profile
                .command_fuel
                .saturating_mul(BATCH_ALLOWANCES.min(commands.len() as u64)),
            _ => profile.command_fuel,
        }
    }
}

/// What a call did.
#[derive(Debug)]
pub(super) struct Ran {
    pub(super) outcomes: Vec<Outcome>,
    pub(super) fuel: u64,
}

/// A store with one instance in it. After a failed call it is dead: drop it.
pub(super) struct Instance {
    store: Store<Host>,
    profile: Profile,
    functions: Functions,
    ending: Arc<Ending>,
    /// A call has failed: what is in the store means nothing any more.
    dead: bool,
}

struct Functions {
    describe: Func,
    apply: Func,
    save: Func,
    restore: Func,
    apply_conf_change: Func,
    process_status_change: Func,
    init: Option<Func>,
    query: Option<Func>,
    apply_batch: Option<Func>,
}

type Answer<T> = (Result<T, Rejection>,);

impl Instance {
    /// Starts an instance under `context`, which decides its clock and its seeds.
    pub(super) fn new(
        component: &Component,
        profile: &Profile,
        context: &EntryContext,
        logbook: &Arc<Logbook>,
        ending: &Arc<Ending>,
        purpose: Purpose,
    ) -> Result<Self, Failure> {
        let share = component.share(profile, purpose)?;
        let engine = component.pre().engine();
        let mut store = Store::new(
            engine,
            Host::new(
                Limits::new(profile, component.size(), share),
                profile,
                context,
                Arc::clone(logbook),
                Arc::clone(ending),
            ),
        );
        store.limiter(|host| &mut host.limits);
        Ending::watch(&mut store)?;
        store.set_max_component_handles(MAX_HANDLES);
        store.set_hostcall_fuel(CALL_OVERHEAD);
        store.set_fuel(profile.snapshot_fuel)?;
        let started = ending.run(component.pre().instantiate_async(&mut store));
        store.data_mut().leave();
        let instance = started.map_err(|failure| match failure {
            Failure::Local {
                code: LocalCode::UnexpectedError,
                reason,
            } if store.data().limits.refused() => Failure::guest(GuestFault::Limit, reason),
            other if store.data().limits.memory_refused() => other.for_want_of_memory(),
            other => other,
        })?;
        let exports = component.exports();
        let function = |store: &mut Store<Host>, export: &ComponentExportIndex| {
            instance
                .get_func(store, export)
                .ok_or_else(|| Failure::local(LocalCode::Missing, "an export has gone"))
        };
        let optional = |store: &mut Store<Host>, export: &Option<ComponentExportIndex>| {
            export
                .as_ref()
                .map(|export| function(store, export))
                .transpose()
        };
        let functions = Functions {
            describe: function(&mut store, &exports.describe)?,
            apply: function(&mut store, &exports.apply)?,
            save: function(&mut store, &exports.save)?,
            restore: function(&mut store, &exports.restore)?,
            apply_conf_change: function(&mut store, &exports.apply_conf_change)?,
            process_status_change: function(&mut store, &exports.process_status_change)?,
            init: optional(&mut store, &exports.init)?,
            query: optional(&mut store, &exports.query)?,
            apply_batch: optional(&mut store, &exports.apply_batch)?,
        };
        Ok(Self {
            store,
            profile: profile.clone(),
            functions,
            ending: Arc::clone(ending),
            dead: false,
        })
    }

    /// Whether every export has the type of `skep:machine`.
    pub(super) fn check_types(&self) -> wasmtime::Result<()> {
        fn check<P, R>(
            store: &Store<Host>,
            name: &str,
            function: Option<Func>,
        ) -> wasmtime::Result<()>
        where
            P: ComponentNamedList + Lower,
            R: ComponentNamedList + Lift,
        {
            let Some(function) = function else {
                return Ok(());
            };
            function
                .typed::<P, R>(store)
                .map_err(|error| error.context(format!("the export `{name}`")))
                .map(|_| ())
        }
        let (store, functions) = (&self.store, &self.functions);
        check::<(), (Descriptor,)>(store, "describe", Some(functions.describe))?;
        check::<(Context, &[u8]), Answer<Vec<u8>>>(store, "apply", Some(functions.apply))?;
        check::<(Resource<Sink>,), Answer<()>>(store, "save", Some(functions.save))?;
        check::<(u32, Resource<Source>), Answer<()>>(store, "restore", Some(functions.restore))?;
        check::<(Context, Change), Answer<()>>(
            store,
            "apply-conf-change",
            Some(functions.apply_conf_change),
        )?;
        check::<(Context, StatusChange), ()>(
            store,
            "process-status-change",
            Some(functions.process_status_change),
        )?;
        check::<(Context, &[u8]), Answer<()>>(store, "init", functions.init)?;
        check::<(Context, &[u8]), Answer<Vec<u8>>>(store, "query", functions.query)?;
        check::<(Context, &[&[u8]]), (Vec<Result<Vec<u8>, Rejection>>,)>(
            store,
            "apply-batch",
            functions.apply_batch,
        )
    }

    /// Whether log lines are dropped: they were written when the call ran first.
    pub(super) fn mute(&mut self, muted: bool) {
        self.store.data_mut().log.mute(muted);
    }

    pub(super) fn describe(&mut self) -> Result<crate::Descriptor, Failure> {
        let fuel = self.profile.command_fuel;
        self.enter(&EntryContext::default(), "describe", 0, fuel, CALL_OVERHEAD)?;
        let (descriptor,) = self.call::<(), (Descriptor,)>(self.functions.describe, ())?;
        Ok(descriptor.into())
    }

    pub(super) fn run(&mut self, context: &EntryContext, call: &Call) -> Result<Ran, Failure> {
        let wit = Context::from(context);
        let fuel = call.allowance(&self.profile);
        let reply = self.profile.reply_bytes as usize;
        let outcomes = match call {
            Call::Apply(ordinal, command) => {
                self.enter(context, call.name(), *ordinal, fuel, reply + CALL_OVERHEAD)?;
                let (answer,) =
                    self.call::<_, Answer<Vec<u8>>>(self.functions.apply, (wit, &command[..]))?;
                vec![self.outcome(answer.map(Bytes::from))?]
            }
            Call::Batch(commands) => {
                let Some(function) = self.functions.apply_batch else {
                    return Err(missing("apply-batch"));
                };
                let room = (reply + REPLY_OVERHEAD)
                    .saturating_mul(commands.len())
                    .min(MAX_ENTRY_REPLY_BYTES);
                self.enter(context, call.name(), 0, fuel, room + CALL_OVERHEAD)?;
                let requests = commands
                    .iter()
                    .map(|command| &command[..])
                    .collect::<Vec<_>>();
                let (answers,) = self.call::<_, (Vec<Result<Vec<u8>, Rejection>>,)>(
                    function,
                    (wit, &requests[..]),
                )?;
                if answers.len() != commands.len() {
                    let detail =
                        format!("{} answers to {} commands", answers.len(), commands.len());
                    return Err(Failure::guest(GuestFault::Malformed, detail));
                }
                answers
                    .into_iter()
                    .map(|answer| self.outcome(answer.map(Bytes::from)))
                    .collect::<Result<_, _>>()?
            }
            Call::Init(config) => {
                let Some(function) = self.functions.init else {
                    return Err(missing("init"));
                };
                self.enter(context, call.name(), 0, fuel, reply + CALL_OVERHEAD)?;
                let (answer,) = self.call::<_, Answer<()>>(function, (wit, &config[..]))?;
                vec![self.outcome(answer.map(|()| Bytes::new()))?]
            }
            Call::ConfChange(change) => {
                self.enter(context, call.name(), 0, fuel, reply + CALL_OVERHEAD)?;
                let arguments = (wit, Change::from(change));
                let (answer,) =
                    self.call::<_, Answer<()>>(self.functions.apply_conf_change, arguments)?;
                vec![self.outcome(answer.map(|()| Bytes::new()))?]
            }
            Call::StatusChange(event) => {
                self.enter(context, call.name(), 0, fuel, CALL_OVERHEAD)?;
                self.call::<_, ()>(
                    self.functions.process_status_change,
                    (wit, StatusChange::from(event)),
                )?;
                Vec::new()
            }
        };
        Ok(Ran {
            outcomes,
            fuel: fuel - self.store.get_fuel()?,
        })
    }

    /// The answer, and the fuel used.
    pub(super) fn query(
        &mut self,
        context: &EntryContext,
        request: &[u8],
    ) -> Result<(Outcome, u64), Failure> {
        let Some(function) = self.functions.query else {
            return Err(missing("query"));
        };
        let room = self.profile.reply_bytes as usize + CALL_OVERHEAD;
        let fuel = self.profile.query_fuel;
        self.enter(context, "query", 0, fuel, room)?;
        let (answer,) =
            self.call::<_, Answer<Vec<u8>>>(function, (Context::from(context), request))?;
        let outcome = self.outcome(answer.map(Bytes::from))?;
        Ok((outcome, fuel - self.store.get_fuel()?))
    }

    /// Writes the state to `to`, and ends: an instance that has saved may have another heap than one that has not.
    pub(super) fn save(
        mut self,
        context: &EntryContext,
        to: &mut dyn Write,
    ) -> Result<(), Failure> {
        self.save_and_live(context, to).map(|_fuel| ())
    }

    /// Writes the state to `to`; answers the fuel it took. The guest runs on a thread of its own, so no more than a few
    /// chunks are held at once.
    pub(super) fn save_and_live(
        &mut self,
        context: &EntryContext,
        to: &mut dyn Write,
    ) -> Result<u64, Failure> {
        let (sender, chunks) = mpsc::sync_channel(CHUNKS_IN_FLIGHT);
        let sink = HostSink::new(sender, self.profile.snapshot_bytes);
        std::thread::scope(|scope| {
            let guest = std::thread::Builder::new()
                .name("skep-save".into())
                .spawn_scoped(scope, || self.save_to(context, sink))
                .map_err(|error| {
                    Failure::local(LocalCode::Thread, format!("no thread for `save`: {error}"))
                })?;
            let written = chunks
                .into_iter()
                .try_for_each(|chunk: Vec<u8>| to.write_all(&chunk));
            let saved = guest
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            written.map_err(|error| {
                Failure::local(
                    LocalCode::Io,
                    format!("the snapshot cannot be written: {error}"),
                )
            })?;
            saved
        })
    }

    fn save_to(&mut self, context: &EntryContext, sink: HostSink) -> Result<u64, Failure> {
        let fuel = self.profile.snapshot_fuel;
        self.enter(context, "save", 0, fuel, MAX_CHUNK_BYTES + CALL_OVERHEAD)?;
        let headroom = self.profile.snapshot_headroom();
        let host = self.store.data_mut();
        host.limits.raise_memory(headroom);
        host.sink = Some(sink);
        let saved =
            self.call::<_, Answer<()>>(self.functions.save, (Resource::<Sink>::new_borrow(0),));
        self.store.data_mut().limits.lower_memory(headroom);
        let (answer,) = saved?;
        answer.map_err(refused)?;
        Ok(fuel - self.store.get_fuel()?)
    }

    /// Bytes of its linear memories.
    pub(super) fn memory_bytes(&self) -> u64 {
        self.store.data().limits.memory_bytes()
    }

    pub(super) fn restore(
        &mut self,
        context: &EntryContext,
        schema: u32,
        from: Bytes,
    ) -> Result<(), Failure> {
        self.enter(
            context,
            "restore",
            0,
            self.profile.snapshot_fuel,
            CALL_OVERHEAD,
        )?;
        // What was saved at the limit may take more than the limit while it is read.
        let headroom = self.profile.snapshot_headroom();
        let host = self.store.data_mut();
        host.limits.raise_memory(headroom);
        host.source = Some(from);
        let arguments = (schema, Resource::<Source>::new_borrow(0));
        let restored = self.call::<_, Answer<()>>(self.functions.restore, arguments);
        self.store.data_mut().limits.lower_memory(headroom);
        let (answer,) = restored?;
        answer.map_err(refused)
    }

    fn enter(
        &mut self,
        context: &EntryContext,
        call: &'static str,
        ordinal: u32,
        fuel: u64,
        room: usize,
    ) -> Result<(), Failure> {
        if self.dead {
            return Err(Failure::local(
                LocalCode::Missing,
                "the instance has failed before",
            ));
        }
        self.store.set_fuel(fuel)?;
        self.store.set_hostcall_fuel(room);
        self.store.data_mut().enter(context, call, ordinal);
        Ok(())
    }

    fn call<P, R>(&mut self, function: Func, arguments: P) -> Result<R, Failure>
    where
        P: ComponentNamedList + Lower,
        R: ComponentNamedList + Lift + 'static,
    {
        let result = match function.typed::<P, R>(&self.store) {
            Ok(function) => {
                let call = function.call_async(&mut self.store, arguments);
                self.ending.run(call)
            }
            Err(error) => Err(error.into()),
        };
        self.store.data_mut().leave();
        result.map_err(|failure| {
            self.dead = true;
            match self.store.data().limits.memory_refused() {
                true => failure.for_want_of_memory(),
                false => failure,
            }
        })
    }

    fn outcome(&self, answer: Result<Bytes, Rejection>) -> Result<Outcome, Failure> {
        let (len, outcome) = match answer {
            Ok(reply) => (reply.len(), Outcome::Reply(reply)),
            Err(Rejection { code, message }) => {
                (message.len(), Outcome::Rejected { code, message })
            }
        };
        let limit = self.profile.reply_bytes as usize;
        if len > limit {
            return Err(Failure::guest(
                GuestFault::ReplyTooLarge,
                format!("{len} bytes, at most {limit} are allowed"),
            ));
        }
        Ok(outcome)
    }
}

fn missing(export: &str) -> Failure {
    Failure::local(LocalCode::Missing, format!("the machine has no `{export}`"))
}

fn refused(Rejection { code, message }: Rejection) -> Failure {
    Failure::guest(
        GuestFault::Trap,
        format!("refused with code {code}: {message}"),
    )
}
