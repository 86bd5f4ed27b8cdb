//! Machines that differ, on real nodes: noticed at the next barrier, judged by the log, mended over the transport.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use bytes::Bytes;
use skep::trouble::Kind;
use skep::{
    ConfChange, Consistency, EntryContext, LeaderChanged, NodeId, Outcome, Running, StateMachine,
};
use skep_core::id::LogIndex;
use skep_core::status::Health;
use skep_machine::state_machine::{Applied, Descriptor, Reader};
use skep_machine::wasm::{
    APPLY_THREAD_STACK_BYTES, Component, Engine, MachineLabel, Profile, WasmMachine,
};

use crate::support::{Cluster, Counters, GROUP, add, number, soon, until};

/// The command that a forgetful machine mistakes for another.
const CONTESTED: &str = "contested";

/// As another machine, but for one command, which it takes for another one.
struct Forgetful(Box<dyn StateMachine>);

impl StateMachine for Forgetful {
    fn describe(&self) -> Descriptor {
        self.0.describe()
    }

    fn init<'a>(
        &'a mut self,
        context: &'a EntryContext,
        config: &'a Bytes,
    ) -> Running<'a, Applied> {
        self.0.init(context, config)
    }

    fn apply<'a>(
        &'a mut self,
        context: &'a EntryContext,
        commands: &'a [Bytes],
    ) -> Running<'a, Applied> {
        let mistaken = |command: &Bytes| {
            if *command == add(CONTESTED) {
                add("another")
            } else {
                command.clone()
            }
        };
        let commands: Vec<_> = commands.iter().map(mistaken).collect();
        Box::pin(async move { self.0.apply(context, &commands).await })
    }

    fn apply_conf_change<'a>(
        &'a mut self,
        context: &'a EntryContext,
        change: &'a ConfChange,
    ) -> Running<'a, Applied> {
        self.0.apply_conf_change(context, change)
    }

    fn process_status_change<'a>(
        &'a mut self,
        context: &'a EntryContext,
        event: &'a LeaderChanged,
    ) -> Running<'a, Applied> {
        self.0.process_status_change(context, event)
    }

    fn query<'a>(&'a mut self, request: &'a Bytes) -> Running<'a, Outcome> {
        self.0.query(request)
    }

    fn reader(&self) -> Option<Box<dyn Reader>> {
        self.0.reader()
    }

    fn save<'a>(
        &'a mut self,
        context: &'a EntryContext,
        to: &'a mut (dyn std::io::Write + Send),
    ) -> Running<'a, ()> {
        self.0.save(context, to)
    }

    fn restore<'a>(
        &'a mut self,
        context: &'a EntryContext,
        schema: u32,
        from: Bytes,
    ) -> Running<'a, ()> {
        self.0.restore(context, schema, from)
    }
}

/// Brings the group up on a node, or up again, with a forgetful machine if it is to be so.
async fn create(cluster: &mut Cluster, node: NodeId, members: &[NodeId], sick: bool) {
    let mut config = cluster.group(node, GROUP, members);
    // Barriers are the test's to ask for.
    config.snapshot_entries = u64::MAX;
    if sick {
        let healthy = Counters::machine(&cluster.probe(node, GROUP));
        config.machine = Box::new(Forgetful(healthy));
    }
    cluster
        .node(node.0)
        .create_group(config)
        .await
        .expect("the group is created");
}

async fn with_sick(size: u64, sick: NodeId) -> Cluster {
    let mut cluster = Cluster::start(size).await;
    let members = cluster.ids();
    for node in members.clone() {
        create(&mut cluster, node, &members, node == sick).await;
    }
    cluster.leader(GROUP).await;
    cluster
}

async fn restart(cluster: &mut Cluster, node: NodeId, sick: bool) {
    let members = cluster.ids();
    cluster.stop_node(node).await;
    cluster.start_node(node).await;
    create(cluster, node, &members, sick).await;
}

async fn lead(cluster: &Cluster, node: NodeId) {
    until("the lead", || async {
        let leader = cluster.leader(GROUP).await;
        if leader != node {
            // Asked again if it does not get through.
            drop(cluster.node(leader.0).transfer_leader(GROUP, node).await);
        }
        (leader == node).then_some(())
    })
    .await;
}

