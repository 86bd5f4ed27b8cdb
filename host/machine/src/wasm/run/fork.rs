//! An instance whose memory is that of a machine.

use std::future::poll_fn;
use std::io::Write;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Poll;

use bytes::Bytes;
use skep_core::outcome::{EntryContext, Outcome};

use super::call::{Call, Ran};
use super::instance::Instance;
use super::present::Reading;
use super::rebuild::{Guest, again};
use crate::LocalCode;
use crate::wasm::engine::budget::Purpose;
use crate::wasm::fault::Failure;

/// A second instance of a machine's component that becomes the machine, byte for byte, before each of its calls.
///
/// # Why it is the machine
///
/// All that a call can see of an instance is its memories, its globals, the sizes of both, its tables, its handles, and what the
/// host keeps for it. The memories are [those of the machine](crate::wasm::memory), the globals and sizes are thawed from what the
/// machine froze, tables and segments are as the component made them (a component that changes them later has no images), handles
/// are given and taken back until they stand where [the machine's](crate::wasm::world::handles) do, and the host's part is copied.
///
/// # Why the machine never notices
///
/// Freezing reads the guest's globals and uses none of its fuel. A page that the fork writes is the fork's own from then on.
///
/// After a call that has failed, or was dropped before its end, a fork must be dropped.
pub(crate) struct Fork(Instance);

impl Fork {
    /// This fork, or a new one, as the machine is now. The machine's instance began at `start`. A node whose budget is used up has
    /// none.
    pub(crate) async fn current(
        fork: Option<Self>,
        machine: &mut Instance,
        guest: &Guest,
        start: &EntryContext,
    ) -> Result<Self, Failure> {
        // It fails if it was a fork of an instance that is there no more.
        if let Some(mut fork) = fork
            && fork.0.follow(machine).await.is_ok()
        {
            return Ok(fork);
        }
        guest.forks.fetch_add(1, Relaxed);
        let mut instance = guest
            .instance(start, Purpose::Queries)
            .await
            .map_err(again)?;
        instance.fork_of(machine)?;
        instance.follow(machine).await?;
        Ok(Self(instance))
    }

    /// The answer, and the fuel used. A query that takes long gets a copy of the machine for itself, and lets the machine go on.
    pub(crate) async fn query(
        &mut self,
        guest: &Guest,
        context: &EntryContext,
        request: &Bytes,
        reading: Reading,
    ) -> Result<(Outcome, u64), Failure> {
        let memories = Arc::clone(self.0.memories());
        let mut query = pin!(self.0.query(context, request));
        if let Poll::Ready(answer) = poll_fn(|cx| Poll::Ready(query.as_mut().poll(cx))).await {
            return answer;
        }
        let bytes = memories.iter().map(|memory| memory.bytes() as u64).sum();
        let _share = guest.component.linked().room_for(bytes)?;
        for memory in &memories[..] {
            memory.detach().map_err(|error| {
                let reason = format!("there is no memory for a query that takes long: {error}");
                Failure::local(LocalCode::Memory, reason)
            })?;
        }
        drop(reading);
        query.await
    }

    /// Writes the machine's state.
    pub(crate) async fn save(
        self,
        context: &EntryContext,
        to: &mut (dyn Write + Send),
    ) -> Result<(), Failure> {
        self.0.save(context, to).await
    }

    /// Runs a call of the log for the machine, which then is as if the call had run in it; or, if the call fails, as if it had not.
    /// None if the machine cannot be made to be as the fork is.
    pub(crate) async fn run(
        &mut self,
        machine: &mut Instance,
        context: &EntryContext,
        call: &Call,
    ) -> Result<Option<Ran>, Failure> {
        let ran = self.0.run(context, call).await?;
        if !self.0.can_be_forked() {
            return Ok(None);
        }
        self.0.lead(machine).await?;
        Ok(Some(ran))
    }
}
