//! `wasi:cli`: leaving, and the standard streams.

use skep_core::outcome::GuestFault;
use wasmtime::component::LinkerInstance;

use super::io::{STDERR, STDOUT};
use crate::wasm::fault::Stop;
use crate::wasm::world::handles::Origin;
use crate::wasm::world::resources::{InputStream, OutputStream};
use crate::wasm::world::{Caller, World, charge, define};

pub(super) fn exit(linker: &mut LinkerInstance<'_, World>) -> wasmtime::Result<()> {
    define(
        linker,
        "exit",
        |_: Caller<'_>, (_,): (Result<(), ()>,)| -> wasmtime::Result<()> {
            Err(Stop::Fault(GuestFault::Exit).into())
        },
    )?;
    define(
        linker,
        "exit-with-code",
        |_: Caller<'_>, (_,): (u8,)| -> wasmtime::Result<()> {
            Err(Stop::Fault(GuestFault::Exit).into())
        },
    )
}

pub(super) fn stdin(
    linker: &mut LinkerInstance<'_, World>,
    origin: Origin,
) -> wasmtime::Result<()> {
    define(linker, "get-stdin", move |mut guest: Caller<'_>, ()| {
        charge(&mut guest, 0)?;
        Ok((guest.data_mut().handles.give::<InputStream>(origin, 0),))
    })
}

pub(super) fn stdout(
    linker: &mut LinkerInstance<'_, World>,
    origin: Origin,
) -> wasmtime::Result<()> {
    define(linker, "get-stdout", move |mut guest: Caller<'_>, ()| {
        charge(&mut guest, 0)?;
        Ok((guest
            .data_mut()
            .handles
            .give::<OutputStream>(origin, STDOUT),))
    })
}

pub(super) fn stderr(
    linker: &mut LinkerInstance<'_, World>,
    origin: Origin,
) -> wasmtime::Result<()> {
    define(linker, "get-stderr", move |mut guest: Caller<'_>, ()| {
        charge(&mut guest, 0)?;
        Ok((guest
            .data_mut()
            .handles
            .give::<OutputStream>(origin, STDERR),))
    })
}
