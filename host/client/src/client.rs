//! Requests, with their retries.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;
use skep_types::code::Code;
use skep_types::id::{ComponentId, GroupId, LogIndex, RequestId, Term};
pub use skep_types::node_status::Consistency;
use skep_types::outcome::Outcome;
use skep_types::proposal::Response;
use skep_types::retry::doubled;
use skep_wire::proto::{self, request, response};
use skep_wire::{MAX_CHUNK, MAX_CLIENT_FRAME, WireError, timeout_ms};
use tokio::sync::Semaphore;

use crate::clock::{Deadline, sleep, timeout};
use crate::config::ClientConfig;
use crate::error::ClientError;
use crate::link::Failure;
use crate::route::Routes;
use crate::session::Session;

/// Bytes of requests in flight, over all nodes; further ones wait for their turn.
const MAX_IN_FLIGHT: usize = 256 << 20;

/// What the smallest request counts for, so that there are never more than 16 Ki of them.
const LEAST_COST: usize = 16 << 10;

/// First pause between two tries, and the longest.
const PAUSE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(500));

/// Redirects followed without a pause: nodes that disagree on who leads must not be asked in a busy loop.
const REDIRECTS: u32 = 3;

/// The last try waits this much longer than the node was told, so that the node's verdict arrives rather than none.
const GRACE: Duration = Duration::from_millis(250);

/// Group 0 is the catalogue, which answers administrative calls.
const CATALOGUE: GroupId = GroupId(0);

const MAX_COMPONENT: u64 = 256 << 20;

/// A connection to a cluster; cheap to clone. All requests may be made concurrently.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
    timeout: Duration,
}

struct Inner {
    config: ClientConfig,
    routes: Routes,
    budget: Semaphore,
}

/// The answer to a query.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    /// Everything up to here is in the state that answered.
    pub index: LogIndex,
    /// Term of the replica that answered.
    pub term: Term,
    /// What the machine said.
    pub outcome: Outcome,
}

/// A piece of a component.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ComponentPiece {
    /// Bytes from the offset asked for; empty behind the end.
    pub data: Bytes,
    /// Size of the whole component.
    pub total: u64,
}

/// What may be done when nobody knows whether a request was carried out.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// Send it again: it changes nothing, or carries a name that keeps it from being applied twice.
    Safe,
    /// Say that the outcome is unknown.
    Never,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whom {
    Leader,
    Any,
}

impl Client {
    /// Connects to the first of the configured nodes that answers.
    ///
    /// # Errors
    /// [`ClientError::Config`], [`ClientError::Unreachable`] and [`ClientError::Refused`] if none does.
    pub async fn connect(config: ClientConfig) -> Result<Self, ClientError> {
        if config.addresses.is_empty() {
            return Err(ClientError::Config("it has no address of a node"));
        }
        let routes = Routes::new(config.clone());
        let client = Self {
            timeout: config.request_timeout,
            inner: Arc::new(Inner {
                config,
                routes,
                budget: Semaphore::new(MAX_IN_FLIGHT),
            }),
        };
        let routes = &client.inner.routes;
        let mut failures = Vec::new();
        for _ in 0..routes.len() {
            let node = routes.any();
            match node.connect().await {
                Ok(()) => return Ok(client),
                Err(error) => failures.push(error),
            }
            routes.avoid(CATALOGUE, &node);
        }
        // A refusal says more than a silence.
        let refusal = failures
            .iter()
            .find(|error| !matches!(error, ClientError::Unreachable(_)))
            .cloned();
        Err(refusal.unwrap_or_else(|| {
            let tried: Vec<_> = failures
                .into_iter()
                .map(|error| match error {
                    ClientError::Unreachable(text) => text,
                    error => error.to_string(),
                })
                .collect();
            ClientError::Unreachable(tried.join("; "))
        }))
    }

    /// The configuration.
    pub fn config(&self) -> &ClientConfig {
        &self.inner.config
    }

