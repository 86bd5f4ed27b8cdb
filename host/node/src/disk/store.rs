//! One data directory in use: its lock, the log that groups share, their snapshot files, and what it recovered.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use skep_core::healing::Parked;
use skep_core::id::{GroupId, Incarnation, LogIndex, NodeId, ReplicaId};
use skep_core::input::LogRead;
use skep_core::message::SnapshotName;
use skep_drive::Stored;
use skep_log::{
    GroupKey, LogError, LogHandle, LogOptions, LogPosition, LogReader, LogStats, LogWriter, Record,
    SealedSnapshot, SnapshotFile, SnapshotMeta, SnapshotReceiver, SnapshotStore, Store, Vfs,
    WriterEvent, WriterOptions,
};
use skep_store::{Begin, Lives, convert};
use skep_types::shared::lock;

use crate::disk::room::DiskRoom;
use crate::error::Error;
use crate::machines::worker::Saved;
use crate::pool::Pool;
use crate::shards::mailbox::{Completion, Event};
use crate::shards::replica::Life;
use crate::shards::router::Router;

/// Bytes of one snapshot file a node takes from a peer. Far above what one machine's memory holds.
pub(crate) const SNAPSHOT_BYTES_MAX: u64 = 16 << 30;

// What a group keeps beside its machine's state always fits into a snapshot file.
const _: () = assert!(skep_core::state::BYTES_MAX * 2 <= skep_log::MAX_STATE);

/// What is done when a record is durable.
pub(crate) enum Token {
    Persisted {
        group: GroupId,
        life: Life,
        number: u64,
    },
    /// Runs on the log's thread, so it must not block.
    Then(Box<dyn FnOnce() + Send>),
}

/// A data directory in use.
pub(crate) struct Disk {
    dir: PathBuf,
    reserve: u64,
    /// Held for its lock, until the log is closed.
    store: Mutex<Option<Store>>,
    log: LogHandle<Token>,
    reader: LogReader,
    writer: Mutex<Option<JoinHandle<()>>>,
    snapshots: Arc<SnapshotStore>,
    lives: Mutex<Lives>,
}

/// How to open a data directory.
pub(crate) struct DiskConfig<'a> {
    pub(crate) vfs: Arc<dyn Vfs>,
    pub(crate) dir: &'a Path,
    pub(crate) cluster: &'a str,
    pub(crate) node: NodeId,
    pub(crate) sync_delay: Duration,
    /// The directory, if somebody opened it already.
    pub(crate) store: Option<Store>,
    /// Bytes of the disk that snapshots of groups which are new here leave free.
    pub(crate) reserve: u64,
}

impl Disk {
    /// Opens the directory and recovers what is in it; reads all of the log.
    pub(crate) fn open(config: DiskConfig<'_>, router: &Arc<Router>) -> Result<Arc<Self>, Error> {
        let DiskConfig {
            vfs,
            dir,
            cluster,
            node,
            sync_delay,
            store,
            reserve,
        } = config;
        let store = match store {
            Some(store) => store,
            None => Store::open(&vfs, dir, cluster, node.0)?,
        };
        let (log, recovered) = store.open_log(&vfs, LogOptions::default())?;
        let snapshots = Arc::new(SnapshotStore::open_dir(vfs, &store.snapshot_dir())?);
        if recovered.torn_bytes > 0 {
            let (dir, bytes) = (dir.display(), recovered.torn_bytes);
            tracing::info!(%dir, bytes, "the last write of the log was cut off by a crash; nothing acknowledged is lost");
        }
        let lives = Lives::new(recovered);
        snapshots.sweep_orphans(&lives.snapshots())?;
        let reader = log.reader();
        let events = Arc::clone(router);
        let spawned = LogWriter::spawn(log, WriterOptions { sync_delay }, move |event| {
            on_event(&events, event)
        });
        let (log, writer) = spawned.map_err(no_thread("the log's thread"))?;
        Ok(Arc::new(Self {
            dir: dir.to_owned(),
            reserve,
            store: Mutex::new(Some(store)),
            log,
            reader,
            writer: Mutex::new(Some(writer)),
            snapshots,
            lives: Mutex::new(lives),
        }))
    }

    /// How a replica of this life of a group begins; see [`Lives::begin`].
    pub(crate) fn begin(&self, key: GroupKey, joins: bool) -> Result<Begin, Error> {
        lock(&self.lives)
            .begin(key, joins)
            .map_err(|_| Error::GroupRemoved {
                group: GroupId(key.group),
                incarnation: Incarnation(key.incarnation),
            })
    }

    /// The replica is up: what was recovered of it need not be kept.
    pub(crate) fn began(&self, key: GroupKey) {
        lock(&self.lives).began(key);
    }

