//! The commands that begin with `bare`: raft-rs by itself, driven as its own documentation says, so that a script can
//! show what the core has to guard against. When a release of raft-rs mends a defect, its script goes red.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};

use raft::eraftpb::{
    ConfChange, ConfChangeType, ConfState, Entry, EntryType, HardState, Message, MessageType,
};
use raft::storage::MemStorage;
use raft::{RawNode, ReadOnlyOption};

use super::show::{self, Names};
use super::stage::Lines;
use super::words::Words;

/// Rounds after which a group that still moves is taken to move for ever.
const ROUNDS_MAX: usize = 1_000;

/// Nodes that run raft-rs and nothing else.
pub struct Bare {
    nodes: BTreeMap<u64, Node>,
    network: VecDeque<Message>,
    cut: BTreeSet<(u64, u64)>,
    /// Messages of a node that are lost, by their kind.
    blocked: BTreeSet<(u64, String)>,
    names: Names,
    conf: ConfState,
    reads: ReadOnlyOption,
}

impl Default for Bare {
    fn default() -> Self {
        Self {
            nodes: BTreeMap::new(),
            network: VecDeque::new(),
            cut: BTreeSet::new(),
            blocked: BTreeSet::new(),
            names: Names::plain(),
            conf: ConfState::default(),
            reads: ReadOnlyOption::Safe,
        }
    }
}

struct Node {
    raft: Option<RawNode<MemStorage>>,
    /// What is left after a crash.
    hard_state: HardState,
    entries: Vec<Entry>,
    unsynced: VecDeque<Unsynced>,
    /// What the node has applied since it started.
    applied: Vec<String>,
}

struct Unsynced {
    number: u64,
    hard_state: Option<HardState>,
    entries: Vec<Entry>,
    then: Vec<Message>,
}

impl Bare {
    pub fn command(&mut self, line: &str) -> Lines {
        let (name, rest) = line.split_once(' ').unwrap_or((line, ""));
        let mut words = Words::new(rest);
        let lines = self.run(name, &mut words)?;
        words.end()?;
        Ok(lines)
    }

    fn run(&mut self, name: &str, words: &mut Words<'_>) -> Lines {
        match name {
            "cluster" => self.cluster(words)?,
            "isolate" => {
                let node = words.number("a node")?;
                let others = self.nodes.keys().filter(|other| **other != node);
                self.cut
                    .extend(others.map(|other| (node.min(*other), node.max(*other))));
            }
            "heal" => self.cut.clear(),
            "block" => {
                let node = words.number("a node")?;
                self.blocked
                    .insert((node, words.next("a kind of message")?.to_owned()));
            }
            "unblock" => self.blocked.clear(),
            // Ticks of all nodes, each followed by all that comes of it.
            "pass" => {
                let mut lines = Vec::new();
                for _ in 0..words.number("ticks")? {
                    for id in self.nodes.keys().copied().collect::<Vec<_>>() {
                        if self.nodes[&id].raft.is_some() {
                            lines.extend(self.call(id, |raft| {
                                raft.tick();
                                Ok(())
                            })?);
                        }
                    }
                    self.settle(&mut lines)?;
                }
                return Ok(lines);
            }
            "settle" => {
                let mut lines = Vec::new();
                self.settle(&mut lines)?;
                return Ok(lines);
            }
            "deliver" | "lose" => {
                let mut lines = Vec::new();
                let chosen: Vec<_> = self.network.drain(..).collect();
                for message in chosen {
                    self.deliver(message, name == "lose", &mut lines)?;
                }
                return Ok(lines);
            }
            _ => return self.run_at(name, words),
        }
        Ok(Vec::new())
    }

