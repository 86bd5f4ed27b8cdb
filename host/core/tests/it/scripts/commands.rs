//! The commands of a script about replicas of the core.

use std::collections::VecDeque;

use bytes::Bytes;
use skep_core::effect::Effect;
use skep_core::id::{GroupId, Incarnation, NodeId, SessionId};
use skep_core::input::Input;
use skep_core::message::Priority;
use skep_core::proposal::{Change, Proposal};
use skep_core::status::Part;
use skep_core::{Group, GroupConfig, Member};

use super::show;
use super::stage::{Lines, Stage, kind_of};
use super::words::{Words, parse};
use crate::cluster::{Machine, anonymous, in_session};

/// Ticks after which what has not happened is taken never to happen.
const TICKS_MAX: u64 = 500;

impl Stage {
    /// Carries out one command; gives what it prints.
    pub fn command(&mut self, line: &str) -> Lines {
        let (name, rest) = line.split_once(' ').unwrap_or((line, ""));
        match name {
            "quietly" => return self.command(rest).map(|_| Vec::new()),
            // Only the lines that hold one of the words (`a|b`), or how many those are.
            "only" | "count" => {
                let (word, rest) = rest.split_once(' ').ok_or("a word, then a command")?;
                let mut lines = self.command(rest)?;
                lines.retain(|line| word.split('|').any(|word| line.contains(word)));
                return Ok(match name {
                    "only" => lines,
                    _ => vec![format!("{} x {word}", lines.len())],
                });
            }
            // Ticks until a line holds the words.
            "until" => return self.until(rest),
            "bare" => return self.bare.command(rest),
            _ => {}
        }
        let mut words = Words::new(rest);
        let lines = self.run(name, &mut words)?;
        words.end()?;
        Ok(lines)
    }

