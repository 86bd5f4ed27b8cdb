//! A replica whose machine stopped for a reason of its node, and how it is started again.

use std::future::ready;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use bytes::Bytes;
use skep::trouble::Kind;
use skep::{
    ConfChange, Consistency, EntryContext, LeaderChanged, MachineError, NodeId, Outcome, Running,
    StateMachine,
};
use skep_core::status::Health;
use skep_machine::state_machine::{Applied, Descriptor, Reader};

use crate::support::{Cluster, Counters, GROUP, PATIENCE, add, until};

/// As another machine, but it stops at the next command once it is told to; or, while it is told so, at each that has a word
/// in it.
struct Brittle {
    machine: Box<dyn StateMachine>,
    stops: Arc<AtomicBool>,
    stops_at: Arc<AtomicBool>,
    stopped_at: Option<usize>,
}

const POISON: &str = "poison";

impl StateMachine for Brittle {
    fn describe(&self) -> Descriptor {
        self.machine.describe()
    }

    fn init<'a>(
        &'a mut self,
        context: &'a EntryContext,
        config: &'a Bytes,
    ) -> Running<'a, Applied> {
        self.machine.init(context, config)
    }

    fn apply<'a>(
        &'a mut self,
        context: &'a EntryContext,
        commands: &'a [Bytes],
    ) -> Running<'a, Applied> {
        if self.stops.swap(false, SeqCst) {
            return Box::pin(ready(Err(MachineError::Local {
                call: "apply",
                code: skep_machine::LocalCode::Io,
                reason: "on purpose".into(),
            })));
        }
        let poison = |command: &Bytes| *command == add(POISON);
        self.stopped_at = commands.iter().position(poison);
        if self.stopped_at.is_some() && self.stops_at.load(SeqCst) {
            return Box::pin(ready(Err(MachineError::Local {
                call: "apply",
                code: skep_machine::LocalCode::Memory,
                reason: "it is too much for this node".into(),
            })));
        }
        self.machine.apply(context, commands)
    }

    fn stopped_at(&self) -> Option<usize> {
        self.stopped_at
    }

    fn apply_conf_change<'a>(
        &'a mut self,
        context: &'a EntryContext,
        change: &'a ConfChange,
    ) -> Running<'a, Applied> {
        self.machine.apply_conf_change(context, change)
    }

    fn process_status_change<'a>(
        &'a mut self,
        context: &'a EntryContext,
        event: &'a LeaderChanged,
    ) -> Running<'a, Applied> {
        self.machine.process_status_change(context, event)
    }

    fn query<'a>(&'a mut self, request: &'a Bytes) -> Running<'a, Outcome> {
        self.machine.query(request)
    }

    fn reader(&self) -> Option<Box<dyn Reader>> {
        self.machine.reader()
    }

    fn save<'a>(
        &'a mut self,
        context: &'a EntryContext,
        to: &'a mut (dyn std::io::Write + Send),
    ) -> Running<'a, ()> {
        self.machine.save(context, to)
    }

    fn restore<'a>(
        &'a mut self,
        context: &'a EntryContext,
        schema: u32,
        from: Bytes,
    ) -> Running<'a, ()> {
        self.machine.restore(context, schema, from)
    }
}

fn config(cluster: &mut Cluster, node: NodeId, stops: &Arc<AtomicBool>) -> skep::GroupConfig {
    poisonable(cluster, node, stops, &Arc::default())
}

