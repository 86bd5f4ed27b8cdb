//! What nodes say to each other, as the words of `skep-core`: the messages of `skep-wire` and back, by moving fields. What a
//! replica keeps, which is entries and commands, gets memory of its own ([`own`](skep_wire::codec::own)).
//!
//! A byte from the network is only ever parsed by prost, never by the protobuf library inside raft-rs.

mod past;
mod raft_message;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use raft::eraftpb::MessageType;
use skep_core::activation::Readiness;
use skep_core::attestation::Attestation;
use skep_core::founders::{
    ClusterIdentity, FORMER_MAX, FOUNDERS_MAX, Founding, Recovery, Statement,
};
use skep_core::id::{GroupId, Incarnation, LogIndex, NodeId, ReplicaId, Term};
use skep_core::impasse::{Impasse, Word};
use skep_core::message::{Answer, Batch, Body, Forward, PeerMessage, Priority, SnapshotName};
use skep_core::past::Past;
use skep_core::standing::Standing;
use skep_wire::codec::fixed;
use skep_wire::proto::{self, Lane, answer, peer_frame, peer_message};
use skep_wire::{PEER_PROTOCOL, WireError};

pub use past::{past_from_wire, past_to_wire};

/// How the dialling node introduces itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hello {
    /// Version of the protocol it speaks.
    pub protocol: u32,
    /// The cluster it belongs to.
    pub cluster: String,
    /// Who it is.
    pub from: NodeId,
    /// Whom it means to speak to.
    pub to: NodeId,
    /// UUID of its store.
    pub store: [u8; 16],
    /// What the connection is for.
    pub purpose: Purpose,
    /// Identity of the cluster it belongs to; a founder belongs to none.
    pub identity: Option<ClusterIdentity>,
    /// Whom the list of a founder names.
    pub list: BTreeSet<NodeId>,
    /// What its store says of itself.
    pub past: Past,
}

/// What a connection is for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Purpose {
    /// What has one priority, from the side that dialled: batches, or, if the priority is low, one snapshot transfer (an
    /// offer, its answer, the chunks, and whether it arrived).
    Lane(Priority),
    /// Requests from the side that dialled, and their answers.
    Requests,
    /// A founder asks for the listener's statement about the founding of a cluster, which takes the place of a welcome.
    Founding,
}

fn impasse(impasse: proto::Impasse) -> Result<Impasse, WireError> {
    let code = u8::try_from(impasse.code)
        .map_err(|_| WireError::unknown("code of an impasse", i64::from(impasse.code)))?;
    Ok(Impasse {
        index: LogIndex(impasse.index),
        item: impasse.item,
        code,
    })
}

impl From<Hello> for proto::Hello {
    fn from(hello: Hello) -> Self {
        Self {
            protocol: hello.protocol,
            cluster: hello.cluster,
            from: hello.from.0,
            to: hello.to.0,
            store: Bytes::copy_from_slice(&hello.store),
            lane: match hello.purpose {
                Purpose::Lane(priority) => lane(priority),
                Purpose::Requests => Lane::Requests,
                Purpose::Founding => Lane::Founding,
            }
            .into(),
            identity: identity_to_wire(hello.identity),
            list: hello.list.iter().map(|node| node.0).collect(),
            past: Some(past_to_wire(&hello.past)),
        }
    }
}

impl TryFrom<proto::Hello> for Hello {
    type Error = WireError;

    fn try_from(hello: proto::Hello) -> Result<Self, WireError> {
        if hello.protocol != PEER_PROTOCOL {
            return Err(WireError::unknown(
                "version of the peer protocol",
                hello.protocol,
            ));
        }
        let purpose = match Lane::try_from(hello.lane) {
            Ok(Lane::Requests) => Purpose::Requests,
            Ok(Lane::Founding) => Purpose::Founding,
            _ => Purpose::Lane(priority(hello.lane)?),
        };
        let identity = identity_from_wire(&hello.identity)?;
        if identity.is_none() && purpose != Purpose::Founding {
            return Err(WireError::Missing("identity of the cluster"));
        }
        Ok(Self {
            protocol: hello.protocol,
            cluster: hello.cluster,
            from: node(hello.from, "the dialling node's id")?,
            to: node(hello.to, "the listening node's id")?,
            store: fixed("a store UUID", &hello.store)?,
            purpose,
            identity,
            list: list_from_wire(&hello.list)?,
            past: past_from_wire(hello.past)?,
        })
    }
}

