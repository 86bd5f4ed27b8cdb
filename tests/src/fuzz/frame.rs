//! Bytes from a socket: the frame decoder of every connection, and the step from its messages to the words of the core.
//!
//! Byte 0: bits 0 and 1 choose the kind of frame; with bit 2 the rest is the body of one frame whose header is made to
//! fit, so that damage reaches the message instead of ending at the checksum; bits 3 to 7 say how the stream is split.

use std::fmt::Debug;

use bytes::{Bytes, BytesMut};
use prost::Message;
use skep_core::message::Batch;
use skep_core::proposal::Command;
use skep_wire::codec::{Decoder, Encoder, HEADER, header_check};
use skep_wire::peer::{
    Hello, SnapshotOffer, batch_from_wire, batch_to_wire, message_to_wire, store_uuid,
};
use skep_wire::proto::{
    self, client_frame, hello_ack, peer_frame, request, response, server_frame,
};
use skep_wire::{MAX_CLIENT_FRAME, MAX_FRAME, MAX_HELLO, WireError};

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
    let code = error.code();
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
        Some(peer_frame::Body::HelloAck(ack)) => {
            if let Some(hello_ack::Body::Welcome(welcome)) = ack.body
                && let Err(error) = store_uuid(&welcome.store)
            {
                assert_eq!(known(&error), "bad-length");
            }
        }
        Some(peer_frame::Body::Batch(batch)) => drop(understood(batch)),
        Some(peer_frame::Body::SnapshotOffer(offer)) => {
            stays(offer, SnapshotOffer::try_from, |offer| {
                offer.into_wire().expect("it came as an offer")
            });
        }
        Some(
            peer_frame::Body::SnapshotAnswer(_)
            | peer_frame::Body::SnapshotChunk(_)
            | peer_frame::Body::SnapshotDone(_),
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
    let Some(client_frame::Body::Request(request)) = frame.body else {
        return;
    };
    match request.body {
        Some(request::Body::Propose(propose)) => {
            let (session, sequence) = (propose.session, propose.sequence);
            match Command::try_from(propose) {
                Ok(command) => {
                    assert_eq!(command.request.session.0, session);
                    assert_eq!(command.request.is_anonymous(), sequence == 0);
                }
                Err(error) => {
                    assert_eq!(known(&error), "zero-id");
                    assert!((session == 0) != (sequence == 0));
                }
            }
        }
        Some(request::Body::ComponentRead(read)) => match read.id() {
            Ok(id) => assert_eq!(id.0[..], read.component[..]),
            Err(error) => assert_eq!(known(&error), "bad-length"),
        },
        Some(request::Body::OpenSession(_) | request::Body::Query(_) | request::Body::Call(_))
        | None => {}
    }
}

fn server(frame: proto::ServerFrame) {
    let Some(server_frame::Body::Response(response)) = frame.body else {
        return;
    };
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
                assert_eq!(known(&error), "zero-id");
            }
        }
        Some(
            response::Body::Called(_)
            | response::Body::ComponentChunk(_)
            | response::Body::Error(_),
        )
        | None => {}
    }
}

