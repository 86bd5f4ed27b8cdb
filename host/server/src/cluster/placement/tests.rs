use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn node() -> Node {
    Node {
        life: Life::Answers,
        takes_replicas: true,
        takes_leaders: true,
        gives: false,
        ends: false,
        successor: None,
        zone: None,
        replicas: 0,
    }
}

fn nodes(ids: impl IntoIterator<Item = u64>) -> Cluster {
    let nodes = ids.into_iter().map(|id| (NodeId(id), node()));
    Cluster {
        nodes: nodes.collect(),
        groups: BTreeMap::new(),
    }
}

fn group(voters: &[u64], leader: u64) -> Group {
    let voter = |id: &u64| (NodeId(*id), Seat::Voter { close: true });
    Group {
        wanted: voters.len(),
        leader: NodeId(leader),
        moving: None,
        left_alone: false,
        seats: voters.iter().map(voter).collect(),
    }
}

impl Cluster {
    fn with(mut self, groups: impl IntoIterator<Item = Group>) -> Self {
        self.groups = (1..).map(GroupId).zip(groups).collect();
        self.count();
        self
    }

    fn node_mut(&mut self, id: u64) -> &mut Node {
        self.nodes.get_mut(&NodeId(id)).expect("a node of the test")
    }

    fn one(&mut self) -> &mut Group {
        self.groups
            .get_mut(&GroupId(1))
            .expect("a group of the test")
    }

    fn count(&mut self) {
        for (id, node) in &mut self.nodes {
            let groups = self.groups.values();
            node.replicas = groups.filter(|of| of.seats.contains_key(id)).count();
        }
    }

    fn dies(&mut self, id: u64) {
        let node = self.node_mut(id);
        node.life = Life::Dead;
        node.takes_replicas = false;
        node.takes_leaders = false;
    }

    fn all_orders(&self) -> Vec<Order> {
        orders(self, CHANGES_AT_ONCE)
    }

    /// The only step that is due.
    fn step(&self) -> Option<(Step, Reason)> {
        let orders = self.all_orders();
        assert!(orders.len() <= 1, "{orders:?}");
        orders.first().map(|order| (order.step, order.why))
    }

    /// Carries out an order, as a group would.
    fn carry_out(&mut self, order: &Order) {
        let leaders: Vec<_> = self
            .nodes
            .keys()
            .copied()
            .filter(|id| self.answers(*id))
            .collect();
        let group = self.groups.get_mut(&order.group).expect("a group");
        match order.step {
            Step::Add(node) => {
                group.seats.insert(node, Seat::Voter { close: true });
            }
            Step::Remove(node) => {
                group.seats.remove(&node);
                if group.moving.is_some_and(|moving| moving.from == node) {
                    group.moving = None;
                }
                if group.leader == node {
                    let next = group.voters().find(|voter| leaders.contains(voter));
                    group.leader = next.unwrap_or(node);
                }
            }
            Step::Lead(node) => {
                assert!(group.votes(node) && leaders.contains(&node));
                group.leader = node;
            }
        }
        self.count();
    }

    /// Carries out orders until there are none; how many there were.
    fn settle(&mut self) -> usize {
        let mut steps = 0;
        loop {
            let orders = self.all_orders();
            if orders.is_empty() {
                return steps;
            }
            for order in &orders {
                self.check(order);
                self.carry_out(order);
            }
            steps += orders.len();
            let most = 20 * (self.groups.len() + 1) * (self.nodes.len() + 1);
            assert!(steps < most, "it goes on for ever: {orders:?}");
        }
    }

    /// What must be true of every order.
    fn check(&self, order: &Order) {
        let group = &self.groups[&order.group];
        assert!(!group.left_alone);
        match order.step {
            Step::Add(node) => {
                let on = &self.nodes[&node];
                assert!(on.life == Life::Answers && !on.gives, "{order:?}");
                assert!(
                    on.takes_replicas || group.seats.contains_key(&node),
                    "{order:?}"
                );
                assert!(!group.votes(node), "two on one node: {order:?}");
            }
            Step::Remove(node) if group.votes(node) => {
                assert!(self.spares(group, node), "{order:?}");
                let goes = self.nodes.get(&node).is_none_or(|node| node.ends);
                let stay = group
                    .voters()
                    .filter(|voter| *voter != node && self.stays(*voter));
                // Fewer than are wanted only where the node goes and nobody can take the replica.
                assert!(stay.count() >= group.wanted || goes, "{order:?}");
            }
            Step::Remove(_) => {}
            Step::Lead(node) => {
                let on = &self.nodes[&node];
                assert!(on.takes_leaders && on.life == Life::Answers && !on.gives);
            }
        }
    }
}

