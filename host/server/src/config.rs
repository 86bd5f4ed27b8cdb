//! `skep.toml`: what one node of a cluster is told by its operator.
//!
//! Precedence: a command-line flag over `SKEP_SECTION__KEY` in the environment over the file over the default. A key
//! that is not known is an error that names the key and its place, because a typo that is ignored is found in
//! production.

mod overlay;
mod suggest;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use skep_core::id::NodeId;
use skep_machine::wasm::{Allowance, Holdings, Profile};
use skep_types::code::Code;
use tracing_subscriber::EnvFilter;

use skep::node_config::SHARDS_MAX;
use suggest::with_suggestion;

/// Longest a cluster id or a node name may be, in bytes: both travel in every handshake.
const NAME_LIMIT: usize = 64;
/// Most nodes a cluster may have: every node keeps three connections to every other.
const NODE_LIMIT: usize = 64;

/// Bytes in a second of a group's long messages for each processor of a node, where nobody says. A processor that does nothing else
/// moves some 300 MiB of them, so such a group keeps its neighbours waiting for little more than a hundredth of the time.
const LONG_BYTES_PER_PROCESSOR: u64 = 4 << 20;

/// The whole of `skep.toml`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Who this node is.
    pub node: NodeSection,
    /// The cluster it belongs to.
    pub cluster: ClusterSection,
    /// Where it listens.
    #[serde(default)]
    pub listen: ListenSection,
    /// Raft's time and memory.
    #[serde(default)]
    pub raft: RaftSection,
    /// Bounds on what clients may ask.
    #[serde(default)]
    pub limits: LimitsSection,
    /// The HTTP port.
    #[serde(default)]
    pub http: HttpSection,
    /// Log lines.
    #[serde(default)]
    pub log: LogSection,
}

/// `[http]`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HttpSection {
    /// Most connections at a time.
    pub connections: usize,
    /// Most of them from one address of another machine; a /64 of IPv6 is one address.
    pub per_address: usize,
    /// Milliseconds the head of a request may take.
    pub header_ms: u64,
    /// Milliseconds the body of a request may take.
    pub body_ms: u64,
    /// Milliseconds a connection may be open without a request, or without a byte of an answer being taken.
    pub idle_ms: u64,
    /// Names, beside the node's own, that requests may give as their `Host`. On the loopback others are refused anyway;
    /// elsewhere only if some are given here.
    pub hosts: Vec<String>,
    /// Origins of web pages that may use this node through a proxy that serves both at one origin. The node itself answers no
    /// preflight (`OPTIONS`) and sends no `Access-Control-*` header, so that a page which asks it directly is shown nothing.
    pub origins: Vec<String>,
}

impl Default for HttpSection {
    fn default() -> Self {
        Self {
            connections: 1024,
            per_address: 128,
            header_ms: 10_000,
            body_ms: 60_000,
            idle_ms: 120_000,
            hosts: Vec::new(),
            origins: Vec::new(),
        }
    }
}

/// `[log]`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogSection {
    /// Which lines are written, as in `skep=debug,info`. `SKEP_LOG` beats it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
}

/// `[node]`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeSection {
    /// Id of the node, 1 or more; never changes and is never given to another node.
    pub id: u64,
    /// Name for people; `node-<id>` if absent.
    #[serde(default)]
    pub name: Option<String>,
    /// Where the node keeps everything. A relative path is relative to the configuration file.
    pub data_dir: PathBuf,
}

/// `[cluster]`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterSection {
    /// Name of the cluster; nodes of different clusters refuse each other.
    pub id: String,
    /// The nodes the cluster starts with, the same list in the same order in every node's file.
    pub nodes: Vec<ClusterNode>,
}

/// One `[[cluster.nodes]]`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterNode {
    /// Id of the node.
    pub id: u64,
    /// `host:port` other nodes reach it at.
    pub peer: String,
    /// `host:port` of its client protocol.
    pub client: String,
    /// `host:port` of its HTTP interface.
    pub http: String,
}

