//! Commands that no member's machine could run, each for a reason that may lie in its own node.
//!
//! Such a failure is no outcome: a machine elsewhere may do better, and then that one is right. A replica stops at the
//! command, starts again, and tries again. But where every member stops at the same command in the same way, the group would
//! try for ever. Then the leader puts an *impasse* into the log. It changes nothing; but whoever has not applied the command
//! leaves it alone from then on. When all members have said that they have it in their logs and have never applied the command,
//! the leader confirms it: the command has failed, everywhere, and no machine is given it again. If one member has applied it,
//! or one is silent until a deadline, the leader aborts, and all try again. Of two decisions the first in the log counts.
//!
//! *Every member*, and not a majority: whoever has applied a command may have answered it, or a query behind it, and an answer
//! that was given stands. So the leader must know all who are members where the command stands, or came to be behind it: while
//! its log holds a change of membership that it has not processed, or one behind the command, it gives nothing up. For the
//! same reason a replica vouches only for what no life of it can have applied: what came to its log in this run of its process.

use std::collections::{BTreeMap, BTreeSet};

use raft::eraftpb::{Entry, EntryType};

use crate::activation::{AbortReason, Decision, abort};
use crate::entry::{self, Order};
use crate::group::Group;
use crate::id::{LogIndex, ReplicaId};
use crate::input::Stopped;
use crate::payload::{self, Confirm, Kind};
use crate::planted::{self, Defect};
use crate::status::Health;

/// A command at which a machine stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Impasse {
    /// Its entry.
    pub index: LogIndex,
    /// Which of the entry it is.
    pub item: u32,
    /// What kind of trouble it was: a number of the machine's.
    pub code: u8,
}

/// What an entry of the log says of impasses.
#[derive(Clone, Copy, Debug)]
enum Said {
    There(Impasse),
    /// On the impasse that stands there.
    Decided(LogIndex, Decision),
}

/// What is said of a replica whose machine may come to something if it is started again, because the group has decided.
pub const DECIDED: &str = "; the group has decided on the command meanwhile";

/// What the log says of impasses, by place, committed or not.
#[derive(Debug, Default)]
pub(crate) struct Impasses {
    said: BTreeMap<LogIndex, Said>,
    /// Where changes of membership stand.
    changes: BTreeSet<LogIndex>,
    /// What is decided is known beyond what is committed.
    foreseen: bool,
}

/// What a leader was told since it leads.
#[derive(Debug, Default)]
pub(crate) struct Deliberation {
    /// When it began to count for the impasse that stands here.
    since: Option<(LogIndex, u64)>,
    /// The tick of the next round of questions.
    next_round: u64,
    /// The last word of each member, and when it came.
    words: BTreeMap<ReplicaId, (Word, u64)>,
}

/// What a member says.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Word {
    /// Its machine stopped here, and it has never applied that.
    pub stopped: Option<Impasse>,
    /// It has the impasse that stands here in its log, undecided, and has never applied the command. 0 is none.
    pub waits: LogIndex,
}

