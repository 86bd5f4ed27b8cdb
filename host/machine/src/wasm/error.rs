//! Why a component is not a machine here.

use serde::{Deserialize, Serialize};
use skep_types::code::Code;

use crate::LocalCode;

/// Why bytes are not a machine, or an engine is not to be had.
#[derive(Debug, thiserror::Error)]
pub enum ComponentError {
    /// This node cannot run machines at all.
    #[error("WebAssembly cannot run on this node: {0}")]
    Engine(String),
    /// The file is of another kind.
    #[error(
        "not a WebAssembly file: a machine is a component (a `.wasm` file built for wasm32-wasip2, for instance)"
    )]
    NotWasm,
    /// A core module, as older targets make it.
    #[error(
        "a core module, not a component: build for a component target (wasm32-wasip2) or run `wasm-tools component new` on it"
    )]
    CoreModule,
    /// The end is missing.
    #[error("the component ends after {size} bytes, in the middle: copy it again")]
    Truncated {
        /// Bytes there are.
        size: usize,
    },
    /// The bytes break the rules of WebAssembly, or use a feature that differs between replicas.
    #[error("not a valid component for this host: {0}")]
    Invalid(String),
    /// Larger than [`crate::wasm::MAX_COMPONENT_BYTES`].
    #[error("the component has {size} bytes; at most {limit} are allowed")]
    TooLarge {
        /// Its size in bytes.
        size: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// More than [`crate::wasm::MAX_FUNCTIONS`].
    #[error("the component has more than {limit} functions")]
    TooManyFunctions {
        /// The limit.
        limit: u32,
    },
    /// More linear memories than are taken where it is uploaded.
    #[error(
        "the component becomes {memories} linear memories when it is put together; at most {limit} are allowed, see [limits] component_memories"
    )]
    TooManyMemories {
        /// How many it becomes.
        memories: u64,
        /// The limit.
        limit: u64,
    },
    /// More components within one another than [`crate::wasm::MAX_DEPTH`].
    #[error("the component holds components and modules more than {limit} deep")]
    TooDeep {
        /// The limit.
        limit: usize,
    },
    /// More than [`crate::wasm::MAX_ITEMS`], counting every instance of the components in it.
    #[error(
        "the component becomes more than {limit} instances, aliases and functions when it is put together"
    )]
    TooManyItems {
        /// The limit.
        limit: u64,
    },
    /// How often it would be instantiated cannot be told in advance.
    #[error(
        "the component imports a component, or takes one from an instance; hold it instead (no toolchain makes this)"
    )]
    PassedComponent,
    /// A function of it, or all together, is of a kind that compilers take very long for.
    #[error("the component has more than {limit} {what}, which no toolchain makes")]
    TooIntricate {
        /// What there is too much of.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// There is no machine code of it.
    #[error("the component is not compiled: {0}")]
    NotCompiled(#[from] CompileError),
    /// Machine code was made that does not load.
    #[error("compiled code cannot be loaded on this node: {0}; see its memory, and try again")]
    Code(String),
    /// It wants what no machine gets.
    #[error("the component imports what a machine cannot have here: {imports}")]
    ForeignImport {
        /// Each with the reason.
        imports: String,
    },
    /// It is no machine.
    #[error(
        "the component does not export `{export}`: it was not built against the world `machine` of skep:machine"
    )]
    MissingExport {
        /// The missing interface.
        export: &'static str,
    },
    /// An interface has the right name and another shape.
    #[error("the component does not fit skep:machine 0.1: {0}")]
    Mismatch(String),
    /// `describe` failed.
    #[error("the component could not say what it is: {0}")]
    Describe(String),
    /// This node could not do it, whatever the component is.
    #[error("this node could not compile or start the component ({}): {reason}; try again when it has what it lacks", .code.name())]
    Local {
        /// What kind of trouble it was.
        code: LocalCode,
        /// What happened here.
        reason: String,
    },
    /// The artefact cache cannot be used.
    #[error(
        "the component cache {path}: {source}; check the directory's owner and free space, or delete it"
    )]
    Cache {
        /// The file or directory.
        path: std::path::PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

impl ComponentError {
    /// The stable code, for programs and for documentation.
    pub fn code(&self) -> Code {
        match self {
            Self::Engine(_) => Code::EngineUnusable,
            Self::NotWasm => Code::NotWasm,
            Self::CoreModule => Code::CoreModule,
            Self::Truncated { .. } => Code::ComponentTruncated,
            Self::TooLarge { .. }
            | Self::TooManyFunctions { .. }
            | Self::TooManyItems { .. }
            | Self::TooManyMemories { .. }
            | Self::TooDeep { .. } => Code::TooLarge,
            Self::ForeignImport { .. } => Code::ForeignImport,
            Self::MissingExport { .. } => Code::MissingExport,
            Self::Cache { .. } => Code::Storage,
            Self::Local { code, .. } => code.refusal(),
            Self::TooIntricate { .. } => Code::CompileTooCostly,
            Self::NotCompiled(error) => error.code(),
            Self::Code(_) => Code::CompilerUnavailable,
            Self::Invalid(_) | Self::PassedComponent | Self::Mismatch(_) | Self::Describe(_) => {
                Code::InvalidComponent
            }
        }
    }
}

/// Why there is no machine code.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CompileError {
    /// The compiler refuses the component.
    #[error("{0}")]
    Invalid(String),
    /// More memory than allowed.
    #[error(
        "its compiler takes more than {limit} bytes of memory; make its largest function smaller, or raise [limits] compile_memory_bytes"
    )]
    Memory {
        /// The limit.
        limit: u64,
    },
    /// More time than allowed.
    #[error(
        "its compiler takes more than {milliseconds} ms; it is tried again after a pause, or at once if [limits] compile_timeout_ms is raised"
    )]
    Late {
        /// The limit.
        milliseconds: u64,
    },
    /// The compiler failed on it.
    #[error(
        "its compiler failed, which is a defect of skep: {0}; please report it with the component"
    )]
    Crashed(String),
    /// This node could not have it compiled; another attempt may well succeed.
    #[error("{0}; try again")]
    Local(String),
}

impl CompileError {
    /// The stable code, for programs and for documentation.
    pub fn code(&self) -> Code {
        match self {
            Self::Invalid(_) => Code::InvalidComponent,
            Self::Memory { .. } => Code::CompileTooCostly,
            Self::Late { .. } => Code::CompileLate,
            Self::Crashed(_) => Code::CompilerFailed,
            Self::Local(_) => Code::CompilerUnavailable,
        }
    }
}
