//! The framed client protocol: many requests in flight on one connection, answered in whatever order they finish.
//!
//! One task owns a connection: it reads requests, drives all of them, and writes what is finished in one go. A client
//! that stops reading stops its own connection and nothing else; bytes that are no frame close it.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::BytesMut;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use skep::clock::{self, Stopwatch};
use skep::memory::{KEPT_BY_CLIENT, empty};
use skep::transport::{fitting, size_of_request};
use skep_types::code::Code;
use skep_wire::codec::{Decoder, Encoder};
use skep_wire::proto::{self, client_frame, server_frame};
use skep_wire::{CLIENT_PROTOCOL, MAX_CLIENT_FRAME, MAX_HELLO};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::front::Front;
use super::requests::wire;
use crate::api::door::{self, Visit};
use crate::api::pot::Portion;
use crate::error::HostError;

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

/// Serves until the token is cancelled; requests in flight are answered first.
pub async fn serve<F: Front>(front: F, listener: &TcpListener, stop: CancellationToken) {
    let connections = TaskTracker::new();
    let accepting = front.supervisor().keep("client-accept", || {
        accept(&front, listener, &stop, &connections)
    });
    stop.run_until_cancelled(accepting).await;
    connections.close();
    connections.wait().await;
}

async fn accept<F: Front>(
    front: &F,
    listener: &TcpListener,
    stop: &CancellationToken,
    connections: &TaskTracker,
) {
    loop {
        let (stream, remote) = door::accept(listener, "clients").await;
        let visit = match front.doors().clients.admit(remote.ip()).await {
            Ok(visit) => visit,
            Err(full) => {
                front
                    .metrics()
                    .client_connections_refused
                    .fetch_add(1, Ordering::Relaxed);
                refuse(stream, Code::Busy, &full.to_string());
                continue;
            }
        };
        let (front, stop) = (front.clone(), stop.clone());
        connections.spawn(async move {
            let served = Connection::new(front.clone(), stream).run(&visit, &stop);
            let served = front.supervisor().once("client-connection", served);
            if let Some(Err(error)) = served.await {
                front
                    .metrics()
                    .client_connections_refused
                    .fetch_add(1, Ordering::Relaxed);
                tracing::debug!(error = %error.chain(), "a client connection was closed");
            }
        });
    }
}

struct Connection<F> {
    front: F,
    stream: TcpStream,
    decoder: Decoder<proto::ClientFrame>,
    encoder: Encoder<proto::ServerFrame>,
    input: BytesMut,
    output: BytesMut,
    /// What a frame that is not whole takes of the memory for all of them, and since when it comes.
    half: Portion,
    begun: Option<Stopwatch>,
}

impl<F: Front> Connection<F> {
    fn new(front: F, stream: TcpStream) -> Self {
        // Only latency is lost if the system refuses.
        let _ = stream.set_nodelay(true);
        let half = front.doors().client_frames.portion();
        Self {
            front,
            stream,
            decoder: Decoder::new(MAX_HELLO),
            encoder: Encoder::new(MAX_CLIENT_FRAME),
            input: BytesMut::new(),
            output: BytesMut::new(),
            half,
            begun: None,
        }
    }

