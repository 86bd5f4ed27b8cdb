//! What everything is compared with: the history lived through in one instance.

use skep_core::outcome::Outcome;

use super::FAULTS_MAX;
use crate::error::RehearsalError;
use crate::lived::{Lived, Saved, Seen};
use crate::script::Subject;
use crate::world::World;

/// Other seeds that are tried: a reply of a hash map's first key is the same under two seeds by chance.
const SEEDS: u64 = 4;

pub(crate) struct Reference {
    pub(crate) seen: Vec<Seen>,
    /// Bytes of memory after each event.
    pub(crate) memory: Vec<u64>,
    pub(crate) memory_at_start: u64,
    /// The state at the end, or what the machine said when it was asked to save it.
    pub(crate) saved: Result<Saved, String>,
    /// Events whose outcome depends on the seeds their instance started with.
    pub(crate) seeded: Vec<bool>,
    /// Events whose outcome depends on the chance in entries.
    pub(crate) by_chance: Vec<bool>,
}

impl Reference {
    /// Runs the history, and cuts it off where it has faulted too often.
    pub(crate) fn take(subject: &mut Subject) -> Result<Self, RehearsalError> {
        let mut lived = Lived::start(subject, World::default())?;
        let memory_at_start = lived.memory();
        let (mut seen, mut memory) = (Vec::new(), Vec::new());
        let mut faults = 0;
        for event in 0..subject.script.len() {
            let now = lived.run(event)?;
            faults += usize::from(matches!(now.outcome, Outcome::Fault(_)));
            seen.push(now);
            let before = memory.last().copied().unwrap_or(memory_at_start);
            memory.push(match lived.memory() {
                0 => before,
                bytes => bytes,
            });
            if faults >= FAULTS_MAX {
                break;
            }
        }
        let saved = lived.save(seen.len())?;
        drop(lived);
        subject.script.events.truncate(seen.len());
        let mut reference = Self {
            seeded: vec![false; seen.len()],
            by_chance: vec![false; seen.len()],
            seen,
            memory,
            memory_at_start,
            saved,
        };
        for seed in 1..=SEEDS {
            let others = reference.others(subject, World::seeded(seed))?;
            mark(&mut reference.seeded, &others);
        }
        let world = World {
            chance: 1,
            ..World::default()
        };
        let others = reference.others(subject, world)?;
        mark(&mut reference.by_chance, &others);
        Ok(reference)
    }

    /// The events whose outcome is another one in another world.
    pub(crate) fn others(
        &self,
        subject: &Subject,
        world: World,
    ) -> Result<Vec<usize>, RehearsalError> {
        let mut lived = Lived::start(subject, world)?;
        let other = lived.run_all(0..self.seen.len())?;
        let pairs = self.seen.iter().zip(&other).enumerate();
        let differs = pairs.filter(|(_, (one, other))| one.outcome != other.outcome);
        Ok(differs.map(|(event, _)| event).collect())
    }

    /// Whether the seeds of an instance show anywhere.
    pub(crate) fn is_seeded(&self) -> bool {
        self.seeded.contains(&true)
    }
}

fn mark(events: &mut [bool], marked: &[usize]) {
    for event in marked {
        events[*event] = true;
    }
}
