//! What an entry of the log says. What this release does not know whole, it does not read at all: a replica that passed over
//! a kind or a field would go on with another state than those that know it.

use bytes::Bytes;
use prost::{DecodeError, Message};
use raft::eraftpb::{Entry, EntryType};

use crate::activation::{AbortReason, Decision};
use crate::deployment::Deployment;
use crate::form::Form;
use crate::id::LogIndex;
use crate::impasse::Impasse;
use crate::outcome::ChangeKind;
use crate::payload::{ChangeRecord, Elected, Item, Kind, Payload, Verdict};

/// What every entry with an order brings along.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stamp {
    /// The leader's wall clock.
    pub(crate) now: u64,
    /// Keys the random streams of the entry.
    pub(crate) entropy: [u8; 16],
}

/// What an entry does.
#[derive(Debug)]
pub(crate) enum Order {
    /// Of the membership, with its record.
    Change(ChangeKind, ChangeRecord),
    Commands(Vec<Item>),
    Elected(Elected),
    /// In this form; with the bytes of the last snapshot of the saved form, where the leader knew them.
    Barrier(Form, u64),
    Verdict(Verdict),
    Pause(bool),
    Activate(Deployment),
    /// No member can run a command, it seems.
    Impasse(Impasse),
    /// On the activation, or the impasse, of this index.
    Decide(LogIndex, Decision),
}

/// Why an entry, or the host's section of a snapshot, is not read.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Unreadable {
    /// It holds more than this release knows.
    #[error(
        "it holds {0} that this release does not know, so a newer release wrote it: install that release on this node and \
         start it again (nothing was passed over, and nothing is lost)"
    )]
    Unknown(String),
    /// It is none.
    #[error(
        "it is damaged, or of a newer release ({0}): install the release that the other nodes run and start this node again, \
         or remove this member and add it anew"
    )]
    Broken(String),
}

impl From<DecodeError> for Unreadable {
    fn from(error: DecodeError) -> Self {
        Self::Broken(error.to_string())
    }
}

/// Reads a message of which every field is known.
///
/// Prost drops unknown fields without a word. But whatever is dropped is missing from the length of what was read: no
/// encoding is shorter than prost's own, which leaves out what has its default and writes each number as short as can be.
pub(crate) fn whole<M: Message + Default>(bytes: Bytes) -> Result<M, Unreadable> {
    let length = bytes.len();
    let message = M::decode(bytes)?;
    if message.encoded_len() == length {
        Ok(message)
    } else {
        Err(Unreadable::Unknown("a field".to_owned()))
    }
}

/// Reads an entry; nothing if it is Raft's own and empty. What Raft's own encoding says of a change is not looked at: the
/// record in the context says it all, and no byte from the network goes through rust-protobuf.
pub(crate) fn read(entry: &Entry) -> Result<Option<(Stamp, Order)>, Unreadable> {
    match entry.entry_type {
        EntryType::EntryConfChange => {
            let record: ChangeRecord = whole(entry.context.clone())?;
            let kind = record.change_kind().ok_or_else(|| {
                Unreadable::Unknown(format!("a membership change of kind {}", record.kind))
            })?;
            let stamp = stamp(record.now, &record.entropy)?;
            Ok(Some((stamp, Order::Change(kind, record))))
        }
        EntryType::EntryConfChangeV2 => Err(Unreadable::Unknown(
            "a membership change of another form".to_owned(),
        )),
        EntryType::EntryNormal if !entry.context.is_empty() => {
            Err(Unreadable::Unknown("a context".to_owned()))
        }
        EntryType::EntryNormal if entry.data.is_empty() => Ok(None),
        EntryType::EntryNormal => {
            let payload: Payload = whole(entry.data.clone())?;
            let stamp = stamp(payload.now, &payload.entropy)?;
            Ok(Some((stamp, order(payload.kind)?)))
        }
    }
}

/// The verdict in an entry, if it holds one.
pub(crate) fn verdict(entry: &Entry) -> Option<Verdict> {
    match read(entry) {
        Ok(Some((_, Order::Verdict(verdict)))) => Some(verdict),
        _ => None,
    }
}

