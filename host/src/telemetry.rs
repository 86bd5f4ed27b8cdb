//! Log lines, on stderr.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// The variable that filters log lines, as in `SKEP_LOG=skep=debug,warn`.
const FILTER: &str = "SKEP_LOG";

/// Sends log lines to stderr: warnings by default, more with each `-v`. A node says more of itself than the other verbs.
pub fn init(verbose: u8, is_node: bool) {
    let default = match verbose + u8::from(is_node) {
        0 => "warn",
        1 => "info",
        2 => "skep=debug,info",
        _ => "trace",
    };
    let filter = EnvFilter::try_from_env(FILTER).unwrap_or_else(|_| EnvFilter::new(default));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
        .init();
}
