//! The sections of `skep.toml`: their keys, and what a key is where nobody says.

use std::collections::BTreeMap;
use std::num::NonZero;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use skep_machine::wasm::Profile;

/// Bytes in a second of a group's long messages for each processor of a node, where nobody says. A processor that does nothing else
/// moves some 300 MiB of them, so such a group keeps its neighbours waiting for little more than a hundredth of the time.
const LONG_BYTES_PER_PROCESSOR: u64 = 4 << 20;

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
    /// Id of the node, 1 or more; never changes and is never given to another node. A node that joins gets it from the cluster.
    #[serde(default)]
    pub id: u64,
    /// Name for people; `node-<id>` if absent.
    #[serde(default)]
    pub name: Option<String>,
    /// Where the node keeps everything. A relative path is relative to the configuration file.
    pub data_dir: PathBuf,
    /// `host:port` other nodes reach it at, where no `[[cluster.nodes]]` says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// `host:port` of its client protocol, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
    /// `host:port` of its HTTP interface, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<String>,
    /// Where it stands, for people and for placement, as in `{zone = "a"}`: replicas of a group are put into different zones.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// `[cluster]`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterSection {
    /// Name of the cluster; nodes of different clusters refuse each other, also where the names are the same. A node that joins may
    /// leave it out.
    #[serde(default)]
    pub id: String,
    /// The nodes that found the cluster, the same in every node's file; afterwards it only says where they are reached.
    #[serde(default)]
    pub nodes: Vec<ClusterNode>,
    /// Client addresses of nodes of a running cluster, which this node joins if its data directory is empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub join: Vec<String>,
    /// A file with the token to join with, from `skep node invite`. `SKEP_JOIN_TOKEN` beats it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub join_token_file: Option<PathBuf>,
    /// Nodes are reached at the addresses of this file, whatever they say themselves: for networks that translate addresses.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub fixed_addresses: bool,
    /// Seconds for which a voter of the catalogue may be silent before another node takes its place.
    #[serde(default = "replace_voter_seconds")]
    pub replace_voter_seconds: u64,
    /// Seconds for which a node may be silent before its replicas are made anew on other nodes; 0: they never are.
    #[serde(default = "replace_after_seconds")]
    pub replace_after_seconds: u64,
}

/// The default of [`ClusterSection::replace_after_seconds`]: longer than the repair of a machine that comes back with its disk.
pub fn replace_after_seconds() -> u64 {
    600
}

/// The default of [`ClusterSection::replace_voter_seconds`]: longer than a restart.
pub fn replace_voter_seconds() -> u64 {
    30
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
