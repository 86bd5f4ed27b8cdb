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
//! within one another. So each has a counter of its own, and an equal part of [`STACK_LIMIT`] for its limit. Each counts all
//! its frames on the stack, however often it is entered (the destructors of resources enter a component again), so the sum
//! stays below [`STACK_LIMIT`].
//!
//! Fewer than [`STACK_LIMIT`] counted bytes use far less than the native stack, so the count ends first; the native
//! limit stays as the second line, local to a replica. A trap ends the instance, so the count need not be unwound.

mod cost;
mod counter;
mod level;
#[cfg(test)]
mod tests;

use wasmparser::{
    CompositeInnerType, Encoding, FuncValidatorAllocations, Parser, Payload, ValType, Validator,
    WasmFeatures, WasmModuleResources,
};

use self::cost::{STACK_LIMIT, Shape};
use self::level::Level;
use super::rewriting::encode::{
    SECTION_COMPONENT_COMPONENT, SECTION_COMPONENT_MODULE, push_section,
};
use super::rewriting::error::RewriteError;

/// The component `bytes` with every core function counting its stack. `scopes` is the number of components with code that
/// it becomes when it is put together. Fails only on what does not validate with these features, or hides which module runs
/// where.
pub(super) fn count_stack(
    bytes: &[u8],
    scopes: u64,
    features: WasmFeatures,
) -> Result<Vec<u8>, RewriteError> {
    let limit = u64::from(STACK_LIMIT) / scopes.max(1);
    let mut validator = Validator::new_with_features(features);
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
