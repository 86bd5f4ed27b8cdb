//! What can go wrong, in words for the reader of a failed build.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;

/// Why no component was built. `Debug` prints the message as well, since that is what cargo shows when a build
/// script's `main` returns an error.
pub enum Error {
    /// The Wasm target's standard library is not installed.
    TargetMissing,
    /// The inner cargo failed; its own messages are above.
    Cargo {
        /// The package it was to build.
        package: String,
        /// How it ended.
        status: ExitStatus,
    },
    /// The inner cargo succeeded and the component is not there.
    NoArtifact {
        /// The package or example.
        name: String,
        /// Where it should be.
        artifact: PathBuf,
    },
    /// cargo or rustc could not be started.
    Start {
        /// Which.
        program: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A file could not be read or written.
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// `OUT_DIR` does not lie in a target directory as cargo lays them out.
    OutDir {
        /// Its value.
        out_dir: PathBuf,
    },
    /// A variable that cargo sets for build scripts is not there.
    NotABuildScript {
        /// Which.
        variable: &'static str,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::TargetMissing => write!(
                f,
                "the target {} is not installed, and guests are built for it; run:\n\n    rustup target add {}\n",
                crate::TARGET,
                crate::TARGET
            ),
            Error::Cargo { package, status } => {
                write!(
                    f,
                    "building the guest package {package} failed ({status}); cargo's own messages are above"
                )
            }
            Error::NoArtifact { name, artifact } => write!(
                f,
                "cargo built the guest {name} and left no {}; is its crate-type `cdylib`?",
                artifact.display()
            ),
            Error::Start { program, source } => {
                write!(f, "{program} could not be started: {source}")
            }
            Error::File { path, source } => write!(f, "{}: {source}", path.display()),
            Error::OutDir { out_dir } => write!(
                f,
                "OUT_DIR is {} and should be <target>/<profile>/build/<package>/out, beside which guests are built",
                out_dir.display()
            ),
            Error::NotABuildScript { variable } => {
                write!(
                    f,
                    "{variable} is not set; skep_guest_build only works in a build script that cargo runs"
                )
            }
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Start { source, .. } | Error::File { source, .. } => Some(source),
            _ => None,
        }
    }
}
