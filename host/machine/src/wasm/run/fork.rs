//! An instance whose memory is that of a machine: what a machine's queries run in.

use bytes::Bytes;
use skep_core::outcome::{EntryContext, Outcome};

use super::instance::Instance;
use super::rebuild::{Guest, again};
use crate::wasm::engine::budget::Purpose;
use crate::wasm::fault::Failure;

/// A second instance of a machine's component that becomes the machine, byte for byte, before each of its calls.
///
/// # Why it is the machine
///
/// All that a call can see of an instance is its memories, its globals, the sizes of both, its tables, its handles, and what the
/// host keeps for it. The memories are [those of the machine](crate::wasm::memory), the globals and sizes are thawed from what the
/// machine froze, tables and segments are as the component made them (a component that changes them later has no images), the
/// machine has no handles or is not forked, and the host's part is copied.
///
/// # Why the machine never notices
///
/// Freezing reads the guest's globals and uses none of its fuel. A page that the fork writes is the fork's own from then on.
pub(crate) struct Fork(Instance);

impl Fork {
    /// A fork of a machine whose instance began at `start`.
    pub(crate) async fn of(
        machine: &mut Instance,
        guest: &Guest,
        start: &EntryContext,
    ) -> Result<Self, Failure> {
        let mut instance = guest.instance(start, Purpose::Queries).await.map_err(again)?;
        instance.fork_of(machine)?;
        Ok(Self(instance))
    }

    /// Becomes what the machine is now. After a failure it must be dropped.
    pub(crate) async fn follow(&mut self, machine: &mut Instance) -> Result<(), Failure> {
        machine.freeze().await?;
        self.0.follow(machine).await
    }

    /// The answer, and the fuel used. After a failure, or if this is dropped before its end, the fork must be dropped.
    pub(crate) async fn query(
        &mut self,
        context: &EntryContext,
        request: &Bytes,
    ) -> Result<(Outcome, u64), Failure> {
        self.0.query(context, request).await
    }
}
