//! What the machines of one node may hold together: addresses, mappings and linear memory. A group's profile bounds one
//! machine, the same on every replica; this bounds their sum, and is each node's own, so it never decides an outcome. It is
//! looked at where something new is started (a machine, a reader, an upload that says what it is); what runs already, or did so
//! before the node was restarted, goes on and is counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::holdings::Holdings;
use super::layout::Layout;
use crate::LocalCode;
use crate::wasm::fault::Failure;
use crate::wasm::memory::BLOCK_BYTES;

/// Mappings of an instance beside those of its memories: its own allocations, where they are large.
const MAPPINGS_PER_INSTANCE: u64 = 2;

/// Of a node's machines, all that they write is copied for their checkpoints to this part at the most: of the memory that they may
/// hold, and of the mappings, of which each copy may take two.
const COPIES_SHARE: u64 = 8;

/// The budget of one node; all of its machines share it.
#[derive(Debug)]
pub struct MachineBudget {
    most: Holdings,
    address_bytes: AtomicU64,
    mappings: AtomicU64,
    memory_bytes: AtomicU64,
    /// Blocks of memory that are copied for checkpoints.
    copies: AtomicU64,
}

/// Something of the budget is used up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "the machines of this node hold {used} of {most} {what}; remove groups or components that are not needed, or raise [limits] {key}"
)]
pub struct OutOfBudget {
    /// What it is.
    pub what: &'static str,
    /// The key of the node's configuration.
    pub key: &'static str,
    /// How much of it is used, or would be.
    pub used: u64,
    /// How much there is.
    pub most: u64,
}

/// What an instance is started for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// A machine, a description or a trial that was not there before.
    New,
    /// Queries: whoever asks can ask elsewhere.
    Queries,
    /// A machine of a replica that is here already, perhaps from before a restart: refusing it would stop the replica.
    Running,
}

impl MachineBudget {
    /// A budget of so much.
    pub fn new(most: Holdings) -> Arc<Self> {
        Arc::new(Self {
            most,
            address_bytes: AtomicU64::new(0),
            mappings: AtomicU64::new(0),
            memory_bytes: AtomicU64::new(0),
            copies: AtomicU64::new(0),
        })
    }

    /// What there is.
    pub fn most(&self) -> Holdings {
        self.most
    }

    /// What is held now.
    pub fn held(&self) -> Holdings {
        Holdings {
            address_bytes: self.address_bytes.load(Relaxed),
            mappings: self.mappings.load(Relaxed),
            memory_bytes: self.memory_bytes.load(Relaxed),
        }
    }

    /// Blocks of memory that may be copied for checkpoints.
    fn copies_at_most(&self) -> u64 {
        let blocks = self.most.memory_bytes / BLOCK_BYTES as u64;
        blocks.min(self.most.mappings / 2) / COPIES_SHARE
    }

    /// What a checkpoint holds: nothing as yet.
    pub(crate) fn copies(self: &Arc<Self>) -> CopyShare {
        CopyShare {
            budget: Arc::clone(self),
            held: 0,
        }
    }

    /// Whether there is room for one more machine of the usual kind.
    ///
    /// # Errors
    /// What there is no room for.
    pub fn has_room(&self) -> Result<(), OutOfBudget> {
        self.fits(Layout::ROOMY.cost(1, 1, 0))
    }

    fn fits(&self, more: Holdings) -> Result<(), OutOfBudget> {
        let (held, most) = (self.held(), self.most);
        let each = [
            (
                "bytes of addresses",
                "machines_address_bytes",
                held.address_bytes,
                more.address_bytes,
                most.address_bytes,
            ),
            (
                "mappings",
                "machines_mappings",
                held.mappings,
                more.mappings,
                most.mappings,
            ),
            (
                "bytes of linear memory",
                "machines_memory_bytes",
                held.memory_bytes,
                more.memory_bytes,
                most.memory_bytes,
            ),
        ];
        for (what, key, held, more, most) in each {
            let used = held.saturating_add(more);
            // What is full is full, also for what takes none of it at first.
            if used > most || held >= most {
                return Err(OutOfBudget {
                    what,
                    key,
                    used,
                    most,
                });
            }
        }
        Ok(())
    }

    /// Takes what an instance needs from its start on. Those that start at once may pass the limit together.
    pub(crate) fn take(
        self: &Arc<Self>,
        cost: Holdings,
        purpose: Purpose,
    ) -> Result<Share, Failure> {
        let cost = Holdings {
            mappings: cost.mappings.saturating_add(MAPPINGS_PER_INSTANCE),
            ..cost
        };
        if purpose != Purpose::Running {
            self.fits(cost).map_err(refused)?;
        }
        self.address_bytes.fetch_add(cost.address_bytes, Relaxed);
        self.mappings.fetch_add(cost.mappings, Relaxed);
        self.memory_bytes.fetch_add(cost.memory_bytes, Relaxed);
        Ok(Share {
            budget: Arc::clone(self),
            held: cost,
            purpose,
        })
    }
}

