//! What attackers cost a group beside them: the latency of its commands with and without each family of attacks, and the
//! nodes' memory when the attackers are gone.
//!
//! `SKEP_NEIGHBOURS_SECONDS=5` is the long form: each family is measured so long with and without its attack, in turns, as often
//! as `ROUNDS` says. It prints the table, and asserts that p99 is at most doubled and memory back within a tenth.
//! `SKEP_NEIGHBOURS_FAMILY=word,word` takes only the families with one of these words in their names. Without the first of them the
//! run is short, and only what no busy machine excuses is asserted. Build with `--release` for figures that mean something.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::json;
use skep_client::{Client, Consistency, GroupId};
use skep_machine::wasm::Profile;
use skep_tests::clock::{Stopwatch, eventually, pause};
use skep_tests::cluster::{Cluster, Settings};
use skep_tests::guests;
use tokio::task::JoinSet;

use crate::load::reply;

/// Clients of the group that is watched, each with one command in flight.
const CLIENTS: usize = 2;
/// Clients of each attacking group.
const ATTACKERS: usize = 2;
/// How often a family is measured in the long form, with and without its attack. What else a machine does comes and goes, so
/// each ratio is that of two neighbouring runs, and the one in the middle counts.
const ROUNDS: usize = 3;
/// How long a family is measured where nobody says.
const SHORT: Duration = Duration::from_millis(500);
/// Of so many families the short form takes one.
const SHORT_TAKES_ONE_OF: usize = 3;
/// What attackers may make of p99 in the long form: twice.
const LATENCY_RATIO: f64 = 2.0;
/// A command of the short form that takes longer than this shows that attackers starve a neighbour.
const STARVED: Duration = Duration::from_secs(15);
/// How much more memory may be held afterwards, in the long form and in the short one, where the nodes have not yet
/// touched everything that they keep.
const MEMORY_RATIO: f64 = 1.1;
const MEMORY_RATIO_SHORT: f64 = 1.5;

/// One way to attack, at the default limits.
struct Family {
    name: &'static str,
    guest: &'static str,
    attack: Attack,
}

