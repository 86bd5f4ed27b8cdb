//! What the keys of a node's configuration become in the library, the core and the sandbox.

use std::time::Duration;

use skep::GroupConfig;
use skep_machine::wasm::{Allowance, Holdings, Profile};

use super::{Config, LimitsSection};

impl Config {
    /// A group with the settings of `[raft]` and `[limits]`.
    pub(crate) fn tuned(&self, mut group: GroupConfig) -> GroupConfig {
        group.election_ticks = self.raft.election_ticks;
        group.heartbeat_ticks = self.raft.heartbeat_ticks;
        group.snapshot_entries = self.raft.snapshot_entries;
        group.limits.command_bytes = self.limits.command_bytes;
        group.limits.long_bytes_per_second = self.limits.long_bytes_per_second;
        group.limits.log_retained_bytes = self.limits.log_retained_bytes;
        group.limits.catch_up_share_percent = self.limits.catch_up_share_percent;
        // A new leader needs a moment to hear how far the others are.
        let patience = self.raft.election_ticks * 3;
        group.limits.catch_up_ticks = self.ticks(self.limits.catch_up_timeout_ms).max(1);
        // A request without a deadline of its own is answered within this.
        group.limits.request_ticks = self.ticks(self.limits.request_timeout_ms).max(patience);
        group.limits.activation_ticks = self.ticks(self.limits.activation_timeout_ms).max(patience);
        group
    }

    fn ticks(&self, milliseconds: u64) -> u32 {
        u32::try_from(milliseconds / self.raft.tick_ms).unwrap_or(u32::MAX)
    }

    /// One tick.
    pub fn tick(&self) -> Duration {
        Duration::from_millis(self.raft.tick_ms)
    }

    /// How long a request may take that names no deadline of its own.
    pub fn request_timeout(&self) -> Duration {
        Duration::from_millis(self.limits.request_timeout_ms)
    }

    /// What the compilation of one component may take.
    pub fn compiling(&self) -> Allowance {
        Allowance {
            memory_bytes: self.limits.compile_memory_bytes,
            milliseconds: self.limits.compile_timeout_ms,
        }
    }
}

impl LimitsSection {
    /// What all machines of the node may hold together.
    pub fn machines(&self) -> Holdings {
        let system = Holdings::of_this_system();
        let or = |given, otherwise| if given == 0 { otherwise } else { given };
        Holdings {
            address_bytes: or(self.machines_address_bytes, system.address_bytes),
            mappings: or(self.machines_mappings, system.mappings),
            memory_bytes: or(self.machines_memory_bytes, system.memory_bytes),
        }
    }

    /// The most that a group's profile may ask for at this node. Checked where somebody asks, not where a log is applied: a
    /// group that has more goes on.
    pub fn profile_ceiling(&self) -> Profile {
        Profile {
            command_fuel: self.profile_command_fuel,
            query_fuel: self.profile_query_fuel,
            snapshot_fuel: self.profile_snapshot_fuel,
            memory_bytes: self.profile_memory_bytes,
            table_elements: self.profile_table_elements,
            instances: self.profile_instances,
            reply_bytes: self.profile_reply_bytes,
            snapshot_bytes: self.profile_snapshot_bytes,
            log_bytes: self.profile_log_bytes,
            log_lines_per_second: self.profile_log_lines_per_second,
        }
    }
}
