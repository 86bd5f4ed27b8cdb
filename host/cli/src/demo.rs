//! `skep demo`: the main job on real data.
//!
//! Three real nodes, four groups, tens of thousands of keys; the node that leads most groups is killed in the middle,
//! misses enough to need a snapshot, comes back, and everything is then read through it and compared byte for byte.

mod dataset;
mod load;
mod report;
mod verify;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use skep::clock::{self, Stopwatch};
use skep::{GroupId, GroupStatus, NodeId};
use skep_server::config::RaftSection;
use skep_types::admin::{CreateGroup, GroupInfo, NodeInfo, Placed, method};
use tokio::signal::unix::{SignalKind, signal};

use crate::local_cluster::{LocalCluster, Ports};
use crate::verbs::connect::Connection;
use dataset::Item;
use load::Loader;
use report::Progress;

const NODES: usize = 3;
/// Seconds one request may take: longer than the death of a leader and the election after it.
const REQUEST_SECONDS: u64 = 60;
/// How long a group may take to get its first leader.
const UP_WITHIN: Duration = Duration::from_secs(120);
/// How long the restarted node may take to catch up.
const CAUGHT_UP_WITHIN: Duration = Duration::from_secs(120);
/// Pause between two looks at how far it is.
const CAUGHT_UP_POLL: Duration = Duration::from_millis(50);

/// Loads the sources of the crates this program was built from, or any other files, in chunks of 1 KiB.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// A directory or file to load; default: the crate sources in cargo's registry
    path: Option<PathBuf>,
    /// Number of groups
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=1000))]
    groups: u16,
    /// Most keys to load
    #[arg(long, default_value_t = 60_000, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    keys: u64,
    /// Requests in flight in each group
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u16).range(1..=1000))]
    in_flight: u16,
    /// Keeps the directory of the nodes, with their logs
    #[arg(long)]
    keep: bool,
}

/// Runs the demonstration; an error if a single byte differs. Whatever happens, no process is left.
pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let dir = tempfile::Builder::new()
        .prefix("skep-demo-")
        .tempdir()
        .context("cannot make a directory")?;
    // The nodes live in here: dropping it kills those that still run.
    let mut cluster = LocalCluster::prepare(dir.path(), "demo", &Ports::free(NODES)?, &raft())?;
    let result = tokio::select! {
        result = demonstrate(&arguments, &mut cluster, dir.path()) => result,
        _ = interrupt.recv() => Err(anyhow::anyhow!("interrupted")),
        _ = terminate.recv() => Err(anyhow::anyhow!("terminated")),
    };
    cluster.kill_all().await;
    if arguments.keep {
        say!("the nodes' files are in {}", dir.keep().display());
    } else {
        dir.close()
            .context("cannot remove the directory of the nodes")?;
    }
    result
}