/// `[listen]`: addresses to bind, where they differ from those in `[[cluster.nodes]]`.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ListenSection {
    /// For other nodes.
    pub peer: Option<String>,
    /// For the client protocol.
    pub client: Option<String>,
    /// For HTTP.
    pub http: Option<String>,
    /// Allows addresses other than loopback although nothing is encrypted.
    pub insecure_plaintext: bool,
}

/// `[raft]`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RaftSection {
    /// Milliseconds of one tick.
    pub tick_ms: u64,
    /// Ticks without a leader after which a replica stands for election; up to twice as many, spread.
    pub election_ticks: u32,
    /// Ticks between a leader's heartbeats.
    pub heartbeat_ticks: u32,
    /// Entries of a group after which it takes a snapshot.
    pub snapshot_entries: u64,
    /// Milliseconds the log waits for more records to share a sync with; 0 syncs at once. Never acknowledges early.
    pub fsync_delay_ms: u64,
    /// Threads that own replicas; 0 is one per core.
    pub shards: usize,
}

impl Default for RaftSection {
    fn default() -> Self {
        Self {
            tick_ms: 100,
            election_ticks: 10,
            heartbeat_ticks: 2,
            snapshot_entries: 8192,
            fsync_delay_ms: 0,
            shards: 0,
        }
    }
}

/// `[limits]`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsSection {
    /// Most bytes of one command or query.
    pub command_bytes: u64,
    /// Bytes in a second of the commands and replies longer than 64 KiB of a group without a quota of bytes, above which its
    /// commands wait; 0 is no limit. Default 4 MiB for each processor of the node.
    pub long_bytes_per_second: u64,
    /// Most bytes of one component.
    pub component_bytes: u64,
    /// Most bytes of all components of the cluster, and of those on this node.
    pub components_total_bytes: u64,
    /// Most bytes of components that are being uploaded to this node.
    pub uploads_bytes: u64,
    /// Most groups of the cluster, as this node lets them be created.
    pub groups: usize,
    /// Most bytes of the configurations of all groups' machines.
    pub init_total_bytes: u64,
    /// Most bytes of the catalogue, about.
    pub catalogue_bytes: u64,
    /// Bytes of the disk that uploads, new groups and kept machine code leave free; commands leave a quarter of it.
    pub disk_reserve_bytes: u64,
    /// Most client connections at a time.
    pub client_connections: usize,
    /// Most of them from one address of another machine; a /64 of IPv6 is one address.
    pub client_per_address: usize,
    /// Milliseconds a client connection may be open without a request in flight.
    pub client_idle_ms: u64,
    /// Milliseconds a frame of a client may take, once it has begun.
    pub frame_ms: u64,
    /// Most requests in flight on one client connection.
    pub requests_per_connection: usize,
    /// Bytes of log that a group keeps on disk behind its snapshot for members that are catching up, at the most. One that needs
    /// more is sent a snapshot.
    pub log_retained_bytes: u64,
    /// Milliseconds for which a member may be behind without coming nearer; then it is left behind for a while.
    pub catch_up_timeout_ms: u64,
    /// The share of what is usual, in percent, that is taken of clients at the least while a member is behind and does not come
    /// nearer; 100 holds nothing back.
    pub catch_up_share_percent: u32,
    /// Milliseconds that the compilation of one component may take.
    pub compile_timeout_ms: u64,
    /// Bytes of memory that it may take.
    pub compile_memory_bytes: u64,
    /// Milliseconds after which a group gives up an upgrade for which no majority of its members is ready.
    pub activation_timeout_ms: u64,
    /// Milliseconds after which a request that names no deadline of its own is given up.
    pub request_timeout_ms: u64,
    /// Most linear memories of a component that is uploaded, all its instances together.
    pub component_memories: u64,
    /// Bytes of linear memory that all machines of the node may hold together before no more are started; 0 is three quarters
    /// of what the system has.
    pub machines_memory_bytes: u64,
    /// Bytes of addresses likewise.
    pub machines_address_bytes: u64,
    /// Mappings likewise.
    pub machines_mappings: u64,
    /// Most `command-fuel` that a group's profile may ask for; the others likewise.
    pub profile_command_fuel: u64,
    /// Most `query-fuel` of a profile.
    pub profile_query_fuel: u64,
    /// Most `snapshot-fuel` of a profile.
    pub profile_snapshot_fuel: u64,
    /// Most `memory-bytes` of a profile.
    pub profile_memory_bytes: u64,
    /// Most `table-elements` of a profile.
    pub profile_table_elements: u64,
    /// Most `instances` of a profile.
    pub profile_instances: u32,
    /// Most `reply-bytes` of a profile.
    pub profile_reply_bytes: u32,
    /// Most `snapshot-bytes` of a profile.
    pub profile_snapshot_bytes: u64,
    /// Most `log-bytes` of a profile.
    pub profile_log_bytes: u32,
    /// Most `log-lines-per-second` of a profile.
    pub profile_log_lines_per_second: u32,
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