impl Impasses {
    /// The log goes on with these from where the first one stands.
    pub(crate) fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        let first = LogIndex(first.index);
        drop(self.said.split_off(&first));
        drop(self.changes.split_off(&first));
        let changes = |entry: &&Entry| entry.entry_type != EntryType::EntryNormal;
        let places = entries.iter().filter(changes);
        self.changes
            .extend(places.map(|entry| LogIndex(entry.index)));
        for entry in entries
            .iter()
            .filter(|entry| entry::may_be_of_impasse(entry))
        {
            let said = match entry::read(entry) {
                Ok(Some((_, Order::Impasse(impasse)))) => Said::There(impasse),
                Ok(Some((_, Order::Decide(of, decision))))
                    if matches!(self.said.get(&of), Some(Said::There(_))) =>
                {
                    Said::Decided(of, decision)
                }
                // What cannot be read is found when its turn comes.
                _ => continue,
            };
            self.said.insert(LogIndex(entry.index), said);
        }
    }

    /// Takes in entries that follow on the log, and counts all decisions for committed.
    pub(crate) fn foresee(&mut self, later: &[Entry]) {
        self.append(later);
        self.foreseen = true;
        let undecided: Vec<_> = (self.there())
            .filter(|(at, _)| self.decision(*at, LogIndex(u64::MAX)).is_none())
            .map(|(at, _)| at)
            .collect();
        self.said.retain(|at, _| !undecided.contains(at));
    }

    /// The log begins behind `index` now.
    pub(crate) fn truncate(&mut self, index: LogIndex) {
        let first = LogIndex(index.0 + 1);
        if !self.said.is_empty() {
            self.said = self.said.split_off(&first);
        }
        if !self.changes.is_empty() {
            self.changes = self.changes.split_off(&first);
        }
    }

    /// The decision on the impasse at a place that stands first in the log up to `through`.
    fn decision(&self, at: LogIndex, through: LogIndex) -> Option<Decision> {
        self.said
            .range(at..=through.max(at))
            .find_map(|(_, said)| match said {
                Said::Decided(of, decision) if *of == at => Some(*decision),
                _ => None,
            })
    }

    fn there(&self) -> impl Iterator<Item = (LogIndex, Impasse)> {
        self.said.iter().filter_map(|(at, said)| match said {
            Said::There(impasse) => Some((*at, *impasse)),
            Said::Decided(..) => None,
        })
    }

    /// What was decided up to `committed` of commands of the entry at `index`; none where that is to come.
    fn of(
        &self,
        index: LogIndex,
        committed: LogIndex,
    ) -> impl Iterator<Item = (Impasse, Option<Decision>)> {
        let committed = match self.foreseen {
            true => LogIndex(u64::MAX),
            false => committed,
        };
        let of_it = (self.there()).filter(move |(_, impasse)| impasse.index == index);
        of_it.map(move |(at, impasse)| (impasse, self.decision(at, committed)))
    }

    /// The last entry of which a command was given up. Its members know; whoever joins is sent a snapshot of a later point.
    pub(crate) fn given_up_through(&self) -> LogIndex {
        let all = LogIndex(u64::MAX);
        let given_up =
            |(at, _): &(LogIndex, Impasse)| self.decision(*at, all) == Some(Decision::Confirmed);
        let entries = self
            .there()
            .filter(given_up)
            .map(|(_, impasse)| impasse.index);
        entries.max().unwrap_or_default()
    }

    /// Whether the log holds one on which nothing is decided.
    pub(crate) fn holds_an_open_one(&self) -> bool {
        let all = LogIndex(u64::MAX);
        self.open(all, all).is_some()
    }

    /// Whether a decision on this command stands behind `after`, and not behind `committed`.
    fn is_decided(&self, impasse: Impasse, after: LogIndex, committed: LogIndex) -> bool {
        let command = (impasse.index, impasse.item);
        let of_it = |at: &LogIndex| {
            let there = self.said.get(at);
            matches!(there, Some(Said::There(known)) if (known.index, known.item) == command)
        };
        let behind = LogIndex(after.0 + 1);
        behind <= committed
            && (self.said.range(behind..=committed))
                .any(|(_, said)| matches!(said, Said::Decided(at, _) if of_it(at)))
    }

    /// The first impasse up to `through` on which nothing is decided up to `committed`.
    fn open(&self, through: LogIndex, committed: LogIndex) -> Option<(LogIndex, Impasse)> {
        let mut there = self.there().take_while(|(at, _)| *at <= through);
        there.find(|(at, _)| self.decision(*at, committed).is_none())
    }
}

impl Group {
    /// Whether it is to be decided yet what becomes of a committed entry. What is not committed itself may come to count, too.
    pub(crate) fn waits_at(&self, index: LogIndex) -> bool {
        let mut of_it = self.impasses().of(index, self.committed_through());
        of_it.any(|(_, decision)| decision.is_none())
    }

    fn impasses(&self) -> &Impasses {
        self.raft.log().impasses()
    }

