//! Every hostile guest in a group of a cluster of real processes, beside a group that works: the client gets the stated
//! error, the group goes on or is faulted everywhere alike, and no replica holds anything else than the others.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures::{FutureExt, StreamExt, stream};
use serde_json::json;
use skep_client::{Client, ComponentId, Consistency, GroupId, Outcome, Session};
use skep_core::status::Health;
use skep_tests::clock::{eventually, within};
use skep_tests::cluster::{Cluster, Settings};
use skep_tests::guests;
use tokio::task::JoinSet;

use super::machines::check;
use super::table::{ATTACKS, Attack, End, Expect, Step, profile};
use crate::load::{Load, text};

/// Groups that are attacked at the same time.
const AT_ONCE: usize = 6;
/// How long an attack may keep its own client waiting, on a machine that does much else.
const BOUNDED: Duration = Duration::from_secs(30);
/// Honest commands that are sent together with an attack.
const BURST: u64 = 4;

// P-30
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_attack_meets_its_end_on_every_replica() {
    let cluster = Cluster::start(&Settings::default()).await;
    let kv = cluster.create_kv(1, "kv", &[1, 2, 3]).await;
    let load = Load::start(&[cluster.client().await], kv, 2).await;
    let client = cluster.client().await;
    let failed: Vec<&str> = stream::iter(ATTACKS)
        .map(async |attack| {
            let met = meets_its_end(&cluster, &client, attack);
            let failed = AssertUnwindSafe(met).catch_unwind().await.is_err();
            failed.then_some(attack.guest)
        })
        .buffer_unordered(AT_ONCE)
        .filter_map(std::future::ready)
        .collect()
        .await;
    // What each of them did is in the panics above.
    assert!(failed.is_empty(), "{failed:?}");
    load.more(20).await;
    load.verify(&cluster).await;
}

async fn meets_its_end(cluster: &Cluster, client: &Client, attack: &Attack) {
    let guest = attack.guest;
    let bytes = guests::component(guest);
    let component = ComponentId::of(&bytes);
    let upload = cluster
        .http(1, "PUT", &format!("/v1/components/{component}"), &bytes)
        .await;
    if let End::Refused(code, words) = attack.end {
        assert_eq!(upload.code(), code, "{guest}: {}", upload.text());
        // A body that is too large for HTTP is not looked at.
        assert!(
            upload.status == 413 || upload.text().contains(words),
            "{guest}: {}",
            upload.text()
        );
        let created = json!({"name": guest, "component": component.to_string()});
        let created = cluster
            .http(1, "POST", "/v1/groups", created.to_string())
            .await;
        assert_eq!(created.status, 404, "{guest}: {}", created.text());
        return;
    }
    assert_eq!(upload.status, 201, "{guest}: {}", upload.text());
    // A change of members is a third replica that joins.
    let joins = match attack.end {
        End::Runs(steps) => steps.iter().any(|step| matches!(step, Step::Members(_))),
        _ => false,
    };
    let members: &[u64] = if joins { &[1, 2] } else { &[1, 2, 3] };
    let request = json!({"name": guest, "component": component.to_string(), "members": members, "profile": profile()});
    let created = cluster
        .http(1, "POST", "/v1/groups", request.to_string())
        .await;
    assert_eq!(created.status, 201, "{guest}: {}", created.text());
    let group = GroupId(created.number("id"));
    match attack.end {
        End::Refused(..) => unreachable!("these never become a component"),
        End::Unstartable(words) | End::Stillborn(words) => {
            never_serves(cluster, guest, words).await
        }
        End::Runs(steps) => {
            is_up(cluster, guest, group, members).await;
            let session = client.session(group).await;
            let mut group = Group {
                cluster,
                session: session.unwrap_or_else(|error| panic!("{guest}: {error}")),
                client,
                guest,
                group,
                members: members.to_vec(),
                degraded: false,
            };
            group.goes_through(steps).await;
        }
    }
    let removed = cluster
        .http(1, "DELETE", &format!("/v1/groups/{guest}"), "")
        .await;
    assert_eq!(removed.status, 200, "{guest}: {}", removed.text());
}

