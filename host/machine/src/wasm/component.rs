//! A component, compiled and linked: what every replica on this node shares.

use std::sync::Arc;

use skep_core::id::ComponentId;
use wasmtime::component::{ComponentExportIndex, InstancePre};

use super::budget::{MachineBudget, Purpose, Share};
use super::cache::Cache;
use super::compiler::{CompileError, Compiler, InProcess};
use super::engine::{Engine, Layout};
use super::expansion::{Size, size_of};
use super::fault::{self, Failure};
use super::guest::MachineLabel;
use super::host::Host;
use super::imports::linker_for;
use super::inspect::{Inspection, measure};
use super::instance::Instance;
use super::limits::Profile;
use super::logbook::Logbook;
use crate::{Descriptor, LocalCode};

/// Fuel of the start of an instance that only says what it is: about a second, where the slowest interpreter that was
/// tried needs a few milliseconds. A group's own limit is for restored states; an upload must not hold a core that long.
const SCRATCH_START_FUEL: u64 = 1_000_000_000;

/// Characters of a machine's name, and of its version: they stand in log lines, in answers and on terminals.
const MAX_NAME_CHARS: usize = 200;

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
    /// Larger than [`super::MAX_COMPONENT_BYTES`].
    #[error("the component has {size} bytes; at most {limit} are allowed")]
    TooLarge {
        /// Its size in bytes.
        size: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// More than [`super::MAX_FUNCTIONS`].
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
    /// More components within one another than [`super::MAX_DEPTH`].
    #[error("the component holds components and modules more than {limit} deep")]
    TooDeep {
        /// The limit.
        limit: usize,
    },
    /// More than [`super::MAX_ITEMS`], counting every instance of the components in it.
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

/// A machine's code, ready to be started. Share it with an `Arc`; compiling again would only cost time and memory.
pub struct Component {
    inspection: Inspection,
    size: Size,
    layout: Layout,
    budget: Arc<MachineBudget>,
    descriptor: Descriptor,
    pre: InstancePre<Host>,
    exports: Exports,
}

impl Component {
    /// Inspects and compiles `bytes` in this process: seconds for an interpreter of 10 MiB, so not on a thread that serves others.
    pub fn compile(engine: &Engine, bytes: &[u8]) -> Result<Self, ComponentError> {
        let (inspection, size) = measure(bytes)?;
        let code = InProcess.compile(engine, bytes)?;
        // SAFETY: a compiler made it for this engine.
        unsafe { Self::of_code(engine, inspection, size, &code) }
    }

    /// Leaves out the counting of stack, to see what happens without it.
    #[cfg(test)]
    pub(super) fn compile_uncounted(engine: &Engine, bytes: &[u8]) -> Result<Self, ComponentError> {
        let (inspection, size) = measure(bytes)?;
        let engine = &engine.suited(size);
        let compiled = wasmtime::component::Component::from_binary(engine.inner(), bytes)
            .map_err(|error| ComponentError::Invalid(format!("{error:#}")))?;
        Self::link(engine, inspection, size, compiled)
    }

    /// As [`Self::compile`], laid out as if it had so many memories.
    #[cfg(test)]
    pub(super) fn compile_as(
        engine: &Engine,
        bytes: &[u8],
        memories: u64,
    ) -> Result<Self, ComponentError> {
        let (inspection, size) = measure(bytes)?;
        let engine = &engine.suited(Size { memories, ..size });
        let counted = super::depth::count_stack(bytes, size.scopes)
            .map_err(|error| ComponentError::Invalid(error.to_string()))?;
        let compiled = wasmtime::component::Component::from_binary(engine.inner(), &counted)
            .map_err(|error| ComponentError::Invalid(format!("{error:#}")))?;
        Self::link(engine, inspection, size, compiled)
    }

    /// Inspects `bytes`, and makes a component of them if there is machine code in `cache`.
    pub fn look_up(engine: &Engine, bytes: &[u8], cache: &Cache) -> Result<Found, ComponentError> {
        let (inspection, size) = measure(bytes)?;
        let engine = &engine.suited(size);
        match cache.fetch(engine, inspection.id) {
            Some(compiled) => {
                let component = Self::link(engine, inspection, size, compiled)?;
                Ok(Found::Compiled(Box::new(component)))
            }
            None => Ok(Found::Inspected(inspection)),
        }
    }

    /// As [`Self::compile`], but with another compiler, and leaves the machine code in `cache`.
    pub fn build(
        engine: &Engine,
        bytes: &[u8],
        inspection: Inspection,
        cache: &Cache,
        compiler: &dyn Compiler,
    ) -> Result<Self, ComponentError> {
        let size = size_of(bytes)?;
        let code = compiler.compile(engine, bytes)?;
        // Kept whether or not it turns out to be a machine: so it is not compiled again for whoever asks again.
        cache.store(engine, inspection.id, &code);
        // SAFETY: a compiler made it for this engine.
        unsafe { Self::of_code(engine, inspection, size, &code) }
    }

    /// Looks it up, and builds it if it is not there.
    pub fn load(
        engine: &Engine,
        bytes: &[u8],
        cache: &Cache,
        compiler: &dyn Compiler,
    ) -> Result<Self, ComponentError> {
        match Self::look_up(engine, bytes, cache)? {
            Found::Compiled(component) => Ok(*component),
            Found::Inspected(inspection) => Self::build(engine, bytes, inspection, cache, compiler),
        }
    }

    /// The name of the code.
    pub fn id(&self) -> ComponentId {
        self.inspection.id
    }

    /// What was read from the bytes.
    pub fn inspection(&self) -> &Inspection {
        &self.inspection
    }

    /// What the machine says of itself, asked once in an instance of its own.
    pub fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    #[cfg(test)]
    pub(super) fn layout(&self) -> Layout {
        self.layout
    }

    /// What it becomes when it is put together.
    pub(super) fn size(&self) -> Size {
        self.size
    }

    /// Takes what an instance of it needs under this profile from the node's budget.
    pub(super) fn share(&self, profile: &Profile, purpose: Purpose) -> Result<Share, Failure> {
        let bytes = profile
            .memory_bytes
            .saturating_add(profile.snapshot_headroom());
        let cost = self.layout.cost(self.size.memories, bytes);
        self.budget.take(cost, purpose)
    }

    pub(super) fn pre(&self) -> &InstancePre<Host> {
        &self.pre
    }

    pub(super) fn exports(&self) -> &Exports {
        &self.exports
    }

    /// # Safety
    /// A [`Compiler`] made the code for this engine.
    unsafe fn of_code(
        engine: &Engine,
        inspection: Inspection,
        size: Size,
        code: &[u8],
    ) -> Result<Self, ComponentError> {
        let engine = &engine.suited(size);
        // SAFETY: as promised.
        let compiled = unsafe { wasmtime::component::Component::deserialize(engine.inner(), code) }
            .map_err(|error| ComponentError::Code(format!("{error:#}")))?;
        Self::link(engine, inspection, size, compiled)
    }

    fn link(
        engine: &Engine,
        inspection: Inspection,
        size: Size,
        compiled: wasmtime::component::Component,
    ) -> Result<Self, ComponentError> {
        let mismatch = |error: wasmtime::Error| {
            local(&error).unwrap_or_else(|| ComponentError::Mismatch(format!("{error:#}")))
        };
        let exports = Exports::of(&compiled)?;
        let linker = linker_for(engine.inner(), &compiled).map_err(mismatch)?;
        let pre = linker.instantiate_pre(&compiled).map_err(mismatch)?;
        let mut component = Self {
            inspection,
            size,
            layout: engine.layout(),
            budget: Arc::clone(engine.budget()),
            descriptor: Descriptor::default(),
            pre,
            exports,
        };
        component.descriptor = component.describe(engine.purpose())?;
        Ok(component)
    }

    /// Starts the component once, which also shows that its exports have the right types.
    fn describe(&self, purpose: Purpose) -> Result<Descriptor, ComponentError> {
        let profile = Profile {
            snapshot_fuel: SCRATCH_START_FUEL,
            ..Profile::default()
        };
        let label = MachineLabel::default();
        let logbook = Arc::new(Logbook::new(label, profile.log_lines_per_second));
        let context = &Default::default();
        let ending = Arc::default();
        let mut scratch = Instance::new(self, &profile, context, &logbook, &ending, purpose)
            .map_err(describe_error)?;
        scratch
            .check_types()
            .map_err(|error| ComponentError::Mismatch(format!("{error:#}")))?;
        checked(scratch.describe().map_err(describe_error)?)
    }
}

/// What was found of a component that is asked for.
#[derive(Debug)]
pub enum Found {
    /// Everything.
    Compiled(Box<Component>),
    /// It can be a machine, as far as can be seen, and there is no machine code of it.
    Inspected(Inspection),
}

impl std::fmt::Debug for Component {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Component")
            .field("id", &self.inspection.id)
            .field("descriptor", &self.descriptor)
            .finish()
    }
}

