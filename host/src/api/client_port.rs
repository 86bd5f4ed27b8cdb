//! The framed client protocol: many requests in flight on one connection, answered in whatever order they finish.
//!
//! One task owns a connection: it reads requests, drives all of them, and writes what is finished in one go. A client
//! that stops reading stops its own connection and nothing else; bytes that are no frame close it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::BytesMut;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use skep_core::id::GroupId;
use skep_core::proposal::{Command, ProposalError};
use skep_wire::client::response_frame;
use skep_wire::codec::{Decoder, Encoder};
use skep_wire::proto::{self, client_frame, request, response, server_frame};
use skep_wire::{CLIENT_PROTOCOL, MAX_CHUNK, MAX_CLIENT_FRAME, MAX_HELLO, MAX_TIMEOUT_MS};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::call;
use crate::clock;
use crate::host::{Host, Reach};
use crate::host_error::HostError;
use crate::memory::{KEPT_BY_CLIENT, empty};
use crate::status::Consistency;

/// Bytes of requests in flight on one connection; above it nothing more is read until some are answered.
const IN_FLIGHT_BYTES: usize = 32 << 20;
/// Bytes asked of the socket at once.
const READ_BYTES: usize = 64 << 10;
/// Answers are gathered up to this many bytes before they are written.
const WRITE_BYTES: usize = 256 << 10;
/// How long a connection may take to introduce itself.
const HELLO_WITHIN: Duration = Duration::from_secs(5);
/// How long one write may take: a client that has stopped reading is given up.
const WRITE_WITHIN: Duration = Duration::from_secs(30);
/// Pause after a failed accept: the process is out of file descriptors, and only time brings some back.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves until the token is cancelled.
pub async fn serve(host: Host, listener: TcpListener, stop: CancellationToken) {
    let places = Arc::new(Semaphore::new(host.config().limits.client_connections));
    let accepting = host
        .supervisor()
        .keep("client-accept", || accept(&host, &listener, &places, &stop));
    stop.run_until_cancelled(accepting).await;
}

async fn accept(
    host: &Host,
    listener: &TcpListener,
    places: &Arc<Semaphore>,
    stop: &CancellationToken,
) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a client connection could not be accepted");
                clock::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(place) = places.clone().try_acquire_owned() else {
            host.metrics()
                .client_connections_refused
                .fetch_add(1, Ordering::Relaxed);
            tokio::spawn(refuse(
                stream,
                "busy",
                "this node has as many client connections as it may; try another",
            ));
            continue;
        };
        let (host, stop) = (host.clone(), stop.clone());
        tokio::spawn(async move {
            let metrics = host.metrics();
            metrics.client_connections.fetch_add(1, Ordering::Relaxed);
            let served = Connection::new(host.clone(), stream).run();
            let served = host.supervisor().once("client-connection", served);
            if let Some(Some(Err(error))) = stop.run_until_cancelled(served).await {
                metrics
                    .client_connections_refused
                    .fetch_add(1, Ordering::Relaxed);
                tracing::debug!(error = %error.chain(), "a client connection was closed");
            }
            metrics.client_connections.fetch_sub(1, Ordering::Relaxed);
            drop(place);
        });
    }
}

struct Connection {
    host: Host,
    stream: TcpStream,
    decoder: Decoder<proto::ClientFrame>,
    encoder: Encoder<proto::ServerFrame>,
    input: BytesMut,
    output: BytesMut,
}

impl Connection {
    fn new(host: Host, stream: TcpStream) -> Self {
        // Only latency is lost if the system refuses.
        let _ = stream.set_nodelay(true);
        Self {
            host,
            stream,
            decoder: Decoder::new(MAX_HELLO),
            encoder: Encoder::new(MAX_CLIENT_FRAME),
            input: BytesMut::new(),
            output: BytesMut::new(),
        }
    }