    /// A replica is given up, to begin again from what is on the disk. Reads the entries that are in no memory any more.
    pub(crate) fn park(&self, key: GroupKey, parked: Parked) -> Result<(), LogError> {
        let (mut next, last) = (parked.start.0.0 + 1, parked.before.0.0);
        let mut older = Vec::new();
        while next <= last {
            let read = self.reader.entries(key, next, last, u64::MAX)?;
            let read = read.ok_or_else(|| LogError::InvalidRecord {
                key,
                reason: format!("entry {next} is not in the log any more"),
            })?;
            next += read.len() as u64;
            older.extend(read);
        }
        let untried_from = parked.untried_from;
        lock(&self.lives).park(convert::parked(key, parked, older), untried_from);
        Ok(())
    }

    /// The lives of a group that were recovered and not brought up.
    pub(crate) fn dormant(&self, group: GroupId) -> Vec<GroupKey> {
        lock(&self.lives).of_group(group)
    }

    /// All groups that were recovered and not brought up.
    pub(crate) fn all_dormant(&self) -> Vec<(GroupId, Incarnation)> {
        lock(&self.lives)
            .dormant()
            .map(|key| (GroupId(key.group), Incarnation(key.incarnation)))
            .collect()
    }

    /// Ends a replica for ever; `then` is called once that is durable, on the log's thread or at once, and must not
    /// block.
    pub(crate) fn bury(
        &self,
        key: GroupKey,
        replica: ReplicaId,
        then: impl FnOnce() + Send + 'static,
    ) -> Result<(), skep_log::Stopped> {
        match lock(&self.lives).bury(key, replica) {
            Some(record) => self.submit(vec![(record, Token::Then(Box::new(then)))]),
            None => {
                then();
                Ok(())
            }
        }
    }

    /// As [`Disk::bury`], for a replica that was not brought up, whose files are deleted then.
    pub(crate) fn bury_dormant(
        self: &Arc<Self>,
        key: GroupKey,
        pool: &Arc<Pool>,
        done: impl FnOnce(Result<(), Error>) + Send + 'static,
    ) -> Result<(), skep_log::Stopped> {
        let replica = lock(&self.lives).replica_of(key);
        let (disk, pool) = (Arc::clone(self), Arc::clone(pool));
        let delete = move || done(disk.remove_snapshots(key).map_err(Error::from));
        self.bury(key, replica, move || pool.run(delete))
    }

    /// Hands records to the log. Blocks while the log is more than a second or so of writing behind.
    pub(crate) fn submit(&self, records: Vec<(Record, Token)>) -> Result<(), skep_log::Stopped> {
        self.log.submit(records)
    }

    /// Reads durable entries back from the files, on the caller's thread.
    pub(crate) fn read_log(
        &self,
        key: GroupKey,
        (from, through): (LogIndex, LogIndex),
        bytes: u64,
    ) -> LogRead {
        let read = self.reader.entries(key, from.0, through.0, bytes);
        if let Err(error) = &read {
            tracing::warn!(group = key.group, index = from.0, %error, "entries of the log cannot be read back for a member that lacks them; \
                 if it lasts, the member is sent a snapshot");
        }
        convert::log_read(key, read)
    }

    pub(crate) fn stats(&self) -> LogStats {
        self.log.stats()
    }

    /// Flushes and closes the log. `release` also unlocks the directory: only when nothing can write to it any more.
    pub(crate) fn stop(&self, release: bool) {
        self.log.clone().stop();
        let writer = lock(&self.writer).take();
        if let Some(writer) = writer
            && writer.join().is_err()
        {
            tracing::error!("the log's thread panicked");
        }
        if release {
            lock(&self.store).take();
        }
    }

    /// The snapshot of a barrier, to be written.
    pub(crate) fn seal_snapshot(
        &self,
        key: GroupKey,
        saved: Saved,
    ) -> Result<SealedSnapshot, LogError> {
        let Saved {
            point,
            state,
            component,
        } = saved;
        let meta = SnapshotMeta {
            key,
            position: LogPosition {
                index: point.context.index.0,
                term: point.context.term.0,
            },
            state,
            form: point.form,
            schema: point.schema,
            component: component.0,
        };
        self.snapshots.seal(meta, point.guest)
    }

    /// Opens a snapshot and verifies every byte of it.
    pub(crate) fn open_snapshot(
        &self,
        key: GroupKey,
        name: &SnapshotName,
    ) -> Result<SnapshotFile, LogError> {
        self.snapshots.open(key, &convert::mark(name))
    }

    /// The machine's part of a snapshot, verified.
    pub(crate) fn read_snapshot(
        &self,
        key: GroupKey,
        name: &SnapshotName,
    ) -> Result<Stored, LogError> {
        let (meta, guest) = self.snapshots.read(key, &convert::mark(name))?;
        Ok(Stored {
            form: meta.form,
            schema: meta.schema,
            guest,
        })
    }

