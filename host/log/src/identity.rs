//! The data directory: its lock, and the identity that says whose disk this is.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use skep_types::founding::{ClusterIdentity, FORMER_MAX, FOUNDERS_MAX, Founding, Recovery};
use skep_types::id::NodeId;
use skep_vfs::{Vfs, VfsLock, replace};

use crate::account::{Account, refuse_gone_back};
use crate::error::LogError;
use crate::log::Log;
use crate::options::LogOptions;
use crate::recovery::Recovered;
use crate::segment::SegmentName;

/// A store's random id. A wiped or replaced disk has another one, so its node cannot pass for the old one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StoreId(pub [u8; 16]);

/// Whose data directory this is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    /// The cluster's id: 1 to 255 printable characters without spaces.
    pub cluster: String,
    /// The node's id in the cluster, not 0.
    pub node: u64,
    /// Drawn once, when the directory was first used.
    pub store: StoreId,
    /// How the cluster was founded that the directory belongs to, once it belongs to one.
    pub founding: Option<Founding>,
    /// A forced recovery is under way: the log may be half of what its plan says, so no node may start here.
    pub is_recovering: bool,
}

/// An open data directory: locked against other processes until this value is dropped.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    identity: Identity,
    created: bool,
    account: Arc<Account>,
    _lock: VfsLock,
}

impl Store {
    /// Opens the data directory of a node, or makes it with an id from the system's random source.
    ///
    /// # Errors
    /// [`LogError::Locked`] if another process has it open; [`LogError::WrongCluster`] and [`LogError::WrongNode`] if
    /// it belongs to another cluster or node; [`LogError::Recovering`] if a forced recovery of it was begun and not ended;
    /// [`LogError::BadIdentity`] if the identity file is damaged, or gone while
    /// a log is there; [`LogError::WentBack`] if another node found that it was set back; [`LogError::InvalidIdentity`];
    /// [`LogError::Io`].
    pub fn open(
        vfs: &Arc<dyn Vfs>,
        dir: &Path,
        cluster: &str,
        node: u64,
    ) -> Result<Store, LogError> {
        Store::open_with(vfs, dir, cluster, node, || {
            let mut id = [0; 16];
            getrandom::fill(&mut id).map_err(|error| io::Error::other(error.to_string()))?;
            Ok(StoreId(id))
        })
    }