#[test]
fn a_dead_nodes_replica_is_made_anew_before_it_is_given_up() {
    let mut cluster = nodes(1..=4).with([group(&[1, 2, 3], 1)]);
    assert_eq!(cluster.step(), None);
    cluster.node_mut(3).life = Life::Silent;
    assert_eq!(cluster.step(), None, "it may come back");
    cluster.dies(3);
    assert_eq!(cluster.step(), Some((Step::Add(NodeId(4)), Reason::TooFew)));
    cluster.one().seats.insert(NodeId(4), Seat::Joining);
    assert_eq!(cluster.step(), None, "it is waited for");
    cluster
        .one()
        .seats
        .insert(NodeId(4), Seat::Voter { close: true });
    assert_eq!(
        cluster.step(),
        Some((Step::Remove(NodeId(3)), Reason::Dead))
    );
    // Back in time, it stays, and whoever is on the fuller node goes.
    cluster.nodes.insert(NodeId(3), node());
    cluster.node_mut(4).replicas = 7;
    assert_eq!(
        cluster.step(),
        Some((Step::Remove(NodeId(4)), Reason::TooMany))
    );
}

#[test]
fn where_nobody_can_take_it_a_replica_stays_unless_its_node_is_removed() {
    let mut cluster = nodes(1..=3).with([group(&[1, 2, 3], 1)]);
    cluster.dies(3);
    assert_eq!(cluster.step(), None);
    cluster.node_mut(3).gives = true;
    assert_eq!(cluster.step(), None, "it is drained");
    cluster.node_mut(3).ends = true;
    assert_eq!(
        cluster.step(),
        Some((Step::Remove(NodeId(3)), Reason::NodeGoes))
    );
    // The only one is never given up, nor one without which nobody could decide.
    let mut cluster = nodes(1..=1).with([group(&[1], 1)]);
    cluster.node_mut(1).gives = true;
    cluster.node_mut(1).ends = true;
    assert_eq!(cluster.step(), None);
    let mut cluster = nodes(1..=2).with([group(&[1, 2], 1)]);
    cluster.dies(2);
    cluster.node_mut(2).ends = true;
    assert_eq!(cluster.step(), None);
}

#[test]
fn a_node_that_goes_is_rid_of_its_leaders_first() {
    let mut cluster = nodes(1..=4).with([group(&[1, 2, 3], 1)]);
    cluster.node_mut(1).gives = true;
    let step = cluster.step().expect("a step");
    assert_eq!(step, (Step::Lead(NodeId(2)), Reason::NodeGoes));
    cluster.one().leader = NodeId(2);
    assert_eq!(cluster.step(), Some((Step::Add(NodeId(4)), Reason::TooFew)));
}

#[test]
fn who_was_named_takes_the_replicas() {
    let mut cluster = nodes(1..=5).with([group(&[1, 2, 3], 2), group(&[1, 3, 5], 3)]);
    let old = cluster.node_mut(1);
    (old.gives, old.ends, old.successor) = (true, true, Some(NodeId(5)));
    let steps: Vec<_> = cluster
        .all_orders()
        .iter()
        .map(|order| order.step)
        .collect();
    // Where it has one already, somebody else takes it.
    assert_eq!(steps, [Step::Add(NodeId(5)), Step::Add(NodeId(4))]);
    let mut cluster = nodes(1..=4).with([group(&[1, 2, 3], 2)]);
    let (from, to) = (NodeId(3), NodeId(4));
    cluster.one().moving = Some(Moving { from, to });
    assert_eq!(cluster.step(), Some((Step::Add(to), Reason::Asked)));
    cluster.one().seats.insert(to, Seat::Voter { close: true });
    assert_eq!(cluster.step(), Some((Step::Remove(from), Reason::Asked)));
}

