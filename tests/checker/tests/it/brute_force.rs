//! Every order of every choice of the unknown operations, tried one after the other. It shares nothing with the search but
//! the model's steps.

use std::cmp::Ordering;

use skep_checker::kv::{KvOperation, Register};
use skep_checker::{Model, Outcome, Via};

/// Whether operations of one key have an order that agrees with time.
pub fn linearizable(operations: &[KvOperation]) -> bool {
    ordered(operations, &|one, other| one.ret < other.call, &|_, _| {
        false
    })
}

/// Whether operations of one key have an order that agrees with time and with their places.
pub fn linearizable_by_index(operations: &[KvOperation]) -> bool {
    let answered = || operations.iter().filter(|operation| is_answered(operation));
    for one in answered() {
        for other in answered() {
            let returned = one.ret < other.call;
            let same = one.id != other.id
                && one.via == Via::Log
                && other.via == Via::Log
                && one.place == other.place
                && one.place.and_then(|place| place.offset).is_some();
            let reordered = match other.via {
                Via::Log => index(one) >= index(other),
                Via::Read => index(one) > index(other),
                Via::Stale => false,
            };
            if same || (returned && reordered) {
                return false;
            }
        }
    }
    ordered(
        operations,
        &|one, other| {
            if !is_answered(other) {
                let returned = answered().filter(|operation| operation.ret < other.call);
                return returned.map(index).max() >= Some(index(one));
            }
            match (index(one).cmp(&index(other)), one.via, other.via) {
                (Ordering::Less, ..) => true,
                (Ordering::Greater, ..) => false,
                (Ordering::Equal, Via::Log, Via::Log) => {
                    let offset =
                        |operation: &KvOperation| operation.place.and_then(|place| place.offset);
                    let mut entry = answered().filter(|command| {
                        command.via == Via::Log && index(command) == index(other)
                    });
                    entry.all(|command| offset(command).is_some()) && offset(one) < offset(other)
                }
                (Ordering::Equal, one, other) => one == Via::Log && other != Via::Log,
            }
        },
        &|one, other| one.via != Via::Log && other.via != Via::Log && index(one) == index(other),
    )
}

fn is_answered(operation: &KvOperation) -> bool {
    matches!(operation.outcome, Outcome::Ok(_))
}

fn index(operation: &KvOperation) -> u64 {
    operation.place.expect("an answer with a place").index
}

type Relation<'a> = &'a dyn Fn(&KvOperation, &KvOperation) -> bool;

/// Whether there is an order in which nothing answered stands behind what it must be before, and nothing unknown between two
/// that saw the same state.
fn ordered(operations: &[KvOperation], before: Relation<'_>, same_state: Relation<'_>) -> bool {
    let mut left: Vec<&KvOperation> = operations
        .iter()
        .filter(|operation| operation.outcome != Outcome::Failed)
        .collect();
    let Some(first) = left.first() else {
        return true;
    };
    let state = Register.initial(&Register.key(&first.input));
    next(&mut left, None, &state, before, same_state)
}

fn next(
    left: &mut Vec<&KvOperation>,
    last: Option<&KvOperation>,
    state: &<Register as Model>::State,
    before: Relation<'_>,
    same_state: Relation<'_>,
) -> bool {
    if !left.iter().any(|operation| is_answered(operation)) {
        return true;
    }
    for at in 0..left.len() {
        let operation = left[at];
        let mut others = left.iter().filter(|other| is_answered(other));
        if others.any(|other| other.id != operation.id && before(other, operation)) {
            continue;
        }
        let mut others = left.iter().filter(|other| is_answered(other));
        let between = |last| others.any(|other| same_state(last, other));
        if !is_answered(operation) && last.is_some_and(between) {
            continue;
        }
        let output = match &operation.outcome {
            Outcome::Ok(output) => Some(output),
            Outcome::Failed | Outcome::Unknown => None,
        };
        let Some(after) = Register.step(state, &operation.input, output) else {
            continue;
        };
        left.remove(at);
        let last = if is_answered(operation) {
            Some(operation)
        } else {
            None
        };
        let found = next(left, last, &after, before, same_state);
        left.insert(at, operation);
        if found {
            return true;
        }
    }
    false
}
