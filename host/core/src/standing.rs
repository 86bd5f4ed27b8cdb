//! How two replicas stand with each other: asked of a node, and believed only of the node that was asked.
//!
//! That a replica was removed, or has lost what it had stored, is news after which it deletes itself or stops. A message
//! that says so proves nothing: whoever reaches a node's port can send one in any name. Such a message is a hint. The
//! replica asks back, over the connection that its own node has dialled, with a number that nobody else sees, and
//! believes the answer that shows the number again.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

use crate::config::MEMBERS_MAX;
use crate::effect::Effect;
use crate::group::Group;
use crate::id::{LogIndex, NodeId, ReplicaId, Term};
use crate::impasse::Word;
use crate::message::{Body, PeerMessage};
use crate::planted::{self, Defect};

/// Questions that hints may make a replica ask within one tick. More than it has members is a flood.
const HINTED_PER_TICK: usize = MEMBERS_MAX;

/// What one replica says of itself and of the one that asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Standing {
    /// The number of the question.
    pub nonce: u64,
    /// Term of who speaks.
    pub term: Term,
    /// The asker is a member, on the node that it asks from.
    pub member: bool,
    /// The asker was removed, and who speaks cannot forget it: removals are replicated and ids are never used again.
    pub removed: bool,
    /// Who speaks leads, and the asker has acknowledged the entries up to here in this term.
    pub matched: LogIndex,
    /// The machine of who speaks has not failed, and is not known to be wrong.
    pub well: bool,
    /// What who speaks says of impasses.
    pub word: Word,
}

/// Why a message of another replica was not believed. It was dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Distrust {
    /// The membership places the sending replica on another node.
    Placement,
    /// A heartbeat says that entries are committed which this replica does not have; no leader says that.
    Commit,
    /// An append follows an entry of a lower term than what is committed here; no leader's log has that.
    Term,
    /// The answer does not show the number of the question.
    Nonce,
    /// The answer comes from another replica than the one that was asked.
    Answer,
}

impl Distrust {
    /// Stable name.
    pub fn code(self) -> &'static str {
        match self {
            Self::Placement => "placement",
            Self::Commit => "commit",
            Self::Term => "term",
            Self::Nonce => "nonce",
            Self::Answer => "answer",
        }
    }
}

/// What was asked of others, and what they said of themselves.
#[derive(Debug, Default)]
pub(crate) struct Standings {
    /// Questions that hints made this replica ask in this tick.
    hinted: usize,
    /// Members that said that their machine is of use, and when.
    well: BTreeMap<ReplicaId, u64>,
    /// The last message to a joiner, from a leader that has not confirmed yet that it was meant for this node. Another may take
    /// its place before it does: then the leader sends it again.
    contact: Option<(NodeId, PeerMessage)>,
}

impl Group {
    /// Whether the membership places a replica on another node. One that is not known may have joined while this replica was
    /// away.
    pub(crate) fn is_misplaced(&self, replica: ReplicaId, node: NodeId) -> bool {
        let member = self.state.membership.member(replica);
        member.is_some_and(|member| member.node != node)
    }

    pub(crate) fn distrust(&mut self, from: NodeId, why: Distrust) {
        self.out.push(Effect::Distrusted { from, why });
    }

    /// The number that a replica on a node is shown. A new one in each life of this replica.
    pub(crate) fn nonce(&self, replica: ReplicaId, node: NodeId) -> u64 {
        self.secret(b"skep nonce", [replica.0, node.0])
    }

    /// A number for what is named by the label and the words. Another one in each life of this replica, and nobody can tell its
    /// seed from it.
    pub(crate) fn secret<const N: usize>(&self, label: &[u8], words: [u64; N]) -> u64 {
        let config = &self.config;
        let life = [
            config.seed,
            config.group.0,
            config.incarnation.0,
            config.node.0,
        ];
        let mut hash = Sha256::new_with_prefix(label);
        for word in life.into_iter().chain(words) {
            hash.update(word.to_le_bytes());
        }
        let digest: [u8; 32] = hash.finalize().into();
        let [a, b, c, d, e, f, g, h, ..] = digest;
        u64::from_le_bytes([a, b, c, d, e, f, g, h])
    }

    /// Whether an answer shows the number that this replica was shown; an answer that does not is dropped.
    pub(crate) fn is_proved(&mut self, replica: ReplicaId, node: NodeId, nonce: u64) -> bool {
        let proved = nonce == self.nonce(replica, node);
        if !proved {
            self.distrust(node, Distrust::Nonce);
        }
        proved
    }

    /// Asks a replica how it stands with this one.
    pub(crate) fn ask_standing(&mut self, replica: ReplicaId, node: NodeId) {
        let nonce = self.nonce(replica, node);
        self.send(replica, node, Body::AskStanding { nonce });
    }

