//! Proposals of a follower's clients on their way to the leader, and their answers on the way back.

use crate::group::Group;
use crate::id::{NodeId, ReplicaId};
use crate::message::{Answer, Body, Forward};
use crate::pending::{AskerId, Who};
use crate::planted::{self, Defect};
use crate::proposal::{Change, Proposal, ProposalError, Response};
use crate::proposals::{Forwarded, Queued};
use crate::standing::Distrust;

const FORWARDS_IN_MESSAGE: usize = 1024;

impl Group {
    pub(crate) fn forwarded(&mut self, replica: ReplicaId, node: NodeId, forwards: Vec<Forward>) {
        for Forward { token, proposal } in forwards {
            let who = Who::Remote {
                replica,
                node,
                token,
            };
            let deadline = self.deadline(&proposal);
            let asker = self.pending.admit(who, self.ticks, deadline);
            if self.leads() {
                self.enqueue(asker, proposal);
            } else {
                let leader = self.leader_node();
                self.reply(asker, Err(ProposalError::NotLeader { leader }));
            }
        }
    }

    pub(crate) fn forward_queue(&mut self) {
        let Some(leader) = self.leader_replica() else {
            return;
        };
        let Some(node) = self.node_of(leader) else {
            return;
        };
        if self.proposals.queue.is_empty() {
            return;
        }
        let bytes_max = self.config.limits.entry_bytes;
        // Tokens of another life of this replica are others, and tell nobody what else rests on its seed.
        let first = match planted::has(Defect::TokensRepeat) {
            true => 0,
            false => self.secret(b"skep tokens", []),
        };
        while !self.proposals.queue.is_empty() {
            let mut forwards = Vec::new();
            let mut bytes = 0;
            while let Some(front) = self.proposals.queue.front() {
                let size = front.proposal.size() as u64;
                if !forwards.is_empty()
                    && (bytes + size > bytes_max || forwards.len() >= FORWARDS_IN_MESSAGE)
                {
                    break;
                }
                bytes += size;
                let Some(Queued { asker, proposal }) = self.dequeue() else {
                    break;
                };
                if let Some(Who::Remote { .. }) = self.pending.who(asker) {
                    // It came here because this replica led; its sender forwards it to the leader itself.
                    let leader = self.leader_node();
                    self.reply(asker, Err(ProposalError::NotLeader { leader }));
                    continue;
                }
                self.proposals.forwards += 1;
                let token = first.wrapping_add(self.proposals.forwards);
                forwards.push(Forward {
                    token,
                    proposal: proposal.clone(),
                });
                self.pending.note(asker, true);
                self.proposals.forwarded.insert(
                    token,
                    Forwarded {
                        asker,
                        proposal,
                        to: leader,
                        lost_at: None,
                    },
                );
            }
            if !forwards.is_empty() {
                self.send(leader, node, Body::Forward(forwards));
            }
        }
    }

    pub(crate) fn answered(&mut self, from: ReplicaId, at: NodeId, answers: Vec<Answer>) {
        for Answer { token, result } in answers {
            let asked = self.proposals.forwarded.get(&token);
            if asked.is_some_and(|forwarded| forwarded.to != from) {
                self.distrust(at, Distrust::Answer);
                continue;
            }
            let Some(forwarded) = self.proposals.forwarded.remove(&token) else {
                continue;
            };
            let Forwarded {
                asker,
                proposal,
                to,
                ..
            } = forwarded;
            match result {
                // It was certainly not proposed. Asking the same replica again at once would go round for ever at the
                // speed of the network.
                Err(ProposalError::NotLeader { .. }) if self.leader_replica() == Some(to) => {
                    self.defer(asker, proposal);
                }
                Err(ProposalError::NotLeader { .. }) => self.requeue(asker, proposal),
                result => self.reply(asker, result),
            }
        }
    }

    /// This replica has seen its own removal: whoever asked for it here is answered.
    pub(crate) fn removal_is_answered(&mut self, response: &Response) {
        let own = self.config.node;
        let asked = |proposal: &Proposal| matches!(proposal, Proposal::Change(Change::Remove { node, .. }) if *node == own);
        let forwarded = &mut self.proposals.forwarded;
        let asked = forwarded.extract_if(.., |_, forwarded| asked(&forwarded.proposal));
        for (_, forwarded) in asked.collect::<Vec<_>>() {
            self.reply(forwarded.asker, Ok(response.clone()));
        }
    }

    /// What was forwarded to a leader that no longer leads may have been proposed or not. What may be done twice goes to the next
    /// one; of anything else the former one knows, if it lives, and says so soon.
    pub(crate) fn leader_changed_for_forwards(&mut self, leader: ReplicaId) {
        if leader.0 == 0 {
            return;
        }
        let is_lost = |forwarded: &Forwarded| forwarded.to != leader && forwarded.lost_at.is_none();
        let forwarded = &mut self.proposals.forwarded;
        let repeated = forwarded.extract_if(.., |_, forwarded| {
            is_lost(forwarded) && forwarded.proposal.is_repeatable()
        });
        for (_, lost) in repeated.collect::<Vec<_>>() {
            self.requeue(lost.asker, lost.proposal);
        }
        let gone = self.gone_leader.map(|(gone, _)| gone);
        let ticks = self.ticks;
        for forwarded in self
            .proposals
            .forwarded
            .values_mut()
            .filter(|of| is_lost(of))
        {
            // Nothing more is heard of a process that has ended, and what becomes of an activation every replica sees.
            let is_command = matches!(forwarded.proposal, Proposal::Command(_));
            let is_waited_for = is_command && gone != Some(forwarded.to);
            forwarded.lost_at = Some(if is_waited_for { ticks } else { 0 });
        }
        self.give_up_lost_forwards();
    }

    /// Answers those who waited for a former leader in vain.
    pub(crate) fn give_up_lost_forwards(&mut self) {
        let patience = u64::from(self.config.election_ticks);
        let ticks = self.ticks;
        let is_late = |at: u64| at == 0 || at + patience <= ticks;
        let forwarded = &mut self.proposals.forwarded;
        let lost = forwarded.extract_if(.., |_, forwarded| forwarded.lost_at.is_some_and(is_late));
        for (_, lost) in lost.collect::<Vec<_>>() {
            if !self.waits_for_a_decision(lost.asker, &lost.proposal) {
                self.reply(lost.asker, Err(ProposalError::Unknown));
            }
        }
    }

    /// An activation that is in the log here already needs no leader to be answered.
    fn waits_for_a_decision(&mut self, asker: AskerId, proposal: &Proposal) -> bool {
        match proposal {
            Proposal::Activate(deployment) if self.awaits(deployment) => {
                self.wait_for_activation(asker)
            }
            _ => false,
        }
    }
}
