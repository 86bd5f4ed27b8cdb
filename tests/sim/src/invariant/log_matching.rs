//! Two logs that have an entry of one index and term have the same entry there, and the same before it (Raft paper,
//! figure 3).

use std::collections::HashMap;

use skep_log::GroupKey;

use super::ledger::Mark;

/// Every entry that was ever durable somewhere, or sent. One that was neither when its leader lost its memory of it, and of
/// its term, never was.
#[derive(Debug, Default)]
pub struct LogMatching {
    entries: HashMap<(GroupKey, u64, u64), (u64, Option<u64>)>,
}

impl LogMatching {
    /// An entry is durable, or sent, behind one of the term `previous`, where that is known.
    pub fn check(
        &mut self,
        key: GroupKey,
        index: u64,
        mark: Mark,
        previous: Option<u64>,
    ) -> Result<(), String> {
        let known = self
            .entries
            .entry((key, index, mark.term))
            .or_insert((mark.digest, previous));
        if known.0 != mark.digest {
            return Err(format!("two entries {index} of term {}", mark.term));
        }
        if let (Some(one), Some(other)) = (known.1, previous)
            && one != other
        {
            return Err(format!(
                "entry {index} of term {} stands behind term {one} here, behind term {other} there",
                mark.term
            ));
        }
        known.1 = known.1.or(previous);
        Ok(())
    }
}
