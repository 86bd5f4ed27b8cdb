//! One group's durable state in a directory of its own: the same log, for embedders that run a single group.

use std::path::Path;
use std::sync::Arc;

use skep_vfs::{DiskVfs, Vfs};

use crate::error::LogError;
use crate::identity::Store;
use crate::log::Log;
use crate::options::LogOptions;
use crate::record::{Entry, GroupKey, HardState, LogPosition, Record};
use crate::recovery::RecoveredGroup;
use crate::snapshot::{SnapshotFile, SnapshotMeta, SnapshotName, SnapshotStore, buffer};

/// What [`open_storage`] found.
#[derive(Debug)]
pub struct OpenedStorage {
    /// Takes what comes next.
    pub storage: DiskStorage,
    /// The group's state, empty if it is new.
    pub recovered: RecoveredGroup,
    /// The newest snapshot, verified.
    pub snapshot: Option<SnapshotFile>,
    /// The index of the newest snapshot, 0 if there is none.
    pub last_snapshot_index: u64,
    /// The index of the last entry, or of the truncation if the log is empty.
    pub last_entry_index: u64,
    /// Whether the directory held this group before.
    pub existed: bool,
}

/// A group's hard state, entries and snapshots on stable storage.
///
/// *Concurrency*: one owner. *Failure*: as [`Log`]; after a failed write every call answers [`LogError::Poisoned`].
#[derive(Debug)]
pub struct DiskStorage {
    key: GroupKey,
    log: Log,
    snapshots: SnapshotStore,
    newest: Option<LogPosition>,
    last_index: u64,
    _store: Store,
}

/// Opens or makes the storage of `group` on `node` in `dir`, which holds nothing else.
///
/// # Errors
/// [`LogError::WrongNode`] and [`LogError::WrongGroup`] if the directory is another's; [`LogError::Locked`];
/// [`LogError::Corrupt`]; [`LogError::BadSnapshot`] if the newest snapshot is damaged; [`LogError::Io`].
pub fn open_storage(node: u64, group: u64, dir: &Path) -> Result<OpenedStorage, LogError> {
    open_storage_with(Arc::new(DiskVfs), node, group, dir, LogOptions::default())
}

/// As [`open_storage`], on another file system and with other sizes. `options.store` is replaced by the directory's id.
///
/// # Errors
/// As [`open_storage`].
pub fn open_storage_with(
    vfs: Arc<dyn Vfs>,
    node: u64,
    group: u64,
    dir: &Path,
    options: LogOptions,
) -> Result<OpenedStorage, LogError> {
    let store = Store::open(&vfs, dir, STANDALONE, node)?;
    // Its owner decides what it needs of what the snapshot covers.
    let options = LogOptions {
        recovered_behind_bytes: u64::MAX,
        ..options
    };
    let (mut log, mut recovered) = store.open_log(&vfs, options)?;
    let snapshots = SnapshotStore::open_dir(vfs, &store.snapshot_dir())?;
    let key = GroupKey {
        group,
        incarnation: 1,
    };
    if let Some(other) = recovered.groups.iter().find(|found| found.key != key) {
        return Err(LogError::WrongGroup {
            dir: dir.to_path_buf(),
            expected: group,
            found: other.key.group,
        });
    }
    let found = recovered.groups.pop();
    let existed = found.is_some();
    let recovered = match found {
        Some(found) => found,
        None => {
            // From here on the directory is this group's.
            log.append(&Record::new(key))?;
            log.sync()?;
            let (hard_state, truncated) = (HardState::default(), LogPosition::default());
            RecoveredGroup {
                key,
                replica: 0,
                hard_state,
                snapshot: None,
                truncated,
                entries: Vec::new(),
            }
        }
    };
    let snapshot = recovered
        .snapshot
        .as_ref()
        .map(|mark| snapshots.open(key, mark))
        .transpose()?;
    let newest = recovered.snapshot.as_ref().map(|mark| mark.position);
    let keep: Vec<SnapshotName> = newest
        .iter()
        .map(|position| SnapshotName {
            key,
            position: *position,
        })
        .collect();
    snapshots.sweep_orphans(&keep)?;
    let last_index = recovered
        .entries
        .last()
        .map_or(recovered.truncated.index, |entry| entry.index);
    let storage = DiskStorage {
        key,
        log,
        snapshots,
        newest,
        last_index,
        _store: store,
    };
    let last_snapshot_index = newest.map_or(0, |position| position.index);
    Ok(OpenedStorage {
        storage,
        recovered,
        snapshot,
        last_snapshot_index,
        last_entry_index: last_index,
        existed,
    })
}

