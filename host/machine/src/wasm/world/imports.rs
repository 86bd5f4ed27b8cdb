//! What a machine may import, and the functions of `skep:machine` among it.

use skep_core::outcome::GuestFault;
use wasmtime::component::types::ComponentItem;
use wasmtime::component::{ComponentType, Lift, Linker, LinkerInstance, Resource, ResourceType};

use super::log::Severity;
use super::resources::{LentSink, LentSource};
use super::wasi::{self, random_bytes, random_word};
use super::{Caller, World, charge, define};
use crate::wasm::fault::Stop;

/// Bytes of one chunk of a snapshot, in either direction.
pub(crate) const MAX_CHUNK_BYTES: usize = 16 << 20;

/// An interface that a machine may import.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Import {
    /// `skep:machine/types`: nothing to link.
    Types,
    Log,
    Entropy,
    SnapshotIo,
    Wasi(wasi::Interface),
}

impl Import {
    /// Whether an import of this name gives handles.
    pub(crate) fn gives_handles(name: &str) -> bool {
        matches!(Self::named(name), Ok(Self::Wasi(interface)) if interface.gives_handles())
    }

    /// The interface of a name like `wasi:cli/exit@0.2.6`; or why there is none.
    pub(crate) fn named(name: &str) -> Result<Self, &'static str> {
        let (path, version) = name.split_once('@').ok_or("it has no version")?;
        let (namespace, interface) = path.split_once(':').ok_or("it is not an interface")?;
        match namespace {
            "skep" if !version.starts_with("0.1.") => Err("this host offers skep:machine 0.1"),
            "skep" => match interface {
                "machine/types" => Ok(Self::Types),
                "machine/log" => Ok(Self::Log),
                "machine/entropy" => Ok(Self::Entropy),
                "machine/snapshot-io" => Ok(Self::SnapshotIo),
                _ => Err("this host has no such interface"),
            },
            "wasi" if interface.starts_with("http/") => Err(
                "a replicated machine cannot use the network: replicas would see different answers",
            ),
            "wasi" if !version.starts_with("0.2.") => Err("this host offers WASI 0.2"),
            "wasi" => wasi::Interface::named(interface)
                .map(Self::Wasi)
                .ok_or("this part of WASI cannot be the same on every replica"),
            _ => Err("this host knows only skep:machine and wasi"),
        }
    }
}

#[derive(Clone, Copy, ComponentType, Lift)]
#[component(enum)]
#[repr(u8)]
#[allow(dead_code, reason = "wasmtime makes them from the guest's numbers")]
enum Level {
    #[component(name = "trace")]
    Trace,
    #[component(name = "debug")]
    Debug,
    #[component(name = "info")]
    Info,
    #[component(name = "warn")]
    Warn,
    #[component(name = "error")]
    Error,
}

impl From<Level> for Severity {
    fn from(level: Level) -> Self {
        match level {
            Level::Trace => Self::Trace,
            Level::Debug => Self::Debug,
            Level::Info => Self::Info,
            Level::Warn => Self::Warn,
            Level::Error => Self::Error,
        }
    }
}

/// A linker for exactly what `component` imports, under the names and versions it uses. `follows` says which import gives the
/// handles that a function gives which the host has added to the component.
pub(crate) fn linker_for(
    engine: &wasmtime::Engine,
    component: &wasmtime::component::Component,
    follows: impl Fn(&str) -> Option<String>,
) -> wasmtime::Result<Linker<World>> {
    let mut linker = Linker::new(engine);
    for (origin, (name, item)) in (0..).zip(component.component_type().imports(engine)) {
        if let Some(of) = follows(name) {
            if let Ok(Import::Wasi(interface)) = Import::named(&of) {
                interface.link_follower(&mut linker.root(), name)?;
            }
            continue;
        }
        let import =
            Import::named(name).map_err(|why| wasmtime::format_err!("import `{name}`: {why}"))?;
        let ComponentItem::ComponentInstance(imported) = item.ty else {
            continue;
        };
        let mut instance = linker.instance(name)?;
        match import {
            Import::Types => {}
            Import::Log => log(&mut instance)?,
            Import::Entropy => entropy(&mut instance)?,
            Import::SnapshotIo => snapshot_io(&mut instance)?,
            Import::Wasi(interface) => interface.link(engine, &imported, &mut instance, origin)?,
        }
    }
    Ok(linker)
}

