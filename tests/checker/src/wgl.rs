//! The search for an order that knows only calls, answers and times: Wing and Gong's, with Lowe's memory of what was tried
//! and one search for each key (P-compositionality, Horn and Kroening).
//!
//! Calls and returns of the answered operations stand in a list in order of time. An operation whose call stands before
//! the first return of the list may be next; placing it takes its call and return out of the list. Where the list begins
//! with returns of operations that fit nowhere, the last choice is undone.
//!
//! What keeps it fast:
//! - An operation that fits and changes nothing is placed at once, and no other choice is tried: whatever order
//!   follows, it could be moved here.
//! - An operation of unknown outcome is optional, and placed only where nothing else leads on. Having used fewer of them in
//!   the same situation is never worse, and equal ones are used in the order of their calls. So each possible state is
//!   visited with few sets of them instead of all.
//! - Where the model ranks operations, only the lowest of those that may be next is tried.

mod events;
mod search;
mod unknown;

use std::collections::BTreeMap;

use crate::history::Outcome;
use crate::model::{Model, OperationOf};
use crate::verdict::{Limits, Verdict};

/// Whether the operations of each key have an order in which each takes effect once, between its call and its return.
///
/// Operations of [`Outcome::Unknown`] may take effect at any time after their call, or never. Those that
/// [failed](Outcome::Failed) are left out. How an operation was asked ([`crate::Via`]) makes no difference: leave out the
/// stale queries.
///
/// A history with one client at a time takes time proportional to its length. The worst case is exponential in the
/// number of operations of one key that overlap, and cut off by the limit.
pub fn check<M: Model>(model: &M, operations: &[OperationOf<M>], limits: Limits) -> Verdict {
    let timed = operations.iter().map(|operation| Timed {
        operation,
        call: operation.call,
        ret: operation.ret,
    });
    check_timed(model, timed, limits)
}

/// An operation with the times that count in a search.
pub(crate) struct Timed<'a, M: Model> {
    pub(crate) operation: &'a OperationOf<M>,
    pub(crate) call: u64,
    pub(crate) ret: u64,
}

/// As [`check`], with times other than the operations' own.
pub(crate) fn check_timed<'a, M: Model>(
    model: &M,
    operations: impl Iterator<Item = Timed<'a, M>>,
    limits: Limits,
) -> Verdict
where
    M::Input: 'a,
    M::Output: 'a,
{
    let mut keys: BTreeMap<M::Key, Vec<Timed<'a, M>>> = BTreeMap::new();
    for timed in operations {
        if !matches!(timed.operation.outcome, Outcome::Failed) {
            keys.entry(model.key(&timed.operation.input))
                .or_default()
                .push(timed);
        }
    }
    let mut placed = 0;
    let mut steps = 0;
    let mut undecided = None;
    for (key, operations) in keys {
        match search::Search::new(model, &key, operations, limits).run() {
            Verdict::Linearizable {
                operations,
                steps: taken,
            } => {
                placed += operations;
                steps += taken;
            }
            wrong @ Verdict::NotLinearizable(_) => return wrong,
            unsure @ Verdict::Undecided { .. } => undecided = undecided.or(Some(unsure)),
        }
    }
    undecided.unwrap_or(Verdict::Linearizable {
        operations: placed,
        steps,
    })
}
