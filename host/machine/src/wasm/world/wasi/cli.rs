//! `wasi:cli`: leaving, and the standard streams.

use skep_core::outcome::GuestFault;
use wasmtime::component::{LinkerInstance, Resource};

use super::io::{STDERR, STDOUT};
use crate::wasm::fault::Stop;
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

pub(super) fn stdin(linker: &mut LinkerInstance<'_, World>) -> wasmtime::Result<()> {
    define(linker, "get-stdin", |mut guest: Caller<'_>, ()| {
        charge(&mut guest, 0)?;
        Ok((Resource::<InputStream>::new_own(0),))
    })
}

pub(super) fn stdout(linker: &mut LinkerInstance<'_, World>) -> wasmtime::Result<()> {
    define(linker, "get-stdout", |mut guest: Caller<'_>, ()| {
        charge(&mut guest, 0)?;
        Ok((Resource::<OutputStream>::new_own(STDOUT),))
    })
}

pub(super) fn stderr(linker: &mut LinkerInstance<'_, World>) -> wasmtime::Result<()> {
    define(linker, "get-stderr", |mut guest: Caller<'_>, ()| {
        charge(&mut guest, 0)?;
        Ok((Resource::<OutputStream>::new_own(STDERR),))
    })
}
