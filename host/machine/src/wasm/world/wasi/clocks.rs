//! `wasi:clocks`: the stamp of the entry being applied.

use wasmtime::component::{ComponentType, LinkerInstance, Lower, Resource};

use crate::wasm::world::handles::Origin;
use crate::wasm::world::resources::Pollable;
use crate::wasm::world::{Caller, World, charge, define};

const NANOSECONDS: u64 = 1_000_000_000;

/// What the clocks claim to tell apart. Readings inside one entry are a nanosecond apart.
const RESOLUTION: u64 = 1;

#[derive(Clone, Copy, ComponentType, Lower)]
#[component(record)]
struct Datetime {
    seconds: u64,
    nanoseconds: u32,
}

impl Datetime {
    fn of(nanoseconds: u64) -> Self {
        Self {
            seconds: nanoseconds / NANOSECONDS,
            nanoseconds: (nanoseconds % NANOSECONDS) as u32,
        }
    }
}

pub(super) fn wall(linker: &mut LinkerInstance<'_, World>) -> wasmtime::Result<()> {
    define(linker, "now", |mut guest: Caller<'_>, ()| {
        charge(&mut guest, 0)?;
        Ok((Datetime::of(guest.data_mut().clock.read()),))
    })?;
    define(linker, "resolution", |mut guest: Caller<'_>, ()| {
        charge(&mut guest, 0)?;
        Ok((Datetime::of(RESOLUTION),))
    })
}

pub(super) fn monotonic(
    linker: &mut LinkerInstance<'_, World>,
    origin: Origin,
) -> wasmtime::Result<()> {
    define(linker, "now", |mut guest: Caller<'_>, ()| {
        charge(&mut guest, 0)?;
        Ok((guest.data_mut().clock.read(),))
    })?;
    define(linker, "resolution", |mut guest: Caller<'_>, ()| {
        charge(&mut guest, 0)?;
        Ok((RESOLUTION,))
    })?;
    define(
        linker,
        "subscribe-instant",
        move |mut guest: Caller<'_>, (instant,): (u64,)| {
            subscribe(&mut guest, origin, instant).map(|pollable| (pollable,))
        },
    )?;
    define(
        linker,
        "subscribe-duration",
        move |mut guest: Caller<'_>, (duration,): (u64,)| {
            let instant = guest.data().clock.peek().saturating_add(duration);
            subscribe(&mut guest, origin, instant).map(|pollable| (pollable,))
        },
    )
}

fn subscribe(
    guest: &mut Caller<'_>,
    origin: Origin,
    instant: u64,
) -> wasmtime::Result<Resource<Pollable>> {
    charge(guest, 0)?;
    Ok(guest.data_mut().subscribe(origin, instant)?)
}
