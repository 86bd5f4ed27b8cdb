//! The data directory of a stopped node, looked at: what its groups' machines were told, told again.
//!
//! Nothing is written ([`ReadOnlyVfs`]). What an entry means to a machine is decided by the same [`Group`] that decided
//! it when the node ran: it recovers from the log as at a start, with a commit index of the reader's choice. What it asks of
//! the machine is done by the same [`Driver`] that did it then; a visitor listens.

mod telling;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use sha2::{Digest, Sha256};
use skep::MachineFactory;
use skep_core::config::{ConfigError, GroupConfig};
use skep_core::deployment::Deployment;
use skep_core::form::Form;
use skep_core::group::Group;
use skep_core::id::{ComponentId, GroupId, Incarnation, LogIndex, NodeId, Term};
use skep_core::outcome::{ConfChange, EntryContext, LeaderChanged, Outcome};
use skep_core::recovery::Survey;
use skep_drive::{Driver, Failed, MachineError, StateMachine, Stored, ToEnd};
use skep_log::{
    GroupKey, Identity, LogError, LogOptions, ReadOnlyVfs, RecoveredGroup, SnapshotFile,
    SnapshotStore, Store, Vfs,
};
use skep_server::catalog::machine::CatalogMachine;
use skep_server::catalog::{self, Catalog, GroupRecord};
use skep_store::convert;
use skep_store::recovery::{self, RecoveryError};

use telling::{Shelf, Teller, Telling};

/// Why the past cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The directory cannot be read, is damaged, or is in use.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The group's log makes no sense.
    #[error(transparent)]
    Core(#[from] ConfigError),
    /// The group's replica cannot go on.
    #[error("the log of group {group} cannot be applied: {reason}")]
    Halted {
        /// The group.
        group: GroupId,
        /// Why.
        reason: String,
    },
    /// The directory has no replica of the group.
    #[error("this data directory has no replica of group {group}")]
    NoReplica {
        /// The group.
        group: GroupId,
    },
    /// The machine could not be run any further. On a node the replica would have stopped there, or did.
    #[error("the machine failed at index {index}: {source}")]
    Machine {
        /// The entry.
        index: LogIndex,
        /// How.
        source: Failed,
    },
    /// The index is not between what is retained.
    #[error("index {index} cannot be rebuilt: this node has what lies between {first} and {last}")]
    NotRetained {
        /// The index asked for.
        index: LogIndex,
        /// The first index that can be rebuilt.
        first: LogIndex,
        /// The last one.
        last: LogIndex,
    },
    /// A component is not where it should be.
    #[error("the component {id} is not in {path}, or damaged there; name a file instead")]
    NoComponent {
        /// The component.
        id: ComponentId,
        /// Where it was looked for.
        path: PathBuf,
        /// Why it could not be read, if that is so.
        #[source]
        source: Option<std::io::Error>,
    },
}

/// A data directory that is looked at. It holds the directory's lock, so that no node starts on it meanwhile.
pub struct Archive {
    dir: PathBuf,
    node: NodeId,
    position: [u8; 32],
    groups: BTreeMap<GroupKey, RecoveredGroup>,
    snapshots: SnapshotStore,
    catalog: Arc<Catalog>,
    store: Store,
}

impl Archive {
    /// Opens the data directory of a stopped node; reads all of its log.
    ///
    /// # Errors
    ///
    /// [`ReplayError::Log`] if it is none, is damaged, or is in use.
    pub fn open(dir: &Path) -> Result<Self, ReplayError> {
        let mut archive = Self::look(dir)?;
        if archive.past(catalog::GROUP).is_ok() {
            archive.learn_catalog()?;
        }
        Ok(archive)
    }

