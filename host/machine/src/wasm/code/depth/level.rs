//! Rewrites the sections of a component, and of the modules in it, one after the other.

use wasmparser::{
    ComponentAlias, ComponentExternalKind, ComponentInstance, ComponentOuterAliasKind,
    ComponentTypeRef, Encoding, ExternalKind, FuncType, FunctionBody, Instance, Operator, Payload,
    TypeRef, ValType,
};

use super::cost::{LEAF_BYTES, Shape};
use super::counter::{Counter, counter_module, push_counter_import};
use crate::wasm::code::rewriting::encode::{
    GLOBAL_GET, GLOBAL_SET, SECTION_ALIAS, SECTION_CODE, SECTION_COMPONENT_MODULE,
    SECTION_CORE_INSTANCE, SECTION_CUSTOM, SECTION_IMPORT, SECTION_TYPE, SORT_CORE_INSTANCE,
    core_sort, push_func_type, push_name, push_s33, push_section, push_u32, push_val_type,
    without_count,
};
use crate::wasm::code::rewriting::error::{COUNTER_MODULE, RewriteError};

/// One module or component being copied.
pub(super) struct Level {
    pub(super) encoding: Encoding,
    pub(super) out: Vec<u8>,
    /// Of a module: index of the block type `() -> results` of each function type with several results.
    block_types: Vec<(FuncType, u32)>,
    /// Of a module: globals it imports, so also the index of the counter, which is imported behind them.
    globals: u32,
    counter_imported: bool,
    code: Option<Code>,
    /// Of a component: its core modules so far, the host's own not among them.
    pub(super) modules: u32,
    /// Of a component: the index of the module that holds the counter, once something was instantiated.
    counter_module: Option<u32>,
}

struct Code {
    left: u32,
    contents: Vec<u8>,
}

impl Level {
    pub(super) fn new(encoding: Encoding, header: &[u8]) -> Self {
        Self {
            encoding,
            out: header.to_vec(),
            block_types: Vec::new(),
            globals: 0,
            counter_imported: false,
            code: None,
            modules: 0,
            counter_module: None,
        }
    }

    pub(super) fn component_section(
        &mut self,
        bytes: &[u8],
        payload: &Payload<'_>,
        outer: &[Level],
    ) -> Result<(), RewriteError> {
        let Some((id, range)) = payload.as_section() else {
            return Ok(());
        };
        match payload {
            Payload::InstanceSection(instances) => self.core_instances(instances.clone())?,
            Payload::ComponentAliasSection(aliases) => {
                self.aliases(bytes, range, aliases.clone(), outer)?;
            }
            other => {
                if passes_modules(other)? {
                    return Err(RewriteError::PassedModule);
                }
                push_section(&mut self.out, id, &bytes[range]);
            }
        }
        Ok(())
    }

    /// Gives every module that is instantiated the counter. The first section of this kind gets the counter itself in front
    /// of it, so the counter is core instance 0 and all others come one later.
    fn core_instances(
        &mut self,
        instances: wasmparser::InstanceSectionReader<'_>,
    ) -> Result<(), RewriteError> {
        if self.counter_module.is_none() {
            self.counter_module = Some(self.modules);
            push_section(&mut self.out, SECTION_COMPONENT_MODULE, &counter_module());
            let mut contents = vec![1, 0x00];
            push_u32(&mut contents, self.modules);
            contents.push(0);
            push_section(&mut self.out, SECTION_CORE_INSTANCE, &contents);
        }
        let mut contents = Vec::new();
        push_u32(&mut contents, instances.count());
        for instance in instances {
            match instance? {
                Instance::Instantiate { module_index, args } => {
                    contents.push(0x00);
                    push_u32(&mut contents, self.module_index(module_index));
                    push_u32(&mut contents, args.len() as u32 + 1);
                    for arg in &args {
                        push_name(&mut contents, arg.name);
                        contents.push(SORT_CORE_INSTANCE);
                        push_u32(&mut contents, arg.index + 1);
                    }
                    push_name(&mut contents, COUNTER_MODULE);
                    contents.push(SORT_CORE_INSTANCE);
                    push_u32(&mut contents, 0);
                }
                Instance::FromExports(exports) => {
                    contents.push(0x01);
                    push_u32(&mut contents, exports.len() as u32);
                    for export in &exports {
                        push_name(&mut contents, export.name);
                        contents.push(core_sort(export.kind)?);
                        push_u32(&mut contents, export.index);
                    }
                }
            }
        }
        push_section(&mut self.out, SECTION_CORE_INSTANCE, &contents);
        Ok(())
    }