    /// A command about one node.
    fn run_at(&mut self, name: &str, words: &mut Words<'_>) -> Lines {
        let id = words.number("a node")?;
        let mut lines = Vec::new();
        match name {
            "campaign" => lines.extend(self.call(id, |raft| raft.campaign())?),
            "tick" => {
                for _ in 0..words.key("times")?.unwrap_or(1) {
                    lines.extend(self.call(id, |raft| {
                        raft.tick();
                        Ok(())
                    })?);
                }
            }
            "propose" => {
                let data = words.next("a command")?.as_bytes().to_vec();
                lines.extend(self.call(id, |raft| raft.propose(Vec::new(), data))?);
            }
            "read" => {
                let context = words.next("a context")?.as_bytes().to_vec();
                lines.extend(self.call(id, |raft| {
                    raft.read_index(context);
                    Ok(())
                })?);
            }
            "change" => {
                let what = words.next("`add-learner` or `remove`")?;
                let subject = words.number("the node it is about")?;
                let change = ConfChange {
                    change_type: match what {
                        "add-learner" => ConfChangeType::AddLearnerNode,
                        "remove" => ConfChangeType::RemoveNode,
                        _ => return Err(format!("`{what}` is no change")),
                    },
                    node_id: subject,
                    ..ConfChange::default()
                };
                let context = format!("{what} {subject}").into_bytes();
                lines.extend(self.call(id, |raft| raft.propose_conf_change(context, change))?);
            }
            "hear" => {
                let from = words.number("the sender")?;
                let kind = words.next("a kind of message")?;
                let msg_type = [MessageType::MsgHeartbeat, MessageType::MsgReadIndex]
                    .into_iter()
                    .find(|known| format!("{known:?}") == kind)
                    .ok_or_else(|| format!("a message `{kind}` cannot be heard"))?;
                let message = Message {
                    msg_type,
                    from,
                    to: id,
                    term: words.key("term")?.unwrap_or(0),
                    commit: words.key("commit")?.unwrap_or(0),
                    ..Message::default()
                };
                lines.extend(self.call(id, |raft| raft.step(message))?);
            }
            "ready" => {
                self.ready(id, &mut lines)?;
                if lines.is_empty() {
                    lines.push(format!("{id}: nothing"));
                }
            }
            "sync" => {
                self.sync(id, &mut lines)?;
            }
            "crash" => self.node(id)?.raft = None,
            "restart" => self.start(id)?,
            "new" => {
                // A node that knows nothing, not even who its peers are.
                let conf = std::mem::take(&mut self.conf);
                self.insert(id);
                let started = self.start(id);
                self.conf = conf;
                started?;
            }
            "status" => {
                let raft = &self.raft(id)?.raft;
                let (part, leader) = (raft.state, raft.leader_id);
                let (commit, last) = (raft.raft_log.committed, raft.raft_log.last_index());
                lines.push(format!(
                    "{id}: {part:?} term={} leader={leader} commit={commit} last={last}",
                    raft.term
                ));
            }
            "applied" => {
                let applied = self.node(id)?.applied.join(", ");
                lines.push(format!("{id}: applied [{applied}]"));
            }
            _ => return Err(format!("there is no command `bare {name}`")),
        }
        Ok(lines)
    }

    fn cluster(&mut self, words: &mut Words<'_>) -> Result<(), String> {
        let voters = words.key("voters")?.ok_or("`voters` is missing")?;
        let learners = words.key("learners")?.unwrap_or(0);
        *self = Self::default();
        if words.key("lease-reads")?.is_some() {
            self.reads = ReadOnlyOption::LeaseBased;
        }
        self.conf.voters = (1..=voters).collect();
        self.conf.learners = (voters + 1..=voters + learners).collect();
        for id in 1..=voters + learners {
            self.insert(id);
            self.start(id)?;
        }
        Ok(())
    }

    fn insert(&mut self, id: u64) {
        let node = Node {
            raft: None,
            hard_state: HardState::default(),
            entries: Vec::new(),
            unsynced: VecDeque::new(),
            applied: Vec::new(),
        };
        self.nodes.insert(id, node);
    }

    fn start(&mut self, id: u64) -> Result<(), String> {
        let (conf, read_only_option) = (self.conf.clone(), self.reads);
        let node = self.node(id)?;
        node.unsynced.clear();
        node.applied.clear();
        let store = MemStorage::new();
        if !conf.voters.is_empty() {
            store.initialize_with_conf_state(conf);
        }
        store
            .wl()
            .append(&node.entries)
            .map_err(|error| error.to_string())?;
        store.wl().set_hardstate(node.hard_state.clone());
        let config = raft::Config {
            id,
            election_tick: 10,
            heartbeat_tick: 2,
            check_quorum: true,
            pre_vote: true,
            read_only_option,
            ..raft::Config::default()
        };
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let raft = RawNode::new(&config, store, &logger).map_err(|error| error.to_string())?;
        node.raft = Some(raft);
        Ok(())
    }

    fn node(&mut self, id: u64) -> Result<&mut Node, String> {
        self.nodes
            .get_mut(&id)
            .ok_or_else(|| format!("there is no bare node {id}"))
    }

    fn raft(&mut self, id: u64) -> Result<&mut RawNode<MemStorage>, String> {
        self.node(id)?
            .raft
            .as_mut()
            .ok_or_else(|| format!("bare node {id} is down"))
    }

    /// Calls into raft-rs; an error or a panic is printed.
    fn call(
        &mut self,
        id: u64,
        call: impl FnOnce(&mut RawNode<MemStorage>) -> raft::Result<()>,
    ) -> Lines {
        let raft = self.raft(id)?;
        let lines = match catch_unwind(AssertUnwindSafe(|| call(raft))) {
            Ok(Ok(())) => Vec::new(),
            Ok(Err(error)) => vec![format!("{id}: refused: {error}")],
            Err(panic) => {
                let words = panic.downcast_ref::<String>().map(String::as_str);
                let words = words
                    .or_else(|| panic.downcast_ref::<&str>().copied())
                    .unwrap_or("?");
                self.node(id)?.raft = None;
                return Ok(vec![format!("{id}: panics: {words}")]);
            }
        };
        // raft-rs draws timeouts from the thread's randomness; here each node has its own.
        raft.raft
            .set_randomized_election_timeout(10 + (id as usize - 1) % 10);
        Ok(lines)
    }

