//! Other nodes of the cluster, as this node asks them on behalf of a client: for groups that have no replica here, and
//! for components.

mod link;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use skep::Supervisor;
use skep::clock;
use skep::status::{Consistency, QueryAnswer};
use skep::transport::TcpTransport;
use skep_client::link::{Failure, Link};
use skep_core::id::{ComponentId, GroupId, LogIndex, NodeId, RequestId, Term};
use skep_core::outcome::Outcome;
use skep_core::proposal::{Command, Response};
use skep_types::shared::lock;
use skep_wire::proto::{self, request, response};
use skep_wire::{MAX_CHUNK, timeout_ms};

use crate::catalog::NodeRecord;
use crate::error::HostError;
use link::Port;

/// How long a connection may take to be made while another node may be asked instead.
const CONNECT_SOON: Duration = Duration::from_millis(200);

/// How long one piece of a component may take.
const CHUNK_WITHIN: Duration = Duration::from_secs(10);

/// One connection to each other node, made when it is first needed, to its port for nodes. Requests share it.
pub(crate) struct Peers {
    transport: Arc<TcpTransport>,
    supervisor: Supervisor,
    links: Mutex<HashMap<NodeId, (String, Link)>>,
    /// Who led each group, as whoever answered last for it said. As many as there are groups.
    leaders: Mutex<HashMap<GroupId, NodeId>>,
}

impl Peers {
    pub(crate) fn new(transport: Arc<TcpTransport>, supervisor: Supervisor) -> Self {
        Self {
            transport,
            supervisor,
            links: Mutex::default(),
            leaders: Mutex::default(),
        }
    }

    /// In which order the members of a group are best asked: whoever leads first, and who does not answer last. Those are
    /// looked after meanwhile, so that they are asked again when they are back.
    pub(crate) fn order(&self, group: GroupId, members: &mut [Arc<NodeRecord>]) {
        let leader = lock(&self.leaders).get(&group).copied();
        let links = lock(&self.links);
        let link = |node: &NodeRecord| links.get(&node.id).map(|(_, link)| link);
        members.sort_by_key(|node| {
            let silent = link(node).is_some_and(Link::is_silent);
            (silent, leader != Some(node.id))
        });
        if members.len() > 1 {
            members
                .iter()
                .filter_map(|node| link(node))
                .filter(|link| link.is_silent())
                .for_each(Link::probe);
        }
    }

    /// Puts a node first that can be asked at once, if there is one: whoever takes long to connect to is asked last.
    pub(crate) async fn connect_first(&self, members: &mut [Arc<NodeRecord>]) {
        if members.len() < 2 {
            return;
        }
        for at in 0..members.len() {
            let link = self.link(&members[at]);
            let connected = link.is_connected()
                || matches!(
                    clock::timeout(CONNECT_SOON, link.ask(0, None, false)).await,
                    Some(Ok(_))
                );
            if connected {
                members[..=at].rotate_right(1);
                return;
            }
        }
    }

    /// Forgets the leaders of groups that are none any more.
    pub(crate) fn retain(&self, is_group: impl Fn(GroupId) -> bool) {
        lock(&self.leaders).retain(|group, _| is_group(*group));
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
            session: command.request.session.to_bytes(),
            sequence: command.request.sequence,
            acknowledged: command.acknowledged,
            data: command.data.clone(),
            timeout_ms: timeout_ms(timeout),
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
            timeout_ms: timeout_ms(timeout),
        });
        match self.ask(node, group.0, body, timeout, true).await? {
            response::Body::SessionOpened(opened) => Ok(Response {
                request: RequestId {
                    session: opened.id().map_err(strange(node))?,
                    sequence: 0,
                },
                index: LogIndex(opened.index),
                term: Term(opened.term),
                outcome: Outcome::default(),
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
            timeout_ms: timeout_ms(timeout),
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
            timeout_ms: timeout_ms(timeout),
        };
        match self
            .ask(node, 0, request::Body::Call(call), timeout, true)
            .await?
        {
            response::Body::Called(called) => Ok(called.body),
            _ => Err(other(node)),
        }
    }

    /// Whether a node answers at all: it is asked something that no node knows.
    pub(crate) async fn look(&self, node: &NodeRecord, within: Duration) -> Result<(), HostError> {
        let nothing = request::Body::Call(proto::Call::default());
        match self.ask(node, 0, nothing, within, false).await {
            Ok(_) | Err(HostError::Remote { .. }) => Ok(()),
            Err(error) => Err(error),
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
        let link = self.link(node);
        let answer = clock::timeout(timeout, link.ask(group, Some(body), changes)).await;
        let unreachable = || HostError::Node(skep::Error::Unreachable { node: node.id });
        let answer = match answer {
            Some(Ok(answer)) => answer,
            Some(Err(Failure::NotSent(reason))) => {
                tracing::debug!(node = %node.id, %reason, "another node cannot be asked");
                return Err(unreachable());
            }
            Some(Err(Failure::Lost | Failure::Silent)) | None if changes => {
                return Err(HostError::TimedOut {
                    milliseconds: timeout_ms(timeout).into(),
                });
            }
            Some(Err(Failure::Lost | Failure::Silent)) | None => return Err(unreachable()),
        };
        if answer.leader != 0 {
            lock(&self.leaders).insert(GroupId(group), NodeId(answer.leader));
        }
        match answer.body {
            Some(response::Body::Error(error)) => Err(HostError::Remote {
                node: node.id,
                code: error.code(),
                unknown: error.unknown,
                retryable: error.retryable,
                message: error.words(),
            }),
            Some(body) => Ok(body),
            None => Err(other(node)),
        }
    }

    fn link(&self, node: &NodeRecord) -> Link {
        let mut links = lock(&self.links);
        match links.get(&node.id) {
            Some((address, link)) if *address == node.peer => link.clone(),
            _ => {
                let port = Port {
                    transport: Arc::clone(&self.transport),
                    node: node.id,
                    address: node.peer.clone(),
                };
                let link = port.linked(self.supervisor.clone());
                links.insert(node.id, (node.peer.clone(), link.clone()));
                link
            }
        }
    }
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
