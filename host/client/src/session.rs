//! Commands that are applied once.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use skep_types::code::Code;
use skep_types::id::{GroupId, RequestId, SessionId};
use skep_types::proposal::Response;
use skep_types::retry::Commands;
use skep_types::shared::lock;
use skep_wire::proto::{self, request, response};
use skep_wire::timeout_ms;
use tokio::sync::Notify;

use crate::client::{Client, Repeat, Whom, undecided, understood, unexpected};
use crate::clock::timeout;
use crate::error::ClientError;

/// How many commands of a session there may be from the oldest unanswered one on.
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
    commands: Mutex<Commands>,
    /// Someone may go on: the oldest unanswered command was settled.
    moved: Notify,
}

impl Session {
    pub(crate) async fn open(client: Client, group: GroupId) -> Result<Self, ClientError> {
        let commands = Commands::new(open(&client, group).await?);
        let inner = Inner {
            commands: Mutex::new(commands),
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
        lock(&self.inner.commands).session()
    }

    /// The same session, whose commands are tried for so long, as [`Client::with_timeout`].
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self {
            client: self.client.with_timeout(timeout),
            ..self.clone()
        }
    }

    /// Proposes a command and waits for its outcome, at most for the client's timeout. It is sent again under the same
    /// name whenever it is not known to have been applied.
    ///
    /// Dropping the future gives the command up: it may or may not be applied.
    ///
    /// # Errors
    /// As every request. After [`ClientError::SessionExpired`] the session needs a [`Session::reopen`].
    pub async fn propose(&self, command: Bytes) -> Result<Response, ClientError> {
        let deadline = self.client.deadline();
        let name =
            timeout(deadline.left(), self.name())
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
                acknowledged: lock(&name.inner.commands).acknowledged(request),
                data: command.clone(),
                timeout_ms: timeout_ms(left),
            })
        };
        let (whom, size) = (Whom::Leader, command.len());
        let answer = self
            .client
            .request(self.group, whom, Repeat::Safe, deadline, size, body);
        match answer.await? {
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
        *lock(&self.inner.commands) = Commands::new(id);
        self.inner.moved.notify_waiters();
        Ok(())
    }

    /// Gives the next command its name, when there is room for it.
    async fn name(&self) -> Name {
        loop {
            // Asked for before looking, so that a move in between is not missed.
            let moved = self.inner.moved.notified();
            {
                let mut commands = lock(&self.inner.commands);
                if commands.ahead() < WINDOW {
                    return Name {
                        inner: Arc::clone(&self.inner),
                        request: commands.begin(),
                    };
                }
            }
            moved.await;
        }
    }
}

/// The name of a command in flight; settled when it is dropped.
struct Name {
    inner: Arc<Inner>,
    request: RequestId,
}

impl Drop for Name {
    fn drop(&mut self) {
        let moved = lock(&self.inner.commands).settle(self.request);
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
    match client.repeatedly(group, Whom::Leader, 0, body).await? {
        response::Body::SessionOpened(opened) => understood(opened.id()),
        _ => Err(unexpected()),
    }
}