    fn run(&mut self, name: &str, words: &mut Words<'_>) -> Lines {
        match name {
            "cluster" => self.cluster(words)?,
            "join" => {
                let node = words.number("a node")?;
                self.create(node, 0)?;
            }
            "campaign" => {
                let node = words.number("a node")?;
                self.input(node, Input::Campaign)?;
            }
            "elect" => return self.elect(words.number("a node")?),
            "transfer" => {
                let node = words.number("a node")?;
                let to = NodeId(words.number("the next leader")?);
                self.input(node, Input::Transfer { to })?;
            }
            "propose" => return self.propose_commands(words),
            "open" => {
                let node = words.number("a node")?;
                return self.propose(node, Proposal::OpenSession);
            }
            "barrier" => {
                let node = words.number("a node")?;
                return self.propose(node, Proposal::Barrier);
            }
            "change" => return self.change(words),
            "query" => return self.query(words),
            "fail-machine" => {
                let node = words.number("a node")?;
                self.input(
                    node,
                    Input::MachineFailed {
                        reason: "it broke".into(),
                        at: None,
                    },
                )?;
            }
            "persisted" => {
                let node = words.number("a node")?;
                let number = words.number("a record")?;
                self.input(node, Input::Persisted { number })?;
            }
            "turn" => {
                let mut lines = Vec::new();
                for node in words.nodes(self.running())? {
                    let before = lines.len();
                    self.turn(node, &mut lines)?;
                    if lines.len() == before {
                        lines.push(format!("{node}: nothing"));
                    }
                }
                return Ok(lines);
            }
            "sync" => {
                let node = words.number("a node")?;
                let records = words.key("records")?.unwrap_or(u64::MAX);
                let mut lines = Vec::new();
                self.sync(node, records, &mut lines)?;
                return Ok(lines);
            }
            "work" => {
                let node = words.number("a node")?;
                let most = words.key("pieces")?.unwrap_or(u64::MAX);
                let mut lines = Vec::new();
                self.work(node, most, &mut lines)?;
                return Ok(lines);
            }
            "deliver" | "lose" => return self.deliver_some(words, name == "lose"),
            "cut" => {
                let (a, b) = (words.number("a node")?, words.number("a node")?);
                self.cut.insert((a.min(b), a.max(b)));
            }
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
            "hold" | "release" => {
                let what = words.next("`disk` or `machine`")?.to_owned();
                if !["disk", "machine"].contains(&what.as_str()) {
                    return Err(format!("`{what}` is neither `disk` nor `machine`"));
                }
                let key = (words.number("a node")?, what);
                if name == "hold" {
                    self.held.insert(key);
                } else {
                    self.held.remove(&key);
                }
            }
            "settle" => {
                let nodes = words.nodes(self.running())?;
                return self.settle(&nodes);
            }
            "tick" => {
                let times = words.key("times")?.unwrap_or(1);
                for node in words.nodes(self.running())? {
                    for _ in 0..times {
                        self.tick(node)?;
                    }
                }
            }
            "pass" => return self.pass(words),
            "crash" => {
                let node = self.node(words.number("a node")?)?;
                node.group = None;
                node.unsynced.clear();
                node.work.clear();
                node.machine = Machine::default();
            }
            "restart" => return self.restart(words.number("a node")?),
            "status" | "members" | "machine" | "disk" | "files" => return self.look(name, words),
            "network" => return Ok(self.under_way()),
            "inject" => self.inject(words)?,
            // What no crash may do: entries behind the last are gone; the commit index stays if it is to.
            "cut-disk" => {
                let node = words.number("a node")?;
                let last = words.key("last")?.ok_or("`last` is missing")?;
                let commit = words.key("commit")?.unwrap_or(last);
                let disk = &mut self.node(node)?.disk;
                disk.entries.retain(|entry| entry.index <= last);
                disk.hard_state.commit = commit;
            }
            "lose-snapshot" => self.node(words.number("a node")?)?.disk.snapshot = None,
            "spoil-disk" => {
                let node = words.number("a node")?;
                let index = words.key("index")?.ok_or("`index` is missing")?;
                let entries = self.node(node)?.disk.entries.iter_mut();
                for entry in entries.filter(|entry| entry.index == index) {
                    entry.data = Bytes::from_static(&[0xff; 9]);
                }
            }
            "write-change" => self.write_change(words)?,
            "timeouts" => return timeouts(words),
            _ => return Err(format!("there is no command `{name}`")),
        }
        Ok(Vec::new())
    }

    fn cluster(&mut self, words: &mut Words<'_>) -> Result<(), String> {
        let voters = words.key("voters")?.ok_or("`voters` is missing")?;
        let bare = std::mem::take(&mut self.bare);
        *self = Self {
            bare,
            now: 1_000,
            ..Self::default()
        };
        for (key, value) in words.keyed.drain(..) {
            let value = parse(key, value)?;
            self.settings.push((key.to_owned(), value));
        }
        (1..=voters).try_for_each(|node| self.create(node, voters))
    }

    fn elect(&mut self, node: u64) -> Lines {
        let all: Vec<_> = self.running().collect();
        let mut lines = self.settle(&all)?;
        self.input(node, Input::Campaign)?;
        lines.extend(self.settle(&all)?);
        if self.group(node)?.status().part != Part::Leader {
            return Err(format!("node {node} does not lead"));
        }
        Ok(lines)
    }

    fn propose(&mut self, node: u64, proposal: Proposal) -> Lines {
        self.last_waiter += 1;
        let waiter = self.last_waiter;
        self.input(node, Input::Propose { waiter, proposal })?;
        Ok(vec![format!("{node}: w{waiter} waits")])
    }

