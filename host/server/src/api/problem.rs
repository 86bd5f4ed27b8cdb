//! Errors on HTTP: RFC 9457 problem details with a stable `code`.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use skep_core::outcome::{GuestFault, Outcome};
use skep_types::code::Code;

use crate::error::HostError;

/// Seconds after which a client may try again what failed for want of a leader: an election at the default ticks.
const RETRY_AFTER_SECONDS: u64 = 1;

/// Characters of what is wrong with a request's form: a parser quotes what it was given, which may be megabytes.
const QUOTED_CHARS: usize = 1000;

/// A parser's complaint, short enough to be sent back.
pub(super) fn quoted(complaint: &str) -> String {
    match complaint.char_indices().nth(QUOTED_CHARS) {
        Some((end, _)) => format!("{}…", &complaint[..end]),
        None => complaint.to_owned(),
    }
}

/// One problem, as JSON of the type `application/problem+json`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Problem {
    /// Always `about:blank`: `code` says what kind of problem this is.
    pub r#type: &'static str,
    /// The HTTP status in words.
    pub title: &'static str,
    /// The HTTP status.
    pub status: u16,
    /// What happened and what to do.
    pub detail: String,
    /// Stable name of the kind of problem.
    pub code: Code,
    /// Whether a command may have been applied although there is no answer.
    pub outcome_unknown: bool,
    /// Whether the same request may succeed if it is sent again.
    pub retryable: bool,
    /// The machine's own code of a rejection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rejection: Option<u32>,
    /// The kind of a machine's fault.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fault: Option<GuestFault>,
}

impl Problem {
    /// A problem of a stable code, with the status of that.
    pub fn of(code: Code, detail: impl Into<String>) -> Self {
        let status =
            StatusCode::from_u16(code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self {
            retryable: code.is_retryable(),
            ..Self::new(status, code, detail)
        }
    }

    /// A problem of a stable code, with another status.
    pub fn new(status: StatusCode, code: Code, detail: impl Into<String>) -> Self {
        Self {
            r#type: "about:blank",
            title: status.canonical_reason().unwrap_or("Error"),
            status: status.as_u16(),
            detail: detail.into(),
            code,
            outcome_unknown: false,
            retryable: false,
            rejection: None,
            fault: None,
        }
    }

    /// The problem of an outcome that is no reply; `None` for a reply.
    pub fn of_outcome(outcome: &Outcome) -> Option<Self> {
        match outcome {
            Outcome::Reply(_) => None,
            Outcome::Rejected { code, message } => Some(Self {
                rejection: Some(*code),
                ..Self::of(Code::Rejected, message.clone())
            }),
            Outcome::Refused { code, message } => Some(Self {
                rejection: Some(*code),
                ..Self::of(Code::RefusedByHost, message.clone())
            }),
            Outcome::Fault(fault) => {
                let next = fault.profile_key().map(|key| {
                    format!("; the group's profile key `{key}` raises the limit, see `skep group upgrade`")
                });
                let detail = format!(
                    "the machine failed on this request ({fault}); its state is as if the request had never been made{}",
                    next.unwrap_or_default()
                );
                Some(Self {
                    fault: Some(*fault),
                    ..Self::of(Code::GuestFault, detail)
                })
            }
        }
    }
}

impl From<&HostError> for Problem {
    fn from(error: &HostError) -> Self {
        Self {
            outcome_unknown: error.is_unknown(),
            retryable: error.is_retryable(),
            ..Self::new(status(error), error.code(), error.chain())
        }
    }
}

impl From<HostError> for Problem {
    fn from(error: HostError) -> Self {
        Self::from(&error)
    }
}

/// The status of an error. A command whose outcome is unknown is always 504, whatever made it so.
fn status(error: &HostError) -> StatusCode {
    let status = match (error, error.code()) {
        _ if error.is_unknown() => 504,
        // What is wrong with a component is wrong with it everywhere.
        (HostError::Component(_), Code::TooLarge | Code::Storage) => 422,
        (_, code) => code.status(),
    };
    StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_vec(&self).expect("plain values always become JSON");
        let mut response = (status, body).into_response();
        let kind = HeaderValue::from_static("application/problem+json");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        if matches!(
            status,
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS
        ) {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, RETRY_AFTER_SECONDS.into());
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use skep_core::id::GroupId;
    use skep_core::proposal::ProposalError;

    use crate::catalog::command::Refusal;

    use super::*;

    fn proposal(source: ProposalError) -> HostError {
        HostError::Node(skep::Error::Proposal {
            group: GroupId(1),
            source,
        })
    }

    #[test]
    fn every_kind_has_its_status() {
        for (error, status, code) in [
            (proposal(ProposalError::Unknown), 504, "outcome-unknown"),
            (proposal(ProposalError::NoLeader), 503, "no-leader"),
            (proposal(ProposalError::Busy), 429, "busy"),
            (
                proposal(ProposalError::TooLarge { size: 2, limit: 1 }),
                413,
                "too-large",
            ),
            (
                proposal(ProposalError::SessionExpired),
                409,
                "session-expired",
            ),
            (
                proposal(ProposalError::TooManySessions),
                429,
                "too-many-sessions",
            ),
            (
                proposal(ProposalError::AnswerExpired),
                409,
                "answer-expired",
            ),
            (
                proposal(ProposalError::SequenceClosed),
                409,
                "sequence-closed",
            ),
            (
                proposal(ProposalError::ChangeInProgress),
                409,
                "change-in-progress",
            ),
            (HostError::TooLarge { size: 2, limit: 1 }, 413, "too-large"),
            (HostError::UnknownGroup("a".into()), 404, "no-such-group"),
            (
                HostError::Refused(Refusal::Exists("a".into())),
                409,
                "group-exists",
            ),
            (
                HostError::Refused(Refusal::Invalid("a".into())),
                400,
                "invalid-request",
            ),
            (
                HostError::TimedOut { milliseconds: 1 },
                504,
                "outcome-unknown",
            ),
            (HostError::Internal("a".into()), 500, "internal"),
        ] {
            let problem = Problem::from(&error);
            assert_eq!(
                (problem.status, problem.code.name()),
                (status, code),
                "{error:?}"
            );
            assert_eq!(problem.outcome_unknown, status == 504, "{error:?}");
            assert!(!problem.detail.is_empty());
        }
    }

    #[test]
    fn a_machines_words_are_passed_on_and_its_faults_named() {
        assert_eq!(
            Problem::of_outcome(&Outcome::Reply(Default::default())),
            None
        );
        let rejected = Problem::of_outcome(&Outcome::Rejected {
            code: 404,
            message: "no such key".into(),
        })
        .unwrap();
        assert_eq!(
            (
                rejected.status,
                rejected.rejection,
                rejected.detail.as_str()
            ),
            (422, Some(404), "no such key")
        );
        let fault = Problem::of_outcome(&Outcome::Fault(GuestFault::OutOfFuel)).unwrap();
        assert_eq!((fault.status, fault.code.name()), (422, "guest-fault"));
        let json = serde_json::to_value(&fault).unwrap();
        assert_eq!(json["fault"], "out-of-fuel");
        assert!(json.get("rejection").is_none());
    }

    #[test]
    fn without_a_leader_a_client_is_told_when_to_retry() {
        let response = Problem::from(proposal(ProposalError::NoLeader)).into_response();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(
            response.headers()[header::CONTENT_TYPE],
            "application/problem+json"
        );
        assert!(response.headers().contains_key(header::RETRY_AFTER));
    }
}
