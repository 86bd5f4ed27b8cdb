//! What of a component takes a compiler far longer, and far more memory, than its size would say. Counted before a compiler sees
//! it: what is refused here costs nothing. What passes is compiled within bounds nevertheless, so these are generous.

use wasmparser::{FunctionBody, Operator};

use crate::wasm::error::ComponentError;

/// Targets of all `br_table`s of a component: each is an edge in the graph of a function, and takes a compiler about 2 KB.
/// Python with its standard library has 46,000, the engine of JavaScript 48,000.
pub const MAX_TARGETS: u64 = 1 << 18;

/// Those of one function. Python's largest has 16,000.
pub const MAX_FUNCTION_TARGETS: u64 = 1 << 16;

/// How often control flow comes together in a function, times its locals: so many values may have to be told apart. The most
/// that was seen is 200,000, in the engine of JavaScript.
pub const MAX_MERGES: u64 = 1 << 22;

/// Counts while functions go by.
#[derive(Default)]
pub(crate) struct Complexity {
    targets: u64,
}

/// What one function has.
#[derive(Default)]
struct Function {
    targets: u64,
    blocks: u64,
}

impl Complexity {
    /// Counts one function; `locals` are its parameters too. What there is too much of, if there is.
    pub(crate) fn read(
        &mut self,
        body: &FunctionBody<'_>,
        locals: u32,
    ) -> wasmparser::Result<Result<(), ComponentError>> {
        let mut function = Function::default();
        let mut operators = body.get_operators_reader()?;
        while !operators.eof() {
            match operators.read()? {
                Operator::Block { .. } | Operator::Loop { .. } | Operator::If { .. } => {
                    function.blocks += 1;
                }
                Operator::BrTable { targets } => function.targets += u64::from(targets.len()) + 1,
                _ => {}
            }
        }
        self.targets += function.targets;
        let merges = function.blocks.saturating_mul(locals.into());
        let counted = [
            (self.targets, MAX_TARGETS, "targets of `br_table`s"),
            (
                function.targets,
                MAX_FUNCTION_TARGETS,
                "targets of `br_table`s in one function",
            ),
            (merges, MAX_MERGES, "blocks times locals in one function"),
        ];
        let above = counted.into_iter().find(|(count, most, _)| count > most);
        Ok(match above {
            Some((_, limit, what)) => Err(ComponentError::TooIntricate { what, limit }),
            None => Ok(()),
        })
    }
}
