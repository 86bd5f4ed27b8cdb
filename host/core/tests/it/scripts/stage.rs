//! Replicas of one group, each with a disk, a machine and a network that move only when told.
//!
//! A replica acts on a turn; then its records wait to be synced, its messages to be delivered, its machine's work to be
//! done. What happens is told as lines, `N: …` for node N.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use skep_core::effect::{Effect, Persist, Work};
use skep_core::id::{GroupId, Incarnation, NodeId};
use skep_core::input::{Input, Waiter};
use skep_core::message::{ArrivedSnapshot, Body, PeerMessage, Priority};
use skep_core::{Group, GroupConfig, Member, Recovered};

use super::bare::Bare;
use super::show::{self, Names};
use crate::cluster::{Disk, File, Machine, over_the_wire};

/// Rounds after which a group that still moves is taken to move for ever.
const ROUNDS_MAX: usize = 10_000;

/// What a command prints, or what is wrong with it.
pub type Lines = Result<Vec<String>, String>;

/// Everything a script has set up.
#[derive(Default)]
pub struct Stage {
    pub settings: Vec<(String, u64)>,
    pub nodes: BTreeMap<u64, Node>,
    pub network: VecDeque<Underway>,
    /// Pairs that cannot talk, either way.
    pub cut: BTreeSet<(u64, u64)>,
    /// Messages of a node that are lost, by their kind.
    pub blocked: BTreeSet<(u64, String)>,
    /// Nodes whose disk, or machine, does nothing in `settle`.
    pub held: BTreeSet<(u64, String)>,
    pub names: Names,
    pub last_waiter: Waiter,
    pub now: u64,
    pub bare: Bare,
}

#[derive(Default)]
pub struct Node {
    pub group: Option<Group>,
    pub disk: Disk,
    pub machine: Machine,
    pub unsynced: VecDeque<Persist>,
    pub work: VecDeque<Work>,
    pub starts: u64,
}

pub struct Underway {
    pub from: u64,
    pub to: u64,
    pub message: PeerMessage,
    pub file: Option<File>,
}

impl Stage {
    pub fn config(&self, node: u64, starts: u64) -> Result<GroupConfig, String> {
        let mut config = GroupConfig::new(GroupId(1), Incarnation(1), NodeId(node));
        config.init = Bytes::from_static(b"init");
        config.seed = 99 + (starts << 8);
        // No member is waited for: whoever lacks what a snapshot covers is sent the snapshot.
        config.limits.log_retained_bytes = 0;
        for (key, value) in &self.settings {
            set(&mut config, key, *value)?;
        }
        Ok(config)
    }

    pub fn create(&mut self, id: u64, voters: u64) -> Result<(), String> {
        let mut config = self.config(id, 1)?;
        config.members = (1..=voters)
            .map(|node| Member {
                node: NodeId(node),
                data: Bytes::new(),
            })
            .collect();
        let group = Group::create(config).map_err(|error| error.to_string())?;
        let node = Node {
            group: Some(group),
            starts: 1,
            ..Node::default()
        };
        self.nodes.insert(id, node);
        Ok(())
    }

    pub fn node(&mut self, id: u64) -> Result<&mut Node, String> {
        self.nodes
            .get_mut(&id)
            .ok_or_else(|| format!("there is no node {id}"))
    }

    pub fn group(&mut self, id: u64) -> Result<&mut Group, String> {
        self.node(id)?
            .group
            .as_mut()
            .ok_or_else(|| format!("node {id} is down"))
    }

    pub fn running(&self) -> impl Iterator<Item = u64> + use<> {
        let running: Vec<_> = self
            .nodes
            .iter()
            .filter(|(_, node)| node.group.is_some())
            .map(|(id, _)| *id)
            .collect();
        running.into_iter()
    }

    pub fn input(&mut self, id: u64, input: Input) -> Result<(), String> {
        self.group(id)?.handle(input);
        Ok(())
    }

