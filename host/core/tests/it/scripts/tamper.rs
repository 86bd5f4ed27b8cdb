//! What no replica does: messages that nobody sent, disks that were written by nobody.

use bytes::Bytes;
use prost::Message as _;
use raft::eraftpb::{self, Entry, EntryType, MessageType};
use skep_core::id::{GroupId, Incarnation, NodeId, ReplicaId};
use skep_core::input::Input;
use skep_core::message::{Body, PeerMessage};
use skep_core::payload::ChangeRecord;

use super::stage::Stage;
use super::words::{Words, parse};

impl Stage {
    /// `inject FROM->TO kind term=… [fields]`: a message that nobody sent, at its receiver.
    pub fn inject(&mut self, words: &mut Words<'_>) -> Result<(), String> {
        let ends = words.next("FROM->TO")?;
        let (from, to) = ends.split_once("->").ok_or("FROM->TO is missing")?;
        let (from, to) = (parse("a node", from)?, parse("a node", to)?);
        let kind = words.next("a kind of message")?;
        let msg_type = [
            MessageType::MsgPropose,
            MessageType::MsgAppend,
            MessageType::MsgHeartbeat,
            MessageType::MsgRequestVote,
            MessageType::MsgReadIndex,
            MessageType::MsgSnapshot,
        ]
        .into_iter()
        .find(|known| format!("{known:?}") == kind)
        .ok_or_else(|| format!("a message `{kind}` cannot be injected"))?;
        let (from_replica, to_replica) = (
            words.key("from-replica")?.unwrap_or(from),
            words.key("to-replica")?.unwrap_or(to),
        );
        let entries = match words.plain.pop_front() {
            Some(text) => vec![Entry {
                data: text.as_bytes().to_vec().into(),
                index: words.key("entry-index")?.unwrap_or(0),
                term: words.key("entry-term")?.unwrap_or(0),
                ..Entry::default()
            }],
            None => Vec::new(),
        };
        let raft = eraftpb::Message {
            msg_type,
            from: words.key("says-from")?.unwrap_or(from_replica),
            to: to_replica,
            term: words.key("term")?.unwrap_or(0),
            commit: words.key("commit")?.unwrap_or(0),
            index: words.key("index")?.unwrap_or(0),
            log_term: words.key("log-term")?.unwrap_or(0),
            context: if words.key("forced")?.is_some() {
                Bytes::from_static(b"CampaignTransfer")
            } else {
                Bytes::new()
            },
            entries: entries.into(),
            ..eraftpb::Message::default()
        };
        let message = PeerMessage {
            group: GroupId(words.key("group")?.unwrap_or(1)),
            incarnation: Incarnation(words.key("incarnation")?.unwrap_or(1)),
            from: ReplicaId(from_replica),
            to: ReplicaId(to_replica),
            body: Body::Raft(raft),
        };
        self.input(
            to,
            Input::Message {
                from: NodeId(from),
                message,
            },
        )
    }

    /// `write-change NODE remove n r`: a change behind the last entry of a disk, as no leader would propose it.
    pub fn write_change(&mut self, words: &mut Words<'_>) -> Result<(), String> {
        let id = words.number("a node")?;
        let kind = match words.next("`add-voter` or `remove`")? {
            "add-voter" => 0,
            "remove" => 3,
            other => return Err(format!("`{other}` is no change")),
        };
        let record = ChangeRecord {
            kind,
            node: words.number("a node")?,
            replica: words.number("a replica")?,
            entropy: Bytes::from_static(&[0; 16]),
            ..ChangeRecord::default()
        };
        let disk = &mut self.node(id)?.disk;
        let last = disk.entries.last().ok_or("the disk is empty")?;
        let entry = Entry {
            entry_type: EntryType::EntryConfChange,
            term: last.term,
            index: last.index + 1,
            context: record.encode_to_vec().into(),
            ..Entry::default()
        };
        disk.entries.push(entry);
        Ok(())
    }
}
