//! Which replicas answer. What raft-rs knows of it (`recent_active`) will not do: it forgets with every check of the quorum
//! and with every election, and until the next answers says of everybody that they are silent.

use std::collections::BTreeMap;

use crate::config::MEMBERS_MAX;
use crate::group::Group;
use crate::id::ReplicaId;

/// When each member was last heard of, in ticks of this replica.
#[derive(Debug, Default)]
pub(crate) struct Liveness {
    heard: BTreeMap<ReplicaId, u64>,
    /// The member that was added last, and when.
    newcomer: Option<(ReplicaId, u64)>,
    /// The tick this replica last became leader at.
    pub(crate) leader_since: u64,
}

impl Liveness {
    /// Nothing is to be heard of a replica for now.
    pub(crate) fn forget(&mut self, replica: ReplicaId) {
        self.heard.remove(&replica);
    }

    /// Remembers when a replica was heard of. If there are too many, the replica with the lowest id is forgotten: it is the most
    /// likely to be gone.
    fn note(&mut self, replica: ReplicaId, ticks: u64) {
        self.heard.insert(replica, ticks);
        if self.heard.len() > MEMBERS_MAX {
            self.heard.pop_first();
        }
    }
}

impl Group {
    /// A member has sent something that Raft may take.
    pub(crate) fn heard_of(&mut self, replica: ReplicaId) {
        if self.state.membership.member(replica).is_some() {
            self.liveness.note(replica, self.ticks);
        }
    }

    /// A member was added; it has not had the time to answer yet.
    pub(crate) fn note_newcomer(&mut self, replica: ReplicaId) {
        self.liveness.newcomer = Some((replica, self.ticks));
    }

    /// Whether something may be heard of a member that joins: lately it was, or it had no time to speak.
    pub(crate) fn is_awaited(&self, replica: ReplicaId) -> bool {
        let election = u64::from(self.config.election_ticks);
        let newcomer = self.liveness.newcomer;
        let is_new = newcomer
            .is_some_and(|(newcomer, since)| newcomer == replica && self.ticks < since + election);
        is_new || self.is_active(replica) || self.leads_since_recently()
    }

    /// Whether a replica answered within the last election timeout.
    pub(crate) fn is_active(&self, replica: ReplicaId) -> bool {
        let recently = |heard: &u64| self.ticks < heard + u64::from(self.config.election_ticks);
        replica == self.replica || self.liveness.heard.get(&replica).is_some_and(recently)
    }

    /// Like [`Self::is_active`], for who asks about it: `None` where this replica cannot know, since it does not lead, or not
    /// for long enough to take silence for an answer.
    pub(crate) fn activity(&self, replica: ReplicaId) -> Option<bool> {
        match self.is_active(replica) {
            _ if !self.leads() => None,
            true => Some(true),
            false if self.leads_since_recently() => None,
            false => Some(false),
        }
    }

    /// Whether this leader has not had the time to hear from everybody yet.
    pub(crate) fn leads_since_recently(&self) -> bool {
        self.ticks < self.liveness.leader_since + u64::from(self.config.election_ticks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_replica_is_forgotten_first() {
        let mut liveness = Liveness::default();
        let most = MEMBERS_MAX as u64;
        for id in 1..=most {
            liveness.note(ReplicaId(id), id);
            liveness.note(ReplicaId(id), id + 1);
        }
        assert_eq!(liveness.heard.get(&ReplicaId(1)), Some(&2));
        liveness.note(ReplicaId(most + 1), 1);
        assert_eq!(liveness.heard.get(&ReplicaId(1)), None);
        assert_eq!(liveness.heard.len(), MEMBERS_MAX);
    }
}