fn poisonable(
    cluster: &mut Cluster,
    node: NodeId,
    stops: &Arc<AtomicBool>,
    stops_at: &Arc<AtomicBool>,
) -> skep::GroupConfig {
    let members = cluster.ids();
    let mut config = cluster.group(node, GROUP, &members);
    let machine = Counters::machine(&cluster.probe(node, GROUP));
    config.machine = Box::new(Brittle {
        machine,
        stops: Arc::clone(stops),
        stops_at: Arc::clone(stops_at),
        stopped_at: None,
    });
    config.snapshot_entries = 50;
    config
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_stopped_is_started_again_under_load_and_without_the_process() {
    let mut cluster = Cluster::start(3).await;
    let stops = Arc::new(AtomicBool::new(false));
    let never = Arc::new(AtomicBool::new(false));
    let sick = NodeId(2);
    for node in cluster.ids() {
        let stops = if node == sick { &stops } else { &never };
        let config = config(&mut cluster, node, stops);
        let created = cluster.node(node.0).create_group(config).await;
        created.expect("the group is created");
    }
    cluster.leader(GROUP).await;
    let again = config(&mut cluster, sick, &never);
    let stop = AtomicBool::new(false);
    let load = async {
        let mut acknowledged = 0;
        while !stop.load(SeqCst) {
            for node in [1, 3] {
                // Some are refused, or without an answer, if the sick one led.
                let answer = cluster.node(node).propose(GROUP, add("load")).await;
                acknowledged += u64::from(answer.is_ok());
            }
        }
        acknowledged
    };
    let story = async {
        until("it is at work", || async {
            let status = cluster.node(sick.0).status(GROUP).await.ok()?;
            (status.replica.applied.0 > 200 && status.replica.snapshot.0 > 0).then_some(())
        })
        .await;
        stops.store(true, SeqCst);
        until("it has stopped", || async {
            let status = cluster.node(sick.0).status(GROUP).await.ok()?;
            matches!(status.replica.health, Health::Faulted { .. }).then_some(())
        })
        .await;
        let trouble = until("it says so", || async {
            cluster.node(sick.0).trouble(GROUP)
        })
        .await;
        assert_eq!(trouble.kind, Kind::Faulted, "{trouble}");
        // Records are on their way to its disk all the time.
        let restarted = cluster.node(sick.0).restart_group(again).await;
        restarted.expect("it is started again");
        until("it is well", || async {
            let status = cluster.node(sick.0).status(GROUP).await.ok()?;
            (status.replica.health == Health::Healthy && status.replica.applied.0 > 0).then_some(())
        })
        .await;
        assert_eq!(cluster.node(sick.0).trouble(GROUP), None);
        stop.store(true, SeqCst);
    };
    let (acknowledged, ()) = tokio::join!(load, story);
    let mut counts = Vec::new();
    for node in 1..=3 {
        let count = until("an answer", || async {
            let linearizable = Consistency::Linearizable;
            cluster.count(node, GROUP, "load", linearizable).await.ok()
        })
        .await;
        counts.push(count);
    }
    assert!(counts[0] >= acknowledged, "{counts:?} of {acknowledged}");
    assert!(counts.iter().all(|count| *count == counts[0]), "{counts:?}");
    // What it has is what the others have, to the byte.
    let index = until("a barrier", || async {
        let leader = cluster.leader(GROUP).await;
        let response = cluster.node(leader.0).snapshot(GROUP).await.ok()?;
        Some(response.index)
    })
    .await;
    until("they agree", || async {
        let leader = cluster.leader(GROUP).await;
        let status = cluster.node(leader.0).status(GROUP).await.ok()?;
        (status.replica.verified >= index).then_some(())
    })
    .await;
    for node in 1..=3 {
        assert_eq!(cluster.node(node).node_status().divergences, 0);
    }
    // And one that is well is not given up.
    let well = config(&mut cluster, sick, &never);
    let refused = cluster.node(sick.0).restart_group(well).await;
    assert_eq!(refused.expect_err("it is well").code().name(), "busy");
}

/// Item 8 of what strangers found: a command that no node could run stopped every replica of its group, again and again.
// P-34
#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_no_node_can_run_fails_and_the_group_goes_on() {
    let mut cluster = Cluster::start(3).await;
    let (never, at_poison) = (Arc::default(), Arc::new(AtomicBool::new(true)));
    for node in cluster.ids() {
        let config = poisonable(&mut cluster, node, &never, &at_poison);
        let created = cluster.node(node.0).create_group(config).await;
        created.expect("the group is created");
    }
    let leader = cluster.leader(GROUP).await;
    let poisoned = cluster.node(leader.0).propose(GROUP, add(POISON)).await;
    assert_eq!(
        poisoned.expect_err("nobody can tell").code().name(),
        "outcome-unknown"
    );
    // As a server does: what has stopped is started again, at once where the group has decided, and else now and then.
    let watch = std::time::Instant::now();
    let mut round = 0;
    while (1..=3).any(|node| cluster.node(node).node_status().given_up_commands == 0) {
        assert!(watch.elapsed() < PATIENCE, "the command is not given up");
        round += 1;
        for node in 1..=3 {
            let trouble = cluster.node(node).trouble(GROUP);
            let is_due = |trouble: &skep::trouble::Trouble| {
                trouble.text.contains("decided") || round % 500 == 0
            };
            if trouble.as_ref().is_some_and(is_due) {
                let config = poisonable(&mut cluster, NodeId(node), &never, &at_poison);
                let restarted = cluster.node(node).restart_group(config).await;
                restarted.expect("it is started again");
            }
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    let added = until("it serves", || async {
        let leader = cluster.leader(GROUP).await;
        cluster
            .node(leader.0)
            .propose(GROUP, add("after"))
            .await
            .ok()
    })
    .await;
    assert!(added.index.0 > 0);
    for node in 1..=3 {
        let count = async |key| {
            until("an answer", || async {
                let linearizable = Consistency::Linearizable;
                cluster.count(node, GROUP, key, linearizable).await.ok()
            })
            .await
        };
        assert_eq!(count(POISON).await, 0, "node {node}");
        assert_eq!(count("after").await, 1, "node {node}");
        assert_eq!(cluster.node(node).trouble(GROUP), None);
        assert_eq!(cluster.node(node).node_status().divergences, 0);
    }
}