    /// As [`open`](Self::open), without a look at the catalogue.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn look(dir: &Path) -> Result<Self, ReplayError> {
        let vfs: Arc<dyn Vfs> = Arc::new(ReadOnlyVfs::new());
        let identity = Identity::read(&*vfs, dir)?;
        let store = Store::open(&vfs, dir, &identity.cluster, identity.node)?;
        let (_, recovered) = store.open_log(&vfs, LogOptions::default())?;
        let snapshots = SnapshotStore::open_dir(vfs, &store.snapshot_dir())?;
        Ok(Self {
            dir: dir.to_owned(),
            node: NodeId(identity.node),
            position: recovery::position(&recovered),
            groups: recovered
                .groups
                .into_iter()
                .map(|group| (group.key, group))
                .collect(),
            snapshots,
            catalog: Arc::default(),
            store,
        })
    }

    /// Tells the catalogue all that this node has of it.
    ///
    /// # Errors
    ///
    /// As [`Past::replay`].
    pub fn learn_catalog(&mut self) -> Result<(), ReplayError> {
        // What was not known to be committed here may still name the group that is looked for.
        let past = self.past(catalog::GROUP)?;
        let (machine, states) = CatalogMachine::new();
        past.replay(Cast::One(Box::new(machine)), past.last(), &mut |_| ())?;
        let catalog = states.borrow().clone();
        self.catalog = catalog;
        Ok(())
    }

    /// Whose directory it is.
    pub fn identity(&self) -> &Identity {
        self.store.identity()
    }

    /// What is in its log, in short; see [`recovery::position`].
    pub fn position(&self) -> [u8; 32] {
        self.position
    }

    /// The replicas that are here.
    pub fn replicas(&self) -> impl Iterator<Item = &RecoveredGroup> {
        self.groups.values()
    }

    /// Where a replica stands.
    ///
    /// # Errors
    ///
    /// As [`recovery::survey`].
    pub fn survey(&self, group: &RecoveredGroup) -> Result<Survey, RecoveryError> {
        recovery::survey(&self.snapshots, group)
    }

    /// What the node knew of its cluster.
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// The newest life of a group of which there is a replica here.
    ///
    /// # Errors
    ///
    /// [`ReplayError::NoReplica`].
    pub fn past(&self, group: GroupId) -> Result<Past<'_>, ReplayError> {
        let newest = self
            .groups
            .values()
            .rfind(|recovered| recovered.key.group == group.0 && recovered.replica != 0);
        let recovered = newest.ok_or(ReplayError::NoReplica { group })?;
        Ok(Past {
            archive: self,
            recovered,
        })
    }

    /// The bytes of a component that the node keeps.
    ///
    /// # Errors
    ///
    /// [`ReplayError::NoComponent`].
    pub fn component(&self, id: ComponentId) -> Result<Bytes, ReplayError> {
        let path = self.dir.join("components").join(format!("{id}.wasm"));
        match std::fs::read(&path) {
            Ok(bytes) if ComponentId::of(&bytes) == id => Ok(bytes.into()),
            Ok(_) => Err(ReplayError::NoComponent {
                id,
                path,
                source: None,
            }),
            Err(source) => Err(ReplayError::NoComponent {
                id,
                path,
                source: Some(source),
            }),
        }
    }
}

/// The context in which a group's machine begins.
pub fn genesis(group: &GroupRecord) -> EntryContext {
    skep_server::components::machines::genesis(group)
}

/// The retained past of one group.
pub struct Past<'a> {
    archive: &'a Archive,
    recovered: &'a RecoveredGroup,
}

/// The machines that are told a past.
pub enum Cast<'a> {
    /// One throughout, at the start of its group.
    One(Box<dyn StateMachine>),
    /// At each place the one that the group ran there.
    Many {
        /// What the group was created with.
        founding: Deployment,
        /// Makes them.
        factory: &'a dyn MachineFactory,
    },
}

/// Something the machine was told, and what it said.
#[derive(Clone, PartialEq, Debug)]
pub struct Happened {
    /// Index, term and stamp of the entry.
    pub context: EntryContext,
    /// What it was.
    pub what: What,
    /// Fuel it used; 0 for native machines.
    pub fuel: u64,
}

/// What a machine can be told.
#[derive(Clone, PartialEq, Debug)]
pub enum What {
    /// It was rebuilt from a snapshot: where the replay begins.
    Restored {
        /// What the section is.
        form: Form,
        /// Bytes of the machine's section.
        bytes: u64,
        /// The component that wrote it.
        component: ComponentId,
    },
    /// Its group began.
    Init {
        /// The configuration.
        config: Bytes,
        /// What it said.
        outcome: Outcome,
    },
    /// Commands of one entry. Those that a session had seen before are not among them: the machine never met them.
    Commands(Vec<(Bytes, Outcome)>),
    /// The membership changed.
    Change {
        /// How.
        change: ConfChange,
        /// What it said.
        outcome: Outcome,
    },
    /// Another node leads.
    Leader(LeaderChanged),
    /// The group was to go on with this component, and a later entry has decided.
    Activated {
        /// Which.
        component: ComponentId,
        /// An empty reply, or why it goes on with what it ran.
        outcome: Outcome,
    },
    /// It saved itself and was rebuilt from that, or left an image of its memory.
    Barrier {
        /// Which of these.
        form: Form,
        /// sha256 and number of the bytes, or what it said instead.
        saved: Result<Digested, String>,
        /// Whether the node's own snapshot of this index holds the same bytes, if it is still there.
        as_on_disk: Option<bool>,
    },
}

/// The state of a machine, in short.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Digested {
    /// sha256 of what `save` wrote.
    pub sha256: [u8; 32],
    /// Bytes of it.
    pub bytes: u64,
}

