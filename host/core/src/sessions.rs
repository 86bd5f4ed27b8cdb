//! Client sessions: each command of a session is applied once, however often it is committed.
//!
//! What is known of sessions is replicated state: it changes only by committed entries, in log order, and is part of
//! every snapshot. Machines run at their own pace, so when an entry is planned, the answers to earlier ones are known on one
//! replica and not on another. So there are two halves. The *table* says which commands were given to the machine. It
//! changes when entries are planned, and looks at nothing but the log: its bounds are counts. The *answers* change when
//! entries are complete, also in log order, when every answer before is known everywhere: their bound is bytes. What the
//! table forgets, the answers forget when the entry that made it forget is complete. At a barrier everything before it is
//! complete, so both halves are the same on all replicas.
//!
//! All bounds here are part of what replicas have to agree on. Another number is another machine.

mod answers;
mod record;
mod weights;

use std::collections::{BTreeMap, BTreeSet};

use self::answers::Answers;
pub use self::record::{AnswerRecord, SessionRecord, SessionsRecord};
use self::weights::Weights;
use crate::id::{LogIndex, RequestId, SessionId};
use crate::proposal::{ProposalError, Response};

/// Sessions of one group, as many as dragonboat keeps. For another one, one is forgotten: of those that never had a command
/// the oldest, while there are more than [`UNTRIED_MAX`], or else the one that was unused for longest.
pub const SESSIONS_MAX: usize = 4096;

/// Sessions that never had a command and are safe from being forgotten for another one: those that are just being opened.
/// Whoever opens sessions by the thousand displaces their own.
pub const UNTRIED_MAX: usize = 1024;

/// Commands of one session that are remembered; more and the oldest is closed.
pub const WINDOW_MAX: usize = 2048;

/// Commands of all sessions that are remembered; more and the session that has most closes its oldest.
pub const COMMANDS_MAX: u64 = 1 << 18;

/// A longer reply is not kept: a retry of its command is told that the answer is gone.
pub const KEPT_REPLY_BYTES_MAX: usize = 64 << 10;

/// Bytes of all answers that are kept; more and the session that keeps most loses its oldest.
pub const KEPT_BYTES_MAX: u64 = 32 << 20;

/// What a kept answer counts for beside its reply, so that short ones are not free: in memory it takes this, in a snapshot
/// less.
pub const ANSWER_COST: u64 = 128;

/// Bytes that the sessions take in a snapshot, at the most: what is kept, a number for each command without an answer, and
/// the sessions themselves.
pub const ENCODED_BYTES_MAX: u64 = KEPT_BYTES_MAX + 24 * COMMANDS_MAX + 64 * SESSIONS_MAX as u64;

/// Sessions are compared by the commands they have in units of so many.
const COMMANDS_UNIT: u64 = 16;

/// The sessions of one group.
#[derive(Debug)]
pub struct Sessions {
    table: BTreeMap<SessionId, Session>,
    /// How many commands each of them has in the table.
    commands: Weights,
    answers: Answers,
}

#[derive(Debug, Default)]
struct Session {
    /// Index of the last entry that named the session.
    used: LogIndex,
    /// It had a command.
    tried: bool,
    /// Everything up to here is acknowledged, or was closed for want of room; never applied again.
    closed: u64,
    /// Commands above `closed` that were given to the machine.
    commands: BTreeSet<u64>,
}

/// What is to be done with a committed command.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Admission {
    /// Give it to the machine.
    Apply,
    /// It was given to the machine before. [`Sessions::answered`] tells the answer when the entry is complete.
    Repeated,
    /// It must not be applied.
    Refuse(ProposalError),
}

/// Commands that the table has forgotten.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Forgotten {
    session: SessionId,
    /// All up to here.
    through: u64,
}

impl Default for Sessions {
    fn default() -> Self {
        Self {
            table: BTreeMap::new(),
            commands: Weights::of_units(COMMANDS_UNIT),
            answers: Answers::default(),
        }
    }
}