fn refused(error: OutOfBudget) -> Failure {
    Failure::local(LocalCode::OutOfBudget, error.to_string())
}

/// What one instance holds; given back when it goes.
#[derive(Debug)]
pub(crate) struct Share {
    budget: Arc<MachineBudget>,
    held: Holdings,
    purpose: Purpose,
}

impl Share {
    /// Counts linear memory that the instance takes. Refused only to an instance that answers queries.
    pub(crate) fn grow(&mut self, bytes: u64) -> Result<(), OutOfBudget> {
        if self.purpose == Purpose::Queries {
            self.budget.fits(Holdings {
                memory_bytes: bytes,
                ..Holdings::default()
            })?;
        }
        self.budget.memory_bytes.fetch_add(bytes, Relaxed);
        self.held.memory_bytes += bytes;
        Ok(())
    }

    /// The instance has gone over to the memory of another one, which counts it.
    pub(crate) fn give_back_memory(&mut self) {
        let bytes = std::mem::take(&mut self.held.memory_bytes);
        self.budget.memory_bytes.fetch_sub(bytes, Relaxed);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget
            .address_bytes
            .fetch_sub(self.held.address_bytes, Relaxed);
        self.budget.mappings.fetch_sub(self.held.mappings, Relaxed);
        self.budget
            .memory_bytes
            .fetch_sub(self.held.memory_bytes, Relaxed);
    }
}

/// What the copies for one checkpoint hold; given back when it goes.
#[derive(Debug)]
pub(crate) struct CopyShare {
    budget: Arc<MachineBudget>,
    held: u64,
}

impl CopyShare {
    /// Whether there is room for so many blocks. They are there already.
    pub(crate) fn hold(&mut self, blocks: u64) -> bool {
        let more = blocks.saturating_sub(self.held);
        if more == 0 {
            return true;
        }
        self.held += more;
        let before = self.budget.copies.fetch_add(more, Relaxed);
        before + more <= self.budget.copies_at_most()
    }
}

impl Drop for CopyShare {
    fn drop(&mut self) {
        self.budget.copies.fetch_sub(self.held, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget() -> Arc<MachineBudget> {
        MachineBudget::new(Holdings {
            address_bytes: 1000,
            mappings: 100,
            memory_bytes: 50,
        })
    }

    fn cost(address_bytes: u64) -> Holdings {
        Holdings {
            address_bytes,
            mappings: 1,
            memory_bytes: 0,
        }
    }

    #[test]
    fn what_is_beyond_is_refused_by_name_and_what_runs_goes_on() {
        let budget = budget();
        let one = budget.take(cost(600), Purpose::New).unwrap();
        let error = budget.take(cost(600), Purpose::New).unwrap_err();
        assert!(
            matches!(&error, Failure::Local { code: LocalCode::OutOfBudget, reason } if reason.contains("machines_address_bytes")),
            "{error:?}"
        );
        let running = budget.take(cost(600), Purpose::Running).unwrap();
        assert_eq!(budget.held().address_bytes, 1200);
        drop((one, running));
        assert_eq!(budget.held(), Holdings::default());
    }

    #[test]
    fn memory_is_refused_to_queries_only() {
        let budget = budget();
        let mut machine = budget.take(cost(1), Purpose::New).unwrap();
        let mut reader = budget.take(cost(1), Purpose::Queries).unwrap();
        reader.grow(20).unwrap();
        machine.grow(29).unwrap();
        assert_eq!(reader.grow(10).unwrap_err().key, "machines_memory_bytes");
        machine.grow(100).unwrap();
        assert_eq!(budget.held().memory_bytes, 149);
        // Full is full for whoever comes now.
        assert!(budget.take(cost(0), Purpose::New).is_err());
        drop(machine);
        budget.take(cost(0), Purpose::New).unwrap();
    }

    #[test]
    fn checkpoints_share_a_part_of_the_memory_and_of_the_mappings() {
        let budget = |memory_blocks, mappings| {
            MachineBudget::new(Holdings {
                address_bytes: 0,
                mappings,
                memory_bytes: memory_blocks * BLOCK_BYTES as u64,
            })
        };
        for budget in [budget(80, 1000), budget(1000, 160)] {
            let [mut one, mut other] = [budget.copies(), budget.copies()];
            assert!(one.hold(6) && one.hold(6) && other.hold(4));
            assert!(!other.hold(5));
            drop(one);
            assert!(other.hold(10) && !other.hold(11));
            drop(other);
            assert!(budget.copies().hold(10));
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_system_has_something() {
        let most = Holdings::of_this_system();
        assert!(most.mappings > 1000 && most.memory_bytes > 1 << 27 && most.memory_bytes < 1 << 50);
    }
}
