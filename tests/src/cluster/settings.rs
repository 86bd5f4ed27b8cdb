//! How a cluster is set up.

use super::Node;

/// How a cluster is set up. The defaults are fast: elections take a third of a second.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Nodes, with the ids 1, 2, ….
    pub nodes: u64,
    /// The cluster's id.
    pub cluster: String,
    /// `raft.tick_ms`.
    pub tick_ms: u64,
    /// `raft.election_ticks`.
    pub election_ticks: u32,
    /// `raft.heartbeat_ticks`.
    pub heartbeat_ticks: u32,
    /// `raft.snapshot_entries`.
    pub snapshot_entries: u64,
    /// More of the configuration: sections that are not written here.
    pub more: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            nodes: 3,
            cluster: "test".to_owned(),
            tick_ms: 20,
            election_ticks: 15,
            heartbeat_ticks: 3,
            snapshot_entries: 8192,
            more: String::new(),
        }
    }
}

impl Settings {
    /// One node, with more of the configuration.
    pub fn one_node(more: &str) -> Self {
        Self {
            nodes: 1,
            more: more.to_owned(),
            ..Self::default()
        }
    }
}

/// The configuration of a node; `peer_of` says where it finds another.
pub(super) fn toml(
    settings: &Settings,
    fixed_addresses: bool,
    nodes: &[Node],
    id: u64,
    peer_of: impl Fn(&Node) -> String,
) -> String {
    let cluster = &settings.cluster;
    let mut text = format!(
        "[node]\nid = {id}\ndata_dir = \"data\"\n\n{}\n[cluster]\nid = \"{cluster}\"\n",
        raft(settings)
    );
    if fixed_addresses {
        text.push_str("fixed_addresses = true\n");
    }
    for node in nodes {
        let peer = peer_of(node);
        let Node {
            id, client, http, ..
        } = node;
        text.push_str(&format!(
            "\n[[cluster.nodes]]\nid = {id}\npeer = \"{peer}\"\nclient = \"{client}\"\nhttp = \"{http}\"\n"
        ));
    }
    text.push('\n');
    text.push_str(&settings.more);
    text
}

/// The configuration of a node that joins a running cluster.
pub(super) fn joining(settings: &Settings, node: &Node, by: &[&str]) -> String {
    let Node {
        peer, client, http, ..
    } = node;
    let (raft, more) = (raft(settings), &settings.more);
    format!(
        "[node]\ndata_dir = \"data\"\npeer = \"{peer}\"\nclient = \"{client}\"\nhttp = \"{http}\"\n\n{raft}\n\
         [cluster]\njoin = {by:?}\n\n{more}"
    )
}

fn raft(settings: &Settings) -> String {
    let Settings {
        tick_ms,
        election_ticks,
        heartbeat_ticks,
        snapshot_entries,
        ..
    } = settings;
    format!(
        "[raft]\ntick_ms = {tick_ms}\nelection_ticks = {election_ticks}\nheartbeat_ticks = {heartbeat_ticks}\n\
         snapshot_entries = {snapshot_entries}\n"
    )
}