/// The table: for entries that are planned.
impl Sessions {
    /// Opens a session at an entry.
    pub fn open(&mut self, id: SessionId, index: LogIndex, forgotten: &mut Vec<Forgotten>) {
        if self.table.len() >= SESSIONS_MAX
            && let Some(displaced) = self.least_needed()
        {
            forgotten.extend(self.end(displaced));
        }
        self.table.insert(
            id,
            Session {
                used: index,
                ..Session::default()
            },
        );
    }

    /// Who has to go for another one.
    fn least_needed(&self) -> Option<SessionId> {
        let untried = || self.table.iter().filter(|(_, session)| !session.tried);
        let oldest = |(id, session): &(&SessionId, &Session)| (session.used, **id);
        let displaced = if untried().count() > UNTRIED_MAX {
            untried().min_by_key(oldest)
        } else {
            self.table.iter().min_by_key(oldest)
        };
        displaced.map(|(id, _)| *id)
    }

    fn end(&mut self, id: SessionId) -> Option<Forgotten> {
        let session = self.table.remove(&id)?;
        self.commands.change(id, session.commands.len() as u64, 0);
        Some(Forgotten {
            session: id,
            through: u64::MAX,
        })
    }

    /// Decides about a command of a committed entry.
    pub fn admit(
        &mut self,
        request: RequestId,
        acknowledged: u64,
        index: LogIndex,
        forgotten: &mut Vec<Forgotten>,
    ) -> Admission {
        if request.is_anonymous() {
            return Admission::Apply;
        }
        let RequestId {
            session: id,
            sequence,
        } = request;
        let Some(session) = self.table.get_mut(&id) else {
            return Admission::Refuse(ProposalError::SessionExpired);
        };
        session.used = index;
        session.tried = true;
        let before = session.commands.len() as u64;
        let closed = session.closed;
        session.acknowledge(acknowledged);
        let is_new = sequence > session.closed && session.commands.insert(sequence);
        if session.commands.len() > WINDOW_MAX {
            session.close_oldest();
        }
        if session.closed > closed {
            forgotten.push(Forgotten {
                session: id,
                through: session.closed,
            });
        }
        self.commands
            .change(id, before, session.commands.len() as u64);
        while self.commands.total() > COMMANDS_MAX && self.close_oldest(forgotten) {}
        match self.table.get(&id) {
            Some(session) if sequence <= session.closed => {
                Admission::Refuse(ProposalError::SequenceClosed)
            }
            _ if is_new => Admission::Apply,
            _ => Admission::Repeated,
        }
    }

    /// Closes the oldest command of the session that has most. `false` if nobody has many, which the bound on sessions rules
    /// out while there are too many commands.
    fn close_oldest(&mut self, forgotten: &mut Vec<Forgotten>) -> bool {
        let Some(id) = self.commands.heaviest() else {
            return false;
        };
        let Some(session) = self.table.get_mut(&id) else {
            return false;
        };
        let before = session.commands.len() as u64;
        session.close_oldest();
        let (after, through) = (session.commands.len() as u64, session.closed);
        self.commands.change(id, before, after);
        forgotten.push(Forgotten {
            session: id,
            through,
        });
        after < before
    }

    /// Number of open sessions.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether no session is open.
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }
}

/// The answers: for entries that are complete.
impl Sessions {
    /// Keeps the answer to a command that was [admitted](Admission::Apply).
    pub fn answer(&mut self, response: &Response) {
        if !response.request.is_anonymous() {
            self.answers.keep(response);
        }
    }

    /// The answer to a command that was given to the machine [before](Admission::Repeated).
    pub fn answered(&self, request: RequestId) -> Result<Response, ProposalError> {
        let response = self.answers.get(request).cloned();
        response.ok_or(ProposalError::AnswerExpired)
    }

    /// What an entry made the table forget. Called when the entry is complete, behind its own answers.
    pub fn forget(&mut self, forgotten: impl IntoIterator<Item = Forgotten>) {
        for commands in forgotten {
            self.answers.forget(commands);
        }
    }

