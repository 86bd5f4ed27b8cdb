//! One request of the framed protocols, from a client or from another node on behalf of one.

use std::time::Duration;

use skep::status::Consistency;
use skep_core::id::GroupId;
use skep_core::proposal::{Command, ProposalError};
use skep_wire::proto::{self, request, response};
use skep_wire::{MAX_CHUNK, MAX_TIMEOUT_MS};

use super::call::{self, Caller};
use crate::cluster::{Host, Reach};
use crate::components::Upload;
use crate::error::HostError;

/// Carries out one request; every request has exactly one answer.
pub(crate) async fn answer(
    host: &Host,
    caller: Caller,
    request: proto::Request,
) -> proto::Response {
    let (id, group) = (request.id, GroupId(request.group));
    let body = match carry_out(host, caller, group, request.body).await {
        Ok(body) => body,
        Err(error) => response::Body::Error(explain(host, group, &error)),
    };
    let leader = match caller {
        Caller::Client => None,
        Caller::Node(_) => host.node().leader(group).unwrap_or_default(),
    };
    proto::Response {
        id,
        body: Some(body),
        leader: leader.map_or(0, |node| node.0),
    }
}

async fn carry_out(
    host: &Host,
    caller: Caller,
    group: GroupId,
    body: Option<request::Body>,
) -> Result<response::Body, HostError> {
    let patience = |milliseconds: u32| match milliseconds {
        0 => Ok(host.config().request_timeout()),
        1..=MAX_TIMEOUT_MS => Ok(Duration::from_millis(milliseconds.into())),
        _ => Err(HostError::Invalid(format!(
            "timeout_ms is {milliseconds}; use 1 to {MAX_TIMEOUT_MS}, or 0 for the node's own"
        ))),
    };
    host.check_stays()?;
    match body {
        Some(request::Body::Propose(propose)) => {
            host.here_or_elsewhere(group).await?;
            let timeout = patience(propose.timeout_ms)?;
            let command = Command::try_from(propose).map_err(wire)?;
            Ok(response::Body::Proposed(
                host.propose(group, command, Reach::Node, timeout)
                    .await?
                    .into(),
            ))
        }
        Some(request::Body::Query(query)) => {
            host.here_or_elsewhere(group).await?;
            let consistency = if query.linearizable {
                Consistency::Linearizable
            } else {
                Consistency::Stale
            };
            let answer = host
                .query(
                    group,
                    query.data,
                    consistency,
                    Reach::Node,
                    patience(query.timeout_ms)?,
                )
                .await?;
            Ok(response::Body::Answered(proto::Answered {
                index: answer.index.0,
                term: answer.term.0,
                outcome: Some(answer.outcome.into()),
            }))
        }
        Some(request::Body::OpenSession(open)) => {
            host.here_or_elsewhere(group).await?;
            let timeout = patience(open.timeout_ms)?;
            let response = host.open_session(group, Reach::Node, timeout).await?;
            Ok(response::Body::SessionOpened(proto::SessionOpened::new(
                &response,
            )))
        }
        Some(request::Body::Call(request)) => {
            let body = call::call(host, caller, &request.method, request.body).await?;
            Ok(response::Body::Called(proto::Called { body }))
        }
        Some(request::Body::ComponentRead(read)) => {
            let id = read.id().map_err(wire)?;
            let length = u64::from(read.length).min(MAX_CHUNK as u64);
            let (data, total) = host.component_range(id, read.offset, length).await?;
            Ok(response::Body::ComponentChunk(proto::ComponentChunk {
                data,
                total,
            }))
        }
        Some(request::Body::ComponentWrite(write)) => {
            let (id, total) = (write.id().map_err(wire)?, write.total);
            let piece = Upload {
                id,
                offset: write.offset,
                total,
                data: write.data,
            };
            let received = host.write_component(piece).await?;
            Ok(response::Body::ComponentWritten(proto::ComponentWritten {
                received,
                total,
            }))
        }
        None => Err(HostError::Invalid(
            "the request has no body, or one that this node does not know".into(),
        )),
    }
}

/// The error as the client sees it, with the address of whoever can do better.
fn explain(host: &Host, group: GroupId, error: &HostError) -> proto::Error {
    let mut wire = proto::Error {
        unknown: error.is_unknown(),
        retryable: error.is_retryable(),
        ..proto::Error::new(error.code(), error.chain())
    };
    match error {
        HostError::Elsewhere { node, address, .. } => {
            (wire.leader, wire.leader_address) = (node.0, address.clone());
        }
        HostError::Node(skep::Error::Proposal {
            source: ProposalError::NotLeader { leader: Some(node) },
            ..
        }) => {
            wire.leader = node.0;
            wire.leader_address = host.client_address(*node).unwrap_or_default();
        }
        HostError::Stops { .. } | HostError::WentBack { .. } => {
            if let Some(node) = host.instead(group) {
                (wire.leader, wire.leader_address) = (node.id.0, node.client.clone());
            }
        }
        HostError::Node(
            skep::Error::GroupHalted { .. }
            | skep::Error::NodeFailed { .. }
            | skep::Error::Stopped { .. }
            | skep::Error::StoppedInFlight { .. }
            | skep::Error::Proposal {
                source: ProposalError::Faulted | ProposalError::Stopped,
                ..
            },
        ) => {
            // Another replica may be well; this one failed, was removed, or goes with its node.
            if let Some(node) = host.another_member(group) {
                (wire.leader, wire.leader_address, wire.retryable) =
                    (node.id.0, node.client.clone(), true);
            }
        }
        _ => {}
    }
    wire
}

/// What was sent is none of the protocol.
pub(super) fn wire(error: skep_wire::WireError) -> HostError {
    HostError::Invalid(error.to_string())
}
