//! `skep query`.

use std::ffi::OsString;

use super::connect::Connection;
use super::failure::Failure;
use super::{Remote, output, propose};

/// Prints the machine's answer as it is.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Name or id of the group
    group: String,
    /// The query, in the machine's own language; `-` reads it from stdin
    query: OsString,
    /// Takes the answer of whichever replica is asked, even if it is behind
    #[arg(long)]
    stale: bool,
    #[command(flatten)]
    remote: Remote,
}

pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let query = propose::bytes(arguments.query)?;
    let connection = Connection::open(&arguments.remote).await?;
    let group = connection.group(&arguments.group).await?;
    let outcome = connection.query(group, query, arguments.stale).await?;
    output::raw(&Failure::of_outcome(outcome)?)
}
