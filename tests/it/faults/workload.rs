//! Clients that do everything the key-value machine can, and note what they saw.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use skep_checker::{History, Pending, Place, Reply, Via};
use skep_client::{
    Client, ClientConfig, ClientError, Consistency, GroupId, LogIndex, Outcome, Session,
};
use skep_tests::clock::{Stopwatch, until};
use skep_tests::seed::Seed;
use tokio::task::JoinSet;

/// Keys that hold values, and keys that hold numbers. Many, so that each key's part of the history stays small.
const REGISTERS: u64 = 160;
const COUNTERS: u64 = 40;

/// Half of all requests go to so many of each, so that clients meet.
const HOT: u64 = 8;

/// Connections to the cluster, as separate programs would have; each asks another node first.
const CLIENTS: usize = 4;

/// Tasks on each connection.
const WORKERS: usize = 4;

/// The worker that does nothing but write one key, again as soon as it was answered: the times of its answers show for
/// how long the group served nobody.
pub const PROBE: u64 = 0;

/// The client of the last reads, made when all is well again.
const AUDITOR: u64 = 1000;

/// How long a client tries: most of them long enough for every fault, the impatient ones less than an election takes, so
/// that they often never learn what became of a command.
pub const PATIENT: Duration = Duration::from_secs(8);
const IMPATIENT: Duration = Duration::from_millis(250);

/// Bytes of a large value.
const LARGE: usize = 64 << 10;

/// How long one node is waited for.
const ATTEMPT: Duration = Duration::from_secs(1);

/// Clients at work.
pub struct Workload {
    workers: JoinSet<()>,
    shared: Arc<Shared>,
}

/// How operations ended so far.
#[derive(Clone, Copy, Debug)]
pub struct Counts {
    /// With an answer, a rejection by the machine included.
    pub answered: u64,
    /// With nobody knowing.
    pub unknown: u64,
    /// Certainly without effect.
    pub failed: u64,
}

struct Shared {
    group: GroupId,
    stop: AtomicBool,
    history: History,
    clock: Stopwatch,
    answered: AtomicU64,
    unknown: AtomicU64,
    failed: AtomicU64,
    /// Why operations had no answer: how often for each text.
    reasons: Mutex<BTreeMap<String, u64>>,
    /// The last version seen of a key, by anybody, to compare and set with.
    versions: Mutex<HashMap<String, u64>>,
}

/// How a request is sent.
enum Way {
    /// In a session, as often as it takes.
    Session,
    /// Without one: unknown if the answer is lost.
    Once,
    /// As a linearizable query.
    Query,
}

impl Workload {
    /// Starts the clients. `addresses` are the nodes that they know at first.
    pub async fn start(addresses: &[String], group: GroupId) -> Self {
        let shared = Arc::new(Shared {
            group,
            stop: AtomicBool::new(false),
            history: History::new(),
            clock: Stopwatch::start(),
            answered: AtomicU64::new(0),
            unknown: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            reasons: Mutex::default(),
            versions: Mutex::default(),
        });
        let mut workers = JoinSet::new();
        let mut number = PROBE;
        for at in 0..CLIENTS {
            let mut addresses = addresses.to_vec();
            let nodes = addresses.len();
            addresses.rotate_left(at % nodes);
            let impatient = at == CLIENTS - 1;
            let mut config = ClientConfig::new(addresses);
            config.request_timeout = PATIENT;
            config.attempt_timeout = ATTEMPT;
            let client = Client::connect(config).await.expect("a client");
            for _ in 0..WORKERS {
                let session = client.session(group).await.expect("a session");
                let worker = Worker {
                    number,
                    client: client.clone(),
                    session,
                    limit: if impatient { IMPATIENT } else { PATIENT },
                    seed: Seed::new(number + 1),
                    shared: Arc::clone(&shared),
                };
                workers.spawn(worker.run());
                number += 1;
            }
        }
        Self { workers, shared }
    }

    /// What was called and answered so far.
    pub fn history(&self) -> &History {
        &self.shared.history
    }

    /// Nanoseconds on the clock of the history.
    pub fn now(&self) -> u64 {
        self.shared.now()
    }

    /// How operations ended so far.
    pub fn counts(&self) -> Counts {
        self.shared.counts()
    }

