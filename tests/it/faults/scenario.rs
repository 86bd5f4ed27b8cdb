//! What all scenarios share: how they begin, and what must hold in the end.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use skep_checker::{Limits, Outcome, jsonl, kv};
use skep_client::{Client, ClientConfig, GroupId};
use skep_tests::clock::{Stopwatch, eventually};
use skep_tests::cluster::{Cluster, Settings};
use skep_tests::proxy::Proxy;

use super::workload::{PROBE, Workload};
use crate::load::text;

/// Operations of one scenario in the short form.
const SHORT: u64 = 1200;

/// Operations for each fault of the long form; the short form has at least [`ROUNDS_LEAST`] faults in fewer.
const OPERATIONS_PER_ROUND: u64 = 1000;
const ROUNDS_LEAST: u64 = 2;

/// Items of one page when replicas are compared.
const PAGE: usize = 1000;

/// A cluster behind a proxy, with clients at work on one group.
pub struct Scenario {
    /// What it is called in the report.
    pub name: &'static str,
    /// The nodes.
    pub cluster: Cluster,
    /// The network between them.
    pub proxy: Proxy,
    /// The group.
    pub group: GroupId,
    /// Its clients.
    pub load: Workload,
    watch: Stopwatch,
}

/// How many operations each scenario runs at least.
pub fn operations() -> u64 {
    match std::env::var("SKEP_FAULTS_OPERATIONS") {
        Ok(number) => number
            .parse()
            .unwrap_or_else(|_| panic!("SKEP_FAULTS_OPERATIONS is `{number}`, no number")),
        Err(_) => SHORT,
    }
}

/// How many times each scenario breaks something.
pub fn rounds() -> u64 {
    (operations() / OPERATIONS_PER_ROUND).max(ROUNDS_LEAST)
}

/// Operations between two steps of a scenario that takes four of them in a round, so that the rounds fill the run.
pub fn step() -> u64 {
    operations() / rounds() / 4
}

impl Scenario {
    /// A cluster of the given settings, and clients of a group on its nodes 1, 2 and 3, or as many as there are.
    pub async fn start(name: &'static str, settings: &Settings) -> Self {
        Self::start_with(name, settings, |_| ()).await
    }

    /// As [`start`](Self::start); `prepare` may change the nodes before they run.
    pub async fn start_with(
        name: &'static str,
        settings: &Settings,
        prepare: impl FnOnce(&mut Cluster),
    ) -> Self {
        let (mut cluster, proxy) = Cluster::prepare_behind_proxy(settings).await;
        prepare(&mut cluster);
        Self::begin(name, cluster, proxy, &[]).await
    }

    /// As [`start`](Self::start), without a network that does what it is told: nodes of these ids may come later, and clients
    /// know already where they will be.
    pub async fn start_open(name: &'static str, settings: &Settings, later: &[u64]) -> Self {
        let cluster = Cluster::prepare(settings);
        let proxy = Proxy::start(&BTreeMap::new()).await;
        Self::begin(name, cluster, proxy, later).await
    }

    async fn begin(name: &'static str, mut cluster: Cluster, proxy: Proxy, later: &[u64]) -> Self {
        let watch = Stopwatch::start();
        cluster.start_all().await;
        let members = cluster.ids();
        let group = cluster.create_kv(1, "kv", &members).await;
        cluster.leader(group).await;
        let known = members.iter().map(|id| cluster.node(*id).client.clone());
        let mut addresses: Vec<_> = known.collect();
        addresses.extend(later.iter().map(|id| cluster.expect(*id)));
        let load = Workload::start(&addresses, group).await;
        load.more(step()).await;
        Self {
            name,
            cluster,
            proxy,
            group,
            load,
            watch,
        }
    }

    /// The leader as those nodes agree.
    pub async fn leader_among(&self, nodes: &[u64]) -> u64 {
        self.cluster.leader_among(self.group, nodes).await
    }

    /// The leader.
    pub async fn leader(&self) -> u64 {
        self.leader_among(&self.cluster.ids()).await
    }

    /// Waits until one of the given nodes leads, as they say, and none of the others.
    pub async fn led_by_one_of(&self, nodes: &[u64]) -> u64 {
        self.cluster.leader_among(self.group, nodes).await
    }

    /// A client that knows this node alone and does not wait long for it.
    pub async fn client_of(&self, node: u64, patience: Duration) -> Client {
        let mut config = ClientConfig::new([self.cluster.node(node).client.clone()]);
        config.request_timeout = patience;
        config.attempt_timeout = patience;
        Client::connect(config).await.expect("the node answers")
    }

    /// Mends everything, and judges. `members` are the nodes that host the group now.
    pub async fn finish(mut self, members: &[u64]) {
        self.proxy.heal();
        self.load.reach(operations()).await;
        self.load.stop().await;
        let ids = self.cluster.ids();
        for id in &ids {
            self.cluster.ready(*id).await;
        }
        self.leader_among(members).await;
        self.cluster.caught_up(self.group, members).await;
        self.load.read_all(&self.cluster.client().await).await;
        self.replicas_are_equal(members).await;
        self.snapshots_are_equal(members).await;
        self.judge();
    }

