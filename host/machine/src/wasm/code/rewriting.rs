//! What is done to a component before it is compiled.

pub(super) mod encode;
pub(super) mod error;

use self::error::RewriteError;
use super::depth::count_stack;
use super::freeze::{NoImage, Rewritten, with_image};
use crate::wasm::engine::{FEATURES, FEATURES_OF_CODE};

/// Version of the rewriting, for the key of the artefact cache.
pub(crate) const VERSION: u32 = 7;

/// The component `bytes` as it is compiled: with its state in reach of the host, if it can be, and counting its stack. `scopes`
/// is the number of components with code that it becomes when it is put together.
pub(super) fn rewrite(bytes: &[u8], scopes: u64) -> Result<Vec<u8>, RewriteError> {
    match with_image(bytes)? {
        Rewritten::Imaged(imaged) => count_stack(&imaged, scopes, FEATURES_OF_CODE),
        Rewritten::Refused(_) => count_stack(bytes, scopes, FEATURES),
    }
}

/// Why [`rewrite`] leaves the state of a component where it is, if it does.
pub(super) fn refusal(bytes: &[u8]) -> Result<Option<NoImage>, RewriteError> {
    Ok(match with_image(bytes)? {
        Rewritten::Imaged(_) => None,
        Rewritten::Refused(why) => Some(why),
    })
}