async fn health(cluster: &Cluster, node: NodeId) -> Health {
    let status = cluster.node(node.0).status(GROUP).await.expect("it runs");
    status.replica.health
}

async fn until_health(cluster: &Cluster, node: NodeId, what: &str, is: fn(&Health) -> bool) {
    until(&format!("node {node} is {what}"), || async {
        is(&health(cluster, node).await).then_some(())
    })
    .await;
}

async fn until_all_healthy(cluster: &Cluster) {
    for node in cluster.ids() {
        until_health(cluster, node, "healthy", |health| {
            *health == Health::Healthy
        })
        .await;
    }
}

fn is_quarantined(health: &Health) -> bool {
    matches!(health, Health::Quarantined { .. })
}

fn is_suspended(health: &Health) -> bool {
    matches!(health, Health::Suspended { .. })
}

/// Asks at every node in turn until one does it; what is refused was not done.
async fn propose(cluster: &Cluster, command: Bytes) -> Outcome {
    let ids = cluster.ids();
    let turn = AtomicU64::new(0);
    until("an answer", || async {
        let node = ids[turn.fetch_add(1, SeqCst) as usize % ids.len()];
        match cluster.node(node.0).propose(GROUP, command.clone()).await {
            Ok(response) => Some(response.outcome),
            Err(error) if error.is_unknown() => panic!("node {node}: {error}"),
            Err(_) => None,
        }
    })
    .await
}

async fn barrier(cluster: &Cluster) -> LogIndex {
    until("a barrier", || async {
        let leader = cluster.leader(GROUP).await;
        let response = cluster.node(leader.0).snapshot(GROUP).await.ok()?;
        Some(response.index)
    })
    .await
}

/// A barrier at which all members say the same, which the count of divergences shows not to have grown.
async fn until_agreed(cluster: &Cluster, divergences: u64) {
    let index = barrier(cluster).await;
    until("they agree", || async {
        let leader = cluster.leader(GROUP).await;
        let status = cluster.node(leader.0).status(GROUP).await.ok()?;
        (status.replica.verified >= index).then_some(())
    })
    .await;
    for node in cluster.ids() {
        until("the barrier", || async {
            let status = cluster.node(node.0).status(GROUP).await.ok()?;
            (status.replica.snapshot >= index).then_some(())
        })
        .await;
        let counted = cluster.node(node.0).node_status().divergences;
        assert!(counted <= divergences, "node {node} counts {counted}");
    }
}

async fn counts(cluster: &Cluster, node: NodeId, key: &str) -> u64 {
    cluster
        .count(node.0, GROUP, key, Consistency::Linearizable)
        .await
        .expect("answered")
}

/// Clients that ask on and on at one node after the other.
#[derive(Default)]
struct Load {
    stop: AtomicBool,
    acknowledged: AtomicU64,
    /// Without an answer: may be applied, or not.
    unknown: AtomicU64,
}

impl Load {
    async fn run(&self, cluster: &Cluster) {
        let ids = cluster.ids();
        let mut turn = 0;
        while !self.stop.load(SeqCst) {
            turn += 1;
            let node = ids[turn % ids.len()];
            match cluster.node(node.0).propose(GROUP, add("load")).await {
                Ok(_) => self.acknowledged.fetch_add(1, SeqCst),
                Err(error) if error.is_unknown() => self.unknown.fetch_add(1, SeqCst),
                Err(_) => 0,
            };
            tokio::task::yield_now().await;
        }
    }

    /// Clients are served from now on.
    async fn is_served(&self) {
        let before = self.acknowledged.load(SeqCst);
        until("clients are served", || async {
            (self.acknowledged.load(SeqCst) > before + 20).then_some(())
        })
        .await;
    }
}

