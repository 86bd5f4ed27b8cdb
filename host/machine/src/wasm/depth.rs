//! Makes running out of stack the same on every replica.
//!
//! How deep a guest may recurse before the native stack ends depends on the machine code, so on the processor's family
//! and the compiler's release: that trap can never be an outcome. Every function of a component is therefore rewritten,
//! before it is compiled, to count the stack it uses, and to trap when the count passes a limit:
//!
//! ```text
//! depth += cost                      ;; from parameters, locals and the deepest operand stack
//! if depth > limit unreachable
//! block (result …)  …the body, `return` turned into a branch to the end of this block…  end
//! depth -= cost
//! ```
//!
//! The modules of a component call each other as they like, so they count in one global: a module of the host's own,
//! instantiated before all others, holds it, and every module imports it. Nothing of that kind can be shared by components
//! within one another; but of those each is entered once at a time (wasmtime traps where a component would be entered
//! again, and where it calls what is inside or around it). So each has a counter of its own, and an equal part of
//! [`STACK_LIMIT`] for its limit.
//!
//! Fewer than [`STACK_LIMIT`] counted bytes use far less than the native stack, so the count ends first; the native
//! limit stays as the second line, local to a replica. A trap ends the instance, so the count need not be unwound.

use wasmparser::{
    ComponentAlias, ComponentExternalKind, ComponentInstance, ComponentOuterAliasKind,
    ComponentTypeRef, CompositeInnerType, Encoding, ExternalKind, FuncType,
    FuncValidatorAllocations, FunctionBody, Instance, Operator, Parser, Payload, TypeRef, ValType,
    Validator, WasmModuleResources,
};

use super::engine::FEATURES;

/// Counted stack of a component with all that is inside it, in bytes: a quarter of the native stack. Frames are estimated
/// from above (16 bytes for each value that may be live), so the real use is less again.
const STACK_LIMIT: u32 = 2 << 20;

/// Version of the rewriting, for the key of the artefact cache.
pub(super) const VERSION: u32 = 2;

/// Bytes of a frame besides its values: return address, saved registers, what the compiler keeps at hand.
const FRAME_BYTES: u32 = 64;
/// Bytes of the largest value.
const VALUE_BYTES: u32 = 16;
/// A function that calls nothing cannot recurse; it is left alone if its one frame is small beside the native stack's
/// spare part.
const LEAF_BYTES: u32 = 4 << 10;

const SECTION_CUSTOM: u8 = 0;
const SECTION_TYPE: u8 = 1;
const SECTION_IMPORT: u8 = 2;
const SECTION_EXPORT: u8 = 7;
const SECTION_CODE: u8 = 10;
const SECTION_COMPONENT_MODULE: u8 = 1;
const SECTION_CORE_INSTANCE: u8 = 2;
const SECTION_COMPONENT_COMPONENT: u8 = 4;
const SECTION_ALIAS: u8 = 6;

/// Sort of a core instance, as the encoding has it.
const SORT_CORE_INSTANCE: u8 = 0x12;

/// What the modules import the counter from, and as what.
const COUNTER_MODULE: &str = "skep:stack";
const COUNTER_FIELD: &str = "s";

/// Why a component was not rewritten.
#[derive(Debug, thiserror::Error)]
pub(super) enum RewriteError {
    #[error(transparent)]
    Invalid(#[from] wasmparser::Error),
    #[error("it has {0} of a kind this host does not know")]
    Unknown(&'static str),
    #[error("it is empty")]
    Empty,
    #[error(
        "it passes core modules from one component to another; hold them instead (no toolchain makes this)"
    )]
    PassedModule,
    #[error("it imports from `{COUNTER_MODULE}`, which is the host's own name")]
    TakenName,
}