/// Turns a statement about the founding of a cluster into what is sent.
pub fn statement_to_wire(statement: Statement) -> proto::Statement {
    let founded = statement.founded.map(|founding| proto::Founding {
        cluster: founding.cluster.clone(),
        incarnation: founding.incarnation,
        founders: founding
            .founders
            .iter()
            .map(|(node, store)| proto::Founder {
                node: node.0,
                store: Bytes::copy_from_slice(store),
            })
            .collect(),
        plan: founding
            .recovery
            .as_ref()
            .map_or_else(Bytes::new, |of| Bytes::copy_from_slice(&of.plan)),
        former: founding
            .former()
            .iter()
            .map(|former| Bytes::copy_from_slice(&former.0))
            .collect(),
    });
    proto::Statement {
        store: Bytes::copy_from_slice(&statement.store),
        list: statement.list.iter().map(|node| node.0).collect(),
        agrees: identity_to_wire(statement.agrees),
        founded,
    }
}

/// Understands a statement about the founding of a cluster.
///
/// # Errors
/// If it makes no sense.
pub fn statement_from_wire(statement: proto::Statement) -> Result<Statement, WireError> {
    Ok(Statement {
        store: store_uuid(&statement.store)?,
        list: list_from_wire(&statement.list)?,
        agrees: identity_from_wire(&statement.agrees)?,
        founded: statement.founded.map(founding_from_wire).transpose()?,
    })
}

fn founding_from_wire(founding: proto::Founding) -> Result<Founding, WireError> {
    if founding.founders.len() > FOUNDERS_MAX {
        return Err(TOO_MANY_FOUNDERS);
    }
    let founder = |founder: proto::Founder| {
        let id = node(founder.node, "the id of a founder")?;
        Ok::<_, WireError>((id, store_uuid(&founder.store)?))
    };
    if founding.former.len() > FORMER_MAX {
        return Err(WireError::Misplaced(
            "there are more former identities than a cluster remembers",
        ));
    }
    let former = founding.former.iter();
    let former = former.map(|former| fixed("a former identity", former).map(ClusterIdentity));
    let former = former.collect::<Result<Vec<_>, _>>()?;
    let recovery = match founding.plan.is_empty() {
        true => None,
        false => Some(Recovery {
            plan: fixed("the digest of a plan", &founding.plan)?,
            former,
        }),
    };
    Ok(Founding {
        cluster: founding.cluster,
        incarnation: founding.incarnation,
        recovery,
        founders: founding
            .founders
            .into_iter()
            .map(founder)
            .collect::<Result<_, _>>()?,
    })
}

const TOO_MANY_FOUNDERS: WireError =
    WireError::Misplaced("there are more founders than a cluster may have");

fn list_from_wire(list: &[u64]) -> Result<BTreeSet<NodeId>, WireError> {
    if list.len() > FOUNDERS_MAX {
        return Err(TOO_MANY_FOUNDERS);
    }
    let named = list.iter().map(|id| node(*id, "the id of a founder"));
    named.collect()
}

fn identity_to_wire(identity: Option<ClusterIdentity>) -> Bytes {
    identity.map_or_else(Bytes::new, |identity| Bytes::copy_from_slice(&identity.0))
}

fn identity_from_wire(bytes: &[u8]) -> Result<Option<ClusterIdentity>, WireError> {
    let some = (!bytes.is_empty()).then(|| fixed("a cluster's identity", bytes));
    Ok(some.transpose()?.map(ClusterIdentity))
}

