//! The data path: commands, queries and sessions, here or at a node that hosts the group.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use skep::clock::{self, Stopwatch};
use skep::status::{Consistency, QueryAnswer};
use skep_core::id::{GroupId, NodeId};
use skep_core::proposal::{Command, ProposalError, Response};
use skep_types::admin::method;
use skep_types::code::Code;

use super::{Host, Hosted, catalog};
use crate::catalog::NodeRecord;
use crate::error::HostError;

/// How far a request may be carried.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reach {
    /// To a node that hosts the group, and can serve it.
    Cluster,
    /// No further: it was handed on once already, or its client is told where else to go.
    Node,
}

/// Where a group is served: here (`None`), or at these nodes.
pub type Place = Option<Vec<Arc<NodeRecord>>>;

impl Host {
    /// Proposes a command; the response says what the machine made of it. `timeout` is the caller's patience.
    pub async fn propose(
        &self,
        id: GroupId,
        command: Command,
        reach: Reach,
        timeout: Duration,
    ) -> Result<Response, HostError> {
        self.check_request(id, &command.data)?;
        self.check_room(id)?;
        let watch = Stopwatch::start();
        let (node, peers, command) = (&self.inner.node, &self.inner.peers, &command);
        let work = self.served(
            id,
            reach,
            || node.propose_as(id, command.clone()),
            |member| async move { peers.propose(&member, id, command, timeout).await },
        );
        let result = within(timeout, work).await;
        self.inner.metrics.proposed(&result, watch.elapsed());
        result
    }

    /// Opens a session, under which retries of a command are applied once.
    pub async fn open_session(
        &self,
        id: GroupId,
        reach: Reach,
        timeout: Duration,
    ) -> Result<Response, HostError> {
        self.check_request(id, &Bytes::new())?;
        self.check_room(id)?;
        let (node, peers) = (&self.inner.node, &self.inner.peers);
        let work = self.served(
            id,
            reach,
            || node.open_session(id),
            |member| async move { peers.open_session(&member, id, timeout).await },
        );
        within(timeout, work).await
    }

    /// Asks the machine without changing anything.
    pub async fn query(
        &self,
        id: GroupId,
        request: Bytes,
        consistency: Consistency,
        reach: Reach,
        timeout: Duration,
    ) -> Result<QueryAnswer, HostError> {
        self.check_request(id, &request)?;
        let watch = Stopwatch::start();
        let (node, peers, request) = (&self.inner.node, &self.inner.peers, &request);
        let work = self.served(
            id,
            reach,
            || node.query(id, request.clone(), consistency),
            |member| async move {
                peers
                    .query(&member, id, request, consistency, timeout)
                    .await
            },
        );
        let result = match within(timeout, work).await {
            Err(HostError::TimedOut { milliseconds }) => {
                Err(self.unanswered(id, consistency, milliseconds))
            }
            result => result,
        };
        self.inner.metrics.queried(&result, watch.elapsed());
        result
    }

    /// Why a query got no answer in time. It changed nothing, so there is nothing to be unknown about.
    fn unanswered(&self, id: GroupId, consistency: Consistency, milliseconds: u64) -> HostError {
        match self.inner.node.leader(id) {
            Ok(None) if consistency == Consistency::Linearizable => {
                HostError::from(skep::Error::Proposal {
                    group: id,
                    source: ProposalError::NoLeader,
                })
            }
            _ => HostError::Unanswered { milliseconds },
        }
    }

    /// Asks this node if it hosts the group, or else the first of its members that answers.
    pub(super) async fn served<T, Here, There>(
        &self,
        id: GroupId,
        reach: Reach,
        here: impl FnOnce() -> Here,
        there: impl Fn(Arc<NodeRecord>) -> There,
    ) -> Result<T, HostError>
    where
        Here: Future<Output = Result<T, skep::Error>>,
        There: Future<Output = Result<T, HostError>>,
    {
        let members = match self.place(id, reach).await? {
            Some(members) => members,
            None => match here().await {
                // The replica left while the request was on its way to it, which therefore did nothing.
                Err(skep::Error::NoSuchGroup { .. }) => {
                    self.others(id, NodeId(0), Reach::Cluster).await?
                }
                // A replica whose machine is of no use did nothing either; those of others may be well.
                Err(error) if reach == Reach::Cluster && is_refused_by_a_sick_one(&error) => {
                    match self.others(id, NodeId(0), reach).await {
                        Ok(members) => members,
                        Err(_) => return Err(error.into()),
                    }
                }
                answer => return Ok(answer?),
            },
        };
        first(members, there).await
    }

    /// Carries out an administrative method on this node's replica, or else has a member do it that answers.
    pub(super) async fn administered<T: DeserializeOwned, Here>(
        &self,
        id: GroupId,
        reach: Reach,
        method: &str,
        asked: &impl Serialize,
        here: impl FnOnce() -> Here,
    ) -> Result<T, HostError>
    where
        Here: Future<Output = Result<T, skep::Error>>,
    {
        let there = |member: Arc<NodeRecord>| async move { self.ask(&member, method, asked).await };
        self.served(id, reach, here, there).await
    }

    /// Whether the group is served here; an error that names a member if it is not. For clients that can go there.
    pub async fn here_or_elsewhere(&self, group: GroupId) -> Result<(), HostError> {
        match self
            .place(group, Reach::Cluster)
            .await?
            .and_then(|members| members.into_iter().next())
        {
            None => Ok(()),
            Some(member) => Err(HostError::Elsewhere {
                group,
                node: member.id,
                address: member.client.clone(),
            }),
        }
    }

