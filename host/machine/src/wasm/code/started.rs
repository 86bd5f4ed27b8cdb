//! A component that was started: one instance, and the way into its exports.

use std::sync::Arc;

use skep_core::outcome::{EntryContext, GuestFault};
use wasmtime::Store;
use wasmtime::component::{ComponentExportIndex, ComponentNamedList, Func, Lift, Lower, Resource};

use super::freeze::{FREEZE, THAW};
use super::linked::{HandleFunctions, Image, Linked, unmapped};
use crate::LocalCode;
use crate::wasm::engine::budget::Purpose;
use crate::wasm::fault::Failure;
use crate::wasm::memory::{Capture, Captured, Given, Keeper, Memory, Watched, collecting, running};
use crate::wasm::world::World;
use crate::wasm::world::handles::{Handles, KEEPS_A_PLACE, Origin, Step};
use crate::wasm::world::limits::Limits;
use crate::wasm::world::logbook::Logbook;
use crate::wasm::world::resources::{LentSink, LentSource};
use crate::wasm::world::slice::Slice;
use crate::wasm::world::types::{Answer, Change, Context, Descriptor, Rejection, StatusChange};
use skep_types::profile::Profile;

/// Handles of resources alive at once in one instance.
const MAX_HANDLES: usize = 1024;

/// Bytes that any call may give back, or pass to an import, beside a reply: twice what an output stream takes at once.
pub(crate) const CALL_OVERHEAD: usize = 128 << 10;

/// Fuel for one image module's function, which is nobody's: growing a memory to all that it may be takes 17 million.
const IMAGE_FUEL: u64 = 1 << 40;

/// A store with one instance in it. After a failed call it is dead: drop it.
pub(crate) struct Started {
    store: Store<World>,
    functions: Functions,
    /// Those of its image modules; none if it has no images.
    images: Vec<Image<Func>>,
    /// What has handles of each import given and taken back, where that can be done.
    handle_functions: Vec<Option<HandleFunctions<Func>>>,
    memories: Arc<[Arc<Memory>]>,
    /// Copies of them that are being taken.
    captures: Vec<Arc<Capture>>,
    /// Its memories are those of another instance, as long as nothing else is written to them.
    is_fork: bool,
    /// Nothing was called since its globals were written down.
    is_frozen: bool,
    /// A call has failed, or was dropped before its end: what is in the store means nothing any more.
    dead: bool,
}

/// The functions that a machine exports.
#[derive(Clone, Copy)]
pub(crate) struct Functions {
    pub(crate) describe: Func,
    pub(crate) apply: Func,
    pub(crate) save: Func,
    pub(crate) restore: Func,
    pub(crate) apply_conf_change: Func,
    pub(crate) process_status_change: Func,
    pub(crate) init: Option<Func>,
    pub(crate) query: Option<Func>,
    pub(crate) apply_batch: Option<Func>,
}

impl Started {
    /// Starts an instance under `context`, which decides its clock and its seeds.
    pub(crate) async fn new(
        linked: &Linked,
        profile: &Profile,
        context: &EntryContext,
        logbook: &Arc<Logbook>,
        purpose: Purpose,
    ) -> Result<Self, Failure> {
        let share = linked.share(profile, purpose)?;
        let engine = linked.pre().engine();
        let mut store = Store::new(
            engine,
            World::new(
                Limits::new(profile, linked.scopes(), linked.images(), share),
                profile,
                context,
                Arc::clone(logbook),
            ),
        );
        store.limiter(|world| &mut world.limits);
        Slice::watch(&mut store)?;
        store.set_max_component_handles(MAX_HANDLES);
        store.set_hostcall_fuel(CALL_OVERHEAD);
        store.set_fuel(profile.snapshot_fuel)?;
        let mut memories = Vec::new();
        let start = linked.pre().instantiate_async(&mut store);
        let started = collecting(&mut memories, start).await;
        store.data_mut().leave();
        let instance = started.map_err(|error| match Failure::of(&error) {
            Failure::Local {
                code: LocalCode::UnexpectedError,
                reason,
            } if store.data().limits.refused() => Failure::guest(GuestFault::Limit, reason),
            other if store.data().limits.memory_refused() => other.for_want_of_memory(),
            other => other,
        })?;
        let exports = linked.exports();
        let function = |store: &mut Store<World>, export: &ComponentExportIndex| {
            instance
                .get_func(store, export)
                .ok_or_else(|| Failure::local(LocalCode::Missing, "an export has gone"))
        };
        let optional = |store: &mut Store<World>, export: &Option<ComponentExportIndex>| {
            export
                .as_ref()
                .map(|export| function(store, export))
                .transpose()
        };
        let functions = Functions {
            describe: function(&mut store, &exports.describe)?,
            apply: function(&mut store, &exports.apply)?,
            save: function(&mut store, &exports.save)?,
            restore: function(&mut store, &exports.restore)?,
            apply_conf_change: function(&mut store, &exports.apply_conf_change)?,
            process_status_change: function(&mut store, &exports.process_status_change)?,
            init: optional(&mut store, &exports.init)?,
            query: optional(&mut store, &exports.query)?,
            apply_batch: optional(&mut store, &exports.apply_batch)?,
        };
        let images = exports
            .images
            .iter()
            .map(|image| {
                Ok(Image {
                    freeze: function(&mut store, &image.freeze)?,
                    thaw: function(&mut store, &image.thaw)?,
                })
            })
            .collect::<Result<_, Failure>>()?;
        let takes = exports.handle_functions.iter().map(|takes| {
            let Some(HandleFunctions { give, take_back }) = takes else {
                return Ok(None);
            };
            Ok(Some(HandleFunctions {
                give: function(&mut store, give)?,
                take_back: function(&mut store, take_back)?,
            }))
        });
        let takes = takes.collect::<Result<_, Failure>>()?;
        Ok(Self {
            store,
            functions,
            images,
            handle_functions: takes,
            memories: linked.settled(memories)?,
            captures: Vec::new(),
            is_fork: false,
            is_frozen: false,
            dead: false,
        })
    }

