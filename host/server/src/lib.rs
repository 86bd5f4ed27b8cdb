//! One node of a cluster: what turns the library `skep` into a server.
//!
//! * [`cluster`]: the node itself, which hosts what the catalogue says; [`error`]: why a call of it failed.
//! * [`catalog`]: which nodes, components and groups the cluster has; group 0.
//! * [`components`]: components on the disk, compiled in a child process, and machines from them.
//! * `peers`: asking other nodes. [`join`]: how a node comes to a running cluster.
//! * [`api`]: HTTP and the client protocol.
//! * [`config`]: `skep.toml`; [`descriptors`]: files and sockets shared out at the start.
//! * [`budget`]: the table of bounds; [`metrics`], [`log_lines`]: what is counted and logged.

pub mod api;
pub mod budget;
pub mod catalog;
pub mod cluster;
pub mod components;
pub mod config;
pub mod descriptors;
pub mod error;
pub mod join;
pub mod log_lines;
pub mod metrics;
mod peers;