    /// Where a client reaches a node.
    pub fn client_address(&self, node: NodeId) -> Option<String> {
        self.catalog().node(node).map(|node| node.client.clone())
    }

    /// A member of the group other than this node, as far as the catalogue here knows.
    pub fn another_member(&self, group: GroupId) -> Option<Arc<NodeRecord>> {
        let catalog = self.catalog();
        let other = catalog
            .group(group)?
            .members
            .iter()
            .find(|node| **node != self.id())?;
        catalog.node(*other).cloned()
    }

    /// Whether this node has a replica of the life of the group that it knows of. One of a former life goes soon, and what it
    /// answers says nothing of the group that has its id now.
    fn is_here(&self, id: GroupId) -> bool {
        let here = self.inner.node.incarnation(id);
        match self.catalog().group(id) {
            Some(record) => here == Some(record.incarnation),
            None => here.is_some(),
        }
    }

    /// Where a group is served.
    pub(super) async fn place(&self, id: GroupId, reach: Reach) -> Result<Place, HostError> {
        if self.is_here(id) {
            return Ok(None);
        }
        self.others(id, NodeId(0), reach).await.map(Some)
    }

    /// As [`place`](Self::place), for a request about one member that this member ought not to answer itself.
    pub(super) async fn place_but(
        &self,
        id: GroupId,
        node: NodeId,
        reach: Reach,
    ) -> Result<Place, HostError> {
        let here = self.is_here(id);
        if here && (node != self.id() || reach == Reach::Node) {
            return Ok(None);
        }
        match self.others(id, node, reach).await {
            // The member itself is the only one there is.
            Err(_) if here => Ok(None),
            others => others.map(Some),
        }
    }

    /// Hands an administrative call to a node.
    pub(super) async fn ask<T: DeserializeOwned>(
        &self,
        node: &NodeRecord,
        method: &str,
        body: &impl Serialize,
    ) -> Result<T, HostError> {
        let body =
            serde_json::to_vec(body).map_err(|error| HostError::Internal(error.to_string()))?;
        let (method, timeout) = (
            format!("{}{method}", method::LOCAL),
            self.inner.config.request_timeout(),
        );
        let answer = self
            .inner
            .peers
            .call(node, &method, body.into(), timeout)
            .await?;
        serde_json::from_slice(&answer).map_err(|error| {
            HostError::Internal(format!(
                "node {} answered {method} with other JSON: {error}",
                node.id
            ))
        })
    }

    async fn others(
        &self,
        id: GroupId,
        but: NodeId,
        reach: Reach,
    ) -> Result<Vec<Arc<NodeRecord>>, HostError> {
        let known = self.catalog().group(id).cloned();
        let record = match known {
            Some(record) => record,
            None => self.find(&id.to_string()).await?,
        };
        let catalog = self.catalog();
        let own = self.id();
        let members = record
            .members
            .iter()
            .filter(|node| **node != own && **node != but);
        let mut others: Vec<_> = members
            .filter_map(|node| catalog.node(*node).cloned())
            .collect();
        if others.is_empty() || reach == Reach::Node {
            let reason = match self.hosted().get(&id) {
                Some(Hosted::Starting { reason, .. } | Hosted::Stopping { reason, .. }) => {
                    reason.clone()
                }
                _ => None,
            };
            return Err(HostError::Starting {
                group: id,
                node: own,
                reason,
            });
        }
        self.inner.peers.order(id, &mut others);
        self.inner.peers.connect_first(&mut others).await;
        Ok(others)
    }

    /// Refuses a command that this node would have to write to a disk that is nearly full.
    fn check_room(&self, id: GroupId) -> Result<(), HostError> {
        match self.inner.room.check_command() {
            Err(full) if self.is_here(id) => Err(full.into()),
            _ => Ok(()),
        }
    }

    fn check_request(&self, id: GroupId, data: &Bytes) -> Result<(), HostError> {
        if id == catalog::GROUP {
            let message = "group 0 is the catalogue; change it with `skep group` and `skep member`, or /v1/groups";
            return Err(HostError::Invalid(message.into()));
        }
        let (size, limit) = (data.len() as u64, self.inner.config.limits.command_bytes);
        if size > limit {
            return Err(HostError::TooLarge { size, limit });
        }
        Ok(())
    }
}

/// The answer of the first of these nodes that can give one.
pub(super) async fn first<T, There>(
    nodes: Vec<Arc<NodeRecord>>,
    ask: impl Fn(Arc<NodeRecord>) -> There,
) -> Result<T, HostError>
where
    There: Future<Output = Result<T, HostError>>,
{
    let mut failure = HostError::Internal("no node to ask".to_owned());
    for node in nodes {
        match ask(node).await {
            Err(error) if is_unreachable(&error) => failure = error,
            answer => return answer,
        }
    }
    Err(failure)
}

/// Whether nothing was done because the replica is halted, quarantined, suspended, or has no machine.
fn is_refused_by_a_sick_one(error: &skep::Error) -> bool {
    !error.is_unknown() && error.code() == Code::GroupFaulted
}

/// Whether the node was not reached, or has no replica (any more, or yet) or a sick one, so that nothing was done and
/// another may be asked.
fn is_unreachable(error: &HostError) -> bool {
    !error.is_unknown()
        && matches!(
            error.code(),
            Code::Unreachable
                | Code::GroupStarting
                | Code::GroupElsewhere
                | Code::GroupFaulted
                | Code::NodeStops
        )
}

async fn within<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, HostError>>,
) -> Result<T, HostError> {
    let late = HostError::TimedOut {
        milliseconds: u64::try_from(limit.as_millis()).unwrap_or(u64::MAX),
    };
    clock::timeout(limit, work).await.unwrap_or(Err(late))
}
