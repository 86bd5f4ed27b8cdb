//! Three `skep serve` processes and clients that connect to them.

use anyhow::{bail, ensure};
use bytes::Bytes;
use skep_client::{Client, ClientConfig, GroupId, Outcome};
use skep_tests::clock::eventually;
use skep_tests::cluster::{Cluster, Settings};

use crate::subject::{self, Subject, caught_up};

/// A cluster of the binary, with the timing that it has by default.
pub struct Served {
    cluster: Cluster,
    group: GroupId,
}

/// One client with a connection of its own.
pub struct ServedClient {
    client: Client,
    group: GroupId,
}

impl Served {
    /// Starts it, with one group of the built-in machine.
    pub async fn start() -> anyhow::Result<Self> {
        let raft = skep_server::config::RaftSection::default();
        let cluster = Cluster::start(&Settings {
            nodes: 3,
            cluster: "bench".to_owned(),
            tick_ms: raft.tick_ms,
            election_ticks: raft.election_ticks,
            heartbeat_ticks: raft.heartbeat_ticks,
            snapshot_entries: raft.snapshot_entries,
            more: String::new(),
        })
        .await;
        let group = cluster.create_kv(1, "bench", &cluster.ids()).await;
        Ok(Self { cluster, group })
    }
}

impl Subject for Served {
    type Client = ServedClient;

    async fn leader(&self) -> anyhow::Result<u64> {
        Ok(self.cluster.leader(self.group).await)
    }

    async fn clients(&self, count: usize) -> anyhow::Result<Vec<ServedClient>> {
        let leader = &self.cluster.node(self.leader().await?).client;
        let mut clients = Vec::with_capacity(count);
        for _ in 0..count {
            clients.push(ServedClient {
                client: Client::connect(ClientConfig::new([leader.clone()])).await?,
                group: self.group,
            });
        }
        Ok(clients)
    }

    async fn syncs(&self, node: u64) -> anyhow::Result<u64> {
        Ok(self.cluster.metric(node, "skep_log_syncs_total").await)
    }

    async fn replicas(&self) -> anyhow::Result<Vec<String>> {
        eventually("the replicas have applied everything", async || {
            let mut statuses = Vec::new();
            for id in self.cluster.ids() {
                statuses.push(self.cluster.try_status(id, self.group).await?);
            }
            caught_up(&statuses)
        })
        .await;
        let mut replicas = Vec::new();
        for id in self.cluster.ids() {
            match self.cluster.replica_answer(id, self.group, "stats").await {
                Outcome::Reply(text) => replicas.push(String::from_utf8(text.into())?),
                other => bail!("node {id} does not answer: {other:?}"),
            }
        }
        Ok(replicas)
    }

    async fn stop(mut self) -> anyhow::Result<()> {
        for id in self.cluster.ids() {
            let (status, _) = self.cluster.stop(id);
            ensure!(
                status.success(),
                "node {id} did not stop in order: {status}"
            );
        }
        Ok(())
    }
}

impl subject::Client for ServedClient {
    async fn propose(&self, command: Bytes) -> anyhow::Result<Outcome> {
        let response = self.client.propose_once(self.group, command).await?;
        Ok(response.outcome)
    }
}
