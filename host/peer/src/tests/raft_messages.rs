//! Messages of Raft.

use super::*;

#[test]
fn every_field_of_a_raft_message_survives() {
    for raft in [append(), snapshot()] {
        let message = message(Body::Raft(raft));
        assert_eq!(over_the_wire(message.clone()).unwrap(), message);
    }
}

#[test]
fn every_kind_that_travels_survives_and_no_other_leaves() {
    use MessageType::*;
    for kind in [
        MsgAppend,
        MsgAppendResponse,
        MsgRequestVote,
        MsgRequestVoteResponse,
        MsgHeartbeat,
        MsgHeartbeatResponse,
        MsgTransferLeader,
        MsgTimeoutNow,
        MsgReadIndexResp,
        MsgRequestPreVote,
        MsgRequestPreVoteResponse,
    ] {
        let message = message(Body::Raft(raft(kind)));
        assert_eq!(over_the_wire(message.clone()).unwrap(), message, "{kind:?}");
    }
    let read = message(Body::Raft(read_index()));
    assert_eq!(over_the_wire(read.clone()).unwrap(), read);
    for kind in [
        MsgHup,
        MsgBeat,
        MsgPropose,
        MsgUnreachable,
        MsgSnapStatus,
        MsgCheckQuorum,
    ] {
        let error = over_the_wire(message(Body::Raft(raft(kind)))).unwrap_err();
        assert!(
            matches!(error, WireError::Misplaced(_)),
            "{kind:?}: {error}"
        );
    }
}

#[test]
fn kinds_that_must_not_arrive_are_refused() {
    // 0 and 2 are MsgHup and MsgPropose of raft-rs; 10 to 12 its other words to itself.
    for kind in [0, 1, 2, 10, 11, 12, 19, -1, i32::MAX] {
        let raft = proto::RaftMessage {
            kind,
            term: 5,
            ..Default::default()
        };
        let wire = proto::PeerMessage {
            from: 1,
            to: 2,
            body: Some(peer_message::Body::Raft(raft)),
            ..Default::default()
        };
        let error = message_from_wire(wire).unwrap_err();
        assert!(
            matches!(error, WireError::UnknownValue { .. }),
            "{kind}: {error}"
        );
    }
}

#[test]
fn term_zero_is_a_local_word_and_does_not_arrive() {
    let zero = |kind| {
        message(Body::Raft(eraftpb::Message {
            term: 0,
            ..raft(kind)
        }))
    };
    assert!(matches!(
        over_the_wire(zero(MessageType::MsgAppend)),
        Err(WireError::Zero(_))
    ));
    assert!(matches!(
        over_the_wire(zero(MessageType::MsgHeartbeat)),
        Err(WireError::Zero(_))
    ));
    let transfer = zero(MessageType::MsgTransferLeader);
    assert_eq!(over_the_wire(transfer.clone()).unwrap(), transfer);
}

#[test]
fn a_read_has_one_context_and_no_term() {
    let with_term = eraftpb::Message {
        term: 5,
        ..read_index()
    };
    let without_context = eraftpb::Message {
        entries: Vec::new().into(),
        ..read_index()
    };
    for read in [with_term, without_context] {
        let error = over_the_wire(message(Body::Raft(read))).unwrap_err();
        assert!(matches!(error, WireError::Misplaced(_)), "{error}");
    }
}

#[test]
fn numbers_that_nobody_counts_to_do_not_arrive() {
    let spoils: [fn(&mut eraftpb::Message); 6] = [
        |message| message.term = u64::MAX,
        |message| message.index = u64::MAX - 3,
        |message| message.commit = u64::MAX,
        |message| message.commit_term = u64::MAX,
        |message| message.reject_hint = u64::MAX,
        |message| message.entries[2].term = u64::MAX,
    ];
    for spoil in spoils {
        let mut large = append();
        spoil(&mut large);
        let error = over_the_wire(message(Body::Raft(large))).unwrap_err();
        assert!(matches!(error, WireError::Misplaced(_)), "{error}");
    }
}

#[test]
fn an_append_that_hides_the_term_it_follows_does_not_arrive() {
    let hides = eraftpb::Message {
        log_term: 0,
        ..append()
    };
    let error = over_the_wire(message(Body::Raft(hides))).unwrap_err();
    assert!(matches!(error, WireError::Zero(_)), "{error}");
}

#[test]
fn an_append_with_a_gap_does_not_arrive() {
    let mut gap = append();
    gap.entries[1].index = 12;
    let error = over_the_wire(message(Body::Raft(gap))).unwrap_err();
    assert!(
        matches!(
            error,
            WireError::EntriesNotContiguous {
                after: 9,
                found: 12,
                expected: 11
            }
        ),
        "{error}"
    );
    let mut end = append();
    end.index = u64::MAX;
    assert!(matches!(
        over_the_wire(message(Body::Raft(end))),
        Err(WireError::Misplaced(_))
    ));
    let mut zero = append();
    zero.entries[0].term = 0;
    assert!(matches!(
        over_the_wire(message(Body::Raft(zero))),
        Err(WireError::Zero(_))
    ));
}