    /// Whether the log holds an impasse on which it holds no decision.
    pub(crate) fn has_an_open_impasse(&self) -> bool {
        self.impasses().holds_an_open_one()
    }

    /// Whether the next entry waits for a decision.
    pub(crate) fn waits_at_impasse(&self) -> bool {
        let next = self.committed.front();
        next.is_some_and(|entry| self.waits_at(LogIndex(entry.index)))
    }

    /// The commands of an entry that the group has given up.
    pub(crate) fn failed_commands(&self, index: LogIndex) -> BTreeSet<usize> {
        let of_it = self.impasses().of(index, self.committed_through());
        let given_up = of_it.filter(|(_, decision)| *decision == Some(Decision::Confirmed));
        given_up.map(|(impasse, _)| impasse.item as usize).collect()
    }

    /// Decides as the given entries do, which follow on the log that this replica has: for whoever tells the past again up to
    /// an entry before them.
    pub fn foresee(&mut self, later: &[Entry]) {
        self.raft.log_mut().foresee(later);
    }

    /// The first entry that no life of this replica can have applied.
    pub(crate) fn untried_from(&self) -> LogIndex {
        self.untried_from.max(LogIndex(self.applied.0 + 1))
    }

    /// Entries up to here are known to be committed.
    pub(crate) fn committed_through(&self) -> LogIndex {
        self.raft.committed()
    }

    fn has_never_tried(&self, index: LogIndex) -> bool {
        index >= self.untried_from || planted::has(Defect::VouchesForFormerLives)
    }

    /// This life follows one in the same process, which knew more of what was applied than the files do.
    pub fn has_not_tried(&mut self, from: LogIndex) {
        self.untried_from = self.untried_from.min(from);
    }

    /// The command at which the machine stopped, if this replica can vouch that it has never been applied here.
    pub(crate) fn impasse_of(&self, stopped: Stopped) -> Option<Impasse> {
        let item = self.applying.front()?.item_of(stopped)?;
        self.has_never_tried(stopped.index).then_some(Impasse {
            index: stopped.index,
            item,
            code: stopped.code,
        })
    }

    /// Whether the group has decided on the command at which this machine stopped, since it did. Then another start may come to
    /// something: without the command, or with it once more.
    fn notice_decision(&mut self) {
        let Some(impasse) = self.impasse else {
            return;
        };
        let committed = self.committed_through();
        let impasses = self.impasses();
        let is_decided = impasses.is_decided(impasse, self.impasse_at, committed);
        if is_decided && let Health::Faulted { reason } = &mut self.health {
            reason.push_str(DECIDED);
            self.impasse = None;
        }
    }

    /// What this replica says of impasses, whoever leads.
    pub(crate) fn word(&self) -> Word {
        let durable = self.raft.durable();
        let committed = self.committed_through();
        // What it says must be true after a crash, too.
        let open = self.impasses().open(committed.min(durable), committed);
        let has_stopped = matches!(self.health, Health::Faulted { .. });
        let leaves_alone = |impasse: &Impasse| {
            self.has_never_tried(impasse.index)
                && self.applied < impasse.index
                && (has_stopped || self.processed < impasse.index)
        };
        Word {
            stopped: self.impasse.filter(|_| has_stopped),
            waits: open
                .filter(|(_, impasse)| leaves_alone(impasse))
                .map_or(LogIndex(0), |(at, _)| at),
        }
    }

    /// A member says how it is with an impasse.
    pub(crate) fn heard_word(&mut self, from: ReplicaId, word: Word) {
        if self.leads() && self.state.membership.member(from).is_some() {
            self.deliberation.words.insert(from, (word, self.ticks));
        }
    }

    /// Another replica leads, or another term has begun.
    pub(crate) fn leader_changed_for_impasse(&mut self) {
        self.deliberation = Deliberation::default();
    }

