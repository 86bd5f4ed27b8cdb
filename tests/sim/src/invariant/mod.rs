//! What must always hold. One file for each promise; [`Checker`] shows each of them what it needs to see, at every step.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use skep_core::Recovered;
use skep_core::config::Limits;
use skep_core::effect::Persist;
use skep_core::form::Form;
use skep_core::input::LogRead;
use skep_core::message::{Body, PeerMessage};
use skep_core::status::Status;
use skep_log::GroupKey;

use crate::machine::{Applied, Command};
use crate::trace::digest;

mod at_most_once;
mod caught_up;
mod commits;
mod election_safety;
pub mod ledger;
mod limits;
mod linearizable;
mod log_matching;
mod names;
mod order;
mod removed;
mod send_after_durable;
mod state_machine_safety;

use ledger::{Ledger, Mark};
pub use state_machine_safety::Step;

/// A replica's place: a life of a group, on a node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Place {
    /// The node.
    pub node: u64,
    /// The life of the group.
    pub key: GroupKey,
}

/// A promise that was broken.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// Which promise.
    pub invariant: &'static str,
    /// How.
    pub text: String,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.invariant, self.text)
    }
}

/// Names the promise that an error breaks.
pub trait Breaks<T> {
    /// As a violation of `invariant`.
    fn breaks(self, invariant: &'static str, place: Place) -> Result<T, Violation>;
}

impl<T> Breaks<T> for Result<T, String> {
    fn breaks(self, invariant: &'static str, place: Place) -> Result<T, Violation> {
        self.map_err(|text| Violation {
            invariant,
            text: format!("{} on node {}: {text}", place.key, place.node),
        })
    }
}

/// What a step of a replica left behind, beside its status.
#[derive(Clone, Copy, Debug)]
pub struct Queues {
    /// Records that the replica does not know to be durable.
    pub records: usize,
    /// Pieces of work that wait for the machine.
    pub work: usize,
    /// A snapshot is on its way into the machine, or the machine has failed.
    pub restoring: bool,
}

/// Watches a whole simulation.
#[derive(Debug, Default)]
pub struct Checker {
    ledgers: BTreeMap<Place, Ledger>,
    burying: BTreeSet<Place>,
    elections: election_safety::ElectionSafety,
    matching: log_matching::LogMatching,
    commits: commits::Commits,
    machines: state_machine_safety::StateMachineSafety,
    names: names::Names,
    caught_up: caught_up::CaughtUp,
    order: order::Order,
    once: at_most_once::AtMostOnce,
    linearizable: linearizable::Linearizable,
    /// Replies by command, as the first machine gave them.
    replies: HashMap<(GroupKey, u64, u64), u64>,
    /// Acknowledged commands, with the indices clients were told.
    acknowledged: BTreeMap<GroupKey, Vec<(Command, u64)>>,
    /// Lives of groups in which a machine went wrong: of those it is judged that replicas come to agree, not on what.
    wrong: BTreeSet<GroupKey>,
    /// Commands that clients were told are given up.
    given_up: BTreeSet<(GroupKey, u64, u64)>,
    steps: u64,
    read_back: u64,
}

impl Checker {
    /// A replica begins with what its node's disk holds of it, or new.
    pub fn began(&mut self, place: Place, recovered: Option<&Recovered>) -> Result<(), Violation> {
        self.order.began(place);
        self.commits.began(place);
        self.names.began(place);
        self.caught_up.began(place);
        let ledger = self.ledgers.entry(place).or_default();
        match recovered {
            Some(recovered) => {
                self.burying.remove(&place);
                ledger.recovered(recovered).breaks("recovery", place)
            }
            // The tombstone was on its way when the node ended, and arrived.
            None if self.burying.contains(&place) => {
                self.buried(place);
                Ok(())
            }
            None if ledger.durable == ledger::Image::default() => {
                *ledger = Ledger::default();
                Ok(())
            }
            None => Err(format!(
                "nothing is recovered, durable was {}",
                ledger.durable.short()
            ))
            .breaks("recovery", place),
        }
    }

    /// A replica begins again with what its node's disk holds, in the same process.
    pub fn began_again(&mut self, place: Place) {
        self.order.began(place);
        self.commits.began(place);
        self.names.began(place);
        self.caught_up.began(place);
    }