    fn aliases(
        &mut self,
        bytes: &[u8],
        range: std::ops::Range<usize>,
        aliases: wasmparser::ComponentAliasSectionReader<'_>,
        outer: &[Level],
    ) -> Result<(), RewriteError> {
        let mut contents = Vec::new();
        push_u32(&mut contents, aliases.count());
        let items = aliases
            .into_iter_with_offsets()
            .collect::<Result<Vec<_>, _>>()?;
        let ends = items
            .iter()
            .skip(1)
            .map(|(start, _)| *start)
            .chain([range.end]);
        for ((start, alias), end) in items.iter().zip(ends) {
            match alias {
                ComponentAlias::CoreInstanceExport {
                    kind,
                    instance_index,
                    name,
                } => {
                    contents.extend_from_slice(&[0x00, core_sort(*kind)?, 0x01]);
                    push_u32(&mut contents, instance_index + 1);
                    push_name(&mut contents, name);
                }
                ComponentAlias::Outer {
                    kind: ComponentOuterAliasKind::CoreModule,
                    count,
                    index,
                } => {
                    let of = match (*count as usize).checked_sub(1) {
                        None => Some(&*self),
                        Some(out) => outer.iter().rev().nth(out),
                    };
                    let of = of.ok_or(RewriteError::Unknown("an alias"))?;
                    let index = of.module_index(*index);
                    contents.extend_from_slice(&[0x00, 0x11, 0x02]);
                    push_u32(&mut contents, *count);
                    push_u32(&mut contents, index);
                    self.modules += 1;
                }
                ComponentAlias::InstanceExport {
                    kind: ComponentExternalKind::Module,
                    ..
                } => return Err(RewriteError::PassedModule),
                _ => contents.extend_from_slice(&bytes[*start..end]),
            }
        }
        push_section(&mut self.out, SECTION_ALIAS, &contents);
        Ok(())
    }

    /// Where a module of this component is with the counter's among them.
    fn module_index(&self, index: u32) -> u32 {
        index + u32::from(self.counter_module.is_some_and(|counter| index >= counter))
    }

    pub(super) fn section(
        &mut self,
        bytes: &[u8],
        payload: &Payload<'_>,
    ) -> Result<(), RewriteError> {
        if let Payload::CodeSectionStart { count, .. } = payload {
            self.import_counter_before(SECTION_CODE);
            let mut contents = Vec::new();
            push_u32(&mut contents, *count);
            self.code = Some(Code {
                left: *count,
                contents,
            });
            return self.end_code_if_done();
        }
        let Some((id, range)) = payload.as_section() else {
            return Ok(());
        };
        let section = &bytes[range];
        self.import_counter_before(id);
        match payload {
            Payload::TypeSection(types) => self.types(section, types.clone())?,
            Payload::ImportSection(imports) => {
                for import in imports.clone().into_imports() {
                    let import = import?;
                    if import.module == COUNTER_MODULE {
                        return Err(RewriteError::TakenName);
                    }
                    self.globals += u32::from(matches!(import.ty, TypeRef::Global(_)));
                }
                self.counter_imported = true;
                let mut contents = Vec::new();
                push_u32(&mut contents, imports.count() + 1);
                contents.extend_from_slice(without_count(section)?);
                push_counter_import(&mut contents);
                push_section(&mut self.out, id, &contents);
            }
            Payload::ExportSection(exports) => {
                let mut contents = Vec::new();
                push_u32(&mut contents, exports.count());
                for export in exports.clone() {
                    let export = export?;
                    push_name(&mut contents, export.name);
                    contents.push(core_sort(export.kind)?);
                    let index = match export.kind {
                        ExternalKind::Global => self.global_index(export.index),
                        _ => export.index,
                    };
                    push_u32(&mut contents, index);
                }
                push_section(&mut self.out, id, &contents);
            }
            // Constant expressions read imported globals only, and those stay where they are.
            _ => push_section(&mut self.out, id, section),
        }
        Ok(())
    }

    /// Where a global of this module is with the counter among them: behind the imported ones, before its own.
    fn global_index(&self, index: u32) -> u32 {
        index + u32::from(index >= self.globals)
    }

    /// Adds a block type for each list of several results; one or none is encoded in the block itself.
    fn types(
        &mut self,
        section: &[u8],
        types: wasmparser::TypeSectionReader<'_>,
    ) -> Result<(), RewriteError> {
        let count = types.count();
        let mut added = Vec::new();
        for ty in types.into_iter_err_on_gc_types() {
            let block = FuncType::new([], ty?.results().iter().copied());
            if block.results().len() > 1
                && !self.block_types.iter().any(|(known, _)| *known == block)
            {
                push_func_type(&mut added, &block)?;
                let index = count + self.block_types.len() as u32;
                self.block_types.push((block, index));
            }
        }
        let mut contents = Vec::new();
        push_u32(&mut contents, count + self.block_types.len() as u32);
        contents.extend_from_slice(without_count(section)?);
        contents.extend_from_slice(&added);
        push_section(&mut self.out, SECTION_TYPE, &contents);
        Ok(())
    }

    /// A module without imports gets a section for the counter, at the place where it belongs.
    fn import_counter_before(&mut self, next: u8) {
        let may_come_before = [SECTION_CUSTOM, SECTION_TYPE, SECTION_IMPORT];
        if !self.counter_imported && !may_come_before.contains(&next) {
            self.counter_imported = true;
            let mut contents = vec![1];
            push_counter_import(&mut contents);
            push_section(&mut self.out, SECTION_IMPORT, &contents);
        }
    }

