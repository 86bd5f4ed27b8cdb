//! Results of a machine on their way to the shard, in the order of the log.

use std::collections::VecDeque;

use skep_core::input::Input;
use skep_core::outcome::Outcome;

/// Outcomes collected before they are posted, so that one message carries many and none waits for a whole queue.
const POST_OUTCOMES: usize = 256;

/// Bytes of results that wait for the snapshot of a barrier to be durable. Beyond it the machine waits too: the entries
/// themselves are bounded, but replies may be far larger than the commands that asked for them.
const HELD_BYTES_MAX: usize = 64 << 20;

/// Bytes a result takes beside its replies.
const RESULT_BYTES: usize = 128;

/// Results that were not posted. The core wants them in the order of the log, so those behind a barrier wait until its
/// snapshot is durable, while the machine goes on.
#[derive(Default)]
pub(super) struct Results {
    /// `None` stands for a barrier whose snapshot is not durable yet.
    waiting: VecDeque<Option<Input>>,
    /// Of those waiting; counted while a barrier is among them.
    bytes: usize,
    outcomes: usize,
}

impl Results {
    pub(super) fn push(&mut self, input: Input) {
        if let Input::Applied { outcomes, .. } = &input {
            self.outcomes += outcomes.len();
            self.bytes += outcomes.iter().map(Outcome::size).sum::<usize>();
        }
        self.bytes += RESULT_BYTES;
        self.waiting.push_back(Some(input));
    }

    /// What comes from here on waits for [`Results::settle`].
    pub(super) fn hold(&mut self) {
        self.waiting.push_back(None);
    }

    /// What became of the first barrier that is waited for.
    pub(super) fn settle(&mut self, input: Input) {
        if let Some(barrier) = self.waiting.iter_mut().find(|slot| slot.is_none()) {
            *barrier = Some(input);
        }
    }

    /// Whether there are enough of them for a message.
    pub(super) fn is_many(&self) -> bool {
        self.outcomes >= POST_OUTCOMES
    }

    /// Whether the machine has to wait for a barrier before it makes more of them.
    pub(super) fn is_full(&self) -> bool {
        self.bytes >= HELD_BYTES_MAX
    }

    /// What can be posted now.
    pub(super) fn take(&mut self) -> Vec<Input> {
        let held = self.waiting.iter().position(Option::is_none);
        if held.is_none() {
            self.bytes = 0;
        }
        self.outcomes = 0;
        let free = held.unwrap_or(self.waiting.len());
        self.waiting.drain(..free).flatten().collect()
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use skep_core::attestation::Deed;
    use skep_core::id::LogIndex;

    use super::*;

    fn applied(index: u64, bytes: usize) -> Input {
        Input::Applied {
            index: LogIndex(index),
            outcomes: vec![Outcome::Reply(Bytes::from(vec![0; bytes]))],
            fuel: 0,
            rebuilds: 0,
            replay_fuel: 0,
            deed: Deed::of(b"entry", &[], 0),
        }
    }

    fn snapshotted(index: u64) -> Input {
        Input::Snapshotted {
            index: LogIndex(index),
            snapshot: None,
            memory: None,
        }
    }

    fn indices(results: &mut Results) -> Vec<u64> {
        let index = |input| match input {
            Input::Applied { index, .. } | Input::Snapshotted { index, .. } => index.0,
            other => panic!("{other:?}"),
        };
        results.take().into_iter().map(index).collect()
    }

    #[test]
    fn nothing_overtakes_a_barrier() {
        let mut results = Results::default();
        results.push(applied(1, 1));
        results.hold();
        results.push(applied(3, 1));
        assert_eq!(indices(&mut results), [1]);
        assert_eq!(indices(&mut results), [] as [u64; 0]);
        results.push(applied(4, 1));
        results.settle(snapshotted(2));
        results.push(applied(5, 1));
        results.hold();
        results.push(applied(7, 1));
        assert_eq!(indices(&mut results), [2, 3, 4, 5]);
        results.settle(snapshotted(6));
        assert_eq!(indices(&mut results), [6, 7]);
    }

    #[test]
    fn what_is_held_is_bounded() {
        let mut results = Results::default();
        results.hold();
        results.push(applied(2, HELD_BYTES_MAX - 2 * RESULT_BYTES));
        assert_eq!(indices(&mut results), [] as [u64; 0]);
        assert!(!results.is_full());
        results.push(applied(3, 0));
        assert!(results.is_full());
        results.settle(snapshotted(1));
        assert_eq!(indices(&mut results), [1, 2, 3]);
        assert!(!results.is_full());
    }

    #[test]
    fn many_outcomes_are_a_message() {
        let mut results = Results::default();
        for index in 0..POST_OUTCOMES as u64 {
            assert!(!results.is_many());
            results.push(applied(index, 1));
        }
        assert!(results.is_many());
        results.take();
        assert!(!results.is_many());
    }
}
