//! Commands and reads take effect between call and answer, judged by log index: an operation that began after another
//! was answered stands behind it.

use std::collections::HashMap;

use skep_log::GroupKey;

/// The last index any client has an answer from, in each life of a group.
#[derive(Debug, Default)]
pub struct Linearizable {
    answered: HashMap<GroupKey, u64>,
    reads: u64,
    commands: u64,
}

impl Linearizable {
    /// An operation begins: what was answered so far must be before it.
    pub fn begins(&self, key: GroupKey) -> u64 {
        self.answered.get(&key).copied().unwrap_or(0)
    }

    /// A command that began at `floor` was applied at `index`, and a client knows.
    pub fn command(&mut self, key: GroupKey, floor: u64, index: u64) -> Result<(), String> {
        self.commands += 1;
        if index < floor {
            return Err(format!(
                "a command proposed after an answer from {floor} was applied at {index}"
            ));
        }
        self.answer(key, index);
        Ok(())
    }

    /// A read that began at `floor` was answered from the state after `index`.
    pub fn read(&mut self, key: GroupKey, floor: u64, index: u64) -> Result<(), String> {
        self.reads += 1;
        if index < floor {
            return Err(format!(
                "a read asked after an answer from {floor} sees the state after {index}"
            ));
        }
        self.answer(key, index);
        Ok(())
    }

    /// Commands and reads answered.
    pub fn answers(&self) -> (u64, u64) {
        (self.commands, self.reads)
    }

    fn answer(&mut self, key: GroupKey, index: u64) {
        let answered = self.answered.entry(key).or_default();
        *answered = index.max(*answered);
    }
}