/// A group that is faulted from the beginning says so on every node, to whoever asks.
async fn never_serves(cluster: &Cluster, guest: &str, words: &str) {
    for id in cluster.ids() {
        let path = format!("/v1/groups/{guest}");
        eventually(
            &format!("node {id} says why {guest} does not run"),
            async || {
                let status = cluster
                    .http(id, "GET", &format!("{path}/status"), "")
                    .await
                    .text();
                let info = cluster.http(id, "GET", &path, "").await.text();
                match status.contains(words) || info.contains(words) {
                    true => Ok(()),
                    false => Err(format!("{status} {info}")),
                }
            },
        )
        .await;
    }
    // A node asks others before it gives up, so all of them know by now.
    for id in cluster.ids() {
        let path = format!("/v1/groups/{guest}/propose");
        let hurry = [("skep-timeout-ms", "2000")];
        let used = cluster.http_with(id, "POST", &path, &hurry, "ping");
        let used = within(BOUNDED, "the answer", used).await;
        assert_eq!(used.status, 503, "{guest} at node {id}: {}", used.text());
    }
}

/// A group under attack.
struct Group<'a> {
    cluster: &'a Cluster,
    /// A machine that does much else may be without its leader for a while: a command that is sent again counts once.
    session: Session,
    client: &'a Client,
    guest: &'static str,
    group: GroupId,
    members: Vec<u64>,
    degraded: bool,
}

