//! What the host keeps beside one instance: its limits, its virtual time and randomness, its log lines, and the ends
//! of the snapshot that is being moved.

pub(super) mod clock;
pub(super) mod handles;
pub(super) mod imports;
pub(super) mod kept;
pub(super) mod limits;
pub(super) mod log;
pub(super) mod logbook;
pub(super) mod pollables;
pub(super) mod random;
pub(super) mod resources;
pub(super) mod sink;
pub(super) mod slice;
pub(super) mod types;
pub(super) mod wasi;

use std::sync::Arc;

use bytes::Bytes;
use skep_core::outcome::{EntryContext, GuestFault};
use wasmtime::component::{ComponentNamedList, Lift, LinkerInstance, Lower, Resource};
use wasmtime::{AsContextMut, StoreContextMut, Trap};

use self::clock::Clock;
use self::handles::{Handles, Origin};
use self::limits::Limits;
use self::log::Log;
use self::logbook::Logbook;
use self::pollables::Pollables;
use self::random::{CallKey, Random};
use self::resources::Pollable;
use self::sink::Sink;
use self::slice::{Pause, Slice};
use crate::wasm::fault::Stop;
use skep_types::profile::Profile;

/// Fuel of one call of an import, so that a guest cannot make the host work for nothing.
const FUEL_PER_IMPORT: u64 = 100;

/// Bytes the host moves or prints for one unit of fuel.
const BYTES_PER_FUEL: u64 = 4;

/// What an import is called with: the store of the guest that calls.
pub(crate) type Caller<'a> = StoreContextMut<'a, World>;

/// The data of a guest's store.
#[derive(Debug)]
pub(crate) struct World {
    slice: Slice,
    pub(crate) limits: Limits,
    pub(crate) clock: Clock,
    pub(crate) random: Random,
    pub(crate) seed: (u64, u64),
    pub(crate) log: Log,
    pub(crate) pollables: Pollables,
    pub(crate) handles: Handles,
    pub(crate) sink: Option<Sink>,
    pub(crate) source: Option<Bytes>,
}

impl World {
    /// The world of an instance that starts at `context`.
    pub(crate) fn new(
        limits: Limits,
        profile: &Profile,
        context: &EntryContext,
        logbook: Arc<Logbook>,
    ) -> Self {
        let key = CallKey::new(context, "instantiate", 0);
        let mut clock = Clock::default();
        clock.enter(context.now);
        Self {
            slice: Slice::first(profile.snapshot_fuel),
            limits,
            clock,
            random: Random::new(key),
            seed: key.seed(),
            log: Log::new(logbook, profile.log_bytes as usize),
            pollables: Pollables::default(),
            handles: Handles::default(),
            sink: None,
            source: None,
        }
    }

    /// Before each call into the guest.
    pub(crate) fn enter(
        &mut self,
        context: &EntryContext,
        call: &'static str,
        ordinal: u32,
        fuel: u64,
    ) {
        self.slice = Slice::first(fuel);
        self.limits.enter();
        self.clock.enter(context.now);
        self.random = Random::new(CallKey::new(context, call, ordinal));
    }

    /// A handle for what the guest waits for, given by this import.
    pub(crate) fn subscribe(
        &mut self,
        origin: Origin,
        instant: u64,
    ) -> Result<Resource<Pollable>, Stop> {
        let pollable = self.pollables.push(instant)?;
        Ok(self.handles.give(origin, pollable))
    }

    /// Which of the pollables a handle is for.
    pub(crate) fn pollable(&self, handle: &Resource<Pollable>) -> Result<u32, Stop> {
        let known = self.handles.thing(handle);
        known.ok_or(Stop::Fault(GuestFault::Malformed))
    }

    /// The guest has given a pollable back.
    pub(crate) fn forget_pollable(&mut self, number: u32) {
        if let Some(pollable) = self.handles.take_back(number) {
            self.pollables.remove(pollable);
        }
    }

    /// Becomes as the world of another instance is, in all that a guest can see between calls.
    pub(crate) fn follow(&mut self, of: &Self) {
        self.clock.clone_from(&of.clock);
        self.pollables.clone_from(&of.pollables);
        self.seed = of.seed;
    }

    /// After each import: lets others go first if it is time for that.
    pub(crate) fn pause(&mut self) -> Pause {
        let sink_is_full = self.sink.as_ref().is_some_and(Sink::is_full);
        Pause(self.slice.take_end() || sink_is_full)
    }

    /// After each call, however it ended.
    pub(crate) fn leave(&mut self) {
        self.log.finish();
        self.sink = None;
        self.source = None;
        self.handles.end_call();
    }
}

/// What is to be done when a guest gives back a handle that means nothing to the host.
pub(crate) fn taken_back(mut guest: Caller<'_>, number: u32) -> wasmtime::Result<()> {
    guest.data_mut().handles.take_back(number);
    Ok(())
}

/// Takes the fuel of one import that moves `bytes`.
pub(crate) fn charge(caller: &mut Caller<'_>, bytes: u64) -> wasmtime::Result<()> {
    spend(caller, bytes / BYTES_PER_FUEL)
}

/// Takes the fuel of one import, and as much more as what it does is worth.
pub(crate) fn spend(caller: &mut Caller<'_>, more: u64) -> wasmtime::Result<()> {
    let cost = FUEL_PER_IMPORT.saturating_add(more);
    let found = caller.get_fuel()?;
    match found.checked_sub(cost) {
        Some(left) => {
            caller.data_mut().slice.spend(found, left);
            caller.set_fuel(left)
        }
        None => {
            caller.set_fuel(0)?;
            Err(Trap::OutOfFuel.into())
        }
    }
}

/// Defines a function that a guest imports. Behind it the guest lets others go first, if it is time for that.
pub(crate) fn define<P, R>(
    linker: &mut LinkerInstance<'_, World>,
    name: &str,
    run: impl Fn(Caller<'_>, P) -> wasmtime::Result<R> + Send + Sync + 'static,
) -> wasmtime::Result<()>
where
    P: ComponentNamedList + Lift + 'static,
    R: ComponentNamedList + Lower + 'static,
{
    linker.func_wrap_async(name, move |mut guest: Caller<'_>, parameters: P| {
        let ran = run(guest.as_context_mut(), parameters);
        let pause = guest.data_mut().pause();
        Box::new(async move {
            pause.await;
            ran
        })
    })
}
