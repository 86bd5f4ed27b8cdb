//! `skep component`.

use std::path::PathBuf;

use skep_server::catalog::ComponentRecord;
use skep_types::admin::{Collect, method};

use super::connect::Connection;
use super::{Form, Remote, output};

#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Checks a component, compiles it on the node that is asked and makes it known to the cluster; prints its name
    Put {
        /// The .wasm file
        file: PathBuf,
        #[command(flatten)]
        remote: Remote,
    },
    /// Lists the components that the cluster knows
    List {
        #[command(flatten)]
        remote: Remote,
    },
    /// Removes the components that no group uses or ever did; prints them
    Collect {
        /// Only those that were uploaded longer ago than this; an hour if absent
        #[arg(long, value_name = "SECONDS")]
        older_than: Option<u64>,
        #[command(flatten)]
        remote: Remote,
    },
}

pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    match arguments.verb {
        Verb::Put { file, remote } => {
            let connection = Connection::open(&remote).await?;
            let id = connection.upload(&file).await?;
            output::print(remote.form, &id, |id| id.to_string())
        }
        Verb::List { remote } => show(
            remote.form,
            &remote.call(method::COMPONENT_LIST, &()).await?,
        ),
        Verb::Collect { older_than, remote } => {
            let asked = Collect {
                older_than_seconds: older_than,
            };
            show(
                remote.form,
                &remote.call(method::COMPONENT_COLLECT, &asked).await?,
            )
        }
    }
}

fn show(form: Form, components: &Vec<ComponentRecord>) -> anyhow::Result<()> {
    output::print(form, components, |components| {
        let rows: Vec<_> = components
            .iter()
            .map(|of| vec![of.id.to_string(), of.name.clone(), of.size.to_string()])
            .collect();
        output::table(&["SHA256", "MACHINE", "BYTES"], &rows)
    })
}
