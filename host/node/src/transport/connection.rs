//! One TCP connection: its socket options, its frames, its end.

use std::io;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use bytes::BytesMut;
use skep_peer::frame;
use skep_wire::codec::{Decoder, Encoder};
use skep_wire::proto::{PeerFrame, peer_frame};
use skep_wire::{MAX_FRAME, MAX_HELLO, WireError};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use super::stats::add;
use crate::clock::timeout;

/// A write that makes no progress for this long ends the connection: its messages are worthless by then, an election
/// takes one to two seconds.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// The kernel gives up on bytes that the other end did not acknowledge for this long.
const USER_TIMEOUT: Duration = Duration::from_secs(10);

/// Whoever has begun a frame and then sends nothing for this long is given up: what there is of it is held in memory.
const FRAME_TIMEOUT: Duration = Duration::from_secs(30);

/// An idle connection is probed after 4 s and then every 2 s; three unanswered probes make 10 s.
const KEEPALIVE: TcpKeepalive = TcpKeepalive::new()
    .with_time(Duration::from_secs(4))
    .with_interval(Duration::from_secs(2))
    .with_retries(3);

/// Room made for one read. Large enough that a busy lane needs few system calls; a frame is a slice of it, so small
/// frames share one allocation.
const READ_ROOM: usize = 64 << 10;

/// With less room than this left a new buffer is better than a short read.
const READ_ROOM_LEAST: usize = 4 << 10;

/// Both directions of a connection.
pub struct Connection {
    /// What comes in.
    pub reader: FrameReader,
    /// What goes out.
    pub writer: FrameWriter,
}

/// Frames that come in.
pub struct FrameReader {
    stream: OwnedReadHalf,
    buffer: BytesMut,
    decoder: Decoder<PeerFrame>,
}

/// Frames that go out.
pub struct FrameWriter {
    stream: OwnedWriteHalf,
    buffer: BytesMut,
}

impl Connection {
    /// Takes over a fresh connection. Frames are limited to the size of a handshake until [`FrameReader::trust`].
    pub(super) fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        let socket = SockRef::from(&stream);
        socket.set_tcp_keepalive(&KEEPALIVE)?;
        #[cfg(target_os = "linux")]
        socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
        let (reader, writer) = stream.into_split();
        Ok(Self {
            reader: FrameReader {
                stream: reader,
                buffer: BytesMut::new(),
                decoder: Decoder::new(MAX_HELLO),
            },
            writer: FrameWriter {
                stream: writer,
                buffer: BytesMut::new(),
            },
        })
    }
}

impl FrameReader {
    /// The handshake is over: frames may be as large as this.
    pub(super) fn trust(&mut self, limit: usize) {
        self.decoder.set_limit(limit);
    }

    /// The next frame's body, or `None` at the end of the stream. May be dropped and called again without losing a byte.
    pub async fn next(
        &mut self,
        bytes: Option<&AtomicU64>,
    ) -> Result<Option<peer_frame::Body>, WireError> {
        loop {
            if let Some(frame) = self.decoder.take(&mut self.buffer)? {
                return frame
                    .body
                    .map(Some)
                    .ok_or(WireError::Missing("body of a frame"));
            }
            if self.buffer.capacity() - self.buffer.len() < READ_ROOM_LEAST {
                self.buffer.reserve(READ_ROOM);
            }
            let begun = !self.buffer.is_empty();
            let reading = self.stream.read_buf(&mut self.buffer);
            let read = match begun {
                true => timeout(FRAME_TIMEOUT, reading).await.ok_or_else(silent)??,
                false => reading.await?,
            };
            if let Some(bytes) = bytes {
                add(bytes, read);
            }
            if read == 0 {
                return match self.decoder.take_last(&mut self.buffer)? {
                    Some(frame) => frame
                        .body
                        .map(Some)
                        .ok_or(WireError::Missing("body of a frame")),
                    None => Ok(None),
                };
            }
        }
    }
}

impl FrameWriter {
    pub(super) async fn send(&mut self, body: peer_frame::Body) -> Result<(), WireError> {
        self.buffer.clear();
        Encoder::new(MAX_FRAME).put(&frame(body), &mut self.buffer)?;
        write(&mut self.stream, &self.buffer).await
    }

    /// Sends bytes that are frames already.
    pub async fn send_encoded(&mut self, frames: &[u8]) -> Result<(), WireError> {
        write(&mut self.stream, frames).await
    }
}

fn silent() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "a frame was begun and not ended")
}

/// Bytes given to the kernel at once, so that the time limit is one on progress and not on the whole of a large write.
const WRITE_STEP: usize = 1 << 20;

async fn write(stream: &mut OwnedWriteHalf, bytes: &[u8]) -> Result<(), WireError> {
    for step in bytes.chunks(WRITE_STEP) {
        timeout(WRITE_TIMEOUT, stream.write_all(step))
            .await
            .unwrap_or_else(|| {
                Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "the other end takes no bytes any more",
                ))
            })?;
    }
    Ok(())
}
