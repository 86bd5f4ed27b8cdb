//! At most one leader in a term (Raft paper, figure 3).

use std::collections::HashMap;

use skep_core::status::{Part, Status};
use skep_log::GroupKey;

/// The leader of each term of each life of a group.
#[derive(Debug, Default)]
pub struct ElectionSafety {
    leaders: HashMap<(GroupKey, u64), u64>,
}

impl ElectionSafety {
    /// `true` if the replica has just begun to lead.
    pub fn check(&mut self, key: GroupKey, status: &Status) -> Result<bool, String> {
        if status.part != Part::Leader {
            return Ok(false);
        }
        let (term, replica) = (status.term.0, status.replica.0);
        match self.leaders.insert((key, term), replica) {
            None => Ok(true),
            Some(other) if other == replica => Ok(false),
            Some(other) => Err(format!(
                "replicas {other} and {replica} both lead in term {term}"
            )),
        }
    }

    /// Elections seen.
    pub fn elections(&self) -> usize {
        self.leaders.len()
    }
}
