//! One running instance of a component, and the calls into it.

use std::future::poll_fn;
use std::io::Write;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use skep_core::outcome::{EntryContext, GuestFault, Outcome};
use wasmtime::component::Resource;

use super::call::{Call, MAX_ENTRY_REPLY_BYTES, Ran};
use super::image::Image;
use crate::LocalCode;
use crate::wasm::code::component::Component;
use crate::wasm::code::started::{CALL_OVERHEAD, Started};
use crate::wasm::engine::budget::Purpose;
use crate::wasm::fault::Failure;
use crate::wasm::memory::{Captured, Keeper, Memory};
use crate::wasm::world::imports::MAX_CHUNK_BYTES;
use crate::wasm::world::kept::Kept;
use crate::wasm::world::logbook::Logbook;
use crate::wasm::world::resources::{LentSink, LentSource};
use crate::wasm::world::sink::{Chunks, Sink};
use crate::wasm::world::types::{Answer, Change, Context, Rejection, StatusChange};
use skep_types::profile::Profile;

/// Bytes that a reply takes beside its contents, on its way out of the guest.
const REPLY_OVERHEAD: usize = 64;

/// An instance that commands or queries run in. After a failed call it is dead: drop it.
pub(crate) struct Instance {
    started: Started,
    profile: Profile,
}

impl Instance {
    /// Starts an instance under `context`, which decides its clock and its seeds.
    pub(crate) async fn new(
        component: &Component,
        profile: &Profile,
        context: &EntryContext,
        logbook: &Arc<Logbook>,
        purpose: Purpose,
    ) -> Result<Self, Failure> {
        let linked = component.linked();
        Ok(Self {
            started: Started::new(linked, profile, context, logbook, purpose).await?,
            profile: profile.clone(),
        })
    }

    /// Has its state written down and put back.
    #[cfg(test)]
    pub(super) fn freeze_and_thaw(&mut self) -> Result<(), Failure> {
        use crate::ToEnd;
        self.started.freeze().to_end()?;
        self.started.thaw().to_end()
    }

    /// Whether log lines are dropped: they were written when the call ran first.
    pub(crate) fn mute(&mut self, muted: bool) {
        self.started.world_mut().log.mute(muted);
    }

    pub(crate) async fn run(
        &mut self,
        context: &EntryContext,
        call: &Call,
    ) -> Result<Ran, Failure> {
        let wit = Context::from(context);
        let fuel = call.allowance(&self.profile);
        let reply = self.profile.reply_bytes as usize;
        let outcomes = match call {
            Call::Apply(ordinal, command) => {
                self.started
                    .enter(context, call.name(), *ordinal, fuel, reply + CALL_OVERHEAD)?;
                let apply = self.started.functions().apply;
                let call = self
                    .started
                    .call::<_, Answer<Vec<u8>>>(apply, (wit, &command[..]));
                let (answer,) = call.await?;
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
                let call = self
                    .started
                    .call::<_, (Vec<Result<Vec<u8>, Rejection>>,)>(function, (wit, &requests[..]));
                let (answers,) = call.await?;
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
                let call = self
                    .started
                    .call::<_, Answer<()>>(function, (wit, &config[..]));
                let (answer,) = call.await?;
                vec![self.outcome(answer.map(|()| Bytes::new()))?]
            }
            Call::ConfChange(change) => {
                self.started
                    .enter(context, call.name(), 0, fuel, reply + CALL_OVERHEAD)?;
                let arguments = (wit, Change::from(change));
                let function = self.started.functions().apply_conf_change;
                let call = self.started.call::<_, Answer<()>>(function, arguments);
                let (answer,) = call.await?;
                vec![self.outcome(answer.map(|()| Bytes::new()))?]
            }
            Call::StatusChange(event) => {
                self.started
                    .enter(context, call.name(), 0, fuel, CALL_OVERHEAD)?;
                let function = self.started.functions().process_status_change;
                let arguments = (wit, StatusChange::from(event));
                self.started.call::<_, ()>(function, arguments).await?;
                Vec::new()
            }
        };
        Ok(Ran {
            outcomes,
            fuel: fuel - self.started.fuel_left()?,
        })
    }

    /// The answer, and the fuel used.
    pub(crate) async fn query(
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
        let call = self
            .started
            .call::<_, Answer<Vec<u8>>>(function, (Context::from(context), request));
        let (answer,) = call.await?;
        let outcome = self.outcome(answer.map(Bytes::from))?;
        Ok((outcome, fuel - self.started.fuel_left()?))
    }

    /// Writes the state to `to`, and ends: an instance that has saved may have another heap than one that has not.
    pub(crate) async fn save(
        mut self,
        context: &EntryContext,
        to: &mut (dyn Write + Send),
    ) -> Result<(), Failure> {
        self.save_and_live(context, to).await.map(|_fuel| ())
    }

