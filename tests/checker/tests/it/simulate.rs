//! A group that is linearizable by construction: the real key-value machine behind clients whose requests take effect at
//! one random moment between call and return, whose answers get lost, and a follower that lags.

use skep_checker::{Outcome, Place, RawOperation, Reply, Via};
use skep_example_kv::Kv;
use skep_guest::Rejection;
use skep_guest::testing::Harness;

use crate::xorshift::Xorshift;

/// What is simulated.
#[derive(Clone, Copy)]
pub struct Simulation {
    pub clients: usize,
    pub keys: u64,
    /// Distinct values; few of them make histories that have many explanations.
    pub values: u64,
    pub operations: usize,
    /// Of a hundred changes, how many get no answer.
    pub unknown: u64,
    /// Whether there are scans and stale queries.
    pub all_kinds: bool,
}

/// A request that was not answered yet.
struct InFlight {
    /// Its place in the history.
    operation: usize,
    answer: Option<(Reply, Place)>,
}

struct Group {
    leader: Harness<Kv>,
    follower: Harness<Kv>,
    /// Entries by index, with the requests in them.
    log: Vec<(u64, String)>,
    /// How much of the log the follower has, and the index of that.
    followed: usize,
    follower_index: u64,
    index: u64,
    offset: u32,
    /// Somebody has seen the last entry, so nothing may be added to it.
    sealed: bool,
}

impl Group {
    fn propose(&mut self, request: &str, random: &mut Xorshift) -> (Reply, Place) {
        if self.sealed || random.percent(50) {
            // Elections and configuration changes have indices, too.
            self.index += 1 + random.below(2);
            self.offset = 0;
            self.sealed = false;
        } else {
            self.offset += 1;
        }
        self.log.push((self.index, request.to_owned()));
        let reply = reply(self.leader.apply(request));
        (reply, Place::new(self.index, self.offset))
    }

    fn query(&mut self, request: &str) -> (Reply, Place) {
        self.sealed = true;
        (
            reply(self.leader.query(request)),
            Place::of_index(self.index),
        )
    }

    fn stale(&mut self, request: &str, random: &mut Xorshift) -> (Reply, Place) {
        self.sealed = true;
        let target = self.follower_index + random.below(self.index - self.follower_index + 1);
        while let Some((index, request)) = self.log.get(self.followed) {
            if *index > target {
                break;
            }
            // The leader has answered the client.
            let _ = self.follower.apply(request.as_str());
            self.followed += 1;
        }
        self.follower_index = target;
        (reply(self.follower.query(request)), Place::of_index(target))
    }
}

fn reply(result: Result<Vec<u8>, Rejection>) -> Reply {
    match result {
        Ok(bytes) => Reply::ok(bytes),
        Err(rejection) => Reply::rejected(rejection.code, rejection.message),
    }
}

impl Simulation {
    /// The history of one run.
    pub fn run(&self, random: &mut Xorshift) -> Vec<RawOperation> {
        let mut group = Group {
            leader: Harness::new(),
            follower: Harness::new(),
            log: Vec::new(),
            followed: 0,
            follower_index: 1,
            index: 1,
            offset: 0,
            sealed: true,
        };
        let mut history: Vec<RawOperation> = Vec::new();
        let mut clients: Vec<Option<InFlight>> = (0..self.clients).map(|_| None).collect();
        // Given up by their clients, and still on their way.
        let mut lost: Vec<usize> = Vec::new();
        let mut time = 0;
        loop {
            time += 1;
            if !lost.is_empty() && random.percent(5) {
                let lost = lost.swap_remove(random.below(lost.len() as u64) as usize);
                if random.percent(60) {
                    let request = text(&history[lost]);
                    group.propose(&request, random);
                }
            }
            let client = random.below(self.clients as u64) as usize;
            match clients[client].take() {
                None if history.len() == self.operations => {
                    if clients.iter().all(Option::is_none) {
                        return history;
                    }
                }
                None => {
                    let (via, request) = self.request(random, history.len() as u64);
                    history.push(RawOperation {
                        id: history.len() as u64 + 1,
                        client: client as u64,
                        via,
                        input: request.into(),
                        call: time,
                        ret: time,
                        outcome: Outcome::Unknown,
                        place: None,
                    });
                    clients[client] = Some(InFlight {
                        operation: history.len() - 1,
                        answer: None,
                    });
                }
                Some(InFlight {
                    operation,
                    answer: None,
                }) => {
                    let noted = &mut history[operation];
                    noted.ret = time;
                    if random.percent(self.unknown) {
                        if noted.via == Via::Log {
                            lost.push(operation);
                        }
                        continue;
                    }
                    if random.percent(2) {
                        noted.outcome = Outcome::Failed;
                        continue;
                    }
                    let request = text(noted);
                    let answer = match noted.via {
                        Via::Log => group.propose(&request, random),
                        Via::Read => group.query(&request),
                        Via::Stale => group.stale(&request, random),
                    };
                    clients[client] = Some(InFlight {
                        operation,
                        answer: Some(answer),
                    });
                }
                Some(InFlight {
                    operation,
                    answer: Some((reply, place)),
                }) => {
                    let noted = &mut history[operation];
                    noted.ret = time;
                    if random.percent(self.unknown) {
                        continue;
                    }
                    group.sealed = true;
                    noted.outcome = Outcome::Ok(reply);
                    noted.place = Some(place);
                }
            }
        }
    }

    fn request(&self, random: &mut Xorshift, number: u64) -> (Via, String) {
        let key = random.below(self.keys);
        let value = random.below(self.values);
        let read = match random.below(10) {
            0 if self.all_kinds => Via::Stale,
            0..=2 => Via::Log,
            _ => Via::Read,
        };
        match random.below(16) {
            0..=2 => (Via::Log, format!("put k{key} {value}")),
            3..=5 => (Via::Log, format!("incr k{key} {}", 1 + value % 2)),
            6 => (Via::Log, format!("delete k{key}")),
            // Versions near the newest, or none.
            7 | 8 => {
                let version = (number / 2).saturating_sub(random.below(5)) * random.below(2);
                (Via::Log, format!("cas k{key} {version} {value}"))
            }
            9 => (Via::Log, format!("put k{key} word{value}")),
            10 if self.all_kinds => (read, format!("scan k {}", 1 + random.below(5))),
            10..=12 => (read, format!("gets k{key}")),
            _ => (read, format!("get k{key}")),
        }
    }
}

fn text(operation: &RawOperation) -> String {
    String::from_utf8_lossy(operation.input.as_slice()).into_owned()
}
