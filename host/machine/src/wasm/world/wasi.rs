//! A virtual WASI 0.2: the parts that every replica can answer alike, and refusals for the rest.
//!
//! The functions are defined by hand, once for all 0.2 releases: a component is linked under the names it imports.

mod cli;
mod clocks;
mod denied;
mod io;
mod random;

pub(crate) use random::{bytes as random_bytes, word as random_word};
use wasmtime::component::LinkerInstance;
use wasmtime::component::types::ComponentInstance;

use self::denied::Denied;
use super::handles::Origin;
use super::resources::{InputStream, OutputStream, Pollable};
use super::{Caller, World};

/// A WASI interface a machine may import.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Interface {
    Exit,
    Stdin,
    Stdout,
    Stderr,
    MonotonicClock,
    WallClock,
    Error,
    Poll,
    Streams,
    Random,
    Insecure,
    InsecureSeed,
    InstanceNetwork,
    /// Importable, empty: no variable, no argument, no terminal, no file, no socket.
    Denied,
}

impl Interface {
    /// The interface of a name like `clocks/wall-clock`, without namespace and version.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "cli/exit" => Self::Exit,
            "cli/stdin" => Self::Stdin,
            "cli/stdout" => Self::Stdout,
            "cli/stderr" => Self::Stderr,
            "clocks/monotonic-clock" => Self::MonotonicClock,
            "clocks/wall-clock" => Self::WallClock,
            "io/error" => Self::Error,
            "io/poll" => Self::Poll,
            "io/streams" => Self::Streams,
            "random/random" => Self::Random,
            "random/insecure" => Self::Insecure,
            "random/insecure-seed" => Self::InsecureSeed,
            "sockets/instance-network" => Self::InstanceNetwork,
            "cli/environment"
            | "cli/terminal-input"
            | "cli/terminal-output"
            | "cli/terminal-stdin"
            | "cli/terminal-stdout"
            | "cli/terminal-stderr"
            | "filesystem/types"
            | "filesystem/preopens"
            | "sockets/network"
            | "sockets/ip-name-lookup"
            | "sockets/tcp"
            | "sockets/tcp-create-socket"
            | "sockets/udp"
            | "sockets/udp-create-socket" => Self::Denied,
            _ => return None,
        })
    }

    /// Whether functions of it give handles: only of one kind, each of these interfaces.
    pub(crate) fn gives_handles(self) -> bool {
        matches!(
            self,
            Self::Stdin
                | Self::Stdout
                | Self::Stderr
                | Self::MonotonicClock
                | Self::Streams
                | Self::InstanceNetwork
        )
    }

    /// Defines a function in `linker` that gives a handle as functions of the interface do: the one that another instance has.
    pub(crate) fn link_follower(
        self,
        linker: &mut LinkerInstance<'_, World>,
        name: &str,
    ) -> wasmtime::Result<()> {
        match self {
            Self::Stdin => follower::<InputStream>(linker, name),
            Self::Stdout | Self::Stderr => follower::<OutputStream>(linker, name),
            Self::MonotonicClock | Self::Streams => follower::<Pollable>(linker, name),
            Self::InstanceNetwork => follower::<Denied>(linker, name),
            _ => Ok(()),
        }
    }

    /// Defines the interface in `linker`, as `imported` asks for it. It is the import of this number.
    pub(crate) fn link(
        self,
        engine: &wasmtime::Engine,
        imported: &ComponentInstance,
        linker: &mut LinkerInstance<'_, World>,
        origin: Origin,
    ) -> wasmtime::Result<()> {
        match self {
            Self::Exit => cli::exit(linker),
            Self::Stdin => cli::stdin(linker, origin),
            Self::Stdout => cli::stdout(linker, origin),
            Self::Stderr => cli::stderr(linker, origin),
            Self::MonotonicClock => clocks::monotonic(linker, origin),
            Self::WallClock => clocks::wall(linker),
            Self::Error => io::error(linker),
            Self::Poll => io::poll(linker),
            Self::Streams => io::streams(linker, origin),
            Self::Random => random::random(linker),
            Self::Insecure => random::insecure(linker),
            Self::InsecureSeed => random::insecure_seed(linker),
            Self::InstanceNetwork => denied::instance_network(linker, origin),
            Self::Denied => denied::link(engine, imported, linker),
        }
    }
}

fn follower<T: 'static>(
    linker: &mut LinkerInstance<'_, World>,
    name: &str,
) -> wasmtime::Result<()> {
    linker.func_wrap(name, |guest: Caller<'_>, ()| {
        Ok((guest.data().handles.followed::<T>()?,))
    })
}
