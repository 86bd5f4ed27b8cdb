//! The `skep` binary: parses, runs one verb, and turns what went wrong into words and an exit code.

#[macro_use]
mod telemetry;
mod allocator;
mod cli;
mod demo;
mod local_cluster;

use std::process::ExitCode;

use clap::Parser;

use telemetry::Telemetry;

fn main() -> ExitCode {
    allocator::bound();
    let arguments = match cli::run_bare(cli::Cli::parse()) {
        Ok(code) => return code,
        Err(arguments) => *arguments,
    };
    let telemetry = match Telemetry::start(arguments.verbose, arguments.is_node()) {
        Ok(telemetry) => telemetry,
        Err(error) => {
            say!("error: cannot write log lines: {error}");
            return ExitCode::FAILURE;
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(cli::run(arguments, &telemetry)),
        Err(error) => Err(anyhow::Error::new(error).context("cannot start the async runtime")),
    };
    telemetry.flush();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => cli::failure::report(&error),
    }
}
