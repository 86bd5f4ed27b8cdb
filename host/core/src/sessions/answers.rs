//! The answers that are kept for retries, within a budget of bytes.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::weights::Weights;
use super::{ANSWER_COST, Forgotten, KEPT_BYTES_MAX, KEPT_REPLY_BYTES_MAX};
use crate::id::{RequestId, SessionId};
use crate::outcome::Outcome;
use crate::proposal::Response;

/// Sessions are compared by what they keep in units of so many bytes.
const UNIT: u64 = 4 << 10;

/// The answers of all sessions. They change when an entry is complete, in log order: every answer before it is known by
/// then on every replica, so the budget may look at how long answers are.
#[derive(Debug)]
pub(super) struct Answers {
    kept: BTreeMap<SessionId, Kept>,
    weights: Weights,
}

#[derive(Debug, Default)]
struct Kept {
    bytes: u64,
    answers: BTreeMap<u64, Response>,
}

impl Default for Answers {
    fn default() -> Self {
        Self {
            kept: BTreeMap::new(),
            weights: Weights::of_units(UNIT),
        }
    }
}

impl Answers {
    /// Keeps the answer to a command of a session. If all are too much then, the session that keeps most loses its oldest.
    pub(super) fn keep(&mut self, response: &Response) {
        if response.outcome.size() > KEPT_REPLY_BYTES_MAX {
            return;
        }
        let RequestId { session, sequence } = response.request;
        let kept = self.kept.entry(session).or_default();
        let before = kept.bytes;
        kept.bytes += cost(response);
        let mut response = response.clone();
        match &mut response.outcome {
            // It may be a piece of something larger, which is not counted.
            Outcome::Reply(reply) => *reply = Bytes::copy_from_slice(reply),
            // Other replicas have other words.
            Outcome::Refused { message, .. } => *message = String::new(),
            Outcome::Rejected { .. } | Outcome::Fault(_) => {}
        }
        if let Some(former) = kept.answers.insert(sequence, response) {
            kept.bytes -= cost(&former);
        }
        self.weights.change(session, before, kept.bytes);
        while self.weights.total() > KEPT_BYTES_MAX && self.trim() {}
    }

    /// Takes the oldest answer of the session that keeps most. `false` if nobody keeps enough to be trimmed, which the bound
    /// on sessions rules out while the budget is exceeded.
    fn trim(&mut self) -> bool {
        let heaviest = self.weights.heaviest();
        let oldest = heaviest.and_then(|session| {
            let (sequence, _) = self.kept.get(&session)?.answers.first_key_value()?;
            Some(Forgotten {
                session,
                through: *sequence,
            })
        });
        if let Some(oldest) = oldest {
            self.forget(oldest);
        }
        oldest.is_some()
    }

    /// The answer to a command, if it is kept.
    pub(super) fn get(&self, request: RequestId) -> Option<&Response> {
        self.kept
            .get(&request.session)?
            .answers
            .get(&request.sequence)
    }

    /// Nobody will ask for these any more.
    pub(super) fn forget(&mut self, forgotten: Forgotten) {
        let Forgotten { session, through } = forgotten;
        let Some(kept) = self.kept.get_mut(&session) else {
            return;
        };
        let before = kept.bytes;
        while let Some(oldest) = kept.answers.first_entry()
            && *oldest.key() <= through
        {
            kept.bytes -= cost(&oldest.remove());
        }
        let after = kept.bytes;
        if kept.answers.is_empty() {
            self.kept.remove(&session);
        }
        self.weights.change(session, before, after);
    }

    /// Bytes that all of them count for.
    pub(super) fn bytes(&self) -> u64 {
        self.weights.total()
    }
}

fn cost(response: &Response) -> u64 {
    ANSWER_COST + response.outcome.size() as u64
}
