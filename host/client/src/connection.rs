//! The connection to one node: many requests in flight, matched by id.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::BytesMut;
use skep_types::code::Code;
use skep_wire::client::request_frame;
use skep_wire::codec::{Decoder, Encoder};
use skep_wire::proto::{
    self, ClientFrame, ServerFrame, client_frame, request, response, server_frame,
};
use skep_wire::{CLIENT_PROTOCOL, MAX_CLIENT_FRAME, MAX_HELLO, WireError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};

use crate::clock::{Deadline, timeout};
use crate::error::ClientError;

/// Requests that wait to be written. Their memory is bounded by the client's budget.
const QUEUE: usize = 1024;

/// No more requests are encoded while this much waits for the socket.
const WRITE_AHEAD: usize = 1 << 20;

/// Requests without an answer yet, those that nobody waits for any more included: these are forgotten when there are so
/// many. The client's budget keeps the others below it.
const MAX_PENDING: usize = 32 << 10;

/// Room made for one read.
const READ_ROOM: usize = 64 << 10;

/// After a failed dial the next requests fail at once for this long instead of dialling one after the other.
const DIAL_PAUSE: Duration = Duration::from_millis(100);

/// Why a request has no response.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The node certainly did not see it.
    NotSent(ClientError),
    /// The node may have seen it.
    Lost(String),
}

/// One request to be sent.
struct Outgoing {
    group: u64,
    body: request::Body,
    reply: oneshot::Sender<Result<response::Body, Failure>>,
}

/// A node, connected when it is needed.
pub(crate) struct Node {
    address: String,
    cluster: Option<String>,
    connect_timeout: Duration,
    link: Mutex<Option<mpsc::Sender<Outgoing>>>,
    /// Held while dialling, so that many requests dial once; holds until when not to dial again, and why.
    dialling: tokio::sync::Mutex<Option<(Deadline, ClientError)>>,
}

