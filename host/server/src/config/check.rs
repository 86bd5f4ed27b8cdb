//! What a configuration must be to make sense.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::RangeInclusive;

use skep::SHARDS_MAX;
use tracing_subscriber::EnvFilter;

use super::{Config, ConfigError};
use crate::catalog::LABELS_MAX;

/// Longest a cluster id or a node name may be, in bytes: both travel in every handshake.
const NAME_LIMIT: usize = 64;
/// Most nodes a cluster may start with. More may join.
const NODE_LIMIT: usize = 64;

impl Config {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let id = self.node.id;
        require(id != 0 || self.joins(), "node.id", || {
            "is missing or 0, which names no node; give this node an id of 1 or more, or have it join a cluster with [cluster] join"
                .into()
        })?;
        if let Some(name) = &self.node.name {
            check_name("node.name", name)?;
        }
        require(self.node.labels.len() <= LABELS_MAX, "node.labels", || {
            format!("are more than {LABELS_MAX}, the most that a node may have")
        })?;
        for (label, value) in &self.node.labels {
            check_name("node.labels", label)?;
            check_name("node.labels", value)?;
        }
        require(
            !self.node.data_dir.as_os_str().is_empty(),
            "node.data_dir",
            || "is empty; name the directory this node may keep its data in".into(),
        )?;
        if !self.joins() || !self.cluster.id.is_empty() {
            check_name("cluster.id", &self.cluster.id)?;
        }
        for (at, address) in self.cluster.join.iter().enumerate() {
            check_address(&format!("cluster.join[{at}]"), address)?;
        }
        self.check_nodes()?;
        require(
            self.cluster.nodes.iter().any(|node| node.id == id),
            "cluster.nodes",
            || {
                format!(
                    "this node has id {id} and no [[cluster.nodes]] has it; add one, or correct node.id"
                )
            },
        )?;
        for (key, address) in [
            ("peer", self.listen_peer()),
            ("client", self.listen_client()),
            ("http", self.listen_http()),
        ] {
            let key = format!("listen.{key}");
            check_address(&key, address)?;
            require(
                self.listen.insecure_plaintext || is_loopback(address),
                &key,
                || {
                    format!(
                        "`{address}` can be reached from other machines and nothing is encrypted; listen on 127.0.0.1, or \
                     set listen.insecure_plaintext = true (or pass --insecure-plaintext) if the network is trusted"
                    )
                },
            )?;
        }
        self.check_ranges()?;
        self.check_election()?;
        let filter = self.log.filter.as_deref().map(EnvFilter::try_new);
        filter
            .transpose()
            .map_err(|error| ConfigError::invalid("log.filter", error.to_string()))?;
        Ok(())
    }

    fn check_nodes(&self) -> Result<(), ConfigError> {
        let nodes = &self.cluster.nodes;
        require(
            (1..=NODE_LIMIT).contains(&nodes.len()),
            "cluster.nodes",
            || {
                format!(
                    "has {} nodes; list 1 to {NODE_LIMIT}, usually 3 or 5",
                    nodes.len()
                )
            },
        )?;
        let mut addresses = BTreeMap::new();
        for (at, node) in nodes.iter().enumerate() {
            let key = format!("cluster.nodes[{at}]");
            // A node that joins has no id yet.
            let is_own = self.joins() && node.id == self.node.id;
            require(node.id != 0 || is_own, &key, || {
                "id 0 names no node; use 1 or more".into()
            })?;
            require(
                nodes[..at].iter().all(|other| other.id != node.id),
                &key,
                || format!("id {} is given twice; every node needs its own", node.id),
            )?;
            for (kind, address) in [
                ("peer", &node.peer),
                ("client", &node.client),
                ("http", &node.http),
            ] {
                let key = format!("{key}.{kind}");
                check_address(&key, address)?;
                if let Some(other) = addresses.insert(address, key.clone()) {
                    return Err(ConfigError::invalid(
                        &key,
                        format!("`{address}` is {other} already; give each its own port"),
                    ));
                }
            }
        }
        Ok(())
    }

    fn check_election(&self) -> Result<(), ConfigError> {
        let raft = &self.raft;
        let (election, heartbeat) = (raft.election_ticks, raft.heartbeat_ticks);
        require(election > heartbeat, "raft.election_ticks", || {
            format!(
                "is {election}, not above raft.heartbeat_ticks = {heartbeat}; ten times the heartbeat or 5 and more is \
                 usual, or every late heartbeat costs an election"
            )
        })
    }

    fn check_ranges(&self) -> Result<(), ConfigError> {
        let (raft, limits, http) = (&self.raft, &self.limits, &self.http);
        let minutes = 100..=3_600_000;
        let day = 100..=86_400_000;
        let some = 1..=u64::MAX;
        #[rustfmt::skip]
        let ranges = [
            ("cluster.replace_voter_seconds", self.cluster.replace_voter_seconds, 1..=86_400, "30 is the default"),
            ("cluster.replace_after_seconds", self.cluster.replace_after_seconds, 0..=31_536_000, "600 is the default, 0 is never"),
            ("raft.tick_ms", raft.tick_ms, 1..=60_000, "100 is the default"),
            ("raft.heartbeat_ticks", raft.heartbeat_ticks.into(), some.clone(), ""),
            ("raft.election_ticks", raft.election_ticks.into(), 1..=10_000, ""),
            ("raft.snapshot_entries", raft.snapshot_entries, some.clone(), "8192 is the default"),
            ("raft.fsync_delay_ms", raft.fsync_delay_ms, 0..=1000, "every acknowledgement waits this long"),
            ("raft.shards", raft.shards as u64, 0..=SHARDS_MAX as u64, "0 is one per core"),
            ("limits.command_bytes", limits.command_bytes, 1..=1 << 20, "a command must fit into one log entry"),
            ("limits.component_bytes", limits.component_bytes, 1..=64 << 20, "the machine refuses larger components"),
            ("limits.compile_timeout_ms", limits.compile_timeout_ms, minutes.clone(), ""),
            ("limits.compile_memory_bytes", limits.compile_memory_bytes, 16 << 20..=u64::MAX, "the smallest components take as much"),
            ("limits.catch_up_timeout_ms", limits.catch_up_timeout_ms, 1000..=3_600_000, ""),
            ("limits.catch_up_share_percent", limits.catch_up_share_percent.into(), 1..=100, "100 holds nothing back"),
            ("limits.activation_timeout_ms", limits.activation_timeout_ms, minutes, ""),
            ("limits.request_timeout_ms", limits.request_timeout_ms, 1..=skep_wire::MAX_TIMEOUT_MS.into(), ""),
            ("limits.requests_per_connection", limits.requests_per_connection as u64, 1..=65_536, ""),
            ("limits.client_connections", limits.client_connections as u64, some.clone(), ""),
            ("limits.client_per_address", limits.client_per_address as u64, some.clone(), ""),
            ("limits.client_idle_ms", limits.client_idle_ms, day.clone(), ""),
            ("limits.frame_ms", limits.frame_ms, day.clone(), ""),
            ("http.connections", http.connections as u64, some.clone(), ""),
            ("http.per_address", http.per_address as u64, some.clone(), ""),
            ("http.header_ms", http.header_ms, day.clone(), ""),
            ("http.body_ms", http.body_ms, day.clone(), ""),
            ("http.idle_ms", http.idle_ms, day, ""),
        ];
        for (key, value, range, why) in ranges {
            check_range(key, value, range, why)?;
        }
        let nothing_works = "a group with nothing of it cannot work";
        for (key, most) in limits.profile_ceiling().settings() {
            let key = format!("limits.profile_{}", key.replace('-', "_"));
            check_range(&key, most, some.clone(), nothing_works)?;
        }
        for origin in &http.origins {
            require(
                origin.contains("://") && !origin.ends_with('/'),
                "http.origins",
                || format!("`{origin}` is no origin; write for instance https://console.example"),
            )?;
        }
        Ok(())
    }
}