#[test]
fn what_was_begun_is_finished() {
    let mut cluster = nodes(1..=5).with([group(&[1, 2, 3], 1)]);
    cluster.dies(3);
    cluster.one().seats.insert(NodeId(5), Seat::Hosted);
    assert_eq!(cluster.step(), Some((Step::Add(NodeId(5)), Reason::TooFew)));
    let mut cluster = nodes(1..=5).with([group(&[1, 2, 3], 1)]);
    cluster.one().seats.insert(NodeId(5), Seat::Hosted);
    assert_eq!(
        cluster.step(),
        Some((Step::Remove(NodeId(5)), Reason::Unfinished))
    );
    cluster.one().seats.insert(NodeId(5), Seat::Astray);
    assert_eq!(
        cluster.step(),
        Some((Step::Remove(NodeId(5)), Reason::Unfinished))
    );
    cluster.one().left_alone = true;
    assert_eq!(cluster.step(), None);
}

#[test]
fn replicas_go_to_other_zones() {
    let mut cluster = nodes(1..=4).with([group(&[1, 2, 3], 1)]);
    for (id, zone) in [(1, "a"), (2, "a"), (3, "b"), (4, "c")] {
        cluster.node_mut(id).zone = Some(zone.to_owned());
    }
    assert_eq!(cluster.step(), Some((Step::Add(NodeId(4)), Reason::Zones)));
    assert_eq!(cluster.settle(), 2);
    assert_eq!(
        cluster.groups[&GroupId(1)]
            .voters()
            .filter(|id| id.0 > 2)
            .count(),
        2
    );
}

// P-122
#[test]
fn leaders_are_spread_only_where_they_are_far_apart() {
    let led = |leaders: &[u64]| {
        let groups = leaders.iter().map(|leader| group(&[1, 2, 3], *leader));
        nodes(1..=3).with(groups.collect::<Vec<_>>())
    };
    assert_eq!(led(&[1, 1, 2, 2, 2]).all_orders(), []);
    let mut uneven = led(&[1; 12]);
    let first = uneven.all_orders();
    assert_eq!(first.len(), LEADERS_AT_ONCE.0);
    assert!(first.iter().all(|order| order.why == Reason::Spread));
    uneven.settle();
    let leaders = uneven.leaders();
    assert!(
        leaders.values().all(|leads| (2..=6).contains(leads)),
        "{leaders:?}"
    );
    // A node whose disk is full, or that is about to stop, gets none.
    let mut full = led(&[1; 12]);
    full.node_mut(3).takes_leaders = false;
    full.settle();
    assert_eq!(full.leaders().get(&NodeId(3)), None);
    assert!(full.groups.values().all(|group| group.leader != NodeId(3)));
}

#[test]
fn so_many_changes_are_made_at_once() {
    let groups = (0..100).map(|_| group(&[1, 2, 3], 1)).collect::<Vec<_>>();
    let mut cluster = nodes(1..=5).with(groups);
    cluster.dies(3);
    let changes = |cluster: &Cluster, most| {
        let orders = orders(cluster, most);
        orders
            .iter()
            .filter(|order| !matches!(order.step, Step::Lead(_)))
            .count()
    };
    assert_eq!(changes(&cluster, CHANGES_AT_ONCE), CHANGES_AT_ONCE);
    assert_eq!(changes(&cluster, 3), 3);
    assert_eq!(changes(&cluster, 0), 0);
    cluster.settle();
    let [on_4, on_5] = [4, 5].map(|id| cluster.nodes[&NodeId(id)].replicas);
    assert_eq!((on_4, on_5), (50, 50), "the least loaded first");
}

fn any_node() -> impl Strategy<Value = Node> {
    let life = prop_oneof![
        6 => Just(Life::Answers),
        1 => Just(Life::Silent),
        1 => Just(Life::Dead),
    ];
    let state = prop_oneof![6 => Just(0), 1 => Just(1), 1 => Just(2), 1 => Just(3)];
    let zone = proptest::option::weighted(0.8, "[a-c]");
    (life, state, zone, any::<bool>(), 1_u64..8).prop_map(|(life, state, zone, full, successor)| {
        let answers = life == Life::Answers;
        Node {
            life,
            takes_replicas: answers && state == 0,
            takes_leaders: answers && !(full && state == 1),
            gives: state >= 2,
            ends: state == 3,
            successor: (state == 3 && full).then_some(NodeId(successor)),
            zone,
            replicas: 0,
        }
    })
}

