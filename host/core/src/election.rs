//! When a replica stands for election: timeouts as a pure function, in place of the thread's randomness that raft-rs draws from,
//! and the first election of a group, for which nobody waits.

use raft::eraftpb::{Message, MessageType};

use crate::group::Group;
use crate::id::{GroupId, NodeId, ReplicaId, Term};
use crate::planted::{self, Defect};

/// Whose timeout it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidacy {
    pub(crate) node: NodeId,
    pub(crate) group: GroupId,
    pub(crate) term: u64,
    /// Campaigns that this replica has begun since it last knew of a leader.
    pub(crate) attempt: u64,
    /// How many voters come before this one, and how many there are; nothing if it is none.
    pub(crate) place: Option<(u64, u64)>,
}

/// Ticks until a replica campaigns, in `ticks..2 * ticks`.
///
/// When a leader falls silent, its followers begin to wait at the same moment. Each has a slot of its own, so that they
/// do not split the vote, and the first slot is the shortest timeout there is: the paper's random timeouts (section
/// 9.3) would let both wait long, or tie. The slots turn with the group and the term, so that the groups of a node do
/// not elect in lock-step, and no node leads them all. A replica that has campaigned in vain draws at random: its slot may be
/// another's, in whose eyes the members are others.
pub(crate) fn timeout(seed: u64, candidacy: Candidacy, ticks: u32) -> usize {
    let Candidacy {
        node,
        group,
        term,
        attempt,
        place,
    } = candidacy;
    let ticks = u64::from(ticks);
    let wait = match place {
        Some((before, voters)) if attempt == 0 => {
            let slot = (before + hash(0, [group.0, term]) % voters) % voters;
            slot * ticks / voters
        }
        _ => hash(seed, [node.0, group.0, term, attempt]) % ticks,
    };
    (ticks + wait) as usize
}

/// What a founder has still to do for the first election of its group.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) enum FirstElection {
    /// Nothing.
    #[default]
    Over,
    /// To stand, or to tell this one who stands that it is there, as soon as Raft knows the founders.
    Due(ReplicaId),
    /// To ask again, also for the votes of whoever comes up later.
    Stands,
}

impl Group {
    /// Begins the first election: the founder that was named stands, and the others tell it that they are there, since its
    /// request may have come before they were. If it is dead, a timeout ends as in every election.
    pub(crate) fn begin_first_election(&mut self) -> bool {
        let FirstElection::Due(first) = self.first_election else {
            return false;
        };
        // Raft lets nobody campaign who has a committed change before it, as are the founders. And a founder alone would lead, and
        // commit, before anything of its group is on its disk.
        let knows_founders = self.processed.0 >= self.config.members.len() as u64;
        if !knows_founders || self.storage.on_the_way() > 0 || !self.may_campaign() {
            return false;
        }
        self.first_election = FirstElection::Over;
        if first == self.replica {
            self.first_election = FirstElection::Stands;
            self.raft.campaign();
        } else if let Some(node) = self.node_of(first) {
            self.ask_standing(first, node);
        }
        true
    }

    /// What the first candidate said may be lost, and a timeout is long.
    pub(crate) fn tick_first_election(&mut self) {
        if self
            .ticks
            .is_multiple_of(u64::from(self.config.heartbeat_ticks))
        {
            self.stand_again();
        }
    }

    /// Asks for votes once more: a member has come up, or some time has passed.
    pub(crate) fn stand_again(&mut self) {
        if self.first_election != FirstElection::Stands {
            return;
        }
        // Whoever has entered another term was heard by a majority.
        if self.term() > FOUNDING_TERM || self.raft.leader().is_some() {
            self.first_election = FirstElection::Over;
        } else if self.may_campaign() {
            self.raft.campaign();
        }
    }
}

/// A leader whose process has ended is not waited for.
impl Group {
    /// The process of a node has ended. If it led, its group has no leader from here on, and whoever would stand first does so
    /// after [`GONE_TICKS`], when the others know too: who has heard nothing would refuse to vote. Safety rests on no timeout,
    /// and a leader that lives all the same is followed again at its next heartbeat.
    pub(crate) fn node_gone(&mut self, node: NodeId) {
        if let Some(replica) = self.state.membership.replica_on(node) {
            self.liveness.forget(replica);
        }
        let Some(leader) = self.raft.leader() else {
            return;
        };
        if self.leads() || self.node_of(leader) != Some(node) {
            return;
        }
        if planted::has(Defect::GoneIsBelieved) {
            self.raft.step(Message {
                msg_type: MessageType::MsgTimeoutNow,
                from: leader.0,
                to: self.replica.0,
                term: self.term().0,
                ..Message::default()
            });
        }
        self.gone_leader = Some((leader, self.term()));
        let elapsed = u64::from(self.config.election_ticks).saturating_sub(GONE_TICKS);
        self.raft.lose_leader(elapsed as usize);
    }

    /// The leader of this term, if its process has ended: the others need not leave it a slot.
    pub(crate) fn gone_leader(&self) -> Option<ReplicaId> {
        let (leader, term) = self.gone_leader?;
        (term == self.term() && self.raft.leader().is_none()).then_some(leader)
    }
}

/// Ticks from the news that the leader's process has ended to the first candidacy.
const GONE_TICKS: u64 = 2;

/// Orders the replicas of a group, each group in another way.
pub(crate) fn turn(group: GroupId, replica: ReplicaId) -> u64 {
    hash(0, [group.0, replica.0])
}

/// The term of the entries that every founder begins with.
pub(crate) const FOUNDING_TERM: Term = Term(1);

fn hash<const N: usize>(seed: u64, words: [u64; N]) -> u64 {
    words
        .into_iter()
        .fold(seed, |hash, word| mix(hash ^ mix(word)))
}

/// The finalizer of splitmix64.
fn mix(word: u64) -> u64 {
    let mut word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidacy(node: u64, group: u64, attempt: u64) -> Candidacy {
        Candidacy {
            node: NodeId(node),
            group: GroupId(group),
            term: 3,
            attempt,
            place: None,
        }
    }

    #[test]
    fn drawn_timeouts_are_in_range_and_differ() {
        let draw = |node, group, attempt| timeout(1, candidacy(node, group, attempt), 10);
        let mut seen = std::collections::BTreeSet::new();
        for node in 1..4 {
            for group in 0..50 {
                for attempt in 0..5 {
                    let ticks = draw(node, group, attempt);
                    assert!((10..20).contains(&ticks));
                    seen.insert(ticks);
                }
            }
        }
        assert_eq!(seen.len(), 10);
        assert!((0..10).any(|attempt| draw(1, 1, attempt) != draw(2, 1, attempt)));
    }

    #[test]
    fn voters_have_slots_of_their_own() {
        let mut first = std::collections::BTreeSet::new();
        for group in 0..50 {
            for voters in 1..8 {
                let mut slots: Vec<_> = (0..voters)
                    .map(|before| {
                        let place = Some((before, voters));
                        // Nothing but the place tells the voters apart: not even the seed.
                        timeout(
                            before,
                            Candidacy {
                                place,
                                ..candidacy(before, group, 0)
                            },
                            10,
                        )
                    })
                    .collect();
                if voters == 3 {
                    first.insert(slots.iter().position(|slot| *slot == 10));
                }
                slots.sort_unstable();
                assert_eq!(slots[0], 10);
                assert!(slots.windows(2).all(|two| two[0] < two[1]), "{slots:?}");
                assert!(slots.iter().all(|slot| *slot < 20));
            }
        }
        assert_eq!(first.len(), 3, "each voter is the first of some groups");
    }
}
