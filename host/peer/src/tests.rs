mod frames;
mod raft_messages;

use proptest::prelude::*;
use prost::Message as _;
use raft::eraftpb::{self, EntryType, MessageType};
use skep_core::activation::Refusal;
use skep_core::deployment::{Deployment, Quota};
use skep_core::form::Barriers;
use skep_core::id::{ComponentId, RequestId, SessionId};
use skep_core::outcome::{GuestFault, Outcome};
use skep_core::past::LIVES_TOLD;
use skep_core::proposal::{Change, ChangeRefusal, Command, Proposal, ProposalError, Response};

use super::*;

fn message(body: Body) -> PeerMessage {
    PeerMessage {
        group: GroupId(4),
        incarnation: Incarnation(2),
        from: ReplicaId(11),
        to: ReplicaId(12),
        body,
    }
}

fn raft(msg_type: MessageType) -> eraftpb::Message {
    eraftpb::Message {
        msg_type,
        from: 11,
        to: 12,
        term: 5,
        ..Default::default()
    }
}

/// What raft-rs sends to ask for a read index.
fn read_index() -> eraftpb::Message {
    let context = eraftpb::Entry {
        data: Bytes::from_static(b"12345678"),
        ..Default::default()
    };
    eraftpb::Message {
        term: 0,
        entries: vec![context].into(),
        ..raft(MessageType::MsgReadIndex)
    }
}

fn append() -> eraftpb::Message {
    let entry = |index, entry_type, data: &'static [u8]| eraftpb::Entry {
        entry_type,
        term: 5,
        index,
        data: Bytes::from_static(data),
        context: Bytes::from_static(b"context"),
        sync_log: true,
        ..Default::default()
    };
    eraftpb::Message {
        log_term: 4,
        index: 9,
        entries: vec![
            entry(10, EntryType::EntryNormal, b"ten"),
            entry(11, EntryType::EntryConfChange, b""),
            entry(12, EntryType::EntryConfChangeV2, b"twelve"),
        ]
        .into(),
        commit: 8,
        commit_term: 4,
        request_snapshot: 3,
        reject: true,
        reject_hint: 7,
        context: Bytes::from_static(b"read"),
        deprecated_priority: 1,
        priority: -1,
        ..raft(MessageType::MsgAppend)
    }
}

fn snapshot() -> eraftpb::Message {
    let conf_state = eraftpb::ConfState {
        voters: vec![1, 2],
        learners: vec![3],
        voters_outgoing: vec![1],
        learners_next: vec![4],
        auto_leave: true,
        ..Default::default()
    };
    let metadata = eraftpb::SnapshotMetadata {
        conf_state: Some(conf_state).into(),
        index: 40,
        term: 5,
        ..Default::default()
    };
    let snapshot = eraftpb::Snapshot {
        metadata: Some(metadata).into(),
        ..Default::default()
    };
    eraftpb::Message {
        snapshot: Some(snapshot).into(),
        ..raft(MessageType::MsgSnapshot)
    }
}

/// Through the bytes, not only through the types.
fn over_the_wire(message: PeerMessage) -> Result<PeerMessage, WireError> {
    let bytes = message_to_wire(message)?.encode_to_vec();
    message_from_wire(proto::PeerMessage::decode(Bytes::from(bytes))?)
}

// P-48
#[test]
fn what_a_replica_keeps_does_not_keep_the_frame_it_came_in() {
    let command = Command {
        request: RequestId::ANONYMOUS,
        acknowledged: 0,
        data: Bytes::from_static(b"put"),
    };
    let add = Change::Add {
        node: NodeId(3),
        data: Bytes::from_static(b"three"),
    };
    for body in [
        Body::Raft(append()),
        Body::Raft(snapshot()),
        Body::Raft(read_index()),
        Body::Forward(vec![
            Forward {
                token: 1,
                proposal: Proposal::Command(command),
            },
            Forward {
                token: 2,
                proposal: Proposal::Change(add),
            },
        ]),
    ] {
        let sent = message(body);
        let frame = Bytes::from(message_to_wire(sent.clone()).unwrap().encode_to_vec());
        let wire = proto::PeerMessage::decode(frame.clone()).unwrap();
        let received = message_from_wire(wire).unwrap();
        assert_eq!(received, sent);
        assert!(frame.is_unique(), "{received:?}");
    }
}

