//! Lets the host take a machine's whole state, and put it back.
//!
//! What a guest can tell of its past is in its memories and its mutable globals, if it keeps nothing elsewhere. The host has
//! the memories; no interface of the engine reaches a component's globals. So the component is rewritten, before its stack is
//! counted: each core module exports what it defines of both (no index moves), and behind the last instance of each component
//! with code stands a module of the host's own, the *image module*:
//!
//! ```text
//! (module (import "i3" "skep:m0" (memory 0)) (import "i3" "skep:g1" (global (mut i32))) …
//!   (memory n n (pagesize 1))      ;; the frozen globals, and how many pages each memory has
//!   (func (export "freeze") …)     ;; writes them there
//!   (func (export "thaw") …))      ;; grows the memories to those sizes, and sets the globals
//! ```
//!
//! Both are exported from the component as `skep-freeze0` and `skep-thaw0`. A component cannot call the components within it
//! ([`CannotEnterComponent`](wasmtime::Trap)), so it exports theirs behind its own, and the host calls each pair.
//!
//! A page of one byte tells an image module's memory from a guest's, which cannot have one: a guest is validated with
//! [`FEATURES`] alone. Cranelift elides a bounds check by reservation and guard only where a page of the memory is no smaller
//! than one of the host (`Memory::can_use_virtual_memory`), so such a memory needs neither: what reaches it is checked, or is a
//! constant address within its fixed size.
//!
//! Handles of the host's are in a table of the engine's. So the outermost component gets functions with which the host has one of
//! each kind given and taken back ([`followers`]), if it is the only one that has any.
//!
//! Some state is in neither: tables that are written to, segments that are dropped, references in globals, handles of a
//! component's own. A component that could have such state is refused, for a reason that people can read, and is compiled
//! without images.

mod component;
mod followers;
mod handles;
mod image;
mod module;
mod no_image;
#[cfg(test)]
mod tests;

use wasmparser::{Encoding, Parser, Payload, ValidPayload, Validator};

use self::component::ComponentLevel;
pub(super) use self::followers::Follower;
use self::handles::Plain;
use self::module::ModuleLevel;
pub use self::no_image::NoImage;
use super::rewriting::encode::{
    SECTION_COMPONENT_COMPONENT, SECTION_COMPONENT_MODULE, push_section,
};
use super::rewriting::error::RewriteError;
use crate::wasm::engine::{FEATURES, FEATURES_OF_CODE};

/// What the exports of a component are called that write its state down, before their number.
pub(super) const FREEZE: &str = "skep-freeze";
/// As [`FREEZE`], of those that put it back.
pub(super) const THAW: &str = "skep-thaw";

/// What became of a component.
pub(super) enum Rewritten {
    /// It was rewritten.
    Imaged(Vec<u8>),
    /// It is to be compiled as it is.
    Refused(NoImage),
}

/// Rewrites a component so that its globals can be written down and put back. Fails only on what does not validate.
pub(super) fn with_image(bytes: &[u8]) -> Result<Rewritten, RewriteError> {
    match rewrite(bytes) {
        // It may have become more than a component can be.
        Ok(made) if validate(&made).is_err() => Ok(Rewritten::Refused(NoImage::TooManyParts)),
        Ok(made) => Ok(Rewritten::Imaged(made)),
        Err(Halt::Refused(why)) => Ok(Rewritten::Refused(why)),
        Err(Halt::Broken(error)) => Err(error),
    }
}

/// Why rewriting ended early.
#[derive(Debug)]
enum Halt {
    Refused(NoImage),
    Broken(RewriteError),
}

impl From<NoImage> for Halt {
    fn from(why: NoImage) -> Self {
        Self::Refused(why)
    }
}

impl From<RewriteError> for Halt {
    fn from(error: RewriteError) -> Self {
        Self::Broken(error)
    }
}

impl From<wasmparser::Error> for Halt {
    fn from(error: wasmparser::Error) -> Self {
        Self::Broken(error.into())
    }
}

/// A module or a component that is being copied.
enum Level {
    Module(ModuleLevel),
    Component(ComponentLevel),
}

fn rewrite(bytes: &[u8]) -> Result<Vec<u8>, Halt> {
    let mut validator = Validator::new_with_features(FEATURES);
    let mut levels: Vec<Level> = Vec::new();
    let mut plain = Plain::default();
    for payload in Parser::new(0).parse_all(bytes) {
        let payload = payload?;
        if let Payload::End(_) = payload {
            // What a level holds is known until its end is validated.
            let types = validator.types(0).ok_or(RewriteError::Empty)?;
            let done = match levels.pop().ok_or(RewriteError::Empty)? {
                Level::Module(module) => Done::Module(module.end(types)?),
                Level::Component(component) => {
                    Done::Component(component.end(types, levels.is_empty())?)
                }
            };
            validator.payload(&payload)?;
            match (levels.last_mut(), done) {
                (Some(Level::Component(outer)), Done::Module((made, state))) => {
                    push_section(&mut outer.out, SECTION_COMPONENT_MODULE, &made);
                    outer.modules.push(state);
                }
                (Some(Level::Component(outer)), Done::Component((made, made_of))) => {
                    push_section(&mut outer.out, SECTION_COMPONENT_COMPONENT, &made);
                    outer.components.push(made_of);
                }
                (_, Done::Module((made, _)) | Done::Component((made, _))) => return Ok(made),
            }
            continue;
        }
        let valid = validator.payload(&payload)?;
        match (&payload, valid) {
            (
                Payload::Version {
                    encoding, range, ..
                },
                _,
            ) => {
                let header = &bytes[range.clone()];
                levels.push(match encoding {
                    Encoding::Module => Level::Module(ModuleLevel::new(header)),
                    Encoding::Component => Level::Component(ComponentLevel::new(header)),
                });
            }
            // What is nested is copied by its own level.
            (Payload::ModuleSection { .. } | Payload::ComponentSection { .. }, _) => {}
            // The body was copied with its section, and is validated with what becomes of it.
            (_, ValidPayload::Func(_, body)) => module::scan(&body)?,
            _ => {
                let types = validator.types(0).ok_or(RewriteError::Empty)?;
                match levels.split_last_mut() {
                    Some((Level::Module(module), _)) => module.section(bytes, &payload, types)?,
                    Some((Level::Component(component), outer)) => {
                        component.section(bytes, &payload, types, outer, &mut plain)?;
                    }
                    None => {}
                }
            }
        }
    }
    Err(RewriteError::Empty.into())
}

/// A level at its end, with what it is to the one around it.
enum Done {
    Module((Vec<u8>, module::Shared)),
    Component((Vec<u8>, component::MadeOf)),
}

/// Everything but the bodies of functions, which are what they were.
fn validate(bytes: &[u8]) -> wasmparser::Result<()> {
    let mut validator = Validator::new_with_features(FEATURES_OF_CODE);
    for payload in Parser::new(0).parse_all(bytes) {
        validator.payload(&payload?)?;
    }
    Ok(())
}
