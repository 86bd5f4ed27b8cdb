//! What clients and nodes say to each other, as the words of `skep-types`.

use bytes::Bytes;
use skep_types::code::Code;
use skep_types::id::{ComponentId, LogIndex, RequestId, SessionId, Term};
use skep_types::outcome::Outcome;
use skep_types::proposal::{Command, ProposalError, Response};

use crate::codec::{fixed, own};
use crate::error::WireError;
use crate::proposal::{request, session};
use crate::proto::{self, client_frame, request, response, server_frame};

impl TryFrom<proto::Propose> for Command {
    type Error = WireError;

    fn try_from(propose: proto::Propose) -> Result<Self, WireError> {
        Ok(Self {
            request: request(&propose.session, propose.sequence)?,
            acknowledged: propose.acknowledged,
            data: own(&propose.data),
        })
    }
}

impl From<Response> for proto::Proposed {
    fn from(response: Response) -> Self {
        Self {
            index: response.index.0,
            term: response.term.0,
            outcome: Some(response.outcome.into()),
        }
    }
}

impl proto::Proposed {
    /// The response to the command of this name.
    ///
    /// # Errors
    /// If the outcome is missing or not understood.
    pub fn into_response(self, request: RequestId) -> Result<Response, WireError> {
        Ok(Response {
            request,
            index: LogIndex(self.index),
            term: Term(self.term),
            outcome: outcome(self.outcome)?,
        })
    }
}

impl proto::Answered {
    /// The answer to a query: the state it was given from, and what the machine said.
    ///
    /// # Errors
    /// If the outcome is missing or not understood.
    pub fn into_parts(self) -> Result<(LogIndex, Term, Outcome), WireError> {
        Ok((
            LogIndex(self.index),
            Term(self.term),
            outcome(self.outcome)?,
        ))
    }
}

impl proto::SessionOpened {
    /// What is sent for an opened session.
    pub fn new(response: &Response) -> Self {
        Self {
            session: response.session().to_bytes(),
            index: response.index.0,
            term: response.term.0,
        }
    }

    /// The id of the session.
    ///
    /// # Errors
    /// [`WireError::Zero`], [`WireError::BadLength`].
    pub fn id(&self) -> Result<SessionId, WireError> {
        match session(&self.session)? {
            SessionId(0) => Err(WireError::Zero("the id of a session")),
            id => Ok(id),
        }
    }
}

impl proto::ComponentRead {
    /// Asks for `length` bytes of the component from `offset` on.
    pub fn new(component: ComponentId, offset: u64, length: u32) -> Self {
        Self {
            component: Bytes::copy_from_slice(&component.0),
            offset,
            length,
        }
    }

    /// The component that is read.
    ///
    /// # Errors
    /// [`WireError::BadLength`].
    pub fn id(&self) -> Result<ComponentId, WireError> {
        Ok(ComponentId(fixed("a component's name", &self.component)?))
    }
}

impl proto::ComponentWrite {
    /// Takes the piece at `offset` of a component of `total` bytes to a node.
    pub fn new(component: ComponentId, offset: u64, total: u64, data: Bytes) -> Self {
        Self {
            component: Bytes::copy_from_slice(&component.0),
            offset,
            total,
            data,
        }
    }

    /// The component that is written.
    ///
    /// # Errors
    /// [`WireError::BadLength`].
    pub fn id(&self) -> Result<ComponentId, WireError> {
        Ok(ComponentId(fixed("a component's name", &self.component)?))
    }
}

impl proto::Error {
    /// A refusal: nothing was done, and trying again is of no use unless the caller adds that it is.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code: code.name().to_owned(),
            message: message.into(),
            ..Self::default()
        }
    }

    /// The code; one of a release that knows more of them is [`Code::Unlisted`].
    pub fn code(&self) -> Code {
        Code::said(&self.code)
    }

    /// The words, with the name of a code that is not listed here.
    pub fn words(self) -> String {
        match self.code() {
            Code::Unlisted if !self.code.is_empty() => format!("{} [{}]", self.message, self.code),
            _ => self.message,
        }
    }
}

impl From<&ProposalError> for proto::Error {
    /// The leader's address is for the caller to add, who has the address book.
    fn from(error: &ProposalError) -> Self {
        Self {
            unknown: error.is_unknown(),
            retryable: error.is_retryable(),
            leader: match error {
                ProposalError::NotLeader { leader } => leader.map_or(0, |node| node.0),
                _ => 0,
            },
            ..Self::new(error.code(), error.to_string())
        }
    }
}

impl From<&WireError> for proto::Error {
    fn from(error: &WireError) -> Self {
        Self::new(error.code(), error.to_string())
    }
}

