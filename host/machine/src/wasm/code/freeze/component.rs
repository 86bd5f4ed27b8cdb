//! A component, with an image module behind its last instance.

use wasm_encoder::{
    Alias, CanonicalFunctionSection, ComponentAliasSection, ComponentExportKind,
    ComponentExportSection, ComponentSection, ComponentTypeSection, ExportKind, InstanceSection,
    ModuleArg, ModuleSection,
};
use wasmparser::component_types::ComponentAnyTypeId;
use wasmparser::types::TypesRef;
use wasmparser::{
    CanonicalFunction, ComponentAlias, ComponentExternalKind, ComponentInstance,
    ComponentOuterAliasKind, ComponentTypeRef, Instance, Payload,
};

use super::followers::{self, Added, Giver};
use super::handles::Plain;
use super::image::{self, Part};
use super::module::Shared;
use super::{FREEZE, Halt, Level, NoImage, RewriteError, THAW};
use crate::wasm::code::rewriting::encode::push_section;

/// Image modules in a component with all that it instantiates: the host calls each.
const MAX_IMAGES: u32 = 64;

/// Modules that one component may define, and instances it may make of them: half of what the engine allows, so that there
/// is room for the host's own.
const MAX_CORE_ITEMS: u32 = 500;

/// What an instance of a component is made of.
#[derive(Clone, Copy)]
pub(super) struct MadeOf {
    /// Image modules.
    images: u32,
    /// It calls what it imports: otherwise it only hands that on.
    calls: bool,
    /// It may have handles.
    has_handles: bool,
}

/// Where a function or an instance is from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// From outside: the host's, or what was looked at where it was handed in.
    Outside,
    /// From this component, or a component in it.
    Inside,
}

/// A component that is being copied.
pub(super) struct ComponentLevel {
    pub(super) out: Vec<u8>,
    /// What changes in each core module known here, by the module's index.
    pub(super) modules: Vec<Shared>,
    /// What an instance of each component known here is made of, by the component's index.
    pub(super) components: Vec<MadeOf>,
    /// Where each function known here is from, by its index.
    functions: Vec<Origin>,
    /// Where each instance known here is from, by its index.
    instances: Vec<Origin>,
    calls: bool,
    /// It may have handles; and so may what it instantiates.
    has_handles: [bool; 2],
    /// Instances that it imports, by name.
    imports: Vec<(String, u32)>,
    /// The core instances in which something changes.
    parts: Vec<Part>,
    /// The instances of components with image modules in them: index, and how many.
    imaged: Vec<(u32, u32)>,
}

impl ComponentLevel {
    pub(super) fn new(header: &[u8]) -> Self {
        Self {
            out: header.to_vec(),
            modules: Vec::new(),
            components: Vec::new(),
            functions: Vec::new(),
            instances: Vec::new(),
            calls: false,
            has_handles: [false; 2],
            imports: Vec::new(),
            parts: Vec::new(),
            imaged: Vec::new(),
        }
    }

