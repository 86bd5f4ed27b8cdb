//! A command is applied at most once, however often it was sent.

use std::collections::HashMap;

use skep_log::GroupKey;

use crate::machine::Command;

/// Where each command was applied.
#[derive(Debug, Default)]
pub struct AtMostOnce {
    applied: HashMap<(GroupKey, u64, u64), u64>,
}

impl AtMostOnce {
    /// A command is applied for the first time by any machine.
    pub fn check(&mut self, key: GroupKey, index: u64, command: Command) -> Result<(), String> {
        match self
            .applied
            .insert((key, command.client, command.number), index)
        {
            None => Ok(()),
            Some(other) => Err(format!(
                "command {} of client {} is applied at {other} and at {index}",
                command.number, command.client
            )),
        }
    }

    /// Where a command was applied.
    pub fn index(&self, key: GroupKey, client: u64, number: u64) -> Option<u64> {
        self.applied.get(&(key, client, number)).copied()
    }

    /// Commands applied.
    pub fn len(&self) -> usize {
        self.applied.len()
    }
}
