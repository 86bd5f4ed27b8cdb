//! The stores of this node's peers, as first seen, and how far each one's past was heard.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use skep_types::past::{Durable, Known, Past};
use skep_vfs::{Vfs, replace};

use crate::error::LogError;
use crate::identity::{StoreId, seal, unseal};

/// Remembers, durably, the store id each peer showed first, and what that store said of its past. A peer whose disk was wiped
/// or set back to an older copy has forgotten votes and entries; letting it back under its old id could lose acknowledged commands.
///
/// *Concurrency*: one owner. *Failure*: after an error the pins in memory are those on disk before the call.
#[derive(Debug)]
pub struct PeerPins {
    vfs: Arc<dyn Vfs>,
    path: PathBuf,
    pins: BTreeMap<u64, Pinned>,
}

#[derive(Clone, Copy, Debug)]
struct Pinned {
    store: StoreId,
    known: Option<Known>,
}

/// What a peer said of its log while it was connected.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Heard {
    /// The life of its store that it spoke in.
    pub life: u64,
    /// How far its log was durable.
    pub durable: Durable,
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

const PINS_BYTES: u64 = 128 * (MAX_PEERS as u64 + 2);

const MAGIC: &str = "skep peers, format 2";
/// One in which nothing is known of the past of a store.
const MAGIC_OF_STORES: &str = "skep peers, format 1";

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
            Some(pinned) if pinned.store == store => return Ok(Pin::Known),
            Some(pinned) => {
                return Err(LogError::PeerChanged {
                    node,
                    pinned: pinned.store.to_string(),
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
        pins.insert(node, Pinned { store, known: None });
        self.write(pins)?;
        Ok(Pin::New)
    }

    /// As [`check`](Self::check), and compares what the store says of its past with what is known of that. A life that is new is
    /// remembered durably.
    ///
    /// # Errors
    /// As [`check`](Self::check); [`LogError::PeerWentBack`] if the store does not go on from what is known.
    pub fn meet(&mut self, node: u64, store: StoreId, past: &Past) -> Result<Pin, LogError> {
        let known = self.pins.get(&node).filter(|pinned| pinned.store == store);
        let known = known.and_then(|pinned| pinned.known);
        let now = match known {
            Some(known) => {
                let met = known.meet(past);
                Some(met.map_err(|why| LogError::PeerWentBack { node, why })?)
            }
            None => Known::first(past),
        };
        let pin = self.check(node, store)?;
        let life = |known: Option<Known>| known.map(|known| known.life);
        if life(now) != life(known) {
            let mut pins = self.pins.clone();
            pins.insert(node, Pinned { store, known: now });
            self.write(pins)?;
        }
        Ok(pin)
    }

    /// Remembers, durably, how far the logs of peers were durable. Whoever is not pinned, or spoke in another life than the newest
    /// that is known, is passed over.
    ///
    /// # Errors
    /// [`LogError::Io`].
    pub fn remember(&mut self, heard: &BTreeMap<u64, Heard>) -> Result<(), LogError> {
        let mut pins = self.pins.clone();
        let mut has_news = false;
        for (node, heard) in heard {
            let known = pins.get_mut(node).and_then(|pinned| pinned.known.as_mut());
            if let Some(known) =
                known.filter(|known| known.life == heard.life && known.durable < heard.durable)
            {
                known.durable = heard.durable;
                has_news = true;
            }
        }
        match has_news {
            true => self.write(pins),
            false => Ok(()),
        }
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
        self.pins.get(&node).map(|pinned| pinned.store)
    }

    /// What is known of the past of a peer's store.
    pub fn known(&self, node: u64) -> Option<Known> {
        self.pins.get(&node)?.known
    }

    fn write(&mut self, pins: BTreeMap<u64, Pinned>) -> Result<(), LogError> {
        let lines: String = pins.iter().map(|(node, pin)| line(*node, pin)).collect();
        let content = seal(&format!("{MAGIC}\n{lines}"));
        replace(&self.vfs, &self.path, 0, &[content.as_bytes()])?;
        self.pins = pins;
        Ok(())
    }
}

fn line(node: u64, pinned: &Pinned) -> String {
    let store = pinned.store;
    match pinned.known {
        None => format!("{node} {store}\n"),
        Some(Known {
            life,
            nonce,
            durable: Durable(durable),
        }) => format!("{node} {store} {life} {nonce:016x} {durable:016x}\n"),
    }
}

fn parse(text: &str) -> Option<BTreeMap<u64, Pinned>> {
    let lines = text
        .strip_prefix(MAGIC)
        .or_else(|| text.strip_prefix(MAGIC_OF_STORES))?;
    let number = |field: &str| u64::from_str_radix(field, 16).ok();
    let pinned = |line: &str| {
        let fields: Vec<_> = line.split(' ').collect();
        let (node, store, known) = match fields[..] {
            [node, store] => (node, store, None),
            [node, store, life, nonce, durable] => {
                let known = Known {
                    life: life.parse().ok()?,
                    nonce: number(nonce)?,
                    durable: Durable(number(durable)?),
                };
                (node, store, Some(known))
            }
            _ => return None,
        };
        let store = StoreId::parse(store)?;
        Some((node.parse().ok()?, Pinned { store, known }))
    };
    lines.strip_prefix('\n')?.lines().map(pinned).collect()
}