    /// `propose NODE command… [session=S sequence=N]`; `x*900` is 900 bytes, `copies=9` repeats the list.
    fn propose_commands(&mut self, words: &mut Words<'_>) -> Lines {
        let node = words.number("a node")?;
        let copies = words.key("copies")?.unwrap_or(1);
        let session = words.key("session")?.zip(words.key("sequence")?);
        let commands: Vec<_> = words.plain.drain(..).collect();
        let first = self.last_waiter + 1;
        for command in (0..copies).flat_map(|_| commands.clone()) {
            let command = match command.split_once('*') {
                Some((text, times)) => text.repeat(parse("times", times)? as usize),
                None => command.to_owned(),
            };
            let proposal = match session {
                Some((session, sequence)) => {
                    in_session(SessionId(session.into()), sequence, &command)
                }
                None => anonymous(&command),
            };
            self.propose(node, proposal)?;
        }
        let last = self.last_waiter;
        Ok(vec![if first == last {
            format!("{node}: w{last} waits")
        } else {
            format!("{node}: w{first}..w{last} wait")
        }])
    }

    fn change(&mut self, words: &mut Words<'_>) -> Lines {
        let node = words.number("a node")?;
        let what = words.next("`add`, `add-learner` or `remove`")?;
        let subject = NodeId(words.number("the node it is about")?);
        let data = Bytes::new();
        let change = match what {
            "add" => Change::Add {
                node: subject,
                data,
            },
            "add-learner" => Change::AddLearner {
                node: subject,
                data,
            },
            "remove" => Change::Remove {
                node: subject,
                data,
            },
            _ => return Err(format!("`{what}` is no change")),
        };
        self.propose(node, Proposal::Change(change))
    }

    fn query(&mut self, words: &mut Words<'_>) -> Lines {
        let node = words.number("a node")?;
        let linearizable = words.plain.pop_front().is_none();
        self.last_waiter += 1;
        let waiter = self.last_waiter;
        self.input(
            node,
            Input::Query {
                waiter,
                request: Bytes::new(),
                linearizable,
            },
        )?;
        Ok(vec![format!("{node}: w{waiter} waits")])
    }

    /// `pass TICKS [nodes]`: ticks of those nodes, each followed by all that comes of it anywhere.
    fn pass(&mut self, words: &mut Words<'_>) -> Lines {
        let ticks = words.number("ticks")?;
        let ticked = words.nodes(self.running())?;
        let all: Vec<_> = self.running().collect();
        let mut lines = Vec::new();
        for _ in 0..ticks {
            self.now += 100;
            for node in &ticked {
                self.tick(*node)?;
            }
            lines.extend(self.settle(&all)?);
        }
        Ok(lines)
    }

    fn until(&mut self, words: &str) -> Lines {
        for ticks in 1..=TICKS_MAX {
            let lines = self.pass(&mut Words::new("1"))?;
            if let Some(line) = lines.into_iter().find(|line| line.contains(words)) {
                return Ok(vec![format!("after {ticks} ticks {line}")]);
            }
        }
        Err("that is never printed".into())
    }

    /// `deliver|lose [FROM->TO] [kind] [count=N]`: of what is under way now, in order.
    fn deliver_some(&mut self, words: &mut Words<'_>, lose: bool) -> Lines {
        let count = words.key("count")?.unwrap_or(u64::MAX);
        let mut ends = (None, None);
        let mut kind = None;
        for word in words.plain.drain(..) {
            match word.split_once("->") {
                Some((from, to)) => {
                    let end = |word: &str| match word {
                        "" => Ok(None),
                        word => parse("a node", word).map(Some),
                    };
                    ends = (end(from)?, end(to)?);
                }
                None => kind = Some(word),
            }
        }
        let mut chosen = Vec::new();
        let mut left = VecDeque::new();
        for message in self.network.drain(..) {
            let fits = ends.0.is_none_or(|from| from == message.from)
                && ends.1.is_none_or(|to| to == message.to)
                && kind.is_none_or(|kind| kind == kind_of(&message.message))
                && (chosen.len() as u64) < count;
            if fits {
                chosen.push(message);
            } else {
                left.push_back(message);
            }
        }
        self.network = left;
        let mut lines = Vec::new();
        for message in chosen {
            self.deliver(message, lose, &mut lines)?;
        }
        if lines.is_empty() {
            lines.push("nothing was under way".into());
        }
        Ok(lines)
    }

