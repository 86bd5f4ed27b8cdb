//! `skep completions`.

use clap::CommandFactory;
use clap_complete::Shell;

/// For instance: skep completions bash > ~/.local/share/bash-completion/completions/skep
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The shell
    shell: Shell,
}

pub fn run(arguments: Arguments) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(
        arguments.shell,
        &mut super::Cli::command(),
        "skep",
        &mut script,
    );
    super::output::raw(&script)
}
