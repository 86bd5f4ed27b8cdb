//! How much a component becomes when it is put together. A component may hold components and instantiate each many
//! times; a compiler writes every one of these instances out. So a few hundred bytes can ask for a thousand million
//! instances, and are counted before a compiler sees them.

use wasmparser::{
    ComponentAlias, ComponentExternalKind, ComponentInstance, ComponentOuterAliasKind,
    ComponentTypeRef, Instance, Parser, Payload,
};

use crate::wasm::error::ComponentError;

/// Components within one another, and modules within those. What toolchains make is three deep, and composing adds one.
/// Each level is copied once for each level around it.
pub const MAX_DEPTH: usize = 16;

/// Items (instances, aliases, functions lifted and lowered, imports, exports) of a component with all that it
/// instantiates, written out. Python with its standard library has a few thousand; compiling takes some microseconds and
/// some hundred bytes for each.
pub const MAX_ITEMS: u64 = 100_000;

/// What an instance of a component becomes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Size {
    /// Items written out: see [`MAX_ITEMS`].
    pub(crate) items: u64,
    /// Linear memories.
    pub(crate) memories: u64,
    /// Components with code, the outermost among them: each counts its stack for itself.
    pub(crate) scopes: u64,
}

impl Size {
    fn add(&mut self, other: Self) {
        self.items = self.items.saturating_add(other.items);
        self.memories = self.memories.saturating_add(other.memories);
        self.scopes = self.scopes.saturating_add(other.scopes);
    }
}

/// What a component becomes that was inspected before.
pub(crate) fn size_of(bytes: &[u8]) -> Result<Size, ComponentError> {
    let mut expansion = Expansion::default();
    let read = Parser::new(0)
        .parse_all(bytes)
        .try_for_each(|payload| expansion.read(&payload?));
    match read {
        Ok(()) => Ok(expansion.size()),
        Err(Uncounted::Refused(error)) => Err(error),
        Err(Uncounted::Broken(error)) => Err(ComponentError::Invalid(error.to_string())),
    }
}

/// Counts while the sections of a component go by.
#[derive(Default)]
pub(crate) struct Expansion {
    levels: Vec<Level>,
    whole: Size,
}

/// A component or a module that is being read.
#[derive(Default)]
struct Level {
    size: Size,
    /// What one instance of each component known here becomes, by the component's index.
    components: Vec<Size>,
    /// The memories of each module known here, by the module's index.
    modules: Vec<u64>,
    is_component: bool,
    /// It instantiates modules of its own.
    has_code: bool,
}

/// Why counting ended.
#[derive(Debug)]
pub(crate) enum Uncounted {
    Refused(ComponentError),
    Broken(wasmparser::Error),
}

impl From<wasmparser::Error> for Uncounted {
    fn from(error: wasmparser::Error) -> Self {
        Self::Broken(error)
    }
}

impl Expansion {
    /// What the component becomes that was read to its end.
    pub(crate) fn size(&self) -> Size {
        self.whole
    }

    pub(crate) fn read(&mut self, payload: &Payload<'_>) -> Result<(), Uncounted> {
        match payload {
            Payload::Version { encoding, .. } => {
                if self.levels.len() == MAX_DEPTH {
                    return Err(Uncounted::Refused(ComponentError::TooDeep {
                        limit: MAX_DEPTH,
                    }));
                }
                self.levels.push(Level {
                    is_component: *encoding == wasmparser::Encoding::Component,
                    ..Level::default()
                });
                return Ok(());
            }
            Payload::End(_) => {
                let Some(mut done) = self.levels.pop() else {
                    return Ok(());
                };
                match self.levels.last_mut() {
                    None => self.whole = done.size,
                    Some(outer) if done.is_component => {
                        done.items(1);
                        outer.components.push(done.size);
                    }
                    Some(outer) => outer.modules.push(done.size.memories),
                }
                return Ok(());
            }
            _ => {}
        }
        let Some((level, outer)) = self.levels.split_last_mut() else {
            return Ok(());
        };
        match payload {
            Payload::MemorySection(memories) => level.size.memories = u64::from(memories.count()),
            Payload::InstanceSection(instances) if level.is_component => {
                level.items(u64::from(instances.count()));
                // Components instantiated before are counted there already.
                if !std::mem::replace(&mut level.has_code, true) {
                    level.size.scopes = level.size.scopes.saturating_add(1);
                }
                for instance in instances.clone() {
                    if let Instance::Instantiate { module_index, .. } = instance? {
                        level.add(Size {
                            memories: level.of_module(module_index),
                            ..Size::default()
                        });
                    }
                }
            }
            Payload::ComponentCanonicalSection(functions) => {
                level.items(u64::from(functions.count()))
            }
            Payload::ComponentInstanceSection(instances) => {
                for instance in instances.clone() {
                    match instance? {
                        ComponentInstance::Instantiate {
                            component_index, ..
                        } => level.add(level.of_component(component_index)),
                        ComponentInstance::FromExports(_) => level.items(1),
                    }
                }
            }
            Payload::ComponentAliasSection(aliases) => {
                for alias in aliases.clone() {
                    level.items(1);
                    match alias? {
                        ComponentAlias::Outer { kind, count, index } => {
                            // What there is not is for the validator to refuse.
                            let of = match (count as usize).checked_sub(1) {
                                None => Some(&*level),
                                Some(out) => outer.iter().rev().nth(out),
                            };
                            match (kind, of) {
                                (ComponentOuterAliasKind::Component, Some(of)) => {
                                    let size = of.of_component(index);
                                    level.components.push(size);
                                }
                                (ComponentOuterAliasKind::CoreModule, Some(of)) => {
                                    let memories = of.of_module(index);
                                    level.modules.push(memories);
                                }
                                _ => {}
                            }
                        }
                        ComponentAlias::InstanceExport {
                            kind: ComponentExternalKind::Component,
                            ..
                        } => return Err(Uncounted::Refused(ComponentError::PassedComponent)),
                        _ => {}
                    }
                }
            }
            Payload::ComponentImportSection(imports) => {
                for import in imports.clone() {
                    level.items(1);
                    if matches!(import?.ty, ComponentTypeRef::Component(_)) {
                        return Err(Uncounted::Refused(ComponentError::PassedComponent));
                    }
                }
            }
            Payload::ComponentExportSection(exports) => {
                for export in exports.clone() {
                    let export = export?;
                    level.items(1);
                    if export.kind == ComponentExternalKind::Component {
                        level.components.push(level.of_component(export.index));
                    }
                }
            }
            _ => {}
        }
        if level.size.items > MAX_ITEMS {
            return Err(Uncounted::Refused(ComponentError::TooManyItems {
                limit: MAX_ITEMS,
            }));
        }
        Ok(())
    }
}