    pub(crate) fn receive_snapshot(
        &self,
        key: GroupKey,
        name: &SnapshotName,
    ) -> Result<SnapshotReceiver, LogError> {
        if self.reserve > 0 && !self.snapshots.list()?.iter().any(|of| of.key == key) {
            self.has_room(name.size)?;
        }
        self.snapshots
            .receive(key, convert::mark(name), SNAPSHOT_BYTES_MAX)
    }

    /// Whether so many bytes leave the reserve free. What is here already is not refused: it cannot do without.
    fn has_room(&self, bytes: u64) -> Result<(), LogError> {
        let looked = DiskRoom::new(&self.dir, self.reserve);
        looked
            .check(bytes)
            .map_err(|short| io::Error::new(io::ErrorKind::StorageFull, short))
            .map_err(|source| LogError::Io {
                action: "write a snapshot of a group that is new here to",
                path: self.dir.clone(),
                source,
            })
    }

    pub(crate) fn snapshot_name(file: &SnapshotFile) -> SnapshotName {
        convert::name(file.mark())
    }

    /// Deletes the snapshots of a group before this index.
    pub(crate) fn prune_snapshots(&self, key: GroupKey, newest: LogIndex) -> Result<(), LogError> {
        self.remove_where(key, |position| position.index < newest.0)
    }

    pub(crate) fn remove_snapshots(&self, key: GroupKey) -> Result<(), LogError> {
        self.remove_where(key, |_| true)
    }

    fn remove_where(
        &self,
        key: GroupKey,
        remove: impl Fn(LogPosition) -> bool,
    ) -> Result<(), LogError> {
        self.snapshots
            .list()?
            .into_iter()
            .filter(|snapshot| snapshot.key == key && remove(snapshot.position))
            .try_for_each(|snapshot| self.snapshots.remove(key, snapshot.position))
    }
}

fn on_event(router: &Arc<Router>, event: WriterEvent<Token>) {
    match event {
        WriterEvent::Persisted(tokens) => {
            let mut completions = Vec::with_capacity(tokens.len());
            for token in tokens {
                match token {
                    Token::Persisted {
                        group,
                        life,
                        number,
                    } => {
                        completions.push(Completion {
                            group,
                            life,
                            event: Event::Persisted { number },
                        });
                    }
                    Token::Then(then) => then(),
                }
            }
            router.complete_all(completions);
        }
        WriterEvent::Heavy(keys) => router.heavy(&keys),
        WriterEvent::Rejected { token, error } => match token {
            Token::Persisted { group, life, .. } => {
                let reason = format!("the log refused a record: {error}");
                router.complete_all(vec![Completion {
                    group,
                    life,
                    event: Event::Broken { reason },
                }]);
            }
            Token::Then(_) => tracing::error!(%error, "the log refused to end the life of a group"),
        },
        WriterEvent::Poisoned { error } => router.fail(error.to_string()),
    }
}

/// What could not be started, a thread most likely.
pub(crate) fn no_thread(what: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Start { what, source }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use skep_core::form::Form;
    use skep_core::id::Term;
    use skep_log::DiskVfs;

    use super::*;

    #[test]
    fn a_disk_below_its_reserve_takes_no_snapshot_of_a_group_that_is_new() {
        let home = tempfile::tempdir().unwrap();
        let open = |reserve| {
            let config = DiskConfig {
                vfs: Arc::new(DiskVfs),
                dir: home.path(),
                cluster: "test",
                node: NodeId(1),
                sync_delay: Duration::ZERO,
                store: None,
                reserve,
            };
            Disk::open(config, &Arc::new(Router::new(NodeId(1), 1))).unwrap()
        };
        let key = |group| GroupKey {
            group,
            incarnation: 1,
        };
        let name = SnapshotName {
            index: LogIndex(5),
            term: Term(1),
            size: 100,
            digest: [0; 32],
        };
        let plenty = open(0);
        drop(plenty.receive_snapshot(key(2), &name).unwrap());
        plenty.stop(true);
        let short = open(u64::MAX / 2);
        let kept = SnapshotMeta {
            key: key(1),
            position: LogPosition { index: 4, term: 1 },
            state: Bytes::new(),
            form: Form::Saved,
            schema: 1,
            component: [0; 32],
        };
        let kept = short.snapshots.seal(kept, Bytes::new()).unwrap();
        kept.place().unwrap();
        let refused = short.receive_snapshot(key(2), &name).unwrap_err();
        assert_eq!(refused.code().name(), "disk-full", "{refused}");
        // What is here cannot do without.
        drop(short.receive_snapshot(key(1), &name).unwrap());
        short.stop(true);
    }
}