/// Turns a batch into what is sent. A message that must not travel is left out and its error pushed to `refused`, so
/// that one group's mistake costs no other group a message.
pub fn batch_to_wire(batch: Batch, refused: &mut Vec<WireError>) -> proto::Batch {
    let mut messages = Vec::with_capacity(batch.len());
    for message in batch.messages.into_values().flatten() {
        match batched(message).and_then(message_to_wire) {
            Ok(message) => messages.push(message),
            Err(error) => refused.push(error),
        }
    }
    proto::Batch {
        from: batch.from.0,
        to: batch.to.0,
        lane: lane(batch.priority).into(),
        messages,
        durable: 0,
    }
}

/// Understands a batch. A message that makes no sense is left out and its error pushed to `refused`, so that one group's
/// mistake costs no other group a message.
///
/// # Errors
/// If the envelope makes no sense.
pub fn batch_from_wire(
    batch: proto::Batch,
    refused: &mut Vec<WireError>,
) -> Result<Batch, WireError> {
    let mut messages = BTreeMap::<_, Vec<_>>::new();
    for message in batch.messages {
        match message_from_wire(message).and_then(batched) {
            Ok(message) => messages.entry(message.group).or_default().push(message),
            Err(error) => refused.push(error),
        }
    }
    Ok(Batch {
        from: node(batch.from, "the sending node's id")?,
        to: node(batch.to, "the receiving node's id")?,
        priority: priority(batch.lane)?,
        messages,
    })
}

fn batched(message: PeerMessage) -> Result<PeerMessage, WireError> {
    if is_snapshot(&message) {
        return Err(WireError::Misplaced(
            "a snapshot header stands in a batch instead of an offer",
        ));
    }
    Ok(message)
}

/// Turns one message into what is sent.
///
/// # Errors
/// [`WireError::Misplaced`] if it is of a kind that must not travel.
pub fn message_to_wire(message: PeerMessage) -> Result<proto::PeerMessage, WireError> {
    let body = match message.body {
        Body::Raft(message) => peer_message::Body::Raft(raft_message::to_wire(message)?),
        Body::Gone => peer_message::Body::Gone(proto::Nothing {}),
        Body::AskAttestations { after, nonce } => {
            peer_message::Body::AskAttestations(proto::AskAttestations {
                after: after.0,
                nonce,
            })
        }
        Body::AskSnapshot { after } => peer_message::Body::AskSnapshot(after.0),
        Body::Readiness { index, readiness } => peer_message::Body::Readiness(proto::Readiness {
            index: index.0,
            code: readiness.code(),
        }),
        Body::Attestations { nonce, said } => {
            peer_message::Body::Attestations(proto::Attestations {
                attestations: said.iter().map(attestation_to_wire).collect(),
                nonce,
            })
        }
        Body::AskStanding { nonce } => peer_message::Body::AskStanding(nonce),
        Body::Standing(standing) => peer_message::Body::Standing(proto::Standing {
            nonce: standing.nonce,
            term: standing.term.0,
            member: standing.member,
            removed: standing.removed,
            matched: standing.matched.0,
            well: standing.well,
            stopped: standing.word.stopped.map(|impasse| proto::Impasse {
                index: impasse.index.0,
                item: impasse.item,
                code: u32::from(impasse.code),
            }),
            waits: standing.word.waits.0,
        }),
        Body::Forward(forwards) => peer_message::Body::Forwards(proto::Forwards {
            forwards: forwards
                .into_iter()
                .map(|forward| proto::Forward {
                    token: forward.token,
                    proposal: Some(forward.proposal.into()),
                })
                .collect(),
        }),
        Body::Answer(answers) => peer_message::Body::Answers(proto::Answers {
            answers: answers
                .into_iter()
                .map(|answer| proto::Answer {
                    token: answer.token,
                    result: Some(match answer.result {
                        Ok(response) => answer::Result::Response(response.into()),
                        Err(error) => answer::Result::Error(error.into()),
                    }),
                })
                .collect(),
        }),
    };
    Ok(proto::PeerMessage {
        group: message.group.0,
        incarnation: message.incarnation.0,
        from: message.from.0,
        to: message.to.0,
        body: Some(body),
    })
}