    pub(super) fn section(
        &mut self,
        bytes: &[u8],
        payload: &Payload<'_>,
        types: TypesRef<'_>,
        outer: &[Level],
        plain: &mut Plain,
    ) -> Result<(), Halt> {
        let Some((id, range)) = payload.as_section() else {
            return Ok(());
        };
        match payload {
            Payload::InstanceSection(instances) => {
                let first = types.core_instance_count() - instances.count();
                for (index, instance) in (first..).zip(instances.clone()) {
                    if let Instance::Instantiate { module_index, .. } = instance? {
                        self.instantiated(index, module_index)?;
                    }
                }
            }
            Payload::ComponentInstanceSection(instances) => {
                let first = types.component_instance_count() - instances.count();
                for (index, instance) in (first..).zip(instances.clone()) {
                    self.component_instance(index, &instance?, types, plain)?;
                }
            }
            Payload::ComponentAliasSection(aliases) => {
                for alias in aliases.clone() {
                    self.alias(&alias?, outer)?;
                }
            }
            Payload::ComponentImportSection(imports) => {
                for import in imports.clone() {
                    let import = import?;
                    refuse_taken_name(import.name.name)?;
                    match import.ty {
                        ComponentTypeRef::Module(_) | ComponentTypeRef::Component(_) => {
                            return Err(NoImage::PassedCode.into());
                        }
                        ComponentTypeRef::Func(_) => self.functions.push(Origin::Outside),
                        ComponentTypeRef::Instance(_) => {
                            let index = self.instances.len() as u32;
                            self.imports.push((import.name.name.to_owned(), index));
                            self.instances.push(Origin::Outside);
                        }
                        _ => {}
                    }
                }
            }
            Payload::ComponentExportSection(exports) => {
                for export in exports.clone() {
                    let export = export?;
                    refuse_taken_name(export.name.name)?;
                    match export.kind {
                        ComponentExternalKind::Module => return Err(NoImage::PassedCode.into()),
                        ComponentExternalKind::Component => {
                            self.components.push(self.made_of(export.index)?);
                        }
                        ComponentExternalKind::Func => {
                            self.functions.push(of(&self.functions, export.index)?);
                        }
                        ComponentExternalKind::Instance => {
                            self.instances.push(of(&self.instances, export.index)?);
                        }
                        _ => {}
                    }
                }
            }
            Payload::ComponentCanonicalSection(functions) => {
                for function in functions.clone() {
                    match function? {
                        CanonicalFunction::Lift { type_index, .. } => {
                            let ty = types.component_any_type_at(type_index);
                            let is_plain = matches!(ty, ComponentAnyTypeId::Func(id) if plain.function(types, id));
                            self.has_handles[0] |= !is_plain;
                            self.functions.push(Origin::Inside);
                        }
                        CanonicalFunction::Lower { func_index, .. } => {
                            self.calls = true;
                            self.refuse_handles(func_index, types, plain)?;
                            let ty = types.component_function_at(func_index);
                            self.has_handles[0] |= !plain.function(types, ty);
                        }
                        CanonicalFunction::ResourceDrop { .. }
                        | CanonicalFunction::ResourceRep { .. } => self.has_handles[0] = true,
                        _ => return Err(NoImage::OwnHandles.into()),
                    }
                }
            }
            _ => {}
        }
        let section = bytes.get(range).ok_or(RewriteError::Cut)?;
        push_section(&mut self.out, id, section);
        Ok(())
    }

    fn instantiated(&mut self, instance: u32, module: u32) -> Result<(), Halt> {
        let state = self.state_of(module)?;
        if !state.is_empty() {
            self.parts.push(Part { instance, state });
        }
        Ok(())
    }

    fn component_instance(
        &mut self,
        index: u32,
        instance: &ComponentInstance<'_>,
        types: TypesRef<'_>,
        plain: &mut Plain,
    ) -> Result<(), Halt> {
        let passes_code = match instance {
            ComponentInstance::Instantiate { args, .. } => args.iter().any(|arg| is_code(arg.kind)),
            ComponentInstance::FromExports(exports) => {
                exports.iter().any(|export| is_code(export.kind))
            }
        };
        if passes_code {
            return Err(NoImage::PassedCode.into());
        }
        let mut from = Origin::Inside;
        match instance {
            ComponentInstance::Instantiate {
                component_index,
                args,
            } => {
                let made_of = self.made_of(*component_index)?;
                if made_of.calls {
                    for arg in args {
                        match arg.kind {
                            ComponentExternalKind::Func => {
                                self.refuse_handles(arg.index, types, plain)?;
                            }
                            ComponentExternalKind::Instance => {
                                self.refuse_handles_of(arg.index, types, plain)?;
                            }
                            _ => {}
                        }
                    }
                }
                self.calls |= made_of.calls;
                self.has_handles[1] |= made_of.has_handles;
                if made_of.images > 0 {
                    self.imaged.push((index, made_of.images));
                }
            }
            ComponentInstance::FromExports(exports) => {
                from = Origin::Outside;
                for export in exports {
                    let part = match export.kind {
                        ComponentExternalKind::Func => of(&self.functions, export.index)?,
                        ComponentExternalKind::Instance => of(&self.instances, export.index)?,
                        _ => Origin::Outside,
                    };
                    if part == Origin::Inside {
                        from = Origin::Inside;
                    }
                }
            }
        }
        self.instances.push(from);
        Ok(())
    }

