//! `skep.toml`: what one node of a cluster is told by its operator.
//!
//! Precedence: a command-line flag over `SKEP_SECTION__KEY` in the environment over the file over the default. A key
//! that is not known is an error that names the key and its place, because a typo that is ignored is found in
//! production.

mod apply;
mod check;
mod error;
mod overlay;
mod sections;
mod suggest;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};
use skep_core::id::NodeId;

use suggest::with_suggestion;

pub use check::is_loopback;
pub use error::ConfigError;
pub use sections::{
    ClusterNode, ClusterSection, HttpSection, LimitsSection, ListenSection, LogSection,
    NodeSection, RaftSection, replace_after_seconds, replace_voter_seconds,
};

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
        let mut config: Self = match overridden.as_slice() {
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
        config.place_own()?;
        config.check()?;
        Ok(config)
    }

    /// Whether this node is none of those that the cluster starts with.
    pub fn joins(&self) -> bool {
        !self.cluster.join.is_empty()
    }

    /// Gives a node that joins a line of its own, with the addresses of its section.
    fn place_own(&mut self) -> Result<(), ConfigError> {
        let id = self.node.id;
        if !self.joins() || self.cluster.nodes.iter().any(|node| node.id == id) {
            return Ok(());
        }
        let of = |key: &str, address: &Option<String>| {
            address.clone().ok_or_else(|| {
                let message = "a node that joins says where it is reached; give host:port";
                ConfigError::invalid(&format!("node.{key}"), message)
            })
        };
        let own = ClusterNode {
            id,
            peer: of("peer", &self.node.peer)?,
            client: of("client", &self.node.client)?,
            http: of("http", &self.node.http)?,
        };
        self.cluster.nodes.push(own);
        Ok(())
    }

    /// This node is this one of this cluster, which has these others.
    pub(crate) fn settle(&mut self, id: NodeId, cluster: &str, others: Vec<ClusterNode>) {
        let mut own = self.own().clone();
        own.id = id.0;
        self.node.id = id.0;
        self.cluster.id = cluster.to_owned();
        let listed = std::mem::take(&mut self.cluster.nodes);
        let known = listed.into_iter().filter(|node| node.id != 0).chain(others);
        let mut nodes: BTreeMap<u64, ClusterNode> = BTreeMap::new();
        for node in known {
            nodes.entry(node.id).or_insert(node);
        }
        nodes.insert(own.id, own);
        self.cluster.nodes = nodes.into_values().collect();
    }

    /// The keys, as `section.key`, whose values another configuration has otherwise.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let (one, other) = (self.values(), other.values());
        let keys: BTreeSet<&String> = one.keys().chain(other.keys()).collect();
        let differ = keys
            .into_iter()
            .filter(|key| one.get(*key) != other.get(*key));
        differ.cloned().collect()
    }

    /// Takes from another configuration what can change while a node runs.
    pub fn take_reloadable(&mut self, other: &Self) {
        self.log = other.log.clone();
        self.http = other.http.clone();
        self.limits.client_connections = other.limits.client_connections;
        self.limits.client_per_address = other.limits.client_per_address;
    }

    /// What it says, by key.
    fn values(&self) -> BTreeMap<String, toml::Value> {
        let table = toml::Table::try_from(self).expect("a configuration is a table");
        let mut values = BTreeMap::new();
        for (section, keys) in table {
            let keys = keys.try_into::<toml::Table>().unwrap_or_default();
            let named = keys
                .into_iter()
                .map(|(key, value)| (format!("{section}.{key}"), value));
            values.extend(named);
        }
        values
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
}

#[cfg(test)]
mod tests;