/// Understands one message.
///
/// # Errors
/// If it makes no sense.
pub fn message_from_wire(message: proto::PeerMessage) -> Result<PeerMessage, WireError> {
    let body = match message
        .body
        .ok_or(WireError::Missing("body of a message"))?
    {
        peer_message::Body::Raft(raft) => {
            Body::Raft(raft_message::from_wire(raft, message.from, message.to)?)
        }
        peer_message::Body::Gone(_) => Body::Gone,
        peer_message::Body::AskAttestations(asked) => Body::AskAttestations {
            after: LogIndex(asked.after),
            nonce: asked.nonce,
        },
        peer_message::Body::AskSnapshot(after) => Body::AskSnapshot {
            after: LogIndex(after),
        },
        peer_message::Body::Readiness(said) => Body::Readiness {
            index: LogIndex(said.index),
            readiness: Readiness::from_code(said.code)
                .ok_or(WireError::unknown("readiness for an activation", said.code))?,
        },
        peer_message::Body::Attestations(said) => Body::Attestations {
            nonce: said.nonce,
            said: said
                .attestations
                .into_iter()
                .map(attestation_from_wire)
                .collect::<Result<_, _>>()?,
        },
        peer_message::Body::AskStanding(nonce) => Body::AskStanding { nonce },
        peer_message::Body::Standing(standing) => Body::Standing(Standing {
            nonce: standing.nonce,
            term: Term(standing.term),
            member: standing.member,
            removed: standing.removed,
            matched: LogIndex(standing.matched),
            well: standing.well,
            word: Word {
                stopped: standing.stopped.map(impasse).transpose()?,
                waits: LogIndex(standing.waits),
            },
        }),
        peer_message::Body::Forwards(forwards) => Body::Forward(
            forwards
                .forwards
                .into_iter()
                .map(forward_from_wire)
                .collect::<Result<_, _>>()?,
        ),
        peer_message::Body::Answers(answers) => Body::Answer(
            answers
                .answers
                .into_iter()
                .map(answer_from_wire)
                .collect::<Result<_, _>>()?,
        ),
    };
    if message.to == 0 || message.from == 0 {
        return Err(WireError::Zero("the id of a message's replica"));
    }
    Ok(PeerMessage {
        group: GroupId(message.group),
        incarnation: Incarnation(message.incarnation),
        from: ReplicaId(message.from),
        to: ReplicaId(message.to),
        body,
    })
}

fn attestation_to_wire(said: &Attestation) -> proto::Attestation {
    fn bytes<const N: usize>(hash: Option<[u8; N]>) -> Bytes {
        hash.map_or_else(Bytes::new, |hash| Bytes::copy_from_slice(&hash))
    }
    proto::Attestation {
        index: said.index.0,
        snapshot: bytes(said.snapshot),
        chain: bytes(said.chain),
        unable: said.unable,
    }
}

fn attestation_from_wire(said: proto::Attestation) -> Result<Attestation, WireError> {
    fn hash<const N: usize>(
        bytes: &[u8],
        what: &'static str,
    ) -> Result<Option<[u8; N]>, WireError> {
        (!bytes.is_empty()).then(|| fixed(what, bytes)).transpose()
    }
    Ok(Attestation {
        index: LogIndex(said.index),
        snapshot: hash(&said.snapshot, "the digest of an attested snapshot")?,
        chain: hash(&said.chain, "the chain of an attestation")?,
        unable: said.unable,
    })
}

fn forward_from_wire(forward: proto::Forward) -> Result<Forward, WireError> {
    let proposal = forward
        .proposal
        .ok_or(WireError::Missing("forwarded proposal"))?;
    Ok(Forward {
        token: forward.token,
        proposal: proposal.try_into()?,
    })
}

