//! A component, compiled and linked: what every replica on this node shares.

use skep_core::id::ComponentId;

use super::cache::Cache;
use super::compiler::{Compiler, InProcess};
use super::describe::describe;
use super::expansion::{Size, size_of};
use super::inspect::{Inspection, measure};
use super::linked::{Exports, Linked};
use crate::Descriptor;
use crate::wasm::engine::Engine;
#[cfg(test)]
use crate::wasm::engine::layout::Layout;
use crate::wasm::error::ComponentError;

/// A machine's code, ready to be started. Share it with an `Arc`; compiling again would only cost time and memory.
pub struct Component {
    inspection: Inspection,
    descriptor: Descriptor,
    linked: Linked,
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
    pub(crate) fn compile_uncounted(engine: &Engine, bytes: &[u8]) -> Result<Self, ComponentError> {
        let (inspection, size) = measure(bytes)?;
        let engine = &engine.suited(size.memories);
        let compiled = wasmtime::component::Component::from_binary(engine.inner(), bytes)
            .map_err(|error| ComponentError::Invalid(format!("{error:#}")))?;
        Self::link(engine, inspection, size, &compiled)
    }

    /// Counts its stack and leaves its state where it is, to see what difference images make.
    #[cfg(test)]
    pub(crate) fn compile_without_images(
        engine: &Engine,
        bytes: &[u8],
    ) -> Result<Self, ComponentError> {
        let (inspection, size) = measure(bytes)?;
        let engine = &engine.suited(size.memories);
        let counted = super::depth::count_stack(bytes, size.scopes, crate::wasm::engine::FEATURES)
            .map_err(|error| ComponentError::Invalid(error.to_string()))?;
        let compiled = wasmtime::component::Component::from_binary(engine.inner(), &counted)
            .map_err(|error| ComponentError::Invalid(format!("{error:#}")))?;
        Self::link(engine, inspection, size, &compiled)
    }

    /// As [`Self::compile`], laid out as if it had so many memories.
    #[cfg(test)]
    pub(crate) fn compile_as(
        engine: &Engine,
        bytes: &[u8],
        memories: u64,
    ) -> Result<Self, ComponentError> {
        let (inspection, size) = measure(bytes)?;
        let engine = &engine.suited(memories);
        let size = Size { memories, ..size };
        let rewritten = super::rewriting::rewrite(bytes, size.scopes)
            .map_err(|error| ComponentError::Invalid(error.to_string()))?;
        let compiled = wasmtime::component::Component::from_binary(engine.inner(), &rewritten)
            .map_err(|error| ComponentError::Invalid(format!("{error:#}")))?;
        Self::link(engine, inspection, size, &compiled)
    }

    /// Inspects `bytes`, and makes a component of them if there is machine code in `cache`.
    pub fn look_up(engine: &Engine, bytes: &[u8], cache: &Cache) -> Result<Found, ComponentError> {
        let (inspection, size) = measure(bytes)?;
        let engine = &engine.suited(size.memories);
        match cache.fetch(engine, inspection.id) {
            Some(compiled) => {
                let component = Self::link(engine, inspection, size, &compiled)?;
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
    pub(crate) fn layout(&self) -> Layout {
        self.linked.layout()
    }

    pub(crate) fn exports(&self) -> &Exports {
        self.linked.exports()
    }

    /// What an instance of it is started from.
    pub(crate) fn linked(&self) -> &Linked {
        &self.linked
    }

    /// # Safety
    /// A [`Compiler`] made the code for this engine.
    unsafe fn of_code(
        engine: &Engine,
        inspection: Inspection,
        size: Size,
        code: &[u8],
    ) -> Result<Self, ComponentError> {
        let engine = &engine.suited(size.memories);
        // SAFETY: as promised.
        let compiled = unsafe { wasmtime::component::Component::deserialize(engine.inner(), code) }
            .map_err(|error| ComponentError::Code(format!("{error:#}")))?;
        Self::link(engine, inspection, size, &compiled)
    }

    fn link(
        engine: &Engine,
        inspection: Inspection,
        size: Size,
        compiled: &wasmtime::component::Component,
    ) -> Result<Self, ComponentError> {
        let linked = Linked::new(engine, size, compiled, inspection.no_image.is_none())?;
        let descriptor = describe(&linked, engine.purpose())?;
        Ok(Self {
            inspection,
            descriptor,
            linked,
        })
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
