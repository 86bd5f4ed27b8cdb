//! The `skep` binary: parses, runs one verb, and turns what went wrong into words and an exit code.

mod allocator;
mod cli;
mod demo;
mod local_cluster;
mod telemetry;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    allocator::bound();
    let arguments = match cli::run_bare(cli::Cli::parse()) {
        Ok(code) => return code,
        Err(arguments) => *arguments,
    };
    telemetry::init(arguments.verbose, arguments.is_node());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(cli::run(arguments)),
        Err(error) => Err(anyhow::Error::new(error).context("cannot start the async runtime")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => cli::failure::report(&error),
    }
}
