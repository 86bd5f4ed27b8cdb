//! The stores of this node's peers, as first seen.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use skep_vfs::{Vfs, replace};

use crate::error::LogError;
use crate::identity::{StoreId, seal, unseal};

/// Remembers, durably, the store id each peer showed first. A peer whose disk was wiped has forgotten its votes and
/// entries; letting it back under its old id could lose acknowledged commands.
///
/// *Concurrency*: one owner. *Failure*: after an error the pins in memory are those on disk before the call.
#[derive(Debug)]
pub struct PeerPins {
    vfs: Arc<dyn Vfs>,
    path: PathBuf,
    pins: BTreeMap<u64, StoreId>,
}

/// How [`PeerPins::check`] knew the peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pin {
    /// It was seen before with this store.
    Known,
    /// It was not known and is pinned now, durably.
    New,
}

/// Clusters have tens of nodes; this allows for many generations of them and bounds the file.
const MAX_PEERS: usize = 4096;

const PINS_BYTES: u64 = 64 * (MAX_PEERS as u64 + 2);

const MAGIC: &str = "skep peers, format 1";

impl PeerPins {
    /// Reads the pins in a data directory, whose lock the caller holds.
    ///
    /// # Errors
    /// [`LogError::BadIdentity`] if the file is damaged; [`LogError::Io`].
    pub fn open(vfs: Arc<dyn Vfs>, dir: &Path) -> Result<PeerPins, LogError> {
        let path = dir.join("peers");
        let pins = match vfs.read(&path, PINS_BYTES) {
            Ok(content) => {
                // The process that wrote the pins may have been killed before their name was durable. A peer that is
                // trusted because of a pin must not become unknown again.
                vfs.sync_dir(dir).map_err(LogError::io("sync", dir))?;
                let bad = |reason: &str| LogError::BadIdentity {
                    file: path.clone(),
                    reason: reason.to_owned(),
                };
                parse(unseal(&content).map_err(bad)?).ok_or_else(|| bad("a line is malformed"))?
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(LogError::io("read", &path)(error)),
        };
        Ok(PeerPins { vfs, path, pins })
    }

    /// Compares a peer's store with the one it showed first, and pins it if it is new.
    ///
    /// # Errors
    /// [`LogError::PeerChanged`] if the peer has another store now; [`LogError::TooManyPeers`]; [`LogError::Io`] if a
    /// new pin could not be made durable, in which case the peer must not be trusted yet.
    pub fn check(&mut self, node: u64, store: StoreId) -> Result<Pin, LogError> {
        match self.pins.get(&node) {
            Some(pinned) if *pinned == store => return Ok(Pin::Known),
            Some(pinned) => {
                return Err(LogError::PeerChanged {
                    node,
                    pinned: pinned.to_string(),
                    found: store.to_string(),
                });
            }
            None if self.pins.len() >= MAX_PEERS => {
                return Err(LogError::TooManyPeers {
                    file: self.path.clone(),
                    limit: MAX_PEERS,
                });
            }
            None => {}
        }
        let mut pins = self.pins.clone();
        pins.insert(node, store);
        self.write(pins)?;
        Ok(Pin::New)
    }

    /// Forgets a peer that left the cluster, so that its id may come back with another disk. Says whether it was known.
    ///
    /// # Errors
    /// [`LogError::Io`].
    pub fn forget(&mut self, node: u64) -> Result<bool, LogError> {
        let mut pins = self.pins.clone();
        let known = pins.remove(&node).is_some();
        if known {
            self.write(pins)?;
        }
        Ok(known)
    }

    /// The pinned store of a peer.
    pub fn pinned(&self, node: u64) -> Option<StoreId> {
        self.pins.get(&node).copied()
    }

    fn write(&mut self, pins: BTreeMap<u64, StoreId>) -> Result<(), LogError> {
        let lines: String = pins
            .iter()
            .map(|(node, store)| format!("{node} {store}\n"))
            .collect();
        let content = seal(&format!("{MAGIC}\n{lines}"));
        replace(&self.vfs, &self.path, 0, &[content.as_bytes()])?;
        self.pins = pins;
        Ok(())
    }
}

fn parse(text: &str) -> Option<BTreeMap<u64, StoreId>> {
    let lines = text.strip_prefix(MAGIC)?.strip_prefix('\n')?.lines();
    lines
        .map(|line| {
            let (node, store) = line.split_once(' ')?;
            Some((node.parse().ok()?, StoreId::parse(store)?))
        })
        .collect()
}