    /// The machine of a replica went wrong.
    pub fn went_wrong(&mut self, key: GroupKey) {
        self.wrong.insert(key);
    }

    /// Whether replicas may be found to differ.
    pub fn may_differ(&self, key: GroupKey) -> bool {
        self.wrong.contains(&key)
    }

    /// A replica's tombstone is on its way to the disk.
    pub fn buries(&mut self, place: Place) {
        self.burying.insert(place);
    }

    /// A replica was removed from its node, durably.
    pub fn buried(&mut self, place: Place) {
        self.burying.remove(&place);
        if let Some(ledger) = self.ledgers.remove(&place) {
            self.commits.buried(place, ledger.durable);
        }
    }

    /// A life of a group is over: its replicas are deleted, each when its node hears of it, so nothing in it lasts.
    pub fn ended(&mut self, key: GroupKey) {
        self.commits.ended(key);
    }

    /// A replica asks for a record to be durable.
    pub fn persists(&mut self, place: Place, persist: &Persist) {
        self.ledgers.entry(place).or_default().persists(persist);
    }

    /// What a replica wanted of its log was read back from the files: it must be what it has made durable.
    pub fn reads_back(&mut self, place: Place, from: u64, read: &LogRead) -> Result<(), Violation> {
        let Some(ledger) = self.ledgers.get(&place) else {
            return Ok(());
        };
        let stored = |index| ledger.durable.entries.get(&index);
        let wrong = match read {
            LogRead::Entries(entries) => {
                self.read_back += entries.len() as u64;
                let mut expected = from..;
                entries.iter().any(|entry| {
                    let index = expected.next().unwrap_or(0);
                    entry.index != index || stored(index) != Some(&Mark::of(entry))
                })
            }
            LogRead::Gone => stored(from).is_some(),
            LogRead::Failed => false,
        };
        match wrong {
            false => Ok(()),
            true => Err(format!("entries from {from} on come back as {read:?}")),
        }
        .breaks("the log is read back as it was written", place)
    }

    /// A replica's record, and all before it, is durable.
    pub fn durable(&mut self, place: Place, number: u64) -> Result<(), Violation> {
        let Some(ledger) = self.ledgers.get_mut(&place) else {
            return Ok(());
        };
        for (index, mark, previous) in ledger.durable(number) {
            self.matching
                .check(place.key, index, mark, previous)
                .breaks("log matching", place)?;
        }
        Ok(())
    }

    /// A replica sends a message.
    pub fn sends(&mut self, place: Place, message: &PeerMessage) -> Result<(), Violation> {
        let Body::Raft(raft) = &message.body else {
            return Ok(());
        };
        let Some(ledger) = self.ledgers.get(&place) else {
            return Ok(());
        };
        let committed = self.commits.last(place.key);
        send_after_durable::check(&ledger.durable, raft, committed)
            .breaks("send after durable", place)?;
        let mut previous = Some(raft.log_term);
        for entry in &raft.entries {
            // What a read request carries is no entry.
            if entry.index == 0 {
                break;
            }
            self.matching
                .check(place.key, entry.index, Mark::of(entry), previous)
                .breaks("log matching", place)?;
            previous = Some(entry.term);
        }
        Ok(())
    }