    pub fn tick(&mut self, node: u64) -> Result<(), String> {
        let now = self.now;
        self.input(node, Input::Tick { now })
    }

    /// Everything that can happen without time passing happens, at these nodes.
    pub fn settle(&mut self, nodes: &[u64]) -> Lines {
        let mut lines = Vec::new();
        for _ in 0..ROUNDS_MAX {
            let mut moved = false;
            for node in nodes {
                moved |= self.turn(*node, &mut lines)?;
                if !self.held.contains(&(*node, "disk".into())) {
                    moved |= self.sync(*node, u64::MAX, &mut lines)?;
                }
                if !self.held.contains(&(*node, "machine".into())) {
                    moved |= self.work(*node, u64::MAX, &mut lines)?;
                }
            }
            let next = self
                .network
                .iter()
                .position(|message| nodes.contains(&message.to) || !self.is_up(message.to));
            if let Some(message) = next.and_then(|place| self.network.remove(place)) {
                moved = true;
                self.deliver(message, false, &mut lines)?;
            }
            if !moved {
                return Ok(lines);
            }
        }
        Err("the replicas never come to rest".into())
    }

    pub fn is_up(&self, node: u64) -> bool {
        self.nodes
            .get(&node)
            .is_some_and(|node| node.group.is_some())
    }

    /// Lets a replica act. Its effects are printed and wait.
    pub fn turn(&mut self, id: u64, lines: &mut Vec<String>) -> Result<bool, String> {
        let mut effects = Vec::new();
        self.group(id)?.poll(&mut effects);
        let moved = !effects.is_empty();
        for effect in effects {
            lines.push(format!("{id}: {}", self.names.effect(&effect)));
            let node = self.nodes.get_mut(&id).ok_or("the node is there")?;
            match effect {
                Effect::Persist(record) => node.unsynced.push_back(record),
                Effect::Machine(work) => node.work.push_back(work),
                Effect::Send { to, message } => {
                    self.network.push_back(Underway {
                        from: id,
                        to: to.0,
                        message: over_the_wire(message, None),
                        file: None,
                    });
                }
                Effect::SendSnapshot {
                    to,
                    message,
                    snapshot,
                } => {
                    let file = node.disk.files.get(&snapshot.index).cloned();
                    let message = over_the_wire(message, file.as_ref().map(|(name, _, _)| name));
                    self.network.push_back(Underway {
                        from: id,
                        to: to.0,
                        message,
                        file,
                    });
                }
                _ => {}
            }
        }
        Ok(moved)
    }

    pub fn sync(&mut self, id: u64, records: u64, lines: &mut Vec<String>) -> Result<bool, String> {
        let node = self.node(id)?;
        let mut last = None;
        for _ in 0..records {
            let Some(record) = node.unsynced.pop_front() else {
                break;
            };
            lines.push(format!("{id}: synced #{}", record.number));
            last = Some(record.number);
            node.disk.write(record);
        }
        if let Some(number) = last {
            self.input(id, Input::Persisted { number })?;
        }
        Ok(last.is_some())
    }

    pub fn work(&mut self, id: u64, most: u64, lines: &mut Vec<String>) -> Result<bool, String> {
        let mut moved = false;
        for _ in 0..most {
            let node = self.node(id)?;
            let Some(work) = node.work.pop_front() else {
                break;
            };
            moved = true;
            let mut queries = BTreeMap::new();
            let input = node.machine.run(work, &mut node.disk, &mut queries);
            for (waiter, reply) in queries {
                let reply = reply.map_err(|error| format!("{error:?}"))?;
                let reply: Vec<_> = reply.iter().map(|command| show::text(command)).collect();
                lines.push(format!("{id}: answer w{waiter}: [{}]", reply.join(" ")));
            }
            let Some(input) = input else { continue };
            lines.push(match &input {
                Input::Applied { index, .. } => format!("{id}: applied {index}"),
                Input::Snapshotted { index, .. } => format!("{id}: snapshotted {index}"),
                Input::Restored { index, .. } => format!("{id}: restored {index}"),
                other => return Err(format!("the machine gave {other:?}")),
            });
            self.input(id, input)?;
        }
        Ok(moved)
    }