    /// Why operations had no answer, with how often, the most frequent first.
    pub fn reasons(&self) -> Vec<(u64, String)> {
        let reasons = &self.shared.reasons;
        let reasons = reasons.lock().unwrap_or_else(PoisonError::into_inner);
        let mut reasons: Vec<_> = reasons
            .iter()
            .map(|(text, times)| (*times, text.clone()))
            .collect();
        reasons.sort_by_key(|(times, _)| Reverse(*times));
        reasons
    }

    /// Waits until so many more operations have ended, with an answer or with nobody knowing.
    pub async fn more(&self, operations: u64) {
        let target = self.ended() + operations;
        self.reach(target).await;
    }

    /// Waits until so many operations have ended altogether.
    pub async fn reach(&self, operations: u64) {
        until(&format!("{operations} operations have ended"), || {
            self.ended() >= operations
        })
        .await;
    }

    fn ended(&self) -> u64 {
        let counts = self.counts();
        counts.answered + counts.unknown
    }

    /// Ends the clients, each when its last request has ended.
    pub async fn stop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        while let Some(ended) = self.workers.join_next().await {
            ended.expect("a client failed");
        }
    }

    /// Asks for every key at once, as part of the history.
    pub async fn read_all(&self, client: &Client) {
        let mut reads = JoinSet::new();
        let keys = (0..REGISTERS)
            .map(register)
            .chain((0..COUNTERS).map(counter));
        for key in keys {
            let (client, shared) = (client.clone(), Arc::clone(&self.shared));
            reads.spawn(async move { shared.query(&client, AUDITOR, format!("gets {key}")).await });
        }
        while let Some(read) = reads.join_next().await {
            read.expect("a read").expect("every key can be read");
        }
    }

    /// Sends a read of each hot key, as part of the history, without waiting for the answers; each task ends with
    /// whether there was one.
    pub fn reads(&self, client: &Client) -> JoinSet<bool> {
        let mut reads = JoinSet::new();
        for key in (0..HOT).map(register) {
            let (client, shared) = (client.clone(), Arc::clone(&self.shared));
            reads.spawn(async move {
                let read = shared.query(&client, AUDITOR, format!("gets {key}"));
                read.await.is_ok()
            });
        }
        reads
    }

    /// Writes large values until it is dropped, so that logs grow.
    pub async fn fill(&self, client: &Client) {
        for step in 0_u64.. {
            let value = char::from(b'a' + (step % 26) as u8).to_string();
            let command = format!("put {} {}", register(REGISTERS + 1), value.repeat(LARGE));
            self.shared.propose_once(client, AUDITOR, command).await;
        }
    }
}

impl Shared {
    fn now(&self) -> u64 {
        u64::try_from(self.clock.elapsed().as_nanos()).expect("a test takes no centuries")
    }

    fn counts(&self) -> Counts {
        Counts {
            answered: self.answered.load(Ordering::SeqCst),
            unknown: self.unknown.load(Ordering::SeqCst),
            failed: self.failed.load(Ordering::SeqCst),
        }
    }

    /// Notes how an operation ended; what the machine said, if it said something.
    fn end(
        &self,
        pending: Pending,
        result: Result<(LogIndex, Outcome), &ClientError>,
    ) -> Option<Reply> {
        let now = self.now();
        match result {
            Ok((index, outcome)) => {
                let reply = match outcome {
                    Outcome::Reply(bytes) => Reply::ok(bytes),
                    Outcome::Rejected { code, message } => Reply::rejected(code, message),
                    outcome @ (Outcome::Fault(_) | Outcome::Refused { .. }) => {
                        panic!("the key-value machine failed: {outcome:?}")
                    }
                };
                pending.returned(reply.clone(), Some(Place::of_index(index.0)), now);
                self.answered.fetch_add(1, Ordering::SeqCst);
                Some(reply)
            }
            Err(error) if error.is_unknown() => {
                self.because(error);
                pending.unknown(now);
                self.unknown.fetch_add(1, Ordering::SeqCst);
                None
            }
            Err(error) => {
                self.because(error);
                pending.failed(now);
                self.failed.fetch_add(1, Ordering::SeqCst);
                None
            }
        }
    }

    fn because(&self, error: &ClientError) {
        // What differs from node to node is of no interest here.
        let text: String = error
            .to_string()
            .chars()
            .filter(|char| !char.is_ascii_digit())
            .collect();
        let reasons = &self.reasons;
        let mut reasons = reasons.lock().unwrap_or_else(PoisonError::into_inner);
        *reasons.entry(text).or_default() += 1;
    }

