//! From the bytes of a component to a running machine, off the data path.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, Weak};

use bytes::Bytes;
use sha2::{Digest, Sha256};
use skep::DiskRoom;
use skep::clock;
use skep::status::Rehearsal;
use skep::{Extent, Rehearsable};
use skep_core::id::{ComponentId, LogIndex, Term};
use skep_core::outcome::EntryContext;
use skep_machine::StateMachine;
use skep_machine::wasm::{
    APPLY_THREAD_STACK_BYTES, Cache, Compiler, Component, ComponentError, Engine, Found, Holdings,
    MachineBudget, MachineLabel, Profile, Purpose, Refusal, WasmMachine,
};
use skep_types::shared::lock;
use tokio::sync::{OwnedMutexGuard, Semaphore};

use crate::catalog::GroupRecord;
use crate::error::HostError;

/// Makes machines; one for a node. Components are compiled one at a time, so that a restart with many of them leaves
/// the cores to the groups that run already, and each is compiled once for all groups that use it. What was compiled before
/// waits for none of that.
///
/// How long one compilation takes is its compiler's to bound. What became of it is in the cache, for whoever asks again.
pub struct Machines {
    engine: Engine,
    cache: Arc<Cache>,
    compiler: Arc<dyn Compiler>,
    /// Those in use; the machines own them, so a component nobody runs is dropped.
    compiled: Mutex<HashMap<ComponentId, Weak<Component>>>,
    /// Whose turn it is with each component that is asked for.
    turns: Mutex<HashMap<ComponentId, Weak<tokio::sync::Mutex<()>>>>,
    compiling: Arc<Semaphore>,
    /// One machine is rehearsed at a time: each holds a whole state, and a core for as long as its fuel lasts.
    rehearsing: Arc<Semaphore>,
}

impl Machines {
    /// Opens the cache of compiled artefacts in a directory.
    /// `room` is asked before anything is kept in it; `most` is what all machines of the node may hold together.
    pub fn open(
        cache: PathBuf,
        compiler: Arc<dyn Compiler>,
        room: Option<Arc<DiskRoom>>,
        most: Holdings,
    ) -> Result<Self, HostError> {
        let mut cache = Cache::open(cache)?;
        if let Some(room) = room {
            cache.keep_only_if(move |bytes| room.check(bytes).map_err(io::Error::other));
        }
        Ok(Self {
            engine: Engine::with_budget(most)?,
            cache: Arc::new(cache),
            compiler,
            compiled: Mutex::default(),
            turns: Mutex::default(),
            compiling: Arc::new(Semaphore::new(1)),
            rehearsing: Arc::new(Semaphore::new(1)),
        })
    }

    /// What the machines hold together, and may.
    pub fn budget(&self) -> &Arc<MachineBudget> {
        self.engine.budget()
    }

    /// The component of this name, in bytes that were found to be it, compiled; takes seconds for a large one that is not in the cache. Whatever is begun goes on
    /// if nobody waits any more.
    ///
    /// # Errors
    /// [`HostError::Component`]; [`HostError::CompileLate`] if others were before it for as long as one may take.
    pub async fn component(
        &self,
        id: ComponentId,
        bytes: Bytes,
    ) -> Result<Arc<Component>, HostError> {
        self.component_for(id, bytes, Purpose::New).await
    }

