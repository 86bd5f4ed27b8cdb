//! What a machine may use. All of it is a replicated setting of the group: never a node's own.

use serde::{Deserialize, Serialize};
use wasmtime::ResourceLimiter;

use super::budget::Share;
use super::expansion::Size;
use super::fault::Stop;
use crate::LocalCode;

/// Limits of one machine. A setting of the group, the same on every replica, because reaching one is an outcome.
///
/// A unit of fuel is one WebAssembly instruction; a core does about 0.8 × 10⁹ of them in a second.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Profile {
    /// Fuel of one command, of `init`, and of each hook. Default 500 × 10⁶, about half a second.
    pub command_fuel: u64,
    /// Fuel of one query. Default 500 × 10⁶.
    pub query_fuel: u64,
    /// Fuel of one `save`, of one `restore`, and of the start of an instance. Default 50 × 10⁹, about a minute.
    pub snapshot_fuel: u64,
    /// Bytes of all linear memories together. Default 256 MiB. `save` and `restore` get a quarter more, at least 64 MiB.
    pub memory_bytes: u64,
    /// Elements of all tables together. Default 100,000; JavaScript engines use about 8,000.
    pub table_elements: u64,
    /// Core instances, and memories and tables, of one component. Default 512; Python builds have more than 30.
    pub instances: u32,
    /// Bytes of one reply or of one rejection's message. Default 1 MiB.
    pub reply_bytes: u32,
    /// Bytes of one snapshot. Default 1 GiB.
    pub snapshot_bytes: u64,
    /// Bytes of log lines that one call may write; the rest is dropped. Default 16 KiB.
    pub log_bytes: u32,
    /// Log lines that the machine may cause in a second on each node, those of the host about its faults included; the rest is
    /// dropped and counted. Default 1,000.
    pub log_lines_per_second: u32,
}

impl Default for Profile {
    fn default() -> Self {
        Self {
            command_fuel: 500_000_000,
            query_fuel: 500_000_000,
            snapshot_fuel: 50_000_000_000,
            memory_bytes: 256 << 20,
            table_elements: 100_000,
            instances: 512,
            reply_bytes: 1 << 20,
            snapshot_bytes: 1 << 30,
            log_bytes: 16 << 10,
            log_lines_per_second: 1000,
        }
    }
}

impl Profile {
    /// The most that a node lets anybody ask for, unless its operator says otherwise: a call that nobody can wait for is not
    /// worth running, and what one group may take leaves room for others.
    pub const CEILING: Self = Self {
        command_fuel: 100_000_000_000,
        query_fuel: 100_000_000_000,
        snapshot_fuel: 1_000_000_000_000,
        memory_bytes: 4 << 30,
        table_elements: 10_000_000,
        instances: 4096,
        reply_bytes: 16 << 20,
        snapshot_bytes: 16 << 30,
        log_bytes: 1 << 20,
        log_lines_per_second: 100_000,
    };

    /// Every setting by its name.
    pub fn settings(&self) -> [(&'static str, u64); 10] {
        [
            ("command-fuel", self.command_fuel),
            ("query-fuel", self.query_fuel),
            ("snapshot-fuel", self.snapshot_fuel),
            ("memory-bytes", self.memory_bytes),
            ("table-elements", self.table_elements),
            ("instances", self.instances.into()),
            ("reply-bytes", self.reply_bytes.into()),
            ("snapshot-bytes", self.snapshot_bytes),
            ("log-bytes", self.log_bytes.into()),
            ("log-lines-per-second", self.log_lines_per_second.into()),
        ]
    }

    /// The first setting that is above that of `ceiling`: its name, what it is, and what it may be.
    pub fn above(&self, ceiling: &Self) -> Option<(&'static str, u64, u64)> {
        self.settings()
            .into_iter()
            .zip(ceiling.settings())
            .map(|((key, value), (_, most))| (key, value, most))
            .find(|(_, value, most)| value > most)
    }

    /// Memory that only `save` and `restore` may use, so that a machine at its limit can still be saved, and be restored
    /// on a replica that joins. What `restore` keeps of it counts: until the machine is below its limit, it gets no more.
    pub(super) fn snapshot_headroom(&self) -> u64 {
        (self.memory_bytes / 4).max(64 << 20)
    }
}

/// Refuses what the profile does not allow, and tells a refusal, which every replica makes, from a failure of this
/// node's memory, which only this one sees.
#[derive(Debug)]
pub(super) struct Limits {
    memory: Meter,
    table: Meter,
    instances: usize,
    counters: usize,
    refused: bool,
    /// As `refused`, of memory that the module may have, and in the present call.
    memory_refused: bool,
    /// What is this instance's of the node's budget.
    share: Share,
}

impl Limits {
    /// Of a component of this size. The modules that hold the counters of its stack are the host's, not the guest's.
    pub(super) fn new(profile: &Profile, size: Size, share: Share) -> Self {
        Self {
            memory: Meter::new(profile.memory_bytes),
            table: Meter::new(profile.table_elements),
            instances: profile.instances as usize,
            counters: usize::try_from(size.scopes).unwrap_or(usize::MAX),
            refused: false,
            memory_refused: false,
            share,
        }
    }

