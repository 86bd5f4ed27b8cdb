//! One TCP connection: its socket options, its frames, its end.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use bytes::BytesMut;
use skep_wire::codec::{Decoder, Encoder};
use skep_wire::peer::frame;
use skep_wire::proto::{PeerFrame, peer_frame};
use skep_wire::{MAX_FRAME, MAX_HELLO, WireError};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use super::stats::add;
use crate::clock::{Stopwatch, timeout};
use crate::pot::{Portion, Pot};

/// A write that makes no progress for this long ends the connection: its messages are worthless by then, an election
/// takes one to two seconds.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// The kernel gives up on bytes that the other end did not acknowledge for this long.
const USER_TIMEOUT: Duration = Duration::from_secs(10);

/// An idle connection is probed after 4 s and then every 2 s; three unanswered probes make 10 s.
const KEEPALIVE: TcpKeepalive = TcpKeepalive::new()
    .with_time(Duration::from_secs(4))
    .with_interval(Duration::from_secs(2))
    .with_retries(3);

/// From the first byte of a frame to its last: those that are made here have 16 MiB, on a line of 2 Mbit/s.
const FRAME_WITHIN: Duration = Duration::from_secs(60);

/// Room made for one read. Large enough that a busy lane needs few system calls; a frame is a slice of it, so small
/// frames share one allocation.
const READ_ROOM: usize = 64 << 10;

/// With less room than this left a new buffer is better than a short read.
const READ_ROOM_LEAST: usize = 4 << 10;

/// Both directions of a connection.
pub(super) struct Connection {
    pub reader: FrameReader,
    pub writer: FrameWriter,
}

/// Frames that come in.
pub(super) struct FrameReader {
    stream: OwnedReadHalf,
    buffer: BytesMut,
    decoder: Decoder<PeerFrame>,
    /// Since when a frame comes that is not whole.
    begun: Option<Stopwatch>,
    /// Its part of the memory for those, on a connection that somebody else has dialled.
    half: Option<Portion>,
}

/// Frames that go out.
pub(super) struct FrameWriter {
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
                begun: None,
                half: None,
            },
            writer: FrameWriter {
                stream: writer,
                buffer: BytesMut::new(),
            },
        })
    }
}

impl FrameReader {
    /// The handshake is over: frames may be large.
    pub(super) fn trust(&mut self) {
        self.decoder.set_limit(MAX_FRAME);
    }

    /// What is not whole yet takes its memory from this.
    pub(super) fn share(&mut self, pot: &Arc<Pot>) {
        self.half = Some(pot.portion());
    }

    /// The next frame's body, or `None` at the end of the stream. May be dropped and called again without losing a byte.
    pub(super) async fn next(
        &mut self,
        bytes: Option<&AtomicU64>,
    ) -> Result<Option<peer_frame::Body>, WireError> {
        loop {
            if let Some(frame) = self.decoder.take(&mut self.buffer)? {
                self.begun = None;
                return frame.body.map(Some).ok_or(WireError::Missing {
                    what: "body of a frame",
                });
            }
            if self.buffer.capacity() - self.buffer.len() < READ_ROOM_LEAST {
                self.buffer.reserve(READ_ROOM);
            }
            let half = self.buffer.len();
            let held = if half > READ_ROOM { half } else { 0 };
            if self.half.as_mut().is_some_and(|part| !part.set(held)) {
                let text = "frames that are not whole take all the memory there is for them";
                return Err(io::Error::new(io::ErrorKind::OutOfMemory, text).into());
            }
            let reading = self.stream.read_buf(&mut self.buffer);
            let read = if half == 0 {
                reading.await?
            } else {
                let begun = self.begun.get_or_insert_with(Stopwatch::start);
                let left = FRAME_WITHIN.saturating_sub(begun.elapsed());
                let late = || io::Error::new(io::ErrorKind::TimedOut, "a frame took too long");
                timeout(left, reading)
                    .await
                    .unwrap_or_else(|| Err(late()))?
            };
            if let Some(bytes) = bytes {
                add(bytes, read);
            }
            if read == 0 {
                return match self.decoder.take_last(&mut self.buffer)? {
                    Some(frame) => frame.body.map(Some).ok_or(WireError::Missing {
                        what: "body of a frame",
                    }),
                    None => Ok(None),
                };
            }
        }
    }
}

impl FrameWriter {
    /// Sends one frame.
    pub(super) async fn send(&mut self, body: peer_frame::Body) -> Result<(), WireError> {
        self.buffer.clear();
        Encoder::new(MAX_FRAME).put(&frame(body), &mut self.buffer)?;
        write(&mut self.stream, &self.buffer).await
    }

    /// Sends bytes that are frames already.
    pub(super) async fn send_encoded(&mut self, frames: &[u8]) -> Result<(), WireError> {
        write(&mut self.stream, frames).await
    }
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
