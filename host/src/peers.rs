//! Other nodes of the cluster, as this node asks them on behalf of a client: for groups that have no replica here, and
//! for components.

mod link;

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use skep_core::id::{ComponentId, GroupId, LogIndex, NodeId, RequestId, Term};
use skep_core::outcome::Outcome;
use skep_core::proposal::{Command, Response};
use skep_wire::proto::{self, request, response};
use skep_wire::{MAX_CHUNK, MAX_TIMEOUT_MS};

use crate::catalog::NodeRecord;
use crate::clock;
use crate::config::Config;
use crate::host_error::HostError;
use crate::status::{Consistency, QueryAnswer};
use crate::supervisor::Supervisor;
use link::{Link, LinkError};

/// How long one piece of a component may take.
const CHUNK_WITHIN: Duration = Duration::from_secs(10);

/// One connection to each other node, made when it is first needed. Requests share it.
pub(crate) struct Peers {
    cluster: String,
    supervisor: Supervisor,
    links: Mutex<HashMap<NodeId, Link>>,
}

impl Peers {
    pub(crate) fn new(config: &Config, supervisor: Supervisor) -> Self {
        Self {
            cluster: config.cluster.id.clone(),
            supervisor,
            links: Mutex::default(),
        }
    }

    /// Hands a command on, under its own name.
    pub(crate) async fn propose(
        &self,
        node: &NodeRecord,
        group: GroupId,
        command: &Command,
        timeout: Duration,
    ) -> Result<Response, HostError> {
        let body = request::Body::Propose(proto::Propose {
            session: command.request.session.0,
            sequence: command.request.sequence,
            acknowledged: command.acknowledged,
            data: command.data.clone(),
            timeout_ms: milliseconds(timeout),
        });
        match self.ask(node, group.0, body, timeout, true).await? {
            response::Body::Proposed(proposed) => proposed
                .into_response(command.request)
                .map_err(strange(node)),
            _ => Err(other(node)),
        }
    }

    /// Hands the opening of a session on.
    pub(crate) async fn open_session(
        &self,
        node: &NodeRecord,
        group: GroupId,
        timeout: Duration,
    ) -> Result<Response, HostError> {
        let body = request::Body::OpenSession(proto::OpenSession {
            timeout_ms: milliseconds(timeout),
        });
        match self.ask(node, group.0, body, timeout, true).await? {
            response::Body::SessionOpened(opened) => Ok(Response {
                request: RequestId {
                    session: opened.id().map_err(strange(node))?,
                    sequence: 0,
                },
                index: LogIndex(opened.index),
                term: Term(opened.term),
                outcome: Outcome::Reply(Bytes::new()),
            }),
            _ => Err(other(node)),
        }
    }

    /// Hands a query on.
    pub(crate) async fn query(
        &self,
        node: &NodeRecord,
        group: GroupId,
        data: &Bytes,
        consistency: Consistency,
        timeout: Duration,
    ) -> Result<QueryAnswer, HostError> {
        let linearizable = consistency == Consistency::Linearizable;
        let body = request::Body::Query(proto::Query {
            linearizable,
            data: data.clone(),
            timeout_ms: milliseconds(timeout),
        });
        match self.ask(node, group.0, body, timeout, false).await? {
            response::Body::Answered(answered) => {
                let (index, term, outcome) = answered.into_parts().map_err(strange(node))?;
                Ok(QueryAnswer {
                    outcome,
                    index,
                    term,
                })
            }
            _ => Err(other(node)),
        }
    }

    /// Hands an administrative call on.
    pub(crate) async fn call(
        &self,
        node: &NodeRecord,
        method: &str,
        body: Bytes,
        timeout: Duration,
    ) -> Result<Bytes, HostError> {
        let call = proto::Call {
            method: method.to_owned(),
            body,
            timeout_ms: milliseconds(timeout),
        };
        match self
            .ask(node, 0, request::Body::Call(call), timeout, true)
            .await?
        {
            response::Body::Called(called) => Ok(called.body),
            _ => Err(other(node)),
        }
    }

    /// Fetches a component of at most `limit` bytes, in pieces. Whoever takes it must verify it: the store does.
    pub(crate) async fn component(
        &self,
        node: &NodeRecord,
        id: ComponentId,
        limit: u64,
    ) -> Result<Bytes, HostError> {
        let mut whole = BytesMut::new();
        loop {
            let read = proto::ComponentRead::new(id, whole.len() as u64, MAX_CHUNK as u32);
            let chunk = match self
                .ask(
                    node,
                    0,
                    request::Body::ComponentRead(read),
                    CHUNK_WITHIN,
                    false,
                )
                .await?
            {
                response::Body::ComponentChunk(chunk) => chunk,
                _ => return Err(other(node)),
            };
            if chunk.total > limit {
                return Err(HostError::TooLarge {
                    size: chunk.total,
                    limit,
                });
            }
            whole.extend_from_slice(&chunk.data);
            match whole.len() as u64 {
                length if length == chunk.total => return Ok(whole.freeze()),
                length if length > chunk.total || chunk.data.is_empty() => return Err(other(node)),
                _ => {}
            }
        }
    }

    /// One request and its answer. `changes` says whether the request may change something, so that its loss on the way
    /// leaves the outcome unknown.
    async fn ask(
        &self,
        node: &NodeRecord,
        group: u64,
        body: request::Body,
        timeout: Duration,
        changes: bool,
    ) -> Result<response::Body, HostError> {
        let answer = clock::timeout(timeout, self.link(node).ask(group, body)).await;
        let unreachable = || HostError::Node(crate::Error::Unreachable { node: node.id });
        match answer {
            Some(Ok(response::Body::Error(error))) => Err(HostError::Remote {
                node: node.id,
                code: error.code,
                message: error.message,
                unknown: error.unknown,
                retryable: error.retryable,
            }),
            Some(Ok(answer)) => Ok(answer),
            Some(Err(LinkError::NotSent(reason))) => {
                tracing::debug!(node = %node.id, address = %node.client, reason, "another node cannot be asked");
                Err(unreachable())
            }
            Some(Err(LinkError::Lost)) | None if changes => Err(HostError::TimedOut {
                milliseconds: milliseconds(timeout).into(),
            }),
            Some(Err(LinkError::Lost)) | None => Err(unreachable()),
        }
    }

    fn link(&self, node: &NodeRecord) -> Link {
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        match links.get(&node.id) {
            Some(link) if link.address() == node.client => link.clone(),
            _ => {
                let supervisor = self.supervisor.clone();
                let link = Link::new(node.client.clone(), self.cluster.clone(), supervisor);
                links.insert(node.id, link.clone());
                link
            }
        }
    }
}

fn milliseconds(timeout: Duration) -> u32 {
    u32::try_from(timeout.as_millis()).map_or(MAX_TIMEOUT_MS, |given| given.min(MAX_TIMEOUT_MS))
}

fn other(node: &NodeRecord) -> HostError {
    HostError::Internal(format!(
        "node {} answered something else than it was asked",
        node.id
    ))
}

fn strange(node: &NodeRecord) -> impl FnOnce(skep_wire::WireError) -> HostError {
    let node = node.id;
    move |error| {
        HostError::Internal(format!(
            "node {node} answered with what is not understood: {error}"
        ))
    }
}
