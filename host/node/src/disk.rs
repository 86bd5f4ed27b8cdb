//! The disk of a node: a data directory in use, and room on it.

pub mod room;
pub(crate) mod store;