impl Level {
    fn add(&mut self, size: Size) {
        self.size.add(size);
    }

    fn items(&mut self, items: u64) {
        self.size.items = self.size.items.saturating_add(items);
    }

    /// What an instance of a component becomes. An index that there is not is for the validator to refuse.
    fn of_component(&self, index: u32) -> Size {
        self.components
            .get(index as usize)
            .copied()
            .unwrap_or_default()
    }

    fn of_module(&self, index: u32) -> u64 {
        self.modules.get(index as usize).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(text: &str) -> Result<Size, Uncounted> {
        let bytes = wat::parse_str(text).unwrap();
        let mut expansion = Expansion::default();
        Parser::new(0)
            .parse_all(&bytes)
            .try_for_each(|payload| expansion.read(&payload?))?;
        Ok(expansion.size())
    }

    #[test]
    fn memories_and_components_with_code_are_counted_as_often_as_they_are_instantiated() {
        let text = "(component
            (core module $m (memory 1) (memory 1))
            (core instance (instantiate $m)) (core instance (instantiate $m))
            (component $c (alias outer 1 $m (core module $n)) (core instance (instantiate $n))
                (component $types))
            (instance (instantiate $c)) (instance (instantiate $c)) (instance (instantiate $c)))";
        let size = count(text).unwrap();
        assert_eq!((size.memories, size.scopes), (4 + 3 * 2, 1 + 3));
    }

    #[test]
    fn a_component_counts_whether_its_code_comes_before_its_children_or_behind_them() {
        let tower = |of: fn(&str, &str) -> String| {
            let code = "(core module $m) (core instance (instantiate $m)) (core instance (instantiate $m))";
            (1..10).fold(format!("(component {code})"), |inner, _| {
                let child = inner.replacen("(component", "(component $c", 1);
                let child =
                    format!("{child} (instance (instantiate $c)) (instance (instantiate $c))");
                format!("(component {})", of(&child, code))
            })
        };
        for text in [
            tower(|child, code| format!("{child} {code}")),
            tower(|child, code| format!("{code} {child}")),
        ] {
            assert_eq!(count(&text).unwrap().scopes, (1 << 10) - 1, "{text}");
        }
    }

    fn tenfold(levels: usize) -> String {
        let mut text =
            "(component (component $c0 (core module $m) (core instance (instantiate $m)))"
                .to_owned();
        for level in 1..=levels {
            let instances = "(instance (instantiate $c))".repeat(10);
            text += &format!(
                "(component $c{level} (alias outer 1 $c{} (component $c)) {instances})",
                level - 1
            );
        }
        text + &format!("(instance (instantiate $c{levels})))")
    }

    #[test]
    fn instances_of_instances_are_counted_as_they_will_be_written_out() {
        count(&tenfold(3)).unwrap();
        for levels in [5, 8, 40] {
            assert!(
                matches!(
                    count(&tenfold(levels)),
                    Err(Uncounted::Refused(ComponentError::TooManyItems { .. }))
                ),
                "{levels}"
            );
        }
    }

    #[test]
    fn depth_has_an_end() {
        let nested = |depth: usize| "(component ".repeat(depth) + &")".repeat(depth);
        count(&nested(MAX_DEPTH)).unwrap();
        assert!(matches!(
            count(&nested(MAX_DEPTH + 1)),
            Err(Uncounted::Refused(ComponentError::TooDeep { .. }))
        ));
    }

    #[test]
    fn a_component_that_comes_from_elsewhere_cannot_be_counted() {
        for text in [
            "(component (component (import \"c\" (component $c)) (instance (instantiate $c))))",
            "(component (component $d (component $c) (export \"c\" (component $c))) (instance $i (instantiate $d)) \
             (alias export $i \"c\" (component $c)) (instance (instantiate $c)))",
        ] {
            assert!(
                matches!(
                    count(text),
                    Err(Uncounted::Refused(ComponentError::PassedComponent))
                ),
                "{text}"
            );
        }
    }
}