    /// The impasse that this leader has to decide on.
    fn undecided(&self) -> Option<(LogIndex, Impasse)> {
        let committed = self.committed_through();
        // A decision that is not committed yet is one all the same: the log of a leader is only added to.
        self.impasses().open(committed, LogIndex(u64::MAX))
    }

    /// A leader that has to decide, or has stopped itself, asks all members with every election timeout.
    pub(crate) fn tend_impasse(&mut self) {
        self.notice_decision();
        if !self.leads() {
            return;
        }
        let undecided = self.undecided();
        if undecided.is_none() && self.word().stopped.is_none() {
            return;
        }
        let at = undecided.map(|(at, _)| at);
        if self.deliberation.since.map(|(of, _)| of) != at {
            self.deliberation.since = at.map(|at| (at, self.ticks));
            self.deliberation.next_round = self.ticks;
        }
        if self.ticks < self.deliberation.next_round {
            return;
        }
        self.deliberation.next_round = self.ticks + u64::from(self.config.election_ticks);
        for (replica, node) in self.other_members() {
            self.ask_standing(replica, node);
        }
    }

    pub(crate) fn other_members(&self) -> Vec<(ReplicaId, crate::id::NodeId)> {
        let members = self.state.membership.members().iter();
        members
            .filter(|(replica, _)| **replica != self.replica)
            .map(|(replica, member)| (*replica, member.node))
            .collect()
    }

    /// Whether every other member has lately said so. Where there is none, nobody has: one replica alone decides nothing.
    fn all_say(&self, so: impl Fn(&Word) -> bool) -> bool {
        let patience = 2 * u64::from(self.config.election_ticks);
        let says = |replica: &ReplicaId| {
            let word = self.deliberation.words.get(replica);
            word.is_some_and(|(word, at)| self.ticks < at + patience && so(word))
        };
        let others = self.other_members();
        let saying = others.iter().filter(|(replica, _)| says(replica)).count();
        let needed = match planted::has(Defect::GivesUpByMajority) {
            true => others.len().div_ceil(2),
            false => others.len(),
        };
        !others.is_empty() && saying >= needed
    }

    /// A leader puts into the log what is known by now. `true` if there was something.
    pub(crate) fn propose_on_impasse_if_due(&mut self) -> bool {
        if !self.may_propose() {
            return false;
        }
        let kind = match self.undecided() {
            Some((at, impasse)) => self.due_on(at, impasse),
            None => self.due_impasse(),
        };
        kind.is_some_and(|kind| self.propose_entry(kind, &[]).is_ok())
    }

    fn due_on(&self, at: LogIndex, impasse: Impasse) -> Option<Kind> {
        let all_wait = || self.word().waits == at && self.all_say(|word| word.waits == at);
        if self.knows_all_members(impasse) && all_wait() {
            return Some(Kind::Confirm(Confirm { index: at.0 }));
        }
        let since = self.deliberation.since.filter(|(of, _)| *of == at);
        let deadline = u64::from(self.config.limits.activation_ticks);
        let is_late = since.is_some_and(|(_, since)| self.ticks >= since + deadline);
        let is_over = is_late || self.applied >= impasse.index;
        is_over.then(|| abort(at, AbortReason::Deadline))
    }

    /// Whether nobody can have applied a command whom this leader does not know.
    fn knows_all_members(&self, impasse: Impasse) -> bool {
        let from = LogIndex(impasse.index.0.min(self.processed.0 + 1));
        self.impasses().changes.range(from..).next().is_none()
    }

