//! Bytes from a socket: the frame decoder of every connection, and the step from its messages to the words of the core.
//!
//! Byte 0: bits 0 and 1 choose the kind of frame; with bit 2 the rest is the body of one frame whose header is made to
//! fit, so that damage reaches the message instead of ending at the checksum; bits 3 to 7 say how the stream is split.

mod samples;

use std::fmt::Debug;

use bytes::BytesMut;
use prost::Message;
use skep_core::id::ComponentId;
use skep_core::message::Batch;
use skep_core::proposal::Command;
use skep_peer::{
    Hello, SnapshotOffer, batch_from_wire, batch_to_wire, message_to_wire, statement_from_wire,
    statement_to_wire, store_uuid,
};
use skep_wire::codec::{Decoder, Encoder, header_check};
use skep_wire::proto::{
    self, client_frame, hello_ack, peer_frame, request, response, server_frame,
};
use skep_wire::{MAX_CLIENT_FRAME, MAX_FRAME, MAX_HELLO, WireError};

pub use samples::seeds;

/// What a decoder may have reserved beyond twice what it was given: its own step, doubled by the buffer.
const ROOM: usize = 256 << 10;

/// Every error that bytes can cause; another one would be a new name that no document knows.
const CODES: [&str; 13] = [
    "empty-message",
    "not-enough-data",
    "frame-too-large",
    "frame-corrupt",
    "not-a-frame",
    "frame-version",
    "malformed-message",
    "message-incomplete",
    "unknown-value",
    "zero-id",
    "bad-length",
    "misplaced-message",
    "entries-not-contiguous",
];

/// Decodes the bytes as a stream of frames.
///
/// # Panics
/// If the decoder depends on how the stream is split, holds more memory than it was sent, or gives a message that does
/// not survive being sent on.
pub fn run(data: &[u8]) {
    let Some((&mode, rest)) = data.split_first() else {
        return;
    };
    let stream = if mode & 4 == 0 {
        rest.to_vec()
    } else {
        framed(rest)
    };
    let split = usize::from(mode >> 3) + 1;
    match mode & 3 {
        0 => decode::<proto::PeerFrame>(&stream, split, MAX_FRAME)
            .into_iter()
            .for_each(peer),
        1 => decode::<proto::ClientFrame>(&stream, split, MAX_CLIENT_FRAME)
            .into_iter()
            .for_each(client),
        2 => decode::<proto::ServerFrame>(&stream, split, MAX_CLIENT_FRAME)
            .into_iter()
            .for_each(server),
        _ => drop(decode::<proto::PeerFrame>(&stream, split, MAX_HELLO)),
    }
}

/// The body as one sound frame.
pub fn framed(body: &[u8]) -> Vec<u8> {
    let mut frame = b"sk\x01\0".to_vec();
    frame.extend((body.len() as u32).to_le_bytes());
    frame[3] = header_check(&frame);
    let checksum = crc32c::crc32c_append(crc32c::crc32c(&frame), body);
    frame.extend(checksum.to_le_bytes());
    frame.extend(body);
    frame
}

fn decode<M: Message + Default + Clone + PartialEq + Debug>(
    stream: &[u8],
    split: usize,
    limit: usize,
) -> Vec<M> {
    let (whole, ended) = stream_of::<M>(&[stream], limit);
    let pieces: Vec<_> = stream.chunks(split * split).collect();
    let (split, split_ended) = stream_of::<M>(&pieces, limit);
    assert_eq!(
        split, whole,
        "the messages depend on how the stream is split"
    );
    assert_eq!(
        split_ended, ended,
        "the error depends on how the stream is split"
    );
    for message in &whole {
        let size = message.encoded_len();
        assert!(
            size <= limit,
            "{size} bytes came through a limit of {limit}"
        );
        let mut buffer = BytesMut::new();
        match Encoder::new(limit).put(message, &mut buffer) {
            Ok(()) => {
                let again = Decoder::<M>::new(limit).take(&mut buffer);
                assert_eq!(
                    again.expect("its own frame").as_ref(),
                    Some(message),
                    "a message changed on the way"
                );
                assert!(buffer.is_empty());
            }
            // All there was in the body are fields that this version does not know.
            Err(WireError::EmptyMessage) => assert_eq!(size, 0),
            Err(error) => panic!("a message that came cannot be sent: {error}"),
        }
    }
    whole
}

fn stream_of<M: Message + Default>(
    pieces: &[&[u8]],
    limit: usize,
) -> (Vec<M>, Option<&'static str>) {
    let mut decoder = Decoder::<M>::new(limit);
    let (mut buffer, mut messages, mut given) = (BytesMut::new(), Vec::new(), 0);
    let mut take = |buffer: &mut BytesMut, last: bool| loop {
        let taken = if last {
            decoder.take_last(buffer)
        } else {
            decoder.take(buffer)
        };
        match taken {
            Ok(Some(message)) => messages.push(message),
            Ok(None) => return None,
            Err(error) => return Some(known(&error)),
        }
    };
    let mut ended = None;
    for piece in pieces {
        buffer.extend_from_slice(piece);
        given += piece.len();
        ended = take(&mut buffer, false);
        assert!(
            buffer.capacity() <= 2 * given + ROOM,
            "{given} bytes made {} bytes of room",
            buffer.capacity()
        );
        if ended.is_some() {
            break;
        }
    }
    if ended.is_none() {
        ended = take(&mut buffer, true);
    }
    (messages, ended)
}