    /// A replica has taken in and given out everything of a step. `true` if it has just begun to lead.
    pub fn stepped(
        &mut self,
        place: Place,
        status: &Status,
        limits: &Limits,
        queues: Queues,
    ) -> Result<bool, Violation> {
        self.steps += 1;
        // A lone voter leads as soon as it campaigns. Until its term is durable it has told nobody and may forget it.
        let lasts = self
            .ledgers
            .get(&place)
            .is_some_and(|ledger| ledger.durable.hard.0 >= status.term.0);
        let elected = lasts
            && self
                .elections
                .check(place.key, status)
                .breaks("election safety", place)?;
        if elected && let Some(ledger) = self.ledgers.get(&place) {
            self.commits
                .check_leader(place, status.term.0, ledger)
                .breaks("leader completeness", place)?;
        }
        self.commits
            .check(place, status, &self.ledgers)
            .breaks("commits", place)?;
        self.names.check(place, status).breaks("names", place)?;
        let stored = |place, replica| self.commits.stored(&self.ledgers, place, replica);
        self.caught_up
            .check(place, status, stored)
            .breaks("caught up", place)?;
        self.order
            .check(
                place,
                status,
                queues.restoring || self.wrong.contains(&place.key),
            )
            .breaks("order", place)?;
        limits::check(limits, status, queues.records, queues.work).breaks("limits", place)?;
        // A snapshot that Raft has accepted waits until everything before it is written.
        let settled = !queues.restoring && queues.records == 0;
        if let Some(ledger) = self.ledgers.get(&place).filter(|_| settled) {
            order::check_last(status, &ledger.written).breaks("order", place)?;
        }
        if elected {
            removed::check(status).breaks("removed", place)?;
        }
        Ok(elected)
    }

    /// A machine has applied an entry and is in `state`.
    pub fn applied(
        &mut self,
        place: Place,
        index: u64,
        applied: &Applied,
        state: u64,
    ) -> Result<(), Violation> {
        if self.may_differ(place.key) {
            return Ok(());
        }
        let outcomes: Vec<u64> = applied.outcomes.iter().map(outcome).collect();
        let step = Step {
            input: applied.input,
            outcomes: digest(&outcomes),
            state,
        };
        let first = self
            .machines
            .check(place.key, index, step)
            .breaks("state machine safety", place)?;
        if first {
            for (command, reply) in applied.commands.iter().zip(&outcomes) {
                self.once
                    .check(place.key, index, *command)
                    .breaks("at most once", place)?;
                let name = (place.key, command.client, command.number);
                if self.given_up.contains(&name) {
                    return Err(given_up_and_applied(*command, index)).breaks(GIVEN_UP, place);
                }
                self.replies
                    .insert((place.key, command.client, command.number), *reply);
            }
        }
        Ok(())
    }

    /// A machine has passed a barrier of this form and is in `state`.
    pub fn passed(
        &mut self,
        place: Place,
        index: u64,
        form: Form,
        state: u64,
    ) -> Result<(), Violation> {
        if self.may_differ(place.key) {
            return Ok(());
        }
        let step = Step {
            input: digest(form),
            outcomes: 0,
            state,
        };
        let first = self.machines.check(place.key, index, step);
        first.map(drop).breaks("state machine safety", place)
    }

    /// A machine was rebuilt from a snapshot.
    pub fn restored(&self, place: Place, index: u64, state: u64) -> Result<(), Violation> {
        match self.machines.state(place.key, index) {
            Some(expected) if expected != state && !self.may_differ(place.key) => {
                Err(format!("the snapshot at {index} gives another state"))
                    .breaks("state machine safety", place)
            }
            _ => Ok(()),
        }
    }

    /// A snapshot was taken.
    pub fn snapshotted(
        &mut self,
        place: Place,
        index: u64,
        form: Form,
        digest: [u8; 32],
    ) -> Result<(), Violation> {
        if self.may_differ(place.key) {
            return Ok(());
        }
        self.machines
            .check_snapshot(place.key, index, (form, digest))
            .breaks("equal snapshots", place)
    }

    /// An operation begins; the answer must be at or behind this index.
    pub fn begins(&self, key: GroupKey) -> u64 {
        self.linearizable.begins(key)
    }

    /// A client is told that its command was applied at `index` with this outcome.
    pub fn acknowledged(
        &mut self,
        place: Place,
        command: Command,
        floor: u64,
        index: u64,
        reply: &skep_core::outcome::Outcome,
    ) -> Result<(), Violation> {
        let committed = self.commits.last(place.key);
        if index > committed {
            return Err(format!(
                "acknowledges entry {index}; only {committed} is committed"
            ))
            .breaks("reply after commit", place);
        }
        if self.may_differ(place.key) {
            return Ok(());
        }
        let name = (place.key, command.client, command.number);
        if self.replies.get(&name) != Some(&outcome(reply))
            || self.once.index(place.key, command.client, command.number) != Some(index)
        {
            return Err(format!(
                "command {} of client {} is answered from {index} with {reply:?}; it was applied at {:?}",
                command.number,
                command.client,
                self.once.index(place.key, command.client, command.number)
            ))
            .breaks("true answers", place);
        }
        self.linearizable
            .command(place.key, floor, index)
            .breaks("linearizable", place)?;
        self.acknowledged
            .entry(place.key)
            .or_default()
            .push((command, index));
        Ok(())
    }

