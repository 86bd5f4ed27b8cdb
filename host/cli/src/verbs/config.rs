//! `skep config check`.

use std::path::PathBuf;

use anyhow::Context;
use skep_server::config::Config;

#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Reads a configuration as `skep serve` would, with the environment, and prints what is in effect
    Check {
        /// The file
        #[arg(default_value = "skep.toml")]
        path: PathBuf,
    },
}

pub fn run(arguments: Arguments) -> anyhow::Result<()> {
    let Verb::Check { path } = arguments.verb;
    let config = Config::load(&path, std::env::vars())?;
    let text = toml::to_string(&config).context("cannot write the configuration")?;
    super::output::raw(text.as_bytes())?;
    say!("{} is valid", path.display());
    Ok(())
}
