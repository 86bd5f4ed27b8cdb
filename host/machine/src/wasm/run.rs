//! A machine as the log drives it: instances that can be built again, and readers that follow them.

pub(super) mod call;
mod instance;
mod journal;
pub(super) mod machine;
pub(super) mod probe;
pub(super) mod reader;
mod rebuild;
#[cfg(test)]
mod slices;
