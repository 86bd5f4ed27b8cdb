//! Messages of the Raft protocol.

use raft::eraftpb::{self, EntryType, MessageType};
use skep_wire::WireError;
use skep_wire::codec::own;
use skep_wire::proto::{self, RaftKind as Kind};

/// The largest term or index: no group counts so far, and whoever adds to a smaller one does not overflow.
const NUMBER_MAX: u64 = u64::MAX >> 1;

/// The kinds of message that travel.
const KINDS: [(MessageType, Kind); 13] = [
    (MessageType::MsgAppend, Kind::Append),
    (MessageType::MsgAppendResponse, Kind::AppendResponse),
    (MessageType::MsgRequestVote, Kind::RequestVote),
    (
        MessageType::MsgRequestVoteResponse,
        Kind::RequestVoteResponse,
    ),
    (MessageType::MsgSnapshot, Kind::Snapshot),
    (MessageType::MsgHeartbeat, Kind::Heartbeat),
    (MessageType::MsgHeartbeatResponse, Kind::HeartbeatResponse),
    (MessageType::MsgTransferLeader, Kind::TransferLeader),
    (MessageType::MsgTimeoutNow, Kind::TimeoutNow),
    (MessageType::MsgReadIndex, Kind::ReadIndex),
    (MessageType::MsgReadIndexResp, Kind::ReadIndexResponse),
    (MessageType::MsgRequestPreVote, Kind::RequestPreVote),
    (
        MessageType::MsgRequestPreVoteResponse,
        Kind::RequestPreVoteResponse,
    ),
];

/// Turns a message of raft-rs into what is sent. Its sender and receiver are not in it: they are those of the
/// `PeerMessage` around it.
///
/// # Errors
/// [`WireError::Misplaced`] for a kind that must not travel.
pub(crate) fn to_wire(message: eraftpb::Message) -> Result<proto::RaftMessage, WireError> {
    let known = KINDS.iter().find(|(ours, _)| *ours == message.msg_type);
    let Some((_, kind)) = known else {
        return Err(WireError::Misplaced(match message.msg_type {
            MessageType::MsgPropose => {
                "a MsgPropose must not travel: proposals are forwarded with an answer"
            }
            _ => "a replica's message to itself must not travel",
        }));
    };
    Ok(proto::RaftMessage {
        kind: (*kind).into(),
        term: message.term,
        log_term: message.log_term,
        index: message.index,
        entries: message
            .entries
            .into_vec()
            .into_iter()
            .map(entry_to_wire)
            .collect(),
        commit: message.commit,
        commit_term: message.commit_term,
        snapshot: message.snapshot.into_option().map(snapshot_to_wire),
        request_snapshot: message.request_snapshot,
        reject: message.reject,
        reject_hint: message.reject_hint,
        context: message.context,
        deprecated_priority: message.deprecated_priority,
        priority: message.priority,
    })
}

/// Understands a message from the replica `from` to the replica `to`.
///
/// # Errors
/// For whatever raft-rs must not be shown: an unknown kind, term 0 where it would be taken for the replica's own word and
/// another one where it panics, numbers that would overflow, a gap before or between the entries of an append, a read
/// without its one context, a snapshot without metadata.
pub(crate) fn from_wire(
    message: proto::RaftMessage,
    from: u64,
    to: u64,
) -> Result<eraftpb::Message, WireError> {
    let known = KINDS
        .iter()
        .find(|(_, theirs)| i32::from(*theirs) == message.kind);
    let (msg_type, _) =
        *known.ok_or_else(|| WireError::unknown("kind of Raft message", message.kind))?;
    // raft-rs takes term 0 for a message of its own replica and skips every check of the term; it sends only these two
    // without one.
    if message.term == 0
        && !matches!(
            msg_type,
            MessageType::MsgTransferLeader | MessageType::MsgReadIndex
        )
    {
        return Err(WireError::Zero("the term of a Raft message"));
    }
    countable(&message)?;
    match msg_type {
        MessageType::MsgAppend => contiguous(&message)?,
        MessageType::MsgReadIndex if message.term != 0 || message.entries.len() != 1 => {
            return Err(WireError::Misplaced(
                "a question for a read index has a term, or not exactly one context",
            ));
        }
        _ => {}
    }
    let snapshot = message.snapshot.map(snapshot_from_wire).transpose()?;
    if (msg_type == MessageType::MsgSnapshot) != snapshot.is_some() {
        return Err(WireError::Misplaced(
            "a snapshot header stands in a message of another kind, or is missing",
        ));
    }
    Ok(eraftpb::Message {
        msg_type,
        to,
        from,
        term: message.term,
        log_term: message.log_term,
        index: message.index,
        entries: message
            .entries
            .into_iter()
            .map(entry_from_wire)
            .collect::<Result<Vec<_>, _>>()?
            .into(),
        commit: message.commit,
        commit_term: message.commit_term,
        snapshot: snapshot.into(),
        request_snapshot: message.request_snapshot,
        reject: message.reject,
        reject_hint: message.reject_hint,
        context: own(&message.context),
        deprecated_priority: message.deprecated_priority,
        priority: message.priority,
        ..Default::default()
    })
}

