//! A core module, with exports of what changes in it.

use std::rc::Rc;

use wasmparser::types::TypesRef;
use wasmparser::{ExportSectionReader, FunctionBody, Operator, Payload, TypeRef, ValType};

use super::{Halt, NoImage, RewriteError};
use crate::wasm::code::rewriting::encode::{
    SECTION_CODE, SECTION_DATA, SECTION_DATA_COUNT, SECTION_ELEMENT, SECTION_EXPORT, SECTION_START,
    push_name, push_section, push_u32, without_count,
};

/// What the names of globals begin with; their index follows.
const GLOBAL_PREFIX: &str = "skep:g";
/// What the names of memories begin with; their index follows.
const MEMORY_PREFIX: &str = "skep:m";

// Kinds of what is exported.
const MEMORY: u8 = 0x02;
const GLOBAL: u8 = 0x03;

/// What changes in an instance of a core module, of what the module defines.
#[derive(Default)]
pub(super) struct State {
    /// Mutable globals: index and type.
    pub(super) globals: Vec<(u32, ValType)>,
    /// Memories: index.
    pub(super) memories: Vec<u32>,
}

/// One module may be instantiated by several components.
pub(super) type Shared = Rc<State>;

impl State {
    pub(super) fn is_empty(&self) -> bool {
        self.globals.is_empty() && self.memories.is_empty()
    }
}

/// What a module's global is exported as.
pub(super) fn global_name(index: u32) -> String {
    format!("{GLOBAL_PREFIX}{index}")
}

/// What a module's memory is exported as.
pub(super) fn memory_name(index: u32) -> String {
    format!("{MEMORY_PREFIX}{index}")
}

/// A core module that is being copied.
pub(super) struct ModuleLevel {
    out: Vec<u8>,
    imported_globals: u32,
    imported_memories: u32,
    /// What it exports for the host, once it does.
    exported: Option<Shared>,
}

impl ModuleLevel {
    pub(super) fn new(header: &[u8]) -> Self {
        Self {
            out: header.to_vec(),
            imported_globals: 0,
            imported_memories: 0,
            exported: None,
        }
    }

    pub(super) fn section(
        &mut self,
        bytes: &[u8],
        payload: &Payload<'_>,
        types: TypesRef<'_>,
    ) -> Result<(), Halt> {
        let Some((id, range)) = payload.as_section() else {
            return Ok(());
        };
        // A section of code is announced before it is there.
        let section = bytes.get(range).ok_or(RewriteError::Cut)?;
        match payload {
            Payload::ImportSection(imports) => {
                for import in imports.clone().into_imports() {
                    match import?.ty {
                        TypeRef::Global(_) => self.imported_globals += 1,
                        TypeRef::Memory(_) => self.imported_memories += 1,
                        _ => {}
                    }
                }
            }
            Payload::ExportSection(exports) => {
                refuse_taken_names(exports)?;
                return self.export(exports.count(), without_count(section)?, types);
            }
            _ if comes_behind_exports(id) => self.export_if_not_yet(types)?,
            _ => {}
        }
        push_section(&mut self.out, id, section);
        Ok(())
    }

    /// The module, and what changes in it.
    pub(super) fn end(mut self, types: TypesRef<'_>) -> Result<(Vec<u8>, Shared), Halt> {
        self.export_if_not_yet(types)?;
        Ok((self.out, self.exported.unwrap_or_default()))
    }

    /// A module without exports gets a section for them, at the place where it belongs.
    fn export_if_not_yet(&mut self, types: TypesRef<'_>) -> Result<(), Halt> {
        match self.exported {
            Some(_) => Ok(()),
            None => self.export(0, &[], types),
        }
    }

    /// Exports what changes, behind `count` exports of the module's own.
    fn export(&mut self, count: u32, own: &[u8], types: TypesRef<'_>) -> Result<(), Halt> {
        let state = self.state(types)?;
        let added = (state.globals.len() + state.memories.len()) as u32;
        let mut contents = Vec::with_capacity(own.len() + 16 * added as usize);
        push_u32(&mut contents, count.saturating_add(added));
        contents.extend_from_slice(own);
        let mut push = |name: &str, kind: u8, index: u32| {
            push_name(&mut contents, name);
            contents.push(kind);
            push_u32(&mut contents, index);
        };
        for index in &state.memories {
            push(&memory_name(*index), MEMORY, *index);
        }
        for (index, _) in &state.globals {
            push(&global_name(*index), GLOBAL, *index);
        }
        if count + added > 0 {
            push_section(&mut self.out, SECTION_EXPORT, &contents);
        }
        self.exported = Some(Rc::new(state));
        Ok(())
    }

    /// Its sections of memories and globals have gone by.
    fn state(&self, types: TypesRef<'_>) -> Result<State, Halt> {
        let mut state = State {
            memories: (self.imported_memories..types.memory_count()).collect(),
            ..State::default()
        };
        for index in self.imported_globals..types.global_count() {
            let global = types.global_at(index);
            match (global.mutable, global.content_type) {
                (false, _) => {}
                (true, ValType::Ref(_)) => return Err(NoImage::ReferenceGlobal.into()),
                (true, ty) => state.globals.push((index, ty)),
            }
        }
        Ok(state)
    }
}

fn comes_behind_exports(id: u8) -> bool {
    [
        SECTION_START,
        SECTION_ELEMENT,
        SECTION_DATA_COUNT,
        SECTION_CODE,
        SECTION_DATA,
    ]
    .contains(&id)
}

fn refuse_taken_names(exports: &ExportSectionReader<'_>) -> Result<(), Halt> {
    for export in exports.clone() {
        let name = export?.name;
        // A guest's own functions are called `skep:machine/…`.
        let is_taken = [GLOBAL_PREFIX, MEMORY_PREFIX].iter().any(|prefix| {
            name.strip_prefix(prefix)
                .is_some_and(|index| index.bytes().all(|byte| byte.is_ascii_digit()))
        });
        if is_taken {
            return Err(NoImage::TakenName.into());
        }
    }
    Ok(())
}

/// Looks for what changes an instance elsewhere than in its memories and globals.
pub(super) fn scan(body: &FunctionBody<'_>) -> Result<(), Halt> {
    let mut operators = body.get_operators_reader()?;
    while !operators.eof() {
        let refused = match operators.read()? {
            Operator::TableSet { .. }
            | Operator::TableGrow { .. }
            | Operator::TableFill { .. }
            | Operator::TableCopy { .. }
            | Operator::TableInit { .. } => NoImage::WrittenTable,
            Operator::MemoryInit { .. } | Operator::DataDrop { .. } | Operator::ElemDrop { .. } => {
                NoImage::LateSegment
            }
            _ => continue,
        };
        return Err(refused.into());
    }
    Ok(())
}
