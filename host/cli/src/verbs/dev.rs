//! `skep dev`: a cluster on this machine.

use std::path::{Path, PathBuf};

use anyhow::Context;
use skep_server::config::RaftSection;
use skep_types::admin::{CreateGroup, GroupInfo, method};
use tokio::signal::unix::{SignalKind, signal};

use super::connect::Connection;
use crate::local_cluster::{LocalCluster, Ports};

/// Ports of the first node: 7301 for peers, 7401 for clients, 7501 for HTTP.
const BASE_PORT: u16 = 7301;

/// The nodes are real processes with real disks. Without --dir they start empty and leave nothing behind.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The machine: a .wasm file; the key-value machine if absent
    component: Option<PathBuf>,
    /// Number of nodes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=9))]
    nodes: u8,
    /// First port: peers from here on, clients from 100 further on, HTTP from 200 further on. Default: 7301, or free
    /// ports if those are taken
    #[arg(long)]
    base_port: Option<u16>,
    /// Keeps everything in this directory, and goes on with what is in it
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Name of the group that is created: that of the component's file, or `kv`
    #[arg(long)]
    group: Option<String>,
}

pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut hangup = signal(SignalKind::hangup()).context("cannot listen for SIGHUP")?;
    let temporary;
    let dir = match &arguments.dir {
        Some(dir) => std::path::absolute(dir).context("cannot make --dir absolute")?,
        None => {
            temporary = tempfile::Builder::new()
                .prefix("skep-dev-")
                .tempdir()
                .context("cannot make a directory")?;
            temporary.path().to_owned()
        }
    };
    let mut cluster = prepare(&arguments, &dir)?;
    let result = tokio::select! {
        result = serve(&arguments, &mut cluster, &dir) => result,
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
        // The terminal is closed; the nodes would only be killed.
        _ = hangup.recv() => Ok(()),
    };
    say!("stopping {} nodes", cluster.nodes().len());
    cluster.stop().await;
    result
}

fn prepare(arguments: &Arguments, dir: &Path) -> anyhow::Result<LocalCluster> {
    if let Some(cluster) = LocalCluster::existing(dir)? {
        say!(
            "going on with the {} nodes in {}",
            cluster.nodes().len(),
            dir.display()
        );
        return Ok(cluster);
    }
    let nodes = usize::from(arguments.nodes);
    let ports = match arguments.base_port {
        Some(base) => Ports::from_base(base, nodes)?,
        None => match Ports::from_base(BASE_PORT, nodes) {
            Ok(ports) => ports,
            Err(error) => {
                say!("{error}: using free ports instead");
                Ports::free(nodes)?
            }
        },
    };
    LocalCluster::prepare(dir, "dev", &ports, &RaftSection::default())
}

async fn serve(
    arguments: &Arguments,
    cluster: &mut LocalCluster,
    dir: &Path,
) -> anyhow::Result<()> {
    cluster.start_all().await?;
    let at = cluster.client_addresses();
    let connection = Connection::to(at.clone(), 60).await?;
    let group = group(arguments, &connection).await?;
    let first = &cluster.nodes()[0].addresses;
    let (name, http) = (&group.name, &first.http);
    say!("");
    say!(
        "  skep dev: {} nodes, group `{name}` on nodes {}",
        at.len(),
        super::output::list(&group.members)
    );
    say!("");
    for node in cluster.nodes() {
        let addresses = &node.addresses;
        say!(
            "  node {}   http://{}   client {}   log {}",
            node.id,
            addresses.http,
            addresses.client,
            node.log.display()
        );
    }
    say!("");
    let at = if first.client == super::DEFAULT_AT {
        String::new()
    } else {
        format!(" --at {}", first.client)
    };
    if arguments.component.is_none() {
        say!("  skep propose{at} {name} 'put a 1'");
        say!("  skep query{at} {name} 'get a'");
        say!("  curl http://{http}/v1/groups/{name}/propose -d 'put a 1'");
        say!("  curl http://{http}/v1/groups/{name}/query -d 'get a'");
    } else {
        say!("  skep propose{at} {name} COMMAND");
        say!("  curl http://{http}/v1/groups/{name}/propose -d COMMAND");
    }
    say!("  curl http://{http}/v1/status");
    say!("");
    say!("  data in {}; Ctrl-C stops all nodes", dir.display());
    // Whatever waits for the cluster, a test for instance, reads this one line.
    super::output::raw(format!("ready at={}\n", first.client).as_bytes())?;
    Err(cluster.any_ended().await)
}

async fn group(arguments: &Arguments, connection: &Connection) -> anyhow::Result<GroupInfo> {
    let stem = arguments
        .component
        .as_deref()
        .and_then(Path::file_stem)
        .map(|stem| stem.to_string_lossy().into_owned());
    let name = arguments
        .group
        .clone()
        .or(stem)
        .unwrap_or_else(|| "kv".to_owned());
    let groups: Vec<GroupInfo> = connection.call(method::GROUP_LIST, &()).await?;
    if let Some(group) = groups.into_iter().find(|group| group.name == name) {
        return Ok(group);
    }
    let component = match &arguments.component {
        Some(path) => Some(connection.upload(path).await?.to_string()),
        None => None,
    };
    let request = CreateGroup {
        name: Some(name),
        component,
        ..CreateGroup::default()
    };
    connection.call(method::GROUP_CREATE, &request).await
}