impl Default for LimitsSection {
    fn default() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
        let ceiling = Profile::CEILING;
        Self {
            command_bytes: 1 << 20,
            long_bytes_per_second: LONG_BYTES_PER_PROCESSOR * processors as u64,
            component_bytes: 32 << 20,
            components_total_bytes: 4 << 30,
            uploads_bytes: 256 << 20,
            groups: 16_384,
            init_total_bytes: 64 << 20,
            catalogue_bytes: 256 << 20,
            disk_reserve_bytes: 256 << 20,
            client_connections: 1024,
            client_per_address: 256,
            client_idle_ms: 600_000,
            frame_ms: 30_000,
            requests_per_connection: 1024,
            log_retained_bytes: 1 << 30,
            catch_up_timeout_ms: 30_000,
            catch_up_share_percent: 25,
            compile_timeout_ms: 120_000,
            compile_memory_bytes: 1 << 30,
            activation_timeout_ms: 60_000,
            request_timeout_ms: 10_000,
            component_memories: 16,
            machines_memory_bytes: 0,
            machines_address_bytes: 0,
            machines_mappings: 0,
            profile_command_fuel: ceiling.command_fuel,
            profile_query_fuel: ceiling.query_fuel,
            profile_snapshot_fuel: ceiling.snapshot_fuel,
            profile_memory_bytes: ceiling.memory_bytes,
            profile_table_elements: ceiling.table_elements,
            profile_instances: ceiling.instances,
            profile_reply_bytes: ceiling.reply_bytes,
            profile_snapshot_bytes: ceiling.snapshot_bytes,
            profile_log_bytes: ceiling.log_bytes,
            profile_log_lines_per_second: ceiling.log_lines_per_second,
        }
    }
}

/// Why a configuration cannot be used. The message says what to change.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error(
        "cannot read the configuration {path}; give its path with --config, see `skep serve --help`"
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is not TOML, or has a key or a type that is not known.
    #[error("{path} is not a valid configuration: {message}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong and where.
        message: String,
    },
    /// An environment variable overrides something that cannot be overridden.
    #[error("the environment variable {name} cannot be used: {message}")]
    Environment {
        /// The variable.
        name: String,
        /// What is wrong.
        message: String,
    },
    /// A value is well-formed and makes no sense.
    #[error("{key}: {message}")]
    Invalid {
        /// The key, with its section.
        key: String,
        /// What is wrong and what to do.
        message: String,
    },
}

impl ConfigError {
    /// A value of a key, with its section, that makes no sense.
    pub fn invalid(key: &str, message: impl Into<String>) -> Self {
        invalid(key, message.into())
    }

    /// The stable code of every configuration error.
    pub fn code(&self) -> Code {
        Code::InvalidConfig
    }
}

