//! A machine as the log drives it: instances that can be built again, and readers that follow them.

mod base;
pub(super) mod call;
pub(super) mod checkpoint;
mod fork;
mod guard;
mod image;
mod instance;
mod journal;
pub(super) mod machine;
mod present;
pub(super) mod probe;
pub(super) mod reader;
mod rebuild;
#[cfg(test)]
mod slices;
mod taking;