async fn demonstrate(
    arguments: &Arguments,
    cluster: &mut LocalCluster,
    dir: &Path,
) -> anyhow::Result<()> {
    let whole = Stopwatch::start();
    let progress = Progress::new();
    let source = match &arguments.path {
        Some(path) => path.clone(),
        None => dataset::cargo_registry()?,
    };
    let limit = usize::try_from(arguments.keys).context("--keys is too large")?;
    let (root, items) = (
        source.clone(),
        tokio::task::spawn_blocking(move || dataset::read(&source, limit)),
    );
    let items = Arc::new(items.await.context("reading the data failed")??);
    let bytes: usize = items.iter().map(|item| item.value.len()).sum();
    progress.say(format!(
        "data       {} keys, {:.1} MB, from {}",
        items.len(),
        report::mega(bytes),
        root.display()
    ));

    let watch = Stopwatch::start();
    cluster.start_all().await?;
    progress.say(format!(
        "cluster    {NODES} nodes in {}, ready in {:.1} s",
        dir.display(),
        watch.elapsed().as_secs_f64()
    ));
    for node in cluster.nodes() {
        progress.say(format!(
            "           node {}: http://{}",
            node.id, node.addresses.http
        ));
    }
    let addresses = cluster.client_addresses();
    let connection = Connection::to(addresses.clone(), REQUEST_SECONDS).await?;
    let groups = create_groups(arguments.groups, &connection).await?;
    progress.say(format!(
        "groups     {} of the built-in key-value machine, leaders {}",
        groups.len(),
        leaders(&groups)
    ));

    // Loading goes on while nodes fall and rise; the loader is asked how far it is.
    let total = items.len();
    let mut loader = Loader::start(
        loading_client(&addresses).await?,
        &groups,
        &items,
        arguments.in_flight.into(),
    );
    progress.begin("loading", total);
    loader.reached(total / 4, &progress).await?;

    let victim = leads_most(&connection, &groups).await?;
    loader.node_killed(&victim.groups);
    cluster.kill(victim.node).await?;
    progress.say(format!(
        "kill -9    node {}, which led {} groups, at {} keys",
        victim.node,
        victim.groups.len(),
        loader.done()
    ));
    let dead = cluster.node(victim.node)?.addresses.client.clone();
    let mut survivors = addresses;
    survivors.retain(|address| *address != dead);
    let connection = Connection::to(survivors, REQUEST_SECONDS).await?;

    loader.reached(total / 2, &progress).await?;
    // All at once: those that have just lost their leader wait for an election.
    let snapshots = groups.iter().map(|group| snapshot(&connection, group.id));
    futures::future::try_join_all(snapshots).await?;
    progress.say(format!(
        "snapshots  of {} groups at {} keys; the dead node now needs them",
        groups.len(),
        loader.done()
    ));

    let restarted = Stopwatch::start();
    cluster.start(victim.node).await?;
    progress.say(format!(
        "restart    node {} at {} keys, ready in {:.1} s",
        victim.node,
        loader.done(),
        restarted.elapsed().as_secs_f64()
    ));

    let loaded = loader.finish(&progress).await?;
    progress.end();
    progress.say(loaded.lines(bytes));

    let through = dead;
    let reader = Connection::to(vec![through.clone()], REQUEST_SECONDS).await?;
    let by_snapshot = catch_up(&connection, &reader, &groups).await?;
    progress.say(format!(
        "caught up  node {} in all groups {:.1} s after its restart, by {} snapshots and the log behind them",
        victim.node,
        restarted.elapsed().as_secs_f64(),
        by_snapshot,
    ));
    if by_snapshot == 0 {
        bail!(
            "the restarted node caught up without any snapshot, which this demonstration is meant to show"
        );
    }

    progress.begin("reading back", total);
    let verified = verify::read_back(
        reader.client(),
        &groups,
        &items,
        arguments.in_flight.into(),
        &progress,
    )
    .await?;
    progress.end();
    progress.say(verified.lines(bytes, victim.node, &through));
    let seconds = whole.elapsed().as_secs_f64();
    if !verified.is_equal(total) {
        println!(
            "verdict    DIFFERENT: {} ({seconds:.1} s)",
            verified.summary()
        );
        bail!("what was read is not what was written");
    }
    println!("verdict    EQUAL: {total} keys, {bytes} bytes, byte for byte ({seconds:.1} s)");
    Ok(())
}

/// A group keeps a quarter of the entries between two snapshots for followers that are a little behind. The node that is
/// killed here must be further behind than that, in the few seconds there are.
fn raft() -> RaftSection {
    RaftSection {
        snapshot_entries: 128,
        ..RaftSection::default()
    }
}

async fn create_groups(count: u16, connection: &Connection) -> anyhow::Result<Vec<GroupInfo>> {
    let mut groups = Vec::new();
    for number in 1..=count {
        let request = CreateGroup {
            name: Some(format!("demo-{number}")),
            ..CreateGroup::default()
        };
        let mut group: GroupInfo = connection.call(method::GROUP_CREATE, &request).await?;
        if let Some(problem) = group.problem.take() {
            group.leader = Some(leader_of(connection, group.id, &problem).await?);
        }
        groups.push(group);
    }
    Ok(groups)
}

