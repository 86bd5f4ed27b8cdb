//! `skep status`.

use skep_types::admin::{NodeInfo, method};

use super::connect::Connection;
use super::{Remote, group, output};

#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    remote: Remote,
}

pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let info: NodeInfo = Connection::open(&arguments.remote)
        .await?
        .call(method::STATUS, &())
        .await?;
    output::print(arguments.remote.form, &info, text)
}

fn text(info: &NodeInfo) -> String {
    let state = if info.ready {
        "ready".to_owned()
    } else {
        format!("waiting for {}", info.waiting_for.join(", "))
    };
    let nodes: Vec<Vec<String>> = info
        .nodes
        .iter()
        .map(|node| {
            let id = node.id.to_string();
            vec![
                id,
                node.name.clone(),
                node.client.clone(),
                node.http.clone(),
                node.peer.clone(),
            ]
        })
        .collect();
    let troubled: String = info
        .troubled
        .iter()
        .map(|troubled| format!("{troubled}\n"))
        .collect();
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