enum Attack {
    Command(&'static str),
    Query(&'static str),
    Snapshots,
}

const FAMILIES: [Family; 11] = [
    Family {
        name: "endless loop",
        guest: "apply_loops",
        attack: Attack::Command("x"),
    },
    Family {
        name: "endless loop in batches",
        guest: "batch_loops",
        attack: Attack::Command("add"),
    },
    Family {
        name: "endless loop in queries",
        guest: "query_loops",
        attack: Attack::Query("x"),
    },
    Family {
        name: "recursion",
        guest: "apply_recurses",
        attack: Attack::Command("x"),
    },
    Family {
        name: "allocation bomb",
        guest: "apply_hoards",
        attack: Attack::Command("x"),
    },
    Family {
        name: "traps (poison loop)",
        guest: "apply_traps",
        attack: Attack::Command("x"),
    },
    Family {
        name: "replies of 1 MB",
        guest: "giant_reply",
        attack: Attack::Command("giant 1000000"),
    },
    Family {
        name: "replies of 1 MB to queries",
        guest: "giant_reply",
        attack: Attack::Query("giant 1000000"),
    },
    Family {
        name: "log flood",
        guest: "log_endless",
        attack: Attack::Command("x"),
    },
    Family {
        name: "entropy flood",
        guest: "entropy_endless",
        attack: Attack::Command("x"),
    },
    Family {
        name: "endless save",
        guest: "save_endless",
        attack: Attack::Snapshots,
    },
];

// P-43
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attackers_cost_their_neighbours_little() {
    let seconds = std::env::var("SKEP_NEIGHBOURS_SECONDS")
        .ok()
        .map(|seconds| {
            seconds
                .parse()
                .unwrap_or_else(|_| panic!("SKEP_NEIGHBOURS_SECONDS is `{seconds}`, no number"))
        });
    let time = seconds.map_or(SHORT, Duration::from_secs);
    let cluster = Cluster::start(&Settings::default()).await;
    let kv = cluster.create_kv(1, "kv", &[1, 2, 3]).await;
    let client = cluster.client().await;
    let only = std::env::var("SKEP_NEIGHBOURS_FAMILY").unwrap_or_default();
    // The long form attacks with what a command may use by default. Such calls get what others leave, which is little while other
    // tests run beside this one.
    let (rounds, step, one_in) = match seconds {
        Some(_) => (ROUNDS, 1, 1),
        None => (1, SHORT_TAKES_ONE_OF, 20),
    };
    let families: Vec<&Family> = FAMILIES
        .iter()
        .filter(|family| only.split(',').any(|word| family.name.contains(word)))
        .step_by(step)
        .collect();
    assert!(!families.is_empty(), "no family is called `{only}`");
    // As much of the same load as is to come, so that what it makes a node keep is not taken for the attackers'.
    measured(&client, kv, time * (families.len() * rounds) as u32).await;
    let memory_before = weigh(&cluster).await;

    let mut rows = Vec::new();
    for family in families {
        let group = create(&cluster, family, one_in).await;
        let mut row = Row::new(family.name);
        for _ in 0..rounds {
            let alone = measured(&client, kv, time).await;
            let attackers = Attackers::start(&cluster, family, group).await;
            let beside = measured(&client, kv, time).await;
            row.attacks += attackers.stop().await;
            // What was answered may still have to be done on other nodes.
            cluster.caught_up(group, &cluster.ids()).await;
            row.add(&alone, &beside);
        }
        let removed = cluster
            .http(1, "DELETE", &format!("/v1/groups/{group}"), "")
            .await;
        assert_eq!(removed.status, 200, "{}", removed.text());
        row.memory = weigh(&cluster).await;
        rows.push(row);
    }
    let limit = if seconds.is_some() {
        MEMORY_RATIO
    } else {
        MEMORY_RATIO_SHORT
    };
    let most = (memory_before as f64 * limit) as u64;
    println!(
        "{:<26}{:>10}{:>11}{:>11}{:>11}{:>11}{:>8}{:>9}",
        "family",
        "attacks",
        "p50 alone",
        "p50 beside",
        "p99 alone",
        "p99 beside",
        "ratio",
        "memory"
    );
    for row in &rows {
        println!("{row}");
    }
    // The groups' memory goes when their present calls end.
    let held = eventually("the attackers' memory is free", async || {
        match weigh(&cluster).await {
            bytes if bytes <= most => Ok(bytes),
            bytes => Err(format!("{bytes} bytes, {memory_before} before")),
        }
    })
    .await;
    println!(
        "memory of three nodes: {} MiB before, {} MiB after",
        memory_before >> 20,
        held >> 20
    );
    for row in &rows {
        assert!(
            row.beside.max() < STARVED.as_micros() as u64,
            "{}: a command took {} µs",
            row.family,
            row.beside.max()
        );
        assert!(
            seconds.is_none() || row.ratio() <= LATENCY_RATIO,
            "{}: {:.2}",
            row.family,
            row.ratio()
        );
    }
}

/// What one family did to the group beside it. Times are in microseconds.
struct Row {
    family: &'static str,
    alone: Histogram<u64>,
    beside: Histogram<u64>,
    /// p99 beside the attack to p99 without, of each round.
    ratios: Vec<f64>,
    attacks: u64,
    /// Bytes that the nodes hold when the group is gone.
    memory: u64,
}

impl Row {
    fn new(family: &'static str) -> Self {
        Self {
            family,
            alone: histogram(),
            beside: histogram(),
            ratios: Vec::new(),
            attacks: 0,
            memory: 0,
        }
    }

    fn add(&mut self, alone: &Histogram<u64>, beside: &Histogram<u64>) {
        let p99 = |histogram: &Histogram<u64>| histogram.value_at_quantile(0.99) as f64;
        self.ratios.push(p99(beside) / p99(alone));
        for (all, one) in [(&mut self.alone, alone), (&mut self.beside, beside)] {
            all.add(one).expect("histograms of one kind");
        }
    }

    /// The ratio of the round in the middle.
    fn ratio(&self) -> f64 {
        let mut ratios = self.ratios.clone();
        ratios.sort_by(f64::total_cmp);
        ratios[ratios.len() / 2]
    }
}

impl std::fmt::Display for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let of = |histogram: &Histogram<u64>, quantile| {
            histogram.value_at_quantile(quantile) as f64 / 1000.0
        };
        write!(
            f,
            "{:<26}{:>10}{:>8.1} ms{:>8.1} ms{:>8.1} ms{:>8.1} ms{:>8.2}{:>5} MiB",
            self.family,
            self.attacks,
            of(&self.alone, 0.5),
            of(&self.beside, 0.5),
            of(&self.alone, 0.99),
            of(&self.beside, 0.99),
            self.ratio(),
            self.memory >> 20
        )
    }
}