async fn a_minority_is_mended(leads: bool) {
    let sick = NodeId(2);
    let mut cluster = with_sick(3, sick).await;
    lead(&cluster, if leads { sick } else { NodeId(1) }).await;
    cluster.net.lose_snapshots.store(true, SeqCst);
    let load = Load::default();
    let story = async {
        load.is_served().await;
        let reply = propose(&cluster, add(CONTESTED)).await;
        assert_eq!(number(&reply), 1);
        for node in cluster.ids() {
            assert_eq!(health(&cluster, node).await, Health::Healthy);
        }
        barrier(&cluster).await;
        until_health(&cluster, sick, "quarantined", is_quarantined).await;
        until("its node says so", || async {
            let troubled = cluster.node(sick.0).node_status().troubled;
            let kinds: Vec<_> = troubled
                .iter()
                .map(|troubled| troubled.trouble.kind)
                .collect();
            (kinds == [Kind::Quarantined]).then_some(())
        })
        .await;
        until("another leader", || async {
            (cluster.leader(GROUP).await != sick).then_some(())
        })
        .await;
        load.is_served().await;
        for consistency in [Consistency::Stale, Consistency::Linearizable] {
            let refused = cluster.count(sick.0, GROUP, CONTESTED, consistency).await;
            assert_eq!(
                refused.expect_err("quarantined").code().name(),
                "group-faulted"
            );
        }
        for node in cluster.ids() {
            assert_eq!(cluster.node(node.0).node_status().divergences, 1);
        }
        let transfers = cluster.net.snapshots.load(SeqCst);
        cluster.net.lose_snapshots.store(false, SeqCst);
        until_all_healthy(&cluster).await;
        assert!(cluster.net.snapshots.load(SeqCst) > transfers);
        load.is_served().await;
        load.stop.store(true, SeqCst);
    };
    tokio::join!(load.run(&cluster), story);
    let (acknowledged, unknown) = (load.acknowledged.load(SeqCst), load.unknown.load(SeqCst));
    let expected = acknowledged..=acknowledged + unknown;
    let loaded = counts(&cluster, NodeId(1), "load").await;
    assert!(expected.contains(&loaded), "{loaded} of {expected:?}");
    for node in cluster.ids() {
        assert_eq!(counts(&cluster, node, "load").await, loaded);
        assert_eq!(counts(&cluster, node, CONTESTED).await, 1, "node {node}");
        assert_eq!(counts(&cluster, node, "another").await, 0, "node {node}");
    }
    until_agreed(&cluster, 1).await;
    // What was mended is also what is on its disk.
    restart(&mut cluster, sick, true).await;
    cluster.leader(GROUP).await;
    until("it is back", || async {
        cluster
            .count(sick.0, GROUP, CONTESTED, Consistency::Linearizable)
            .await
            .ok()
            .filter(|count| *count == 1)
    })
    .await;
    until_agreed(&cluster, 1).await;
}

// P-22
#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_differs_is_mended_while_clients_are_served() {
    a_minority_is_mended(false).await;
}

// P-22
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_differs_gives_way_and_is_mended() {
    a_minority_is_mended(true).await;
}

// P-22
#[tokio::test(flavor = "multi_thread")]
async fn a_quarantined_replica_is_still_so_after_a_restart() {
    let sick = NodeId(3);
    let mut cluster = with_sick(3, sick).await;
    lead(&cluster, NodeId(1)).await;
    cluster.net.lose_snapshots.store(true, SeqCst);
    propose(&cluster, add(CONTESTED)).await;
    barrier(&cluster).await;
    until_health(&cluster, sick, "quarantined", is_quarantined).await;
    restart(&mut cluster, sick, true).await;
    until_health(&cluster, sick, "quarantined again", is_quarantined).await;
    cluster.net.lose_snapshots.store(false, SeqCst);
    until_all_healthy(&cluster).await;
    for node in cluster.ids() {
        assert_eq!(counts(&cluster, node, CONTESTED).await, 1, "node {node}");
    }
    until_agreed(&cluster, 1).await;
}