    /// As [`Store::open`], with the caller's source of ids: for simulations, which must be repeatable.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_with(
        vfs: &Arc<dyn Vfs>,
        dir: &Path,
        cluster: &str,
        node: u64,
        draw: impl FnOnce() -> io::Result<StoreId>,
    ) -> Result<Store, LogError> {
        check(cluster, node)?;
        vfs.create_dir_all(dir)
            .map_err(LogError::io("create", dir))?;
        let lock = lock(&**vfs, dir)?;
        refuse_gone_back(&**vfs, dir)?;
        let path = dir.join("identity");
        let (identity, created) = match vfs.read(&path, IDENTITY_BYTES) {
            Ok(content) => {
                // An earlier start may have been killed before it made the names in here durable.
                vfs.sync_dir(dir).map_err(LogError::io("sync", dir))?;
                (Identity::parse(&content, &path)?, false)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                refuse_orphaned_log(&**vfs, dir, &path)?;
                let store = draw().map_err(LogError::io("draw an id for", &path))?;
                let identity = Identity {
                    cluster: cluster.to_owned(),
                    node,
                    store,
                    founding: None,
                    is_recovering: false,
                };
                replace(vfs, &path, 0, &[identity.render().as_bytes()])?;
                (identity, true)
            }
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return Err(LogError::BadIdentity {
                    file: path,
                    reason: error.to_string(),
                });
            }
            Err(error) => return Err(LogError::io("read", &path)(error)),
        };
        if identity.cluster != cluster {
            return Err(LogError::WrongCluster {
                file: path,
                expected: cluster.to_owned(),
                found: identity.cluster,
            });
        }
        if identity.node != node {
            return Err(LogError::WrongNode {
                file: path,
                expected: node,
                found: identity.node,
            });
        }
        if identity.is_recovering {
            return Err(LogError::Recovering { file: path });
        }
        Ok(Store {
            dir: dir.to_path_buf(),
            identity,
            created,
            account: Arc::default(),
            _lock: lock,
        })
    }

    /// Opens a data directory that is there, whoever's it is, for a forced recovery: also one in which such a recovery was begun
    /// and not ended.
    ///
    /// # Errors
    /// [`LogError::Locked`] if another process has it open; [`LogError::BadIdentity`]; [`LogError::Io`] if there is none.
    pub fn open_for_recovery(vfs: &Arc<dyn Vfs>, dir: &Path) -> Result<Store, LogError> {
        let lock = lock(&**vfs, dir)?;
        let identity = Identity::read(&**vfs, dir)?;
        vfs.sync_dir(dir).map_err(LogError::io("sync", dir))?;
        Ok(Store {
            dir: dir.to_path_buf(),
            identity,
            created: false,
            account: Arc::default(),
            _lock: lock,
        })
    }

    /// Notes durably that a forced recovery of this directory is under way, which begins this life of its cluster. No node
    /// starts here before [`Store::end_recovery`]. The same may be said again.
    ///
    /// # Errors
    /// [`LogError::Founded`] if the life does not follow on the one that the directory belongs to;
    /// [`LogError::InvalidIdentity`]; [`LogError::Io`], after which nothing is known of it until the directory is opened again.
    pub fn begin_recovery(
        &mut self,
        vfs: &Arc<dyn Vfs>,
        founding: &Founding,
    ) -> Result<(), LogError> {
        let known = self.identity.founding.as_ref();
        if known == Some(founding) {
            return Ok(());
        }
        let follows = known.is_some_and(|known| {
            founding.former().last() == Some(&known.identity())
                && founding.incarnation == known.incarnation.saturating_add(1)
        });
        if !follows || self.identity.is_recovering {
            let file = self.dir.join("identity");
            return Err(LogError::Founded { file });
        }
        self.note(vfs, founding, true)
    }

    /// Notes durably that the forced recovery is done: the directory belongs to the life that it began.
    ///
    /// # Errors
    /// [`LogError::Founded`] if none was begun; [`LogError::Io`], as for [`Store::begin_recovery`].
    pub fn end_recovery(&mut self, vfs: &Arc<dyn Vfs>) -> Result<(), LogError> {
        match self.identity.founding.clone() {
            Some(founding) => self.note(vfs, &founding, false),
            None => Err(LogError::Founded {
                file: self.dir.join("identity"),
            }),
        }
    }

    /// Opens the directory's log, with `options.store` set to the store's id, and remembers that there is one: from
    /// then on a log without a single segment is a lost log, not a new one. A node that took it for new would have
    /// forgotten its votes and entries. A life of the store begins, see [`Store::account`].
    ///
    /// # Errors
    /// As [`Log::open`]; [`LogError::MissingSegment`] if the log was there before and is gone; [`LogError::BadIdentity`] if
    /// the file of its lives is damaged.
    pub fn open_log(
        &self,
        vfs: &Arc<dyn Vfs>,
        options: LogOptions,
    ) -> Result<(Log, Recovered), LogError> {
        self.open_log_with(vfs, options, || {
            let mut nonce = [0; 8];
            getrandom::fill(&mut nonce).map_err(|error| io::Error::other(error.to_string()))?;
            Ok(u64::from_le_bytes(nonce))
        })
    }

    /// As [`Store::open_log`], with the caller's source of what a life draws.
    ///
    /// # Errors
    /// As [`Store::open_log`].
    pub fn open_log_with(
        &self,
        vfs: &Arc<dyn Vfs>,
        options: LogOptions,
        draw: impl FnOnce() -> io::Result<u64>,
    ) -> Result<(Log, Recovered), LogError> {
        let wal = self.wal_dir();
        let marker = self.dir.join("has-log");
        let had_log = self.marked(&**vfs)?;
        if had_log && !has_segments(&**vfs, &wal)? {
            return Err(LogError::MissingSegment {
                file: SegmentName::Segment(1).path(&wal),
            });
        }
        let options = LogOptions {
            store: self.identity.store.0,
            ..options
        };
        let nonce = draw().map_err(LogError::io("draw a number for", &self.dir))?;
        let opened = Log::open(Arc::clone(vfs), &wal, options)?;
        let place = (opened.0.began, Arc::clone(&opened.0.durable));
        self.account.begin(vfs, &self.dir, nonce, place)?;
        if !had_log {
            vfs.create(&marker)
                .map_err(LogError::io("create", &marker))?;
            vfs.sync_dir(&self.dir)
                .map_err(LogError::io("sync", &self.dir))?;
        }
        Ok(opened)
    }

    /// Notes the cluster that this directory belongs to from now on, durably: before its node takes part in anything. The
    /// same may be said again.
    ///
    /// # Errors
    /// [`LogError::Founded`] if it belongs to another one; [`LogError::InvalidIdentity`]; [`LogError::Io`], after which nothing is
    /// known of it until the directory is opened again.
    pub fn found(&mut self, vfs: &Arc<dyn Vfs>, founding: &Founding) -> Result<(), LogError> {
        match &self.identity.founding {
            Some(known) if known == founding => Ok(()),
            Some(_) => Err(LogError::Founded {
                file: self.dir.join("identity"),
            }),
            None => self.note(vfs, founding, false),
        }
    }

    fn note(
        &mut self,
        vfs: &Arc<dyn Vfs>,
        founding: &Founding,
        is_recovering: bool,
    ) -> Result<(), LogError> {
        if founding.cluster != self.identity.cluster || founding.founders.len() > FOUNDERS_MAX {
            let reason = format!(
                "a founding has at most {FOUNDERS_MAX} founders and the directory's cluster"
            );
            return Err(LogError::InvalidIdentity { reason });
        }
        let identity = Identity {
            founding: Some(founding.clone()),
            is_recovering,
            ..self.identity.clone()
        };
        let path = self.dir.join("identity");
        replace(vfs, &path, 0, &[identity.render().as_bytes()])?;
        self.identity = identity;
        Ok(())
    }

    /// Whether a log was ever opened here, or is here.
    ///
    /// # Errors
    /// [`LogError::Io`].
    pub fn has_log(&self, vfs: &dyn Vfs) -> Result<bool, LogError> {
        Ok(self.marked(vfs)? || has_segments(vfs, &self.wal_dir())?)
    }

    fn marked(&self, vfs: &dyn Vfs) -> Result<bool, LogError> {
        let marker = self.dir.join("has-log");
        match vfs.open(&marker) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(LogError::io("open", &marker)(error)),
        }
    }

    /// The data directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the log belongs.
    pub fn wal_dir(&self) -> PathBuf {
        self.dir.join("wal")
    }

    /// Where the snapshot files belong.
    pub fn snapshot_dir(&self) -> PathBuf {
        self.dir.join("snap")
    }

    /// Whose directory this is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// What the store says of itself to other nodes, from the opening of its log on.
    pub fn account(&self) -> Arc<Account> {
        Arc::clone(&self.account)
    }

    /// Whether the directory was new.
    pub fn created(&self) -> bool {
        self.created
    }
}

