//! Makes running out of stack the same on every replica.
//!
//! How deep a guest may recurse before the native stack ends depends on the machine code, so on the processor's family
//! and the compiler's release: that trap can never be an outcome. Every function of a component is therefore rewritten,
//! before it is compiled, to count the stack it uses in a global of its module, and to trap when the count passes
//! [`STACK_LIMIT`]:
//!
//! ```text
//! depth += cost                      ;; from parameters, locals and the deepest operand stack
//! if depth > STACK_LIMIT unreachable
//! block (result …)  …the body, `return` turned into a branch to the end of this block…  end
//! depth -= cost
//! ```
//!
//! Fewer than [`STACK_LIMIT`] counted bytes use far less than the native stack, so the count ends first; the native
//! limit stays as the second line, local to a replica. A trap ends the instance, so the count need not be unwound.

use wasmparser::{
    CompositeInnerType, Encoding, FuncType, FuncValidatorAllocations, FunctionBody, Operator,
    Parser, Payload, TypeRef, ValType, Validator, WasmModuleResources,
};

use super::engine::FEATURES;

/// Counted stack of one core module, in bytes: a quarter of the native stack. Frames are estimated from above (16 bytes
/// for each value that may be live), so the real use is less again.
const STACK_LIMIT: u32 = 2 << 20;

/// Version of the rewriting, for the key of the artefact cache.
pub(super) const VERSION: u32 = 1;

/// Bytes of a frame besides its values: return address, saved registers, what the compiler keeps at hand.
const FRAME_BYTES: u32 = 64;
/// Bytes of the largest value.
const VALUE_BYTES: u32 = 16;
/// A function that calls nothing cannot recurse; it is left alone if its one frame is small beside the native stack's
/// spare part.
const LEAF_BYTES: u32 = 4 << 10;

const SECTION_CUSTOM: u8 = 0;
const SECTION_TYPE: u8 = 1;
const SECTION_GLOBAL: u8 = 6;
const SECTION_CODE: u8 = 10;
const SECTION_COMPONENT_MODULE: u8 = 1;
const SECTION_COMPONENT_COMPONENT: u8 = 4;
/// Sections that the specification puts behind the globals: export, start, element, data count, code, data.
const SECTIONS_AFTER_GLOBALS: [u8; 6] = [7, 8, 9, 12, 10, 11];

/// Why a component was not rewritten.
#[derive(Debug, thiserror::Error)]
pub(super) enum RewriteError {
    #[error(transparent)]
    Invalid(#[from] wasmparser::Error),
    #[error("it has {0} of a kind this host does not know")]
    Unknown(&'static str),
    #[error("it is empty")]
    Empty,
}

/// The component `bytes` with every core function counting its stack. Fails only on what does not validate.
pub(super) fn count_stack(bytes: &[u8]) -> Result<Vec<u8>, RewriteError> {
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
                    Encoding::Module => SECTION_COMPONENT_MODULE,
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
                    level.function(bytes, body, &shape, &results)?;
                }
            }
            other => {
                if let Some(level) = levels.last_mut() {
                    level.section(bytes, other)?;
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
    /// Index of the block type `() -> results` of each function type with several results.
    block_types: Vec<(FuncType, u32)>,
    globals: u32,
    counter_written: bool,
    code: Option<Code>,
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
            counter_written: false,
            code: None,
        }
    }

