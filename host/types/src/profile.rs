//! What a machine may use. All of it is a replicated setting of the group: never a node's own.

use serde::{Deserialize, Serialize};

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
    pub fn snapshot_headroom(&self) -> u64 {
        (self.memory_bytes / 4).max(64 << 20)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
