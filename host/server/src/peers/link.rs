//! The way to another node: a connection of the transport, and the frames that nodes speak in.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use skep::Supervisor;
use skep::clock;
use skep::transport::{FrameReader, FrameWriter, TcpTransport};
use skep_client::ClientError;
use skep_client::link::{Heard, Link, Way};
use skep_core::id::NodeId;
use skep_peer::frame;
use skep_wire::codec::Encoder;
use skep_wire::proto::{self, peer_frame};
use skep_wire::{MAX_CLIENT_FRAME, WireError};

/// To connect and to be welcomed.
const CONNECT_WITHIN: Duration = Duration::from_secs(2);

/// The port of a node for nodes, at this address if the transport knows no other.
pub(super) struct Port {
    pub(super) transport: Arc<TcpTransport>,
    pub(super) node: NodeId,
    pub(super) address: String,
}

impl Port {
    /// A link that runs until its last handle is gone.
    pub(super) fn linked(self, supervisor: Supervisor) -> Link {
        let (link, line) = Link::new(self);
        tokio::spawn(async move { supervisor.keep("peer-link", || line.run()).await });
        link
    }
}

impl Way for Port {
    type Reader = FrameReader;
    type Writer = FrameWriter;

    async fn dial(&self) -> Result<(FrameReader, FrameWriter), ClientError> {
        let dial = self.transport.open_requests(self.node, &self.address);
        match clock::timeout(CONNECT_WITHIN, dial).await {
            Some(Ok(connection)) => Ok((connection.reader, connection.writer)),
            Some(Err(error)) => Err(ClientError::Unreachable(error.to_string())),
            None => Err(ClientError::Unreachable("it does not answer".to_owned())),
        }
    }

    async fn read(reader: &mut FrameReader) -> Option<Heard> {
        match reader.next(None).await {
            Ok(Some(peer_frame::Body::Response(response))) => Some(Heard::Answer(response)),
            Ok(Some(peer_frame::Body::Ping(_))) => Some(Heard::Ping),
            // Anything else is not the protocol; a new connection starts clean.
            _ => None,
        }
    }

    async fn write(writer: &mut FrameWriter, frames: &[u8]) -> Result<(), WireError> {
        writer.send_encoded(frames).await
    }

    fn put(request: proto::Request, frames: &mut BytesMut) -> Result<(), WireError> {
        put(peer_frame::Body::Request(request), frames)
    }

    fn ping() -> Option<BytesMut> {
        let mut ping = BytesMut::new();
        put(peer_frame::Body::Ping(proto::Nothing {}), &mut ping).ok()?;
        Some(ping)
    }
}

fn put(body: peer_frame::Body, frames: &mut BytesMut) -> Result<(), WireError> {
    Encoder::new(MAX_CLIENT_FRAME).put(&frame(body), frames)
}

#[cfg(test)]
mod tests;
