//! The instance that has a machine's present state, and who may use it when.

use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use tokio::sync::{Mutex, OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

use super::fork::Fork;
use super::instance::Instance;
use super::journal::Journal;
use super::rebuild::{Guest, rebuild};
use crate::wasm::fault::Failure;
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
    rebuilds: AtomicU64,
    /// It was said that queries are not answered by forks.
    said: AtomicBool,
}

impl Present {
    pub(crate) fn new(guest: Guest, journal: Journal, instance: Instance) -> Self {
        Self {
            guest,
            journal: Arc::new(journal),
            instance: Arc::new(RwLock::new(Mutex::new(Some(instance)))),
            rebuilds: AtomicU64::new(0),
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

    /// The instance that the machine would have if none of its calls had failed.
    pub(crate) async fn rebuild(&self) -> Result<Instance, Failure> {
        self.rebuilds.fetch_add(1, Relaxed);
        // Rare, and larger than what is not.
        Box::pin(rebuild(&self.guest, &self.journal)).await
    }

    /// How often it was built.
    pub(crate) fn rebuilds(&self) -> u64 {
        self.rebuilds.load(Relaxed)
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
