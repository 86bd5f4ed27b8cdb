//! What nodes ask each other on behalf of clients: on a connection of its own kind, so that neither silent clients nor a
//! flood of appends is in its way.

use bytes::BytesMut;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use prost::Message as _;
use skep_core::id::NodeId;
use skep_peer::frame;
use skep_types::code::Code;
use skep_wire::codec::Encoder;
use skep_wire::proto::{self, peer_frame, request, response};
use skep_wire::{MAX_CHUNK, MAX_CLIENT_FRAME, WireError};
use tokio_util::sync::CancellationToken;

use super::connection::Connection;
use super::stats::add;
use super::tcp::Shared;
use crate::memory::{KEPT_BY_CLIENT, empty};

/// Requests of one node in flight; above it nothing more is read until some are answered.
const IN_FLIGHT: usize = 1024;
/// Their bytes, likewise.
const IN_FLIGHT_BYTES: usize = 32 << 20;
/// Answers are gathered up to this many bytes before they are written.
const WRITE_BYTES: usize = 256 << 10;
/// What a frame has around its answer, at most.
const ENVELOPE: usize = 64;

/// Answers what other nodes ask.
///
/// *Concurrency*: called from any thread; must return at once, and the future may take as long as the request says.
pub trait RequestHandler: Send + Sync + 'static {
    /// Answers a request of a node. The answer bears the id of the request.
    fn answer(&self, from: NodeId, request: proto::Request) -> BoxFuture<'static, proto::Response>;
}

/// Serves a connection to its end. A node has one: a second takes the place of the first.
pub(super) async fn serve(
    shared: &Shared,
    from: NodeId,
    connection: Connection,
) -> Result<(), WireError> {
    let superseded = CancellationToken::new();
    if let Some(former) = shared.requesters.insert(from, superseded.clone()) {
        former.cancel();
    }
    let served = superseded.run_until_cancelled(answer_all(shared, from, connection));
    served.await.unwrap_or(Ok(()))
}

async fn answer_all(
    shared: &Shared,
    from: NodeId,
    mut connection: Connection,
) -> Result<(), WireError> {
    let handler = shared
        .requests
        .as_ref()
        .ok_or(WireError::Misplaced("this node answers no requests"))?;
    shared
        .identity
        .welcome(&mut connection, MAX_CLIENT_FRAME)
        .await?;
    let Connection {
        mut reader,
        mut writer,
    } = connection;
    let encoder = Encoder::new(MAX_CLIENT_FRAME);
    let (mut in_flight, mut bytes) = (FuturesUnordered::new(), 0);
    let mut output = BytesMut::new();
    loop {
        let full = in_flight.len() >= IN_FLIGHT || bytes >= IN_FLIGHT_BYTES;
        tokio::select! {
            biased;
            Some((response, size)) = in_flight.next(), if !in_flight.is_empty() => {
                let mut answered = Some((response, size));
                // Whatever else is finished by now shares the write.
                while let Some((response, size)) = answered {
                    bytes -= size;
                    encoder.put(&frame(peer_frame::Body::Response(response)), &mut output)?;
                    answered = match output.len() < WRITE_BYTES {
                        true => in_flight.next().now_or_never().flatten(),
                        false => None,
                    };
                }
            }
            read = reader.next(None), if !full => match read? {
                Some(peer_frame::Body::Request(request)) => {
                    add(&shared.stats.requests_in, 1);
                    let size = size(&request);
                    bytes += size;
                    let answer = handler.answer(from, request);
                    in_flight.push(async move { (fitting(answer.await), size) });
                }
                // Whether this node is there at all, which its requests that take long do not tell.
                Some(peer_frame::Body::Ping(nothing)) => {
                    encoder.put(&frame(peer_frame::Body::Ping(nothing)), &mut output)?;
                }
                Some(_) => {
                    add(&shared.stats.malformed, 1);
                    return Err(WireError::Misplaced("a frame among requests is none"));
                }
                None => return Ok(()),
            },
        }
        if !output.is_empty() {
            writer.send_encoded(&output).await?;
            empty(&mut output, KEPT_BY_CLIENT);
        }
    }
}

/// The answer, or in the place of one that no frame holds an error that says so: the connection has others to carry.
pub fn fitting(response: proto::Response) -> proto::Response {
    let (bytes, most) = (response.encoded_len(), MAX_CLIENT_FRAME - ENVELOPE);
    if bytes <= most {
        return response;
    }
    let changes_nothing = matches!(
        response.body,
        Some(response::Body::Answered(_) | response::Body::ComponentChunk(_))
    );
    let message = format!(
        "the answer has {bytes} bytes, and one over this protocol at most {most}; ask for less at a time, or over HTTP at a node that hosts the group"
    );
    let error = proto::Error {
        // The request was carried out.
        unknown: !changes_nothing,
        ..proto::Error::new(Code::TooLarge, message)
    };
    proto::Response {
        body: Some(response::Body::Error(error)),
        ..response
    }
}

/// Bytes a request holds while it is in flight.
pub fn size(request: &proto::Request) -> usize {
    const FIXED: usize = 256;
    FIXED
        + match &request.body {
            Some(request::Body::Propose(propose)) => propose.data.len(),
            Some(request::Body::Query(query)) => query.data.len(),
            Some(request::Body::Call(call)) => call.body.len() + call.method.len(),
            Some(request::Body::ComponentRead(_)) => MAX_CHUNK,
            Some(request::Body::ComponentWrite(write)) => write.data.len(),
            Some(request::Body::OpenSession(_)) | None => 0,
        }
}