fn log(linker: &mut LinkerInstance<'_, World>) -> wasmtime::Result<()> {
    define(
        linker,
        "emit",
        |mut guest: Caller<'_>, (level, message): (Level, String)| {
            charge(&mut guest, message.len() as u64)?;
            guest.data_mut().log.line(level.into(), message.as_bytes());
            Ok(())
        },
    )
}

fn entropy(linker: &mut LinkerInstance<'_, World>) -> wasmtime::Result<()> {
    define(linker, "fill", |guest: Caller<'_>, (len,): (u32,)| {
        random_bytes(guest, u64::from(len), |world| world.random.entropy())
    })?;
    define(linker, "next-u64", |guest: Caller<'_>, ()| {
        random_word(guest, |world| world.random.entropy())
    })
}

fn snapshot_io(linker: &mut LinkerInstance<'_, World>) -> wasmtime::Result<()> {
    linker.resource("sink", ResourceType::host::<LentSink>(), |_, _| Ok(()))?;
    linker.resource("source", ResourceType::host::<LentSource>(), |_, _| Ok(()))?;
    define(
        linker,
        "[method]sink.write",
        |mut guest: Caller<'_>, (_, chunk): (Resource<LentSink>, Vec<u8>)| {
            charge(&mut guest, chunk.len() as u64)?;
            let sink = guest
                .data_mut()
                .sink
                .as_mut()
                .ok_or(Stop::Fault(GuestFault::Malformed))?;
            Ok(sink.write(chunk)?)
        },
    )?;
    define(
        linker,
        "[method]source.read",
        |mut guest: Caller<'_>, (_, len): (Resource<LentSource>, u32)| {
            let source = guest
                .data()
                .source
                .as_ref()
                .ok_or(Stop::Fault(GuestFault::Malformed))?;
            // Exactly what was asked for, short only at the end: how the bytes are cut is an input to the guest.
            let len = (len as usize).min(source.len());
            if len > MAX_CHUNK_BYTES {
                return Err(Stop::Fault(GuestFault::Limit).into());
            }
            charge(&mut guest, len as u64)?;
            let source = guest
                .data_mut()
                .source
                .as_mut()
                .ok_or(Stop::Fault(GuestFault::Malformed))?;
            Ok((source.split_to(len).to_vec(),))
        },
    )?;
    define(
        linker,
        "[method]source.remaining",
        |mut guest: Caller<'_>, (_,): (Resource<LentSource>,)| {
            charge(&mut guest, 0)?;
            Ok((guest
                .data()
                .source
                .as_ref()
                .map_or(0, |source| source.len() as u64),))
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn imports_are_known_by_name_in_any_patch_version() {
        assert_eq!(Import::named("skep:machine/log@0.1.0"), Ok(Import::Log));
        assert_eq!(Import::named("skep:machine/log@0.1.9"), Ok(Import::Log));
        assert_eq!(
            Import::named("wasi:cli/exit@0.2.0"),
            Ok(Import::Wasi(wasi::Interface::Exit))
        );
        assert_eq!(
            Import::named("wasi:sockets/tcp@0.2.12"),
            Ok(Import::Wasi(wasi::Interface::Denied))
        );
        for foreign in [
            "skep:machine/log@0.2.0",
            "skep:machine/kv@0.1.0",
            "wasi:http/types@0.2.0",
            "wasi:keyvalue/store@0.2.0",
            "wasi:cli/exit@0.3.0",
            "wasi:clocks/timezone@0.2.0",
            "acme:thing/x@1.0.0",
            "run",
            "",
        ] {
            assert!(Import::named(foreign).is_err(), "{foreign}");
        }
    }
}