    /// The same client, whose requests are tried for so long; it shares the connections.
    ///
    /// ```no_run
    /// # async fn example(client: skep_client::Client) -> Result<(), skep_client::ClientError> {
    /// use std::time::Duration;
    /// use skep_client::Consistency::Stale;
    ///
    /// let hasty = client.with_timeout(Duration::from_millis(200));
    /// let answer = hasty.query(1.into(), "get key".into(), Stale).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self {
            timeout,
            ..self.clone()
        }
    }

    /// Opens a session in a group: its commands are applied once, however often they are sent.
    ///
    /// # Errors
    /// As every request.
    pub async fn session(&self, group: GroupId) -> Result<Session, ClientError> {
        Session::open(self.clone(), group).await
    }

    /// Proposes a command without a session: it is sent again only if it was certainly not applied, and its outcome is
    /// unknown if the connection is lost.
    ///
    /// # Errors
    /// As every request; [`ClientError::Unknown`] needs the caller's decision.
    pub async fn propose_once(
        &self,
        group: GroupId,
        command: Bytes,
    ) -> Result<Response, ClientError> {
        let size = command.len();
        let body = |left| {
            request::Body::Propose(proto::Propose {
                data: command.clone(),
                timeout_ms: timeout_ms(left),
                ..Default::default()
            })
        };
        match self.once(group, size, body).await? {
            response::Body::Proposed(proposed) => {
                undecided(understood(proposed.into_response(RequestId::ANONYMOUS)))
            }
            _ => undecided(Err(unexpected())),
        }
    }

    /// Asks the machine of a group. Tried again until the configured timeout: a query changes nothing.
    ///
    /// # Errors
    /// As every request, never [`ClientError::Unknown`].
    pub async fn query(
        &self,
        group: GroupId,
        query: Bytes,
        consistency: Consistency,
    ) -> Result<Answer, ClientError> {
        let linearizable = consistency == Consistency::Linearizable;
        let size = query.len();
        let body = |left| {
            request::Body::Query(proto::Query {
                linearizable,
                data: query.clone(),
                timeout_ms: timeout_ms(left),
            })
        };
        let whom = if linearizable {
            Whom::Leader
        } else {
            Whom::Any
        };
        match self.repeatedly(group, whom, size, body).await? {
            response::Body::Answered(answered) => {
                let (index, term, outcome) = understood(answered.into_parts())?;
                Ok(Answer {
                    index,
                    term,
                    outcome,
                })
            }
            _ => Err(unexpected()),
        }
    }

    /// Calls an administrative method with a JSON value. Not repeated if it may have been carried out.
    ///
    /// # Errors
    /// As every request.
    pub async fn call(&self, method: &str, body: &Value) -> Result<Value, ClientError> {
        let json = Bytes::from(body.to_string());
        let size = json.len();
        let body = |left| {
            request::Body::Call(proto::Call {
                method: method.to_owned(),
                body: json.clone(),
                timeout_ms: timeout_ms(left),
            })
        };
        match self.once(CATALOGUE, size, body).await? {
            response::Body::Called(called) if called.body.is_empty() => Ok(Value::Null),
            response::Body::Called(called) => undecided(
                serde_json::from_slice(&called.body)
                    .map_err(|error| ClientError::BadAnswer(error.to_string())),
            ),
            _ => undecided(Err(unexpected())),
        }
    }

    /// Reads at most a mebibyte of a component.
    ///
    /// # Errors
    /// As every request, never [`ClientError::Unknown`].
    pub async fn component_read(
        &self,
        component: ComponentId,
        offset: u64,
        length: u32,
    ) -> Result<ComponentPiece, ClientError> {
        let read = proto::ComponentRead::new(component, offset, length.min(MAX_CHUNK as u32));
        let body = |_| request::Body::ComponentRead(read.clone());
        match self.repeatedly(CATALOGUE, Whom::Any, 0, body).await? {
            response::Body::ComponentChunk(chunk) => Ok(ComponentPiece {
                data: chunk.data,
                total: chunk.total,
            }),
            _ => Err(unexpected()),
        }
    }

    /// Reads a whole component and verifies that it is the one.
    ///
    /// # Errors
    /// As every request, [`ClientError::TooLarge`] and [`ClientError::WrongComponent`].
    pub async fn component(&self, component: ComponentId) -> Result<Vec<u8>, ClientError> {
        let mut bytes = Vec::new();
        loop {
            let piece = self
                .component_read(component, bytes.len() as u64, MAX_CHUNK as u32)
                .await?;
            if piece.total > MAX_COMPONENT {
                return Err(ClientError::TooLarge {
                    size: usize::try_from(piece.total).unwrap_or(usize::MAX),
                    limit: MAX_COMPONENT as usize,
                });
            }
            bytes.extend_from_slice(&piece.data);
            if piece.data.is_empty() || bytes.len() as u64 >= piece.total {
                break;
            }
        }
        if ComponentId::of(&bytes) == component {
            Ok(bytes)
        } else {
            Err(ClientError::WrongComponent(component))
        }
    }

    /// Sends a piece of a component of `total` bytes, which begins at `offset`; the pieces come in order, and the last one
    /// makes the component known to the cluster. Returns where the next piece begins. Not repeated if it may have been
    /// taken.
    ///
    /// # Errors
    /// As every request.
    pub async fn component_write(
        &self,
        component: ComponentId,
        offset: u64,
        total: u64,
        data: Bytes,
    ) -> Result<u64, ClientError> {
        let size = data.len();
        let write = proto::ComponentWrite::new(component, offset, total, data);
        let body = |_| request::Body::ComponentWrite(write.clone());
        match self.once(CATALOGUE, size, body).await? {
            response::Body::ComponentWritten(written) => Ok(written.received),
            _ => undecided(Err(unexpected())),
        }
    }

    pub(crate) fn deadline(&self) -> Deadline {
        Deadline::after(self.timeout)
    }

    /// Sends the leader of the group what may be carried out once.
    async fn once(
        &self,
        group: GroupId,
        size: usize,
        body: impl Fn(Duration) -> request::Body,
    ) -> Result<response::Body, ClientError> {
        let deadline = self.deadline();
        self.request(group, Whom::Leader, Repeat::Never, deadline, size, body)
            .await
    }

    /// Sends what changes nothing until it is answered; if it is not, there is nothing to be unknown about.
    pub(crate) async fn repeatedly(
        &self,
        group: GroupId,
        whom: Whom,
        size: usize,
        body: impl Fn(Duration) -> request::Body,
    ) -> Result<response::Body, ClientError> {
        let deadline = self.deadline();
        let answer = self.request(group, whom, Repeat::Safe, deadline, size, body);
        answer.await.map_err(|error| match error {
            ClientError::Unknown(why) => ClientError::Unreachable(why),
            error => error,
        })
    }

    pub(crate) async fn request(
        &self,
        group: GroupId,
        whom: Whom,
        repeat: Repeat,
        deadline: Deadline,
        size: usize,
        body: impl Fn(Duration) -> request::Body,
    ) -> Result<response::Body, ClientError> {
        if size > MAX_CLIENT_FRAME {
            return Err(ClientError::TooLarge {
                size,
                limit: MAX_CLIENT_FRAME,
            });
        }
        let Inner {
            config,
            routes,
            budget,
        } = &*self.inner;
        let cost = u32::try_from(size.max(LEAST_COST)).expect("at most a frame");
        let place = timeout(deadline.left(), budget.acquire_many(cost))
            .await
            .ok_or_else(busy)?;
        let _place = place.expect("the semaphore is never closed");

        let (mut tries, mut redirects) = (0, 0);
        // What is known to have gone wrong after the request may have been carried out.
        let mut unknown = None;
        loop {
            let node = match whom {
                Whom::Leader => routes.leader(group),
                Whom::Any => routes.any(),
            };
            let left = deadline.left();
            let limit = match repeat {
                Repeat::Safe => left.min(config.attempt_timeout),
                Repeat::Never => left,
            };
            let answer = timeout(limit + GRACE, node.exchange(group.0, body(limit))).await;
            let error = match answer {
                Some(Ok(response::Body::Error(error))) => {
                    let leader = error.leader_address.clone();
                    let retry = error.retryable && (repeat == Repeat::Safe || !error.unknown);
                    let may_have_happened = error.unknown;
                    // A leader that has too much to do is still the leader.
                    let stay = error.code() == Code::Busy;
                    let error = ClientError::of(error);
                    if !retry {
                        return Err(error.after(unknown));
                    }
                    if may_have_happened {
                        unknown = Some(error.to_string());
                    }
                    if !leader.is_empty() && leader != node.address() {
                        let news = routes.learn(group, &leader);
                        redirects += 1;
                        if whom == Whom::Leader
                            && news
                            && redirects <= REDIRECTS
                            && !deadline.has_passed()
                        {
                            continue;
                        }
                    } else if !stay {
                        routes.avoid(group, &node);
                    }
                    error
                }
                Some(Ok(body)) => return Ok(body),
                Some(Err(Failure::NotSent(error))) => {
                    if matches!(error, ClientError::TooLarge { .. }) {
                        return Err(error.after(unknown));
                    }
                    routes.avoid(group, &node);
                    error
                }
                Some(Err(Failure::Lost | Failure::Silent)) | None => {
                    let why = match answer {
                        Some(_) => format!("the connection to {} was lost", node.address()),
                        None => format!("{} did not answer in time", node.address()),
                    };
                    routes.avoid(group, &node);
                    if repeat == Repeat::Never {
                        return Err(ClientError::Unknown(why));
                    }
                    unknown = Some(why.clone());
                    ClientError::Unknown(why)
                }
            };
            tries += 1;
            let pause = doubled(PAUSE, tries);
            if deadline.left() <= pause {
                return Err(error.after(unknown));
            }
            sleep(pause).await;
            redirects = 0;
        }
    }
}

/// A request that may have been carried out was answered with something that does not say whether it was.
pub(crate) fn undecided<T>(result: Result<T, ClientError>) -> Result<T, ClientError> {
    result.map_err(|error| match error {
        ClientError::BadAnswer(why) => {
            ClientError::Unknown(format!("the node's answer makes no sense: {why}"))
        }
        error => error,
    })
}

pub(crate) fn understood<T>(result: Result<T, WireError>) -> Result<T, ClientError> {
    result.map_err(|error| ClientError::BadAnswer(error.to_string()))
}

pub(crate) fn unexpected() -> ClientError {
    ClientError::BadAnswer("it is an answer to another kind of request".to_owned())
}

fn busy() -> ClientError {
    ClientError::Rejected {
        code: Code::Busy,
        message: "this client has too many bytes in flight; nothing was sent".to_owned(),
        retryable: true,
    }
}
