//! Lines for the operator of the host. Best effort: the host caps them, marks them with the group, and drops those of
//! a replay.
//!
//! On a host a line goes to the node's log; in a native build to standard error. Panics are reported as
//! [`Level::Error`] by themselves.

use std::fmt::Display;

/// How much a line matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// Every step.
    Trace,
    /// Of use to the machine's author.
    Debug,
    /// Of use to its operator.
    Info,
    /// Something is odd.
    Warn,
    /// Something is wrong.
    Error,
}

/// Writes a line. Whether the level is shown is not known to the guest: the answer would differ between nodes.
pub fn emit(level: Level, message: impl Display) {
    write(level, &message.to_string());
}

/// Writes a line at [`Level::Trace`].
pub fn trace(message: impl Display) {
    emit(Level::Trace, message);
}

/// Writes a line at [`Level::Debug`].
pub fn debug(message: impl Display) {
    emit(Level::Debug, message);
}

/// Writes a line at [`Level::Info`].
pub fn info(message: impl Display) {
    emit(Level::Info, message);
}

/// Writes a line at [`Level::Warn`].
pub fn warn(message: impl Display) {
    emit(Level::Warn, message);
}

/// Writes a line at [`Level::Error`].
pub fn error(message: impl Display) {
    emit(Level::Error, message);
}

#[cfg(target_family = "wasm")]
fn write(level: Level, message: &str) {
    use crate::component::bindings::skep::machine::log as host;
    let level = match level {
        Level::Trace => host::Level::Trace,
        Level::Debug => host::Level::Debug,
        Level::Info => host::Level::Info,
        Level::Warn => host::Level::Warn,
        Level::Error => host::Level::Error,
    };
    host::emit(level, message);
}

#[cfg(not(target_family = "wasm"))]
fn write(level: Level, message: &str) {
    eprintln!("{level:?}: {message}");
}
