//! `skep compile-child`: what a node has its components compiled by. Not for people.

use std::process::ExitCode;

use skep_server::components::compiler::child::{self, Limits};

/// Reads a component on stdin and writes its machine code on stdout, within limits, and ends with the node.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Process of the node
    #[arg(long)]
    parent: u32,
    /// Bytes of memory
    #[arg(long)]
    memory: u64,
    /// Seconds of processor time
    #[arg(long)]
    processor_seconds: u64,
}

pub fn run(arguments: &Arguments) -> ExitCode {
    child::run(Limits {
        parent: arguments.parent,
        memory_bytes: arguments.memory,
        processor_seconds: arguments.processor_seconds,
    })
}