impl Group<'_> {
    async fn goes_through(&mut self, steps: &[Step]) {
        let mut counted = 0;
        for step in steps {
            counted = match step {
                Step::Gains(more) => counted + more,
                Step::Becomes(number) => *number,
                step => {
                    counted += 1;
                    self.counts(counted).await;
                    counted + self.step(*step, counted).await
                }
            };
        }
        counted += 1;
        self.counts(counted).await;
        self.cluster.caught_up(self.group, &self.members).await;
        for id in &self.members {
            let status = self
                .cluster
                .try_status(*id, self.group)
                .await
                .expect("a status");
            assert_eq!(status.halted, None, "{} on node {id}", self.guest);
            let degraded = matches!(status.replica.health, Health::Degraded { .. });
            assert_eq!(
                degraded, self.degraded,
                "{} on node {id}: {:?}",
                self.guest, status.replica.health
            );
            let replica = text(self.cluster.replica_answer(*id, self.group, "get").await);
            assert_eq!(replica, counted.to_string(), "{} on node {id}", self.guest);
        }
        if !self.degraded {
            self.same_snapshots().await;
        }
    }

    async fn propose(&self, command: &'static str) -> Outcome {
        propose(&self.session, self.guest, command).await
    }

    /// One honest command, after which the counter is this.
    async fn counts(&self, counted: u64) {
        let honest = within(BOUNDED, self.guest, self.propose("add")).await;
        assert_eq!(
            honest,
            Outcome::Reply(counted.to_string().into()),
            "{}",
            self.guest
        );
    }

    /// What the step does to the counter.
    async fn step(&mut self, step: Step, counted: u64) -> u64 {
        let guest = self.guest;
        match step {
            Step::Command(command, expect) => {
                let outcome = within(BOUNDED, command, self.propose(command)).await;
                check(guest, command, &outcome, expect);
                0
            }
            Step::Together(command, expect) => self.burst(command, expect, counted).await,
            Step::Query(query, expect) => {
                let asked = self
                    .client
                    .query(self.group, query.into(), Consistency::Linearizable);
                let answer = within(BOUNDED, query, asked).await.expect("an answer");
                check(guest, query, &answer.outcome, expect);
                let state = self.propose("get").await;
                assert_eq!(
                    state,
                    Outcome::Reply(counted.to_string().into()),
                    "{guest} after {query}"
                );
                0
            }
            Step::Snapshot => {
                self.degraded = false;
                self.snapshot().await;
                0
            }
            Step::NoSnapshot => {
                // The barrier is an entry like any other; whether a snapshot came of it is in the status.
                self.cluster
                    .http(1, "POST", &format!("/v1/groups/{guest}/snapshot"), "")
                    .await;
                self.degraded = true;
                let (cluster, group) = (self.cluster, self.group);
                for id in &self.members {
                    eventually(
                        &format!("{guest} is degraded on node {id}"),
                        async || match cluster.try_status(*id, group).await?.replica.health {
                            Health::Degraded { .. } => Ok(()),
                            other => Err(format!("{other:?}")),
                        },
                    )
                    .await;
                }
                0
            }
            Step::Members(_) => {
                self.is_member_of_all().await;
                0
            }
            Step::Leader => {
                let leader = self.cluster.leader_among(self.group, &self.members).await;
                let other = self
                    .members
                    .iter()
                    .find(|id| **id != leader)
                    .expect("another member");
                let path = format!("/v1/groups/{guest}/transfer");
                let moved = self
                    .cluster
                    .http(1, "POST", &path, json!({"node": other}).to_string())
                    .await;
                assert_eq!(moved.status, 200, "{guest}: {}", moved.text());
                let (cluster, group, members) = (self.cluster, self.group, &self.members);
                eventually(
                    &format!("{guest} has another leader than {leader}"),
                    async || match cluster.leader_among(group, members).await {
                        now if now == leader => Err(format!("{now}")),
                        _ => Ok(()),
                    },
                )
                .await;
                0
            }
            Step::Gains(_) | Step::Becomes(_) => unreachable!("these are no steps of a group"),
        }
    }

    /// The third node joins, whatever the machine makes of it.
    async fn is_member_of_all(&mut self) {
        if self.members.contains(&3) {
            return;
        }
        let path = format!("/v1/groups/{}/members", self.guest);
        let added = self
            .cluster
            .http(1, "POST", &path, json!({"node": 3}).to_string())
            .await;
        assert_eq!(added.status, 200, "{}: {}", self.guest, added.text());
        self.members.push(3);
        is_up(self.cluster, self.guest, self.group, &self.members).await;
    }

    /// The attack amid honest commands, all sent at once so that they share entries.
    async fn burst(&self, command: &'static str, expect: Expect, counted: u64) -> u64 {
        let mut sent = JoinSet::new();
        for number in 0..=BURST {
            let request = if number == BURST / 2 { command } else { "add" };
            let (session, guest) = (self.session.clone(), self.guest);
            sent.spawn(async move { (request, propose(&session, guest, request).await) });
        }
        let mut counts: Vec<u64> = Vec::new();
        while let Some(done) = within(BOUNDED, self.guest, sent.join_next()).await {
            let (request, outcome) = done.expect("an answer");
            match (request, outcome) {
                ("add", outcome) => counts.push(text(outcome).parse().expect("a number")),
                (request, outcome) => check(self.guest, request, &outcome, expect),
            }
        }
        counts.sort_unstable();
        let expected: Vec<u64> = (counted + 1..=counted + BURST).collect();
        assert_eq!(counts, expected, "{}", self.guest);
        BURST
    }

    /// Every replica takes a snapshot at one index.
    async fn snapshot(&self) -> u64 {
        let path = format!("/v1/groups/{}/snapshot", self.guest);
        let taken = self.cluster.http(1, "POST", &path, "").await;
        assert_eq!(taken.status, 200, "{}: {}", self.guest, taken.text());
        let index = taken.number("index");
        let (cluster, group) = (self.cluster, self.group);
        for id in &self.members {
            eventually(
                &format!("node {id} has the snapshot of {} at {index}", self.guest),
                async || match cluster.try_status(*id, group).await?.replica.snapshot {
                    last if last.0 >= index => Ok(()),
                    last => Err(format!("its last is at {last}")),
                },
            )
            .await;
        }
        index
    }

    /// The files of one barrier are the same to the byte.
    async fn same_snapshots(&self) {
        let index = self.snapshot().await;
        let mut files = Vec::new();
        for id in &self.members {
            let found = self.cluster.node(*id).snapshots(self.group);
            let file = found
                .get(&index)
                .unwrap_or_else(|| panic!("{}: node {id} has no snapshot at {index}", self.guest));
            files.push(std::fs::read(file).expect("a snapshot can be read"));
        }
        for (id, file) in self.members.iter().zip(&files) {
            assert!(
                *file == files[0],
                "{}: the snapshots of nodes {} and {id} differ",
                self.guest,
                self.members[0]
            );
        }
    }
}

async fn propose(session: &Session, guest: &str, command: &'static str) -> Outcome {
    let response = session.propose(command.into()).await;
    response
        .unwrap_or_else(|error| panic!("{guest}: {command}: {error} [{}]", error.code()))
        .outcome
}

async fn is_up(cluster: &Cluster, guest: &str, group: GroupId, members: &[u64]) {
    for id in members {
        eventually(&format!("{guest} is up on node {id}"), async || {
            cluster.try_status(*id, group).await.map(drop)
        })
        .await;
    }
}