    pub(super) fn function(
        &mut self,
        bytes: &[u8],
        body: &FunctionBody<'_>,
        limit: u32,
        shape: &Shape,
        results: &[ValType],
    ) -> Result<(), RewriteError> {
        let cost = shape.cost();
        let mut function = Vec::with_capacity(body.range().len() + 64);
        if !shape.calls && cost <= LEAF_BYTES {
            self.copy(&mut function, bytes, body)?;
        } else {
            let counter = Counter {
                global: self.globals,
                cost,
                limit,
            };
            self.count(&mut function, bytes, body, &counter, results)?;
        }
        if let Some(code) = &mut self.code {
            push_u32(&mut code.contents, function.len() as u32);
            code.contents.extend_from_slice(&function);
            code.left -= 1;
        }
        self.end_code_if_done()
    }

    /// A function that counts nothing.
    fn copy(
        &self,
        out: &mut Vec<u8>,
        bytes: &[u8],
        body: &FunctionBody<'_>,
    ) -> Result<(), RewriteError> {
        let mut operators = body.get_operators_reader()?;
        out.extend_from_slice(&bytes[body.range().start..operators.original_position()]);
        while !operators.eof() {
            let start = operators.original_position();
            let operator = operators.read()?;
            self.push_operator(out, &operator, &bytes[start..operators.original_position()]);
        }
        Ok(())
    }

    fn count(
        &self,
        out: &mut Vec<u8>,
        bytes: &[u8],
        body: &FunctionBody<'_>,
        counter: &Counter,
        results: &[ValType],
    ) -> Result<(), RewriteError> {
        let mut operators = body.get_operators_reader()?;
        out.extend_from_slice(&bytes[body.range().start..operators.original_position()]);
        counter.enter(out);
        out.push(0x02); // block
        out.extend_from_slice(&self.block_type(results)?);

        // Labels are relative, so all but the function's own stay right: the new block takes the place of that one. The
        // depth counts the blocks around an operator, the new one not among them.
        let mut depth = 0u32;
        while !operators.eof() {
            let start = operators.original_position();
            let operator = operators.read()?;
            match operator {
                Operator::Return => {
                    out.push(0x0c); // br
                    push_u32(out, depth);
                    continue;
                }
                Operator::ReturnCall { .. } | Operator::ReturnCallIndirect { .. } => {
                    counter.leave(out);
                }
                Operator::Block { .. } | Operator::Loop { .. } | Operator::If { .. } => depth += 1,
                // The last end closes the new block.
                Operator::End => depth = depth.saturating_sub(1),
                _ => {}
            }
            self.push_operator(out, &operator, &bytes[start..operators.original_position()]);
        }
        counter.leave(out);
        out.push(0x0b); // end
        Ok(())
    }

    fn push_operator(&self, out: &mut Vec<u8>, operator: &Operator<'_>, raw: &[u8]) {
        let (code, global) = match operator {
            Operator::GlobalGet { global_index } => (GLOBAL_GET, *global_index),
            Operator::GlobalSet { global_index } => (GLOBAL_SET, *global_index),
            _ => return out.extend_from_slice(raw),
        };
        out.push(code);
        push_u32(out, self.global_index(global));
    }

    fn end_code_if_done(&mut self) -> Result<(), RewriteError> {
        if let Some(code) = self.code.take_if(|code| code.left == 0) {
            push_section(&mut self.out, SECTION_CODE, &code.contents);
        }
        Ok(())
    }

    fn block_type(&self, results: &[ValType]) -> Result<Vec<u8>, RewriteError> {
        let mut encoded = Vec::new();
        match results {
            [] => encoded.push(0x40),
            [one] => push_val_type(&mut encoded, *one)?,
            several => {
                let known = self
                    .block_types
                    .iter()
                    .find(|(block, _)| block.results() == several);
                let (_, index) = known.ok_or(RewriteError::Unknown("a function type"))?;
                push_s33(&mut encoded, *index);
            }
        }
        Ok(encoded)
    }
}

/// Whether a section of a component hands core modules on, so that nobody could tell which module is instantiated where.
fn passes_modules(payload: &Payload<'_>) -> Result<bool, RewriteError> {
    let is_module = |kind: ComponentExternalKind| kind == ComponentExternalKind::Module;
    match payload {
        Payload::ComponentImportSection(imports) => {
            for import in imports.clone() {
                if matches!(import?.ty, ComponentTypeRef::Module(_)) {
                    return Ok(true);
                }
            }
        }
        Payload::ComponentExportSection(exports) => {
            for export in exports.clone() {
                if is_module(export?.kind) {
                    return Ok(true);
                }
            }
        }
        Payload::ComponentInstanceSection(instances) => {
            for instance in instances.clone() {
                let passed = match instance? {
                    ComponentInstance::Instantiate { args, .. } => {
                        args.iter().any(|arg| is_module(arg.kind))
                    }
                    ComponentInstance::FromExports(exports) => {
                        exports.iter().any(|export| is_module(export.kind))
                    }
                };
                if passed {
                    return Ok(true);
                }
            }
        }
        _ => {}
    }
    Ok(false)
}
