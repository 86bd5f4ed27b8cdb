//! `skep status`.

use skep_types::admin::{NodeInfo, method};
use skep_types::record::NodeRecord;

use super::{Remote, group, output};

#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    remote: Remote,
}

pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let remote = arguments.remote;
    let info: NodeInfo = remote.call(method::STATUS, &()).await?;
    output::print(remote.form, &info, text)
}

fn text(info: &NodeInfo) -> String {
    let state = if info.ready {
        "ready".to_owned()
    } else {
        format!("waiting for {}", info.waiting_for.join(", "))
    };
    let row = |node: &NodeRecord| {
        let addresses = [&node.name, &node.client, &node.http, &node.peer];
        [node.id.to_string()]
            .into_iter()
            .chain(addresses.map(String::clone))
            .collect()
    };
    let nodes: Vec<Vec<String>> = info.nodes.iter().map(row).collect();
    let troubled = info.troubled.iter();
    let troubled: String = troubled.map(|troubled| format!("{troubled}\n")).collect();
    let more = match info.group_count.saturating_sub(info.groups.len()) {
        0 => String::new(),
        more => format!("{more} more; see `skep group list`\n"),
    };
    format!(
        "node {} ({}) of cluster {}, skep {}: {state}\n{} replicas, {} of them lead\n{troubled}\n{}\n{}{more}",
        info.id,
        info.name,
        info.cluster,
        info.version,
        info.replicas,
        info.leading,
        output::table(&["NODE", "NAME", "CLIENT", "HTTP", "PEER"], &nodes),
        group::table(&info.groups),
    )
}