    /// Refuses a function of one component that another one calls with handles: the host sees none of those that pass.
    fn refuse_handles(
        &self,
        function: u32,
        types: TypesRef<'_>,
        plain: &mut Plain,
    ) -> Result<(), Halt> {
        let from = of(&self.functions, function)?;
        match from == Origin::Outside
            || plain.function(types, types.component_function_at(function))
        {
            true => Ok(()),
            false => Err(NoImage::PassedHandles.into()),
        }
    }

    /// As [`refuse_handles`](Self::refuse_handles), of all functions of an instance.
    fn refuse_handles_of(
        &self,
        instance: u32,
        types: TypesRef<'_>,
        plain: &mut Plain,
    ) -> Result<(), Halt> {
        let from = of(&self.instances, instance)?;
        match from == Origin::Outside
            || plain.instance(types, types.component_instance_at(instance))
        {
            true => Ok(()),
            false => Err(NoImage::PassedHandles.into()),
        }
    }

    fn alias(&mut self, alias: &ComponentAlias<'_>, outer: &[Level]) -> Result<(), Halt> {
        match alias {
            ComponentAlias::InstanceExport { kind, .. } if is_code(*kind) => {
                return Err(NoImage::PassedCode.into());
            }
            ComponentAlias::InstanceExport {
                kind,
                instance_index,
                ..
            } => {
                let from = of(&self.instances, *instance_index)?;
                match kind {
                    ComponentExternalKind::Func => self.functions.push(from),
                    ComponentExternalKind::Instance => self.instances.push(from),
                    _ => {}
                }
            }
            ComponentAlias::Outer { kind, count, index } => {
                let of = match (*count as usize).checked_sub(1) {
                    None => &*self,
                    Some(out) => match outer.iter().rev().nth(out) {
                        Some(Level::Component(of)) => of,
                        _ => return Err(NoImage::PassedCode.into()),
                    },
                };
                match kind {
                    ComponentOuterAliasKind::CoreModule => {
                        let state = of.state_of(*index)?;
                        self.modules.push(state);
                    }
                    ComponentOuterAliasKind::Component => {
                        let made_of = of.made_of(*index)?;
                        self.components.push(made_of);
                    }
                    _ => {}
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn state_of(&self, module: u32) -> Result<Shared, Halt> {
        let state = self.modules.get(module as usize);
        Ok(state.cloned().ok_or(NoImage::PassedCode)?)
    }

    fn made_of(&self, component: u32) -> Result<MadeOf, Halt> {
        let made_of = self.components.get(component as usize);
        Ok(made_of.copied().ok_or(NoImage::PassedCode)?)
    }

    /// The component, and what an instance of it is made of.
    pub(super) fn end(
        mut self,
        types: TypesRef<'_>,
        is_outermost: bool,
    ) -> Result<(Vec<u8>, MadeOf), Halt> {
        debug_assert_eq!(
            self.functions.len(),
            types.component_function_count() as usize
        );
        debug_assert_eq!(
            self.instances.len(),
            types.component_instance_count() as usize
        );
        let own = u32::from(!self.parts.is_empty());
        let images = self
            .imaged
            .iter()
            .try_fold(own, |sum, (_, images)| sum.checked_add(*images))
            .filter(|images| *images <= MAX_IMAGES)
            .ok_or(NoImage::TooManyParts)?;
        if types.module_count().max(types.core_instance_count()) > MAX_CORE_ITEMS {
            return Err(NoImage::TooManyParts.into());
        }
        if images > 0 {
            self.push_functions(types, own, images, is_outermost)?;
        }
        let made_of = MadeOf {
            images,
            calls: self.calls,
            has_handles: self.has_handles.contains(&true),
        };
        Ok((self.out, made_of))
    }

    /// All that is added. What is exported comes last: each export is a function of its own.
    fn push_functions(
        &mut self,
        types: TypesRef<'_>,
        own: u32,
        images: u32,
        is_outermost: bool,
    ) -> Result<(), Halt> {
        let givers = match is_outermost {
            true => self.givers(types),
            false => Vec::new(),
        };
        let mut before = Added::default();
        if !givers.is_empty() {
            before = followers::push(&mut self.out, types, &givers);
        }
        if own > 0 {
            self.push_own(types, before)?;
        }
        self.push_inner();
        let mut exports = ComponentExportSection::new();
        // The functions of image modules stand in pairs, behind all others.
        let first = types.component_function_count() + before.functions;
        export_pairs(&mut exports, first, images);
        followers::export(&mut exports, types, &givers);
        exports.append_to_component(&mut self.out);
        Ok(())
    }

    /// The imports that give handles, if this component alone is given any: the host does not see which one calls it.
    fn givers(&self, types: TypesRef<'_>) -> Vec<Giver> {
        if self.has_handles != [true, false] {
            return Vec::new();
        }
        (self.imports.iter())
            .filter_map(|(name, instance)| Giver::of(types, name, *instance))
            .collect()
    }

    /// The image module, its instance, and its two functions as functions of the component.
    fn push_own(&mut self, types: TypesRef<'_>, before: Added) -> Result<(), Halt> {
        let module = image::module(&self.parts)?;
        ModuleSection(&module).append_to_component(&mut self.out);

        let mut instances = InstanceSection::new();
        let arguments = self
            .parts
            .iter()
            .map(|part| (part.name(), ModuleArg::Instance(part.instance)));
        instances.instantiate(types.module_count(), arguments);
        instances.append_to_component(&mut self.out);

        let mut aliases = ComponentAliasSection::new();
        for name in [image::FREEZE, image::THAW] {
            aliases.alias(Alias::CoreInstanceExport {
                instance: types.core_instance_count(),
                kind: ExportKind::Func,
                name,
            });
        }
        aliases.append_to_component(&mut self.out);

        let mut signature = ComponentTypeSection::new();
        signature
            .function()
            .params([] as [(&str, wasm_encoder::ComponentValType); 0])
            .result(None);
        signature.append_to_component(&mut self.out);

        let mut lifted = CanonicalFunctionSection::new();
        let first = types.function_count() + before.core_functions;
        let ty = types.component_type_count() + before.types;
        for function in [first, first + 1] {
            lifted.lift(function, ty, []);
        }
        lifted.append_to_component(&mut self.out);
        Ok(())
    }

    /// The functions of the components within.
    fn push_inner(&mut self) {
        let mut aliases = ComponentAliasSection::new();
        for (instance, images) in &self.imaged {
            for number in 0..*images {
                for name in [FREEZE, THAW] {
                    aliases.alias(Alias::InstanceExport {
                        instance: *instance,
                        kind: ComponentExportKind::Func,
                        name: &format!("{name}{number}"),
                    });
                }
            }
        }
        if !aliases.is_empty() {
            aliases.append_to_component(&mut self.out);
        }
    }
}

/// So many pairs of functions, from `first` on, under their numbers.
fn export_pairs(exports: &mut ComponentExportSection, first: u32, pairs: u32) {
    let names = (0..pairs).flat_map(|number| [FREEZE, THAW].map(|name| (name, number)));
    for (function, (name, number)) in (first..).zip(names) {
        let name = format!("{name}{number}");
        exports.export(&name, ComponentExportKind::Func, function, None);
    }
}

fn of(known: &[Origin], index: u32) -> Result<Origin, Halt> {
    Ok(known
        .get(index as usize)
        .copied()
        .ok_or(NoImage::PassedCode)?)
}

fn is_code(kind: ComponentExternalKind) -> bool {
    matches!(
        kind,
        ComponentExternalKind::Module | ComponentExternalKind::Component
    )
}

/// Names that differ in case only are one name.
fn refuse_taken_name(name: &str) -> Result<(), Halt> {
    let name = name.to_ascii_lowercase();
    let taken = [FREEZE, THAW].into_iter().chain(followers::NAMES);
    match taken.into_iter().any(|taken| name.starts_with(taken)) {
        true => Err(NoImage::TakenName.into()),
        false => Ok(()),
    }
}
