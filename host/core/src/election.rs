//! Election timeouts as a pure function, in place of the thread's randomness that raft-rs draws from.

use crate::id::{GroupId, NodeId};

/// Ticks until a replica campaigns, in `ticks..2 * ticks`.
///
/// The group is in it so that the groups of a node do not elect in lock-step; the attempt, so that two candidates that
/// tie once do not tie for ever.
pub(crate) fn timeout(
    seed: u64,
    node: NodeId,
    group: GroupId,
    term: u64,
    attempt: u64,
    ticks: u32,
) -> usize {
    let mut hash = seed;
    for word in [node.0, group.0, term, attempt] {
        hash = mix(hash ^ mix(word));
    }
    ticks as usize + (hash % u64::from(ticks)) as usize
}

/// The finalizer of splitmix64.
pub(crate) fn mix(word: u64) -> u64 {
    let mut word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_in_range_and_differ() {
        let draw = |node, group, attempt| timeout(1, NodeId(node), GroupId(group), 3, attempt, 10);
        let mut seen = std::collections::BTreeSet::new();
        for node in 1..4 {
            for group in 0..50 {
                for attempt in 0..5 {
                    let ticks = draw(node, group, attempt);
                    assert!((10..20).contains(&ticks));
                    seen.insert(ticks);
                }
            }
        }
        assert_eq!(seen.len(), 10);
        assert!((0..10).any(|attempt| draw(1, 1, attempt) != draw(2, 1, attempt)));
    }
}
