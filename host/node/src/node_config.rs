//! How a node is set up.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use skep_core::id::NodeId;
use skep_log::{DiskVfs, Store, Vfs};

use crate::error::Error;
use crate::supervisor::Supervisor;
use crate::ticker::Ticker;

/// Shards a node may have; each is a thread, and more than cores only take turns.
pub const SHARDS_MAX: usize = 256;

/// How a node is set up (`Config` of the seed package; its `Send` is the second argument of [`MultiNode::start`](crate::MultiNode::start)).
#[derive(Debug)]
pub struct Config {
    /// The node. Never 0.
    pub id: NodeId,
    /// For people: log lines and [`Display`](std::fmt::Display).
    pub name: String,
    /// The cluster; a data directory of another one is refused. 1 to 255 printable characters without spaces.
    pub cluster: String,
    /// Where everything is stored. Made if it is missing.
    pub data_dir: PathBuf,
    /// How long the log waits for more records before it syncs. It delays acknowledgements and never acknowledges early.
    /// Default 0.
    #[doc(alias = "fsync_tick", alias = "FsyncTick")]
    pub fsync_delay: Duration,
    /// Where ticks come from. Default every 100 ms.
    pub ticker: Ticker,
    /// Threads that own replicas, at most 256. Default 0: as many as cores.
    pub shards: usize,
    /// Keys election timeouts and the entropy of entries. Default `None`: drawn from the system.
    pub seed: Option<u64>,
    /// The data directory, where the caller has opened it already, for instance to know the id of the store.
    pub store: Option<Store>,
    /// The file system. Default the real one.
    pub vfs: Arc<dyn Vfs>,
    /// Bytes of the disk that snapshots of groups which are new here leave free. Default 0.
    pub disk_reserve: u64,
    /// Who watches the node's tasks. Default one of its own.
    pub supervisor: Supervisor,
}

impl Config {
    /// A node with the defaults.
    pub fn new(
        id: NodeId,
        name: impl Into<String>,
        cluster: impl Into<String>,
        data_dir: impl Into<PathBuf>,
    ) -> Self {
        Self {
            id,
            name: name.into(),
            cluster: cluster.into(),
            data_dir: data_dir.into(),
            fsync_delay: Duration::ZERO,
            ticker: Ticker::default(),
            shards: 0,
            seed: None,
            store: None,
            vfs: Arc::new(DiskVfs),
            disk_reserve: 0,
            supervisor: Supervisor::default(),
        }
    }

    pub(crate) fn validate(&self) -> Result<(), Error> {
        if self.id.0 == 0 {
            return Err(Error::invalid("id", "0 names no node"));
        }
        if self.shards > SHARDS_MAX {
            return Err(Error::invalid("shards", format!("at most {SHARDS_MAX}")));
        }
        if matches!(self.ticker, Ticker::Every(Duration::ZERO)) {
            return Err(Error::invalid("ticker", "the period must not be 0"));
        }
        Ok(())
    }
}
