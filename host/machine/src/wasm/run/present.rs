//! The instance that has a machine's present state, and who may use it when.

use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use skep_types::shared::lock;
use tokio::sync::{Mutex, OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

use super::checkpoint::{Checkpoint, Checkpoints, is_large};
use super::fork::Fork;
use super::instance::Instance;
use super::journal::{Journal, Moment};
use super::rebuild::{Guest, go_back, rebuild};
use crate::wasm::fault::Failure;
use crate::wasm::memory::Captured;
use crate::wasm::world::kept::Kept;
use crate::wasm::world::logbook::MachineLabel;

/// None while it has to be built again. Forks look at it one after the other, and run beside each other.
type Place = Mutex<Option<Instance>>;

/// Nothing of the log runs in the instance as long as this is held.
pub(crate) type Reading = OwnedRwLockReadGuard<Place>;

/// What a machine shares with its readers.
///
/// The entries of a log have the instance for themselves. Between entries its forks run, any number at once, from memory that is
/// the instance's. Whoever comes first is first: neither a storm of queries nor one of commands keeps the others out.
pub(crate) struct Present {
    pub(crate) guest: Guest,
    pub(crate) journal: Arc<Journal>,
    instance: Arc<RwLock<Place>>,
    /// Of whoever has the instance for himself.
    pub(super) checkpoints: std::sync::Mutex<Checkpoints>,
    rebuilds: AtomicU64,
    /// Of these, from a checkpoint.
    returns: AtomicU64,
    /// It was said that queries are not answered by forks.
    said: AtomicBool,
}

impl Present {
    pub(crate) fn new(guest: Guest, journal: Journal, instance: Instance) -> Self {
        Self {
            guest,
            journal: Arc::new(journal),
            instance: Arc::new(RwLock::new(Mutex::new(Some(instance)))),
            checkpoints: std::sync::Mutex::default(),
            rebuilds: AtomicU64::new(0),
            returns: AtomicU64::new(0),
            said: AtomicBool::new(false),
        }
    }

    /// Takes the instance for an entry, once no fork runs.
    pub(crate) async fn writing(&self) -> OwnedRwLockWriteGuard<Place> {
        Arc::clone(&self.instance).write_owned().await
    }

    /// This fork, or a new one, as the machine is now; none if the machine cannot be forked.
    pub(crate) async fn forked(
        &self,
        fork: Option<Fork>,
    ) -> Result<Option<(Fork, Reading)>, Failure> {
        loop {
            let reading = Arc::clone(&self.instance).read_owned().await;
            let mut instance = reading.lock().await;
            let Some(machine) = &mut *instance else {
                drop(instance);
                drop(reading);
                self.build_again().await?;
                continue;
            };
            if !machine.can_be_forked() {
                // Where memories are not the host's own, the engine has said so.
                if !machine.memories().is_empty() {
                    self.say_unforked(
                        "it holds handles of this node's that another instance of it cannot be given",
                    );
                }
                return Ok(None);
            }
            let start = self.journal.start();
            let fork = Fork::current(fork, machine, &self.guest, &start).await?;
            drop(instance);
            return Ok(Some((fork, reading)));
        }
    }

    /// Says, once, that queries are answered by a second instance, and why.
    pub(crate) fn say_unforked(&self, why: impl Display) {
        if self.said.swap(true, Relaxed) {
            return;
        }
        let MachineLabel { group, name } = &self.guest.logbook.label;
        tracing::info!(
            target: "skep::machine", %group, machine = %name,
            "queries are answered by a second instance of the machine, which may see what the log did not do, because {why}"
        );
    }

    /// Begins copies of the instance's memories as they are at this moment; with what the host keeps beside them. If it `stays`,
    /// that is a checkpoint, and otherwise there is none any more. After an error nobody knows what the instance is.
    pub(crate) async fn capture(
        &self,
        instance: &mut Instance,
        stays: bool,
    ) -> Result<(Moment, Vec<Captured>, Kept), Failure> {
        self.journal.settle();
        let moment = self.journal.moment();
        let (captured, kept) = instance.capture().await?;
        let checkpoint = stays.then(|| {
            let copies = self.guest.component.linked().copies();
            Checkpoint::new(moment, &captured, kept.clone(), copies)
        });
        lock(&self.checkpoints).put(checkpoint);
        Ok((moment, captured, kept))
    }

    /// The machine can go back to what the instance is now, if another instance can be made so. After an error nobody knows what
    /// it is.
    pub(crate) async fn keep(&self, instance: &mut Instance) -> Result<(), Failure> {
        match instance.can_be_forked() {
            true => self.capture(instance, true).await.map(drop),
            false => Ok(()),
        }
    }

    /// An entry has come to its end: the instance is kept as it is, if it is time for that. None if nobody knows what it is then.
    pub(crate) async fn pass(&self, now: Moment, mut instance: Instance) -> Option<Instance> {
        // An image of now would have to wait for the one that is being written.
        if !lock(&self.checkpoints).is_due(now) || instance.is_read() {
            return Some(instance);
        }
        match self.keep(&mut instance).await {
            Ok(()) => Some(instance),
            Err(failure) => {
                self.warn(
                    "its instance is built again, for it could not be kept",
                    &failure,
                );
                None
            }
        }
    }

    /// The machine has begun at another base. After an error nobody knows what the instance is.
    pub(crate) async fn begin(&self, instance: &mut Instance) -> Result<(), Failure> {
        lock(&self.checkpoints).begin(self.journal.moment());
        match is_large(instance) {
            true => self.keep(instance).await,
            false => Ok(()),
        }
    }

    /// The instance that the machine would have if none of its calls had failed.
    pub(crate) async fn rebuild(&self) -> Result<Instance, Failure> {
        self.rebuilds.fetch_add(1, Relaxed);
        // Rare, and larger than what is not.
        let mut instance = Box::pin(self.build()).await?;
        match self.keep(&mut instance).await {
            Ok(()) => Ok(instance),
            Err(failure) => {
                self.warn(
                    "its instance is built once more, for it could not be kept",
                    &failure,
                );
                Box::pin(self.build()).await
            }
        }
    }

    async fn build(&self) -> Result<Instance, Failure> {
        let (guest, journal) = (&self.guest, &self.journal);
        let checkpoint = lock(&self.checkpoints).take();
        if let Some(checkpoint) = checkpoint {
            match go_back(guest, journal, checkpoint).await {
                Ok(instance) => {
                    self.returns.fetch_add(1, Relaxed);
                    return Ok(instance);
                }
                Err(failure) => self.warn(
                    "it cannot go back to what it was a short while ago, and is built from its base",
                    &failure,
                ),
            }
        }
        rebuild(guest, journal).await
    }

    fn warn(&self, what: &str, failure: &Failure) {
        let MachineLabel { group, name } = &self.guest.logbook.label;
        tracing::warn!(target: "skep::machine", %group, machine = %name, ?failure, "{what}");
    }

    /// How often it was built.
    pub(crate) fn rebuilds(&self) -> u64 {
        self.rebuilds.load(Relaxed)
    }

    /// How often it went back to a checkpoint.
    pub(crate) fn returns(&self) -> u64 {
        self.returns.load(Relaxed)
    }

    /// The journal goes over to its next base, unless somebody has the instance, and may build it: who has it next does it then.
    pub(crate) fn settle(&self) {
        if let Ok(_writing) = Arc::clone(&self.instance).try_write_owned() {
            self.journal.settle();
        }
    }

    async fn build_again(&self) -> Result<(), Failure> {
        let mut writing = self.writing().await;
        let instance = writing.get_mut();
        if instance.is_none() {
            *instance = Some(self.rebuild().await?);
        }
        Ok(())
    }
}