fn countable(message: &proto::RaftMessage) -> Result<(), WireError> {
    let metadata = message
        .snapshot
        .as_ref()
        .and_then(|snapshot| snapshot.metadata.as_ref());
    let numbers = [
        message.term,
        message.log_term,
        message.index,
        message.commit,
        message.commit_term,
        message.request_snapshot,
        message.reject_hint,
        metadata.map_or(0, |metadata| metadata.index.max(metadata.term)),
    ];
    let entries = message
        .entries
        .iter()
        .map(|entry| entry.index.max(entry.term));
    if entries.chain(numbers).any(|number| number > NUMBER_MAX) {
        return Err(WireError::Misplaced(
            "a term or an index is larger than any group can have",
        ));
    }
    Ok(())
}

fn contiguous(append: &proto::RaftMessage) -> Result<(), WireError> {
    // raft-rs answers 0 for the term of an entry that it does not have, and would take the two for a match.
    if append.index != 0 && append.log_term == 0 {
        return Err(WireError::Zero(
            "the term of the entry that an append follows",
        ));
    }
    let mut last = append.index;
    for entry in &append.entries {
        let expected = last + 1;
        if entry.index != expected {
            return Err(WireError::EntriesNotContiguous {
                after: append.index,
                found: entry.index,
                expected,
            });
        }
        if entry.term == 0 {
            return Err(WireError::Zero("the term of an entry"));
        }
        last = expected;
    }
    Ok(())
}

fn entry_to_wire(entry: eraftpb::Entry) -> proto::Entry {
    let kind = match entry.entry_type {
        EntryType::EntryNormal => proto::EntryKind::Normal,
        EntryType::EntryConfChange => proto::EntryKind::ConfChange,
        EntryType::EntryConfChangeV2 => proto::EntryKind::ConfChangeV2,
    };
    proto::Entry {
        kind: kind.into(),
        term: entry.term,
        index: entry.index,
        data: entry.data,
        context: entry.context,
        sync_log: entry.sync_log,
    }
}

fn entry_from_wire(entry: proto::Entry) -> Result<eraftpb::Entry, WireError> {
    let entry_type = match proto::EntryKind::try_from(entry.kind) {
        Ok(proto::EntryKind::Normal) => EntryType::EntryNormal,
        Ok(proto::EntryKind::ConfChange) => EntryType::EntryConfChange,
        Ok(proto::EntryKind::ConfChangeV2) => EntryType::EntryConfChangeV2,
        Err(_) => {
            return Err(WireError::unknown("kind of entry", entry.kind));
        }
    };
    Ok(eraftpb::Entry {
        entry_type,
        term: entry.term,
        index: entry.index,
        data: own(&entry.data),
        context: own(&entry.context),
        sync_log: entry.sync_log,
        ..Default::default()
    })
}

fn snapshot_to_wire(snapshot: eraftpb::Snapshot) -> proto::RaftSnapshot {
    let metadata = snapshot
        .metadata
        .into_option()
        .map(|metadata| proto::SnapshotMetadata {
            conf_state: metadata
                .conf_state
                .into_option()
                .map(|state| proto::ConfState {
                    voters: state.voters,
                    learners: state.learners,
                    voters_outgoing: state.voters_outgoing,
                    learners_next: state.learners_next,
                    auto_leave: state.auto_leave,
                }),
            index: metadata.index,
            term: metadata.term,
        });
    proto::RaftSnapshot {
        data: snapshot.data,
        metadata,
    }
}

fn snapshot_from_wire(snapshot: proto::RaftSnapshot) -> Result<eraftpb::Snapshot, WireError> {
    let metadata = snapshot
        .metadata
        .ok_or(WireError::Missing("snapshot metadata"))?;
    let state = metadata
        .conf_state
        .ok_or(WireError::Missing("configuration of the snapshot"))?;
    if metadata.index == 0 || metadata.term == 0 {
        return Err(WireError::Zero("the index or the term of a snapshot"));
    }
    let conf_state = eraftpb::ConfState {
        voters: state.voters,
        learners: state.learners,
        voters_outgoing: state.voters_outgoing,
        learners_next: state.learners_next,
        auto_leave: state.auto_leave,
        ..Default::default()
    };
    let metadata = eraftpb::SnapshotMetadata {
        conf_state: Some(conf_state).into(),
        index: metadata.index,
        term: metadata.term,
        ..Default::default()
    };
    Ok(eraftpb::Snapshot {
        data: own(&snapshot.data),
        metadata: Some(metadata).into(),
        ..Default::default()
    })
}
