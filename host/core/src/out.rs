//! The one way out of a replica: what its driver is to do, and answers to replicas that forwarded something.

use std::collections::BTreeMap;

use crate::effect::{Effect, Work};
use crate::id::{NodeId, ReplicaId};
use crate::message::Answer;
use crate::pending::Who;
use crate::proposal::{ProposalError, Response};

/// Everything that is to be done, in its order.
#[derive(Debug, Default)]
pub(crate) struct Out {
    effects: Vec<Effect>,
    /// Answers wait here until they fill one message to each replica.
    answers: BTreeMap<ReplicaId, (NodeId, Vec<Answer>)>,
}

impl Out {
    pub(crate) fn push(&mut self, effect: Effect) {
        self.effects.push(effect);
    }

    pub(crate) fn machine(&mut self, work: Work) {
        self.push(Effect::Machine(work));
    }

    /// Somebody is answered. A query that comes this far is refused: its answer is the machine's.
    pub(crate) fn answer(&mut self, who: Who, result: Result<Response, ProposalError>) {
        match who {
            Who::Local(waiter) => self.push(Effect::Reply { waiter, result }),
            Who::Reader(waiter) => {
                let error = result.err().unwrap_or(ProposalError::Unknown);
                self.push(Effect::QueryFailed { waiter, error });
            }
            Who::Remote {
                replica,
                node,
                token,
            } => {
                let (_, answers) = (self.answers.entry(replica)).or_insert((node, Vec::new()));
                answers.push(Answer { token, result });
            }
        }
    }

    /// The answers to each replica since the last time.
    pub(crate) fn take_answers(&mut self) -> BTreeMap<ReplicaId, (NodeId, Vec<Answer>)> {
        std::mem::take(&mut self.answers)
    }

    /// Gives out everything that is to be done.
    pub(crate) fn drain_into(&mut self, effects: &mut Vec<Effect>) {
        effects.append(&mut self.effects);
    }
}
