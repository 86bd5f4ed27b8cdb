//! Functions that have the handles of one instance given to another one.
//!
//! For each import that gives handles the component gets, behind all that is its own:
//!
//! ```text
//! (import "skep-handle-x…" (func $given (result (own $r))))   ;; the host's: the handle that is to be given
//! (core func $give (canon lower (func $given)))
//! (core func $take (canon resource.drop $r))
//! (func (export "skep-give-x…") (result u32) (canon lift (core func $give)))
//! (func (export "skep-take-x…") (param "at" u32) (canon lift (core func $take)))
//! ```
//!
//! Nothing of the guest's runs in them, and the table that they change is that of the guest's own instance.

use std::fmt::Write;

use wasm_encoder::{
    CanonicalFunctionSection, ComponentExportKind, ComponentExportSection, ComponentImportSection,
    ComponentSection, ComponentTypeRef, ComponentTypeSection, ComponentValType, PrimitiveValType,
};
use wasmparser::component_types::{
    ComponentAnyTypeId, ComponentDefinedType, ComponentEntityType, ComponentFuncTypeId,
    ComponentValType as ValTypeId, ResourceId,
};
use wasmparser::types::TypesRef;

use crate::wasm::world::imports::Import;

/// What the functions of one import are called, before its name in hexadecimal digits, which no other name is like.
pub(super) const NAMES: [&str; 3] = ["skep-handle-", "skep-give-", "skep-take-"];

/// The functions that follow an import which gives handles, by name.
pub(in crate::wasm::code) struct Follower {
    /// The host's function, which the component imports.
    given: String,
    /// Gives a handle, and says where it stands.
    pub(in crate::wasm::code) give: String,
    /// Takes back the handle that stands somewhere.
    pub(in crate::wasm::code) take_back: String,
}

impl Follower {
    /// Of the import of this name.
    pub(in crate::wasm::code) fn of(import: &str) -> Self {
        let mut hex = String::from("x");
        for byte in import.bytes() {
            let _ = write!(hex, "{byte:02x}");
        }
        let [given, give, take_back] = NAMES.map(|name| format!("{name}{hex}"));
        Self {
            given,
            give,
            take_back,
        }
    }

    /// The import whose follower imports a function of this name.
    pub(in crate::wasm::code) fn import_of(given: &str) -> Option<String> {
        let hex = given.strip_prefix(NAMES[0])?.strip_prefix('x')?;
        let digits = hex.as_bytes().chunks(2);
        let bytes = digits.map(|pair| u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok());
        String::from_utf8(bytes.collect::<Option<_>>()?).ok()
    }
}

/// An import that gives handles: its name, and the type of what it gives.
pub(super) struct Giver {
    import: String,
    resource: u32,
}

impl Giver {
    /// The import of this name and instance, if it gives handles of one type.
    pub(super) fn of(types: TypesRef<'_>, import: &str, instance: u32) -> Option<Self> {
        if !Import::gives_handles(import) {
            return None;
        }
        let instance = types.component_instance_at(instance);
        let exports = types[instance].exports.values();
        let mut given = exports.filter_map(|item| match item.ty {
            ComponentEntityType::Func(id) => given_by(types, id),
            _ => None,
        });
        let resource = given.next()?;
        if given.any(|other| other != resource) {
            return None;
        }
        let index = (0..types.component_type_count()).find(|index| {
            let ty = types.component_any_type_at(*index);
            matches!(ty, ComponentAnyTypeId::Resource(id) if id.resource() == resource)
        })?;
        let import = import.to_owned();
        Some(Self {
            import,
            resource: index,
        })
    }
}

fn given_by(types: TypesRef<'_>, function: ComponentFuncTypeId) -> Option<ResourceId> {
    match types[function].result? {
        ValTypeId::Type(id) => match types[id] {
            ComponentDefinedType::Own(resource) => Some(resource.resource()),
            _ => None,
        },
        ValTypeId::Primitive(_) => None,
    }
}

/// Adds the functions of these to a component, and gives how many there are, lifted ones behind lowered ones.
pub(super) fn push(out: &mut Vec<u8>, types: TypesRef<'_>, givers: &[Giver]) -> Added {
    let count = givers.len() as u32;
    let (first_type, first) = (
        types.component_type_count(),
        types.component_function_count(),
    );
    let first_core = types.function_count();
    let u32 = ComponentValType::Primitive(PrimitiveValType::U32);
    let none = [] as [(&str, ComponentValType); 0];

    let mut signatures = ComponentTypeSection::new();
    signatures.function().params(none).result(Some(u32));
    signatures.function().params([("at", u32)]).result(None);
    let mut imports = ComponentImportSection::new();
    let mut functions = CanonicalFunctionSection::new();
    for (number, giver) in (0..).zip(givers) {
        let own = first_type + 2 + 2 * number;
        signatures.defined_type().own(giver.resource);
        let handle = Some(ComponentValType::Type(own));
        signatures.function().params(none).result(handle);
        let name = Follower::of(&giver.import).given;
        imports.import(&name, ComponentTypeRef::Func(own + 1));
        functions.lower(first + number, []);
        functions.resource_drop(giver.resource);
    }
    for number in 0..count {
        functions.lift(first_core + 2 * number, first_type, []);
        functions.lift(first_core + 2 * number + 1, first_type + 1, []);
    }
    signatures.append_to_component(out);
    imports.append_to_component(out);
    functions.append_to_component(out);
    Added {
        types: 2 + 2 * count,
        functions: 3 * count,
        core_functions: 2 * count,
    }
}

/// Exports what was added, once nothing more is counted by index.
pub(super) fn export(exports: &mut ComponentExportSection, types: TypesRef<'_>, givers: &[Giver]) {
    let first = types.component_function_count() + givers.len() as u32;
    let names = givers.iter().flat_map(|giver| {
        let Follower {
            give, take_back, ..
        } = Follower::of(&giver.import);
        [give, take_back]
    });
    for (function, name) in (first..).zip(names) {
        exports.export(&name, ComponentExportKind::Func, function, None);
    }
}

/// How many of each kind stand behind the component's own.
#[derive(Clone, Copy, Default)]
pub(super) struct Added {
    pub(super) types: u32,
    pub(super) functions: u32,
    pub(super) core_functions: u32,
}