/// The decision in an entry, and the activation that it is on.
pub(crate) fn decision(entry: &Entry) -> Option<(LogIndex, Decision)> {
    match read(entry) {
        Ok(Some((_, Order::Decide(index, decision)))) => Some((index, decision)),
        _ => None,
    }
}

/// Whether an entry may be about an impasse. Looks at the key of its kind only, since every entry of the log is asked.
pub(crate) fn may_be_of_impasse(entry: &Entry) -> bool {
    /// Of `Confirm`, `Abort` and `Impasse` in [`Payload`]; those before are the stamp.
    const KINDS: std::ops::RangeInclusive<u32> = 9..=11;
    let mut rest = &entry.data[..];
    while entry.entry_type == EntryType::EntryNormal && !rest.is_empty() {
        match prost::encoding::decode_key(&mut rest) {
            Ok((tag, wire)) if tag < 3 => {
                let context = prost::encoding::DecodeContext::default();
                if prost::encoding::skip_field(wire, tag, &mut rest, context).is_err() {
                    return false;
                }
            }
            Ok((tag, _)) => return KINDS.contains(&tag),
            Err(_) => return false,
        }
    }
    false
}

/// Whether replicas may stop at an entry until a later one decides.
pub(crate) fn may_stop(entry: &Entry) -> bool {
    matches!(
        read(entry),
        Ok(Some((
            _,
            Order::Verdict(_) | Order::Activate(_) | Order::Impasse(_)
        )))
    )
}

fn stamp(now: u64, entropy: &[u8]) -> Result<Stamp, Unreadable> {
    let entropy = entropy.try_into().map_err(|_| {
        Unreadable::Unknown(format!("entropy of {} bytes instead of 16", entropy.len()))
    })?;
    Ok(Stamp { now, entropy })
}

fn order(kind: Option<Kind>) -> Result<Order, Unreadable> {
    Ok(match kind {
        Some(Kind::Commands(commands)) => {
            if commands.items.iter().any(|item| item.request().is_none()) {
                return Err(Unreadable::Unknown(
                    "a session's name that has not 16 bytes".to_owned(),
                ));
            }
            Order::Commands(commands.items)
        }
        Some(Kind::Elected(elected)) => Order::Elected(elected),
        Some(Kind::Barrier(barrier)) => {
            let form = Form::from_code(barrier.form).ok_or_else(|| {
                Unreadable::Unknown(format!("a barrier of form {}", barrier.form))
            })?;
            Order::Barrier(form, barrier.saved_bytes)
        }
        Some(Kind::Verdict(verdict)) => {
            let lengths = |hash: &Bytes, whole| hash.is_empty() || hash.len() == whole;
            let known = |report: &crate::payload::Report| {
                lengths(&report.snapshot, 32) && lengths(&report.chain, 16)
            };
            if !verdict.reports.iter().all(known) {
                return Err(Unreadable::Unknown("a hash of another length".to_owned()));
            }
            Order::Verdict(verdict)
        }
        Some(Kind::Pause(pause)) => Order::Pause(pause.on),
        Some(Kind::Activate(record)) => Order::Activate(record.read().ok_or_else(|| {
            Unreadable::Unknown(
                "a component's name that has not 32 bytes, limits of too many bytes, or another setting of barriers".to_owned(),
            )
        })?),
        Some(Kind::Confirm(confirm)) => Order::Decide(LogIndex(confirm.index), Decision::Confirmed),
        Some(Kind::Abort(abort)) => {
            let reason = AbortReason::from_code(abort.code).ok_or_else(|| {
                Unreadable::Unknown(format!("a reason of number {} to give up", abort.code))
            })?;
            Order::Decide(LogIndex(abort.index), Decision::Aborted(reason))
        }
        Some(Kind::Impasse(impasse)) => {
            let code = u8::try_from(impasse.code)
                .map_err(|_| Unreadable::Unknown(format!("an impasse of code {}", impasse.code)))?;
            Order::Impasse(Impasse {
                index: LogIndex(impasse.index),
                item: impasse.item,
                code,
            })
        }
        None => return Err(Unreadable::Unknown("an entry of a kind".to_owned())),
    })
}