/// Waits for the leader of a group that had none when its creation was answered: its machine is compiled first, behind
/// everything else that this computer does.
async fn leader_of(
    connection: &Connection,
    group: GroupId,
    problem: &str,
) -> anyhow::Result<NodeId> {
    let watch = Stopwatch::start();
    loop {
        if let Ok(status) = status(connection, group).await
            && let Some(leader) = status.replica.leader
        {
            return Ok(leader);
        }
        if watch.elapsed() > UP_WITHIN {
            bail!("group {group} does not come up: {problem}");
        }
        clock::sleep(CAUGHT_UP_POLL).await;
    }
}

async fn loading_client(addresses: &[String]) -> anyhow::Result<skep_client::Client> {
    let mut config = skep_client::ClientConfig::new(addresses.iter().cloned());
    config.request_timeout = Duration::from_secs(REQUEST_SECONDS);
    skep_client::Client::connect(config)
        .await
        .context("cannot connect to load")
}

fn leaders(groups: &[GroupInfo]) -> String {
    let leader = |group: &GroupInfo| {
        group
            .leader
            .map_or_else(|| "-".to_owned(), |node| node.to_string())
    };
    groups.iter().map(leader).collect::<Vec<_>>().join(" ")
}

/// The node that leads most groups, and those groups.
struct Victim {
    node: u64,
    groups: Vec<GroupId>,
}

async fn leads_most(connection: &Connection, groups: &[GroupInfo]) -> anyhow::Result<Victim> {
    let mut led = std::collections::BTreeMap::<u64, Vec<GroupId>>::new();
    for group in groups {
        if let Some(leader) = status(connection, group.id).await?.replica.leader {
            led.entry(leader.0).or_default().push(group.id);
        }
    }
    let most = led.into_iter().max_by_key(|(_, groups)| groups.len());
    let (node, groups) = most.context("no group has a leader")?;
    Ok(Victim { node, groups })
}

/// Waits until the reader's replica of each group has applied all that is committed now; how many snapshots it was sent.
async fn catch_up(
    connection: &Connection,
    reader: &Connection,
    groups: &[GroupInfo],
) -> anyhow::Result<u64> {
    let watch = Stopwatch::start();
    for group in groups {
        let target = status(connection, group.id).await?.replica.commit;
        loop {
            // A replica that is still being brought up has no status yet.
            let now = status(reader, group.id).await;
            if now.as_ref().is_ok_and(|now| now.replica.applied >= target) {
                break;
            }
            if watch.elapsed() > CAUGHT_UP_WITHIN {
                let now = now.map_or_else(
                    |error| error.to_string(),
                    |now| format!("{:?}", now.replica),
                );
                bail!(
                    "the restarted node has not caught up in group {} to {target}: {now}",
                    group.id
                );
            }
            clock::sleep(CAUGHT_UP_POLL).await;
        }
    }
    let info: NodeInfo = reader.call(method::STATUS, &()).await?;
    Ok(info.snapshots_received)
}

/// Takes a snapshot of a group. Asked for again when no answer comes, because its leader may just have been killed and
/// one snapshot more changes nothing.
async fn snapshot(connection: &Connection, group: GroupId) -> anyhow::Result<Placed> {
    let watch = Stopwatch::start();
    loop {
        match connection.call_of(method::GROUP_SNAPSHOT, group).await {
            Err(_) if watch.elapsed() < Duration::from_secs(REQUEST_SECONDS) => {
                clock::sleep(CAUGHT_UP_POLL).await;
            }
            answer => return answer,
        }
    }
}

async fn status(connection: &Connection, group: GroupId) -> anyhow::Result<GroupStatus> {
    connection.call_of(method::GROUP_STATUS, group).await
}

/// Which group holds a key.
fn group_of<'a>(groups: &'a [GroupInfo], item: &Item) -> &'a GroupInfo {
    &groups[crc32c::crc32c(item.key.as_bytes()) as usize % groups.len()]
}
