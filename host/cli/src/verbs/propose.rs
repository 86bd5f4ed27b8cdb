//! `skep propose`.

use std::ffi::OsString;
use std::io::Read;

use anyhow::Context;
use bytes::Bytes;

use super::connect::Connection;
use super::failure::Failure;
use super::{Remote, output};

/// Prints the machine's reply as it is. A command of which no answer comes may have been applied: exit code 4.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Name or id of the group
    group: String,
    /// The command, in the machine's own language; `-` reads it from stdin
    command: OsString,
    /// Sends the command in a session, so that it is retried when a leader fails and still applied once
    #[arg(long)]
    retry: bool,
    #[command(flatten)]
    remote: Remote,
}

pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let command = bytes(arguments.command)?;
    let connection = Connection::open(&arguments.remote).await?;
    let group = connection.group(&arguments.group).await?;
    let response = connection.propose(group, command, arguments.retry).await?;
    output::raw(&Failure::of_outcome(response.outcome)?)
}

/// What was given, or stdin.
pub(super) fn bytes(given: OsString) -> anyhow::Result<Bytes> {
    if given == "-" {
        let mut bytes = Vec::new();
        std::io::stdin()
            .read_to_end(&mut bytes)
            .context("cannot read stdin")?;
        return Ok(bytes.into());
    }
    Ok(given.into_encoded_bytes().into())
}
