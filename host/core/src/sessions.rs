//! Client sessions: each command of a session is applied once, however often it is committed.
//!
//! The table is replicated state: it changes only by committed entries, in log order, so that every replica takes the
//! same decision at the same entry; it is part of every snapshot. Whether an answer is known *yet* differs between
//! replicas (machines run at their own pace), so no decision may depend on it. For that reason the bounds are counts.

use std::collections::BTreeMap;

use prost::Message;

use crate::id::{Incarnation, LogIndex, RequestId, SessionId, Term};
use crate::outcome::{GuestFault, Outcome};
use crate::proposal::{ProposalError, Response};

/// Where a session's id holds the life of its group: four thousand million sessions of a life have room below it.
const LIFE_SHIFT: u32 = 32;

/// Sessions of one group. The one unused for longest is forgotten first; dragonboat keeps as many.
pub const SESSIONS_MAX: usize = 4096;

/// Commands of one session whose answers are kept; more in flight than this and the oldest is forgotten.
pub const WINDOW_MAX: usize = 2048;

/// A longer reply is not kept: a retry of its command is told that the answer is gone.
pub const KEPT_REPLY_BYTES_MAX: usize = 64 << 10;

/// The sessions of one group.
#[derive(Debug, Default)]
pub struct Sessions {
    next: u64,
    table: BTreeMap<SessionId, Session>,
}

#[derive(Debug, Default)]
struct Session {
    /// Index of the last entry that named the session.
    used: LogIndex,
    /// Everything up to here is answered, or was forgotten; never applied again.
    closed: u64,
    /// Commands above `closed` that were committed.
    commands: BTreeMap<u64, Answered>,
}

#[derive(Debug)]
enum Answered {
    /// Given to the machine.
    NotYet,
    /// What was answered.
    With(Response),
    /// Applied; the reply was too long to keep.
    TooLong,
}

/// What is to be done with a committed command.
#[derive(Debug, PartialEq)]
pub enum Admission {
    /// Give it to the machine.
    Apply,
    /// It was applied before.
    Done(Response),
    /// It was given to the machine before; its answer will come.
    Pending,
    /// It must not be applied.
    Refuse(ProposalError),
}

impl Sessions {
    /// No sessions yet, in this life of a group. Ids of different lives differ: a client of a former life that did not
    /// hear of its end must not meet a stranger's session.
    pub fn of_life(incarnation: Incarnation) -> Self {
        Self {
            next: incarnation.0 << LIFE_SHIFT,
            ..Self::default()
        }
    }

    /// Opens a session at an entry.
    pub fn open(&mut self, index: LogIndex) -> SessionId {
        if self.table.len() >= SESSIONS_MAX {
            let oldest = self
                .table
                .iter()
                .min_by_key(|(id, session)| (session.used, **id))
                .map(|(id, _)| *id);
            if let Some(oldest) = oldest {
                self.table.remove(&oldest);
            }
        }
        self.next += 1;
        let id = SessionId(self.next);
        self.table.insert(
            id,
            Session {
                used: index,
                ..Session::default()
            },
        );
        id
    }

    /// Decides about a command of a committed entry.
    pub fn admit(&mut self, request: RequestId, acknowledged: u64, index: LogIndex) -> Admission {
        if request.is_anonymous() {
            return Admission::Apply;
        }
        let Some(session) = self.table.get_mut(&request.session) else {
            return Admission::Refuse(ProposalError::SessionExpired);
        };
        session.used = index;
        if acknowledged > session.closed {
            session.closed = acknowledged;
            session.commands = session
                .commands
                .split_off(&(acknowledged.saturating_add(1)));
        }
        if request.sequence <= session.closed {
            return Admission::Refuse(ProposalError::SessionExpired);
        }
        match session.commands.get(&request.sequence) {
            Some(Answered::With(response)) => return Admission::Done(response.clone()),
            Some(Answered::NotYet) => return Admission::Pending,
            Some(Answered::TooLong) => return Admission::Refuse(ProposalError::SessionExpired),
            None => {}
        }
        session.commands.insert(request.sequence, Answered::NotYet);
        if session.commands.len() > WINDOW_MAX
            && let Some((oldest, _)) = session.commands.pop_first()
        {
            session.closed = oldest;
            if oldest == request.sequence {
                return Admission::Refuse(ProposalError::SessionExpired);
            }
        }
        Admission::Apply
    }