/// The cluster id of directories that belong to no cluster.
const STANDALONE: &str = "standalone";

impl DiskStorage {
    /// Makes the hard state and the entries durable as one atomic record: when this returns, both are on stable
    /// storage. Entries at or above the first one's index are replaced.
    ///
    /// # Errors
    /// As [`Log::append`] and [`Log::sync`].
    pub fn save(&mut self, hard_state: &HardState, entries: &[Entry]) -> Result<(), LogError> {
        let record = Record {
            hard_state: Some(*hard_state),
            entries: entries.to_vec(),
            ..Record::new(self.key)
        };
        self.write(&record)?;
        self.last_index = entries.last().map_or(self.last_index, |entry| entry.index);
        Ok(())
    }

    /// Makes a snapshot durable and then the group's newest. A snapshot beyond the log replaces the log. The one before
    /// is removed. `meta.key` is ignored: the snapshot is this group's.
    ///
    /// # Errors
    /// [`LogError::InvalidRecord`] if it is not newer than the newest; as [`Log::sync`]; [`LogError::Io`].
    pub fn save_snapshot(
        &mut self,
        meta: SnapshotMeta,
        guest: &[u8],
    ) -> Result<SnapshotFile, LogError> {
        let beyond = meta.position.index > self.last_index;
        self.place_snapshot(meta, guest, beyond)
    }

    /// As [`DiskStorage::save_snapshot`] for a snapshot from another replica: it always replaces the whole log.
    ///
    /// # Errors
    /// As [`DiskStorage::save_snapshot`].
    pub fn install_snapshot(
        &mut self,
        meta: SnapshotMeta,
        guest: &[u8],
    ) -> Result<SnapshotFile, LogError> {
        self.place_snapshot(meta, guest, true)
    }

    fn place_snapshot(
        &mut self,
        meta: SnapshotMeta,
        guest: &[u8],
        reset: bool,
    ) -> Result<SnapshotFile, LogError> {
        let position = meta.position;
        if self
            .newest
            .is_some_and(|newest| newest.index >= position.index)
        {
            let reason = format!(
                "a snapshot at index {} is not newer than the last one",
                position.index
            );
            return Err(LogError::InvalidRecord {
                key: self.key,
                reason,
            });
        }
        let meta = SnapshotMeta {
            key: self.key,
            ..meta
        };
        let path = self.snapshots.path(self.key, position);
        let mut copy = buffer(guest.len() as u64).map_err(LogError::io("write", &path))?;
        copy.extend_from_slice(guest);
        let file = self.snapshots.seal(meta, copy.into())?.place()?;
        let record = Record {
            snapshot: Some(file.mark().clone()),
            truncated: reset.then_some(position),
            reset,
            ..Record::new(self.key)
        };
        self.write(&record)?;
        if reset {
            self.last_index = position.index;
        }
        if let Some(before) = self.newest.replace(position) {
            self.snapshots.remove(self.key, before)?;
        }
        Ok(file)
    }

    /// Drops the entries up to `position`, which the newest snapshot must cover, and gives back their space.
    ///
    /// # Errors
    /// As [`Log::append`] and [`Log::collect`].
    pub fn compact(&mut self, position: LogPosition) -> Result<(), LogError> {
        self.write(&Record {
            truncated: Some(position),
            ..Record::new(self.key)
        })
    }

    /// Makes everything so far durable. Each `save` has done so already; for callers that pair the two.
    ///
    /// # Errors
    /// As [`Log::sync`].
    pub fn sync(&mut self) -> Result<(), LogError> {
        self.log.sync()
    }

    /// Syncs, closes the files and gives the directory free.
    ///
    /// # Errors
    /// As [`Log::close`].
    pub fn close(self) -> Result<(), LogError> {
        self.log.close()
    }

    fn write(&mut self, record: &Record) -> Result<(), LogError> {
        self.log.append(record)?;
        self.log.sync()?;
        if self.log.wants_collect() {
            // What it names heavy is this group itself, which its owner compacts.
            self.log.collect(u64::MAX)?;
        }
        self.log.prepare()
    }
}