impl Past<'_> {
    /// The group.
    pub fn group(&self) -> GroupId {
        GroupId(self.recovered.key.group)
    }

    /// The life of the group.
    pub fn incarnation(&self) -> Incarnation {
        Incarnation(self.recovered.key.incarnation)
    }

    /// The last entry that this node knew to be committed. What came right after it may have been committed as well: a
    /// commit index that moves alone is not written down.
    pub fn committed(&self) -> LogIndex {
        LogIndex(self.recovered.hard_state.commit)
    }

    /// The last entry in the log, committed or not.
    pub fn last(&self) -> LogIndex {
        LogIndex(self.recovered.truncated.index + self.recovered.entries.len() as u64)
    }

    /// The first index whose state can be rebuilt: that of the oldest snapshot the log follows on, or 0.
    ///
    /// # Errors
    ///
    /// [`ReplayError::Log`] if the snapshots cannot be listed.
    pub fn first(&self) -> Result<LogIndex, ReplayError> {
        if self.recovered.truncated.index == 0 {
            return Ok(LogIndex(0));
        }
        let first = self.snapshots()?.into_iter().next();
        Ok(first.map_or(self.last(), |name| LogIndex(name.position.index)))
    }

    /// Tells the machines everything up to and including entry `until`, beginning with the newest usable snapshot. `visit`
    /// sees each thing as it happens. Answers the machine as it is then.
    ///
    /// # Errors
    ///
    /// [`ReplayError`]: the index is not retained, or a machine could not be run. What a machine answers is never one.
    pub fn replay(
        &self,
        cast: Cast<'_>,
        until: LogIndex,
        visit: &mut dyn FnMut(Happened),
    ) -> Result<Box<dyn StateMachine>, ReplayError> {
        let base = self.base(until)?;
        let snapshot = match &base {
            Some(file) => Some(Stored {
                form: file.meta().form,
                schema: file.meta().schema,
                guest: file.guest()?,
            }),
            None => None,
        };
        let wrote = base.as_ref().map(|file| ComponentId(file.meta().component));
        let mut recovered = self.recovered.clone();
        recovered.hard_state.commit = until.0;
        let kept = until.0.saturating_sub(recovered.truncated.index) as usize;
        let later = recovered
            .entries
            .split_off(kept.min(recovered.entries.len()));
        recovered.snapshot = base.as_ref().map(|file| file.mark().clone());
        let state = base.as_ref().map(|file| file.meta().state.clone());
        let mut config = GroupConfig::new(self.group(), self.incarnation(), self.archive.node);
        let (driver, factory) = match cast {
            Cast::One(machine) => (Driver::new(machine), None),
            Cast::Many { founding, factory } => {
                config.deployment = Some(founding.clone());
                let first = factory.make(&founding);
                let first = first.map_err(|error| ReplayError::Machine {
                    index: LogIndex(0),
                    source: error.into(),
                })?;
                let driver = Driver::exchangeable(first, founding.clone(), founding);
                (driver, Some(factory))
            }
        };
        let mut group = Group::recover(config, convert::recovered(recovered, state)?)?;
        // Whether a command was given up is decided behind it.
        group.foresee(&convert::entries(self.recovered.key, later)?);
        Telling {
            past: self,
            group,
            driver,
            shelf: Shelf { snapshot, factory },
            teller: Teller {
                wrote: wrote.unwrap_or_default(),
                lack: None,
                visit,
            },
        }
        .run()
    }

    /// Snapshots that the log follows on, oldest first.
    fn snapshots(&self) -> Result<Vec<skep_log::SnapshotName>, ReplayError> {
        let mut names = self.archive.snapshots.list()?;
        names.retain(|name| {
            name.key == self.recovered.key
                && name.position.index >= self.recovered.truncated.index
                && name.position.index <= self.last().0
        });
        names.sort_unstable_by_key(|name| name.position.index);
        Ok(names)
    }

    /// The newest snapshot at or below `until` that can be read; `None` is the start of the group.
    fn base(&self, until: LogIndex) -> Result<Option<SnapshotFile>, ReplayError> {
        let (first, last) = (self.first()?, self.last());
        if until < first || until > last {
            return Err(ReplayError::NotRetained {
                index: until,
                first,
                last,
            });
        }
        let mut trouble = None;
        for name in self.snapshots()?.into_iter().rev() {
            if name.position.index > until.0 {
                continue;
            }
            let snapshots = &self.archive.snapshots;
            match snapshots.verify(&snapshots.path(name.key, name.position)) {
                Ok(file) => return Ok(Some(file)),
                Err(error) => trouble = Some(error),
            }
        }
        match trouble {
            Some(error) if self.recovered.truncated.index > 0 => Err(error.into()),
            _ => Ok(None),
        }
    }

    /// The node's own snapshot at this index, if it is there.
    fn on_disk(&self, index: LogIndex, term: Term) -> Option<SnapshotFile> {
        let position = skep_log::LogPosition {
            index: index.0,
            term: term.0,
        };
        let snapshots = &self.archive.snapshots;
        let path = snapshots.path(self.recovered.key, position);
        path.exists()
            .then(|| snapshots.verify(&path).ok())
            .flatten()
    }
}

/// The state of a machine at the context of its last entry.
///
/// # Errors
///
/// [`MachineError`], if it cannot be saved.
pub fn digest(
    machine: &mut dyn StateMachine,
    context: &EntryContext,
) -> Result<Digested, MachineError> {
    let mut bytes = Vec::new();
    machine.save(context, &mut bytes).to_end()?;
    Ok(Digested::of(&bytes))
}

impl Digested {
    fn of(bytes: &[u8]) -> Self {
        Self {
            sha256: Sha256::digest(bytes).into(),
            bytes: bytes.len() as u64,
        }
    }
}