    /// As [`component`](Self::component), for this purpose: describing itself is a start too.
    ///
    /// # Errors
    /// As [`component`](Self::component).
    pub async fn component_for(
        &self,
        id: ComponentId,
        bytes: Bytes,
        purpose: Purpose,
    ) -> Result<Arc<Component>, HostError> {
        let engine = self.engine.made_for(purpose);
        let turn = self.turn(id).await;
        if let Some(component) = self.in_use(id) {
            return Ok(component);
        }
        let (of, cache, for_look_up) = (bytes.clone(), self.cache.clone(), engine.clone());
        let look_up = move || (Component::look_up(&for_look_up, &of, &cache), turn);
        let (found, turn) = on_own_thread("skep-look-up", look_up).await?;
        let inspection = match found? {
            Found::Compiled(component) => return Ok(self.keep(*component)),
            Found::Inspected(inspection) => inspection,
        };
        let allowance = self.compiler.allowance();
        let refusal = self.cache.refusal(&self.engine, id);
        if let Some(refusal) = refusal.filter(|of| of.stands(clock::now(), &allowance)) {
            return Err(ComponentError::from(refusal.error).into());
        }
        let place = Arc::clone(&self.compiling).acquire_owned();
        let place = clock::timeout(allowance.time(), place)
            .await
            .ok_or(HostError::CompileLate {
                component: id,
                milliseconds: allowance.milliseconds,
            })?
            .map_err(|error| HostError::Internal(error.to_string()))?;
        let (cache, compiler) = (self.cache.clone(), self.compiler.clone());
        let build = move || {
            let _place = place;
            let built = Component::build(&engine, &bytes, inspection, &cache, &*compiler);
            if let Err(ComponentError::NotCompiled(error)) = &built {
                let refusal = Refusal {
                    error: error.clone(),
                    attempts: 1,
                    under: allowance,
                    at: clock::now(),
                };
                tracing::warn!(component = %id, %error, "a component is not compiled");
                cache.refuse(&engine, id, refusal);
            }
            (built, turn)
        };
        // Whoever waits for it finds it in use.
        let (built, _turn) = on_own_thread("skep-compile", build).await?;
        Ok(self.keep(built?))
    }

    fn in_use(&self, id: ComponentId) -> Option<Arc<Component>> {
        lock(&self.compiled).get(&id).and_then(Weak::upgrade)
    }

    fn keep(&self, component: Component) -> Arc<Component> {
        let component = Arc::new(component);
        let mut compiled = lock(&self.compiled);
        compiled.retain(|_, component| component.strong_count() > 0);
        compiled.insert(component.id(), Arc::downgrade(&component));
        component
    }