// P-22
#[tokio::test(flavor = "multi_thread")]
async fn two_that_differ_stop_until_an_operator_decides() {
    for trusted in [NodeId(1), NodeId(2)] {
        let sick = NodeId(2);
        let mut cluster = with_sick(2, sick).await;
        lead(&cluster, NodeId(1)).await;
        propose(&cluster, add(CONTESTED)).await;
        barrier(&cluster).await;
        for node in cluster.ids() {
            until_health(&cluster, node, "suspended", is_suspended).await;
        }
        // Neither forgets it.
        for node in cluster.ids() {
            restart(&mut cluster, node, node == sick).await;
            until_health(&cluster, node, "suspended again", is_suspended).await;
        }
        for node in cluster.ids() {
            let refused = cluster.node(node.0).propose(GROUP, add("refused")).await;
            assert_eq!(
                refused.expect_err("suspended").code().name(),
                "group-faulted"
            );
            let refused = cluster
                .count(node.0, GROUP, CONTESTED, Consistency::Stale)
                .await;
            assert_eq!(
                refused.expect_err("suspended").code().name(),
                "group-faulted"
            );
        }
        until("it is decided", || async {
            let leader = cluster.leader(GROUP).await;
            let decided = cluster.node(leader.0).trust(GROUP, trusted).await;
            decided.ok()
        })
        .await;
        until_all_healthy(&cluster).await;
        propose(&cluster, add("after")).await;
        for node in cluster.ids() {
            let contested = u64::from(trusted != sick);
            assert_eq!(counts(&cluster, node, CONTESTED).await, contested);
            assert_eq!(counts(&cluster, node, "another").await, 1 - contested);
            assert_eq!(counts(&cluster, node, "after").await, 1);
            assert_eq!(counts(&cluster, node, "refused").await, 0);
        }
        until_agreed(&cluster, 2).await;
    }
}

/// The key-value guest, and another build of it that differs in one letter of one refusal: by no byte of its state.
async fn builds() -> [Arc<Component>; 2] {
    let compile = || {
        let (text, odd) = (b"there is no key", b"there is no kee");
        let mut other = skep_examples::KV.to_vec();
        let places: Vec<_> = other
            .windows(text.len())
            .enumerate()
            .filter(|(_, window)| window == text)
            .map(|(place, _)| place)
            .collect();
        assert!(!places.is_empty(), "the guest has other words for it");
        for place in places {
            other[place..place + odd.len()].copy_from_slice(odd);
        }
        let engine = Engine::new().expect("an engine");
        [skep_examples::KV, &other[..]]
            .map(|bytes| Arc::new(Component::compile(&engine, bytes).expect("a component")))
    };
    on_large_stack(compile).await
}

async fn on_large_stack<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, result) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .stack_size(APPLY_THREAD_STACK_BYTES)
        .spawn(move || drop(done.send(work())))
        .expect("a thread");
    result.await.expect("it did not panic")
}

// P-22
#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_differs_by_replica_is_noticed_by_its_replies_alone() {
    let [healthy, odd] = builds().await;
    let sick = NodeId(2);
    let mut cluster = Cluster::start(3).await;
    let members = cluster.ids();
    for node in members.clone() {
        let component = if node == sick { &odd } else { &healthy };
        let component = Arc::clone(component);
        let machine = on_large_stack(move || {
            let (profile, label) = (Profile::default(), MachineLabel::default());
            WasmMachine::new(component, profile, EntryContext::default(), label)
        })
        .await
        .expect("a machine");
        let mut config = cluster.group(node, GROUP, &members);
        config.machine = Box::new(machine);
        config.snapshot_entries = u64::MAX;
        let created = cluster.node(node.0).create_group(config).await;
        created.expect("the group is created");
    }
    lead(&cluster, NodeId(1)).await;
    propose(&cluster, Bytes::from_static(b"put a 1")).await;
    until_agreed(&cluster, 0).await;
    let refusal = propose(&cluster, Bytes::from_static(b"get b")).await;
    assert!(matches!(refusal, Outcome::Rejected { code: 404, .. }));
    let before = cluster.net.snapshots.load(SeqCst);
    barrier(&cluster).await;
    for node in cluster.ids() {
        until("everybody was told", || async {
            (cluster.node(node.0).node_status().divergences == 1).then_some(())
        })
        .await;
    }
    until("it was mended", || async {
        (cluster.net.snapshots.load(SeqCst) > before).then_some(())
    })
    .await;
    until_all_healthy(&cluster).await;
    propose(&cluster, Bytes::from_static(b"put a 2")).await;
    until_agreed(&cluster, 1).await;
    for node in cluster.ids() {
        let answer = soon(
            "an answer",
            cluster.node(node.0).query(
                GROUP,
                Bytes::from_static(b"get a"),
                Consistency::Linearizable,
            ),
        )
        .await
        .expect("answered");
        assert_eq!(answer.outcome, Outcome::Reply(Bytes::from_static(b"2")));
    }
}
