//! From the bytes of a component to a running machine, off the data path.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use sha2::{Digest, Sha256};
use skep_core::id::{ComponentId, LogIndex, Term};
use skep_core::outcome::EntryContext;
use skep_machine::StateMachine;
use skep_machine::wasm::{
    APPLY_THREAD_STACK_BYTES, Cache, Component, Engine, Holdings, MachineBudget, MachineLabel,
    Profile, WasmMachine,
};
use tokio::sync::Semaphore;

use crate::catalog::GroupRecord;
use crate::clock;
use crate::host_error::HostError;
use crate::status::Rehearsal;
use crate::worker::{Extent, Rehearsable, refusal};

/// Compilations that may be under way, late ones included: what components that take for ever can hold, in threads of one
/// core each.
const COMPILING_MAX: usize = 3;

/// Makes machines; one for a node. Components are compiled one at a time, so that a restart with many of them leaves
/// the cores to the groups that run already, and each is compiled once for all groups that use it.
///
/// A compilation has a deadline. One that is late cannot be ended: it is refused, its thread goes on beside the next one, and
/// if it ends after all, its code is in the cache for whoever asks again.
pub struct Machines {
    engine: Engine,
    cache: Arc<Cache>,
    /// Those in use; the machines own them, so a component nobody runs is dropped.
    compiled: tokio::sync::Mutex<HashMap<ComponentId, Weak<Component>>>,
    compile_within: Duration,
    /// What is being compiled, in time or late.
    compiling: Arc<Mutex<BTreeSet<ComponentId>>>,
    /// One machine is rehearsed at a time: each holds a whole state, and a core for as long as its fuel lasts.
    rehearsing: Arc<Semaphore>,
}

impl Machines {
    /// Opens the cache of compiled artefacts in a directory. `compile_within` is for one component.
    /// `most` is what all machines of the node may hold together.
    pub fn open(
        cache: PathBuf,
        compile_within: Duration,
        most: Holdings,
    ) -> Result<Self, HostError> {
        Ok(Self {
            engine: Engine::with_budget(most)?,
            cache: Arc::new(Cache::open(cache)?),
            compiled: Default::default(),
            compile_within,
            compiling: Arc::default(),
            rehearsing: Arc::new(Semaphore::new(1)),
        })
    }

    /// What the machines hold together, and may.
    pub fn budget(&self) -> &Arc<MachineBudget> {
        self.engine.budget()
    }

    /// The component in these bytes, compiled; takes seconds for a large one that is not in the cache.
    ///
    /// # Errors
    /// [`HostError::Component`]; [`HostError::CompileLate`] after the deadline, and as long as it goes on nevertheless.
    pub async fn component(&self, bytes: Bytes) -> Result<Arc<Component>, HostError> {
        let id = ComponentId::of(&bytes);
        let mut compiled = self.compiled.lock().await;
        if let Some(component) = compiled.get(&id).and_then(Weak::upgrade) {
            return Ok(component);
        }
        let (engine, cache) = (self.engine.clone(), self.cache.clone());
        let late = || HostError::CompileLate {
            component: id,
            milliseconds: u64::try_from(self.compile_within.as_millis()).unwrap_or(u64::MAX),
        };
        let place = Compiling::begin(&self.compiling, id).ok_or_else(late)?;
        let load = move || {
            let _place = place;
            Component::load(&engine, &bytes, &cache).map(Arc::new)
        };
        let compilation = on_guest_stack("skep-compile", load);
        let component = clock::timeout(self.compile_within, compilation)
            .await
            .ok_or_else(late)???;
        compiled.retain(|_, component| component.strong_count() > 0);
        compiled.insert(id, Arc::downgrade(&component));
        Ok(component)
    }

    /// The components that compiled code is kept of.
    pub fn cached(&self) -> Result<BTreeSet<ComponentId>, HostError> {
        Ok(self.cache.ids()?)
    }

    /// Deletes the compiled code of a component from the disk. Machines that run go on.
    pub fn forget(&self, id: ComponentId) -> Result<(), HostError> {
        Ok(self.cache.remove(id)?)
    }

    /// The machine of a group in its initial state, the same on every member.
    pub async fn start(
        &self,
        group: &GroupRecord,
        profile: &Profile,
        component: Arc<Component>,
    ) -> Result<Box<dyn StateMachine>, HostError> {
        let genesis = genesis(group);
        let profile = profile.clone();
        let label = MachineLabel {
            group: group.id,
            name: group.name.clone(),
        };
        let make = move || WasmMachine::new(component, profile, genesis, label);
        Ok(Box::new(on_guest_stack("skep-instantiate", make).await??))
    }

