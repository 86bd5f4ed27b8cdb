//! `skep cluster`: what is done to a cluster before it runs.

use std::path::PathBuf;

use skep_server::cluster;

use super::failure::Failure;
use super::{output, private, serve};

#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Founds a cluster of one node, in a directory that was never used; other nodes are added to it later
    ///
    /// Several nodes that list each other need no such thing: start them all with `skep serve`, and they found together.
    Init {
        /// The configuration of the node; see skep.example.toml
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Overrides [node] data_dir
        #[arg(long, value_name = "DIR")]
        data_dir: Option<PathBuf>,
    },
}

pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let Verb::Init { config, data_dir } = arguments.verb;
    let arguments = serve::Arguments::of(config.clone(), data_dir);
    let config_of_node = arguments.load()?;
    private::mask();
    private::enforce(&config_of_node.node.data_dir);
    let (node, name) = (config_of_node.node.id, config_of_node.cluster.id.clone());
    let founding = cluster::init(config_of_node).await.map_err(Failure::from)?;
    let text = format!(
        "node {node} founded cluster {name} ({})\nstart it with `skep serve --config {}`\n",
        founding.identity(),
        config.display()
    );
    output::raw(text.as_bytes())
}