/// One frame of each kind, as streams and as bodies, and streams that end badly.
pub fn seeds() -> Vec<(String, Vec<u8>)> {
    let (peer, client, server) = (peer_frames(), client_frames(), server_frames());
    let mut seeds = Vec::new();
    for (kind, frames) in [(0u8, &peer), (1, &client), (2, &server)] {
        let mut stream = Vec::new();
        for (name, body) in frames {
            seeds.push((name.clone(), [&[kind | 4 | 16][..], body].concat()));
            stream.extend(framed(body));
        }
        seeds.push((
            format!("stream-{kind}"),
            [&[kind | 64][..], &stream].concat(),
        ));
        let cut = stream.len() - 3;
        let cut = [&[kind | 32][..], &stream[..cut]].concat();
        seeds.push((format!("stream-{kind}-cut"), cut));
        let at = stream.len() / 2;
        stream[at] ^= 0x10;
        seeds.push((
            format!("stream-{kind}-flipped"),
            [&[kind | 128][..], &stream].concat(),
        ));
    }
    let mut huge = framed(b"x");
    huge[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
    seeds.push(("length-huge".into(), [&[0][..], &huge].concat()));
    let mut empty = framed(b"");
    empty[8..HEADER].fill(0);
    seeds.push(("length-zero".into(), [&[3][..], &empty].concat()));
    seeds.push(("not-a-frame".into(), b"\0GET / HTTP/1.1\r\n\r\n".to_vec()));
    seeds.push((
        "other-version".into(),
        b"\0sk\x02\0\x01\0\0\0\0\0\0\0x".to_vec(),
    ));
    seeds
}

fn peer_frames() -> Vec<(String, Vec<u8>)> {
    use proto::{Lane, RaftKind};
    let nothing = proto::Nothing {};
    let frame = |name: &str, body| {
        (
            name.to_owned(),
            skep_wire::peer::frame(body).encode_to_vec(),
        )
    };
    let message = |body| proto::PeerMessage {
        group: 4,
        incarnation: 2,
        from: 1,
        to: 2,
        body: Some(body),
    };
    let entry = |index, kind: proto::EntryKind, data: &'static [u8]| proto::Entry {
        kind: kind.into(),
        term: 5,
        index,
        data: Bytes::from_static(data),
        context: Bytes::from_static(b"c"),
        sync_log: false,
    };
    let raft = |kind: RaftKind| proto::RaftMessage {
        kind: kind.into(),
        term: if kind == RaftKind::ReadIndex { 0 } else { 5 },
        log_term: 4,
        index: 9,
        entries: match kind {
            RaftKind::ReadIndex | RaftKind::ReadIndexResponse => {
                vec![entry(0, proto::EntryKind::Normal, b"12345678")]
            }
            RaftKind::Append => vec![
                entry(10, proto::EntryKind::Normal, b"ten"),
                entry(11, proto::EntryKind::ConfChange, b""),
                entry(12, proto::EntryKind::ConfChangeV2, b"twelve"),
            ],
            _ => Vec::new(),
        },
        commit: 8,
        commit_term: 4,
        snapshot: (kind == RaftKind::Snapshot).then(|| proto::RaftSnapshot {
            data: Bytes::new(),
            metadata: Some(proto::SnapshotMetadata {
                conf_state: Some(proto::ConfState {
                    voters: vec![1, 2],
                    learners: vec![3],
                    ..Default::default()
                }),
                index: 9,
                term: 4,
            }),
        }),
        reject: kind == RaftKind::AppendResponse,
        reject_hint: 7,
        context: Bytes::from_static(b"12345678"),
        priority: -1,
        ..Default::default()
    };
    let forwards = [
        proto::proposal::Body::Command(proto::Command {
            session: 7,
            sequence: 3,
            acknowledged: 2,
            data: Bytes::from_static(b"put a 1"),
        }),
        proto::proposal::Body::OpenSession(nothing),
        proto::proposal::Body::Barrier(nothing),
        proto::proposal::Body::Change(proto::Change {
            kind: proto::change::Kind::Add.into(),
            node: 4,
            data: Bytes::from_static(b"address"),
        }),
    ]
    .into_iter()
    .zip(1..)
    .map(|(body, token)| proto::Forward {
        token,
        proposal: Some(proto::Proposal { body: Some(body) }),
    })
    .collect();
    let errors = [
        proto::proposal_error::Body::NotLeader(3),
        proto::proposal_error::Body::TooLarge(proto::TooLarge { size: 2, limit: 1 }),
        proto::proposal_error::Body::ChangeRefused(4),
        proto::proposal_error::Body::Unknown(nothing),
    ];
    let mut answers: Vec<_> = errors
        .into_iter()
        .zip(1..)
        .map(|(body, token)| proto::Answer {
            token,
            result: Some(proto::answer::Result::Error(proto::ProposalError {
                body: Some(body),
            })),
        })
        .collect();
    for (outcome, token) in outcomes().into_iter().zip(10..) {
        let response = proto::ProposalResponse {
            session: 7,
            sequence: 3,
            index: 40,
            term: 5,
            outcome: Some(outcome),
        };
        answers.push(proto::Answer {
            token,
            result: Some(proto::answer::Result::Response(response)),
        });
    }
    let batch = |lane: Lane, messages| {
        peer_frame::Body::Batch(proto::Batch {
            from: 1,
            to: 2,
            lane: lane.into(),
            messages,
        })
    };
    let of_kinds = |kinds: &[RaftKind]| {
        kinds
            .iter()
            .map(|kind| message(proto::peer_message::Body::Raft(raft(*kind))))
            .collect::<Vec<_>>()
    };
    let hello = |lane: Lane| {
        peer_frame::Body::Hello(proto::Hello {
            protocol: 1,
            cluster: "bees".into(),
            from: 1,
            to: 2,
            store: Bytes::from_static(&[7; 16]),
            lane: lane.into(),
        })
    };
    vec![
        frame("hello-low", hello(Lane::Low)),
        frame("hello-normal", hello(Lane::Normal)),
        frame("hello-high", hello(Lane::High)),
        frame("hello-transfer", hello(Lane::Transfer)),
        frame(
            "welcome",
            peer_frame::Body::HelloAck(proto::HelloAck {
                body: Some(hello_ack::Body::Welcome(proto::Welcome {
                    store: Bytes::from_static(&[9; 16]),
                })),
            }),
        ),
        frame(
            "refusal",
            peer_frame::Body::HelloAck(proto::HelloAck {
                body: Some(hello_ack::Body::Refusal(proto::Refusal {
                    reason: proto::RefusalReason::WrongStore.into(),
                    text: "another store".into(),
                })),
            }),
        ),
        frame(
            "batch-normal",
            batch(
                Lane::Normal,
                [
                    of_kinds(&[RaftKind::Append, RaftKind::AppendResponse]),
                    vec![
                        message(proto::peer_message::Body::Forwards(proto::Forwards {
                            forwards,
                        })),
                        message(proto::peer_message::Body::Answers(proto::Answers {
                            answers,
                        })),
                        message(proto::peer_message::Body::Gone(nothing)),
                    ],
                ]
                .concat(),
            ),
        ),
        frame(
            "batch-high",
            batch(
                Lane::High,
                of_kinds(&[
                    RaftKind::RequestVote,
                    RaftKind::RequestVoteResponse,
                    RaftKind::Heartbeat,
                    RaftKind::HeartbeatResponse,
                    RaftKind::TransferLeader,
                    RaftKind::TimeoutNow,
                    RaftKind::ReadIndex,
                    RaftKind::ReadIndexResponse,
                    RaftKind::RequestPreVote,
                    RaftKind::RequestPreVoteResponse,
                ]),
            ),
        ),
        frame("batch-empty", batch(Lane::Low, Vec::new())),
        // What may not travel, beside one that may: only it is refused.
        frame(
            "batch-misplaced",
            batch(
                Lane::Low,
                of_kinds(&[
                    RaftKind::Snapshot,
                    RaftKind::Unspecified,
                    RaftKind::Heartbeat,
                ]),
            ),
        ),
        frame(
            "snapshot-offer",
            peer_frame::Body::SnapshotOffer(proto::SnapshotOffer {
                transfer: 3,
                message: Some(message(proto::peer_message::Body::Raft(raft(
                    RaftKind::Snapshot,
                )))),
                name: Some(proto::SnapshotName {
                    index: 9,
                    term: 4,
                    digest: Bytes::from_static(&[5; 32]),
                    size: 300,
                }),
            }),
        ),
        frame(
            "snapshot-accepted",
            peer_frame::Body::SnapshotAnswer(proto::SnapshotAnswer {
                transfer: 3,
                body: Some(proto::snapshot_answer::Body::Accepted(nothing)),
            }),
        ),
        frame(
            "snapshot-refused",
            peer_frame::Body::SnapshotAnswer(proto::SnapshotAnswer {
                transfer: 3,
                body: Some(proto::snapshot_answer::Body::Refused("full".into())),
            }),
        ),
        frame(
            "snapshot-chunk",
            peer_frame::Body::SnapshotChunk(proto::SnapshotChunk {
                transfer: 3,
                offset: 128,
                data: Bytes::from_static(&[1; 40]),
            }),
        ),
        frame(
            "snapshot-done",
            peer_frame::Body::SnapshotDone(proto::SnapshotDone {
                transfer: 3,
                ok: false,
                text: "damaged".into(),
            }),
        ),
    ]
}