/// What this node's memory, and not the component, is to blame for.
fn local(error: &wasmtime::Error) -> Option<ComponentError> {
    fault::is_of_memory(error).then(|| ComponentError::Local {
        code: LocalCode::Memory,
        reason: format!("{error:#}"),
    })
}

/// What a machine says of itself, if it makes sense.
fn checked(descriptor: Descriptor) -> Result<Descriptor, ComponentError> {
    for (what, text) in [("name", &descriptor.name), ("version", &descriptor.version)] {
        if text.chars().any(char::is_control) || text.chars().nth(MAX_NAME_CHARS).is_some() {
            return Err(ComponentError::Describe(format!(
                "its {what} has control characters or more than {MAX_NAME_CHARS} characters"
            )));
        }
    }
    let Descriptor {
        schema,
        oldest_schema: oldest,
        ..
    } = descriptor;
    if oldest > schema {
        return Err(ComponentError::Describe(format!(
            "it writes snapshots of schema {schema} and reads only those from {oldest} on, so it could never go on from one"
        )));
    }
    Ok(descriptor)
}

fn describe_error(failure: Failure) -> ComponentError {
    match failure {
        Failure::Guest { fault, detail } => ComponentError::Describe(format!("{fault}: {detail}")),
        Failure::Local { code, reason } => ComponentError::Local { code, reason },
    }
}