    fn look(&mut self, what: &str, words: &mut Words<'_>) -> Lines {
        let all: Vec<_> = self.nodes.keys().copied().collect();
        let mut lines = Vec::new();
        for id in words.nodes(all.into_iter())? {
            let node = self
                .nodes
                .get(&id)
                .ok_or_else(|| format!("there is no node {id}"))?;
            let status = node.group.as_ref().map(Group::status);
            let told = match (what, status) {
                ("disk", _) => {
                    let disk = &node.disk;
                    let snapshot = disk.snapshot.as_ref().map_or(0, |name| name.index.0);
                    format!(
                        "{} snapshot={snapshot}{}",
                        show::state(&disk.hard_state),
                        self.names.entries(&disk.entries)
                    )
                }
                ("files", _) => {
                    let files: Vec<_> = node
                        .disk
                        .files
                        .values()
                        .map(|file| show::section(file.1.clone()))
                        .collect();
                    format!("files [{}]", files.join(", "))
                }
                (_, None) => "down".into(),
                ("status", Some(status)) => show::status(&status),
                ("members", Some(status)) => show::members(&status),
                _ => {
                    let commands = node
                        .machine
                        .commands
                        .iter()
                        .map(|command| show::text(command));
                    format!("machine [{}]", commands.collect::<Vec<_>>().join(" "))
                }
            };
            lines.push(format!("{id}: {told}"));
        }
        Ok(lines)
    }

    fn under_way(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        for message in &self.network {
            let lane = match message.message.body.priority() {
                Priority::High => "high",
                Priority::Normal => "normal",
                Priority::Low => "low",
            };
            let text = self.names.peer_message(&message.message);
            lines.push(format!("{}->{} {lane}: {text}", message.from, message.to));
        }
        if lines.is_empty() {
            lines.push("nothing is under way".into());
        }
        lines
    }
}

/// `timeouts nodes=N groups=N attempts=N seed=S`: the ticks after which each replica that hears nobody asks for votes.
fn timeouts(words: &mut Words<'_>) -> Lines {
    let nodes = words.key("nodes")?.unwrap_or(3);
    let groups = words.key("groups")?.unwrap_or(1);
    let attempts = words.key("attempts")?.unwrap_or(1);
    let seed = words.key("seed")?.unwrap_or(1);
    let mut lines = Vec::new();
    for group in 1..=groups {
        for id in 1..=nodes {
            let mut config = GroupConfig::new(GroupId(group), Incarnation(1), NodeId(id));
            config.seed = seed;
            config.members = (1..=nodes)
                .map(|node| Member {
                    node: NodeId(node),
                    data: Bytes::new(),
                })
                .collect();
            let mut replica = Group::create(config).map_err(|error| error.to_string())?;
            let mut waits = Vec::new();
            let mut waited = 0;
            while (waits.len() as u64) < attempts {
                let mut effects = Vec::new();
                replica.handle(Input::Tick { now: 1_000 });
                replica.poll(&mut effects);
                waited += 1;
                let mut asks = false;
                for effect in effects {
                    match effect {
                        Effect::Persist(record) => replica.handle(Input::Persisted {
                            number: record.number,
                        }),
                        Effect::Send { message, .. } => {
                            asks |= kind_of(&message) == "MsgRequestPreVote"
                        }
                        _ => {}
                    }
                }
                if asks {
                    waits.push(waited.to_string());
                    waited = 0;
                }
                if waited > 1_000 {
                    return Err("it never asks".into());
                }
            }
            lines.push(format!("group {group} node {id}: {}", waits.join(" ")));
        }
    }
    Ok(lines)
}