    /// A client is told that its command was given up, at `index`.
    pub fn given_up(
        &mut self,
        place: Place,
        command: Command,
        floor: u64,
        index: u64,
    ) -> Result<(), Violation> {
        let Command { client, number, .. } = command;
        if self.may_differ(place.key) {
            return Ok(());
        }
        if let Some(at) = self.once.index(place.key, client, number) {
            return Err(given_up_and_applied(command, at)).breaks(GIVEN_UP, place);
        }
        self.given_up.insert((place.key, client, number));
        self.linearizable
            .command(place.key, floor, index)
            .breaks("linearizable", place)
    }

    /// A client is told the state after `index`.
    pub fn read(
        &mut self,
        place: Place,
        floor: u64,
        index: u64,
        state: u64,
        linearizable: bool,
    ) -> Result<(), Violation> {
        if self.may_differ(place.key) {
            return Ok(());
        }
        let expected = self.machines.state(place.key, index);
        if expected.is_some_and(|expected| expected != state) {
            return Err(format!("a read at {index} sees another state"))
                .breaks("true answers", place);
        }
        if linearizable {
            self.linearizable
                .read(place.key, floor, index)
                .breaks("linearizable", place)?;
        }
        Ok(())
    }

    /// Everything has healed: each acknowledged command is in the state that all replicas have, once.
    pub fn healed(&self, key: GroupKey, applied: u64) -> Result<(), Violation> {
        if self.may_differ(key) {
            return Ok(());
        }
        let place = Place { node: 0, key };
        for (command, index) in self.acknowledged.get(&key).into_iter().flatten() {
            let at = self.once.index(key, command.client, command.number);
            if at != Some(*index) || *index > applied {
                return Err(format!(
                    "command {} of client {} was acknowledged at {index} and is at {at:?}; replicas are at {applied}",
                    command.number, command.client
                ))
                .breaks("durability", place);
            }
        }
        Ok(())
    }

    /// Counts for the report.
    pub fn counts(&self) -> Counts {
        let (acknowledged, reads) = self.linearizable.answers();
        Counts {
            steps: self.steps,
            elections: self.elections.elections() as u64,
            applies: self.machines.entries() as u64,
            commands: self.once.len() as u64,
            acknowledged,
            reads,
            snapshots: self.machines.snapshots() as u64,
            images: self.machines.images() as u64,
            read_back: self.read_back,
            given_up: self.given_up.len() as u64,
        }
    }
}

/// How much happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Steps of replicas, after each of which everything was checked.
    pub steps: u64,
    /// Leaders.
    pub elections: u64,
    /// Entries applied by machines, each counted once.
    pub applies: u64,
    /// Commands applied, each counted once.
    pub commands: u64,
    /// Commands whose clients were told.
    pub acknowledged: u64,
    /// Linearizable reads answered.
    pub reads: u64,
    /// Snapshots, each counted once.
    pub snapshots: u64,
    /// Those of them that are images.
    pub images: u64,
    /// Entries read back from the files of logs.
    pub read_back: u64,
    /// Commands that no member could run, whose clients were told.
    pub given_up: u64,
}

const GIVEN_UP: &str = "what is given up is applied nowhere";

fn given_up_and_applied(command: Command, index: u64) -> String {
    format!(
        "command {} of client {} was given up, and is applied at {index}",
        command.number, command.client
    )
}

fn outcome(outcome: &skep_core::outcome::Outcome) -> u64 {
    use skep_core::outcome::Outcome;
    match outcome {
        Outcome::Reply(reply) => digest((0_u8, &reply[..])),
        Outcome::Rejected { code, message } => digest((1_u8, code, message)),
        Outcome::Refused { code, .. } => digest((3_u8, code)),
        Outcome::Fault(fault) => digest((2_u8, fault.code())),
    }
}
