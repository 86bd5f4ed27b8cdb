//! `wasi:io`: waiting that takes no time, and streams that end in the log.

use wasmtime::component::{ComponentType, LinkerInstance, Lower, Resource, ResourceType};

use crate::wasm::world::handles::Origin;
use crate::wasm::world::resources::{InputStream, IoError, OutputStream, Pollable};
use crate::wasm::world::{Caller, World, charge, define, taken_back};

/// Number of the standard output.
pub(super) const STDOUT: u32 = 1;
/// Number of the standard error.
pub(super) const STDERR: u32 = 2;

/// Bytes an output stream says it can take at once. A constant: it is an input to the guest.
const WRITABLE: u64 = 64 << 10;

#[derive(ComponentType, Lower)]
#[component(variant)]
enum StreamError {
    #[allow(dead_code, reason = "a case of the interface that no stream here uses")]
    #[component(name = "last-operation-failed")]
    LastOperationFailed(Resource<IoError>),
    #[component(name = "closed")]
    Closed,
}

pub(super) fn error(linker: &mut LinkerInstance<'_, World>) -> wasmtime::Result<()> {
    linker.resource("error", ResourceType::host::<IoError>(), taken_back)?;
    define(
        linker,
        "[method]error.to-debug-string",
        |mut guest: Caller<'_>, (_,): (Resource<IoError>,)| {
            charge(&mut guest, 0)?;
            Ok((String::new(),))
        },
    )
}

pub(super) fn poll(linker: &mut LinkerInstance<'_, World>) -> wasmtime::Result<()> {
    linker.resource(
        "pollable",
        ResourceType::host::<Pollable>(),
        |mut guest, number| {
            guest.data_mut().forget_pollable(number);
            Ok(())
        },
    )?;
    define(
        linker,
        "[method]pollable.ready",
        |mut guest: Caller<'_>, (pollable,): (Resource<Pollable>,)| {
            charge(&mut guest, 0)?;
            let world = guest.data();
            let instant = world.pollables.instant(world.pollable(&pollable)?)?;
            Ok((instant <= world.clock.peek(),))
        },
    )?;
    define(
        linker,
        "[method]pollable.block",
        |mut guest: Caller<'_>, (pollable,): (Resource<Pollable>,)| {
            charge(&mut guest, 0)?;
            let world = guest.data_mut();
            let pollable = world.pollable(&pollable)?;
            world.pollables.poll(&mut world.clock, &[pollable])?;
            Ok(())
        },
    )?;
    define(
        linker,
        "poll",
        |mut guest: Caller<'_>, (pollables,): (Vec<Resource<Pollable>>,)| {
            charge(&mut guest, pollables.len() as u64 * 8)?;
            let world = guest.data_mut();
            let numbers = pollables.iter().map(|pollable| world.pollable(pollable));
            let numbers = numbers.collect::<Result<Vec<_>, _>>()?;
            Ok((world.pollables.poll(&mut world.clock, &numbers)?,))
        },
    )
}

pub(super) fn streams(
    linker: &mut LinkerInstance<'_, World>,
    origin: Origin,
) -> wasmtime::Result<()> {
    input(linker, origin)?;
    output(linker, origin)
}

fn input(linker: &mut LinkerInstance<'_, World>, origin: Origin) -> wasmtime::Result<()> {
    linker.resource(
        "input-stream",
        ResourceType::host::<InputStream>(),
        taken_back,
    )?;
    for name in [
        "[method]input-stream.read",
        "[method]input-stream.blocking-read",
    ] {
        define(
            linker,
            name,
            |mut guest: Caller<'_>, (_, _): (Resource<InputStream>, u64)| {
                charge(&mut guest, 0)?;
                Ok((Err::<Vec<u8>, _>(StreamError::Closed),))
            },
        )?;
    }
    for name in [
        "[method]input-stream.skip",
        "[method]input-stream.blocking-skip",
    ] {
        define(
            linker,
            name,
            |mut guest: Caller<'_>, (_, _): (Resource<InputStream>, u64)| {
                charge(&mut guest, 0)?;
                Ok((Err::<u64, _>(StreamError::Closed),))
            },
        )?;
    }
    define(
        linker,
        "[method]input-stream.subscribe",
        move |mut guest: Caller<'_>, (_,): (Resource<InputStream>,)| {
            charge(&mut guest, 0)?;
            Ok((guest.data_mut().subscribe(origin, 0)?,))
        },
    )
}

fn output(linker: &mut LinkerInstance<'_, World>, origin: Origin) -> wasmtime::Result<()> {
    linker.resource(
        "output-stream",
        ResourceType::host::<OutputStream>(),
        taken_back,
    )?;
    define(
        linker,
        "[method]output-stream.check-write",
        |mut guest: Caller<'_>, (_,): (Resource<OutputStream>,)| {
            charge(&mut guest, 0)?;
            Ok((Ok::<_, StreamError>(WRITABLE),))
        },
    )?;
    for name in [
        "[method]output-stream.write",
        "[method]output-stream.blocking-write-and-flush",
    ] {
        define(
            linker,
            name,
            |mut guest: Caller<'_>, (stream, bytes): (Resource<OutputStream>, Vec<u8>)| {
                charge(&mut guest, bytes.len() as u64)?;
                let World { log, handles, .. } = guest.data_mut();
                match handles.thing(&stream) {
                    Some(STDERR) => log.stderr(&bytes),
                    _ => log.stdout(&bytes),
                }
                Ok((Ok::<_, StreamError>(()),))
            },
        )?;
    }
    for name in [
        "[method]output-stream.flush",
        "[method]output-stream.blocking-flush",
    ] {
        define(
            linker,
            name,
            |mut guest: Caller<'_>, (_,): (Resource<OutputStream>,)| {
                charge(&mut guest, 0)?;
                Ok((Ok::<_, StreamError>(()),))
            },
        )?;
    }
    // Zeroes say nothing in a log.
    for name in [
        "[method]output-stream.write-zeroes",
        "[method]output-stream.blocking-write-zeroes-and-flush",
    ] {
        define(
            linker,
            name,
            |mut guest: Caller<'_>, (_, _): (Resource<OutputStream>, u64)| {
                charge(&mut guest, 0)?;
                Ok((Ok::<_, StreamError>(()),))
            },
        )?;
    }
    // The only input there is has ended.
    for name in [
        "[method]output-stream.splice",
        "[method]output-stream.blocking-splice",
    ] {
        define(
            linker,
            name,
            |mut guest: Caller<'_>,
             (_, _, _): (Resource<OutputStream>, Resource<InputStream>, u64)| {
                charge(&mut guest, 0)?;
                Ok((Err::<u64, _>(StreamError::Closed),))
            },
        )?;
    }
    define(
        linker,
        "[method]output-stream.subscribe",
        move |mut guest: Caller<'_>, (_,): (Resource<OutputStream>,)| {
            charge(&mut guest, 0)?;
            Ok((guest.data_mut().subscribe(origin, 0)?,))
        },
    )
}