fn response(outcome: Outcome) -> Response {
    let request = RequestId {
        session: SessionId(6),
        sequence: 3,
    };
    Response {
        request,
        index: LogIndex(77),
        term: Term(5),
        outcome,
    }
}

#[test]
fn what_replicas_say_of_barriers_survives() {
    let said = |index, snapshot, chain| Attestation {
        index: LogIndex(index),
        snapshot,
        chain,
        unable: chain.is_none(),
    };
    let bodies = [
        Body::AskAttestations {
            after: LogIndex(0),
            nonce: u64::MAX,
        },
        Body::AskSnapshot { after: LogIndex(9) },
        Body::Readiness {
            index: LogIndex(9),
            readiness: Readiness::NotYet,
        },
        Body::Readiness {
            index: LogIndex(9),
            readiness: Readiness::Refused(Refusal::Restore(GuestFault::OutOfFuel)),
        },
        Body::Attestations {
            nonce: 7,
            said: vec![
                said(1, None, None),
                said(2, Some([1; 32]), None),
                said(3, Some([1; 32]), Some([2; 16])),
            ],
        },
        Body::AskStanding { nonce: 1 << 63 },
        Body::Standing(Standing {
            nonce: 5,
            term: Term(3),
            member: true,
            removed: true,
            matched: LogIndex(9),
            well: true,
            word: Word {
                stopped: Some(Impasse {
                    index: LogIndex(7),
                    item: 2,
                    code: 3,
                }),
                waits: LogIndex(8),
            },
        }),
    ];
    for body in bodies {
        let message = message(body);
        assert_eq!(over_the_wire(message.clone()).unwrap(), message);
    }
    let short = proto::Attestation {
        index: 1,
        snapshot: vec![1; 31].into(),
        chain: Bytes::new(),
        unable: false,
    };
    let body = peer_message::Body::Attestations(proto::Attestations {
        attestations: vec![short],
        nonce: 0,
    });
    let short = proto::PeerMessage {
        group: 1,
        incarnation: 1,
        from: 1,
        to: 2,
        body: Some(body),
    };
    assert!(matches!(
        message_from_wire(short),
        Err(WireError::BadLength { .. })
    ));
    let unknown = proto::Readiness { index: 1, code: 0 };
    let unknown = proto::PeerMessage {
        group: 1,
        incarnation: 1,
        from: 1,
        to: 2,
        body: Some(peer_message::Body::Readiness(unknown)),
    };
    assert!(matches!(
        message_from_wire(unknown),
        Err(WireError::UnknownValue { .. })
    ));
}

#[test]
fn every_proposal_survives() {
    let request = RequestId {
        session: SessionId(6),
        sequence: 3,
    };
    let data = Bytes::from_static(b"data");
    let node = NodeId(3);
    let proposals = [
        Proposal::Command(Command {
            request,
            acknowledged: 2,
            data: data.clone(),
        }),
        Proposal::Command(Command {
            request: RequestId::ANONYMOUS,
            acknowledged: 0,
            data: data.clone(),
        }),
        Proposal::OpenSession,
        Proposal::Change(Change::Add {
            node,
            data: data.clone(),
        }),
        Proposal::Change(Change::AddLearner {
            node,
            data: data.clone(),
        }),
        Proposal::Change(Change::Remove { node, data }),
        Proposal::Change(Change::Promote { node }),
        Proposal::Change(Change::Demote { node }),
        Proposal::Barrier,
        Proposal::Activate(Deployment {
            component: ComponentId([9; 32]),
            profile: Bytes::from_static(b"{}"),
            quota: Quota {
                commands_per_second: 7,
                in_flight_bytes: 1 << 40,
                bytes_per_second: 1 << 41,
            },
            barriers: Barriers::Image,
        }),
        Proposal::Resume,
        Proposal::AbortActivation,
        Proposal::Trust { node },
    ];
    let forwards = proposals
        .into_iter()
        .zip(1..)
        .map(|(proposal, token)| Forward { token, proposal })
        .collect();
    let message = message(Body::Forward(forwards));
    assert_eq!(over_the_wire(message.clone()).unwrap(), message);
}

