//! A group goes on with another machine, or with its own: real cores, logs, workers and files.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use skep::{Consistency, Error, GroupConfig, MachineError, NodeId, Outcome, StateMachine};
use skep::{Exchange, MachineFactory};
use skep_core::deployment::{Deployment, Quota};
use skep_core::id::{ComponentId, LogIndex};
use skep_core::outcome::GuestFault;
use skep_core::proposal::ProposalError;
use skep_core::status::AwaitedDecision;
use skep_machine::state_machine::LocalCode;

use crate::support::{Cluster, Counters, GROUP, Probe, add, number, soon, until};

const FOUNDING: ComponentId = ComponentId([1; 32]);
const NEXT: ComponentId = ComponentId([2; 32]);

/// What becomes of a machine that a node is asked to make.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
enum Makes {
    #[default]
    Machines,
    /// It cannot, and tries again.
    NothingYet,
    /// It could never start anywhere.
    Faults,
}

#[derive(Default)]
struct Factory {
    makes: Mutex<Makes>,
    probe: Arc<Probe>,
}

impl Factory {
    fn now_makes(&self, makes: Makes) {
        *self.makes.lock().expect("no panic") = makes;
    }
}

impl MachineFactory for Factory {
    fn make(&self, _: &Deployment) -> Result<Box<dyn StateMachine>, MachineError> {
        match *self.makes.lock().expect("no panic") {
            Makes::Machines => Ok(Counters::machine(&self.probe)),
            Makes::NothingYet => Err(MachineError::Local {
                call: "start",
                code: LocalCode::Missing,
                reason: "the component is on no disk".into(),
            }),
            Makes::Faults => Err(MachineError::Guest {
                call: "instantiate",
                fault: GuestFault::Unreachable,
                detail: None,
            }),
        }
    }
}

fn deployment(component: ComponentId) -> Deployment {
    Deployment {
        component,
        profile: Bytes::new(),
        quota: Quota::default(),
        barriers: Default::default(),
    }
}

struct Upgradable {
    cluster: Cluster,
    factories: HashMap<NodeId, Arc<Factory>>,
}

impl Upgradable {
    /// Three nodes with a group that gives an activation up after so many ticks of 20 ms.
    async fn start(ticks: u32) -> Self {
        let mut upgradable = Self {
            cluster: Cluster::start(3).await,
            factories: HashMap::new(),
        };
        for node in upgradable.cluster.ids() {
            let config = upgradable.config(node, ticks);
            let created = upgradable.cluster.node(node.0).create_group(config).await;
            created.expect("the group is created");
        }
        upgradable.cluster.leader(GROUP).await;
        for _ in 0..3 {
            upgradable.add(1).await;
        }
        upgradable
    }

    fn config(&mut self, node: NodeId, ticks: u32) -> GroupConfig {
        let members: Vec<NodeId> = (1..=3).map(NodeId).collect();
        let mut config = self.cluster.group(node, GROUP, &members);
        let factory = Arc::clone(self.factories.entry(node).or_default());
        config.exchange = Some(Exchange {
            founding: deployment(FOUNDING),
            current: deployment(FOUNDING),
            factory,
        });
        config.limits.activation_ticks = ticks;
        config
    }

    fn all_make(&self, makes: Makes) {
        for factory in self.factories.values() {
            factory.now_makes(makes);
        }
    }

    async fn add(&self, node: u64) -> u64 {
        let answer = soon("add", self.cluster.node(node).propose(GROUP, add("a"))).await;
        number(&answer.expect("committed").outcome)
    }

    async fn activate(&self, node: u64) -> Outcome {
        let node = self.cluster.node(node);
        let answer = soon("activate", node.activate(GROUP, deployment(NEXT))).await;
        answer.expect("committed").outcome
    }

    async fn awaited(&self, node: u64) -> Option<AwaitedDecision> {
        let status = self.cluster.node(node).status(GROUP).await;
        status.expect("it is here").replica.activation
    }

    async fn waits(&self, node: u64) -> AwaitedDecision {
        until("it waits", || self.awaited(node)).await
    }

    async fn deployed(&self, node: u64) -> Option<ComponentId> {
        let status = self.cluster.node(node).status(GROUP).await;
        status.expect("it is here").replica.deployed
    }

    /// All replicas run this, and count alike.
    async fn all_run(&self, component: ComponentId, count: u64) {
        for node in 1..=3 {
            until("it is there too", || async {
                let counted = self
                    .cluster
                    .count(node, GROUP, "a", Consistency::Stale)
                    .await;
                let awaited = self.awaited(node).await;
                (counted.ok() == Some(count) && awaited.is_none()).then_some(())
            })
            .await;
            assert_eq!(self.deployed(node).await, Some(component), "node {node}");
        }
    }
}

