//! A leader whose machine is of no use hands leadership to somebody whose machine is known to be of use, and to nobody else:
//! where all have failed, an election after the other would change nothing.

use crate::group::Group;
use crate::id::ReplicaId;

/// The longest pause between two rounds of questions, as a power of two of election timeouts.
const ROUNDS_DOUBLED: u32 = 3;

/// What a faulted leader has done about it.
#[derive(Debug, Default)]
pub(crate) struct Handover {
    /// Rounds of questions asked.
    rounds: u32,
    /// The tick of the next round.
    next_round: u64,
    /// The tick before which no other transfer is begun.
    next_transfer: u64,
}

impl Group {
    /// Asks the members how they are, in ever longer intervals, and hands over when a voter is well. A learner cannot lead, but it
    /// may have the state that this replica lacks.
    pub(crate) fn give_leadership_away_if_faulted(&mut self) {
        let is_of_no_use = self.is_faulted() || self.lacks_what_was_decided();
        if !is_of_no_use || !self.leads() {
            self.handover = Handover::default();
            return;
        }
        let (ticks, timeout) = (self.ticks, u64::from(self.config.election_ticks));
        if ticks >= self.handover.next_transfer && self.transfer_to_best_of(Self::is_known_well) {
            // Raft gives a transfer up after an election timeout.
            self.handover.next_transfer = ticks + timeout;
        }
        if ticks < self.handover.next_round {
            return;
        }
        self.handover.next_round = ticks + (timeout << self.handover.rounds.min(ROUNDS_DOUBLED));
        self.handover.rounds += 1;
        for (replica, node) in self.other_members() {
            self.ask_standing(replica, node);
        }
    }

    /// Hands leadership to the active voter that has the most of the log, rather to one whose machine is of use. `false` if there
    /// is none.
    pub(crate) fn transfer_to_best_follower(&mut self) -> bool {
        self.transfer_to_best_of(|_, _| true)
    }

    fn transfer_to_best_of(&mut self, suits: fn(&Self, ReplicaId) -> bool) -> bool {
        let own = self.replica;
        let best = self
            .state
            .membership
            .voters()
            .filter(|replica| *replica != own && self.is_active(*replica) && suits(self, *replica))
            .filter_map(|replica| {
                let matched = self.raft.progress(replica)?.matched;
                // Of those who are equal another one for each group: all that a node leads must not go to one.
                let turn = crate::election::turn(self.config.group, replica);
                Some((!self.is_ailing(replica), matched, turn, replica))
            })
            .max();
        if let Some((_, _, _, best)) = best {
            self.raft.transfer_to(best);
        }
        best.is_some()
    }
}