#[test]
fn every_answer_survives() {
    let mut results = vec![
        Ok(response(Outcome::Reply(Bytes::from_static(b"reply")))),
        Ok(response(Outcome::Reply(Bytes::new()))),
        Ok(response(Outcome::Refused {
            code: 404,
            message: "no such node".into(),
        })),
        Ok(response(Outcome::Rejected {
            code: 0,
            message: String::new(),
        })),
        Err(ProposalError::NoLeader),
        Err(ProposalError::NotLeader { leader: None }),
        Err(ProposalError::NotLeader {
            leader: Some(NodeId(2)),
        }),
        Err(ProposalError::Busy),
        Err(ProposalError::TooLarge { size: 9, limit: 8 }),
        Err(ProposalError::Superseded),
        Err(ProposalError::SessionExpired),
        Err(ProposalError::TooManySessions),
        Err(ProposalError::AnswerExpired),
        Err(ProposalError::SequenceClosed),
        Err(ProposalError::ChangeInProgress),
        Err(ProposalError::Faulted),
        Err(ProposalError::OutOfMemory),
        Err(ProposalError::Stopped),
        Err(ProposalError::Unknown),
    ];
    results.extend(GuestFault::ALL.map(|fault| Ok(response(Outcome::Fault(fault)))));
    results.extend(
        (0..=u8::MAX)
            .filter_map(ChangeRefusal::from_code)
            .map(|why| Err(ProposalError::ChangeRefused(why))),
    );
    let answers = results
        .into_iter()
        .zip(1..)
        .map(|(result, token)| Answer { token, result })
        .collect();
    let message = message(Body::Answer(answers));
    assert_eq!(over_the_wire(message.clone()).unwrap(), message);
}

#[test]
fn numbers_that_name_nothing_are_refused() {
    for code in [0, 255, 256, u32::MAX] {
        let outcome = proto::Outcome {
            body: Some(proto::outcome::Body::Fault(code)),
        };
        assert!(
            matches!(
                Outcome::try_from(outcome),
                Err(WireError::UnknownValue { .. })
            ),
            "{code}"
        );
        let error = proto::ProposalError {
            body: Some(proto::proposal_error::Body::ChangeRefused(code)),
        };
        assert!(
            matches!(
                ProposalError::try_from(error),
                Err(WireError::UnknownValue { .. })
            ),
            "{code}"
        );
    }
}

#[test]
fn replicas_have_ids() {
    let from_nobody = PeerMessage {
        from: ReplicaId(0),
        ..message(Body::Gone)
    };
    assert!(matches!(
        over_the_wire(from_nobody),
        Err(WireError::Zero(_))
    ));
    let to_nobody = PeerMessage {
        to: ReplicaId(0),
        ..message(Body::Gone)
    };
    assert!(matches!(over_the_wire(to_nobody), Err(WireError::Zero(_))));
}

proptest! {
    /// Whatever parses as a batch is a batch or an error.
    #[test]
    fn garbage_never_panics(garbage in prop::collection::vec(any::<u8>(), 0..300)) {
        if let Ok(frame) = proto::PeerFrame::decode(Bytes::from(garbage.clone()))
            && let Some(peer_frame::Body::Batch(batch)) = frame.body
        {
            let _ = batch_from_wire(batch, &mut Vec::new());
        }
        if let Ok(message) = proto::PeerMessage::decode(Bytes::from(garbage)) {
            let _ = message_from_wire(message);
        }
    }
}
