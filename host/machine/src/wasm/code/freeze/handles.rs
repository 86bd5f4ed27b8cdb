//! Which functions take or give handles.

use std::collections::HashSet;

use wasmparser::component_types::{
    ComponentDefinedType, ComponentDefinedTypeId, ComponentEntityType, ComponentFuncTypeId,
    ComponentInstanceTypeId, ComponentValType,
};
use wasmparser::types::TypesRef;

/// The types that were seen to mention no handle: each is looked into once.
#[derive(Default)]
pub(super) struct Plain {
    functions: HashSet<ComponentFuncTypeId>,
    instances: HashSet<ComponentInstanceTypeId>,
    values: HashSet<ComponentDefinedTypeId>,
}

impl Plain {
    /// Whether no function of an instance takes or gives a handle.
    pub(super) fn instance(&mut self, types: TypesRef<'_>, id: ComponentInstanceTypeId) -> bool {
        self.instances.contains(&id)
            || types[id].exports.values().all(|item| match item.ty {
                ComponentEntityType::Func(id) => self.function(types, id),
                ComponentEntityType::Instance(id) => self.instance(types, id),
                ComponentEntityType::Type { .. } => true,
                _ => false,
            }) && self.instances.insert(id)
    }

    /// Whether a function takes and gives no handle.
    pub(super) fn function(&mut self, types: TypesRef<'_>, id: ComponentFuncTypeId) -> bool {
        if self.functions.contains(&id) {
            return true;
        }
        let parameters = types[id].params.iter().map(|(_, ty)| ty);
        let is_plain = parameters
            .chain(&types[id].result)
            .all(|ty| self.value(types, ty));
        is_plain && self.functions.insert(id)
    }

    fn value(&mut self, types: TypesRef<'_>, ty: &ComponentValType) -> bool {
        let ComponentValType::Type(id) = *ty else {
            return true;
        };
        if self.values.contains(&id) {
            return true;
        }
        let parts: Vec<ComponentValType> = match &types[id] {
            ComponentDefinedType::Primitive(_)
            | ComponentDefinedType::Flags(_)
            | ComponentDefinedType::Enum(_) => Vec::new(),
            ComponentDefinedType::Record(record) => record.fields.values().copied().collect(),
            ComponentDefinedType::Variant(variant) => {
                variant.cases.values().filter_map(|case| case.ty).collect()
            }
            ComponentDefinedType::Tuple(tuple) => tuple.types.to_vec(),
            ComponentDefinedType::List { element, .. } => vec![*element],
            ComponentDefinedType::Option { ty, .. } => vec![*ty],
            ComponentDefinedType::Result { ok, err, .. } => ok.iter().chain(err).copied().collect(),
            // A handle, or what this host does not know.
            _ => return false,
        };
        parts.iter().all(|ty| self.value(types, ty)) && self.values.insert(id)
    }
}
