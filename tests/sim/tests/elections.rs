//! What it costs in elections that a process that has ended is noticed before a timeout ends: nothing, on a network that loses a
//! fifth of all messages.

use skep_sim::scenario::SECOND;
use skep_sim::soak::Sum;
use skep_sim::{Fault, Scenario, soak};

/// Virtual hours of each count.
const HOURS: u64 = 6;

/// A group of three on a network that loses every fifth message.
fn lossy(seed: u64, faults: &[Fault], notices: bool) -> Scenario {
    Scenario {
        nodes: 3,
        groups: 1,
        voters: 3,
        clients: 1,
        seconds: 3600,
        loss: 200,
        duplicates: 0,
        delay: 2_000,
        disk: 2_000,
        think: 2 * SECOND,
        // One of many kinds is drawn each time, and is left out if it is none of those wanted.
        fault: SECOND / 5,
        faults: faults.to_vec(),
        notices,
        ..Scenario::draw(seed)
    }
}

/// What so many hours came to.
fn sum(faults: &[Fault], notices: bool) -> Sum {
    let sum = soak::soak(
        1,
        2,
        || {},
        |seed| lossy(seed, faults, notices),
        |begun, _| begun < HOURS,
        |_| {},
    );
    let failed = sum.failures.values().next();
    assert!(
        failed.is_none(),
        "{:?}",
        failed.map(|failed| &failed.violation)
    );
    sum
}

/// Nothing ends, and one node after the other hears that another has.
// P-91
#[test]
fn rumours_depose_no_leader_where_messages_are_lost() {
    let (without, with) = (sum(&[], true), sum(&[Fault::Rumour], true));
    let rumours = with.faults[&Fault::Rumour];
    let (before, now) = (without.counts.elections, with.counts.elections);
    println!("elections in {HOURS} hours: {before}, and {now} with {rumours} rumours");
    assert!(rumours > 1000 && with.restarts == 0);
    // Each follower that believed one would have made an election.
    assert!(now <= before + rumours / 100, "{before}, {now}");
}

/// Processes end again and again. Each election is of chance: a tenth more or less is the same.
// P-91
#[test]
fn quick_notice_makes_no_more_elections_where_messages_are_lost() {
    let (without, with) = (sum(&[Fault::Kill], false), sum(&[Fault::Kill], true));
    let of = |sum: &Sum| (sum.counts.elections, sum.restarts);
    let ((before, ended), (now, ended_now)) = (of(&without), of(&with));
    println!(
        "elections in {HOURS} hours: {before} for {ended} processes that ended, and with quick notice {now} for {ended_now}"
    );
    assert!(before > 500, "{before}");
    assert!(
        10 * now * ended <= 11 * before * ended_now,
        "{before}, {now}"
    );
}
