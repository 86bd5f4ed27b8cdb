//! A connection to a cluster, for the verbs that ask one.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use skep::{ComponentId, GroupId, Outcome, Response};
use skep_client::{Client, ClientConfig, ClientError, Consistency};
use skep_core::printable::printable;
use skep_types::admin::{GroupInfo, OfGroup, method};
use skep_types::code::Code;

use super::Remote;
use super::failure::{Failure, exit};

/// Bytes of a component that are sent at once.
const PIECE_BYTES: usize = 1 << 20;

impl Remote {
    /// One administrative call to the cluster.
    pub(super) async fn call<T: DeserializeOwned>(
        &self,
        method: &str,
        body: &impl Serialize,
    ) -> anyhow::Result<T> {
        Connection::open(self).await?.call(method, body).await
    }
}

/// A cluster, through the client protocol.
pub struct Connection {
    client: Client,
}

impl Connection {
    /// Connects to one of the nodes that the command line names.
    pub(super) async fn open(remote: &Remote) -> anyhow::Result<Self> {
        Self::to(remote.at.clone(), remote.timeout).await
    }

    /// Connects to one of these nodes; `timeout` in seconds is for one request.
    pub async fn to(addresses: Vec<String>, timeout: u64) -> anyhow::Result<Self> {
        let mut config = ClientConfig::new(addresses);
        config.request_timeout = Duration::from_secs(timeout);
        // A verb makes one request; nothing is gained by giving a node up that is only slow.
        config.attempt_timeout = config.request_timeout;
        let client = Client::connect(config).await.map_err(failure)?;
        Ok(Self { client })
    }

    /// The client itself.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// An administrative call.
    pub async fn call<T: DeserializeOwned>(
        &self,
        method: &str,
        body: &impl Serialize,
    ) -> anyhow::Result<T> {
        let body = serde_json::to_value(body).context("cannot write JSON")?;
        let answer = self.client.call(method, &body).await.map_err(failure)?;
        serde_json::from_value(answer).with_context(|| {
            format!("the node answered {method} with other JSON; run the same release on both ends")
        })
    }

    /// An administrative call about a group, which its name or its id names.
    pub async fn call_of<T: DeserializeOwned>(
        &self,
        method: &str,
        group: impl ToString,
    ) -> anyhow::Result<T> {
        let group = group.to_string();
        self.call(method, &OfGroup { group }).await
    }

    /// The id of a group of a name, or of digits.
    pub async fn group(&self, group: &str) -> anyhow::Result<GroupId> {
        match group.parse() {
            Ok(id) => Ok(GroupId(id)),
            Err(_) => {
                let info: GroupInfo = self.call_of(method::GROUP_INFO, group).await?;
                Ok(info.id)
            }
        }
    }

    /// Proposes a command, in a session of its own if it may be retried.
    pub async fn propose(
        &self,
        group: GroupId,
        command: Bytes,
        retry: bool,
    ) -> anyhow::Result<Response> {
        let response = if retry {
            let session = self.client.session(group).await.map_err(failure)?;
            session.propose(command).await
        } else {
            self.client.propose_once(group, command).await
        };
        Ok(response.map_err(failure)?)
    }

    /// Asks a group's machine.
    pub async fn query(
        &self,
        group: GroupId,
        query: Bytes,
        stale: bool,
    ) -> anyhow::Result<Outcome> {
        let consistency = match stale {
            true => Consistency::Stale,
            false => Consistency::Linearizable,
        };
        let answer = self.client.query(group, query, consistency).await;
        Ok(answer.map_err(failure)?.outcome)
    }

    /// Uploads a component, unless it is no component at all.
    pub async fn upload(&self, path: &Path) -> anyhow::Result<ComponentId> {
        let bytes = std::fs::read(path)
            .map(Bytes::from)
            .with_context(|| format!("cannot read {}", path.display()))?;
        // Found here without a node, and without sending it.
        let inspection = skep_machine::wasm::inspect(&bytes)
            .map_err(Failure::of)
            .with_context(|| format!("{} is not a machine", path.display()))?;
        let id = inspection.id;
        for from in (0..bytes.len()).step_by(PIECE_BYTES) {
            let piece = bytes.slice(from..bytes.len().min(from + PIECE_BYTES));
            let (offset, total) = (from as u64, bytes.len() as u64);
            let sent = self.client.component_write(id, offset, total, piece).await;
            sent.map_err(failure)?;
        }
        Ok(id)
    }
}

/// What a client's error is to the person who typed the command.
pub fn failure(error: ClientError) -> Failure {
    let exit = match error.code() {
        Code::Unlisted => exit(error.is_unknown(), error.is_retryable()),
        code => code.exit(),
    };
    // What a node says may be what a machine said.
    Failure::new(error.code(), printable(&error.to_string()), exit)
}
