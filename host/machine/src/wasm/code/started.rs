//! A component that was started: one instance, and the way into its exports.

use std::sync::Arc;

use skep_core::outcome::{EntryContext, GuestFault};
use wasmtime::Store;
use wasmtime::component::{ComponentExportIndex, ComponentNamedList, Func, Lift, Lower, Resource};

use super::linked::Linked;
use crate::LocalCode;
use crate::wasm::engine::budget::Purpose;
use crate::wasm::fault::Failure;
use crate::wasm::world::World;
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

/// A store with one instance in it. After a failed call it is dead: drop it.
pub(crate) struct Started {
    store: Store<World>,
    functions: Functions,
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
                Limits::new(profile, linked.scopes(), share),
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
        let started = linked.pre().instantiate_async(&mut store).await;
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
        Ok(Self {
            store,
            functions,
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
        )
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
        if self.dead {
            return Err(Failure::local(
                LocalCode::Missing,
                "the instance has failed before",
            ));
        }
        self.store.set_fuel(fuel)?;
        self.store.set_hostcall_fuel(room);
        self.store.data_mut().enter(context, call, ordinal, fuel);
        Ok(())
    }

    /// Calls an export. Once that has failed, or was dropped before its end, there are no further calls.
    pub(crate) async fn call<P, R>(&mut self, function: Func, arguments: P) -> Result<R, Failure>
    where
        P: ComponentNamedList + Lower,
        R: ComponentNamedList + Lift + 'static,
    {
        self.dead = true;
        let result = match function.typed::<P, R>(&self.store) {
            Ok(function) => function.call_async(&mut self.store, arguments).await,
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