    pub fn deliver(
        &mut self,
        message: Underway,
        lose: bool,
        lines: &mut Vec<String>,
    ) -> Result<(), String> {
        let Underway {
            from,
            to,
            message,
            file,
        } = message;
        let kind = kind_of(&message);
        let lost = lose
            || self.cut.contains(&(from.min(to), from.max(to)))
            || self.blocked.contains(&(from, kind.clone()))
            || !self.is_up(to);
        let verb = if lost { "lost" } else { "got" };
        lines.push(format!("{to}: {verb} {kind} of {from}"));
        if message.body.priority() == Priority::Low && self.is_up(from) {
            let arrived = !lost && file.is_some();
            self.input(
                from,
                Input::SnapshotSent {
                    node: NodeId(to),
                    arrived,
                },
            )?;
        }
        if lost {
            return Ok(());
        }
        let from = NodeId(from);
        match file {
            Some((name, state, machine)) => {
                let files = &mut self.node(to)?.disk.files;
                files.insert(name.index, (name.clone(), state.clone(), machine));
                let snapshot = ArrivedSnapshot {
                    message,
                    name,
                    state,
                };
                self.input(to, Input::SnapshotArrived { from, snapshot })
            }
            None => self.input(to, Input::Message { from, message }),
        }
    }

    pub fn restart(&mut self, id: u64) -> Lines {
        let starts = self.node(id)?.starts + 1;
        let config = self.config(id, starts)?;
        let node = self.node(id)?;
        node.starts = starts;
        let disk = &node.disk;
        let snapshot = disk.snapshot.clone().map(|name| {
            let state = disk.files[&name.index].1.clone();
            (name, state)
        });
        let recovered = Recovered {
            replica: disk.replica,
            hard_state: disk.hard_state.clone(),
            entries: disk.entries.clone(),
            truncated: disk.truncated,
            snapshot,
        };
        match Group::recover(config, recovered) {
            Ok(group) => {
                node.group = Some(group);
                Ok(Vec::new())
            }
            Err(error) => Ok(vec![format!("{id}: cannot start: {error}")]),
        }
    }
}

pub fn kind_of(message: &PeerMessage) -> String {
    match &message.body {
        Body::Raft(raft) => format!("{:?}", raft.msg_type),
        Body::Forward(_) => "Forward".into(),
        Body::Answer(_) => "Answer".into(),
        Body::Gone => "Gone".into(),
        Body::AskAttestations { .. } => "AskAttestations".into(),
        Body::Attestations { .. } => "Attestations".into(),
        Body::AskStanding { .. } => "AskStanding".into(),
        Body::Standing(_) => "Standing".into(),
        Body::AskSnapshot { .. } => "AskSnapshot".into(),
        Body::Readiness { .. } => "Readiness".into(),
    }
}

fn set(config: &mut GroupConfig, key: &str, value: u64) -> Result<(), String> {
    let limits = &mut config.limits;
    match key {
        "election" => config.election_ticks = value as u32,
        "heartbeat" => config.heartbeat_ticks = value as u32,
        "in-flight" => config.max_in_flight = value as usize,
        "message-bytes" => config.max_message_bytes = value,
        "snapshot-entries" => config.snapshot_entries = value,
        "command-bytes" => limits.command_bytes = value,
        "entry-bytes" => limits.entry_bytes = value,
        "entry-commands" => limits.entry_commands = value as usize,
        "queued-proposals" => limits.queued_proposals = value as usize,
        "unapplied-bytes" => limits.unapplied_bytes = value,
        "uncommitted-bytes" => limits.uncommitted_bytes = value,
        "queued-queries" => limits.queued_queries = value as usize,
        "request-ticks" => limits.request_ticks = value as u32,
        _ => return Err(format!("`{key}` is not known")),
    }
    Ok(())
}
