//! How a group goes on that has lost the majority of its voters for good: one of those that are left is declared to be the group.
//!
//! Raft cannot do that, because without a majority nobody knows what is committed. An operator can, who says that the others
//! do not come back. What follows is an ordinary log: all that the chosen replica has counts for committed, and behind that
//! stand ordinary changes, by which whoever is lost leaves, and whoever else is left votes no longer until it has caught up.
//! So the entries explain the members by themselves, as everywhere, to machines and to replicas that join later; nothing that
//! is replicated depends on where an operator was at work, and sessions and state are what they were.
//!
//! # Which replica
//!
//! The one whose log Raft would call the most up to date: the highest last term, and of these the highest last index. It has
//! all that any of the others knows to be committed. For whoever has an entry of a later term than the one in which something
//! was committed has that too, since the leader of that term did; and within one term logs are beginnings of one another. So
//! the others may keep what they have, and catch up like any member that was away: of what they applied nothing is taken back.
//!
//! # What is lost
//!
//! What only the lost ones had; nobody can say what that is. And entries that were in doubt become committed, of which some may
//! never have been acknowledged.

use std::collections::{BTreeSet, VecDeque};

use bytes::Bytes;
use prost::Message;
use raft::eraftpb::{self, EntryType, HardState};
use sha2::{Digest, Sha256};

use crate::activation::{AbortReason, abort};
use crate::attestation::{Judgement, all_agree};
use crate::effect::Persist;
use crate::entry::{self, Order, Unreadable};
use crate::founding::Recovered;
use crate::id::{LogIndex, NodeId, ReplicaId, RequestId, Term};
use crate::outcome::ChangeKind;
use crate::payload::{ChangeRecord, Commands, Item, Kind, Payload, Verdict};
use crate::proposal::Command;
use crate::state::{HostState, Membership, Role, StateError};

/// Where a replica stands, by what is on its disk.
#[derive(Debug)]
pub struct Survey {
    /// Its raft id.
    pub replica: ReplicaId,
    /// The highest term that it has seen.
    pub term: Term,
    /// Entries up to here are known to be committed. Later ones may be.
    pub commit: LogIndex,
    /// The last entry that it has.
    pub last: (LogIndex, Term),
    /// The members up to what is known to be committed.
    pub committed: Membership,
    /// The members at the end of its log.
    pub members: Membership,
    /// The group calls its state wrong.
    pub is_contradicted: bool,
    /// Activations and impasses on which nothing is decided, by where they stand.
    undecided: BTreeSet<LogIndex>,
    /// Its group stopped because replicas differ without a majority.
    suspended: Option<Verdict>,
}

/// Why a replica cannot be surveyed.
#[derive(Debug, thiserror::Error)]
pub enum NoSurvey {
    /// There is none: it was created, and never contacted.
    #[error("no leader ever contacted the replica, so it has nothing")]
    Empty,
    /// Its log begins behind a snapshot that is not there.
    #[error("its log begins behind entry {begins}, and the snapshot of what stands before is gone")]
    NoSnapshot {
        /// What stands before the log.
        begins: LogIndex,
    },
    /// The host's section of its snapshot makes no sense.
    #[error(transparent)]
    State(#[from] StateError),
    /// An entry makes no sense.
    #[error("entry {index} of its log cannot be read: {source}")]
    Entry {
        /// Which.
        index: LogIndex,
        /// Why.
        source: Unreadable,
    },
}

/// Why a replica cannot be made the start of its group.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NoStart {
    /// At the end of its log it is no member.
    #[error("the replica is no member of its group any more")]
    NoMember,
    /// Somebody may have been elected in that term.
    #[error("term {0} is not above all terms that the replica has seen")]
    UsedTerm(Term),
    /// The membership refuses what would have to be.
    #[error("the members of the group cannot become what they should")]
    NoChange,
}