/// An identity file has a line for each founder and each former identity; anything larger is not one.
const IDENTITY_BYTES: u64 = 1024 + 64 * FOUNDERS_MAX as u64 + 80 * FORMER_MAX as u64;

/// A directory that belongs to no cluster yet.
const MAGIC: &str = "skep store, format 1";
/// One that does. A release that knows nothing of foundings must not open it.
const MAGIC_FOUNDED: &str = "skep store, format 2";
/// One whose cluster was recovered by force, or is being so. A release that knows nothing of that must not open it.
const MAGIC_RECOVERED: &str = "skep store, format 3";
/// The line of a directory in which a forced recovery was begun and not ended.
const RECOVERING: &str = "recovering";

fn lock(vfs: &dyn Vfs, dir: &Path) -> Result<VfsLock, LogError> {
    let path = dir.join("lock");
    vfs.lock(&path).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => LogError::Locked { path },
        _ => LogError::io("lock", &path)(error),
    })
}

fn check(cluster: &str, node: u64) -> Result<(), LogError> {
    let refuse = |reason: &str| {
        Err(LogError::InvalidIdentity {
            reason: reason.to_owned(),
        })
    };
    if cluster.is_empty() || cluster.len() > 255 || !cluster.chars().all(|c| c.is_ascii_graphic()) {
        return refuse("the cluster id must be 1 to 255 printable ASCII characters without spaces");
    }
    if node == 0 {
        return refuse("the node id must not be 0");
    }
    Ok(())
}

/// A log without an identity is a lost file, not a new node: a fresh id would orphan the log.
fn refuse_orphaned_log(vfs: &dyn Vfs, dir: &Path, identity: &Path) -> Result<(), LogError> {
    if has_segments(vfs, &dir.join("wal"))? {
        let reason = "it is missing, but there is a log".to_owned();
        return Err(LogError::BadIdentity {
            file: identity.to_path_buf(),
            reason,
        });
    }
    Ok(())
}