    /// Tries the machine of a group on what another did. It runs on to its end although nobody waits any more.
    pub(crate) async fn rehearse(
        &self,
        group: &GroupRecord,
        profile: &Profile,
        component: Arc<Component>,
        past: Rehearsable,
        extent: Extent,
    ) -> Result<Rehearsal, HostError> {
        let permit = Arc::clone(&self.rehearsing).acquire_owned();
        let permit = permit
            .await
            .map_err(|error| HostError::Internal(error.to_string()))?;
        let machine = match self.start(group, profile, component).await {
            Ok(machine) => machine,
            Err(HostError::Machine(error)) => {
                let verdict = refusal(Err(error))?.unwrap_or_default();
                return Ok(Rehearsal {
                    verdict,
                    ..Rehearsal::default()
                });
            }
            Err(error) => return Err(error),
        };
        let run = move || {
            let _permit = permit;
            past.run(machine, extent)
        };
        Ok(on_guest_stack("skep-rehearse", run).await??)
    }
}

/// A place among what is being compiled, until it is dropped.
struct Compiling {
    all: Arc<Mutex<BTreeSet<ComponentId>>>,
    id: ComponentId,
}

impl Compiling {
    /// None if the component is being compiled already, or too many are.
    fn begin(all: &Arc<Mutex<BTreeSet<ComponentId>>>, id: ComponentId) -> Option<Self> {
        let mut under_way = all.lock().unwrap_or_else(PoisonError::into_inner);
        (under_way.len() < COMPILING_MAX && under_way.insert(id)).then(|| Self {
            all: Arc::clone(all),
            id,
        })
    }
}

impl Drop for Compiling {
    fn drop(&mut self) {
        let mut under_way = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        under_way.remove(&self.id);
    }
}

/// What a machine sees before the first entry: a function of the group's life, so that all replicas start equal.
pub(crate) fn genesis(group: &GroupRecord) -> EntryContext {
    let mut hash = Sha256::new();
    hash.update(b"skep genesis");
    hash.update(group.id.0.to_le_bytes());
    hash.update(group.incarnation.0.to_le_bytes());
    let mut entropy = [0; 16];
    entropy.copy_from_slice(&hash.finalize()[..16]);
    EntryContext {
        index: LogIndex(0),
        term: Term(0),
        now: 0,
        entropy,
    }
}

/// Runs what may enter a guest on a thread whose stack is as large as a guest's may grow.
async fn on_guest_stack<T: Send + 'static>(
    name: &str,
    run: impl FnOnce() -> T + Send + 'static,
) -> Result<T, HostError> {
    let (done, result) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name(name.to_owned())
        .stack_size(APPLY_THREAD_STACK_BYTES)
        // Nobody waits any more if this cannot be sent.
        .spawn(move || drop(done.send(run())))
        .map_err(|source| crate::Error::Start {
            what: "a thread for a machine",
            source,
        })?;
    result
        .await
        .map_err(|_| HostError::Internal(format!("the thread {name} panicked")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_late_compilation_is_refused_and_its_code_is_there_when_it_ends() {
        let dir = tempfile::tempdir().unwrap();
        let most = Holdings::of_this_system();
        let machines =
            Machines::open(dir.path().to_owned(), Duration::from_millis(1), most).unwrap();
        let component = Bytes::from_static(skep_examples::KV);
        let id = ComponentId::of(&component);
        let refused = machines.component(component.clone()).await.unwrap_err();
        assert!(matches!(refused, HostError::CompileLate { component, .. } if component == id));
        // Asked again, it is not begun again.
        let again = machines.component(component.clone()).await.unwrap_err();
        assert_eq!(again.code(), "compile-late");
        while !machines.compiling.lock().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
        assert_eq!(machines.cached().unwrap(), [id].into());
        let patient = Machines::open(dir.path().to_owned(), Duration::from_secs(60), most).unwrap();
        patient.component(component).await.unwrap();
        patient.forget(id).unwrap();
        assert_eq!(patient.cached().unwrap(), [].into());
    }

    #[test]
    fn what_is_late_is_bounded() {
        let all = Arc::default();
        let ids = |n: usize| ComponentId::of(&n.to_le_bytes());
        let places: Vec<_> = (0..COMPILING_MAX)
            .map(|n| Compiling::begin(&all, ids(n)).unwrap())
            .collect();
        assert!(Compiling::begin(&all, ids(COMPILING_MAX)).is_none());
        drop(places);
        assert!(Compiling::begin(&all, ids(COMPILING_MAX)).is_some());
    }
}
