//! Election timeouts as a pure function, in place of the thread's randomness that raft-rs draws from.

use crate::id::{GroupId, NodeId};

/// Whose timeout it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidacy {
    pub(crate) node: NodeId,
    pub(crate) group: GroupId,
    pub(crate) term: u64,
    /// Campaigns that this replica has begun since it last knew of a leader.
    pub(crate) attempt: u64,
    /// How many voters come before this one, and how many there are; nothing if it is none.
    pub(crate) place: Option<(u64, u64)>,
}

/// Ticks until a replica campaigns, in `ticks..2 * ticks`.
///
/// When a leader falls silent, its followers begin to wait at the same moment. Each has a slot of its own, so that they
/// do not split the vote, and the first slot is the shortest timeout there is: the paper's random timeouts (section
/// 9.3) would let both wait long, or tie. The slots turn with the group and the term, so that the groups of a node do
/// not elect in lock-step, and no node leads them all. A replica that has campaigned in vain draws at random: its slot may be
/// another's, in whose eyes the members are others.
pub(crate) fn timeout(seed: u64, candidacy: Candidacy, ticks: u32) -> usize {
    let Candidacy {
        node,
        group,
        term,
        attempt,
        place,
    } = candidacy;
    let ticks = u64::from(ticks);
    let wait = match place {
        Some((before, voters)) if attempt == 0 => {
            let slot = (before + hash(0, [group.0, term]) % voters) % voters;
            slot * ticks / voters
        }
        _ => hash(seed, [node.0, group.0, term, attempt]) % ticks,
    };
    (ticks + wait) as usize
}

fn hash<const N: usize>(seed: u64, words: [u64; N]) -> u64 {
    words
        .into_iter()
        .fold(seed, |hash, word| mix(hash ^ mix(word)))
}

/// The finalizer of splitmix64.
fn mix(word: u64) -> u64 {
    let mut word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidacy(node: u64, group: u64, attempt: u64) -> Candidacy {
        Candidacy {
            node: NodeId(node),
            group: GroupId(group),
            term: 3,
            attempt,
            place: None,
        }
    }

    #[test]
    fn drawn_timeouts_are_in_range_and_differ() {
        let draw = |node, group, attempt| timeout(1, candidacy(node, group, attempt), 10);
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

    #[test]
    fn voters_have_slots_of_their_own() {
        let mut first = std::collections::BTreeSet::new();
        for group in 0..50 {
            for voters in 1..8 {
                let mut slots: Vec<_> = (0..voters)
                    .map(|before| {
                        let place = Some((before, voters));
                        // Nothing but the place tells the voters apart: not even the seed.
                        timeout(
                            before,
                            Candidacy {
                                place,
                                ..candidacy(before, group, 0)
                            },
                            10,
                        )
                    })
                    .collect();
                if voters == 3 {
                    first.insert(slots.iter().position(|slot| *slot == 10));
                }
                slots.sort_unstable();
                assert_eq!(slots[0], 10);
                assert!(slots.windows(2).all(|two| two[0] < two[1]), "{slots:?}");
                assert!(slots.iter().all(|slot| *slot < 20));
            }
        }
        assert_eq!(first.len(), 3, "each voter is the first of some groups");
    }
}
