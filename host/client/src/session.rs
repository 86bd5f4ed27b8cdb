//! Commands that are applied once.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use skep_types::code::Code;
use skep_types::id::{GroupId, RequestId, SessionId};
use skep_types::proposal::Response;
use skep_wire::proto::{self, request, response};
use skep_wire::timeout_ms;
use tokio::sync::Notify;

use crate::client::{Client, Repeat, known, undecided, understood, unexpected};
use crate::clock::{Deadline, timeout};
use crate::error::ClientError;

/// How far a session's newest command may be ahead of its oldest unanswered one. A group keeps the answers of the last
/// 2048 commands of a session; below that, no answer that is still waited for is forgotten.
const WINDOW: u64 = 1024;

/// A session in one group; cheap to clone. Many commands may be in flight at once, in no particular order: each is
/// applied once, and one that was answered before another was proposed is applied before it.
#[derive(Clone)]
pub struct Session {
    client: Client,
    group: GroupId,
    inner: Arc<Inner>,
}

struct Inner {
    state: Mutex<State>,
    /// Someone may go on: the oldest unanswered command was settled.
    moved: Notify,
}

struct State {
    id: SessionId,
    next: u64,
    outstanding: BTreeSet<u64>,
}

impl State {
    fn new(id: SessionId) -> Self {
        Self {
            id,
            next: 1,
            outstanding: BTreeSet::new(),
        }
    }

    /// All commands up to here are settled.
    fn settled(&self) -> u64 {
        self.outstanding.first().copied().unwrap_or(self.next) - 1
    }
}

impl Session {
    pub(crate) async fn open(client: Client, group: GroupId) -> Result<Self, ClientError> {
        let state = State::new(open(&client, group).await?);
        let inner = Inner {
            state: Mutex::new(state),
            moved: Notify::new(),
        };
        Ok(Self {
            client,
            group,
            inner: Arc::new(inner),
        })
    }

    /// The group.
    pub fn group(&self) -> GroupId {
        self.group
    }

    /// The id under which the group knows the session.
    pub fn id(&self) -> SessionId {
        self.inner.state().id
    }

    /// Proposes a command and waits for its outcome, at most for the configured timeout. It is sent again under the same
    /// name whenever it is not known to have been applied.
    ///
    /// Dropping the future gives the command up: it may or may not be applied.
    ///
    /// # Errors
    /// As every request. After [`ClientError::SessionExpired`] the session needs a [`Session::reopen`].
    pub async fn propose(&self, command: Bytes) -> Result<Response, ClientError> {
        self.propose_within(command, self.client.config().request_timeout)
            .await
    }

    /// As [`Session::propose`], with a timeout of its own.
    ///
    /// # Errors
    /// As [`Session::propose`].
    pub async fn propose_within(
        &self,
        command: Bytes,
        limit: Duration,
    ) -> Result<Response, ClientError> {
        let deadline = Deadline::after(limit);
        let name = timeout(limit, self.name())
            .await
            .ok_or_else(|| ClientError::Rejected {
                code: Code::Busy,
                message: format!(
                    "{WINDOW} commands of the session are in flight; nothing was sent"
                ),
                retryable: true,
            })?;
        let request = name.request;
        let body = |left| {
            request::Body::Propose(proto::Propose {
                session: request.session.to_bytes(),
                sequence: request.sequence,
                acknowledged: name.acknowledged(),
                data: command.clone(),
                timeout_ms: timeout_ms(left),
            })
        };
        match self
            .client
            .ask_leader(self.group, Repeat::Safe, deadline, command.len(), body)
            .await?
        {
            response::Body::Proposed(proposed) => {
                undecided(understood(proposed.into_response(request)))
            }
            _ => undecided(Err(unexpected())),
        }
    }

    /// Opens the session anew, after it has expired. Commands still in flight keep their old names.
    ///
    /// # Errors
    /// As every request; the session is as it was then.
    pub async fn reopen(&self) -> Result<(), ClientError> {
        let id = open(&self.client, self.group).await?;
        *self.inner.state() = State::new(id);
        self.inner.moved.notify_waiters();
        Ok(())
    }

    /// Gives the next command its name, when there is room for it.
    async fn name(&self) -> Name {
        loop {
            // Asked for before looking, so that a move in between is not missed.
            let moved = self.inner.moved.notified();
            {
                let mut state = self.inner.state();
                if state.next - state.settled() <= WINDOW {
                    let request = RequestId {
                        session: state.id,
                        sequence: state.next,
                    };
                    state.outstanding.insert(request.sequence);
                    state.next += 1;
                    return Name {
                        inner: Arc::clone(&self.inner),
                        request,
                    };
                }
            }
            moved.await;
        }
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The name of a command in flight; settled when it is dropped.
struct Name {
    inner: Arc<Inner>,
    request: RequestId,
}

impl Name {
    fn acknowledged(&self) -> u64 {
        let state = self.inner.state();
        // After a reopening the old session's count is gone; it is over anyway.
        if state.id == self.request.session {
            state.settled()
        } else {
            0
        }
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        let moved = {
            let mut state = self.inner.state();
            state.id == self.request.session && {
                let settled = state.settled();
                state.outstanding.remove(&self.request.sequence);
                state.settled() > settled
            }
        };
        if moved {
            self.inner.moved.notify_waiters();
        }
    }
}

async fn open(client: &Client, group: GroupId) -> Result<SessionId, ClientError> {
    // Opened twice, one of the two is never used and expires.
    let body = |left| {
        request::Body::OpenSession(proto::OpenSession {
            timeout_ms: timeout_ms(left),
        })
    };
    match known(
        client
            .ask_leader(group, Repeat::Safe, client.deadline(), 0, body)
            .await,
    )? {
        response::Body::SessionOpened(opened) => understood(opened.id()),
        _ => Err(unexpected()),
    }
}