fn outcomes() -> Vec<proto::Outcome> {
    [
        proto::outcome::Body::Reply(Bytes::from_static(b"OK 1")),
        proto::outcome::Body::Rejected(proto::Rejected {
            code: 404,
            message: "no such key".into(),
        }),
        proto::outcome::Body::Fault(5),
    ]
    .into_iter()
    .map(|body| proto::Outcome { body: Some(body) })
    .collect()
}

fn client_frames() -> Vec<(String, Vec<u8>)> {
    let request = |name: &str, body| {
        (
            format!("client-{name}"),
            skep_wire::client::request_frame(9, 4, body).encode_to_vec(),
        )
    };
    let hello = proto::ClientFrame {
        body: Some(client_frame::Body::Hello(proto::ClientHello {
            protocol: 1,
            cluster: "bees".into(),
        })),
    };
    vec![
        ("client-hello".into(), hello.encode_to_vec()),
        request(
            "open",
            request::Body::OpenSession(proto::OpenSession { timeout_ms: 900 }),
        ),
        request(
            "propose",
            request::Body::Propose(proto::Propose {
                session: 7,
                sequence: 3,
                acknowledged: 2,
                data: Bytes::from_static(b"put a 1"),
                timeout_ms: 900,
            }),
        ),
        request(
            "query",
            request::Body::Query(proto::Query {
                linearizable: true,
                data: Bytes::from_static(b"get a"),
                timeout_ms: 900,
            }),
        ),
        request(
            "call",
            request::Body::Call(proto::Call {
                method: "group.info".into(),
                body: Bytes::from_static(br#"{"group":"kv"}"#),
                timeout_ms: 900,
            }),
        ),
        request(
            "read",
            request::Body::ComponentRead(proto::ComponentRead {
                component: Bytes::from_static(&[3; 32]),
                offset: 10,
                length: 100,
            }),
        ),
    ]
}

fn server_frames() -> Vec<(String, Vec<u8>)> {
    let response = |name: String, body| {
        (
            format!("server-{name}"),
            skep_wire::client::response_frame(9, body).encode_to_vec(),
        )
    };
    let error = proto::Error {
        code: "not-leader".into(),
        message: "this replica does not lead".into(),
        unknown: false,
        retryable: true,
        leader: 2,
        leader_address: "127.0.0.1:7401".into(),
    };
    let hello = proto::ServerFrame {
        body: Some(server_frame::Body::Hello(proto::ServerHello {
            protocol: 1,
            cluster: "bees".into(),
            node: 1,
            refused: Some(error.clone()),
        })),
    };
    let mut frames = vec![
        ("server-hello".into(), hello.encode_to_vec()),
        response(
            "session".into(),
            response::Body::SessionOpened(proto::SessionOpened {
                session: 7,
                index: 12,
                term: 5,
            }),
        ),
        response(
            "called".into(),
            response::Body::Called(proto::Called {
                body: Bytes::from_static(b"{}"),
            }),
        ),
        response(
            "chunk".into(),
            response::Body::ComponentChunk(proto::ComponentChunk {
                data: Bytes::from_static(&[0; 20]),
                total: 900,
            }),
        ),
        response("error".into(), response::Body::Error(error)),
    ];
    for (outcome, number) in outcomes().into_iter().zip(1..) {
        let proposed = proto::Proposed {
            index: 12,
            term: 5,
            outcome: Some(outcome.clone()),
        };
        let answered = proto::Answered {
            index: 12,
            term: 5,
            outcome: Some(outcome),
        };
        frames.push(response(
            format!("proposed-{number}"),
            response::Body::Proposed(proposed),
        ));
        frames.push(response(
            format!("answered-{number}"),
            response::Body::Answered(answered),
        ));
    }
    frames
}