/// The component `bytes` with every core function counting its stack. `scopes` is the number of components with code that
/// it becomes when it is put together. Fails only on what does not validate, or hides which module runs where.
pub(super) fn count_stack(bytes: &[u8], scopes: u64) -> Result<Vec<u8>, RewriteError> {
    let limit = u64::from(STACK_LIMIT) / scopes.max(1);
    let mut validator = Validator::new_with_features(FEATURES);
    let mut allocations = FuncValidatorAllocations::default();
    let mut levels: Vec<Level> = Vec::new();

    for payload in Parser::new(0).parse_all(bytes) {
        let payload = payload?;
        let valid = validator.payload(&payload)?;
        match &payload {
            Payload::Version {
                encoding, range, ..
            } => levels.push(Level::new(*encoding, &bytes[range.clone()])),
            // What is nested is collected by its own level and put into the outer one at its end.
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => {}
            Payload::End(_) => {
                let Some(done) = levels.pop() else { continue };
                let Some(outer) = levels.last_mut() else {
                    return Ok(done.out);
                };
                let id = match done.encoding {
                    Encoding::Module => {
                        outer.modules += 1;
                        SECTION_COMPONENT_MODULE
                    }
                    Encoding::Component => SECTION_COMPONENT_COMPONENT,
                };
                push_section(&mut outer.out, id, &done.out);
            }
            Payload::CodeSectionEntry(body) => {
                let wasmparser::ValidPayload::Func(function, body_again) = valid else {
                    continue;
                };
                let mut function = function.into_validator(std::mem::take(&mut allocations));
                let shape = Shape::of(&mut function, &body_again)?;
                let results = results_of(function.resources(), function.index())?;
                allocations = function.into_allocations();
                if let Some(level) = levels.last_mut() {
                    level.function(bytes, body, limit as u32, &shape, &results)?;
                }
            }
            other => {
                if let Some((level, outer)) = levels.split_last_mut() {
                    match level.encoding {
                        Encoding::Module => level.section(bytes, other)?,
                        Encoding::Component => level.component_section(bytes, other, outer)?,
                    }
                }
            }
        }
    }
    Err(RewriteError::Empty)
}

/// What one function needs of the stack.
struct Shape {
    locals: u32,
    operands: u32,
    calls: bool,
}

impl Shape {
    fn of<T: WasmModuleResources>(
        function: &mut wasmparser::FuncValidator<T>,
        body: &FunctionBody<'_>,
    ) -> Result<Self, RewriteError> {
        let mut reader = body.get_binary_reader();
        function.read_locals(&mut reader)?;
        let mut shape = Self {
            locals: function.len_locals(),
            operands: 0,
            calls: false,
        };
        let mut operators = wasmparser::OperatorsReader::new(reader);
        while !operators.eof() {
            let (operator, offset) = operators.read_with_offset()?;
            function.op(offset, &operator)?;
            shape.operands = shape.operands.max(function.operand_stack_height());
            shape.calls |= matches!(
                operator,
                Operator::Call { .. }
                    | Operator::CallIndirect { .. }
                    | Operator::ReturnCall { .. }
                    | Operator::ReturnCallIndirect { .. }
            );
        }
        operators.finish()?;
        Ok(shape)
    }

    fn cost(&self) -> u32 {
        self.locals
            .saturating_add(self.operands)
            .saturating_mul(VALUE_BYTES)
            .saturating_add(FRAME_BYTES)
    }
}

/// One module or component being copied.
struct Level {
    encoding: Encoding,
    out: Vec<u8>,
    /// Of a module: index of the block type `() -> results` of each function type with several results.
    block_types: Vec<(FuncType, u32)>,
    /// Of a module: globals it imports, so also the index of the counter, which is imported behind them.
    globals: u32,
    counter_imported: bool,
    code: Option<Code>,
    /// Of a component: its core modules so far, the host's own not among them.
    modules: u32,
    /// Of a component: the index of the module that holds the counter, once something was instantiated.
    counter_module: Option<u32>,
}

struct Code {
    left: u32,
    contents: Vec<u8>,
}