    fn ready(&mut self, id: u64, lines: &mut Vec<String>) -> Result<bool, String> {
        let node = self.nodes.get_mut(&id).ok_or("there is no such node")?;
        let Some(raft) = node.raft.as_mut().filter(|raft| raft.has_ready()) else {
            return Ok(false);
        };
        let mut ready = raft.ready();
        for message in ready.take_messages() {
            lines.push(format!("{id}: at once {}", line(&mut self.names, &message)));
            self.network.push_back(message);
        }
        let (hard_state, entries) = (ready.hs().cloned(), ready.take_entries());
        if ready.must_sync() {
            let state = hard_state.as_ref().map_or("entries".into(), show::state);
            lines.push(format!(
                "{id}: to sync {state}{}",
                self.names.entries(&entries)
            ));
        }
        let then = ready.take_persisted_messages();
        for message in &then {
            lines.push(format!(
                "{id}: after the sync {}",
                line(&mut self.names, message)
            ));
        }
        for read in ready.take_read_states() {
            let context = String::from_utf8_lossy(&read.request_ctx).into_owned();
            lines.push(format!(
                "{id}: read {context} may be served at {}",
                read.index
            ));
        }
        raft.mut_store()
            .wl()
            .append(&entries)
            .map_err(|error| error.to_string())?;
        if let Some(hard_state) = &hard_state {
            raft.mut_store().wl().set_hardstate(hard_state.clone());
        }
        let committed = ready.take_committed_entries();
        let number = ready.number();
        raft.advance_append_async(ready);
        for entry in &committed {
            if entry.entry_type == EntryType::EntryConfChange {
                let change = parse_change(entry)?;
                let conf = raft
                    .apply_conf_change(&change)
                    .map_err(|error| error.to_string())?;
                lines.push(format!("{id}: members {}", show::configuration(&conf)));
            }
            lines.push(format!("{id}: applies {}", self.names.entry(entry)));
            node.applied.push(self.names.entry(entry));
        }
        if let Some(last) = committed.last() {
            raft.advance_apply_to(last.index);
        }
        node.unsynced.push_back(Unsynced {
            number,
            hard_state,
            entries,
            then,
        });
        Ok(true)
    }

    fn sync(&mut self, id: u64, lines: &mut Vec<String>) -> Result<bool, String> {
        let node = self.node(id)?;
        let Some(raft) = node.raft.as_mut() else {
            return Ok(false);
        };
        let mut moved = false;
        let mut messages = Vec::new();
        for unsynced in node.unsynced.drain(..) {
            moved = true;
            if let Some(hard_state) = unsynced.hard_state {
                node.hard_state = hard_state;
            }
            if let Some(first) = unsynced.entries.first().map(|entry| entry.index) {
                node.entries.retain(|entry| entry.index < first);
                node.entries.extend(unsynced.entries);
            }
            messages.extend(unsynced.then);
            raft.on_persist_ready(unsynced.number);
        }
        self.network.extend(messages);
        if moved {
            lines.push(format!("{id}: synced"));
        }
        Ok(moved)
    }

    fn deliver(
        &mut self,
        message: Message,
        lose: bool,
        lines: &mut Vec<String>,
    ) -> Result<(), String> {
        let (from, to) = (message.from, message.to);
        let up = self.nodes.get(&to).is_some_and(|node| node.raft.is_some());
        let kind = format!("{:?}", message.msg_type);
        let cut = self.cut.contains(&(from.min(to), from.max(to)));
        let lost = lose || !up || cut || self.blocked.contains(&(from, kind.clone()));
        let verb = if lost { "lost" } else { "got" };
        lines.push(format!("{to}: {verb} {kind} of {from}"));
        if !lost {
            lines.extend(self.call(to, |raft| raft.step(message))?);
        }
        Ok(())
    }

    fn settle(&mut self, lines: &mut Vec<String>) -> Result<(), String> {
        for _ in 0..ROUNDS_MAX {
            let mut moved = false;
            for id in self.nodes.keys().copied().collect::<Vec<_>>() {
                moved |= self.ready(id, lines)?;
                moved |= self.sync(id, lines)?;
            }
            if let Some(message) = self.network.pop_front() {
                moved = true;
                self.deliver(message, false, lines)?;
            }
            if !moved {
                return Ok(());
            }
        }
        Err("the nodes never come to rest".into())
    }
}

fn line(names: &mut Names, message: &Message) -> String {
    format!(
        "r{}->r{} {}",
        message.from,
        message.to,
        names.message(message)
    )
}

fn parse_change(entry: &Entry) -> Result<ConfChange, String> {
    let context = String::from_utf8_lossy(&entry.context).into_owned();
    let mut words = Words::new(&context);
    let change_type = match words.next("a change")? {
        "remove" => ConfChangeType::RemoveNode,
        _ => ConfChangeType::AddLearnerNode,
    };
    let node_id = words.number("a node")?;
    Ok(ConfChange {
        change_type,
        node_id,
        ..ConfChange::default()
    })
}