fn words(outcome: &Outcome) -> &str {
    match outcome {
        Outcome::Refused { code: 422, message } => message,
        other => panic!("{other:?}"),
    }
}

/// C2 on replicas: the component is on no disk, and the entry is in the log all the same.
// P-25
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_node_can_make_is_given_up_and_the_group_goes_on() {
    let group = Upgradable::start(250).await;
    group.all_make(Makes::NothingYet);
    let given_up = group.activate(2).await;
    assert!(words(&given_up).contains("in time"), "{given_up:?}");
    assert_eq!(group.add(1).await, 4);
    group.all_run(FOUNDING, 4).await;
    // Nothing of it is left: the next one is taken.
    group.all_make(Makes::Machines);
    assert_eq!(group.activate(3).await, Outcome::Reply(Bytes::new()));
    assert_eq!(group.add(2).await, 5);
    group.all_run(NEXT, 5).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_can_start_nowhere_is_refused_at_once() {
    let group = Upgradable::start(u32::MAX).await;
    group.all_make(Makes::Faults);
    let refused = group.activate(2).await;
    assert!(
        words(&refused).contains("start: unreachable"),
        "{refused:?}"
    );
    group.add(1).await;
    group.all_run(FOUNDING, 4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_node_that_lacks_it_stops_nobody_and_comes_later() {
    let group = Upgradable::start(u32::MAX).await;
    group.factories[&NodeId(3)].now_makes(Makes::NothingYet);
    assert_eq!(group.activate(2).await, Outcome::Reply(Bytes::new()));
    assert_eq!(group.add(1).await, 4);
    until("it knows what was decided", || async {
        let awaited = group.awaited(3).await?;
        (awaited.is_confirmed == Some(true)).then_some(())
    })
    .await;
    // Its own state still answers whoever asks for that.
    let stale = group.cluster.count(3, GROUP, "a", Consistency::Stale).await;
    assert_eq!(stale.expect("answered"), 3);
    group.all_make(Makes::Machines);
    group.all_run(NEXT, 4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_gives_it_up_and_a_restart_comes_back_to_it() {
    let mut group = Upgradable::start(u32::MAX).await;
    group.all_make(Makes::NothingYet);
    let waits = async |group: &Upgradable| {
        for node in 1..=3 {
            let awaited = group.waits(node).await;
            assert_eq!((awaited.component, awaited.is_confirmed), (NEXT, None));
        }
    };
    let asking = {
        let node = group.cluster.node(1).clone();
        tokio::spawn(async move { node.activate(GROUP, deployment(NEXT)).await })
    };
    waits(&group).await;
    group.cluster.stop_node(NodeId(3)).await;
    group.cluster.start_node(NodeId(3)).await;
    let config = group.config(NodeId(3), u32::MAX);
    let begun = group.cluster.node(3).create_group(config).await;
    begun.expect("the group is brought up");
    waits(&group).await;
    let aborted = soon("abort", group.cluster.node(2).abort_activation(GROUP)).await;
    assert_eq!(
        aborted.expect("committed").outcome,
        Outcome::Reply(Bytes::new())
    );
    let told = soon("the answer", asking).await.expect("no panic");
    // It led, or handed it on; then a restart of the leader may have cut the answer off.
    if let Ok(response) = told {
        assert!(words(&response.outcome).contains("operator"));
    }
    group.add(3).await;
    group.all_run(FOUNDING, 4).await;
    let nothing = soon("abort", group.cluster.node(2).abort_activation(GROUP)).await;
    assert!(matches!(
        nothing,
        Err(Error::Proposal {
            source: ProposalError::NotNeeded,
            ..
        })
    ));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_that_waits_can_be_removed() {
    let group = Upgradable::start(u32::MAX).await;
    group.all_make(Makes::NothingYet);
    let node = group.cluster.node(1).clone();
    let asking = tokio::spawn(async move { node.activate(GROUP, deployment(NEXT)).await });
    assert!(group.waits(2).await.index > LogIndex(0));
    for node in 1..=3 {
        let removing = group.cluster.node(node).remove_group(GROUP);
        soon("remove", removing).await.expect("removed");
    }
    let told = tokio::time::timeout(Duration::from_secs(10), asking).await;
    assert!(told.expect("answered").expect("no panic").is_err());
}
