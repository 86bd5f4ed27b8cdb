//! `wasi:cli`: leaving, and the standard streams.

use skep_core::outcome::GuestFault;
use wasmtime::component::LinkerInstance;

use super::io::{STDERR, STDOUT};
use crate::wasm::fault::Stop;
use crate::wasm::world::resources::{InputStream, OutputStream};
use crate::wasm::world::{Caller, World, charge};

pub(super) fn exit(linker: &mut LinkerInstance<'_, World>) -> wasmtime::Result<()> {
    linker.func_wrap(
        "exit",
        |_: Caller<'_>, (_,): (Result<(), ()>,)| -> wasmtime::Result<()> {
            Err(Stop::Fault(GuestFault::Exit).into())
        },
    )?;
    linker.func_wrap(
        "exit-with-code",
        |_: Caller<'_>, (_,): (u8,)| -> wasmtime::Result<()> {
            Err(Stop::Fault(GuestFault::Exit).into())
        },
    )
}

pub(super) fn stdin(linker: &mut LinkerInstance<'_, World>) -> wasmtime::Result<()> {
    linker.func_wrap("get-stdin", |mut guest: Caller<'_>, ()| {
        charge(&mut guest, 0)?;
        Ok((guest.data_mut().handles.give::<InputStream>(0),))
    })
}

pub(super) fn stdout(linker: &mut LinkerInstance<'_, World>) -> wasmtime::Result<()> {
    linker.func_wrap("get-stdout", |mut guest: Caller<'_>, ()| {
        charge(&mut guest, 0)?;
        Ok((guest.data_mut().handles.give::<OutputStream>(STDOUT),))
    })
}

pub(super) fn stderr(linker: &mut LinkerInstance<'_, World>) -> wasmtime::Result<()> {
    linker.func_wrap("get-stderr", |mut guest: Caller<'_>, ()| {
        charge(&mut guest, 0)?;
        Ok((guest.data_mut().handles.give::<OutputStream>(STDERR),))
    })
}