    /// Whether every export has the type of `skep:machine`.
    pub(super) fn check_types(&self) -> wasmtime::Result<()> {
        fn check<P, R>(
            store: &Store<World>,
            name: &str,
            function: Option<Func>,
        ) -> wasmtime::Result<()>
        where
            P: ComponentNamedList + Lower,
            R: ComponentNamedList + Lift,
        {
            let Some(function) = function else {
                return Ok(());
            };
            function
                .typed::<P, R>(store)
                .map_err(|error| error.context(format!("the export `{name}`")))
                .map(|_| ())
        }
        let (store, functions) = (&self.store, &self.functions);
        check::<(), (Descriptor,)>(store, "describe", Some(functions.describe))?;
        check::<(Context, &[u8]), Answer<Vec<u8>>>(store, "apply", Some(functions.apply))?;
        check::<(Resource<LentSink>,), Answer<()>>(store, "save", Some(functions.save))?;
        check::<(u32, Resource<LentSource>), Answer<()>>(
            store,
            "restore",
            Some(functions.restore),
        )?;
        check::<(Context, Change), Answer<()>>(
            store,
            "apply-conf-change",
            Some(functions.apply_conf_change),
        )?;
        check::<(Context, StatusChange), ()>(
            store,
            "process-status-change",
            Some(functions.process_status_change),
        )?;
        check::<(Context, &[u8]), Answer<()>>(store, "init", functions.init)?;
        check::<(Context, &[u8]), Answer<Vec<u8>>>(store, "query", functions.query)?;
        check::<(Context, &[&[u8]]), (Vec<Result<Vec<u8>, Rejection>>,)>(
            store,
            "apply-batch",
            functions.apply_batch,
        )?;
        self.images.iter().try_for_each(|image| {
            check::<(), ()>(store, FREEZE, Some(image.freeze))?;
            check::<(), ()>(store, THAW, Some(image.thaw))
        })?;
        self.handle_functions
            .iter()
            .flatten()
            .try_for_each(|takes| {
                check::<(), (u32,)>(store, "skep-give", Some(takes.give))?;
                check::<(u32,), ()>(store, "skep-take", Some(takes.take_back))
            })
    }

    pub(crate) fn functions(&self) -> &Functions {
        &self.functions
    }

    pub(crate) fn world(&self) -> &World {
        self.store.data()
    }

    pub(crate) fn world_mut(&mut self) -> &mut World {
        self.store.data_mut()
    }

    /// Fuel that the last call left.
    pub(crate) fn fuel_left(&self) -> Result<u64, Failure> {
        Ok(self.store.get_fuel()?)
    }

    /// Prepares the next call: its clock and randomness, its fuel, and the bytes that may pass between guest and host.
    pub(crate) fn enter(
        &mut self,
        context: &EntryContext,
        call: &'static str,
        ordinal: u32,
        fuel: u64,
        room: usize,
    ) -> Result<(), Failure> {
        self.is_alive()?;
        self.is_frozen = false;
        self.store.set_fuel(fuel)?;
        self.store.set_hostcall_fuel(room);
        self.store.data_mut().enter(context, call, ordinal, fuel);
        Ok(())
    }

    fn is_alive(&self) -> Result<(), Failure> {
        match self.dead {
            false => Ok(()),
            true => {
                let reason = "the instance has failed before";
                Err(Failure::local(LocalCode::Missing, reason))
            }
        }
    }

