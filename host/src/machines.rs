//! From the bytes of a component to a running machine, off the data path.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Weak};

use bytes::Bytes;
use sha2::{Digest, Sha256};
use skep_core::id::{ComponentId, LogIndex, Term};
use skep_core::outcome::EntryContext;
use skep_machine::StateMachine;
use skep_machine::wasm::{
    APPLY_THREAD_STACK_BYTES, Cache, Component, Engine, MachineLabel, Profile, WasmMachine,
};
use tokio::sync::Semaphore;

use crate::catalog::GroupRecord;
use crate::host_error::HostError;
use crate::status::Rehearsal;
use crate::worker::{Extent, Rehearsable, refusal};

/// Makes machines; one for a node. Components are compiled one at a time, so that a restart with many of them leaves
/// the cores to the groups that run already, and each is compiled once for all groups that use it.
pub struct Machines {
    engine: Engine,
    cache: Arc<Cache>,
    /// Those in use; the machines own them, so a component nobody runs is dropped.
    compiled: tokio::sync::Mutex<HashMap<ComponentId, Weak<Component>>>,
    /// One machine is rehearsed at a time: each holds a whole state, and a core for as long as its fuel lasts.
    rehearsing: Arc<Semaphore>,
}

impl Machines {
    /// Opens the cache of compiled artefacts in a directory.
    pub fn open(cache: PathBuf) -> Result<Self, HostError> {
        Ok(Self {
            engine: Engine::new()?,
            cache: Arc::new(Cache::open(cache)?),
            compiled: Default::default(),
            rehearsing: Arc::new(Semaphore::new(1)),
        })
    }

    /// The component in these bytes, compiled; takes seconds for a large one that is not in the cache.
    pub async fn component(&self, bytes: Bytes) -> Result<Arc<Component>, HostError> {
        let id = ComponentId::of(&bytes);
        let mut compiled = self.compiled.lock().await;
        if let Some(component) = compiled.get(&id).and_then(Weak::upgrade) {
            return Ok(component);
        }
        let (engine, cache) = (self.engine.clone(), self.cache.clone());
        let load = move || Component::load(&engine, &bytes, &cache).map(Arc::new);
        let component = on_guest_stack("skep-compile", load).await??;
        compiled.retain(|_, component| component.strong_count() > 0);
        compiled.insert(id, Arc::downgrade(&component));
        Ok(component)
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
