//! The first election of a group whose first leader was named: nobody waits for a timeout.

use skep_core::id::NodeId;
use skep_core::input::Input;
use skep_core::status::Part;

use crate::cluster::{Cluster, InFlight};
use crate::rng::Rng;

/// Three founders, of which the second leads first; none is there yet.
fn none_yet() -> Cluster {
    Cluster::with(0, |config| config.first_leader = Some(NodeId(2)))
}

#[test]
fn the_founder_that_was_named_leads_before_any_tick() {
    let mut cluster = Cluster::with(3, |config| config.first_leader = Some(NodeId(2)));
    cluster.run();
    assert_eq!(cluster.leader(), Some(2));
    let command = cluster.command(1, "put a 1");
    cluster.run();
    assert!(matches!(cluster.node(1).replies.get(&command), Some(Ok(_))));
}

/// No tick has told it the time; it knows that of its making.
#[test]
fn what_is_done_before_any_tick_is_stamped_with_the_time() {
    const NOW: u64 = 1_700_000_000_000_000_000;
    let mut cluster = Cluster::with(1, |config| {
        config.first_leader = Some(NodeId(1));
        config.now = NOW;
    });
    cluster.run();
    cluster.node(1).machine_stuck = true;
    cluster.command(1, "put a 1");
    cluster.run();
    assert_eq!(cluster.node(1).time_of_next_work(), Some(NOW));
}

/// In whatever order the founders come up, the last one that is needed makes the election.
#[test]
fn founders_that_come_up_late_are_asked_again() {
    for order in [
        [1, 2, 3],
        [1, 3, 2],
        [2, 1, 3],
        [2, 3, 1],
        [3, 1, 2],
        [3, 2, 1],
    ] {
        let mut cluster = none_yet();
        for id in order {
            cluster.add(id, 3);
            cluster.run();
        }
        assert_eq!(cluster.leader(), Some(2), "{order:?}");
        let term = cluster.status(2).expect("it is up").term.0;
        assert_eq!(term, 2, "{order:?}: one election did");
    }
}

/// What the first candidate says is lost; it says it again long before a timeout ends.
#[test]
fn a_candidacy_that_is_lost_is_repeated() {
    let mut cluster = Cluster::with(3, |config| config.first_leader = Some(NodeId(2)));
    cluster.drop = |message| message.from.0 == 2;
    cluster.run();
    assert_eq!(cluster.leader(), None);
    cluster.drop = |_| false;
    cluster.tick(2);
    assert_eq!(cluster.leader(), Some(2));
    let term = cluster.status(2).expect("it is up").term.0;
    assert_eq!(term, 2, "one election did");
}

/// Disks and messages are as fast as they like; lanes of two priorities may overtake each other.
#[test]
fn founders_elect_however_their_steps_interleave() {
    for seed in 0..3_000 {
        let mut rng = Rng(seed);
        let mut cluster = none_yet();
        let mut absent = vec![1, 2, 3];
        for _ in 0..60 {
            match rng.below(4) {
                0 if !absent.is_empty() => {
                    let id = absent.remove(rng.below(absent.len() as u64) as usize);
                    cluster.add(id, 3);
                }
                1 => {
                    let there: Vec<_> = cluster.nodes.keys().copied().collect();
                    for id in there {
                        let (records, work) = (rng.below(2) as usize, rng.below(3) as usize);
                        if rng.one_in(2) {
                            cluster.turn(id, records, work);
                        }
                    }
                }
                _ if cluster.network.is_empty() => {}
                _ => {
                    let lane =
                        |(from, to, message, _): &InFlight| (*from, *to, message.body.priority());
                    let drawn = rng.below(cluster.network.len() as u64) as usize;
                    let drawn = lane(&cluster.network[drawn]);
                    let first = cluster.network.iter().position(|sent| lane(sent) == drawn);
                    let sent = first.and_then(|first| cluster.network.remove(first));
                    let (from, to, message, file) = sent.expect("it was drawn");
                    cluster.deliver(from, to, message, file);
                }
            }
        }
        for id in absent {
            cluster.add(id, 3);
        }
        cluster.run();
        assert_eq!(cluster.leader(), Some(2), "seed {seed}");
    }
}

#[test]
fn a_founder_alone_leads_at_once() {
    let mut cluster = Cluster::with(1, |config| config.first_leader = Some(NodeId(1)));
    cluster.run();
    assert_eq!(cluster.leader(), Some(1));
}

#[test]
fn without_the_founder_that_was_named_a_timeout_ends() {
    let mut cluster = none_yet();
    for id in [1, 3] {
        cluster.add(id, 3);
        cluster.run();
    }
    assert_eq!(cluster.leader(), None);
    cluster.tick(20);
    assert!(matches!(cluster.leader(), Some(1 | 3)));
}

/// The question that a founder asks is asked by others too, and must disturb nobody who leads or follows.
#[test]
fn questions_of_members_make_no_election_once_there_was_one() {
    let mut cluster = Cluster::with(3, |config| config.first_leader = Some(NodeId(2)));
    cluster.run();
    cluster.input(2, Input::Transfer { to: NodeId(1) });
    cluster.run();
    let term = cluster.status(1).expect("it is up").term;
    // It comes up again with nothing, as one whose disk was emptied before it had written.
    cluster.crash(3);
    cluster.add(3, 3);
    cluster.run();
    let status = cluster.status(1).expect("it is up");
    assert_eq!((status.term, status.part), (term, Part::Leader));
}
