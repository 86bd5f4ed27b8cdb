//! Holds one instance to its profile, and counts what it takes of the node's budget.

use wasmtime::ResourceLimiter;

use crate::LocalCode;
use crate::wasm::engine::budget::Share;
use crate::wasm::fault::Stop;
use skep_types::profile::Profile;

/// Bytes of a page of a guest's memory.
const PAGE_BYTES: usize = 64 << 10;

/// Refuses what the profile does not allow, and tells a refusal, which every replica makes, from a failure of this
/// node's memory, which only this one sees.
#[derive(Debug)]
pub(crate) struct Limits {
    memory: Meter,
    table: Meter,
    instances: usize,
    counters: usize,
    images: usize,
    refused: bool,
    /// As `refused`, of memory that the module may have, and in the present call.
    memory_refused: bool,
    /// What is this instance's of the node's budget.
    share: Share,
    /// Its memory is that of another instance, which counts it.
    is_fork: bool,
    /// Its memories become as large as those of another instance, which was allowed what it has.
    follows: bool,
}

impl Limits {
    /// Of a component with so many scopes and images. The modules that hold the counters of its stack, and what is written down
    /// of its state, are the host's, not the guest's.
    pub(crate) fn new(profile: &Profile, scopes: u64, images: u64, share: Share) -> Self {
        Self {
            memory: Meter::new(profile.memory_bytes),
            table: Meter::new(profile.table_elements),
            instances: profile.instances as usize,
            counters: usize::try_from(scopes).unwrap_or(usize::MAX),
            images: usize::try_from(images).unwrap_or(usize::MAX),
            refused: false,
            memory_refused: false,
            share,
            is_fork: false,
            follows: false,
        }
    }

    pub(crate) fn raise_memory(&mut self, bytes: u64) {
        self.memory.limit = self.memory.limit.saturating_add(bytes);
    }

    pub(crate) fn lower_memory(&mut self, bytes: u64) {
        self.memory.limit = self.memory.limit.saturating_sub(bytes);
    }

    /// Bytes of all linear memories together.
    pub(crate) fn memory_bytes(&self) -> u64 {
        self.memory.used
    }

    /// The instance has gone over to the memory of another one.
    pub(crate) fn fork(&mut self) {
        self.is_fork = true;
        self.share.give_back_memory();
    }

    /// Its memories become as large as those of another instance before the next call.
    pub(crate) fn follow(&mut self, of: &Self) {
        self.memory.used = of.memory.used;
        self.follows = true;
    }

    /// Before each call.
    pub(crate) fn enter(&mut self) {
        self.memory_refused = false;
        self.follows = false;
    }

    /// Whether the profile refused memory in the present call that the module itself may have. Every replica refuses alike: it
    /// depends on the profile and the module only, never on what this node has.
    pub(crate) fn memory_refused(&self) -> bool {
        self.memory_refused
    }

    /// Whether a growth was refused in the life of the instance: what tells an instance that cannot start for its size
    /// from one that this node could not start.
    pub(crate) fn refused(&self) -> bool {
        self.refused
    }
}

impl ResourceLimiter for Limits {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        // An image module's: the host's own, some bytes that stand in no profile, and no whole pages.
        if !desired.is_multiple_of(PAGE_BYTES) || self.follows {
            return Ok(true);
        }
        let allowed = self.memory.grow(current, desired, maximum);
        self.refused |= !allowed;
        // Beyond what the module itself allows, or can address, no profile would help.
        self.memory_refused |= !allowed && maximum.is_none_or(|most| desired <= most);
        if allowed && !self.is_fork {
            let more = desired.saturating_sub(current) as u64;
            self.share.grow(more).map_err(|error| Stop::Local {
                code: LocalCode::OutOfBudget,
                reason: error.to_string(),
            })?;
        }
        Ok(allowed)
    }

    fn memory_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        Err(not_given("a linear memory", &error).into())
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let allowed = self.table.grow(current, desired, maximum);
        self.refused |= !allowed;
        Ok(allowed)
    }

    fn table_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        Err(not_given("a table", &error).into())
    }

    fn instances(&self) -> usize {
        self.instances
            .saturating_add(self.counters)
            .saturating_add(self.images)
    }

    fn memories(&self) -> usize {
        self.instances.saturating_add(self.images)
    }

    fn tables(&self) -> usize {
        self.instances
    }
}

