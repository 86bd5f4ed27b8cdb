//! What a machine was a short while ago, to go back to after a fault.

use super::instance::Instance;
use super::journal::Moment;
use crate::wasm::engine::budget::CopyShare;
use crate::wasm::memory::{Captured, Keeper};
use crate::wasm::world::kept::Kept;

/// Fuel between two checkpoints at the least: some twenty milliseconds of work.
pub(crate) const CHECKPOINT_FUEL: u64 = 20_000_000;

/// One part in so many of what a machine does may go into its checkpoints.
const SHARE: u64 = 100;

/// What a checkpoint costs, in fuel, a unit of which is about a nanosecond: to have the globals written down,
const FREEZE_COST: u64 = 50_000;

/// to protect a block where no checkpoint does yet,
const PROTECT_COST: u64 = 2_500;

/// and to copy a block that is written for the first time since.
const COPY_COST: u64 = 15_000;

/// Blocks of a memory that are copied for a checkpoint at the most, or a quarter of them, if that is more.
pub(crate) const CHECKPOINT_BLOCKS: usize = 384;

/// Bytes of memory from which on to build a machine anew takes so long that there is a checkpoint wherever it begins anew, and at
/// each image. One that is smaller has its first when it has done some work.
const LARGE_BYTES: u64 = 4 << 20;

/// A machine as it was between two calls.
pub(crate) struct Checkpoint {
    pub(super) keepers: Vec<Keeper>,
    pub(super) kept: Kept,
    pub(super) at: Moment,
    copies: CopyShare,
    blocks_of_memory: usize,
}

impl Checkpoint {
    /// Of memories that were captured at this moment.
    pub(crate) fn new(at: Moment, captured: &[Captured], kept: Kept, copies: CopyShare) -> Self {
        let keeper = |captured: &Captured| captured.keeper(blocks_at_most(captured.blocks()));
        Self {
            keepers: captured.iter().map(keeper).collect(),
            kept,
            at,
            copies,
            blocks_of_memory: captured.iter().map(Captured::blocks).sum(),
        }
    }

    fn blocks(&self) -> usize {
        self.keepers.iter().map(Keeper::blocks).sum()
    }

    fn is_whole(&self) -> bool {
        self.keepers.iter().all(Keeper::is_whole)
    }

    /// Whether what was written since can be held, and the machine can go back.
    fn stands(&mut self) -> bool {
        let blocks = self.blocks();
        self.is_whole() && self.copies.hold(blocks as u64)
    }
}

/// Whether a machine is so large that it is worth a checkpoint before it has done anything.
pub(crate) fn is_large(instance: &Instance) -> bool {
    instance.memory_bytes() >= LARGE_BYTES
}

/// Blocks of a memory of so many that may be written until a checkpoint is given up.
fn blocks_at_most(blocks: usize) -> usize {
    CHECKPOINT_BLOCKS.max(blocks / 4)
}

/// The newest checkpoint of a machine, and when the next one is due.
///
/// # What it costs
///
/// A checkpoint copies what is written after it, block by block. So it costs what the machine writes, and one that is taken often
/// costs more. Between two there is so much work that they take a hundredth of it at the most. Where a machine writes all over a
/// large memory a checkpoint is given up before the next one is due: then a fault has the machine built from its base.
///
/// Nothing that a guest can see depends on any of this.
#[derive(Default)]
pub(crate) struct Checkpoints {
    newest: Option<Checkpoint>,
    /// The fuel that the machine had used when the newest one was taken, whether it is still there or not.
    taken: u64,
    begin_cost: u64,
    /// What it has cost, whether it is still there or not.
    cost: u64,
}

impl Checkpoints {
    /// The machine begins anew: nobody goes back to before.
    pub(crate) fn begin(&mut self, now: Moment) {
        *self = Self {
            taken: now.fuel,
            ..Self::default()
        };
    }

    /// There is another one, or none any more.
    pub(crate) fn put(&mut self, checkpoint: Option<Checkpoint>) {
        let is_first = self.newest.is_none();
        self.newest = checkpoint;
        if let Some(newest) = &self.newest {
            self.taken = newest.at.fuel;
            self.begin_cost = match is_first {
                true => FREEZE_COST + PROTECT_COST * newest.blocks_of_memory as u64,
                false => FREEZE_COST,
            };
        }
    }

    /// Takes notice of what was written; gives the checkpoint up if that is too much. True if it is time for another one.
    pub(crate) fn is_due(&mut self, now: Moment) -> bool {
        if let Some(newest) = &mut self.newest {
            self.cost = self.begin_cost + COPY_COST * newest.blocks() as u64;
            if !newest.stands() {
                self.newest = None;
            }
        }
        let work = now.fuel.saturating_sub(self.taken);
        let is_due = work >= CHECKPOINT_FUEL.max(self.cost.saturating_mul(SHARE));
        if is_due {
            // If there will be none, the next one is as far away.
            self.taken = now.fuel;
        }
        is_due
    }

    /// The newest, if one can go back to it. It is used up.
    pub(crate) fn take(&mut self) -> Option<Checkpoint> {
        self.newest.take().filter(Checkpoint::is_whole)
    }
}
