//! A user of the library `skep`: three nodes in one process, two groups on all of them, a machine in plain Rust.
//!
//! `cargo run -p skep-example-embed [DIRECTORY]`; the next run in the same directory goes on where this one ended.

mod sum;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Result, bail};
use bytes::Bytes;
use skep::transport::{TcpConfig, TcpTransport};
use skep::{Config, Consistency, DiskVfs, GroupConfig, GroupId, MultiNode, Native};
use skep::{NodeId, Outcome, Peer, PeerPins, Store, Vfs};
use sum::Sum;
use tokio::net::TcpListener;

const NODES: [NodeId; 3] = [NodeId(1), NodeId(2), NodeId(3)];
const APPLES: GroupId = GroupId(1);
const PEARS: GroupId = GroupId(2);
type Peers = Vec<(NodeId, String)>;

#[tokio::main]
async fn main() -> Result<()> {
    let dir = std::env::args_os().nth(1).map(PathBuf::from);
    let dir = dir.unwrap_or_else(|| std::env::temp_dir().join("skep-embed"));
    let (mut listeners, mut peers, mut nodes) = (Vec::new(), Peers::new(), Vec::new());
    for id in NODES {
        let listener = TcpTransport::bind("127.0.0.1:0", false).await?;
        peers.push((id, listener.local_addr()?.to_string()));
        listeners.push(listener);
    }
    for (id, listener) in NODES.into_iter().zip(listeners) {
        nodes.push(start(id, &dir.join(id.to_string()), listener, peers.clone()).await?);
    }
    for (group, number) in [(APPLES, "3"), (PEARS, "5")] {
        // Some try will find a leader. However many reach the group, the number is added once.
        let (timeout, retries) = (Duration::from_secs(5), Some(10));
        let added = nodes[0].propose_retry(group, number.into(), timeout, retries);
        println!(
            "group {group}: {number} more, {}",
            reply(added.await?.outcome)?
        );
        let asked = nodes[2].query(group, Bytes::new(), Consistency::Linearizable);
        println!(
            "group {group}: {}, says node 3",
            reply(asked.await?.outcome)?
        );
    }
    for node in nodes {
        node.stop().await;
        println!("{node} has stopped");
    }
    Ok(())
}

/// Starts a node on its directory, with a replica of each group: a new one, or the one that the directory holds.
async fn start(id: NodeId, dir: &Path, listener: TcpListener, peers: Peers) -> Result<MultiNode> {
    let vfs: Arc<dyn Vfs> = Arc::new(DiskVfs);
    let store = Store::open(&vfs, dir, "orchard", id.0)?;
    let pins = Arc::new(Mutex::new(PeerPins::open(vfs, dir)?));
    let tcp = TcpConfig::new(&store, peers, pins);
    let mut config = Config::new(id, "embed", "orchard", dir);
    config.store = Some(store);
    let transport = |inbound| Ok(TcpTransport::start(tcp, listener, inbound)? as _);
    let node = MultiNode::start(config, transport).await?;
    for (group, name) in [(APPLES, "apples"), (PEARS, "pears")] {
        let (machine, voters) = (Box::new(Native::new(Sum(0))), NODES.map(Peer::new));
        let config = GroupConfig::new(group, name, machine, voters.to_vec());
        node.create_group(config).await?;
    }
    Ok(node)
}

/// The machine's reply, if there is one.
fn reply(outcome: Outcome) -> Result<String> {
    let Outcome::Reply(bytes) = outcome else {
        bail!("the machine did not reply: {outcome:?}");
    };
    Ok(String::from_utf8(bytes.to_vec())?)
}
