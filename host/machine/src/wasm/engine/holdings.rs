//! What machines hold of a node: addresses, mappings, memory.

use serde::{Deserialize, Serialize};

/// How many of each there are, or may be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Holdings {
    /// Bytes of addresses, used or not.
    pub address_bytes: u64,
    /// Mappings of the process.
    pub mappings: u64,
    /// Bytes of linear memory.
    pub memory_bytes: u64,
}

impl Holdings {
    /// Three quarters of what this system has: the rest is for the node itself.
    pub fn of_this_system() -> Self {
        let most = Self {
            // What x86-64 and AArch64 give a process.
            address_bytes: 128 << 40,
            mappings: number("/proc/sys/vm/max_map_count").unwrap_or(65_530),
            memory_bytes: physical_bytes().unwrap_or(u64::MAX),
        };
        Self {
            address_bytes: most.address_bytes / 4 * 3,
            mappings: most.mappings / 4 * 3,
            memory_bytes: most.memory_bytes / 4 * 3,
        }
    }
}

fn number(path: &str) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// What the machine has, or the control group allows, if that is less.
fn physical_bytes() -> Option<u64> {
    let memory = std::fs::read_to_string("/proc/meminfo").ok()?;
    let total = memory.lines().find_map(|line| {
        let rest = line.strip_prefix("MemTotal:")?;
        let kib: u64 = rest.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kib << 10)
    })?;
    Some(number("/sys/fs/cgroup/memory.max").map_or(total, |allowed| allowed.min(total)))
}
