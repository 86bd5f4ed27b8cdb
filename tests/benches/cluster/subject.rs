//! What can be measured.

use std::future::Future;

use bytes::Bytes;
use skep::{GroupStatus, Outcome};

/// Three nodes that replicate one key-value machine.
///
/// *Concurrency*: clients are independent; the subject is asked by one caller. *Failure*: any error ends the benchmark.
pub trait Subject {
    /// A client of the machine.
    type Client: Client;

    /// The node that leads.
    async fn leader(&self) -> anyhow::Result<u64>;

    /// New clients, which ask the node that leads now.
    async fn clients(&self, count: usize) -> anyhow::Result<Vec<Self::Client>>;

    /// How often the log of a node has been synced so far.
    async fn syncs(&self, node: u64) -> anyhow::Result<u64>;

    /// What each replica answers to `stats`, once all have applied everything that was committed.
    async fn replicas(&self) -> anyhow::Result<Vec<String>>;

    /// Stops the nodes, which must end in order.
    async fn stop(self) -> anyhow::Result<()>;
}

/// One client. Its error means that the command was refused or that its outcome is not known.
pub trait Client: Send + Sync + 'static {
    /// Proposes a command and waits until it is applied.
    fn propose(&self, command: Bytes) -> impl Future<Output = anyhow::Result<Outcome>> + Send;
}

/// Whether the replicas have applied all that any of them knows to be committed.
pub fn caught_up(statuses: &[GroupStatus]) -> Result<(), String> {
    let most = statuses.iter().map(|status| status.replica.commit).max();
    let behind = |status: &&GroupStatus| Some(status.replica.applied) != most;
    match statuses.iter().find(behind) {
        None => Ok(()),
        Some(status) => Err(format!(
            "node {} has applied {} of {most:?}",
            status.replica.node, status.replica.applied
        )),
    }
}
