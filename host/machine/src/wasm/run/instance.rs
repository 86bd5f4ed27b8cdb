//! One running instance of a component, and the calls into it.

use std::io::Write;
use std::sync::Arc;
use std::sync::mpsc;

use bytes::Bytes;
use skep_core::outcome::{EntryContext, GuestFault, Outcome};
use wasmtime::component::Resource;

use super::call::{Call, MAX_ENTRY_REPLY_BYTES, Ran};
use crate::LocalCode;
use crate::wasm::code::component::Component;
use crate::wasm::code::started::{CALL_OVERHEAD, Started};
use crate::wasm::engine::budget::Purpose;
use crate::wasm::fault::Failure;
use crate::wasm::world::ending::Ending;
use crate::wasm::world::imports::MAX_CHUNK_BYTES;
use crate::wasm::world::logbook::Logbook;
use crate::wasm::world::resources::{LentSink, LentSource};
use crate::wasm::world::sink::Sink;
use crate::wasm::world::types::{Answer, Change, Context, Rejection, StatusChange};
use skep_types::profile::Profile;

/// Bytes that a reply takes beside its contents, on its way out of the guest.
const REPLY_OVERHEAD: usize = 64;

/// Chunks of a snapshot between the guest that writes them and the writer.
const CHUNKS_IN_FLIGHT: usize = 4;

/// An instance that commands or queries run in. After a failed call it is dead: drop it.
pub(crate) struct Instance {
    started: Started,
    profile: Profile,
}

impl Instance {
    /// Starts an instance under `context`, which decides its clock and its seeds.
    pub(crate) fn new(
        component: &Component,
        profile: &Profile,
        context: &EntryContext,
        logbook: &Arc<Logbook>,
        ending: &Arc<Ending>,
        purpose: Purpose,
    ) -> Result<Self, Failure> {
        let linked = component.linked();
        Ok(Self {
            started: Started::new(linked, profile, context, logbook, ending, purpose)?,
            profile: profile.clone(),
        })
    }

    /// Has its state written down and put back.
    #[cfg(test)]
    pub(super) fn freeze_and_thaw(&mut self) -> Result<(), Failure> {
        self.started.freeze()?;
        self.started.thaw()
    }

    /// Whether log lines are dropped: they were written when the call ran first.
    pub(crate) fn mute(&mut self, muted: bool) {
        self.started.world_mut().log.mute(muted);
    }

