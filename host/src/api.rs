//! The interfaces of a node: HTTP for people and tools, the framed client protocol for programs.

pub mod admin;
mod call;
pub mod client_port;
pub mod http;
pub mod problem;
pub(crate) mod requests;