    async fn run(mut self, visit: &Visit, stop: &CancellationToken) -> Result<(), HostError> {
        let welcomed = tokio::select! {
            welcomed = clock::timeout(HELLO_WITHIN, self.welcome()) => welcomed,
            () = stop.cancelled() => return Ok(()),
            () = visit.must_go() => return Ok(()),
        };
        if !welcomed.unwrap_or_else(|| {
            Err(HostError::Invalid(
                "the client did not introduce itself".into(),
            ))
        })? {
            return Ok(());
        }
        self.decoder.set_limit(MAX_CLIENT_FRAME);
        let limits = &self.front.config().limits;
        let most = limits.requests_per_connection;
        let idle = Duration::from_millis(limits.client_idle_ms);
        let whole = Duration::from_millis(limits.frame_ms);
        visit.rests();
        let mut busy = false;
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
                let size = size_of_request(&request);
                bytes += size;
                self.begun = None;
                let front = self.front.clone();
                in_flight.push(async move { (answer(&front, request).await, size) });
            }
            let full = in_flight.len() >= most || bytes >= IN_FLIGHT_BYTES;
            if busy == in_flight.is_empty() {
                busy = !busy;
                match busy {
                    true => visit.is_busy(),
                    false => visit.rests(),
                }
            }
            let patience = self.patience(full, !busy, idle, whole)?;
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
                read = within(patience, read(&mut self.stream, &mut self.input)), if !full => match read {
                    Some(Ok(1..)) => {}
                    Some(read) => return read.map(drop),
                    // It has asked nothing for long, which is no fault.
                    None if self.input.is_empty() => return Ok(()),
                    None => return Err(HostError::Invalid("a frame took too long".into())),
                },
                () = visit.must_go(), if !busy => return Ok(()),
                () = stop.cancelled(), if !busy => return Ok(()),
            }
        }
    }

    /// How long the next bytes may take; for ever while answers are awaited. Says no to a frame that is not whole if there is
    /// no memory left for those.
    fn patience(
        &mut self,
        full: bool,
        rests: bool,
        idle: Duration,
        whole: Duration,
    ) -> Result<Option<Duration>, HostError> {
        let half = self.input.len();
        if half == 0 || full {
            self.begun = None;
        }
        if !self.half.set(if half > READ_BYTES { half } else { 0 }) {
            return Err(HostError::Invalid(
                "frames that are not whole take all the memory there is for them; try again".into(),
            ));
        }
        if half > 0 && !full {
            let begun = self.begun.get_or_insert_with(Stopwatch::start);
            return Ok(Some(whole.saturating_sub(begun.elapsed())));
        }
        Ok(rests.then_some(idle))
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
        let cluster = self.front.config().cluster.id.clone();
        let refused = if hello.protocol != CLIENT_PROTOCOL {
            let message = format!(
                "this node speaks version {CLIENT_PROTOCOL} of the client protocol; use a client that does"
            );
            Some((Code::UnsupportedVersion, message))
        } else if !hello.cluster.is_empty() && hello.cluster != cluster {
            Some((
                Code::WrongCluster,
                "this node belongs to another cluster; correct the address or the cluster id"
                    .to_owned(),
            ))
        } else {
            None
        };
        let goes_on = refused.is_none();
        // Who does not know the name of the cluster does not learn it by guessing wrong.
        let told = if goes_on { cluster } else { String::new() };
        let frame = server_hello(told, self.front.config().node.id, refused);
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
fn refuse(stream: TcpStream, code: Code, message: &str) {
    let frame = server_hello(String::new(), 0, Some((code, message.to_owned())));
    let mut output = BytesMut::new();
    if Encoder::new(MAX_HELLO).put(&frame, &mut output).is_ok() {
        door::refuse(stream, &output);
    }
}

fn server_hello(cluster: String, node: u64, refused: Option<(Code, String)>) -> proto::ServerFrame {
    let refused = refused.map(|(code, message)| proto::Error::new(code, message));
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
async fn answer<F: Front>(front: &F, request: proto::Request) -> proto::ServerFrame {
    let response = fitting(front.answer(request).await);
    proto::ServerFrame {
        body: Some(server_frame::Body::Response(response)),
    }
}

/// What the future gives, or `None` if it takes longer than that; for ever where there is no limit.
async fn within<F: Future>(patience: Option<Duration>, future: F) -> Option<F::Output> {
    match patience {
        None => Some(future.await),
        Some(patience) => clock::timeout(patience, future).await,
    }
}

async fn read(stream: &mut TcpStream, input: &mut BytesMut) -> Result<usize, HostError> {
    input.reserve(READ_BYTES);
    stream.read_buf(input).await.map_err(lost)
}

fn lost(error: std::io::Error) -> HostError {
    HostError::Lost(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_connection_is_no_fault_of_a_request() {
        let error = lost(std::io::ErrorKind::ConnectionReset.into());
        assert_eq!(error.code(), Code::ConnectionFailed);
        assert!(error.chain().contains("lost"), "{error}");
    }
}
