//! Proposals and what becomes of them.

use bytes::Bytes;
use skep_types::deployment::{Deployment, Quota};
use skep_types::form::Barriers;
use skep_types::id::{ComponentId, LogIndex, NodeId, RequestId, SessionId, Term};
use skep_types::outcome::{GuestFault, Outcome};
use skep_types::proposal::{Change, ChangeRefusal, Command, Proposal, ProposalError, Response};

use crate::codec::{fixed, own};
use crate::error::WireError;
use crate::proto::{self, change::Kind, outcome, proposal, proposal_error};

impl From<Proposal> for proto::Proposal {
    fn from(proposal: Proposal) -> Self {
        let body = match proposal {
            Proposal::Command(command) => proposal::Body::Command(proto::Command {
                session: command.request.session.to_bytes(),
                sequence: command.request.sequence,
                acknowledged: command.acknowledged,
                data: command.data,
            }),
            Proposal::OpenSession => proposal::Body::OpenSession(proto::Nothing {}),
            Proposal::Barrier => proposal::Body::Barrier(proto::Nothing {}),
            Proposal::Resume => proposal::Body::Resume(proto::Nothing {}),
            Proposal::AbortActivation => proposal::Body::AbortActivation(proto::Nothing {}),
            Proposal::Trust { node } => proposal::Body::Trust(node.0),
            Proposal::Activate(deployment) => proposal::Body::Activate(proto::Deployment {
                component: Bytes::copy_from_slice(&deployment.component.0),
                profile: deployment.profile,
                commands_per_second: deployment.quota.commands_per_second,
                in_flight_bytes: deployment.quota.in_flight_bytes,
                bytes_per_second: deployment.quota.bytes_per_second,
                barriers: deployment.barriers.code(),
            }),
            Proposal::Change(change) => {
                let (kind, node, data) = match change {
                    Change::Add { node, data } => (Kind::Add, node, data),
                    Change::AddLearner { node, data } => (Kind::AddLearner, node, data),
                    Change::Remove { node, data } => (Kind::Remove, node, data),
                    Change::Promote { node } => (Kind::Promote, node, Bytes::new()),
                    Change::Demote { node } => (Kind::Demote, node, Bytes::new()),
                };
                proposal::Body::Change(proto::Change {
                    kind: kind.into(),
                    node: node.0,
                    data,
                })
            }
        };
        Self { body: Some(body) }
    }
}

impl TryFrom<proto::Proposal> for Proposal {
    type Error = WireError;

    fn try_from(proposal: proto::Proposal) -> Result<Self, WireError> {
        Ok(
            match proposal
                .body
                .ok_or(WireError::Missing("body of a proposal"))?
            {
                proposal::Body::Command(command) => Self::Command(Command {
                    request: request(&command.session, command.sequence)?,
                    acknowledged: command.acknowledged,
                    data: own(&command.data),
                }),
                proposal::Body::OpenSession(_) => Self::OpenSession,
                proposal::Body::Barrier(_) => Self::Barrier,
                proposal::Body::Resume(_) => Self::Resume,
                proposal::Body::AbortActivation(_) => Self::AbortActivation,
                proposal::Body::Trust(node) => Self::Trust { node: NodeId(node) },
                proposal::Body::Activate(deployment) => Self::Activate(Deployment {
                    component: ComponentId(fixed("a component id", &deployment.component)?),
                    profile: own(&deployment.profile),
                    quota: Quota {
                        commands_per_second: deployment.commands_per_second,
                        in_flight_bytes: deployment.in_flight_bytes,
                        bytes_per_second: deployment.bytes_per_second,
                    },
                    barriers: Barriers::from_code(deployment.barriers)
                        .ok_or(WireError::unknown("form of barriers", deployment.barriers))?,
                }),
                proposal::Body::Change(change) => {
                    let (node, data) = (NodeId(change.node), own(&change.data));
                    // Node 0 is not refused here: the leader answers it as it answers every change that makes no sense.
                    Self::Change(match Kind::try_from(change.kind) {
                        Ok(Kind::Add) => Change::Add { node, data },
                        Ok(Kind::AddLearner) => Change::AddLearner { node, data },
                        Ok(Kind::Remove) => Change::Remove { node, data },
                        Ok(Kind::Promote) => Change::Promote { node },
                        Ok(Kind::Demote) => Change::Demote { node },
                        Ok(Kind::Unspecified) | Err(_) => {
                            return Err(WireError::unknown(
                                "kind of membership change",
                                change.kind,
                            ));
                        }
                    })
                }
            },
        )
    }
}

/// The name of a command: anonymous (both 0), or a session and a sequence that counts from 1.
pub(crate) fn request(session: &[u8], sequence: u64) -> Result<RequestId, WireError> {
    let session = self::session(session)?;
    if (session.0 == 0) != (sequence == 0) {
        return Err(WireError::Zero(
            "either the session or the sequence of a command, but not both,",
        ));
    }
    Ok(RequestId { session, sequence })
}

/// A session's id; no bytes are the anonymous one.
pub(crate) fn session(bytes: &[u8]) -> Result<SessionId, WireError> {
    SessionId::from_bytes(bytes).ok_or(WireError::BadLength {
        what: "a session's id",
        found: bytes.len(),
        expected: 16,
    })
}

