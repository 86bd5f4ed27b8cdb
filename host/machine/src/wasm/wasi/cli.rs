//! `wasi:cli`: leaving, and the standard streams.

use skep_core::outcome::GuestFault;
use wasmtime::component::{LinkerInstance, Resource};

use super::io::{InputStream, OutputStream, STDERR, STDOUT};
use crate::wasm::fault::Stop;
use crate::wasm::host::{Guest, Host, charge};

pub(super) fn exit(linker: &mut LinkerInstance<'_, Host>) -> wasmtime::Result<()> {
    linker.func_wrap(
        "exit",
        |_: Guest<'_>, (_,): (Result<(), ()>,)| -> wasmtime::Result<()> {
            Err(Stop::Fault(GuestFault::Exit).into())
        },
    )?;
    linker.func_wrap(
        "exit-with-code",
        |_: Guest<'_>, (_,): (u8,)| -> wasmtime::Result<()> {
            Err(Stop::Fault(GuestFault::Exit).into())
        },
    )
}

pub(super) fn stdin(linker: &mut LinkerInstance<'_, Host>) -> wasmtime::Result<()> {
    linker.func_wrap("get-stdin", |mut guest: Guest<'_>, ()| {
        charge(&mut guest, 0)?;
        Ok((Resource::<InputStream>::new_own(0),))
    })
}

pub(super) fn stdout(linker: &mut LinkerInstance<'_, Host>) -> wasmtime::Result<()> {
    linker.func_wrap("get-stdout", |mut guest: Guest<'_>, ()| {
        charge(&mut guest, 0)?;
        Ok((Resource::<OutputStream>::new_own(STDOUT),))
    })
}

pub(super) fn stderr(linker: &mut LinkerInstance<'_, Host>) -> wasmtime::Result<()> {
    linker.func_wrap("get-stderr", |mut guest: Guest<'_>, ()| {
        charge(&mut guest, 0)?;
        Ok((Resource::<OutputStream>::new_own(STDERR),))
    })
}