    async fn run(mut self) -> Result<(), HostError> {
        let welcomed = clock::timeout(HELLO_WITHIN, self.welcome()).await;
        if !welcomed.unwrap_or_else(|| {
            Err(HostError::Invalid(
                "the client did not introduce itself".into(),
            ))
        })? {
            return Ok(());
        }
        self.decoder.set_limit(MAX_CLIENT_FRAME);
        let most = self.host.config().limits.requests_per_connection;
        let mut in_flight = FuturesUnordered::new();
        let mut bytes = 0;
        loop {
            while in_flight.len() < most && bytes < IN_FLIGHT_BYTES {
                let Some(frame) = self.decoder.take(&mut self.input).map_err(wire)? else {
                    break;
                };
                let Some(client_frame::Body::Request(request)) = frame.body else {
                    return Err(HostError::Invalid("a request was expected".into()));
                };
                let size = size(&request);
                bytes += size;
                let host = self.host.clone();
                in_flight.push(async move { (answer(&host, request).await, size) });
            }
            let full = in_flight.len() >= most || bytes >= IN_FLIGHT_BYTES;
            tokio::select! {
                biased;
                Some((frame, size)) = in_flight.next(), if !in_flight.is_empty() => {
                    bytes -= size;
                    self.put(&frame)?;
                    // Whatever else is finished by now shares the write.
                    while self.output.len() < WRITE_BYTES {
                        let Some(Some((frame, size))) = in_flight.next().now_or_never() else { break };
                        bytes -= size;
                        self.put(&frame)?;
                    }
                    self.flush().await?;
                }
                read = read(&mut self.stream, &mut self.input), if !full => {
                    if read? == 0 {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Exchanges hellos; whether the client may go on.
    async fn welcome(&mut self) -> Result<bool, HostError> {
        let hello = loop {
            if let Some(frame) = self.decoder.take(&mut self.input).map_err(wire)? {
                break frame;
            }
            if read(&mut self.stream, &mut self.input).await? == 0 {
                return Ok(false);
            }
        };
        let Some(client_frame::Body::Hello(hello)) = hello.body else {
            return Err(HostError::Invalid(
                "a connection begins with a hello".into(),
            ));
        };
        let cluster = self.host.config().cluster.id.clone();
        let refused = if hello.protocol != CLIENT_PROTOCOL {
            let message = format!(
                "this node speaks version {CLIENT_PROTOCOL} of the client protocol; use a client that does"
            );
            Some(("unsupported-version", message))
        } else if !hello.cluster.is_empty() && hello.cluster != cluster {
            Some((
                "wrong-cluster",
                format!(
                    "this node belongs to the cluster `{cluster}`; correct the address or the cluster id"
                ),
            ))
        } else {
            None
        };
        let goes_on = refused.is_none();
        let frame = server_hello(cluster, self.host.config().node.id, refused);
        self.put(&frame)?;
        self.flush().await?;
        Ok(goes_on)
    }

    fn put(&mut self, frame: &proto::ServerFrame) -> Result<(), HostError> {
        self.encoder.put(frame, &mut self.output).map_err(wire)
    }

    async fn flush(&mut self) -> Result<(), HostError> {
        let written = clock::timeout(WRITE_WITHIN, self.stream.write_all(&self.output)).await;
        empty(&mut self.output, KEPT_BY_CLIENT);
        written
            .unwrap_or_else(|| Err(std::io::ErrorKind::TimedOut.into()))
            .map_err(lost)
    }
}

/// Introduces itself to a client that cannot be taken, and closes.
async fn refuse(mut stream: TcpStream, code: &'static str, message: &str) {
    let frame = server_hello(String::new(), 0, Some((code, message.to_owned())));
    let mut output = BytesMut::new();
    if Encoder::new(MAX_HELLO).put(&frame, &mut output).is_ok() {
        // The client that is gone already has lost nothing.
        let _ = clock::timeout(HELLO_WITHIN, stream.write_all(&output)).await;
    }
}

fn server_hello(cluster: String, node: u64, refused: Option<(&str, String)>) -> proto::ServerFrame {
    let refused = refused.map(|(code, message)| proto::Error {
        code: code.into(),
        message,
        ..Default::default()
    });
    let hello = proto::ServerHello {
        protocol: CLIENT_PROTOCOL,
        cluster,
        node,
        refused,
    };
    proto::ServerFrame {
        body: Some(server_frame::Body::Hello(hello)),
    }
}

/// Carries out one request; every request has exactly one answer.
async fn answer(host: &Host, request: proto::Request) -> proto::ServerFrame {
    let (id, group) = (request.id, GroupId(request.group));
    let body = match carry_out(host, group, request.body).await {
        Ok(body) => body,
        Err(error) => response::Body::Error(explain(host, group, &error)),
    };
    response_frame(id, body)
}

async fn carry_out(
    host: &Host,
    group: GroupId,
    body: Option<request::Body>,
) -> Result<response::Body, HostError> {
    let patience = |milliseconds: u32| match milliseconds {
        0 => Ok(host.config().request_timeout()),
        1..=MAX_TIMEOUT_MS => Ok(Duration::from_millis(milliseconds.into())),
        _ => Err(HostError::Invalid(format!(
            "timeout_ms is {milliseconds}; use 1 to {MAX_TIMEOUT_MS}, or 0 for the node's own"
        ))),
    };
    match body {
        Some(request::Body::Propose(propose)) => {
            host.here_or_elsewhere(group).await?;
            let timeout = patience(propose.timeout_ms)?;
            let command = Command::try_from(propose).map_err(wire)?;
            Ok(response::Body::Proposed(
                host.propose(group, command, Reach::Node, timeout)
                    .await?
                    .into(),
            ))
        }
        Some(request::Body::Query(query)) => {
            host.here_or_elsewhere(group).await?;
            let consistency = if query.linearizable {
                Consistency::Linearizable
            } else {
                Consistency::Stale
            };
            let answer = host
                .query(
                    group,
                    query.data,
                    consistency,
                    Reach::Node,
                    patience(query.timeout_ms)?,
                )
                .await?;
            Ok(response::Body::Answered(proto::Answered {
                index: answer.index.0,
                term: answer.term.0,
                outcome: Some(answer.outcome.into()),
            }))
        }
        Some(request::Body::OpenSession(open)) => {
            host.here_or_elsewhere(group).await?;
            let timeout = patience(open.timeout_ms)?;
            let response = host.open_session(group, Reach::Node, timeout).await?;
            Ok(response::Body::SessionOpened(proto::SessionOpened::new(
                &response,
            )))
        }
        Some(request::Body::Call(request)) => {
            let body = call::call(host, &request.method, request.body).await?;
            Ok(response::Body::Called(proto::Called { body }))
        }
        Some(request::Body::ComponentRead(read)) => {
            let id = read.id().map_err(wire)?;
            let length = u64::from(read.length).min(MAX_CHUNK as u64);
            let (data, total) = host.component_range(id, read.offset, length).await?;
            Ok(response::Body::ComponentChunk(proto::ComponentChunk {
                data,
                total,
            }))
        }
        None => Err(HostError::Invalid(
            "the request has no body, or one that this node does not know".into(),
        )),
    }
}

/// The error as the client sees it, with the address of whoever can do better.
fn explain(host: &Host, group: GroupId, error: &HostError) -> proto::Error {
    let mut wire = proto::Error {
        code: error.code().to_owned(),
        message: error.chain(),
        unknown: error.is_unknown(),
        retryable: error.is_retryable(),
        ..Default::default()
    };
    match error {
        HostError::Elsewhere { node, address, .. } => {
            (wire.leader, wire.leader_address) = (node.0, address.clone());
        }
        HostError::Node(crate::Error::Proposal {
            source: ProposalError::NotLeader { leader: Some(node) },
            ..
        }) => {
            wire.leader = node.0;
            wire.leader_address = host.client_address(*node).unwrap_or_default();
        }
        HostError::Node(
            crate::Error::GroupHalted { .. }
            | crate::Error::NodeFailed { .. }
            | crate::Error::Stopped { .. }
            | crate::Error::StoppedInFlight { .. }
            | crate::Error::Proposal {
                source: ProposalError::Faulted | ProposalError::Stopped,
                ..
            },
        ) => {
            // Another replica may be well; this one failed, was removed, or goes with its node.
            if let Some(node) = host.another_member(group) {
                (wire.leader, wire.leader_address, wire.retryable) =
                    (node.id.0, node.client.clone(), true);
            }
        }
        _ => {}
    }
    wire
}

/// Bytes a request holds while it is in flight.
fn size(request: &proto::Request) -> usize {
    const FIXED: usize = 256;
    FIXED
        + match &request.body {
            Some(request::Body::Propose(propose)) => propose.data.len(),
            Some(request::Body::Query(query)) => query.data.len(),
            Some(request::Body::Call(call)) => call.body.len() + call.method.len(),
            Some(request::Body::ComponentRead(_)) => MAX_CHUNK,
            Some(request::Body::OpenSession(_)) | None => 0,
        }
}

async fn read(stream: &mut TcpStream, input: &mut BytesMut) -> Result<usize, HostError> {
    input.reserve(READ_BYTES);
    stream.read_buf(input).await.map_err(lost)
}

fn wire(error: skep_wire::WireError) -> HostError {
    HostError::Invalid(error.to_string())
}

fn lost(error: std::io::Error) -> HostError {
    HostError::Invalid(format!("the connection was lost: {error}"))
}
