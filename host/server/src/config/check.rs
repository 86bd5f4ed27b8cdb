//! What a configuration must be to make sense.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use skep::SHARDS_MAX;
use tracing_subscriber::EnvFilter;

use super::error::invalid;
use super::{Config, ConfigError};

/// Longest a cluster id or a node name may be, in bytes: both travel in every handshake.
const NAME_LIMIT: usize = 64;
/// Most nodes a cluster may have: every node keeps three connections to every other.
const NODE_LIMIT: usize = 64;

impl Config {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let id = self.node.id;
        require(id != 0, "node.id", || {
            "0 names no node; give this node an id of 1 or more".into()
        })?;
        if let Some(name) = &self.node.name {
            check_name("node.name", name)?;
        }
        require(
            !self.node.data_dir.as_os_str().is_empty(),
            "node.data_dir",
            || "is empty; name the directory this node may keep its data in".into(),
        )?;
        check_name("cluster.id", &self.cluster.id)?;
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
        self.check_raft()?;
        self.check_limits()?;
        let filter = self.log.filter.as_deref().map(EnvFilter::try_new);
        filter
            .transpose()
            .map_err(|error| invalid("log.filter", error.to_string()))?;
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
            require(node.id != 0, &key, || {
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
                    return Err(invalid(
                        &key,
                        format!("`{address}` is {other} already; give each its own port"),
                    ));
                }
            }
        }
        Ok(())
    }

    fn check_raft(&self) -> Result<(), ConfigError> {
        let raft = &self.raft;
        require((1..=60_000).contains(&raft.tick_ms), "raft.tick_ms", || {
            format!(
                "is {}; use 1 to 60000 milliseconds (100 is the default)",
                raft.tick_ms
            )
        })?;
        require(raft.heartbeat_ticks >= 1, "raft.heartbeat_ticks", || {
            "is 0; use 1 or more".into()
        })?;
        require(
            raft.election_ticks > raft.heartbeat_ticks,
            "raft.election_ticks",
            || {
                format!(
                    "is {}, not above raft.heartbeat_ticks = {}; ten times the heartbeat or 5 and more is usual, or every \
                 late heartbeat costs an election",
                    raft.election_ticks, raft.heartbeat_ticks
                )
            },
        )?;
        require(raft.election_ticks <= 10_000, "raft.election_ticks", || {
            "is above 10000; use less".into()
        })?;
        require(raft.snapshot_entries >= 1, "raft.snapshot_entries", || {
            "is 0; use 1 or more (8192)".into()
        })?;
        require(raft.fsync_delay_ms <= 1000, "raft.fsync_delay_ms", || {
            "is above 1000; every acknowledgement waits this long, use 0 to 10".into()
        })?;
        require(raft.shards <= SHARDS_MAX, "raft.shards", || {
            format!("is above {SHARDS_MAX}; use 0 for one per core")
        })
    }

    fn check_limits(&self) -> Result<(), ConfigError> {
        let limits = &self.limits;
        require(
            (1..=1 << 20).contains(&limits.command_bytes),
            "limits.command_bytes",
            || "use 1 to 1048576: a command must fit into one log entry".into(),
        )?;
        require(
            (1..=64 << 20).contains(&limits.component_bytes),
            "limits.component_bytes",
            || "use 1 to 67108864: the machine refuses larger components".into(),
        )?;
        require(
            (100..=3_600_000).contains(&limits.compile_timeout_ms),
            "limits.compile_timeout_ms",
            || "use 100 to 3600000 milliseconds".into(),
        )?;
        require(
            (1000..=3_600_000).contains(&limits.catch_up_timeout_ms),
            "limits.catch_up_timeout_ms",
            || "use 1000 to 3600000 milliseconds".into(),
        )?;
        require(
            (1..=100).contains(&limits.catch_up_share_percent),
            "limits.catch_up_share_percent",
            || "use 1 to 100; 100 holds nothing back".into(),
        )?;
        require(
            (100..=3_600_000).contains(&limits.activation_timeout_ms),
            "limits.activation_timeout_ms",
            || "use 100 to 3600000 milliseconds".into(),
        )?;
        require(
            limits.compile_memory_bytes >= 16 << 20,
            "limits.compile_memory_bytes",
            || "use 16777216 or more: the smallest components take as much".into(),
        )?;
        require(
            limits.client_connections >= 1,
            "limits.client_connections",
            || "is 0; use 1 or more".into(),
        )?;
        require(
            limits.client_per_address >= 1,
            "limits.client_per_address",
            || "is 0; use 1 or more".into(),
        )?;
        let waits = 100..=86_400_000;
        for (key, milliseconds) in [
            ("limits.client_idle_ms", limits.client_idle_ms),
            ("limits.frame_ms", limits.frame_ms),
            ("http.header_ms", self.http.header_ms),
            ("http.body_ms", self.http.body_ms),
            ("http.idle_ms", self.http.idle_ms),
        ] {
            require(waits.contains(&milliseconds), key, || {
                "use 100 to 86400000 milliseconds".into()
            })?;
        }
        for (key, most) in [
            ("http.connections", self.http.connections),
            ("http.per_address", self.http.per_address),
        ] {
            require(most >= 1, key, || "is 0; use 1 or more".into())?;
        }
        for origin in &self.http.origins {
            require(
                origin.contains("://") && !origin.ends_with('/'),
                "http.origins",
                || format!("`{origin}` is no origin; write for instance https://console.example"),
            )?;
        }
        require(
            (1..=65_536).contains(&limits.requests_per_connection),
            "limits.requests_per_connection",
            || "use 1 to 65536".into(),
        )?;
        require(
            (1..=skep_wire::MAX_TIMEOUT_MS.into()).contains(&limits.request_timeout_ms),
            "limits.request_timeout_ms",
            || format!("use 1 to {} milliseconds", skep_wire::MAX_TIMEOUT_MS),
        )?;
        for (key, most) in limits.profile_ceiling().settings() {
            let key = format!("limits.profile_{}", key.replace('-', "_"));
            require(most >= 1, &key, || {
                "is 0; a group with nothing of it cannot work".into()
            })?;
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

fn require(holds: bool, key: &str, message: impl FnOnce() -> String) -> Result<(), ConfigError> {
    if holds {
        Ok(())
    } else {
        Err(invalid(key, message()))
    }
}