impl Survey {
    /// Looks at what a node's disk has of a replica.
    ///
    /// # Errors
    /// [`NoSurvey`], where the replica is of no use.
    pub fn of(recovered: &Recovered) -> Result<Self, NoSurvey> {
        if recovered.replica.0 == 0 {
            return Err(NoSurvey::Empty);
        }
        let (state, start) = match &recovered.snapshot {
            Some((name, bytes)) => (HostState::decode(bytes.clone())?.0, name.index),
            None => (HostState::default(), LogIndex(0)),
        };
        let begins = recovered.truncated.0;
        if begins > start {
            return Err(NoSurvey::NoSnapshot { begins });
        }
        let commit = LogIndex(recovered.hard_state.commit).max(start);
        let last = recovered.entries.last();
        let last = last.map_or(recovered.truncated, |last| {
            (LogIndex(last.index), Term(last.term))
        });
        let mut survey = Self {
            replica: recovered.replica,
            term: Term(recovered.hard_state.term).max(last.1),
            commit,
            last,
            committed: state.membership.clone(),
            members: state.membership,
            is_contradicted: false,
            undecided: BTreeSet::new(),
            suspended: None,
        };
        let mut settled = state.settled;
        let later = recovered.entries.iter().filter(|of| of.index > start.0);
        for of in later {
            let index = LogIndex(of.index);
            let order = entry::read(of).map_err(|source| NoSurvey::Entry { index, source })?;
            if let Some((_, order)) = order {
                survey.take(index, order, &mut settled);
            }
            if index == commit {
                survey.committed = survey.members.clone();
            }
        }
        let member = survey.members.member(survey.replica);
        // A snapshot that it has taken since is the majority's.
        survey.is_contradicted = member.is_some_and(|member| member.contradicted > start);
        Ok(survey)
    }

    fn take(&mut self, index: LogIndex, order: Order, settled: &mut LogIndex) {
        match order {
            Order::Change(kind, record) => {
                let (replica, node) = (ReplicaId(record.replica), NodeId(record.node));
                // What makes no sense changes nothing, here as there.
                self.members
                    .apply(kind, replica, node, &record.data, record.promote);
            }
            Order::Activate(_) | Order::Impasse(_) => {
                self.undecided.insert(index);
            }
            Order::Decide(of, _) => {
                self.undecided.remove(&of);
            }
            Order::Verdict(verdict) => {
                let of = LogIndex(verdict.index);
                let agree = all_agree(&verdict.testimony(&self.members));
                if of <= *settled || verdict.trusted == 0 && agree {
                    return;
                }
                match verdict.judge(&self.members) {
                    Judgement::Majority(right) => {
                        *settled = of;
                        verdict.contradict(&right, index, &mut self.members);
                        self.suspended.take_if(|open| open.index == of.0);
                    }
                    Judgement::Undecided => self.suspended = Some(verdict),
                }
            }
            _ => {}
        }
    }

    /// Whether its group stopped because replicas differ, and goes on from this one's state if it is chosen.
    pub fn is_suspended(&self) -> bool {
        self.suspended.is_some()
    }

    /// Makes the replica the start of its group, in a term that nobody was elected in: what is to be made durable at once. All
    /// that is in its log is committed then, and so are these commands behind it. Of the members those on the nodes of `stay`
    /// remain; they vote again when they have caught up. The same arguments give the same record.
    ///
    /// # Errors
    /// [`NoStart`].
    pub fn start(
        &self,
        term: Term,
        stay: &BTreeSet<NodeId>,
        seed: &[u8; 32],
        commands: Vec<Bytes>,
    ) -> Result<Persist, NoStart> {
        if term <= self.term {
            return Err(NoStart::UsedTerm(term));
        }
        let mut log = Log {
            next: self.last.0.0 + 1,
            term,
            seed,
            entries: Vec::new(),
        };
        // In front of the changes: behind an entry at which the group stops nobody could be elected.
        for index in &self.undecided {
            log.order(abort(*index, AbortReason::Operator));
        }
        if let Some(verdict) = &self.suspended {
            log.order(Kind::Verdict(Verdict {
                trusted: self.replica.0,
                ..verdict.clone()
            }));
        }
        for change in self.changes(stay)? {
            log.change(change);
        }
        if !commands.is_empty() {
            let items = commands.into_iter().map(|data| {
                Item::from(Command {
                    request: RequestId::ANONYMOUS,
                    acknowledged: 0,
                    data,
                })
            });
            let items = items.collect();
            log.order(Kind::Commands(Commands { items }));
        }
        Ok(Persist {
            replica: self.replica,
            hard_state: Some(HardState {
                term: term.0,
                // As if it had been elected in this term, so that nobody else can be.
                vote: self.replica.0,
                commit: log.next - 1,
                ..HardState::default()
            }),
            entries: log.entries,
            ..Persist::default()
        })
    }