    pub(super) fn raise_memory(&mut self, bytes: u64) {
        self.memory.limit = self.memory.limit.saturating_add(bytes);
    }

    pub(super) fn lower_memory(&mut self, bytes: u64) {
        self.memory.limit = self.memory.limit.saturating_sub(bytes);
    }

    /// Bytes of all linear memories together.
    pub(super) fn memory_bytes(&self) -> u64 {
        self.memory.used
    }

    /// Before each call.
    pub(super) fn enter(&mut self) {
        self.memory_refused = false;
    }

    /// Whether the profile refused memory in the present call that the module itself may have. Every replica refuses alike: it
    /// depends on the profile and the module only, never on what this node has.
    pub(super) fn memory_refused(&self) -> bool {
        self.memory_refused
    }

    /// Whether a growth was refused in the life of the instance: what tells an instance that cannot start for its size
    /// from one that this node could not start.
    pub(super) fn refused(&self) -> bool {
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
        let allowed = self.memory.grow(current, desired, maximum);
        self.refused |= !allowed;
        // Beyond what the module itself allows, or can address, no profile would help.
        self.memory_refused |= !allowed && maximum.is_none_or(|most| desired <= most);
        if allowed {
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
        self.instances.saturating_add(self.counters)
    }

    fn memories(&self) -> usize {
        self.instances
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
    use super::super::budget::{Holdings, MachineBudget, Purpose};
    use super::*;

    fn limits(profile: &Profile) -> Limits {
        let budget = MachineBudget::new(Holdings::of_this_system());
        let share = budget.take(Holdings::default(), Purpose::New).unwrap();
        Limits::new(profile, Size::default(), share)
    }

    #[test]
    fn memories_share_one_limit_and_a_refusal_takes_nothing() {
        let profile = Profile {
            memory_bytes: 100,
            ..Profile::default()
        };
        let mut limits = limits(&profile);
        assert!(limits.memory_growing(0, 60, None).unwrap());
        assert!(!limits.memory_growing(0, 50, None).unwrap());
        assert!(limits.memory_growing(0, 40, Some(40)).unwrap());
        assert!(!limits.memory_growing(40, 41, Some(40)).unwrap());
        assert!(limits.refused());
    }

    #[test]
    fn only_what_the_profile_refuses_is_a_want_of_memory() {
        let profile = Profile {
            memory_bytes: 100,
            ..Profile::default()
        };
        let mut limits = limits(&profile);
        assert!(!limits.memory_growing(0, 120, Some(80)).unwrap());
        assert!(limits.refused() && !limits.memory_refused());
        assert!(!limits.memory_growing(0, 120, Some(120)).unwrap());
        assert!(limits.memory_refused());
        limits.enter();
        assert!(!limits.memory_refused());
        assert!(!limits.memory_growing(0, 120, None).unwrap());
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

    #[test]
    fn what_is_above_a_ceiling_is_named() {
        assert_eq!(Profile::default().above(&Profile::CEILING), None);
        assert_eq!(Profile::CEILING.above(&Profile::CEILING), None);
        let most = u64::MAX;
        for (key, profile) in [
            (
                "command-fuel",
                Profile {
                    command_fuel: most,
                    ..Profile::default()
                },
            ),
            (
                "memory-bytes",
                Profile {
                    memory_bytes: most,
                    ..Profile::default()
                },
            ),
        ] {
            let (named, value, _) = profile.above(&Profile::CEILING).unwrap();
            assert_eq!((named, value), (key, most));
        }
        // No setting is forgotten.
        let json = serde_json::to_value(Profile::default()).unwrap();
        let names: std::collections::BTreeSet<_> =
            json.as_object().unwrap().keys().cloned().collect();
        let listed = Profile::default().settings().map(|(key, _)| key.to_owned());
        assert_eq!(names, listed.into());
    }

    #[test]
    fn a_profile_is_read_with_defaults_and_refuses_unknown_names() {
        let profile: Profile = serde_json::from_str(r#"{"command-fuel": 7}"#).unwrap();
        assert_eq!(
            profile,
            Profile {
                command_fuel: 7,
                ..Profile::default()
            }
        );
        assert!(serde_json::from_str::<Profile>(r#"{"comand-fuel": 7}"#).is_err());
    }
}
