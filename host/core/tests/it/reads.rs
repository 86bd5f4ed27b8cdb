//! Linearizable queries.

use skep_core::proposal::ProposalError;

use crate::cluster::{Cluster, anonymous, is_append};

// P-16
#[test]
fn a_query_sees_everything_acknowledged_before_it_at_any_replica() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.tick(2);
    for round in 1..=5 {
        cluster.ask(1, anonymous("x")).expect("committed");
        for node in 1..=3 {
            let waiter = cluster.query(node, true);
            cluster.until("an answer", |cluster| {
                cluster.node(node).query_replies.contains_key(&waiter)
            });
            let seen = cluster.node(node).query_replies[&waiter]
                .as_ref()
                .expect("answered")
                .len();
            assert_eq!(seen, round);
        }
    }
}

#[test]
fn a_follower_that_lags_waits_until_it_has_the_index() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.tick(2);
    // Node 3 gets heartbeats but no entries.
    cluster.drop = |message| is_append(message) && message.to.0 == 3;
    cluster
        .ask(1, anonymous("x"))
        .expect("committed by 1 and 2");
    let waiter = cluster.query(3, true);
    cluster.tick(5);
    assert!(!cluster.node(3).query_replies.contains_key(&waiter));
    cluster.drop = |_| false;
    cluster.until("an answer", |cluster| {
        cluster.node(3).query_replies.contains_key(&waiter)
    });
    assert_eq!(
        cluster.node(3).query_replies[&waiter]
            .as_ref()
            .expect("answered")
            .len(),
        1
    );
}

// P-16
#[test]
fn a_deposed_leader_does_not_answer_but_a_stale_query_does() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.ask(1, anonymous("x")).expect("committed");
    cluster.cut_off(1);
    let strict = cluster.query(1, true);
    let stale = cluster.query(1, false);
    cluster.run();
    assert!(!cluster.node(1).query_replies.contains_key(&strict));
    assert_eq!(
        cluster.node(1).query_replies[&stale]
            .as_ref()
            .expect("answered")
            .len(),
        1
    );
    cluster.until("it gives up", |cluster| {
        cluster.node(1).query_replies.contains_key(&strict)
    });
    assert_eq!(
        cluster.node(1).query_replies[&strict],
        Err(ProposalError::NoLeader)
    );
}

#[test]
fn many_queries_share_a_round() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.tick(2);
    cluster.node(1).sent.clear();
    let waiters: Vec<_> = (0..1000).map(|_| cluster.query(1, true)).collect();
    cluster.run();
    assert!(
        waiters
            .iter()
            .all(|waiter| cluster.node(1).query_replies.contains_key(waiter))
    );
    assert!(
        cluster.node(1).sent.len() <= 4,
        "one heartbeat to each follower, not {}",
        cluster.node(1).sent.len()
    );
}

#[test]
fn a_query_right_after_an_election_is_not_lost() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.ask(1, anonymous("x")).expect("committed");
    cluster.tick(2);
    cluster.crash(1);
    let waiter = cluster.query(2, true);
    cluster.until("an answer", |cluster| {
        cluster.node(2).query_replies.contains_key(&waiter)
    });
    match cluster.node(2).query_replies[&waiter].clone() {
        Ok(seen) => assert_eq!(seen.len(), 1),
        Err(error) => assert!(
            matches!(error, ProposalError::NoLeader | ProposalError::Busy),
            "{error}"
        ),
    }
}