    /// The changes after which this replica is the only voter.
    fn changes(&self, stay: &BTreeSet<NodeId>) -> Result<Vec<ChangeRecord>, NoStart> {
        let own = self.members.member(self.replica).ok_or(NoStart::NoMember)?;
        let record = |replica: ReplicaId, kind: ChangeKind| {
            let member = self.members.member(replica)?;
            Some(ChangeRecord {
                kind: kind as u32,
                node: member.node.0,
                replica: replica.0,
                data: member.data.clone(),
                promote: kind == ChangeKind::AddLearner,
                ..ChangeRecord::default()
            })
        };
        let others = self.members.members().iter();
        let others = others.filter(|(replica, _)| **replica != self.replica);
        let mut due: VecDeque<_> = others
            .filter_map(|(replica, member)| match stay.contains(&member.node) {
                false => record(*replica, ChangeKind::Remove),
                true if member.role == Role::Voter => record(*replica, ChangeKind::AddLearner),
                true => None,
            })
            .collect();
        if own.role != Role::Voter {
            due.extend(record(self.replica, ChangeKind::Promote));
        }
        let (mut members, mut changes, mut refused) = (self.members.clone(), Vec::new(), 0);
        while let Some(change) = due.pop_front() {
            let kind = change.change_kind().ok_or(NoStart::NoChange)?;
            let (replica, node) = (ReplicaId(change.replica), NodeId(change.node));
            if members.apply(kind, replica, node, &change.data, change.promote) {
                changes.push(change);
                refused = 0;
                continue;
            }
            // The last voter leaves when another one votes; and that one waits while there are as many as may be.
            refused += 1;
            due.push_back(change);
            if refused > due.len() {
                return Err(NoStart::NoChange);
            }
        }
        Ok(changes)
    }
}

/// The entries behind a log.
struct Log<'a> {
    next: u64,
    term: Term,
    seed: &'a [u8; 32],
    entries: Vec<eraftpb::Entry>,
}

impl Log<'_> {
    /// Nothing here knows the time: an entry has that of the one before it if its own is earlier.
    const NOW: u64 = 0;

    fn entropy(&self) -> Bytes {
        let mut hash = Sha256::new();
        hash.update(self.seed);
        hash.update(self.next.to_le_bytes());
        Bytes::copy_from_slice(&hash.finalize()[..16])
    }

    fn order(&mut self, kind: Kind) {
        let payload = Payload {
            now: Self::NOW,
            entropy: self.entropy(),
            kind: Some(kind),
        };
        self.push(EntryType::EntryNormal, payload.encode_to_vec(), Vec::new());
    }

    fn change(&mut self, mut record: ChangeRecord) {
        record.now = Self::NOW;
        record.entropy = self.entropy();
        let context = record.encode_to_vec();
        self.push(EntryType::EntryConfChange, Vec::new(), context);
    }

    fn push(&mut self, entry_type: EntryType, data: Vec<u8>, context: Vec<u8>) {
        self.entries.push(eraftpb::Entry {
            entry_type,
            term: self.term.0,
            index: self.next,
            data: data.into(),
            context: context.into(),
            ..Default::default()
        });
        self.next += 1;
    }
}
