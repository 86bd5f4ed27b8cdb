//! One node of a cluster, running or not.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use skep_client::GroupId;

use super::port::free_address;
use crate::process::Process;

/// Lines of a node's log that a failing test shows.
const LOG_TAIL: usize = 40;

/// One node, running or not.
#[derive(Debug)]
pub struct Node {
    /// Its id.
    pub id: u64,
    /// `host:port` for other nodes.
    pub peer: String,
    /// `host:port` of the client protocol.
    pub client: String,
    /// `host:port` of HTTP.
    pub http: String,
    /// Its directory: `skep.toml`, `node.log`, `data`.
    pub home: PathBuf,
    /// What it finds in its environment when it is started next, beside the test's own.
    pub environment: Vec<(&'static str, PathBuf)>,
    /// How many descriptors it may have when it is started next, if not as many as the test.
    pub descriptors: Option<u64>,
    /// Where its log goes when it is started next, if not to `node.log`.
    pub stderr: Option<PathBuf>,
    pub(super) process: Option<Process>,
}

impl Node {
    /// A node with addresses and a directory of its own; it does not run.
    pub(super) fn lay_out(dir: &Path, id: u64) -> Self {
        let home = dir.join(format!("node-{id}"));
        std::fs::create_dir(&home).expect("a directory for the node");
        Self {
            id,
            peer: free_address(),
            client: free_address(),
            http: free_address(),
            home,
            environment: Vec::new(),
            descriptors: None,
            stderr: None,
            process: None,
        }
    }

    /// Its configuration file.
    pub fn config(&self) -> PathBuf {
        self.home.join("skep.toml")
    }

    /// Its data directory.
    pub fn data(&self) -> PathBuf {
        self.home.join("data")
    }

    /// The snapshot files of a group, by the index they are at. Each may be deleted at any moment.
    pub fn snapshots(&self, group: GroupId) -> BTreeMap<u64, PathBuf> {
        let prefix = format!("{group}-");
        let of_the_group = |path: PathBuf| {
            let name = path.file_name()?.to_str()?;
            // Behind the group: its life, the index and the term.
            let place = name.strip_prefix(&prefix)?.strip_suffix(".snap")?;
            let index = place.split('-').nth(1)?.parse().ok()?;
            Some((index, path))
        };
        std::fs::read_dir(self.data().join("snap"))
            .expect("a directory")
            .filter_map(|entry| of_the_group(entry.ok()?.path()))
            .collect()
    }

    /// Everything it has logged so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.log_path()).unwrap_or_default()).into_owned()
    }

    /// Whether it was started and has not ended.
    pub fn is_running(&mut self) -> bool {
        self.process
            .as_mut()
            .is_some_and(|process| process.ended().is_none())
    }

    pub(super) fn log_path(&self) -> PathBuf {
        self.home.join("node.log")
    }

    pub(super) fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_TAIL)..].join("\n")
    }

    pub(super) fn process(&self) -> &Process {
        self.process
            .as_ref()
            .unwrap_or_else(|| panic!("node {} does not run", self.id))
    }
}