    /// Bytes that the kept answers count for.
    pub fn kept_bytes(&self) -> u64 {
        self.answers.bytes()
    }
}

impl Session {
    /// The client has the answers up to here: of what it has sent, whatever it says.
    fn acknowledge(&mut self, through: u64) {
        let sent = self.commands.last().copied().unwrap_or(0);
        let through = through.min(sent);
        if through > self.closed {
            self.closed = through;
            self.commands = self.commands.split_off(&(through.saturating_add(1)));
        }
    }

    fn close_oldest(&mut self) {
        if let Some(oldest) = self.commands.pop_first() {
            self.closed = oldest;
        }
    }
}

/// As much as there can be.
#[cfg(test)]
pub(crate) fn fullest() -> Sessions {
    tests::fullest()
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::id::Term;
    use crate::outcome::{GuestFault, Outcome};

    fn request(session: SessionId, sequence: u64) -> RequestId {
        RequestId { session, sequence }
    }

    fn response(request: RequestId, reply: &[u8]) -> Response {
        Response {
            request,
            index: LogIndex(5),
            term: Term(2),
            outcome: Outcome::Reply(bytes::Bytes::copy_from_slice(reply)),
        }
    }

    /// Sessions without the lag between the two halves: each entry is complete before the next is planned.
    #[derive(Default)]
    struct Prompt(Sessions, u128);

    impl Prompt {
        fn open(&mut self, index: u64) -> SessionId {
            let mut forgotten = Vec::new();
            self.1 += 1;
            let id = SessionId(self.1);
            self.0.open(id, LogIndex(index), &mut forgotten);
            self.0.forget(forgotten);
            id
        }

        fn admit(&mut self, request: RequestId, acknowledged: u64, index: u64) -> Admission {
            let mut forgotten = Vec::new();
            let index = LogIndex(index);
            let admission = self.0.admit(request, acknowledged, index, &mut forgotten);
            self.0.forget(forgotten);
            admission
        }

        fn apply(&mut self, request: RequestId, reply: &[u8]) {
            assert_eq!(self.admit(request, 0, 7), Admission::Apply);
            self.0.answer(&response(request, reply));
        }
    }

    fn refused(error: ProposalError) -> Admission {
        Admission::Refuse(error)
    }

    pub(super) fn fullest() -> Sessions {
        let mut sessions = Sessions::default();
        let index = LogIndex(u64::MAX);
        let last = u64::MAX - 1;
        let reply = vec![255; KEPT_REPLY_BYTES_MAX];
        let busy = COMMANDS_MAX as usize / WINDOW_MAX;
        let mut none = Vec::new();
        for number in 0..SESSIONS_MAX {
            let id = SessionId(u128::MAX - number as u128);
            sessions.open(id, index, &mut none);
            if number >= busy {
                continue;
            }
            for sequence in (last - WINDOW_MAX as u64)..last {
                let request = request(id, sequence);
                let admission = sessions.admit(request, 0, index, &mut none);
                assert_eq!(admission, Admission::Apply);
            }
            let mut answer = response(request(id, last - 1), &reply);
            (answer.index, answer.term) = (index, Term(u64::MAX));
            for sequence in (last - 4)..last {
                answer.request.sequence = sequence;
                sessions.answer(&answer);
            }
        }
        assert!(none.is_empty());
        assert_eq!(sessions.commands.total(), COMMANDS_MAX);
        assert!(sessions.kept_bytes() > KEPT_BYTES_MAX - 2 * KEPT_REPLY_BYTES_MAX as u64);
        sessions
    }

    #[test]
    fn a_command_is_applied_once() {
        let mut sessions = Prompt::default();
        let id = sessions.open(1);
        let first = request(id, 1);
        assert_eq!(sessions.admit(first, 0, 2), Admission::Apply);
        assert_eq!(sessions.admit(first, 0, 3), Admission::Repeated);
        sessions.0.answer(&response(first, b"one"));
        assert_eq!(sessions.admit(first, 0, 4), Admission::Repeated);
        assert_eq!(sessions.0.answered(first), Ok(response(first, b"one")));
        // Out of order is fine; what the client has acknowledged is not applied again.
        assert_eq!(sessions.admit(request(id, 3), 0, 5), Admission::Apply);
        assert_eq!(sessions.admit(request(id, 2), 1, 6), Admission::Apply);
        assert_eq!(
            sessions.admit(first, 0, 7),
            refused(ProposalError::SequenceClosed)
        );
        assert_eq!(sessions.0.kept_bytes(), 0);
    }

    #[test]
    fn the_window_and_the_table_are_bounded_and_forget_for_ever() {
        let mut sessions = Prompt::default();
        let id = sessions.open(1);
        for sequence in 1..=WINDOW_MAX as u64 + 1 {
            sessions.apply(request(id, sequence), b"");
        }
        assert_eq!(
            sessions.admit(request(id, 1), 0, 3),
            refused(ProposalError::SequenceClosed)
        );
        assert_eq!(sessions.0.kept_bytes(), ANSWER_COST * WINDOW_MAX as u64);
        for index in 0..SESSIONS_MAX as u64 {
            let other = request(sessions.open(10 + index), 1);
            assert_eq!(sessions.admit(other, 0, 10 + index), Admission::Apply);
        }
        assert_eq!(sessions.0.len(), SESSIONS_MAX);
        assert_eq!(
            sessions.admit(request(id, 9999), 0, 9999),
            refused(ProposalError::SessionExpired)
        );
        let left = (sessions.0.kept_bytes(), sessions.0.commands.total());
        assert_eq!(left, (0, SESSIONS_MAX as u64));
    }

    // P-5
    #[test]
    fn whoever_keeps_most_pays_for_what_is_too_much_and_nothing_is_applied_again() {
        let mut sessions = Prompt::default();
        let (small, greedy) = (sessions.open(1), sessions.open(1));
        sessions.apply(request(small, 1), &[7; 9000]);
        let reply = vec![1; 62_000];
        let sent = 2 * KEPT_BYTES_MAX / 62_000;
        for sequence in 1..=sent {
            sessions.apply(request(greedy, sequence), &reply);
            assert!(sessions.0.kept_bytes() <= KEPT_BYTES_MAX);
        }
        assert!(sessions.0.kept_bytes() > KEPT_BYTES_MAX - 70_000);
        assert!(sessions.0.answered(request(small, 1)).is_ok());
        let mut gone = 0;
        for sequence in 1..=sent {
            let request = request(greedy, sequence);
            assert_eq!(sessions.admit(request, 0, 9), Admission::Repeated);
            match sessions.0.answered(request) {
                Ok(answer) => assert_eq!(answer, response(request, &reply)),
                Err(error) => {
                    assert_eq!(error, ProposalError::AnswerExpired);
                    assert_eq!(sequence, gone + 1, "the oldest go first");
                    gone += 1;
                }
            }
        }
        assert!((sent / 3..sent * 2 / 3).contains(&gone), "{gone} of {sent}");
    }

    #[test]
    fn whoever_has_most_commands_pays_for_too_many() {
        let mut sessions = Prompt::default();
        let small = sessions.open(1);
        sessions.apply(request(small, 1), b"");
        let busy = COMMANDS_MAX / WINDOW_MAX as u64 + 1;
        for _ in 0..busy {
            let id = sessions.open(1);
            for sequence in 1..=WINDOW_MAX as u64 {
                let admission = sessions.admit(request(id, sequence), 0, 2);
                assert_eq!(admission, Admission::Apply);
            }
        }
        assert_eq!(sessions.0.commands.total(), COMMANDS_MAX);
        assert!(sessions.0.answered(request(small, 1)).is_ok());
    }

    // P-6
    #[test]
    fn no_number_ends_a_session() {
        let mut sessions = Prompt::default();
        let id = sessions.open(1);
        for sequence in [1, u64::MAX, u64::MAX - 1, 1 << 40] {
            sessions.apply(request(id, sequence), b"");
        }
        for sequence in 2..WINDOW_MAX as u64 * 2 {
            sessions.apply(request(id, sequence), b"");
        }
        // What was never sent cannot be acknowledged.
        let mut sessions = Prompt::default();
        let id = sessions.open(1);
        sessions.apply(request(id, 1), b"");
        assert_eq!(
            sessions.admit(request(id, 2), u64::MAX, 3),
            Admission::Apply
        );
        sessions.apply(request(id, 3), b"");
    }

    // P-4
    #[test]
    fn a_snapshot_keeps_the_table() {
        let mut sessions = Prompt::default();
        let id = sessions.open(1);
        let outcomes = [
            Outcome::Reply(bytes::Bytes::from_static(b"r")),
            Outcome::Rejected {
                code: 7,
                message: "no".into(),
            },
            Outcome::Fault(GuestFault::OutOfFuel),
            Outcome::Reply(vec![0; KEPT_REPLY_BYTES_MAX + 1].into()),
        ];
        for (outcome, sequence) in outcomes.into_iter().zip(1..) {
            let request = request(id, sequence);
            assert_eq!(sessions.admit(request, 0, 2), Admission::Apply);
            sessions.0.answer(&Response {
                request,
                index: LogIndex(2),
                term: Term(1),
                outcome,
            });
        }
        let bytes = sessions.0.encode().encode_to_vec();
        let restored = Sessions::decode(SessionsRecord::decode(&bytes[..]).expect("own bytes"))
            .expect("own record");
        let mut restored = Prompt(restored, 0);
        assert_eq!(restored.0.kept_bytes(), sessions.0.kept_bytes());
        for sequence in 1..=5 {
            let request = request(id, sequence);
            assert_eq!(
                restored.admit(request, 0, 3),
                sessions.admit(request, 0, 3),
                "sequence {sequence}"
            );
            assert_eq!(restored.0.answered(request), sessions.0.answered(request));
        }
    }

    // P-8
    #[test]
    fn whoever_opens_thousands_displaces_nobody_who_uses_theirs() {
        let mut sessions = Prompt::default();
        let victim = sessions.open(1);
        sessions.apply(request(victim, 1), b"once");
        let untried = sessions.open(2);
        // So many in between, and none of them with a command.
        for index in 0..10 * SESSIONS_MAX as u64 {
            sessions.open(10 + index);
        }
        assert_eq!(sessions.0.len(), SESSIONS_MAX);
        let again = sessions.admit(request(victim, 1), 0, 100_000);
        assert_eq!(again, Admission::Repeated);
        assert!(sessions.0.answered(request(victim, 1)).is_ok());
        assert_eq!(
            sessions.admit(request(untried, 1), 0, 100_000),
            refused(ProposalError::SessionExpired)
        );
    }

    // P-8
    #[test]
    fn whoever_is_just_opening_a_session_gets_to_use_it() {
        let mut sessions = Prompt::default();
        for index in 0..SESSIONS_MAX as u64 {
            let id = sessions.open(index);
            assert_eq!(sessions.admit(request(id, 1), 0, index), Admission::Apply);
        }
        // The table is full of used ones; the one unused for longest goes.
        let fresh = sessions.open(10_000);
        for index in 1..UNTRIED_MAX as u64 {
            sessions.open(10_000 + index);
        }
        assert_eq!(
            sessions.admit(request(fresh, 1), 0, 20_000),
            Admission::Apply
        );
        assert_eq!(
            sessions.admit(request(SessionId(1), 2), 0, 20_000),
            refused(ProposalError::SessionExpired)
        );
        let last = request(SessionId(SESSIONS_MAX as u128), 2);
        assert_eq!(sessions.admit(last, 0, 20_000), Admission::Apply);
    }
}