    /// Has the machine's globals and the sizes of its memories written into the memories of its image modules. Neither the guest
    /// nor the fuel of its calls can tell.
    pub(crate) async fn freeze(&mut self) -> Result<(), Failure> {
        if !self.is_frozen {
            self.call_images(|image| image.freeze).await?;
            self.is_frozen = true;
        }
        Ok(())
    }

    /// Sets the machine's globals to what is in the memories of its image modules, and grows its memories to the sizes that
    /// stand there, also those that the host has made smaller; what is in them is the host's to bring.
    pub(crate) async fn thaw(&mut self) -> Result<(), Failure> {
        self.call_images(|image| image.thaw).await
    }

    async fn call_images(&mut self, function: fn(&Image<Func>) -> Func) -> Result<(), Failure> {
        if self.images.is_empty() {
            let reason = "the machine has no images";
            return Err(Failure::local(LocalCode::Missing, reason));
        }
        self.is_alive()?;
        for image in 0..self.images.len() {
            let function = function(&self.images[image]);
            self.store.set_fuel(IMAGE_FUEL)?;
            let call = self.call::<(), ()>(function, ());
            call.await.map_err(Failure::made_local)?;
        }
        Ok(())
    }

    /// Has the guest's handles become those of another instance of the same component.
    pub(crate) async fn follow_handles(&mut self, of: &Handles) -> Result<(), Failure> {
        let own = &self.world().handles;
        if own == of {
            return Ok(());
        }
        let Some(keeper) = self.handle_functions.iter().position(Option::is_some) else {
            return match own.are_none() && of.are_none() {
                true => Ok(()),
                false => Err(differs("its handles cannot be given to it")),
            };
        };
        let steps = own.steps_to(of, keeper as Origin);
        self.store.set_fuel(IMAGE_FUEL)?;
        for step in steps {
            self.step(step).await?;
        }
        self.world_mut().handles.clone_from(of);
        Ok(())
    }

    async fn step(&mut self, step: Step) -> Result<(), Failure> {
        match step {
            Step::Give { origin, number, at } => {
                let stands_at = self.give_handle(origin, number).await?;
                if stands_at != at {
                    self.dead = true;
                    return Err(differs(&format!(
                        "a handle stands at place {stands_at} of its table, and should at {at}: wasmtime keeps that table in another way than this host knows"
                    )));
                }
                Ok(())
            }
            Step::TakeBack { origin, at } => self.take_handle_back(origin, at).await,
        }
    }

    /// Finds out where the guest's handles stand, if that is not known. Where that cannot be found out, it stays so. Nothing changes
    /// for the guest: what is given last is taken back first.
    pub(crate) async fn settle_handles(&mut self) -> Result<(), Failure> {
        let keeper = self.handle_functions.iter().position(Option::is_some);
        let (Some(count), Some(keeper)) = (self.world().handles.unsettled(), keeper) else {
            return Ok(());
        };
        let keeper = keeper as Origin;
        self.store.set_fuel(IMAGE_FUEL)?;
        let mut places = Vec::with_capacity(count);
        for _ in 0..count {
            places.push(self.give_handle(keeper, KEEPS_A_PLACE).await?);
        }
        for at in places.iter().rev() {
            self.take_handle_back(keeper, *at).await?;
        }
        self.world_mut().handles.found(&places);
        Ok(())
    }

    /// Gives the guest a handle of this number, and says where it stands.
    async fn give_handle(&mut self, origin: Origin, number: u32) -> Result<u32, Failure> {
        let HandleFunctions { give, .. } = self.functions_of(origin)?;
        self.world_mut().handles.follow(number);
        let call = self.call::<(), (u32,)>(give, ());
        let (handle,) = call.await.map_err(Failure::made_local)?;
        // A guest knows it by the number of its place and 1 more: 0 is none.
        Ok(handle - 1)
    }

    async fn take_handle_back(&mut self, origin: Origin, at: u32) -> Result<(), Failure> {
        let HandleFunctions { take_back, .. } = self.functions_of(origin)?;
        self.world_mut().handles.follow(KEEPS_A_PLACE);
        let call = self.call::<(u32,), ()>(take_back, (at + 1,));
        call.await.map_err(Failure::made_local)
    }

    fn functions_of(&self, origin: Origin) -> Result<HandleFunctions<Func>, Failure> {
        let functions = self.handle_functions.get(origin as usize);
        let functions = functions.copied().flatten();
        functions.ok_or_else(|| differs("it has a handle that cannot be given"))
    }