impl Node {
    pub(crate) fn new(address: String, cluster: Option<String>, connect_timeout: Duration) -> Self {
        Self {
            address,
            cluster,
            connect_timeout,
            link: Mutex::default(),
            dialling: tokio::sync::Mutex::default(),
        }
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Sends a request and waits for its response.
    pub(crate) async fn exchange(
        &self,
        group: u64,
        body: request::Body,
    ) -> Result<response::Body, Failure> {
        let link = self.link().await.map_err(Failure::NotSent)?;
        let (reply, answer) = oneshot::channel();
        link.send(Outgoing { group, body, reply })
            .await
            .map_err(|_| Failure::NotSent(self.lost()))?;
        answer.await.unwrap_or_else(|_| {
            Err(Failure::Lost(format!(
                "the connection to {} was lost",
                self.address
            )))
        })
    }

    /// Connects, if there is no connection.
    pub(crate) async fn connect(&self) -> Result<(), ClientError> {
        self.link().await.map(drop)
    }

    async fn link(&self) -> Result<mpsc::Sender<Outgoing>, ClientError> {
        if let Some(link) = self.live() {
            return Ok(link);
        }
        let mut dialling = self.dialling.lock().await;
        // Whoever held the lock may have connected, or found that it cannot be done.
        if let Some(link) = self.live() {
            return Ok(link);
        }
        if let Some((until, error)) = &*dialling
            && !until.has_passed()
        {
            return Err(error.clone());
        }
        let connected = timeout(self.connect_timeout, self.dial()).await;
        let connected = connected.unwrap_or_else(|| Err(self.unreachable(&"it does not answer")));
        match connected {
            Ok((reader, writer)) => {
                let (link, requests) = mpsc::channel(QUEUE);
                tokio::spawn(serve(requests, reader, writer));
                *self.link.lock().unwrap_or_else(PoisonError::into_inner) = Some(link.clone());
                *dialling = None;
                Ok(link)
            }
            Err(error) => {
                *dialling = Some((Deadline::after(DIAL_PAUSE), error.clone()));
                Err(error)
            }
        }
    }

    fn live(&self) -> Option<mpsc::Sender<Outgoing>> {
        let link = self.link.lock().unwrap_or_else(PoisonError::into_inner);
        link.as_ref().filter(|link| !link.is_closed()).cloned()
    }

    async fn dial(&self) -> Result<(Reader, OwnedWriteHalf), ClientError> {
        let stream = TcpStream::connect(&self.address)
            .await
            .map_err(|error| self.unreachable(&error))?;
        stream
            .set_nodelay(true)
            .map_err(|error| self.unreachable(&error))?;
        let (stream, mut writer) = stream.into_split();
        let mut reader = Reader {
            stream,
            buffer: BytesMut::new(),
            decoder: Decoder::new(MAX_HELLO),
        };
        let hello = proto::ClientHello {
            protocol: CLIENT_PROTOCOL,
            cluster: self.cluster.clone().unwrap_or_default(),
        };
        let hello = ClientFrame {
            body: Some(client_frame::Body::Hello(hello)),
        };
        let mut bytes = BytesMut::new();
        Encoder::new(MAX_HELLO)
            .put(&hello, &mut bytes)
            .map_err(|error| self.bad(&error))?;
        writer
            .write_all(&bytes)
            .await
            .map_err(|error| self.unreachable(&error))?;
        let first = reader.next().await.map_err(|error| match error {
            WireError::Io(error) => self.unreachable(&error),
            error => self.bad(&error),
        })?;
        let Some(server_frame::Body::Hello(hello)) = first else {
            return Err(self.unreachable(&"it closed the connection without an answer"));
        };
        let refused = |code, message| ClientError::Refused {
            address: self.address.clone(),
            code,
            message,
        };
        if let Some(error) = hello.refused {
            return Err(refused(error.code(), error.words()));
        }
        if hello.protocol != CLIENT_PROTOCOL {
            let message = format!(
                "it speaks protocol version {}, this client version {CLIENT_PROTOCOL}",
                hello.protocol
            );
            return Err(refused(Code::WrongProtocol, message));
        }
        if let Some(cluster) = self
            .cluster
            .as_ref()
            .filter(|cluster| **cluster != hello.cluster)
        {
            let message = format!(
                "it belongs to cluster `{}`, not to `{cluster}`",
                hello.cluster
            );
            return Err(refused(Code::WrongCluster, message));
        }
        reader.decoder.set_limit(MAX_CLIENT_FRAME);
        Ok((reader, writer))
    }

    fn lost(&self) -> ClientError {
        self.unreachable(&"the connection was lost")
    }

    fn unreachable(&self, why: &dyn std::fmt::Display) -> ClientError {
        ClientError::Unreachable(format!("{}: {why}", self.address))
    }

    fn bad(&self, error: &WireError) -> ClientError {
        ClientError::BadAnswer(format!("{}: {error}", self.address))
    }
}

/// Owns the connection until it is lost or nobody holds the link. Dropping what is pending tells every waiter.
async fn serve(
    mut requests: mpsc::Receiver<Outgoing>,
    mut reader: Reader,
    mut writer: OwnedWriteHalf,
) {
    let mut pending = Pending::default();
    let mut buffer = BytesMut::new();
    let lost = loop {
        tokio::select! {
            outgoing = requests.recv(), if buffer.len() < WRITE_AHEAD => {
                let Some(outgoing) = outgoing else { return };
                pending.encode(outgoing, &mut buffer);
                // Whatever else waits shares the write.
                while buffer.len() < WRITE_AHEAD && let Ok(outgoing) = requests.try_recv() {
                    pending.encode(outgoing, &mut buffer);
                }
            }
            written = writer.write_buf(&mut buffer), if !buffer.is_empty() => {
                if let Err(error) = written {
                    break error.to_string();
                }
            }
            frame = reader.next() => match frame {
                Ok(Some(server_frame::Body::Response(response))) => pending.settle(response),
                Ok(Some(server_frame::Body::Hello(_))) => break "a second handshake came".to_owned(),
                Ok(None) => break "it was closed".to_owned(),
                Err(error) => break error.to_string(),
            },
        }
    };
    tracing::debug!(%lost, "the connection to a node was lost");
    requests.close();
    while let Ok(outgoing) = requests.try_recv() {
        let error = ClientError::Unreachable(format!("the connection was lost: {lost}"));
        let _ = outgoing.reply.send(Err(Failure::NotSent(error)));
    }
}

/// Who waits for which answer.
#[derive(Default)]
struct Pending {
    waiters: HashMap<u64, oneshot::Sender<Result<response::Body, Failure>>>,
    last_id: u64,
}

impl Pending {
    fn encode(&mut self, outgoing: Outgoing, buffer: &mut BytesMut) {
        let Outgoing { group, body, reply } = outgoing;
        if reply.is_closed() {
            return;
        }
        if self.waiters.len() >= MAX_PENDING {
            self.waiters.retain(|_, waiter| !waiter.is_closed());
        }
        self.last_id += 1;
        match Encoder::new(MAX_CLIENT_FRAME).put(&request_frame(self.last_id, group, body), buffer)
        {
            Ok(()) => {
                self.waiters.insert(self.last_id, reply);
            }
            Err(error) => {
                let error = match error {
                    WireError::FrameTooLarge { size, limit } => {
                        ClientError::TooLarge { size, limit }
                    }
                    error => ClientError::BadAnswer(error.to_string()),
                };
                let _ = reply.send(Err(Failure::NotSent(error)));
            }
        }
    }

    fn settle(&mut self, response: proto::Response) {
        // Nobody waits for it any more if it was forgotten; a waiter that left has closed its end.
        if let Some(waiter) = self.waiters.remove(&response.id) {
            let answer = response
                .body
                .ok_or_else(|| Failure::Lost("the answer has no body".to_owned()));
            let _ = waiter.send(answer);
        }
    }
}

/// Frames that come in.
struct Reader {
    stream: OwnedReadHalf,
    buffer: BytesMut,
    decoder: Decoder<ServerFrame>,
}

impl Reader {
    /// The next frame, or `None` at the end. May be dropped and called again without losing a byte.
    async fn next(&mut self) -> Result<Option<server_frame::Body>, WireError> {
        loop {
            if let Some(frame) = self.decoder.take(&mut self.buffer)? {
                return frame.body.map(Some).ok_or(WireError::Missing {
                    what: "body of a frame",
                });
            }
            self.buffer.reserve(READ_ROOM);
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                self.decoder.take_last(&mut self.buffer)?;
                return Ok(None);
            }
        }
    }
}
