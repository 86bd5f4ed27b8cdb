//! `wasi:random`: streams keyed by the entry.

use skep_core::outcome::GuestFault;
use wasmtime::component::LinkerInstance;

use crate::wasm::fault::Stop;
use crate::wasm::host::{Guest, Host, charge};
use crate::wasm::random::{MAX_RANDOM_BYTES, Stream};

pub(super) fn random(linker: &mut LinkerInstance<'_, Host>) -> wasmtime::Result<()> {
    linker.func_wrap("get-random-bytes", |guest: Guest<'_>, (len,): (u64,)| {
        bytes(guest, len, |host| host.random.secure())
    })?;
    linker.func_wrap("get-random-u64", |guest: Guest<'_>, ()| {
        word(guest, |host| host.random.secure())
    })
}

pub(super) fn insecure(linker: &mut LinkerInstance<'_, Host>) -> wasmtime::Result<()> {
    linker.func_wrap(
        "get-insecure-random-bytes",
        |guest: Guest<'_>, (len,): (u64,)| bytes(guest, len, |host| host.random.insecure()),
    )?;
    linker.func_wrap("get-insecure-random-u64", |guest: Guest<'_>, ()| {
        word(guest, |host| host.random.insecure())
    })
}

pub(super) fn insecure_seed(linker: &mut LinkerInstance<'_, Host>) -> wasmtime::Result<()> {
    linker.func_wrap("insecure-seed", |guest: Guest<'_>, ()| {
        Ok((guest.data().seed,))
    })
}

/// As many random bytes as the guest asks for, from one stream.
pub(in crate::wasm) fn bytes(
    mut guest: Guest<'_>,
    len: u64,
    stream: impl Fn(&mut Host) -> &mut Stream,
) -> wasmtime::Result<(Vec<u8>,)> {
    if len > MAX_RANDOM_BYTES {
        return Err(Stop::Fault(GuestFault::Limit).into());
    }
    charge(&mut guest, len)?;
    Ok((stream(guest.data_mut()).bytes(len as usize),))
}

/// Eight of them, as a number.
pub(in crate::wasm) fn word(
    mut guest: Guest<'_>,
    stream: impl Fn(&mut Host) -> &mut Stream,
) -> wasmtime::Result<(u64,)> {
    charge(&mut guest, 8)?;
    Ok((stream(guest.data_mut()).next_u64(),))
}