fn any_cluster() -> impl Strategy<Value = Cluster> {
    let nodes = proptest::collection::vec(any_node(), 1..8);
    nodes.prop_flat_map(|nodes| {
        let nodes: BTreeMap<_, _> = (1..).map(NodeId).zip(nodes).collect();
        let ids: Vec<NodeId> = nodes.keys().copied().collect();
        let seat = prop_oneof![
            12 => Just(Seat::Voter { close: true }),
            2 => Just(Seat::Voter { close: false }),
            1 => Just(Seat::Hosted),
            1 => Just(Seat::Astray),
        ];
        let most = ids.len().min(5);
        let seats =
            proptest::collection::btree_map(proptest::sample::select(ids.clone()), seat, 1..=most);
        let moving = proptest::option::weighted(0.2, (1_u64..8, 1_u64..8));
        let group = (seats, 1_usize..5, any::<bool>(), moving);
        proptest::collection::vec(group, 0..12).prop_map(move |groups| {
            let cluster = Cluster {
                nodes: nodes.clone(),
                groups: BTreeMap::new(),
            };
            let groups = groups
                .into_iter()
                .filter_map(|(seats, wanted, left_alone, moving)| {
                    let mut group = Group {
                        wanted,
                        leader: NodeId(0),
                        moving: moving.map(|(from, to)| Moving {
                            from: NodeId(from),
                            to: NodeId(to),
                        }),
                        left_alone: left_alone && wanted == 1,
                        seats,
                    };
                    // Only a group with a majority has a leader that can say how it is.
                    let leader = group.voters().find(|voter| cluster.answers(*voter));
                    group.leader = leader?;
                    let known = group.voters().count() + group.with(Seat::Astray).count();
                    let majority = known / 2 + 1;
                    (cluster.answering(&group) >= majority).then_some(group)
                });
            cluster.clone().with(groups.collect::<Vec<_>>())
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever the cluster: no step takes a replica that is needed or puts two on one node, and it comes to an end, in which every
    /// group has what it should, as far as there are nodes, and nothing moves any more.
    // P-120
    #[test]
    fn every_cluster_comes_to_rest_with_all_replicas_that_it_can_have(mut cluster in any_cluster()) {
        let before = cluster.clone();
        cluster.settle();
        prop_assert_eq!(cluster.all_orders(), [], "at rest");
        for (id, group) in cluster.groups.iter().filter(|(_, group)| !group.left_alone) {
            let takers: Vec<NodeId> = cluster.nodes.keys().copied().filter(|id| cluster.takes_replicas(*id)).collect();
            let stay: Vec<NodeId> = group.voters().filter(|node| cluster.stays(*node)).collect();
            let was = &before.groups[id];
            let could = takers.iter().chain(&stay).collect::<BTreeSet<_>>().len();
            prop_assert!(stay.len() >= group.wanted.min(could), "{group:?} was {was:?}");
            if stay.len() >= group.wanted {
                // Where one stays that should not, the group could not spare it.
                for node in group.seats.keys().filter(|node| !cluster.stays(**node)) {
                    prop_assert!(group.votes(*node) && !cluster.spares(group, *node), "{group:?} was {was:?}");
                }
            }
            if stay.len() == group.wanted && group.seats.len() == stay.len() {
                let zones = |nodes: &[NodeId]| {
                    let zones = nodes.iter().filter_map(|node| cluster.zone(*node));
                    zones.collect::<BTreeSet<_>>()
                };
                let (has, free) = (zones(&stay), zones(&takers));
                let crowded = stay.iter().filter_map(|node| cluster.zone(*node)).count() > has.len();
                prop_assert!(!crowded || free.is_subset(&has), "{group:?}: {has:?} of {free:?}");
            }
        }
    }
}