    /// Keeps an answer.
    pub fn answer(&mut self, response: &Response) {
        let request = response.request;
        if let Some(session) = self.table.get_mut(&request.session)
            && let Some(answered) = session.commands.get_mut(&request.sequence)
        {
            *answered = if response.outcome.size() > KEPT_REPLY_BYTES_MAX {
                Answered::TooLong
            } else {
                Answered::With(response.clone())
            };
        }
    }

    /// The answer kept for a command.
    pub fn answered(&self, request: RequestId) -> Option<Response> {
        match self
            .table
            .get(&request.session)?
            .commands
            .get(&request.sequence)?
        {
            Answered::With(response) => Some(response.clone()),
            Answered::NotYet | Answered::TooLong => None,
        }
    }

    /// Number of open sessions.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether no session is open.
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// The table as it stands in a snapshot. Called only when every command admitted has been answered.
    pub fn encode(&self) -> SessionsRecord {
        SessionsRecord {
            next: self.next,
            sessions: self
                .table
                .iter()
                .map(|(id, session)| session.encode(*id))
                .collect(),
        }
    }

    /// The table of a snapshot; `None` if a record makes no sense.
    pub fn decode(record: SessionsRecord) -> Option<Self> {
        // There is no id for the next session.
        record.next.checked_add(1)?;
        let mut table = BTreeMap::new();
        for session in record.sessions {
            let id = SessionId(session.id);
            let mut commands = BTreeMap::new();
            for answer in session.answers {
                let (sequence, answered) = answer.decode(id)?;
                commands.insert(sequence, answered);
            }
            table.insert(
                id,
                Session {
                    used: LogIndex(session.used),
                    closed: session.closed,
                    commands,
                },
            );
        }
        Some(Self {
            next: record.next,
            table,
        })
    }
}

impl Session {
    fn encode(&self, id: SessionId) -> SessionRecord {
        let answers = self
            .commands
            .iter()
            .map(|(sequence, answered)| match answered {
                Answered::With(response) => AnswerRecord::of(*sequence, response),
                Answered::TooLong | Answered::NotYet => AnswerRecord {
                    sequence: *sequence,
                    kind: AnswerRecord::TOO_LONG,
                    ..AnswerRecord::default()
                },
            })
            .collect();
        SessionRecord {
            id: id.0,
            used: self.used.0,
            closed: self.closed,
            answers,
        }
    }
}

/// The sessions in a snapshot.
#[derive(Clone, PartialEq, Message)]
pub struct SessionsRecord {
    /// Number of sessions ever opened.
    #[prost(uint64, tag = "1")]
    pub next: u64,
    /// Open sessions.
    #[prost(message, repeated, tag = "2")]
    pub sessions: Vec<SessionRecord>,
}

/// One session in a snapshot.
#[derive(Clone, PartialEq, Message)]
pub struct SessionRecord {
    /// Its id.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// Index of the last entry that named it.
    #[prost(uint64, tag = "2")]
    pub used: u64,
    /// Closed up to here.
    #[prost(uint64, tag = "3")]
    pub closed: u64,
    /// Answers kept.
    #[prost(message, repeated, tag = "4")]
    pub answers: Vec<AnswerRecord>,
}

/// One answer in a snapshot.
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
    /// 0 reply, 1 rejection, 2 fault, 3 too long to keep.
    #[prost(uint32, tag = "4")]
    pub kind: u32,
    /// The rejection's or the fault's code.
    #[prost(uint32, tag = "5")]
    pub code: u32,
    /// The reply, or the rejection's words.
    #[prost(bytes = "bytes", tag = "6")]
    pub data: bytes::Bytes,
}

impl AnswerRecord {
    const TOO_LONG: u32 = 3;

    fn of(sequence: u64, response: &Response) -> Self {
        let (kind, code, data) = match &response.outcome {
            Outcome::Reply(reply) => (0, 0, reply.clone()),
            Outcome::Rejected { code, message } => (1, *code, message.clone().into()),
            Outcome::Fault(fault) => (2, u32::from(fault.code()), bytes::Bytes::new()),
        };
        Self {
            sequence,
            index: response.index.0,
            term: response.term.0,
            kind,
            code,
            data,
        }
    }

