//! Frames between nodes: batches, offers of snapshots, the hello.

use skep_core::past::{Durable, Life};

use super::*;

#[test]
fn a_batch_keeps_the_order_within_each_group() {
    let beat = |group, commit| PeerMessage {
        group: GroupId(group),
        ..message(Body::Raft(eraftpb::Message {
            commit,
            ..raft(MessageType::MsgHeartbeat)
        }))
    };
    let messages = BTreeMap::from([
        (GroupId(0), vec![beat(0, 1), beat(0, 2)]),
        (GroupId(7), vec![beat(7, 3)]),
    ]);
    let batch = Batch {
        from: NodeId(1),
        to: NodeId(2),
        priority: Priority::High,
        messages,
    };
    let refused = &mut Vec::new();
    let bytes = batch_to_wire(batch.clone(), refused).encode_to_vec();
    let decoded = proto::Batch::decode(Bytes::from(bytes)).unwrap();
    assert_eq!(batch_from_wire(decoded.clone(), refused).unwrap(), batch);
    assert!(refused.is_empty());
    for wrong in [
        proto::Batch {
            from: 0,
            ..decoded.clone()
        },
        proto::Batch {
            to: 0,
            ..decoded.clone()
        },
    ] {
        assert!(matches!(
            batch_from_wire(wrong, refused),
            Err(WireError::Zero(_))
        ));
    }
    for lane in [0, 4, 9] {
        let wrong = proto::Batch {
            lane,
            ..decoded.clone()
        };
        assert!(
            matches!(
                batch_from_wire(wrong, refused),
                Err(WireError::UnknownValue { .. })
            ),
            "{lane}"
        );
    }
}

#[test]
fn a_bad_message_costs_no_other_group_its_message() {
    let of = |group, raft| PeerMessage {
        group: GroupId(group),
        ..message(Body::Raft(raft))
    };
    let beat = of(2, raft(MessageType::MsgHeartbeat));
    let messages = BTreeMap::from([
        (
            GroupId(1),
            vec![of(1, raft(MessageType::MsgPropose)), of(1, snapshot())],
        ),
        (GroupId(2), vec![beat.clone()]),
    ]);
    let batch = Batch {
        from: NodeId(1),
        to: NodeId(2),
        priority: Priority::High,
        messages,
    };
    let mut refused = Vec::new();
    let mut wire = batch_to_wire(batch, &mut refused);
    assert_eq!((wire.messages.len(), refused.len()), (1, 2));

    wire.messages.insert(0, proto::PeerMessage::default());
    refused.clear();
    let batch = batch_from_wire(wire, &mut refused).unwrap();
    assert_eq!(batch.messages, BTreeMap::from([(GroupId(2), vec![beat])]));
    assert!(matches!(refused[..], [WireError::Missing(_)]));
}

#[test]
fn a_snapshot_travels_as_an_offer_only() {
    let message = message(Body::Raft(snapshot()));
    let name = SnapshotName {
        index: LogIndex(40),
        term: Term(5),
        digest: [7; 32],
        size: 1 << 30,
    };
    let offer = SnapshotOffer {
        transfer: 3,
        message: message.clone(),
        name,
    };
    let wire = offer.clone().into_wire().unwrap();
    assert_eq!(SnapshotOffer::try_from(wire.clone()).unwrap(), offer);

    let batch = proto::Batch {
        from: 1,
        to: 2,
        lane: 1,
        messages: vec![message_to_wire(message).unwrap()],
        durable: 0,
    };
    let mut refused = Vec::new();
    assert!(batch_from_wire(batch, &mut refused).unwrap().is_empty());
    assert!(matches!(refused[..], [WireError::Misplaced(_)]));

    let mut short = wire.clone();
    short.name.as_mut().unwrap().digest = Bytes::from_static(&[1; 31]);
    assert!(matches!(
        SnapshotOffer::try_from(short),
        Err(WireError::BadLength { found: 31, .. })
    ));
    let not_one = SnapshotOffer {
        message: self::message(Body::Raft(append())),
        ..offer
    };
    assert!(matches!(not_one.into_wire(), Err(WireError::Misplaced(_))));
}

#[test]
fn a_snapshot_header_stands_in_its_own_kind_only() {
    let mut append = append();
    append.snapshot = snapshot().snapshot;
    assert!(matches!(
        over_the_wire(message(Body::Raft(append))),
        Err(WireError::Misplaced(_))
    ));
    let bare = raft(MessageType::MsgSnapshot);
    assert!(matches!(
        over_the_wire(message(Body::Raft(bare))),
        Err(WireError::Misplaced(_))
    ));
}

fn past() -> Past {
    let life = |number| Life {
        number,
        nonce: number << 60,
        began: Durable(number << 32),
    };
    Past {
        lives: vec![life(7), life(8)],
        durable: Durable(9 << 32 | 64),
    }
}

