//! `wasi:cli`: leaving, and the standard streams.

use skep_core::outcome::GuestFault;
use wasmtime::component::{LinkerInstance, Resource};

use super::io::{InputStream, OutputStream, STDERR, STDOUT};
use crate::wasm::fault::Stop;
use crate::wasm::host::{Guest, Host};

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
    linker.func_wrap("get-stdin", |_: Guest<'_>, ()| {
        Ok((Resource::<InputStream>::new_own(0),))
    })
}

pub(super) fn stdout(linker: &mut LinkerInstance<'_, Host>) -> wasmtime::Result<()> {
    linker.func_wrap("get-stdout", |_: Guest<'_>, ()| {
        Ok((Resource::<OutputStream>::new_own(STDOUT),))
    })
}

pub(super) fn stderr(linker: &mut LinkerInstance<'_, Host>) -> wasmtime::Result<()> {
    linker.func_wrap("get-stderr", |_: Guest<'_>, ()| {
        Ok((Resource::<OutputStream>::new_own(STDERR),))
    })
}