    /// Every replica answers for itself, and all answer the same.
    async fn replicas_are_equal(&self, members: &[u64]) {
        eventually("the replicas answer the same", async || {
            self.cluster.caught_up(self.group, members).await;
            let mut answers = Vec::new();
            for id in members {
                answers.push(self.contents(*id).await);
            }
            match answers.iter().position(|answer| *answer != answers[0]) {
                None => Ok(()),
                Some(at) => Err(format!(
                    "node {}:\n{}\nnode {}:\n{}",
                    members[0], answers[0], members[at], answers[at]
                )),
            }
        })
        .await;
    }

    /// Everything that the machine of one replica holds, as it tells.
    async fn contents(&self, id: u64) -> String {
        let mut all = text(self.cluster.replica_answer(id, self.group, "stats").await);
        let mut after = String::new();
        loop {
            let query = format!("scan  {PAGE}{after}");
            let page = text(self.cluster.replica_answer(id, self.group, &query).await);
            all.push_str(&page);
            match page
                .lines()
                .last()
                .and_then(|line| line.strip_prefix("MORE"))
            {
                Some(key) => after = key.to_owned(),
                None => return all,
            }
        }
    }

    /// At one barrier all replicas write the same bytes: machine, members, sessions.
    async fn snapshots_are_equal(&self, members: &[u64]) {
        let taken = self
            .cluster
            .http(members[0], "POST", "/v1/groups/kv/snapshot", "")
            .await;
        assert_eq!(taken.status, 200, "{}", taken.text());
        let least = taken.number("index");
        let files = eventually("every replica has a snapshot at one index", async || {
            let mut indices = Vec::new();
            for id in members {
                let status = self.cluster.try_status(*id, self.group).await?;
                indices.push(status.replica.snapshot.0);
            }
            if indices
                .iter()
                .any(|index| *index < least || *index != indices[0])
            {
                return Err(format!("{indices:?}, expected at least {least}"));
            }
            let mut files = Vec::new();
            for id in members {
                let found = self.cluster.node(*id).snapshots(self.group);
                let found = found
                    .get(&indices[0])
                    .ok_or_else(|| format!("node {id} has no file of it"))?;
                files.push(std::fs::read(found).map_err(|error| error.to_string())?);
            }
            Ok(files)
        })
        .await;
        for (id, file) in members.iter().zip(&files) {
            assert!(
                *file == files[0],
                "the snapshots of nodes {} and {id} differ",
                members[0]
            );
        }
    }

    /// The history is explained by one order of the commands.
    fn judge(&self) {
        let operations = self.load.history().operations();
        let counts = self.load.counts();
        let judged = Stopwatch::start();
        let report = kv::check(&operations, Limits::default());
        if !report.as_ref().is_ok_and(|report| report.is_linearizable()) {
            let path = kept(self.name);
            jsonl::write(&path, &operations).expect("the history is kept");
            match report {
                Ok(report) => panic!(
                    "{}: {report}\nthe history is in {}",
                    self.name,
                    path.display()
                ),
                Err(error) => panic!(
                    "{}: {error}\nthe history is in {}",
                    self.name,
                    path.display()
                ),
            }
        }
        println!(
            "{}: {} operations ({} answered, {} unknown, {} failed), linearizable (judged in {:.1?}), {:.1?} in all; {:?}",
            self.name,
            operations.len(),
            counts.answered,
            counts.unknown,
            counts.failed,
            judged.elapsed(),
            self.watch.elapsed(),
            self.proxy.damage(),
        );
        for (times, why) in self.load.reasons() {
            println!("{}: {times} times no answer: {why}", self.name);
        }
    }

    /// The longest time between two answers to the probe that lies in the given time, whatever is left of it at the ends
    /// included.
    pub fn silence(&self, from: u64, to: u64) -> Duration {
        let mut answers: Vec<u64> = self
            .load
            .history()
            .operations()
            .into_iter()
            .filter(|operation| operation.client == PROBE)
            .filter(|operation| matches!(operation.outcome, Outcome::Ok(_)))
            .map(|operation| operation.ret)
            .filter(|ret| (from..to).contains(ret))
            .collect();
        answers.sort_unstable();
        let ends = [from].into_iter().chain(answers.iter().copied());
        let longest = ends
            .zip(answers.iter().copied().chain([to]))
            .map(|(earlier, later)| later - earlier)
            .max();
        Duration::from_nanos(longest.unwrap_or_default())
    }
}

/// Where the history of a scenario that failed is kept.
fn kept(name: &str) -> PathBuf {
    let name = name.replace(' ', "-");
    std::env::temp_dir().join(format!("skep-faults-{name}-{}.jsonl", std::process::id()))
}
