//! What a function costs of the stack.

use wasmparser::{FunctionBody, Operator, WasmModuleResources};

use crate::wasm::code::rewriting::error::RewriteError;

/// Counted stack of a component with all that is inside it, in bytes: a quarter of the native stack. Frames are estimated
/// from above (16 bytes for each value that may be live), so the real use is less again.
pub(super) const STACK_LIMIT: u32 = 2 << 20;

/// Bytes of a frame besides its values: return address, saved registers, what the compiler keeps at hand.
const FRAME_BYTES: u32 = 64;
/// Bytes of the largest value.
const VALUE_BYTES: u32 = 16;
/// A function that calls nothing cannot recurse; it is left alone if its one frame is small beside the native stack's
/// spare part.
pub(super) const LEAF_BYTES: u32 = 4 << 10;

/// What one function needs of the stack.
pub(super) struct Shape {
    locals: u32,
    operands: u32,
    pub(super) calls: bool,
}

impl Shape {
    pub(super) fn of<T: WasmModuleResources>(
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

    pub(super) fn cost(&self) -> u32 {
        self.locals
            .saturating_add(self.operands)
            .saturating_mul(VALUE_BYTES)
            .saturating_add(FRAME_BYTES)
    }
}
