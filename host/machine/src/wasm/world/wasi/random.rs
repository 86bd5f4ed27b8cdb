//! `wasi:random`: streams keyed by the entry.

use skep_core::outcome::GuestFault;
use wasmtime::component::LinkerInstance;

use crate::wasm::fault::Stop;
use crate::wasm::world::random::{MAX_RANDOM_BYTES, Stream};
use crate::wasm::world::{Caller, World, charge, define, spend};

/// Fuel of one byte of randomness: a hash of 64 bytes makes 32 of them, which takes a core some 10 ns for each where it has
/// no instructions for that.
const FUEL_PER_RANDOM_BYTE: u64 = 8;

pub(super) fn random(linker: &mut LinkerInstance<'_, World>) -> wasmtime::Result<()> {
    define(
        linker,
        "get-random-bytes",
        |guest: Caller<'_>, (len,): (u64,)| bytes(guest, len, |world| world.random.secure()),
    )?;
    define(linker, "get-random-u64", |guest: Caller<'_>, ()| {
        word(guest, |world| world.random.secure())
    })
}

pub(super) fn insecure(linker: &mut LinkerInstance<'_, World>) -> wasmtime::Result<()> {
    define(
        linker,
        "get-insecure-random-bytes",
        |guest: Caller<'_>, (len,): (u64,)| bytes(guest, len, |world| world.random.insecure()),
    )?;
    define(
        linker,
        "get-insecure-random-u64",
        |guest: Caller<'_>, ()| word(guest, |world| world.random.insecure()),
    )
}

pub(super) fn insecure_seed(linker: &mut LinkerInstance<'_, World>) -> wasmtime::Result<()> {
    define(linker, "insecure-seed", |mut guest: Caller<'_>, ()| {
        charge(&mut guest, 0)?;
        Ok((guest.data().seed,))
    })
}

/// As many random bytes as the guest asks for, from one stream.
pub(crate) fn bytes(
    mut guest: Caller<'_>,
    len: u64,
    stream: impl Fn(&mut World) -> &mut Stream,
) -> wasmtime::Result<(Vec<u8>,)> {
    if len > MAX_RANDOM_BYTES {
        return Err(Stop::Fault(GuestFault::Limit).into());
    }
    spend(&mut guest, len * FUEL_PER_RANDOM_BYTE)?;
    Ok((stream(guest.data_mut()).bytes(len as usize),))
}

/// Eight of them, as a number.
pub(crate) fn word(
    mut guest: Caller<'_>,
    stream: impl Fn(&mut World) -> &mut Stream,
) -> wasmtime::Result<(u64,)> {
    spend(&mut guest, 8 * FUEL_PER_RANDOM_BYTE)?;
    Ok((stream(guest.data_mut()).next_u64(),))
}