fn has_segments(vfs: &dyn Vfs, wal: &Path) -> Result<bool, LogError> {
    match vfs.list(wal) {
        Ok(names) => Ok(names.iter().any(|name| name.ends_with(".wal"))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(LogError::io("list", wal)(error)),
    }
}

impl Identity {
    /// Whose directory this is; for somebody who only looks and so has no expectation.
    ///
    /// # Errors
    /// [`LogError::BadIdentity`] if the file is damaged; [`LogError::Io`] if it cannot be read, or is not there.
    pub fn read(vfs: &dyn Vfs, dir: &Path) -> Result<Identity, LogError> {
        let path = dir.join("identity");
        let content = vfs
            .read(&path, IDENTITY_BYTES)
            .map_err(LogError::io("read", &path))?;
        Identity::parse(&content, &path)
    }

    fn render(&self) -> String {
        let magic = match &self.founding {
            None => MAGIC,
            Some(founding) if founding.recovery.is_none() => MAGIC_FOUNDED,
            Some(_) => MAGIC_RECOVERED,
        };
        let mut text = format!(
            "{magic}\ncluster {}\nnode {}\nstore {}\n",
            self.cluster, self.node, self.store
        );
        if let Some(founding) = &self.founding {
            text.push_str(&format!("incarnation {}\n", founding.incarnation));
            for (node, store) in &founding.founders {
                text.push_str(&format!("founder {node} {}\n", StoreId(*store)));
            }
            if let Some(recovery) = &founding.recovery {
                for former in &recovery.former {
                    text.push_str(&format!("former {former}\n"));
                }
                text.push_str(&format!("plan {}\n", ClusterIdentity(recovery.plan)));
                if self.is_recovering {
                    text.push_str(&format!("{RECOVERING}\n"));
                }
            }
            text.push_str(&format!("identity {}\n", founding.identity()));
        }
        seal(&text)
    }

    fn parse(content: &[u8], file: &Path) -> Result<Identity, LogError> {
        let bad = |reason: &str| LogError::BadIdentity {
            file: file.to_path_buf(),
            reason: reason.to_owned(),
        };
        let text = unseal(content).map_err(bad)?;
        let mut lines = text.lines();
        let (is_founded, is_recovered) = match lines.next() {
            Some(MAGIC) => (false, false),
            Some(MAGIC_FOUNDED) => (true, false),
            Some(MAGIC_RECOVERED) => (true, true),
            _ => return Err(bad("it is not an identity file of this format")),
        };
        let mut field = |name: &str| {
            lines
                .next()
                .and_then(|line| line.strip_prefix(name)?.strip_prefix(' '))
        };
        let cluster = field("cluster").map(str::to_owned);
        let node = field("node").and_then(|node| node.parse().ok());
        let store = field("store").and_then(StoreId::parse);
        match (cluster, node, store) {
            (Some(cluster), Some(node), Some(store)) => {
                let noted = is_founded.then(|| {
                    let noted = founding(&cluster, lines);
                    let noted = noted.filter(|(of, _)| of.recovery.is_some() == is_recovered);
                    noted.ok_or_else(|| bad("the founding is malformed"))
                });
                let (founding, is_recovering) = noted.transpose()?.unzip();
                Ok(Identity {
                    cluster,
                    node,
                    store,
                    founding,
                    is_recovering: is_recovering.unwrap_or(false),
                })
            }
            _ => Err(bad("a field is missing or malformed")),
        }
    }
}

/// The founding that stands in the last lines of an identity file, if its identity is what they say; and whether the forced
/// recovery that it began with is under way.
fn founding<'a>(
    cluster: &str,
    mut lines: impl Iterator<Item = &'a str>,
) -> Option<(Founding, bool)> {
    let incarnation = lines.next()?.strip_prefix("incarnation ")?.parse().ok()?;
    let mut founding = Founding {
        incarnation,
        ..Founding::unfounded(cluster)
    };
    let (mut former, mut is_recovering) = (Vec::new(), false);
    loop {
        let (word, rest) = lines
            .next()
            .map(|line| line.split_once(' ').unwrap_or((line, "")))?;
        match word {
            "founder" => {
                let (node, store) = rest.split_once(' ')?;
                let founder = (NodeId(node.parse().ok()?), StoreId::parse(store)?.0);
                founding.founders.extend([founder]);
            }
            "former" => former.push(ClusterIdentity::parse(rest)?),
            "plan" => {
                let (plan, former) = (ClusterIdentity::parse(rest)?.0, former.clone());
                founding.recovery = Some(Recovery { plan, former });
            }
            RECOVERING => is_recovering = true,
            "identity" => {
                let is_whole = ClusterIdentity::parse(rest) == Some(founding.identity());
                return (is_whole && lines.next().is_none()).then_some((founding, is_recovering));
            }
            _ => return None,
        }
    }
}

/// Adds the line that proves the text whole.
pub(crate) fn seal(text: &str) -> String {
    format!("{text}crc32c {:08x}\n", crc32c::crc32c(text.as_bytes()))
}

/// Checks and removes the line that [`seal`] added.
pub(crate) fn unseal(content: &[u8]) -> Result<&str, &'static str> {
    let text = std::str::from_utf8(content).map_err(|_| "it is not text")?;
    let at = text
        .rfind("crc32c ")
        .ok_or("its checksum line is missing")?;
    let (body, _) = text.split_at(at);
    if seal(body) != text {
        return Err("its checksum is wrong");
    }
    Ok(body)
}

impl StoreId {
    /// Reads what `Display` writes.
    pub fn parse(text: &str) -> Option<StoreId> {
        let digits = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let value = digits.then(|| u128::from_str_radix(text, 16).ok())??;
        Some(StoreId(value.to_be_bytes()))
    }
}

impl fmt::Display for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StoreId({self})")
    }
}
