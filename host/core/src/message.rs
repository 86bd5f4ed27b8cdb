//! What replicas of one group say to each other, and how messages are batched for a node.

use std::collections::BTreeMap;

use bytes::Bytes;
use raft::eraftpb;
pub use skep_types::priority::Priority;

use crate::activation::Readiness;
use crate::attestation::Attestation;
use crate::id::{GroupId, Incarnation, NodeId, ReplicaId};
use crate::proposal::{Proposal, ProposalError, Response};
use crate::standing::Standing;

/// A message from one replica to another replica of the same group.
#[derive(Clone, PartialEq, Debug)]
pub struct PeerMessage {
    /// The group both belong to.
    pub group: GroupId,
    /// The life of the group both belong to; a message of another life is dropped.
    pub incarnation: Incarnation,
    /// Sending replica.
    pub from: ReplicaId,
    /// Receiving replica.
    pub to: ReplicaId,
    /// What is said.
    pub body: Body,
}

impl PeerMessage {
    /// Whether only a leader sends such a message.
    pub(crate) fn is_from_a_leader(&self) -> bool {
        use eraftpb::MessageType as Type;
        matches!(
            &self.body,
            Body::Raft(raft) if matches!(raft.msg_type, Type::MsgAppend | Type::MsgHeartbeat | Type::MsgSnapshot)
        )
    }
}

/// What one replica says to another.
#[derive(Clone, PartialEq, Debug)]
pub enum Body {
    /// A message of the Raft protocol. Never `MsgPropose` (followers forward with [`Body::Forward`], which is answered),
    /// never a local type, and `MsgSnapshot` only as the header of a snapshot transfer.
    Raft(eraftpb::Message),
    /// A follower hands proposals to the leader.
    Forward(Vec<Forward>),
    /// The leader answers forwarded proposals.
    Answer(Vec<Answer>),
    /// The receiver was removed from the group. Anybody can say so; it asks back ([`Body::AskStanding`]) before it deletes
    /// itself.
    Gone,
    /// The leader asks what the receiver has to say of barriers behind `after`.
    AskAttestations {
        /// Index of the newest barrier that it has spoken of.
        after: crate::id::LogIndex,
        /// To be shown again with the answer.
        nonce: u64,
    },
    /// What the sender says of barriers, in their order.
    Attestations {
        /// The number of the question.
        nonce: u64,
        /// One for each barrier.
        said: Vec<Attestation>,
    },
    /// The sender's machine is wrong; it asks the leader for a snapshot of a point behind `after`.
    AskSnapshot {
        /// Index of the last entry that its machine was given.
        after: crate::id::LogIndex,
    },
    /// How far the sender is with an activation.
    Readiness {
        /// Index of the activation.
        index: crate::id::LogIndex,
        /// How far it is.
        readiness: Readiness,
    },
    /// The sender asks how it stands with the receiver.
    AskStanding {
        /// To be shown again with the answer.
        nonce: u64,
    },
    /// How the receiver stands with the sender.
    Standing(Standing),
}

/// One proposal on its way to the leader.
#[derive(Clone, PartialEq, Debug)]
pub struct Forward {
    /// Chosen by the sender; comes back in the answer.
    pub token: u64,
    /// What is proposed.
    pub proposal: Proposal,
}

/// The leader's answer to one [`Forward`].
#[derive(Clone, PartialEq, Debug)]
pub struct Answer {
    /// The token of the forward.
    pub token: u64,
    /// What became of it.
    pub result: Result<Response, ProposalError>,
}

/// The messages of one priority from one node to another, of all groups (`Batch` of the seed package).
#[derive(Clone, PartialEq, Debug)]
pub struct Batch {
    /// Source node.
    pub from: NodeId,
    /// Destination node.
    pub to: NodeId,
    /// Priority of every message in here.
    pub priority: Priority,
    /// Messages of each group, in the order they were made.
    pub messages: BTreeMap<GroupId, Vec<PeerMessage>>,
}

impl Batch {
    /// Number of messages of all groups.
    pub fn len(&self) -> usize {
        self.messages.values().map(Vec::len).sum()
    }

    /// Whether the batch holds no message.
    pub fn is_empty(&self) -> bool {
        self.messages.values().all(Vec::is_empty)
    }
}