    /// A message says something that this replica does not believe without a proof.
    pub(crate) fn hinted(&mut self, replica: ReplicaId, node: NodeId) {
        if planted::has(Defect::RemovedLeaderServes) {
            return;
        }
        self.standings.hinted += 1;
        if self.standings.hinted <= HINTED_PER_TICK {
            self.ask_standing(replica, node);
        }
    }

    pub(crate) fn tick_standings(&mut self) {
        self.standings.hinted = 0;
    }

    /// Another replica asks how it stands with this one.
    pub(crate) fn asked_for_standing(&mut self, replica: ReplicaId, node: NodeId, nonce: u64) {
        let progress = self.raft.progress(replica).filter(|_| self.leads());
        let membership = &self.state.membership;
        let standing = Standing {
            nonce,
            term: self.term(),
            member: membership
                .member(replica)
                .is_some_and(|member| member.node == node),
            removed: membership.was_removed(replica) && self.may_announce(),
            matched: LogIndex(progress.map_or(0, |progress| progress.matched)),
            well: !self.is_faulted() && !self.lacks_what_was_decided(),
            word: self.word(),
        };
        self.send(replica, node, Body::Standing(standing));
    }

    /// Another replica says how this one stands with it.
    pub(crate) fn stands(&mut self, replica: ReplicaId, node: NodeId, standing: Standing) {
        if !self.is_proved(replica, node, standing.nonce) {
            return;
        }
        if standing.removed {
            self.gone();
            return;
        }
        let last = self.raft.last();
        if standing.term >= self.term() && standing.matched > last {
            self.halt(format!(
                "the leader knows that entry {} is stored here, but the log ends at {}: acknowledged data was lost; \
                 remove this member and add it anew",
                standing.matched, last.0
            ));
            return;
        }
        self.heard_word(replica, standing.word);
        let (member, ticks) = (self.state.membership.member(replica), self.ticks);
        let well = &mut self.standings.well;
        match standing.well && member.is_some() {
            true => drop(well.insert(replica, ticks)),
            false => drop(well.remove(&replica)),
        }
    }

    /// Whether a member said lately that its machine is of use.
    pub(crate) fn is_known_well(&self, replica: ReplicaId) -> bool {
        let patience = 2 * u64::from(self.config.election_ticks);
        let said = self.standings.well.get(&replica);
        said.is_some_and(|said| self.ticks < said + patience)
    }

    /// A member that said lately that its machine is of use.
    pub(crate) fn a_well_member(&self) -> Option<ReplicaId> {
        let members = self.state.membership.members().keys().copied();
        let mut well = members.filter(|member| self.is_known_well(*member));
        well.next()
    }

    /// A joiner that has no name yet is addressed by one. Ids are never given twice, so a name that is its own once is its
    /// own for ever: it takes it only when the leader confirms that it was meant for this node.
    pub(crate) fn contacted(&mut self, node: NodeId, message: PeerMessage) {
        if let Body::Standing(standing) = message.body {
            let is_own = message.to > self.config.removed_through && standing.member;
            if self.is_proved(message.from, node, standing.nonce) && is_own {
                self.take_name(message.to);
                let is_answered = |(at, first): &(NodeId, PeerMessage)| {
                    *at == node && first.from == message.from && first.to == message.to
                };
                if let Some((node, first)) = self.standings.contact.take().filter(is_answered) {
                    self.message(node, first);
                }
            }
            return;
        }
        if message.is_from_a_leader() && message.to > self.config.removed_through {
            let nonce = self.nonce(message.from, node);
            let question = PeerMessage {
                group: message.group,
                incarnation: message.incarnation,
                from: message.to,
                to: message.from,
                body: Body::AskStanding { nonce },
            };
            self.standings.contact = Some((node, message));
            self.out.push(Effect::Send {
                to: node,
                message: question,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::GroupConfig;
    use crate::id::{GroupId, Incarnation};

    #[test]
    fn each_replica_and_node_is_shown_another_number() {
        let group = |seed| {
            let config = GroupConfig {
                seed,
                ..GroupConfig::new(GroupId(1), Incarnation(1), NodeId(1))
            };
            Group::create(config).expect("a joiner")
        };
        let (one, again) = (group(1), group(2));
        let mut seen = std::collections::BTreeSet::new();
        for replica in 1..5 {
            for node in 1..5 {
                seen.insert(one.nonce(ReplicaId(replica), NodeId(node)));
                seen.insert(again.nonce(ReplicaId(replica), NodeId(node)));
            }
        }
        assert_eq!(seen.len(), 32);
    }
}
