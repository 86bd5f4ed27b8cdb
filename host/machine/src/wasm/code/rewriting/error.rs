//! Why a component is not rewritten.

/// What the modules import the counter from.
pub(in crate::wasm::code) const COUNTER_MODULE: &str = "skep:stack";

/// Why a component was not rewritten.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RewriteError {
    #[error(transparent)]
    Invalid(#[from] wasmparser::Error),
    #[error("it has {0} of a kind this host does not know")]
    Unknown(&'static str),
    #[error("it is empty")]
    Empty,
    #[error("it is cut off")]
    Cut,
    #[error(
        "it passes core modules from one component to another; hold them instead (no toolchain makes this)"
    )]
    PassedModule,
    #[error("it imports from `{COUNTER_MODULE}`, which is the host's own name")]
    TakenName,
}
