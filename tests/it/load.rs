//! Work for a key-value group whose every effect can be checked afterwards.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use skep_client::{Client, Consistency, GroupId, Outcome, Session};
use skep_tests::clock::until;
use skep_tests::cluster::Cluster;
use tokio::task::JoinSet;

/// The counter that all workers increment.
const COUNTER: &str = "total";
/// What every other key begins with.
const PREFIX: &str = "key-";
/// Items of one scan.
const PAGE: usize = 5000;

/// Workers that increment one counter and put keys of their own, each under a session, until they are told to stop. A
/// worker takes nothing but a reply for an answer: whatever happens to the nodes, its client must find out what became
/// of each command.
pub struct Load {
    group: GroupId,
    workers: JoinSet<Done>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    increments: AtomicU64,
    acknowledged: AtomicU64,
}

/// What one worker did.
#[derive(Default)]
struct Done {
    /// The counter after each of its increments, in their order.
    counts: Vec<u64>,
    /// Its keys with their values.
    keys: BTreeMap<String, String>,
}

impl Load {
    /// Starts the workers, spread over the clients.
    pub async fn start(clients: &[Client], group: GroupId, workers: usize) -> Self {
        let shared = Arc::new(Shared::default());
        let mut set = JoinSet::new();
        for (number, client) in (0..workers).zip(clients.iter().cycle()) {
            let session = client.session(group).await.expect("a session");
            set.spawn(work(number, session, Arc::clone(&shared)));
        }
        Self {
            group,
            workers: set,
            shared,
        }
    }

    /// Commands acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.shared.acknowledged.load(Ordering::SeqCst)
    }

    /// Increments acknowledged so far.
    pub fn increments(&self) -> u64 {
        self.shared.increments.load(Ordering::SeqCst)
    }

    /// Waits until this many more commands were acknowledged.
    pub async fn more(&self, commands: u64) {
        let target = self.acknowledged() + commands;
        until(
            &format!("{commands} more commands are acknowledged"),
            || self.acknowledged() >= target,
        )
        .await;
    }

    /// Stops the workers and compares what they did with what the group holds: every command is in it, none is in it
    /// twice, nothing else is. How many commands there were.
    pub async fn verify(mut self, cluster: &Cluster) -> u64 {
        self.shared.stop.store(true, Ordering::SeqCst);
        let mut counts = Vec::new();
        let mut keys = BTreeMap::new();
        while let Some(done) = self.workers.join_next().await {
            let done = done.expect("a worker failed");
            assert!(
                done.counts.is_sorted(),
                "a worker's later increment came before an earlier one"
            );
            counts.extend(done.counts);
            keys.extend(done.keys);
        }
        let commands = (counts.len() + keys.len()) as u64;
        assert_eq!(commands, self.acknowledged());
        // Each increment saw a number of its own, and none is missing: each was applied once.
        counts.sort_unstable();
        let wrong = (1..)
            .zip(&counts)
            .find(|(expected, count)| expected != *count);
        assert_eq!(wrong, None, "(expected, counted)");
        let client = cluster.client().await;
        assert_eq!(
            answer(&client, self.group, &format!("get {COUNTER}")).await,
            counts.len().to_string()
        );
        assert_eq!(scan(&client, self.group).await, keys);
        let stats = answer(&client, self.group, "stats").await;
        // The machine counts changes itself: one more would be a command applied twice.
        assert!(
            stats.contains(&format!("\nrevision {commands}\n")),
            "{commands} commands, {stats}"
        );
        commands
    }
}

async fn work(number: usize, session: Session, shared: Arc<Shared>) -> Done {
    let mut done = Done::default();
    for step in 0.. {
        if shared.stop.load(Ordering::SeqCst) {
            break;
        }
        let count = reply(&session, &format!("incr {COUNTER}")).await;
        done.counts.push(count.parse().expect("a number"));
        shared.increments.fetch_add(1, Ordering::SeqCst);
        let (key, value) = (
            format!("{PREFIX}{number}-{step:06}"),
            format!("{number}:{step}"),
        );
        reply(&session, &format!("put {key} {value}")).await;
        done.keys.insert(key, value);
        shared.acknowledged.fetch_add(2, Ordering::SeqCst);
    }
    done
}

/// The reply to a command of a session.
pub async fn reply(session: &Session, command: &str) -> String {
    match session.propose(command.to_owned().into()).await {
        Ok(response) => text(response.outcome),
        Err(error) => panic!("{command}: {error} [{}]", error.code()),
    }
}

/// A reply as text.
pub fn text(outcome: Outcome) -> String {
    match outcome {
        Outcome::Reply(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        other => panic!("no reply: {other:?}"),
    }
}

/// The linearizable answer to a query.
pub async fn answer(client: &Client, group: GroupId, query: &str) -> String {
    let answer = client
        .query(group, query.to_owned().into(), Consistency::Linearizable)
        .await;
    text(
        answer
            .unwrap_or_else(|error| panic!("{query}: {error} [{}]", error.code()))
            .outcome,
    )
}

/// A command's outcome.
pub async fn propose(client: &Client, group: GroupId, command: &str) -> Outcome {
    let response = client.propose_once(group, command.to_owned().into()).await;
    response
        .unwrap_or_else(|error| panic!("{command}: {error} [{}]", error.code()))
        .outcome
}

/// All keys of workers, read page by page.
async fn scan(client: &Client, group: GroupId) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut after = String::new();
    loop {
        let page = answer(client, group, &format!("scan {PREFIX} {PAGE}{after}")).await;
        for item in page.lines().collect::<Vec<_>>().chunks(2) {
            match item {
                ["END"] => return found,
                [more] => after = more.strip_prefix("MORE").expect("MORE or END").to_owned(),
                [head, value] => {
                    let key = head.split(' ').next().unwrap_or_default();
                    found.insert(key.to_owned(), (*value).to_owned());
                }
                _ => unreachable!("chunks of two"),
            }
        }
    }
}
