//! Compiled code that is linked to what the host offers it.

use std::sync::Arc;

use wasmtime::component::{Component, ComponentExportIndex, InstancePre};

use super::expansion::Size;
use super::freeze::{FREEZE, Follower, THAW};
use crate::LocalCode;
use crate::wasm::engine::Engine;
use crate::wasm::engine::budget::{CopyShare, MachineBudget, Purpose, Share};
use crate::wasm::engine::holdings::Holdings;
use crate::wasm::engine::layout::Layout;
use crate::wasm::error::ComponentError;
use crate::wasm::fault::{self, Failure};
use crate::wasm::memory::Memory;
use crate::wasm::world::World;
use crate::wasm::world::imports::linker_for;
use skep_types::profile::Profile;

/// What instances are started from.
pub(crate) struct Linked {
    size: Size,
    layout: Layout,
    budget: Arc<MachineBudget>,
    pre: InstancePre<World>,
    exports: Exports,
}

impl Linked {
    /// Links code that was compiled for this engine, in the layout that suits its size.
    pub(super) fn new(
        engine: &Engine,
        size: Size,
        compiled: &Component,
        has_images: bool,
    ) -> Result<Self, ComponentError> {
        let mismatch = |error: wasmtime::Error| {
            local(&error).unwrap_or_else(|| ComponentError::Mismatch(format!("{error:#}")))
        };
        let exports = Exports::of(compiled, has_images)?;
        let follows = |name: &str| match has_images {
            true => Follower::import_of(name),
            false => None,
        };
        let linker = linker_for(engine.inner(), compiled, follows).map_err(mismatch)?;
        let pre = linker.instantiate_pre(compiled).map_err(mismatch)?;
        Ok(Self {
            size,
            layout: engine.layout(),
            budget: Arc::clone(engine.budget()),
            pre,
            exports,
        })
    }

    #[cfg(test)]
    pub(super) fn layout(&self) -> Layout {
        self.layout
    }

    /// Components with code in it: each has a module of the host's, which counts its stack.
    pub(super) fn scopes(&self) -> u64 {
        self.size.scopes
    }

    /// Modules of the host's that hold what is written down of its state: each has a memory.
    pub(super) fn images(&self) -> u64 {
        self.exports.images.len() as u64
    }

    /// Takes what an instance of it needs under this profile from the node's budget.
    pub(super) fn share(&self, profile: &Profile, purpose: Purpose) -> Result<Share, Failure> {
        let bytes = profile
            .memory_bytes
            .saturating_add(profile.snapshot_headroom());
        let cost = (self.layout).cost(self.size.memories, self.images(), bytes);
        self.budget.take(cost, purpose)
    }

    /// What the copies for a checkpoint take of the node's budget.
    pub(crate) fn copies(&self) -> CopyShare {
        self.budget.copies()
    }

    /// Takes memory from the node's budget for the copy that a query has of a machine.
    pub(crate) fn room_for(&self, memory_bytes: u64) -> Result<Share, Failure> {
        let cost = Holdings {
            memory_bytes,
            ..Holdings::default()
        };
        self.budget.take(cost, Purpose::Queries)
    }

    /// The memories of an instance that has been made.
    pub(super) fn settled(
        &self,
        memories: Vec<Arc<Memory>>,
    ) -> Result<Arc<[Arc<Memory>]>, Failure> {
        if self.layout.is_fixed() {
            memories
                .iter()
                .try_for_each(|memory| memory.settle())
                .map_err(unmapped)?;
        }
        Ok(memories.into())
    }

    pub(super) fn pre(&self) -> &InstancePre<World> {
        &self.pre
    }

    pub(super) fn exports(&self) -> &Exports {
        &self.exports
    }
}

/// What this node's memory, and not the component, is to blame for.
fn local(error: &wasmtime::Error) -> Option<ComponentError> {
    fault::is_of_memory(error).then(|| ComponentError::Local {
        code: LocalCode::Memory,
        reason: format!("{error:#}"),
    })
}

/// Where the exports of a component are.
pub(crate) struct Exports {
    pub(crate) describe: ComponentExportIndex,
    pub(crate) apply: ComponentExportIndex,
    pub(crate) save: ComponentExportIndex,
    pub(crate) restore: ComponentExportIndex,
    pub(crate) apply_conf_change: ComponentExportIndex,
    pub(crate) process_status_change: ComponentExportIndex,
    pub(crate) init: Option<ComponentExportIndex>,
    pub(crate) query: Option<ComponentExportIndex>,
    pub(crate) apply_batch: Option<ComponentExportIndex>,
    /// None if it has no images.
    pub(crate) images: Vec<Image<ComponentExportIndex>>,
    /// By the number of the import; none if it gives no handles, or none that can be given at will.
    pub(crate) handle_functions: Vec<Option<HandleFunctions<ComponentExportIndex>>>,
}

/// Functions that have a handle of one import given to the guest, and taken back.
#[derive(Clone, Copy)]
pub(crate) struct HandleFunctions<F> {
    /// Says which number it has.
    pub(crate) give: F,
    pub(crate) take_back: F,
}

/// The functions of one image module.
pub(crate) struct Image<F> {
    /// Writes down the globals of the instances that it knows, and the sizes of their memories.
    pub(crate) freeze: F,
    /// Puts them back.
    pub(crate) thaw: F,
}

impl Exports {
    fn of(component: &Component, has_images: bool) -> Result<Self, ComponentError> {
        let optional = |interface: &str, function: &str| {
            let interface = component.get_export_index(None, interface)?;
            component.get_export_index(Some(&interface), function)
        };
        let required = |function: &str| {
            optional("skep:machine/state-machine@0.1.0", function).ok_or_else(|| {
                ComponentError::Mismatch(format!("`state-machine` has no function `{function}`"))
            })
        };
        let image = |number: usize| {
            let index = |name| component.get_export_index(None, format!("{name}{number}"));
            Some(Image {
                freeze: index(FREEZE)?,
                thaw: index(THAW)?,
            })
        };
        // A component that has none may have functions of these names that are its own.
        let images = match has_images {
            true => (0..).map_while(image).collect(),
            false => Vec::new(),
        };
        let takes = |import: &str| {
            let Follower {
                give, take_back, ..
            } = Follower::of(import);
            let index = |name: String| component.get_export_index(None, name);
            Some(HandleFunctions {
                give: index(give)?,
                take_back: index(take_back)?,
            })
        };
        let ty = component.component_type();
        let takes = match images.is_empty() {
            false => (ty.imports(component.engine()))
                .map(|(name, _)| takes(name))
                .collect(),
            true => Vec::new(),
        };
        Ok(Self {
            images,
            handle_functions: takes,
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

pub(super) fn unmapped(error: std::io::Error) -> Failure {
    let reason = format!("the memory of a machine cannot be mapped: {error}");
    Failure::local(LocalCode::Memory, reason)
}
