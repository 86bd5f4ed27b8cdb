//! How stacks and linear memories lie in the addresses of a process.

use super::holdings::Holdings;

/// The stack that the calls of one instance run on, in bytes: what the guest may use, as much again where the host calls back
/// into it (for room in its memory, where it cannot call the host in turn), and as much for the host's frames above, between
/// and below. The system gives what is touched, which the counted limit keeps below a quarter of what the guest may use.
pub(super) const GUEST_STACK_BYTES: usize = 3 * MAX_WASM_STACK;

/// Native stack of a guest, in bytes. Interpreters are known to need 2 to 4 MiB; guests meet the counted limit of
/// `depth` long before this one, which is local to a replica.
pub(super) const MAX_WASM_STACK: usize = 8 << 20;

/// Beneath such a stack: a page, of up to so many bytes.
const STACK_GUARD_BYTES: u64 = 64 << 10;

/// The stack, and its guard.
const MAPPINGS_PER_STACK: u64 = 2;

/// A memory that an image is written to, where memories never move: up to so many bytes with its guard.
const IMAGE_BYTES: u64 = 64 << 10;

/// What such a memory is made of.
const MAPPINGS_PER_IMAGE: u64 = 2;

/// How many memories a component may have, all its instances together, to be compiled for wide reservations.
const FEW_MEMORIES: u64 = 2;

/// How linear memories lie in the addresses of the process. It makes code faster or slower and means nothing to a guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Layout {
    /// Reserved for a memory at first; within it a memory never moves.
    pub(super) reservation: u64,
    /// Reserved beyond what a memory needs when it outgrows its reservation, and moves.
    pub(super) growth: u64,
    /// Behind each memory, and before it.
    pub(super) guard: u64,
}

impl Layout {
    /// All that a 32-bit address reaches, so that no access needs a check: for components with few memories.
    pub(crate) const ROOMY: Self = Self {
        reservation: 4 << 30,
        growth: 0,
        guard: 32 << 20,
    };
    /// Little, with explicit checks: a component of many memories would take a part of all addresses that a process has.
    pub(super) const COMPACT: Self = Self {
        reservation: 64 << 20,
        growth: 64 << 20,
        guard: 64 << 10,
    };
    /// Mappings of one memory: what guards it, its initial contents, what was written, and what it may still grow to.
    const MAPPINGS_PER_MEMORY: u64 = 4;

    pub(super) fn for_memories(memories: u64) -> Self {
        if memories <= FEW_MEMORIES {
            Self::ROOMY
        } else {
            Self::COMPACT
        }
    }

    /// Whether memories stay where they are.
    pub(crate) fn is_fixed(self) -> bool {
        self.growth == 0
    }

    /// What an instance of so many memories may come to hold of addresses and mappings, with so many bytes in them together; and
    /// of so many that its images are written to, each some pages and a guard.
    pub(crate) fn cost(self, memories: u64, images: u64, bytes: u64) -> Holdings {
        let stack = GUEST_STACK_BYTES as u64 + STACK_GUARD_BYTES;
        let each = self.reservation + self.growth + 2 * self.guard;
        // Where a memory never outgrows its reservation, what it holds lies within that.
        let beyond = match self.growth {
            0 => 0,
            _ => bytes.min(memories.saturating_mul(4 << 30)),
        };
        // Where memories move, none may move to where wasmtime takes another one to be.
        let image = match self.growth {
            0 => IMAGE_BYTES,
            _ => each,
        };
        Holdings {
            address_bytes: memories
                .saturating_mul(each)
                .saturating_add(beyond)
                .saturating_add(images.saturating_mul(image))
                .saturating_add(stack),
            mappings: memories
                .saturating_mul(Self::MAPPINGS_PER_MEMORY)
                .saturating_add(images.saturating_mul(MAPPINGS_PER_IMAGE))
                .saturating_add(MAPPINGS_PER_STACK),
            memory_bytes: 0,
        }
    }
}