    async fn propose_once(&self, client: &Client, who: u64, request: String) -> Option<Reply> {
        let command = Bytes::from(request);
        let history = &self.history;
        let pending = history.call(who, Via::Log, command.clone(), self.now());
        let result = client.propose_once(self.group, command).await;
        self.end(
            pending,
            result
                .as_ref()
                .map(|done| (done.index, done.outcome.clone())),
        )
    }

    async fn query(
        &self,
        client: &Client,
        who: u64,
        request: String,
    ) -> Result<Option<Reply>, ClientError> {
        let query = Bytes::from(request);
        let pending = self.history.call(who, Via::Read, query.clone(), self.now());
        let answer = client
            .query(self.group, query, Consistency::Linearizable)
            .await;
        match answer {
            Ok(answer) => Ok(self.end(pending, Ok((answer.index, answer.outcome)))),
            Err(error) => {
                self.end(pending, Err(&error));
                Err(error)
            }
        }
    }
}

struct Worker {
    number: u64,
    client: Client,
    session: Session,
    limit: Duration,
    seed: Seed,
    shared: Arc<Shared>,
}

impl Worker {
    async fn run(mut self) {
        for step in 0_u64.. {
            if self.shared.stop.load(Ordering::SeqCst) {
                return;
            }
            let (way, key, request) = if self.number == PROBE {
                let key = register(REGISTERS);
                (Way::Session, key.clone(), format!("put {key} {step}"))
            } else {
                self.choose(step)
            };
            if let Some(reply) = self.send(way, request).await {
                self.learn(key, &reply);
            }
        }
    }

    /// Something to do: how, with which key, and the request.
    fn choose(&mut self, step: u64) -> (Way, String, String) {
        let hot = self.seed.below(2) == 0;
        let registers = if hot { HOT } else { REGISTERS };
        let counters = if hot { HOT / 4 } else { COUNTERS };
        let key = match self.seed.below(4) {
            0 => counter(self.seed.below(counters)),
            _ => register(self.seed.below(registers)),
        };
        let way = match self.seed.below(8) {
            0 => Way::Once,
            _ => Way::Session,
        };
        let value = format!("{}-{step}", self.number);
        let request = match (self.seed.below(20), key.starts_with('n')) {
            (0..5, _) => return (Way::Query, key.clone(), format!("gets {key}")),
            (5..8, _) => return (Way::Query, key.clone(), format!("get {key}")),
            (8, _) => format!("get {key}"),
            (9, _) => format!("delete {key}"),
            (_, true) => format!("incr {key} {}", self.seed.below(9) as i64 - 3),
            (10..15, false) => {
                let versions = &self.shared.versions;
                let versions = versions.lock().unwrap_or_else(PoisonError::into_inner);
                let version = versions.get(&key).copied().unwrap_or(0);
                format!("cas {key} {version} {value}")
            }
            (_, false) => format!("put {key} {value}"),
        };
        (way, key, request)
    }

    async fn send(&self, way: Way, request: String) -> Option<Reply> {
        let shared = &self.shared;
        match way {
            Way::Query => {
                let answer = shared.query(&self.client, self.number, request).await;
                answer.unwrap_or_default()
            }
            Way::Once => {
                let sent = shared.propose_once(&self.client, self.number, request);
                sent.await
            }
            Way::Session => {
                let command = Bytes::from(request);
                let history = &shared.history;
                let pending = history.call(self.number, Via::Log, command.clone(), shared.now());
                let result = self.session.with_timeout(self.limit).propose(command).await;
                if let Err(ClientError::SessionExpired) = result {
                    panic!("a session expired, and there are few");
                }
                shared.end(
                    pending,
                    result
                        .as_ref()
                        .map(|done| (done.index, done.outcome.clone())),
                )
            }
        }
    }

    /// Remembers the version that a reply names.
    fn learn(&self, key: String, reply: &Reply) {
        let Reply::Ok(bytes) = reply else { return };
        let Ok(text) = str::from_utf8(bytes.as_slice()) else {
            return;
        };
        let word = match text.split_once(' ') {
            Some(("OK", version)) => version,
            Some((version, _)) => version,
            None => return,
        };
        if let Ok(version) = word.parse() {
            let versions = &self.shared.versions;
            let mut versions = versions.lock().unwrap_or_else(PoisonError::into_inner);
            versions.insert(key, version);
        }
    }
}

fn register(number: u64) -> String {
    format!("r{number:03}")
}

fn counter(number: u64) -> String {
    format!("n{number:03}")
}