    fn due_impasse(&self) -> Option<Kind> {
        let stopped = self.word().stopped?;
        let impasses = self.impasses();
        // What is in the log and not committed is on its way.
        let is_on_its_way = impasses.holds_an_open_one()
            || impasses.is_decided(stopped, self.impasse_at, LogIndex(u64::MAX));
        let all_stopped = !is_on_its_way
            && self.knows_all_members(stopped)
            && self.all_say(|word| word.stopped == Some(stopped));
        all_stopped.then_some(Kind::Impasse(payload::Impasse {
            index: stopped.index.0,
            item: stopped.item,
            code: u32::from(stopped.code),
        }))
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::entry as entries;
    use crate::payload::{Abort, Barrier, Commands, Payload};

    fn entry(index: u64, kind: Kind) -> Entry {
        let payload = Payload {
            now: 7,
            entropy: vec![1; 16].into(),
            kind: Some(kind),
        };
        Entry {
            index,
            data: payload.encode_to_vec().into(),
            ..Entry::default()
        }
    }

    fn impasse(index: u64, of: u64, item: u32) -> Entry {
        let code = 2;
        entry(
            index,
            Kind::Impasse(payload::Impasse {
                index: of,
                item,
                code,
            }),
        )
    }

    fn confirm(index: u64, of: u64) -> Entry {
        entry(index, Kind::Confirm(Confirm { index: of }))
    }

    fn abort(index: u64, of: u64) -> Entry {
        entry(index, Kind::Abort(Abort { index: of, code: 1 }))
    }

    /// What is known of entry 5 where the log is committed so far: none if that is to come.
    fn failed(impasses: &Impasses, committed: u64) -> Option<Vec<u32>> {
        let of_it: Vec<_> = impasses.of(LogIndex(5), LogIndex(committed)).collect();
        let decided = of_it.iter().all(|(_, decision)| decision.is_some());
        let confirmed = |(impasse, decision): &(Impasse, Option<Decision>)| {
            (*decision == Some(Decision::Confirmed)).then_some(impasse.item)
        };
        decided.then(|| of_it.iter().filter_map(confirmed).collect())
    }

    #[test]
    fn the_first_committed_decision_counts_and_what_is_replaced_does_not() {
        let mut impasses = Impasses::default();
        assert_eq!(failed(&impasses, 9), Some(vec![]));
        impasses.append(&[impasse(6, 5, 1), confirm(7, 6), abort(8, 6)]);
        assert_eq!(failed(&impasses, 6), None, "it is not decided");
        assert_eq!(failed(&impasses, 7), Some(vec![1]));
        assert_eq!(failed(&impasses, 8), Some(vec![1]), "the first counts");
        // Another leader has written something else there.
        impasses.append(&[abort(7, 6)]);
        assert_eq!(failed(&impasses, 9), Some(vec![]));
        impasses.append(&[impasse(8, 5, 3)]);
        assert_eq!(failed(&impasses, 9), None, "a second one");
        impasses.append(&[confirm(9, 8)]);
        assert_eq!(failed(&impasses, 9), Some(vec![3]));
        // One that is not committed may come to count.
        impasses.append(&[impasse(10, 5, 4)]);
        assert_eq!(failed(&impasses, 9), None);
        impasses.append(&[entry(6, Kind::Barrier(Barrier::default()))]);
        assert_eq!(failed(&impasses, 9), Some(vec![]));
    }

    #[test]
    fn who_tells_the_past_knows_what_was_decided_later() {
        let mut impasses = Impasses::default();
        impasses.append(&[impasse(6, 5, 1)]);
        impasses.foresee(&[confirm(7, 6), impasse(8, 5, 2)]);
        assert_eq!(failed(&impasses, 5), Some(vec![1]), "the second never was");
    }

    #[test]
    fn what_the_log_forgets_is_forgotten() {
        let mut impasses = Impasses::default();
        impasses.append(&[impasse(6, 5, 1), confirm(7, 6)]);
        impasses.truncate(LogIndex(7));
        assert!(impasses.said.is_empty());
    }

    #[test]
    fn only_entries_of_its_kinds_are_looked_at() {
        for yes in [impasse(6, 5, u32::MAX), confirm(7, u64::MAX), abort(8, 1)] {
            assert!(entries::may_be_of_impasse(&yes));
        }
        let commands = Kind::Commands(Commands::default());
        for no in [
            entry(1, commands),
            entry(2, Kind::Barrier(Barrier::default())),
            Entry::default(),
        ] {
            assert!(!entries::may_be_of_impasse(&no));
        }
    }
}
