//! A network that delays, loses, cuts, damages and hears only one side.

use std::time::Duration;

use skep_tests::clock::pause;
use skep_tests::cluster::Settings;
use skep_tests::proxy::{Damage, Fault};
use skep_tests::seed::Seed;

use super::scenario::{Scenario, rounds, step};

/// How long a fault lasts that stops the group or one node: two of the longest election timeouts.
const LASTS: Duration = Duration::from_millis(1200);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_are_late() {
    let scenario = Scenario::start("messages are late", &Settings::default()).await;
    let least = Duration::from_millis(2);
    for _ in 0..rounds() {
        // Slow and steady.
        scenario
            .proxy
            .set_all(Fault::Delay(least, Duration::from_millis(15)));
        scenario.load.more(step()).await;
        // Heartbeats may come in time or not; it may well be that nobody leads for long.
        scenario
            .proxy
            .set_all(Fault::Delay(least, Duration::from_millis(400)));
        pause(LASTS).await;
        scenario.proxy.heal();
        scenario.load.more(step()).await;
    }
    assert!(scenario.proxy.damage().delayed > 0);
    let ids = scenario.cluster.ids();
    scenario.finish(&ids).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_is_cut_off() {
    // A black hole, whose bytes come out at the end, old as they are; or refusals.
    let cuts = [
        (Node::Leader, Links::Both, Fault::Drop),
        (Node::Leader, Links::Both, Fault::Refuse),
    ];
    let damage = one_after_the_other("the leader is cut off", &cuts).await;
    assert!(damage.hindered > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_half_open() {
    let cuts = [
        // The leader speaks into the void, and is replaced.
        (Node::Leader, Links::From, Fault::HalfOpen),
        // One follower does, and the group goes on without it.
        (Node::Follower, Links::Both, Fault::HalfOpen),
    ];
    let damage = one_after_the_other("half-open connections", &cuts).await;
    assert!(damage.swallowed > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_is_heard_by_nobody_or_hears_nobody() {
    let cuts = [
        (Node::Leader, Links::From, Fault::Drop),
        // A leader that hears nobody must step down by itself, or its heartbeats keep the others from electing.
        (Node::Leader, Links::To, Fault::Drop),
        // A follower that hears nobody must not disturb those who do.
        (Node::Follower, Links::To, Fault::Drop),
    ];
    let damage = one_after_the_other("one-way partitions", &cuts).await;
    assert!(damage.hindered > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bits_are_flipped() {
    // Snapshots are on their way all the time, so that they are damaged too.
    let settings = Settings {
        snapshot_entries: 50,
        ..Settings::default()
    };
    let mut scenario = Scenario::start("bits are flipped", &settings).await;
    let ids = scenario.cluster.ids();
    for round in 0..rounds() {
        let away = round % 3 + 1;
        scenario.cluster.kill(away);
        scenario.load.more(step()).await;
        scenario.proxy.set_all(Fault::Corrupt { one_in: 40 });
        scenario.cluster.restart(away).await;
        scenario.load.more(step()).await;
        scenario.proxy.heal();
        // Not one connection may be left in which a damaged frame is waited for.
        scenario.leader().await;
        scenario.cluster.keeps_up(scenario.group, &ids).await;
        scenario.load.more(step()).await;
    }
    assert!(scenario.proxy.damage().corrupted > 0);
    scenario.finish(&ids).await;
}

/// Each link on its own, in all ways at once and again and again, between five nodes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_link_is_bad_in_its_own_way() {
    let settings = Settings {
        nodes: 5,
        snapshot_entries: 200,
        ..Settings::default()
    };
    let scenario = Scenario::start("every link is bad", &settings).await;
    let ids = scenario.cluster.ids();
    let mut seed = Seed::new(5);
    for _ in 0..rounds() {
        for from in &ids {
            for to in ids.iter().filter(|to| *to != from) {
                let fault = match seed.below(12) {
                    0 => Fault::Drop,
                    1 => Fault::Refuse,
                    2 => Fault::HalfOpen,
                    3 => Fault::Corrupt { one_in: 50 },
                    4 | 5 => Fault::Delay(Duration::ZERO, Duration::from_millis(100)),
                    _ => Fault::None,
                };
                scenario.proxy.set(*from, *to, fault);
            }
        }
        // It may well be that nobody can lead, so time is all that can be waited for.
        pause(LASTS).await;
        scenario.proxy.heal();
        scenario.leader().await;
        scenario.load.more(step() * 2).await;
    }
    scenario.finish(&ids).await;
}

/// Whose links fail.
#[derive(Clone, Copy)]
enum Node {
    Leader,
    Follower,
}

/// Which of the links of a node fail.
#[derive(Clone, Copy)]
enum Links {
    From,
    To,
    Both,
}

/// The links of one node fail, now in one way, now in another, each way once at least: who leads is replaced, and a group
/// does without a follower.
async fn one_after_the_other(name: &'static str, cuts: &[(Node, Links, Fault)]) -> Damage {
    let scenario = Scenario::start(name, &Settings::default()).await;
    let rounds = rounds().max(cuts.len() as u64);
    for (node, links, fault) in cuts.iter().cycle().take(rounds as usize) {
        let leader = scenario.leader().await;
        let others = scenario.cluster.others(&[leader]);
        let id = match node {
            Node::Leader => leader,
            Node::Follower => others[0],
        };
        match links {
            Links::From => scenario.proxy.set_from(id, *fault),
            Links::To => scenario.proxy.set_to(id, *fault),
            Links::Both => scenario.proxy.set_around(id, *fault),
        }
        match node {
            Node::Leader => {
                scenario.led_by_one_of(&others).await;
            }
            // Long enough for it to campaign.
            Node::Follower => pause(LASTS).await,
        }
        scenario.load.more(step()).await;
        scenario.proxy.heal();
        scenario.load.more(step()).await;
    }
    let damage = scenario.proxy.damage();
    let ids = scenario.cluster.ids();
    scenario.finish(&ids).await;
    damage
}