    fn section(&mut self, bytes: &[u8], payload: &Payload<'_>) -> Result<(), RewriteError> {
        if let Payload::CodeSectionStart { count, .. } = payload {
            self.write_counter_before(SECTION_CODE);
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
        if self.encoding == Encoding::Component || id == SECTION_CUSTOM {
            push_section(&mut self.out, id, section);
            return Ok(());
        }
        self.write_counter_before(id);
        match payload {
            Payload::TypeSection(types) => self.types(section, types.clone())?,
            Payload::ImportSection(imports) => {
                for import in imports.clone().into_imports() {
                    self.globals += u32::from(matches!(import?.ty, TypeRef::Global(_)));
                }
                push_section(&mut self.out, id, section);
            }
            Payload::GlobalSection(globals) => {
                self.globals += globals.count();
                self.counter_written = true;
                let mut contents = Vec::new();
                push_u32(&mut contents, globals.count() + 1);
                contents.extend_from_slice(without_count(section)?);
                contents.extend_from_slice(&COUNTER);
                push_section(&mut self.out, id, &contents);
            }
            _ => push_section(&mut self.out, id, section),
        }
        Ok(())
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

    /// A module without globals gets a section for the counter, at the place where it belongs.
    fn write_counter_before(&mut self, next: u8) {
        if !self.counter_written && SECTIONS_AFTER_GLOBALS.contains(&next) {
            self.counter_written = true;
            let mut contents = vec![1];
            contents.extend_from_slice(&COUNTER);
            push_section(&mut self.out, SECTION_GLOBAL, &contents);
        }
    }

    fn function(
        &mut self,
        bytes: &[u8],
        body: &FunctionBody<'_>,
        shape: &Shape,
        results: &[ValType],
    ) -> Result<(), RewriteError> {
        let cost = shape.cost();
        let mut rewritten;
        let function = if !shape.calls && cost <= LEAF_BYTES {
            &bytes[body.range()]
        } else {
            rewritten = Vec::with_capacity(body.range().len() + 64);
            let counter = Counter {
                global: self.globals,
                cost,
            };
            let block_type = self.block_type(results)?;
            rewrite(&mut rewritten, bytes, body, &counter, &block_type)?;
            &rewritten
        };
        if let Some(code) = &mut self.code {
            push_u32(&mut code.contents, function.len() as u32);
            code.contents.extend_from_slice(function);
            code.left -= 1;
        }
        self.end_code_if_done()
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

/// `(global (mut i32) (i32.const 0))`.
const COUNTER: [u8; 5] = [0x7f, 0x01, 0x41, 0x00, 0x0b];

struct Counter {
    global: u32,
    cost: u32,
}

impl Counter {
    fn enter(&self, out: &mut Vec<u8>) {
        self.add(out, 0x6a); // i32.add
        self.global_get(out);
        push_i32_const(out, STACK_LIMIT as i32);
        out.extend_from_slice(&[0x4b, 0x04, 0x40, 0x00, 0x0b]); // i32.gt_u; if; unreachable; end
    }

    fn leave(&self, out: &mut Vec<u8>) {
        self.add(out, 0x6b); // i32.sub
    }

    fn add(&self, out: &mut Vec<u8>, operator: u8) {
        self.global_get(out);
        push_i32_const(out, self.cost.min(i32::MAX as u32 - STACK_LIMIT) as i32);
        out.push(operator);
        out.push(0x24); // global.set
        push_u32(out, self.global);
    }

    fn global_get(&self, out: &mut Vec<u8>) {
        out.push(0x23);
        push_u32(out, self.global);
    }
}

fn rewrite(
    out: &mut Vec<u8>,
    bytes: &[u8],
    body: &FunctionBody<'_>,
    counter: &Counter,
    block_type: &[u8],
) -> Result<(), RewriteError> {
    let mut operators = body.get_operators_reader()?;
    let first = operators.original_position();
    out.extend_from_slice(&bytes[body.range().start..first]);
    counter.enter(out);
    out.push(0x02); // block
    out.extend_from_slice(block_type);

    // Labels are relative, so all but the function's own stay right: the new block takes the place of that one. The
    // depth counts the blocks around an operator, the new one not among them.
    let mut depth = 0u32;
    while !operators.eof() {
        let start = operators.original_position();
        let operator = operators.read()?;
        let raw = &bytes[start..operators.original_position()];
        match operator {
            Operator::Return => {
                out.push(0x0c); // br
                push_u32(out, depth);
                continue;
            }
            Operator::ReturnCall { .. } | Operator::ReturnCallIndirect { .. } => counter.leave(out),
            Operator::Block { .. } | Operator::Loop { .. } | Operator::If { .. } => depth += 1,
            // The last end closes the new block.
            Operator::End => depth = depth.saturating_sub(1),
            _ => {}
        }
        out.extend_from_slice(raw);
    }
    counter.leave(out);
    out.push(0x0b); // end
    Ok(())
}

fn push_section(out: &mut Vec<u8>, id: u8, contents: &[u8]) {
    out.push(id);
    push_u32(out, contents.len() as u32);
    out.extend_from_slice(contents);
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
        let bytes = count_stack(&wat::parse_str(text).unwrap()).unwrap();
        std::thread::Builder::new()
            .stack_size(APPLY_THREAD_STACK_BYTES)
            .spawn(move || {
                let engine = Engine::new().unwrap();
                let component = wasmtime::component::Component::new(engine.inner(), bytes).unwrap();
                let mut store = Store::new(engine.inner(), ());
                store.set_fuel(1_000_000_000).unwrap();
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
        assert!(count_stack(b"\0asm\x0d\0\x01\0\x01\x7f").is_err());
        assert!(count_stack(b"not wasm").is_err());
    }
}