    /// Whether another instance can be made to be as this one is.
    pub(crate) fn can_be_forked(&self) -> bool {
        // Without memories of the host's there is nothing to share.
        !self.images.is_empty() && !self.memories.is_empty() && self.handles_can_be_had()
    }

    fn handles_can_be_had(&self) -> bool {
        let gives =
            |origin| (self.handle_functions.get(origin as usize)).is_some_and(Option::is_some);
        let handles = &self.world().handles;
        handles.are_none()
            || (0..self.handle_functions.len() as Origin).any(gives) && handles.can_be_had(gives)
    }

    pub(crate) fn memories(&self) -> &Arc<[Arc<Memory>]> {
        &self.memories
    }

    /// Goes over to the memories of another instance of the same component.
    pub(crate) fn fork_of(&mut self, of: &Self) -> Result<(), Failure> {
        for (own, other) in self.memories.iter().zip(&of.memories[..]) {
            own.fork_of(other).map_err(unmapped)?;
        }
        self.is_fork = true;
        self.store.data_mut().limits.fork();
        Ok(())
    }

    /// Becomes what the other instance is, that this one is a fork of.
    pub(crate) async fn follow(&mut self, of: &mut Self) -> Result<(), Failure> {
        // A call that did not end must find no memory smaller than it was.
        self.is_alive()?;
        of.freeze().await?;
        for (own, other) in self.memories.iter().zip(&of.memories[..]) {
            own.follow(other).map_err(unmapped)?;
        }
        self.follow_handles(&of.world().handles).await?;
        self.world_mut().follow(of.world());
        self.world_mut().limits.follow(&of.world().limits);
        self.thaw().await?;
        let mut pairs = self.memories.iter().zip(&of.memories[..]);
        debug_assert!(pairs.all(|(own, other)| own.is_like(other)));
        Ok(())
    }

    /// Makes the other instance, that this one is a fork of, what this one is.
    pub(crate) async fn lead(&mut self, to: &mut Self) -> Result<(), Failure> {
        self.freeze().await?;
        let others = Arc::clone(&to.memories);
        let give = |what| {
            let mut pairs = self.memories.iter().zip(&others[..]);
            pairs.try_for_each(|(own, other)| own.give(other, what).map_err(unmapped))
        };
        give(Given::Written)?;
        to.follow_handles(&self.world().handles).await?;
        to.thaw().await?;
        give(Given::Grown)?;
        to.world_mut().follow(self.world());
        to.is_frozen = true;
        Ok(())
    }

    /// Begins copies of its memories as they are now; calls go on meanwhile.
    pub(crate) fn capture(&mut self) -> Result<Vec<Captured>, Failure> {
        let captured = self.memories.iter().map(|memory| memory.capture());
        // Those that have begun are dropped if one cannot.
        let captured = captured.collect::<Result<Vec<_>, _>>().map_err(unmapped)?;
        let captures = captured
            .iter()
            .map(|captured| Arc::clone(captured.capture()));
        self.captures = captures.collect();
        Ok(captured)
    }

    /// Whether somebody still reads copies of its memories.
    pub(crate) fn is_read(&self) -> bool {
        self.captures.iter().any(|capture| capture.is_read())
    }

    /// Goes over to what the memories of another instance of the same component were, which is used no more; it must be thawed.
    pub(crate) fn take_over(&self, were: &[Keeper]) -> Result<(), Failure> {
        if self.memories.len() != were.len() {
            return Err(differs("it has other memories"));
        }
        let mut pairs = self.memories.iter().zip(were);
        pairs.try_for_each(|(memory, was)| memory.take_over(was).map_err(unmapped))
    }

    /// Calls an export. Once that has failed, or was dropped before its end, there are no further calls.
    pub(crate) async fn call<P, R>(&mut self, function: Func, arguments: P) -> Result<R, Failure>
    where
        P: ComponentNamedList + Lower,
        R: ComponentNamedList + Lift + 'static,
    {
        self.dead = true;
        let result = match function.typed::<P, R>(&self.store) {
            Ok(function) => {
                self.captures.retain(|capture| !capture.is_over());
                let forks: &[_] = if self.is_fork { &self.memories } else { &[] };
                let captures = &self.captures[..];
                let watched = Watched { forks, captures };
                let call = function.call_async(&mut self.store, arguments);
                running(watched, call).await
            }
            Err(error) => Err(error),
        };
        self.store.data_mut().leave();
        self.dead = result.is_err();
        result.map_err(|error| {
            let failure = Failure::of(&error);
            match self.store.data().limits.memory_refused() {
                true => failure.for_want_of_memory(),
                false => failure,
            }
        })
    }
}

fn differs(what: &str) -> Failure {
    Failure::local(
        LocalCode::Differs,
        format!("an instance cannot become as another one: {what}"),
    )
}