/// What a stranger is heard out with has room for all that a node may say of itself.
#[test]
fn the_longest_past_fits_into_a_hello() {
    let lives = (1..=LIVES_TOLD as u64).map(|number| Life {
        number: u64::MAX / 2 + number,
        nonce: u64::MAX,
        began: Durable(u64::MAX),
    });
    let past = Past {
        lives: lives.collect(),
        durable: Durable(u64::MAX),
    };
    let hello = Hello {
        protocol: PEER_PROTOCOL,
        cluster: "b".repeat(255),
        from: NodeId(u64::MAX),
        to: NodeId(u64::MAX),
        store: [9; 16],
        purpose: Purpose::Requests,
        identity: Some(Founding::unfounded("bees").identity()),
        list: (1..=FOUNDERS_MAX as u64)
            .map(|at| NodeId(u64::MAX - at))
            .collect(),
        past,
    };
    let frame = frame(peer_frame::Body::Hello(hello.into()));
    assert!(frame.encoded_len() < skep_wire::MAX_HELLO);
}

#[test]
fn a_hello_is_complete_or_refused() {
    let hello = Hello {
        protocol: PEER_PROTOCOL,
        cluster: "bees".into(),
        from: NodeId(1),
        to: NodeId(2),
        store: [9; 16],
        purpose: Purpose::Lane(Priority::Low),
        identity: Some(Founding::unfounded("bees").identity()),
        list: Default::default(),
        past: past(),
    };
    for purpose in Priority::ALL
        .map(Purpose::Lane)
        .into_iter()
        .chain([Purpose::Requests])
    {
        let hello = Hello {
            purpose,
            ..hello.clone()
        };
        assert_eq!(
            Hello::try_from(proto::Hello::from(hello.clone())).unwrap(),
            hello
        );
    }
    let wire = proto::Hello::from(hello);
    for wrong in [
        proto::Hello {
            protocol: PEER_PROTOCOL + 1,
            ..wire.clone()
        },
        proto::Hello {
            from: 0,
            ..wire.clone()
        },
        proto::Hello {
            to: 0,
            ..wire.clone()
        },
        proto::Hello {
            store: Bytes::from_static(b"short"),
            ..wire.clone()
        },
        proto::Hello {
            identity: Bytes::from_static(b"short"),
            ..wire.clone()
        },
        // Only a founder belongs to no cluster.
        proto::Hello {
            identity: Bytes::new(),
            ..wire.clone()
        },
        proto::Hello {
            list: vec![1; FOUNDERS_MAX + 1],
            ..wire.clone()
        },
        // Its lives do not follow one another, or are too many.
        proto::Hello {
            past: Some(proto::Past {
                nonces: vec![1],
                ..past_to_wire(&past())
            }),
            ..wire.clone()
        },
        proto::Hello {
            past: Some(proto::Past {
                life: 1,
                ..past_to_wire(&past())
            }),
            ..wire.clone()
        },
        proto::Hello {
            past: Some(proto::Past {
                life: 1000,
                nonces: vec![1; LIVES_TOLD + 1],
                began: vec![1; LIVES_TOLD + 1],
                durable: 1,
            }),
            ..wire.clone()
        },
        proto::Hello { lane: 0, ..wire },
    ] {
        assert!(Hello::try_from(wrong).is_err());
    }
}

#[test]
fn a_founder_and_its_answer_survive_the_wire() {
    let founders = [(NodeId(1), [7; 16]), (NodeId(2), [8; 16])];
    let founding = Founding::new("bees", founders.into());
    let hello = Hello {
        protocol: PEER_PROTOCOL,
        cluster: "bees".into(),
        from: NodeId(1),
        to: NodeId(2),
        store: [7; 16],
        purpose: Purpose::Founding,
        identity: None,
        list: founding.founders.keys().copied().collect(),
        past: Default::default(),
    };
    let wire = proto::Hello::from(hello.clone());
    assert_eq!(Hello::try_from(wire).unwrap(), hello);
    let undecided = Statement {
        store: [8; 16],
        list: hello.list,
        agrees: Some(founding.identity()),
        founded: None,
    };
    let later = founding.recovered(founding.founders.clone(), [9; 32]);
    let later = later.recovered(later.founders.clone(), [8; 32]);
    for said in [
        undecided,
        Statement::founded([8; 16], founding.clone()),
        Statement::founded([8; 16], later.clone()),
    ] {
        assert_eq!(
            statement_from_wire(statement_to_wire(said.clone())).unwrap(),
            said
        );
    }
    let mut wrong = statement_to_wire(Statement::founded([8; 16], founding));
    let founded = wrong.founded.as_mut().unwrap();
    founded.founders[0].store = Bytes::from_static(b"short");
    assert!(statement_from_wire(wrong.clone()).is_err());
    wrong.founded.as_mut().unwrap().founders = vec![proto::Founder::default(); FOUNDERS_MAX + 1];
    assert!(statement_from_wire(wrong).is_err());
    for (plan, former) in [(31, 1), (32, FORMER_MAX + 1)] {
        let mut wrong = statement_to_wire(Statement::founded([8; 16], later.clone()));
        let founded = wrong.founded.as_mut().unwrap();
        founded.plan = vec![9; plan].into();
        founded.former = vec![Bytes::from_static(&[9; 32]); former];
        assert!(statement_from_wire(wrong).is_err(), "{plan} {former}");
    }
}