    pub(crate) fn run(&mut self, context: &EntryContext, call: &Call) -> Result<Ran, Failure> {
        let wit = Context::from(context);
        let fuel = call.allowance(&self.profile);
        let reply = self.profile.reply_bytes as usize;
        let outcomes = match call {
            Call::Apply(ordinal, command) => {
                self.started
                    .enter(context, call.name(), *ordinal, fuel, reply + CALL_OVERHEAD)?;
                let (answer,) = self.started.call::<_, Answer<Vec<u8>>>(
                    self.started.functions().apply,
                    (wit, &command[..]),
                )?;
                vec![self.outcome(answer.map(Bytes::from))?]
            }
            Call::Batch(commands) => {
                let Some(function) = self.started.functions().apply_batch else {
                    return Err(missing("apply-batch"));
                };
                let room = (reply + REPLY_OVERHEAD)
                    .saturating_mul(commands.len())
                    .min(MAX_ENTRY_REPLY_BYTES);
                self.started
                    .enter(context, call.name(), 0, fuel, room + CALL_OVERHEAD)?;
                let requests = commands
                    .iter()
                    .map(|command| &command[..])
                    .collect::<Vec<_>>();
                let (answers,) = self.started.call::<_, (Vec<Result<Vec<u8>, Rejection>>,)>(
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
                let Some(function) = self.started.functions().init else {
                    return Err(missing("init"));
                };
                self.started
                    .enter(context, call.name(), 0, fuel, reply + CALL_OVERHEAD)?;
                let (answer,) = self
                    .started
                    .call::<_, Answer<()>>(function, (wit, &config[..]))?;
                vec![self.outcome(answer.map(|()| Bytes::new()))?]
            }
            Call::ConfChange(change) => {
                self.started
                    .enter(context, call.name(), 0, fuel, reply + CALL_OVERHEAD)?;
                let arguments = (wit, Change::from(change));
                let (answer,) = self
                    .started
                    .call::<_, Answer<()>>(self.started.functions().apply_conf_change, arguments)?;
                vec![self.outcome(answer.map(|()| Bytes::new()))?]
            }
            Call::StatusChange(event) => {
                self.started
                    .enter(context, call.name(), 0, fuel, CALL_OVERHEAD)?;
                self.started.call::<_, ()>(
                    self.started.functions().process_status_change,
                    (wit, StatusChange::from(event)),
                )?;
                Vec::new()
            }
        };
        Ok(Ran {
            outcomes,
            fuel: fuel - self.started.fuel_left()?,
        })
    }

    /// The answer, and the fuel used.
    pub(crate) fn query(
        &mut self,
        context: &EntryContext,
        request: &[u8],
    ) -> Result<(Outcome, u64), Failure> {
        let Some(function) = self.started.functions().query else {
            return Err(missing("query"));
        };
        let room = self.profile.reply_bytes as usize + CALL_OVERHEAD;
        let fuel = self.profile.query_fuel;
        self.started.enter(context, "query", 0, fuel, room)?;
        let (answer,) = self
            .started
            .call::<_, Answer<Vec<u8>>>(function, (Context::from(context), request))?;
        let outcome = self.outcome(answer.map(Bytes::from))?;
        Ok((outcome, fuel - self.started.fuel_left()?))
    }

    /// Writes the state to `to`, and ends: an instance that has saved may have another heap than one that has not.
    pub(crate) fn save(
        mut self,
        context: &EntryContext,
        to: &mut dyn Write,
    ) -> Result<(), Failure> {
        self.save_and_live(context, to).map(|_fuel| ())
    }

    /// Writes the state to `to`; answers the fuel it took. The guest runs on a thread of its own, so no more than a few
    /// chunks are held at once.
    pub(crate) fn save_and_live(
        &mut self,
        context: &EntryContext,
        to: &mut dyn Write,
    ) -> Result<u64, Failure> {
        let (sender, chunks) = mpsc::sync_channel(CHUNKS_IN_FLIGHT);
        let sink = Sink::new(sender, self.profile.snapshot_bytes);
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

    fn save_to(&mut self, context: &EntryContext, sink: Sink) -> Result<u64, Failure> {
        let fuel = self.profile.snapshot_fuel;
        self.started
            .enter(context, "save", 0, fuel, MAX_CHUNK_BYTES + CALL_OVERHEAD)?;
        let headroom = self.profile.snapshot_headroom();
        let world = self.started.world_mut();
        world.limits.raise_memory(headroom);
        world.sink = Some(sink);
        let saved = self.started.call::<_, Answer<()>>(
            self.started.functions().save,
            (Resource::<LentSink>::new_borrow(0),),
        );
        self.started.world_mut().limits.lower_memory(headroom);
        let (answer,) = saved?;
        answer.map_err(refused)?;
        Ok(fuel - self.started.fuel_left()?)
    }

    /// Bytes of its linear memories.
    pub(crate) fn memory_bytes(&self) -> u64 {
        self.started.world().limits.memory_bytes()
    }

    pub(crate) fn restore(
        &mut self,
        context: &EntryContext,
        schema: u32,
        from: Bytes,
    ) -> Result<(), Failure> {
        self.started.enter(
            context,
            "restore",
            0,
            self.profile.snapshot_fuel,
            CALL_OVERHEAD,
        )?;
        // What was saved at the limit may take more than the limit while it is read.
        let headroom = self.profile.snapshot_headroom();
        let world = self.started.world_mut();
        world.limits.raise_memory(headroom);
        world.source = Some(from);
        let arguments = (schema, Resource::<LentSource>::new_borrow(0));
        let restored = self
            .started
            .call::<_, Answer<()>>(self.started.functions().restore, arguments);
        self.started.world_mut().limits.lower_memory(headroom);
        let (answer,) = restored?;
        answer.map_err(refused)
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
