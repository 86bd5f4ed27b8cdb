//! Every machine is told the same at the same index, answers the same, and then is in the same state (Raft paper,
//! figure 3); every snapshot of one index is the same file.

use std::collections::{BTreeMap, HashMap};

use skep_core::form::Form;
use skep_log::GroupKey;

/// What was applied at each index of each life of a group.
#[derive(Debug, Default)]
pub struct StateMachineSafety {
    groups: HashMap<GroupKey, BTreeMap<u64, Step>>,
    snapshots: HashMap<(GroupKey, u64), (Form, [u8; 32])>,
}

/// What one entry did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Step {
    /// Of what the machine was told.
    pub input: u64,
    /// Of its answers.
    pub outcomes: u64,
    /// Of the state after it.
    pub state: u64,
}

impl StateMachineSafety {
    /// `true` if nobody has applied the entry before.
    pub fn check(&mut self, key: GroupKey, index: u64, step: Step) -> Result<bool, String> {
        let steps = self.groups.entry(key).or_default();
        match steps.get(&index) {
            Some(known) if *known != step => Err(format!(
                "entry {index} is applied differently: {known:?} and {step:?}"
            )),
            Some(_) => Ok(false),
            None => {
                steps.insert(index, step);
                Ok(true)
            }
        }
    }

    /// A snapshot file at an index.
    pub fn check_snapshot(
        &mut self,
        key: GroupKey,
        index: u64,
        file: (Form, [u8; 32]),
    ) -> Result<(), String> {
        let known = self.snapshots.entry((key, index)).or_insert(file);
        if *known == file {
            Ok(())
        } else {
            Err(format!("two different snapshots at {index}"))
        }
    }

    /// The state after everything up to `index`.
    pub fn state(&self, key: GroupKey, index: u64) -> Option<u64> {
        let (_, step) = self.groups.get(&key)?.range(..=index).next_back()?;
        Some(step.state)
    }

    /// Entries applied, each counted once.
    pub fn entries(&self) -> usize {
        self.groups.values().map(BTreeMap::len).sum()
    }

    /// Snapshots that are images, each counted once.
    pub fn images(&self) -> usize {
        let forms = self.snapshots.values().map(|(form, _)| *form);
        forms.filter(|form| *form == Form::Image).count()
    }

    /// Snapshots taken, each counted once.
    pub fn snapshots(&self) -> usize {
        self.snapshots.len()
    }
}
