//! Clients: each has a session, one operation in flight, and tries again until it knows.

use skep_core::id::{RequestId, SessionId};
use skep_core::input::Waiter;
use skep_core::outcome::{GuestFault, Outcome};
use skep_core::proposal::{self, Proposal, ProposalError, Response};
use skep_log::GroupKey;

use crate::machine::{CELLS, Command};
use crate::random::Random;

/// One client of one group.
#[derive(Debug)]
pub struct Client {
    /// Unique in the simulation.
    pub id: u64,
    /// Its group's present life, as far as it knows.
    pub key: GroupKey,
    /// Commands without a session: sent once, never again.
    pub anonymous: bool,
    session: Option<SessionId>,
    sequence: u64,
    number: u64,
    /// What it is at.
    pub operation: Option<Operation>,
    /// Counts its appointments.
    pub turn: u64,
}

/// An operation that is not settled.
#[derive(Clone, Debug)]
pub struct Operation {
    /// What it is.
    pub kind: Kind,
    /// The last index known to anybody when it began.
    pub floor: u64,
    /// Who waits, while somebody does.
    pub waiting: Option<Waiter>,
}

/// What a client can do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Open a session.
    Open,
    /// A command, in the session if there is one.
    Command(Command),
    /// A read that must see everything answered before.
    Read,
    /// A read that may be old.
    StaleRead,
}

/// What a client made of an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Settled {
    /// Its command was applied.
    Applied(Command),
    /// Its command was given up, and is applied nowhere.
    GivenUp(Command),
    /// Nothing to note; the operation is over.
    Over,
    /// It must try again.
    Retry,
}

impl Client {
    /// A client that has done nothing yet.
    pub fn new(id: u64, key: GroupKey, anonymous: bool) -> Self {
        Self {
            id,
            key,
            anonymous,
            session: None,
            sequence: 1,
            number: 0,
            operation: None,
            turn: 0,
        }
    }

    /// The group was created anew; nothing of the old life matters.
    pub fn begin_anew(&mut self, key: GroupKey) {
        *self = Self {
            number: self.number,
            turn: self.turn,
            ..Self::new(self.id, key, self.anonymous)
        };
    }

    /// Begins its next operation.
    pub fn begin(&mut self, floor: u64, random: &mut Random) {
        let kind = match (self.anonymous || self.session.is_some(), random.below(8)) {
            (_, 0 | 1) => Kind::Read,
            (_, 2) => Kind::StaleRead,
            (false, _) => Kind::Open,
            (true, _) => {
                self.number += 1;
                Kind::Command(Command {
                    client: self.id,
                    number: self.number,
                    cell: random.below(CELLS),
                    add: random.range(1, 9),
                })
            }
        };
        self.operation = Some(Operation {
            kind,
            floor,
            waiting: None,
        });
    }

    /// What it is at, in a few words.
    pub fn describe(&self) -> String {
        let kind = self.operation.as_ref().map(|operation| operation.kind);
        format!("{kind:?} in {:?} as {}", self.session, self.sequence)
    }

    /// The proposal that an operation makes, if it is one.
    pub fn proposal(&self, ballast: usize) -> Option<Proposal> {
        match self.operation.as_ref()?.kind {
            Kind::Open => Some(Proposal::OpenSession),
            Kind::Command(command) => {
                let request = match self.session {
                    Some(session) => RequestId {
                        session,
                        sequence: self.sequence,
                    },
                    None => RequestId::ANONYMOUS,
                };
                Some(Proposal::Command(proposal::Command {
                    request,
                    acknowledged: self.sequence - 1,
                    data: command.encode(ballast),
                }))
            }
            Kind::Read | Kind::StaleRead => None,
        }
    }

    /// Hears what became of its proposal.
    pub fn answered(&mut self, result: &Result<Response, ProposalError>) -> Settled {
        let Some(operation) = &mut self.operation else {
            return Settled::Over;
        };
        operation.waiting = None;
        let kind = operation.kind;
        match (kind, result) {
            (Kind::Open, Ok(response)) => {
                self.session = Some(response.session());
                self.sequence = 1;
                self.operation = None;
                Settled::Over
            }
            (Kind::Command(command), Ok(response)) => {
                self.sequence += 1;
                self.operation = None;
                match response.outcome {
                    Outcome::Fault(GuestFault::Unrunnable) => Settled::GivenUp(command),
                    _ => Settled::Applied(command),
                }
            }
            // An earlier try may have been applied; nobody will ever know by the session.
            (
                Kind::Command(_),
                Err(
                    ProposalError::SessionExpired
                    | ProposalError::AnswerExpired
                    | ProposalError::SequenceClosed,
                ),
            ) => {
                self.session = None;
                self.operation = None;
                Settled::Over
            }
            (Kind::Command(_), Err(ProposalError::Unknown)) if self.anonymous => {
                self.operation = None;
                Settled::Over
            }
            _ => Settled::Retry,
        }
    }

    /// Nobody answered. What was sent without a name is not sent again.
    pub fn timed_out(&mut self) {
        let given_up = self.anonymous
            && self
                .operation
                .as_ref()
                .is_some_and(|operation| matches!(operation.kind, Kind::Command(_)));
        if given_up {
            self.operation = None;
        } else if let Some(operation) = &mut self.operation {
            operation.waiting = None;
        }
    }
}
