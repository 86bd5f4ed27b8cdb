//! The `skep` binary: parses, runs one verb, and turns what went wrong into words and an exit code.

#[macro_use]
mod telemetry;
mod allocator;
mod demo;
mod local_cluster;
mod recover;
mod replay;
mod systemd;
mod verbs;

use std::process::ExitCode;

use clap::Parser;

use telemetry::Telemetry;

fn main() -> ExitCode {
    allocator::bound();
    let arguments = match verbs::run_bare(verbs::Cli::parse()) {
        Ok(code) => return code,
        Err(arguments) => *arguments,
    };
    let is_node = arguments.is_node();
    let telemetry = match Telemetry::start(arguments.verbose, is_node) {
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
        Ok(runtime) => runtime.block_on(verbs::run(arguments, &telemetry)),
        Err(error) => Err(anyhow::Error::new(error).context("cannot start the async runtime")),
    };
    let Err(error) = result else {
        return ExitCode::SUCCESS;
    };
    let text = verbs::failure::report(&error);
    match is_node {
        // Its last words are lines of its log, and written as those are.
        true => telemetry.say(&text),
        false => {
            telemetry.flush();
            telemetry::say(&text);
        }
    }
    verbs::failure::exit_code(&error)
}