fn known(error: &WireError) -> &'static str {
    let code = error.code().name();
    assert!(
        CODES.contains(&code),
        "bytes alone caused `{code}`: {error}"
    );
    assert!(!error.to_string().is_empty());
    code
}

/// The value of a conversion, where it has one; and that it has it again after its way back.
fn stays<W, T: PartialEq + Debug + Clone>(
    wire: W,
    read: impl Fn(W) -> Result<T, WireError>,
    write: impl Fn(T) -> W,
) {
    match read(wire) {
        Ok(value) => {
            let again = read(write(value.clone()));
            assert_eq!(again.expect("it was understood before"), value);
        }
        Err(error) => {
            known(&error);
        }
    }
}

fn peer(frame: proto::PeerFrame) {
    match frame.body {
        Some(peer_frame::Body::Hello(hello)) => stays(hello, Hello::try_from, Into::into),
        Some(peer_frame::Body::HelloAck(ack)) => match ack.body {
            Some(hello_ack::Body::Welcome(welcome)) => {
                if let Err(error) = store_uuid(&welcome.store) {
                    assert_eq!(known(&error), "bad-length");
                }
            }
            Some(hello_ack::Body::Statement(said)) => {
                stays(said, statement_from_wire, statement_to_wire);
            }
            Some(hello_ack::Body::Refusal(_)) | None => {}
        },
        Some(peer_frame::Body::Batch(batch)) => drop(understood(batch)),
        Some(peer_frame::Body::Request(request)) => asked(request),
        Some(peer_frame::Body::Response(response)) => answered(response),
        Some(peer_frame::Body::SnapshotOffer(offer)) => {
            stays(offer, SnapshotOffer::try_from, |offer| {
                offer.into_wire().expect("it came as an offer")
            });
        }
        Some(
            peer_frame::Body::SnapshotAnswer(_)
            | peer_frame::Body::SnapshotChunk(_)
            | peer_frame::Body::SnapshotDone(_)
            | peer_frame::Body::Ping(_),
        )
        | None => {}
    }
}

/// The batch, if its envelope makes sense.
fn understood(batch: proto::Batch) -> Option<Batch> {
    let came = batch.messages.len();
    let mut refused = Vec::new();
    let batch = match batch_from_wire(batch, &mut refused) {
        Ok(batch) => batch,
        Err(error) => {
            known(&error);
            return None;
        }
    };
    refused.iter().for_each(|error| {
        known(error);
    });
    assert_eq!(batch.len() + refused.len(), came, "a message got lost");
    for (group, messages) in &batch.messages {
        for message in messages {
            assert_eq!(message.group, *group);
            assert!(message.to.0 != 0);
            message_to_wire(message.clone()).expect("what came may travel");
        }
    }
    let mut again = Vec::new();
    let wire = batch_to_wire(batch.clone(), &mut again);
    let back = batch_from_wire(wire, &mut again).expect("the envelope was good before");
    assert!(again.is_empty(), "refused the second time: {again:?}");
    assert_eq!(back, batch, "a batch changed on the way");
    Some(batch)
}

fn client(frame: proto::ClientFrame) {
    if let Some(client_frame::Body::Request(request)) = frame.body {
        asked(request);
    }
}

fn asked(request: proto::Request) {
    match request.body {
        Some(request::Body::Propose(propose)) => {
            let (session, sequence) = (propose.session.clone(), propose.sequence);
            match Command::try_from(propose) {
                Ok(command) => {
                    let told = command.request.session.to_bytes();
                    // The anonymous one may be written out.
                    assert!(told == session || told.is_empty() && session[..] == [0; 16]);
                    assert_eq!(command.request.is_anonymous(), sequence == 0);
                }
                Err(error) => match session.len() {
                    0 | 16 => assert_eq!(known(&error), "zero-id"),
                    _ => assert_eq!(known(&error), "bad-length"),
                },
            }
        }
        Some(request::Body::ComponentRead(read)) => named(read.id(), &read.component),
        Some(request::Body::ComponentWrite(write)) => named(write.id(), &write.component),
        Some(request::Body::OpenSession(_) | request::Body::Query(_) | request::Body::Call(_))
        | None => {}
    }
}

fn named(id: Result<ComponentId, WireError>, told: &[u8]) {
    match id {
        Ok(id) => assert_eq!(id.0[..], told[..]),
        Err(error) => assert_eq!(known(&error), "bad-length"),
    }
}

fn server(frame: proto::ServerFrame) {
    if let Some(server_frame::Body::Response(response)) = frame.body {
        answered(response);
    }
}

fn answered(response: proto::Response) {
    match response.body {
        Some(response::Body::Proposed(proposed)) => {
            let request = skep_core::id::RequestId::ANONYMOUS;
            stays(
                proposed,
                |proposed| proposed.into_response(request),
                proto::Proposed::from,
            );
        }
        Some(response::Body::Answered(answered)) => stays(
            answered,
            proto::Answered::into_parts,
            |(index, term, outcome)| proto::Answered {
                index: index.0,
                term: term.0,
                outcome: Some(outcome.into()),
            },
        ),
        Some(response::Body::SessionOpened(opened)) => {
            if let Err(error) = opened.id() {
                match opened.session.len() {
                    0 | 16 => assert_eq!(known(&error), "zero-id"),
                    _ => assert_eq!(known(&error), "bad-length"),
                }
            }
        }
        Some(
            response::Body::Called(_)
            | response::Body::ComponentChunk(_)
            | response::Body::ComponentWritten(_)
            | response::Body::Error(_),
        )
        | None => {}
    }
}
