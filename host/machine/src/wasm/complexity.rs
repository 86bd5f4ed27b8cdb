//! What of a component takes a compiler far longer, and more memory, than its size would say. Counted before a compiler sees
//! it: what is refused here costs nothing. What passes is still compiled within bounds, so these are generous.

use wasmparser::{FunctionBody, Operator};

use super::component::ComponentError;

/// Targets of all `br_table`s of a component. Each is an edge of a control flow graph. Python with its standard library has
/// PYTHON, the JavaScript engine JS.
pub const MAX_TARGETS: u64 = 1 << 20;

/// Of one function: how often control flow comes together, times its locals. So many values may have to be told apart, one for
/// each local and place. The main loops of interpreters have the most: Python's PYTHON.
pub const MAX_MERGES: u64 = 1 << 26;

/// Counts while functions go by.
#[derive(Default)]
pub(super) struct Complexity {
    targets: u64,
}

impl Complexity {
    /// Counts one function, which has `locals` of them, parameters among them.
    pub(super) fn read(
        &mut self,
        body: &FunctionBody<'_>,
        locals: u32,
    ) -> Result<Result<(), ComponentError>, wasmparser::Error> {
        let mut places: u64 = 0;
        let mut operators = body.get_operators_reader()?;
        while !operators.eof() {
            match operators.read()? {
                Operator::Block { .. } | Operator::Loop { .. } | Operator::If { .. } => places += 1,
                Operator::BrTable { targets } => self.targets += u64::from(targets.len()) + 1,
                _ => {}
            }
        }
        if self.targets > MAX_TARGETS {
            return Ok(Err(ComponentError::TooIntricate {
                what: "targets of `br_table`",
                limit: MAX_TARGETS,
            }));
        }
        if places.saturating_mul(locals.into()) > MAX_MERGES {
            return Ok(Err(ComponentError::TooIntricate {
                what: "blocks times locals in one function",
                limit: MAX_MERGES,
            }));
        }
        Ok(Ok(()))
    }
}
