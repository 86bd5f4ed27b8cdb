//! Founders of a cluster, by hand. What comes of lost words, crashes and wiped directories is for `skep-sim`.

use std::collections::BTreeSet;

use skep_core::founders::{Founders, Founding, Reason, Statement};
use skep_core::id::NodeId;

fn list(ids: &[u64]) -> BTreeSet<NodeId> {
    ids.iter().copied().map(NodeId).collect()
}

fn founder(id: u64, ids: &[u64]) -> Founders {
    Founders::new("bees", NodeId(id), [id as u8; 16], list(ids))
}

/// One asks another and hears what it says.
fn ask(all: &mut [Founders], from: usize, to: usize) -> Option<Founding> {
    let (round, asks) = (all[from].round(), all[from].list().clone());
    let word = all[to].asked(NodeId(from as u64 + 1), &asks);
    all[from].heard(NodeId(to as u64 + 1), round, word)
}

fn three() -> Vec<Founders> {
    (1..=3).map(|id| founder(id, &[1, 2, 3])).collect()
}

/// Everybody asks everybody so many times; who adopted what.
fn rounds(all: &mut [Founders], count: usize) -> Vec<Option<Founding>> {
    let mut adopted = vec![None; all.len()];
    for _ in 0..count {
        for from in 0..all.len() {
            for to in (0..all.len()).filter(|to| *to != from) {
                if let Some(founding) = ask(all, from, to) {
                    all[from].adopted();
                    adopted[from] = Some(founding);
                }
            }
        }
    }
    adopted
}

#[test]
fn three_found_one_cluster() {
    let mut all = three();
    let adopted = rounds(&mut all, 3);
    let first = adopted[0].clone().expect("it is founded");
    assert_eq!(
        first.founders.keys().copied().collect::<BTreeSet<_>>(),
        list(&[1, 2, 3])
    );
    assert!(
        adopted
            .iter()
            .all(|founding| founding.as_ref() == Some(&first))
    );
}

#[test]
fn one_alone_founds_at_once() {
    let mut one = founder(1, &[]);
    let founding = one.decide().expect("there is nobody to wait for");
    assert_eq!(founding.founders.len(), 1);
    assert_eq!(one.decide(), None, "once");
    assert_eq!(one.founded(), None, "it is not durable yet");
    one.adopted();
    assert_eq!(one.founded(), Some(&founding));
}

#[test]
fn nobody_founds_without_the_last_one() {
    let mut all = three();
    for _ in 0..5 {
        assert_eq!(ask(&mut all, 0, 1), None);
        assert_eq!(ask(&mut all, 1, 0), None);
    }
    all[0].silent(NodeId(3), "connection refused");
    let waits = all[0].waits();
    assert!(
        waits.iter().any(|wait| wait.node == NodeId(3)
            && wait.reason == Reason::Silent("connection refused".to_owned())),
        "{waits:?}"
    );
}

#[test]
fn nobody_founds_with_another_list() {
    let mut all = vec![
        founder(1, &[1, 2, 3]),
        founder(2, &[1, 2, 3]),
        founder(3, &[1, 2, 3, 4]),
    ];
    assert_eq!(rounds(&mut all, 5), [None, None, None]);
    for founders in &all {
        let waits: Vec<String> = founders.waits().iter().map(ToString::to_string).collect();
        assert!(
            waits
                .iter()
                .any(|wait| wait.contains("the same [[cluster.nodes]]")),
            "{waits:?}"
        );
    }
}

/// Whoever is not on the list of those it lists keeps them from founding without it, for as long as it asks.
#[test]
fn whoever_was_forgotten_on_the_lists_of_others_is_heard() {
    let mut all = vec![
        founder(1, &[1, 2]),
        founder(2, &[1, 2]),
        founder(3, &[1, 2, 3]),
    ];
    let word = all[0].asked(NodeId(3), &list(&[1, 2, 3]));
    assert_eq!(word.agrees, None);
    for _ in 0..3 {
        assert_eq!(ask(&mut all, 1, 0), None);
        assert_eq!(ask(&mut all, 0, 1), None);
    }
    let waits = all[0].waits();
    assert!(
        waits.iter().any(
            |wait| matches!(&wait.reason, Reason::OtherList { theirs, .. } if theirs.len() == 3)
        ),
        "{waits:?}"
    );
    // It gave up, or its list was corrected.
    (0..100).for_each(|_| all[0].tick());
    assert!(rounds(&mut all[..2], 3).iter().all(Option::is_some));
}