/// Wraps a request into a frame.
pub fn request_frame(id: u64, group: u64, body: request::Body) -> proto::ClientFrame {
    let request = proto::Request {
        id,
        group,
        body: Some(body),
    };
    proto::ClientFrame {
        body: Some(client_frame::Body::Request(request)),
    }
}

/// Wraps a response into a frame.
pub fn response_frame(id: u64, body: response::Body) -> proto::ServerFrame {
    let response = proto::Response {
        id,
        body: Some(body),
        leader: 0,
    };
    proto::ServerFrame {
        body: Some(server_frame::Body::Response(response)),
    }
}

/// An outcome for a client, which may keep it.
fn outcome(outcome: Option<proto::Outcome>) -> Result<Outcome, WireError> {
    let mut outcome = outcome.ok_or(WireError::Missing("outcome"))?.try_into()?;
    if let Outcome::Reply(reply) = &mut outcome {
        *reply = own(reply);
    }
    Ok(outcome)
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    #[test]
    fn a_command_is_anonymous_or_named_in_full() {
        let propose = |session, sequence| proto::Propose {
            session: SessionId(session).to_bytes(),
            sequence,
            ..Default::default()
        };
        assert_eq!(
            Command::try_from(propose(0, 0)).unwrap().request,
            RequestId::ANONYMOUS
        );
        let named = Command::try_from(propose(7, 1)).unwrap().request;
        assert_eq!(
            named,
            RequestId {
                session: SessionId(7),
                sequence: 1
            }
        );
        for (session, sequence) in [(7, 0), (0, 1)] {
            assert!(matches!(
                Command::try_from(propose(session, sequence)),
                Err(WireError::Zero(_))
            ));
        }
        let short = proto::Propose {
            session: Bytes::from_static(&[7; 8]),
            ..propose(0, 1)
        };
        assert!(matches!(
            Command::try_from(short),
            Err(WireError::BadLength { found: 8, .. })
        ));
    }

    // P-48
    #[test]
    fn commands_and_replies_do_not_keep_the_frame_they_came_in() {
        let frame = Bytes::from(
            proto::Propose {
                data: "put".into(),
                ..Default::default()
            }
            .encode_to_vec(),
        );
        let command = Command::try_from(proto::Propose::decode(frame.clone()).unwrap()).unwrap();
        assert_eq!(command.data, "put");
        assert!(frame.is_unique());
        let proposed = proto::Proposed {
            outcome: Some(Outcome::Reply("got".into()).into()),
            ..Default::default()
        };
        let frame = Bytes::from(proposed.encode_to_vec());
        let response = proto::Proposed::decode(frame.clone())
            .unwrap()
            .into_response(RequestId::ANONYMOUS)
            .unwrap();
        assert_eq!(response.outcome, Outcome::Reply("got".into()));
        assert!(frame.is_unique());
    }

    #[test]
    fn a_response_survives_the_wire() {
        let request = RequestId {
            session: SessionId(9),
            sequence: 4,
        };
        let outcome = Outcome::Rejected {
            code: 3,
            message: "no".into(),
        };
        let response = Response {
            request,
            index: LogIndex(8),
            term: Term(2),
            outcome,
        };
        assert_eq!(
            proto::Proposed::from(response.clone())
                .into_response(request)
                .unwrap(),
            response
        );
        let missing = proto::Proposed {
            outcome: None,
            ..proto::Proposed::from(response)
        };
        assert!(matches!(
            missing.into_response(request),
            Err(WireError::Missing(_))
        ));
    }

    #[test]
    fn an_error_says_who_leads_and_whether_to_retry() {
        let error = proto::Error::from(&ProposalError::NotLeader {
            leader: Some(3.into()),
        });
        assert_eq!(
            (
                error.code.as_str(),
                error.retryable,
                error.unknown,
                error.leader
            ),
            ("not-leader", true, false, 3)
        );
        let error = proto::Error::from(&ProposalError::Unknown);
        assert_eq!(
            (error.unknown, error.retryable, error.leader),
            (true, true, 0)
        );
    }

    #[test]
    fn a_components_name_has_32_bytes() {
        let id = ComponentId::of(b"wasm");
        let write = proto::ComponentWrite::new(id, 0, 4, "wasm".into());
        assert_eq!(proto::ComponentRead::new(id, 0, 1).id().unwrap(), id);
        assert_eq!(write.id().unwrap(), id);
        for nameless in [
            proto::ComponentRead::default().id(),
            proto::ComponentWrite::default().id(),
        ] {
            assert!(matches!(
                nameless,
                Err(WireError::BadLength { found: 0, .. })
            ));
        }
    }
}