/// Where the exports of a component are.
pub(super) struct Exports {
    pub(super) describe: ComponentExportIndex,
    pub(super) apply: ComponentExportIndex,
    pub(super) save: ComponentExportIndex,
    pub(super) restore: ComponentExportIndex,
    pub(super) apply_conf_change: ComponentExportIndex,
    pub(super) process_status_change: ComponentExportIndex,
    pub(super) init: Option<ComponentExportIndex>,
    pub(super) query: Option<ComponentExportIndex>,
    pub(super) apply_batch: Option<ComponentExportIndex>,
}

impl Exports {
    fn of(component: &wasmtime::component::Component) -> Result<Self, ComponentError> {
        let optional = |interface: &str, function: &str| {
            let interface = component.get_export_index(None, interface)?;
            component.get_export_index(Some(&interface), function)
        };
        let required = |function: &str| {
            optional("skep:machine/state-machine@0.1.0", function).ok_or_else(|| {
                ComponentError::Mismatch(format!("`state-machine` has no function `{function}`"))
            })
        };
        Ok(Self {
            describe: required("describe")?,
            apply: required("apply")?,
            save: required("save")?,
            restore: required("restore")?,
            apply_conf_change: required("apply-conf-change")?,
            process_status_change: required("process-status-change")?,
            init: optional("skep:machine/initializer@0.1.0", "init"),
            query: optional("skep:machine/queries@0.1.0", "query"),
            apply_batch: optional("skep:machine/batch@0.1.0", "apply-batch"),
        })
    }
}