fn answer_from_wire(answer: proto::Answer) -> Result<Answer, WireError> {
    let result = match answer
        .result
        .ok_or(WireError::Missing("result of an answer"))?
    {
        answer::Result::Response(response) => Ok(response.try_into()?),
        answer::Result::Error(error) => Err(error.try_into()?),
    };
    Ok(Answer {
        token: answer.token,
        result,
    })
}

/// A snapshot that a node offers to send.
#[derive(Clone, PartialEq, Debug)]
pub struct SnapshotOffer {
    /// Names the transfer on its connection.
    pub transfer: u64,
    /// The `MsgSnapshot`; its `data` is empty.
    pub message: PeerMessage,
    /// The file.
    pub name: SnapshotName,
}

impl SnapshotOffer {
    /// Turns the offer into what is sent.
    ///
    /// # Errors
    /// [`WireError::Misplaced`] if the message is no `MsgSnapshot`.
    pub fn into_wire(self) -> Result<proto::SnapshotOffer, WireError> {
        only_snapshot(&self.message)?;
        Ok(proto::SnapshotOffer {
            transfer: self.transfer,
            message: Some(message_to_wire(self.message)?),
            name: Some(proto::SnapshotName {
                index: self.name.index.0,
                term: self.name.term.0,
                digest: Bytes::copy_from_slice(&self.name.digest),
                size: self.name.size,
            }),
        })
    }
}

impl TryFrom<proto::SnapshotOffer> for SnapshotOffer {
    type Error = WireError;

    fn try_from(offer: proto::SnapshotOffer) -> Result<Self, WireError> {
        let message = message_from_wire(
            offer
                .message
                .ok_or(WireError::Missing("header of a snapshot"))?,
        )?;
        only_snapshot(&message)?;
        let name = offer.name.ok_or(WireError::Missing("name of a snapshot"))?;
        if name.index == 0 || name.term == 0 || name.size == 0 {
            return Err(WireError::Zero(
                "the index, the term or the size of a snapshot",
            ));
        }
        Ok(Self {
            transfer: offer.transfer,
            message,
            name: SnapshotName {
                index: LogIndex(name.index),
                term: Term(name.term),
                digest: fixed("the digest of a snapshot", &name.digest)?,
                size: name.size,
            },
        })
    }
}

/// Wraps a body into a frame.
pub fn frame(body: peer_frame::Body) -> proto::PeerFrame {
    proto::PeerFrame { body: Some(body) }
}

/// Reads a store UUID.
///
/// # Errors
/// [`WireError::BadLength`].
pub fn store_uuid(bytes: &[u8]) -> Result<[u8; 16], WireError> {
    fixed("a store UUID", bytes)
}

fn only_snapshot(message: &PeerMessage) -> Result<(), WireError> {
    if is_snapshot(message) {
        return Ok(());
    }
    Err(WireError::Misplaced(
        "the header of a snapshot transfer is not a MsgSnapshot",
    ))
}

fn is_snapshot(message: &PeerMessage) -> bool {
    matches!(&message.body, Body::Raft(raft) if raft.msg_type == MessageType::MsgSnapshot)
}

fn lane(priority: Priority) -> Lane {
    match priority {
        Priority::Low => Lane::Low,
        Priority::Normal => Lane::Normal,
        Priority::High => Lane::High,
    }
}

fn priority(lane: i32) -> Result<Priority, WireError> {
    match Lane::try_from(lane) {
        Ok(Lane::Low) => Ok(Priority::Low),
        Ok(Lane::Normal) => Ok(Priority::Normal),
        Ok(Lane::High) => Ok(Priority::High),
        Ok(Lane::Unspecified | Lane::Requests | Lane::Founding) | Err(_) => {
            Err(WireError::unknown("lane", lane))
        }
    }
}

fn node(id: u64, what: &'static str) -> Result<NodeId, WireError> {
    if id == 0 {
        Err(WireError::Zero(what))
    } else {
        Ok(NodeId(id))
    }
}
