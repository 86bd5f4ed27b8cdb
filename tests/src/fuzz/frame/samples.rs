//! Samples: sound frames of each kind, and frames damaged on purpose.

use bytes::Bytes;
use prost::Message;
use skep_core::id::SessionId;
use skep_wire::codec::HEADER;
use skep_wire::proto::{
    self, client_frame, hello_ack, peer_frame, request, response, server_frame,
};

use super::framed;

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

fn past() -> proto::Past {
    proto::Past {
        life: 3,
        nonces: vec![11, 12],
        began: vec![1 << 32 | 512, 2 << 32 | 640],
        durable: 3 << 32 | 4096,
    }
}

fn peer_frames() -> Vec<(String, Vec<u8>)> {
    use proto::{Lane, RaftKind};
    let nothing = proto::Nothing {};
    let frame = |name: &str, body| (name.to_owned(), skep_peer::frame(body).encode_to_vec());
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
            session: SessionId(7).to_bytes(),
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
            session: SessionId(7).to_bytes(),
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
            durable: 3 << 32 | 4096,
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
            protocol: skep_wire::PEER_PROTOCOL,
            cluster: "bees".into(),
            from: 1,
            to: 2,
            store: Bytes::from_static(&[7; 16]),
            lane: lane.into(),
            identity: match lane {
                Lane::Founding => Bytes::new(),
                _ => Bytes::from_static(&[8; 32]),
            },
            list: match lane {
                Lane::Founding => vec![1, 2, 3],
                _ => Vec::new(),
            },
            past: match lane {
                Lane::Founding => None,
                _ => Some(past()),
            },
        })
    };
    vec![
        frame("hello-low", hello(Lane::Low)),
        frame("hello-normal", hello(Lane::Normal)),
        frame("hello-high", hello(Lane::High)),
        frame("hello-requests", hello(Lane::Requests)),
        frame("hello-founding", hello(Lane::Founding)),
        frame(
            "statement",
            peer_frame::Body::HelloAck(proto::HelloAck {
                body: Some(hello_ack::Body::Statement(proto::Statement {
                    store: Bytes::from_static(&[7; 16]),
                    list: vec![1, 2],
                    agrees: Bytes::from_static(&[8; 32]),
                    founded: Some(proto::Founding {
                        cluster: "bees".into(),
                        incarnation: 1,
                        founders: vec![proto::Founder {
                            node: 1,
                            store: Bytes::from_static(&[7; 16]),
                        }],
                        plan: Bytes::from_static(&[9; 32]),
                        former: vec![Bytes::from_static(&[6; 32])],
                    }),
                })),
            }),
        ),
        frame("ping", peer_frame::Body::Ping(nothing)),
        frame(
            "request",
            peer_frame::Body::Request(proto::Request {
                id: 9,
                group: 4,
                body: Some(request::Body::Query(proto::Query {
                    linearizable: true,
                    data: Bytes::from_static(b"get a"),
                    timeout_ms: 500,
                })),
            }),
        ),
        frame(
            "response",
            peer_frame::Body::Response(proto::Response {
                id: 9,
                body: Some(response::Body::Called(proto::Called {
                    body: Bytes::from_static(b"{}"),
                })),
                leader: 3,
            }),
        ),
        frame(
            "welcome",
            peer_frame::Body::HelloAck(proto::HelloAck {
                body: Some(hello_ack::Body::Welcome(proto::Welcome {
                    store: Bytes::from_static(&[9; 16]),
                    past: Some(past()),
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
                        message(proto::peer_message::Body::AskStanding(7)),
                        message(proto::peer_message::Body::Standing(proto::Standing {
                            nonce: 7,
                            term: 5,
                            member: true,
                            removed: false,
                            matched: 9,
                            well: true,
                            stopped: Some(proto::Impasse {
                                index: 8,
                                item: 1,
                                code: 2,
                            }),
                            waits: 9,
                        })),
                        message(proto::peer_message::Body::AskAttestations(
                            proto::AskAttestations { after: 3, nonce: 7 },
                        )),
                        message(proto::peer_message::Body::Attestations(
                            proto::Attestations {
                                attestations: vec![proto::Attestation {
                                    index: 8,
                                    snapshot: Bytes::from_static(&[3; 32]),
                                    chain: Bytes::from_static(&[4; 16]),
                                    unable: true,
                                }],
                                nonce: 7,
                            },
                        )),
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
                session: SessionId(7).to_bytes(),
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
        request(
            "write",
            request::Body::ComponentWrite(proto::ComponentWrite {
                component: Bytes::from_static(&[3; 32]),
                offset: 10,
                total: 900,
                data: Bytes::from_static(&[0; 20]),
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
                session: SessionId(7).to_bytes(),
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
        response(
            "written".into(),
            response::Body::ComponentWritten(proto::ComponentWritten {
                received: 30,
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