fn not_given(what: &str, error: &wasmtime::Error) -> Stop {
    Stop::Local {
        code: LocalCode::Memory,
        reason: format!("{what} could not grow although its limit allows it: {error:#}"),
    }
}

/// The sum of what several memories or tables hold.
#[derive(Debug)]
struct Meter {
    used: u64,
    limit: u64,
}

impl Meter {
    fn new(limit: u64) -> Self {
        Self { used: 0, limit }
    }

    fn grow(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> bool {
        let after = self
            .used
            .saturating_add(desired.saturating_sub(current) as u64);
        let allowed = after <= self.limit && maximum.is_none_or(|maximum| desired <= maximum);
        if allowed {
            self.used = after;
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wasm::engine::budget::{MachineBudget, Purpose};
    use crate::wasm::engine::holdings::Holdings;

    fn limits(profile: &Profile) -> Limits {
        let budget = MachineBudget::new(Holdings::of_this_system());
        let share = budget.take(Holdings::default(), Purpose::New).unwrap();
        Limits::new(profile, 0, 0, share)
    }

    fn hundred_pages() -> Profile {
        Profile {
            memory_bytes: 100 * PAGE_BYTES as u64,
            ..Profile::default()
        }
    }

    /// A memory grows from so many pages to so many, of at most so many.
    fn grow(limits: &mut Limits, current: usize, desired: usize, maximum: Option<usize>) -> bool {
        let [current, desired] = [current, desired].map(|pages| pages * PAGE_BYTES);
        limits
            .memory_growing(current, desired, maximum.map(|pages| pages * PAGE_BYTES))
            .unwrap()
    }

    #[test]
    fn memories_share_one_limit_and_a_refusal_takes_nothing() {
        let mut limits = limits(&hundred_pages());
        assert!(grow(&mut limits, 0, 60, None));
        assert!(!grow(&mut limits, 0, 50, None));
        assert!(grow(&mut limits, 0, 40, Some(40)));
        assert!(!grow(&mut limits, 40, 41, Some(40)));
        assert!(limits.refused());
    }

    #[test]
    fn what_the_host_adds_is_not_the_guest_s() {
        let mut limits = limits(&hundred_pages());
        assert!(grow(&mut limits, 0, 100, None));
        assert!(limits.memory_growing(0, 49, Some(49)).unwrap());
        assert_eq!(limits.memory_bytes(), 100 * PAGE_BYTES as u64);
        assert!(!limits.refused() && !grow(&mut limits, 100, 101, None));
    }

    #[test]
    fn only_what_the_profile_refuses_is_a_want_of_memory() {
        let mut limits = limits(&hundred_pages());
        assert!(!grow(&mut limits, 0, 120, Some(80)));
        assert!(limits.refused() && !limits.memory_refused());
        assert!(!grow(&mut limits, 0, 120, Some(120)));
        assert!(limits.memory_refused());
        limits.enter();
        assert!(!limits.memory_refused());
        assert!(!grow(&mut limits, 0, 120, None));
        assert!(limits.memory_refused());
    }

    #[test]
    fn a_growth_that_was_allowed_and_failed_is_local() {
        let error = limits(&Profile::default())
            .memory_grow_failed(wasmtime::format_err!("mmap"))
            .unwrap_err();
        assert!(
            matches!(error.downcast_ref(), Some(Stop::Local { code: LocalCode::Memory, reason }) if reason.contains("mmap"))
        );
    }
}