/// How long commands take, one after the other, of each client.
async fn measured(client: &Client, group: GroupId, time: Duration) -> Histogram<u64> {
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        let client = client.clone();
        clients.spawn(async move {
            // A machine that does much else may be without its leader for a while: that is a late answer, not a failure.
            let session = client.session(group).await.expect("a session");
            let watch = Stopwatch::start();
            let mut histogram = histogram();
            while watch.elapsed() < time {
                let command = Stopwatch::start();
                reply(&session, &format!("put key-{number} value")).await;
                histogram.saturating_record(command.elapsed().as_micros() as u64);
            }
            histogram
        });
    }
    let mut all = histogram();
    while let Some(one) = clients.join_next().await {
        all.add(one.expect("a client"))
            .expect("histograms of one kind");
    }
    all
}

/// Microseconds up to a minute, to three digits.
fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000, 3).expect("bounds that are in order")
}

/// Clients that do nothing but attack.
struct Attackers {
    clients: JoinSet<()>,
    stop: Arc<AtomicBool>,
    attacks: Arc<AtomicU64>,
}

impl Attackers {
    /// Starts them, and waits until the first attack has been answered: the attack is on.
    async fn start(cluster: &Cluster, family: &Family, group: GroupId) -> Self {
        let (stop, attacks) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        // Connections of their own: what shares one with them is written behind their answers.
        let client = cluster.client().await;
        let mut clients = JoinSet::new();
        for _ in 0..ATTACKERS {
            let (client, stop, attacks) = (client.clone(), stop.clone(), attacks.clone());
            let address = cluster.node(1).http.clone();
            let attack = match family.attack {
                Attack::Command(command) => (command, true),
                Attack::Query(query) => (query, false),
                Attack::Snapshots => ("", true),
            };
            clients.spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    // An attacker takes whatever answer there is: an error is as good as another.
                    match attack {
                        ("", _) => {
                            let path = format!("/v1/groups/{group}/snapshot");
                            let _ =
                                skep_tests::http::request(&address, "POST", &path, &[], b"").await;
                        }
                        (command, true) => {
                            let _ = client.propose_once(group, command.into()).await;
                        }
                        (query, false) => {
                            let _ = client
                                .query(group, query.into(), Consistency::Linearizable)
                                .await;
                        }
                    }
                    attacks.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let begun = Arc::clone(&attacks);
        skep_tests::clock::until(&format!("{} is answered", family.name), || {
            begun.load(Ordering::Relaxed) > 0
        })
        .await;
        attacks.store(0, Ordering::Relaxed);
        Self {
            clients,
            stop,
            attacks,
        }
    }

    /// How many attacks were answered.
    async fn stop(mut self) -> u64 {
        let attacks = self.attacks.load(Ordering::Relaxed);
        self.stop.store(true, Ordering::Relaxed);
        while let Some(client) = self.clients.join_next().await {
            client.expect("an attacker takes every answer");
        }
        attacks
    }
}

/// Bytes that all nodes hold together, after the watched group has let go of its log.
async fn weigh(cluster: &Cluster) -> u64 {
    let taken = cluster.http(1, "POST", "/v1/groups/kv/snapshot", "").await;
    assert_eq!(taken.status, 200, "{}", taken.text());
    pause(Duration::from_millis(50)).await;
    cluster
        .ids()
        .into_iter()
        .map(|id| cluster.resident_bytes(id))
        .sum()
}

/// The attacking group, on all nodes, with as much of the default limits as is said.
async fn create(cluster: &Cluster, family: &Family, one_in: u64) -> GroupId {
    let component = cluster.upload(1, &guests::component(family.guest)).await;
    let default = Profile::default();
    let profile = Profile {
        command_fuel: default.command_fuel / one_in,
        query_fuel: default.query_fuel / one_in,
        // Less than by default, so that a run of seconds sees more than one attack.
        snapshot_fuel: default.command_fuel / one_in,
        snapshot_bytes: default.snapshot_bytes / one_in,
        ..default
    };
    let request =
        json!({"name": family.guest, "component": component.to_string(), "profile": profile});
    let created = cluster
        .http(1, "POST", "/v1/groups", request.to_string())
        .await;
    assert_eq!(created.status, 201, "{}", created.text());
    let group = GroupId(created.number("id"));
    for id in cluster.ids() {
        eventually(&format!("{} is up on node {id}", family.name), async || {
            cluster.try_status(id, group).await.map(drop)
        })
        .await;
    }
    group
}