    /// Waits until nobody else is busy with this component.
    async fn turn(&self, id: ComponentId) -> OwnedMutexGuard<()> {
        let turn = {
            let mut turns = lock(&self.turns);
            turns.retain(|_, turn| turn.strong_count() > 0);
            match turns.get(&id).and_then(Weak::upgrade) {
                Some(turn) => turn,
                None => {
                    let turn = Arc::default();
                    turns.insert(id, Arc::downgrade(&turn));
                    turn
                }
            }
        };
        turn.lock_owned().await
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
        purpose: Purpose,
    ) -> Result<Box<dyn StateMachine>, HostError> {
        let genesis = genesis(group);
        let profile = profile.clone();
        let label = MachineLabel {
            group: group.id,
            name: group.name.clone(),
        };
        let make = move || WasmMachine::start(component, profile, genesis, label, purpose);
        Ok(Box::new(on_own_thread("skep-instantiate", make).await??))
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
        let started = self.start(group, profile, component, Purpose::New).await;
        let machine = match started {
            Ok(machine) => machine,
            Err(HostError::Machine(error)) => {
                let verdict = Rehearsable::refusal::<()>(Err(error))?.unwrap_or_default();
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
        Ok(on_own_thread("skep-rehearse", run).await??)
    }
}

/// What a machine sees before the first entry: a function of the group's life, so that all replicas start equal.
pub fn genesis(group: &GroupRecord) -> EntryContext {
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

/// Runs what reads or compiles a component, or runs a guest off the data path, on a thread of its own: each may take long, and the
/// compiler a large stack.
async fn on_own_thread<T: Send + 'static>(
    name: &str,
    run: impl FnOnce() -> T + Send + 'static,
) -> Result<T, HostError> {
    let (done, result) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name(name.to_owned())
        .stack_size(APPLY_THREAD_STACK_BYTES)
        // Nobody waits any more if this cannot be sent.
        .spawn(move || drop(done.send(run())))
        .map_err(|source| skep::Error::Start {
            what: "a thread for a machine",
            source,
        })?;
    result
        .await
        .map_err(|_| HostError::Internal(format!("the thread {name} panicked")))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use skep_machine::wasm::{Allowance, CompileError, InProcess};

    use super::*;

    /// Does what it is told to, one answer for each time that it is asked.
    struct Told {
        asked: AtomicUsize,
        answers: Mutex<mpsc::Receiver<Option<CompileError>>>,
        allowance: Allowance,
    }

    // SAFETY: code comes from the one that is in this process.
    unsafe impl Compiler for Told {
        fn compile(&self, engine: &Engine, component: &[u8]) -> Result<Vec<u8>, CompileError> {
            self.asked.fetch_add(1, Ordering::SeqCst);
            match self.answers.lock().unwrap().recv().unwrap() {
                Some(error) => Err(error),
                None => InProcess.compile(engine, component),
            }
        }

        fn allowance(&self) -> Allowance {
            self.allowance
        }
    }

    fn told(memory_bytes: u64) -> (Arc<Told>, mpsc::Sender<Option<CompileError>>) {
        let (answer, answers) = mpsc::channel();
        let told = Told {
            asked: AtomicUsize::new(0),
            answers: Mutex::new(answers),
            allowance: Allowance {
                memory_bytes,
                milliseconds: 60_000,
            },
        };
        (Arc::new(told), answer)
    }

    fn open(dir: &tempfile::TempDir, compiler: &Arc<Told>) -> Machines {
        let most = Holdings::of_this_system();
        Machines::open(dir.path().join("compiled"), compiler.clone(), None, most).unwrap()
    }

    #[tokio::test]
    async fn what_takes_too_much_is_not_tried_again_after_a_restart_unless_more_is_allowed() {
        let dir = tempfile::tempdir().unwrap();
        let component = Bytes::from_static(skep_examples::KV);
        let id = ComponentId::of(&component);
        let (compiler, answer) = told(1000);
        answer
            .send(Some(CompileError::Memory { limit: 1000 }))
            .unwrap();
        for _ in 0..2 {
            let machines = open(&dir, &compiler);
            let refused = machines.component(id, component.clone()).await.unwrap_err();
            assert_eq!(refused.code().name(), "compile-too-costly");
            assert!(!refused.is_retryable());
            assert_eq!(machines.cached().unwrap(), [id].into());
        }
        assert_eq!(compiler.asked.load(Ordering::SeqCst), 1);
        let (compiler, answer) = told(1001);
        answer.send(None).unwrap();
        let machines = open(&dir, &compiler);
        machines.component(id, component).await.unwrap();
        machines.forget(id).unwrap();
        assert_eq!(machines.cached().unwrap(), [].into());
    }

    #[tokio::test]
    async fn what_was_the_nodes_own_trouble_is_tried_again_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let (compiler, answer) = told(1000);
        let machines = open(&dir, &compiler);
        answer
            .send(Some(CompileError::Local("no process".into())))
            .unwrap();
        answer.send(None).unwrap();
        let component = Bytes::from_static(skep_examples::KV);
        let id = ComponentId::of(&component);
        let failed = machines.component(id, component.clone()).await.unwrap_err();
        assert_eq!(failed.code().name(), "compiler-unavailable");
        assert!(failed.is_retryable());
        machines.component(id, component).await.unwrap();
    }

    #[tokio::test]
    async fn code_that_is_there_does_not_wait_for_what_is_being_compiled() {
        let dir = tempfile::tempdir().unwrap();
        let (compiler, answer) = told(1000);
        let machines = Arc::new(open(&dir, &compiler));
        let of = |bytes: &Bytes| ComponentId::of(bytes);
        let kv = Bytes::from_static(skep_examples::KV);
        answer.send(None).unwrap();
        drop(machines.component(of(&kv), kv.clone()).await.unwrap());
        // The same machine under another name: a custom section says nothing.
        let other = Bytes::from([skep_examples::KV, &[0, 2, 1, b'x']].concat());
        let slow = tokio::spawn({
            let (machines, other) = (machines.clone(), other.clone());
            async move { machines.component(of(&other), other).await }
        });
        while compiler.asked.load(Ordering::SeqCst) < 2 {
            tokio::task::yield_now().await;
        }
        machines.component(of(&kv), kv).await.unwrap();
        // Nobody waits any more, and it goes on: whoever asks again finds it done.
        slow.abort();
        answer.send(None).unwrap();
        machines.component(of(&other), other).await.unwrap();
        assert_eq!(compiler.asked.load(Ordering::SeqCst), 2);
    }
}