    fn decode(self, session: SessionId) -> Option<(u64, Answered)> {
        let outcome = match self.kind {
            0 => Outcome::Reply(self.data),
            1 => Outcome::Rejected {
                code: self.code,
                message: String::from_utf8(self.data.to_vec()).ok()?,
            },
            2 => Outcome::Fault(GuestFault::from_code(u8::try_from(self.code).ok()?)?),
            Self::TOO_LONG => return Some((self.sequence, Answered::TooLong)),
            _ => return None,
        };
        let request = RequestId {
            session,
            sequence: self.sequence,
        };
        let response = Response {
            request,
            index: LogIndex(self.index),
            term: Term(self.term),
            outcome,
        };
        Some((self.sequence, Answered::With(response)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(session: SessionId, sequence: u64) -> RequestId {
        RequestId { session, sequence }
    }

    fn response(request: RequestId, reply: &'static [u8]) -> Response {
        Response {
            request,
            index: LogIndex(5),
            term: Term(2),
            outcome: Outcome::Reply(bytes::Bytes::from_static(reply)),
        }
    }

    #[test]
    fn a_command_is_applied_once() {
        let mut sessions = Sessions::default();
        let id = sessions.open(LogIndex(1));
        let first = request(id, 1);
        assert_eq!(sessions.admit(first, 0, LogIndex(2)), Admission::Apply);
        assert_eq!(sessions.admit(first, 0, LogIndex(3)), Admission::Pending);
        sessions.answer(&response(first, b"one"));
        assert_eq!(
            sessions.admit(first, 0, LogIndex(4)),
            Admission::Done(response(first, b"one"))
        );
        // Out of order is fine; what the client has acknowledged is not applied again.
        assert_eq!(
            sessions.admit(request(id, 3), 0, LogIndex(5)),
            Admission::Apply
        );
        assert_eq!(
            sessions.admit(request(id, 2), 1, LogIndex(6)),
            Admission::Apply
        );
        assert_eq!(
            sessions.admit(first, 0, LogIndex(7)),
            Admission::Refuse(ProposalError::SessionExpired)
        );
    }

    #[test]
    fn the_window_and_the_table_are_bounded_and_forget_for_ever() {
        let mut sessions = Sessions::default();
        let id = sessions.open(LogIndex(1));
        for sequence in 1..=WINDOW_MAX as u64 + 1 {
            assert_eq!(
                sessions.admit(request(id, sequence), 0, LogIndex(2)),
                Admission::Apply
            );
        }
        assert_eq!(
            sessions.admit(request(id, 1), 0, LogIndex(3)),
            Admission::Refuse(ProposalError::SessionExpired)
        );
        for index in 0..SESSIONS_MAX as u64 {
            sessions.open(LogIndex(10 + index));
        }
        assert_eq!(sessions.len(), SESSIONS_MAX);
        assert_eq!(
            sessions.admit(request(id, 9999), 0, LogIndex(9999)),
            Admission::Refuse(ProposalError::SessionExpired)
        );
    }

    #[test]
    fn a_snapshot_keeps_the_table() {
        let mut sessions = Sessions::default();
        let id = sessions.open(LogIndex(1));
        let outcomes = [
            Outcome::Reply(bytes::Bytes::from_static(b"r")),
            Outcome::Rejected {
                code: 7,
                message: "no".into(),
            },
            Outcome::Fault(GuestFault::OutOfFuel),
            Outcome::Reply(vec![0; KEPT_REPLY_BYTES_MAX + 1].into()),
        ];
        for (at, outcome) in outcomes.iter().enumerate() {
            let request = request(id, at as u64 + 1);
            assert_eq!(sessions.admit(request, 0, LogIndex(2)), Admission::Apply);
            sessions.answer(&Response {
                request,
                index: LogIndex(2),
                term: Term(1),
                outcome: outcome.clone(),
            });
        }
        let bytes = sessions.encode().encode_to_vec();
        let mut restored = Sessions::decode(SessionsRecord::decode(&bytes[..]).expect("own bytes"))
            .expect("own record");
        for sequence in 1..=5 {
            let request = request(id, sequence);
            assert_eq!(
                restored.admit(request, 0, LogIndex(3)),
                sessions.admit(request, 0, LogIndex(3)),
                "sequence {sequence}"
            );
        }
        assert_eq!(restored.open(LogIndex(4)), sessions.open(LogIndex(4)));
    }

    #[test]
    fn lives_share_no_session() {
        let open = |incarnation| Sessions::of_life(Incarnation(incarnation)).open(LogIndex(1));
        assert_ne!(open(1), open(2));
        let mut old = Sessions::of_life(Incarnation(1));
        let stranger = request(old.open(LogIndex(1)), 1);
        let mut new = Sessions::of_life(Incarnation(2));
        new.open(LogIndex(1));
        assert_eq!(
            new.admit(stranger, 0, LogIndex(2)),
            Admission::Refuse(ProposalError::SessionExpired)
        );
    }
}
