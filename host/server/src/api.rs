//! The interfaces of a node: HTTP for people and tools, the framed client protocol for programs.

pub(crate) mod call;
pub mod client_port;
pub mod door;
pub mod doors;
pub mod front;
pub mod http;
mod origin;
mod pot;
pub mod problem;
pub(crate) mod requests;
pub mod server;