impl Body {
    /// The lane the message travels on.
    pub fn priority(&self) -> Priority {
        use eraftpb::MessageType as Type;
        match self {
            // `Gone` must not overtake the answer to the removal that it tells of.
            Self::Forward(_)
            | Self::Answer(_)
            | Self::Gone
            | Self::AskAttestations { .. }
            | Self::Attestations { .. }
            | Self::AskSnapshot { .. }
            | Self::AskStanding { .. }
            | Self::Standing(_)
            | Self::Readiness { .. } => Priority::Normal,
            Self::Raft(message) => match message.msg_type {
                Type::MsgSnapshot => Priority::Low,
                Type::MsgAppend | Type::MsgAppendResponse => Priority::Normal,
                _ => Priority::High,
            },
        }
    }

    /// Approximate bytes the message holds in memory and on the wire; what queues are bounded by.
    pub fn size(&self) -> usize {
        const FIXED: usize = 64;
        match self {
            Self::Gone
            | Self::AskAttestations { .. }
            | Self::AskSnapshot { .. }
            | Self::AskStanding { .. }
            | Self::Standing(_)
            | Self::Readiness { .. } => FIXED,
            Self::Attestations { said, .. } => FIXED + 2 * FIXED * said.len(),
            Self::Raft(message) => {
                let entries: usize = message
                    .entries
                    .iter()
                    .map(|entry| FIXED + entry.data.len() + entry.context.len())
                    .sum();
                let snapshot = message
                    .snapshot
                    .as_ref()
                    .map_or(0, |snapshot| snapshot.data.len());
                2 * FIXED + entries + message.context.len() + snapshot
            }
            Self::Forward(forwards) => {
                forwards
                    .iter()
                    .map(|forward| FIXED + forward.proposal.size())
                    .sum::<usize>()
                    + FIXED
            }
            Self::Answer(answers) => answers
                .iter()
                .map(|answer| {
                    2 * FIXED
                        + answer
                            .result
                            .as_ref()
                            .map_or(0, |response| response.outcome.size())
                })
                .sum::<usize>(),
        }
    }
}

/// What names a snapshot between replicas: the header of its transfer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SnapshotName {
    /// Index of the barrier entry the snapshot was taken at.
    pub index: crate::id::LogIndex,
    /// Term of that entry.
    pub term: crate::id::Term,
    /// sha256 of the snapshot file.
    pub digest: [u8; 32],
    /// Size of the snapshot file in bytes.
    pub size: u64,
}

/// A snapshot that has arrived and is durable on this node.
#[derive(Clone, PartialEq, Debug)]
pub struct ArrivedSnapshot {
    /// The `MsgSnapshot` that the transfer began with; its `data` is empty on the wire.
    pub message: PeerMessage,
    /// The file it became.
    pub name: SnapshotName,
    /// The host's section of the file: configuration and sessions at the index, see [`crate::state::HostState`].
    pub state: Bytes,
}

#[cfg(test)]
mod tests {
    use eraftpb::MessageType as Type;

    use super::*;

    #[test]
    fn what_keeps_a_leader_in_office_overtakes_what_is_large() {
        let priority = |msg_type| {
            Body::Raft(eraftpb::Message {
                msg_type,
                ..Default::default()
            })
            .priority()
        };
        for urgent in [
            Type::MsgHeartbeat,
            Type::MsgHeartbeatResponse,
            Type::MsgRequestVote,
            Type::MsgRequestVoteResponse,
            Type::MsgRequestPreVote,
            Type::MsgRequestPreVoteResponse,
            Type::MsgReadIndex,
            Type::MsgReadIndexResp,
            Type::MsgTimeoutNow,
        ] {
            assert_eq!(priority(urgent), Priority::High, "{urgent:?}");
        }
        assert_eq!(priority(Type::MsgAppend), Priority::Normal);
        assert_eq!(priority(Type::MsgAppendResponse), Priority::Normal);
        assert_eq!(priority(Type::MsgSnapshot), Priority::Low);
        // In one lane, so that a removal's answer is not overtaken by the news of it.
        assert_eq!(Body::Gone.priority(), Body::Answer(Vec::new()).priority());
    }
}
