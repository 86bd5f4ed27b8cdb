//! The order of versions over all keys. They count the machine's changes, so no two changes have one, and a change called
//! after a version was seen has a later one, whatever its key. The checks key by key cannot see that.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use crate::history::Outcome;

use super::KvOperation;
use super::command::Output;

/// What is wrong with the versions.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Violation {
    /// Two changes have one version, or two keys.
    SameVersion {
        /// The version.
        version: u64,
        /// Both operations, to be read.
        operations: [String; 2],
    },
    /// A change has a version that is not later than one seen before it was called.
    Reordered {
        /// What returned first.
        earlier: String,
        /// What was called only then.
        later: String,
    },
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SameVersion {
                version,
                operations: [one, other],
            } => write!(
                f,
                "version {version} was given twice:\n    {one}\n    {other}"
            ),
            Self::Reordered { earlier, later } => write!(
                f,
                "a change has no later version than one that was seen before it was called:\n    {earlier}\n    {later}"
            ),
        }
    }
}

/// The first violation, if there is one. Stale queries may be among the operations.
pub fn check(operations: &[KvOperation]) -> Option<Violation> {
    let seen: Vec<Seen<'_>> = operations.iter().filter_map(seen).collect();
    given_twice(&seen).or_else(|| reordered(&seen))
}

/// A version that an answer told.
struct Seen<'a> {
    version: u64,
    /// Whether the operation made the change that the version counts.
    change: bool,
    operation: &'a KvOperation,
}

fn seen(operation: &KvOperation) -> Option<Seen<'_>> {
    let Outcome::Ok(output) = &operation.outcome else {
        return None;
    };
    let (version, change) = match output {
        Output::Changed(version) => (*version, true),
        Output::Versioned(version, _) => (*version, false),
        Output::Mismatch(version) if *version != 0 => (*version, false),
        _ => return None,
    };
    Some(Seen {
        version,
        change,
        operation,
    })
}

fn given_twice(seen: &[Seen<'_>]) -> Option<Violation> {
    let mut first: HashMap<u64, (&Arc<str>, &Seen<'_>, bool)> = HashMap::new();
    for one in seen {
        let key = &one.operation.input.key;
        let (known, other, changed) = first.entry(one.version).or_insert((key, one, false));
        if *known != key || (*changed && one.change) {
            return Some(Violation::SameVersion {
                version: one.version,
                operations: [other.operation.to_string(), one.operation.to_string()],
            });
        }
        *changed |= one.change;
    }
    None
}

fn reordered(seen: &[Seen<'_>]) -> Option<Violation> {
    let mut changes: Vec<_> = seen.iter().filter(|one| one.change).collect();
    let mut returns: Vec<_> = seen.iter().collect();
    changes.sort_by_key(|one| one.operation.call);
    returns.sort_by_key(|one| one.operation.ret);
    let mut returns = returns.into_iter().peekable();
    let mut latest: Option<&Seen<'_>> = None;
    for change in changes {
        while let Some(returned) = returns.next_if(|one| one.operation.ret < change.operation.call)
        {
            if latest.is_none_or(|latest| latest.version < returned.version) {
                latest = Some(returned);
            }
        }
        if let Some(earlier) = latest.filter(|earlier| earlier.version >= change.version) {
            return Some(Violation::Reordered {
                earlier: earlier.operation.to_string(),
                later: change.operation.to_string(),
            });
        }
    }
    None
}
