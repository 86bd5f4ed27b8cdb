//! The image module: the host's own, which has the state of a component's core instances written down and put back.

use wasm_encoder::{
    BlockType, CodeSection, ExportKind, ExportSection, Function, FunctionSection, GlobalType,
    ImportSection, InstructionSink, MemArg, MemorySection, MemoryType, Module, TypeSection,
    ValType,
};

use super::module::{Shared, global_name, memory_name};
use super::{Halt, NoImage};

/// What the image module exports its functions as.
pub(super) const FREEZE: &str = "freeze";
/// As [`FREEZE`].
pub(super) const THAW: &str = "thaw";

/// Memories of one component's instances: the engine allows a module a hundred, its own among them.
const MAX_MEMORIES: u32 = 64;
/// Globals of one component's instances: what there is of Python's in one machine is 490.
const MAX_GLOBALS: u32 = 10_000;

/// Bytes of the largest global.
const GLOBAL_BYTES: u64 = 16;
/// Bytes of a memory's size.
const SIZE_BYTES: u64 = 4;

/// A core instance, and what changes in it.
pub(super) struct Part {
    pub(super) instance: u32,
    pub(super) state: Shared,
}

impl Part {
    /// What the image module imports it as.
    pub(super) fn name(&self) -> String {
        format!("i{}", self.instance)
    }
}

/// The image module of these instances.
pub(super) fn module(parts: &[Part]) -> Result<Module, Halt> {
    let mut imports = ImportSection::new();
    let (mut memories, mut globals) = (0, Vec::new());
    for part in parts {
        let from = part.name();
        for index in &part.state.memories {
            imports.import(&from, &memory_name(*index), ANY_MEMORY);
            memories += 1;
        }
        for (index, ty) in &part.state.globals {
            let ty = val_type(*ty)?;
            imports.import(&from, &global_name(*index), mutable(ty));
            globals.push(ty);
        }
    }
    let image = Image { memories, globals };
    if image.memories > MAX_MEMORIES || image.globals.len() > MAX_GLOBALS as usize {
        return Err(NoImage::TooManyParts.into());
    }

    let mut types = TypeSection::new();
    types.ty().function([], []);
    let mut functions = FunctionSection::new();
    functions.function(0).function(0);
    let mut own = MemorySection::new();
    own.memory(image.memory());
    let mut exports = ExportSection::new();
    exports
        .export(FREEZE, ExportKind::Func, 0)
        .export(THAW, ExportKind::Func, 1);
    let mut code = CodeSection::new();
    code.function(&image.freeze()).function(&image.thaw());

    let mut module = Module::new();
    module
        .section(&types)
        .section(&imports)
        .section(&functions)
        .section(&own)
        .section(&exports)
        .section(&code);
    Ok(module)
}

/// Whatever size a memory has, and may have.
const ANY_MEMORY: MemoryType = MemoryType {
    minimum: 0,
    maximum: None,
    memory64: false,
    shared: false,
    page_size_log2: None,
};

fn mutable(val_type: ValType) -> GlobalType {
    GlobalType {
        val_type,
        mutable: true,
        shared: false,
    }
}

fn val_type(ty: wasmparser::ValType) -> Result<ValType, Halt> {
    Ok(match ty {
        wasmparser::ValType::I32 => ValType::I32,
        wasmparser::ValType::I64 => ValType::I64,
        wasmparser::ValType::F32 => ValType::F32,
        wasmparser::ValType::F64 => ValType::F64,
        wasmparser::ValType::V128 => ValType::V128,
        wasmparser::ValType::Ref(_) => return Err(NoImage::ReferenceGlobal.into()),
    })
}

/// What an image module has to do with: the memories and the globals that it imports, in their order.
struct Image {
    memories: u32,
    globals: Vec<ValType>,
}

impl Image {
    /// First all globals, then the sizes of the memories, and one byte more: so its length is never that of a whole number of
    /// a guest's pages, and nobody takes the one for the other.
    fn memory(&self) -> MemoryType {
        let bytes = self.size_of_memory(self.memories).offset + 1;
        MemoryType {
            minimum: bytes,
            maximum: Some(bytes),
            page_size_log2: Some(0),
            ..ANY_MEMORY
        }
    }

    /// Where a global is kept.
    fn global(&self, index: u32) -> MemArg {
        self.at(u64::from(index) * GLOBAL_BYTES)
    }

    /// Where the size of a memory is kept.
    fn size_of_memory(&self, index: u32) -> MemArg {
        self.at(self.globals.len() as u64 * GLOBAL_BYTES + u64::from(index) * SIZE_BYTES)
    }

    fn at(&self, offset: u64) -> MemArg {
        MemArg {
            offset,
            align: 0,
            memory_index: self.memories,
        }
    }

    fn globals(&self) -> impl Iterator<Item = (u32, ValType)> {
        (0..).zip(self.globals.iter().copied())
    }

    fn freeze(&self) -> Function {
        let mut function = Function::new([]);
        let mut code = function.instructions();
        for memory in 0..self.memories {
            code.i32_const(0)
                .memory_size(memory)
                .i32_store(self.size_of_memory(memory));
        }
        for (global, ty) in self.globals() {
            code.i32_const(0).global_get(global);
            store(&mut code, ty, self.global(global));
        }
        code.end();
        function
    }

    /// Traps if a memory cannot have the size that it had.
    fn thaw(&self) -> Function {
        let mut function = Function::new([]);
        let mut code = function.instructions();
        for memory in 0..self.memories {
            code.i32_const(0)
                .i32_load(self.size_of_memory(memory))
                .memory_size(memory)
                .i32_sub()
                .if_(BlockType::Empty)
                // The host may have made it smaller: that shows once it grows, even by nothing.
                .i32_const(0)
                .memory_grow(memory)
                .drop()
                // A memory that is larger than it was would have to grow by more than there is.
                .i32_const(0)
                .i32_load(self.size_of_memory(memory))
                .memory_size(memory)
                .i32_sub()
                .memory_grow(memory)
                .i32_const(-1)
                .i32_eq()
                .if_(BlockType::Empty)
                .unreachable()
                .end()
                .end();
        }
        for (global, ty) in self.globals() {
            code.i32_const(0);
            load(&mut code, ty, self.global(global));
            code.global_set(global);
        }
        code.end();
        function
    }
}

fn store(code: &mut InstructionSink<'_>, ty: ValType, at: MemArg) {
    match ty {
        ValType::I32 => code.i32_store(at),
        ValType::I64 => code.i64_store(at),
        ValType::F32 => code.f32_store(at),
        ValType::F64 => code.f64_store(at),
        _ => code.v128_store(at),
    };
}

fn load(code: &mut InstructionSink<'_>, ty: ValType, at: MemArg) {
    match ty {
        ValType::I32 => code.i32_load(at),
        ValType::I64 => code.i64_load(at),
        ValType::F32 => code.f32_load(at),
        ValType::F64 => code.f64_load(at),
        _ => code.v128_load(at),
    };
}