/// Whether only this machine can reach the address. A name other than `localhost` may resolve to anything.
pub fn is_loopback(address: &str) -> bool {
    match address.parse::<SocketAddr>() {
        Ok(address) => address.ip().is_loopback(),
        Err(_) => address
            .rsplit_once(':')
            .is_some_and(|(host, _)| host == "localhost"),
    }
}

fn check_name(key: &str, name: &str) -> Result<(), ConfigError> {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    require(
        !name.is_empty() && name.len() <= NAME_LIMIT && name.bytes().all(known),
        key,
        || format!("`{name}` must be 1 to {NAME_LIMIT} letters, digits, `-`, `_` or `.`"),
    )
}

fn check_address(key: &str, address: &str) -> Result<(), ConfigError> {
    let valid = address.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty()
            && !host.contains(char::is_whitespace)
            && port.parse::<u16>().is_ok_and(|port| port != 0)
    });
    require(valid, key, || {
        format!("`{address}` is no address; write host:port, for instance 127.0.0.1:7401")
    })
}

fn check_range(
    key: &str,
    value: u64,
    range: RangeInclusive<u64>,
    why: &str,
) -> Result<(), ConfigError> {
    require(range.contains(&value), key, || {
        let (least, most) = (range.start(), range.end());
        let most = match *most {
            u64::MAX => "or more".to_owned(),
            most => format!("to {most}"),
        };
        let why = match why {
            "" => String::new(),
            why => format!(": {why}"),
        };
        format!("is {value}; use {least} {most}{why}")
    })
}

fn require(holds: bool, key: &str, message: impl FnOnce() -> String) -> Result<(), ConfigError> {
    if holds {
        Ok(())
    } else {
        Err(ConfigError::invalid(key, message()))
    }
}