impl Config {
    /// Reads a file, lays `SKEP_SECTION__KEY` of the given environment over it, and checks the whole.
    pub fn load(
        path: &Path,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        let mut config = Self::parse(&text, path, environment)?;
        if config.node.data_dir.is_relative() {
            let folder = path.parent().unwrap_or(Path::new(""));
            config.node.data_dir = folder.join(&config.node.data_dir);
        }
        Ok(config)
    }

    /// As [`load`](Self::load), from text; `path` is only named in errors.
    pub fn parse(
        text: &str,
        path: &Path,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let wrong = |error: toml::de::Error| ConfigError::Parse {
            path: path.to_owned(),
            message: with_suggestion(error.to_string().trim_end()),
        };
        let mut table: toml::Table = toml::from_str(text).map_err(wrong)?;
        let overridden = overlay::apply(&mut table, environment)?;
        // The text knows its lines and a table does not, so the file is blamed from its text unless a variable took
        // part in it.
        let config: Self = match overridden.as_slice() {
            [] => toml::from_str(text).map_err(wrong)?,
            names => {
                table
                    .try_into()
                    .map_err(|error: toml::de::Error| ConfigError::Environment {
                        name: names.join(", "),
                        message: with_suggestion(error.to_string().trim_end()),
                    })?
            }
        };
        config.check()?;
        Ok(config)
    }

    /// The keys, as `section.key`, whose values another configuration has otherwise.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let (one, other) = (self.table(), other.table());
        let sections: BTreeSet<&String> = one.keys().chain(other.keys()).collect();
        let mut keys = Vec::new();
        for section in sections {
            let empty = toml::Table::new();
            let of = |table: &'_ toml::Table| {
                let section = table.get(section).and_then(toml::Value::as_table);
                section.unwrap_or(&empty).clone()
            };
            let (one, other) = (of(&one), of(&other));
            let names: BTreeSet<&String> = one.keys().chain(other.keys()).collect();
            keys.extend(
                names
                    .into_iter()
                    .filter(|name| one.get(*name) != other.get(*name))
                    .map(|name| format!("{section}.{name}")),
            );
        }
        keys
    }

    /// Takes from another configuration what can change while a node runs.
    pub fn take_reloadable(&mut self, other: &Self) {
        self.log = other.log.clone();
        self.http = other.http.clone();
        self.limits.client_connections = other.limits.client_connections;
        self.limits.client_per_address = other.limits.client_per_address;
    }

    fn table(&self) -> toml::Table {
        toml::Table::try_from(self).expect("a configuration is a table")
    }

    /// The id as a type.
    pub fn node_id(&self) -> NodeId {
        NodeId(self.node.id)
    }

    /// The name, or the one made from the id.
    pub fn node_name(&self) -> String {
        self.node
            .name
            .clone()
            .unwrap_or_else(|| format!("node-{}", self.node.id))
    }

    /// This node's own line of the cluster.
    pub fn own(&self) -> &ClusterNode {
        let own = self
            .cluster
            .nodes
            .iter()
            .find(|node| node.id == self.node.id);
        own.expect("`check` found this node in the cluster")
    }

    /// Where to listen for other nodes.
    pub fn listen_peer(&self) -> &str {
        self.listen.peer.as_deref().unwrap_or(&self.own().peer)
    }

    /// Where to listen for the client protocol.
    pub fn listen_client(&self) -> &str {
        self.listen.client.as_deref().unwrap_or(&self.own().client)
    }

    /// Where to listen for HTTP.
    pub fn listen_http(&self) -> &str {
        self.listen.http.as_deref().unwrap_or(&self.own().http)
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

    fn check(&self) -> Result<(), ConfigError> {
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
        let mut addresses = std::collections::BTreeMap::new();
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

fn invalid(key: &str, message: String) -> ConfigError {
    ConfigError::Invalid {
        key: key.to_owned(),
        message,
    }
}

#[cfg(test)]
mod tests;
