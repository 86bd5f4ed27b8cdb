//! A node as a client reaches it.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::BytesMut;
use skep_types::code::Code;
use skep_types::shared::lock;
use skep_wire::codec::{Decoder, Encoder};
use skep_wire::proto::{
    self, ClientFrame, ServerFrame, client_frame, request, response, server_frame,
};
use skep_wire::{CLIENT_PROTOCOL, MAX_CLIENT_FRAME, MAX_HELLO, WireError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use crate::clock::{Deadline, timeout};
use crate::config::ClientConfig;
use crate::error::ClientError;
use crate::link::{Failure, Heard, Link, Way};

const READ_ROOM: usize = 64 << 10;

/// After a failed dial the next requests fail at once for this long instead of dialling one after the other.
const DIAL_PAUSE: Duration = Duration::from_millis(100);

/// A node, connected when it is needed.
pub(crate) struct Node {
    door: Arc<Door>,
    link: Mutex<Option<Link>>,
}

impl Node {
    pub(crate) fn new(address: &str, config: &ClientConfig) -> Self {
        let door = Door {
            address: address.to_owned(),
            cluster: config.cluster.clone(),
            connect_timeout: config.connect_timeout,
            shut: Mutex::default(),
        };
        Self {
            door: Arc::new(door),
            link: Mutex::default(),
        }
    }

    pub(crate) fn address(&self) -> &str {
        &self.door.address
    }

    /// Sends a request and waits for its response.
    pub(crate) async fn exchange(
        &self,
        group: u64,
        body: request::Body,
    ) -> Result<response::Body, Failure> {
        let response = self.link().ask(group, Some(body), true).await?;
        response.body.ok_or(Failure::Lost)
    }

    /// Connects, if there is no connection.
    pub(crate) async fn connect(&self) -> Result<(), ClientError> {
        match self.link().ask(0, None, true).await {
            Ok(_) => Ok(()),
            Err(Failure::NotSent(error)) => Err(error),
            Err(Failure::Lost | Failure::Silent) => {
                Err(self.door.unreachable(&"the connection was lost"))
            }
        }
    }

    /// The link, made anew if the runtime that ran it is gone.
    fn link(&self) -> Link {
        let mut kept = lock(&self.link);
        if let Some(link) = kept.as_ref().filter(|link| !link.is_closed()) {
            return link.clone();
        }
        let (link, line) = Link::new(Arc::clone(&self.door));
        tokio::spawn(async move { line.run().await });
        kept.insert(link).clone()
    }
}

/// The port of a node for clients.
struct Door {
    address: String,
    cluster: Option<String>,
    connect_timeout: Duration,
    /// Until when not to dial again, and why.
    shut: Mutex<Option<(Deadline, ClientError)>>,
}

impl Way for Arc<Door> {
    type Reader = Reader;
    type Writer = OwnedWriteHalf;

    async fn dial(&self) -> Result<(Reader, OwnedWriteHalf), ClientError> {
        if let Some((until, error)) = &*lock(&self.shut)
            && !until.has_passed()
        {
            return Err(error.clone());
        }
        let dialled = timeout(self.connect_timeout, self.introduce()).await;
        let dialled = dialled.unwrap_or_else(|| Err(self.unreachable(&"it does not answer")));
        let failed = dialled.as_ref().err().cloned();
        *lock(&self.shut) = failed.map(|error| (Deadline::after(DIAL_PAUSE), error));
        dialled
    }

    async fn read(reader: &mut Reader) -> Option<Heard> {
        match reader.next().await {
            Ok(Some(server_frame::Body::Response(response))) => Some(Heard::Answer(response)),
            _ => None,
        }
    }

    async fn write(writer: &mut OwnedWriteHalf, frames: &[u8]) -> Result<(), WireError> {
        Ok(writer.write_all(frames).await?)
    }

    fn put(request: proto::Request, frames: &mut BytesMut) -> Result<(), WireError> {
        let body = Some(client_frame::Body::Request(request));
        Encoder::new(MAX_CLIENT_FRAME).put(&ClientFrame { body }, frames)
    }
}

impl Door {
    async fn introduce(&self) -> Result<(Reader, OwnedWriteHalf), ClientError> {
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

    fn unreachable(&self, why: &dyn std::fmt::Display) -> ClientError {
        ClientError::Unreachable(format!("{}: {why}", self.address))
    }

    fn bad(&self, error: &WireError) -> ClientError {
        ClientError::BadAnswer(format!("{}: {error}", self.address))
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
                return frame
                    .body
                    .map(Some)
                    .ok_or(WireError::Missing("body of a frame"));
            }
            self.buffer.reserve(READ_ROOM);
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                self.decoder.take_last(&mut self.buffer)?;
                return Ok(None);
            }
        }
    }
}
