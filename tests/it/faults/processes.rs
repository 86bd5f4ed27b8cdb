//! Processes that are killed, paused and stopped.

use std::time::Duration;

use skep_tests::clock::{eventually, pause};
use skep_tests::cluster::Settings;
use skep_tests::seed::Seed;

use super::scenario::{Scenario, operations, rounds, step};

/// How long a leader stands still: long enough for the others to elect another one, several times over.
const PAUSE_SHORT: Duration = Duration::from_secs(1);
const PAUSE_LONG: Duration = Duration::from_secs(5);

/// Kills the leader and measures for how long a client is without an answer, in election timeouts.
///
/// `T` is `election_ticks` × `tick_ms`. Each follower draws its own timeout between `T` and `2 T`, counted from the last
/// heartbeat it heard, and the first to reach its own stands. What comes on top are three round trips with syncs in two of
/// them (pre-vote, vote, first entry). If both followers stand at the same time neither wins, and a second draw follows:
/// two drawn timeouts are the bound of each death, and `2 T` is that of most.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaders_are_killed() {
    // The defaults of a real node, so that the syncs of a busy machine are small beside a timeout.
    let settings = Settings {
        tick_ms: 100,
        election_ticks: 10,
        heartbeat_ticks: 2,
        ..Settings::default()
    };
    let timeout = Duration::from_millis(settings.tick_ms) * settings.election_ticks;
    let mut scenario = Scenario::start("leaders are killed", &settings).await;
    let mut silences = Vec::new();
    for _ in 0..rounds() {
        let leader = scenario.leader().await;
        let from = scenario.load.now();
        scenario.cluster.kill(leader);
        let others = scenario.cluster.others(&[leader]);
        scenario.led_by_one_of(&others).await;
        scenario.load.more(step()).await;
        silences.push(scenario.silence(from, scenario.load.now()));
        scenario.cluster.restart(leader).await;
        scenario.load.more(step()).await;
    }
    let ids = scenario.cluster.ids();
    scenario.finish(&ids).await;
    silences.sort_unstable();
    let at = |percent: usize| silences[(silences.len() - 1) * percent / 100];
    println!(
        "unavailability after {} deaths of a leader, as a client saw it that waits for each answer: least {:.2?}, median \
         {:.2?}, p90 {:.2?}, most {:.2?}; {} within 2 T, for T = {timeout:?} and timeouts drawn from T to 2 T; all: {silences:.2?}",
        silences.len(),
        at(0),
        at(50),
        at(90),
        at(100),
        silences
            .iter()
            .filter(|silence| **silence <= timeout * 2)
            .count(),
    );
    assert!(at(50) <= timeout * 2, "the median is {:?}", at(50));
    assert!(at(100) <= timeout * 4, "the longest is {:?}", at(100));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn followers_are_killed() {
    let mut scenario = Scenario::start("followers are killed", &Settings::default()).await;
    for round in 0..rounds() {
        let leader = scenario.leader().await;
        let follower = scenario.cluster.others(&[leader])[round as usize % 2];
        scenario.cluster.kill(follower);
        scenario.load.more(step()).await;
        scenario.cluster.restart(follower).await;
        scenario.load.more(step()).await;
    }
    let ids = scenario.cluster.ids();
    scenario.finish(&ids).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_nodes_are_killed() {
    let settings = Settings {
        snapshot_entries: 100,
        ..Settings::default()
    };
    let mut scenario = Scenario::start("all nodes are killed", &settings).await;
    let mut seed = Seed::new(1);
    for _ in 0..rounds() {
        let order = seed.shuffled(scenario.cluster.ids());
        scenario.cluster.kill_at_once(&order);
        for id in seed.shuffled(order) {
            scenario.cluster.spawn(id);
        }
        scenario.load.more(step() * 2).await;
    }
    let ids = scenario.cluster.ids();
    scenario.finish(&ids).await;
}

/// A leader that stands still is replaced. When it goes on it still takes itself for the leader, and the reads that
/// waited in its sockets are the first that it meets: whatever it answers is part of the history.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaders_stand_still_and_answer_no_stale_reads() {
    let scenario = Scenario::start("leaders stand still", &Settings::default()).await;
    let length = if operations() >= 20_000 {
        PAUSE_LONG
    } else {
        PAUSE_SHORT
    };
    let mut answered = 0;
    for _ in 0..rounds() {
        let leader = scenario.leader().await;
        let others = scenario.cluster.others(&[leader]);
        // Connected before the pause, so that requests can be sent into it.
        let client = scenario.client_of(leader, PAUSE_LONG * 2).await;
        scenario.cluster.pause(leader);
        scenario.led_by_one_of(&others).await;
        scenario.load.more(step()).await;
        // What was acknowledged so far these must see, though the leader of then is the first to hear of them.
        let reads = scenario.load.reads(&client);
        pause(length).await;
        scenario.cluster.resume(leader);
        answered += reads.join_all().await.iter().filter(|read| **read).count();
        scenario.load.more(step()).await;
    }
    println!("{answered} reads were sent into a paused leader and answered");
    let ids = scenario.cluster.ids();
    scenario.finish(&ids).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_are_restarted_one_after_another() {
    let mut scenario = Scenario::start("a rolling restart", &Settings::default()).await;
    for round in 0..rounds() * 3 {
        let id = round % 3 + 1;
        let (status, _) = scenario.cluster.stop(id);
        assert_eq!(status.code(), Some(0), "node {id}");
        scenario.load.more(step() / 3).await;
        scenario.cluster.restart(id).await;
        scenario.load.more(step() / 3).await;
    }
    let ids = scenario.cluster.ids();
    scenario.finish(&ids).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_away_catches_up_by_snapshot() {
    let settings = Settings {
        snapshot_entries: 50,
        ..Settings::default()
    };
    let mut scenario = Scenario::start("snapshots for who was away", &settings).await;
    for round in 0..rounds() {
        let leader = scenario.leader().await;
        let away = scenario.cluster.others(&[leader])[round as usize % 2];
        let group = scenario.group;
        let status = scenario.cluster.try_status(away, group).await;
        let last = status.expect("a status").replica.last;
        scenario.cluster.kill(away);
        let others = scenario.cluster.others(&[away]);
        eventually("the leader has compacted what is missing", async || {
            let leader = scenario.leader_among(&others).await;
            let replica = scenario.cluster.try_status(leader, group).await?.replica;
            match replica.first.0 > last.0 + 1 {
                true => Ok(()),
                false => Err(format!("{replica:?}")),
            }
        })
        .await;
        scenario.cluster.restart(away).await;
        scenario.load.more(step()).await;
        eventually("the node has what it missed", async || {
            let replica = scenario.cluster.try_status(away, group).await?.replica;
            match replica.applied > last {
                true => Ok(()),
                false => Err(format!("{replica:?}")),
            }
        })
        .await;
        let received = scenario
            .cluster
            .metric(away, "skep_snapshots_received_total")
            .await;
        assert!(received >= 1, "node {away} caught up without a snapshot");
    }
    let ids = scenario.cluster.ids();
    scenario.finish(&ids).await;
}