    /// Writes the state to `to`; answers the fuel it took. The guest waits while what it has written is on its way, so no more
    /// than a few chunks are held at once.
    pub(crate) async fn save_and_live(
        &mut self,
        context: &EntryContext,
        to: &mut (dyn Write + Send),
    ) -> Result<u64, Failure> {
        let chunks = Chunks::default();
        let sink = Sink::new(chunks.clone(), self.profile.snapshot_bytes);
        let mut saving = pin!(self.save_to(context, sink));
        poll_fn(|cx| {
            loop {
                let polled = saving.as_mut().poll(cx);
                let waits = polled.is_pending() && chunks.are_many();
                for chunk in chunks.take() {
                    if let Err(error) = to.write_all(&chunk) {
                        let reason = format!("the snapshot cannot be written: {error}");
                        return Poll::Ready(Err(Failure::local(LocalCode::Io, reason)));
                    }
                }
                if !waits {
                    return polled;
                }
            }
        })
        .await
    }

    async fn save_to(&mut self, context: &EntryContext, sink: Sink) -> Result<u64, Failure> {
        let fuel = self.profile.snapshot_fuel;
        self.started
            .enter(context, "save", 0, fuel, MAX_CHUNK_BYTES + CALL_OVERHEAD)?;
        let headroom = self.profile.snapshot_headroom();
        let world = self.started.world_mut();
        world.limits.raise_memory(headroom);
        world.sink = Some(sink);
        world.handles.lend();
        let save = self.started.functions().save;
        let arguments = (Resource::<LentSink>::new_borrow(0),);
        let saved = self.started.call::<_, Answer<()>>(save, arguments).await;
        self.started.world_mut().limits.lower_memory(headroom);
        let (answer,) = saved?;
        answer.map_err(refused)?;
        Ok(fuel - self.started.fuel_left()?)
    }

    /// See [`Started`].
    pub(crate) fn can_be_forked(&self) -> bool {
        self.started.can_be_forked()
    }

    pub(crate) fn memories(&self) -> &Arc<[Arc<Memory>]> {
        self.started.memories()
    }

    pub(crate) fn fork_of(&mut self, of: &Self) -> Result<(), Failure> {
        self.started.fork_of(&of.started)
    }

    pub(crate) async fn follow(&mut self, of: &mut Self) -> Result<(), Failure> {
        self.started.follow(&mut of.started).await
    }

    pub(crate) async fn lead(&mut self, to: &mut Self) -> Result<(), Failure> {
        self.started.lead(&mut to.started).await
    }

    /// Begins copies of its memories; with what the host keeps beside them. The machine is frozen first.
    pub(crate) async fn capture(&mut self) -> Result<(Vec<Captured>, Kept), Failure> {
        self.started.freeze().await?;
        let captured = self.started.capture()?;
        Ok((captured, self.started.world().keep()))
    }

    /// Whether an image of it is still being written.
    pub(crate) fn is_read(&self) -> bool {
        self.started.is_read()
    }

    /// Becomes what the image is of. It was just started, as that was.
    pub(crate) async fn resume(&mut self, image: &Image) -> Result<(), Failure> {
        let fits = image.put(self.memories())?;
        self.thaw().await?;
        if !fits && !image.put(self.memories())? {
            let reason = "an image has pages where its machine has no memory";
            return Err(Failure::local(LocalCode::Differs, reason));
        }
        self.go_on_from(image.kept()).await
    }

    /// Becomes what another instance was, which is used no more. It was just started, as that was.
    pub(crate) async fn take_over(&mut self, were: &[Keeper], kept: &Kept) -> Result<(), Failure> {
        self.started.take_over(were)?;
        self.thaw().await?;
        self.go_on_from(kept).await
    }

    async fn thaw(&mut self) -> Result<(), Failure> {
        // It may have grown while it was restored, beyond what it may grow to otherwise.
        let headroom = self.profile.snapshot_headroom();
        self.started.world_mut().limits.raise_memory(headroom);
        let thawed = self.started.thaw().await;
        self.started.world_mut().limits.lower_memory(headroom);
        thawed
    }

    /// The guest has what it had. Now the host's part.
    async fn go_on_from(&mut self, kept: &Kept) -> Result<(), Failure> {
        self.started.follow_handles(&kept.handles()).await?;
        self.started.world_mut().resume(kept);
        Ok(())
    }

    /// Bytes of its linear memories.
    pub(crate) fn memory_bytes(&self) -> u64 {
        self.started.world().limits.memory_bytes()
    }

    pub(crate) async fn restore(
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
        world.handles.lend();
        let arguments = (schema, Resource::<LentSource>::new_borrow(0));
        let restore = self.started.functions().restore;
        let restored = self.started.call::<_, Answer<()>>(restore, arguments).await;
        self.started.world_mut().limits.lower_memory(headroom);
        let (answer,) = restored?;
        answer.map_err(refused)?;
        self.started.settle_handles().await
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