/// An agreement is to what was so when it was asked for: after a node came with another store, nothing from before counts.
#[test]
fn what_was_agreed_to_before_something_else_was_heard_does_not_count() {
    let mut all = three();
    // Node 1 hears all, and node 2 agrees.
    for from in 0..3 {
        for to in (0..3).filter(|to| *to != from) {
            assert_eq!(ask(&mut all, from, to), None);
        }
    }
    let round = all[0].round();
    let agreed = all[1].asked(NodeId(1), &list(&[1, 2, 3]));
    assert!(agreed.agrees.is_some());
    // Node 3 comes back without its directory.
    all[2] = Founders::new("bees", NodeId(3), [33; 16], list(&[1, 2, 3]));
    assert_eq!(ask(&mut all, 0, 2), None);
    assert_ne!(all[0].round(), round);
    assert_eq!(all[0].heard(NodeId(2), round, agreed), None, "it is late");
    // All of them have to agree to the new one.
    let adopted = rounds(&mut all, 3);
    let first = adopted[0].clone().expect("it is founded");
    assert_eq!(first.founders[&NodeId(3)], [33; 16]);
    assert!(
        adopted
            .iter()
            .all(|founding| founding.as_ref() == Some(&first))
    );
}

/// A founding that was interrupted between two of its nodes is completed by whoever was in it, and by nobody else.
#[test]
fn whoever_is_in_a_founding_adopts_it_and_a_wiped_one_is_told() {
    let mut all = three();
    let adopted = rounds(&mut all, 3);
    let founding = adopted[0].clone().expect("it is founded");
    let shown = || Statement::founded([1; 16], founding.clone());
    // It was killed before it noted anything, also with another list by now.
    for ids in [&[1_u64, 2, 3][..], &[1, 2, 3, 4]] {
        let mut again = founder(2, ids);
        let round = again.round();
        assert_eq!(
            again.heard(NodeId(1), round, shown()),
            Some(founding.clone())
        );
    }
    let mut wiped = Founders::new("bees", NodeId(2), [22; 16], list(&[1, 2, 3]));
    let round = wiped.round();
    assert_eq!(wiped.heard(NodeId(1), round, shown()), None);
    assert!(matches!(wiped.waits()[0].reason, Reason::Replaced(_)));
    let mut stranger = founder(4, &[1, 2, 3, 4]);
    let round = stranger.round();
    assert_eq!(stranger.heard(NodeId(1), round, shown()), None);
    assert!(matches!(stranger.waits()[0].reason, Reason::Elsewhere(_)));
    // Of another name it is none of this one's.
    let mut wasp = Founders::new("wasps", NodeId(2), [2; 16], list(&[1, 2, 3]));
    let round = wasp.round();
    assert_eq!(wasp.heard(NodeId(1), round, shown()), None);
}

/// From its decision on a founder agrees to nothing else, whatever it hears, durable or not.
#[test]
fn who_adopts_agrees_to_nothing_else() {
    let mut all = three();
    let mut decided = None;
    for _ in 0..3 {
        for (from, to) in [(1, 0), (1, 2), (2, 0), (2, 1), (0, 1), (0, 2)] {
            if decided.is_none() || from != 0 {
                let founding = ask(&mut all, from, to);
                decided = decided.or(founding.filter(|_| from == 0));
            }
        }
    }
    let decided = decided.expect("node 1 decides");
    let round = all[0].round();
    let other = Statement {
        store: [33; 16],
        list: list(&[1, 2, 3]),
        agrees: None,
        founded: None,
    };
    assert_eq!(all[0].heard(NodeId(3), round, other), None);
    let word = all[0].asked(NodeId(2), &list(&[1, 2, 3]));
    assert_eq!(word.agrees, Some(decided.identity()));
    assert_eq!(word.founded, None, "it is not durable");
    all[0].adopted();
    let word = all[0].asked(NodeId(2), &list(&[1, 2, 3]));
    assert_eq!(word.founded, Some(decided));
}

#[test]
fn one_directory_is_not_two_nodes() {
    let mut all = three();
    all[2] = Founders::new("bees", NodeId(3), [2; 16], list(&[1, 2, 3]));
    assert_eq!(rounds(&mut all, 5), [None, None, None]);
    let waits = all[0].waits();
    assert!(
        waits
            .iter()
            .any(|wait| matches!(wait.reason, Reason::SameStore(_))),
        "{waits:?}"
    );
}
