//! From the bytes of a component to code that instances are started from: read, rewritten, compiled, linked.

pub(super) mod cache;
pub(super) mod compiler;
pub(super) mod complexity;
pub(super) mod component;
mod depth;
mod describe;
pub(super) mod expansion;
pub(super) mod freeze;
pub(super) mod inspect;
mod linked;
mod private;
pub(super) mod rewriting;
pub(super) mod started;
