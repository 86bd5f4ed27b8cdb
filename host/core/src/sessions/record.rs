//! The sessions in a snapshot.

use prost::Message;

use super::{Session, Sessions};
use crate::id::{LogIndex, RequestId, SessionId, Term};
use crate::outcome::{GuestFault, Outcome};
use crate::proposal::Response;

/// The sessions in a snapshot.
#[derive(Clone, PartialEq, Message)]
pub struct SessionsRecord {
    /// Open sessions.
    #[prost(message, repeated, tag = "2")]
    pub sessions: Vec<SessionRecord>,
}

/// One session in a snapshot.
#[derive(Clone, PartialEq, Message)]
pub struct SessionRecord {
    /// Its id, 16 bytes.
    #[prost(bytes = "bytes", tag = "1")]
    pub id: bytes::Bytes,
    /// Index of the last entry that named it.
    #[prost(uint64, tag = "2")]
    pub used: u64,
    /// Closed up to here.
    #[prost(uint64, tag = "3")]
    pub closed: u64,
    /// Its commands that are not closed, and the answers that are kept.
    #[prost(message, repeated, tag = "4")]
    pub answers: Vec<AnswerRecord>,
    /// It had a command.
    #[prost(bool, tag = "5")]
    pub tried: bool,
}

/// One command in a snapshot.
#[derive(Clone, PartialEq, Message)]
pub struct AnswerRecord {
    /// The command.
    #[prost(uint64, tag = "1")]
    pub sequence: u64,
    /// Index it was applied at.
    #[prost(uint64, tag = "2")]
    pub index: u64,
    /// Term of that entry.
    #[prost(uint64, tag = "3")]
    pub term: u64,
    /// 0 reply, 1 rejection, 2 fault, 3 applied and not kept, 4 refused by the host.
    #[prost(uint32, tag = "4")]
    pub kind: u32,
    /// The code of the rejection, the refusal or the fault.
    #[prost(uint32, tag = "5")]
    pub code: u32,
    /// The reply, or the rejection's words.
    #[prost(bytes = "bytes", tag = "6")]
    pub data: bytes::Bytes,
}

impl Sessions {
    /// The table as it stands in a snapshot. Called only when every command admitted has been answered.
    pub fn encode(&self) -> SessionsRecord {
        SessionsRecord {
            sessions: self
                .table
                .iter()
                .map(|(id, session)| self.encode_one(*id, session))
                .collect(),
        }
    }

    fn encode_one(&self, id: SessionId, session: &Session) -> SessionRecord {
        let answer = |sequence: &u64| {
            let sequence = *sequence;
            let request = RequestId {
                session: id,
                sequence,
            };
            match self.answers.get(request) {
                Some(response) => AnswerRecord::of(response),
                None => AnswerRecord {
                    sequence,
                    kind: AnswerRecord::NOT_KEPT,
                    ..AnswerRecord::default()
                },
            }
        };
        SessionRecord {
            id: id.to_bytes(),
            used: session.used.0,
            closed: session.closed,
            tried: session.tried,
            answers: session.commands.iter().map(answer).collect(),
        }
    }

    /// The table of a snapshot; `None` if a record makes no sense.
    pub fn decode(record: SessionsRecord) -> Option<Self> {
        let mut sessions = Self::default();
        for of in record.sessions {
            let id = SessionId::from_bytes(&of.id).filter(|id| id.0 != 0)?;
            let mut session = Session {
                used: LogIndex(of.used),
                closed: of.closed,
                tried: of.tried,
                ..Session::default()
            };
            for answer in of.answers {
                session.commands.insert(answer.sequence);
                if let Some(response) = answer.decode(id)? {
                    sessions.answers.keep(&response);
                }
            }
            let commands = session.commands.len() as u64;
            if sessions.table.insert(id, session).is_some() {
                return None;
            }
            sessions.commands.change(id, 0, commands);
        }
        Some(sessions)
    }
}

impl AnswerRecord {
    const NOT_KEPT: u32 = 3;

    fn of(response: &Response) -> Self {
        let (kind, code, data) = match &response.outcome {
            Outcome::Reply(reply) => (0, 0, reply.clone()),
            Outcome::Rejected { code, message } => (1, *code, message.clone().into()),
            Outcome::Fault(fault) => (2, u32::from(fault.code()), bytes::Bytes::new()),
            Outcome::Refused { code, .. } => (4, *code, bytes::Bytes::new()),
        };
        Self {
            sequence: response.request.sequence,
            index: response.index.0,
            term: response.term.0,
            kind,
            code,
            data,
        }
    }

    /// The answer, if one is kept; `None` if the record makes no sense.
    fn decode(self, session: SessionId) -> Option<Option<Response>> {
        let outcome = match self.kind {
            // `keep` takes no piece of the file.
            0 => Outcome::Reply(self.data),
            1 => Outcome::Rejected {
                code: self.code,
                message: String::from_utf8(self.data.to_vec()).ok()?,
            },
            2 => Outcome::Fault(GuestFault::from_code(u8::try_from(self.code).ok()?)?),
            Self::NOT_KEPT => return Some(None),
            4 => Outcome::Refused {
                code: self.code,
                message: String::new(),
            },
            _ => return None,
        };
        let request = RequestId {
            session,
            sequence: self.sequence,
        };
        Some(Some(Response {
            request,
            index: LogIndex(self.index),
            term: Term(self.term),
            outcome,
        }))
    }
}