impl Level {
    fn new(encoding: Encoding, header: &[u8]) -> Self {
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

    fn component_section(
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

    fn section(&mut self, bytes: &[u8], payload: &Payload<'_>) -> Result<(), RewriteError> {
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

    fn function(
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

/// `(module (global (export "s") (mut i32) (i32.const 0)))`.
fn counter_module() -> Vec<u8> {
    let mut module = b"\0asm\x01\0\0\0".to_vec();
    push_section(&mut module, 6, &[1, 0x7f, 0x01, 0x41, 0x00, 0x0b]);
    let mut export = vec![1];
    push_name(&mut export, COUNTER_FIELD);
    export.extend_from_slice(&[0x03, 0x00]);
    push_section(&mut module, SECTION_EXPORT, &export);
    module
}

/// `(import "skep:stack" "s" (global (mut i32)))`.
fn push_counter_import(out: &mut Vec<u8>) {
    push_name(out, COUNTER_MODULE);
    push_name(out, COUNTER_FIELD);
    out.extend_from_slice(&[0x03, 0x7f, 0x01]);
}

fn core_sort(kind: ExternalKind) -> Result<u8, RewriteError> {
    Ok(match kind {
        ExternalKind::Func => 0x00,
        ExternalKind::Table => 0x01,
        ExternalKind::Memory => 0x02,
        ExternalKind::Global => 0x03,
        _ => return Err(RewriteError::Unknown("an export")),
    })
}

const GLOBAL_GET: u8 = 0x23;
const GLOBAL_SET: u8 = 0x24;

struct Counter {
    global: u32,
    cost: u32,
    limit: u32,
}

impl Counter {
    fn enter(&self, out: &mut Vec<u8>) {
        self.add(out, 0x6a); // i32.add
        self.global_get(out);
        push_i32_const(out, self.limit as i32);
        out.extend_from_slice(&[0x4b, 0x04, 0x40, 0x00, 0x0b]); // i32.gt_u; if; unreachable; end
    }

    fn leave(&self, out: &mut Vec<u8>) {
        self.add(out, 0x6b); // i32.sub
    }

    fn add(&self, out: &mut Vec<u8>, operator: u8) {
        self.global_get(out);
        push_i32_const(out, self.cost.min(i32::MAX as u32 - STACK_LIMIT) as i32);
        out.push(operator);
        out.push(GLOBAL_SET);
        push_u32(out, self.global);
    }

    fn global_get(&self, out: &mut Vec<u8>) {
        out.push(GLOBAL_GET);
        push_u32(out, self.global);
    }
}

fn push_section(out: &mut Vec<u8>, id: u8, contents: &[u8]) {
    out.push(id);
    push_u32(out, contents.len() as u32);
    out.extend_from_slice(contents);
}

fn push_name(out: &mut Vec<u8>, name: &str) {
    push_u32(out, name.len() as u32);
    out.extend_from_slice(name.as_bytes());
}

/// A section's contents behind the number of its items.
fn without_count(section: &[u8]) -> Result<&[u8], RewriteError> {
    let len = section
        .iter()
        .position(|byte| byte & 0x80 == 0)
        .ok_or(RewriteError::Unknown("a section's count"))?;
    Ok(&section[len + 1..])
}

fn push_func_type(out: &mut Vec<u8>, ty: &FuncType) -> Result<(), RewriteError> {
    out.push(0x60);
    for values in [ty.params(), ty.results()] {
        push_u32(out, values.len() as u32);
        for value in values {
            push_val_type(out, *value)?;
        }
    }
    Ok(())
}

fn push_val_type(out: &mut Vec<u8>, ty: ValType) -> Result<(), RewriteError> {
    out.push(match ty {
        ValType::I32 => 0x7f,
        ValType::I64 => 0x7e,
        ValType::F32 => 0x7d,
        ValType::F64 => 0x7c,
        ValType::V128 => 0x7b,
        ValType::FUNCREF => 0x70,
        ValType::EXTERNREF => 0x6f,
        ValType::Ref(_) => return Err(RewriteError::Unknown("a reference type")),
    });
    Ok(())
}

fn push_i32_const(out: &mut Vec<u8>, value: i32) {
    out.push(0x41);
    push_signed(out, i64::from(value));
}

fn push_s33(out: &mut Vec<u8>, value: u32) {
    push_signed(out, i64::from(value));
}

fn push_signed(out: &mut Vec<u8>, mut value: i64) {
    loop {
        let byte = (value & 0x7f) as u8;
        value >>= 7;
        let done = (value == 0 && byte & 0x40 == 0) || (value == -1 && byte & 0x40 != 0);
        out.push(if done { byte } else { byte | 0x80 });
        if done {
            return;
        }
    }
}

fn push_u32(out: &mut Vec<u8>, mut value: u32) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// What a function gives back.
fn results_of(
    resources: &impl WasmModuleResources,
    function: u32,
) -> Result<Vec<ValType>, RewriteError> {
    let id = resources
        .type_id_of_function(function)
        .ok_or(RewriteError::Unknown("a function"))?;
    match &resources.sub_type_at_id(id).composite_type.inner {
        CompositeInnerType::Func(ty) => Ok(ty.results().to_vec()),
        _ => Err(RewriteError::Unknown("a function's type")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wasm::Engine;
    use crate::wasm::engine::APPLY_THREAD_STACK_BYTES;
    use wasmtime::component::Linker;
    use wasmtime::{Store, Trap};

    /// Calls `f: func(s32) -> s32` of a component whose core module is `module`.
    fn call(module: &str, argument: i32) -> (Result<i32, Trap>, u64) {
        let text = format!(
            "(component (core module $m {module}) (core instance $i (instantiate $m))
               (func (export \"f\") (param \"n\" s32) (result s32) (canon lift (core func $i \"f\"))))"
        );
        call_component(&text, 1, argument)
    }

    /// Calls `f` of a component with so many components with code in it.
    fn call_component(text: &str, scopes: u64, argument: i32) -> (Result<i32, Trap>, u64) {
        let bytes = count_stack(&wat::parse_str(text).unwrap(), scopes).unwrap();
        std::thread::Builder::new()
            .stack_size(APPLY_THREAD_STACK_BYTES)
            .spawn(move || {
                let engine = Engine::new().unwrap();
                let component = wasmtime::component::Component::new(engine.inner(), bytes).unwrap();
                let mut store = Store::new(engine.inner(), ());
                store.set_fuel(1_000_000_000).unwrap();
                store.set_epoch_deadline(1);
                let instance = Linker::new(engine.inner())
                    .instantiate(&mut store, &component)
                    .unwrap();
                let f = instance
                    .get_typed_func::<(i32,), (i32,)>(&mut store, "f")
                    .unwrap();
                let result = f.call(&mut store, (argument,));
                let fuel = 1_000_000_000 - store.get_fuel().unwrap();
                (
                    result
                        .map(|(n,)| n)
                        .map_err(|error| *error.downcast_ref().unwrap()),
                    fuel,
                )
            })
            .unwrap()
            .join()
            .unwrap()
    }

    /// n + (n - 1) + … + 1, by recursion, leaving through `return`, a branch to the function's label, and the end.
    const SUM: &str = "(func $f (export \"f\") (param i32) (result i32)
        (if (i32.eqz (local.get 0)) (then (return (i32.const 0))))
        (block (result i32)
          (br_if 1 (i32.add (local.get 0) (call $f (i32.sub (local.get 0) (i32.const 1))))
                   (i32.and (local.get 0) (i32.const 1)))))";

    #[test]
    fn a_function_still_means_the_same() {
        for n in [0, 1, 2, 3, 100, 5_000] {
            assert_eq!(call(SUM, n).0, Ok(n * (n + 1) / 2));
        }
    }

    #[test]
    fn endless_recursion_traps_like_any_other_mistake() {
        let (result, fuel) = call(SUM, i32::MAX);
        assert_eq!(result, Err(Trap::UnreachableCodeReached));
        assert_eq!(call(SUM, i32::MAX).1, fuel);
    }

    #[test]
    fn recursion_through_a_table_and_between_functions_is_counted() {
        let text = "(type $t (func (param i32) (result i32))) (table funcref (elem $a $b))
            (func $a (type $t) (call_indirect (type $t) (local.get 0) (i32.const 1)))
            (func $b (type $t) (call $a (local.get 0)))
            (func (export \"f\") (type $t) (call $a (local.get 0)))";
        assert_eq!(call(text, 1).0, Err(Trap::UnreachableCodeReached));
    }

    /// Modules that call each other round and round, each a little way into its own recursion before it calls the next.
    fn ring(modules: usize) -> String {
        let mut text = "(component
            (core module $hub (table (export \"t\") 64 funcref))
            (core instance $hub (instantiate $hub))"
            .to_owned();
        for n in 0..modules {
            let next = (n + 1) % modules;
            text += &format!(
                "(core module $m{n} (type $t (func (param i32) (result i32)))
                   (import \"hub\" \"t\" (table 64 funcref))
                   (global $own (export \"own\") (mut i32) (i32.const {n}))
                   (func $f (export \"f\") (type $t)
                     (if (i32.eqz (local.get 0)) (then (return (global.get $own))))
                     (i32.add (global.get $own) (call_indirect (type $t)
                       (i32.sub (local.get 0) (i32.const 1)) (i32.const {next}))))
                   (elem (i32.const {n}) $f))
                 (core instance $i{n} (instantiate $m{n} (with \"hub\" (instance $hub))))"
            );
        }
        text + "(func (export \"f\") (param \"n\" s32) (result s32) (canon lift (core func $i0 \"f\"))))"
    }

    #[test]
    fn modules_that_call_each_other_count_together() {
        // Few calls: every module still has its own globals.
        assert_eq!(call_component(&ring(60), 1, 59).0, Ok(59 * 60 / 2));
        // Were they counted one by one, sixty of them would have 120 MiB, and the native stack would end first.
        let (result, fuel) = call_component(&ring(60), 1, i32::MAX);
        assert_eq!(result, Err(Trap::UnreachableCodeReached));
        assert_eq!(call_component(&ring(60), 1, i32::MAX).1, fuel);
    }

    /// A component of `depth` components, each of which goes down in itself and then calls the one before.
    fn chain(components: usize) -> String {
        let mut text = "(component (component $first (core module $m
              (func (export \"f\") (param i32) (result i32) (local.get 0)))
              (core instance $i (instantiate $m))
              (func (export \"f\") (param \"n\" s32) (result s32) (canon lift (core func $i \"f\"))))
            (instance $i0 (instantiate $first))
            (component $next
              (import \"next\" (instance $next (export \"f\" (func (param \"n\" s32) (result s32)))))
              (core func $next (canon lower (func $next \"f\")))
              (core module $m (import \"next\" \"f\" (func $next (param i32) (result i32)))
                (func $down (param i32) (result i32)
                  (if (result i32) (local.get 0)
                    (then (i32.add (i32.const 1) (call $down (i32.sub (local.get 0) (i32.const 1)))))
                    (else (call $next (global.get $n)))))
                (global $n (mut i32) (i32.const 0))
                (func (export \"f\") (param i32) (result i32)
                  (global.set $n (local.get 0)) (call $down (local.get 0))))
              (core instance $i (instantiate $m (with \"next\" (instance (export \"f\" (func $next))))))
              (func (export \"f\") (param \"n\" s32) (result s32) (canon lift (core func $i \"f\"))))"
            .to_owned();
        for n in 1..components {
            text += &format!(
                "(instance $i{n} (instantiate $next (with \"next\" (instance $i{}))))",
                n - 1
            );
        }
        let last = components - 1;
        text + &format!("(export \"f\" (func $i{last} \"f\")))")
    }

    #[test]
    fn components_that_call_each_other_share_the_limit() {
        const COMPONENTS: usize = 40;
        let (chain, scopes) = (chain(COMPONENTS), COMPONENTS as u64);
        assert_eq!(
            call_component(&chain, scopes, 10).0,
            Ok(10 * COMPONENTS as i32)
        );
        // As deep as each may go, in all of them at once: the native stack holds it.
        let deepest = (0..20)
            .rev()
            .map(|power| 1 << power)
            .find(|n| call_component(&chain, scopes, *n).0.is_ok())
            .unwrap();
        assert!(deepest > 100, "{deepest}");
        assert_eq!(
            call_component(&chain, scopes, 2 * deepest).0,
            Err(Trap::UnreachableCodeReached)
        );
    }

    #[test]
    fn what_hides_which_module_runs_where_is_refused() {
        for (text, error) in [
            (
                "(component (component (import \"m\" (core module))))",
                "from one component to another",
            ),
            (
                "(component (core module $m) (export \"m\" (core module $m)))",
                "from one component to another",
            ),
            (
                "(component (core module (import \"skep:stack\" \"s\" (global (mut i32)))))",
                "the host's own name",
            ),
        ] {
            let refused = count_stack(&wat::parse_str(text).unwrap(), 1).unwrap_err();
            assert!(refused.to_string().contains(error), "{text}: {refused}");
        }
    }

    #[test]
    fn modules_are_found_again_behind_the_host_s_own() {
        // Defined before and behind the first instance, aliased from outside, and instantiated with arguments.
        let text = "(component
            (core module $one (func (export \"f\") (result i32) (i32.const 1)))
            (component $inner (alias outer 1 $one (core module $one))
              (core module $two (import \"a\" \"f\" (func $f (result i32)))
                (func (export \"f\") (param i32) (result i32) (i32.add (call $f) (local.get 0))))
              (core instance $a (instantiate $one))
              (core module $three (func (export \"f\") (result i32) (i32.const 3)))
              (core instance $c (instantiate $three))
              (alias core export $c \"f\" (core func $f))
              (core instance $d (export \"f\" (func $f)))
              (core instance $b (instantiate $two (with \"a\" (instance $d))))
              (func (export \"f\") (param \"n\" s32) (result s32) (canon lift (core func $b \"f\"))))
            (core instance (instantiate $one))
            (core module $late (func (export \"f\") (result i32) (i32.const 4)))
            (component $outer (alias outer 1 $late (core module $late))
              (core instance (instantiate $late)))
            (instance (instantiate $outer))
            (instance $i (instantiate $inner))
            (export \"f\" (func $i \"f\")))";
        assert_eq!(call_component(text, 3, 10).0, Ok(13));
    }

    #[test]
    fn tail_calls_use_no_stack() {
        let text = "(func $f (export \"f\") (param i32) (result i32)
            (if (i32.eqz (local.get 0)) (then (return (i32.const 7))))
            (return_call $f (i32.sub (local.get 0) (i32.const 1))))";
        assert_eq!(call(text, 1_000_000).0, Ok(7));
    }

    #[test]
    fn the_count_goes_back_after_a_call_whichever_way_it_ends() {
        // A loop of many calls: each must give back what it took.
        let text = "(global $mine (mut i32) (i32.const 5))
            (func $g (param i32) (result i32) (call $h) (drop) (drop)
              (if (i32.and (local.get 0) (i32.const 1)) (then (return (i32.const 1)))) (i32.const 2))
            (func $h (result i32 i64) (if (i32.const 1) (then (return (i32.const 1) (i64.const 2))))
              (call $i) (i64.const 3))
            (func $i (result i32) (i32.const 0))
            (func (export \"f\") (param i32) (result i32)
              (loop $again
                (global.set $mine (i32.add (global.get $mine) (call $g (local.get 0))))
                (local.set 0 (i32.sub (local.get 0) (i32.const 1)))
                (br_if $again (local.get 0)))
              (global.get $mine))";
        assert_eq!(call(text, 200_000).0, Ok(5 + 300_000));
    }

    #[test]
    fn a_large_frame_costs_more_than_a_small_one() {
        let deep = |locals: &str| {
            let module = format!(
                "(global $deepest (mut i32) (i32.const 0))
                 (func $f (param i32) (result i32) (local {locals})
                   (if (i32.eqz (local.get 0)) (then (return (i32.const 1))))
                   (call $f (i32.sub (local.get 0) (i32.const 1))))
                 (func (export \"f\") (param i32) (result i32) (call $f (local.get 0)))"
            );
            (0..20)
                .take_while(|power| call(&module, 1 << power).0.is_ok())
                .count()
        };
        assert!(deep("i32") > deep(&"v128 ".repeat(200)));
    }

    #[test]
    fn garbage_is_an_error() {
        assert!(count_stack(b"\0asm\x0d\0\x01\0\x01\x7f", 1).is_err());
        assert!(count_stack(b"not wasm", 1).is_err());
    }
}