impl From<Outcome> for proto::Outcome {
    fn from(outcome: Outcome) -> Self {
        let body = match outcome {
            Outcome::Reply(reply) => outcome::Body::Reply(reply),
            Outcome::Rejected { code, message } => {
                outcome::Body::Rejected(proto::Rejected { code, message })
            }
            Outcome::Fault(fault) => outcome::Body::Fault(fault.code().into()),
            Outcome::Refused { code, message } => {
                outcome::Body::Refused(proto::Refused { code, message })
            }
        };
        Self { body: Some(body) }
    }
}

impl TryFrom<proto::Outcome> for Outcome {
    type Error = WireError;

    fn try_from(outcome: proto::Outcome) -> Result<Self, WireError> {
        Ok(
            match outcome
                .body
                .ok_or(WireError::Missing("body of an outcome"))?
            {
                outcome::Body::Reply(reply) => Self::Reply(reply),
                outcome::Body::Rejected(rejected) => Self::Rejected {
                    code: rejected.code,
                    message: rejected.message,
                },
                outcome::Body::Refused(refused) => Self::Refused {
                    code: refused.code,
                    message: refused.message,
                },
                outcome::Body::Fault(code) => Self::Fault(
                    u8::try_from(code)
                        .ok()
                        .and_then(GuestFault::from_code)
                        .ok_or(WireError::unknown("guest fault", code))?,
                ),
            },
        )
    }
}

impl From<Response> for proto::ProposalResponse {
    fn from(response: Response) -> Self {
        Self {
            session: response.request.session.to_bytes(),
            sequence: response.request.sequence,
            index: response.index.0,
            term: response.term.0,
            outcome: Some(response.outcome.into()),
        }
    }
}

impl TryFrom<proto::ProposalResponse> for Response {
    type Error = WireError;

    fn try_from(response: proto::ProposalResponse) -> Result<Self, WireError> {
        Ok(Self {
            // An opened session is answered with its id and sequence 0.
            request: RequestId {
                session: session(&response.session)?,
                sequence: response.sequence,
            },
            index: LogIndex(response.index),
            term: Term(response.term),
            outcome: response
                .outcome
                .ok_or(WireError::Missing("outcome"))?
                .try_into()?,
        })
    }
}

impl From<ProposalError> for proto::ProposalError {
    fn from(error: ProposalError) -> Self {
        use proposal_error::Body;
        let nothing = proto::Nothing {};
        let body = match error {
            ProposalError::NoLeader => Body::NoLeader(nothing),
            ProposalError::NotLeader { leader } => Body::NotLeader(leader.map_or(0, |node| node.0)),
            ProposalError::Busy => Body::Busy(nothing),
            ProposalError::TooLarge { size, limit } => {
                Body::TooLarge(proto::TooLarge { size, limit })
            }
            ProposalError::Superseded => Body::Superseded(nothing),
            ProposalError::SessionExpired => Body::SessionExpired(nothing),
            ProposalError::TooManySessions => Body::TooManySessions(nothing),
            ProposalError::AnswerExpired => Body::AnswerExpired(nothing),
            ProposalError::SequenceClosed => Body::SequenceClosed(nothing),
            ProposalError::ChangeInProgress => Body::ChangeInProgress(nothing),
            ProposalError::ChangeRefused(refusal) => Body::ChangeRefused(refusal as u32),
            ProposalError::Faulted => Body::Faulted(nothing),
            ProposalError::Stopped => Body::Stopped(nothing),
            ProposalError::Unknown => Body::Unknown(nothing),
            ProposalError::Paused => Body::Paused(nothing),
            ProposalError::NotNeeded => Body::NotNeeded(nothing),
            ProposalError::OutOfMemory => Body::OutOfMemory(nothing),
        };
        Self { body: Some(body) }
    }
}

impl TryFrom<proto::ProposalError> for ProposalError {
    type Error = WireError;

    fn try_from(error: proto::ProposalError) -> Result<Self, WireError> {
        use proposal_error::Body;
        Ok(
            match error.body.ok_or(WireError::Missing("body of an error"))? {
                Body::NoLeader(_) => Self::NoLeader,
                Body::NotLeader(leader) => Self::NotLeader {
                    leader: (leader != 0).then_some(NodeId(leader)),
                },
                Body::Busy(_) => Self::Busy,
                Body::TooLarge(too_large) => Self::TooLarge {
                    size: too_large.size,
                    limit: too_large.limit,
                },
                Body::Superseded(_) => Self::Superseded,
                Body::SessionExpired(_) => Self::SessionExpired,
                Body::TooManySessions(_) => Self::TooManySessions,
                Body::AnswerExpired(_) => Self::AnswerExpired,
                Body::SequenceClosed(_) => Self::SequenceClosed,
                Body::ChangeInProgress(_) => Self::ChangeInProgress,
                Body::ChangeRefused(code) => Self::ChangeRefused(
                    u8::try_from(code)
                        .ok()
                        .and_then(ChangeRefusal::from_code)
                        .ok_or(WireError::unknown("refusal of a membership change", code))?,
                ),
                Body::Faulted(_) => Self::Faulted,
                Body::Stopped(_) => Self::Stopped,
                Body::Unknown(_) => Self::Unknown,
                Body::Paused(_) => Self::Paused,
                Body::NotNeeded(_) => Self::NotNeeded,
                Body::OutOfMemory(_) => Self::OutOfMemory,
            },
        )
    }
}
